//! `sync`: fetches what the importer names from another registry, as one new version.
//!
//! First what is there is looked at and compared; then manifests and blobs are fetched, each verified while it streams
//! and kept from then on, whatever becomes of this run; last, inside the fence, all of it becomes visible at once. A
//! run that fails or is lost changes nothing that a client can see, and the next one fetches only what is missing.
//!
//! Steps and their texts: pulp_docker 2.x `importers/sync.py`.

mod allowance;
mod downloads;
mod known;
mod plan;
mod upstream;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Mutex,
};

use pulp_content::ContentError;
use pulp_model::{
    CodedError, Digest, ErrorCode, RepositoryId, TagName, Timestamp,
    config::{self, IMPORTER_TYPE},
    history::{HistoryResult, SyncHistory},
    image::{MAX_MANIFEST_BYTES, Manifest},
    importer::{ImporterSettings, importer_settings},
    task::TaskKind,
    unit::{BlobUnit, ManifestKind, TagUnit, Unit, UnitType},
};
use pulp_registry::{Reference, signed_digest};
use pulp_store::attempts::Outcome;
use serde_json::{Map, Value, json};

use self::{
    plan::{Held, PlanReport, TagPlan, Upstream, WantedBlob},
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
    let steps = Steps::announce(context);
    let fetched = tokio::select! {
        fetched = fetch(context, repo, &settings, &upstream, &steps, dry_run) => fetched,
        () = context.stop.stopped() => Err(TaskError::Stopped),
    };
    // Also of a run that failed: others need not be refused to learn what it was told.
    upstream.note_limits().await?;
    let fetched = fetched?;
    if dry_run {
        return tell(context, &upstream, &fetched).await;
    }
    commit(context, repo, &settings, &upstream, fetched, &steps).await
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
    if !settings.enable_v2 {
        let text =
            "enable_v2 is false, and this release can't sync by the registry API v1; set enable_v2 to true";
        let error = CodedError::new(ErrorCode::UNSUPPORTED_VALUE, text);
        return Err(error.with("property_names", ["enable_v2"]).into());
    }
    Ok(settings)
}

/// What a sync has brought here and nobody can see yet.
struct Fetched {
    plan: PlanReport,
    tags: Vec<TagUnit>,
    removed: BTreeSet<TagName>,
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
    let mut held = Before::read(context, repo).await?;
    let found = look(upstream, settings, &held, &steps.metadata).await?;
    let tags = plan::plan_tags(&found, &held.plan, settings.remove_missing);
    let mut came = fetch_manifests(upstream, &held, &tags).await?;
    let mut referrers = 0;
    if settings.referrers {
        referrers = fetch_referrers(upstream, settings, &held, &found, &mut came).await?;
    }
    steps.metadata.finish();

    let pulls = came.iter().filter(|c| c.fetched).count() as u64;
    let (tag_units, unchanged) = name_tags(repo, &tags, &held, &came);
    held.hold_as_known(&came);
    let manifests: Vec<Manifest> = came.into_iter().map(|c| c.manifest).collect();
    let manifests = once(manifests, &held);
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
        tags_unchanged: tags.unchanged.len() + unchanged.len(),
        manifests: manifests.len(),
        referrers,
        upstream_pulls: pulls,
        blobs: missing.len(),
        bytes,
        blobs_reused: reused,
    };
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
    Ok(Fetched {
        plan,
        tags: tag_units,
        removed: tags.removed,
        manifests,
        blobs,
    })
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
    fetch_closure(upstream, wanted, held.plan.manifests.clone()).await
}

/// Brings here manifests, the members of those that are lists, and so on, but none that is `known`.
async fn fetch_closure(
    upstream: &UpstreamRepository,
    mut wanted: Vec<WantedManifest>,
    mut known: HashSet<Digest>,
) -> Result<Vec<Came>, TaskError> {
    let mut all: Vec<Came> = Vec::new();
    while !wanted.is_empty() {
        let level = upstream.manifests(wanted).await?;
        known.extend(level.iter().map(|c| c.known_as.clone()));
        known.extend(level.iter().map(|c| c.manifest.digest().clone()));
        let members = plan::unknown_members(level.iter().map(|c| &c.manifest), &known);
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

/// Brings here what refers to the manifests that tags name, and what refers to that in turn.
async fn fetch_referrers(
    upstream: &UpstreamRepository,
    settings: &ImporterSettings,
    held: &Before,
    found: &BTreeMap<TagName, Upstream>,
    came: &mut Vec<Came>,
) -> Result<usize, TaskError> {
    let named = found.values().filter_map(|u| match u {
        Upstream::Digest(digest) => Some(digest.clone()),
        Upstream::Unknown | Upstream::Absent => None,
    });
    let by_tag = came.iter().filter(|c| matches!(c.reference, Reference::Tag(_)));
    let mut subjects: BTreeSet<Digest> = named.chain(by_tag.map(|c| c.known_as.clone())).collect();
    let mut known = held.plan.manifests.clone();
    known.extend(
        came.iter()
            .flat_map(|c| [c.known_as.clone(), c.manifest.digest().clone()]),
    );
    let mut asked = HashSet::new();
    let mut new = 0;
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
        new += wanted.len();
        let more = fetch_closure(upstream, wanted, known.clone()).await?;
        known.extend(more.iter().map(|c| c.manifest.digest().clone()));
        came.extend(more);
    }
    Ok(new)
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
        .filter(|m| !held.plan.manifests.contains(m.digest()) && seen.insert(m.digest().clone()))
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
    steps: &Steps,
) -> Result<(), TaskError> {
    let (contents, tags) = (fetched.manifests.len() + fetched.blobs.len(), fetched.tags.len());
    let blobs = fetched.blobs.into_iter().map(Unit::Blob);
    let manifests = fetched.manifests.into_iter().map(|m| match m {
        Manifest::Image(m) => Unit::Manifest(m),
        Manifest::List(l) => Unit::ManifestList(l),
    });
    let units: Vec<Unit> = blobs
        .chain(manifests)
        .chain(fetched.tags.into_iter().map(Unit::Tag))
        .collect();
    let removed = if settings.remove_missing {
        let current = context.worker.store.associations(repo, &[]).await?;
        let current: Vec<Unit> = current.into_iter().map(|a| a.unit).collect();
        plan::what_goes(&current, &units, &fetched.removed)
    } else {
        Vec::new()
    };
    let publishes = auto_publishes(context, repo).await?;

    steps.save.begin();
    let mut tx = context.fence().await?;
    let change = tx
        .commit_change(repo, &units, &removed)
        .await?
        .ok_or_else(|| super::unknown_repository(repo))?;
    steps.save.all(contents as u64);
    steps.save_tags.all(tags as u64);
    tx.set_synced(repo).await?;
    let mut report = cost(context, upstream, &fetched.plan);
    if let Some(report) = report.as_object_mut() {
        report.insert("repository_version".to_owned(), json!(change.number));
    }
    let moved = fetched.plan.tags_moved.len() as u64;
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

/// The repository before the sync.
struct Before {
    plan: Held,
    /// Manifests and lists by every digest that an upstream may call them by.
    known: HashMap<Digest, Known>,
}

/// A manifest of the repository, as far as a tag needs to know it.
#[derive(Debug, Clone)]
struct Known {
    digest: Digest,
    schema_version: u8,
    kind: ManifestKind,
}

impl Known {
    fn tag(&self, repo: &RepositoryId, name: &TagName) -> TagUnit {
        TagUnit {
            name: name.clone(),
            repo_id: repo.clone(),
            manifest_digest: self.digest.clone(),
            schema_version: self.schema_version,
            manifest_type: self.kind,
        }
    }
}

impl Before {
    async fn read(context: &Context, repo: &RepositoryId) -> Result<Self, TaskError> {
        let types = [
            UnitType::DockerManifest,
            UnitType::DockerManifestList,
            UnitType::DockerTag,
        ];
        let mut before = Self {
            plan: Held::default(),
            known: HashMap::new(),
        };
        for association in context.worker.store.associations(repo, &types).await? {
            match association.unit {
                Unit::Tag(tag) => {
                    before
                        .plan
                        .tags
                        .entry(tag.name)
                        .or_default()
                        .insert(tag.manifest_digest);
                }
                Unit::Manifest(m) => {
                    let known = Known {
                        digest: m.digest.clone(),
                        schema_version: m.schema_version,
                        kind: ManifestKind::Image,
                    };
                    if m.media_type.is_schema1()
                        && let Some(signed) = signed_as(context, &m.digest).await?
                    {
                        before.hold(signed, known.clone());
                    }
                    before.hold(m.digest, known);
                }
                Unit::ManifestList(l) => {
                    let known = Known {
                        digest: l.digest.clone(),
                        schema_version: l.schema_version,
                        kind: ManifestKind::List,
                    };
                    before.hold(l.digest, known);
                }
                _ => {}
            }
        }
        Ok(before)
    }

    fn hold(&mut self, digest: Digest, known: Known) {
        self.plan.manifests.insert(digest.clone());
        self.known.insert(digest, known);
    }

    /// Signed manifests that came under another name than they are kept under may be held under that already.
    fn hold_as_known(&mut self, came: &[Came]) {
        for one in came {
            if let Some(known) = self.known.get(one.manifest.digest()).cloned() {
                self.hold(one.known_as.clone(), known);
            }
        }
    }
}

/// The digest by which a registry knows a signed manifest of schema 1; none if its file is lost.
async fn signed_as(context: &Context, digest: &Digest) -> Result<Option<Digest>, TaskError> {
    match context
        .worker
        .content
        .read_bytes(digest, MAX_MANIFEST_BYTES)
        .await
    {
        Ok(bytes) => Ok(signed_digest(&bytes)),
        Err(ContentError::NotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
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
