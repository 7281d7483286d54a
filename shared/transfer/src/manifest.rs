//! The manifest of an export: its types, and what they must agree on.

use std::collections::{BTreeMap, BTreeSet};

use pulp_model::{Digest, MediaType, RegistryId, RepositoryId, TagName, VersionNumber, export::ExportLayout};
use serde::{Deserialize, Serialize};

use crate::{Contents, TransferError};

/// Name of the manifest's file in the export's directory.
pub const MANIFEST_FILE: &str = "pulp-export.json";
/// Name of its signature's file.
pub const SIGNATURE_FILE: &str = "pulp-export.json.sig";
/// What [`ExportManifest::format`] says.
const FORMAT: &str = "pulp-docker-export";
/// The version of the format that this release reads and writes.
const FORMAT_VERSION: u32 = 1;
/// Manifests above this many bytes are refused; one of 100,000 tags has some tens of megabytes.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 256 * 1024 * 1024;

/// What an export is. The file is its JSON, and what is signed are the file's bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportManifest {
    /// Always `pulp-docker-export`.
    format: String,
    /// Version of the format: 1.
    format_version: u32,
    /// The repository.
    pub repository: ExportedRepository,
    /// Its version that was exported.
    pub repository_version: VersionNumber,
    /// [`Contents::state`] of what it holds.
    pub state: Digest,
    /// What the other side must have already; none for a full export.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// How the files lie.
    pub layout: ExportLayout,
    /// The tar's parts in their order; none in a directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
    /// Files that came along. Those that [`Self::contents`] needs and this lacks are the base's.
    pub carried: Vec<Carried>,
    /// All that the repository holds, whether it came along or not.
    pub contents: Contents,
}

/// The repository as it was called where it was exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedRepository {
    /// Its id.
    pub id: RepositoryId,
    /// For people.
    pub display_name: String,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The name by which clients pull it.
    pub registry_id: RegistryId,
}

/// The earlier state that an incremental export builds on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Its [`ExportManifest::state`].
    pub state: Digest,
    /// The repository's version of then, for people.
    pub repository_version: VersionNumber,
}

/// A piece of the tar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Name of its file in the export's directory.
    pub name: String,
    /// Its bytes.
    pub size: u64,
    /// Their SHA-256.
    pub digest: Digest,
}

/// A file that came along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// Where in the tar its bytes begin; none in a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
}

/// A config or layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
}

/// A manifest of any kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestEntry {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// The media type that it is served with.
    pub media_type: MediaType,
}

/// A tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagEntry {
    /// Its name.
    pub name: TagName,
    /// The manifest that it names.
    pub digest: Digest,
}

/// A list or index that is not whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SparseEntry {
    /// The list.
    pub digest: Digest,
    /// Its members that need not be there.
    pub absent: BTreeSet<Digest>,
}

impl ExportManifest {
    /// A manifest of this release's format.
    pub(crate) fn new(
        repository: ExportedRepository,
        repository_version: VersionNumber,
        base: Option<Base>,
        layout: ExportLayout,
        contents: Contents,
    ) -> Self {
        Self {
            format: FORMAT.to_owned(),
            format_version: FORMAT_VERSION,
            state: contents.state(&repository.id),
            repository,
            repository_version,
            base,
            layout,
            parts: Vec::new(),
            carried: Vec::new(),
            contents,
        }
    }

    /// The file's bytes.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Reads a manifest's bytes, and refuses one that doesn't agree with itself.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, TransferError> {
        #[derive(Deserialize)]
        struct Header {
            #[serde(default)]
            format: String,
            #[serde(default)]
            format_version: u32,
        }
        let header: Header = serde_json::from_slice(bytes)
            .map_err(|e| TransferError::not_an_export(format!("{MANIFEST_FILE} is not valid JSON: {e}")))?;
        if header.format != FORMAT {
            return Err(TransferError::not_an_export(format!(
                "{MANIFEST_FILE} has the format {:?}, not {FORMAT:?}",
                header.format.chars().take(100).collect::<String>()
            )));
        }
        if header.format_version != FORMAT_VERSION {
            return Err(TransferError::not_an_export(format!(
                "{MANIFEST_FILE} has version {} of the format; this release reads version {FORMAT_VERSION}",
                header.format_version
            )));
        }
        let manifest: Self = serde_json::from_slice(bytes)
            .map_err(|e| TransferError::not_an_export(format!("{MANIFEST_FILE} can't be read: {e}")))?;
        manifest.agree().map_err(TransferError::Inconsistent)?;
        Ok(manifest)
    }

    /// Bytes of all parts together.
    pub fn total_size(&self) -> u64 {
        self.parts.iter().fold(0, |sum, p| sum.saturating_add(p.size))
    }

    /// Digests of the files that came along.
    pub fn carried(&self) -> BTreeMap<&Digest, &Carried> {
        self.carried.iter().map(|c| (&c.digest, c)).collect()
    }

    /// Where and how the parts of the export disagree.
    fn agree(&self) -> Result<(), String> {
        if self.state != self.contents.state(&self.repository.id) {
            return Err("its state is not that of the contents it lists".to_owned());
        }
        let mut names = BTreeSet::new();
        for part in &self.parts {
            if !is_file_name(&part.name) {
                return Err(format!("{:?} can't be a part's name", part.name));
            }
            if !names.insert(&part.name) {
                return Err(format!("part {} is listed twice", part.name));
            }
        }
        let total = self.total_size();
        let mut seen = BTreeSet::new();
        for file in &self.carried {
            if !seen.insert(&file.digest) {
                return Err(format!("{} is listed twice", file.digest));
            }
            match (self.layout, file.offset) {
                (ExportLayout::Directory, None) => {}
                (ExportLayout::Tar, Some(offset))
                    if offset.checked_add(file.size).is_some_and(|end| end <= total) => {}
                _ => return Err(format!("{} does not lie where it is said to", file.digest)),
            }
        }
        let sizes: BTreeMap<&Digest, u64> = self.carried.iter().map(|c| (&c.digest, c.size)).collect();
        for (digest, size) in self.contents.files() {
            match (sizes.get(&digest), size) {
                (Some(carried), Some(size)) if *carried != size => {
                    return Err(format!(
                        "{digest} has {size} bytes in one place and {carried} in another"
                    ));
                }
                (None, _) if self.base.is_none() => {
                    return Err(format!("{digest} is neither carried nor a base's"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Whether a name is that of a file in the export's own directory, and of none of ours.
fn is_file_name(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && !name.starts_with('.')
        && name != MANIFEST_FILE
        && name != SIGNATURE_FILE
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn manifest() -> ExportManifest {
        let blob = Digest::sha256("blob");
        let contents = Contents {
            blobs: vec![Entry {
                digest: blob.clone(),
                size: 4,
            }],
            ..Contents::default()
        };
        let repository = ExportedRepository {
            id: "r".parse().unwrap(),
            display_name: "R".to_owned(),
            description: None,
            registry_id: "ns/r".parse().unwrap(),
        };
        let mut manifest =
            ExportManifest::new(repository, VersionNumber(3), None, ExportLayout::Tar, contents);
        manifest.parts = vec![Part {
            name: "r.tar".to_owned(),
            size: 2048,
            digest: Digest::sha256("tar"),
        }];
        manifest.carried = vec![Carried {
            digest: blob,
            size: 4,
            offset: Some(512),
        }];
        manifest
    }

    fn refused(change: impl FnOnce(&mut Value)) -> String {
        let mut value = json!(manifest());
        change(&mut value);
        ExportManifest::parse(value.to_string().as_bytes())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_manifest_survives_its_file() {
        let manifest = manifest();
        assert_eq!(ExportManifest::parse(&manifest.to_bytes()).unwrap(), manifest);
    }

    #[test]
    fn a_manifest_that_disagrees_with_itself_is_refused() {
        assert!(refused(|m| m["format"] = json!("x")).contains("format"));
        assert!(refused(|m| m["format_version"] = json!(2)).contains("reads version 1"));
        assert!(refused(|m| m["contents"]["blobs"][0]["size"] = json!(5)).contains("state"));
        assert!(refused(|m| m["carried"] = json!([])).contains("neither carried"));
        assert!(refused(|m| m["carried"][0]["offset"] = json!(2045)).contains("does not lie"));
        assert!(refused(|m| m["carried"][0]["offset"] = json!(u64::MAX)).contains("does not lie"));
        assert!(refused(|m| m["carried"][0]["size"] = json!(5)).contains("4 bytes in one place"));
        assert!(refused(|m| m["layout"] = json!("directory")).contains("does not lie"));
    }

    #[test]
    fn a_part_can_only_be_a_file_of_the_export_itself() {
        for name in [
            "../x",
            "/etc/passwd",
            "a/b",
            "",
            ".",
            "..",
            ".hidden",
            MANIFEST_FILE,
            "a\0b",
            "a b",
        ] {
            assert!(
                refused(|m| m["parts"][0]["name"] = json!(name)).contains("part's name"),
                "{name:?}"
            );
        }
    }
}
