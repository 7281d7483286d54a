//! Manifests that the settings name by digest: they are taken as they are, and no tag is needed or made.

use std::collections::BTreeSet;

use pulp_model::{Digest, importer::ImporterSettings, unit::Unit};

use super::{
    before::Before,
    plan::{TagPlan, Upstream},
    upstream::UpstreamRepository,
};
use crate::{error::TaskError, progress::StepHandle};

/// Puts the manifests that the settings name into the plan. Of those that the repository has nothing is asked: what a
/// digest stands for does not change.
pub(super) async fn plan(
    upstream: &UpstreamRepository,
    settings: &ImporterSettings,
    held: &Before,
    tags: &mut TagPlan,
    step: &StepHandle,
) -> Result<(), TaskError> {
    let (here, new): (BTreeSet<Digest>, BTreeSet<Digest>) =
        settings.tags.digests().into_iter().partition(|d| held.holds(d));
    tags.by_digest = here;
    if new.is_empty() {
        return Ok(());
    }
    step.add_total(new.len() as u64);
    for (digest, found) in upstream.look_for(new, step).await? {
        if found == Upstream::Absent {
            tags.digests_absent.insert(digest);
        } else {
            tags.manifests.insert(digest.clone());
            tags.by_digest.insert(digest);
        }
    }
    if tags.by_digest.is_empty()
        && tags.added.is_empty()
        && tags.moved.is_empty()
        && tags.unchanged.is_empty()
    {
        // Nothing is there: is there such a repository?
        upstream.list_tags().await?;
    }
    Ok(())
}

/// Of a repository's content, the manifests that stay though no tag may need them: the settings name them.
pub(super) fn named<'a>(
    current: &'a [Unit],
    digests: &'a BTreeSet<Digest>,
) -> impl Iterator<Item = &'a Unit> {
    current.iter().filter(|unit| match unit {
        Unit::Manifest(m) => digests.contains(&m.digest),
        Unit::ManifestList(l) => digests.contains(&l.digest),
        _ => false,
    })
}
