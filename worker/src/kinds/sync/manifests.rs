//! The manifests that a sync brings here, with the members of those that are lists.

use std::collections::{HashMap, HashSet};

use pulp_model::{
    CodedError, Digest, ErrorCode,
    image::Manifest,
    importer::ImporterSettings,
    platform::{Platforms, PlatformsMode},
};
use pulp_registry::Reference;

use super::{
    before::Before,
    plan::{self, TagPlan},
    upstream::{Came, UpstreamRepository, WantedManifest},
};
use crate::error::TaskError;

/// Manifests that one sync takes in at most; indexes of indexes could name any number.
const MAX_MANIFESTS: usize = 100_000;

/// Brings here the manifests that changed tags name, then the members of those that are lists, and so on.
pub(super) async fn fetch_manifests(
    upstream: &UpstreamRepository,
    settings: &ImporterSettings,
    held: &Before,
    tags: &TagPlan,
) -> Result<Vec<Came>, TaskError> {
    let of = |reference: Reference| WantedManifest {
        reference,
        media_type: None,
    };
    let by_digest = tags.manifests.iter().cloned().map(Reference::Digest);
    let unknown = tags.added.iter().chain(&tags.moved);
    let by_tag = unknown.filter(|(_, digest)| digest.is_none());
    let by_tag = by_tag.map(|(name, _)| Reference::Tag(name.clone()));
    let wanted = by_digest.chain(by_tag).map(of).collect();
    let mut known = held.plan.manifests.clone();
    let platforms = settings.platforms.as_ref();
    if platforms.is_some_and(|p| p.mode == PlatformsMode::Rewrite) {
        // What a new index is made of is looked at as a whole.
        known.retain(|d| !held.lists.contains_key(d));
    }
    fetch_closure(upstream, wanted, known, platforms).await
}

/// Brings here manifests, the members of those that are lists if `platforms` take them, and so on, but none that is
/// `known`.
pub(super) async fn fetch_closure(
    upstream: &UpstreamRepository,
    mut wanted: Vec<WantedManifest>,
    mut known: HashSet<Digest>,
    platforms: Option<&Platforms>,
) -> Result<Vec<Came>, TaskError> {
    let mut all: Vec<Came> = Vec::new();
    while !wanted.is_empty() {
        let level = upstream.manifests(wanted).await?;
        known.extend(level.iter().map(|c| c.known_as.clone()));
        known.extend(level.iter().map(|c| c.manifest.digest().clone()));
        let members = plan::unknown_members(level.iter().map(|c| &c.manifest), &known, platforms);
        let types: HashMap<&Digest, _> = level
            .iter()
            .filter_map(|c| match &c.manifest {
                Manifest::List(list) => Some(&list.manifests),
                Manifest::Image(_) => None,
            })
            .flatten()
            .map(|m| (&m.digest, m.media_type.clone()))
            .collect();
        wanted = members
            .into_iter()
            .map(|digest| WantedManifest {
                media_type: types.get(&digest).cloned(),
                reference: Reference::Digest(digest),
            })
            .collect();
        all.extend(level);
        if all.len() + wanted.len() > MAX_MANIFESTS {
            let text =
                format!("the upstream's tags reach more than {MAX_MANIFESTS} manifests; filter the tags");
            return Err(CodedError::new(ErrorCode::UPSTREAM_MANIFEST, text).into());
        }
    }
    Ok(all)
}

/// Each manifest once, and none that the repository has.
pub(super) fn once(manifests: Vec<Manifest>, held: &Before) -> Vec<Manifest> {
    let mut seen = HashSet::new();
    manifests
        .into_iter()
        .filter(|m| !held.has(m) && seen.insert(m.digest().clone()))
        .collect()
}
