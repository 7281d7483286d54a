//! `/repositories/<repo>/actions/`: what is done with a repository. What can be checked is checked before the task
//! is made; a person then learns of a mistake at once.

use axum::{extract::State, routing::post};
use pulp_model::{
    CodedError, Digest, ErrorCode, TagName, UploadId,
    config::{self, IMPORTER_TYPE},
    importer::importer_settings,
    task::TaskKind,
    unit::UnitType,
};
use serde_json::{Map, Value};

use crate::{
    ApiError, ApiState, App, Routes,
    body::{JsonObject, OptionalJsonObject, UnusedJsonObject},
    distributors,
    errors::Segments,
    fields::Fields,
    importers,
    replies::{self, Reply},
    repositories,
    requester::Requester,
    uploads,
};

pub(crate) fn routes() -> Routes {
    Routes::default()
        .at("/repositories/{repo}/actions/publish/", post(publish))
        .at("/repositories/{repo}/actions/import_upload/", post(import_upload))
        .at("/repositories/{repo}/actions/sync/", post(sync))
        .at("/repositories/{repo}/actions/probe/", post(probe))
        .at("/repositories/{repo}/actions/download/", post(download))
        .at("/repositories/{repo}/actions/associate/", post(associate))
        .at("/repositories/{repo}/actions/unassociate/", post(unassociate))
}

/// Publishes by one distributor.
async fn publish(
    State(app): State<App>,
    requester: Requester,
    Segments(repo): Segments<String>,
    JsonObject(body): JsonObject,
) -> Reply {
    let repo_id = repositories::find_id(&app.store, &repo).await?;
    let mut fields = Fields::new(body);
    let distributor = fields.required_text("id");
    let override_config = fields.object("override_config").unwrap_or_default();
    fields.finish()?;
    let distributor = distributors::find(&app, &repo_id, &distributor).await?;
    let config = config::merged(&[&distributor.config, &override_config]);
    distributors::check(&app, &repo_id, &distributor.distributor_type_id, &config)?;
    let kind = TaskKind::Publish {
        repo_id,
        distributor_id: distributor.id,
        override_config,
    };
    replies::enqueued(&app.store, &requester, &kind).await
}

/// Takes an upload into the repository.
async fn import_upload(
    State(app): State<App>,
    requester: Requester,
    Segments(repo): Segments<String>,
    JsonObject(body): JsonObject,
) -> Reply {
    let repo_id = repositories::find_id(&app.store, &repo).await?;
    let mut fields = Fields::new(body);
    let unit_type_id = fields.required_text("unit_type_id");
    // A tag is metadata alone. Clients send the id of an empty upload all the same; either will do.
    let is_tag = unit_type_id == UnitType::DockerTag.as_str();
    let upload_id = if is_tag && !fields.has("upload_id") {
        None
    } else {
        Some(fields.required_text("upload_id"))
    };
    if !fields.has("unit_key") {
        fields.lacks("unit_key");
    }
    let unit_key = fields.object("unit_key").unwrap_or_default();
    let unit_metadata = fields.object("unit_metadata").unwrap_or_default();
    let override_config = fields.object("override_config").unwrap_or_default();
    fields.finish()?;

    check_unit_type(&unit_type_id)?;
    let Some(importer) = app.store.importer(&repo_id).await? else {
        return Err(ApiError::NotFound {
            kind: "importer_id",
            id: IMPORTER_TYPE.to_owned(),
        });
    };
    config::mask_id(&config::merged(&[&importer.config, &override_config]))?;
    let upload_id = if is_tag {
        check_tag(&unit_metadata)?;
        match upload_id {
            Some(text) => uploads::find(&app.store, &text).await?.id,
            None => UploadId::new(),
        }
    } else {
        complete_upload(&app, &upload_id.unwrap_or_default()).await?
    };
    let kind = TaskKind::ImportUpload {
        repo_id,
        upload_id,
        unit_type_id,
        unit_key,
        unit_metadata,
        override_config,
    };
    replies::enqueued(&app.store, &requester, &kind).await
}

/// An upload that has bytes.
async fn complete_upload(app: &ApiState, id: &str) -> Result<UploadId, ApiError> {
    let upload = uploads::find(&app.store, id).await?;
    if upload.size == 0 {
        let reason = format!("upload {id} is empty; PUT the file's bytes before importing it");
        return Err(ApiError::invalid("upload_id", reason));
    }
    uploads::settle(app, &upload).await?;
    Ok(upload.id)
}

fn check_unit_type(unit_type_id: &str) -> Result<(), ApiError> {
    match unit_type_id.parse() {
        Ok(
            UnitType::DockerImage
            | UnitType::DockerManifest
            | UnitType::DockerManifestList
            | UnitType::DockerTag,
        ) => Ok(()),
        Ok(UnitType::DockerBlob) | Err(()) => Err(ApiError::invalid(
            "unit_type_id",
            format!(
                "{unit_type_id:?} can't be uploaded; give docker_image, docker_manifest, docker_manifest_list or docker_tag"
            ),
        )),
    }
}

/// A tag's name and digest. Whether the repository holds what it names is for the task to find out: an import
/// that waits before it may bring it.
fn check_tag(metadata: &Map<String, Value>) -> Result<(), CodedError> {
    let text = |field: &str| metadata.get(field).filter(|v| !v.is_null());
    let absent = |field: &str| {
        let text = format!("unit_metadata has no {field}; a tag needs name and manifest_digest");
        CodedError::new(ErrorCode::TAG_FIELD_MISSING, text).with("field", field)
    };
    let name = text("name").ok_or_else(|| absent("name"))?;
    let digest = text("manifest_digest")
        .or_else(|| text("digest"))
        .ok_or_else(|| absent("manifest_digest"))?;
    let shown = name.as_str().map_or_else(|| name.to_string(), ToOwned::to_owned);
    shown
        .parse::<TagName>()
        .map_err(|e| CodedError::new(ErrorCode::INVALID_TAG, e.to_string()).with("value", &shown))?;
    let digest = digest
        .as_str()
        .map_or_else(|| digest.to_string(), ToOwned::to_owned);
    digest.parse::<Digest>().map_err(|e| {
        CodedError::new(ErrorCode::INVALID_VALUE, format!("manifest_digest: {e}"))
            .with("property_names", ["manifest_digest"])
    })?;
    Ok(())
}

async fn not_there(app: &ApiState, repo: &str, operation: &'static str, instead: &'static str) -> Reply {
    repositories::find_id(&app.store, repo).await?;
    Err(ApiError::NotImplemented { operation, instead })
}

/// Fetches from the registry that the importer names; with `dry_run` true in the override, only tells what that
/// would bring.
async fn sync(
    State(app): State<App>,
    requester: Requester,
    Segments(repo): Segments<String>,
    OptionalJsonObject(body): OptionalJsonObject,
) -> Reply {
    let repo_id = repositories::find_id(&app.store, &repo).await?;
    let mut fields = Fields::new(body);
    let override_config = fields.object("override_config").unwrap_or_default();
    fields.finish()?;
    let Some(importer) = app.store.importer(&repo_id).await? else {
        return Err(ApiError::NotFound {
            kind: "importer_id",
            id: IMPORTER_TYPE.to_owned(),
        });
    };
    let override_config = importers::with_account_apart(override_config);
    config::boolean(&override_config, "dry_run")?;
    let defaults = app.plugin_defaults(IMPORTER_TYPE);
    let merged = config::merged(&[&defaults, &importer.config, &override_config]);
    importer_settings(&merged)?.upstream()?;
    let kind = TaskKind::Sync {
        repo_id,
        override_config,
    };
    replies::enqueued(&app.store, &requester, &kind).await
}

/// Asks for a turn on the repository and nothing more.
async fn probe(
    State(app): State<App>,
    requester: Requester,
    Segments(repo): Segments<String>,
    _: UnusedJsonObject,
) -> Reply {
    let repo_id = repositories::find_id(&app.store, &repo).await?;
    replies::enqueued(&app.store, &requester, &TaskKind::Probe { repo_id }).await
}

async fn download(State(app): State<App>, Segments(repo): Segments<String>, _: UnusedJsonObject) -> Reply {
    let instead = "this release holds every unit's bytes already, there is nothing to download";
    not_there(&app, &repo, "download", instead).await
}

async fn associate(State(app): State<App>, Segments(repo): Segments<String>, _: UnusedJsonObject) -> Reply {
    let instead = "this release can't copy between repositories; import the upload into each of them";
    not_there(&app, &repo, "associate", instead).await
}

async fn unassociate(State(app): State<App>, Segments(repo): Segments<String>, _: UnusedJsonObject) -> Reply {
    let instead = "this release can't remove single units; delete the repository as a whole";
    not_there(&app, &repo, "unassociate", instead).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::StatusCode;
    use serde_json::json;

    use super::*;
    use crate::testing::Api;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[tokio::test]
    async fn a_publish_is_a_task_of_the_distributor() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        let path = "/repositories/r/actions/publish/";
        let body = json!({"id": "web", "override_config": {"force_full": true}});
        let id = api.post(path, &body).await.task();
        let task = api.get(&format!("/tasks/{id}/")).await.body;
        assert_eq!(task["task_type"], "pulp.server.managers.repo.publish.publish");
        assert_eq!(
            task["tags"],
            json!([
                "pulp:repository:r",
                "pulp:repository_distributor:web",
                "pulp:action:publish"
            ])
        );

        for (path, body, status, code) in [
            (
                "/repositories/nope/actions/publish/",
                json!({"id": "web"}),
                404,
                "PLP0009",
            ),
            (path, json!({}), 400, "PLP0016"),
            (path, json!({"id": "nope"}), 404, "PLP0009"),
            (path, json!({"id": "web", "override_config": 5}), 400, "PLP0015"),
            (
                path,
                json!({"id": "web", "override_config": {"repo-registry-id": "A"}}),
                400,
                "DKR1005",
            ),
        ] {
            let reply = api.post(path, &body).await;
            assert_eq!((reply.status.as_u16(), reply.code()), (status, code), "{body}");
        }
    }

    #[tokio::test]
    async fn an_import_is_checked_before_its_task_is_made() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        api.post("/repositories/", &json!({"id": "bare"})).await;
        let full = api.upload(b"bytes").await;
        let empty = api.upload(b"").await;
        let unknown = UploadId::new().to_string();
        let body = |upload: &str, unit_type: &str, config: Value| json!({"upload_id": upload, "unit_type_id": unit_type, "unit_key": {}, "override_config": config});
        let path = "/repositories/r/actions/import_upload/";
        for (path, body, status, code) in [
            (
                "/repositories/nope/actions/import_upload/",
                body(&full, "docker_image", json!({})),
                404,
                "PLP0009",
            ),
            (
                "/repositories/bare/actions/import_upload/",
                body(&full, "docker_image", json!({})),
                404,
                "PLP0009",
            ),
            (path, json!({"upload_id": full}), 400, "PLP0016"),
            (path, body(&full, "rpm", json!({})), 400, "PLP0015"),
            (path, body(&full, "docker_blob", json!({})), 400, "PLP0015"),
            (path, body(&unknown, "docker_image", json!({})), 404, "PLP2004"),
            (path, body("no-uuid", "docker_image", json!({})), 404, "PLP2004"),
            (path, body(&empty, "docker_image", json!({})), 400, "PLP0015"),
            (
                path,
                body(&full, "docker_image", json!({"mask_id": "short"})),
                400,
                "PLP0015",
            ),
        ] {
            let reply = api.post(path, &body).await;
            assert_eq!(
                (reply.status.as_u16(), reply.code()),
                (status, code),
                "{body}: {}",
                reply.body
            );
        }
        assert_eq!(api.get("/tasks/").await.body, json!([]), "nothing was accepted");
        let masked = json!({"mask_id": "a".repeat(64)});
        let id = api.post(path, &body(&full, "docker_image", masked)).await.task();
        let task = api.get(&format!("/tasks/{id}/")).await.body;
        assert_eq!(task["tags"][1], "pulp:action:import_upload");
    }

    #[tokio::test]
    async fn a_tag_needs_no_file() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        let path = "/repositories/r/actions/import_upload/";
        let tag = |metadata: Value| json!({"unit_type_id": "docker_tag", "unit_key": {"name": "x", "repo_id": "r"}, "unit_metadata": metadata});
        api.post(path, &tag(json!({"name": "1.0", "digest": DIGEST})))
            .await
            .task();
        let mut with_upload = tag(json!({"name": "1.0", "manifest_digest": DIGEST}));
        with_upload["upload_id"] = json!(api.upload(b"").await);
        api.post(path, &with_upload).await.task();
        for (metadata, code) in [
            (json!({"manifest_digest": DIGEST}), "DKR1019"),
            (json!({"name": "1.0"}), "DKR1019"),
            (json!({"name": "-1", "manifest_digest": DIGEST}), "DKR1109"),
            (json!({"name": 5, "manifest_digest": "x"}), "PLP0015"),
        ] {
            let reply = api.post(path, &tag(metadata.clone())).await;
            assert_eq!(reply.status, StatusCode::BAD_REQUEST);
            assert_eq!(reply.code(), code, "{metadata}");
        }
    }

    #[tokio::test]
    async fn what_is_not_there_yet_says_so_and_what_to_do() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        for action in ["download", "associate", "unassociate"] {
            let reply = api
                .raw("POST", &format!("/repositories/r/actions/{action}/"), "")
                .await;
            assert_eq!(reply.status, StatusCode::NOT_IMPLEMENTED);
            assert_eq!(reply.code(), "PLP0014");
            assert_eq!(reply.body["error"]["data"]["operation_name"], action);
        }
        let unknown = api.raw("POST", "/repositories/nope/actions/download/", "").await;
        assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn a_sync_needs_to_know_where_from() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        api.post("/repositories/", &json!({"id": "bare"})).await;
        let path = "/repositories/r/actions/sync/";
        let reply = api.raw("POST", path, "").await;
        assert_eq!((reply.status.as_u16(), reply.code()), (400, "PLP0016"));
        assert_eq!(
            reply.body["error"]["data"]["property_names"],
            json!(["feed", "upstream_name"])
        );
        let importer = |config: Value| json!({"override_config": config});
        let upstream = json!({"feed": "http://localhost:5000", "upstream_name": "a/b"});
        for (path, body, status, code) in [
            ("/repositories/nope/actions/sync/", json!({}), 404, "PLP0009"),
            ("/repositories/bare/actions/sync/", json!({}), 404, "PLP0009"),
            (path, json!({"override_config": 5}), 400, "PLP0015"),
            (
                path,
                importer(json!({"feed": "x", "upstream_name": "a"})),
                400,
                "PLP0015",
            ),
            (
                path,
                importer(json!({"feed": "http://x", "dry_run": 7})),
                400,
                "DKR1004",
            ),
            (
                path,
                importer(json!({"max_downloads": 0, "tags": "-"})),
                400,
                "PLP1000",
            ),
        ] {
            let reply = api.post(path, &body).await;
            assert_eq!((reply.status.as_u16(), reply.code()), (status, code), "{body}");
        }
        let id = api.post(path, &importer(upstream)).await.task();
        let task = api.get(&format!("/tasks/{id}/")).await.body;
        assert_eq!(task["task_type"], "pulp.server.managers.repo.sync.sync");
        assert_eq!(task["tags"], json!(["pulp:repository:r", "pulp:action:sync"]));
    }
}
