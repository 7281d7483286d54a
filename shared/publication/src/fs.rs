//! File operations that last: what they made is on disk when they return.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write as _},
    os::unix::fs::symlink,
    path::{Component, Path, PathBuf},
    time::SystemTime,
};

use crate::PublicationError;

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
        sync_dir(parent)?;
    }
    Ok(())
}

/// Makes a directory in one that will be synced when all is in it.
pub(crate) fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir(path).map_err(PublicationError::io("create the directory", path))
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    let sync = || File::open(path)?.sync_all();
    sync().map_err(PublicationError::io("sync the directory", path))
}

/// Makes the entries of some directories durable. Where they are many, all that is on their volume is: that is one
/// wait instead of many.
pub(crate) fn sync_dirs(paths: &[PathBuf]) -> Result<()> {
    const MANY: usize = 16;
    match paths.last() {
        Some(last) if paths.len() > MANY => {
            let sync = || Ok(rustix::fs::syncfs(File::open(last)?)?);
            sync().map_err(PublicationError::io("sync the volume of", last))
        }
        _ => paths.iter().try_for_each(|path| sync_dir(path)),
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

/// Writes a file anew, whatever of that name is there, and syncs it. An open one is not touched.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    remove_file(path)?;
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(PublicationError::io("write the file", path))
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
