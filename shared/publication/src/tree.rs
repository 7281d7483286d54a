//! Making the two trees of a publication: from files alone, or from trees that hold most of it already.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsStr,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Mutex,
};

use pulp_model::Digest;

use crate::{
    INDEX_FILE, PublicationError, Published,
    catalog::{Catalog, Entry, NewFiles, differences},
    each::each,
    fs as disk, redirect,
};

type Result<T> = std::result::Result<T, PublicationError>;

/// The three files of a v1 image.
const IMAGE_FILES: [&str; 3] = ["ancestry", "json", "layer"];

/// Where the links of a tree come from.
pub(crate) struct Origin<'a> {
    /// An old publication that lies at the place of the tree that is built, to be made into it.
    pub(crate) old: Option<&'a Published>,
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

/// Builds both trees, durable.
pub(crate) fn build(v1: &Path, v2: &Path, catalog: &Catalog, origin: &Origin<'_>) -> Result<()> {
    build_v1(v1, catalog, origin)?;
    build_v2(v2, catalog, origin)
}

fn build_v1(tree: &Path, catalog: &Catalog, origin: &Origin<'_>) -> Result<()> {
    let old = origin.old.map(|old| old.catalog.v1_content()).unwrap_or_default();
    let links = Links::new(tree, origin.base.map(|b| b.v1.as_path()), origin.files);
    let web = tree.join("web");
    if origin.old.is_none() {
        disk::create_dir(tree)?;
        // Made even for an empty repository, or the link to it would dangle.
        disk::create_dir(&web)?;
    }
    let (gone, come) = differences(old, catalog.v1_content());
    done(each(&gone, |entry| {
        disk::remove_tree(&links.place(entry)).map(drop)
    }))?;
    done(each(&come, |entry| links.make(entry)))?;
    let file = format!("{}.json", catalog.index.repository);
    disk::replace(&tree.join(file), &json(tree, redirect::v1_file(catalog))?)?;

    let mut dirs: Vec<PathBuf> = come.iter().map(|entry| links.place(entry)).collect();
    dirs.extend([web, tree.to_owned()]);
    disk::sync_dirs(&dirs)
}

fn build_v2(tree: &Path, catalog: &Catalog, origin: &Origin<'_>) -> Result<()> {
    let links = Links::new(tree, origin.base.map(|b| b.v2.as_path()), origin.files);
    let subdirectories = [
        "blobs",
        "manifests",
        "manifests/1",
        "manifests/2",
        "manifests/list",
        "tags",
    ];
    if origin.old.is_none() {
        disk::create_dir(tree)?;
        for name in subdirectories {
            disk::create_dir(&tree.join(name))?;
        }
    }
    let (old_content, old_tags) = match origin.old {
        Some(old) => (old.catalog.v2_content(), old.catalog.v2_tags()),
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

    let file = format!("{}.json", catalog.index.repository);
    disk::replace(
        &tree.join("tags/list"),
        &json(tree, redirect::tags_list(catalog))?,
    )?;
    disk::replace(
        &tree.join(INDEX_FILE),
        &json(tree, serde_json::to_vec(&catalog.index))?,
    )?;
    disk::replace(&tree.join(file), &json(tree, redirect::v4_file(catalog))?)?;
    let changed = [&gone, &come, &gone_tags, &come_tags].into_iter().flatten();
    let mut dirs: BTreeSet<PathBuf> = match origin.old {
        Some(_) => changed
            .filter_map(|entry| Some(links.place(entry).parent()?.to_owned()))
            .collect(),
        None => subdirectories.iter().map(|name| tree.join(name)).collect(),
    };
    dirs.extend([tree.join("tags"), tree.to_owned()]);
    disk::sync_dirs(&dirs.into_iter().collect::<Vec<_>>())
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
            Entry::Blob(digest) | Entry::Manifest(_, digest) => {
                self.link(&place, entry, "", self.file(digest))
            }
            Entry::Tag(folder, _, digest) => {
                let named = self.place(&Entry::Manifest(folder, digest));
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
    match entry {
        Entry::Image(id) => tree.join("web").join(id.as_str()),
        Entry::Blob(digest) => tree.join("blobs").join(digest.to_string()),
        Entry::Manifest(folder, digest) => tree.join("manifests").join(folder).join(digest.to_string()),
        Entry::Tag(folder, name, _) => tree.join("manifests").join(folder).join(name),
    }
}

fn done(results: Vec<Result<()>>) -> Result<()> {
    results.into_iter().collect()
}

pub(crate) fn json(path: &Path, made: std::result::Result<Vec<u8>, serde_json::Error>) -> Result<Vec<u8>> {
    made.map_err(|e| PublicationError::io("write the JSON for", path)(e.into()))
}
