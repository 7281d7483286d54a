//! The manifests by which clients of version 2 see images of version 1.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use pulp_archive::{
    ArchiveError, LayerContent, LayerFile, Limits, MadeManifest, SinkError, layer_content, manifest_of_line,
};
use pulp_content::{ContentError, ContentStore};
use pulp_model::{
    Digest, RepositoryId, TagName,
    image::Manifest,
    unit::{BlobUnit, ImageId, ImageUnit, ManifestUnit, TagUnit},
};
use tokio::{runtime::Handle, sync::mpsc};

use super::{
    Context, UpstreamRepository,
    images::limits,
    layers::{Pieces, of_archive},
    plan::Line,
};
use crate::{
    error::TaskError,
    kinds::{publish::blocking, sync::plan::tag_of},
};

/// Layers that are unpacked at a time to see what is in them.
const AT_ONCE: usize = 2;

/// Manifests with all that belongs to them.
#[derive(Default)]
pub(super) struct Faces {
    pub(super) manifests: Vec<ManifestUnit>,
    pub(super) blobs: Vec<BlobUnit>,
    pub(super) tags: Vec<TagUnit>,
    /// What a person should know.
    pub(super) notices: Vec<String>,
}

impl Faces {
    /// Makes the manifest of each image that a tag of `named` names. `images` are all of `lines`; the layers of those
    /// that were just fetched are told by `came`, the others are read.
    pub(super) async fn make<'a>(
        context: &Context,
        upstream: &UpstreamRepository,
        repo: &RepositoryId,
        named: impl Iterator<Item = (&'a TagName, &'a ImageId)>,
        lines: &BTreeMap<ImageId, Line>,
        images: &BTreeMap<ImageId, ImageUnit>,
        mut came: BTreeMap<ImageId, LayerFile>,
    ) -> Result<Self, TaskError> {
        let mut tags: BTreeMap<&ImageId, Vec<&TagName>> = BTreeMap::new();
        for (tag, id) in named {
            tags.entry(id).or_default().push(tag);
        }
        let limits = Arc::new(limits(context));
        let mut faces = Self::default();
        // A manifest has all of its layers or is none.
        let (whole, masked): (Vec<_>, Vec<_>) = tags
            .keys()
            .filter_map(|id| Some((*id, lines.get(*id)?)))
            .partition(|(_, line)| line.is_whole());
        for (head, _) in masked {
            faces.notice(format!("image {head} has masked layers and gets no manifest"));
        }
        let unread: BTreeSet<&ImageId> = whole.iter().flat_map(|(_, line)| line.taken()).collect();
        let unread = unread
            .into_iter()
            .filter(|id| !came.contains_key(*id))
            .filter_map(|id| images.get(id).cloned());
        let unread: Vec<ImageUnit> = unread.collect();
        let read: Vec<(ImageId, LayerFile)> = stream::iter(unread)
            .map(|image| read_layer(&context.worker.content, image, &limits))
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        came.extend(read);
        let mut blobs = BTreeMap::new();
        for (head, line) in whole {
            let line: Vec<&ImageUnit> = line
                .taken()
                .iter()
                .rev()
                .filter_map(|id| images.get(id))
                .collect();
            let layers: Vec<LayerFile> = line
                .iter()
                .filter_map(|i| came.get(&i.image_id))
                .cloned()
                .collect();
            let other = line.iter().zip(&layers).find(|(_, layer)| !layer.content.is_tar);
            if let Some((image, _)) = other {
                let id = &image.image_id;
                faces.notice(format!(
                    "image {head} gets no manifest: the layer of {id} is not a tar"
                ));
                continue;
            }
            blobs.extend(layers.iter().map(|l| (l.digest.clone(), l.size)));
            let made = manifest(&context.worker.content, &line, layers, &limits).await?;
            let config = Digest::sha256(&made.config);
            blobs.insert(config.clone(), made.config.len() as u64);
            let content = &context.worker.content;
            content
                .put_bytes(&upstream.owner, &config, made.config.into())
                .await?;
            content
                .put_bytes(&upstream.owner, made.manifest.digest(), made.bytes.into())
                .await?;
            let names = tags.get(head).into_iter().flatten();
            faces
                .tags
                .extend(names.map(|name| tag_of(repo, name, &made.manifest)));
            if let Manifest::Image(manifest) = made.manifest {
                faces.manifests.push(manifest);
            }
            context.report.beat();
        }
        faces.blobs = blobs
            .into_iter()
            .map(|(digest, size)| BlobUnit { digest, size })
            .collect();
        Ok(faces)
    }

    fn notice(&mut self, text: String) {
        tracing::info!(notice = %text, "sync by version 1");
        self.notices.push(text);
    }
}

/// The manifest of a line, base first.
async fn manifest(
    content: &ContentStore,
    line: &[&ImageUnit],
    layers: Vec<LayerFile>,
    limits: &Arc<Limits>,
) -> Result<MadeManifest, TaskError> {
    let jsons: Vec<(String, Digest)> = line
        .iter()
        .map(|i| (format!("{}/json", i.image_id), i.json_digest.clone()))
        .collect();
    let (content, limits, runtime) = (content.clone(), Arc::clone(limits), Handle::current());
    let made = blocking(move || {
        let read = |(name, digest): (String, Digest)| {
            let bytes = runtime.block_on(content.read_bytes(&digest, limits.metadata_bytes));
            bytes
                .map(|b| (name, b))
                .map_err(|e| ArchiveError::Store(SinkError::new(e)))
        };
        manifest_of_line(jsons.into_iter().map(read), &layers, &limits)
    });
    made.await?.map_err(of_archive)
}

/// Looks into a layer that is here.
async fn read_layer(
    content: &ContentStore,
    image: ImageUnit,
    limits: &Arc<Limits>,
) -> Result<(ImageId, LayerFile), TaskError> {
    let mut reader = content.read(&image.layer_digest, None).await?;
    let (sender, receiver) = mpsc::channel::<Option<Bytes>>(4);
    let (name, limits) = (format!("{}/layer", image.image_id), Arc::clone(limits));
    let looked = blocking(move || layer_content(&name, Pieces::new(receiver), &limits));
    let sent = async {
        loop {
            let piece = reader.stream.next().await.transpose()?;
            let is_end = piece.is_none();
            if sender.send(piece).await.is_err() || is_end {
                drop(sender);
                return Ok::<_, ContentError>(());
            }
        }
    };
    let (sent, looked) = tokio::join!(sent, looked);
    sent?;
    let content = match looked? {
        Ok(content) => content,
        // What came by an upload was never held to be one.
        Err(ArchiveError::Rejected(reason)) => {
            tracing::warn!(image = %image.image_id, %reason, "its layer can't be unpacked");
            LayerContent {
                diff_id: image.layer_digest.clone(),
                is_tar: false,
            }
        }
        Err(error) => return Err(of_archive(error)),
    };
    let file = LayerFile {
        digest: image.layer_digest.clone(),
        size: image.layer_size,
        verbatim: true,
        content,
    };
    Ok((image.image_id, file))
}
