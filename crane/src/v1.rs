//! `/v1/`: the registry API of docker before 1.6, read-only.

use std::collections::BTreeMap;

use axum::response::Response;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use serde_json::json;

use crate::{
    data::{Tables, V1Repo},
    http_api::{self, App, Call, FileGone},
    search,
    send::{self, Cache, FileAnswer, Identity, Place},
};

/// Answers a request for `path` below `/v1/`.
pub(crate) async fn answer(
    app: &App,
    call: &Call,
    tables: &Tables,
    path: &str,
) -> Result<Response, FileGone> {
    // `docker login` wants to make a user where basic authentication stands before Crane.
    let login = call.method == Method::POST && path == "users/";
    let mut response = if call.is_options() {
        http_api::options()
    } else if login {
        standalone(http_api::json(StatusCode::CREATED, &"User Created"))
    } else if call.is_read() {
        let found = read(app, call, tables, path).await?;
        found.unwrap_or_else(|| error(StatusCode::NOT_FOUND, "Not Found"))
    } else {
        http_api::method_not_allowed()
    };
    if path == "users/" && response.headers().contains_key(header::ALLOW) {
        let allow = HeaderValue::from_static("GET, HEAD, OPTIONS, POST");
        response.headers_mut().insert(header::ALLOW, allow);
    }
    let headers = response.headers_mut();
    let version = HeaderName::from_static("x-docker-registry-version");
    headers.insert(version, HeaderValue::from_static("0.6.6"));
    headers.insert(
        HeaderName::from_static("x-docker-registry-config"),
        HeaderValue::from_static("common"),
    );
    Ok(response)
}

/// Error bodies of this API are the bare text.
fn error(status: StatusCode, text: &'static str) -> Response {
    http_api::bytes(status, "text/html; charset=utf-8", text)
}

fn standalone(mut response: Response) -> Response {
    let name = HeaderName::from_static("x-docker-registry-standalone");
    response
        .headers_mut()
        .insert(name, HeaderValue::from_static("True"));
    response
}

async fn read(app: &App, call: &Call, tables: &Tables, path: &str) -> Result<Option<Response>, FileGone> {
    match path {
        "_ping" => return Ok(Some(standalone(http_api::json(StatusCode::OK, &true)))),
        "users/" => return Ok(Some(standalone(http_api::json(StatusCode::OK, &"OK")))),
        "search" => {
            let Some(term) = call.query("q").filter(|q| !q.is_empty()) else {
                return Ok(Some(error(
                    StatusCode::BAD_REQUEST,
                    "parameter \"q\" is required",
                )));
            };
            let found = search::results(tables, &call.viewer, &term).await;
            let body = json!({ "query": term, "num_results": found.len(), "results": found });
            return Ok(Some(http_api::json(StatusCode::OK, &body)));
        }
        _ => {}
    }
    if let Some(rest) = path.strip_prefix("repositories/") {
        return Ok(repository(app, call, tables, rest));
    }
    if let Some((image_id, file)) = path.strip_prefix("images/").and_then(|rest| rest.split_once('/')) {
        return image(app, call, tables, image_id, file).await;
    }
    Ok(None)
}

/// `<id>/images`, `<id>/tags` and `<id>/tags/<tag>`. A repository's name may end like one of these paths; the first
/// reading that names a repository holds.
fn repository(app: &App, call: &Call, tables: &Tables, path: &str) -> Option<Response> {
    let find = |name: &str| {
        // docker up to 1.2 names official images without `library/`, later ones with it.
        tables.v1(name.strip_prefix("library/").unwrap_or(name), &call.viewer)
    };
    if let Some(repo) = path.strip_suffix("/images").and_then(find) {
        return Some(with_endpoints(
            app,
            call,
            http_api::bytes(StatusCode::OK, "application/json", repo.images.to_json()),
        ));
    }
    if let Some(repo) = path.strip_suffix("/tags").and_then(find) {
        let tags: BTreeMap<&str, &str> = repo.images.tags().collect();
        return Some(http_api::json(StatusCode::OK, &tags));
    }
    let (before, tag) = path.rsplit_once('/')?;
    let repo = before.strip_suffix("/tags").and_then(find)?;
    let id = repo.images.tag(tag);
    id.map(|id| http_api::json(StatusCode::OK, &id))
}

/// Where the client is to fetch images: the configured endpoint, or where it asked.
fn with_endpoints(app: &App, call: &Call, mut response: Response) -> Response {
    let asked = call
        .header(header::HOST)
        .or_else(|| call.uri.authority().map(http::uri::Authority::as_str));
    if let Some(Ok(endpoint)) = app.endpoint.as_deref().or(asked).map(HeaderValue::from_str) {
        response
            .headers_mut()
            .insert(HeaderName::from_static("x-docker-endpoints"), endpoint);
    }
    response
}

async fn image(
    app: &App,
    call: &Call,
    tables: &Tables,
    image_id: &str,
    file: &str,
) -> Result<Option<Response>, FileGone> {
    let (Some(repo), Some(name)) = (tables.with_image(image_id, &call.viewer), file_name(file)) else {
        return Ok(None);
    };
    if app.serve && repo.web.is_some() {
        return send_image(app, call, repo, image_id, name).await;
    }
    Ok(Some(http_api::redirect(&format!(
        "{}{image_id}/{name}",
        repo.url
    ))))
}

/// The file of an image that a client names, as a name of ours.
pub(crate) fn file_name(name: &str) -> Option<&'static str> {
    ["ancestry", "json", "layer"]
        .into_iter()
        .find(|known| *known == name)
}

/// Sends a file of an image that the repository has.
pub(crate) async fn send_image(
    app: &App,
    call: &Call,
    repo: &V1Repo,
    image_id: &str,
    file: &'static str,
) -> Result<Option<Response>, FileGone> {
    // The id is one of the redirect file's; that it names a folder right below is all that is left to check.
    let plain = |id: &&str| {
        !id.is_empty()
            && id
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let (Some(web), Some(id)) = (&repo.web, repo.images.get(image_id).filter(plain)) else {
        return Ok(None);
    };
    let answer = FileAnswer {
        place: Place::Path(web.join(id).join(file)),
        size: None,
        content_type: if file == "layer" {
            "application/octet-stream"
        } else {
            "application/json"
        },
        // An image's id names it, but is not a digest of these files.
        identity: Identity::Name(format!("{id}-{file}")),
        cache: Cache::Revalidate,
        negotiated: false,
        protected: repo.protected,
    };
    send::file(app, call, answer).await.map(Some)
}
