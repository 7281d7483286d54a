//! Blobs in an object store: S3, or whatever `object_store` speaks.
//!
//! A blob up to one part's size is put under its name at once. A larger one is uploaded in parts under a
//! temporary name, since its digest is known only at its end, and copied within the store. Parts of uploads
//! that a crash left can't be listed by their key: give the bucket a rule that aborts incomplete uploads.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::{
    ObjectStore, ObjectStoreExt as _, WriteMultipart, aws::AmazonS3Builder, path::Path, prefix::PrefixStore,
};
use pulp_model::{Algorithm, Digest, digest::Hasher};
use pulp_runtime::config::S3Config;

use crate::{BlobReader, ContentError, Result, cut, key};

/// Bytes of one part. S3 takes 10,000 parts, hence blobs up to 80 GiB.
const PART: usize = 8 * 1024 * 1024;
/// Parts on their way at a time.
const PARTS_AT_ONCE: usize = 3;
/// Above this many bytes S3 copies no object by one request (its limit is 5 GiB).
const COPY_LIMIT: u64 = 5 * 1024 * 1024 * 1024;

/// A bucket of blobs.
#[derive(Debug)]
pub(crate) struct Objects {
    store: Arc<dyn ObjectStore>,
    copy_limit: u64,
}

impl Objects {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        let store: Arc<dyn ObjectStore> = match prefix.trim_matches('/') {
            "" => store,
            prefix => Arc::new(PrefixStore::new(store, prefix)),
        };
        Self {
            store,
            copy_limit: COPY_LIMIT,
        }
    }

    pub(crate) fn s3(url: &str, config: &S3Config) -> Result<Self> {
        let wrong = |reason: String| ContentError::Config {
            url: url.to_owned(),
            reason,
        };
        let parsed = url::Url::parse(url).map_err(|e| wrong(e.to_string()))?;
        let bucket = parsed
            .host_str()
            .ok_or_else(|| wrong("it names no bucket".to_owned()))?;
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_allow_http(config.allow_http);
        if let Some(endpoint) = &config.endpoint {
            builder = builder.with_endpoint(endpoint.as_str().trim_end_matches('/'));
        }
        if let Some(region) = &config.region {
            builder = builder.with_region(region);
        }
        if let (Some(id), Some(secret)) = (&config.access_key_id, &config.secret_access_key) {
            builder = builder
                .with_access_key_id(id)
                .with_secret_access_key(secret.expose());
        }
        let store = builder.build().map_err(|e| wrong(e.to_string()))?;
        Ok(Self::new(Arc::new(store), parsed.path()))
    }

    pub(crate) async fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        let key = blob(digest);
        match self.store.head(&key).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(ContentError::object("look at", key, e)),
        }
    }

    pub(crate) async fn read(&self, digest: &Digest, range: Option<Range<u64>>) -> Result<BlobReader> {
        let key = blob(digest);
        let size = self
            .size(digest)
            .await?
            .ok_or_else(|| ContentError::NotFound(digest.clone()))?;
        let range = cut(digest, size, range)?;
        if range.is_empty() {
            return Ok(BlobReader {
                size,
                range,
                stream: futures::stream::empty().boxed(),
            });
        }
        let options = object_store::GetOptions {
            range: Some(range.clone().into()),
            ..Default::default()
        };
        let got = self.store.get_opts(&key, options).await.map_err(|e| match e {
            object_store::Error::NotFound { .. } => ContentError::NotFound(digest.clone()),
            e => ContentError::object("read", &key, e),
        })?;
        let chunks = got.into_stream().map_err({
            let key = key.clone();
            move |e| ContentError::object("read", &key, e)
        });
        let stream = whole(chunks.boxed(), range.end - range.start, key);
        Ok(BlobReader {
            size,
            range,
            stream: stream.boxed(),
        })
    }

    /// What the stored bytes hash to, and how many they are.
    pub(crate) async fn hash(&self, digest: &Digest) -> Result<(Digest, u64)> {
        let mut reader = self.read(digest, None).await?;
        let mut hasher = digest.algorithm().hasher();
        while let Some(chunk) = reader.stream.next().await {
            hasher.update(&chunk?);
        }
        Ok((hasher.finish(), reader.size))
    }

    pub(crate) async fn delete(&self, digest: &Digest) -> Result<bool> {
        // Stores differ in what they say of the deletion of a key that isn't there.
        let was_here = self.size(digest).await?.is_some();
        if was_here {
            self.remove(&blob(digest)).await?;
        }
        Ok(was_here)
    }

    /// Removes what lies below `prefix` and was last written `age` ago or earlier.
    pub(crate) async fn sweep(&self, prefix: &str, age: Duration) -> Result<usize> {
        let before = SystemTime::now()
            .checked_sub(age)
            .unwrap_or(SystemTime::UNIX_EPOCH);
        let prefix = Path::from(prefix);
        let listed: Vec<_> = self
            .store
            .list(Some(&prefix))
            .try_filter(|meta| std::future::ready(SystemTime::from(meta.last_modified) <= before))
            .map_ok(|meta| meta.location)
            .try_collect()
            .await
            .map_err(|e| ContentError::object("list", &prefix, e))?;
        for key in &listed {
            self.remove(key).await?;
        }
        Ok(listed.len())
    }

    /// Names of what a further part of keys right below `prefix` may be.
    pub(crate) async fn names_below(&self, prefix: &str) -> Result<Vec<String>> {
        let prefix = Path::from(prefix);
        let listed = self.store.list_with_delimiter(Some(&prefix)).await;
        let listed = listed.map_err(|e| ContentError::object("list", &prefix, e))?;
        let names = listed.common_prefixes.iter().filter_map(Path::filename);
        Ok(names.map(ToOwned::to_owned).collect())
    }

    async fn remove(&self, key: &Path) -> Result<()> {
        match self.store.delete(key).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(ContentError::object("remove", key, e)),
        }
    }

    /// Gives an object its final name.
    async fn rename(&self, from: &Path, to: &Path, size: u64) -> Result<()> {
        if size < self.copy_limit {
            self.store
                .copy(from, to)
                .await
                .map_err(|e| ContentError::object("keep", to, e))?;
        } else {
            self.copy_through(from, to).await?;
        }
        self.remove(from).await
    }

    /// Copies an object that is too large for the store to do it by itself.
    async fn copy_through(&self, from: &Path, to: &Path) -> Result<()> {
        let fault = |e| ContentError::object("keep", to, e);
        let mut chunks = self.store.get(from).await.map_err(fault)?.into_stream();
        let mut upload = Upload::begin(self.store.clone(), to.clone()).await?;
        while let Some(chunk) = chunks.next().await {
            upload.put(chunk.map_err(fault)?).await?;
        }
        upload.finish().await
    }
}

fn blob(digest: &Digest) -> Path {
    Path::from(key::of_blob(digest))
}

/// The chunks, and an error if they end before `length` bytes came.
fn whole(
    chunks: futures::stream::BoxStream<'static, Result<Bytes>>,
    length: u64,
    key: Path,
) -> impl futures::Stream<Item = Result<Bytes>> + Send + 'static {
    futures::stream::try_unfold((chunks, length, key), |(mut chunks, left, key)| async move {
        match chunks.try_next().await? {
            Some(chunk) if chunk.len() as u64 <= left => {
                let left = left - chunk.len() as u64;
                Ok(Some((chunk, (chunks, left, key))))
            }
            None if left == 0 => Ok(None),
            ended => Err(ContentError::Storage {
                what: format!("read {key}"),
                source: match ended {
                    None => format!("it ended {left} bytes too early").into(),
                    Some(_) => "more bytes came than were asked for".into(),
                },
            }),
        }
    })
}

/// An upload in parts. Dropped before it is finished, it is aborted.
struct Upload {
    parts: Option<WriteMultipart>,
    key: Path,
}

impl Upload {
    async fn begin(store: Arc<dyn ObjectStore>, key: Path) -> Result<Self> {
        let upload = store
            .put_multipart(&key)
            .await
            .map_err(|e| ContentError::object("begin", &key, e))?;
        Ok(Self {
            parts: Some(WriteMultipart::new_with_chunk_size(upload, PART)),
            key,
        })
    }

    async fn put(&mut self, bytes: Bytes) -> Result<()> {
        if let Some(parts) = &mut self.parts {
            let room = parts.wait_for_capacity(PARTS_AT_ONCE).await;
            room.map_err(|e| ContentError::object("upload", &self.key, e))?;
            parts.put(bytes);
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<()> {
        if let Some(parts) = self.parts.take() {
            // `finish` aborts the upload if a part failed.
            parts
                .finish()
                .await
                .map_err(|e| ContentError::object("upload", &self.key, e))?;
        }
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(parts) = self.parts.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let key = self.key.clone();
            runtime.spawn(async move {
                if let Err(error) = parts.abort().await {
                    tracing::warn!(%key, %error, "could not abort an upload; the bucket's rule will");
                }
            });
        }
    }
}

/// A blob on its way into the store, hashed while it goes. Dropped, it is discarded.
pub(crate) struct ObjectWriter {
    objects: Arc<Objects>,
    temporary: Path,
    hasher: Hasher,
    algorithm: Algorithm,
    size: u64,
    buffer: BytesMut,
    upload: Option<Upload>,
}

impl ObjectWriter {
    pub(crate) fn new(objects: Arc<Objects>, owner: &str, algorithm: Algorithm) -> Result<Self> {
        Ok(Self {
            objects,
            temporary: Path::from(key::of_temporary(owner)?),
            hasher: algorithm.hasher(),
            algorithm,
            size: 0,
            buffer: BytesMut::new(),
            upload: None,
        })
    }

    pub(crate) const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(crate) async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.hasher.update(&bytes);
        self.size += bytes.len() as u64;
        self.buffer.extend_from_slice(&bytes);
        while self.buffer.len() > PART {
            let part = self.buffer.split_to(PART).freeze();
            if self.upload.is_none() {
                let upload = Upload::begin(self.objects.store.clone(), self.temporary.clone()).await?;
                self.upload = Some(upload);
            }
            if let Some(upload) = &mut self.upload {
                upload.put(part).await?;
            }
        }
        Ok(())
    }

    pub(crate) async fn commit(mut self, expected: Option<&Digest>) -> Result<(Digest, u64)> {
        let got = self.hasher.clone().finish();
        if let Some(expected) = expected.filter(|e| **e != got) {
            return Err(ContentError::Mismatch {
                expected: expected.clone(),
                got,
                size: self.size,
            });
        }
        if self.objects.size(&got).await? == Some(self.size) {
            return Ok((got, self.size));
        }
        let key = blob(&got);
        let rest = self.buffer.split().freeze();
        match self.upload.take() {
            None => {
                let put = self.objects.store.put(&key, rest.into()).await;
                put.map_err(|e| ContentError::object("keep", &key, e))?;
            }
            Some(mut upload) => {
                upload.put(rest).await?;
                upload.finish().await?;
                self.objects.rename(&self.temporary, &key, self.size).await?;
            }
        }
        Ok((got, self.size))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn an_object_too_large_for_the_store_to_copy_goes_through_us() {
        let mut objects = Objects::new(Arc::new(object_store::memory::InMemory::new()), "");
        objects.copy_limit = 0;
        let objects = Arc::new(objects);
        let bytes = Bytes::from(vec![7; 2 * PART + 5]);
        let digest = Digest::sha256(&bytes);
        let mut writer = ObjectWriter::new(objects.clone(), "a", Algorithm::Sha256).unwrap();
        writer.write(bytes).await.unwrap();
        writer.commit(Some(&digest)).await.unwrap();
        assert_eq!(objects.hash(&digest).await.unwrap().0, digest);
        assert_eq!(objects.sweep(key::TMP, Duration::ZERO).await.unwrap(), 0);
    }

    #[test]
    fn a_bucket_is_opened_by_its_url_and_a_wrong_one_is_told() {
        let config = S3Config {
            region: Some("eu-west-1".to_owned()),
            ..S3Config::default()
        };
        assert!(Objects::s3("s3://bucket/some/prefix", &config).is_ok());
        let error = Objects::s3("s3:", &config).unwrap_err().to_string();
        assert!(error.contains("bucket"), "{error}");
    }
}
