//! Connections and transactions; all that differs between PostgreSQL and SQLite.
//!
//! SQL is written once, in the common subset, with `$1` parameters. What must differ stands here: how a
//! transaction begins, what time it is, row locks (SQLite has one writer, so it needs none), settings of a connection.

use std::{sync::Arc, time::Duration};

use pulp_model::Timestamp;
use sqlx::{
    Any, AnyConnection, AnyPool, AssertSqlSafe, Executor as _, Row as _, SqlSafeStr as _, SqlStr,
    Transaction, any::AnyPoolOptions,
};
use tokio::sync::{Mutex, Notify, OwnedMutexGuard};

use crate::StoreError;

/// Which database this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// One file, one writer at a time.
    Sqlite,
    /// A server.
    Postgres,
}

/// The way to the database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pub(crate) pool: AnyPool,
    pub(crate) engine: Engine,
    /// SQLite's writers queue here, in order, rather than poll for the file's lock.
    writer: Arc<Mutex<()>>,
    /// Rung by every commit that left rows in the outbox.
    outbox_bell: Arc<Notify>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("engine", &self.engine)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens a pool on `sqlite:<file>` or `postgres://…`. The schema is not looked at; see [`Store::check_schema`].
    ///
    /// An SQLite file is created if it is absent; a PostgreSQL server need not be up yet: the first call
    /// that needs it fails with [`StoreError::Unavailable`].
    pub async fn connect(url: &str, max_connections: u32) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let engine = if url.starts_with("sqlite:") {
            Engine::Sqlite
        } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            Engine::Postgres
        } else {
            // Whatever follows may hold a password; only the scheme is told.
            return Err(StoreError::UnknownEngine(
                url.split(':').next().unwrap_or_default().to_owned(),
            ));
        };
        let options = AnyPoolOptions::new()
            .max_connections(max_connections.max(2))
            .acquire_timeout(Duration::from_secs(5))
            .after_connect(move |connection, _| Box::pin(async move { prepare(connection, engine).await }));
        let full_url = match engine {
            Engine::Sqlite if url.contains('?') => url.to_owned(),
            Engine::Sqlite => format!("{url}?mode=rwc"),
            Engine::Postgres => url.to_owned(),
        };
        let pool = options.connect_lazy(&full_url)?;
        Ok(Self {
            pool,
            engine,
            writer: Arc::default(),
            outbox_bell: Arc::default(),
        })
    }

    /// Which database this is.
    pub const fn engine(&self) -> Engine {
        self.engine
    }

    /// Begins a transaction that writes.
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        let (turn, inner) = match self.engine {
            Engine::Sqlite => {
                let turn = Arc::clone(&self.writer).lock_owned().await;
                (Some(turn), self.pool.begin_with("BEGIN IMMEDIATE").await?)
            }
            Engine::Postgres => (None, self.pool.begin().await?),
        };
        Ok(Tx {
            inner,
            engine: self.engine,
            outbox: None,
            outbox_bell: Arc::clone(&self.outbox_bell),
            _turn: turn,
        })
    }

    /// Whether the database answers.
    pub async fn is_connected(&self) -> bool {
        sqlx::query("SELECT 1").execute(&self.pool).await.is_ok()
    }

    /// The database's clock.
    pub async fn now(&self) -> Result<Timestamp, StoreError> {
        now(self.engine, &mut *self.pool.acquire().await?).await
    }

    /// Waits until a commit of this process left rows in the outbox.
    pub async fn outbox_rung(&self) {
        self.outbox_bell.notified().await;
    }

    /// Closes all connections.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// A transaction that writes. Dropped without [`Tx::commit`] it leaves nothing.
pub struct Tx {
    inner: Transaction<'static, Any>,
    pub(crate) engine: Engine,
    pub(crate) outbox: Option<()>,
    outbox_bell: Arc<Notify>,
    _turn: Option<OwnedMutexGuard<()>>,
}

impl Tx {
    /// Makes it all so, and rings the relay if messages wait.
    pub async fn commit(self) -> Result<(), StoreError> {
        self.inner.commit().await?;
        if self.outbox.is_some() {
            self.outbox_bell.notify_one();
        }
        Ok(())
    }

    /// The connection, for the statements of this crate.
    pub(crate) fn on(&mut self) -> &mut AnyConnection {
        &mut self.inner
    }

    /// The database's clock: the instant of this call, not that of the transaction's begin.
    pub async fn now(&mut self) -> Result<Timestamp, StoreError> {
        let engine = self.engine;
        now(engine, self.on()).await
    }

    /// A statement that ends in a row lock (`FOR UPDATE`, `FOR SHARE`, …), as this engine understands it.
    pub(crate) fn locking(&self, sql: &'static str) -> SqlStr {
        match self.engine {
            Engine::Postgres => sql.into_sql_str(),
            // `BEGIN IMMEDIATE` holds the only writer's place: every row is locked already.
            Engine::Sqlite => sql
                .rsplit_once(" FOR ")
                .map_or(sql, |(before, _)| before)
                .into_sql_str(),
        }
    }
}

/// A statement put together at run time from this crate's own pieces; values are always bound, never spliced.
pub(crate) fn assembled(sql: String) -> AssertSqlSafe<String> {
    AssertSqlSafe(sql)
}

/// `$first, …` for `count` values.
pub(crate) fn placeholders(first: usize, count: usize) -> String {
    (first..first + count)
        .map(|n| format!("${n}"))
        .collect::<Vec<_>>()
        .join(", ")
}

async fn now(engine: Engine, connection: &mut AnyConnection) -> Result<Timestamp, StoreError> {
    let sql = match engine {
        Engine::Postgres => "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT) AS now",
        Engine::Sqlite => "SELECT CAST(unixepoch('subsec') * 1000000 AS INTEGER) AS now",
    };
    Ok(Timestamp(
        sqlx::query(sql).fetch_one(connection).await?.try_get("now")?,
    ))
}

/// Settings of a new connection. A statement that hangs must not hang its role for ever.
async fn prepare(connection: &mut AnyConnection, engine: Engine) -> Result<(), sqlx::Error> {
    let settings = match engine {
        Engine::Sqlite => {
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 10000;"
        }
        Engine::Postgres => {
            "SET statement_timeout = '30s'; SET lock_timeout = '10s'; SET idle_in_transaction_session_timeout = '60s'; \
             SET application_name = 'pulp'"
        }
    };
    connection.execute(settings).await?;
    Ok(())
}
