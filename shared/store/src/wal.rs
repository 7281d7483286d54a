//! When SQLite's log is on the disk.
//!
//! SQLite itself would wait for the disk within each commit, and with it everybody who wants to write, since it has one writer. So
//! its commits only write their log, and what must outlive a crash of the machine waits for the disk afterwards, together with
//! whatever else waits then, while the next transactions go on. They may see, and build upon, what is not on the disk
//! yet: the log is one file, written in order, so a crash takes them with it.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{StoreError, together::Together};

/// The log of one database. Clones are handles of the same.
#[derive(Clone)]
pub(crate) struct Wal {
    log: Arc<Log>,
    waiting: Together<(), Result<(), StoreError>>,
}

struct Log {
    path: PathBuf,
    /// Set for good when the disk refused once: the kernel may have dropped what it could not write, and tells so only once.
    failed: AtomicBool,
    /// How many times it was put on the disk.
    #[cfg(test)]
    syncs: std::sync::atomic::AtomicUsize,
}

impl Wal {
    /// Of the database in this file.
    pub(crate) fn of(database: &Path) -> Self {
        let mut path = database.as_os_str().to_owned();
        path.push("-wal");
        Self {
            log: Arc::new(Log {
                path: path.into(),
                failed: AtomicBool::new(false),
                #[cfg(test)]
                syncs: 0.into(),
            }),
            waiting: Together::default(),
        }
    }

    /// From here on the disk refuses.
    #[cfg(test)]
    pub(crate) fn refuse(&self) {
        self.log.failed.store(true, Ordering::Relaxed);
    }

    /// The same as [`Wal::sync`] on this thread, which waits.
    pub(crate) fn sync_here(&self) -> io::Result<()> {
        self.log.sync()
    }

    /// Returns when all that was committed before is on the disk.
    pub(crate) async fn sync(&self) -> Result<(), StoreError> {
        let all = |waiting: Vec<()>| {
            let log = Arc::clone(&self.log);
            async move {
                let done = tokio::task::spawn_blocking(move || log.sync()).await;
                let fault = match done {
                    Ok(Ok(())) => None,
                    Ok(Err(e)) => Some(e.to_string()),
                    Err(e) => Some(e.to_string()),
                };
                let answer = |()| match &fault {
                    None => Ok(()),
                    Some(fault) => Err(StoreError::NotOnDisk(fault.clone())),
                };
                waiting.into_iter().map(answer).collect()
            }
        };
        let answer = self.waiting.ask((), all).await;
        answer.unwrap_or_else(|| {
            Err(StoreError::NotOnDisk(
                "the wait for the disk was given up".to_owned(),
            ))
        })
    }
}

impl Log {
    fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        self.syncs.fetch_add(1, Ordering::Relaxed);
        if !self.failed.load(Ordering::Relaxed) {
            match on_disk(&self.path) {
                Ok(()) => return Ok(()),
                Err(e) => {
                    tracing::error!(path = %self.path.display(), error = %e, "the database's log can't be put on the disk");
                    self.failed.store(true, Ordering::Relaxed);
                }
            }
        }
        Err(io::Error::other(format!(
            "{} could not be put on the disk. See to the disk, then start the server anew",
            self.path.display()
        )))
    }
}

fn on_disk(path: &Path) -> io::Result<()> {
    // Opened each time: the file is another one when all connections were closed in between.
    match File::open(path) {
        Ok(file) => file.sync_data(),
        // Gone with the last connection, once all of it was in the database, and that on the disk.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use sqlx::Row as _;

    use super::*;
    use crate::Store;

    async fn store(folder: &tempfile::TempDir) -> Store {
        let url = format!("sqlite:{}", folder.path().join("x").display());
        let store = Store::connect(&url, 4).await.unwrap();
        store.migrate().await.unwrap();
        store
    }

    async fn note(tx: &mut crate::Tx) {
        let sql = "INSERT INTO leases (role, holder, epoch, acquired, expires) VALUES (hex(randomblob(9)), 'x', 1, 1, 1)";
        sqlx::query(sql).execute(tx.on()).await.unwrap();
    }

    #[tokio::test]
    async fn a_commit_waits_for_the_disk_unless_it_need_not_outlive_a_crash_of_the_machine() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        // From here on the disk refuses, of which only those hear who wait for it.
        store.wal.as_ref().unwrap().refuse();
        let mut repeatable = store.begin_repeatable().await.unwrap();
        note(&mut repeatable).await;
        repeatable.commit().await.unwrap();
        let mut durable = store.begin().await.unwrap();
        note(&mut durable).await;
        assert!(matches!(durable.commit().await, Err(StoreError::NotOnDisk(_))));
    }

    #[tokio::test]
    async fn those_who_wait_for_the_disk_keep_nobody_from_writing_and_wait_together() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let commits = (0..100).map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut tx = store.begin().await.unwrap();
                note(&mut tx).await;
                tx.commit().await.unwrap();
            })
        });
        futures::future::try_join_all(commits.collect::<Vec<_>>())
            .await
            .unwrap();
        let count = sqlx::query("SELECT COUNT(*) AS n FROM leases");
        let n: i64 = count.fetch_one(&store.pool).await.unwrap().try_get("n").unwrap();
        assert_eq!(n, 100);
        let syncs = store.wal.as_ref().unwrap().log.syncs.load(Ordering::Relaxed);
        assert!((1..100).contains(&syncs), "{syncs}");
    }

    #[tokio::test]
    async fn a_log_that_the_disk_refused_once_is_never_taken_to_be_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("x");
        let wal = Wal::of(&database);
        wal.sync().await.unwrap();
        // A symbolic link to itself is what no program can open.
        std::os::unix::fs::symlink(folder.path().join("x-wal"), folder.path().join("x-wal")).unwrap();
        assert!(matches!(wal.sync().await, Err(StoreError::NotOnDisk(_))));
        std::fs::remove_file(folder.path().join("x-wal")).unwrap();
        assert!(matches!(wal.sync().await, Err(StoreError::NotOnDisk(_))));
    }
}
