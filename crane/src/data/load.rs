//! Loading: redirect and index files into tables, reading again only what changed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs::{self, File},
    io::{self, BufReader, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use pulp_model::RepositoryId;
use pulp_publication::{INDEX_FILE, Redirect, RedirectError, Root, index::IndexError, redirect::Content};
use tokio::sync::OnceCell;

use super::{
    Holdings,
    gather::IndexFile,
    scan::{self, FileState, Stamp},
    tables::{Tables, V1Repo, V2Content, V2Repo},
    v1_images::V1Images,
};
use crate::{CraneConfig, Mode};

/// Why a redirect file gives nothing.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Redirect(#[from] RedirectError),
    #[error("its {INDEX_FILE}: {0}")]
    Index(#[from] IndexError),
    #[error("its {INDEX_FILE} is of repository {0}")]
    OtherRepository(RepositoryId),
}

#[derive(Debug, Clone)]
enum Loaded {
    V1(Arc<V1Repo>),
    V2(Arc<V2Repo>),
}

#[derive(Debug)]
struct Entry {
    /// What was found last; none if not even that could be told.
    stamp: Option<Stamp>,
    /// What is served: the last good state of the file, with its time.
    good: Option<(FileState, Loaded)>,
}

/// Reads the data directory, again and again.
pub(crate) struct Loader {
    data_dir: PathBuf,
    content_v1: Option<PathBuf>,
    content_v2: Option<PathBuf>,
    entries: BTreeMap<PathBuf, Entry>,
    /// Device of the data directory when it last had something in it.
    device: Option<u64>,
    /// Lines said about the present state, each once.
    said: HashSet<String>,
    loaded_once: bool,
}

impl Loader {
    pub(crate) fn new(config: &CraneConfig) -> Self {
        let (content_v1, content_v2) = match &config.mode {
            Mode::Redirect => (None, None),
            Mode::Serve {
                content_dir_v1,
                content_dir_v2,
            } => (content_dir_v1.clone(), content_dir_v2.clone()),
        };
        Self {
            data_dir: config.data_dir.clone(),
            content_v1,
            content_v2,
            entries: BTreeMap::new(),
            device: None,
            said: HashSet::new(),
            loaded_once: false,
        }
    }

    /// Directories to watch for changes: those that hold redirect files or will, not the whole tree of content.
    /// Where one is not there yet, the nearest above it that is.
    pub(crate) fn watched(&self) -> BTreeSet<PathBuf> {
        let app_dirs = Root::new(&self.data_dir).app_dirs();
        if scan::is_publication_root(&self.data_dir) {
            return app_dirs.into();
        }
        let expected = app_dirs
            .iter()
            .filter_map(|dir| dir.ancestors().find(|dir| dir.is_dir()));
        let holding = self.entries.keys().filter_map(|path| path.parent());
        expected.chain(holding).map(Path::to_owned).collect()
    }

    /// Looks the directory through. New tables if something changed. If the directory can't be looked through,
    /// because it is gone or was unmounted, nothing changes: better old data than none.
    pub(crate) fn load(&mut self) -> Option<Arc<Tables>> {
        let mut said = HashSet::new();
        let tables = match self.look() {
            Ok(found) => self.take(found, &mut said),
            Err(error) => {
                self.say(
                    &mut said,
                    format!(
                        "can't read the data directory {}, its last good data stay: {error}",
                        self.data_dir.display()
                    ),
                );
                None
            }
        };
        self.said = said;
        tables
    }

    fn say(&self, said: &mut HashSet<String>, line: String) {
        if !self.said.contains(&line) && said.insert(line.clone()) {
            tracing::error!("{line}");
        }
        said.insert(line);
    }

    fn look(&mut self) -> io::Result<scan::Found> {
        let (v1, v2) = (self.content_v1.clone(), self.content_v2.clone());
        let had_layout = self
            .entries
            .keys()
            .any(|p| p.starts_with(self.data_dir.join("v2").join("app")));
        if had_layout && !scan::is_publication_root(&self.data_dir) {
            return Err(io::Error::other("its app directories are gone"));
        }
        let device = fs::metadata(&self.data_dir)?.dev();
        let found = scan::scan(&self.data_dir, |resolved| {
            decisive(resolved, v1.as_deref(), v2.as_deref())
        })?;
        if found.is_empty() && self.device.is_some_and(|before| before != device) {
            return Err(io::Error::other(
                "it is empty and on another file system than before",
            ));
        }
        if !found.is_empty() {
            self.device = Some(device);
        }
        Ok(found)
    }

    fn take(&mut self, found: scan::Found, said: &mut HashSet<String>) -> Option<Arc<Tables>> {
        let mut changed = !self.loaded_once;
        self.loaded_once = true;
        let mut entries = BTreeMap::new();
        let mut old = std::mem::take(&mut self.entries);
        for (path, stamp) in found {
            let before = old.remove(&path);
            let entry = match (before, stamp) {
                // Not changed. What was said about it still holds.
                (Some(before), Ok(stamp)) if before.stamp.as_ref() == Some(&stamp) => {
                    let prefix = line_prefix(&path);
                    said.extend(self.said.iter().filter(|l| l.starts_with(&prefix)).cloned());
                    before
                }
                (before, stamp) => {
                    changed = true;
                    let stamp_now = stamp.as_ref().ok().cloned();
                    let good = stamp.map_err(FileError::Io).and_then(|s| self.read(&path, s));
                    let good = match good {
                        Ok(good) => Some(good),
                        Err(error) => {
                            let good = before.and_then(|b| b.good);
                            let kept = if good.is_some() {
                                "; what it held before stays"
                            } else {
                                ""
                            };
                            self.say(said, format!("{}: {error}{kept}", line_prefix(&path)));
                            good
                        }
                    };
                    Entry {
                        stamp: stamp_now,
                        good,
                    }
                }
            };
            entries.insert(path, entry);
        }
        changed |= !old.is_empty();
        self.entries = entries;
        if !changed {
            let prefix = DUPLICATE;
            said.extend(self.said.iter().filter(|l| l.starts_with(prefix)).cloned());
            return None;
        }
        Some(Arc::new(self.tables(said)))
    }

    /// Reads one redirect file and what lies beside it. Its link may be switched and the old target removed while
    /// we read; then the new target is read.
    fn read(&self, path: &Path, mut stamp: Stamp) -> Result<(FileState, Loaded), FileError> {
        for _ in 0..3 {
            match self.read_resolved(&stamp.resolved) {
                Err(FileError::Io(e)) if e.kind() == io::ErrorKind::NotFound => {
                    let now = scan::stamp(path, |_| Vec::new())?;
                    if now.resolved == stamp.resolved {
                        return Err(e.into());
                    }
                    stamp = now;
                }
                other => return Ok((stamp.state, other?)),
            }
        }
        Err(io::Error::other("it changes faster than it can be read").into())
    }

    fn read_resolved(&self, file: &Path) -> Result<Loaded, FileError> {
        let bytes = fs::read(file)?;
        let dir = file.parent().unwrap_or(Path::new("/"));
        if let Some(head) = Redirect::parse_head_of_v2(&bytes)?
            && let Some(holdings) = indexed(dir, &head.repository)?
        {
            return Ok(Loaded::V2(Arc::new(V2Repo {
                registry_id: head.registry_id,
                repository: head.repository,
                url: head.url,
                protected: head.protected,
                content: V2Content::Indexed(Arc::new(holdings)),
            })));
        }
        let redirect = Redirect::parse(&bytes)?;
        match redirect.content {
            Content::V1 { images, tags } => {
                let beside = dir.join("web");
                let web = content_dir(self.content_v1.as_deref(), &redirect.repository)
                    .or_else(|| beside.is_dir().then_some(beside));
                Ok(Loaded::V1(Arc::new(V1Repo {
                    images: V1Images::new(images, &tags),
                    registry_id: redirect.registry_id,
                    repository: redirect.repository,
                    url: redirect.url,
                    protected: redirect.protected,
                    web,
                })))
            }
            Content::V2 | Content::V4(_) => {
                let content = V2Content::Legacy {
                    variants: match redirect.content {
                        Content::V4(variants) => Some(variants),
                        Content::V1 { .. } | Content::V2 => None,
                    },
                    dir: content_dir(self.content_v2.as_deref(), &redirect.repository)
                        .or_else(|| beside_v2(dir)),
                    holdings: OnceCell::new(),
                };
                Ok(Loaded::V2(Arc::new(V2Repo {
                    registry_id: redirect.registry_id,
                    repository: redirect.repository,
                    url: redirect.url,
                    protected: redirect.protected,
                    content,
                })))
            }
        }
    }

    /// Of two files with one id in one API the newer wins.
    fn tables(&self, said: &mut HashSet<String>) -> Tables {
        let (mut v1, mut v2) = (HashMap::new(), HashMap::new());
        for (path, entry) in &self.entries {
            let Some((state, loaded)) = &entry.good else {
                continue;
            };
            match loaded {
                Loaded::V1(repo) => self.insert(&mut v1, &repo.registry_id, (path, state, repo), said),
                Loaded::V2(repo) => self.insert(&mut v2, &repo.registry_id, (path, state, repo), said),
            }
        }
        Tables::new(without_origin(v1), without_origin(v2))
    }

    fn insert<'a, R>(
        &self,
        table: &mut HashMap<String, Origin<'a, R>>,
        id: &str,
        new: Origin<'a, R>,
        said: &mut HashSet<String>,
    ) {
        let Some(old) = table.get(id) else {
            table.insert(id.to_owned(), new);
            return;
        };
        let new_wins = (new.1.modified, new.0) > (old.1.modified, old.0);
        let (winner, loser) = if new_wins { (new.0, old.0) } else { (old.0, new.0) };
        self.say(
            said,
            format!(
                "{DUPLICATE} {id}: {} is newer and wins over {}",
                winner.display(),
                loser.display()
            ),
        );
        if new_wins {
            table.insert(id.to_owned(), new);
        }
    }
}

/// What the index file in a directory tells; none if there is no such file. Large ones are read piece by piece.
fn indexed(dir: &Path, repository: &str) -> Result<Option<Holdings>, FileError> {
    const LARGE: u64 = 32 << 20;
    let mut file = match File::open(dir.join(INDEX_FILE)) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let index = if file.metadata()?.len() > LARGE {
        IndexFile::read(BufReader::with_capacity(1 << 18, file))?
    } else {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        IndexFile::parse(&bytes)?
    };
    match index.repository {
        Some(other) if other.as_str() != repository => Err(FileError::OtherRepository(other)),
        _ => Ok(Some(Holdings::new(index.gathered, dir.to_owned()))),
    }
}

/// Where found, when made, what.
type Origin<'a, R> = (&'a Path, &'a FileState, &'a Arc<R>);

fn without_origin<R>(table: HashMap<String, Origin<'_, R>>) -> BTreeMap<String, Arc<R>> {
    table
        .into_iter()
        .map(|(id, (_, _, repo))| (id, Arc::clone(repo)))
        .collect()
}

const DUPLICATE: &str = "two redirect files for";

fn line_prefix(path: &Path) -> String {
    format!("skipping {}", path.display())
}

/// `<content dir>/<repository>`, links resolved, so that a switch under way never mixes two publications. The id
/// must name a folder right below.
fn content_dir(configured: Option<&Path>, repository: &str) -> Option<PathBuf> {
    let id: RepositoryId = repository.parse().ok()?;
    configured?
        .join(id.as_str())
        .canonicalize()
        .ok()
        .filter(|dir| dir.is_dir())
}

/// The old Pulp's v2 files lie beside the redirect file.
fn beside_v2(dir: &Path) -> Option<PathBuf> {
    let is_there = ["manifests", "blobs", "tags"]
        .iter()
        .any(|name| dir.join(name).is_dir());
    is_there.then(|| dir.to_owned())
}

/// What besides the redirect file decides what is loaded from it.
fn decisive(resolved: &Path, content_v1: Option<&Path>, content_v2: Option<&Path>) -> Vec<PathBuf> {
    let dir = resolved.parent().unwrap_or(Path::new("/"));
    let repository = resolved.file_stem().unwrap_or_default();
    let configured = [content_v1, content_v2]
        .into_iter()
        .flatten()
        .map(|c| c.join(repository));
    std::iter::once(dir.join(INDEX_FILE)).chain(configured).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn loader(dir: &Path) -> Loader {
        Loader::new(&CraneConfig {
            data_dir: dir.to_owned(),
            mode: Mode::Redirect,
            ..CraneConfig::default()
        })
    }

    fn redirect(id: &str) -> String {
        format!(r#"{{"version":2,"repository":"r","repo-registry-id":"{id}","url":"http://x/"}}"#)
    }

    #[test]
    fn a_bad_file_is_told_in_one_line_with_its_name_and_the_reason() {
        let dir = tempfile::TempDir::new().unwrap();
        let bad = dir.path().join("bad.json");
        fs::write(&bad, r#"{"version":2,"repository":"r","repo-registry-id":"x"}"#).unwrap();
        let mut loader = loader(dir.path());
        assert!(loader.load().is_some());
        let line = format!("skipping {}: key \"url\" is missing", bad.display());
        assert_eq!(loader.said, HashSet::from([line.clone()]));
        // Not changed: nothing new to tell, nothing to load.
        assert!(loader.load().is_none());
        assert_eq!(loader.said, HashSet::from([line]));
        fs::write(&bad, redirect("x")).unwrap();
        assert!(loader.load().is_some());
        assert!(loader.said.is_empty());
    }

    #[test]
    fn only_what_changed_is_read_again() {
        let dir = tempfile::TempDir::new().unwrap();
        for id in ["a", "b"] {
            fs::write(dir.path().join(format!("{id}.json")), redirect(id)).unwrap();
        }
        let mut loader = loader(dir.path());
        let before = loader.load().unwrap();
        fs::write(dir.path().join("b.json"), redirect("c")).unwrap();
        let after = loader.load().unwrap();
        assert!(Arc::ptr_eq(&before.v2["a"], &after.v2["a"]));
        assert!(after.v2.contains_key("c") && !after.v2.contains_key("b"));
    }

    #[test]
    fn two_files_for_one_id_are_told() {
        let dir = tempfile::TempDir::new().unwrap();
        for name in ["a.json", "b.json"] {
            fs::write(dir.path().join(name), redirect("same")).unwrap();
        }
        let mut loader = loader(dir.path());
        assert_eq!(loader.load().unwrap().v2.len(), 1);
        let said: Vec<&String> = loader.said.iter().collect();
        assert!(
            matches!(said.as_slice(), [line] if line.starts_with("two redirect files for same: ")),
            "{said:?}"
        );
    }

    #[test]
    fn a_directory_that_is_not_there_is_watched_for_from_above() {
        let dir = tempfile::TempDir::new().unwrap();
        let published = dir.path().join("published").join("docker");
        let loader = loader(&published);
        assert_eq!(loader.watched(), [dir.path().to_owned()].into());
        fs::create_dir_all(published.join("v2")).unwrap();
        assert_eq!(loader.watched(), [published.clone(), published.join("v2")].into());
        Root::new(&published).prepare().unwrap();
        assert_eq!(
            loader.watched(),
            [published.join("app"), published.join("v2/app")].into()
        );
    }
}
