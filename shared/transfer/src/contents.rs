//! What a repository holds, as an export lists it; pure.

use std::collections::{BTreeMap, BTreeSet};

use pulp_model::{
    Digest, RepositoryId,
    unit::{ImageUnit, ManifestListUnit, ManifestUnit, Unit, V1Tag},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::manifest::{Entry, ManifestEntry, SparseEntry, TagEntry};

/// The content of one version of a repository. Each list is sorted, so that equal content is equal text.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Contents {
    /// Configs and layers.
    pub blobs: Vec<Entry>,
    /// Image manifests, lists and indexes, referrers among them.
    pub manifests: Vec<ManifestEntry>,
    /// Tags.
    pub tags: Vec<TagEntry>,
    /// Lists and indexes of which a filter of platforms left members out; nothing else may be missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sparse: Vec<SparseEntry>,
    /// Images of the v1 API.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub v1_images: Vec<ImageUnit>,
    /// Tags of the v1 API.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub v1_tags: Vec<V1Tag>,
}

impl Contents {
    /// Of a version's units. A v1 tag of an image that is not among them leads nowhere and is left out.
    pub fn of(units: &[Unit], v1_tags: &[V1Tag]) -> Self {
        let mut contents = Self::default();
        for unit in units {
            match unit {
                Unit::Blob(b) => contents.blobs.push(Entry {
                    digest: b.digest.clone(),
                    size: b.size,
                }),
                Unit::Manifest(ManifestUnit {
                    digest,
                    size,
                    media_type,
                    ..
                })
                | Unit::ManifestList(ManifestListUnit {
                    digest,
                    size,
                    media_type,
                    ..
                }) => contents.manifests.push(ManifestEntry {
                    digest: digest.clone(),
                    size: *size,
                    media_type: media_type.clone(),
                }),
                Unit::Tag(t) => contents.tags.push(TagEntry {
                    name: t.name.clone(),
                    digest: t.manifest_digest.clone(),
                }),
                Unit::Image(i) => contents.v1_images.push(i.clone()),
            }
        }
        let lists = units.iter().filter_map(|unit| match unit {
            Unit::ManifestList(l) if !l.selection.absent.is_empty() => Some(l),
            _ => None,
        });
        contents.sparse.extend(lists.map(|l| SparseEntry {
            digest: l.digest.clone(),
            absent: l.selection.absent.clone(),
        }));
        let images: BTreeSet<_> = contents.v1_images.iter().map(|i| &i.image_id).collect();
        contents.v1_tags = v1_tags
            .iter()
            .filter(|t| images.contains(&t.image_id))
            .cloned()
            .collect();
        contents.blobs.sort_by(|a, b| a.digest.cmp(&b.digest));
        contents.manifests.sort_by(|a, b| a.digest.cmp(&b.digest));
        contents
            .tags
            .sort_by(|a, b| (&a.name, &a.digest).cmp(&(&b.name, &b.digest)));
        contents.sparse.sort_by(|a, b| a.digest.cmp(&b.digest));
        contents.v1_images.sort_by(|a, b| a.image_id.cmp(&b.image_id));
        contents.v1_tags.sort_by(|a, b| a.tag.cmp(&b.tag));
        contents
    }

    /// One digest over all of it: two sides that have the same state have the same content. It does not depend on
    /// how the export was written.
    pub fn state(&self, repository: &RepositoryId) -> Digest {
        // Fields stand in the order of the declaration; the lists are sorted.
        Digest::sha256(json!({"repository": repository, "contents": self}).to_string())
    }

    /// Every file that the content needs, each once, manifests first. `None` where the size is not listed: the two
    /// small files of a v1 image.
    pub fn files(&self) -> Vec<(Digest, Option<u64>)> {
        let mut seen = BTreeSet::new();
        let manifests = self.manifests.iter().map(|m| (&m.digest, Some(m.size)));
        let blobs = self.blobs.iter().map(|b| (&b.digest, Some(b.size)));
        let v1 = self.v1_images.iter().flat_map(|i| {
            [
                (&i.layer_digest, Some(i.layer_size)),
                (&i.json_digest, None),
                (&i.ancestry_digest, None),
            ]
        });
        manifests
            .chain(blobs)
            .chain(v1)
            .filter(|(digest, _)| seen.insert(*digest))
            .map(|(digest, size)| (digest.clone(), size))
            .collect()
    }

    /// What is named and not listed, in words; nothing if the content is complete. `manifests` are the units of the
    /// listed manifests. Layers that are fetched by urls of their own need not be there.
    pub fn missing(&self, manifests: &[Unit]) -> Vec<String> {
        let blobs: BTreeSet<&Digest> = self.blobs.iter().map(|b| &b.digest).collect();
        let listed: BTreeSet<&Digest> = self.manifests.iter().map(|m| &m.digest).collect();
        let mut missing = Vec::new();
        for unit in manifests {
            match unit {
                Unit::Manifest(m) => missing.extend(
                    m.blobs()
                        .filter(|d| !blobs.contains(d))
                        .map(|d| format!("blob {d} of manifest {}", m.digest)),
                ),
                Unit::ManifestList(l) => missing.extend(
                    l.needed()
                        .filter(|m| !listed.contains(&m.digest))
                        .map(|m| format!("manifest {} of list {}", m.digest, l.digest)),
                ),
                Unit::Blob(_) | Unit::Image(_) | Unit::Tag(_) => {}
            }
        }
        missing.extend(
            self.tags
                .iter()
                .filter(|t| !listed.contains(&t.digest))
                .map(|t| format!("manifest {} of tag {}", t.digest, t.name)),
        );
        missing
    }

    /// Tells a list that was read from its bytes which of its members need not be there.
    pub fn select(&self, list: &mut ManifestListUnit) {
        if let Ok(found) = self.sparse.binary_search_by(|s| s.digest.cmp(&list.digest)) {
            let absent = self.sparse.get(found).map(|s| s.absent.clone());
            list.selection.absent = absent.unwrap_or_default();
        }
    }

    /// `index.json` of the layout: every tag, and what no tag and no list leads to, such as referrers.
    pub fn index(&self, manifests: &[Unit]) -> Vec<u8> {
        let by_digest: BTreeMap<&Digest, &ManifestEntry> =
            self.manifests.iter().map(|m| (&m.digest, m)).collect();
        let artifact_types: BTreeMap<&Digest, &str> = manifests
            .iter()
            .filter_map(|unit| match unit {
                Unit::Manifest(m) if m.subject.is_some() => Some((&m.digest, m.artifact_type.as_deref()?)),
                Unit::ManifestList(l) => Some((&l.digest, l.artifact_type.as_deref()?)),
                _ => None,
            })
            .collect();
        let descriptor = |m: &ManifestEntry| {
            let mut it = json!({"mediaType": m.media_type, "digest": m.digest, "size": m.size});
            if let Some(artifact_type) = artifact_types.get(&m.digest) {
                it["artifactType"] = json!(artifact_type);
            }
            it
        };
        let mut led_to: BTreeSet<&Digest> = manifests
            .iter()
            .filter_map(|unit| match unit {
                Unit::ManifestList(l) => Some(l.manifests.iter().map(|m| &m.digest)),
                _ => None,
            })
            .flatten()
            .collect();
        let mut entries: Vec<Value> = Vec::new();
        for tag in &self.tags {
            if let Some(manifest) = by_digest.get(&tag.digest) {
                let mut entry = descriptor(manifest);
                entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag.name});
                entries.push(entry);
                led_to.insert(&tag.digest);
            }
        }
        entries.extend(
            self.manifests
                .iter()
                .filter(|m| !led_to.contains(&m.digest))
                .map(descriptor),
        );
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": entries,
        })
        .to_string()
        .into_bytes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use pulp_model::{
        MediaType,
        image::Manifest,
        unit::{BlobUnit, ManifestKind, TagUnit},
    };

    use super::*;

    fn unit(manifest: Manifest) -> Unit {
        match manifest {
            Manifest::Image(m) => Unit::Manifest(m),
            Manifest::List(l) => Unit::ManifestList(l),
        }
    }

    fn image(subject: Option<&Digest>) -> (Unit, Digest) {
        let blob = Digest::sha256("blob");
        let mut text = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST,
            "config": {"mediaType": "application/x", "digest": blob, "size": 4}, "layers": []});
        if let Some(subject) = subject {
            text["subject"] = json!({"mediaType": MediaType::OCI_MANIFEST, "digest": subject, "size": 1});
            text["artifactType"] = json!("application/sbom");
        }
        let manifest = Manifest::parse(text.to_string().as_bytes(), None).unwrap();
        let digest = manifest.digest().clone();
        (unit(manifest), digest)
    }

    fn tag(name: &str, digest: &Digest) -> Unit {
        Unit::Tag(TagUnit {
            name: name.parse().unwrap(),
            repo_id: "r".parse().unwrap(),
            manifest_digest: digest.clone(),
            schema_version: 2,
            manifest_type: ManifestKind::Image,
        })
    }

    fn blob() -> Unit {
        Unit::Blob(BlobUnit {
            digest: Digest::sha256("blob"),
            size: 4,
        })
    }

    #[test]
    fn the_state_depends_on_content_and_not_on_order() {
        let (manifest, digest) = image(None);
        let repo = "r".parse().unwrap();
        let state = |units: &[Unit]| Contents::of(units, &[]).state(&repo);
        let one = state(&[blob(), manifest.clone(), tag("a", &digest), tag("b", &digest)]);
        let other = state(&[tag("b", &digest), tag("a", &digest), manifest.clone(), blob()]);
        assert_eq!(one, other);
        assert_ne!(one, state(&[blob(), manifest, tag("a", &digest)]));
    }

    #[test]
    fn the_index_names_tags_and_lists_referrers_without_a_name() {
        let (manifest, digest) = image(None);
        let (referrer, refers) = image(Some(&digest));
        let units = [blob(), manifest, referrer, tag("latest", &digest)];
        let contents = Contents::of(&units, &[]);
        assert_eq!(contents.missing(&units), Vec::<String>::new());
        let index: Value = serde_json::from_slice(&contents.index(&units)).unwrap();
        let entries = index["manifests"].as_array().unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(
            entries[0]["annotations"]["org.opencontainers.image.ref.name"],
            "latest"
        );
        assert_eq!(entries[1]["digest"], json!(refers));
        assert_eq!(entries[1]["artifactType"], "application/sbom");
    }

    #[test]
    fn what_a_filter_left_out_may_be_missing_and_nothing_else() {
        let (here, digest) = image(None);
        let (left_out, lost) = (Digest::sha256("left out"), Digest::sha256("lost"));
        let member =
            |digest: &Digest| json!({"mediaType": MediaType::OCI_MANIFEST, "digest": digest, "size": 1});
        let index = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX,
            "manifests": [member(&digest), member(&left_out), member(&lost)]});
        let read = || match Manifest::parse(index.to_string().as_bytes(), None).unwrap() {
            Manifest::List(list) => list,
            Manifest::Image(_) => unreachable!(),
        };
        let mut sparse = read();
        let whole = Unit::ManifestList(sparse.clone());
        sparse.selection.absent = [left_out.clone()].into();
        let units = [blob(), here.clone(), Unit::ManifestList(sparse)];
        let contents = Contents::of(&units, &[]);
        let missing = contents.missing(&units);
        assert!(
            missing.len() == 1 && missing[0].contains(&lost.to_string()),
            "{missing:?}"
        );

        // The other side reads the index from its bytes, and the rest from the list of contents.
        let text = serde_json::to_string(&contents).unwrap();
        let listed: Contents = serde_json::from_str(&text).unwrap();
        let mut list = read();
        listed.select(&mut list);
        let there = [blob(), here.clone(), Unit::ManifestList(list)];
        assert_eq!(listed.missing(&there), missing);
        let repo = "r".parse().unwrap();
        assert_eq!(Contents::of(&there, &[]).state(&repo), contents.state(&repo));
        assert_ne!(
            Contents::of(&[blob(), here, whole], &[]).state(&repo),
            contents.state(&repo)
        );
    }

    #[test]
    fn what_is_named_and_not_there_is_told() {
        let (manifest, digest) = image(None);
        let other = Digest::sha256("other");
        let units = [manifest, tag("a", &digest), tag("b", &other)];
        let missing = Contents::of(&units, &[]).missing(&units);
        assert_eq!(missing.len(), 2);
        assert!(missing[0].starts_with("blob sha256:"), "{missing:?}");
        assert!(missing[1].ends_with("of tag b"), "{missing:?}");
    }
}
