//! The blobs that a sync needs: which of them are here, and which are to be fetched.

use std::collections::HashSet;

use pulp_content::ContentError;
use pulp_model::{
    CodedError, Digest, ErrorCode, RepositoryId,
    image::Manifest,
    unit::{BlobUnit, ManifestUnit, Unit, UnitType},
};

use super::plan::{self, WantedBlob};
use crate::{error::TaskError, kinds::Context};

pub(super) async fn wanted_blobs(
    context: &Context,
    repo: &RepositoryId,
    manifests: &[Manifest],
) -> Result<Vec<WantedBlob>, TaskError> {
    if manifests.is_empty() {
        return Ok(Vec::new());
    }
    let blobs = context
        .worker
        .store
        .associations(repo, &[UnitType::DockerBlob])
        .await?;
    let images = manifests.iter().filter_map(|m| match m {
        Manifest::Image(image) => Some(image),
        Manifest::List(_) => None,
    });
    let needed: HashSet<&Digest> = images.flat_map(ManifestUnit::blobs).collect();
    let mut held = HashSet::new();
    for association in blobs {
        if let Unit::Blob(blob) = association.unit
            && needed.contains(&blob.digest)
            // A file that was lost comes back with the next manifest that needs it.
            && context.worker.content.size(&blob.digest).await? == Some(blob.size)
        {
            held.insert(blob.digest);
        }
    }
    plan::plan_blobs(manifests, &held).map_err(|digest| {
        let reason = format!("blob {digest} has one size in one manifest and another in another");
        CodedError::new(ErrorCode::UPSTREAM_MANIFEST, reason.clone())
            .with("digest", digest)
            .with("reason", reason)
            .into()
    })
}

/// Parts the blobs that lie here, from an earlier try or for another repository, from those to fetch.
pub(super) async fn here_already(
    context: &Context,
    wanted: Vec<WantedBlob>,
) -> Result<(Vec<BlobUnit>, Vec<WantedBlob>), ContentError> {
    let (mut here, mut missing) = (Vec::new(), Vec::new());
    for blob in wanted {
        match context.worker.content.size(&blob.digest).await? {
            Some(size) if blob.size.is_none_or(|s| s == size) => here.push(BlobUnit {
                digest: blob.digest,
                size,
            }),
            _ => missing.push(blob),
        }
    }
    Ok((here, missing))
}
