//! Where blobs go and progress is told: the edge to the worker.

use std::io::Write;

use pulp_model::{Digest, digest};

use crate::{ArchiveError, SinkError};

/// The content store as an import sees it.
pub trait BlobSink: Sync {
    /// Size of a blob that need not be in the archive because it is held already.
    ///
    /// Whoever answers from a store that repositories share lets anyone who knows a digest take the blob:
    /// answer for the blobs of the target repository only.
    fn contains(&self, digest: &Digest) -> Result<Option<u64>, SinkError>;

    /// Begins a blob whose digest is not known yet.
    fn create(&self) -> Result<Box<dyn BlobWriter>, SinkError>;
}

/// A blob in the making. Dropping it discards it.
pub trait BlobWriter: Write + Send {
    /// Makes the bytes written durable under `digest`. To be called once, at the end. A sink may go on with it after
    /// this has returned, as long as it waits for the end, and for what failed, before it uses what [`crate::import`]
    /// gave.
    fn commit(self: Box<Self>, digest: &Digest) -> Result<(), SinkError>;
}

/// What an import is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Decompressing the archive into the spool.
    Unpacking,
    /// Listing the members, reading the metadata.
    Reading,
    /// Verifying, compressing and storing layers and blobs.
    Storing,
}

/// Told of an import's advance; asked whether to go on.
pub trait Progress: Sync {
    /// Asked at least once a MiB; the import stops soon after a true.
    fn is_canceled(&self) -> bool {
        false
    }

    /// Another phase begins.
    fn phase(&self, _phase: Phase) {}

    /// So many more items (layers, blobs) with so many bytes are to be stored.
    fn planned(&self, _items: u64, _bytes: u64) {}

    /// So many bytes of the items were read.
    fn advanced(&self, _bytes: u64) {}

    /// An item is stored.
    fn stored(&self, _name: &str) {}
}

/// Nobody to tell.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {}

/// A writer that hashes and counts what goes through it.
pub(crate) struct Hashed<W> {
    inner: W,
    hasher: digest::Hasher,
    size: u64,
}

impl<W> Hashed<W> {
    pub(crate) fn new(inner: W, algorithm: pulp_model::Algorithm) -> Self {
        Self {
            inner,
            hasher: algorithm.hasher(),
            size: 0,
        }
    }

    /// The digest and number of the bytes seen, and the writer.
    pub(crate) fn finish(self) -> (Digest, u64, W) {
        (self.hasher.finish(), self.size, self.inner)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(bytes.get(..n).unwrap_or(bytes));
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// Stores bytes held in memory.
pub(crate) fn put_bytes(sink: &dyn BlobSink, bytes: &[u8]) -> Result<Digest, ArchiveError> {
    let digest = Digest::sha256(bytes);
    let mut writer = sink.create()?;
    writer.write_all(bytes).map_err(SinkError::writing)?;
    writer.commit(&digest)?;
    Ok(digest)
}
