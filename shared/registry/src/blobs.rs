//! Blobs: streamed, hashed on the way, whole or an error.

use bytes::Bytes;
use pulp_model::{Digest, RegistryId, digest::Hasher};
use reqwest::{Method, Response};
use url::Url;

use crate::{Client, RegistryError, Result, client::Length, error::chain};

/// A blob on its way. Its end ([`next`](Self::next) gives none) means that all bytes came and hash to the digest.
pub struct BlobReader {
    response: Response,
    url: Url,
    expected: Digest,
    hasher: Option<Hasher>,
    size: Option<u64>,
    received: u64,
}

impl Client {
    /// Begins to fetch a blob.
    pub async fn blob(&self, name: &RegistryId, digest: &Digest) -> Result<BlobReader> {
        let url = self.url(&format!("v2/{name}/blobs/{digest}"))?;
        let response = self
            .request(Method::GET, &url, None, name.as_str(), Length::Stream)
            .await?;
        Ok(BlobReader {
            size: response.content_length(),
            response,
            url,
            expected: digest.clone(),
            hasher: Some(digest.algorithm().hasher()),
            received: 0,
        })
    }
}

impl BlobReader {
    /// The size that the registry declares; some declare none.
    pub const fn size(&self) -> Option<u64> {
        self.size
    }

    /// Makes any other number of bytes an error; more are noticed before they are all read.
    pub fn expect_size(&mut self, size: u64) -> Result<()> {
        if let Some(declared) = self.size.filter(|s| *s != size) {
            return Err(RegistryError::Size {
                url: self.url.to_string(),
                expected: size,
                got: declared,
            });
        }
        self.size = Some(size);
        Ok(())
    }

    /// The next bytes; none once the blob is whole and verified. After an error there is nothing more to read.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        let Some(hasher) = &mut self.hasher else {
            return Ok(None);
        };
        let chunk = match self.response.chunk().await {
            Ok(chunk) => chunk,
            Err(e) => {
                self.hasher = None;
                return Err(self.interrupted(chain(&e.without_url())));
            }
        };
        if let Some(bytes) = chunk {
            hasher.update(&bytes);
            self.received += bytes.len() as u64;
            if let Some(expected) = self.size.filter(|s| self.received > *s) {
                self.hasher = None;
                return Err(RegistryError::Size {
                    url: self.url.to_string(),
                    expected,
                    got: self.received,
                });
            }
            return Ok(Some(bytes));
        }
        if self.size.is_some_and(|s| self.received < s) {
            self.hasher = None;
            return Err(self.interrupted("the registry ended it".to_owned()));
        }
        match self.hasher.take().map(Hasher::finish) {
            Some(got) if got != self.expected => {
                let expected = self.expected.clone();
                Err(RegistryError::Mismatch {
                    url: self.url.to_string(),
                    expected,
                    got,
                })
            }
            _ => Ok(None),
        }
    }

    fn interrupted(&self, reason: String) -> RegistryError {
        RegistryError::Interrupted {
            url: self.url.to_string(),
            received: self.received,
            expected: self.size,
            reason,
        }
    }

    /// Reads to the end and keeps nothing; gives the number of bytes.
    pub async fn drain(mut self) -> Result<u64> {
        while self.next().await?.is_some() {}
        Ok(self.received)
    }
}
