//! Waits until files and names are on the disk; many that wait at once do so together.
//!
//! A file's own sync writes that file and the journal. Of hundreds of small blobs at once each would wait for a write of
//! its own, which on a disk with few operations a second is most of the time that a sync or an import takes. So where
//! many wait, one call puts all of the file system on the disk (syncfs(2), which tells of failures since Linux 5.8),
//! and those that come meanwhile share the next one.

use std::{
    fs::File,
    io,
    path::Path,
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// From so many on they wait together. Fewer are as fast each by itself, and wait for nobody else's files.
const MANY: usize = 8;

/// The file system below a directory.
#[derive(Debug)]
pub(crate) struct Disk {
    /// Open since before anything was written through this, so that it is told of every failure.
    root: File,
    waiting: AtomicUsize,
    rounds: Mutex<Rounds>,
    ended: Condvar,
}

/// Rounds are numbered; each begins after the one before it has ended.
#[derive(Debug, Default)]
struct Rounds {
    begun: u64,
    ended: u64,
    /// The last one that failed; 0 if none did.
    failed: u64,
}

impl Disk {
    pub(crate) fn of(root: &Path) -> io::Result<Self> {
        Ok(Self {
            root: File::open(root)?,
            waiting: AtomicUsize::new(0),
            rounds: Mutex::default(),
            ended: Condvar::new(),
        })
    }

    /// Returns when what was written to a file, or the names in a directory, are on the disk.
    pub(crate) fn sync(&self, file: &File) -> io::Result<()> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let result = if before < MANY || !self.together() {
            // After a failed round too: each file's own sync says whether that one is lost.
            file.sync_all()
        } else {
            Ok(())
        };
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        result
    }

    /// Takes part in the next round; false if that may have failed.
    fn together(&self) -> bool {
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is under way may have passed by what we wait for.
        let ours = rounds.begun + 1;
        while rounds.ended < ours {
            if rounds.begun == rounds.ended {
                rounds.begun += 1;
                let round = rounds.begun;
                drop(rounds);
                let done = rustix::fs::syncfs(&self.root);
                rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
                rounds.ended = round;
                if let Err(error) = done {
                    tracing::warn!(%error, "the file system can't be synced as a whole");
                    rounds.failed = round;
                }
                self.ended.notify_all();
            } else {
                rounds = self.ended.wait(rounds).unwrap_or_else(PoisonError::into_inner);
            }
        }
        // A later one may have failed since, which costs us a sync of our own.
        rounds.failed < ours
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{io::Write as _, sync::Barrier, thread};

    use super::*;

    #[test]
    fn few_sync_each_by_itself() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::of(folder.path()).unwrap();
        for n in 0..20 {
            let mut file = File::create(folder.path().join(n.to_string())).unwrap();
            file.write_all(b"some").unwrap();
            disk.sync(&file).unwrap();
        }
        assert_eq!(disk.rounds.lock().unwrap().begun, 0);
    }

    #[test]
    fn many_that_wait_at_once_share_rounds_and_none_is_left_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::of(folder.path()).unwrap();
        let begin = Barrier::new(64);
        thread::scope(|scope| {
            for n in 0..64 {
                let (disk, begin, path) = (&disk, &begin, folder.path().join(n.to_string()));
                scope.spawn(move || {
                    let mut file = File::create(path).unwrap();
                    file.write_all(&[b'x'; 4096]).unwrap();
                    begin.wait();
                    disk.sync(&file).unwrap();
                });
            }
        });
        let rounds = disk.rounds.lock().unwrap();
        assert_eq!(
            (rounds.begun, disk.waiting.load(Ordering::Relaxed)),
            (rounds.ended, 0)
        );
        assert!(rounds.begun < 56, "{}", rounds.begun);
    }
}
