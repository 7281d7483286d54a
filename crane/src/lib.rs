//! Crane: the registry that clients pull from.
//!
//! It reads published files only, no database and no broker, so that pulls go on whatever else is down. Redirect
//! files are found below a data directory, loaded into tables, and looked after while it runs; every answer comes
//! from the tables, and a file is opened only to send its bytes. Nothing that a client sends is ever made a path.

mod admin;
mod cdn;
mod config;
mod data;
mod files;
mod http_api;
mod negotiate;
mod search;
mod send;
mod v1;
mod v2;
mod watch;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, serve::ListenerExt as _};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    data::{Loader, Tables},
    http_api::App,
};
pub use config::{
    Cdn, ConfigError, CraneConfig, Entitlements, Mode, Sendfile, TlsFiles, Token, TokenAlgorithm,
};

/// Why Crane stopped.
#[derive(Debug, thiserror::Error)]
pub enum CraneError {
    /// The network failed it.
    #[error("can't serve: {0}")]
    Serve(#[from] io::Error),
    /// A part of it ended that never should; a defect.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
}

/// How long requests in progress may go on after shutdown was asked for.
const GRACE: Duration = Duration::from_secs(30);

/// Serves until `shutdown`. Loads all data before the first answer.
///
/// A data directory that isn't there is no error: it may be mounted later.
pub async fn run(
    config: CraneConfig,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), CraneError> {
    let crane = tokio::task::spawn_blocking(move || Crane::open(config))
        .await
        .map_err(|_| CraneError::Ended("loading"))?;
    let service = crane.router().into_make_service_with_connect_info::<SocketAddr>();
    let watching = tokio::spawn(crane.watch(shutdown.clone()));
    // The last, short piece of a layer must not wait for the client's acknowledgement of the piece before.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection stays with delayed writes");
        }
    });
    let serving = axum::serve(listener, service).with_graceful_shutdown(shutdown.clone().cancelled_owned());
    let served = tokio::select! {
        served = async { serving.await } => served.map_err(CraneError::from),
        () = async { shutdown.cancelled().await; tokio::time::sleep(GRACE).await } => Ok(()),
    };
    shutdown.cancel();
    watching
        .await
        .map_err(|_| CraneError::Ended("watching the data directory"))?;
    served
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
