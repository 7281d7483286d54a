//! `docker repo create|update|delete|list` and `repo list`.

use std::path::Path;

use pulp_model::{
    RepositoryId,
    config::{EXPORT_DISTRIBUTOR_TYPE, IMPORTER_TYPE, WEB_DISTRIBUTOR_TYPE},
};
use serde_json::{Map, Value, json};

use super::{App, EXPORT_DISTRIBUTOR, Stop, WEB_DISTRIBUTOR, missing};
use crate::{
    cli::{CreateArgs, DeleteArgs, ListArgs, Settings, UpdateArgs},
    error::AdminError,
    output::{Hidden, picked},
    task::{Style, spawned, tasks_document},
};

/// The note by which docker repositories are told from others.
const REPO_TYPE_NOTE: &str = "_repo-type";
const DOCKER_REPO: &str = "docker-repo";
/// Digits of an image's id that a v1 tag needs at least.
const SHORTEST_PREFIX: usize = 6;
const ORDER: [&str; 4] = ["id", "display_name", "description", "content_unit_counts"];

pub(super) async fn create(app: &App, args: &CreateArgs) -> Result<(), Stop> {
    let body = create_body(args)?;
    let reply = app.client.post(&["repositories"], &body).await?;
    app.screen
        .success(&format!("Repository [{}] successfully created", args.repo_id));
    app.screen.result(&reply.body);
    Ok(())
}

fn create_body(args: &CreateArgs) -> Result<Value, AdminError> {
    let settings = &args.settings;
    let mut notes = Map::from_iter([(REPO_TYPE_NOTE.to_owned(), json!(DOCKER_REPO))]);
    notes.extend(
        settings
            .note
            .iter()
            .map(|(key, value)| (key.clone(), json!(value))),
    );
    let distributor_config = without_nulls(distributor_config(settings));
    let mut body = json!({
        "id": args.repo_id,
        "notes": notes,
        "importer_type_id": IMPORTER_TYPE,
        "importer_config": without_nulls(importer_config(settings)?),
        "distributors": [
            {
                "distributor_id": WEB_DISTRIBUTOR,
                "distributor_type_id": WEB_DISTRIBUTOR_TYPE,
                "distributor_config": distributor_config,
                "auto_publish": settings.auto_publish.unwrap_or(true),
            },
            {
                "distributor_id": EXPORT_DISTRIBUTOR,
                "distributor_type_id": EXPORT_DISTRIBUTOR_TYPE,
                "distributor_config": distributor_config,
                "auto_publish": false,
            },
        ],
    });
    for (key, value) in [
        ("display_name", &settings.display_name),
        ("description", &settings.description),
    ] {
        if let (Some(value), Some(map)) = (value.as_ref().filter(|v| !v.is_empty()), body.as_object_mut()) {
            map.insert(key.to_owned(), json!(value));
        }
    }
    Ok(body)
}

fn without_nulls(map: Map<String, Value>) -> Map<String, Value> {
    map.into_iter().filter(|(_, value)| !value.is_null()).collect()
}

/// Keys that were given; null unsets one.
fn importer_config(settings: &Settings) -> Result<Map<String, Value>, AdminError> {
    let s = settings;
    let mut config = Map::new();
    for (key, value) in [
        ("feed", &s.feed),
        ("validate", &s.validate),
        ("upstream_name", &s.upstream_name),
        ("enable_v1", &s.enable_v1),
        ("enable_v2", &s.enable_v2),
        ("tags", &s.tags),
        ("tags_exclude", &s.tags_exclude),
        ("tags_semver", &s.tags_semver),
        ("tags_newest", &s.tags_newest),
        ("platforms", &s.platforms),
        ("platforms_mode", &s.platforms_mode),
        ("remove_missing", &s.remove_missing),
        ("referrers", &s.referrers),
        ("referrer_types", &s.referrer_types),
        ("ssl_validation", &s.verify_feed_ssl),
        ("proxy_host", &s.proxy_host),
        ("proxy_port", &s.proxy_port),
        ("proxy_username", &s.proxy_user),
        ("proxy_password", &s.proxy_pass),
        ("basic_auth_username", &s.basicauth_user),
        ("basic_auth_password", &s.basicauth_pass),
        ("max_downloads", &s.max_downloads),
        ("max_speed", &s.max_speed),
        ("connect_timeout", &s.connect_timeout),
        ("read_timeout", &s.read_timeout),
    ] {
        if let Some(value) = value {
            config.insert(key.to_owned(), value.clone());
        }
    }
    for (key, file) in [
        ("ssl_ca_cert", &s.feed_ca_cert),
        ("ssl_client_cert", &s.feed_cert),
        ("ssl_client_key", &s.feed_key),
    ] {
        if let Some(file) = file {
            config.insert(key.to_owned(), pem(file)?);
        }
    }
    Ok(config)
}

/// The file's text is sent, not its path: the server can't read our disk.
fn pem(file: &Path) -> Result<Value, AdminError> {
    if file.as_os_str().is_empty() {
        return Ok(Value::Null);
    }
    std::fs::read_to_string(file)
        .map(Value::from)
        .map_err(AdminError::file(file))
}

fn distributor_config(settings: &Settings) -> Map<String, Value> {
    let mut config = Map::new();
    for (key, value) in [
        ("redirect-url", &settings.redirect_url),
        ("protected", &settings.protected),
        ("repo-registry-id", &settings.repo_registry_id),
    ] {
        if let Some(value) = value {
            config.insert(key.to_owned(), value.clone());
        }
    }
    config
}

pub(super) async fn update(app: &App, args: &UpdateArgs) -> Result<(), Stop> {
    let settings = &args.settings;
    let mut delta = Map::new();
    for (key, value) in [
        ("display_name", &settings.display_name),
        ("description", &settings.description),
    ] {
        if let Some(value) = value {
            delta.insert(key.to_owned(), null_if_empty(value));
        }
    }
    if !settings.note.is_empty() {
        let notes: Map<_, _> = settings
            .note
            .iter()
            .map(|(k, v)| (k.clone(), null_if_empty(v)))
            .collect();
        delta.insert("notes".to_owned(), Value::Object(notes));
    }
    let importer_config = importer_config(settings)?;
    let distributor_config = distributor_config(settings);
    let tags_change = !args.tag.is_empty() || !args.remove_tag.is_empty();
    let repository_changes =
        tags_change || !delta.is_empty() || !importer_config.is_empty() || !distributor_config.is_empty();
    if !repository_changes && settings.auto_publish.is_none() {
        return Err(AdminError::Usage("nothing to change; give at least one setting".to_owned()).into());
    }
    if tags_change {
        delta.insert("scratchpad".to_owned(), scratchpad(app, args).await?);
    }

    let mut tasks = Vec::new();
    let mut result = Value::Null;
    if repository_changes {
        let mut body = json!({"delta": delta});
        if let Some(map) = body.as_object_mut() {
            if !importer_config.is_empty() {
                map.insert("importer_config".to_owned(), Value::Object(importer_config));
            }
            if !distributor_config.is_empty() {
                let configs =
                    json!({WEB_DISTRIBUTOR: distributor_config, EXPORT_DISTRIBUTOR: distributor_config});
                map.insert("distributor_configs".to_owned(), configs);
            }
        }
        let reply = app
            .client
            .put(&["repositories", args.repo_id.as_str()], &body)
            .await;
        let reply = reply.map_err(|e| missing(e, &args.repo_id))?;
        tasks.extend(spawned(&reply)?);
        result = reply.body;
    }
    if let Some(auto_publish) = settings.auto_publish {
        let path = [
            "repositories",
            args.repo_id.as_str(),
            "distributors",
            WEB_DISTRIBUTOR,
        ];
        let body = json!({"distributor_config": {}, "delta": {"auto_publish": auto_publish}});
        let reply = app
            .client
            .put(&path, &body)
            .await
            .map_err(|e| missing(e, &args.repo_id))?;
        tasks.extend(spawned(&reply)?);
    }

    if tasks.is_empty() {
        app.screen
            .success(&format!("Repository [{}] successfully updated", args.repo_id));
        app.screen.result(&result);
    } else if args.bg {
        app.queued(&tasks);
    } else {
        let reports = app.follower().follow(tasks, Style::Running).await?;
        app.screen.result(&tasks_document(&reports));
    }
    Ok(())
}

fn null_if_empty(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { json!(text) }
}

/// The repository's scratchpad with its v1 tags changed. Everything else in it stays.
async fn scratchpad(app: &App, args: &UpdateArgs) -> Result<Value, AdminError> {
    let repository = app.repository(&args.repo_id, &[]).await?;
    let images = resolve(app, &args.repo_id, &args.tag).await?;
    let mut scratchpad = repository
        .get("scratchpad")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    let old = scratchpad
        .get("tags")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    scratchpad.insert(
        "tags".to_owned(),
        Value::Array(changed_tags(old, &images, &args.remove_tag)),
    );
    Ok(Value::Object(scratchpad))
}

/// Drops the names that are set or removed, and appends those that are set; the last of a name wins.
fn changed_tags(mut tags: Vec<Value>, set: &[(String, String)], remove: &[String]) -> Vec<Value> {
    let drop = |tags: &mut Vec<Value>, name: &str| {
        tags.retain(|entry| entry.get("tag").and_then(Value::as_str) != Some(name));
    };
    for name in remove {
        drop(&mut tags, name);
    }
    for (name, image_id) in set {
        drop(&mut tags, name);
        tags.push(json!({"tag": name, "image_id": image_id}));
    }
    tags
}

/// Replaces the beginnings of image ids by the ids of images in the repository.
async fn resolve(
    app: &App,
    repo: &RepositoryId,
    tags: &[(String, String)],
) -> Result<Vec<(String, String)>, AdminError> {
    if tags.is_empty() {
        return Ok(Vec::new());
    }
    for (name, prefix) in tags {
        if prefix.len() < SHORTEST_PREFIX || !prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(AdminError::Data(format!(
                "--tag {name}:{prefix}: give at least {SHORTEST_PREFIX} digits (0-9, a-f) of the image's id"
            )));
        }
    }
    let pattern: Vec<String> = tags.iter().map(|(_, prefix)| format!("^{prefix}")).collect();
    let criteria = json!({
        "type_ids": ["docker_image"],
        "filters": {"unit": {"image_id": {"$regex": pattern.join("|")}}},
        "fields": {"unit": ["image_id"]},
    });
    let path = ["repositories", repo.as_str(), "search", "units"];
    let reply = app
        .client
        .post(&path, &json!({"criteria": criteria}))
        .await
        .map_err(|e| missing(e, repo))?;
    let found: Vec<&str> = reply
        .body
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|unit| unit.pointer("/metadata/image_id")?.as_str())
        .collect();
    chosen(repo, tags, &found)
}

fn chosen(
    repo: &RepositoryId,
    tags: &[(String, String)],
    found: &[&str],
) -> Result<Vec<(String, String)>, AdminError> {
    let (mut out, mut faults) = (Vec::new(), Vec::new());
    for (name, prefix) in tags {
        let matching: std::collections::BTreeSet<&str> = found
            .iter()
            .copied()
            .filter(|id| id.starts_with(prefix.as_str()))
            .collect();
        match matching.iter().collect::<Vec<_>>()[..] {
            [id] => out.push((name.clone(), (*id).to_owned())),
            [] => faults.push(format!("no image of repository [{repo}] begins with {prefix}")),
            _ => faults.push(format!(
                "{prefix} is ambiguous in repository [{repo}]: {}",
                matching.into_iter().collect::<Vec<_>>().join(", ")
            )),
        }
    }
    if faults.is_empty() {
        Ok(out)
    } else {
        Err(AdminError::Data(faults.join("\n")))
    }
}

pub(super) async fn delete(app: &App, args: &DeleteArgs) -> Result<(), Stop> {
    let reply = app
        .client
        .delete(&["repositories", args.repo_id.as_str()], &[])
        .await;
    let tasks = spawned(&reply.map_err(|e| missing(e, &args.repo_id))?)?;
    if args.bg {
        app.queued(&tasks);
        return Ok(());
    }
    let reports = app.follower().follow(tasks, Style::Running).await?;
    app.screen
        .success(&format!("Repository [{}] successfully deleted", args.repo_id));
    app.screen.result(&tasks_document(&reports));
    Ok(())
}

/// Which repositories a list is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Docker repositories; others with `--all`.
    Docker,
    /// All, without a difference.
    Every,
}

pub(super) async fn list(app: &App, args: &ListArgs, scope: Scope) -> Result<(), Stop> {
    if args.summary && args.details {
        return Err(
            AdminError::Usage("The summary and details views cannot be used together".to_owned()).into(),
        );
    }
    let wants = |field: &str| args.details || args.fields.iter().any(|f| f == field);
    let bit = |wanted: bool| if wanted { "true" } else { "false" };
    let query = [
        ("importers", bit(wants("importers"))),
        ("distributors", bit(wants("distributors"))),
    ];
    let repositories = match &args.repo_id {
        Some(id) => vec![app.repository(id, &query).await?],
        None => app
            .client
            .get(&["repositories"], &query)
            .await?
            .as_array()
            .cloned()
            .unwrap_or_default(),
    };
    let is_docker = |repository: &Value| {
        let note = repository
            .get("notes")
            .and_then(|notes| notes.get(REPO_TYPE_NOTE));
        note.and_then(Value::as_str) == Some(DOCKER_REPO)
    };
    let (docker, others): (Vec<Value>, Vec<Value>) = repositories
        .into_iter()
        .partition(|r| scope == Scope::Every || is_docker(r));
    let title = if scope == Scope::Every {
        "Repositories"
    } else {
        "Docker Repositories"
    };
    show(app, args, title, &docker);
    let mut result = docker;
    if args.all && scope == Scope::Docker {
        show(app, args, "Other Pulp Repositories", &others);
        result.extend(others);
    }
    app.screen.result(&json!(result));
    Ok(())
}

fn show(app: &App, args: &ListArgs, title: &str, repositories: &[Value]) {
    app.screen.title(title);
    if args.summary {
        let id = |r: &Value| r.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
        let width = repositories.iter().map(|r| id(r).len()).max().unwrap_or(0);
        for repository in repositories {
            let name = repository
                .get("display_name")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let line = format!("{:width$}  {}", id(repository), crate::output::printable(name));
            app.screen.line(line.trim_end());
        }
        app.screen.blank();
        return;
    }
    let mut keys = vec!["id"];
    if args.fields.is_empty() {
        keys.extend(&ORDER[1..]);
        if args.details {
            keys.extend([
                "notes",
                "last_unit_added",
                "last_unit_removed",
                "scratchpad",
                "importers",
                "distributors",
            ]);
        }
    } else {
        keys.extend(
            args.fields
                .iter()
                .map(String::as_str)
                .filter(|field| *field != "id"),
        );
    }
    for repository in repositories {
        app.screen
            .document(&picked(repository, &keys), &keys, Hidden::Omit);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect()
    }

    #[test]
    fn a_set_tag_replaces_the_old_ones_of_its_name_and_the_others_keep_their_order() {
        let old = vec![
            json!({"tag": "latest", "image_id": "old"}),
            json!({"tag": "1.0", "image_id": "one"}),
            json!({"tag": "latest", "image_id": "older"}),
            json!({"tag": "gone", "image_id": "x"}),
        ];
        let new = changed_tags(
            old,
            &owned(&[("latest", "a"), ("latest", "b")]),
            &["gone".to_owned()],
        );
        assert_eq!(
            new,
            [
                json!({"tag": "1.0", "image_id": "one"}),
                json!({"tag": "latest", "image_id": "b"})
            ]
        );
    }

    #[test]
    fn a_prefix_must_mean_one_image() {
        let repo = "busybox".parse().unwrap();
        let found = ["abcdef11", "abcdef22", "1234567890"];
        assert_eq!(
            chosen(&repo, &owned(&[("a", "abcdef1"), ("b", "123456")]), &found).unwrap(),
            owned(&[("a", "abcdef11"), ("b", "1234567890")])
        );
        let error = chosen(&repo, &owned(&[("a", "abcdef"), ("b", "999999")]), &found).unwrap_err();
        assert_eq!(
            error.to_string(),
            "abcdef is ambiguous in repository [busybox]: abcdef11, abcdef22\n\
             no image of repository [busybox] begins with 999999"
        );
    }
}
