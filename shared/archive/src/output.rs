//! The units that an import gathers, each once and in the order in which they can be stored.

use std::collections::{BTreeMap, BTreeSet};

use pulp_model::{
    Digest, RepositoryId, TagName,
    unit::{BlobUnit, ImageId, ImageUnit, ManifestKind, TagUnit, Unit, V1Tag},
};

use pulp_model::image::Manifest;

use crate::{ArchiveError, Imported, Rejection, UploadKind};

#[derive(Debug, Default)]
pub(crate) struct Output {
    blobs: BTreeMap<Digest, u64>,
    images: Vec<ImageUnit>,
    manifests: Vec<Unit>,
    lists: Vec<Unit>,
    /// What of images, manifests and lists is in already.
    seen: BTreeSet<String>,
    tags: BTreeMap<TagName, TagUnit>,
    v1_tags: BTreeMap<TagName, ImageId>,
    notices: Vec<String>,
    references: BTreeSet<Digest>,
    /// What the upload is about: images that are nobody's parent here, and manifests that no list here has.
    v1_heads: Vec<ImageId>,
    v2_heads: Vec<Digest>,
}

impl Output {
    pub(crate) fn blob(&mut self, digest: Digest, size: u64) {
        self.blobs.insert(digest, size);
    }

    pub(crate) fn has_image(&self, id: &ImageId) -> bool {
        self.seen.contains(id.as_str())
    }

    /// To be called for parents before their children.
    pub(crate) fn image(&mut self, image: ImageUnit) {
        if self.seen.insert(image.image_id.to_string()) {
            self.images.push(image);
        }
    }

    /// To be called for members before their lists.
    pub(crate) fn manifest(&mut self, manifest: Manifest) {
        if self.seen.insert(manifest.digest().to_string()) {
            match manifest {
                Manifest::Image(m) => self.manifests.push(Unit::Manifest(m)),
                Manifest::List(l) => self.lists.push(Unit::ManifestList(l)),
            }
        }
    }

    /// A manifest that a list here refers to and the upload lacks.
    pub(crate) fn reference(&mut self, digest: Digest) {
        self.references.insert(digest);
    }

    pub(crate) fn v1_head(&mut self, id: ImageId) {
        if !self.v1_heads.contains(&id) {
            self.v1_heads.push(id);
        }
    }

    pub(crate) fn v2_head(&mut self, digest: Digest) {
        if !self.v2_heads.contains(&digest) {
            self.v2_heads.push(digest);
        }
    }

    pub(crate) fn v1_tag(&mut self, name: TagName, id: ImageId) {
        self.v1_tags.insert(name, id);
    }

    pub(crate) fn tag(
        &mut self,
        name: &TagName,
        repo_id: &RepositoryId,
        manifest: &Manifest,
        file: &str,
    ) -> Result<(), ArchiveError> {
        let (schema_version, manifest_type) = match manifest {
            Manifest::Image(m) => (m.schema_version, ManifestKind::Image),
            Manifest::List(l) => (l.schema_version, ManifestKind::List),
        };
        let tag = TagUnit {
            name: name.clone(),
            repo_id: repo_id.clone(),
            manifest_digest: manifest.digest().clone(),
            schema_version,
            manifest_type,
        };
        match self.tags.insert(name.clone(), tag) {
            Some(old) if old.manifest_digest != *manifest.digest() => Err(Rejection::Inconsistent {
                image_id: manifest.digest().to_string(),
                file: file.to_owned(),
                reason: format!(
                    "tag {name} names two images, {} and this one",
                    old.manifest_digest
                ),
            }
            .into()),
            _ => Ok(()),
        }
    }

    pub(crate) fn notice(&mut self, text: impl Into<String>) {
        let text = text.into();
        tracing::info!(notice = %text, "image archive");
        self.notices.push(text);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.images.is_empty() && self.manifests.is_empty() && self.lists.is_empty()
    }

    pub(crate) fn finish(self, kind: UploadKind) -> Imported {
        let head_image = match self.v1_heads.as_slice() {
            [id] if kind == UploadKind::DockerImage => self.images.iter().find(|i| i.image_id == *id),
            _ => None,
        };
        let head_manifest = || match self.v2_heads.as_slice() {
            [digest] => {
                let digest = digest.to_string();
                let all = || self.manifests.iter().chain(&self.lists);
                all().find(|unit| unit.identity() == digest).cloned()
            }
            _ => None,
        };
        let primary = head_image.cloned().map(Unit::Image).or_else(head_manifest);
        let blobs = self
            .blobs
            .into_iter()
            .map(|(digest, size)| Unit::Blob(BlobUnit { digest, size }));
        let images = self.images.into_iter().map(Unit::Image);
        let tags = self.tags.into_values().map(Unit::Tag);
        let units = blobs
            .chain(images)
            .chain(self.manifests)
            .chain(self.lists)
            .chain(tags)
            .collect();
        let v1_tags = self
            .v1_tags
            .into_iter()
            .map(|(tag, image_id)| V1Tag { tag, image_id });
        Imported {
            units,
            v1_tags: v1_tags.collect(),
            notices: self.notices,
            primary,
            references: self.references.into_iter().collect(),
        }
    }
}
