//! The export distributor: the published files as one tar.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
};

use pulp_archive::TarWriter;
use pulp_model::{CodedError, ErrorCode, config::DistributorSettings, history::HistoryResult};
use pulp_publication::{EntrySource, Publication};
use pulp_store::{attempts::Outcome, distributors::Distributor, repositories::Repository};
use serde_json::json;

use super::{
    Context,
    publish::{blocking, fingerprint, history, unit_count},
    repository,
};
use crate::{error::TaskError, progress::StepHandle, stop::Stop};

pub(crate) async fn run(
    context: &Context,
    found: &Repository,
    distributor: &Distributor,
    settings: &DistributorSettings,
) -> Result<(), TaskError> {
    let contents = repository::contents(context, found, settings).await?;
    let fingerprint = fingerprint(&contents);
    let target = settings
        .export_file
        .clone()
        .unwrap_or_else(|| context.worker.published.export_file(&found.id));

    let units = unit_count(&contents);
    let files = context
        .report
        .step("publish_images", "Publishing Image Files.", units);
    let save = context.report.step("save_tar", "Saving tar file.", 1);
    files.begin();
    let publication = blocking(move || Publication::new(contents)).await??;
    for earlier in context.earlier_attempt_names() {
        // What a lost attempt left; there need be nothing.
        let _ = tokio::fs::remove_file(part_name(&target, &earlier)).await;
    }
    let part = part_name(&target, &context.attempt_name());
    let made = {
        let (root, part) = (context.worker.published.clone(), part.clone());
        let (files, stop) = (files.clone(), context.stop.clone());
        blocking(move || {
            let entries = root.export_entries(&publication)?;
            write_tar(entries, &part, units, &files, &stop)
        })
        .await?
    };
    if let Err(e) = made {
        // Whatever was written is of no use to anybody.
        let _ = tokio::fs::remove_file(&part).await;
        return Err(e);
    }
    files.finish();

    save.begin();
    let mut tx = context.fence().await?;
    tokio::fs::rename(&part, &target)
        .await
        .map_err(TaskError::io(format!("name the tar {}", target.display())))?;
    save.advance(1);
    save.finish();
    tx.set_published(&found.id, &distributor.id, &fingerprint, None)
        .await?;
    let entry = history(context, distributor, HistoryResult::Success, None);
    tx.add_publish_history(&entry).await?;
    let mut result = json!(entry);
    result["export_file"] = json!(target);
    tx.finish(&Outcome::Finished(result), &context.report.to_json())
        .await?;
    Ok(())
}

/// Beside the target, so that the last step is a rename.
fn part_name(target: &Path, attempt: &str) -> PathBuf {
    let name = target
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    target.with_file_name(format!(".{name}.{attempt}.part"))
}

fn write_tar(
    entries: Vec<(String, EntrySource)>,
    part: &Path,
    units: u64,
    step: &StepHandle,
    stop: &Stop,
) -> Result<(), TaskError> {
    let fault = |e: std::io::Error| -> TaskError {
        if matches!(
            e.kind(),
            std::io::ErrorKind::PermissionDenied
                | std::io::ErrorKind::NotADirectory
                | std::io::ErrorKind::ReadOnlyFilesystem
        ) {
            let text = format!(
                "the export can't be written at {}: {e}; choose a directory the worker may write to",
                part.display()
            );
            return CodedError::new(ErrorCode::INVALID_EXPORT_FILE, text)
                .with("field", "export_file")
                .into();
        }
        TaskError::io(format!("write {}", part.display()))(e)
    };
    if let Some(directory) = part.parent() {
        std::fs::create_dir_all(directory).map_err(fault)?;
    }
    let members = entries.len() as u64;
    let file = File::create(part).map_err(fault)?;
    let mut tar = TarWriter::new(BufWriter::with_capacity(256 * 1024, file));
    for (written, (path, source)) in (1..).zip(entries) {
        if stop.is_stopped() {
            return Err(TaskError::Stopped);
        }
        match source {
            EntrySource::Bytes(bytes) => tar.append_bytes(&path, &bytes).map_err(fault)?,
            EntrySource::File { path: content, size } => {
                let open =
                    File::open(&content).map_err(TaskError::io(format!("open {}", content.display())))?;
                tar.append_file(&path, open, size).map_err(fault)?;
            }
        }
        // The report counts units, as that of a publish does; a unit has several members.
        step.advance(units * written / members - units * (written - 1) / members);
    }
    let mut buffer = tar.finish().map_err(fault)?;
    buffer.flush().map_err(fault)?;
    let file = buffer.into_inner().map_err(|e| fault(e.into_error()))?;
    file.sync_all().map_err(fault)
}
