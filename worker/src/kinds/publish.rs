//! `publish`: the web distributor's tree, or the export distributor's tar.
//!
//! Steps and their texts: pulp_docker `distributors/publish_steps.py`.

use std::time::Duration;

use pulp_model::{
    CodedError, Digest, DistributorId, ErrorCode, RepositoryId, Timestamp,
    config::{self, DistributorSettings, EXPORT_DISTRIBUTOR_TYPE, WEB_DISTRIBUTOR_TYPE},
    history::{HistoryResult, PublishHistory},
};
use pulp_publication::{Contents, Publication, PublicationId};
use pulp_store::{attempts::Outcome, distributors::Distributor, repositories::Repository};
use serde_json::{Map, Value, json};

use super::{Context, export, not_found, repository};
use crate::{Worker, error::TaskError};

/// Publications before the current one that are kept, and for how long at least: readers may be in them.
const KEEP_PREVIOUS: usize = 1;
const KEEP_FOR: Duration = Duration::from_mins(10);

impl Worker {
    /// Settings of a distributor type that a repository's own override.
    pub(crate) fn plugin_defaults(&self, type_id: &str) -> Map<String, Value> {
        self.settings
            .plugin_defaults
            .get(type_id)
            .cloned()
            .unwrap_or_default()
    }
}

pub(crate) async fn run(
    context: &Context,
    repo: &RepositoryId,
    id: &DistributorId,
    overrides: &Map<String, Value>,
) -> Result<(), TaskError> {
    context.report.of(id.as_str());
    let store = &context.worker.store;
    let found = context.repository(repo).await?;
    let distributor = store
        .distributor(repo, id)
        .await?
        .ok_or_else(|| not_found("distributor_id", "distributor", id.as_str()))?;
    let defaults = context.worker.plugin_defaults(&distributor.distributor_type_id);
    let merged = config::merged(&[&defaults, &distributor.config, overrides]);
    let settings = config::distributor_settings(repo, &merged)?;
    match distributor.distributor_type_id.as_str() {
        WEB_DISTRIBUTOR_TYPE => web(context, &found, &distributor, &settings).await,
        EXPORT_DISTRIBUTOR_TYPE => export::run(context, &found, &distributor, &settings).await,
        other => Err(CodedError::new(
            ErrorCode::UNSUPPORTED_VALUE,
            format!("no distributor of type {other:?} is known"),
        )
        .with("property_names", ["distributor_type_id"])
        .into()),
    }
}

async fn web(
    context: &Context,
    found: &Repository,
    distributor: &Distributor,
    settings: &DistributorSettings,
) -> Result<(), TaskError> {
    let worker = &context.worker;
    refuse_taken_registry_id(context, found, settings).await?;
    let contents = repository::contents(context, found, settings).await?;
    let fingerprint = fingerprint(&contents);
    if is_unchanged(context, found, distributor, settings, &fingerprint) {
        return skip(context, distributor, &fingerprint, settings).await;
    }

    let items = unit_count(&contents);
    let files = context
        .report
        .step("publish_images", "Publishing Image Files.", items);
    let over_http = context
        .report
        .step("publish_images_over_http", "Making files available via web.", 1);
    files.begin();
    let publication = blocking(move || Publication::new(contents)).await??;
    let (root, attempt) = (worker.published.clone(), context.attempt_name());
    let staged = blocking(move || root.stage(&publication, &PublicationId::new(), &attempt)).await??;
    files.advance(items);
    files.finish();

    over_http.begin();
    let mut tx = context.fence().await?;
    pulp_trace::Span::begin("publish.switch", pulp_trace::SpanKind::Internal)
        .run(blocking(move || staged.switch()))
        .await??;
    over_http.advance(1);
    over_http.finish();
    tx.set_published(
        &found.id,
        &distributor.id,
        &fingerprint,
        Some(&settings.registry_id),
    )
    .await?;
    let entry = history(context, distributor, HistoryResult::Success, None);
    tx.add_publish_history(&entry).await?;
    tx.finish(&Outcome::Finished(json!(entry)), &context.report.to_json())
        .await?;

    let (root, repo) = (worker.published.clone(), found.id.clone());
    if let Err(e) = blocking(move || root.prune(&repo, KEEP_PREVIOUS, KEEP_FOR)).await? {
        tracing::warn!(error = %e, "old publications stay behind");
    }
    Ok(())
}

/// Two repositories under one registry id would take turns in Crane.
async fn refuse_taken_registry_id(
    context: &Context,
    found: &Repository,
    settings: &DistributorSettings,
) -> Result<(), TaskError> {
    let Some(other) = context
        .worker
        .store
        .registry_id_holder(&settings.registry_id, &found.id)
        .await?
    else {
        return Ok(());
    };
    let id = &settings.registry_id;
    let text = format!(
        "repository {other} is published as {id:?} already; give one of the two another repo-registry-id, or delete the other"
    );
    Err(CodedError::new(ErrorCode::REGISTRY_ID_TAKEN, text)
        .with("value", id)
        .with("repo_id", other)
        .into())
}

/// Units with files, which is what the reports of both distributors count.
pub(crate) fn unit_count(contents: &Contents) -> u64 {
    let units =
        contents.images.len() + contents.blobs.len() + contents.manifests.len() + contents.lists.len();
    units as u64
}

/// What a publication is made of, as one text: content, names and urls.
pub(crate) fn fingerprint(contents: &Contents) -> String {
    let mut lines = vec![format!(
        "{} {} {} {} {}",
        contents.repository, contents.registry_id, contents.protected, contents.v1_url, contents.v2_url
    )];
    lines.extend(contents.images.iter().map(|i| format!("image {}", i.image_id)));
    lines.extend(
        contents
            .v1_tags
            .iter()
            .map(|t| format!("v1tag {} {}", t.tag, t.image_id)),
    );
    lines.extend(contents.blobs.iter().map(|b| format!("blob {}", b.digest)));
    lines.extend(
        contents
            .manifests
            .iter()
            .map(|m| format!("manifest {}", m.unit.digest)),
    );
    lines.extend(contents.lists.iter().map(|l| format!("list {}", l.unit.digest)));
    lines.extend(
        contents
            .tags
            .iter()
            .map(|t| format!("tag {} {}", t.name, t.manifest_digest)),
    );
    lines.sort_unstable();
    Digest::sha256(lines.join("\n")).to_string()
}

fn is_unchanged(
    context: &Context,
    found: &Repository,
    distributor: &Distributor,
    settings: &DistributorSettings,
    fingerprint: &str,
) -> bool {
    !settings.force_full
        && distributor.published_fingerprint.as_deref() == Some(fingerprint)
        && context.worker.published.is_published(&found.id)
}

/// The publication there is the one asked for.
async fn skip(
    context: &Context,
    distributor: &Distributor,
    fingerprint: &str,
    settings: &DistributorSettings,
) -> Result<(), TaskError> {
    let mut tx = context.fence().await?;
    tx.set_published(
        &distributor.repo_id,
        &distributor.id,
        fingerprint,
        Some(&settings.registry_id),
    )
    .await?;
    let entry = history(context, distributor, HistoryResult::Skipped, None);
    tx.add_publish_history(&entry).await?;
    tx.finish(&Outcome::Finished(json!(entry)), &context.report.to_json())
        .await?;
    Ok(())
}

/// This run as an entry of the publish history.
pub(crate) fn history(
    context: &Context,
    distributor: &Distributor,
    result: HistoryResult,
    error_message: Option<String>,
) -> PublishHistory {
    let (summary, details) = context.report.summary_and_details();
    PublishHistory {
        id: context.lease.task_id().to_string(),
        repo_id: distributor.repo_id.clone(),
        distributor_id: distributor.id.clone(),
        distributor_type_id: distributor.distributor_type_id.clone(),
        started: context.started,
        completed: Timestamp::now(),
        result,
        summary,
        details,
        error_message,
        exception: None,
        traceback: None,
    }
}

/// Runs code that blocks where it may.
pub(crate) async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<T, TaskError> {
    // What it logs is of the same run.
    let lines = tracing::Span::current();
    tokio::task::spawn_blocking(move || lines.in_scope(run))
        .await
        .map_err(|e| TaskError::Bug(e.to_string()))
}
