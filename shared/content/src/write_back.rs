//! Puts a growing file on the disk while it grows, so that its last sync has little left to wait for.

use std::{
    fs::File,
    io,
    thread::{self, JoinHandle},
};

/// Bytes after which the next sync begins, if the one before has ended.
const STEP: u64 = 16 * 1024 * 1024;

/// Syncs of one file, at most one at a time, each on a thread of its own. Dropped, one under way goes on.
#[derive(Debug, Default)]
pub struct WriteBack {
    /// Bytes that were there when the last sync began.
    from: u64,
    running: Option<JoinHandle<io::Result<()>>>,
}

impl WriteBack {
    /// To be called as the file grows to `size` bytes; returns at once.
    pub fn grown(&mut self, file: &File, size: u64) -> io::Result<()> {
        let under_way = self
            .running
            .as_ref()
            .is_some_and(|running| !running.is_finished());
        if under_way || size.saturating_sub(self.from) < STEP {
            return Ok(());
        }
        self.end()?;
        let file = file.try_clone()?;
        let thread = thread::Builder::new().name("write-back".to_owned());
        self.running = Some(thread.spawn(move || file.sync_data())?);
        self.from = size;
        Ok(())
    }

    /// Waits for the sync under way. The system tells a failure once, so none may be missed: the file's next sync
    /// would succeed.
    pub fn end(&mut self) -> io::Result<()> {
        let Some(running) = self.running.take() else {
            return Ok(());
        };
        running
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that syncs panicked")))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_sync_begins_with_each_step_and_its_failure_is_told() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"some").unwrap();
        let mut write_back = WriteBack::default();
        write_back.grown(&file, STEP - 1).unwrap();
        assert!(write_back.running.is_none(), "too early");
        write_back.grown(&file, STEP).unwrap();
        assert!(write_back.running.is_some());
        write_back.end().unwrap();
        write_back.grown(&file, STEP + 1).unwrap();
        assert!(write_back.running.is_none(), "too early again");

        // A pipe can't be synced.
        let (_reader, pipe) = io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(pipe));
        write_back.grown(&pipe, 2 * STEP).unwrap();
        assert!(write_back.end().is_err());
    }
}
