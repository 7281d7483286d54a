//! v1 images: read from `<id>/json` where the archive has them, made from a config where it has not, so that
//! the v1 API serves every upload.
//!
//! Sources: Docker image specification v1; pulp_docker 1.0 `importers/upload.py`, `common/tarutils.py`.

use std::collections::{BTreeMap, BTreeSet};

use pulp_model::{
    Digest,
    unit::{ImageId, ImageUnit},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    ArchiveError, Rejection,
    index::{Place, too_large},
    json,
    layer::{GzipLayer, Session},
    output::Output,
    sink::put_bytes,
};

/// An image as `<id>/json` describes it.
#[derive(Debug)]
pub(crate) struct V1Image {
    pub(crate) parent: Option<ImageId>,
    size: Option<i64>,
    /// Generations above it.
    depth: u64,
}

/// All v1 images of an archive.
#[derive(Debug, Default)]
pub(crate) struct V1Images {
    pub(crate) images: BTreeMap<ImageId, V1Image>,
    /// The masked image and its ancestors.
    pub(crate) masked: BTreeSet<ImageId>,
}

/// What of the JSON concerns us. Old versions of Docker wrote other capitals.
#[derive(Deserialize)]
struct V1Json {
    id: Option<String>,
    #[serde(rename = "Id")]
    id_capital: Option<String>,
    parent: Option<String>,
    #[serde(rename = "Parent")]
    parent_capital: Option<String>,
    #[serde(rename = "Size")]
    size: Option<serde_json::Value>,
}

pub(crate) fn json_file(id: &ImageId) -> String {
    format!("{id}/json")
}

pub(crate) fn layer_file(id: &ImageId) -> String {
    format!("{id}/layer.tar")
}

/// Whether the archive has v1 images.
pub(crate) fn present(session: &Session<'_>) -> bool {
    directories(session).next().is_some()
}

/// Names of the top directories that hold a file `json`.
fn directories<'a>(session: &'a Session<'_>) -> impl Iterator<Item = &'a str> {
    let inner = session
        .index
        .names()
        .filter_map(|name| name.strip_suffix("/json"));
    inner.filter(|directory| !directory.contains('/'))
}

/// Reads all v1 images and checks that each one's ancestors are there.
pub(crate) fn read(session: &Session<'_>, out: &mut Output) -> Result<V1Images, ArchiveError> {
    let mut images = BTreeMap::new();
    let limits = &session.options.limits;
    for directory in directories(session) {
        let (id, image) = read_one(session, directory)?;
        images.insert(id, image);
        if images.len() as u64 > limits.images {
            return Err(too_large(
                "the archive",
                images.len() as u64,
                limits.images,
                "images",
            ));
        }
    }
    let mut all = V1Images {
        images,
        masked: BTreeSet::new(),
    };
    all.measure(limits.layers)?;
    if let Some(mask) = &session.options.mask_id {
        if all.images.contains_key(mask) {
            all.masked = all.line(mask).into_iter().cloned().collect();
        } else {
            out.notice(format!(
                "mask_id {mask} is no image of the archive; nothing is masked"
            ));
        }
    }
    Ok(all)
}

fn read_one(session: &Session<'_>, directory: &str) -> Result<(ImageId, V1Image), ArchiveError> {
    let file = format!("{directory}/json");
    let place = session.index.require(&file)?;
    let bytes = session
        .index
        .bytes(&file, place, session.options.limits.metadata_bytes)?;
    let json: V1Json = json::parse(&file, &bytes)?;
    let id = json
        .id
        .or(json.id_capital)
        .ok_or_else(|| Rejection::FieldMissing {
            file: file.clone(),
            field: "id".to_owned(),
        })?;
    let inconsistent = |reason: String| Rejection::Inconsistent {
        image_id: id.chars().take(100).collect(),
        file: file.clone(),
        reason,
    };
    if id != directory {
        return Err(inconsistent(format!("the image lies in directory {directory:?}")).into());
    }
    let image_id: ImageId = id.parse().map_err(|e| inconsistent(format!("{e}")))?;
    let parent = json
        .parent
        .or(json.parent_capital)
        .filter(|parent| !parent.is_empty());
    let parent = parent
        .map(|parent| parent.parse::<ImageId>())
        .transpose()
        .map_err(|e| inconsistent(format!("parent {e}")))?;
    let size = json.size.as_ref().and_then(serde_json::Value::as_i64);
    Ok((
        image_id,
        V1Image {
            parent,
            size,
            depth: 0,
        },
    ))
}

impl V1Images {
    /// Finds how deep each image stands; refuses absent parents, circles and endless lines.
    fn measure(&mut self, limit: u64) -> Result<(), ArchiveError> {
        let mut depths: BTreeMap<ImageId, u64> = BTreeMap::new();
        for start in self.images.keys() {
            let mut way = vec![start];
            let mut at = start;
            let mut depth = loop {
                if let Some(known) = depths.get(at) {
                    break *known;
                }
                let Some(parent) = self.images.get(at).and_then(|image| image.parent.as_ref()) else {
                    break 0;
                };
                if !self.images.contains_key(parent) {
                    let (image_id, parent_id) = (at.clone(), parent.clone());
                    return Err(Rejection::ParentMissing { image_id, parent_id }.into());
                }
                if way.len() > self.images.len() {
                    return Err(Rejection::Inconsistent {
                        image_id: start.to_string(),
                        file: json_file(start),
                        reason: "the image is its own ancestor".to_owned(),
                    }
                    .into());
                }
                way.push(parent);
                at = parent;
            };
            for id in way.into_iter().rev().skip_while(|id| *id != at) {
                if id != at {
                    depth += 1;
                }
                if depth >= limit {
                    return Err(too_large(&json_file(start), depth + 1, limit, "ancestors"));
                }
                depths.insert(id.clone(), depth);
            }
        }
        for (id, image) in &mut self.images {
            image.depth = depths.get(id).copied().unwrap_or(0);
        }
        Ok(())
    }

    /// The image and its ancestors, child first.
    pub(crate) fn line<'a>(&'a self, id: &'a ImageId) -> Vec<&'a ImageId> {
        let parent = |id: &&ImageId| self.images.get(*id).and_then(|image| image.parent.as_ref());
        std::iter::successors(Some(id), parent).collect()
    }

    /// Images that are nobody's parent.
    pub(crate) fn leaves(&self) -> Vec<&ImageId> {
        let parents: BTreeSet<_> = self
            .images
            .values()
            .filter_map(|image| image.parent.as_ref())
            .collect();
        self.images.keys().filter(|id| !parents.contains(id)).collect()
    }

    /// Where the layers of masked images lie.
    pub(crate) fn masked_places(&self, session: &Session<'_>) -> Result<BTreeSet<Place>, ArchiveError> {
        let places = self.masked.iter().map(|id| session.index.find(&layer_file(id)));
        places.filter_map(Result::transpose).collect()
    }

    /// Layers that [`V1Images::store`] will store.
    pub(crate) fn places(&self, session: &Session<'_>) -> Result<BTreeSet<Place>, ArchiveError> {
        let kept = self.images.keys().filter(|id| !self.masked.contains(id));
        kept.map(|id| session.index.require(&layer_file(id))).collect()
    }

    /// Stores all images that are not masked, parents first.
    pub(crate) fn store(&self, session: &mut Session<'_>, out: &mut Output) -> Result<(), ArchiveError> {
        let mut kept: Vec<_> = self
            .images
            .iter()
            .filter(|(id, _)| !self.masked.contains(id))
            .collect();
        kept.sort_by_key(|(id, image)| (image.depth, *id));
        for (id, image) in kept {
            let (json_file, layer_file) = (json_file(id), layer_file(id));
            let place = session.index.require(&layer_file)?;
            let layer = session.gzip_layer(&layer_file, place)?;
            let place = session.index.require(&json_file)?;
            let json = session
                .index
                .bytes(&json_file, place, session.options.limits.metadata_bytes)?;
            let ancestry = json::bytes("ancestry", &self.line(id))?;
            out.image(ImageUnit {
                image_id: id.clone(),
                parent_id: image.parent.clone(),
                size: image.size,
                json_digest: put_bytes(session.sink, &json)?,
                ancestry_digest: put_bytes(session.sink, &ancestry)?,
                layer_digest: layer.digest,
                layer_size: layer.size,
            });
        }
        for leaf in self.leaves() {
            if !self.masked.contains(leaf) {
                out.v1_head(leaf.clone());
            }
        }
        Ok(())
    }
}

/// Ids of the v1 images that stand for the layers of an image, base first.
///
/// An id is a hash over the parent's id and the layer's, and for the top one the config's digest, so that the
/// same layers give the same images whatever archive they came in.
pub(crate) fn made_ids(diff_ids: &[Digest], config: &Digest) -> Result<Vec<ImageId>, ArchiveError> {
    let mut ids: Vec<ImageId> = Vec::with_capacity(diff_ids.len());
    for (n, diff_id) in diff_ids.iter().enumerate() {
        let parent = ids.last().map_or("", ImageId::as_str);
        let config = if n + 1 == diff_ids.len() {
            config.to_string()
        } else {
            String::new()
        };
        let id = Digest::sha256(format!("v1 image\n{parent}\n{diff_id}\n{config}\n"));
        let id = id.hex().parse().map_err(|e| json::bad("image id", &e))?;
        ids.push(id);
    }
    Ok(ids)
}

/// The v1 JSON of an image; what it shares with a config is carried over verbatim.
#[derive(Default, Clone, Deserialize, Serialize)]
struct MadeJson<'a> {
    #[serde(skip_deserializing)]
    id: Option<&'a ImageId>,
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    parent: Option<&'a ImageId>,
    #[serde(borrow)]
    created: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    author: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    comment: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    container: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    container_config: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    docker_version: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    config: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    architecture: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    variant: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    os: Option<&'a RawValue>,
}

/// Stores v1 images made from a config: `ids` and `layers` base first, those without a layer left out.
///
/// All but the top one have nothing in their JSON but id and parent, as `docker save` writes them: what else
/// could stand there differs between images that share the layer.
pub(crate) fn store_made(
    session: &Session<'_>,
    out: &mut Output,
    config: &[u8],
    ids: &[ImageId],
    layers: &[Option<GzipLayer>],
) -> Result<(), ArchiveError> {
    const EPOCH: &str = "\"1970-01-01T00:00:00Z\"";
    let epoch: &RawValue = json::parse("config", EPOCH.as_bytes())?;
    let mut carried: MadeJson<'_> = json::parse("config", config)?;
    carried.created = carried.created.or(Some(epoch));
    for (n, (id, layer)) in ids.iter().zip(layers).enumerate() {
        let Some(layer) = layer.as_ref().filter(|_| !out.has_image(id)) else {
            continue;
        };
        let parent = n.checked_sub(1).and_then(|parent| ids.get(parent));
        let fields = if n + 1 == ids.len() {
            carried.clone()
        } else {
            MadeJson {
                created: Some(epoch),
                ..MadeJson::default()
            }
        };
        let json = MadeJson {
            id: Some(id),
            parent,
            ..fields
        };
        let ancestry: Vec<_> = ids.iter().take(n + 1).rev().collect();
        out.image(ImageUnit {
            image_id: id.clone(),
            parent_id: parent.cloned(),
            size: None,
            json_digest: put_bytes(session.sink, &json::bytes("json", &json)?)?,
            ancestry_digest: put_bytes(session.sink, &json::bytes("ancestry", &ancestry)?)?,
            layer_digest: layer.digest.clone(),
            layer_size: layer.size,
        });
    }
    if let (Some(top), Some(Some(_))) = (ids.last(), layers.last()) {
        out.v1_head(top.clone());
    }
    Ok(())
}

/// What the mask takes from images made from configs: for each line of ids that has the masked one, the line
/// up to it.
pub(crate) fn masked_of_made<'a>(
    mask: Option<&ImageId>,
    lines: impl Iterator<Item = &'a Vec<ImageId>>,
    out: &mut Output,
) -> BTreeSet<ImageId> {
    let Some(mask) = mask else { return BTreeSet::new() };
    let mut masked = BTreeSet::new();
    for line in lines {
        if let Some(at) = line.iter().position(|id| id == mask) {
            masked.extend(line.iter().take(at + 1).cloned());
        }
    }
    if masked.is_empty() {
        out.notice(format!(
            "mask_id {mask} is no image of the archive; nothing is masked"
        ));
    }
    masked
}
