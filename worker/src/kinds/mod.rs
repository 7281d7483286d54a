//! The task kinds: one module each. To add one, add its variant to `pulp_model::task::TaskKind` and a line here.
//!
//! A kind prepares whatever takes long outside any transaction, under names private to its attempt; then begins
//! the fenced transaction, makes the effect visible inside it, and ends the task with it.

mod delete;
mod export;
mod held;
mod import;
mod import_export;
mod publish;
mod repository;
mod settings;
mod staging;
mod sync;
mod tag;

use std::{path::PathBuf, sync::Arc};

use pulp_model::{CodedError, ErrorCode, RepositoryId, Timestamp, history::HistoryResult, task::TaskKind};
use pulp_store::{FencedTx, StoreError, TaskLease, attempts::Outcome, repositories::Repository};

use crate::{Worker, error::TaskError, progress::Report, stop::Stop};

/// What a run of a kind works with.
pub(crate) struct Context {
    pub(crate) worker: Arc<Worker>,
    pub(crate) lease: TaskLease,
    pub(crate) report: Report,
    pub(crate) stop: Stop,
    pub(crate) started: Timestamp,
    /// The same instant, by the clock that never steps.
    pub(crate) begun: tokio::time::Instant,
}

impl Context {
    /// Private to this attempt; names of files and owners of temporary blobs are made of it.
    pub(crate) fn attempt_name(&self) -> String {
        format!("{}-{}", self.lease.task_id(), self.lease.attempt())
    }

    /// The names of the attempts before this one, which are over: what they left may go.
    pub(crate) fn earlier_attempt_names(&self) -> impl Iterator<Item = String> {
        let id = self.lease.task_id();
        (1..self.lease.attempt().0).map(move |n| format!("{id}-{n}"))
    }

    /// A directory for this attempt's own files; removed at its end.
    pub(crate) fn scratch_dir(&self) -> PathBuf {
        self.worker.settings.working_dir.join(self.attempt_name())
    }

    /// The repository, or the error that it is gone.
    pub(crate) async fn repository(&self, id: &RepositoryId) -> Result<Repository, TaskError> {
        self.worker
            .store
            .repository(id)
            .await?
            .ok_or_else(|| unknown_repository(id).into())
    }

    /// The repository without its counts, or the error that it is gone.
    pub(crate) async fn repository_uncounted(&self, id: &RepositoryId) -> Result<Repository, TaskError> {
        let found = self.worker.store.repository_uncounted(id).await?;
        found.ok_or_else(|| unknown_repository(id).into())
    }

    /// Begins the transaction that commits the effect; refuses if the run was told to stop.
    pub(crate) async fn fence(&self) -> Result<FencedTx, TaskError> {
        if self.stop.is_stopped() {
            return Err(TaskError::Stopped);
        }
        self.report.close();
        let span = pulp_trace::Span::begin("task.fence", pulp_trace::SpanKind::Internal);
        Ok(span.of(self.worker.store.begin_fenced(&self.lease)).await?)
    }
}

/// Runs a kind to its committed end. The long ones are boxed, lest every run is as large as the largest.
pub(crate) async fn run(context: &Context, kind: &TaskKind) -> Result<(), TaskError> {
    match kind {
        TaskKind::ImportUpload { unit_type_id, .. } if unit_type_id == "docker_tag" => {
            tag::run(context, kind).await
        }
        TaskKind::ImportUpload { .. } => Box::pin(import::run(context, kind)).await,
        TaskKind::Sync {
            repo_id,
            override_config,
        } => Box::pin(sync::run(context, repo_id, override_config)).await,
        TaskKind::ImportExport {
            repo_id,
            path,
            create,
            remove_missing,
        } => {
            let request = import_export::Request {
                repo: repo_id,
                path,
                create: *create,
                remove_missing: *remove_missing,
            };
            Box::pin(import_export::run(context, &request)).await
        }
        TaskKind::Publish {
            repo_id,
            distributor_id,
            override_config,
        } => Box::pin(publish::run(context, repo_id, distributor_id, override_config)).await,
        TaskKind::DeleteRepository { repo_id } => delete::repository(context, repo_id).await,
        TaskKind::DeleteDistributor {
            repo_id,
            distributor_id,
        } => delete::distributor(context, repo_id, distributor_id).await,
        TaskKind::UpdateImporter {
            repo_id,
            importer_type_id,
            config,
        } => settings::update_importer(context, repo_id, importer_type_id.as_deref(), config).await,
        TaskKind::DeleteImporter { repo_id } => settings::delete_importer(context, repo_id).await,
        TaskKind::UpdateDistributor {
            repo_id,
            distributor_id,
            config,
            auto_publish,
        } => settings::update_distributor(context, repo_id, distributor_id, config, *auto_publish).await,
        TaskKind::Probe { .. } => probe(context).await,
    }
}

/// Has had its turn, which is all that was asked.
async fn probe(context: &Context) -> Result<(), TaskError> {
    if context.stop.is_stopped() {
        return Err(TaskError::Stopped);
    }
    context.report.close();
    let store = &context.worker.store;
    store
        .finish_without_effect(&context.lease, &context.report.to_json())
        .await?;
    Ok(())
}

/// What a kind leaves in the histories when it fails.
pub(crate) async fn record_failure(
    context: &Context,
    kind: &TaskKind,
    tx: &mut FencedTx,
    outcome: &Outcome,
) -> Result<(), StoreError> {
    let (result, message) = match outcome {
        Outcome::Canceled => (HistoryResult::Canceled, None),
        Outcome::Failed(error) => (HistoryResult::Error, Some(error.description.clone())),
        Outcome::Finished(_) | Outcome::Skipped(_) => return Ok(()),
    };
    if let TaskKind::Publish {
        repo_id,
        distributor_id,
        ..
    } = kind
        && let Some(distributor) = context.worker.store.distributor(repo_id, distributor_id).await?
    {
        let entry = publish::history(context, &distributor, result, message.clone());
        tx.add_publish_history(&entry).await?;
    }
    if let TaskKind::Sync {
        repo_id,
        override_config,
    } = kind
        && let Some(entry) = sync::failure(context, repo_id, override_config, result, message)
    {
        tx.add_sync_history(&entry).await?;
    }
    Ok(())
}

/// Removes the own files and temporary blobs of this attempt, and of those before it that never got to do so.
pub(crate) async fn clean_up(context: &Context, kind: &TaskKind) {
    if matches!(kind, TaskKind::Probe { .. }) {
        return;
    }
    let names: Vec<String> = context
        .earlier_attempt_names()
        .chain([context.attempt_name()])
        .collect();
    for name in &names {
        match tokio::fs::remove_dir_all(context.worker.settings.working_dir.join(name)).await {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => tracing::warn!(error = %e, "scratch files stay behind"),
        }
        if let Err(e) = context.worker.content.sweep_tmp(name).await {
            tracing::warn!(error = %e, "temporary blobs stay behind until a scheduler sees that the task is over");
        }
    }
    let (root, repo) = (context.worker.published.clone(), kind.repo_id().clone());
    let swept =
        publish::blocking(move || root.remove_abandoned(&repo, |attempt| names.iter().any(|n| n == attempt)));
    match swept.await {
        Ok(Ok(_)) => {}
        Ok(Err(e)) => tracing::warn!(error = %e, "a publication that was given up stays behind"),
        Err(e) => tracing::warn!(error = %e, "clean-up"),
    }
}

pub(crate) fn unknown_repository(id: &RepositoryId) -> CodedError {
    not_found("repo_id", "repository", id.as_str())
}

pub(crate) fn not_found(key: &str, what: &str, id: &str) -> CodedError {
    CodedError::new(
        ErrorCode::NOT_FOUND,
        format!("there is no {what} {id:?}; it may have been deleted meanwhile"),
    )
    .with("resources", serde_json::json!({ key: id }))
}
