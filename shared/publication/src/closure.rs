//! What is to be published, and the check that nothing of it is missing.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    path::{Path, PathBuf},
};

use pulp_model::{
    CodedError, Digest, ErrorCode, RegistryId, RepositoryId,
    unit::{ImageId, ManifestKind, ManifestListUnit, ManifestUnit, TagUnit, V1Tag},
};

use crate::each::each;

/// A v1 image and its three content files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFiles {
    /// The image.
    pub image_id: ImageId,
    /// Its JSON.
    pub json: PathBuf,
    /// JSON list of its ancestors' ids.
    pub ancestry: PathBuf,
    /// Its layer, a tar.
    pub layer: PathBuf,
}

/// A config or layer and its content file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobFile {
    /// Digest of the bytes.
    pub digest: Digest,
    /// Number of bytes.
    pub size: u64,
    /// The file.
    pub path: PathBuf,
}

/// An image manifest and the file that has its verbatim bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// The manifest.
    pub unit: ManifestUnit,
    /// The file.
    pub path: PathBuf,
}

/// A manifest list or index and the file that has its verbatim bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListFile {
    /// The list.
    pub unit: ManifestListUnit,
    /// The file.
    pub path: PathBuf,
}

/// Everything that one publication of a repository is made of, not yet checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Whose content it is; names the published files.
    pub repository: RepositoryId,
    /// The name by which clients pull.
    pub registry_id: RegistryId,
    /// Whether Crane asks for an entitlement.
    pub protected: bool,
    /// Base url of the v1 files, for redirects; a final `/` is added where it lacks.
    pub v1_url: String,
    /// Base url of the v2 files, likewise.
    pub v2_url: String,
    /// v1 images.
    pub images: Vec<ImageFiles>,
    /// v1 tags.
    pub v1_tags: Vec<V1Tag>,
    /// Configs and layers.
    pub blobs: Vec<BlobFile>,
    /// Image manifests.
    pub manifests: Vec<ManifestFile>,
    /// Manifest lists and indexes.
    pub lists: Vec<ListFile>,
    /// Tags of manifests and lists.
    pub tags: Vec<TagUnit>,
}

/// One thing that a complete publication would have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Missing {
    /// A v1 tag names an image that is not in the repository.
    V1Image {
        /// The tag.
        tag: String,
        /// The image it names.
        image_id: ImageId,
    },
    /// A tag names a manifest or list that is not in the repository.
    TagTarget {
        /// The tag.
        tag: String,
        /// What it names.
        digest: Digest,
    },
    /// A manifest refers to a blob that is not in the repository.
    Blob {
        /// The manifest.
        manifest: Digest,
        /// The blob.
        digest: Digest,
    },
    /// A list refers to a manifest that is not in the repository.
    Member {
        /// The list.
        list: Digest,
        /// The member.
        digest: Digest,
    },
    /// A content file is absent.
    File {
        /// What it belongs to.
        of: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// A content file has another number of bytes than its unit says.
    Size {
        /// What it belongs to.
        of: String,
        /// The file.
        path: PathBuf,
        /// Bytes the unit says.
        expected: u64,
        /// Bytes the file has.
        found: u64,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V1Image { tag, image_id } => write!(f, "image {image_id} (v1 tag {tag})"),
            Self::TagTarget { tag, digest } => write!(f, "manifest {digest} (tag {tag})"),
            Self::Blob { manifest, digest } => write!(f, "blob {digest} (of manifest {manifest})"),
            Self::Member { list, digest } => write!(f, "manifest {digest} (of list {list})"),
            Self::File { of, path } => write!(f, "content file {} (of {of})", path.display()),
            Self::Size {
                of,
                path,
                expected,
                found,
            } => {
                write!(
                    f,
                    "{expected} bytes in content file {} (of {of}), it has {found}",
                    path.display()
                )
            }
        }
    }
}

/// A publication that would be incomplete; lists everything that is missing, not only the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosureError {
    /// The repository.
    pub repository: RepositoryId,
    /// What is missing; at least one.
    pub missing: Vec<Missing>,
}

impl fmt::Display for ClosureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// More than this many are only counted: an error is read by people.
        const SHOWN: usize = 5;
        write!(f, "repository {} is not complete, missing: ", self.repository)?;
        for (n, missing) in self.missing.iter().take(SHOWN).enumerate() {
            write!(f, "{}{missing}", if n == 0 { "" } else { "; " })?;
        }
        match self.missing.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl std::error::Error for ClosureError {}

impl ClosureError {
    /// The error as clients of the REST API see it; datum `missing` lists all.
    pub fn coded(&self) -> CodedError {
        let missing: Vec<String> = self.missing.iter().map(ToString::to_string).collect();
        CodedError::new(
            ErrorCode::CLOSURE_INCOMPLETE,
            format!("{self}; sync, upload or copy what is missing, or remove what refers to it, then publish again"),
        )
        .with("repo_id", self.repository.as_str())
        .with("missing", missing)
    }
}

/// Contents whose closure is complete: every reference within is met and every content file is there.
///
/// Entries are sorted and each is there once, so that equal repositories publish equal files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    contents: Contents,
}

impl Publication {
    /// Checks the closure. Looks at every content file's size, so it touches the disk.
    ///
    /// v1 images whose parent is absent are fine: a mask at import leaves the parents out on purpose.
    pub fn new(mut contents: Contents) -> Result<Self, ClosureError> {
        normalise(&mut contents);
        let images: HashSet<&ImageId> = contents.images.iter().map(|i| &i.image_id).collect();
        let blobs: HashSet<&Digest> = contents.blobs.iter().map(|b| &b.digest).collect();
        let manifests: HashSet<&Digest> = contents.manifests.iter().map(|m| &m.unit.digest).collect();
        let lists: HashSet<&Digest> = contents.lists.iter().map(|l| &l.unit.digest).collect();
        let closure = Closure {
            image: &|id| images.contains(id),
            blob: &|digest| blobs.contains(digest),
            manifest: &|digest, kind| match kind {
                ManifestKind::Image => manifests.contains(digest),
                ManifestKind::List => lists.contains(digest),
            },
        };
        closure.check(&contents)?;
        Ok(Self { contents })
    }

    /// What is published, sorted.
    pub const fn contents(&self) -> &Contents {
        &self.contents
    }

    /// The repository.
    pub const fn repository(&self) -> &RepositoryId {
        &self.contents.repository
    }
}

/// What a publication holds, as far as references go.
pub(crate) struct Closure<'a> {
    pub(crate) image: &'a dyn Fn(&ImageId) -> bool,
    pub(crate) blob: &'a dyn Fn(&Digest) -> bool,
    pub(crate) manifest: &'a dyn Fn(&Digest, ManifestKind) -> bool,
}

pub(crate) fn normalise(contents: &mut Contents) {
    for url in [&mut contents.v1_url, &mut contents.v2_url] {
        if !url.ends_with('/') {
            url.push('/');
        }
    }
    sort_unique(&mut contents.images, |i| i.image_id.clone());
    sort_unique(&mut contents.blobs, |b| b.digest.clone());
    sort_unique(&mut contents.manifests, |m| m.unit.digest.clone());
    sort_unique(&mut contents.lists, |l| l.unit.digest.clone());
    sort_unique(&mut contents.v1_tags, |t| t.tag.clone());
    sort_unique(&mut contents.tags, |t| {
        (t.name.clone(), t.schema_version, t.manifest_type)
    });
}

/// Sorts by key; of several with one key the last given stays, as a later tag replaces an earlier one.
fn sort_unique<T, K: Ord>(items: &mut Vec<T>, key: impl Fn(&T) -> K) {
    let by_key: BTreeMap<K, T> = items.drain(..).map(|item| (key(&item), item)).collect();
    items.extend(by_key.into_values());
}

impl Closure<'_> {
    /// Whether all that `contents` refer to is held, and all their files are there.
    pub(crate) fn check(&self, contents: &Contents) -> Result<(), ClosureError> {
        let mut missing = self.missing_references(contents);
        missing.extend(missing_files(contents));
        if missing.is_empty() {
            return Ok(());
        }
        Err(ClosureError {
            repository: contents.repository.clone(),
            missing,
        })
    }

    fn missing_references(&self, contents: &Contents) -> Vec<Missing> {
        let v1_tags = contents
            .v1_tags
            .iter()
            .filter(|t| !(self.image)(&t.image_id))
            .map(|t| Missing::V1Image {
                tag: t.tag.to_string(),
                image_id: t.image_id.clone(),
            });
        let tags = contents
            .tags
            .iter()
            .filter(|t| !(self.manifest)(&t.manifest_digest, t.manifest_type))
            .map(|t| Missing::TagTarget {
                tag: t.name.to_string(),
                digest: t.manifest_digest.clone(),
            });
        let layers = contents.manifests.iter().flat_map(|m| {
            let absent = m.unit.blobs().filter(|d| !(self.blob)(d));
            absent.map(|d| Missing::Blob {
                manifest: m.unit.digest.clone(),
                digest: d.clone(),
            })
        });
        let members = contents.lists.iter().flat_map(|l| {
            // An index may hold indexes.
            let absent = l.unit.needed().map(|m| &m.digest).filter(|d| {
                !(self.manifest)(d, ManifestKind::Image) && !(self.manifest)(d, ManifestKind::List)
            });
            absent.map(|d| Missing::Member {
                list: l.unit.digest.clone(),
                digest: d.clone(),
            })
        });
        let all: BTreeSet<Missing> = v1_tags.chain(tags).chain(layers).chain(members).collect();
        all.into_iter().collect()
    }
}

/// A content file that must be there.
type Wanted<'a> = (Of<'a>, &'a Path, Option<u64>);

/// What a content file belongs to.
enum Of<'a> {
    Image(&'a ImageId),
    Blob(&'a Digest),
    Manifest(&'a Digest),
    List(&'a Digest),
}

impl fmt::Display for Of<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(id) => write!(f, "image {id}"),
            Self::Blob(digest) => write!(f, "blob {digest}"),
            Self::Manifest(digest) => write!(f, "manifest {digest}"),
            Self::List(digest) => write!(f, "list {digest}"),
        }
    }
}

fn missing_files(contents: &Contents) -> Vec<Missing> {
    let images = contents.images.iter().flat_map(|i| {
        [&i.json, &i.ancestry, &i.layer].map(|path| (Of::Image(&i.image_id), path.as_path(), None))
    });
    let blobs = contents
        .blobs
        .iter()
        .map(|b| (Of::Blob(&b.digest), b.path.as_path(), Some(b.size)));
    let manifests = contents.manifests.iter();
    let manifests = manifests.map(|m| (Of::Manifest(&m.unit.digest), m.path.as_path(), Some(m.unit.size)));
    let lists = contents.lists.iter();
    let lists = lists.map(|l| (Of::List(&l.unit.digest), l.path.as_path(), Some(l.unit.size)));
    let wanted: Vec<Wanted<'_>> = images.chain(blobs).chain(manifests).chain(lists).collect();
    each(&wanted, check_file).into_iter().flatten().collect()
}

fn check_file((of, path, expected): &Wanted<'_>) -> Option<Missing> {
    let (of, path) = (of, path.to_path_buf());
    match std::fs::metadata(&path) {
        Ok(meta) if meta.is_file() => match *expected {
            Some(expected) if expected != meta.len() => Some(Missing::Size {
                of: of.to_string(),
                path,
                expected,
                found: meta.len(),
            }),
            _ => None,
        },
        _ => Some(Missing::File {
            of: of.to_string(),
            path,
        }),
    }
}
