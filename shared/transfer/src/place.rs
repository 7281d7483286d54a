//! Where an import may read.

use std::path::{Component, Path, PathBuf};

use crate::TransferError;

/// The directory `given` below `folder`, links resolved; refused if it leads out of it or is none.
pub fn import_path(folder: &Path, given: &str) -> Result<PathBuf, TransferError> {
    let refused = |reason: String| TransferError::ImportPath {
        path: given.chars().take(500).collect(),
        reason,
    };
    let below = Path::new(given);
    let plain = below
        .components()
        .all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if given.is_empty() || !plain || given.contains('\0') {
        return Err(refused(format!(
            "give the path of a directory below {}, without '..'",
            folder.display()
        )));
    }
    let folder = folder.canonicalize().map_err(|e| {
        refused(format!(
            "the folder of imports, {} (transfer.import_dir), can't be used: {e}",
            folder.display()
        ))
    })?;
    let path = folder
        .join(below)
        .canonicalize()
        .map_err(|e| refused(format!("below {}: {e}", folder.display())))?;
    if !path.starts_with(&folder) {
        return Err(refused(format!("it leads out of {}", folder.display())));
    }
    if !path.is_dir() {
        return Err(refused("it is no directory".to_owned()));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_path_that_leaves_the_folder_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("import");
        std::fs::create_dir_all(folder.join("one/two")).unwrap();
        std::fs::create_dir(directory.path().join("outside")).unwrap();
        std::fs::write(folder.join("file"), "").unwrap();
        std::os::unix::fs::symlink("../outside", folder.join("link")).unwrap();
        let real = folder.canonicalize().unwrap();
        assert_eq!(import_path(&folder, "one/two").unwrap(), real.join("one/two"));
        assert_eq!(import_path(&folder, "./one/").unwrap(), real.join("one"));
        for bad in ["", "..", "one/../..", "/etc", "link", "file", "absent", "a\0b"] {
            assert!(import_path(&folder, bad).is_err(), "{bad:?}");
        }
    }
}
