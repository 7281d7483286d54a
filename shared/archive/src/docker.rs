//! `docker save` archives with a `manifest.json`, as Docker 1.10 to 24, podman and skopeo write them.
//!
//! Each image gives a schema 2 manifest whose config is the archive's, verbatim. Layers are compressed; what is
//! inside them is not touched.
//!
//! Sources: Docker image specification v1.2, "Combined Image JSON + Filesystem Changeset Format"; Docker
//! distribution `manifest-v2-2.md`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pulp_model::{
    Digest, MediaType, TagName,
    image::{Descriptor, Manifest},
    unit::ImageId,
};
use serde::{Deserialize, Serialize};

use crate::{
    ArchiveError, Rejection, UploadKind,
    index::{Place, too_large},
    json,
    layer::{GzipLayer, Session, verify},
    names::{Repositories, tag_name},
    output::Output,
    sink::put_bytes,
    v1::{self, V1Images},
};

pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const REPOSITORIES: &str = "repositories";

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Saved {
    pub(crate) config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Saved {
    pub(crate) fn tags(&self, repositories: &mut Repositories) -> Result<Vec<TagName>, ArchiveError> {
        let references = self.repo_tags.iter().flatten();
        let tags = references.map(|reference| repositories.add_reference(reference));
        tags.filter_map(Result::transpose).collect()
    }
}

/// `repositories`: of each repository, the v1 image that a tag names.
type TagMap = BTreeMap<String, BTreeMap<String, String>>;

/// Reads `repositories`; nothing if the archive has none, as when it was saved by image id.
pub(crate) fn read_repositories(
    session: &Session<'_>,
    repositories: &mut Repositories,
) -> Result<Vec<(TagName, String)>, ArchiveError> {
    let Some(place) = session.index.find(REPOSITORIES)? else {
        return Ok(Vec::new());
    };
    let bytes = session
        .index
        .bytes(REPOSITORIES, place, session.options.limits.metadata_bytes)?;
    let map: TagMap = json::parse(REPOSITORIES, &bytes)?;
    let mut tags = Vec::new();
    for (repository, names) in map {
        repositories.add(&repository);
        for (name, id) in names {
            tags.push((tag_name(&name)?, id));
        }
    }
    Ok(tags)
}

/// An image of `manifest.json` whose files are found.
struct Planned {
    config: (String, Place),
    layers: Vec<(String, Place, Digest)>,
    tags: Vec<TagName>,
    /// Ids of the v1 images that stand for the layers where the archive has no v1 images of its own.
    line: Vec<ImageId>,
}

/// Imports an archive with a `manifest.json`.
pub(crate) fn import(
    session: &mut Session<'_>,
    saved: &[Saved],
    out: &mut Output,
) -> Result<(), ArchiveError> {
    let mut repositories = Repositories::default();
    let v1_tags = read_repositories(session, &mut repositories)?;
    let planned = plan(session, saved, &mut repositories)?;
    repositories.check()?;
    if planned.is_empty() {
        return Err(Rejection::NoImages {
            reason: format!("{MANIFEST} lists none"),
        }
        .into());
    }

    let wanted = session.options.unit_type == UploadKind::DockerImage;
    let own = if wanted && v1::present(session) {
        Some(v1::read(session, out)?)
    } else {
        None
    };
    let mask = session.options.mask_id.clone();
    let (masked_places, masked) = match &own {
        Some(images) => (images.masked_places(session)?, BTreeSet::new()),
        None if wanted => {
            let lines = planned.iter().map(|image| &image.line);
            (BTreeSet::new(), v1::masked_of_made(mask.as_ref(), lines, out))
        }
        None => Default::default(),
    };
    let is_masked = |place: &Place, id: &ImageId| masked_places.contains(place) || masked.contains(id);

    let mut places = own
        .as_ref()
        .map_or_else(|| Ok(BTreeSet::new()), |images| images.places(session))?;
    for image in &planned {
        let layers = image.layers.iter().zip(&image.line);
        let kept = layers.filter(|((_, place, _), id)| !is_masked(place, id));
        places.extend(kept.map(|((_, place, _), _)| *place));
    }
    session.announce(&places);

    let mut by_diff_id = HashMap::new();
    for image in &planned {
        let (name, place) = &image.config;
        let config = session
            .index
            .bytes(name, *place, session.options.limits.config_bytes)?;
        let mut layers = Vec::with_capacity(image.layers.len());
        for (layer, id) in image.layers.iter().zip(&image.line) {
            let kept = !is_masked(&layer.1, id);
            layers.push(
                kept.then(|| store_layer(session, layer, &mut by_diff_id))
                    .transpose()?,
            );
        }
        if wanted && own.is_none() {
            v1::store_made(session, out, &config, &image.line, &layers)?;
            tag_made(image, &masked, out);
        }
        // A manifest has all of its layers or is none.
        match layers.into_iter().collect::<Option<Vec<_>>>() {
            Some(layers) => {
                let manifest = store_manifest(session, out, &config, &layers)?;
                for tag in &image.tags {
                    out.tag(tag, &session.options.repo_id, &manifest, MANIFEST)?;
                }
            }
            None => out.notice(format!("{name} has masked layers and gets no manifest")),
        }
    }
    if let Some(images) = &own {
        images.store(session, out)?;
        tag_own(&v1_tags, images, &planned, out)?;
    }
    if planned.iter().all(|image| image.tags.is_empty()) {
        out.notice("the archive was saved without a tag; its image is imported without one");
    }
    Ok(())
}

/// Finds the files of each image and what its layers should be.
fn plan(
    session: &Session<'_>,
    saved: &[Saved],
    repositories: &mut Repositories,
) -> Result<Vec<Planned>, ArchiveError> {
    let limits = &session.options.limits;
    if saved.len() as u64 > limits.images {
        return Err(too_large(MANIFEST, saved.len() as u64, limits.images, "images"));
    }
    let mut planned = Vec::with_capacity(saved.len());
    let mut total = 0;
    for image in saved {
        let names = image.layers.as_deref().unwrap_or_default();
        let count = names.len() as u64;
        total += count;
        if count > limits.layers || total > limits.members {
            return Err(too_large(MANIFEST, count.max(total), limits.layers, "layers"));
        }
        let place = session.index.require(&image.config)?;
        let config = session.index.bytes(&image.config, place, limits.config_bytes)?;
        let config_digest = Digest::sha256(&config);
        check_named_by_digest(&image.config, &config_digest)?;
        let diff_ids = diff_ids(&image.config, &config)?;
        if diff_ids.len() != names.len() {
            return Err(Rejection::Inconsistent {
                image_id: config_digest.to_string(),
                file: image.config.clone(),
                reason: format!("it has {} layers, {MANIFEST} lists {count}", diff_ids.len()),
            }
            .into());
        }
        let line = v1::made_ids(&diff_ids, &config_digest)?;
        let layers = names.iter().zip(diff_ids).map(|(name, diff_id)| {
            let place = session.index.require(name)?;
            Ok((name.clone(), place, diff_id))
        });
        planned.push(Planned {
            config: (image.config.clone(), place),
            layers: layers.collect::<Result<_, ArchiveError>>()?,
            tags: image.tags(repositories)?,
            line,
        });
    }
    Ok(planned)
}

/// A config whose name is a digest must be what its name says.
fn check_named_by_digest(name: &str, digest: &Digest) -> Result<(), ArchiveError> {
    let base = name.rsplit('/').next().unwrap_or(name);
    let base = base.strip_suffix(".json").unwrap_or(base);
    let hex = base.strip_prefix("sha256:").unwrap_or(base);
    match Digest::from_sha256_hex(hex) {
        Ok(expected) => verify(name, &expected, digest.clone()),
        Err(_) => Ok(()),
    }
}

/// Digests of an image's expanded layers, as its config has them.
pub(crate) fn diff_ids(file: &str, config: &[u8]) -> Result<Vec<Digest>, ArchiveError> {
    #[derive(Deserialize)]
    struct Config {
        rootfs: Option<RootFs>,
    }
    #[derive(Deserialize)]
    struct RootFs {
        diff_ids: Option<Vec<Digest>>,
    }
    let config: Config = json::parse(file, config)?;
    let missing = |field: &str| Rejection::FieldMissing {
        file: file.to_owned(),
        field: field.to_owned(),
    };
    let rootfs = config.rootfs.ok_or_else(|| missing("rootfs"))?;
    // Go writes an empty list as null.
    Ok(rootfs.diff_ids.unwrap_or_default())
}

/// Stores a layer if it is what the config says. The same layer under another name is not stored again.
fn store_layer(
    session: &mut Session<'_>,
    (name, place, diff_id): &(String, Place, Digest),
    by_diff_id: &mut HashMap<Digest, GzipLayer>,
) -> Result<GzipLayer, ArchiveError> {
    if let Some(layer) = by_diff_id.get(diff_id) {
        session.layers.entry(*place).or_insert_with(|| layer.clone());
        return Ok(layer.clone());
    }
    let layer = session.gzip_layer(name, *place)?;
    if let Some(got) = &layer.diff_id {
        verify(name, diff_id, got.clone())?;
    }
    by_diff_id.insert(diff_id.clone(), layer.clone());
    Ok(layer)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Schema2<'a> {
    schema_version: u8,
    media_type: MediaType,
    config: Descriptor,
    layers: &'a [Descriptor],
}

/// Makes the schema 2 manifest of a config and its layers and stores all that belongs to it.
pub(crate) fn store_manifest(
    session: &Session<'_>,
    out: &mut Output,
    config: &[u8],
    layers: &[GzipLayer],
) -> Result<Manifest, ArchiveError> {
    let config_digest = put_bytes(session.sink, config)?;
    out.blob(config_digest, config.len() as u64);
    for layer in layers {
        out.blob(layer.digest.clone(), layer.size);
    }
    let (manifest, bytes) = made_manifest(config, layers.iter().map(|l| (&l.digest, l.size)))?;
    put_bytes(session.sink, &bytes)?;
    out.v2_head(manifest.digest().clone());
    out.manifest(manifest.clone());
    Ok(manifest)
}

/// Makes the schema 2 manifest of a config and its layers, given base first by digest and size.
pub(crate) fn made_manifest<'a>(
    config: &[u8],
    layers: impl Iterator<Item = (&'a Digest, u64)>,
) -> Result<(Manifest, Vec<u8>), ArchiveError> {
    let descriptor = |media_type, digest: &Digest, size| Descriptor {
        media_type,
        digest: digest.clone(),
        size,
        platform: None,
        annotations: BTreeMap::new(),
    };
    let layers: Vec<Descriptor> = layers
        .map(|(digest, size)| descriptor(MediaType::DOCKER_LAYER_GZIP, digest, size))
        .collect();
    let manifest = Schema2 {
        schema_version: 2,
        media_type: MediaType::DOCKER_MANIFEST,
        config: descriptor(
            MediaType::DOCKER_CONFIG,
            &Digest::sha256(config),
            config.len() as u64,
        ),
        layers: &layers,
    };
    let bytes = json::bytes("manifest", &manifest)?;
    let parsed = Manifest::parse(&bytes, None).map_err(|e| json::bad("manifest", &e))?;
    Ok((parsed, bytes))
}

/// v1 tags of an image whose v1 images were made here.
fn tag_made(image: &Planned, masked: &BTreeSet<ImageId>, out: &mut Output) {
    match image.line.last() {
        Some(top) if !masked.contains(top) => {
            for tag in &image.tags {
                out.v1_tag(tag.clone(), top.clone());
            }
        }
        Some(_) => {}
        None => out.notice(format!("{} has no layers and so no v1 image", image.config.0)),
    }
}

/// v1 tags of the archive's own v1 images: as `repositories` has them, else by the directory of the top layer.
fn tag_own(
    v1_tags: &[(TagName, String)],
    images: &V1Images,
    planned: &[Planned],
    out: &mut Output,
) -> Result<(), ArchiveError> {
    let mut tagged: BTreeSet<&TagName> = BTreeSet::new();
    for (tag, id) in v1_tags {
        tagged.insert(tag);
        tag_v1(tag, id, images, out)?;
    }
    for image in planned {
        let directory = image
            .layers
            .last()
            .and_then(|(name, ..)| name.trim_start_matches("./").split_once('/'));
        let top = directory.and_then(|(directory, _)| directory.parse::<ImageId>().ok());
        let top = top.filter(|id| images.images.contains_key(id));
        for tag in image.tags.iter().filter(|tag| !tagged.contains(tag)) {
            match &top {
                Some(id) => tag_v1(tag, id.as_str(), images, out)?,
                None => out.notice(format!("no v1 image is known for tag {tag}")),
            }
        }
    }
    Ok(())
}

pub(crate) fn tag_v1(
    tag: &TagName,
    id: &str,
    images: &V1Images,
    out: &mut Output,
) -> Result<(), ArchiveError> {
    let known = id
        .parse::<ImageId>()
        .ok()
        .filter(|id| images.images.contains_key(id));
    let Some(image) = known else {
        return Err(Rejection::Inconsistent {
            image_id: id.chars().take(100).collect(),
            file: REPOSITORIES.to_owned(),
            reason: format!("tag {tag} names an image that is not in the archive"),
        }
        .into());
    };
    if images.masked.contains(&image) {
        out.notice(format!("tag {tag} names a masked image and is left out"));
    } else {
        out.v1_tag(tag.clone(), image);
    }
    Ok(())
}
