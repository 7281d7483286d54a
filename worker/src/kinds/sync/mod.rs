//! `sync`: fetches what the importer names from another registry, as one new version.
//!
//! First what is there is looked at and compared; then manifests and blobs are fetched, each verified while it streams
//! and kept from then on, whatever becomes of this run; last, inside the fence, all of it becomes visible at once. A
//! run that fails or is lost changes nothing that a client can see, and the next one fetches only what is missing.
//!
//! Steps and their texts: pulp_docker 2.x `importers/sync.py`.

mod allowance;
mod before;
mod by_digest;
mod choice;
mod downloads;
mod known;
mod members;
mod plan;
mod upstream;
mod v1;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Mutex,
};

use pulp_content::ContentError;
use pulp_model::{
    CodedError, Digest, ErrorCode, RepositoryId, TagName, Timestamp,
    config::{self, IMPORTER_TYPE},
    history::{HistoryResult, SyncHistory},
    image::Manifest,
    importer::{ImporterSettings, importer_settings},
    platform::{Platforms, PlatformsMode},
    task::TaskKind,
    unit::{BlobUnit, TagUnit, Unit, UnitType},
};
use pulp_registry::Reference;
use pulp_store::attempts::Outcome;
use serde_json::{Map, Value, json};

use self::{
    before::Before,
    choice::Choice,
    plan::{PlanReport, TagPlan, Upstream, WantedBlob},
    upstream::{BlobAdvance, Came, UpstreamRepository, WantedManifest},
};
use super::{Context, not_found};
use crate::{error::TaskError, progress::StepHandle};

/// Manifests that one sync takes in at most; indexes of indexes could name any number.
const MAX_MANIFESTS: usize = 100_000;

/// How far referrers of referrers are followed, such as the signature of an SBOM.
const REFERRER_DEPTH: usize = 3;

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
    upstream.note_limits().await?;
    let fetched = fetched?;
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
    let found = look(upstream, settings, &held, &steps.metadata).await?;
    let mut tags = plan::plan_tags(&found, &held.plan, settings.remove_missing);
    by_digest::plan(upstream, settings, &held, &mut tags, &steps.metadata).await?;
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

/// What the upstream has of what the filter takes.
async fn look(
    upstream: &UpstreamRepository,
    settings: &ImporterSettings,
    held: &Before,
    step: &StepHandle,
) -> Result<BTreeMap<TagName, Upstream>, TaskError> {
    let plain = settings.tags.plain();
    let listed = plain.is_none();
    let names = match plain {
        Some(names) => names,
        None => settings.tags.select(upstream.list_tags().await?),
    };
    step.add_total(names.len() as u64);
    let called = held.known.iter().map(|(called, known)| (called, &known.digest));
    let names = known::as_named_before(names, &held.plan.tags, called);
    let mut found = upstream.look(names, step).await?;
    if !listed && !found.is_empty() && found.values().all(|u| *u == Upstream::Absent) {
        // None of them: is there such a repository?
        upstream.list_tags().await?;
    }
    for state in found.values_mut() {
        if let Upstream::Digest(digest) = state
            && let Some(known) = held.known.get(digest)
        {
            *digest = known.digest.clone();
        }
    }
    Ok(found)
}

/// Brings here the manifests that changed tags name, then the members of those that are lists, and so on.
async fn fetch_manifests(
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
async fn fetch_closure(
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

/// What tags name, by the upstream's digests. An index that was made here of another one is no subject: whatever
/// refers to that one vouches for other bytes.
fn subjects(
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
struct Referrers {
    came: Vec<Came>,
    /// How many are new, without what they are made of.
    new: usize,
}

/// Brings here what refers to `subjects`, and what refers to that in turn.
async fn fetch_referrers(
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

/// The tags to set; and those that, now that their manifest is here, turn out to be as they were.
fn name_tags(
    repo: &RepositoryId,
    tags: &TagPlan,
    held: &Before,
    came: &[Came],
) -> (Vec<TagUnit>, BTreeSet<TagName>) {
    let by_tag: HashMap<&TagName, &Manifest> = came
        .iter()
        .filter_map(|c| match &c.reference {
            Reference::Tag(name) => Some((name, &c.manifest)),
            Reference::Digest(_) => None,
        })
        .collect();
    let by_digest: HashMap<&Digest, &Manifest> = came
        .iter()
        .flat_map(|c| [(&c.known_as, &c.manifest), (c.manifest.digest(), &c.manifest)])
        .collect();
    let (mut units, mut unchanged) = (Vec::new(), BTreeSet::new());
    for (name, digest) in tags.added.iter().chain(&tags.moved) {
        let manifest = match digest {
            Some(digest) => by_digest.get(digest),
            None => by_tag.get(name),
        };
        let unit = match (manifest, digest.as_ref().and_then(|d| held.known.get(d))) {
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

/// Each manifest once, and none that the repository has.
fn once(manifests: Vec<Manifest>, held: &Before) -> Vec<Manifest> {
    let mut seen = HashSet::new();
    manifests
        .into_iter()
        .filter(|m| !held.has(m) && seen.insert(m.digest().clone()))
        .collect()
}

async fn wanted_blobs(
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
    let mut held = HashSet::new();
    for association in blobs {
        if let Unit::Blob(blob) = association.unit
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
async fn here_already(
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

/// Ends a run that was to tell what a sync would do.
async fn tell(context: &Context, upstream: &UpstreamRepository, fetched: &Fetched) -> Result<(), TaskError> {
    let report = cost(context, upstream, &fetched.plan);
    let tx = context.fence().await?;
    let result = json!({"dry_run": true, "report": report});
    tx.finish(&Outcome::Finished(result), &context.report.to_json())
        .await?;
    Ok(())
}

/// What was planned, and what it took.
fn cost(context: &Context, upstream: &UpstreamRepository, plan: &PlanReport) -> Value {
    let requests = upstream.requests();
    let micros = Timestamp::now().micros() - context.started.micros();
    json!({
        "plan": plan,
        "requests": {
            "total": requests.total(),
            "tags": requests.tags,
            "manifest_heads": requests.manifest_heads,
            "manifests": requests.manifests,
            "blobs": requests.blobs,
            "referrers": requests.referrers,
            "tokens": requests.tokens,
            "images": requests.images,
            "layers": requests.layers,
        },
        "bytes_received": requests.bytes,
        "seconds": micros as f64 / 1e6,
    })
}

/// Makes everything visible in one transaction, together with the publishes that follow.
async fn commit(
    context: &Context,
    repo: &RepositoryId,
    settings: &ImporterSettings,
    upstream: &UpstreamRepository,
    fetched: Fetched,
) -> Result<(), TaskError> {
    let (steps, v1) = (fetched.steps, fetched.v1);
    let (contents, tags) = (fetched.manifests.len() + fetched.blobs.len(), fetched.tags.len());
    let blobs = fetched.blobs.into_iter().map(Unit::Blob);
    let manifests = fetched.manifests.into_iter().map(|m| match m {
        Manifest::Image(m) => Unit::Manifest(m),
        Manifest::List(l) => Unit::ManifestList(l),
    });
    let units: Vec<Unit> = blobs
        .chain(manifests)
        .chain(fetched.tags.into_iter().map(Unit::Tag))
        .chain(v1.iter().flat_map(v1::Visible::units))
        .collect();
    let removed = if settings.remove_missing {
        let current = context.worker.store.associations(repo, &[]).await?;
        let current: Vec<Unit> = current.into_iter().map(|a| a.unit).collect();
        let named = by_digest::named(&current, &fetched.by_digest);
        let named: Vec<Unit> = named.cloned().collect();
        let mut removed = if named.is_empty() {
            plan::what_goes(&current, &units, &fetched.removed)
        } else {
            plan::what_goes(&current, &[&*units, &*named].concat(), &fetched.removed)
        };
        if let Some(v1) = &v1 {
            let tags = context.repository_uncounted(repo).await?.v1_tags();
            removed.extend(v1.what_goes(&current, &tags));
        }
        removed
    } else {
        Vec::new()
    };
    let publishes = auto_publishes(context, repo).await?;

    if let Some(steps) = &steps {
        steps.save.begin();
    }
    let mut tx = context.fence().await?;
    if let Some(v1) = &v1 {
        v1.tag(&mut tx, repo).await?;
    }
    let change = tx
        .commit_change(repo, &units, &removed)
        .await?
        .ok_or_else(|| super::unknown_repository(repo))?;
    if let Some(steps) = &steps {
        steps.save.all(contents as u64);
        steps.save_tags.all(tags as u64);
    }
    tx.set_synced(repo).await?;
    let mut report = cost(context, upstream, &fetched.plan);
    if let Some(report) = report.as_object_mut() {
        report.insert("repository_version".to_owned(), json!(change.number));
        if let Some(v1) = v1.as_ref().filter(|v1| !v1.notices.is_empty()) {
            report.insert("notices".to_owned(), json!(v1.notices));
        }
    }
    let moved = fetched.moved;
    let entry = SyncHistory {
        added_count: change.added.saturating_sub(moved) as i64,
        updated_count: moved as i64,
        removed_count: change.removed.saturating_sub(moved) as i64,
        report,
        ..history(context, repo, HistoryResult::Success, None)
    };
    tx.add_sync_history(&entry).await?;
    for kind in &publishes {
        tx.spawn(kind).await?;
    }
    tx.finish(&Outcome::Finished(json!(entry)), &context.report.to_json())
        .await?;
    Ok(())
}

/// The publishes that follow a change of the repository.
pub(crate) async fn auto_publishes(
    context: &Context,
    repo: &RepositoryId,
) -> Result<Vec<TaskKind>, TaskError> {
    let distributors = context.worker.store.distributors_of(repo).await?;
    let automatic = distributors.into_iter().filter(|d| d.auto_publish);
    Ok(automatic
        .map(|d| TaskKind::Publish {
            repo_id: repo.clone(),
            distributor_id: d.id,
            override_config: Map::new(),
        })
        .collect())
}

/// This run as an entry of the sync history, without what it did.
pub(crate) fn history(
    context: &Context,
    repo: &RepositoryId,
    result: HistoryResult,
    error_message: Option<String>,
) -> SyncHistory {
    let (summary, details) = context.report.summary_and_details();
    SyncHistory {
        id: context.lease.task_id().to_string(),
        repo_id: repo.clone(),
        importer_id: IMPORTER_TYPE.to_owned(),
        importer_type_id: IMPORTER_TYPE.to_owned(),
        started: context.started,
        completed: Timestamp::now(),
        result,
        added_count: 0,
        updated_count: 0,
        removed_count: 0,
        summary,
        details,
        report: Value::Null,
        error_message,
        exception: None,
        traceback: None,
    }
}

/// The entry that a failed run leaves; a run that was only to tell leaves none.
pub(crate) fn failure(
    context: &Context,
    repo: &RepositoryId,
    overrides: &Map<String, Value>,
    result: HistoryResult,
    message: Option<String>,
) -> Option<SyncHistory> {
    let dry_run = is_dry_run(overrides).unwrap_or(false);
    (!dry_run).then(|| history(context, repo, result, message))
}

/// The steps of a sync.
struct Steps {
    metadata: StepHandle,
    known_manifests: StepHandle,
    known_blobs: StepHandle,
    download: StepHandle,
    save: StepHandle,
    save_tags: StepHandle,
}

impl Steps {
    fn announce(context: &Context) -> Self {
        let step = |step_type, description| context.report.step(step_type, description, 0);
        Self {
            metadata: step("sync_step_metadata", "Downloading manifests"),
            known_manifests: step("get_local", "Copying units already in pulp"),
            known_blobs: step("get_local", "Copying units already in pulp"),
            download: step("sync_step_download", "Downloading remote files"),
            save: step("sync_step_save", "Saving Manifests and Blobs"),
            save_tags: step("sync_step_save", "Saving Tags"),
        }
    }
}

impl StepHandle {
    /// Does a step that is done at once.
    fn all(&self, items: u64) {
        self.begin();
        self.add_total(items);
        self.advance(items);
        self.finish();
    }
}
