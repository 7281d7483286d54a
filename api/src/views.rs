//! What rows look like on the wire. Pure.
//!
//! Shapes: the serialisers of Pulp 2, deprecated keys (`_ns`, `_id`, `exception`, `traceback`) included, since
//! clients read them.

mod wait;

use std::collections::BTreeMap;

use pulp_model::{
    TaskId, Timestamp,
    history::{PublishHistory, SyncHistory},
    unit::Unit,
};
use pulp_store::{
    distributors::Distributor,
    importers::Importer,
    repositories::Repository,
    schedules::{Schedule, Target},
    tasks::Task,
    timeline::Event,
    units::{Association, StoredUnit},
    uploads::Upload,
    users::User,
    workers::KnownWorker,
};
use serde_json::{Map, Value, json};

use crate::PREFIX;

pub(crate) use wait::wait_reason;

/// What stands in place of a password.
pub(crate) const MASK: &str = "*****";

/// The keys of a configuration that are never sent.
pub(crate) const SECRETS: [&str; 3] = ["basic_auth_password", "proxy_password", "ssl_client_key"];

/// A row's object id: 24 hexadecimal digits, made of what identifies the row, hence always the same.
fn oid(namespace: &str, key: &str) -> Value {
    let digest = pulp_model::Digest::sha256(format!("{namespace}\0{key}"));
    json!({"$oid": digest.hex().get(..24)})
}

fn repository_href(id: &str) -> String {
    format!("{PREFIX}/repositories/{id}/")
}

/// A configuration without its secrets.
fn masked(config: &Map<String, Value>) -> Map<String, Value> {
    let mut config = config.clone();
    for secret in SECRETS {
        if let Some(value) = config.get_mut(secret) {
            *value = json!(MASK);
        }
    }
    config
}

/// A repository without what belongs to it.
pub(crate) fn repository(r: &Repository) -> Map<String, Value> {
    let id = r.id.as_str();
    object(json!({
        "id": id,
        "display_name": r.display_name,
        "description": r.description,
        "notes": r.notes,
        "scratchpad": r.scratchpad,
        "content_unit_counts": r.content_unit_counts,
        "last_unit_added": r.last_unit_added,
        "last_unit_removed": r.last_unit_removed,
        "_ns": "repos",
        "_id": oid("repos", id),
        "_href": repository_href(id),
    }))
}

/// The counts that a repository's details add. All units are held locally.
pub(crate) fn unit_totals(r: &Repository) -> Map<String, Value> {
    let total: i64 = r.content_unit_counts.values().sum();
    object(json!({"total_repository_units": total, "locally_stored_units": total}))
}

/// An importer.
pub(crate) fn importer(i: &Importer) -> Value {
    let (repo, id) = (i.repo_id.as_str(), i.importer_type_id.as_str());
    json!({
        "id": id,
        "importer_type_id": id,
        "repo_id": repo,
        "config": masked(&i.config),
        "scratchpad": null,
        "last_sync": i.last_sync,
        "last_updated": i.last_updated,
        "last_override_config": {},
        "_ns": "repo_importers",
        "_id": oid("repo_importers", &format!("{repo}/{id}")),
        "_href": format!("{}importers/{id}/", repository_href(repo)),
    })
}

/// A distributor.
pub(crate) fn distributor(d: &Distributor) -> Value {
    let (repo, id) = (d.repo_id.as_str(), d.id.as_str());
    json!({
        "id": id,
        "distributor_type_id": d.distributor_type_id,
        "repo_id": repo,
        "config": masked(&d.config),
        "auto_publish": d.auto_publish,
        "scratchpad": null,
        "last_publish": d.last_publish,
        "last_updated": d.last_updated,
        "last_override_config": {},
        "_ns": "repo_distributors",
        "_id": oid("repo_distributors", &format!("{repo}/{id}")),
        "_href": format!("{}distributors/{id}/", repository_href(repo)),
    })
}

/// A schedule of an importer or distributor with this id.
pub(crate) fn schedule(s: &Schedule, parent: &str, next_run: Option<Timestamp>) -> Value {
    let (repo, id) = (s.target.repo_id().as_str(), s.id.as_str());
    let (path, task, args, resource) = match &s.target {
        Target::Sync(_) => (
            format!("importers/{parent}/schedules/sync"),
            "pulp.server.tasks.repository.sync_with_auto_publish",
            json!([repo]),
            format!("pulp:importer:{repo}:{parent}"),
        ),
        Target::Publish(..) => (
            format!("distributors/{parent}/schedules/publish"),
            "pulp.server.controllers.repository.queue_publish",
            json!([repo, parent]),
            format!("pulp:distributor:{repo}:{parent}"),
        ),
    };
    json!({
        "_id": id,
        "_href": format!("{}{path}/{id}/", repository_href(repo)),
        "schedule": s.schedule,
        "enabled": s.enabled,
        "failure_threshold": s.failure_threshold,
        "consecutive_failures": s.consecutive_failures,
        "first_run": s.first_run,
        "last_run_at": s.last_run_at,
        "next_run": next_run,
        "remaining_runs": s.remaining_runs,
        "total_run_count": s.total_run_count,
        "last_updated": s.last_updated.micros() as f64 / 1e6,
        "task": task,
        "args": args,
        "kwargs": {"overrides": masked(&s.override_config), "scheduled_call_id": id},
        "resource": resource,
    })
}

fn task_ref(id: TaskId) -> Value {
    json!({"_href": format!("{PREFIX}/tasks/{id}/"), "task_id": id})
}

/// The answer to a call that made tasks, or might have.
pub(crate) fn call_report(result: &Value, tasks: &[TaskId]) -> Value {
    let spawned: Vec<_> = tasks.iter().map(|id| task_ref(*id)).collect();
    json!({"result": result, "error": null, "spawned_tasks": spawned})
}

/// A task as lists have it.
pub(crate) fn task(t: &Task) -> Value {
    let spawned: Vec<_> = t.spawned_tasks.iter().map(|id| task_ref(*id)).collect();
    json!({
        "_href": format!("{PREFIX}/tasks/{}/", t.id),
        "_id": {"$oid": t.id.oid()},
        "id": t.id.oid(),
        "_ns": "task_status",
        "task_id": t.id,
        "task_type": t.task_type,
        "state": t.state,
        "tags": t.tags,
        "worker_name": t.worker_name,
        "start_time": t.started,
        "finish_time": t.finished,
        "progress_report": t.progress_report,
        "result": t.result,
        "error": t.error,
        "spawned_tasks": spawned,
        "exception": null,
        "traceback": null,
    })
}

/// A task as it is read alone, with its `queue`.
pub(crate) fn single_task(t: &Task) -> Value {
    let queue = t.worker_name.as_ref().map(|name| format!("{name}.dq"));
    let mut view = task(t);
    view["queue"] = json!(queue.unwrap_or_default());
    view
}

/// What befell a task. Instants have milliseconds here, unlike elsewhere: much happens within a second.
pub(crate) fn timeline(events: &[Event]) -> Value {
    let view = |e: &Event| {
        let at = chrono::DateTime::from_timestamp_micros(e.at.micros()).unwrap_or_default();
        json!({
            "at": at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
            "event": e.kind.as_str(),
            "attempt": e.attempt,
            "worker_name": e.worker,
            "detail": e.detail,
        })
    };
    events.iter().map(view).collect()
}

/// How many tasks of a group are in which state.
pub(crate) fn state_summary(states: &BTreeMap<&'static str, i64>) -> Value {
    let mut view = json!(states);
    view["total"] = json!(states.values().sum::<i64>());
    view
}

/// A group with its tasks in short.
pub(crate) fn task_group(id: &str, states: &BTreeMap<&'static str, i64>, tasks: &[Task]) -> Value {
    let task = |t: &Task| {
        let mut view = task_ref(t.id);
        view["task_type"] = json!(t.task_type);
        view["state"] = json!(t.state);
        view
    };
    json!({
        "group_id": id,
        "_href": format!("{PREFIX}/task_groups/{id}/"),
        "state_summary": state_summary(states),
        "tasks": tasks.iter().map(task).collect::<Vec<_>>(),
    })
}

/// A unit in a repository.
pub(crate) fn association(a: &Association) -> Value {
    let unit_type = a.unit.unit_type().as_str();
    let id = oid("repo_content_units", &format!("{}/{}", a.repo_id, a.unit_id));
    json!({
        "repo_id": a.repo_id,
        "unit_id": a.unit_id,
        "unit_type_id": unit_type,
        "created": a.created,
        "updated": a.updated,
        "id": id["$oid"],
        "_id": id,
        "_ns": "repo_content_units",
        "metadata": metadata(&a.unit, &a.unit_id, a.created),
    })
}

fn metadata(unit: &Unit, id: &str, changed: Timestamp) -> Map<String, Value> {
    let unit_type = unit.unit_type();
    let mut fields = unit.fields();
    if let Unit::ManifestList(list) = unit {
        // What a filter of platforms made of it in the repository that is asked about.
        let selection = &list.selection;
        if !selection.absent.is_empty() {
            fields.insert("absent_manifests".to_owned(), json!(selection.absent));
        }
        if let Some(from) = &selection.made_from {
            fields.insert("original_digest".to_owned(), json!(from.digest));
        }
    }
    fields.extend(object(json!({
        "_id": id,
        "_ns": format!("units_{unit_type}"),
        "_content_type_id": unit_type,
        "_last_updated": changed.micros() / 1_000_000,
        "pulp_user_metadata": {},
        "downloaded": true,
    })));
    fields
}

/// A unit by itself.
pub(crate) fn unit(u: &StoredUnit) -> Map<String, Value> {
    let mut view = metadata(&u.unit, &u.unit_id, u.created);
    let href = format!("{PREFIX}/content/units/{}/{}/", u.unit.unit_type(), u.unit_id);
    view.extend(object(json!({
        "_last_updated": u.created,
        "_href": href,
        "children": {},
    })));
    view
}

/// One publish.
pub(crate) fn publish_history(entry: &PublishHistory) -> Value {
    let mut view = object(json!(entry));
    view.insert("_ns".to_owned(), json!("repo_publish_results"));
    view.insert("_id".to_owned(), oid("repo_publish_results", &entry.id));
    Value::Object(view)
}

/// An entry of the sync history.
pub(crate) fn sync_history(entry: &SyncHistory) -> Value {
    let mut view = object(json!(entry));
    view.insert("_ns".to_owned(), json!("repo_sync_results"));
    view.insert("_id".to_owned(), oid("repo_sync_results", &entry.id));
    Value::Object(view)
}

/// Where an upload is.
pub(crate) fn upload_href(id: pulp_model::UploadId) -> String {
    format!("{PREFIX}/content/uploads/{id}/")
}

/// An upload, with the bytes received so far: the offset to go on from.
pub(crate) fn upload(u: &Upload) -> Value {
    json!({
        "upload_id": u.id,
        "size": u.size,
        "login": u.login,
        "created": u.created,
        "updated": u.updated,
        "_href": upload_href(u.id),
    })
}

/// A user; never the password.
pub(crate) fn user(u: &User) -> Value {
    let login = u.login.as_str();
    json!({
        "login": login,
        "name": u.name,
        "roles": u.roles,
        "_ns": "users",
        "_id": oid("users", login),
        "_href": format!("{PREFIX}/users/{login}/"),
    })
}

/// A process. Servers of old sent `_id`, their documentation said `name`.
pub(crate) fn worker(w: &KnownWorker) -> Value {
    json!({"_id": w.name, "name": w.name, "last_heartbeat": w.last_heartbeat, "_ns": "workers"})
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
