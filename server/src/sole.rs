//! A standalone server's data directory belongs to one process.
//!
//! Whoever has it knows that all who had it before are gone, and need not wait for their leases to end.

use std::{
    fs::{self, File, TryLockError},
    path::Path,
};

use anyhow::Context as _;

/// Below the data directory.
const FILE: &str = "standalone.lock";

/// The data directory, as long as this lives; the system gives it back when the process dies.
#[derive(Debug)]
pub(crate) struct SoleUse {
    _file: File,
}

impl SoleUse {
    /// Takes the directory, and makes it if it is not there. None if its file system knows no locks: then nobody can
    /// tell whether there is another.
    pub(crate) fn of(data_dir: &Path) -> anyhow::Result<Option<Self>> {
        fs::create_dir_all(data_dir)
            .with_context(|| format!("can't make the data directory {}", data_dir.display()))?;
        let path = data_dir.join(FILE);
        let file = File::create(&path).with_context(|| format!("can't write {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => anyhow::bail!(
                "another pulp standalone has the data directory {}; end that one first, or give --data-dir",
                data_dir.display()
            ),
            Err(TryLockError::Error(error)) => {
                tracing::warn!(path = %path.display(), %error, "can't lock the data directory; see that nothing else uses it");
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_data_directory_is_one_processs_until_that_ends() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("new");
        let first = SoleUse::of(&dir).unwrap();
        assert!(first.is_some());
        let refused = SoleUse::of(&dir).unwrap_err().to_string();
        assert!(refused.contains("another pulp standalone"), "{refused}");
        drop(first);
        assert!(SoleUse::of(&dir).unwrap().is_some());
    }
}
