//! Blobs of an upstream on their way here: each fetched by one of all syncs that want it, verified and kept.

use std::sync::{Mutex, PoisonError};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use pulp_content::ContentError;
use pulp_model::{Digest, unit::BlobUnit};
use pulp_registry::RegistryError;
use pulp_store::upstreams::Turn;
use tokio::time::Instant;

use super::{
    super::{
        downloads::{LOOK, PATIENCE, turn_of},
        plan::WantedBlob,
    },
    KEEPING, TO_DISK, TRIES, UpstreamRepository,
};
use crate::{error::TaskError, progress::StepHandle};

impl UpstreamRepository {
    /// Brings blobs here, several at a time, in their order; each is kept as soon as it is whole and verified.
    pub(in super::super) async fn blobs(
        &self,
        wanted: Vec<WantedBlob>,
        advance: &BlobAdvance,
    ) -> Result<Vec<BlobUnit>, TaskError> {
        let came: Vec<Vec<BlobUnit>> = stream::iter(self.downloads.groups(wanted))
            .map(|group| self.group(group, advance))
            .buffer_unordered(self.at_once)
            .try_collect()
            .await?;
        Ok(came.into_iter().flatten().collect())
    }

    /// Brings blobs here that are asked for together, then those that others are at.
    async fn group(&self, group: Vec<WantedBlob>, advance: &BlobAdvance) -> Result<Vec<BlobUnit>, TaskError> {
        let digests: Vec<Digest> = group.iter().map(|b| b.digest.clone()).collect();
        let turns = self.downloads.begin(&digests).await?;
        let (ours, others): (Vec<_>, Vec<_>) = group
            .into_iter()
            .zip(turns)
            .partition(|(_, turn)| *turn == Turn::Ours);
        let mut came: Vec<BlobUnit> = stream::iter(ours)
            .map(|(blob, _)| self.blob(blob, advance))
            .buffer_unordered(self.at_once + KEEPING)
            .try_collect()
            .await?;
        self.downloads.end(&digests).await?;
        for (blob, _) in others {
            came.push(self.in_turn(blob, advance).await?);
        }
        Ok(came)
    }

    /// Waits until somebody else has brought a blob here, or lets us do it.
    async fn in_turn(&self, blob: WantedBlob, advance: &BlobAdvance) -> Result<BlobUnit, TaskError> {
        let begun = Instant::now();
        loop {
            if let Some(here) = self.here(&blob).await? {
                advance.whole();
                return Ok(here);
            }
            let turns = self.downloads.begin(std::slice::from_ref(&blob.digest)).await?;
            let is_late = begun.elapsed() > PATIENCE;
            if turns
                .iter()
                .any(|t| *t == Turn::Ours || (*t == Turn::Taken && is_late))
            {
                let digest = blob.digest.clone();
                let came = self.blob(blob, advance).await;
                self.downloads.end(std::slice::from_ref(&digest)).await?;
                return came;
            }
            // Whoever is at it is watched; to wait for that is no standstill of ours.
            advance.step.beat();
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn here(&self, wanted: &WantedBlob) -> Result<Option<BlobUnit>, ContentError> {
        let size = self.content.size(&wanted.digest).await?;
        let size = size.filter(|size| wanted.size.is_none_or(|s| s == *size));
        Ok(size.map(|size| BlobUnit {
            digest: wanted.digest.clone(),
            size,
        }))
    }

    async fn blob(&self, wanted: WantedBlob, advance: &BlobAdvance) -> Result<BlobUnit, TaskError> {
        let digest = wanted.digest.clone();
        // Another sync of this process may be fetching it; then it is here once that is done.
        let turn = turn_of(&digest);
        let _turn = turn.lock().await;
        if let Some(here) = self.here(&wanted).await? {
            advance.whole();
            return Ok(here);
        }
        let mut tries = 0;
        let size = loop {
            tries += 1;
            match self.download(&wanted, advance).await {
                Ok(size) => break size,
                Err(Download::Registry(RegistryError::Mismatch { .. } | RegistryError::Size { .. }))
                    if tries < TRIES => {}
                Err(Download::Registry(error)) => return Err(self.not_downloaded(&error)),
                Err(Download::Content(error)) => return Err(error.into()),
            }
        };
        advance.whole();
        Ok(BlobUnit { digest, size })
    }

    async fn download(&self, wanted: &WantedBlob, advance: &BlobAdvance) -> Result<u64, Download> {
        let span = self.span("download.blob");
        span.set("oci.digest", &wanted.digest);
        let came = span.run(self.download_bytes(wanted, advance)).await;
        match &came {
            Ok(bytes) => span.count("bytes", *bytes),
            Err(Download::Registry(error)) => span.fail(error),
            Err(Download::Content(error)) => span.fail(error),
        }
        came
    }

    async fn download_bytes(&self, wanted: &WantedBlob, advance: &BlobAdvance) -> Result<u64, Download> {
        // It is never closed.
        let place = self.places.acquire().await;
        let mut reader = self.client.blob(&self.name, &wanted.digest).await?;
        if let Some(size) = wanted.size {
            reader.expect_size(size)?;
        }
        let mut writer = self
            .content
            .writer_with(&self.owner, wanted.digest.algorithm())
            .await?;
        while let Some(bytes) = reader.next().await? {
            self.pass(bytes.len()).await;
            advance.came(bytes.len() as u64);
            writer.write(bytes).await?;
        }
        // What is whole waits for the disk in nobody's way, unless too much does so.
        let _to_disk = TO_DISK.acquire().await;
        drop((reader, place));
        Ok(writer.commit(&wanted.digest).await?)
    }
}

/// Why a download failed, by whose fault.
enum Download {
    Registry(RegistryError),
    Content(ContentError),
}

impl From<RegistryError> for Download {
    fn from(error: RegistryError) -> Self {
        Self::Registry(error)
    }
}

impl From<ContentError> for Download {
    fn from(error: ContentError) -> Self {
        Self::Content(error)
    }
}

/// Shows blobs as they come.
pub(in super::super) struct BlobAdvance {
    pub(in super::super) step: StepHandle,
    pub(in super::super) expected: u64,
    pub(in super::super) came: Mutex<u64>,
}

impl BlobAdvance {
    pub(in super::super) fn came(&self, bytes: u64) {
        let mut came = self.came.lock().unwrap_or_else(PoisonError::into_inner);
        *came += bytes;
        self.step
            .details(format!("{} of {} bytes", *came, self.expected.max(*came)));
    }

    pub(in super::super) fn whole(&self) {
        self.step.advance(1);
    }
}
