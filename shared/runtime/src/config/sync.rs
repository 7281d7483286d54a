//! `[sync]`: what syncs may take of the registries they fetch from.

use std::num::NonZeroU32;

use serde::Deserialize;

/// `[sync]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SyncConfig {
    /// Blobs that are downloaded from one host at a time, by all syncs of all workers; 0 for as many as they want.
    downloads_per_host: u32,
}

impl SyncConfig {
    /// Blobs that are downloaded from one host at a time; none for as many as the syncs want.
    pub fn downloads_per_host(&self) -> Option<u32> {
        NonZeroU32::new(self.downloads_per_host).map(NonZeroU32::get)
    }
}
