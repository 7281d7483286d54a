//! What roles are given: the database, the broker, the content, opened as the configuration says.

use std::sync::Arc;

use anyhow::Context as _;
use pulp_broker::{Broker, ConnectOptions};
use pulp_content::ContentStore;
use pulp_liveness::Database;
use pulp_publication::Root;
use pulp_runtime::{backoff::Backoff, config::Config};
use pulp_store::Store;
use tokio_util::sync::CancellationToken;

/// Connections of a SQLite pool: readers besides the one writer. PostgreSQL's follow the cores.
const SQLITE_CONNECTIONS: u32 = 8;

/// Everything a role may need.
#[derive(Clone)]
pub(crate) struct Services {
    pub(crate) config: Arc<Config>,
    pub(crate) database: Database,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) content: ContentStore,
    pub(crate) published: Root,
}

impl Services {
    /// Opens everything. Neither the database nor the broker need be up yet.
    pub(crate) async fn open(config: Config, name: &str) -> anyhow::Result<Self> {
        let mut database = open_database(&config).await?;
        if config.broker.url.scheme() == "memory" {
            database.store = database.store.with_messages_in_memory();
        }
        let options = ConnectOptions {
            name: format!("pulp {name}"),
            ..ConnectOptions::default()
        };
        let broker = pulp_broker::connect(config.broker.url.expose(), &config.broker.prefix, options).await?;
        let content = ContentStore::from_config(&config)?;
        let published = Root::new(config.storage.published_dir());
        Ok(Self {
            config: Arc::new(config),
            database,
            broker,
            content,
            published,
        })
    }

    /// Waits until the database is there, and refuses one of another schema.
    pub(crate) async fn wait_for_schema(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        let mut backoff = Backoff::for_connections();
        loop {
            match self.database.store.check_schema().await {
                Ok(()) => return Ok(()),
                Err(e) if e.is_transient() => tracing::warn!(error = %e, "waiting for the database"),
                Err(e) => return Err(e.into()),
            }
            tokio::select! {
                () = backoff.sleep() => {}
                () = stop.cancelled() => anyhow::bail!("ended before the database was there"),
            }
        }
    }
}

/// Opens the database that the configuration names; for SQLite, makes its directory.
pub(crate) async fn open_database(config: &Config) -> anyhow::Result<Database> {
    let url = config.database_url();
    if let Some(path) = url.expose().strip_prefix("sqlite:") {
        let path = std::path::Path::new(path.split('?').next().unwrap_or(path));
        if let Some(directory) = path.parent() {
            tokio::fs::create_dir_all(directory)
                .await
                .with_context(|| format!("can't make the database's directory {}", directory.display()))?;
        }
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u32;
    let default = if url.scheme() == "sqlite" {
        SQLITE_CONNECTIONS
    } else {
        cores * 2 + 6
    };
    let connections = config.database.max_connections.unwrap_or(default);
    let store = Store::connect(url.expose(), connections).await?;
    Ok(Database {
        store,
        url: url.expose().to_owned(),
    })
}
