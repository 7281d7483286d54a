//! Crane: the registry that clients pull from.
//!
//! It reads published files only, no database and no broker, so that pulls go on whatever else is down. Redirect
//! files are found below a data directory, loaded into tables, and looked after while it runs; every answer comes
//! from the tables, and a file is opened only to send its bytes. Nothing that a client sends is ever made a path.

mod admin;
mod cdn;
mod clients;
mod config;
mod data;
mod entitlement;
mod files;
mod http_api;
mod listen;
mod negotiate;
mod reloaded;
mod schema1;
mod search;
mod send;
mod small;
mod threads;
mod tls;
mod tokens;
mod trace;
mod v1;
mod v2;
mod watch;

use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    data::{Loader, Tables},
    http_api::App,
    threads::Threads,
};
pub use config::{
    Cdn, Challenge, ConfigError, CraneConfig, Entitlements, Mode, Sendfile, TlsFiles, Token, TokenAlgorithm,
    TokenService,
};

/// Why Crane stopped.
#[derive(Debug, thiserror::Error)]
pub enum CraneError {
    /// Its own certificate is of no use; the log says why.
    #[error("can't serve TLS with [tls] certificate {0} and its key; see the line before")]
    Tls(String),
    /// The machine has no room for its threads: a limit of processes or of memory is reached.
    #[error("can't start the threads that serve connections: {0}")]
    Threads(std::io::Error),
    /// A part of it ended that never should; a defect.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
}

/// Serves until `shutdown`. Loads all data before the first answer.
///
/// A data directory that isn't there is no error: it may be mounted later.
pub async fn run(
    config: CraneConfig,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), CraneError> {
    run_beside(None, config, listener, shutdown).await
}

/// Somebody else's answers on Crane's listener.
pub struct Beside {
    /// Requests for exactly this path are theirs.
    pub path: &'static str,
    /// Answers them.
    pub router: Router,
}

/// As [`run`], with a path of somebody else on the same listener.
pub async fn run_beside(
    beside: Option<Beside>,
    config: CraneConfig,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), CraneError> {
    let (header_timeout, reload) = (config.header_timeout, config.reload_interval);
    let files = config.tls.clone();
    let opening = tokio::task::spawn_blocking(move || {
        let asks_clients = config.entitlements.is_some();
        let tls = files.map(|files| {
            let opened = tls::open(&files, asks_clients);
            match opened.current() {
                Some(_) => Ok(Arc::new(opened)),
                None => Err(CraneError::Tls(files.certificate.display().to_string())),
            }
        });
        Ok::<_, CraneError>((tls.transpose()?, Crane::open(config)))
    });
    let (tls, crane) = opening.await.map_err(|_| CraneError::Ended("loading"))??;
    // Ends with this function, whatever ends it.
    let stop = shutdown.child_token();
    let _stopping = stop.clone().drop_guard();
    if let Some(tls) = &tls {
        tokio::spawn(reloaded::follow(Arc::clone(tls), reload, stop.clone()));
    }
    if let Some(gate) = &crane.app.gate {
        tokio::spawn(reloaded::follow(
            Arc::clone(&gate.authority),
            reload,
            stop.clone(),
        ));
    }
    if let Some(tokens) = &crane.app.tokens {
        tokio::spawn(reloaded::follow(
            Arc::clone(&tokens.verifier),
            reload,
            stop.clone(),
        ));
    }
    let threads = Threads::start().map_err(CraneError::Threads)?;
    let server = listen::Server {
        app: Arc::clone(&crane.app),
        beside,
        tls,
        header_timeout,
    };
    let watching = tokio::spawn(crane.watch(stop.clone()));
    server.run(listener, threads, shutdown).await;
    stop.cancel();
    watching
        .await
        .map_err(|_| CraneError::Ended("watching the data directory"))
}

/// Crane with its data loaded, for who wants its router without a listener.
pub struct Crane {
    app: Arc<App>,
    loader: Loader,
    config: CraneConfig,
}

impl Crane {
    /// Loads the data. Blocks; what can't be loaded is logged.
    pub fn open(config: CraneConfig) -> Self {
        let mut loader = Loader::new(&config);
        let tables = loader.load().unwrap_or_else(|| Arc::new(Tables::default()));
        tracing::info!(
            data_dir = %config.data_dir.display(),
            v1 = tables.v1.len(),
            v2 = tables.v2.len(),
            "finished loading metadata"
        );
        if let (Mode::Serve { .. }, Some(sendfile)) = (&config.mode, &config.sendfile) {
            tracing::info!(
                ?sendfile,
                "files are named to the web server in front, which must send them"
            );
        }
        let app = Arc::new(App::new(&config, tables));
        Self { app, loader, config }
    }

    /// All routes.
    pub fn router(&self) -> Router {
        http_api::router(Arc::clone(&self.app))
    }

    /// Looks through the data directory once more. Blocks.
    pub fn reload(&mut self) {
        if let Some(tables) = self.loader.load() {
            self.app.replace(tables);
        }
    }

    /// Follows changes of the data directory until `shutdown`.
    pub async fn watch(self, shutdown: CancellationToken) {
        watch::follow(self.app, self.loader, self.config.polling_interval, shutdown).await;
    }
}
