//! The export distributor: the published files as one tar.

mod oci;

use std::{
    fs::File,
    io::{BufWriter, ErrorKind, Read, Write as _},
    path::{Path, PathBuf},
};

use pulp_archive::TarWriter;
use pulp_model::{CodedError, ErrorCode, config::DistributorSettings, history::HistoryResult};
use pulp_publication::{EntrySource, Publication};
use pulp_store::{
    distributors::{Distributor, PublishedAs},
    repositories::Repository,
};
use serde_json::json;

use super::{
    Context,
    publish::{blocking, end, fingerprint, unit_count, within},
    repository,
};
use crate::{error::TaskError, progress::StepHandle, stop::Stop};

pub(crate) async fn run(
    context: &Context,
    found: &Repository,
    distributor: &Distributor,
    settings: &DistributorSettings,
) -> Result<(), TaskError> {
    if let Some(oci) = &settings.oci_export {
        return oci::run(context, found, distributor, settings, oci).await;
    }
    let contents = repository::contents(context, found, settings).await?;
    let fingerprint = fingerprint(&repository::described(context, found, settings));
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
    let part = Part::of(&target, &context.attempt_name());
    let part = {
        let root = context.worker.published.clone();
        let (files, stop) = (files.clone(), context.stop.clone());
        blocking(move || {
            let entries = root.export_entries(&publication)?;
            part.write(entries, units, &files, &stop)?;
            Ok::<_, TaskError>(part)
        })
        .await??
    };
    files.finish();

    save.begin();
    let tx = context.fence().await?;
    let (tx, taken) = within(tx, move || part.take_its_name()).await?;
    taken?;
    save.advance(1);
    save.finish();
    let published = PublishedAs {
        fingerprint: &fingerprint,
        registry_id: None,
        version: found.version,
        id: None,
    };
    let also = Some(("export_file", json!(target)));
    end(context, tx, distributor, &published, HistoryResult::Success, also).await
}

/// Beside the target, so that the last step is a rename.
fn part_name(target: &Path, attempt: &str) -> PathBuf {
    let name = target
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    target.with_file_name(format!(".{name}.{attempt}.part"))
}

/// The tar under a name of this attempt's own. Dropped before it has taken its name, it is of no use to anybody
/// and goes.
struct Part {
    path: PathBuf,
    target: PathBuf,
}

impl Part {
    fn of(target: &Path, attempt: &str) -> Self {
        Self {
            path: part_name(target, attempt),
            target: target.to_owned(),
        }
    }

    fn write(
        &self,
        entries: Vec<(String, EntrySource)>,
        units: u64,
        step: &StepHandle,
        stop: &Stop,
    ) -> Result<(), TaskError> {
        let fault = |e| self.fault(e);
        if self.target.is_dir() {
            return Err(fault(ErrorKind::IsADirectory.into()));
        }
        if let Some(directory) = self.path.parent() {
            std::fs::create_dir_all(directory).map_err(fault)?;
        }
        let members = entries.len() as u64;
        let file = File::create(&self.path).map_err(fault)?;
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
                    let moving = Moving {
                        inner: open,
                        step,
                        stop,
                    };
                    tar.append_file(&path, moving, size).map_err(|e| {
                        if stop.is_stopped() {
                            TaskError::Stopped
                        } else {
                            fault(e)
                        }
                    })?;
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

    fn take_its_name(self) -> Result<(), TaskError> {
        let above = self.target.parent().unwrap_or(Path::new("/"));
        std::fs::rename(&self.path, &self.target)
            .and_then(|()| File::open(above)?.sync_all())
            .map_err(|e| self.fault(e))
    }

    /// What the path given is to blame for is the request's fault; the rest is ours.
    fn fault(&self, e: std::io::Error) -> TaskError {
        let target = self.target.display();
        if matches!(
            e.kind(),
            ErrorKind::PermissionDenied
                | ErrorKind::NotFound
                | ErrorKind::AlreadyExists
                | ErrorKind::NotADirectory
                | ErrorKind::IsADirectory
                | ErrorKind::InvalidFilename
                | ErrorKind::ReadOnlyFilesystem
        ) {
            let text = format!(
                "the export can't be written to {target}: {e}; name a file in a directory that the worker may write to"
            );
            return CodedError::new(ErrorCode::INVALID_EXPORT_FILE, text)
                .with("field", "export_file")
                .with("value", &self.target)
                .into();
        }
        TaskError::io(format!("write {target}"))(e)
    }
}

/// A file on its way into the tar: a large one shows that the export moves, and hears of a stop.
struct Moving<'a> {
    inner: File,
    step: &'a StepHandle,
    stop: &'a Stop,
}

impl Read for Moving<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.stop.is_stopped() {
            return Err(ErrorKind::Other.into());
        }
        let n = self.inner.read(buffer)?;
        self.step.beat();
        Ok(n)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
