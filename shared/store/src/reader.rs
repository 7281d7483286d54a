//! Look-ups of a single row in SQLite, made on the thread that asks.
//!
//! What every request asks takes SQLite some microseconds, out of memory; to have another thread do it takes several times that. A
//! reader waits for no writer. Where it would have to wait all the same (another process repairs the log, say), whoever asks gets an
//! error at once, and asks the slow way.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use rusqlite::{Connection, OpenFlags, Params, Row};

/// Connections that are kept: more than threads that ask at the same moment.
const KEPT: usize = 8;

/// The connections of one database.
#[derive(Debug)]
pub(crate) struct Reader {
    path: PathBuf,
    /// Those that nobody uses; none once it is closed.
    free: Mutex<Option<Vec<Connection>>>,
}

impl Reader {
    pub(crate) const fn new(path: PathBuf) -> Self {
        Self {
            path,
            free: Mutex::new(Some(Vec::new())),
        }
    }

    /// The one row that this gives, if there is one; an error if it can't be told at once.
    pub(crate) fn row<A>(
        &self,
        sql: &str,
        parameters: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<A>,
    ) -> rusqlite::Result<Option<A>> {
        let kept = match &mut *self.free() {
            Some(free) => free.pop(),
            None => return Err(rusqlite::Error::InvalidQuery),
        };
        let connection = kept.map_or_else(|| self.connect(), Ok)?;
        let found = {
            let mut statement = connection.prepare_cached(sql)?;
            let mut rows = statement.query(parameters)?;
            rows.next()?.map(read).transpose()?
        };
        if let Some(free) = &mut *self.free()
            && free.len() < KEPT
        {
            free.push(connection);
        }
        Ok(found)
    }

    /// Answers nothing any more.
    pub(crate) fn close(&self) {
        *self.free() = None;
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        // A log can be read by those only who may share its index.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.execute_batch("PRAGMA query_only = ON; PRAGMA busy_timeout = 0")?;
        Ok(connection)
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Option<Vec<Connection>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Store;

    fn count(reader: &Reader) -> rusqlite::Result<Option<i64>> {
        reader.row("SELECT COUNT(*) FROM leases", [], |row| row.get(0))
    }

    #[tokio::test]
    async fn it_sees_what_was_committed_and_waits_for_no_writer() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("x").display());
        let store = Store::connect(&url, 2).await.unwrap();
        store.migrate().await.unwrap();
        let reader = store.reader.as_ref().unwrap();
        let mut tx = store.begin().await.unwrap();
        let note = "INSERT INTO leases (role, holder, epoch, acquired, expires) VALUES ('r', 'x', 1, 1, 1)";
        sqlx::query(note).execute(tx.on()).await.unwrap();
        assert_eq!(count(reader).unwrap(), Some(0));
        tx.commit().await.unwrap();
        assert_eq!(count(reader).unwrap(), Some(1));
        let refused = reader.row("DELETE FROM leases RETURNING 1", [], |row| row.get::<_, i64>(0));
        refused.unwrap_err();
        assert_eq!(count(reader).unwrap(), Some(1));
        store.close().await;
        count(reader).unwrap_err();
    }

    #[test]
    fn a_database_that_is_not_there_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let reader = Reader::new(folder.path().join("x"));
        count(&reader).unwrap_err();
        assert!(!folder.path().join("x").exists());
    }
}
