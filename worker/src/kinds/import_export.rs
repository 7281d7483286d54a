//! `import_export`: reads an export for closed networks into a repository, as one new version.
//!
//! First it is known who vouches for the export and that it builds on what is here. Then its blobs are read, each
//! verified and kept from then on, whatever becomes of this run: the next one reads only what is missing, and parts
//! may be brought one after the other. Last, inside the fence, all of it becomes visible at once.

use std::{
    collections::{HashMap, HashSet},
    io::{self, Read as _, Write as _},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use futures::StreamExt as _;
use pulp_content::{ContentError, ContentStore};
use pulp_model::{
    CodedError, Digest, DistributorId, ErrorCode, RepositoryId,
    config::{EXPORT_DISTRIBUTOR_TYPE, IMPORTER_TYPE, WEB_DISTRIBUTOR_TYPE},
    image::{MAX_MANIFEST_BYTES, Manifest},
    task::TaskKind,
    unit::{BlobUnit, ManifestKind, TagUnit, Unit},
};
use pulp_store::{
    FencedTx, StoreError,
    attempts::Outcome,
    distributors::NewDistributor,
    repositories::{NewRepository, Repository},
};
use pulp_transfer::{
    Carried, Contents, Export, ExportManifest, ManifestEntry, TransferError, TrustedKeys, import_path,
};
use serde_json::{Map, json};

use super::{Context, held, publish::blocking, sync, unknown_repository};
use crate::{
    error::TaskError,
    progress::{Report, StepHandle},
    stop::Stop,
};

/// Blobs read at a time: one is hashed while another waits for the disk.
const AT_ONCE: usize = 4;
/// Bytes read, hashed and written at a time.
const CHUNK: usize = 256 * 1024;
/// Digests that an error names.
const NAMED: usize = 20;
/// Ids of the distributors of a repository made here: those that `pulp-admin` gives.
const WEB_DISTRIBUTOR: &str = "docker_web_distributor_name_cli";
const EXPORT_DISTRIBUTOR: &str = "docker_export_distributor_name_cli";

/// What was asked for.
pub(crate) struct Request<'a> {
    pub(crate) repo: &'a RepositoryId,
    /// Below the folder of imports.
    pub(crate) path: &'a str,
    pub(crate) create: bool,
    pub(crate) remove_missing: bool,
}

pub(crate) async fn run(context: &Context, request: &Request<'_>) -> Result<(), TaskError> {
    context.report.of(IMPORTER_TYPE);
    let repo = request.repo;
    let found = context.worker.store.repository(repo).await?;
    if found.is_none() && !request.create {
        return Err(unknown_repository(repo).into());
    }
    let metadata = context
        .report
        .step("import_metadata", "Reading the manifest of the export.", 1);
    let blobs = context
        .report
        .step("import_blobs", "Verifying and storing blobs.", 0);
    let save = context.report.step("import_save", "Saving units.", 1);

    metadata.begin();
    let export = Arc::new(open(context, request.path).await?);
    require_base(context, found.as_ref(), repo, &export.manifest).await?;
    metadata.advance(1);
    metadata.finish();

    blobs.begin();
    let read = read_blobs(context, &export, &blobs).await?;
    blobs.finish();

    save.begin();
    let units = units(context, repo, &export.manifest).await?;
    let removed = if request.remove_missing {
        what_goes(context, repo, &units).await?
    } else {
        Vec::new()
    };
    let publishes = sync::auto_publishes(context, repo).await?;

    let mut tx = context.fence().await?;
    let mut spawned = publishes;
    if found.is_none() {
        spawned.push(create(&mut tx, repo, &export.manifest).await?);
    }
    let v1_tags = &export.manifest.contents.v1_tags;
    if !v1_tags.is_empty() {
        tx.merge_v1_tags(repo, v1_tags).await?;
    }
    let change = tx
        .commit_change(repo, &units, &removed)
        .await?
        .ok_or_else(|| unknown_repository(repo))?;
    tx.set_imported(repo, &export.manifest.state).await?;
    for kind in &spawned {
        tx.spawn(kind).await?;
    }
    save.advance(1);
    save.finish();
    let result = json!({
        "repository_version": change.number,
        "added": change.added,
        "removed": change.removed,
        "created": found.is_none(),
        "blobs_read": read.blobs,
        "bytes_read": read.bytes,
        "blobs_reused": read.reused,
        "state": export.manifest.state,
        "manifest_digest": export.digest,
        "signed_by": export.signed_by,
        "exported": {
            "repository": export.manifest.repository.id,
            "repository_version": export.manifest.repository_version,
        },
    });
    tx.finish(&Outcome::Finished(result), &context.report.to_json())
        .await?;
    Ok(())
}

/// Finds the export and who vouches for it.
async fn open(context: &Context, path: &str) -> Result<Export, TaskError> {
    let settings = context.worker.settings.transfer.clone();
    let path = path.to_owned();
    let opened = blocking(move || {
        let trusted = TrustedKeys::read(&settings.trusted_keys_dir)?;
        let directory: PathBuf = import_path(&settings.import_dir, &path)?;
        Export::open(&directory, &trusted, settings.require_signature)
    });
    Ok(opened.await??)
}

/// Refuses an incremental export that builds on another state than is here, and says which is which.
async fn require_base(
    context: &Context,
    found: Option<&Repository>,
    repo: &RepositoryId,
    manifest: &ExportManifest,
) -> Result<(), TaskError> {
    let Some(base) = &manifest.base else { return Ok(()) };
    let worker = &context.worker;
    let imported = worker.store.transfers(repo).await?.imported_state;
    let mut fits = imported.as_ref() == Some(&base.state);
    if let (false, Some(found)) = (fits, found) {
        // It may have come here another way, or be the state that this very export leads to.
        let units = worker.store.units_of_version(repo, found.version).await?;
        let v1_tags = worker.store.v1_tags_of_version(repo, found.version).await?;
        let here = Contents::of(&units, &v1_tags).state(&manifest.repository.id);
        fits = here == base.state || here == manifest.state;
    }
    if !fits && imported.as_ref() != Some(&manifest.state) {
        let has = match (&imported, found) {
            (Some(state), _) => format!("an export with the state {state} was imported last"),
            (None, Some(_)) => "no export was imported yet".to_owned(),
            (None, None) => "there is no such repository yet".to_owned(),
        };
        let text = format!(
            "the export builds on version {} of {} (state {}), but into {repo} {has}; import the exports in between \
             in their order, or a full one",
            base.repository_version, manifest.repository.id, base.state
        );
        return Err(CodedError::new(ErrorCode::EXPORT_WRONG_BASE, text)
            .with("needed", &base.state)
            .with("present", &imported)
            .with("repo_id", repo)
            .into());
    }
    let carried = manifest.carried();
    let mut of_base = manifest.contents.files();
    of_base.retain(|(digest, _)| !carried.contains_key(digest));
    let mut missing = not_here(context, of_base).await?;
    if missing.is_empty() {
        return Ok(());
    }
    missing.truncate(NAMED);
    let text = format!(
        "blobs that the export builds on are not here any more, {} among them; import a full export",
        missing.first().map(ToString::to_string).unwrap_or_default()
    );
    Err(CodedError::new(ErrorCode::EXPORT_BASE_INCOMPLETE, text)
        .with("digests", missing)
        .with("repo_id", repo)
        .into())
}

/// Of these files, those that are not here with the size that they should have.
async fn not_here(context: &Context, files: Vec<(Digest, Option<u64>)>) -> Result<Vec<Digest>, ContentError> {
    let sizes = held::sizes(context, files.iter().map(|(digest, _)| digest.clone()).collect()).await?;
    let is_here =
        |size: Option<u64>, here: Option<u64>| here.is_some_and(|here| size.is_none_or(|size| size == here));
    let missing = files.into_iter().zip(sizes);
    Ok(missing
        .filter(|((_, size), here)| !is_here(*size, *here))
        .map(|((digest, _), _)| digest)
        .collect())
}

/// What reading cost.
struct BlobsRead {
    blobs: usize,
    bytes: u64,
    reused: usize,
}

/// Reads what is not here yet; of an export whose parts are not all here, what lies in those that are.
async fn read_blobs(
    context: &Context,
    export: &Arc<Export>,
    step: &StepHandle,
) -> Result<BlobsRead, TaskError> {
    let content = &context.worker.content;
    let carried = export.manifest.carried.iter();
    let carried = carried
        .map(|blob| (blob.digest.clone(), Some(blob.size)))
        .collect();
    let absent: HashSet<Digest> = not_here(context, carried).await?.into_iter().collect();
    let mut wanted = export.manifest.carried.clone();
    wanted.retain(|blob| absent.contains(&blob.digest));
    let reused = export.manifest.carried.len() - wanted.len();
    step.add_total(export.manifest.carried.len() as u64);
    step.advance(reused as u64);
    let (present, missing) = {
        let export = Arc::clone(export);
        blocking(move || export.present(wanted)).await??
    };
    let bytes = present.iter().map(|blob| blob.size).sum();
    let reader = Arc::new(Reader {
        export: Arc::clone(export),
        content: content.clone(),
        owner: context.attempt_name(),
        report: context.report.clone(),
        step: step.clone(),
        stop: context.stop.clone(),
        failed: AtomicBool::new(false),
        planned: bytes,
        read: AtomicU64::new(0),
    });
    let blobs = present.len();
    let results: Vec<_> = futures::stream::iter(present)
        .map(|blob| {
            let reader = Arc::clone(&reader);
            blocking(move || reader.read(&blob))
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    // All have ended; that one stopped because another failed is not what is to be told.
    let mut stopped = false;
    for result in results {
        match result? {
            Ok(()) => {}
            Err(TaskError::Stopped) => stopped = true,
            Err(error) => return Err(error),
        }
    }
    if stopped {
        return Err(TaskError::Stopped);
    }
    if !missing.is_empty() {
        return Err(TransferError::PartMissing(missing).into());
    }
    Ok(BlobsRead { blobs, bytes, reused })
}

/// Brings blobs from the export into the content store.
struct Reader {
    export: Arc<Export>,
    content: ContentStore,
    owner: String,
    report: Report,
    step: StepHandle,
    stop: Stop,
    /// One failed: the others need not go on.
    failed: AtomicBool,
    planned: u64,
    read: AtomicU64,
}

impl Reader {
    fn read(&self, blob: &Carried) -> Result<(), TaskError> {
        let read = self.copy(blob);
        match &read {
            Ok(()) => self.step.advance(1),
            Err(_) => self.failed.store(true, Ordering::Relaxed),
        }
        read
    }

    fn copy(&self, blob: &Carried) -> Result<(), TaskError> {
        let mut source = self.export.open_blob(blob)?;
        let mut writer = self
            .content
            .blocking_writer_with(&self.owner, blob.digest.algorithm())?;
        let mut buffer = vec![0; CHUNK];
        loop {
            if self.stop.is_stopped() || self.failed.load(Ordering::Relaxed) {
                return Err(TaskError::Stopped);
            }
            let n = match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                // It became shorter under our hands.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(self.export.blame(blob).into());
                }
                Err(e) => return Err(TaskError::io(format!("read {} from the export", blob.digest))(e)),
            };
            writer
                .write_all(buffer.get(..n).unwrap_or_default())
                .map_err(|e| storing(ContentError::from_io(e)))?;
            let read = self.read.fetch_add(n as u64, Ordering::Relaxed) + n as u64;
            self.step.details(format!("{read} of {} bytes", self.planned));
            self.report.beat();
        }
        match writer.commit(&blob.digest) {
            Ok(_) => Ok(()),
            Err(ContentError::Mismatch { .. }) => Err(self.export.blame(blob).into()),
            Err(e) => Err(storing(e)),
        }
    }
}

/// A full disk is told as one.
fn storing(error: ContentError) -> TaskError {
    if let ContentError::Storage { what, source } = &error
        && source.downcast_ref::<io::Error>().is_some_and(|e| {
            matches!(
                e.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        })
    {
        return TransferError::NoSpace { path: what.clone() }.into();
    }
    TaskError::Content(error)
}

/// The units that the export makes, each manifest read again from its own bytes.
async fn units(
    context: &Context,
    repo: &RepositoryId,
    manifest: &ExportManifest,
) -> Result<Vec<Unit>, TaskError> {
    let contents = &manifest.contents;
    let mut manifests = Vec::with_capacity(contents.manifests.len());
    for entry in &contents.manifests {
        let mut unit = read_manifest(&context.worker.content, entry).await?;
        if let Unit::ManifestList(list) = &mut unit {
            contents.select(list);
        }
        manifests.push(unit);
        context.report.beat();
    }
    let missing = contents.missing(&manifests);
    if !missing.is_empty() {
        let text = missing.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        let error = TransferError::Inconsistent(format!("it lacks {text}")).coded();
        return Err(error.with("missing", missing).into());
    }
    let kinds: HashMap<&Digest, (u8, ManifestKind)> = manifests
        .iter()
        .filter_map(|unit| match unit {
            Unit::Manifest(m) => Some((&m.digest, (m.schema_version, ManifestKind::Image))),
            Unit::ManifestList(l) => Some((&l.digest, (l.schema_version, ManifestKind::List))),
            Unit::Blob(_) | Unit::Image(_) | Unit::Tag(_) => None,
        })
        .collect();
    let mut tags = Vec::with_capacity(contents.tags.len());
    for tag in &contents.tags {
        // The check above has told it.
        let Some(&(schema_version, manifest_type)) = kinds.get(&tag.digest) else {
            continue;
        };
        tags.push(Unit::Tag(TagUnit {
            name: tag.name.clone(),
            repo_id: repo.clone(),
            manifest_digest: tag.digest.clone(),
            schema_version,
            manifest_type,
        }));
    }
    let blobs = contents.blobs.iter().map(|b| {
        Unit::Blob(BlobUnit {
            digest: b.digest.clone(),
            size: b.size,
        })
    });
    let images = contents.v1_images.iter().cloned().map(Unit::Image);
    Ok(blobs.chain(images).chain(manifests).chain(tags).collect())
}

async fn read_manifest(content: &ContentStore, entry: &ManifestEntry) -> Result<Unit, TaskError> {
    let bytes = content.read_bytes(&entry.digest, MAX_MANIFEST_BYTES).await?;
    let parsed = Manifest::parse(&bytes, Some(&entry.media_type))
        .map_err(|e| TransferError::Inconsistent(format!("manifest {}: {e}", entry.digest)))?;
    // What it is stored under, whatever the algorithm.
    Ok(match parsed {
        Manifest::Image(mut m) => {
            m.digest = entry.digest.clone();
            Unit::Manifest(m)
        }
        Manifest::List(mut l) => {
            l.digest = entry.digest.clone();
            Unit::ManifestList(l)
        }
    })
}

/// What the repository has and the export has not.
async fn what_goes(context: &Context, repo: &RepositoryId, units: &[Unit]) -> Result<Vec<Unit>, TaskError> {
    let stays: HashSet<_> = units.iter().map(|u| (u.unit_type(), u.identity())).collect();
    let current = context.worker.store.associations(repo, &[]).await?;
    Ok(current
        .into_iter()
        .map(|a| a.unit)
        .filter(|u| !stays.contains(&(u.unit_type(), u.identity())))
        .collect())
}

/// Makes the repository as `pulp-admin docker repo create` does; gives its first publish.
async fn create(
    tx: &mut FencedTx,
    repo: &RepositoryId,
    manifest: &ExportManifest,
) -> Result<TaskKind, TaskError> {
    let of = &manifest.repository;
    let notes = Map::from_iter([("_repo-type".to_owned(), json!("docker-repo"))]);
    let new = NewRepository {
        id: repo.clone(),
        display_name: of.display_name.clone(),
        description: of.description.clone(),
        notes,
    };
    tx.create_repository(&new).await.map_err(|e| match e {
        StoreError::Duplicate(_) => TaskError::from(
            CodedError::new(
                ErrorCode::DUPLICATE,
                format!("repository {repo} was made by somebody else meanwhile; import again"),
            )
            .with("resource_id", repo),
        ),
        other => other.into(),
    })?;
    tx.put_importer(repo, IMPORTER_TYPE, &Map::new()).await?;
    let config = Map::from_iter([("repo-registry-id".to_owned(), json!(of.registry_id))]);
    for (id, type_id, auto_publish) in [
        (WEB_DISTRIBUTOR, WEB_DISTRIBUTOR_TYPE, true),
        (EXPORT_DISTRIBUTOR, EXPORT_DISTRIBUTOR_TYPE, false),
    ] {
        let distributor = NewDistributor {
            id: distributor_id(id)?,
            distributor_type_id: type_id.to_owned(),
            config: config.clone(),
            auto_publish,
        };
        tx.put_distributor(repo, &distributor).await?;
    }
    Ok(TaskKind::Publish {
        repo_id: repo.clone(),
        distributor_id: distributor_id(WEB_DISTRIBUTOR)?,
        override_config: Map::new(),
    })
}

fn distributor_id(text: &str) -> Result<DistributorId, TaskError> {
    text.parse()
        .map_err(|_| TaskError::Bug(format!("{text} is no id")))
}
