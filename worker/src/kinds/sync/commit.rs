//! The end of a sync: what it would have done is told, or what it has done becomes visible at once.

use pulp_model::{
    RepositoryId, Timestamp,
    config::IMPORTER_TYPE,
    history::{HistoryResult, SyncHistory},
    image::Manifest,
    importer::ImporterSettings,
    task::TaskKind,
    unit::Unit,
};
use pulp_store::attempts::Outcome;
use serde_json::{Map, Value, json};

use super::{
    Fetched, by_digest, is_dry_run,
    plan::{self, PlanReport},
    upstream::UpstreamRepository,
    v1,
};
use crate::{
    error::TaskError,
    kinds::{Context, unknown_repository},
};

/// Ends a run that was to tell what a sync would do.
pub(super) async fn tell(
    context: &Context,
    upstream: &UpstreamRepository,
    fetched: &Fetched,
) -> Result<(), TaskError> {
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
pub(super) async fn commit(
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
        .ok_or_else(|| unknown_repository(repo))?;
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
fn history(
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
