//! Content units: what a repository holds. Field names are those of pulp_docker's units on the wire.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use crate::{Digest, MediaType, RepositoryId, TagName};

/// The type ids of pulp_docker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnitType {
    /// A v1 image: one layer with its JSON and ancestry.
    DockerImage,
    /// An image manifest of schema 1, schema 2 or OCI.
    DockerManifest,
    /// A manifest list or OCI index.
    DockerManifestList,
    /// A config or layer.
    DockerBlob,
    /// A name for a manifest or list.
    DockerTag,
}

impl UnitType {
    /// All types, in the order of their ids.
    pub const ALL: [Self; 5] = [
        Self::DockerBlob,
        Self::DockerImage,
        Self::DockerManifest,
        Self::DockerManifestList,
        Self::DockerTag,
    ];

    /// The id on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DockerImage => "docker_image",
            Self::DockerManifest => "docker_manifest",
            Self::DockerManifestList => "docker_manifest_list",
            Self::DockerBlob => "docker_blob",
            Self::DockerTag => "docker_tag",
        }
    }

    /// For people.
    pub const fn display_name(self) -> &'static str {
        match self {
            Self::DockerImage => "Docker Image",
            Self::DockerManifest => "Docker Manifest",
            Self::DockerManifestList => "Docker Manifest List",
            Self::DockerBlob => "Docker Blob",
            Self::DockerTag => "Docker Tag",
        }
    }

    /// Names of the fields that make the unit's key.
    pub const fn unit_key(self) -> &'static [&'static str] {
        match self {
            Self::DockerImage => &["image_id"],
            Self::DockerManifest | Self::DockerManifestList | Self::DockerBlob => &["digest"],
            Self::DockerTag => &["name", "repo_id", "schema_version", "manifest_type"],
        }
    }
}

impl FromStr for UnitType {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|t| t.as_str() == text).ok_or(())
    }
}

impl fmt::Display for UnitType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A v1 image id: 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ImageId(Box<str>);

/// Why a text is no image id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an image id (64 lower-case hexadecimal digits)")]
pub struct InvalidImageId(pub String);

impl ImageId {
    /// The 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImageId {
    type Err = InvalidImageId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let valid = text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if valid {
            Ok(Self(text.into()))
        } else {
            Err(InvalidImageId(text.chars().take(100).collect()))
        }
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ImageId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A v1 image. Its three files are blobs of the content store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageUnit {
    /// The key.
    pub image_id: ImageId,
    /// The image it is built on; none for a base.
    pub parent_id: Option<ImageId>,
    /// `Size` of the image's JSON, if it has one: bytes of the unpacked layer.
    pub size: Option<i64>,
    /// Content of the published file `json`, verbatim from the source.
    pub json_digest: Digest,
    /// Content of the published file `ancestry`: a JSON list of ids, child first.
    pub ancestry_digest: Digest,
    /// Content of the published file `layer`.
    pub layer_digest: Digest,
    /// Bytes of the published file `layer`.
    pub layer_size: u64,
}

/// A config or layer of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRef {
    /// Digest of the blob.
    pub blob_sum: Digest,
    /// Its bytes, where the manifest tells.
    #[serde(default)]
    pub size: Option<u64>,
    /// Its media type, where the manifest tells.
    #[serde(default)]
    pub layer_type: Option<MediaType>,
}

impl LayerRef {
    /// Whether a registry holds this blob itself; foreign layers are fetched by their urls.
    pub fn is_held(&self) -> bool {
        !self
            .layer_type
            .as_ref()
            .is_some_and(MediaType::is_nondistributable)
    }
}

/// An image manifest; its bytes are a blob of the content store under the same digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestUnit {
    /// The key: digest of the verbatim bytes.
    pub digest: Digest,
    /// Media type it must be served with.
    pub media_type: MediaType,
    /// 1 or 2; OCI manifests are 2.
    pub schema_version: u8,
    /// Bytes of the manifest itself.
    pub size: u64,
    /// Digest of the config; none in schema 1.
    pub config_layer: Option<Digest>,
    /// Layers, base first.
    pub fs_layers: Vec<LayerRef>,
    /// OCI 1.1: what this manifest is attached to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Digest>,
    /// OCI 1.1: the artifact's type; for an image without one, the config's media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// OCI annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl ManifestUnit {
    /// The blobs that must be present for this manifest to be complete: config and held layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Digest> {
        self.config_layer
            .iter()
            .chain(self.fs_layers.iter().filter(|l| l.is_held()).map(|l| &l.blob_sum))
    }
}

/// An entry of a manifest list or index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListMember {
    /// Digest of the member manifest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: MediaType,
    /// Its bytes.
    pub size: u64,
    /// Operating system of its platform.
    #[serde(default)]
    pub os: Option<String>,
    /// Architecture of its platform.
    #[serde(default)]
    pub arch: Option<String>,
    /// Variant of its architecture, such as `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// The member that this one attests, as BuildKit's annotation `vnd.docker.reference.digest` has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attests: Option<Digest>,
}

/// A manifest list or OCI index; its bytes are a blob of the content store under the same digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestListUnit {
    /// The key: digest of the verbatim bytes.
    pub digest: Digest,
    /// Media type it must be served with.
    pub media_type: MediaType,
    /// Always 2.
    pub schema_version: u8,
    /// Bytes of the list itself.
    pub size: u64,
    /// Members in the order of the list.
    pub manifests: Vec<ListMember>,
    /// First member for linux on amd64.
    pub amd64_digest: Option<Digest>,
    /// Its schema version.
    pub amd64_schema_version: Option<u8>,
    /// OCI 1.1: what this index is attached to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Digest>,
    /// OCI 1.1: the artifact's type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// OCI annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What a repository's filter of platforms made of it there; not part of the unit by itself.
    #[serde(skip)]
    pub selection: Selection,
}

impl ManifestListUnit {
    /// The members that must be present for this list to be complete: all but those that a filter left out.
    pub fn needed(&self) -> impl Iterator<Item = &ListMember> {
        self.manifests
            .iter()
            .filter(|m| !self.selection.absent.contains(&m.digest))
    }

    /// What a client gets that knows no lists: the first member for linux on amd64, unless a filter left it out.
    pub fn default_member(&self) -> Option<&ListMember> {
        self.needed()
            .find(|m| m.os.as_deref() == Some("linux") && m.arch.as_deref() == Some("amd64"))
    }
}

/// What a filter of platforms made of a list in one repository. The same list may be whole in another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Members that the repository need not have.
    pub absent: BTreeSet<Digest>,
    /// What it was made of, if it is not what the upstream has.
    pub made_from: Option<MadeFrom>,
}

/// Where a rewritten index comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeFrom {
    /// The upstream's index.
    pub digest: Digest,
    /// The filter that chose from its members, as text.
    pub platforms: String,
}

/// A config or layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobUnit {
    /// The key.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
}

/// Whether a tag names an image manifest or a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ManifestKind {
    /// An image manifest.
    Image,
    /// A manifest list or index.
    List,
}

/// A tag of one repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagUnit {
    /// The tag.
    pub name: TagName,
    /// The repository it belongs to.
    pub repo_id: RepositoryId,
    /// The manifest or list it names.
    pub manifest_digest: Digest,
    /// 1 or 2.
    pub schema_version: u8,
    /// What it names.
    pub manifest_type: ManifestKind,
}

/// Any content unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unit {
    /// `docker_image`
    Image(ImageUnit),
    /// `docker_manifest`
    Manifest(ManifestUnit),
    /// `docker_manifest_list`
    ManifestList(ManifestListUnit),
    /// `docker_blob`
    Blob(BlobUnit),
    /// `docker_tag`
    Tag(TagUnit),
}

/// A row's fields that don't fit the type they claim.
#[derive(Debug, thiserror::Error)]
#[error("fields of a {unit_type} unit don't fit")]
pub struct UnitFieldsError {
    /// The type claimed.
    pub unit_type: UnitType,
    source: serde_json::Error,
}

impl Unit {
    /// Its type.
    pub const fn unit_type(&self) -> UnitType {
        match self {
            Self::Image(_) => UnitType::DockerImage,
            Self::Manifest(_) => UnitType::DockerManifest,
            Self::ManifestList(_) => UnitType::DockerManifestList,
            Self::Blob(_) => UnitType::DockerBlob,
            Self::Tag(_) => UnitType::DockerTag,
        }
    }

    /// What makes two units the same one. A tag that moves is another unit, so that old versions stay readable.
    pub fn identity(&self) -> String {
        match self {
            Self::Image(u) => u.image_id.to_string(),
            Self::Manifest(u) => u.digest.to_string(),
            Self::ManifestList(u) => u.digest.to_string(),
            Self::Blob(u) => u.digest.to_string(),
            Self::Tag(u) => {
                let kind = match u.manifest_type {
                    ManifestKind::Image => "image",
                    ManifestKind::List => "list",
                };
                format!(
                    "{}/{}/{}/{kind}/{}",
                    u.repo_id, u.name, u.schema_version, u.manifest_digest
                )
            }
        }
    }

    /// All fields, as stored and as `metadata` on the wire.
    pub fn fields(&self) -> Map<String, Value> {
        let value = match self {
            Self::Image(u) => json!(u),
            Self::Manifest(u) => json!(u),
            Self::ManifestList(u) => json!(u),
            Self::Blob(u) => json!(u),
            Self::Tag(u) => json!(u),
        };
        match value {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    /// The key fields alone.
    pub fn key(&self) -> Map<String, Value> {
        let names = self.unit_type().unit_key();
        self.fields()
            .into_iter()
            .filter(|(name, _)| names.contains(&name.as_str()))
            .collect()
    }

    /// Reads back what [`Unit::fields`] gave.
    pub fn from_fields(unit_type: UnitType, fields: Value) -> Result<Self, UnitFieldsError> {
        let unit = match unit_type {
            UnitType::DockerImage => serde_json::from_value(fields).map(Self::Image),
            UnitType::DockerManifest => serde_json::from_value(fields).map(Self::Manifest),
            UnitType::DockerManifestList => serde_json::from_value(fields).map(Self::ManifestList),
            UnitType::DockerBlob => serde_json::from_value(fields).map(Self::Blob),
            UnitType::DockerTag => serde_json::from_value(fields).map(Self::Tag),
        };
        unit.map_err(|source| UnitFieldsError { unit_type, source })
    }
}

/// One tag of the v1 API, as a repository's `scratchpad.tags` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct V1Tag {
    /// The tag. A list of objects, not a map: names may contain dots, which old databases refused as keys.
    pub tag: TagName,
    /// The image it names.
    pub image_id: ImageId,
}

/// Puts `new` tags over `old` ones of the same name; the others keep their order.
///
/// Upstream: `pulp_docker/common/tags.py`.
pub fn merge_v1_tags(old: &[V1Tag], new: &[V1Tag]) -> Vec<V1Tag> {
    let kept = old.iter().filter(|o| new.iter().all(|n| n.tag != o.tag));
    kept.chain(new).cloned().collect()
}
