//! A whole image: from a tag or digest over the index and its manifests to every config and layer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use pulp_model::{Digest, MediaType, RegistryId, image::Manifest};

use crate::{Client, FetchedManifest, Reference, RegistryError, Result};

/// Manifests of one image at most; an index of indexes could name any number.
const MAX_MANIFESTS: usize = 10_000;

/// What went wrong with the caller's part of a pull.
pub type VisitError = Box<dyn std::error::Error + Send + Sync>;

/// A blob that a manifest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRef {
    /// Its digest.
    pub digest: Digest,
    /// Its size, where the manifest says it (schema 1 doesn't).
    pub size: Option<u64>,
    /// Its type, where the manifest says it.
    pub media_type: Option<MediaType>,
}

/// Where the bytes of one blob go.
#[async_trait]
pub trait BlobSink: Send {
    /// The next bytes; not verified yet.
    async fn write(&mut self, bytes: Bytes) -> Result<(), VisitError>;
    /// The bytes are whole and verified. A sink dropped without this call got a broken blob.
    async fn finish(self: Box<Self>) -> Result<(), VisitError>;
}

/// What is done with an image's parts as they come.
#[async_trait]
pub trait PullVisitor: Send + Sync {
    /// A manifest, checked, before what it names.
    async fn manifest(&self, manifest: &FetchedManifest) -> Result<(), VisitError>;
    /// A blob about to be fetched: where to put it. None means that it is held already and shall be skipped.
    async fn blob(&self, blob: &BlobRef) -> Result<Option<Box<dyn BlobSink>>, VisitError>;
}

/// A visitor that keeps nothing: the pull is only a check that all is there and right.
#[derive(Debug, Clone, Copy, Default)]
pub struct Discard;

#[async_trait]
impl PullVisitor for Discard {
    async fn manifest(&self, _: &FetchedManifest) -> Result<(), VisitError> {
        Ok(())
    }

    async fn blob(&self, _: &BlobRef) -> Result<Option<Box<dyn BlobSink>>, VisitError> {
        Ok(Some(Box::new(Self)))
    }
}

#[async_trait]
impl BlobSink for Discard {
    async fn write(&mut self, _: Bytes) -> Result<(), VisitError> {
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<(), VisitError> {
        Ok(())
    }
}

/// What a pull found, all of it verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullReport {
    /// What the reference stands for.
    pub root: Digest,
    /// All manifests and indexes with their sizes, the root among them.
    pub manifests: BTreeMap<Digest, u64>,
    /// All blobs that came with their sizes, each once.
    pub blobs: BTreeMap<Digest, u64>,
    /// Blobs that the visitor held already.
    pub skipped: BTreeSet<Digest>,
    /// Layers that no registry may hand out; not fetched.
    pub foreign: BTreeSet<Digest>,
}

impl PullReport {
    /// Bytes of manifests and blobs that came.
    pub fn bytes(&self) -> u64 {
        self.manifests.values().chain(self.blobs.values()).sum()
    }
}

impl Client {
    /// Pulls everything that a reference reaches and checks each digest and size.
    pub async fn pull(
        &self,
        name: &RegistryId,
        reference: &Reference,
        visitor: &dyn PullVisitor,
    ) -> Result<PullReport> {
        let mut walk = self.walk_manifests(name, reference, visitor).await?;
        let fetched: Vec<_> = stream::iter(std::mem::take(&mut walk.blobs).into_values())
            .map(|blob| async move {
                let size = self.pull_blob(name, &blob, visitor).await?;
                Ok::<_, RegistryError>((blob.digest, size))
            })
            .buffer_unordered(self.concurrency())
            .try_collect()
            .await?;
        let mut report = walk.report;
        for (digest, size) in fetched {
            match size {
                Some(size) => drop(report.blobs.insert(digest, size)),
                None => drop(report.skipped.insert(digest)),
            }
        }
        Ok(report)
    }

    /// Breadth first, each manifest once, level by level so that members come several at a time.
    async fn walk_manifests(
        &self,
        name: &RegistryId,
        reference: &Reference,
        visitor: &dyn PullVisitor,
    ) -> Result<Walk> {
        let root = self.manifest(name, reference).await?;
        let mut walk = Walk::new(root.digest.clone());
        let mut level = VecDeque::from([root]);
        while !level.is_empty() {
            let mut members = BTreeMap::new();
            for manifest in level.drain(..) {
                visit(&manifest.digest, visitor.manifest(&manifest).await)?;
                walk.take(&manifest, &mut members)
                    .map_err(|reason| RegistryError::Protocol {
                        url: self
                            .url(&format!("v2/{name}/manifests/{}", manifest.digest))
                            .map_or_else(|e| e.to_string(), Into::into),
                        reason,
                    })?;
            }
            level = stream::iter(members)
                .map(|(digest, size)| self.pull_member(name, digest, size))
                .buffered(self.concurrency())
                .try_collect()
                .await?;
        }
        Ok(walk)
    }

    async fn pull_member(&self, name: &RegistryId, digest: Digest, size: u64) -> Result<FetchedManifest> {
        let reference = Reference::Digest(digest);
        let manifest = self.manifest(name, &reference).await?;
        let got = manifest.bytes.len() as u64;
        // 0 is a descriptor without a size.
        if size != 0 && got != size {
            let url = self.url(&format!("v2/{name}/manifests/{reference}"))?.to_string();
            return Err(RegistryError::Size {
                url,
                expected: size,
                got,
            });
        }
        Ok(manifest)
    }

    /// The blob's size, or none if the visitor has it.
    async fn pull_blob(
        &self,
        name: &RegistryId,
        blob: &BlobRef,
        visitor: &dyn PullVisitor,
    ) -> Result<Option<u64>> {
        let Some(mut sink) = visit(&blob.digest, visitor.blob(blob).await)? else {
            return Ok(None);
        };
        let mut reader = self.blob(name, &blob.digest).await?;
        if let Some(size) = blob.size {
            reader.expect_size(size)?;
        }
        let mut received = 0;
        while let Some(bytes) = reader.next().await? {
            received += bytes.len() as u64;
            visit(&blob.digest, sink.write(bytes).await)?;
        }
        visit(&blob.digest, sink.finish().await)?;
        Ok(Some(received))
    }
}

/// What is known while manifests come in.
struct Walk {
    report: PullReport,
    blobs: BTreeMap<Digest, BlobRef>,
    /// Manifests that are fetched, or about to be.
    known: BTreeSet<Digest>,
}

impl Walk {
    fn new(root: Digest) -> Self {
        Self {
            known: BTreeSet::from([root.clone()]),
            report: PullReport {
                root,
                manifests: BTreeMap::new(),
                blobs: BTreeMap::new(),
                skipped: BTreeSet::new(),
                foreign: BTreeSet::new(),
            },
            blobs: BTreeMap::new(),
        }
    }

    /// Takes a manifest in: members not seen yet go to `members` with their sizes, blobs to the list.
    fn take(&mut self, fetched: &FetchedManifest, members: &mut BTreeMap<Digest, u64>) -> Result<(), String> {
        self.report
            .manifests
            .insert(fetched.digest.clone(), fetched.bytes.len() as u64);
        match fetched.parse().map_err(|e| e.to_string())? {
            Manifest::List(list) => {
                for member in list.manifests {
                    if self.known.insert(member.digest.clone()) {
                        members.insert(member.digest, member.size);
                    }
                }
                if self.known.len() > MAX_MANIFESTS {
                    return Err(format!("the image has more than {MAX_MANIFESTS} manifests"));
                }
            }
            Manifest::Image(image) => {
                if let Some(config) = image.config_layer {
                    self.want(BlobRef {
                        digest: config,
                        size: None,
                        media_type: None,
                    })?;
                }
                for layer in image.fs_layers {
                    if layer
                        .layer_type
                        .as_ref()
                        .is_some_and(MediaType::is_nondistributable)
                    {
                        self.report.foreign.insert(layer.blob_sum);
                        continue;
                    }
                    self.want(BlobRef {
                        digest: layer.blob_sum,
                        size: layer.size,
                        media_type: layer.layer_type,
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Two descriptors of one blob must not contradict each other.
    fn want(&mut self, blob: BlobRef) -> Result<(), String> {
        let known = self
            .blobs
            .entry(blob.digest.clone())
            .or_insert_with(|| blob.clone());
        match (known.size, blob.size) {
            (Some(a), Some(b)) if a != b => Err(format!(
                "{} has {a} bytes in one place and {b} in another",
                blob.digest
            )),
            (None, Some(_)) => {
                *known = blob;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn visit<T>(digest: &Digest, done: Result<T, VisitError>) -> Result<T> {
    done.map_err(|source| RegistryError::Visitor {
        digest: digest.clone(),
        source,
    })
}
