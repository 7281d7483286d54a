//! The index file: what our Crane needs beyond the redirect file, so that it answers from memory.
//!
//! It lies beside the version 4 redirect file of the same publication, as `index.pulp`: without the suffix
//! `.json`, so that the original Crane, which reads every `*.json` it finds, passes it by.

use std::{collections::BTreeMap, fmt, str::FromStr};

use pulp_model::{Digest, MediaType, RegistryId, RepositoryId, TagName, unit::ManifestKind};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Contents, Publication};

/// Name of the index file.
pub const INDEX_FILE: &str = "index.pulp";

/// Version of the format written here.
pub const FORMAT: u32 = 1;

/// One publication of one repository; later ones sort after earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PublicationId(Uuid);

impl PublicationId {
    /// A new one.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl fmt::Display for PublicationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for PublicationId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(Uuid::try_parse(text)?))
    }
}

/// The index file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// Version of the format, [`FORMAT`].
    pub format: u32,
    /// Which publication this is.
    pub publication: PublicationId,
    /// The repository.
    pub repository: RepositoryId,
    /// The name by which clients pull.
    pub registry_id: RegistryId,
    /// Whether Crane asks for an entitlement.
    pub protected: bool,
    /// Base url of the files, ends with `/`.
    pub url: String,
    /// Tags by name.
    pub tags: BTreeMap<TagName, Vec<TagVariant>>,
    /// Image manifests and lists, sorted by digest.
    pub manifests: Vec<IndexManifest>,
    /// Configs and layers, sorted by digest.
    pub blobs: Vec<IndexBlob>,
}

/// One thing that a tag names. A tag may name a schema 1 manifest, a schema 2 or OCI manifest, and a list at once;
/// which one a client gets depends on what it accepts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagVariant {
    /// Manifest or list.
    pub kind: ManifestKind,
    /// 1 or 2.
    pub schema_version: u8,
    /// What it names.
    pub digest: Digest,
}

/// An image manifest or list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexManifest {
    /// Digest of its bytes.
    pub digest: Digest,
    /// Manifest or list.
    pub kind: ManifestKind,
    /// 1 or 2.
    pub schema_version: u8,
    /// Media type it must be served with.
    pub media_type: MediaType,
    /// Number of its bytes.
    pub size: u64,
    /// Of a list: its first member for linux on amd64 that is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amd64: Option<Digest>,
    /// OCI 1.1: what it is attached to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Digest>,
    /// OCI 1.1: the artifact's type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// OCI annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl IndexManifest {
    /// Folder below `manifests/`: `1`, `2` or `list`.
    pub const fn folder(&self) -> &'static str {
        manifest_folder(self.kind, self.schema_version)
    }
}

/// A config or layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexBlob {
    /// Digest of its bytes.
    pub digest: Digest,
    /// Number of its bytes.
    pub size: u64,
}

/// Folder below `manifests/` where a manifest lies.
pub const fn manifest_folder(kind: ManifestKind, schema_version: u8) -> &'static str {
    match (kind, schema_version) {
        (ManifestKind::List, _) => "list",
        (ManifestKind::Image, 1) => "1",
        (ManifestKind::Image, _) => "2",
    }
}

/// Why an index file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Not the JSON expected.
    #[error("not a valid index: {0}")]
    Json(#[from] serde_json::Error),
    /// Written by a later release.
    #[error("index format {0} is not supported, {FORMAT} is")]
    Format(u64),
}

impl Index {
    /// The index of a publication.
    pub fn of(publication: &Publication, id: &PublicationId) -> Self {
        let contents = publication.contents();
        let mut tags: BTreeMap<TagName, Vec<TagVariant>> = BTreeMap::new();
        for tag in &contents.tags {
            tags.entry(tag.name.clone()).or_default().push(TagVariant {
                kind: tag.manifest_type,
                schema_version: tag.schema_version,
                digest: tag.manifest_digest.clone(),
            });
        }
        let blobs = contents.blobs.iter();
        let blobs = blobs
            .map(|b| IndexBlob {
                digest: b.digest.clone(),
                size: b.size,
            })
            .collect();
        Self {
            format: FORMAT,
            publication: *id,
            repository: contents.repository.clone(),
            registry_id: contents.registry_id.clone(),
            protected: contents.protected,
            url: contents.v2_url.clone(),
            tags,
            manifests: Self::manifests_of(contents),
            blobs,
        }
    }

    /// Image manifests and lists as the index has them.
    pub(crate) fn manifests_of(contents: &Contents) -> Vec<IndexManifest> {
        let images = contents.manifests.iter().map(|m| &m.unit).map(|m| IndexManifest {
            digest: m.digest.clone(),
            kind: ManifestKind::Image,
            schema_version: m.schema_version,
            media_type: m.media_type.clone(),
            size: m.size,
            amd64: None,
            subject: m.subject.clone(),
            artifact_type: m.artifact_type.clone(),
            annotations: m.annotations.clone(),
        });
        let lists = contents.lists.iter().map(|l| &l.unit).map(|l| IndexManifest {
            digest: l.digest.clone(),
            kind: ManifestKind::List,
            schema_version: l.schema_version,
            media_type: l.media_type.clone(),
            size: l.size,
            amd64: l.default_member().map(|m| m.digest.clone()),
            subject: l.subject.clone(),
            artifact_type: l.artifact_type.clone(),
            annotations: l.annotations.clone(),
        });
        let mut manifests: Vec<IndexManifest> = images.chain(lists).collect();
        manifests.sort_by(|a, b| a.digest.cmp(&b.digest));
        manifests
    }

    /// A manifest or list by its digest.
    pub fn manifest(&self, digest: &Digest) -> Option<&IndexManifest> {
        let found = self.manifests.binary_search_by(|m| m.digest.cmp(digest)).ok()?;
        self.manifests.get(found)
    }

    /// Reads an index file.
    pub fn parse(bytes: &[u8]) -> Result<Self, IndexError> {
        #[derive(Deserialize)]
        struct Format {
            format: u64,
        }
        let read: Result<Self, _> = serde_json::from_slice(bytes);
        match read {
            Ok(index) if index.format == FORMAT => Ok(index),
            Ok(index) => Err(IndexError::Format(index.format.into())),
            // A later format need not read as this one.
            Err(error) => match serde_json::from_slice(bytes) {
                Ok(Format { format }) if format != u64::from(FORMAT) => Err(IndexError::Format(format)),
                _ => Err(error.into()),
            },
        }
    }
}
