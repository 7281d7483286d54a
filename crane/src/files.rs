//! `/pulp/docker/`: the published files by Pulp's repository id, where redirects go by default.
//!
//! In Pulp 2 a web server gave these out of the publish directory. Here they come from the same tables as
//! everything else, so that a path is never looked up on disk.

use axum::response::Response;
use http::StatusCode;
use pulp_model::Digest;
use serde_json::json;

use crate::{
    data::{Tables, V2Repo},
    http_api::{self, App, Call, FileGone},
    send, v1, v2,
};

/// Answers a request for `path` below `/pulp/docker/`.
pub(crate) async fn answer(
    app: &App,
    call: &Call,
    tables: &Tables,
    path: &str,
) -> Result<Response, FileGone> {
    if call.is_options() {
        Ok(http_api::options())
    } else if call.is_read() {
        Ok(read(app, call, tables, path)
            .await?
            .unwrap_or_else(http_api::not_found))
    } else {
        Ok(http_api::method_not_allowed())
    }
}

async fn read(app: &App, call: &Call, tables: &Tables, path: &str) -> Result<Option<Response>, FileGone> {
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        ["v1", repo, image_id, file] => {
            let (Some(repo), Some(file)) = (tables.v1_repository(repo, &call.viewer), v1::file_name(file))
            else {
                return Ok(None);
            };
            v1::send_image(app, call, repo, image_id, file).await
        }
        ["v2", repo, rest @ ..] => match tables.v2_repository(repo, &call.viewer) {
            Some(repo) => v2_file(app, call, repo, rest).await,
            None => Ok(None),
        },
        _ => Ok(None),
    }
}

async fn v2_file(app: &App, call: &Call, repo: &V2Repo, path: &[&str]) -> Result<Option<Response>, FileGone> {
    let Some(holdings) = repo.holdings().await else {
        return Ok(None);
    };
    match path {
        ["blobs", digest] => {
            let digest = digest.parse::<Digest>().ok();
            let Some((digest, size)) = digest.and_then(|d| holdings.blob(&d).map(|size| (d, size))) else {
                return Ok(None);
            };
            send::file(app, call, v2::blob_answer(repo, &holdings, &digest, size))
                .await
                .map(Some)
        }
        ["manifests", folder, reference] => {
            let digest = reference.parse::<Digest>().ok();
            let by_tag = digest.is_none();
            let held = match &digest {
                Some(digest) => holdings.manifest(digest),
                None => holdings.tag(reference).and_then(|t| t.in_folder(folder)),
            };
            match held.filter(|h| h.folder().name() == *folder) {
                Some(held) => {
                    let mut answer = v2::manifest_answer(repo, &holdings, &held, by_tag);
                    // The folder has decided already.
                    answer.negotiated = false;
                    send::file(app, call, answer).await.map(Some)
                }
                None => Ok(None),
            }
        }
        ["tags", "list"] => {
            let tags: Vec<&str> = holdings.tag_names().collect();
            Ok(Some(http_api::json(
                StatusCode::OK,
                &json!({ "name": repo.registry_id, "tags": tags }),
            )))
        }
        _ => Ok(None),
    }
}
