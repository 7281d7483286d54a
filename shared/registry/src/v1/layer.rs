//! A layer on its way. Its end means that the server ended it where it said it would, and that a checksum that was told
//! is right; that it is a whole archive is for its reader to see.

use std::time::Instant;

use bytes::Bytes;
use pulp_model::digest::Hasher;
use reqwest::Response;
use url::Url;

use super::V1Checksums;
use crate::{Client, RegistryError, Result, blobs::SLOW_BYTES, error::chain};

/// A layer on its way. One that breaks off is not taken up behind its break: without a digest nobody could tell that
/// the halves belong together.
pub struct V1Layer {
    client: Client,
    url: Url,
    response: Response,
    expected: Option<u64>,
    received: u64,
    checksums: V1Checksums,
    pace: (Instant, u64),
}

impl V1Layer {
    pub(super) fn new(client: Client, url: Url, response: Response, checksums: &V1Checksums) -> Self {
        Self {
            client,
            url,
            expected: response.content_length(),
            response,
            received: 0,
            checksums: checksums.clone(),
            pace: (Instant::now(), 0),
        }
    }

    /// Where it comes from.
    pub fn url(&self) -> &str {
        self.url.as_str()
    }

    /// The next bytes; none at the end. After an error there is nothing more to read.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        match self.response.chunk().await {
            Ok(Some(bytes)) => {
                self.client.received(bytes.len());
                self.received += bytes.len() as u64;
                self.pace.1 += bytes.len() as u64;
                if self.pace.0.elapsed() >= self.client.slow_for() {
                    let came = std::mem::replace(&mut self.pace, (Instant::now(), 0)).1;
                    if came < SLOW_BYTES {
                        return Err(self.interrupted("hardly anything came any more".to_owned()));
                    }
                }
                if let Some(hasher) = &mut self.checksums.hasher {
                    hasher.update(&bytes);
                }
                Ok(Some(bytes))
            }
            Ok(None) if self.expected.is_some_and(|size| self.received < size) => {
                Err(self.interrupted("the registry ended it".to_owned()))
            }
            Ok(None) => self.end(),
            Err(e) => Err(self.interrupted(chain(&e.without_url()))),
        }
    }

    fn end(&mut self) -> Result<Option<Bytes>> {
        let Some(got) = self.checksums.hasher.take().map(Hasher::finish) else {
            return Ok(None);
        };
        let told = &self.checksums.told;
        match told.first() {
            Some(expected) if !told.contains(&got) => Err(RegistryError::Mismatch {
                url: self.url.to_string(),
                expected: expected.clone(),
                got,
            }),
            _ => Ok(None),
        }
    }

    fn interrupted(&self, reason: String) -> RegistryError {
        RegistryError::Interrupted {
            url: self.url.to_string(),
            received: self.received,
            expected: self.expected,
            reason,
        }
    }
}
