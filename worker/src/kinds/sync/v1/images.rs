//! Images of version 1: which are here already, and the others on their way here, JSON first.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use pulp_archive::{LayerFile, Limits};
use pulp_content::ContentError;
use pulp_model::{
    Digest,
    unit::{ImageId, ImageUnit},
};
use pulp_registry::{V1Json, V1Repository};

use super::{
    Context, StepHandle, UpstreamRepository,
    layers::Layers,
    plan::{Held, Line},
    unfit,
};
use crate::{error::TaskError, kinds::sync::upstream::BlobAdvance};

/// The images of one sync.
pub(super) struct Images<'a> {
    context: &'a Context,
    upstream: &'a UpstreamRepository,
    index: &'a V1Repository,
    held: &'a Held,
    limits: Limits,
    /// What images of this upstream are remembered by.
    key: String,
}

/// An image whose JSON is here.
struct Described {
    id: ImageId,
    json: V1Json,
    json_digest: Digest,
}

/// Images that have no files here, or have lost them: with the unit that a lost one must match.
pub(super) type Missing = BTreeMap<ImageId, Option<ImageUnit>>;

impl<'a> Images<'a> {
    pub(super) fn new(
        context: &'a Context,
        upstream: &'a UpstreamRepository,
        index: &'a V1Repository,
        held: &'a Held,
    ) -> Self {
        Self {
            context,
            upstream,
            index,
            held,
            limits: limits(context),
            key: remembered_as(upstream),
        }
    }

    /// Parts the images that this repository or another one has from those to fetch.
    pub(super) async fn here_already(
        &self,
        wanted: BTreeSet<&ImageId>,
    ) -> Result<(BTreeMap<ImageId, ImageUnit>, Missing), TaskError> {
        let ids: BTreeSet<ImageId> = wanted
            .iter()
            .filter(|id| !self.held.images.contains_key(*id))
            .map(|id| (*id).clone())
            .collect();
        let elsewhere = self.context.worker.store.images(&ids).await?;
        let mut known: BTreeMap<ImageId, ImageUnit> =
            elsewhere.into_iter().map(|i| (i.image_id.clone(), i)).collect();
        for id in &wanted {
            if let Some(image) = self.held.images.get(*id) {
                known.insert((*id).clone(), image.clone());
            }
        }
        let unknown: BTreeSet<ImageId> = ids.into_iter().filter(|id| !known.contains_key(id)).collect();
        let store = &self.context.worker.store;
        for image in store.remembered_images(&self.key, &unknown).await? {
            known.insert(image.image_id.clone(), image);
        }
        let looked: Vec<(ImageUnit, bool)> = stream::iter(known.into_values())
            .map(|image| async move {
                let whole = self.has_files(&image).await?;
                Ok::<_, ContentError>((image, whole))
            })
            .buffer_unordered(self.upstream.at_once)
            .try_collect()
            .await?;
        let (mut here, mut missing) = (BTreeMap::new(), Missing::new());
        for (image, whole) in looked {
            if whole {
                here.insert(image.image_id.clone(), image);
            } else if unknown.contains(&image.image_id) {
                missing.insert(image.image_id, None);
            } else {
                missing.insert(image.image_id.clone(), Some(image));
            }
        }
        for id in wanted {
            if !here.contains_key(id) {
                missing.entry(id.clone()).or_default();
            }
        }
        Ok((here, missing))
    }

    async fn has_files(&self, image: &ImageUnit) -> Result<bool, ContentError> {
        let content = &self.context.worker.content;
        let layer = content.size(&image.layer_digest).await?;
        Ok(layer == Some(image.layer_size)
            && content.size(&image.json_digest).await?.is_some()
            && content.size(&image.ancestry_digest).await?.is_some())
    }

    /// Brings images here and puts them to those that are; gives their layers. All JSONs come first: what contradicts
    /// itself costs no layer.
    pub(super) async fn fetch(
        &self,
        missing: Missing,
        lines: &BTreeMap<ImageId, Line>,
        here: &mut BTreeMap<ImageId, ImageUnit>,
        step: &StepHandle,
    ) -> Result<BTreeMap<ImageId, LayerFile>, TaskError> {
        let at_once = self.upstream.at_once;
        let mut described: Vec<Described> = stream::iter(missing.keys().cloned().collect::<Vec<_>>())
            .map(|id| self.describe(id, step))
            .buffer_unordered(at_once)
            .try_collect()
            .await?;
        let mut ancestries: BTreeMap<ImageId, &[ImageId]> = BTreeMap::new();
        for line in lines.values() {
            for (id, ancestry) in line.ancestries().filter(|(id, _)| missing.contains_key(*id)) {
                ancestries.insert(id.clone(), ancestry);
            }
        }
        let mut units = here.clone();
        for one in &described {
            units.insert(one.id.clone(), one.unit());
        }
        for line in lines.values() {
            line.check(&units)
                .map_err(|reason| unfit(self.upstream, &reason))?;
        }
        // The longest download begins earliest.
        described.sort_by_key(|one| std::cmp::Reverse(one.json.layer_bytes));
        let expected = described
            .iter()
            .filter_map(|one| one.json.layer_bytes)
            .fold(0, u64::saturating_add);
        let advance = BlobAdvance {
            step: step.clone(),
            expected,
            came: Mutex::default(),
        };
        let layers = Layers {
            upstream: self.upstream,
            index: self.index,
            limits: &self.limits,
            advance: &advance,
        };
        let came: Vec<(ImageUnit, LayerFile)> = stream::iter(described)
            .map(|one| {
                let ancestry = ancestries.get(&one.id).copied().unwrap_or_default();
                self.image(&layers, one, ancestry)
            })
            .buffer_unordered(at_once)
            .try_collect()
            .await?;
        let mut files = BTreeMap::new();
        for (image, file) in came {
            if let Some(lost) = missing.get(&image.image_id).and_then(Option::as_ref)
                && *lost != image
            {
                let reason = format!(
                    "image {} is known here with other content than the upstream's, and its files are lost",
                    image.image_id
                );
                return Err(unfit(self.upstream, &reason));
            }
            files.insert(image.image_id.clone(), file);
            here.insert(image.image_id.clone(), image);
        }
        Ok(files)
    }

    /// Brings an image's JSON here.
    async fn describe(&self, id: ImageId, step: &StepHandle) -> Result<Described, TaskError> {
        let mut json = self
            .index
            .json(&id)
            .await
            .map_err(|e| self.upstream.unreadable(&e))?;
        step.beat();
        // The bytes of all images together might be too many to hold.
        let bytes = std::mem::take(&mut json.bytes);
        Ok(Described {
            json_digest: self.keep(bytes).await?,
            id,
            json,
        })
    }

    async fn image(
        &self,
        layers: &Layers<'_>,
        one: Described,
        ancestry: &[ImageId],
    ) -> Result<(ImageUnit, LayerFile), TaskError> {
        let file = layers.fetch(&one.id, &one.json.checksums).await?;
        let ancestry = serde_json::to_vec(ancestry).map_err(|e| TaskError::Bug(e.to_string()))?;
        let image = ImageUnit {
            ancestry_digest: self.keep(ancestry.into()).await?,
            layer_digest: file.digest.clone(),
            layer_size: file.size,
            ..one.unit()
        };
        // Nothing else would tell the next try that these files are of this image.
        self.context
            .worker
            .store
            .remember_image(&self.key, &image)
            .await?;
        layers.advance.whole();
        Ok((image, file))
    }

    async fn keep(&self, bytes: bytes::Bytes) -> Result<Digest, ContentError> {
        let digest = Digest::sha256(&bytes);
        let content = &self.context.worker.content;
        content.put_bytes(&self.upstream.owner, &digest, bytes).await?;
        Ok(digest)
    }
}

impl Described {
    /// The unit, as far as it is known before its layer and ancestry are here.
    fn unit(&self) -> ImageUnit {
        ImageUnit {
            image_id: self.id.clone(),
            parent_id: self.json.parent.clone(),
            size: self.json.size,
            json_digest: self.json_digest.clone(),
            ancestry_digest: self.json_digest.clone(),
            layer_digest: self.json_digest.clone(),
            layer_size: 0,
        }
    }
}

/// By what images of an upstream are remembered. There is no login in it.
pub(super) fn remembered_as(upstream: &UpstreamRepository) -> String {
    format!("{}v1/repositories/{}", upstream.client.base_url(), upstream.name)
}

/// How much an image may ask of us: what an upload may.
pub(super) fn limits(context: &Context) -> Limits {
    Limits {
        expanded_bytes: context.worker.settings.max_expanded_bytes,
        ..Limits::default()
    }
}
