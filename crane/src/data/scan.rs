//! Finding redirect files, and telling whether one has changed.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use pulp_publication::Root;

/// What identifies the state of a redirect file. Equal stamps, equal content, whatever the clocks do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The file with all links resolved. It lies in its publication's own directory.
    pub(crate) resolved: PathBuf,
    /// Of the file.
    pub(crate) state: FileState,
    /// Of what else decides, such as the directory of the content.
    pub(crate) others: Vec<Option<FileState>>,
}

/// Identity and change times of a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileState {
    /// Seconds and nanoseconds.
    pub(crate) modified: (i64, i64),
    changed: (i64, i64),
    inode: (u64, u64),
    size: u64,
}

impl FileState {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        Ok(Self {
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            inode: (meta.dev(), meta.ino()),
            size: meta.len(),
        })
    }
}

/// The redirect files found, by where they were found. A dangling or unreadable one has its error.
pub(crate) type Found = BTreeMap<PathBuf, io::Result<Stamp>>;

/// Whether `data_dir` is a publish directory of ours, so that only its two `app` directories hold redirect files.
pub(crate) fn is_publication_root(data_dir: &Path) -> bool {
    Root::new(data_dir).app_dirs().iter().all(|dir| dir.is_dir())
}

/// Finds the redirect files. An error means that the directory could not be looked through; nothing is known then.
pub(crate) fn scan(data_dir: &Path, also: impl Fn(&Path) -> Vec<PathBuf>) -> io::Result<Found> {
    let mut paths = Vec::new();
    if is_publication_root(data_dir) {
        for dir in Root::new(data_dir).app_dirs() {
            paths.extend(list(&dir)?.into_iter().filter(|p| is_redirect_name(p)));
        }
    } else {
        walk(data_dir, &mut HashSet::new(), &mut paths)?;
    }
    let mut found = Found::new();
    let mut seen = HashSet::new();
    for path in paths {
        let stamp = stamp(&path, &also);
        // A link and the file it leads to, both below the data directory, are one.
        let fresh = stamp.as_ref().map_or(true, |s| seen.insert(s.resolved.clone()));
        if fresh {
            found.insert(path, stamp);
        }
    }
    Ok(found)
}

pub(crate) fn stamp(path: &Path, also: impl Fn(&Path) -> Vec<PathBuf>) -> io::Result<Stamp> {
    let resolved = path.canonicalize()?;
    let state = FileState::of(&resolved)?;
    let others = also(&resolved).iter().map(|p| FileState::of(p).ok()).collect();
    Ok(Stamp {
        resolved,
        state,
        others,
    })
}

fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries: io::Result<Vec<PathBuf>> = fs::read_dir(dir)?.map(|e| e.map(|e| e.path())).collect();
    let mut entries = entries?;
    entries.sort();
    Ok(entries)
}

/// As the original: any name that ends in `.json`, in lower case.
fn is_redirect_name(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|n| n.as_encoded_bytes().ends_with(b".json"))
}

/// All redirect files below `dir`, links to directories followed, each directory entered once.
fn walk(dir: &Path, entered: &mut HashSet<(u64, u64)>, paths: &mut Vec<PathBuf>) -> io::Result<()> {
    let meta = fs::metadata(dir)?;
    if !entered.insert((meta.dev(), meta.ino())) {
        return Ok(());
    }
    for path in list(dir)? {
        if path.is_dir() {
            match walk(&path, entered, paths) {
                // Removed while we looked: an old publication that was replaced.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        } else if is_redirect_name(&path) {
            paths.push(path);
        }
    }
    Ok(())
}
