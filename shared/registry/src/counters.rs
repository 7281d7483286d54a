//! How much was asked of a registry.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Ping,
    Tags,
    ManifestHead,
    Manifest,
    Blob,
    Referrers,
    Token,
    Image,
    Layer,
}

/// Requests sent, repetitions and those answered by 401 included, and bytes of blobs and manifests that came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Requests {
    /// Whether the API is there.
    pub pings: u64,
    /// Pages of tags.
    pub tags: u64,
    /// Which manifest a tag stands for.
    pub manifest_heads: u64,
    /// Manifests themselves. A registry that counts pulls counts these.
    pub manifests: u64,
    /// Blobs and parts of blobs.
    pub blobs: u64,
    /// Lists of referrers.
    pub referrers: u64,
    /// Tokens, from whatever server gives them.
    pub tokens: u64,
    /// Version 1: lists of images and tags, ancestries, JSONs.
    pub images: u64,
    /// Version 1: layers.
    pub layers: u64,
    /// Bytes of manifests, blobs, images and layers that came over the wire.
    pub bytes: u64,
}

impl Requests {
    /// All of them.
    pub const fn total(&self) -> u64 {
        self.pings
            + self.tags
            + self.manifest_heads
            + self.manifests
            + self.blobs
            + self.referrers
            + self.tokens
            + self.images
            + self.layers
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    sent: [AtomicU64; 9],
    bytes: AtomicU64,
}

impl Counters {
    pub(crate) fn sent(&self, purpose: Purpose) {
        if let Some(counter) = self.sent.get(purpose as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Requests {
        let of = |purpose: Purpose| {
            let counter = self.sent.get(purpose as usize);
            counter.map_or(0, |c| c.load(Ordering::Relaxed))
        };
        Requests {
            pings: of(Purpose::Ping),
            tags: of(Purpose::Tags),
            manifest_heads: of(Purpose::ManifestHead),
            manifests: of(Purpose::Manifest),
            blobs: of(Purpose::Blob),
            referrers: of(Purpose::Referrers),
            tokens: of(Purpose::Token),
            images: of(Purpose::Image),
            layers: of(Purpose::Layer),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}
