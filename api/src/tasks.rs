//! `/tasks/`: how far accepted work is, and its cancel.

use axum::{
    extract::State,
    response::{IntoResponse as _, Response},
    routing::get,
};
use http::StatusCode;
use pulp_broker::Control;
use pulp_model::{CodedError, ErrorCode, TaskId, task::TaskState};
use pulp_store::{
    StoreError,
    cancel::Canceled,
    tasks::{CancelOutcome, Task, TaskFilter},
};
use serde_json::{Map, Value};

use crate::{
    ApiError, ApiState, App, Routes,
    body::JsonObject,
    criteria::Criteria,
    errors::Segments,
    query::Query,
    replies::{self, Reply},
    views,
};

pub(crate) fn routes() -> Routes {
    Routes::default()
        .at("/tasks/", get(list).delete(purge))
        .at("/tasks/search/", get(search_by_query).post(search_by_body))
        .at("/tasks/{task}/", get(read).delete(cancel))
        .at("/tasks/{task}/wait_reason/", get(wait_reason))
        .at("/tasks/{task}/timeline/", get(timeline))
}

fn unknown(task: &str) -> ApiError {
    ApiError::NotFound {
        kind: "task_id",
        id: task.to_owned(),
    }
}

async fn find(app: &ApiState, task: &str) -> Result<Task, ApiError> {
    let found = match task.parse() {
        Ok(id) => app.store.task(id).await?,
        Err(_) => None,
    };
    found.ok_or_else(|| unknown(task))
}

/// Tasks of no group, oldest first; `tag` as often as wanted, all must be there. `limit` and `skip` are ours.
async fn list(State(app): State<App>, query: Query) -> Reply {
    let filter = TaskFilter {
        tags: query.all("tag").map(ToOwned::to_owned).collect(),
        ungrouped: true,
        limit: query.number("limit")?,
        skip: query.number("skip")?.unwrap_or(0),
        ..TaskFilter::default()
    };
    let tasks = app.store.search_tasks(&filter).await?;
    let views: Vec<_> = tasks.iter().map(views::task).collect();
    Ok(replies::ok(&views.into()))
}

async fn read(State(app): State<App>, Segments(task): Segments<String>) -> Reply {
    let task = find(&app, &task).await?;
    Ok(replies::ok(&views::single_task(&task)))
}

/// Why the task waits; of one that doesn't, how far it is.
async fn wait_reason(State(app): State<App>, Segments(task): Segments<String>) -> Reply {
    let id: TaskId = task.parse().map_err(|_| unknown(&task))?;
    let situation = app.store.situation(id).await?.ok_or_else(|| unknown(&task))?;
    Ok(replies::ok(&views::wait_reason(&situation)))
}

/// All that befell the task, oldest first.
async fn timeline(State(app): State<App>, Segments(task): Segments<String>) -> Reply {
    let id: TaskId = task.parse().map_err(|_| unknown(&task))?;
    let events = app.store.timeline(id).await?;
    if events.is_empty() {
        return Err(unknown(&task));
    }
    Ok(replies::ok(&views::timeline(&events)))
}

/// Cancels a task and what it made, as far as they have not ended; with `tree=false` the task alone, as Pulp 2 did.
/// What has ended stays as it is, and that is no error.
async fn cancel(State(app): State<App>, Segments(task): Segments<String>, query: Query) -> Reply {
    let id: TaskId = task.parse().map_err(|_| unknown(&task))?;
    let what = match query.first("tree") {
        Some(_) if !query.flag("tree")? => Stop::Task(id),
        _ => Stop::Tree(id),
    };
    if stop(&app, &what).await? {
        Ok(replies::ok(&Value::Null))
    } else {
        Err(unknown(&task))
    }
}

/// What a cancel is about.
#[derive(Debug)]
pub(crate) enum Stop<'a> {
    /// One task.
    Task(TaskId),
    /// A task and what it made.
    Tree(TaskId),
    /// The tasks of a group.
    Group(&'a str),
}

/// Cancels, and tells the workers that run any of it; false if there is no such thing.
pub(crate) async fn stop(app: &ApiState, what: &Stop<'_>) -> Result<bool, ApiError> {
    let canceled = match commit_stop(app, what).await {
        // Many rows are locked, and the resource manager may be granting them: of two that wait for each other the
        // database tells one to begin anew.
        Err(e) if e.is_transient() => commit_stop(app, what).await?,
        other => other?,
    };
    let Some(canceled) = canceled else {
        return Ok(false);
    };
    tracing::info!(
        ?what,
        ended = canceled.ended.len(),
        asked = canceled.asked.len(),
        "cancel asked for"
    );
    let Some(broker) = &app.broker else {
        return Ok(true);
    };
    for task_id in canceled.asked {
        if let Err(error) = broker.broadcast(&Control::Cancel { task_id }).await {
            // Only a hint: workers read the request with their next heartbeat. The others would fail alike, each after
            // some seconds, with the client waiting.
            tracing::debug!(%task_id, %error, "this cancel and those after it were not broadcast");
            break;
        }
    }
    Ok(true)
}

async fn commit_stop(app: &ApiState, what: &Stop<'_>) -> Result<Option<Canceled>, StoreError> {
    let mut tx = app.store.begin().await?;
    let canceled = match what {
        Stop::Tree(id) => tx.cancel_tree(*id).await?,
        Stop::Group(id) => tx.cancel_group(id).await?,
        Stop::Task(id) => match tx.cancel_task(*id).await? {
            CancelOutcome::Unknown => None,
            CancelOutcome::AlreadyEnded | CancelOutcome::Canceled => Some(Canceled::default()),
            CancelOutcome::Requested => Some(Canceled {
                asked: vec![*id],
                ..Canceled::default()
            }),
        },
    };
    tx.commit().await?;
    Ok(canceled)
}

/// Deletes ended tasks of the states named. What is still under way can't be purged.
async fn purge(State(app): State<App>, query: Query) -> Result<Response, ApiError> {
    let mut states = Vec::new();
    for text in query.all("state") {
        let state = TaskState::parse(text)
            .filter(|s| s.is_terminal())
            .ok_or_else(|| {
                let reason = format!("{text:?} can't be purged; give finished, error, skipped or canceled");
                CodedError::new(ErrorCode::PURGE_STATE, reason).with("state", text)
            })?;
        states.push(state);
    }
    if states.is_empty() {
        let reason = "no state was given; name those to delete, for example ?state=finished&state=error";
        let error = CodedError::new(ErrorCode::PURGE_WITHOUT_STATE, reason);
        return Err(ApiError::Forbidden(Box::new(error)));
    }
    let mut tx = app.store.begin().await?;
    let purged = tx.purge_tasks(&states).await?;
    tx.commit().await?;
    tracing::info!(purged, "tasks purged");
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn search_by_query(State(app): State<App>, query: Query) -> Reply {
    search(&app, Criteria::from_query(&query, &[])?).await
}

async fn search_by_body(State(app): State<App>, JsonObject(body): JsonObject) -> Reply {
    search(&app, Criteria::from_body(&body)?).await
}

/// Reports are always whole, whatever `fields` says: clients of Pulp 2 got made-up values for what they left out.
async fn search(app: &ApiState, criteria: Criteria) -> Reply {
    let (mut filter, exact) = narrowed(&criteria.filters);
    let mut criteria = criteria;
    if exact && criteria.sort.is_empty() {
        // The database decides it all; it can cut the page too.
        filter.limit = criteria.limit.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        filter.skip = u32::try_from(criteria.skip).unwrap_or(u32::MAX);
        (criteria.limit, criteria.skip) = (None, 0);
    }
    let tasks = app.store.search_tasks(&filter).await?;
    let documents = tasks
        .iter()
        .map(|t| {
            let mut document = views::task(t);
            // Never sent, but asked for: it is how clients leave grouped tasks out.
            document["group_id"] = t.group_id.clone().into();
            document
        })
        .collect();
    let mut found = criteria.apply(documents);
    for view in &mut found {
        if let Some(map) = view.as_object_mut() {
            map.remove("group_id");
        }
    }
    Ok(replies::ok(&found.into()))
}

/// The part of a filter that the database can decide, and whether that is all of it. What it lets through is
/// looked at again, so the part may be wider than the filter, never narrower.
fn narrowed(filters: &Map<String, Value>) -> (TaskFilter, bool) {
    let mut narrowed = TaskFilter::default();
    let mut exact = true;
    for (field, wanted) in filters {
        let decided = match field.as_str() {
            "state" => states(wanted).map(|s| narrowed.states = s).is_some(),
            "tags" => tags(wanted).map(|t| narrowed.tags = t).is_some(),
            "task_id" => {
                let id = wanted.as_str().and_then(|t| t.parse().ok());
                narrowed.task_id = id;
                id.is_some()
            }
            "group_id" => {
                narrowed.ungrouped = wanted.is_null();
                narrowed.group_id = wanted.as_str().map(ToOwned::to_owned);
                wanted.is_null() || wanted.is_string()
            }
            _ => false,
        };
        exact &= decided;
    }
    (narrowed, exact)
}

fn states(wanted: &Value) -> Option<Vec<TaskState>> {
    let list = match wanted {
        Value::String(_) => std::slice::from_ref(wanted),
        Value::Object(map) if map.len() == 1 => map.get("$in")?.as_array()?.as_slice(),
        _ => return None,
    };
    let states: Option<Vec<_>> = list.iter().map(|s| TaskState::parse(s.as_str()?)).collect();
    // None at all would mean all of them to the database.
    states.filter(|s| !s.is_empty())
}

fn tags(wanted: &Value) -> Option<Vec<String>> {
    let list = match wanted {
        Value::String(_) => std::slice::from_ref(wanted),
        Value::Object(map) if map.len() == 1 => map.get("$all")?.as_array()?.as_slice(),
        _ => return None,
    };
    let tags: Option<Vec<_>> = list.iter().map(|t| Some(t.as_str()?.to_owned())).collect();
    tags.filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::testing::Api;

    /// A publish like no other, so that each is a task of its own.
    async fn publish(api: &Api, repo: &str) -> TaskId {
        let other = format!("https://{}.example.com/", TaskId::new());
        publish_with(api, repo, json!({"redirect-url": other})).await
    }

    async fn publish_with(api: &Api, repo: &str, override_config: Value) -> TaskId {
        let body = json!({"id": "web", "override_config": override_config});
        api.post(&format!("/repositories/{repo}/actions/publish/"), &body)
            .await
            .task()
    }

    #[tokio::test]
    async fn a_publish_like_one_that_waits_is_accepted_with_its_task() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        let first = publish_with(&api, "r", json!({})).await;
        assert_eq!(publish_with(&api, "r", json!({})).await, first);
        assert_ne!(publish_with(&api, "r", json!({"force_full": true})).await, first);
        api.claimed(first).await;
        assert_ne!(publish_with(&api, "r", json!({})).await, first);
    }

    async fn state(api: &Api, id: TaskId) -> Value {
        api.get(&format!("/tasks/{id}/")).await.body["state"].clone()
    }

    fn ids(body: &Value) -> Vec<String> {
        let list = body.as_array().unwrap().iter();
        list.map(|t| t["task_id"].as_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn a_task_report_has_every_key_that_clients_know() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        let id = publish(&api, "r").await;
        let one = api.get(&format!("/tasks/{id}/")).await.body;
        let oid = one["id"].clone();
        assert_eq!(
            one,
            json!({
                "_href": format!("/pulp/api/v2/tasks/{id}/"), "_id": {"$oid": oid}, "id": oid, "_ns": "task_status",
                "task_id": id.to_string(), "task_type": "pulp.server.managers.repo.publish.publish",
                "state": "waiting", "worker_name": null,
                "tags": ["pulp:repository:r", "pulp:repository_distributor:web", "pulp:action:publish"],
                "queue": "", "start_time": null, "finish_time": null, "progress_report": {}, "result": null,
                "error": null, "spawned_tasks": [], "exception": null, "traceback": null,
            })
        );
        assert_eq!(oid.as_str().unwrap().len(), 24);
        api.claimed(id).await;
        let running = api.get(&format!("/tasks/{id}/")).await.body;
        assert_eq!(running["state"], "running");
        assert_eq!(running["queue"], "reserved_resource_worker-0@node1.dq");
        assert!(running["start_time"].as_str().unwrap().ends_with('Z'));
        let listed = api.get("/tasks/").await.body;
        assert!(listed[0].get("queue").is_none());
    }

    #[tokio::test]
    async fn a_list_takes_tags_and_pages() {
        let api = Api::new().await;
        api.docker_repository("a").await;
        api.docker_repository("b").await;
        let (one, two, three) = (
            publish(&api, "a").await,
            publish(&api, "b").await,
            publish(&api, "a").await,
        );
        let all = |path: &'static str| async { ids(&api.get(path).await.body) };
        assert_eq!(all("/tasks/").await, [one, two, three].map(|i| i.to_string()));
        let of_a = all("/tasks/?tag=pulp:repository:a&tag=pulp:action:publish").await;
        assert_eq!(of_a, [one, three].map(|i| i.to_string()));
        assert_eq!(all("/tasks/?limit=1&skip=1").await, [two.to_string()]);
        assert_eq!(api.get("/tasks/?limit=x").await.code(), "PLP0015");
        assert_eq!(
            api.get("/tasks/nope/").await.body["resources"],
            json!({"task_id": "nope"})
        );
        assert_eq!(
            api.get(&format!("/tasks/{}/", TaskId::new())).await.code(),
            "PLP0009"
        );
    }

    #[tokio::test]
    async fn searches_by_database_and_in_memory_agree() {
        let api = Api::new().await;
        api.docker_repository("a").await;
        let (one, two, three) = (
            publish(&api, "a").await,
            publish(&api, "a").await,
            publish(&api, "a").await,
        );
        api.delete(&format!("/tasks/{one}/")).await;
        let search = |criteria: Value| {
            let api = &api;
            async move {
                let body = json!({"criteria": criteria});
                ids(&api.post("/tasks/search/", &body).await.body)
            }
        };
        let (one, two, three) = (one.to_string(), two.to_string(), three.to_string());
        let live = json!({"state": {"$in": ["running", "waiting"]}, "group_id": null});
        assert_eq!(
            search(json!({"filters": live.clone()})).await,
            [two.as_str(), &three]
        );
        assert_eq!(
            search(json!({"filters": live, "limit": 1, "skip": 1})).await,
            [three.as_str()]
        );
        let not_ended = json!({"state": {"$nin": ["canceled", "finished"]},
            "tags": {"$all": ["pulp:repository:a", "pulp:action:publish"]}});
        assert_eq!(
            search(json!({"filters": not_ended})).await,
            [two.as_str(), &three]
        );
        assert_eq!(
            search(json!({"filters": {"state": "canceled"}})).await,
            [one.as_str()]
        );
        assert_eq!(search(json!({"filters": {"task_id": two}})).await, [two.as_str()]);
        assert_eq!(
            search(json!({"filters": {"state": {"$in": []}}})).await,
            Vec::<String>::new()
        );
        assert_eq!(
            search(json!({"filters": {"state": "nonsense"}})).await,
            Vec::<String>::new()
        );
        let newest = json!({"sort": [["task_id", "descending"]], "limit": 1, "fields": ["state"]});
        assert_eq!(search(newest).await, [three.as_str()]);
        assert_eq!(
            ids(&api
                .get("/tasks/search/?filters=%7B%22state%22:%22canceled%22%7D")
                .await
                .body),
            [one]
        );
    }

    #[tokio::test]
    async fn a_waiting_task_is_canceled_at_once_and_a_running_one_is_asked() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        let (waiting, running) = (publish(&api, "r").await, publish(&api, "r").await);
        api.claimed(running).await;
        for _ in 0..2 {
            let reply = api.delete(&format!("/tasks/{waiting}/")).await;
            assert_eq!((reply.status, reply.body), (StatusCode::OK, Value::Null));
        }
        assert_eq!(state(&api, waiting).await, "canceled");
        assert!(api.get(&format!("/tasks/{waiting}/")).await.body["finish_time"].is_string());
        let mut told = api.broker.subscribe().await.unwrap();
        assert_eq!(
            api.delete(&format!("/tasks/{running}/")).await.status,
            StatusCode::OK
        );
        assert_eq!(state(&api, running).await, "running");
        assert!(
            api.store
                .task(running)
                .await
                .unwrap()
                .unwrap()
                .cancel_requested
                .is_some()
        );
        let hint = tokio::time::timeout(std::time::Duration::from_secs(10), told.next());
        assert_eq!(
            hint.await.unwrap().unwrap(),
            Some(Control::Cancel { task_id: running })
        );
        assert_eq!(api.delete("/tasks/nope/").await.status, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn a_purge_takes_ended_tasks_of_the_states_named() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        let (canceled, waiting) = (publish(&api, "r").await, publish(&api, "r").await);
        api.delete(&format!("/tasks/{canceled}/")).await;
        let none = api.delete("/tasks/").await;
        assert_eq!((none.status, none.code()), (StatusCode::FORBIDDEN, "PLP1012"));
        let live = api.delete("/tasks/?state=finished&state=running").await;
        assert_eq!((live.status, live.code()), (StatusCode::BAD_REQUEST, "PLP1011"));
        let purged = api.delete("/tasks/?state=finished&state=canceled").await;
        assert_eq!(
            (purged.status, purged.body),
            (StatusCode::NO_CONTENT, Value::Null)
        );
        assert_eq!(ids(&api.get("/tasks/").await.body), [waiting.to_string()]);
    }
}
