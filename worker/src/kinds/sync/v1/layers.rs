//! Layers of version 1 on their way here. Nothing tells their digests beforehand, so each is unpacked while it streams,
//! which shows whether it is whole.

use std::io::{self, Read, Write};

use bytes::Bytes;
use pulp_archive::{ArchiveError, BlobSink, BlobWriter, LayerFile, Limits, SinkError, take_layer};
use pulp_content::{BlockingWriter, ContentError, ContentStore};
use pulp_model::{CodedError, Digest, ErrorCode, unit::ImageId};
use pulp_registry::{RegistryError, V1Checksums, V1Repository};
use pulp_store::upstreams::Turn;
use tokio::sync::mpsc;

use super::super::{
    downloads::LOOK,
    upstream::{BlobAdvance, UpstreamRepository},
};
use crate::{error::TaskError, kinds::publish::blocking};

/// Times that a layer is fetched anew that is not what it should be.
const TRIES: usize = 2;
/// Pieces of a layer that may wait for the disk.
const AHEAD: usize = 16;
/// Threads that compress one layer that is not; several layers come at a time.
const THREADS: usize = 2;

/// Fetches layers.
pub(super) struct Layers<'a> {
    pub(super) upstream: &'a UpstreamRepository,
    pub(super) index: &'a V1Repository,
    pub(super) limits: &'a Limits,
    pub(super) advance: &'a BlobAdvance,
}

/// Why a download failed.
enum Fault {
    /// No other try helps.
    Final(RegistryError),
    /// It broke off.
    Broken(RegistryError),
    /// What came is not what was promised, or no layer.
    Damaged(TaskError),
    Other(TaskError),
}

impl Layers<'_> {
    /// Brings an image's layer here; it is kept as soon as it is whole.
    pub(super) async fn fetch(&self, id: &ImageId, checksums: &V1Checksums) -> Result<LayerFile, TaskError> {
        // Only the number of downloads from this host is asked for: by an id nobody could tell whether another's
        // download is of the same layer.
        let key = [Digest::sha256(format!("v1 layer\n{}\n{id}", self.upstream.owner))];
        if self.upstream.downloads.is_limited() {
            while self.upstream.downloads.begin(&key).await? != [Turn::Ours] {
                self.advance.step.beat();
                tokio::time::sleep(LOOK).await;
            }
        }
        let file = self.fetch_in_turn(id, checksums).await;
        self.upstream.downloads.end(&key).await?;
        file
    }

    async fn fetch_in_turn(&self, id: &ImageId, checksums: &V1Checksums) -> Result<LayerFile, TaskError> {
        let (mut breaks, mut damaged) = (0, 0);
        loop {
            let span = self.upstream.span("download.blob");
            let came = span.run(self.fetch_once(id, checksums)).await;
            match &came {
                Ok(file) => span.count("bytes", file.size),
                Err(Fault::Final(error) | Fault::Broken(error)) => span.fail(error),
                Err(Fault::Damaged(error) | Fault::Other(error)) => span.fail(error),
            }
            match came {
                Ok(file) => return Ok(file),
                Err(Fault::Final(error)) => return Err(self.upstream.not_downloaded(&error)),
                Err(Fault::Broken(error)) => {
                    breaks += 1;
                    let again = self.index.pause(breaks, error).await;
                    again.map_err(|error| self.upstream.not_downloaded(&error))?;
                }
                Err(Fault::Damaged(error)) => {
                    damaged += 1;
                    if damaged == TRIES {
                        return Err(error);
                    }
                }
                Err(Fault::Other(error)) => return Err(error),
            }
        }
    }

    async fn fetch_once(&self, id: &ImageId, checksums: &V1Checksums) -> Result<LayerFile, Fault> {
        let mut layer = self.index.layer(id, checksums).await.map_err(Fault::Final)?;
        let url = layer.url().to_owned();
        let (sender, receiver) = mpsc::channel(AHEAD);
        let sink = Kept {
            content: self.upstream.content.clone(),
            owner: self.upstream.owner.clone(),
        };
        let (name, limits) = (url.clone(), self.limits.clone());
        let taken = blocking(move || take_layer(&name, Pieces::new(receiver), &limits, THREADS, &sink));
        let came = async {
            loop {
                let piece = layer.next().await?;
                if let Some(bytes) = &piece {
                    self.upstream.pass(bytes.len()).await;
                    self.advance.came(bytes.len() as u64);
                }
                let is_end = piece.is_none();
                // Whoever reads it has found it to be wrong.
                if sender.send(piece).await.is_err() || is_end {
                    drop(sender);
                    return Ok(());
                }
            }
        };
        let (came, taken) = tokio::join!(came, taken);
        match came {
            Ok(()) => {}
            Err(error @ RegistryError::Mismatch { .. }) => {
                return Err(Fault::Damaged(self.upstream.not_downloaded(&error)));
            }
            Err(error) => return Err(Fault::Broken(error)),
        }
        let file = match taken.map_err(Fault::Other)? {
            Ok(file) => file,
            Err(ArchiveError::Rejected(rejection)) => {
                return Err(Fault::Damaged(damaged(&url, &rejection.to_string())));
            }
            Err(error) => return Err(Fault::Other(of_archive(error))),
        };
        // A gzip vouches for being whole, whatever is in it; a tar does so by its form.
        if file.verbatim || file.content.is_tar {
            Ok(file)
        } else {
            let reason = "it is neither a gzip nor a whole tar";
            Err(Fault::Damaged(damaged(&url, reason)))
        }
    }
}

fn damaged(url: &str, reason: &str) -> TaskError {
    let text = format!("{url}: the layer is damaged: {reason}; nothing was changed");
    CodedError::new(ErrorCode::DOWNLOAD_FAILED, text)
        .with("failed_urls", url)
        .into()
}

/// A fault that is none of the upstream.
pub(super) fn of_archive(error: ArchiveError) -> TaskError {
    match error {
        ArchiveError::Canceled => TaskError::Stopped,
        ArchiveError::Rejected(rejection) => rejection.coded().into(),
        ArchiveError::Io { what, source } => TaskError::Io { what, source },
        ArchiveError::Store(error) => match error.into_inner().downcast::<ContentError>() {
            Ok(content) => TaskError::Content(*content),
            Err(other) => TaskError::Bug(other.to_string()),
        },
    }
}

/// A stream of pieces for a reader that blocks. A stream that ends without its end being told has broken off.
pub(super) struct Pieces {
    receiver: mpsc::Receiver<Option<Bytes>>,
    piece: Bytes,
    ended: bool,
}

impl Pieces {
    pub(super) fn new(receiver: mpsc::Receiver<Option<Bytes>>) -> Self {
        Self {
            receiver,
            piece: Bytes::new(),
            ended: false,
        }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Some(piece)) => self.piece = piece,
                Some(None) => self.ended = true,
                None => return Err(io::Error::other("it broke off")),
            }
        }
        let n = self.piece.len().min(buffer.len());
        let (to, from) = (buffer.split_at_mut(n).0, self.piece.split_to(n));
        to.copy_from_slice(&from);
        Ok(n)
    }
}

/// The content store, where what is whole is kept from then on.
struct Kept {
    content: ContentStore,
    owner: String,
}

impl BlobSink for Kept {
    fn contains(&self, _digest: &Digest) -> Result<Option<u64>, SinkError> {
        Ok(None)
    }

    fn create(&self) -> Result<Box<dyn BlobWriter>, SinkError> {
        let writer = self
            .content
            .blocking_writer(&self.owner)
            .map_err(SinkError::new)?;
        Ok(Box::new(KeptWriter(io::BufWriter::with_capacity(
            256 * 1024,
            writer,
        ))))
    }
}

struct KeptWriter(io::BufWriter<BlockingWriter>);

impl Write for KeptWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl BlobWriter for KeptWriter {
    fn commit(self: Box<Self>, digest: &Digest) -> Result<(), SinkError> {
        let writer = self
            .0
            .into_inner()
            .map_err(|e| SinkError::new(ContentError::from_io(e.into_error())))?;
        writer.commit(digest).map(drop).map_err(SinkError::new)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pieces_are_read_on_and_a_stream_without_an_end_has_none() {
        let (sender, receiver) = mpsc::channel(4);
        for piece in ["ab", "", "cde"] {
            sender
                .blocking_send(Some(Bytes::from_static(piece.as_bytes())))
                .unwrap();
        }
        sender.blocking_send(None).unwrap();
        let mut all = Vec::new();
        Pieces::new(receiver).read_to_end(&mut all).unwrap();
        assert_eq!(all, b"abcde");

        let (sender, receiver) = mpsc::channel(4);
        sender.blocking_send(Some(Bytes::from_static(b"ab"))).unwrap();
        drop(sender);
        assert!(Pieces::new(receiver).read_to_end(&mut all).is_err());
    }
}
