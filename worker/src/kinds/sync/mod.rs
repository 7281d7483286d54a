//! `sync`: fetches what the importer names from another registry, as one new version.
//!
//! First what is there is looked at and compared; then manifests and blobs are fetched, each verified while it streams
//! and kept from then on, whatever becomes of this run; last, inside the fence, all of it becomes visible at once. A
//! run that fails or is lost changes nothing that a client can see, and the next one fetches only what is missing.
//!
//! Steps and their texts: pulp_docker 2.x `importers/sync.py`.

mod allowance;
mod before;
mod blobs;
mod by_digest;
mod choice;
mod commit;
mod downloads;
mod known;
mod look;
mod manifests;
mod members;
mod plan;
mod referrers;
mod steps;
mod upstream;
mod v1;

use std::{collections::BTreeSet, sync::Mutex};

use pulp_model::{
    CodedError, Digest, RepositoryId, TagName,
    config::{self, IMPORTER_TYPE},
    image::Manifest,
    importer::{ImporterSettings, importer_settings},
    unit::{BlobUnit, TagUnit},
};
use serde_json::{Map, Value};

pub(crate) use self::commit::{auto_publishes, failure};
use self::{
    before::Before,
    blobs::{here_already, wanted_blobs},
    choice::Choice,
    commit::{commit, tell},
    look::Look,
    manifests::{fetch_manifests, once},
    plan::{PlanReport, TagPlan, Upstream},
    referrers::{fetch_referrers, subjects},
    steps::Steps,
    upstream::{Arrivals, BlobAdvance, Came, UpstreamRepository},
};
use super::{Context, not_found};
use crate::{error::TaskError, progress::StepHandle};

/// Whether only the plan is asked for.
fn is_dry_run(overrides: &Map<String, Value>) -> Result<bool, CodedError> {
    config::boolean(overrides, "dry_run")
}

pub(crate) async fn run(
    context: &Context,
    repo: &RepositoryId,
    overrides: &Map<String, Value>,
) -> Result<(), TaskError> {
    context.report.of(IMPORTER_TYPE);
    context.repository(repo).await?;
    let dry_run = is_dry_run(overrides)?;
    let settings = settings(context, repo, overrides).await?;
    let upstream = UpstreamRepository::new(&settings, &context.worker, context.attempt_name())?;
    let fetched = tokio::select! {
        fetched = fetch_all(context, repo, &settings, &upstream, dry_run) => fetched,
        () = context.stop.stopped() => Err(TaskError::Stopped),
    };
    // Also of a run that failed: others need not be refused to learn what it was told.
    let noted = upstream.note_limits().await;
    let fetched = fetched?;
    noted?;
    if dry_run {
        return tell(context, &upstream, &fetched).await;
    }
    commit(context, repo, &settings, &upstream, fetched).await
}

/// Fetches by each version of the API that is synced. Which of them the upstream has is asked only if there is a choice.
async fn fetch_all(
    context: &Context,
    repo: &RepositoryId,
    settings: &ImporterSettings,
    upstream: &UpstreamRepository,
    dry_run: bool,
) -> Result<Fetched, TaskError> {
    let versions = v1::Versions::of(settings, upstream).await?;
    let mut fetched = Fetched::default();
    if versions.v2 {
        let steps = Steps::announce(context);
        fetched = fetch(context, repo, settings, upstream, &steps, dry_run).await?;
        fetched.steps = Some(steps);
    }
    if versions.v1 {
        v1::fetch(context, repo, settings, upstream, dry_run, &mut fetched).await?;
    }
    Ok(fetched)
}

/// The importer's settings with those of the call.
async fn settings(
    context: &Context,
    repo: &RepositoryId,
    overrides: &Map<String, Value>,
) -> Result<ImporterSettings, TaskError> {
    let importer = context.worker.store.importer(repo).await?;
    let importer =
        importer.ok_or_else(|| not_found("importer_id", "importer of repository", repo.as_str()))?;
    let defaults = context.worker.plugin_defaults(IMPORTER_TYPE);
    let settings = importer_settings(&config::merged(&[&defaults, &importer.config, overrides]))?;
    Ok(settings)
}

/// What a sync has brought here and nobody can see yet.
#[derive(Default)]
struct Fetched {
    plan: PlanReport,
    /// Tags that version 2 of the upstream has, of those that the settings take.
    there: BTreeSet<TagName>,
    steps: Option<Steps>,
    v1: Option<v1::Visible>,
    /// Tag units that replace others of their names.
    moved: u64,
    tags: Vec<TagUnit>,
    removed: BTreeSet<TagName>,
    /// Manifests that stay though no tag may need them.
    by_digest: BTreeSet<Digest>,
    manifests: Vec<Manifest>,
    blobs: Vec<BlobUnit>,
}

/// Looks, plans, and fetches what is missing; for a plan alone no blob.
async fn fetch(
    context: &Context,
    repo: &RepositoryId,
    settings: &ImporterSettings,
    upstream: &UpstreamRepository,
    steps: &Steps,
    dry_run: bool,
) -> Result<Fetched, TaskError> {
    steps.metadata.begin();
    let mut held = Before::read(context, repo, settings).await?;
    let look = Look::take(context, upstream, settings, &held, &steps.metadata).await?;
    let found = look.tags_as_kept(&held);
    let mut tags = plan::plan_tags(&found, &held.plan, settings.remove_missing);
    by_digest::plan(settings, &held, &look.digests, &mut tags);
    if !dry_run && !tags.changes_nothing() {
        look.note(context, upstream, settings).await?;
    }
    drop(look);
    let all = fetch_manifests(upstream, settings, &held, &tags).await?;
    let mut pulls = fetched_of(&all);
    let (content, owner) = (&context.worker.content, context.attempt_name());
    let Choice { mut came, left_out } =
        choice::choose(content, &owner, settings, &held, &mut tags, all).await?;
    let mut referrers = 0;
    if settings.referrers {
        let subjects = subjects(&found, &tags, &held, &came);
        let more = fetch_referrers(upstream, settings, &held, subjects, &came).await?;
        referrers = more.new;
        pulls += fetched_of(&more.came);
        came.extend(more.came);
    }
    steps.metadata.finish();

    let (tag_units, unchanged) = name_tags(repo, &tags, &held, &came);
    held.hold_as_known(&came);
    let manifests: Vec<Manifest> = came.into_iter().map(|c| c.manifest).collect();
    let manifests = once(manifests, &held);
    let new = manifests
        .iter()
        .filter(|m| !held.lists.contains_key(m.digest()))
        .count();
    steps.known_manifests.all(held.plan.manifests.len() as u64);

    steps.known_blobs.begin();
    let wanted = wanted_blobs(context, repo, &manifests).await?;
    let (mut blobs, missing) = here_already(context, wanted).await?;
    let reused = blobs.len();
    steps.known_blobs.all(reused as u64);

    let bytes = missing.iter().filter_map(|b| b.size).sum();
    let added = |name: &&TagName| !unchanged.contains(*name);
    let plan = PlanReport {
        tags_added: tags.added.keys().filter(added).cloned().collect(),
        tags_moved: tags.moved.keys().filter(added).cloned().collect(),
        tags_removed: tags.removed.iter().cloned().collect(),
        tags_absent: tags.absent.iter().cloned().collect(),
        manifests_absent: tags.digests_absent.iter().cloned().collect(),
        tags_skipped: tags.skipped.iter().cloned().collect(),
        tags_unchanged: tags.unchanged.len() + unchanged.len(),
        manifests: new,
        members_left_out: left_out,
        referrers,
        upstream_pulls: pulls,
        blobs: missing.len(),
        bytes,
        blobs_reused: reused,
        ..PlanReport::default()
    };
    steps.metadata.details(plan.summary());
    if !dry_run {
        steps.download.add_total(missing.len() as u64);
        steps.download.begin();
        let advance = BlobAdvance {
            step: steps.download.clone(),
            expected: bytes,
            came: Mutex::default(),
        };
        blobs.extend(upstream.blobs(missing, &advance).await?);
        steps.download.finish();
    }
    let own = |d: &Digest| held.known.get(d).map_or(d, |known| &known.digest).clone();
    let by_digest = tags.by_digest.iter().map(own).collect();
    let is_there = |(_, state): &(&TagName, &Upstream)| **state != Upstream::Absent;
    let there = found
        .iter()
        .filter(is_there)
        .map(|(name, _)| name.clone())
        .collect();
    Ok(Fetched {
        moved: plan.tags_moved.len() as u64,
        plan,
        there,
        tags: tag_units,
        removed: tags.removed,
        by_digest,
        manifests,
        blobs,
        ..Fetched::default()
    })
}

fn fetched_of(came: &[Came]) -> u64 {
    came.iter().filter(|c| c.fetched).count() as u64
}

/// The tags to set; and those that, now that their manifest is here, turn out to be as they were.
fn name_tags(
    repo: &RepositoryId,
    tags: &TagPlan,
    held: &Before,
    came: &[Came],
) -> (Vec<TagUnit>, BTreeSet<TagName>) {
    let came = Arrivals::of(came);
    let (mut units, mut unchanged) = (Vec::new(), BTreeSet::new());
    for (name, digest) in tags.added.iter().chain(&tags.moved) {
        let unit = match (
            came.named_by(name, digest.as_ref()),
            digest.as_ref().and_then(|d| held.known.get(d)),
        ) {
            (Some(manifest), _) => plan::tag_of(repo, name, manifest),
            (None, Some(known)) => known.tag(repo, name),
            // Every digest of a plan is held or was fetched.
            (None, None) => continue,
        };
        let before = held.plan.tags.get(name);
        if before.is_some_and(|b| b.len() == 1 && b.contains(&unit.manifest_digest)) {
            unchanged.insert(name.clone());
        } else {
            units.push(unit);
        }
    }
    (units, unchanged)
}
