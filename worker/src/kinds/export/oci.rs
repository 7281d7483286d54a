//! The export for closed networks: an OCI layout with all that a version of the repository holds, or with what it
//! holds more than an earlier one.
//!
//! It is written aside, beside its place, and gets there by a rename inside the fence: what lies there is whole.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use futures::StreamExt as _;
use pulp_content::ContentStore;
use pulp_model::{
    CodedError, Digest, ErrorCode, RepositoryId, VersionNumber,
    config::DistributorSettings,
    export::{ExportBase, OciExport},
    history::HistoryResult,
    unit::Unit,
};
use pulp_store::{
    distributors::{Distributor, PublishedAs},
    repositories::Repository,
};
use pulp_transfer::{
    Base, BlobSource, Contents, ExportManifest, ExportProgress, ExportedRepository, MANIFEST_FILE,
    SigningKey, Target, TransferError, Wanted,
};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::super::{
    Context, held,
    publish::{blocking, end, within},
};
use crate::{
    TransferSettings,
    error::TaskError,
    progress::{Report, StepHandle},
    stop::Stop,
};

pub(crate) async fn run(
    context: &Context,
    found: &Repository,
    distributor: &Distributor,
    settings: &DistributorSettings,
    oci: &OciExport,
) -> Result<(), TaskError> {
    let files = context
        .report
        .step("publish_images", "Publishing Image Files.", 0);
    let save = context.report.step("save_tar", "Saving the export.", 1);
    files.begin();
    let wanted = wanted(context, found, settings, oci).await?;
    let settings = context.worker.settings.transfer.clone();
    let key = blocking(move || signing_key(&settings)).await??;
    let key_id = key.as_ref().map(SigningKey::id);
    let place = Place::of(&target(context, &found.id, oci, &wanted), &context.attempt_name());
    files.add_total(wanted.files.len() as u64);
    let (place, manifest, digest) = {
        let earlier: Vec<String> = context.earlier_attempt_names().collect();
        let target = Target {
            directory: place.aside.clone(),
            layout: oci.layout,
            part_size: oci.part_size,
        };
        let source = Source {
            content: context.worker.content.clone(),
            runtime: Handle::current(),
        };
        let watch = Watch {
            report: context.report.clone(),
            step: files.clone(),
            stop: context.stop.clone(),
            planned: wanted.files.iter().map(|(_, size)| *size).sum(),
            written: AtomicU64::new(0),
        };
        blocking(move || {
            place.prepare(&earlier)?;
            let (manifest, digest) = pulp_transfer::write(wanted, &target, key.as_ref(), &source, &watch)?;
            Ok::<_, TransferError>((place, manifest, digest))
        })
        .await??
    };
    files.finish();

    save.begin();
    let result = told(&place.target, &manifest, &digest, key_id.as_ref());
    let state = manifest.state.to_string();
    let tx = context.fence().await?;
    let (mut tx, taken) = within(tx, move || place.take().map(|()| place)).await?;
    let mut place = taken?;
    save.advance(1);
    save.finish();
    tx.set_exported(&found.id, found.version).await?;
    let published = PublishedAs {
        fingerprint: &state,
        registry_id: None,
        version: found.version,
        id: None,
    };
    let also = Some(("export", result));
    end(context, tx, distributor, &published, HistoryResult::Success, also).await?;
    blocking(move || place.forget_former()).await
}

/// What is exported, and what of it must come along.
async fn wanted(
    context: &Context,
    found: &Repository,
    settings: &DistributorSettings,
    oci: &OciExport,
) -> Result<Wanted, TaskError> {
    let (units, contents) = contents(context, &found.id, found.version).await?;
    let missing = contents.missing(&units);
    if !missing.is_empty() {
        return Err(incomplete(&missing).into());
    }
    let base = match oci.base {
        None => None,
        Some(base) => Some(base_of(context, found, base).await?),
    };
    let of_base: HashSet<Digest> = base
        .iter()
        .flat_map(|(_, contents)| contents.files())
        .map(|(digest, _)| digest)
        .collect();
    let mut files = Vec::new();
    let mut lost = Vec::new();
    let mut carried = contents.files();
    carried.retain(|(digest, _)| !of_base.contains(digest));
    let sizes = held::sizes(
        context,
        carried.iter().map(|(digest, _)| digest.clone()).collect(),
    )
    .await?;
    for ((digest, expected), here) in carried.into_iter().zip(sizes) {
        match here {
            Some(here) if expected.is_none_or(|expected| expected == here) => files.push((digest, here)),
            _ => lost.push(format!("the file of {digest}")),
        }
    }
    if !lost.is_empty() {
        return Err(incomplete(&lost).into());
    }
    Ok(Wanted {
        repository: ExportedRepository {
            id: found.id.clone(),
            display_name: found.display_name.clone(),
            description: found.description.clone(),
            registry_id: settings.registry_id.clone(),
        },
        repository_version: found.version,
        base: base.map(|(version, contents)| Base {
            state: contents.state(&found.id),
            repository_version: version,
        }),
        index: contents.index(&units),
        contents,
        files,
    })
}

/// All of a version.
async fn contents(
    context: &Context,
    repo: &RepositoryId,
    version: VersionNumber,
) -> Result<(Vec<Unit>, Contents), TaskError> {
    let store = &context.worker.store;
    let units = store.units_of_version(repo, version).await?;
    // Those of the version, so that it gives the same state whenever it is asked.
    let v1_tags = store.v1_tags_of_version(repo, version).await?;
    let contents = Contents::of(&units, &v1_tags);
    Ok((units, contents))
}

/// The version that an incremental export builds on, and what it held.
async fn base_of(
    context: &Context,
    found: &Repository,
    base: ExportBase,
) -> Result<(VersionNumber, Contents), TaskError> {
    let store = &context.worker.store;
    let unknown = |what: String, base: Value| {
        let text = format!("{what}; name the version that the other side has, or export without a base");
        CodedError::new(ErrorCode::EXPORT_BASE_UNKNOWN, text)
            .with("base", base)
            .with("repo_id", &found.id)
    };
    let version = match base {
        ExportBase::Version(version) => version,
        ExportBase::Last => store
            .transfers(&found.id)
            .await?
            .exported_version
            .ok_or_else(|| unknown(format!("no export of {} was made yet", found.id), json!("last")))?,
    };
    let versions = store.repository_versions(&found.id).await?;
    if !versions.iter().any(|v| v.number == version) {
        return Err(unknown(format!("{} has no version {version}", found.id), json!(version)).into());
    }
    Ok((version, contents(context, &found.id, version).await?.1))
}

fn incomplete(missing: &[String]) -> CodedError {
    let shown: Vec<&str> = missing.iter().take(10).map(String::as_str).collect();
    let text = format!(
        "the repository is not complete, so it can't be exported: {}{}; sync or upload what is missing",
        shown.join(", "),
        if missing.len() > shown.len() { ", …" } else { "" }
    );
    CodedError::new(ErrorCode::CLOSURE_INCOMPLETE, text).with("missing", missing)
}

/// The key that is configured; none if there is no such file. Opening one of cosign's takes a while.
fn signing_key(settings: &TransferSettings) -> Result<Option<SigningKey>, TransferError> {
    let path = &settings.signing_key;
    if path.exists() {
        return SigningKey::read(path, settings.signing_key_password_file.as_deref()).map(Some);
    }
    tracing::warn!(path = %path.display(), "there is no signing key: the export is not signed");
    Ok(None)
}

/// Where the export goes unless the request names a place: each export has one of its own.
fn target(context: &Context, repo: &RepositoryId, oci: &OciExport, wanted: &Wanted) -> PathBuf {
    oci.directory.clone().unwrap_or_else(|| {
        let mut name = format!("{repo}-{}", wanted.repository_version);
        if let Some(base) = &wanted.base {
            name = format!("{name}-since-{}", base.repository_version);
        }
        context.worker.published.path().join("export/oci").join(name)
    })
}

/// What the task's result says of the export.
fn told(target: &Path, manifest: &ExportManifest, digest: &Digest, key: Option<&Digest>) -> Value {
    let bytes: u64 = manifest.carried.iter().map(|c| c.size).sum();
    json!({
        "directory": target,
        "manifest": target.join(MANIFEST_FILE),
        "manifest_digest": digest,
        "repository_version": manifest.repository_version,
        "state": manifest.state,
        "base": manifest.base,
        "layout": manifest.layout,
        "parts": manifest.parts,
        "blobs": manifest.carried.len(),
        "bytes": bytes,
        "blobs_of_base": manifest.contents.files().len().saturating_sub(manifest.carried.len()),
        "signed_by": key,
    })
}

/// A directory that is made aside and takes its place as a whole.
struct Place {
    target: PathBuf,
    /// Where it is made.
    aside: PathBuf,
    /// Where the export goes that had the place before.
    former: PathBuf,
}

impl Place {
    fn of(target: &Path, attempt: &str) -> Self {
        Self {
            target: target.to_owned(),
            aside: beside(target, attempt, "part"),
            former: beside(target, attempt, "former"),
        }
    }

    /// Refuses a place that is another's, and removes what lost attempts left beside it.
    fn prepare(&self, earlier: &[String]) -> Result<(), TransferError> {
        for attempt in earlier {
            let lost = Self::of(&self.target, attempt);
            if lost.former.exists() && !self.target.exists() {
                // It died between the two renames.
                fs::rename(&lost.former, &self.target).map_err(TransferError::writing(&self.target))?;
            }
            for left in [&lost.aside, &lost.former] {
                remove(left)?;
            }
        }
        let taken = match fs::read_dir(&self.target) {
            Ok(mut entries) => entries.next().is_some() && !self.target.join(MANIFEST_FILE).exists(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(TransferError::writing(&self.target)(e)),
        };
        if taken {
            return Err(TransferError::Target {
                path: self.target.display().to_string(),
                reason:
                    "it holds files and is no export; name a new directory, or one with an earlier export"
                        .to_owned(),
            });
        }
        Ok(())
    }

    /// Renames the new export to its place, in that of the former one.
    fn take(&self) -> Result<(), TransferError> {
        let writing = TransferError::writing(&self.target);
        match fs::rename(&self.target, &self.former) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(writing(e)),
        }
        fs::rename(&self.aside, &self.target).map_err(|e| {
            // So that the former one is there again.
            let _ = fs::rename(&self.former, &self.target);
            writing(e)
        })?;
        let above = self.target.parent().unwrap_or(Path::new("/"));
        fs::File::open(above).and_then(|d| d.sync_all()).map_err(writing)
    }

    /// The new one is committed: the former one may go.
    fn forget_former(&mut self) {
        if let Err(e) = remove(&self.former) {
            tracing::warn!(error = %e, "the export's former files stay behind");
        }
    }
}

impl Drop for Place {
    /// What was not renamed is of no use to anybody; what was has no such name any more.
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.aside);
    }
}

fn beside(target: &Path, attempt: &str, ending: &str) -> PathBuf {
    let name = target
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    target.with_file_name(format!(".{name}.{attempt}.{ending}"))
}

fn remove(path: &Path) -> Result<(), TransferError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(TransferError::writing(path)(e)),
        _ => Ok(()),
    }
}

/// Blobs of the content store, for code that blocks.
struct Source {
    content: ContentStore,
    runtime: Handle,
}

impl BlobSource for Source {
    fn open(&self, digest: &Digest) -> io::Result<Box<dyn io::Read + '_>> {
        if let Some(path) = self.content.local_path(digest) {
            return Ok(Box::new(fs::File::open(path)?));
        }
        let reader = self.runtime.block_on(self.content.read(digest, None));
        Ok(Box::new(StreamRead {
            stream: reader.map_err(pulp_content::ContentError::into_io)?.stream,
            runtime: &self.runtime,
            chunk: Bytes::new(),
        }))
    }
}

/// A blob of an object store, for code that blocks.
struct StreamRead<'a> {
    stream: futures::stream::BoxStream<'static, Result<Bytes, pulp_content::ContentError>>,
    runtime: &'a Handle,
    chunk: Bytes,
}

impl io::Read for StreamRead<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.runtime.block_on(self.stream.next()) {
                None => return Ok(0),
                Some(chunk) => self.chunk = chunk.map_err(pulp_content::ContentError::into_io)?,
            }
        }
        let piece = self.chunk.split_to(self.chunk.len().min(buffer.len()));
        for (to, from) in buffer.iter_mut().zip(&piece) {
            *to = *from;
        }
        Ok(piece.len())
    }
}

/// Shows an export's advance.
struct Watch {
    report: Report,
    step: StepHandle,
    stop: Stop,
    planned: u64,
    written: AtomicU64,
}

impl ExportProgress for Watch {
    fn is_stopped(&self) -> bool {
        self.stop.is_stopped()
    }

    fn advanced(&self, bytes: u64) {
        let written = self.written.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.step.details(format!("{written} of {} bytes", self.planned));
        self.report.beat();
    }

    fn stored(&self) {
        self.step.advance(1);
    }
}
