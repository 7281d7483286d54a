//! Archives that hold manifests verbatim: OCI layouts and skopeo's `dir:`. From their roots on, everything that
//! a manifest or list refers to is found, verified and taken as it is.
//!
//! Sources: OCI image specification `image-layout.md`, `manifest.md`, `image-index.md`; containers/image
//! `directory/directory_dest.go` for the names in `dir:`.

use std::collections::{BTreeMap, BTreeSet};

use pulp_model::{
    Algorithm, Digest, MediaType,
    image::{MAX_MANIFEST_BYTES, Manifest},
    unit::{ImageId, LayerRef, ListMember, ManifestUnit},
};

use crate::{
    ArchiveError, Rejection,
    docker::diff_ids,
    index::{Place, too_large},
    json,
    layer::{GzipLayer, Session, verify},
    output::Output,
    upload::Compression,
    v1,
};

/// Lists within lists, at most.
const MAX_DEPTH: usize = 8;

/// By which names blobs lie in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    /// `blobs/<algorithm>/<hex>`
    Oci,
    /// `<hex>`, before version 1.1 `<hex>.tar`; members of lists `<hex>.manifest.json`.
    Dir,
}

impl Naming {
    fn names(self, digest: &Digest) -> Vec<String> {
        let hex = digest.hex();
        match self {
            Self::Oci => vec![format!("blobs/{}/{hex}", digest.algorithm().as_str())],
            Self::Dir => vec![
                hex.to_owned(),
                format!("{hex}.tar"),
                format!("{hex}.manifest.json"),
            ],
        }
    }
}

/// The manifests of an archive and where everything lies.
pub(crate) struct Closure {
    naming: Naming,
    manifests: BTreeMap<Digest, Node>,
}

/// A manifest or list of the archive.
struct Node {
    file: String,
    place: Place,
    manifest: Manifest,
    /// What it refers to, itself or through its members, and is nowhere; the first few.
    missing: Vec<String>,
}

impl Closure {
    pub(crate) const fn new(naming: Naming) -> Self {
        Self {
            naming,
            manifests: BTreeMap::new(),
        }
    }

    /// The manifest of this digest, if the archive has it.
    pub(crate) fn get(&self, digest: &Digest) -> Option<&Manifest> {
        self.manifests.get(digest).map(|node| &node.manifest)
    }

    /// What is missing of a manifest's closure.
    pub(crate) fn missing(&self, digest: &Digest) -> &[String] {
        self.manifests.get(digest).map_or(&[], |node| &node.missing)
    }

    fn find(&self, session: &Session<'_>, digest: &Digest) -> Result<Option<(String, Place)>, ArchiveError> {
        for name in self.naming.names(digest) {
            if let Some(place) = session.index.find(&name)? {
                return Ok(Some((name, place)));
            }
        }
        Ok(None)
    }

    /// Reads the manifest of this digest and all below it. An absent one is noted, not refused: whether that
    /// matters is the caller's to say.
    pub(crate) fn read(
        &mut self,
        session: &Session<'_>,
        digest: &Digest,
        size: Option<u64>,
        media_type: Option<&MediaType>,
    ) -> Result<(), ArchiveError> {
        self.visit(session, digest, size, media_type, 0).map(|_| ())
    }

    /// Reads the manifest in `file`, whatever its digest is, and all below it. Gives the digest.
    pub(crate) fn read_file(&mut self, session: &Session<'_>, file: &str) -> Result<Digest, ArchiveError> {
        let place = session.index.require(file)?;
        let bytes = session.index.bytes(file, place, MAX_MANIFEST_BYTES)?;
        let manifest = Manifest::parse(&bytes, None).map_err(|e| json::bad(file, &e))?;
        let digest = manifest.digest().clone();
        self.enter(session, file.to_owned(), place, manifest, 0)?;
        Ok(digest)
    }

    /// Gives what is missing.
    fn visit(
        &mut self,
        session: &Session<'_>,
        digest: &Digest,
        size: Option<u64>,
        media_type: Option<&MediaType>,
        depth: usize,
    ) -> Result<Vec<String>, ArchiveError> {
        if let Some(known) = self.manifests.get(digest) {
            return Ok(known.missing.clone());
        }
        let Some((file, place)) = self.find(session, digest)? else {
            let held = session.sink.contains(digest)?.is_some();
            return Ok(if held {
                Vec::new()
            } else {
                vec![digest.to_string()]
            });
        };
        let inconsistent = |reason: String| Rejection::Inconsistent {
            image_id: digest.to_string(),
            file: file.clone(),
            reason,
        };
        if digest.algorithm() != Algorithm::Sha256 {
            return Err(inconsistent("manifests are known by their sha256 digest here".to_owned()).into());
        }
        let bytes = session.index.bytes(&file, place, MAX_MANIFEST_BYTES)?;
        verify(&file, digest, Digest::sha256(&bytes))?;
        if let Some(size) = size.filter(|size| *size != place.size) {
            return Err(inconsistent(format!(
                "it has {} bytes where {size} are referred to",
                place.size
            ))
            .into());
        }
        let manifest = Manifest::parse(&bytes, media_type).map_err(|e| json::bad(&file, &e))?;
        self.enter(session, file, place, manifest, depth)
    }

    fn enter(
        &mut self,
        session: &Session<'_>,
        file: String,
        place: Place,
        manifest: Manifest,
        depth: usize,
    ) -> Result<Vec<String>, ArchiveError> {
        let limits = &session.options.limits;
        if depth > MAX_DEPTH {
            return Err(too_large(
                &file,
                depth as u64,
                MAX_DEPTH as u64,
                "lists around it",
            ));
        }
        if session.progress.is_canceled() {
            return Err(ArchiveError::Canceled);
        }
        let mut missing = Vec::new();
        match &manifest {
            Manifest::Image(image) => {
                for digest in image.blobs() {
                    if self.find(session, digest)?.is_none() && session.sink.contains(digest)?.is_none() {
                        missing.push(digest.to_string());
                    }
                }
            }
            Manifest::List(list) => {
                for ListMember {
                    digest,
                    media_type,
                    size,
                    ..
                } in &list.manifests
                {
                    let below = self.visit(session, digest, Some(*size), Some(media_type), depth + 1)?;
                    missing.extend(below);
                }
            }
        }
        missing.truncate(10);
        let digest = manifest.digest().clone();
        self.manifests.insert(
            digest,
            Node {
                file,
                place,
                manifest,
                missing: missing.clone(),
            },
        );
        if self.manifests.len() as u64 > limits.images {
            let count = self.manifests.len() as u64;
            return Err(too_large("the archive", count, limits.images, "manifests"));
        }
        Ok(missing)
    }

    /// The images at or below a manifest whose closures are complete, in the order of the lists.
    pub(crate) fn complete_images<'a>(
        &'a self,
        digest: &Digest,
    ) -> Vec<(&'a ManifestUnit, Option<&'a ListMember>)> {
        let mut images = Vec::new();
        let mut seen = BTreeSet::new();
        self.collect(digest, None, &mut seen, &mut images);
        images
    }

    fn collect<'a>(
        &'a self,
        digest: &Digest,
        member: Option<&'a ListMember>,
        seen: &mut BTreeSet<Digest>,
        images: &mut Vec<(&'a ManifestUnit, Option<&'a ListMember>)>,
    ) {
        let Some(node) = self.manifests.get(digest).filter(|_| seen.insert(digest.clone())) else {
            return;
        };
        match &node.manifest {
            Manifest::Image(image) if node.missing.is_empty() => images.push((image, member)),
            Manifest::Image(_) => {}
            Manifest::List(list) => {
                for member in &list.manifests {
                    self.collect(&member.digest, Some(member), seen, images);
                }
            }
        }
    }

    /// Stores these manifests and all below them, blobs first.
    pub(crate) fn store(
        &self,
        session: &Session<'_>,
        roots: &[Digest],
        out: &mut Output,
    ) -> Result<(), ArchiveError> {
        let mut nodes = Vec::new();
        let mut seen = BTreeSet::new();
        for root in roots {
            self.below(root, &mut seen, &mut nodes);
        }
        let mut blobs: BTreeMap<&Digest, Option<u64>> = BTreeMap::new();
        for node in &nodes {
            if let Manifest::Image(image) = &node.manifest {
                blobs.extend(image.config_layer.iter().map(|config| (config, None)));
                let held = image.fs_layers.iter().filter(|layer| layer.is_held());
                blobs.extend(held.map(|layer| (&layer.blob_sum, layer.size)));
            }
        }
        let mut found = Vec::with_capacity(blobs.len());
        for (digest, size) in blobs {
            match self.find(session, digest)? {
                Some((name, place)) => found.push((digest, size, name, place)),
                None => match session.sink.contains(digest)? {
                    Some(size) => out.blob(digest.clone(), size),
                    None => {
                        return Err(Rejection::LayerMissing {
                            layer: digest.to_string(),
                        }
                        .into());
                    }
                },
            }
        }
        session.announce(&found.iter().map(|(.., place)| *place).collect());
        for (digest, size, name, place) in found {
            if let Some(size) = size.filter(|size| *size != place.size) {
                return Err(Rejection::Inconsistent {
                    image_id: digest.to_string(),
                    file: name,
                    reason: format!("it has {} bytes where {size} are referred to", place.size),
                }
                .into());
            }
            session.copy(&name, place, digest)?;
            out.blob(digest.clone(), place.size);
        }
        for node in nodes {
            let bytes = session.index.bytes(&node.file, node.place, MAX_MANIFEST_BYTES)?;
            crate::sink::put_bytes(session.sink, &bytes)?;
            if let Manifest::List(list) = &node.manifest {
                let absent = list
                    .manifests
                    .iter()
                    .filter(|m| !self.manifests.contains_key(&m.digest));
                absent.for_each(|member| out.reference(member.digest.clone()));
            }
            out.manifest(node.manifest.clone());
        }
        Ok(())
    }

    /// This node and those below it, members before their lists.
    fn below<'a>(&'a self, digest: &Digest, seen: &mut BTreeSet<Digest>, nodes: &mut Vec<&'a Node>) {
        let Some(node) = self.manifests.get(digest).filter(|_| seen.insert(digest.clone())) else {
            return;
        };
        if let Manifest::List(list) = &node.manifest {
            for member in &list.manifests {
                self.below(&member.digest, seen, nodes);
            }
        }
        nodes.push(node);
    }

    /// What v1 images need of a manifest: its config and each layer with the digest of its content. None, with
    /// a notice, where it is not an image of tar layers that are all in the archive.
    pub(crate) fn v1_source<'a>(
        &self,
        session: &Session<'_>,
        image: &'a ManifestUnit,
        out: &mut Output,
    ) -> Result<Option<V1Source<'a>>, ArchiveError> {
        let mut none = |reason: &str| {
            out.notice(format!("manifest {} gets no v1 images: {reason}", image.digest));
            Ok(None)
        };
        let Some(config) = &image.config_layer else {
            return none("it has no config");
        };
        let Some((file, place)) = self.find(session, config)? else {
            return none("its config is not in the archive");
        };
        if place.size > session.options.limits.config_bytes {
            return none("its config is too large");
        }
        let bytes = session
            .index
            .bytes(&file, place, session.options.limits.config_bytes)?;
        verify(&file, config, hash(config, &bytes))?;
        let Ok(diff_ids) = diff_ids(&file, &bytes) else {
            return none("its config is not an image's");
        };
        if diff_ids.len() != image.fs_layers.len() || diff_ids.is_empty() {
            return none("its config does not tell its layers");
        }
        let mut layers = Vec::with_capacity(diff_ids.len());
        for (layer, diff_id) in image.fs_layers.iter().zip(diff_ids) {
            match self.find(session, &layer.blob_sum)? {
                Some((name, place)) => layers.push((layer, name, place, diff_id)),
                None => return none("a layer is not in the archive"),
            }
        }
        Ok(Some(V1Source {
            config: bytes,
            config_digest: config.clone(),
            layers,
        }))
    }
}

fn hash(like: &Digest, bytes: &[u8]) -> Digest {
    let mut hasher = like.algorithm().hasher();
    hasher.update(bytes);
    hasher.finish()
}

/// See [`Closure::v1_source`].
pub(crate) struct V1Source<'a> {
    config: Vec<u8>,
    config_digest: Digest,
    layers: Vec<(&'a LayerRef, String, Place, Digest)>,
}

impl V1Source<'_> {
    /// Ids of the v1 images, base first.
    pub(crate) fn line(&self) -> Result<Vec<ImageId>, ArchiveError> {
        let diff_ids: Vec<Digest> = self.layers.iter().map(|(.., diff_id)| diff_id.clone()).collect();
        v1::made_ids(&diff_ids, &self.config_digest)
    }

    /// Stores the v1 images, but for those masked. A blob that is gzip serves as their layer as it is.
    pub(crate) fn store(
        &self,
        session: &mut Session<'_>,
        line: &[ImageId],
        masked: &BTreeSet<ImageId>,
        out: &mut Output,
    ) -> Result<(), ArchiveError> {
        let mut kept = Vec::with_capacity(line.len());
        let mut to_compress = BTreeSet::new();
        for (id, (_, name, place, _)) in line.iter().zip(&self.layers) {
            let compression = if masked.contains(id) {
                None
            } else {
                Some(session.compression(name, *place)?)
            };
            if compression.is_some_and(|c| c != Compression::Gzip) && !session.layers.contains_key(place) {
                to_compress.insert(*place);
            }
            kept.push(compression);
        }
        session.announce(&to_compress);
        let mut layers = Vec::with_capacity(line.len());
        for (compression, (blob, name, place, diff_id)) in kept.into_iter().zip(&self.layers) {
            let layer = match compression {
                None => {
                    layers.push(None);
                    continue;
                }
                Some(Compression::Gzip) => GzipLayer {
                    digest: blob.blob_sum.clone(),
                    size: place.size,
                    diff_id: None,
                    is_tar: true,
                },
                Some(Compression::None | Compression::Zstd) => session.gzip_layer(name, *place)?,
            };
            if let Some(got) = &layer.diff_id {
                verify(name, diff_id, got.clone())?;
            }
            layers.push(Some(layer));
        }
        v1::store_made(session, out, &self.config, line, &layers)
    }
}
