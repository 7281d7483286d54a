//! REST API under `/pulp/api/v2`.
//!
//! Paths, verbs and shapes are those that clients of Pulp 2 know. The API writes rows and answers; whatever takes
//! time or needs a lock becomes a task (202), which commits together with the message that announces it.
//!
//! One module a resource: its routes, handlers and tests. Shapes on the wire are made in `views` alone,
//! every refusal is an [`ApiError`], searches are decided by the pure module `criteria`.

mod actions;
mod auth;
mod body;
mod criteria;
mod distributors;
mod errors;
mod fields;
mod history;
mod importers;
pub mod password;
mod plugins;
mod pull_rights;
mod query;
mod replies;
mod repositories;
mod requester;
mod robots;
mod schedules;
mod status;
mod task_groups;
mod tasks;
mod tokens;
mod trace;
mod transfers;
mod units;
mod uploads;
mod users;
mod views;

#[cfg(test)]
mod testing;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use axum::{Router, middleware, routing::MethodRouter, serve::ListenerExt as _};
use pulp_broker::Broker;
use pulp_store::Store;
use serde_json::{Map, Value};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use errors::ApiError;
pub use users::{FirstUser, ensure_first_user};

/// Where every path begins.
pub const PREFIX: &str = "/pulp/api/v2";

/// The largest upload chunk that any configuration allows, in bytes.
pub const LARGEST_CHUNK: usize = 64 * 1024 * 1024;

/// Settings of the API.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// The name by which clients reach this server; shown in challenges.
    pub server_name: String,
    /// Where the bytes of uploads lie; every API process and every worker must see the same folder.
    pub uploads_dir: PathBuf,
    /// How long a login lasts.
    pub session_lifetime: Duration,
    /// The largest upload chunk taken, in bytes; at most [`LARGEST_CHUNK`]. Pulp 2 took 5 MiB.
    pub max_chunk: usize,
    /// Settings of the plugins' files by importer or distributor type, below those of the repository.
    pub plugin_defaults: BTreeMap<String, Map<String, Value>>,
    /// Signs tokens for clients that pull; without it none are given out.
    pub token_signer: Option<pulp_token::Signer>,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            server_name: "localhost".to_owned(),
            uploads_dir: PathBuf::from("/var/lib/pulp/uploads"),
            session_lifetime: Duration::from_hours(7 * 24),
            max_chunk: 5 * 1024 * 1024,
            plugin_defaults: BTreeMap::new(),
            token_signer: None,
        }
    }
}

/// What the handlers work with.
#[derive(Debug)]
pub struct ApiState {
    store: Store,
    broker: Option<Arc<dyn Broker>>,
    config: ApiConfig,
    verified: auth::VerifiedCredentials,
}

impl ApiState {
    /// State over a database. The broker serves two things only: the status page, and the hint to workers that a
    /// task was canceled; without it workers learn of a cancel at their next heartbeat.
    pub fn new(store: Store, broker: Option<Arc<dyn Broker>>, config: ApiConfig) -> Self {
        Self {
            store,
            broker,
            config: ApiConfig {
                max_chunk: config.max_chunk.clamp(1, LARGEST_CHUNK),
                ..config
            },
            verified: auth::VerifiedCredentials::new(),
        }
    }

    /// The plugin file's settings for an importer or distributor type.
    fn plugin_defaults(&self, type_id: &str) -> Map<String, Value> {
        self.config
            .plugin_defaults
            .get(type_id)
            .cloned()
            .unwrap_or_default()
    }
}

/// The state as handlers share it.
type App = Arc<ApiState>;

/// All routes, with authentication and error bodies around them.
pub fn router(app: Arc<ApiState>) -> Router {
    let challenge = errors::challenge(&app.config.server_name);
    let guarded = Routes::default()
        .and(repositories::routes())
        .and(importers::routes())
        .and(distributors::routes())
        .and(schedules::routes())
        .and(actions::routes())
        .and(transfers::routes())
        .and(units::routes())
        .and(history::routes())
        .and(uploads::routes())
        .and(tasks::routes())
        .and(task_groups::routes())
        .and(plugins::routes())
        .and(users::routes())
        .and(robots::routes())
        .and(pull_rights::routes())
        .and(auth::routes());
    let guarded = guarded
        .into_router()
        .route_layer(middleware::from_fn_with_state(Arc::clone(&app), auth::guard));
    let tokens = match app.config.token_signer {
        Some(_) => tokens::routes(),
        None => Router::new(),
    };
    guarded
        .merge(status::routes().into_router())
        .merge(tokens)
        .fallback(errors::unknown_path)
        .layer(errors::catch_panics())
        .layer(middleware::from_fn_with_state(challenge, errors::render))
        .layer(middleware::from_fn(trace::traced))
        .with_state(app)
}

/// The token endpoint alone, for a listener that isn't the API's.
pub fn token_router(app: Arc<ApiState>) -> Router {
    tokens::routes().layer(errors::catch_panics()).with_state(app)
}

/// Serves until `shutdown` fires, then ends the requests under way and returns.
pub async fn run(
    app: Arc<ApiState>,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), ApiError> {
    uploads::prepare(&app.config.uploads_dir).await?;
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "the API listens");
    }
    // Small answers to small questions: nothing is gained by waiting for more to send.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router(app))
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
        .map_err(ApiError::Serve)
}

/// Routes of one resource, relative to [`PREFIX`], each reachable with and without its trailing slash: Pulp 2
/// insisted on the slash, and lost the body of a request that came without.
#[derive(Default)]
struct Routes(Vec<(&'static str, MethodRouter<App>)>);

impl Routes {
    fn at(mut self, path: &'static str, methods: MethodRouter<App>) -> Self {
        self.0.push((path, methods));
        self
    }

    fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    fn into_router(self) -> Router<App> {
        self.0.into_iter().fold(Router::new(), |router, (path, methods)| {
            let bare = format!("{PREFIX}{}", path.trim_end_matches('/'));
            router
                .route(&format!("{bare}/"), methods.clone())
                .route(&bare, methods)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;
    use crate::testing::Api;

    async fn exchange(address: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn it_serves_until_it_is_told_to_end() {
        let api = Api::new().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = ApiConfig {
            uploads_dir: api.folder.path().join("made/by/run"),
            ..ApiConfig::default()
        };
        let state = ApiState::new(api.store.clone(), None, config);
        let stop = CancellationToken::new();
        let server = tokio::spawn(run(Arc::new(state), listener, stop.clone()));

        let status = "GET /pulp/api/v2/status/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let answer = exchange(address, status).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(api.folder.path().join("made/by/run").is_dir());

        // A client that goes away in the middle of a chunk: what it announced never counts.
        let id = api.upload(b"").await;
        std::fs::write(api.folder.path().join("made/by/run").join(&id), b"").unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let put = format!(
            "PUT /pulp/api/v2/content/uploads/{id}/0/ HTTP/1.1\r\nhost: x\r\nauthorization: Basic YWRtaW46YWRtaW4=\r\n\
             content-length: 10\r\nconnection: close\r\n\r\n123"
        );
        stream.write_all(put.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let upload = api.store.upload(id.parse().unwrap()).await.unwrap().unwrap();
        assert_eq!(upload.size, 0, "{answer}");

        stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(10), server).await;
        ended.unwrap().unwrap().unwrap();
    }
}
