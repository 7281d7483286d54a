//! The router, and what all groups of urls share.

use std::{borrow::Cow, net::SocketAddr, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::Request, response::Response};
use bytes::Bytes;
use futures::FutureExt as _;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header, request::Parts};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{Instant, timeout_at},
};

use crate::{
    Cdn, CraneConfig, Mode, Sendfile, admin,
    clients::{Gate, Peer, Viewer},
    data::Tables,
    files,
    schema1::Signer,
    small::Small,
    tokens::{self, TokenGate},
    trace, v1, v2,
};

/// Reads from disk in progress at most; more would only queue in the disk.
const DISK_READS: usize = 64;
/// How long a request waits for fresh tables if a file that its tables name is gone.
const FRESH_TABLES: Duration = Duration::from_secs(2);

/// What requests share.
pub(crate) struct App {
    pub(crate) serve: bool,
    pub(crate) endpoint: Option<String>,
    pub(crate) namespaces: Vec<String>,
    pub(crate) sendfile: Option<Sendfile>,
    pub(crate) cdn: Cdn,
    /// For what may change; none means to ask each time.
    pub(crate) max_age: Option<Duration>,
    pub(crate) reads: Arc<Semaphore>,
    /// Each download in progress holds it.
    pub(crate) downloads: Arc<()>,
    pub(crate) small: Small,
    /// Of schema 1 manifests made here.
    pub(crate) signer: Option<Signer>,
    /// None: no certificate opens protected repositories.
    pub(crate) gate: Option<Arc<Gate>>,
    /// None: no token does.
    pub(crate) tokens: Option<Arc<TokenGate>>,
    /// Whether clients reach it by HTTPS.
    pub(crate) tls: bool,
    tables: watch::Sender<Arc<Tables>>,
    reload: Notify,
}

impl App {
    pub(crate) fn new(config: &CraneConfig, tables: Arc<Tables>) -> Self {
        Self {
            serve: matches!(config.mode, Mode::Serve { .. }),
            endpoint: config.endpoint.clone(),
            namespaces: config.namespaces.clone(),
            sendfile: config.sendfile.clone(),
            cdn: config.cdn.clone(),
            max_age: config.max_age,
            reads: Arc::new(Semaphore::new(DISK_READS)),
            downloads: Arc::default(),
            small: Small::default(),
            signer: Signer::new(),
            gate: config.entitlements.as_ref().map(|e| Arc::new(Gate::open(e))),
            tokens: config.tokens.as_ref().map(|t| Arc::new(TokenGate::open(t))),
            tls: config.tls.is_some(),
            tables: watch::Sender::new(tables),
            reload: Notify::new(),
        }
    }

    /// The tables of now. A request looks once and keeps what it got.
    pub(crate) fn tables(&self) -> Arc<Tables> {
        Arc::clone(&self.tables.borrow())
    }

    pub(crate) fn replace(&self, tables: Arc<Tables>) {
        self.tables.send_replace(tables);
    }

    /// Resolves when a request wants the data looked through.
    pub(crate) async fn reload_wanted(&self) {
        self.reload.notified().await;
    }

    /// Waits for other tables than `seen`; none if there will be no more.
    async fn newer_tables(&self, seen: &Arc<Tables>) -> Option<Arc<Tables>> {
        self.reload.notify_one();
        let mut changes = self.tables.subscribe();
        let newer = changes.wait_for(|now| !Arc::ptr_eq(now, seen)).await.ok()?;
        Some(Arc::clone(&newer))
    }
}

/// A file that the tables name is not there: the publication was replaced and removed, or the disk is in trouble.
#[derive(Debug)]
pub(crate) struct FileGone;

/// All routes, without a listener. Paths of registries don't fit patterns, since names have any number of parts; each
/// group splits its own.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new().fallback(async move |request: Request| dispatch(&app, request.into_parts().0, None).await)
}

/// Answers a request, whatever happens: what panics costs its own request.
pub(crate) async fn dispatch(app: &App, request: Parts, peer: Option<Arc<Peer>>) -> Response {
    let answer = trace::traced(request, |request| handle(app, request, peer));
    let answer = AssertUnwindSafe(answer).catch_unwind().await;
    answer.unwrap_or_else(|_| internal_error())
}

async fn handle(app: &App, request: Parts, peer: Option<Arc<Peer>>) -> Response {
    let call = Call {
        peer: peer.as_ref().map(|p| p.address),
        viewer: Viewer::new(app.gate.clone(), app.tokens.clone(), peer, &request.headers),
        method: request.method,
        uri: request.uri,
        headers: request.headers,
    };
    let response = match call.path() {
        Some(path) => answer(app, &call, &path).await,
        None => not_found(),
    };
    tracing::debug!(
        peer = ?call.peer,
        method = %call.method,
        uri = %call.uri,
        status = response.status().as_u16(),
        "answered"
    );
    if call.method == Method::HEAD {
        without_body(response)
    } else {
        response
    }
}

/// Answers from the tables of now. If they name a file that is gone, from newer ones, as long as such come in time:
/// a repository may be published faster than it is loaded.
async fn answer(app: &App, call: &Call, path: &str) -> Response {
    let deadline = Instant::now() + FRESH_TABLES;
    let mut tables = app.tables();
    loop {
        if let Ok(response) = by_group(app, call, &tables, path).await {
            return response;
        }
        match timeout_at(deadline, app.newer_tables(&tables)).await {
            Ok(Some(newer)) => tables = newer,
            Ok(None) | Err(_) => break,
        }
    }
    tracing::error!(
        path,
        "published files that the newest redirect files name can't be read"
    );
    if path.starts_with("/v2/") {
        v2::unavailable()
    } else {
        unavailable()
    }
}

async fn by_group(app: &App, call: &Call, tables: &Tables, path: &str) -> Result<Response, FileGone> {
    if matches!(path, "/v2" | "/v1/users") {
        let mut response = redirect(&format!("{path}/"));
        *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
        Ok(response)
    } else if let Some(rest) = path.strip_prefix("/v2/") {
        v2::answer(app, call, tables, rest).await
    } else if let Some(rest) = path.strip_prefix("/v1/") {
        v1::answer(app, call, tables, rest).await
    } else if let Some(rest) = path.strip_prefix("/pulp/docker/") {
        files::answer(app, call, tables, rest).await
    } else if let Some(rest) = path.strip_prefix("/crane/") {
        Ok(admin::answer(call, tables, rest))
    } else if path == pulp_token::PATH && app.tokens.is_some() {
        Ok(tokens::of_nobody(call))
    } else {
        Ok(not_found())
    }
}

/// A request, as far as a read-only registry cares.
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) viewer: Viewer,
}

impl Call {
    /// The path, percent-decoded. None if it isn't UTF-8; then it names nothing.
    fn path(&self) -> Option<Cow<'_, str>> {
        percent_decode_str(self.uri.path()).decode_utf8().ok()
    }

    pub(crate) fn is_read(&self) -> bool {
        self.method == Method::GET || self.method == Method::HEAD
    }

    pub(crate) fn is_options(&self) -> bool {
        self.method == Method::OPTIONS
    }

    /// A query parameter, decoded; the first of several.
    pub(crate) fn query(&self, name: &str) -> Option<String> {
        let query = self.uri.query()?;
        let mut pairs = url::form_urlencoded::parse(query.as_bytes());
        pairs
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    }

    pub(crate) fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Allowed methods, everywhere.
pub(crate) const ALLOW: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");

pub(crate) fn bytes(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let body = body.into();
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    *response.body_mut() = Body::from(body);
    response
}

pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => bytes(status, "application/json", body),
        Err(error) => {
            tracing::error!(%error, "an answer can't be written as JSON");
            internal_error()
        }
    }
}

fn internal_error() -> Response {
    bytes(
        StatusCode::INTERNAL_SERVER_ERROR,
        "text/plain; charset=utf-8",
        "Internal Server Error",
    )
}

pub(crate) fn not_found() -> Response {
    bytes(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "Not Found")
}

pub(crate) fn unavailable() -> Response {
    let mut response = bytes(
        StatusCode::SERVICE_UNAVAILABLE,
        "text/plain; charset=utf-8",
        "Service Unavailable",
    );
    response
        .headers_mut()
        .insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    response
}

pub(crate) fn method_not_allowed() -> Response {
    let mut response = bytes(
        StatusCode::METHOD_NOT_ALLOWED,
        "text/plain; charset=utf-8",
        "Method Not Allowed",
    );
    response.headers_mut().insert(header::ALLOW, ALLOW);
    response
}

pub(crate) fn options() -> Response {
    let mut response = bytes(StatusCode::OK, "application/json", "");
    response.headers_mut().insert(header::ALLOW, ALLOW);
    response
}

/// 302, as the original. What can't stand in a header is percent-encoded.
pub(crate) fn redirect(location: &str) -> Response {
    let escaped: String = location
        .bytes()
        .map(|b| {
            if b.is_ascii_graphic() {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect();
    let mut response = bytes(StatusCode::FOUND, "text/plain; charset=utf-8", "");
    if let Ok(value) = HeaderValue::from_str(&escaped) {
        response.headers_mut().insert(header::LOCATION, value);
    }
    response
}

fn without_body(response: Response) -> Response {
    let (parts, _) = response.into_parts();
    Response::from_parts(parts, Body::empty())
}
