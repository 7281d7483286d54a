//! Connections and transactions; all that differs between PostgreSQL and SQLite.
//!
//! SQL is written once, in the common subset, with `$1` parameters. What must differ stands here: how a
//! transaction begins, what time it is, row locks (SQLite has one writer, so it needs none), settings of a connection.

use std::{collections::BTreeSet, str::FromStr as _, sync::Arc};

use pulp_model::{TaskId, Timestamp, task::TaskKind};
use sqlx::{
    Any, AnyConnection, AssertSqlSafe, Connection as _, Executor, Row as _, SqlSafeStr as _, SqlStr,
    any::{AnyArguments, AnyPoolOptions},
    query::Query,
    sqlite::SqliteConnectOptions,
};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::{
    StoreError,
    attempts::PlainEnd,
    lookups::Lookups,
    outbox::{Fresh, OutboxRow},
    patience::{self, Patience, Patient},
    pool::{LONGEST_QUEUE, Lease, Pool},
    reader::Reader,
    tasks::Request,
    together::Together,
    wal::Wal,
    writer::{Place, Writer},
};

/// Which database this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// One file, one writer at a time.
    Sqlite,
    /// A server.
    Postgres,
}

impl Engine {
    /// The database's clock within a statement: the instant at which the statement is evaluated, in microseconds since 1970.
    pub(crate) const fn clock(self) -> &'static str {
        match self {
            Self::Postgres => "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)",
            Self::Sqlite => "CAST(unixepoch('subsec') * 1000000 AS INTEGER)",
        }
    }
}

/// The way to the database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pub(crate) pool: Pool,
    pub(crate) engine: Engine,
    /// SQLite's writers queue here, in order, rather than poll for the file's lock.
    turn: Arc<Mutex<()>>,
    /// None for PostgreSQL, which waits for its disk by itself.
    pub(crate) wal: Option<Wal>,
    pub(crate) fresh: Arc<Fresh>,
    /// Whether messages have rows until they are sent.
    pub(crate) has_outbox: bool,
    pub(crate) requests: Together<Request, Result<TaskId, StoreError>>,
    pub(crate) lookups: Lookups,
    pub(crate) ends: Together<PlainEnd, Result<bool, StoreError>>,
    /// None for PostgreSQL, which has many.
    pub(crate) writer: Option<Arc<Writer>>,
    /// None for PostgreSQL, which is not in this process.
    pub(crate) reader: Option<Arc<Reader>>,
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
    /// An SQLite file is created if it is absent, and what is wrong with it is told at once. A PostgreSQL server
    /// need not be up yet: the first call that needs it fails with [`StoreError::Unavailable`].
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
            .acquire_timeout(LONGEST_QUEUE)
            // By ours, which doesn't wait for ever. What was used a moment ago doesn't come from this pool.
            .test_before_acquire(false)
            .before_acquire(move |connection, _| {
                Box::pin(async move { patience::lives(connection, engine).await })
            })
            .after_connect(move |connection, _| Box::pin(async move { prepare(connection, engine).await }))
            .after_release(move |connection, _| {
                Box::pin(async move { patience::lives(connection, engine).await })
            });
        let full_url = match engine {
            Engine::Sqlite if url.contains('?') => url.to_owned(),
            Engine::Sqlite => format!("{url}?mode=rwc"),
            Engine::Postgres => url.to_owned(),
        };
        if engine == Engine::Sqlite {
            // The pool would try again and again, and then only tell that it took too long.
            let mut first = AnyConnection::connect(&full_url).await?;
            prepare(&mut first, engine).await?;
            first.close().await?;
        }
        let (turn, fresh) = (Arc::default(), Arc::default());
        let (wal, writer, reader) = match engine {
            Engine::Sqlite => {
                let path = SqliteConnectOptions::from_str(&full_url)?
                    .get_filename()
                    .to_owned();
                let wal = Wal::of(&path);
                let reader = Reader::new(path.clone());
                let place = Place {
                    path,
                    turn: Arc::clone(&turn),
                    fresh: Arc::clone(&fresh),
                    has_outbox: true,
                    wal: wal.clone(),
                };
                (
                    Some(wal),
                    Some(Arc::new(Writer::new(place))),
                    Some(Arc::new(reader)),
                )
            }
            Engine::Postgres => (None, None, None),
        };
        let pool = Pool::new(options.connect_lazy(&full_url)?, Patience::with(engine));
        Ok(Self {
            pool,
            engine,
            turn,
            wal,
            writer,
            reader,
            fresh,
            has_outbox: true,
            requests: Together::default(),
            lookups: Lookups::default(),
            ends: Together::default(),
        })
    }

    /// The same for a process that is alone with its SQLite database, and whose broker lives in its memory: messages have no rows,
    /// for they could only outlive the process together with whom they are for. Whoever comes after it reads all
    /// tasks anew. Nothing else is without rows, and PostgreSQL is for many processes.
    #[must_use]
    pub fn with_messages_in_memory(self) -> Self {
        let writer = self.writer.map(|writer| Arc::new(writer.with_outbox(false)));
        Self {
            has_outbox: writer.is_none(),
            writer,
            ..self
        }
    }

    /// Which database this is.
    pub const fn engine(&self) -> Engine {
        self.engine
    }

    /// Begins a transaction that writes.
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        let mut tx = self.begin_by("BEGIN").await?;
        tx.wal.clone_from(&self.wal);
        Ok(tx)
    }

    /// Begins a transaction whose commit need not outlive a crash (of PostgreSQL; of the machine, with SQLite): what it says
    /// is decided, or sent, again. A crash takes the last commits in their order, so whatever was built upon this one
    /// is gone with it.
    pub(crate) async fn begin_repeatable(&self) -> Result<Tx, StoreError> {
        self.begin_by("BEGIN; SET LOCAL synchronous_commit TO off").await
    }

    /// Begins a transaction that only reads, and in which all statements see the same instant.
    pub(crate) async fn begin_snapshot(&self) -> Result<Tx, StoreError> {
        let begin = match self.engine {
            Engine::Sqlite => "BEGIN",
            Engine::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        };
        Ok(self.tx(self.pool.begin_with(begin, None).await?))
    }

    async fn begin_by(&self, postgres: &'static str) -> Result<Tx, StoreError> {
        let (statement, turn) = match self.engine {
            Engine::Sqlite => ("BEGIN IMMEDIATE", Some(self.writer_turn().await)),
            Engine::Postgres => (postgres, None),
        };
        Ok(self.tx(self.pool.begin_with(statement, turn).await?))
    }

    fn tx(&self, lease: Lease) -> Tx {
        Tx {
            lease,
            engine: self.engine,
            told: Vec::new(),
            fresh: Arc::clone(&self.fresh),
            has_outbox: self.has_outbox,
            wal: None,
        }
    }

    /// Whether the database answers.
    pub async fn is_connected(&self) -> bool {
        sqlx::query("SELECT 1").execute(&self.pool).await.is_ok()
    }

    /// Waits for the turn of SQLite's only writer.
    pub(crate) async fn writer_turn(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }

    /// The database's clock.
    pub async fn now(&self) -> Result<Timestamp, StoreError> {
        now(self.engine, &self.pool).await
    }

    /// Closes all connections.
    pub async fn close(&self) {
        if let Some(writer) = &self.writer {
            writer.close().await;
        }
        if let Some(reader) = &self.reader {
            reader.close();
        }
        self.pool.close().await;
    }
}

/// A transaction. Dropped without [`Tx::commit`] it leaves nothing.
///
/// After any call on it has failed, drop it: PostgreSQL refuses what follows, and its `COMMIT` of a failed
/// transaction is a rollback that reports no error.
pub struct Tx {
    lease: Lease,
    pub(crate) engine: Engine,
    /// Messages that it leaves in the outbox, or that its commit alone hands over.
    pub(crate) told: Vec<OutboxRow>,
    fresh: Arc<Fresh>,
    pub(crate) has_outbox: bool,
    /// What its commit waits for, if it must outlive a crash of the machine and SQLite doesn't see to that.
    wal: Option<Wal>,
}

impl Tx {
    /// Makes it all so, and hands its messages to the relay.
    pub async fn commit(self) -> Result<(), StoreError> {
        let Self {
            lease,
            engine,
            told,
            fresh,
            has_outbox,
            wal,
        } = self;
        let hand_over = move || fresh.committed(told, has_outbox);
        match engine {
            Engine::Postgres => {
                lease.commit().await?;
                hand_over();
            }
            Engine::Sqlite => {
                // Brought to its end also when nobody waits for it any more: without rows its messages are nowhere else.
                let commit = async move {
                    lease.commit().await?;
                    hand_over();
                    Ok::<(), StoreError>(())
                };
                let ended = tokio::spawn(commit).await;
                ended.map_err(|e| StoreError::NotTogether(e.to_string()))??;
            }
        }
        on_disk(wal.as_ref()).await
    }

    /// The connection, for the statements of this crate.
    pub(crate) fn on(&mut self) -> Patient<'_> {
        self.lease.patient()
    }

    /// The database's clock: the instant of this call, not that of the transaction's begin.
    pub async fn now(&mut self) -> Result<Timestamp, StoreError> {
        let engine = self.engine;
        now(engine, self.on()).await
    }

    /// Takes this repository's turn until the transaction ends, then tells the time. Of requests that concern one
    /// repository, one is decided after the other, and `created` grows in the order in which they become visible.
    pub(crate) async fn turn_of(&mut self, repo: &str) -> Result<Timestamp, StoreError> {
        if self.engine == Engine::Sqlite {
            // The only writer's place is the turn.
            return self.now().await;
        }
        // The select list is evaluated once the common table has given its row, that is, with the lock held.
        let sql = "WITH turn AS MATERIALIZED (SELECT pg_advisory_xact_lock($1)) \
                   SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT) AS now FROM turn";
        let found = sqlx::query(sql).bind(turn_key(repo)).fetch_one(self.on()).await?;
        Ok(Timestamp(found.try_get("now")?))
    }

    /// [Takes the turns](Self::turn_of) of every repository that a task claims, so that on each resource `created`
    /// grows in the order in which tasks become visible: whoever sees one of them sees all before it.
    pub(crate) async fn turns_for<'k>(
        &mut self,
        kinds: impl IntoIterator<Item = &'k TaskKind>,
    ) -> Result<Timestamp, StoreError> {
        if self.engine == Engine::Sqlite {
            return self.now().await;
        }
        // Always in the same order, lest two transactions wait for each other.
        let mut keys = BTreeSet::new();
        for kind in kinds {
            keys.insert(turn_key(kind.repo_id().as_str()));
            let claims = kind.claims();
            let repos = claims
                .iter()
                .filter_map(|claim| claim.resource.as_str().strip_prefix("repository:"));
            keys.extend(repos.map(turn_key));
        }
        // The clock is read once all rows of the common table were counted, that is, with the locks held.
        let sql = "WITH turn AS MATERIALIZED (SELECT pg_advisory_xact_lock(k) FROM \
                   (SELECT CAST(value AS BIGINT) AS k FROM json_array_elements_text(CAST($1 AS json)) ORDER BY 1) AS keys), \
                   turns AS MATERIALIZED (SELECT count(*) AS n FROM turn) \
                   SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT) AS now FROM turns";
        let found = sqlx::query(sql)
            .bind(crate::row::to_json(&keys))
            .fetch_one(self.on())
            .await?;
        Ok(Timestamp(found.try_get("now")?))
    }

    /// The same query with its rows locked; SQLite's only writer has them all.
    pub(crate) fn updating(&self, sql: String) -> String {
        match self.engine {
            Engine::Postgres => sql + " FOR UPDATE",
            Engine::Sqlite => sql,
        }
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

/// Rows that one statement takes at most: with up to ten columns it stays below the 32,766 parameters of SQLite
/// (PostgreSQL: 65,535).
pub(crate) const CHUNK: usize = 1000;

/// `($1, $2), ($3, $4), …`: `rows` rows of `columns` values each.
pub(crate) fn rows_of(columns: usize, rows: usize) -> String {
    (0..rows)
        .map(|n| format!("({})", placeholders(n * columns + 1, columns)))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Rows given as one parameter, `$1`, the text of a JSON list of objects: `r` with these fields, each `text` or
/// `bigint`. The statement's text is then the same for any number of rows, so that it is planned once.
pub(crate) fn records(engine: Engine, fields: &[(&str, &str)]) -> String {
    records_of(engine, 1, fields)
}

/// The same as [`records`], given as the parameter of this number.
pub(crate) fn records_of(engine: Engine, parameter: usize, fields: &[(&str, &str)]) -> String {
    let list = |each: &dyn Fn(&str, &str) -> String| {
        let all: Vec<String> = fields.iter().map(|(name, of)| each(name, of)).collect();
        all.join(", ")
    };
    match engine {
        Engine::Postgres => format!(
            "json_to_recordset(CAST(${parameter} AS json)) AS r({})",
            list(&|name, of| format!("{name} {of}"))
        ),
        Engine::Sqlite => format!(
            "(SELECT {} FROM jsonb_each(${parameter})) AS r",
            list(&|name, _| format!("value ->> '{name}' AS {name}"))
        ),
    }
}

/// The same as [`records`], for a statement that looks up rows of a table by them.
///
/// PostgreSQL takes a function's rows to be a hundred, for which it would rather read a table as a whole than look each up;
/// and a plan made while the table was small is used long after. Of rows beyond a limit that it can't know before it
/// thinks that a tenth is left, so that of a hundred within two such limits it expects one, and looks that up by its
/// key, however small the table is.
pub(crate) fn keys(engine: Engine, fields: &[(&str, &str)]) -> String {
    match engine {
        Engine::Postgres => format!(
            "(SELECT * FROM (SELECT * FROM {} LIMIT (SELECT 1000000)) AS r LIMIT (SELECT 1000000)) AS r",
            records(engine, fields)
        ),
        Engine::Sqlite => records(engine, fields),
    }
}

/// Tasks as [`records`] of a field `id`.
pub(crate) fn ids_of(tasks: &[TaskId]) -> String {
    #[derive(serde::Serialize)]
    struct Row<'a> {
        id: &'a TaskId,
    }
    crate::row::to_json(&tasks.iter().map(|id| Row { id }).collect::<Vec<_>>())
}

/// A statement whose text differs with the number of its rows. Those of one row, which is what a quiet system asks for
/// all day, are planned once; the others would only crowd the connection's cache.
pub(crate) fn bulk<'q>(sql: String, rows: usize) -> Query<'q, Any, AnyArguments> {
    sqlx::query(assembled(sql)).persistent(rows == 1)
}

/// The advisory lock of a repository. A few hundred of them stand for all repositories, so that a transaction over
/// thousands of tasks does not fill the server's lock table; that two repositories share one costs them a moment.
fn turn_key(repo: &str) -> i64 {
    // "pulp" and a number below 512.
    const BASE: i64 = 0x7075_6c70_0000;
    // FNV-1a: the same in every process and release, unlike the standard library's.
    let hash = repo.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    BASE + (hash % 512) as i64
}

/// Returns when what was committed outlives a crash of the machine; none means that it need not.
async fn on_disk(wal: Option<&Wal>) -> Result<(), StoreError> {
    match wal {
        Some(wal) => wal.sync().await,
        None => Ok(()),
    }
}

async fn now<'c>(engine: Engine, on: impl Executor<'c, Database = Any>) -> Result<Timestamp, StoreError> {
    if engine == Engine::Sqlite {
        return Ok(sqlite_now());
    }
    let sql = assembled(format!("SELECT {} AS now", engine.clock()));
    Ok(Timestamp(sqlx::query(sql).fetch_one(on).await?.try_get("now")?))
}

/// SQLite's clock, which is this process's, in milliseconds.
pub(crate) fn sqlite_now() -> Timestamp {
    let micros = Timestamp::now().micros();
    Timestamp(micros - micros.rem_euclid(1000))
}

/// Settings of a new connection to SQLite. What must be on the disk after a commit is put there by [`Wal`]. A page that changes
/// often is written to the database once for so many that the log has, 32 MiB of them.
pub(crate) const SQLITE_SETTINGS: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; \
                                          PRAGMA wal_autocheckpoint = 8000; PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 10000;";

/// Settings of a new connection. A statement that hangs must not hang its role for ever.
async fn prepare(connection: &mut AnyConnection, engine: Engine) -> Result<(), sqlx::Error> {
    let settings = match engine {
        Engine::Sqlite => SQLITE_SETTINGS,
        Engine::Postgres => {
            // Compiling a plan (`jit`) takes longer than running any of ours, all the more as it is done for each run.
            // The last four are about the server's end of the connection: a session whose client's host is gone must not
            // keep its locks until something is written to it.
            "SET statement_timeout = '30s'; SET lock_timeout = '10s'; SET idle_in_transaction_session_timeout = '60s'; \
             SET jit = off; SET application_name = 'pulp'; SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; \
             SET tcp_keepalives_count = 3; SET tcp_user_timeout = '10s'"
        }
    };
    connection.execute(settings).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    async fn postgres(name: &str) -> Store {
        let url = pulp_testkit::shared_postgres()
            .unwrap()
            .create_database(name)
            .unwrap();
        Store::connect(&url, 4).await.unwrap()
    }

    /// What one statement of its own transaction gives, as the callers of this crate see it.
    async fn outcome(store: &Store, sql: &'static str) -> Result<(), StoreError> {
        let mut tx = store.begin().await?;
        tx.on().execute(sql).await?;
        tx.commit().await
    }

    #[tokio::test]
    async fn no_statement_of_postgresql_may_hang_for_ever() {
        let store = postgres("settings").await;
        let mut taken = Vec::new();
        // On every connection of the pool.
        for _ in 0..4 {
            let mut tx = store.begin().await.unwrap();
            for (setting, value) in [
                ("statement_timeout", "30s"),
                ("lock_timeout", "10s"),
                ("idle_in_transaction_session_timeout", "1min"),
                ("jit", "off"),
                ("application_name", "pulp"),
                ("tcp_keepalives_idle", "5"),
                ("tcp_user_timeout", "10000"),
            ] {
                let sql = assembled(format!("SELECT current_setting('{setting}') AS value"));
                let found = sqlx::query(sql).fetch_one(tx.on()).await.unwrap();
                assert_eq!(found.get::<String, _>("value"), value, "{setting}");
            }
            taken.push(tx);
        }
        let slow = "SET LOCAL statement_timeout = '20ms'; SELECT pg_sleep(5)";
        let told = outcome(&store, slow).await.unwrap_err();
        drop(taken);
        assert!(told.is_transient(), "{told:?}");
    }

    #[tokio::test]
    async fn a_lock_that_is_not_to_be_had_in_time_is_unavailable() {
        let store = postgres("locks").await;
        outcome(
            &store,
            "CREATE TABLE t (id BIGINT PRIMARY KEY); INSERT INTO t VALUES (1)",
        )
        .await
        .unwrap();
        let mut holder = store.begin().await.unwrap();
        holder.on().execute("UPDATE t SET id = 1").await.unwrap();
        let waits = "SET LOCAL lock_timeout = '20ms'; UPDATE t SET id = 1";
        let told = outcome(&store, waits).await.unwrap_err();
        assert!(told.is_transient(), "{told:?}");
        let told = outcome(&store, "SELECT id FROM t FOR UPDATE NOWAIT")
            .await
            .unwrap_err();
        assert!(told.is_transient(), "{told:?}");
    }

    #[tokio::test]
    async fn of_two_that_wait_for_each_other_one_is_told_to_try_again() {
        let store = postgres("deadlock").await;
        outcome(
            &store,
            "CREATE TABLE t (id BIGINT PRIMARY KEY); INSERT INTO t VALUES (1), (2)",
        )
        .await
        .unwrap();
        let (mut a, mut b) = (store.begin().await.unwrap(), store.begin().await.unwrap());
        for tx in [&mut a, &mut b] {
            tx.on()
                .execute("SET LOCAL deadlock_timeout = '20ms'")
                .await
                .unwrap();
        }
        a.on().execute("UPDATE t SET id = 1 WHERE id = 1").await.unwrap();
        b.on().execute("UPDATE t SET id = 2 WHERE id = 2").await.unwrap();
        let (first, second) = tokio::join!(
            async {
                let done = a.on().execute("UPDATE t SET id = 2 WHERE id = 2").await;
                drop(a);
                done.map(drop)
            },
            async {
                let done = b.on().execute("UPDATE t SET id = 1 WHERE id = 1").await;
                drop(b);
                done.map(drop)
            }
        );
        let failed: Vec<StoreError> = [first, second]
            .into_iter()
            .filter_map(Result::err)
            .map(StoreError::from)
            .collect();
        assert_eq!(failed.len(), 1, "{failed:?}");
        assert!(failed[0].is_transient(), "{failed:?}");
    }

    #[tokio::test]
    async fn a_statement_that_is_wrong_is_not_worth_another_try() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("x").display());
        let sqlite = Store::connect(&url, 2).await.unwrap();
        for store in [sqlite, postgres("wrong").await] {
            for sql in [
                "SELECT * FROM no_such_table",
                "this is no SQL",
                "CREATE TABLE t (id BIGINT NOT NULL); INSERT INTO t VALUES (NULL)",
            ] {
                let told = outcome(&store, sql).await.unwrap_err();
                assert!(matches!(told, StoreError::Database(_)), "{told:?}");
            }
        }
    }

    #[tokio::test]
    async fn an_sqlite_file_that_another_process_keeps_locked_is_unavailable() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("x").display());
        let (ours, theirs) = (
            Store::connect(&url, 2).await.unwrap(),
            Store::connect(&url, 2).await.unwrap(),
        );
        outcome(&ours, "CREATE TABLE t (id BIGINT)").await.unwrap();
        let held = theirs.begin().await.unwrap();
        let mut connection = ours.pool.inner.acquire().await.unwrap();
        connection.execute("PRAGMA busy_timeout = 20").await.unwrap();
        let told: StoreError = connection
            .execute("INSERT INTO t VALUES (1)")
            .await
            .unwrap_err()
            .into();
        assert!(told.is_transient(), "{told:?}");
        drop(held);
    }

    #[tokio::test]
    async fn a_full_sqlite_file_is_unavailable() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("x").display());
        let store = Store::connect(&url, 2).await.unwrap();
        let fill =
            "CREATE TABLE t (b BLOB); PRAGMA max_page_count = 3; INSERT INTO t VALUES (zeroblob(100000))";
        let told = outcome(&store, fill).await.unwrap_err();
        assert!(told.is_transient(), "{told:?}");
    }

    #[tokio::test]
    async fn clocks_give_microseconds_of_now() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("x").display());
        for store in [Store::connect(&url, 2).await.unwrap(), postgres("clock").await] {
            let before = Timestamp::now();
            let now = store.now().await.unwrap();
            let mut tx = store.begin().await.unwrap();
            let first = tx.now().await.unwrap();
            // SQLite's has milliseconds.
            assert!(now.micros() >= before.micros() - 1_000, "{now:?} {before:?}");
            assert!(first >= now && first.micros() <= Timestamp::now().micros() + 1_000);
            // Within a transaction it goes on.
            let deadline = std::time::Instant::now() + Duration::from_secs(5);
            while tx.now().await.unwrap() == first {
                assert!(std::time::Instant::now() < deadline);
            }
        }
    }

    #[test]
    fn rows_and_parameters_are_numbered_through() {
        assert_eq!(placeholders(3, 2), "$3, $4");
        assert_eq!(placeholders(1, 0), "");
        assert_eq!(rows_of(2, 2), "($1, $2), ($3, $4)");
    }
}
