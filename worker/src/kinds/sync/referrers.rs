//! What refers to the manifests that a sync takes: signatures, SBOMs, attestations.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use pulp_model::{Digest, TagName, image::Manifest, importer::ImporterSettings};
use pulp_registry::Reference;

use super::{
    before::Before,
    manifests::fetch_closure,
    plan::{TagPlan, Upstream},
    upstream::{Came, UpstreamRepository},
};
use crate::error::TaskError;

/// How far referrers of referrers are followed, such as the signature of an SBOM.
const REFERRER_DEPTH: usize = 3;

/// What tags name, by the upstream's digests. An index that was made here of another one is no subject: whatever
/// refers to that one vouches for other bytes.
pub(super) fn subjects(
    found: &BTreeMap<TagName, Upstream>,
    tags: &TagPlan,
    held: &Before,
    came: &[Came],
) -> BTreeSet<Digest> {
    let made = |c: &&Came| matches!(&c.manifest, Manifest::List(l) if l.selection.made_from.is_some());
    let replaced: HashSet<&Digest> = came.iter().filter(made).map(|c| &c.known_as).collect();
    let named = found.iter().filter_map(|(name, state)| match state {
        Upstream::Digest(digest) if !tags.skipped.contains(name) => Some(digest),
        _ => None,
    });
    let by_tag = came.iter().filter(|c| matches!(c.reference, Reference::Tag(_)));
    named
        .chain(by_tag.map(|c| &c.known_as))
        .chain(&tags.by_digest)
        .filter(|d| !replaced.contains(d) && !held.is_made_here(d))
        .cloned()
        .collect()
}

/// What refers to what tags name.
pub(super) struct Referrers {
    pub(super) came: Vec<Came>,
    /// How many are new, without what they are made of.
    pub(super) new: usize,
}

/// Brings here what refers to `subjects`, and what refers to that in turn.
pub(super) async fn fetch_referrers(
    upstream: &UpstreamRepository,
    settings: &ImporterSettings,
    held: &Before,
    mut subjects: BTreeSet<Digest>,
    here: &[Came],
) -> Result<Referrers, TaskError> {
    let mut known = held.plan.manifests.clone();
    known.extend(
        here.iter()
            .flat_map(|c| [c.known_as.clone(), c.manifest.digest().clone()]),
    );
    let mut asked = HashSet::new();
    let mut found = Referrers {
        came: Vec::new(),
        new: 0,
    };
    for _ in 0..REFERRER_DEPTH {
        subjects.retain(|s| asked.insert(s.clone()));
        let list = upstream
            .referrers(
                std::mem::take(&mut subjects).into_iter().collect(),
                &settings.referrer_types,
            )
            .await?;
        let mut wanted = Vec::new();
        for one in list {
            if let Reference::Digest(digest) = &one.reference {
                subjects.insert(digest.clone());
                if known.insert(digest.clone()) {
                    wanted.push(one);
                }
            }
        }
        found.new += wanted.len();
        // What refers to an image is for no platform.
        let more = fetch_closure(upstream, wanted, known.clone(), None).await?;
        known.extend(more.iter().map(|c| c.manifest.digest().clone()));
        found.came.extend(more);
    }
    Ok(found)
}
