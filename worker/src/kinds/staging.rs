//! The content store as an import sees it: blobs are complete and on the disk, but have no name before the fence.

use std::{
    collections::HashMap,
    io::{self, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use pulp_archive::{BlobSink, BlobWriter, SinkError};
use pulp_content::{BlockingWriter, ContentError, ContentStore, StagedBlob};
use pulp_model::Digest;
use tokio::{runtime::Handle, sync::Semaphore, task::JoinHandle};

use crate::error::TaskError;

/// Blobs on their way to the disk while the archive is read on: a sync takes long and needs no processor. The
/// few that may be so at once bound the files held open.
#[derive(Clone)]
pub(crate) struct Sealing {
    room: Arc<Semaphore>,
    blobs: Arc<Mutex<Vec<Staged>>>,
}

/// A blob that is being checked and synced.
type Staged = JoinHandle<Result<StagedBlob, ContentError>>;

impl Sealing {
    const AT_ONCE: usize = 8;

    fn new() -> Self {
        Self {
            room: Arc::new(Semaphore::new(Self::AT_ONCE)),
            blobs: Arc::default(),
        }
    }

    /// Begins to check a complete blob and to put it on the disk. Blocks while too many are at it.
    fn begin(&self, runtime: &Handle, writer: BlockingWriter, digest: Digest) -> Result<(), SinkError> {
        let room = runtime
            .block_on(Arc::clone(&self.room).acquire_owned())
            .map_err(SinkError::new)?;
        let blob = runtime.spawn_blocking(move || {
            let _room = room;
            writer.stage(&digest)
        });
        self.lock().push(blob);
        Ok(())
    }

    /// Waits for all of them: complete blobs that wait for the fence, each digest once.
    pub(crate) async fn end(&self) -> Result<Vec<StagedBlob>, TaskError> {
        let blobs = std::mem::take(&mut *self.lock());
        let mut staged = HashMap::new();
        let mut failed = None;
        for blob in blobs {
            match blob.await {
                Ok(Ok(blob)) => drop(staged.insert(blob.digest().clone(), blob)),
                Ok(Err(error)) => failed = failed.or(Some(TaskError::Content(error))),
                Err(error) => failed = failed.or(Some(TaskError::Bug(error.to_string()))),
            }
        }
        match failed {
            None => Ok(staged.into_values().collect()),
            Some(error) => Err(error),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Staged>> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The content store as an import sees it.
pub(crate) struct Staging {
    content: ContentStore,
    owner: String,
    held: HashMap<Digest, u64>,
    sealing: Sealing,
    runtime: Handle,
}

impl Staging {
    /// Blobs become temporary files of `owner` in `content`; those of `held`, with their sizes, need not come again.
    pub(crate) fn new(content: ContentStore, owner: String, held: HashMap<Digest, u64>) -> Self {
        Self {
            content,
            owner,
            held,
            sealing: Sealing::new(),
            runtime: Handle::current(),
        }
    }

    /// Where to wait for the blobs, once the archive is read.
    pub(crate) fn sealing(&self) -> Sealing {
        self.sealing.clone()
    }
}

impl BlobSink for Staging {
    fn contains(&self, digest: &Digest) -> Result<Option<u64>, SinkError> {
        let Some(size) = self.held.get(digest) else {
            return Ok(None);
        };
        // The row says so; the file must agree, or the upload's bytes are welcome.
        let on_disk = self
            .runtime
            .block_on(self.content.size(digest))
            .map_err(SinkError::new)?;
        Ok(on_disk.filter(|s| s == size))
    }

    fn create(&self) -> Result<Box<dyn BlobWriter>, SinkError> {
        let writer = self
            .content
            .blocking_writer(&self.owner)
            .map_err(SinkError::new)?;
        Ok(Box::new(StagingWriter {
            writer,
            sealing: self.sealing.clone(),
            runtime: self.runtime.clone(),
        }))
    }
}

struct StagingWriter {
    writer: BlockingWriter,
    sealing: Sealing,
    runtime: Handle,
}

impl Write for StagingWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl BlobWriter for StagingWriter {
    fn commit(self: Box<Self>, digest: &Digest) -> Result<(), SinkError> {
        self.sealing.begin(&self.runtime, self.writer, digest.clone())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::path::Path;

    use pulp_content::ContentOptions;

    use super::*;

    fn store(directory: &Path) -> ContentStore {
        ContentStore::open_directory(directory, &ContentOptions::default()).unwrap()
    }

    fn temporary_files(directory: &Path) -> usize {
        let owner = directory.join("tmp/attempt");
        std::fs::read_dir(owner).map_or(0, Iterator::count)
    }

    /// Writes each text as a blob of the digest beside it.
    async fn write(staging: Staging, blobs: Vec<(String, Digest)>) {
        let written = tokio::task::spawn_blocking(move || {
            for (text, digest) in blobs {
                let mut writer = staging.create().unwrap();
                writer.write_all(text.as_bytes()).unwrap();
                writer.commit(&digest).unwrap();
            }
        });
        written.await.unwrap();
    }

    fn blob(n: usize) -> (String, Digest) {
        let text = format!("blob {n}");
        let digest = Digest::sha256(&text);
        (text, digest)
    }

    #[tokio::test]
    async fn many_blobs_are_staged_each_digest_once_and_kept_when_told() {
        let directory = tempfile::tempdir().unwrap();
        let content = store(directory.path());
        let staging = Staging::new(content.clone(), "attempt".to_owned(), HashMap::new());
        let sealing = staging.sealing();
        let many = 5 * Sealing::AT_ONCE;
        let twice = (0..many).chain(0..many).map(blob);
        write(staging, twice.collect()).await;
        let staged = sealing.end().await.unwrap();
        assert_eq!(staged.len(), many);
        assert_eq!(temporary_files(directory.path()), many);
        assert_eq!(content.size(&blob(0).1).await.unwrap(), None, "before it is kept");
        let kept = tokio::task::spawn_blocking(|| staged.into_iter().try_for_each(StagedBlob::keep));
        kept.await.unwrap().unwrap();
        for n in 0..many {
            let (text, digest) = blob(n);
            assert_eq!(content.size(&digest).await.unwrap(), Some(text.len() as u64));
        }
        assert_eq!(temporary_files(directory.path()), 0);
    }

    #[tokio::test]
    async fn a_blob_that_fails_behind_the_reader_fails_all_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let staging = Staging::new(store(directory.path()), "attempt".to_owned(), HashMap::new());
        let sealing = staging.sealing();
        let mut blobs: Vec<_> = (0..20).map(blob).collect();
        blobs[3].1 = Digest::sha256("something else");
        write(staging, blobs).await;
        let failed = sealing.end().await.err();
        assert!(
            matches!(failed, Some(TaskError::Content(ContentError::Mismatch { .. }))),
            "{failed:?}"
        );
        assert_eq!(temporary_files(directory.path()), 0);
    }
}
