//! A clock for each process, by libfaketime: its wall clock can be set while it runs, its monotonic one goes on, as when
//! somebody sets a machine's time.

use std::path::{Path, PathBuf};

use anyhow::Result;

/// The clocks of all processes.
pub(crate) struct Clocks {
    /// None: the library is not installed, and every clock is right.
    library: Option<PathBuf>,
    folder: tempfile::TempDir,
}

impl Clocks {
    pub(crate) fn new() -> Result<Self> {
        let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        let library = folders
            .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"))
            .chain([PathBuf::from("/usr/lib/faketime/libfaketimeMT.so.1")])
            .find(|path| path.is_file());
        Ok(Self {
            library,
            folder: tempfile::tempdir()?,
        })
    }

    pub(crate) fn can_be_set(&self) -> bool {
        self.library.is_some()
    }

    /// Variables by which a process looks at its own clock.
    pub(crate) fn env(&self, node: &str) -> Result<Vec<(String, String)>> {
        let Some(library) = &self.library else {
            return Ok(Vec::new());
        };
        self.set(node, 0)?;
        let word = |path: &Path| path.display().to_string();
        Ok([
            ("LD_PRELOAD", word(library)),
            ("FAKETIME_TIMESTAMP_FILE", word(&self.file(node))),
            // Looked at once a second.
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into())
    }

    /// Puts the clock of a process `seconds` before or behind the right time.
    pub(crate) fn set(&self, node: &str, seconds: i64) -> Result<()> {
        // In one piece: the process may be reading it.
        let fresh = self.folder.path().join(format!("{node}.new"));
        std::fs::write(&fresh, format!("{seconds:+}\n"))?;
        Ok(std::fs::rename(fresh, self.file(node))?)
    }

    fn file(&self, node: &str) -> PathBuf {
        self.folder.path().join(node)
    }
}
