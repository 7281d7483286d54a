//! `/v2/`: the OCI distribution API, its pull and discovery parts.

mod error;
mod page;

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use axum::response::Response;
use http::{HeaderName, HeaderValue, StatusCode, header};
use pulp_model::{Digest, MediaType, RegistryId, TagName};
use serde::Serialize;
use serde_json::{Value, json};

use self::{
    error::ApiError,
    page::{Page, paged},
};
use crate::{
    data::{Folder, Held, Holdings, Tables, V2Content, V2Repo},
    http_api::{self, App, Call, FileGone},
    negotiate::{self, Accept},
    schema1,
    send::{self, Cache, FileAnswer, Identity, Place},
    tokens,
};

/// What a path below `/v2/` asks for.
#[derive(Debug, PartialEq, Eq)]
enum Target<'a> {
    Ping,
    Catalog,
    Tags {
        name: &'a str,
    },
    Manifest {
        name: &'a str,
        reference: &'a str,
    },
    Blob {
        name: &'a str,
        digest: &'a str,
    },
    Referrers {
        name: &'a str,
        digest: &'a str,
    },
    /// A name alone, or a kind that isn't known.
    Nothing {
        name: &'a str,
    },
}

impl<'a> Target<'a> {
    /// The kind is always the second-last part, so names, tags and references may be called `tags`, `blobs` or
    /// `manifests` themselves.
    fn of(path: &'a str) -> Self {
        match path {
            "" => return Self::Ping,
            "_catalog" => return Self::Catalog,
            _ => {}
        }
        let mut parts = path.rsplitn(3, '/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some("list"), Some("tags"), Some(name)) => Self::Tags { name },
            (Some(reference), Some("manifests"), Some(name)) => Self::Manifest { name, reference },
            (Some(digest), Some("blobs"), Some(name)) => Self::Blob { name, digest },
            (Some(digest), Some("referrers"), Some(name)) => Self::Referrers { name, digest },
            _ => Self::Nothing { name: path },
        }
    }
}

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

type Answer = Result<Response, ApiError>;

/// Answers a request for `path` below `/v2/`.
pub(crate) async fn answer(
    app: &App,
    call: &Call,
    tables: &Tables,
    path: &str,
) -> Result<Response, FileGone> {
    let response = if call.is_options() {
        http_api::options()
    } else if call.is_read() {
        read(app, call, tables, path)
            .await?
            .unwrap_or_else(ApiError::response)
    } else {
        ApiError::unsupported().response()
    };
    Ok(with_version(with_namespace(app, call, response)))
}

/// Clients that have this registry as a mirror say with `ns` whose names they use. That the names here stand for
/// those is for the configuration to say; elsewise the parameter is passed over.
fn with_namespace(app: &App, call: &Call, mut response: Response) -> Response {
    let namespace = call.query("ns").filter(|ns| app.namespaces.contains(ns));
    if let Some(Ok(namespace)) = namespace.as_deref().map(HeaderValue::from_str) {
        let name = HeaderName::from_static("oci-namespace");
        response.headers_mut().insert(name, namespace);
    }
    response
}

/// What is said when the files of the newest tables can't be read.
pub(crate) fn unavailable() -> Response {
    with_version(ApiError::unavailable().response())
}

/// On every answer, errors and redirects too, which the original left without.
pub(crate) fn with_version(mut response: Response) -> Response {
    response
        .headers_mut()
        .insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    response
}

async fn read(app: &App, call: &Call, tables: &Tables, path: &str) -> Result<Answer, FileGone> {
    if let Some(response) = redirected_unseen(app, call, tables, path) {
        return Ok(Ok(response));
    }
    let repo = |name: &str| {
        tables
            .v2(name, &call.viewer)
            .ok_or_else(|| unseen(app, call, tables, name))
    };
    match Target::of(path) {
        Target::Ping => Ok(match tokens::challenge_at_ping(app, call, tables) {
            Some(challenge) => Err(ApiError::unauthorized(challenge)),
            None => Ok(http_api::json(StatusCode::OK, &json!({}))),
        }),
        Target::Catalog => Ok(catalog(call, tables)),
        Target::Nothing { name } => Ok(Err(ApiError::name_unknown(name))),
        Target::Tags { name } => match repo(name) {
            Ok(repo) => Ok(tags(app, call, repo).await),
            Err(error) => Ok(Err(error)),
        },
        Target::Manifest { name, reference } => match repo(name) {
            Ok(repo) => manifest(app, call, repo, reference).await,
            Err(error) => Ok(Err(error)),
        },
        Target::Blob { name, digest } => match repo(name) {
            Ok(repo) => blob(app, call, repo, digest).await,
            Err(error) => Ok(Err(error)),
        },
        Target::Referrers { name, digest } => match repo(name) {
            Ok(repo) => Ok(referrers(call, repo, digest).await),
            Err(error) => Ok(Err(error)),
        },
    }
}

/// What is said of a repository that isn't there for this client: the same whether it is there for others or not.
fn unseen(app: &App, call: &Call, tables: &Tables, name: &str) -> ApiError {
    let valid = name.parse::<RegistryId>().ok();
    match valid.and_then(|name| tokens::challenge_for(app, call, tables, &name)) {
        Some(challenge) => ApiError::unauthorized(challenge),
        None => ApiError::name_unknown(name),
    }
}

/// The original's redirect for a repository of which only the redirect file is known: whatever stands after the last
/// `tags`, `manifests` or `blobs` goes to its url, except what would lead out of it.
fn redirected_unseen(app: &App, call: &Call, tables: &Tables, path: &str) -> Option<Response> {
    let (name, rest) = original_split(path)?;
    let repo = tables.v2(name, &call.viewer)?;
    let V2Content::Legacy { variants, dir, .. } = &repo.content else {
        return None;
    };
    if app.serve && dir.is_some() {
        return None;
    }
    let parts: Vec<&str> = rest.split('/').collect();
    if parts.iter().any(|p| matches!(*p, "." | "..")) || rest.chars().any(char::is_control) {
        return None;
    }
    let (path, digest) = match parts.as_slice() {
        ["manifests", reference] if !reference.is_empty() => (
            negotiate::legacy_path(&call.headers, variants.as_ref(), reference),
            // What a tag names is not known here.
            reference.parse().ok().filter(|_| variants.is_none()),
        ),
        // The original broke down on these.
        ["manifests", ..] if variants.is_some() => return None,
        ["blobs", digest] => (rest.to_owned(), digest.parse().ok()),
        _ => (rest.to_owned(), None),
    };
    Some(redirected(app, &repo.url, &path, digest.as_ref()))
}

/// The path at its last part called `tags`, `manifests` or `blobs`, which belongs to the second half.
fn original_split(path: &str) -> Option<(&str, &str)> {
    let mut end = path.len();
    while let Some(slash) = path.get(..end)?.rfind('/') {
        if matches!(path.get(slash + 1..end)?, "tags" | "manifests" | "blobs") {
            return Some((path.get(..slash)?, path.get(slash + 1..)?));
        }
        end = slash;
    }
    None
}

/// What the repository holds if this request is to be answered from it; none means a redirect by the original's
/// rules, or that there is nothing to answer from.
async fn local(app: &App, repo: &V2Repo) -> Option<Arc<Holdings>> {
    match repo.content {
        V2Content::Indexed(_) => repo.holdings().await,
        V2Content::Legacy { .. } if app.serve => repo.holdings().await,
        V2Content::Legacy { .. } => None,
    }
}

async fn manifest(app: &App, call: &Call, repo: &V2Repo, reference: &str) -> Result<Answer, FileGone> {
    let name = &repo.registry_id;
    // No tag has a colon, and no digest is without.
    let digest = reference.contains(':').then(|| reference.parse::<Digest>());
    let Ok(digest) = digest.transpose() else {
        return Ok(Err(ApiError::digest_invalid(reference)));
    };
    if digest.is_none() && reference.parse::<TagName>().is_err() {
        return Ok(Err(ApiError::manifest_unknown(name, reference)));
    }
    let Some(holdings) = local(app, repo).await else {
        return Ok(match &repo.content {
            // In serve mode the files are not here: known, but not at hand.
            V2Content::Legacy { variants, .. } => {
                let path = negotiate::legacy_path(&call.headers, variants.as_ref(), reference);
                Ok(redirected(app, &repo.url, &path, None))
            }
            V2Content::Indexed(_) => Err(ApiError::unavailable()),
        });
    };
    let by_tag = digest.is_none();
    let found = if let Some(digest) = &digest {
        holdings.manifest(digest)
    } else {
        let targets = holdings.tag(reference);
        targets.and_then(|t| negotiate::choose(Accept::of(&call.headers), t, &holdings))
    };
    let Some(held) = found else {
        return Ok(Err(ApiError::manifest_unknown(name, reference)));
    };
    if app.serve
        && by_tag
        && schema1::is_wanted(&call.headers)
        && let Some(response) = as_schema1(app, repo, &holdings, &held, reference).await?
    {
        return Ok(Ok(response));
    }
    if app.serve {
        send::file(app, call, manifest_answer(repo, &holdings, &held, by_tag))
            .await
            .map(Ok)
    } else {
        let path = format!("manifests/{}/{}", held.folder().name(), held.digest);
        Ok(Ok(redirected(app, &repo.url, &path, Some(&held.digest))))
    }
}

/// The image as a schema 1 manifest made for it; none if it has no such form, or needs none.
async fn as_schema1(
    app: &App,
    repo: &V2Repo,
    holdings: &Holdings,
    held: &Held<'_>,
    tag: &str,
) -> Result<Option<Response>, FileGone> {
    let image = match held.folder() {
        Folder::List => holdings.amd64(held),
        Folder::Schema1 | Folder::Image => Some(held.clone()),
    };
    let (Some(image), Some(signer)) = (image.filter(|i| i.folder() == Folder::Image), &app.signer) else {
        return Ok(None);
    };
    let json = async |path| -> Result<Option<Value>, FileGone> {
        let bytes = send::read(app, path).await?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    };
    let Some(manifest) = json(holdings.manifest_file(&image)).await? else {
        return Ok(None);
    };
    let config = manifest.pointer("/config/digest").and_then(Value::as_str);
    let config = config.and_then(|digest| digest.parse().ok());
    let Some(config) = config.filter(|digest| holdings.blob(digest).is_some()) else {
        return Ok(None);
    };
    let Some(config) = json(holdings.blob_file(&config)).await? else {
        return Ok(None);
    };
    let made = schema1::convert(&manifest, &config, &repo.registry_id, tag);
    let Some(signed) = made.and_then(|made| signer.sign(&made)) else {
        return Ok(None);
    };
    let content_type = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let mut response = http_api::bytes(StatusCode::OK, content_type, signed.bytes);
    let headers = response.headers_mut();
    if let Ok(digest) = HeaderValue::from_str(&signed.digest.to_string()) {
        headers.insert(send::CONTENT_DIGEST, digest);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept, User-Agent"));
    Ok(Some(response))
}

/// How a manifest is sent.
pub(crate) fn manifest_answer<'a>(
    repo: &V2Repo,
    holdings: &'a Holdings,
    held: &'a Held<'a>,
    by_tag: bool,
) -> FileAnswer<'a> {
    FileAnswer {
        place: Place::Manifest(holdings, held),
        size: Some(held.size()),
        content_type: held.media_type().as_str(),
        identity: Identity::Digest(&held.digest),
        cache: if by_tag {
            Cache::Revalidate
        } else {
            Cache::Immutable
        },
        negotiated: by_tag,
        protected: repo.protected,
    }
}

async fn blob(app: &App, call: &Call, repo: &V2Repo, digest: &str) -> Result<Answer, FileGone> {
    let Ok(digest) = digest.parse::<Digest>() else {
        return Ok(Err(ApiError::digest_invalid(digest)));
    };
    let Some(holdings) = local(app, repo).await else {
        return Ok(Ok(redirected(
            app,
            &repo.url,
            &format!("blobs/{digest}"),
            Some(&digest),
        )));
    };
    // Clients may fetch a manifest as a blob, too.
    let manifest = holdings.manifest(&digest);
    match (holdings.blob(&digest), manifest) {
        // Named by schema 1 manifests made here.
        (None, None) if digest.to_string() == schema1::EMPTY_LAYER_DIGEST => Ok(Ok(empty_layer(&digest))),
        (None, None) => Ok(Err(ApiError::blob_unknown(&digest))),
        (Some(_), _) if !app.serve => Ok(Ok(redirected(
            app,
            &repo.url,
            &format!("blobs/{digest}"),
            Some(&digest),
        ))),
        (Some(size), _) => send::file(app, call, blob_answer(repo, &holdings, &digest, size))
            .await
            .map(Ok),
        (None, Some(held)) => {
            let mut answer = manifest_answer(repo, &holdings, &held, false);
            answer.content_type = "application/octet-stream";
            send::file(app, call, answer).await.map(Ok)
        }
    }
}

fn empty_layer(digest: &Digest) -> Response {
    let mut response = http_api::bytes(
        StatusCode::OK,
        "application/octet-stream",
        &schema1::EMPTY_LAYER[..],
    );
    if let Ok(digest) = HeaderValue::from_str(&digest.to_string()) {
        response.headers_mut().insert(send::CONTENT_DIGEST, digest);
    }
    response
}

/// How a blob is sent.
pub(crate) fn blob_answer<'a>(
    repo: &V2Repo,
    holdings: &'a Holdings,
    digest: &'a Digest,
    size: u64,
) -> FileAnswer<'a> {
    FileAnswer {
        place: Place::Blob(holdings, digest),
        size: Some(size),
        content_type: "application/octet-stream",
        identity: Identity::Digest(digest),
        cache: Cache::Immutable,
        negotiated: false,
        protected: repo.protected,
    }
}

fn redirected(app: &App, url: &str, path: &str, digest: Option<&Digest>) -> Response {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let url = app
        .cdn
        .url(format!("{url}{path}"), now.unwrap_or_default().as_secs());
    let mut response = http_api::redirect(&url);
    if let Some(Ok(digest)) = digest.map(|d| HeaderValue::from_str(&d.to_string())) {
        response.headers_mut().insert(send::CONTENT_DIGEST, digest);
    }
    response
}

async fn tags(app: &App, call: &Call, repo: &V2Repo) -> Answer {
    #[derive(Serialize)]
    struct Tags<'a> {
        name: &'a str,
        tags: Vec<&'a str>,
    }
    let Some(holdings) = local(app, repo).await else {
        return Ok(redirected(app, &repo.url, "tags/list", None));
    };
    let name = &repo.registry_id;
    let page = Page::of(call, page::NAMES)?;
    let (tags, more) = page.cut(holdings.tag_names(), |tag| tag);
    let last = tags.last().copied().filter(|_| more);
    let next = last.map(|last| page.next(&format!("/v2/{name}/tags/list"), last, &[]));
    Ok(paged(&Tags { name, tags }, next))
}

fn catalog(call: &Call, tables: &Tables) -> Answer {
    #[derive(Serialize)]
    struct Catalog<'a> {
        repositories: Vec<&'a str>,
    }
    let page = Page::of(call, page::NAMES)?;
    let open = tables
        .v2
        .iter()
        .filter(|(_, repo)| repo.shown_to(&call.viewer))
        .map(|(name, _)| name.as_str());
    let (repositories, more) = page.cut(open, |name| name);
    let last = repositories.last().copied().filter(|_| more);
    let next = last.map(|last| page.next("/v2/_catalog", last, &[]));
    Ok(paged(&Catalog { repositories }, next))
}

/// Referrers: an index of what has the digest as its subject, empty where nothing has, or where it isn't known.
async fn referrers(call: &Call, repo: &V2Repo, digest: &str) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Referrer<'a> {
        media_type: &'a MediaType,
        digest: &'a Digest,
        size: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        artifact_type: Option<&'a str>,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        annotations: &'a BTreeMap<String, String>,
    }
    const NO_ANNOTATIONS: &BTreeMap<String, String> = &BTreeMap::new();
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Referrers<'a> {
        schema_version: u8,
        media_type: MediaType,
        manifests: Vec<Referrer<'a>>,
    }
    let subject = digest
        .parse::<Digest>()
        .map_err(|_| ApiError::digest_invalid(digest))?;
    let wanted = call.query("artifactType").filter(|t| !t.is_empty());
    let page = Page::of(call, page::REFERRERS)?;
    let holdings = repo.holdings().await;
    let attached: Vec<(String, Held<'_>)> = holdings
        .as_ref()
        .map(|h| {
            h.referrers(&subject)
                .map(|held| (held.digest.to_string(), held))
                .collect()
        })
        .unwrap_or_default();
    let asked = attached
        .iter()
        .filter(|(_, held)| wanted.is_none() || held.artifact_type() == wanted.as_deref());
    let (attached, more) = page.cut(asked, |(digest, _)| digest);
    let next = attached.last().filter(|_| more).map(|(last, _)| {
        let path = format!("/v2/{}/referrers/{subject}", repo.registry_id);
        let filter = wanted.as_deref().map(|t| ("artifactType", t));
        page.next(&path, last, filter.as_slice())
    });
    let manifests = attached
        .into_iter()
        .map(|(_, held)| Referrer {
            media_type: held.media_type(),
            digest: &held.digest,
            size: held.size(),
            artifact_type: held.artifact_type(),
            annotations: held.annotations().unwrap_or(NO_ANNOTATIONS),
        })
        .collect();
    let index = Referrers {
        schema_version: 2,
        media_type: MediaType::OCI_INDEX,
        manifests,
    };
    let mut response = paged(&index, next);
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/vnd.oci.image.index.v1+json"),
    );
    if wanted.is_some() {
        let name = HeaderName::from_static("oci-filters-applied");
        headers.insert(name, HeaderValue::from_static("artifactType"));
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tags_and_references_may_be_called_like_kinds() {
        for (path, target) in [
            ("", Target::Ping),
            ("_catalog", Target::Catalog),
            ("a/tags/list", Target::Tags { name: "a" }),
            ("org/tags/tags/list", Target::Tags { name: "org/tags" }),
            (
                "a/b/c/d/manifests/latest",
                Target::Manifest {
                    name: "a/b/c/d",
                    reference: "latest",
                },
            ),
            (
                "x/manifests/tags",
                Target::Manifest {
                    name: "x",
                    reference: "tags",
                },
            ),
            (
                "x/manifests/list",
                Target::Manifest {
                    name: "x",
                    reference: "list",
                },
            ),
            (
                "manifests/manifests/manifests",
                Target::Manifest {
                    name: "manifests",
                    reference: "manifests",
                },
            ),
            (
                "blobs/blobs/sha256:0",
                Target::Blob {
                    name: "blobs",
                    digest: "sha256:0",
                },
            ),
            (
                "x/referrers/sha256:0",
                Target::Referrers {
                    name: "x",
                    digest: "sha256:0",
                },
            ),
            ("tags/list", Target::Nothing { name: "tags/list" }),
            ("x/manifests", Target::Nothing { name: "x/manifests" }),
            (
                "x/blobs/uploads/",
                Target::Nothing {
                    name: "x/blobs/uploads/",
                },
            ),
        ] {
            assert_eq!(Target::of(path), target, "{path}");
        }
    }
}
