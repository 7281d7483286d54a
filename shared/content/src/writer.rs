//! Writers, for code that awaits and for code that blocks.

use std::io;

use bytes::Bytes;
use pulp_model::{Algorithm, Digest};
use tokio::task::JoinHandle;

use crate::{
    ContentError, Result,
    local::{LocalWriter, SealedFile},
    objects::ObjectWriter,
};

/// Bytes gathered before they are handed to a thread that writes them.
const BATCH: usize = 1024 * 1024;

/// A blob being written. Dropped without a commit, it leaves nothing.
pub struct Writer(Kind);

enum Kind {
    File(Box<FileWriter>),
    Objects(Box<ObjectWriter>),
}

/// Gathers bytes; while one batch is hashed and written on another thread the next one comes in.
struct FileWriter {
    state: State,
    algorithm: Algorithm,
    batch: Vec<Bytes>,
    length: usize,
}

enum State {
    Idle(Box<LocalWriter>),
    Busy(JoinHandle<Result<Box<LocalWriter>>>),
    /// A write failed or was given up half-way; the file is gone.
    Broken,
}

impl Writer {
    pub(crate) fn over_file(file: LocalWriter) -> Self {
        let algorithm = file.algorithm();
        Self(Kind::File(Box::new(FileWriter {
            state: State::Idle(Box::new(file)),
            algorithm,
            batch: Vec::new(),
            length: 0,
        })))
    }

    pub(crate) fn over_objects(writer: ObjectWriter) -> Self {
        Self(Kind::Objects(Box::new(writer)))
    }

    /// Adds bytes. They may be written later; an error may belong to bytes given earlier.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        match &mut self.0 {
            Kind::File(file) => file.write(bytes).await,
            Kind::Objects(objects) => objects.write(bytes).await,
        }
    }

    /// Checks the bytes against `expected` and keeps them under it, on the disk when this returns; gives their
    /// number. On an error nothing is kept.
    pub async fn commit(self, expected: &Digest) -> Result<u64> {
        let algorithm = match &self.0 {
            Kind::File(file) => file.algorithm,
            Kind::Objects(objects) => objects.algorithm(),
        };
        same_algorithm(algorithm, expected)?;
        Ok(self.finish(Some(expected.clone())).await?.1)
    }

    /// Keeps the bytes under whatever they hash to; gives that and their number. For bytes that we made
    /// ourselves, like a layer that was compressed on the way.
    pub async fn commit_computed(self) -> Result<(Digest, u64)> {
        self.finish(None).await
    }

    async fn finish(self, expected: Option<Digest>) -> Result<(Digest, u64)> {
        match self.0 {
            Kind::File(mut file) => {
                file.flush().await?;
                let writer = file.take().await?;
                let done = tokio::task::spawn_blocking(move || writer.commit(expected.as_ref()));
                done.await.map_err(ContentError::task)?
            }
            Kind::Objects(objects) => objects.commit(expected.as_ref()).await,
        }
    }
}

impl FileWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.length += bytes.len();
        self.batch.push(bytes);
        // Many tiny pieces would cost more than their bytes.
        if self.length >= BATCH || self.batch.len() >= 1024 {
            self.flush().await
        } else {
            Ok(())
        }
    }

    /// Begins to write the batch, after the one before it is written.
    async fn flush(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let mut writer = self.take().await?;
        let batch = std::mem::take(&mut self.batch);
        self.length = 0;
        self.state = State::Busy(tokio::task::spawn_blocking(move || {
            batch.iter().try_for_each(|bytes| writer.write(bytes))?;
            Ok(writer)
        }));
        Ok(())
    }

    /// The file, once the batch under way is written. Cancelled while it waits, the writer is as before.
    async fn take(&mut self) -> Result<Box<LocalWriter>> {
        if let State::Busy(write) = &mut self.state {
            let written = write.await.map_err(ContentError::task);
            self.state = State::Broken;
            return written?;
        }
        match std::mem::replace(&mut self.state, State::Broken) {
            State::Idle(writer) => Ok(writer),
            State::Busy(_) | State::Broken => Err(ContentError::Storage {
                what: "go on writing a blob".to_owned(),
                source: "an earlier write failed".into(),
            }),
        }
    }
}

/// A blob being written by code that blocks. Dropped without a commit, it leaves nothing.
pub struct BlockingWriter(BlockingKind);

enum BlockingKind {
    File(Box<LocalWriter>),
    Objects {
        writer: Box<ObjectWriter>,
        runtime: tokio::runtime::Handle,
    },
}

impl BlockingWriter {
    pub(crate) fn over_file(file: LocalWriter) -> Self {
        Self(BlockingKind::File(Box::new(file)))
    }

    pub(crate) fn over_objects(writer: ObjectWriter) -> Result<Self> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|e| ContentError::Storage {
            what: "write to the object store".to_owned(),
            source: Box::new(e),
        })?;
        Ok(Self(BlockingKind::Objects {
            writer: Box::new(writer),
            runtime,
        }))
    }

    /// See [`Writer::commit`].
    pub fn commit(self, expected: &Digest) -> Result<u64> {
        let algorithm = match &self.0 {
            BlockingKind::File(file) => file.algorithm(),
            BlockingKind::Objects { writer, .. } => writer.algorithm(),
        };
        same_algorithm(algorithm, expected)?;
        Ok(self.finish(Some(expected))?.1)
    }

    /// See [`Writer::commit_computed`].
    pub fn commit_computed(self) -> Result<(Digest, u64)> {
        self.finish(None)
    }

    /// Checks the bytes against `expected` and makes them durable, but shows them to nobody until
    /// [`StagedBlob::keep`]: for what must appear together with a change in the database, or not at all.
    pub fn stage(self, expected: &Digest) -> Result<StagedBlob> {
        match self.0 {
            BlockingKind::File(file) => {
                same_algorithm(file.algorithm(), expected)?;
                Ok(StagedBlob(Stage::File(file.seal(Some(expected))?)))
            }
            kind @ BlockingKind::Objects { .. } => {
                Ok(StagedBlob(Stage::Objects(Self(kind), expected.clone())))
            }
        }
    }

    fn finish(self, expected: Option<&Digest>) -> Result<(Digest, u64)> {
        match self.0 {
            BlockingKind::File(file) => file.commit(expected),
            BlockingKind::Objects { writer, runtime } => runtime.block_on(writer.commit(expected)),
        }
    }
}

/// A blob that is complete and not yet in the store. Dropped, it leaves nothing.
pub struct StagedBlob(Stage);

enum Stage {
    File(SealedFile),
    Objects(BlockingWriter, Digest),
}

impl StagedBlob {
    /// What it hashes to.
    pub const fn digest(&self) -> &Digest {
        match &self.0 {
            Stage::File(file) => file.digest(),
            Stage::Objects(_, digest) => digest,
        }
    }

    /// Puts it into the store: in a directory one rename; in an object store, which has none, the last part of
    /// the upload. Blocks.
    pub fn keep(self) -> Result<()> {
        match self.0 {
            Stage::File(file) => file.keep(),
            Stage::Objects(writer, digest) => writer.commit(&digest).map(drop),
        }
    }
}

impl io::Write for BlockingWriter {
    /// Takes all of `bytes`. Goes to the disk at once: give it pieces of 64 KiB and more.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            BlockingKind::File(file) => file.write(bytes),
            BlockingKind::Objects { writer, runtime } => {
                runtime.block_on(writer.write(Bytes::copy_from_slice(bytes)))
            }
        }
        .map_err(ContentError::into_io)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn same_algorithm(writer: Algorithm, expected: &Digest) -> Result<()> {
    if expected.algorithm() == writer {
        Ok(())
    } else {
        Err(ContentError::Algorithm {
            writer,
            expected: expected.clone(),
        })
    }
}
