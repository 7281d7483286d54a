//! `/repositories/<repo>/distributors/` and `/distributors/search/`: how a repository is published.

use axum::{extract::State, routing::get};
use pulp_model::{
    RepositoryId,
    config::{self, EXPORT_DISTRIBUTOR_TYPE, WEB_DISTRIBUTOR_TYPE},
    task::TaskKind,
};
use pulp_store::distributors::{Distributor, NewDistributor};
use serde_json::{Map, Value, json};

use crate::{
    ApiError, ApiState, App, Routes,
    body::JsonObject,
    criteria::Criteria,
    errors::Segments,
    fields::Fields,
    query::Query,
    replies::{self, Reply},
    repositories,
    requester::Requester,
    views,
};

pub(crate) fn routes() -> Routes {
    Routes::default()
        .at("/distributors/search/", get(search_by_query).post(search_by_body))
        .at("/repositories/{repo}/distributors/", get(list).post(add))
        .at(
            "/repositories/{repo}/distributors/{distributor}/",
            get(read).put(update).delete(delete),
        )
}

/// Refuses types that are not there, and settings that the type would not take. The layers below the
/// repository's own are part of the check: what is given may contradict them.
pub(crate) fn check(
    app: &ApiState,
    repo: &RepositoryId,
    type_id: &str,
    config: &Map<String, Value>,
) -> Result<(), ApiError> {
    if type_id != WEB_DISTRIBUTOR_TYPE && type_id != EXPORT_DISTRIBUTOR_TYPE {
        return Err(ApiError::invalid(
            "distributor_type_id",
            format!(
                "there is no distributor type {type_id:?}; use {WEB_DISTRIBUTOR_TYPE:?} or {EXPORT_DISTRIBUTOR_TYPE:?}"
            ),
        ));
    }
    let merged = config::merged(&[&app.plugin_defaults(type_id), config]);
    config::distributor_settings(repo, &merged)?;
    Ok(())
}

/// Reads a new distributor out of a request; its id is a random one where none is given.
pub(crate) fn read_new(
    app: &ApiState,
    repo: &RepositoryId,
    map: Map<String, Value>,
) -> Result<NewDistributor, ApiError> {
    let mut fields = Fields::new(map);
    let type_id = fields.required_text("distributor_type_id");
    let config = fields.object("distributor_config").unwrap_or_default();
    let auto_publish = fields.boolean("auto_publish").unwrap_or(false);
    let id = if fields.has("distributor_id") {
        fields.parsed("distributor_id")
    } else {
        None
    };
    fields.finish()?;
    let config = config::merged(&[&config]);
    check(app, repo, &type_id, &config)?;
    let id = match id {
        Some(id) => id,
        None => uuid::Uuid::new_v4()
            .to_string()
            .parse()
            .map_err(|e| ApiError::Internal(format!("{e}")))?,
    };
    Ok(NewDistributor {
        id,
        distributor_type_id: type_id,
        config,
        auto_publish,
    })
}

/// The task that changes a distributor. Its settings are checked as they will be after the change.
pub(crate) async fn update_kind(
    app: &ApiState,
    repo: &RepositoryId,
    distributor: &str,
    delta: Map<String, Value>,
    auto_publish: Option<bool>,
) -> Result<TaskKind, ApiError> {
    let found = find(app, repo, distributor).await?;
    let mut config = found.config;
    config::apply_delta(&mut config, &delta);
    check(app, repo, &found.distributor_type_id, &config)?;
    Ok(TaskKind::UpdateDistributor {
        repo_id: repo.clone(),
        distributor_id: found.id,
        config: delta,
        auto_publish,
    })
}

/// The distributor of a path's segment.
pub(crate) async fn find(
    app: &ApiState,
    repo: &RepositoryId,
    distributor: &str,
) -> Result<Distributor, ApiError> {
    let id = repositories::distributor_id(distributor)?;
    let found = app.store.distributor(repo, &id).await?;
    found.ok_or_else(|| ApiError::NotFound {
        kind: "distributor_id",
        id: distributor.to_owned(),
    })
}

async fn list(State(app): State<App>, Segments(repo): Segments<String>) -> Reply {
    let repo = repositories::find_id(&app.store, &repo).await?;
    let distributors = app.store.distributors_of(&repo).await?;
    let views: Vec<_> = distributors.iter().map(views::distributor).collect();
    Ok(replies::ok(&views.into()))
}

/// Adds a distributor at once; one of the same id is replaced, which callers of Pulp rely on.
async fn add(
    State(app): State<App>,
    Segments(repo): Segments<String>,
    JsonObject(body): JsonObject,
) -> Reply {
    let repo = repositories::find_id(&app.store, &repo).await?;
    let new = read_new(&app, &repo, body)?;
    let mut tx = app.store.begin().await?;
    tx.put_distributor(&repo, &new).await?;
    tx.commit().await?;
    tracing::info!(repo_id = %repo, distributor_id = %new.id, "distributor set");
    let distributor = find(&app, &repo, new.id.as_str()).await?;
    Ok(replies::created(&views::distributor(&distributor)))
}

async fn read(State(app): State<App>, Segments((repo, distributor)): Segments<(String, String)>) -> Reply {
    let repo = repositories::find_id(&app.store, &repo).await?;
    let distributor = find(&app, &repo, &distributor).await?;
    Ok(replies::ok(&views::distributor(&distributor)))
}

async fn update(
    State(app): State<App>,
    requester: Requester,
    Segments((repo, distributor)): Segments<(String, String)>,
    JsonObject(body): JsonObject,
) -> Reply {
    let repo = repositories::find_id(&app.store, &repo).await?;
    let mut fields = Fields::new(body);
    let config = fields.object("distributor_config").unwrap_or_default();
    let mut delta = Fields::new(fields.object("delta").unwrap_or_default());
    fields.finish()?;
    let auto_publish = delta.boolean("auto_publish");
    delta.finish()?;
    let kind = update_kind(&app, &repo, &distributor, config, auto_publish).await?;
    replies::enqueued(&app.store, &requester, &kind).await
}

async fn delete(
    State(app): State<App>,
    requester: Requester,
    Segments((repo, distributor)): Segments<(String, String)>,
) -> Reply {
    let repo = repositories::find_id(&app.store, &repo).await?;
    let found = find(&app, &repo, &distributor).await?;
    let kind = TaskKind::DeleteDistributor {
        repo_id: repo,
        distributor_id: found.id,
    };
    replies::enqueued(&app.store, &requester, &kind).await
}

async fn search_by_query(State(app): State<App>, query: Query) -> Reply {
    search(&app, &Criteria::from_query(&query, &[])?).await
}

async fn search_by_body(State(app): State<App>, JsonObject(body): JsonObject) -> Reply {
    search(&app, &Criteria::from_body(&body)?).await
}

async fn search(app: &ApiState, criteria: &Criteria) -> Reply {
    let distributors = app.store.distributors().await?;
    let documents = distributors.iter().map(|d| {
        let mut document = views::distributor(d);
        // The name that the id has in Pulp's database; filters may use either.
        document["distributor_id"] = json!(d.id);
        document
    });
    let found = criteria.apply(documents.collect());
    let views: Vec<Value> = found
        .into_iter()
        .map(|mut document| {
            if let Some(map) = document.as_object_mut() {
                map.remove("distributor_id");
            }
            criteria.project(document, &["id", "repo_id", "_id", "_ns", "_href"])
        })
        .collect();
    Ok(replies::ok(&views.into()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::StatusCode;

    use super::*;
    use crate::testing::Api;

    #[tokio::test]
    async fn a_distributor_is_added_at_once_and_replaces_its_namesake() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        let path = "/repositories/r/distributors/";
        let body = json!({"distributor_type_id": EXPORT_DISTRIBUTOR_TYPE, "distributor_id": "web",
            "distributor_config": {"export_file": "/tmp/r.tar", "protected": null}});
        let reply = api.post(path, &body).await;
        assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.body);
        assert_eq!(
            reply.header("location"),
            "/pulp/api/v2/repositories/r/distributors/web/"
        );
        assert_eq!(reply.body["config"], json!({"export_file": "/tmp/r.tar"}));
        let list = api.get(path).await.body;
        assert_eq!(list.as_array().unwrap().len(), 1);
        assert_eq!(list[0]["distributor_type_id"], EXPORT_DISTRIBUTOR_TYPE);

        let unnamed = api
            .post(path, &json!({"distributor_type_id": WEB_DISTRIBUTOR_TYPE}))
            .await;
        assert_eq!(unnamed.body["id"].as_str().unwrap().len(), 36);
        let bad = json!({"distributor_type_id": WEB_DISTRIBUTOR_TYPE, "distributor_id": "a.b"});
        assert_eq!(
            api.post(path, &bad).await.body["property_names"],
            json!(["distributor_id"])
        );
    }

    #[tokio::test]
    async fn changes_and_removals_are_tasks() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        let path = "/repositories/r/distributors/web/";
        let only_delta = api
            .put(path, &json!({"delta": {"auto_publish": false}}))
            .await
            .task();
        let task = api.get(&format!("/tasks/{only_delta}/")).await.body;
        assert_eq!(
            task["tags"],
            json!([
                "pulp:repository:r",
                "pulp:repository_distributor:web",
                "pulp:action:update_distributor"
            ])
        );
        api.delete(path).await.task();
        assert_eq!(
            api.delete("/repositories/r/distributors/nope/").await.status,
            StatusCode::NOT_FOUND
        );
        assert_eq!(
            api.get("/repositories/nope/distributors/").await.status,
            StatusCode::NOT_FOUND
        );
    }

    #[tokio::test]
    async fn a_change_is_checked_against_what_is_there() {
        let api = Api::new().await;
        api.docker_repository("Upper").await;
        let path = "/repositories/Upper/distributors/web/";
        // Without the registry id that it has, the repository's own would have to serve, and can't.
        let reply = api
            .put(path, &json!({"distributor_config": {"repo-registry-id": null}}))
            .await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST);
        assert_eq!(reply.code(), "DKR1006");
        let reply = api.put(path, &json!({"delta": {"auto_publish": "yes"}})).await;
        assert_eq!(reply.body["property_names"], json!(["auto_publish"]));
    }

    #[tokio::test]
    async fn a_search_goes_over_all_repositories() {
        let api = Api::new().await;
        api.docker_repository("a").await;
        api.docker_repository("b").await;
        let criteria = json!({"criteria": {"filters": {"distributor_id": "web", "repo_id": "b"}}});
        let found = api.post("/distributors/search/", &criteria).await.body;
        assert_eq!(found.as_array().unwrap().len(), 1);
        assert_eq!(found[0]["config"]["repo-registry-id"], "test/b");
        assert_eq!(
            api.get("/distributors/search/")
                .await
                .body
                .as_array()
                .unwrap()
                .len(),
            2
        );
    }
}
