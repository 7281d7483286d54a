//! Content-addressed blobs: verified when they enter, never changed after.
//!
//! A blob lies at `sha256/<2 hex>/<hex>` below a directory or a bucket's prefix. It gets there by one rename
//! of a temporary file that was hashed while it was written and is on the disk; so what lies there is whole,
//! and who finds it may trust it. Temporary files lie at `tmp/<owner>/<uuid>`, the owner being an attempt of a
//! task; [`ContentStore::sweep_tmp`] removes what a dead attempt left.

mod disk;
mod error;
mod key;
mod local;
mod objects;
mod write_back;
mod writer;

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use pulp_model::{Algorithm, Digest};
use pulp_runtime::config::{Config, S3Config};

pub use error::ContentError;
pub use write_back::WriteBack;
pub use writer::{BlockingWriter, StagedBlob, Writer};

type Result<T, E = ContentError> = std::result::Result<T, E>;

/// How a store is opened, beyond its url.
#[derive(Debug, Clone)]
pub struct ContentOptions {
    /// Whether a commit waits until the bytes are on the disk. Only tests and benchmarks set it to false.
    pub fsync: bool,
    /// For an `s3:` url.
    pub s3: S3Config,
}

impl Default for ContentOptions {
    fn default() -> Self {
        Self {
            fsync: true,
            s3: S3Config::default(),
        }
    }
}

/// The blobs of an installation. Clones are handles of the same.
#[derive(Debug, Clone)]
pub struct ContentStore(Backend);

#[derive(Debug, Clone)]
enum Backend {
    Local(Arc<local::Local>),
    Objects(Arc<objects::Objects>),
}

/// A blob being read.
pub struct BlobReader {
    /// Bytes of the whole blob.
    pub size: u64,
    /// Which of them come.
    pub range: Range<u64>,
    /// The bytes: exactly those of the range, or an error.
    pub stream: BoxStream<'static, Result<Bytes>>,
}

impl std::fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut it = f.debug_struct("BlobReader");
        it.field("size", &self.size)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

impl ContentStore {
    /// Opens `file:/directory` (made if it isn't there) or `s3://bucket/prefix`.
    pub fn open(url: &str, options: &ContentOptions) -> Result<Self> {
        if let Some(path) = url.strip_prefix("file:") {
            let path = Path::new(path.strip_prefix("//").unwrap_or(path));
            return Self::open_directory(path, options);
        }
        if url.starts_with("s3:") {
            let objects = objects::Objects::s3(url, &options.s3)?;
            return Ok(Self(Backend::Objects(Arc::new(objects))));
        }
        Err(ContentError::Config {
            url: url.to_owned(),
            reason: "it is none of file:/directory and s3://bucket/prefix".to_owned(),
        })
    }

    /// Opens the store that the configuration names.
    pub fn from_config(config: &Config) -> Result<Self> {
        let options = ContentOptions {
            s3: config.content.s3.clone(),
            ..ContentOptions::default()
        };
        Self::open(&config.content_url(), &options)
    }

    /// Opens a directory, making it if it isn't there.
    pub fn open_directory(path: &Path, options: &ContentOptions) -> Result<Self> {
        Ok(Self(Backend::Local(Arc::new(local::Local::open(
            path,
            options.fsync,
        )?))))
    }

    /// Any other object store, everything below `prefix` (none: its root).
    pub fn over(store: Arc<dyn object_store::ObjectStore>, prefix: Option<&str>) -> Self {
        Self(Backend::Objects(Arc::new(objects::Objects::new(
            store,
            prefix.unwrap_or_default(),
        ))))
    }

    /// The blob's size in bytes; none if it isn't here.
    pub async fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        match &self.0 {
            Backend::Local(local) => blocking(local, digest, local::Local::size).await,
            Backend::Objects(objects) => objects.size(digest).await,
        }
    }

    /// Reads a blob, or the bytes `range` of it; a range that ends behind the blob's end is cut.
    ///
    /// The bytes were verified when they entered and are not hashed again; see [`Self::verify`].
    pub async fn read(&self, digest: &Digest, range: Option<Range<u64>>) -> Result<BlobReader> {
        match &self.0 {
            Backend::Local(local) => local::read(local.clone(), digest, range).await,
            Backend::Objects(objects) => objects.read(digest, range).await,
        }
    }

    /// Reads a small blob whole; for manifests and configs. Refuses one above `limit` bytes.
    pub async fn read_bytes(&self, digest: &Digest, limit: u64) -> Result<Bytes> {
        let mut reader = self.read(digest, None).await?;
        if reader.size > limit {
            return Err(ContentError::Storage {
                what: format!("read {digest} into memory"),
                source: format!("it has {} bytes, more than the {limit} allowed", reader.size).into(),
            });
        }
        let mut bytes = Vec::with_capacity(reader.size as usize);
        while let Some(chunk) = reader.stream.next().await {
            bytes.extend_from_slice(&chunk?);
        }
        Ok(bytes.into())
    }

    /// The file that a blob is, or would be, in; none if the store is no directory.
    pub fn local_path(&self, digest: &Digest) -> Option<PathBuf> {
        match &self.0 {
            Backend::Local(local) => Some(local.path_of(digest)),
            Backend::Objects(_) => None,
        }
    }

    /// Begins to write a blob that will be committed by its SHA-256.
    pub async fn writer(&self, owner: &str) -> Result<Writer> {
        self.writer_with(owner, Algorithm::Sha256).await
    }

    /// Begins to write a blob that will be committed by a digest of `algorithm`.
    pub async fn writer_with(&self, owner: &str, algorithm: Algorithm) -> Result<Writer> {
        match &self.0 {
            Backend::Local(local) => {
                let (local, owner) = (local.clone(), owner.to_owned());
                let made =
                    tokio::task::spawn_blocking(move || local::LocalWriter::new(local, &owner, algorithm));
                Ok(Writer::over_file(made.await.map_err(ContentError::task)??))
            }
            Backend::Objects(objects) => Ok(Writer::over_objects(objects::ObjectWriter::new(
                objects.clone(),
                owner,
                algorithm,
            )?)),
        }
    }

    /// The same for code that blocks: a `std::io::Write`, to be used inside `spawn_blocking`.
    pub fn blocking_writer(&self, owner: &str) -> Result<BlockingWriter> {
        self.blocking_writer_with(owner, Algorithm::Sha256)
    }

    /// [`Self::blocking_writer`] for a digest of `algorithm`.
    pub fn blocking_writer_with(&self, owner: &str, algorithm: Algorithm) -> Result<BlockingWriter> {
        match &self.0 {
            Backend::Local(local) => Ok(BlockingWriter::over_file(local::LocalWriter::new(
                local.clone(),
                owner,
                algorithm,
            )?)),
            Backend::Objects(objects) => {
                BlockingWriter::over_objects(objects::ObjectWriter::new(objects.clone(), owner, algorithm)?)
            }
        }
    }

    /// Stores a small blob, checked against its digest first. Until then it is a temporary file of `owner`.
    pub async fn put_bytes(&self, owner: &str, digest: &Digest, bytes: Bytes) -> Result<()> {
        let mut writer = self.writer_with(owner, digest.algorithm()).await?;
        writer.write(bytes).await?;
        writer.commit(digest).await?;
        Ok(())
    }

    /// Hashes the stored bytes again. The error says what they hash to.
    pub async fn verify(&self, digest: &Digest) -> Result<()> {
        let got = match &self.0 {
            Backend::Local(local) => blocking(local, digest, local::Local::hash).await?,
            Backend::Objects(objects) => objects.hash(digest).await?,
        };
        let (got, size) = got;
        if got == *digest {
            Ok(())
        } else {
            Err(ContentError::Mismatch {
                expected: digest.clone(),
                got,
                size,
            })
        }
    }

    /// Removes a blob; says whether it was here. Only garbage collection calls it.
    pub async fn delete(&self, digest: &Digest) -> Result<bool> {
        match &self.0 {
            Backend::Local(local) => blocking(local, digest, local::Local::delete).await,
            Backend::Objects(objects) => objects.delete(digest).await,
        }
    }

    /// Removes all temporary files of an owner that writes no more; says how many.
    pub async fn sweep_tmp(&self, owner: &str) -> Result<usize> {
        let prefix = key::of_owner(owner)?;
        self.sweep(prefix, Duration::ZERO).await
    }

    /// The owners that have temporary files.
    pub async fn tmp_owners(&self) -> Result<Vec<String>> {
        match &self.0 {
            Backend::Local(local) => {
                let local = local.clone();
                let listed = tokio::task::spawn_blocking(move || local.names_below(key::TMP));
                listed.await.map_err(ContentError::task)?
            }
            Backend::Objects(objects) => objects.names_below(key::TMP).await,
        }
    }

    /// Removes the temporary files of any owner that nobody has written to for `age`; says how many.
    pub async fn sweep_tmp_older_than(&self, age: Duration) -> Result<usize> {
        self.sweep(key::TMP.to_owned(), age).await
    }

    async fn sweep(&self, prefix: String, age: Duration) -> Result<usize> {
        match &self.0 {
            Backend::Local(local) => {
                let local = local.clone();
                let swept = tokio::task::spawn_blocking(move || local.sweep(&prefix, age));
                swept.await.map_err(ContentError::task)?
            }
            Backend::Objects(objects) => objects.sweep(&prefix, age).await,
        }
    }
}

/// Runs a file operation on a thread that may block.
async fn blocking<T: Send + 'static>(
    local: &Arc<local::Local>,
    digest: &Digest,
    work: fn(&local::Local, &Digest) -> Result<T>,
) -> Result<T> {
    let (local, digest) = (local.clone(), digest.clone());
    tokio::task::spawn_blocking(move || work(&local, &digest))
        .await
        .map_err(ContentError::task)?
}

/// The part of a blob of `size` bytes that a request for `range` gets.
fn cut(digest: &Digest, size: u64, range: Option<Range<u64>>) -> Result<Range<u64>> {
    let range = range.unwrap_or(0..size);
    if range.start > size || (range.start == size && size > 0) {
        return Err(ContentError::Range {
            digest: digest.clone(),
            size,
            start: range.start,
        });
    }
    Ok(range.start..range.end.clamp(range.start, size))
}
