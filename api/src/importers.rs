//! `/repositories/<repo>/importers/`: how a repository takes content in.

use axum::{extract::State, routing::get};
use pulp_model::{
    CodedError, ErrorCode, RepositoryId,
    config::{self, IMPORTER_TYPE},
    importer::importer_settings,
    task::TaskKind,
};
use pulp_store::importers::Importer;
use serde_json::{Map, Value, json};

use crate::{
    ApiError, ApiState, App, Routes,
    body::JsonObject,
    errors::Segments,
    fields::Fields,
    replies::{self, Reply},
    repositories,
    requester::Requester,
    views,
};

pub(crate) fn routes() -> Routes {
    Routes::default()
        .at("/repositories/{repo}/importers/", get(list).post(set))
        .at(
            "/repositories/{repo}/importers/{importer}/",
            get(read).put(update).delete(delete),
        )
}

/// Refuses types that are not there.
pub(crate) fn check_type(type_id: &str) -> Result<(), ApiError> {
    if type_id == IMPORTER_TYPE {
        return Ok(());
    }
    let text = format!("there is no importer type {type_id:?}; use {IMPORTER_TYPE:?}");
    let error = CodedError::new(ErrorCode::UNKNOWN_IMPORTER_TYPE, text);
    Err(error.with("importer_type_id", type_id).into())
}

/// A change of settings as it is kept: without masks that a client sends back, which change nothing.
fn config_delta(mut config: Map<String, Value>) -> Map<String, Value> {
    for secret in views::SECRETS {
        if config.get(secret).and_then(Value::as_str) == Some(views::MASK) {
            config.remove(secret);
        }
    }
    with_account_apart(config)
}

/// A user and password in `feed` become settings of their own, which are masked on the wire.
pub(crate) fn with_account_apart(mut config: Map<String, Value>) -> Map<String, Value> {
    if let Some(feed) = config.get("feed").and_then(Value::as_str)
        && feed.contains('@')
        && let Ok(mut url) = url::Url::parse(feed)
        && !url.username().is_empty()
    {
        let plain = |text: &str| {
            let pairs = format!("v={}", text.replace('+', "%2B"));
            let mut values = url::form_urlencoded::parse(pairs.as_bytes());
            values.next().map(|(_, v)| v.into_owned()).unwrap_or_default()
        };
        let (user, password) = (plain(url.username()), url.password().map(plain));
        if url.set_username("").is_ok() && url.set_password(None).is_ok() {
            config.insert("feed".to_owned(), json!(url.as_str()));
            config.insert("basic_auth_username".to_owned(), json!(user));
            config.insert("basic_auth_password".to_owned(), json!(password));
        }
    }
    config
}

/// Refuses settings that no sync or upload could work with; all faults are told at once.
fn check(app: &ApiState, config: &Map<String, Value>) -> Result<(), ApiError> {
    importer_settings(&config::merged(&[&app.plugin_defaults(IMPORTER_TYPE), config]))?;
    Ok(())
}

/// Settings of a new importer.
pub(crate) fn whole_config(
    app: &ApiState,
    config: Map<String, Value>,
) -> Result<Map<String, Value>, ApiError> {
    let config = config::merged(&[&config_delta(config)]);
    check(app, &config)?;
    Ok(config)
}

/// The task that changes the settings of a repository's importer.
pub(crate) async fn update_kind(
    app: &ApiState,
    repo: &RepositoryId,
    config: Map<String, Value>,
) -> Result<TaskKind, ApiError> {
    let config = config_delta(config);
    let Some(importer) = app.store.importer(repo).await? else {
        return Err(unknown(IMPORTER_TYPE));
    };
    let mut whole = importer.config;
    config::apply_delta(&mut whole, &config);
    check(app, &whole)?;
    Ok(TaskKind::UpdateImporter {
        repo_id: repo.clone(),
        importer_type_id: None,
        config,
    })
}

fn unknown(importer: &str) -> ApiError {
    ApiError::NotFound {
        kind: "importer_id",
        id: importer.to_owned(),
    }
}

/// The importer of a path's segments.
pub(crate) async fn find(app: &ApiState, repo: &str, importer: &str) -> Result<Importer, ApiError> {
    let repo = repositories::find_id(&app.store, repo).await?;
    let found = app.store.importer(&repo).await?;
    found
        .filter(|i| i.importer_type_id == importer)
        .ok_or_else(|| unknown(importer))
}

async fn list(State(app): State<App>, Segments(repo): Segments<String>) -> Reply {
    let repo = repositories::find_id(&app.store, &repo).await?;
    let importer = app.store.importer(&repo).await?;
    let views: Vec<_> = importer.iter().map(views::importer).collect();
    Ok(replies::ok(&views.into()))
}

/// Sets the importer, in place of any that is there. A task, since a sync or import may be using the old one.
async fn set(
    State(app): State<App>,
    requester: Requester,
    Segments(repo): Segments<String>,
    JsonObject(body): JsonObject,
) -> Reply {
    let repo_id = repositories::find_id(&app.store, &repo).await?;
    let mut fields = Fields::new(body);
    let type_id = fields.required_text("importer_type_id");
    let config = fields.object("importer_config").unwrap_or_default();
    fields.finish()?;
    check_type(&type_id)?;
    let kind = TaskKind::UpdateImporter {
        repo_id,
        importer_type_id: Some(type_id),
        config: whole_config(&app, config)?,
    };
    replies::enqueued(&app.store, &requester, &kind).await
}

async fn read(State(app): State<App>, Segments((repo, importer)): Segments<(String, String)>) -> Reply {
    let importer = find(&app, &repo, &importer).await?;
    Ok(replies::ok(&views::importer(&importer)))
}

async fn update(
    State(app): State<App>,
    requester: Requester,
    Segments((repo, importer)): Segments<(String, String)>,
    JsonObject(body): JsonObject,
) -> Reply {
    let importer = find(&app, &repo, &importer).await?;
    let mut fields = Fields::new(body);
    if !fields.has("importer_config") {
        fields.lacks("importer_config");
    }
    let config = fields.object("importer_config").unwrap_or_default();
    fields.finish()?;
    let kind = update_kind(&app, &importer.repo_id, config).await?;
    replies::enqueued(&app.store, &requester, &kind).await
}

async fn delete(
    State(app): State<App>,
    requester: Requester,
    Segments((repo, importer)): Segments<(String, String)>,
) -> Reply {
    let repo_id = find(&app, &repo, &importer).await?.repo_id;
    replies::enqueued(&app.store, &requester, &TaskKind::DeleteImporter { repo_id }).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::StatusCode;

    use super::*;
    use crate::testing::Api;

    #[tokio::test]
    async fn the_importer_is_read_and_changed_by_tasks() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        let list = api.get("/repositories/r/importers/").await.body;
        assert_eq!(list[0]["importer_type_id"], "docker_importer");
        assert_eq!(
            list[0]["_href"],
            "/pulp/api/v2/repositories/r/importers/docker_importer/"
        );
        let one = api.get("/repositories/r/importers/docker_importer").await.body;
        assert_eq!(one, list[0]);

        let path = "/repositories/r/importers/docker_importer/";
        let update = api
            .put(path, &json!({"importer_config": {"feed": null}}))
            .await
            .task();
        let task = api.get(&format!("/tasks/{update}/")).await.body;
        assert_eq!(
            task["task_type"],
            "pulp.server.controllers.importer.update_importer_config"
        );
        let set = api
            .post(
                "/repositories/r/importers/",
                &json!({"importer_type_id": "docker_importer"}),
            )
            .await
            .task();
        let task = api.get(&format!("/tasks/{set}/")).await.body;
        assert_eq!(task["tags"][1], "pulp:action:add_importer");
        api.delete(path).await.task();
    }

    #[tokio::test]
    async fn what_is_absent_or_wrong_is_refused_at_once() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        api.post("/repositories/", &json!({"id": "bare"})).await;
        assert_eq!(
            api.get("/repositories/nope/importers/").await.status,
            StatusCode::NOT_FOUND
        );
        assert_eq!(api.get("/repositories/bare/importers/").await.body, json!([]));
        let other = api.get("/repositories/r/importers/yum_importer/").await;
        assert_eq!(other.body["resources"], json!({"importer_id": "yum_importer"}));
        let path = "/repositories/r/importers/docker_importer/";
        assert_eq!(api.put(path, &json!({})).await.code(), "PLP0016");
        assert_eq!(
            api.put(path, &json!({"importer_config": []})).await.code(),
            "PLP0015"
        );
        let api = &api;
        let set = |body: Value| async move { api.post("/repositories/r/importers/", &body).await };
        assert_eq!(set(json!({})).await.code(), "PLP0016");
        assert_eq!(set(json!({"importer_type_id": "x"})).await.code(), "PLP1008");
        let config = json!({"importer_type_id": "docker_importer", "importer_config": {"mask_id": "x"}});
        assert_eq!(set(config).await.body["property_names"], json!(["mask_id"]));
    }

    #[tokio::test]
    async fn settings_that_no_sync_could_use_are_refused_all_at_once() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        let path = "/repositories/r/importers/docker_importer/";
        let config = json!({"feed": "registry.example.com", "upstream_name": "A", "max_downloads": "none"});
        let reply = api.put(path, &json!({"importer_config": config})).await;
        assert_eq!((reply.status, reply.code()), (StatusCode::BAD_REQUEST, "PLP1000"));
        let faults: Vec<&str> = reply.body["error"]["sub_errors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["data"]["property_names"][0].as_str().unwrap())
            .collect();
        assert_eq!(faults, ["feed", "upstream_name", "max_downloads"]);
        let new = json!({"id": "n", "importer_type_id": "docker_importer", "importer_config": {"feed": "x"}});
        assert_eq!(api.post("/repositories/", &new).await.code(), "PLP0015");
    }

    #[test]
    fn a_feeds_user_and_password_become_settings_of_their_own() {
        let config = json!({"feed": "https://me:p%40ss+word@registry.example.com/x", "max_downloads": null});
        let config = config_delta(config.as_object().unwrap().clone());
        assert_eq!(config["feed"], "https://registry.example.com/x");
        assert_eq!(config["basic_auth_username"], "me");
        assert_eq!(config["basic_auth_password"], "p@ss+word");
        assert_eq!(
            config["max_downloads"],
            Value::Null,
            "a null in a delta removes the key later"
        );
    }

    #[test]
    fn a_mask_sent_back_is_no_password() {
        let config = json!({"basic_auth_password": "*****", "proxy_password": "new"});
        let config = config_delta(config.as_object().unwrap().clone());
        assert_eq!(Value::Object(config), json!({"proxy_password": "new"}));
    }
}
