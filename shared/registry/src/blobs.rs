//! Blobs: streamed, hashed on the way, resumed where they break off, whole or an error.

use std::time::Instant;

use bytes::Bytes;
use pulp_model::{Digest, RegistryId, digest::Hasher};
use reqwest::{Response, StatusCode, header::CONTENT_RANGE};
use url::Url;

use crate::{
    Client, RegistryError, Result,
    counters::Purpose,
    error::chain,
    request::{Ask, Failures, Length},
};

/// Times that one blob is taken up again at most, however much comes each time.
const MAX_RESUMES: u32 = 100;
/// Times that one blob is taken up again because hardly anything came: a registry that drips would hold a sync for days.
const MAX_SLOW_RESUMES: u32 = 5;
/// Fewer bytes than this in the options' `slow_for` are as good as none.
pub(crate) const SLOW_BYTES: u64 = 16 * 1024;

/// A blob on its way. Its end ([`next`](Self::next) gives none) means that all bytes came and hash to the digest.
pub struct BlobReader {
    client: Client,
    name: RegistryId,
    response: Response,
    url: Url,
    expected: Digest,
    hasher: Option<Hasher>,
    size: Option<u64>,
    received: u64,
    /// Bytes that come again, since the registry begins anew; they were hashed already.
    skip: u64,
    failures: Failures,
    resumes: u32,
    slow_resumes: u32,
    pace: (Instant, u64),
}

impl Client {
    /// Begins to fetch a blob.
    pub async fn blob(&self, name: &RegistryId, digest: &Digest) -> Result<BlobReader> {
        let url = self.url(&format!("v2/{name}/blobs/{digest}"))?;
        let response = self.request(ask(&url, name, 0)).await?;
        Ok(BlobReader {
            client: self.clone(),
            name: name.clone(),
            size: response.content_length(),
            response,
            url,
            expected: digest.clone(),
            hasher: Some(digest.algorithm().hasher()),
            received: 0,
            skip: 0,
            failures: Failures::none(),
            resumes: 0,
            slow_resumes: 0,
            pace: (Instant::now(), 0),
        })
    }
}

fn ask<'a>(url: &'a Url, name: &'a RegistryId, from: u64) -> Ask<'a> {
    Ask {
        length: Length::Stream,
        from,
        ..Ask::document(url, name.as_str(), Purpose::Blob)
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
        if self.hasher.is_none() {
            return Ok(None);
        }
        let read = self.read().await;
        if !matches!(read, Ok(Some(_))) {
            self.hasher = None;
        }
        read
    }

    async fn read(&mut self) -> Result<Option<Bytes>> {
        loop {
            let broken = match self.response.chunk().await {
                Ok(Some(bytes)) => {
                    let came = self.take(bytes)?;
                    if came.is_empty() {
                        continue;
                    }
                    if !self.is_slow() {
                        return Ok(Some(came));
                    }
                    let reason = "hardly anything came any more".to_owned();
                    self.slow_resumes += 1;
                    if self.slow_resumes > MAX_SLOW_RESUMES {
                        return Err(self.interrupted(reason));
                    }
                    self.resume(reason).await?;
                    return Ok(Some(came));
                }
                Ok(None) if self.size.is_some_and(|s| self.received < s) => {
                    "the registry ended it".to_owned()
                }
                Ok(None) => return self.end(),
                Err(e) => chain(&e.without_url()),
            };
            self.resume(broken).await?;
        }
    }

    /// Takes bytes in; gives those that are new.
    fn take(&mut self, mut bytes: Bytes) -> Result<Bytes> {
        self.client.received(bytes.len());
        self.pace.1 += bytes.len() as u64;
        let known = self.skip.min(bytes.len() as u64);
        self.skip -= known;
        let bytes = bytes.split_off(known as usize);
        if bytes.is_empty() {
            return Ok(bytes);
        }
        self.failures.forget();
        self.received += bytes.len() as u64;
        if let Some(expected) = self.size.filter(|s| self.received > *s) {
            return Err(RegistryError::Size {
                url: self.url.to_string(),
                expected,
                got: self.received,
            });
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes);
        }
        Ok(bytes)
    }

    fn is_slow(&mut self) -> bool {
        if self.pace.0.elapsed() < self.client.slow_for() {
            return false;
        }
        let came = std::mem::replace(&mut self.pace, (Instant::now(), 0)).1;
        came < SLOW_BYTES
    }

    /// Goes on behind the last byte that came: what came is hashed already, and the whole is checked at the end.
    async fn resume(&mut self, reason: String) -> Result<()> {
        let mut error = self.interrupted(reason);
        loop {
            self.resumes += 1;
            if self.resumes > MAX_RESUMES {
                return Err(error);
            }
            self.client.pause(&mut self.failures, error).await?;
            match self
                .client
                .request(ask(&self.url, &self.name, self.received))
                .await
            {
                Ok(response) => {
                    self.skip = match (response.status(), begins_at(&response)) {
                        (StatusCode::PARTIAL_CONTENT, Some(at)) if at <= self.received => self.received - at,
                        (StatusCode::PARTIAL_CONTENT, _) => {
                            return Err(RegistryError::Protocol {
                                url: self.url.to_string(),
                                reason: format!(
                                    "asked for the bytes from {} on, the registry sent others",
                                    self.received
                                ),
                            });
                        }
                        // It knows no ranges, and begins anew.
                        _ => self.received,
                    };
                    self.response = response;
                    self.pace = (Instant::now(), 0);
                    return Ok(());
                }
                // All bytes had come, only not their end.
                Err(RegistryError::Status { status: 416, .. }) if self.size.is_none() => {
                    return Err(self.interrupted("its end never came".to_owned()));
                }
                Err(e) if e.is_retryable() => error = e,
                Err(e) => return Err(e),
            }
        }
    }

    fn end(&mut self) -> Result<Option<Bytes>> {
        match self.hasher.take().map(Hasher::finish) {
            Some(got) if got != self.expected => Err(RegistryError::Mismatch {
                url: self.url.to_string(),
                expected: self.expected.clone(),
                got,
            }),
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

/// The first byte of a part: `Content-Range: bytes 5-9/10`.
fn begins_at(response: &Response) -> Option<u64> {
    let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    text.trim()
        .strip_prefix("bytes ")?
        .split('-')
        .next()?
        .trim()
        .parse()
        .ok()
}
