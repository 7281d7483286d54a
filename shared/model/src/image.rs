//! Manifests as read from their verbatim bytes. The bytes are kept; these are only views of them.
//!
//! Sources: OCI image specification `manifest.md`, `image-index.md`; Docker distribution `manifest-v2-2.md`,
//! `manifest-v2-1.md`.
//!
//! A digest here is that of the bytes as they are stored, since they are stored under it. For a signed schema 1
//! manifest a registry's digest is another one, of the payload without the signatures; the registry client knows it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    Digest, MediaType,
    unit::{LayerRef, ListMember, ManifestListUnit, ManifestUnit, Selection},
};

/// Manifests above this many bytes are refused, as registries do.
pub const MAX_MANIFEST_BYTES: u64 = 4 * 1024 * 1024;

/// Annotation of a list's member that is no image: the member that it attests. Source: BuildKit,
/// `docs/attestations/attestation-storage.md`.
const ATTESTS: &str = "vnd.docker.reference.digest";

/// Why bytes are no manifest that can be taken in.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of the shape expected.
    #[error("manifest is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A media type that is none of a manifest.
    #[error("{0:?} is not a manifest's media type")]
    MediaType(String),
    /// Above [`MAX_MANIFEST_BYTES`].
    #[error("manifest has {0} bytes, more than the {MAX_MANIFEST_BYTES} allowed")]
    TooLarge(usize),
    /// A schema version that is not known.
    #[error("manifest has schema version {0}")]
    SchemaVersion(i64),
}

/// A content descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of the target.
    pub media_type: MediaType,
    /// Digest of the target.
    pub digest: Digest,
    /// Bytes of the target.
    pub size: u64,
    /// Platform of a list's member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// The platform that a list's member is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// For example `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// For example `linux`.
    #[serde(default)]
    pub os: String,
    /// For example `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Either kind of manifest, as a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manifest {
    /// An image manifest (or artifact).
    Image(ManifestUnit),
    /// A list or index.
    List(ManifestListUnit),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: i64,
    media_type: Option<MediaType>,
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    fs_layers: Option<Vec<RawFsLayer>>,
    subject: Option<RawDescriptor>,
    annotations: Option<BTreeMap<String, String>>,
    signatures: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: Option<MediaType>,
    digest: Digest,
    #[serde(default)]
    size: u64,
    platform: Option<Platform>,
    annotations: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawFsLayer {
    blob_sum: Digest,
}

impl Manifest {
    /// Reads a schema 2 manifest, list, OCI manifest or index. `declared` is the media type that a transport
    /// gave; the one within the bytes wins, and where neither is there the shape decides.
    pub fn parse(bytes: &[u8], declared: Option<&MediaType>) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLarge(bytes.len()));
        }
        let raw: Raw = serde_json::from_slice(bytes)?;
        let media_type = media_type_of(&raw, declared)?;
        let digest = Digest::sha256(bytes);
        let size = bytes.len() as u64;
        let annotations = raw.annotations.unwrap_or_default();
        let subject = raw.subject.map(|s| s.digest);
        if media_type.is_index() {
            let members: Vec<_> = raw
                .manifests
                .unwrap_or_default()
                .into_iter()
                .map(list_member)
                .collect();
            let amd64 = members
                .iter()
                .find(|m| m.arch.as_deref() == Some("amd64") && m.os.as_deref() == Some("linux"))
                .cloned();
            return Ok(Self::List(ManifestListUnit {
                digest,
                media_type,
                schema_version: 2,
                size,
                manifests: members,
                amd64_schema_version: amd64
                    .as_ref()
                    .map(|m| if m.media_type.is_schema1() { 1 } else { 2 }),
                amd64_digest: amd64.map(|m| m.digest),
                subject,
                artifact_type: raw.artifact_type,
                annotations,
                selection: Selection::default(),
            }));
        }
        let schema1 = media_type.is_schema1();
        let fs_layers = if schema1 {
            // Schema 1 lists the newest layer first, and may repeat the empty one.
            let layers = raw.fs_layers.unwrap_or_default().into_iter().rev();
            layers
                .map(|l| LayerRef {
                    blob_sum: l.blob_sum,
                    size: None,
                    layer_type: None,
                })
                .collect()
        } else {
            let layers = raw.layers.unwrap_or_default().into_iter();
            layers
                .map(|l| LayerRef {
                    blob_sum: l.digest,
                    size: Some(l.size),
                    layer_type: l.media_type,
                })
                .collect()
        };
        let config_type = raw
            .config
            .as_ref()
            .and_then(|c| c.media_type.as_ref())
            .map(ToString::to_string);
        Ok(Self::Image(ManifestUnit {
            digest,
            media_type,
            schema_version: if schema1 { 1 } else { 2 },
            size,
            config_layer: raw.config.map(|c| c.digest),
            fs_layers,
            subject,
            artifact_type: raw.artifact_type.or(config_type),
            annotations,
        }))
    }

    /// Digest of the verbatim bytes.
    pub const fn digest(&self) -> &Digest {
        match self {
            Self::Image(m) => &m.digest,
            Self::List(l) => &l.digest,
        }
    }
}

fn media_type_of(raw: &Raw, declared: Option<&MediaType>) -> Result<MediaType, ManifestError> {
    match raw.schema_version {
        1 if raw.signatures.is_some() => return Ok(MediaType::DOCKER_SCHEMA1_SIGNED),
        1 => return Ok(MediaType::DOCKER_SCHEMA1),
        2 => {}
        other => return Err(ManifestError::SchemaVersion(other)),
    }
    let known = |t: &MediaType| t.is_index() || t.is_image_manifest();
    match (&raw.media_type, declared) {
        (Some(own), _) if known(own) => Ok(own.clone()),
        (Some(other), _) => Err(ManifestError::MediaType(other.to_string())),
        (None, Some(declared)) if known(declared) => Ok(declared.clone()),
        (None, _) if raw.manifests.is_some() => Ok(MediaType::OCI_INDEX),
        (None, _) => Ok(MediaType::OCI_MANIFEST),
    }
}

fn list_member(raw: RawDescriptor) -> ListMember {
    let (os, arch, variant) = match raw.platform {
        Some(p) => (Some(p.os), Some(p.architecture), p.variant),
        None => (None, None, None),
    };
    let attests = raw
        .annotations
        .as_ref()
        .and_then(|a| a.get(ATTESTS)?.as_str()?.parse().ok());
    ListMember {
        digest: raw.digest,
        media_type: raw.media_type.unwrap_or(MediaType::OCI_MANIFEST),
        size: raw.size,
        os,
        arch,
        variant,
        attests,
    }
}
