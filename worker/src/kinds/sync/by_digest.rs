//! Manifests that the settings name by digest: they are taken as they are, and no tag is needed or made.

use std::collections::{BTreeMap, BTreeSet};

use pulp_model::{Digest, importer::ImporterSettings, unit::Unit};

use super::{
    before::Before,
    plan::{TagPlan, Upstream},
};

/// Puts the manifests that the settings name into the plan: those that the repository has, and those that were seen.
pub(super) fn plan(
    settings: &ImporterSettings,
    held: &Before,
    seen: &BTreeMap<Digest, Upstream>,
    tags: &mut TagPlan,
) {
    for digest in settings.tags.digests() {
        if held.holds(&digest) {
            tags.by_digest.insert(digest);
        } else if seen.get(&digest).is_none_or(|s| *s == Upstream::Absent) {
            tags.digests_absent.insert(digest);
        } else {
            tags.manifests.insert(digest.clone());
            tags.by_digest.insert(digest);
        }
    }
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
