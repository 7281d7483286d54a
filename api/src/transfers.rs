//! `/repositories/<repo>/actions/import_export/`: takes in an export for closed networks. Exports are publishes by the
//! export distributor.

use axum::{extract::State, routing::post};
use pulp_model::{RepositoryId, task::TaskKind};

use crate::{
    ApiError, App, Routes,
    body::JsonObject,
    errors::Segments,
    fields::Fields,
    replies::{self, Reply},
    repositories,
    requester::Requester,
};

pub(crate) fn routes() -> Routes {
    Routes::default().at("/repositories/{repo}/actions/import_export/", post(import_export))
}

/// Imports the export at `path`, below the folder of imports. With `create` the repository need not be there. Whether
/// the export is there is for the worker to find out, which sees the folder.
async fn import_export(
    State(app): State<App>,
    requester: Requester,
    Segments(repo): Segments<String>,
    JsonObject(body): JsonObject,
) -> Reply {
    let mut fields = Fields::new(body);
    let path = fields.required_text("path");
    let create = fields.boolean("create").unwrap_or(false);
    let remove_missing = fields.boolean("remove_missing").unwrap_or(false);
    fields.finish_strict()?;
    let repo_id = if create {
        repo.parse::<RepositoryId>()
            .map_err(|e| ApiError::invalid("id", e.to_string()))?
    } else {
        repositories::find_id(&app.store, &repo).await?
    };
    let kind = TaskKind::ImportExport {
        repo_id,
        path,
        create,
        remove_missing,
    };
    replies::enqueued(&app.store, &requester, &kind).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use crate::testing::Api;

    #[tokio::test]
    async fn an_export_is_imported_by_a_task_into_a_repository_that_may_have_to_be_made() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        let path = "/repositories/r/actions/import_export/";
        let id = api.post(path, &json!({"path": "r-1"})).await.task();
        let task = api.get(&format!("/tasks/{id}/")).await.body;
        assert_eq!(
            task["tags"],
            json!(["pulp:repository:r", "pulp:action:import_export"])
        );
        let new = "/repositories/new/actions/import_export/";
        api.post(new, &json!({"path": "r-1", "create": true}))
            .await
            .task();
        for (path, body, status, code) in [
            (new, json!({"path": "r-1"}), 404, "PLP0009"),
            (path, json!({}), 400, "PLP0016"),
            (path, json!({"path": 5}), 400, "PLP0015"),
            (path, json!({"path": "r-1", "create": "perhaps"}), 400, "PLP0015"),
            (path, json!({"path": "r-1", "allow": true}), 400, "PLP0017"),
            (
                "/repositories/-!/actions/import_export/",
                json!({"path": "x", "create": true}),
                400,
                "PLP0015",
            ),
        ] {
            let reply = api.post(path, &body).await;
            assert_eq!(
                (reply.status.as_u16(), reply.code()),
                (status, code),
                "{path} {body}: {}",
                reply.body
            );
        }
    }
}
