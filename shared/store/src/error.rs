//! What can go wrong, by what the caller can do about it.

use pulp_model::{Attempt, TaskId};

/// A failed call of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database can't be reached or is too busy; the same call may succeed later.
    #[error("the database is not available")]
    Unavailable(#[source] EngineError),
    /// The same, told to a call that was made together with others.
    #[error("the database is not available, as another call found: {0}")]
    NotTogether(String),
    /// What was committed may not outlive a crash of the machine: the disk refused it. Until the server is started anew
    /// nothing else is taken to be safe either.
    #[error("what was committed may not be on the disk: {0}")]
    NotOnDisk(String),
    /// A row with this key exists already.
    #[error("{0} exists already")]
    Duplicate(String),
    /// The reservations would conflict; the lock table that asked for them is out of date.
    #[error("a grant conflicts with reservations that others hold")]
    ReservationConflict,
    /// This leader's epoch is over; another leads now. Stop leading.
    #[error("leadership is lost")]
    LeadershipLost,
    /// The task's attempt is over: it was canceled, revoked or granted anew. Commit nothing.
    #[error("attempt {attempt} of task {task_id} is over (task is {now})")]
    Fenced {
        /// The task.
        task_id: TaskId,
        /// The attempt that asked.
        attempt: Attempt,
        /// State and attempt that the row has now.
        now: String,
    },
    /// A row that this release can't read.
    #[error("{what} can't be read from the database")]
    Corrupt {
        /// Table and column.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database's schema is not the one of this release.
    #[error("the database needs `pulp manage-db`: {0}")]
    SchemaMismatch(String),
    /// Migrations failed.
    #[error("migrating the database failed")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// A url that names no known engine.
    #[error("database url {0:?} names no known engine; use sqlite:/path/to/file or postgres://…")]
    UnknownEngine(String),
    /// Anything else the database said.
    #[error("the database refused a statement")]
    Database(#[source] EngineError),
}

/// What the engine's library said.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The one for both engines.
    #[error(transparent)]
    Sqlx(#[from] sqlx::Error),
    /// That of SQLite's writer.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        let code = error.sqlite_error().map(|e| e.extended_code);
        if code.is_some_and(is_passing_in_sqlite) {
            Self::Unavailable(error.into())
        } else if is_conflict(&error.to_string()) {
            Self::ReservationConflict
        } else {
            Self::Database(error.into())
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::WorkerCrashed => Self::Unavailable(error.into()),
            sqlx::Error::Database(db) => {
                let code = db.code().unwrap_or_default();
                if is_passing(&code) {
                    return Self::Unavailable(error.into());
                }
                if is_conflict(db.message()) {
                    return Self::ReservationConflict;
                }
                Self::Database(error.into())
            }
            _ => Self::Database(error.into()),
        }
    }
}

/// Whether this is said by the exclusion constraint of PostgreSQL, the triggers of SQLite, or the keys of both.
fn is_conflict(text: &str) -> bool {
    text.contains("reservations_") || text.contains("reservations.resource")
}

/// Whether a database's error code tells of its own condition, which may pass, and not of the statement's fault.
fn is_passing(code: &str) -> bool {
    if code.len() == 5 {
        // PostgreSQL, by class and code of its manual's appendix A:
        // 08 connection lost, 53 out of disk, memory or connections, 57P the server goes down or comes up,
        // 58 its system failed, 25006 a standby that takes no writes (yet), 25P03 idle for too long,
        // 40001 and 40P01 lost against a concurrent transaction, 55P03 and 57014 waited for too long.
        ["08", "53", "57P", "58"]
            .iter()
            .any(|class| code.starts_with(class))
            || ["25006", "25P03", "40001", "40P01", "55P03", "57014"].contains(&code)
    } else {
        code.parse().is_ok_and(is_passing_in_sqlite)
    }
}

/// The same of SQLite, whose extended codes have the primary one in their low byte: 5 busy, 6 locked, 7 out of memory, 10 the
/// disk failed, 13 the disk is full, 14 can't open, 15 lost a race for the write-ahead log.
const fn is_passing_in_sqlite(code: i32) -> bool {
    matches!(code & 0xff, 5 | 6 | 7 | 10 | 13 | 14 | 15)
}

impl StoreError {
    /// Whether the same call may succeed later.
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unavailable(_) | Self::NotTogether(_) | Self::NotOnDisk(_)
        )
    }

    /// What a call is told that failed together with this one.
    pub(crate) fn for_another(&self) -> Self {
        Self::NotTogether(with_causes(self))
    }

    pub(crate) fn corrupt(
        what: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Corrupt {
            what,
            source: source.into(),
        }
    }
}

/// Turns a violated unique key into [`StoreError::Duplicate`].
pub(crate) fn duplicate(error: sqlx::Error, what: &str) -> StoreError {
    match &error {
        sqlx::Error::Database(db) if db.is_unique_violation() => StoreError::Duplicate(what.to_owned()),
        _ => error.into(),
    }
}

/// An error with what lies beneath it, in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
