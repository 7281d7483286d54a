//! Layers and blobs on their way from the archive into the store: each is read once, verified, and stored.

use std::{
    collections::{BTreeSet, HashMap},
    io::{self, Read},
    sync::atomic::{AtomicU64, Ordering},
};

use pulp_model::{Algorithm, Digest, digest};

use crate::{
    ArchiveError, BlobSink, ImportOptions, Progress, Rejection, SinkError,
    gzip::{self, GzipError},
    index::{Index, Place, too_large},
    sink::Hashed,
    tarcheck::TarCheck,
    upload::Compression,
};

/// What decompression may still give.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    spent: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            spent: AtomicU64::new(0),
        }
    }

    /// Takes off the bytes that decompressing `file` gave.
    pub(crate) fn spend(&self, file: &str, bytes: u64) -> Result<(), ArchiveError> {
        let spent = self
            .spent
            .fetch_add(bytes, Ordering::Relaxed)
            .saturating_add(bytes);
        if spent > self.limit {
            return Err(too_large(file, spent, self.limit, "bytes when expanded"));
        }
        Ok(())
    }
}

/// A layer as registries hold it.
#[derive(Debug, Clone)]
pub(crate) struct GzipLayer {
    /// Digest of the compressed bytes.
    pub(crate) digest: Digest,
    /// Number of the compressed bytes.
    pub(crate) size: u64,
    /// Digest of the layer expanded; none where the compressed bytes were taken unread.
    pub(crate) diff_id: Option<Digest>,
    /// Whether the layer expanded is a tar.
    pub(crate) is_tar: bool,
}

/// A layer as registries hold it: gzip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerFile {
    /// Digest of its bytes.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
    /// Whether they are the bytes that came, and not what those were compressed to.
    pub verbatim: bool,
    /// What is in it.
    pub content: LayerContent,
}

/// What a layer holds once it is unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerContent {
    /// Digest of the unpacked bytes.
    pub diff_id: Digest,
    /// Whether they are a whole tar, as an image engine needs them to be.
    pub is_tar: bool,
}

/// Everything that one import has at hand.
pub(crate) struct Session<'a> {
    pub(crate) index: &'a Index,
    pub(crate) options: &'a ImportOptions,
    pub(crate) sink: &'a dyn BlobSink,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) budget: &'a Budget,
    /// Layers done, by where they lie: links share one.
    pub(crate) layers: HashMap<Place, GzipLayer>,
}

impl Session<'_> {
    /// Tells what is going to be stored.
    pub(crate) fn announce(&self, places: &BTreeSet<Place>) {
        let bytes = places.iter().map(|place| place.size).sum();
        self.progress.planned(places.len() as u64, bytes);
    }

    /// Stores the layer at `place` compressed by gzip. One that is so already keeps its bytes.
    pub(crate) fn gzip_layer(&mut self, name: &str, place: Place) -> Result<GzipLayer, ArchiveError> {
        if let Some(done) = self.layers.get(&place) {
            return Ok(done.clone());
        }
        let compression = self.compression(name, place)?;
        let taking = Taking {
            name,
            budget: self.budget,
            sink: self.sink,
            threads: self.options.threads,
        };
        let LayerFile {
            digest,
            size,
            content,
            ..
        } = taking.take(self.source(place), compression)?;
        let layer = GzipLayer {
            digest,
            size,
            diff_id: Some(content.diff_id),
            is_tar: content.is_tar,
        };
        self.progress.stored(name);
        self.layers.insert(place, layer.clone());
        Ok(layer)
    }

    /// Stores bytes as they are, if they are those of `expected`.
    pub(crate) fn copy(&self, name: &str, place: Place, expected: &Digest) -> Result<(), ArchiveError> {
        let mut source = self.source(place);
        let mut target = Hashed::new(self.sink.create()?, expected.algorithm());
        let mut buffer = vec![0; 256 * 1024];
        pump(&mut source, &mut target, &mut buffer, name)?;
        let (got, _, writer) = target.finish();
        verify(name, expected, got)?;
        writer.commit(expected)?;
        self.progress.stored(name);
        Ok(())
    }

    /// By what the bytes at `place` are compressed.
    pub(crate) fn compression(&self, name: &str, place: Place) -> Result<Compression, ArchiveError> {
        let mut magic = Vec::with_capacity(4);
        self.index
            .open(place)
            .take(4)
            .read_to_end(&mut magic)
            .map_err(ArchiveError::io(format!("reading {name:?}")))?;
        Ok(Compression::of(&magic))
    }

    /// The bytes at `place`, with progress told and a cancel heeded.
    fn source(&self, place: Place) -> impl Read + '_ {
        Watched {
            inner: self.index.open(place),
            progress: self.progress,
        }
    }
}

/// One layer on its way into a store.
pub(crate) struct Taking<'a> {
    /// For people.
    pub(crate) name: &'a str,
    pub(crate) budget: &'a Budget,
    pub(crate) sink: &'a dyn BlobSink,
    pub(crate) threads: usize,
}

impl Taking<'_> {
    /// Stores a layer compressed by gzip. One that is so already keeps its bytes.
    pub(crate) fn take(
        &self,
        source: impl Read,
        compression: Compression,
    ) -> Result<LayerFile, ArchiveError> {
        match compression {
            Compression::Gzip => self.keep(source),
            Compression::None | Compression::Zstd => self.compress(source, compression),
        }
    }

    /// Expanded → hash, check → compress on all cores → hash → store.
    fn compress(&self, source: impl Read, compression: Compression) -> Result<LayerFile, ArchiveError> {
        let name = self.name;
        let expanded = compression
            .decoder(source)
            .map_err(|e| ArchiveError::decompressing(name, e))?;
        let budget = (compression != Compression::None).then_some(self.budget);
        let mut layer = Expanded::new(name, expanded, budget);
        let target = Hashed::new(self.sink.create()?, Algorithm::Sha256);
        let target = gzip::compress(&mut layer, target, self.threads).map_err(|e| match e {
            GzipError::Read(e) => ArchiveError::decompressing(name, e),
            GzipError::Write(e) => SinkError::writing(e).into(),
        })?;
        let (digest, size, writer) = target.finish();
        writer.commit(&digest)?;
        Ok(LayerFile {
            digest,
            size,
            verbatim: false,
            content: layer.finish(),
        })
    }

    /// A layer that is gzip already: stored verbatim, and expanded on the way to see what is in it.
    fn keep(&self, source: impl Read) -> Result<LayerFile, ArchiveError> {
        let mut tee = Tee {
            source,
            target: Hashed::new(self.sink.create()?, Algorithm::Sha256),
        };
        let content = expand(self.name, &mut tee, Compression::Gzip, self.budget)?;
        // The decoder reads to the end of the last member, or to an error; this makes sure of every byte.
        pump(&mut tee, &mut io::sink(), &mut vec![0; 256 * 1024], self.name)?;
        let (digest, size, writer) = tee.target.finish();
        writer.commit(&digest)?;
        Ok(LayerFile {
            digest,
            size,
            verbatim: true,
            content,
        })
    }
}

/// Reads a layer for what is in it.
pub(crate) fn expand(
    name: &str,
    source: impl Read,
    compression: Compression,
    budget: &Budget,
) -> Result<LayerContent, ArchiveError> {
    let expanded = compression
        .decoder(source)
        .map_err(|e| ArchiveError::decompressing(name, e))?;
    let mut layer = Expanded::new(name, expanded, Some(budget));
    pump(&mut layer, &mut io::sink(), &mut vec![0; 256 * 1024], name)?;
    Ok(layer.finish())
}

/// That `got` is `expected`.
pub(crate) fn verify(file: &str, expected: &Digest, got: Digest) -> Result<(), ArchiveError> {
    if *expected == got {
        return Ok(());
    }
    Err(Rejection::DigestMismatch {
        expected: expected.clone(),
        got,
        file: file.to_owned(),
    }
    .into())
}

fn pump(
    source: &mut impl Read,
    target: &mut impl io::Write,
    buffer: &mut [u8],
    name: &str,
) -> Result<(), ArchiveError> {
    loop {
        let n = match source.read(buffer) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(ArchiveError::decompressing(name, e)),
        };
        let Some(bytes) = buffer.get(..n).filter(|b| !b.is_empty()) else {
            return Ok(());
        };
        target.write_all(bytes).map_err(SinkError::writing)?;
    }
}

struct Watched<'a, R> {
    inner: R,
    progress: &'a dyn Progress,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.progress.is_canceled() {
            return Err(ArchiveError::Canceled.into_io());
        }
        let n = self.inner.read(buffer)?;
        self.progress.advanced(n as u64);
        Ok(n)
    }
}

/// Copies to `target` whatever is read from `source`.
struct Tee<R, W> {
    source: R,
    target: W,
}

impl<R: Read, W: io::Write> Read for Tee<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.source.read(buffer)?;
        self.target
            .write_all(buffer.get(..n).unwrap_or_default())
            .map_err(|e| ArchiveError::from(SinkError::writing(e)).into_io())?;
        Ok(n)
    }
}

/// A layer's own bytes as they pass: hashed, checked to be a tar, counted.
struct Expanded<'a, R> {
    name: &'a str,
    inner: R,
    hasher: digest::Hasher,
    check: TarCheck,
    budget: Option<&'a Budget>,
}

impl<'a, R: Read> Expanded<'a, R> {
    fn new(name: &'a str, inner: R, budget: Option<&'a Budget>) -> Self {
        Self {
            name,
            inner,
            hasher: Algorithm::Sha256.hasher(),
            check: TarCheck::new(),
            budget,
        }
    }

    fn finish(self) -> LayerContent {
        LayerContent {
            diff_id: self.hasher.finish(),
            is_tar: self.check.is_tar(),
        }
    }
}

impl<R: Read> Read for Expanded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        if let Some(budget) = self.budget {
            budget.spend(self.name, n as u64).map_err(ArchiveError::into_io)?;
        }
        let bytes = buffer.get(..n).unwrap_or_default();
        self.hasher.update(bytes);
        self.check.feed(bytes);
        Ok(n)
    }
}
