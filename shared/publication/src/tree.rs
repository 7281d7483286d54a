//! Making the two trees of a publication: from files alone, or from trees that hold most of it already.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsStr,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Mutex,
    thread::{self, ScopedJoinHandle},
};

use pulp_model::Digest;
use serde::Serialize;

use crate::{
    INDEX_FILE, PublicationError, Published,
    catalog::{Catalog, Entry, NewFiles, differences},
    each::each,
    fs::{self as disk, Unsynced},
    redirect,
};

type Result<T> = std::result::Result<T, PublicationError>;

/// The three files of a v1 image.
const IMAGE_FILES: [&str; 3] = ["ancestry", "json", "layer"];

/// Where the links of a tree come from.
pub(crate) struct Origin<'a> {
    /// What an old publication holds that lies at the place of the tree that is built, to be made into it.
    pub(crate) old: Option<&'a Catalog>,
    /// A publication to copy links from.
    pub(crate) base: Option<&'a Published>,
    /// Content that is in neither.
    pub(crate) files: &'a NewFiles,
}

impl<'a> Origin<'a> {
    pub(crate) const fn of_files(files: &'a NewFiles) -> Self {
        Self {
            old: None,
            base: None,
            files,
        }
    }
}

/// Builds both trees, durable. Their large files are written beside the links, and all is put on the disk together.
pub(crate) fn build(v1: &Path, v2: &Path, catalog: &Catalog, origin: &Origin<'_>) -> Result<()> {
    if origin.old.is_none() {
        make_directories(v1, &V1_DIRECTORIES)?;
        make_directories(v2, &V2_DIRECTORIES)?;
    }
    let redirect_file = format!("{}.json", catalog.index.repository);
    let mut unsynced = Unsynced::default();
    thread::scope(|scope| {
        let index = scope.spawn(|| write(&v2.join(INDEX_FILE), &catalog.index));
        let redirects = scope.spawn(|| {
            write(&v2.join(TAGS_LIST), &redirect::tags_list(catalog))?;
            write(&v2.join(&redirect_file), &redirect::v4_file(catalog))?;
            write(&v1.join(&redirect_file), &redirect::v1_file(catalog))
        });
        let links = link_v1(v1, catalog, origin, &mut unsynced)
            .and_then(|()| link_v2(v2, catalog, origin, &mut unsynced));
        // Nobody writes any more when this returns, whatever came of it.
        let (index, redirects) = (joined(index), joined(redirects));
        links.and(index).and(redirects)
    })?;
    for file in [INDEX_FILE, TAGS_LIST, &redirect_file] {
        unsynced.add(v2.join(file));
    }
    unsynced.add(v1.join(&redirect_file));
    for changed in [v1.to_owned(), v2.to_owned(), v2.join("tags")] {
        unsynced.add(changed);
    }
    unsynced.sync()
}

const TAGS_LIST: &str = "tags/list";

/// Made even for an empty repository, or the link to the v1 one would dangle.
const V1_DIRECTORIES: [&str; 2] = ["", "web"];
const V2_DIRECTORIES: [&str; 7] = [
    "",
    "blobs",
    "manifests",
    "manifests/1",
    "manifests/2",
    "manifests/list",
    "tags",
];

fn make_directories(tree: &Path, names: &[&str]) -> Result<()> {
    names
        .iter()
        .try_for_each(|name| disk::create_dir(&tree.join(name)))
}

fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    disk::replace(path, |file| Ok(serde_json::to_writer(file, value)?))
}

fn joined(thread: ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn link_v1(tree: &Path, catalog: &Catalog, origin: &Origin<'_>, unsynced: &mut Unsynced) -> Result<()> {
    let old = origin.old.map(Catalog::v1_content).unwrap_or_default();
    let links = Links::new(tree, origin.base.map(|b| b.v1.as_path()), origin.files);
    let (gone, come) = differences(old, catalog.v1_content());
    done(each(&gone, |entry| {
        disk::remove_tree(&links.place(entry)).map(drop)
    }))?;
    done(each(&come, |entry| links.make(entry)))?;
    for entry in &come {
        unsynced.add(links.place(entry));
    }
    if origin.old.is_none() || !gone.is_empty() || !come.is_empty() {
        unsynced.add(tree.join("web"));
    }
    Ok(())
}

fn link_v2(tree: &Path, catalog: &Catalog, origin: &Origin<'_>, unsynced: &mut Unsynced) -> Result<()> {
    let links = Links::new(tree, origin.base.map(|b| b.v2.as_path()), origin.files);
    let (old_content, old_tags) = match origin.old {
        Some(old) => (old.v2_content(), old.v2_tags()),
        None => (Vec::new(), Vec::new()),
    };
    let (gone, come) = differences(old_content, catalog.v2_content());
    let (gone_tags, come_tags) = differences(old_tags, catalog.v2_tags());
    done(each(&gone_tags, |entry| {
        disk::remove_file(&links.place(entry)).map(drop)
    }))?;
    done(each(&gone, |entry| {
        disk::remove_file(&links.place(entry)).map(drop)
    }))?;
    // Tags are links to what digests name, so those come first.
    done(each(&come, |entry| links.make(entry)))?;
    done(each(&come_tags, |entry| links.make(entry)))?;

    if origin.old.is_none() {
        for name in V2_DIRECTORIES {
            unsynced.add(tree.join(name));
        }
        return Ok(());
    }
    let changed = [&gone, &come, &gone_tags, &come_tags].into_iter().flatten();
    let directories: BTreeSet<&'static str> = changed.map(Entry::directory).collect();
    for name in directories {
        unsynced.add(tree.join(name));
    }
    Ok(())
}

/// Makes the links of one tree.
struct Links<'a> {
    tree: &'a Path,
    base: Option<&'a Path>,
    files: &'a NewFiles,
    /// Directories of content as given, and free of links: they are few, and looking through one costs a look at
    /// each directory above it.
    resolved: Mutex<HashMap<PathBuf, PathBuf>>,
}

impl<'a> Links<'a> {
    fn new(tree: &'a Path, base: Option<&'a Path>, files: &'a NewFiles) -> Self {
        Self {
            tree,
            base,
            files,
            resolved: Mutex::default(),
        }
    }

    fn place(&self, entry: &Entry<'_>) -> PathBuf {
        place(self.tree, entry)
    }

    fn make(&self, entry: &Entry<'_>) -> Result<()> {
        let place = self.place(entry);
        match entry {
            Entry::Image(id) => {
                disk::create_dir(&place)?;
                let files = self.files.images.get(*id);
                for name in IMAGE_FILES {
                    let file = files.map(|files| match name {
                        "ancestry" => &files.ancestry,
                        "json" => &files.json,
                        _ => &files.layer,
                    });
                    self.link(&place.join(name), entry, name, file.map(PathBuf::as_path))?;
                }
                Ok(())
            }
            Entry::Blob(digest) | Entry::Manifest(digest, _) => {
                self.link(&place, entry, "", self.file(digest))
            }
            Entry::Tag(_, folder, digest) => {
                let named = self.place(&Entry::Manifest(digest, folder));
                match disk::link_again(&named, &place) {
                    Ok(()) => Ok(()),
                    // As when one manifest has more tags than a file may have names.
                    Err(_) => disk::link(&disk::target_of(&named)?, &place),
                }
            }
        }
    }

    fn file(&self, digest: &Digest) -> Option<&Path> {
        self.files.by_digest.get(digest).map(PathBuf::as_path)
    }

    /// A link to `content`, or else the one that the base has; `name` below the entry's place.
    fn link(&self, link: &Path, entry: &Entry<'_>, name: &str, content: Option<&Path>) -> Result<()> {
        if let Some(content) = content {
            let parent = link.parent().unwrap_or(self.tree);
            return disk::link(&disk::link_target(parent, &self.resolved(content)?), link);
        }
        let Some(base) = self.base else {
            let source = std::io::Error::new(ErrorKind::NotFound, "nothing tells where its content is");
            return Err(PublicationError::io("make the link", link)(source));
        };
        // Trees lie at one depth, so a link to the same content is the same link.
        let mut there = place(base, entry);
        if !name.is_empty() {
            there.push(name);
        }
        match disk::link_again(&there, link) {
            Ok(()) => Ok(()),
            Err(_) => disk::link(&disk::target_of(&there)?, link),
        }
    }

    /// A content file by a path that is free of links down to the directory of its algorithm: what a relative link
    /// goes up from must be.
    fn resolved(&self, content: &Path) -> Result<PathBuf> {
        let mut parts: Vec<&OsStr> = content.iter().rev().take(2).collect();
        parts.reverse();
        let Some(above) = content.ancestors().nth(parts.len()) else {
            return Ok(content.to_owned());
        };
        let mut known = self
            .resolved
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let above = if let Some(known) = known.get(above) {
            known.clone()
        } else {
            let found = above
                .canonicalize()
                .map_err(PublicationError::io("find", above))?;
            known.insert(above.to_owned(), found.clone());
            found
        };
        Ok(above.join(parts.iter().collect::<PathBuf>()))
    }
}

fn place(tree: &Path, entry: &Entry<'_>) -> PathBuf {
    let directory = tree.join(entry.directory());
    match entry {
        Entry::Image(id) => directory.join(id.as_str()),
        Entry::Blob(digest) | Entry::Manifest(digest, _) => directory.join(digest.to_string()),
        Entry::Tag(name, ..) => directory.join(name),
    }
}

fn done(results: Vec<Result<()>>) -> Result<()> {
    results.into_iter().collect()
}
