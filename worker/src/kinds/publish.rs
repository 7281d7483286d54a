//! `publish`: the web distributor's tree, or the export distributor's tar.
//!
//! Steps and their texts: pulp_docker `distributors/publish_steps.py`.

use std::{collections::BTreeSet, time::Duration};

use pulp_model::{
    CodedError, Digest, DistributorId, ErrorCode, RepositoryId, TaskId, Timestamp,
    config::{self, DistributorSettings, EXPORT_DISTRIBUTOR_TYPE, WEB_DISTRIBUTOR_TYPE},
    history::{HistoryResult, PublishHistory},
};
use pulp_publication::{Changed, Contents, Publication, PublicationError, PublicationId, Staged};
use pulp_store::{
    FencedTx,
    attempts::Outcome,
    distributors::{Distributor, PublishedAs},
    repositories::Repository,
};
use serde_json::{Map, Value, json};

use super::{Context, export, not_found, repository};
use crate::{Worker, error::TaskError};

/// For how long an old publication stays as it was: until Crane has read the new one, which takes its polling interval
/// at most, and whoever was in the old one has come to an end.
const DRAINED: Duration = Duration::from_mins(10);
/// Drained publications that are kept, to be made into the next one.
const KEEP_PREVIOUS: usize = 1;

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
    let found = context.repository_uncounted(repo).await?;
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
    refuse_taken_registry_id(context, found, settings).await?;
    let fingerprint = fingerprint(&repository::described(context, found, settings));
    if is_unchanged(context, found, distributor, settings, &fingerprint) {
        return skip(context, found, distributor, &fingerprint, settings).await;
    }

    let step = context
        .report
        .step("publish_images", "Publishing Image Files.", 0);
    let over_http = context
        .report
        .step("publish_images_over_http", "Making files available via web.", 1);
    step.begin();
    let id = PublicationId::new();
    let (staged, items) = match stage_change(context, found, distributor, settings, &id).await? {
        Some(staged) => staged,
        None => stage_whole(context, found, settings, &id).await?,
    };
    step.add_total(items);
    step.advance(items);
    step.finish();

    over_http.begin();
    let tx = context.fence().await?;
    let (tx, switched) = pulp_trace::Span::begin("publish.switch", pulp_trace::SpanKind::Internal)
        .run(within(tx, move || staged.switch()))
        .await?;
    switched?;
    over_http.advance(1);
    over_http.finish();
    let published = PublishedAs {
        fingerprint: &fingerprint,
        registry_id: Some(&settings.registry_id),
        version: found.version,
        id: Some(&id.to_string()),
    };
    end(context, tx, distributor, &published, HistoryResult::Success, None).await?;
    tidy(context, &found.id).await;
    Ok(())
}

/// Stages all that the repository holds, checked as a whole. With it comes the number of units.
async fn stage_whole(
    context: &Context,
    found: &Repository,
    settings: &DistributorSettings,
    id: &PublicationId,
) -> Result<(Staged, u64), TaskError> {
    let contents = repository::contents(context, found, settings).await?;
    let items = unit_count(&contents);
    let (root, attempt, id) = (context.worker.published.clone(), context.attempt_name(), *id);
    let staged = blocking(move || root.stage(&Publication::new(contents)?, &id, &attempt)).await??;
    Ok((staged, items))
}

/// Stages what changed since the distributor last published, upon that publication. None if there is no publication
/// that is surely that one, or it is to be made anew. With it comes the number of units.
async fn stage_change(
    context: &Context,
    found: &Repository,
    distributor: &Distributor,
    settings: &DistributorSettings,
    id: &PublicationId,
) -> Result<Option<(Staged, u64)>, TaskError> {
    let (Some(version), Some(published_id)) = (distributor.published_version, &distributor.published_id)
    else {
        return Ok(None);
    };
    if settings.force_full || version > found.version {
        return Ok(None);
    }
    let (root, repo) = (context.worker.published.clone(), found.id.clone());
    let base = blocking(move || root.published(&repo)).await?;
    let Some(base) = base
        .ok()
        .flatten()
        .filter(|base| base.id().to_string() == *published_id)
    else {
        tracing::info!(repository = %found.id, "the publication there is not the last one made; all is made anew");
        return Ok(None);
    };
    let Some(change) = repository::change(context, found, settings, version).await? else {
        return Ok(None);
    };
    let (root, attempt, id) = (context.worker.published.clone(), context.attempt_name(), *id);
    let staged = blocking(move || {
        let changed = Changed::new(base, change)?;
        let units = changed.units();
        let staged = root.stage_change(changed, &id, &attempt, DRAINED)?;
        Ok::<_, PublicationError>((staged, units))
    });
    match staged.await? {
        Ok(staged) => Ok(Some(staged)),
        Err(error) => {
            // The whole is made of what is sure, and tells exactly what is missing.
            tracing::warn!(repository = %found.id, %error, "a change can't be published as such; all is made anew");
            Ok(None)
        }
    }
}

/// After the end of the task: removes publications that nobody reads any more and what dead attempts left, and
/// prepares for the next change. None of it is needed for what was published.
async fn tidy(context: &Context, repo: &RepositoryId) {
    if let Err(error) = remove_abandoned(context, repo).await {
        tracing::warn!(%error, "what dead attempts left stays behind");
    }
    let (root, repo) = (context.worker.published.clone(), repo.clone());
    let (stop, attempt) = (context.stop.clone(), context.attempt_name());
    let tidied = blocking(move || {
        root.prune(&repo, &attempt, KEEP_PREVIOUS, DRAINED)?;
        root.prepare_spare(&repo, &attempt, DRAINED, &|| stop.is_stopped())
    });
    match tidied.await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            tracing::warn!(%error, "old publications stay behind, or the next change takes longer");
        }
        Err(error) => tracing::warn!(%error, "tidying up"),
    }
}

/// Removes what attempts that are over left of this repository's publications: those whose worker died after the
/// task had ended, or that were the last ones allowed. Those of a task that goes on are removed with that.
async fn remove_abandoned(context: &Context, repo: &RepositoryId) -> Result<(), TaskError> {
    let (root, of) = (context.worker.published.clone(), repo.clone());
    let attempts = blocking(move || root.attempts(&of)).await??;
    let tasks: Vec<TaskId> = attempts.iter().filter_map(|a| TaskId::of_attempt(a)).collect();
    let over = context.worker.store.tasks_over(&tasks).await?;
    let is_dead = |attempt: &String| TaskId::of_attempt(attempt).is_some_and(|task| over.contains(&task));
    let dead: BTreeSet<String> = attempts.into_iter().filter(is_dead).collect();
    if !dead.is_empty() {
        let (root, repo) = (context.worker.published.clone(), repo.clone());
        blocking(move || root.remove_abandoned(&repo, |attempt| dead.contains(attempt))).await??;
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

/// What a publication is made of besides the units of a version: names, urls and v1 tags.
pub(crate) fn fingerprint(described: &Contents) -> String {
    let mut lines = vec![format!(
        "{} {} {} {} {}",
        described.repository, described.registry_id, described.protected, described.v1_url, described.v2_url
    )];
    let tags = described.v1_tags.iter();
    lines.extend(tags.map(|t| format!("v1tag {} {}", t.tag, t.image_id)));
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
        && distributor.published_version == Some(found.version)
        && context.worker.published.is_published(&found.id)
}

/// The publication there is the one asked for.
async fn skip(
    context: &Context,
    found: &Repository,
    distributor: &Distributor,
    fingerprint: &str,
    settings: &DistributorSettings,
) -> Result<(), TaskError> {
    let tx = context.fence().await?;
    let published = PublishedAs {
        fingerprint,
        registry_id: Some(&settings.registry_id),
        version: found.version,
        id: distributor.published_id.as_deref(),
    };
    end(context, tx, distributor, &published, HistoryResult::Skipped, None).await
}

/// Ends a run that published, exported, or had nothing to do: what the distributor has published now, the entry of
/// its history, and the task with that as its result, `also` one more field.
pub(crate) async fn end(
    context: &Context,
    mut tx: FencedTx,
    distributor: &Distributor,
    published: &PublishedAs<'_>,
    result: HistoryResult,
    also: Option<(&str, Value)>,
) -> Result<(), TaskError> {
    tx.set_published(&distributor.repo_id, &distributor.id, published)
        .await?;
    let entry = history(context, distributor, result, None);
    tx.add_publish_history(&entry).await?;
    let mut outcome = json!(entry);
    if let Some((field, value)) = also {
        outcome[field] = value;
    }
    tx.finish(&Outcome::Finished(outcome), &context.report.to_json())
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

/// Makes an effect that blocks within a fence, and gives the fence back. It holds until the effect has come to its
/// end, also if the run is given up meanwhile, for a thread goes on then: whoever gets the task next, or the
/// repository, is not to come in between.
pub(crate) async fn within<F: Send + 'static, T: Send + 'static>(
    fence: F,
    effect: impl FnOnce() -> T + Send + 'static,
) -> Result<(F, T), TaskError> {
    blocking(move || {
        let made = effect();
        (fence, made)
    })
    .await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{sync::mpsc, time::Duration};

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_fence_holds_until_its_effect_is_made_though_the_run_is_given_up() {
        const LIMIT: Duration = Duration::from_secs(30);
        /// Tells when it is let go of.
        struct Fence(mpsc::Sender<&'static str>);
        impl Drop for Fence {
            fn drop(&mut self) {
                self.0.send("let go").unwrap();
            }
        }
        let (told, events) = mpsc::channel();
        let (go_on, wait) = mpsc::channel();
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let effect = {
            let told = told.clone();
            move || {
                begun.send(()).unwrap();
                wait.recv_timeout(LIMIT).unwrap();
                told.send("made").unwrap();
            }
        };
        tokio::select! {
            _ = within(Fence(told), effect) => unreachable!("the effect waits"),
            begun = has_begun => begun.unwrap(),
        }
        go_on.send(()).unwrap();
        assert_eq!(events.recv_timeout(LIMIT), Ok("made"));
        assert_eq!(events.recv_timeout(LIMIT), Ok("let go"));
    }
}
