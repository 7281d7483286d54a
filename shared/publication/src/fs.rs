//! File operations. What they made lasts once it is synced, which for much of it is done at once.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{BufWriter, ErrorKind, Write},
    os::unix::fs::symlink,
    path::{Component, Path, PathBuf},
    time::SystemTime,
};

use crate::{PublicationError, each::at_once};

type Result<T> = std::result::Result<T, PublicationError>;

/// Makes a directory and those above it, and makes them durable.
pub(crate) fn create_dir_all(path: &Path) -> Result<()> {
    let made: Vec<&Path> = path
        .ancestors()
        .take_while(|p| !p.as_os_str().is_empty() && !p.exists())
        .collect();
    fs::create_dir_all(path).map_err(PublicationError::io("create the directory", path))?;
    for parent in made.into_iter().rev().filter_map(Path::parent) {
        let parent = if parent.as_os_str().is_empty() {
            Path::new(".")
        } else {
            parent
        };
        sync(parent)?;
    }
    Ok(())
}

/// Makes a directory in one that will be synced when all is in it.
pub(crate) fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir(path).map_err(PublicationError::io("create the directory", path))
}

/// Makes the entries of a directory durable, or the content of a file.
pub(crate) fn sync(path: &Path) -> Result<()> {
    let sync = || File::open(path)?.sync_all();
    sync().map_err(PublicationError::io("sync", path))
}

/// What was made and is not on the disk yet.
#[derive(Debug, Default)]
pub(crate) struct Unsynced(Vec<PathBuf>);

impl Unsynced {
    pub(crate) fn add(&mut self, path: impl Into<PathBuf>) {
        self.0.push(path.into());
    }

    /// Puts all of it on the disk. Syncs that wait at the same time wait for the same write of the volume's journal;
    /// where they would be many, all that is on the volume is synced by one.
    pub(crate) fn sync(mut self) -> Result<()> {
        const MANY: usize = 32;
        self.0.sort_unstable();
        self.0.dedup();
        match self.0.last() {
            Some(last) if self.0.len() > MANY => {
                let sync = || Ok(rustix::fs::syncfs(File::open(last)?)?);
                sync().map_err(PublicationError::io("sync the volume of", last))
            }
            _ => at_once(&self.0, &|path: &PathBuf| sync(path))
                .into_iter()
                .collect(),
        }
    }
}

/// Sets when a directory was last changed.
pub(crate) fn set_modified(path: &Path, time: SystemTime) -> Result<()> {
    let set = || File::open(path)?.set_modified(time);
    set().map_err(PublicationError::io("set the time of", path))
}

pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(PublicationError::io("rename", from))
}

/// Renames what may be gone already; tells whether it was there.
pub(crate) fn rename_if_there(from: &Path, to: &Path) -> Result<bool> {
    match fs::rename(from, to) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(PublicationError::io("rename", from)(e)),
    }
}

/// Writes a file anew, whatever of that name is there. An open one is not touched. It is to be synced.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    const BUFFER: usize = 256 * 1024;
    remove_file(path)?;
    let written = || {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        let mut file = BufWriter::with_capacity(BUFFER, file);
        write(&mut file)?;
        file.flush()
    };
    written().map_err(PublicationError::io("write the file", path))
}

pub(crate) fn link(target: &Path, link: &Path) -> Result<()> {
    symlink(target, link).map_err(PublicationError::io("make the link", link))
}

/// Gives a link another name: no new file, no new block on the disk. Not every volume can.
pub(crate) fn link_again(link: &Path, name: &Path) -> std::io::Result<()> {
    // The link itself, not what it leads to.
    fs::hard_link(link, name)
}

/// Where a link leads, as it stands there.
pub(crate) fn target_of(link: &Path) -> Result<PathBuf> {
    fs::read_link(link).map_err(PublicationError::io("read the link", link))
}

/// Points `link` at `target`, at once: readers see the old link or the new one.
pub(crate) fn switch_link(target: &Path, link: &Path, temporary: &Path) -> Result<()> {
    remove_file(temporary)?;
    self::link(target, temporary)?;
    fs::rename(temporary, link).map_err(PublicationError::io("rename over the link", link))
}

/// Removes a file or link; fine if there is none.
pub(crate) fn remove_file(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(PublicationError::io("remove", path)(e)),
    }
}

/// Removes a directory and all below it, links as such; fine if there is none.
pub(crate) fn remove_tree(path: &Path) -> Result<bool> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(PublicationError::io("remove the directory", path)(e)),
    }
}

/// Names in a directory; none if there is no such directory.
pub(crate) fn names(path: &Path) -> Result<Vec<OsString>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(PublicationError::io("list", path)(e)),
    };
    let names: std::io::Result<Vec<OsString>> = entries.map(|e| e.map(|e| e.file_name())).collect();
    names.map_err(PublicationError::io("list", path))
}

/// The target for a link that lies in `dir`: relative if the two paths have a directory in common (so that the
/// whole can be moved or mounted elsewhere), else `target` as it is. Both paths absolute and free of links.
pub(crate) fn link_target(dir: &Path, target: &Path) -> PathBuf {
    let common = dir
        .components()
        .zip(target.components())
        .take_while(|(a, b)| a == b)
        .count();
    let shares_a_directory = dir
        .components()
        .take(common)
        .any(|c| matches!(c, Component::Normal(_)));
    if !shares_a_directory {
        return target.to_owned();
    }
    let up = dir.components().skip(common).map(|_| Component::ParentDir);
    up.chain(target.components().skip(common)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_relative_where_the_paths_share_a_directory() {
        for (dir, target, expected) in [
            ("/a/published/master", "/a/content/x", "../../content/x"),
            ("/a/b", "/a/b/x", "x"),
            ("/srv/published", "/mnt/content/x", "/mnt/content/x"),
        ] {
            assert_eq!(
                link_target(Path::new(dir), Path::new(target)),
                Path::new(expected),
                "{dir} {target}"
            );
        }
    }
}
