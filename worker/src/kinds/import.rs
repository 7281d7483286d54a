//! `import_upload`: reads an uploaded archive into a repository, as one new version.
//!
//! Blobs are verified and made durable while the archive streams through, but get their names only inside the
//! fence, together with the version: a bad or lost upload leaves nothing.

use std::{
    io,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use pulp_archive::{ArchiveError, ImportOptions, Imported, Limits, Phase, Progress, UploadKind};
use pulp_content::{ContentError, StagedBlob};
use pulp_model::{
    CodedError, Digest, ErrorCode, RepositoryId, UploadId,
    config::{IMPORTER_TYPE, mask_id},
    task::TaskKind,
    unit::{Unit, UnitType},
};
use pulp_store::{attempts::Outcome, versions::VersionChange};
use serde_json::{Value, json};

use super::{
    Context,
    publish::{blocking, within},
    staging::Staging,
};
use crate::{error::TaskError, progress::StepHandle, stop::Stop};

pub(crate) async fn run(context: &Context, kind: &TaskKind) -> Result<(), TaskError> {
    let TaskKind::ImportUpload {
        repo_id,
        upload_id,
        unit_type_id,
        override_config,
        ..
    } = kind
    else {
        return Ok(());
    };
    context.report.of(IMPORTER_TYPE);
    context.repository(repo_id).await?;
    require_importer(context, repo_id).await?;
    let unit_type = unit_type_id
        .parse::<UnitType>()
        .ok()
        .and_then(UploadKind::of)
        .ok_or_else(|| {
            CodedError::new(
                ErrorCode::INVALID_VALUE,
                format!("units of type {unit_type_id:?} can't be uploaded"),
            )
            .with("property_names", ["unit_type_id"])
        })?;
    let file = upload_file(context, *upload_id).await?;
    let options = ImportOptions {
        mask_id: mask_id(override_config)?,
        limits: Limits {
            expanded_bytes: context.worker.settings.max_expanded_bytes,
            ..Limits::default()
        },
        spool_dir: context.scratch_dir(),
        ..ImportOptions::new(repo_id.clone(), unit_type)
    };
    tokio::fs::create_dir_all(&options.spool_dir)
        .await
        .map_err(TaskError::io("make a scratch directory"))?;

    let (imported, staged) = read_archive(context, repo_id, file, options).await?;
    require_members(context, repo_id, &imported).await?;

    let tx = context.fence().await?;
    let (mut tx, kept) = within(tx, move || staged.into_iter().try_for_each(StagedBlob::keep)).await?;
    kept?;
    if !imported.v1_tags.is_empty() {
        tx.merge_v1_tags(repo_id, &imported.v1_tags).await?;
    }
    let change = tx
        .commit_version(repo_id, &imported.units)
        .await?
        .ok_or_else(|| super::unknown_repository(repo_id))?;
    let result = report(imported.primary.as_ref(), &imported.notices, &change);
    tx.finish(&Outcome::Finished(result), &context.report.to_json())
        .await?;
    Ok(())
}

/// The task's result, in the shape that Pulp 2 clients read.
pub(crate) fn report(unit: Option<&Unit>, notices: &[String], change: &VersionChange) -> Value {
    let unit = unit.map(|u| json!({"type_id": u.unit_type(), "unit_key": u.key(), "metadata": u.fields()}));
    json!({
        "success_flag": true,
        "summary": notices.join("; "),
        "details": {
            "unit": unit,
            "notices": notices,
            "repository_version": change.number,
            "added": change.added,
            "removed": change.removed,
        },
    })
}

async fn require_importer(context: &Context, repo: &RepositoryId) -> Result<(), TaskError> {
    if context.worker.store.importer(repo).await?.is_some() {
        return Ok(());
    }
    let text =
        format!("repository {repo} has no importer; give it one of type {IMPORTER_TYPE}, then upload again");
    Err(CodedError::new(ErrorCode::UPLOAD_REJECTED, text)
        .with("repo_id", repo)
        .into())
}

/// The upload's file, complete as far as the client told.
async fn upload_file(context: &Context, id: UploadId) -> Result<PathBuf, TaskError> {
    let unknown = || {
        let text = format!("there is no upload {id}; create one, send its bytes, then import it");
        CodedError::new(ErrorCode::UNKNOWN_UPLOAD, text).with("upload_id", id)
    };
    let upload = context.worker.store.upload(id).await?.ok_or_else(unknown)?;
    let path = context.worker.settings.uploads_dir.join(id.to_string());
    let size = match tokio::fs::metadata(&path).await {
        Ok(meta) => meta.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(unknown().into()),
        Err(e) => return Err(TaskError::io(format!("look at {}", path.display()))(e)),
    };
    if size < upload.size {
        let text = format!(
            "the file of upload {id} has {size} bytes, though {} were received; is the storage shared by all hosts?",
            upload.size
        );
        return Err(CodedError::new(ErrorCode::INTERNAL, text).into());
    }
    Ok(path)
}

async fn read_archive(
    context: &Context,
    repo: &RepositoryId,
    file: PathBuf,
    options: ImportOptions,
) -> Result<(Imported, Vec<StagedBlob>), TaskError> {
    let held = context
        .worker
        .store
        .associations(repo, &[UnitType::DockerBlob, UnitType::DockerManifest])
        .await?;
    let held = held
        .into_iter()
        .filter_map(|a| match a.unit {
            Unit::Blob(b) => Some((b.digest, b.size)),
            Unit::Manifest(m) => Some((m.digest, m.size)),
            _ => None,
        })
        .collect();
    let staging = Staging::new(context.worker.content.clone(), context.attempt_name(), held);
    let sealing = staging.sealing();
    let steps = Steps::announce(context);
    let read = blocking(move || {
        let imported = pulp_archive::import(&file, &options, &staging, &steps);
        steps.end(imported.is_ok());
        imported
    });
    let imported = read.await?;
    // Also of a bad archive: its blobs must be gone before the attempt's files are swept.
    let staged = sealing.end().await;
    let imported = imported.map_err(|e| match e {
        ArchiveError::Canceled => TaskError::Stopped,
        ArchiveError::Rejected(rejection) => rejection.coded().into(),
        ArchiveError::Store(e) => match e.into_inner().downcast::<ContentError>() {
            Ok(content) => TaskError::Content(*content),
            Err(other) => TaskError::Bug(other.to_string()),
        },
        ArchiveError::Io { what, source } => TaskError::Io { what, source },
    })?;
    Ok((imported, staged?))
}

/// A list may name manifests that lie in the repository already, but none that lie nowhere.
async fn require_members(
    context: &Context,
    repo: &RepositoryId,
    imported: &Imported,
) -> Result<(), TaskError> {
    if imported.references.is_empty() {
        return Ok(());
    }
    let types = [UnitType::DockerManifest, UnitType::DockerManifestList];
    let present: Vec<String> = context
        .worker
        .store
        .associations(repo, &types)
        .await?
        .iter()
        .map(|a| a.unit.identity())
        .collect();
    let missing: Vec<&Digest> = imported
        .references
        .iter()
        .filter(|d| !present.contains(&d.to_string()))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    let text = format!(
        "the manifest list refers to manifests that repository {repo} lacks: {names}; upload them first"
    );
    Err(CodedError::new(ErrorCode::LIST_MEMBERS_MISSING, text)
        .with("digests", missing)
        .into())
}

/// Shows an import's advance: one step for reading the metadata, one for storing the layers.
struct Steps {
    metadata: StepHandle,
    save: StepHandle,
    stop: Stop,
    bytes: Mutex<(u64, u64)>,
}

impl Steps {
    fn announce(context: &Context) -> Self {
        Self {
            metadata: context
                .report
                .step("upload_step_metadata", "Reading the archive.", 1),
            save: context
                .report
                .step("upload_step_save", "Storing layers and metadata.", 0),
            stop: context.stop.clone(),
            bytes: Mutex::default(),
        }
    }

    fn end(&self, well: bool) {
        if well {
            self.metadata.finish();
            self.save.finish();
        }
    }

    fn show_bytes(&self, planned: u64, advanced: u64) {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        bytes.0 += planned;
        bytes.1 += advanced;
        self.save.details(format!("{} of {} bytes", bytes.1, bytes.0));
    }
}

impl Progress for Steps {
    /// Asked between two pieces, so that the run is seen to move also where no bytes are counted.
    fn is_canceled(&self) -> bool {
        self.save.beat();
        self.stop.is_stopped()
    }

    fn phase(&self, phase: Phase) {
        match phase {
            Phase::Unpacking | Phase::Reading => self.metadata.begin(),
            Phase::Storing => {
                self.metadata.advance(1);
                self.metadata.finish();
                self.save.begin();
            }
        }
    }

    fn planned(&self, items: u64, bytes: u64) {
        self.save.add_total(items);
        self.show_bytes(bytes, 0);
    }

    fn advanced(&self, bytes: u64) {
        self.show_bytes(0, bytes);
    }

    fn stored(&self, _name: &str) {
        self.save.advance(1);
    }
}
