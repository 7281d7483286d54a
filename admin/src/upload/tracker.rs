//! Tracker files: what we know of an upload, kept so that another run can go on with it.
//!
//! One JSON file an upload, named by its id, in `~/.pulp/uploads/default`. A lock on a file beside it tells
//! whether some process works on the upload right now; the kernel drops it with the process, however that
//! ends, so a killed upload is simply a paused one.

use std::{
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{error::AdminError, session::write_private};

/// One upload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tracker {
    /// The server's id of the upload.
    pub(crate) upload_id: String,
    /// Its path on the server.
    #[serde(default)]
    pub(crate) location: Option<String>,
    /// The server's address.
    pub(crate) server: String,
    /// The repository that will take it.
    pub(crate) repo_id: String,
    /// The file; none for an upload without bytes (a tag).
    pub(crate) source: Option<Source>,
    /// Bytes sent and acknowledged.
    pub(crate) offset: u64,
    /// Whether all bytes are there.
    pub(crate) is_finished_uploading: bool,
    /// The importing task, once it is queued.
    #[serde(default)]
    pub(crate) import_task_id: Option<String>,
    pub(crate) unit_type_id: String,
    pub(crate) unit_key: Map<String, Value>,
    pub(crate) unit_metadata: Map<String, Value>,
    pub(crate) override_config: Map<String, Value>,
}

/// A local file as it was when its upload began. Bytes of two files must never be mixed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Source {
    /// Absolute.
    pub(crate) path: PathBuf,
    /// Bytes.
    pub(crate) size: u64,
    /// Microseconds since 1970.
    pub(crate) modified: u64,
}

impl Source {
    /// Looks at the file.
    pub(crate) fn of(path: &Path) -> Result<Self, AdminError> {
        let inspect = || -> io::Result<Self> {
            let metadata = std::fs::metadata(path)?;
            let modified = metadata
                .modified()?
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            Ok(Self {
                path: std::path::absolute(path)?,
                size: metadata.len(),
                modified: u64::try_from(modified.as_micros()).unwrap_or(u64::MAX),
            })
        };
        inspect().map_err(AdminError::file(path))
    }

    /// The name without its folders.
    pub(crate) fn name(&self) -> String {
        self.path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }

    /// Refuses a file that is not the one the upload began with.
    pub(crate) fn check_unchanged(&self) -> Result<(), AdminError> {
        if &Self::of(&self.path)? == self {
            Ok(())
        } else {
            Err(AdminError::Data(format!(
                "{} has changed since its upload began; cancel that upload and begin anew",
                self.path.display()
            )))
        }
    }
}

impl Tracker {
    /// The file's name for people.
    pub(crate) fn name(&self) -> String {
        self.source
            .as_ref()
            .map_or_else(|| self.unit_type_id.clone(), Source::name)
    }

    /// Bytes that the upload will have.
    pub(crate) fn size(&self) -> u64 {
        self.source.as_ref().map_or(0, |source| source.size)
    }
}

/// The folder of the trackers.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    folder: PathBuf,
}

/// While it lives no other process works on the upload.
#[derive(Debug)]
pub(crate) struct Held {
    _file: File,
}

impl Store {
    /// Creates the folder (0700) if it is not there.
    pub(crate) fn open(folder: &Path) -> Result<Self, AdminError> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(AdminError::file(folder))?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// Saves a tracker as a whole. `durable`: it outlives a power cut.
    pub(crate) fn save(&self, tracker: &Tracker, durable: bool) -> Result<(), AdminError> {
        let path = self.path(&tracker.upload_id)?;
        let bytes = serde_json::to_vec_pretty(tracker)
            .map_err(|e| AdminError::Data(format!("the upload's tracker can't be saved: {e}")))?;
        write_private(&path, &bytes, durable)
    }

    /// All trackers, the oldest upload first; a damaged one is told by its path.
    pub(crate) fn all(&self) -> Result<(Vec<Tracker>, Vec<PathBuf>), AdminError> {
        let (mut trackers, mut damaged) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(&self.folder).map_err(AdminError::file(&self.folder))? {
            let path = entry.map_err(AdminError::file(&self.folder))?.path();
            let hidden = path
                .file_name()
                .is_none_or(|name| name.to_string_lossy().starts_with('.'));
            if hidden || !path.is_file() {
                continue;
            }
            let bytes = std::fs::read(&path).map_err(AdminError::file(&path))?;
            match serde_json::from_slice(&bytes) {
                Ok(tracker) => trackers.push(tracker),
                Err(_) => damaged.push(path),
            }
        }
        trackers.sort_by(|a: &Tracker, b| a.upload_id.cmp(&b.upload_id));
        Ok((trackers, damaged))
    }

    /// Takes the upload for this process; none if another one has it.
    pub(crate) fn hold(&self, upload_id: &str) -> Result<Option<Held>, AdminError> {
        let path = self.lock_path(upload_id)?;
        let file = File::create(&path).map_err(AdminError::file(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Held { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(AdminError::File { path, source }),
        }
    }

    /// Whether another process works on it.
    pub(crate) fn is_held(&self, upload_id: &str) -> Result<bool, AdminError> {
        let path = self.lock_path(upload_id)?;
        match File::open(&path) {
            Ok(file) => Ok(matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(AdminError::File { path, source }),
        }
    }

    /// Forgets an upload.
    pub(crate) fn remove(&self, upload_id: &str) -> Result<(), AdminError> {
        for path in [self.path(upload_id)?, self.lock_path(upload_id)?] {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(AdminError::File { path, source: e });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn path(&self, upload_id: &str) -> Result<PathBuf, AdminError> {
        Ok(self.folder.join(checked(upload_id)?))
    }

    fn lock_path(&self, upload_id: &str) -> Result<PathBuf, AdminError> {
        Ok(self.folder.join(format!(".{}.lock", checked(upload_id)?)))
    }
}

/// The id names a file: one from the server or the command line must not lead elsewhere.
fn checked(upload_id: &str) -> Result<&str, AdminError> {
    let fine = !upload_id.is_empty()
        && upload_id.len() <= 100
        && upload_id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if fine {
        Ok(upload_id)
    } else {
        Err(AdminError::Data(format!("{upload_id:?} is no upload id")))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn tracker(id: &str) -> Tracker {
        Tracker {
            upload_id: id.to_owned(),
            location: None,
            server: "http://h/".to_owned(),
            repo_id: "busybox".to_owned(),
            source: Some(Source {
                path: "/tmp/busybox.tar".into(),
                size: 10,
                modified: 1,
            }),
            offset: 0,
            is_finished_uploading: false,
            import_task_id: None,
            unit_type_id: "docker_image".to_owned(),
            unit_key: Map::new(),
            unit_metadata: Map::new(),
            override_config: Map::new(),
        }
    }

    #[test]
    fn a_tracker_is_private_json_and_comes_back() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("uploads/default");
        let store = Store::open(&folder).unwrap();
        let mut one = tracker("id-1");
        store.save(&one, true).unwrap();
        one.offset = 7;
        store.save(&one, false).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(mode(&folder.join("id-1")), 0o600);
        assert_eq!(store.all().unwrap(), (vec![one], vec![]));
        let json: Value = serde_json::from_slice(&std::fs::read(folder.join("id-1")).unwrap()).unwrap();
        assert_eq!(json["offset"], 7);
        assert_eq!(
            std::fs::read_dir(&folder).unwrap().count(),
            1,
            "no temporary file is left"
        );
    }

    #[test]
    fn a_damaged_tracker_is_told_and_does_not_hide_the_others() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        store.save(&tracker("b"), true).unwrap();
        std::fs::write(home.path().join("a"), "{").unwrap();
        let (trackers, damaged) = store.all().unwrap();
        assert_eq!((trackers.len(), damaged), (1, vec![home.path().join("a")]));
    }

    #[test]
    fn one_process_at_a_time_holds_an_upload() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        assert!(!store.is_held("x").unwrap());
        let held = store.hold("x").unwrap();
        assert!(held.is_some());
        assert!(store.is_held("x").unwrap());
        assert!(store.hold("x").unwrap().is_none());
        drop(held);
        assert!(
            !store.is_held("x").unwrap(),
            "what a killed process leaves behind is free"
        );
        assert!(store.hold("x").unwrap().is_some());
    }

    #[test]
    fn an_id_can_not_name_a_file_elsewhere() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        for bad in ["", "../x", "a/b", ".x"] {
            assert!(store.remove(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_file_that_changed_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("f");
        std::fs::write(&path, "one").unwrap();
        let source = Source::of(&path).unwrap();
        source.check_unchanged().unwrap();
        std::fs::write(&path, "three").unwrap();
        assert!(
            source
                .check_unchanged()
                .unwrap_err()
                .to_string()
                .contains("has changed")
        );
    }
}
