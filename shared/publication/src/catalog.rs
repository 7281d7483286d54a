//! What all the published files of one publication say, whether it was put together anew or from the one before.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use pulp_model::{
    Digest, RepositoryId,
    unit::{ImageId, ManifestKind, Unit},
};

use crate::{
    BlobFile, Contents, INDEX_FILE, ImageFiles, Index, Publication, PublicationError, PublicationId,
    Redirect,
    closure::{self, Closure},
    index::{IndexBlob, TagVariant, manifest_folder},
    redirect::Content,
    root::{Api, Root},
};

/// What all the published files of one publication say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Catalog {
    /// The v2 side, and what both sides share.
    pub(crate) index: Index,
    /// Base url of the v1 files.
    pub(crate) v1_url: String,
    /// v1 images, sorted.
    pub(crate) images: Vec<ImageId>,
    /// v1 tags.
    pub(crate) v1_tags: BTreeMap<String, ImageId>,
}

/// A link in a published tree, named as it lies there. Sorted as an index file has them, so that its lists need no
/// more than to be looked through.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Entry<'a> {
    /// `web/<image id>/{ancestry,json,layer}`
    Image(&'a ImageId),
    /// `blobs/<digest>`
    Blob(&'a Digest),
    /// `manifests/<folder>/<digest>`: digest and folder
    Manifest(&'a Digest, &'static str),
    /// `manifests/<folder>/<tag>`: tag, folder, and what it names
    Tag(&'a str, &'static str, &'a Digest),
}

impl Entry<'_> {
    /// The directory that it lies in, below its tree.
    pub(crate) fn directory(&self) -> &'static str {
        match self {
            Self::Image(_) => "web",
            Self::Blob(_) => "blobs",
            Self::Manifest(_, folder) | Self::Tag(_, folder, _) => match *folder {
                "1" => "manifests/1",
                "list" => "manifests/list",
                _ => "manifests/2",
            },
        }
    }
}

impl Catalog {
    /// Of a publication put together anew.
    pub(crate) fn of(publication: &Publication, id: &PublicationId) -> Self {
        let contents = publication.contents();
        Self {
            index: Index::of(publication, id),
            v1_url: contents.v1_url.clone(),
            images: contents.images.iter().map(|i| i.image_id.clone()).collect(),
            v1_tags: v1_tags(contents),
        }
    }

    /// All links of the v2 tree but for tags: sorted, each once.
    pub(crate) fn v2_content(&self) -> Vec<Entry<'_>> {
        let blobs = self.index.blobs.iter().map(|b| Entry::Blob(&b.digest));
        let manifests = self.index.manifests.iter();
        let manifests = manifests.map(|m| Entry::Manifest(&m.digest, m.folder()));
        sorted(blobs.chain(manifests).collect())
    }

    /// The links that tags are: sorted, each once.
    pub(crate) fn v2_tags(&self) -> Vec<Entry<'_>> {
        let tags = self.index.tags.iter().flat_map(|(name, variants)| {
            variants.iter().map(move |v| {
                let folder = manifest_folder(v.kind, v.schema_version);
                Entry::Tag(name.as_str(), folder, &v.digest)
            })
        });
        sorted(tags.collect())
    }

    /// Directories of the v1 tree.
    pub(crate) fn v1_content(&self) -> Vec<Entry<'_>> {
        self.images.iter().map(Entry::Image).collect()
    }

    /// Number of links and directories in both trees, about: what building them costs.
    pub(crate) fn entries(&self) -> usize {
        self.index.blobs.len() + self.index.manifests.len() + self.index.tags.len() + 4 * self.images.len()
    }
}

fn sorted(mut entries: Vec<Entry<'_>>) -> Vec<Entry<'_>> {
    entries.sort_unstable();
    entries.dedup();
    entries
}

fn v1_tags(contents: &Contents) -> BTreeMap<String, ImageId> {
    let tags = contents.v1_tags.iter();
    tags.map(|t| (t.tag.to_string(), t.image_id.clone())).collect()
}

/// Of two sorted lists, what is in the first only and what is in the second only.
pub(crate) fn differences<T: Ord>(old: Vec<T>, new: Vec<T>) -> (Vec<T>, Vec<T>) {
    let (mut gone, mut come) = (Vec::new(), Vec::new());
    let mut old = old.into_iter().peekable();
    for new in new {
        while let Some(old) = old.next_if(|old| *old < new) {
            gone.push(old);
        }
        if old.next_if_eq(&new).is_none() {
            come.push(new);
        }
    }
    gone.extend(old);
    (gone, come)
}

/// A tree that is or was published, or a copy of one: where it lies and what it holds by its own files.
#[derive(Debug, Clone)]
pub struct Published {
    pub(crate) v1: PathBuf,
    pub(crate) v2: PathBuf,
    pub(crate) catalog: Catalog,
}

impl Published {
    /// Which publication it is.
    pub const fn id(&self) -> &PublicationId {
        &self.catalog.index.publication
    }

    /// Number of links and directories it has, about.
    pub fn entries(&self) -> usize {
        self.catalog.entries()
    }

    pub(crate) fn read(repo: &RepositoryId, v1: PathBuf, v2: PathBuf) -> Result<Self, PublicationError> {
        let read = |path: PathBuf| fs::read(&path).map_err(PublicationError::io("read", path));
        let unusable = |path: &Path, reason: String| {
            let source = std::io::Error::new(std::io::ErrorKind::InvalidData, reason);
            PublicationError::io("use", path)(source)
        };
        let index = Index::parse(&read(v2.join(INDEX_FILE))?).map_err(|e| unusable(&v2, e.to_string()))?;
        let redirect = Redirect::parse(&read(v1.join(format!("{repo}.json")))?)
            .map_err(|e| unusable(&v1, e.to_string()))?;
        let Content::V1 { images, tags } = redirect.content else {
            return Err(unusable(&v1, "its redirect file is not of version 1".to_owned()));
        };
        let images = images.iter().filter_map(|i| i.get("id")?.as_str()?.parse().ok());
        let mut images: Vec<ImageId> = images.collect();
        images.sort_unstable();
        let tags = tags
            .into_iter()
            .filter_map(|(tag, id)| Some((tag, id?.parse().ok()?)));
        let catalog = Catalog {
            index,
            v1_url: redirect.url,
            images,
            v1_tags: tags.collect(),
        };
        Ok(Self { v1, v2, catalog })
    }
}

impl Root {
    /// The repository's publication, read back from its files; none if it isn't published by both APIs, or by
    /// files that were not made here.
    pub fn published(&self, repo: &RepositoryId) -> Result<Option<Published>, PublicationError> {
        let tree = |api| self.current_by_redirect_file(api, repo);
        let (Some(v1), Some(v2)) = (tree(Api::V1), tree(Api::V2)) else {
            return Ok(None);
        };
        if !v2.join(INDEX_FILE).exists() {
            return Ok(None);
        }
        Published::read(repo, v1, v2).map(Some)
    }
}

/// What a repository's content differs in from the publication that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Names, urls and v1 tags as they are now; units that were added.
    pub added: Contents,
    /// Units that were taken away. The caller has made sure that nothing that stays refers to them.
    pub removed: Vec<Unit>,
}

/// A publication that is another one with a change, its closure complete again.
#[derive(Debug, Clone)]
pub struct Changed {
    pub(crate) base: Published,
    pub(crate) catalog: Catalog,
    pub(crate) files: NewFiles,
}

impl Changed {
    /// Applies `change` to `base` and checks the closure of what was added, files included. What `base` has was
    /// checked when it was published.
    pub fn new(base: Published, mut change: Change) -> Result<Self, PublicationError> {
        closure::normalise(&mut change.added);
        let catalog = changed(base.catalog.clone(), &change);
        change
            .added
            .v1_tags
            .retain(|t| catalog.images.binary_search(&t.image_id).is_ok());
        let index = &catalog.index;
        let holds_blob = |digest: &Digest| index.blobs.binary_search_by(|b| b.digest.cmp(digest)).is_ok();
        let closure = Closure {
            image: &|id| catalog.images.binary_search(id).is_ok(),
            blob: &holds_blob,
            manifest: &|digest, kind| index.manifest(digest).is_some_and(|m| m.kind == kind),
        };
        closure.check(&change.added)?;
        let files = NewFiles::of(change.added);
        Ok(Self { base, catalog, files })
    }

    /// Units with files that the publication holds.
    pub fn units(&self) -> u64 {
        let index = &self.catalog.index;
        (self.catalog.images.len() + index.blobs.len() + index.manifests.len()) as u64
    }
}

/// Content files of units, by what they are linked as.
#[derive(Debug, Clone, Default)]
pub(crate) struct NewFiles {
    pub(crate) images: HashMap<ImageId, ImageFiles>,
    pub(crate) by_digest: HashMap<Digest, PathBuf>,
}

impl NewFiles {
    pub(crate) fn of(contents: Contents) -> Self {
        let blobs = contents.blobs.into_iter().map(|b| (b.digest, b.path));
        let manifests = contents.manifests.into_iter().map(|m| (m.unit.digest, m.path));
        let lists = contents.lists.into_iter().map(|l| (l.unit.digest, l.path));
        let images = contents.images.into_iter();
        Self {
            images: images.map(|i| (i.image_id.clone(), i)).collect(),
            by_digest: blobs.chain(manifests).chain(lists).collect(),
        }
    }
}

fn changed(mut catalog: Catalog, change: &Change) -> Catalog {
    let added = &change.added;
    let index = &mut catalog.index;
    index.registry_id = added.registry_id.clone();
    index.protected = added.protected;
    index.url.clone_from(&added.v2_url);
    catalog.v1_url.clone_from(&added.v1_url);

    let (mut blobs, mut manifests, mut images) = (HashSet::new(), HashSet::new(), HashSet::new());
    for unit in &change.removed {
        match unit {
            Unit::Image(image) => drop(images.insert(&image.image_id)),
            Unit::Blob(blob) => drop(blobs.insert(&blob.digest)),
            Unit::Manifest(manifest) => drop(manifests.insert((&manifest.digest, ManifestKind::Image))),
            Unit::ManifestList(list) => drop(manifests.insert((&list.digest, ManifestKind::List))),
            Unit::Tag(tag) => {
                if let Some(variants) = index.tags.get_mut(&tag.name) {
                    variants.retain(|v| {
                        (v.kind, v.schema_version, &v.digest)
                            != (tag.manifest_type, tag.schema_version, &tag.manifest_digest)
                    });
                    if variants.is_empty() {
                        index.tags.remove(&tag.name);
                    }
                }
            }
        }
    }
    if !blobs.is_empty() {
        index.blobs.retain(|b| !blobs.contains(&b.digest));
    }
    if !manifests.is_empty() {
        index
            .manifests
            .retain(|m| !manifests.contains(&(&m.digest, m.kind)));
    }
    catalog.images.retain(|id| !images.contains(id));

    let new = added.blobs.iter().map(|BlobFile { digest, size, .. }| IndexBlob {
        digest: digest.clone(),
        size: *size,
    });
    merge(&mut index.blobs, new.collect(), |b| &b.digest);
    merge(&mut index.manifests, Index::manifests_of(added), |m| &m.digest);
    let new = added.images.iter().map(|i| i.image_id.clone());
    merge(&mut catalog.images, new.collect(), |id| id);
    for tag in &added.tags {
        let variants = index.tags.entry(tag.name.clone()).or_default();
        variants.retain(|v| (v.kind, v.schema_version) != (tag.manifest_type, tag.schema_version));
        variants.push(TagVariant {
            kind: tag.manifest_type,
            schema_version: tag.schema_version,
            digest: tag.manifest_digest.clone(),
        });
        // As an index made anew has them.
        variants.sort_by_key(|v| (v.schema_version, v.kind));
    }
    catalog.v1_tags = v1_tags(added);
    let images = &catalog.images;
    catalog.v1_tags.retain(|_, id| images.binary_search(id).is_ok());
    catalog
}

/// Puts new items into a sorted list; one that has the key of a new one goes.
fn merge<T, K: Ord>(items: &mut Vec<T>, new: Vec<T>, key: impl Fn(&T) -> &K) {
    if new.is_empty() {
        return;
    }
    // A stable sort of two sorted runs is a merge; of equal keys the new one comes first and stays.
    let old = std::mem::replace(items, new);
    items.extend(old);
    items.sort_by(|a, b| key(a).cmp(key(b)));
    items.dedup_by(|later, earlier| key(later) == key(earlier));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn differences_are_those_of_sets(old: BTreeSet<u8>, new: BTreeSet<u8>) {
            let (gone, come) = differences(old.iter().collect(), new.iter().collect());
            prop_assert_eq!(gone, old.difference(&new).collect::<Vec<_>>());
            prop_assert_eq!(come, new.difference(&old).collect::<Vec<_>>());
        }

        #[test]
        fn merged_lists_stay_sorted_and_new_items_win(old: BTreeSet<u8>, new: BTreeSet<u8>) {
            let mut items: Vec<(u8, bool)> = old.iter().map(|n| (*n, false)).collect();
            merge(&mut items, new.iter().map(|n| (*n, true)).collect(), |(n, _)| n);
            let expected: Vec<(u8, bool)> = old.union(&new).map(|n| (*n, new.contains(n))).collect();
            prop_assert_eq!(items, expected);
        }
    }
}
