//! A layer on its way. Its end means that the server ended it where it said it would, and that a checksum that was told
//! is right; that it is a whole archive is for its reader to see.

use std::time::Instant;

use bytes::Bytes;
use pulp_model::{Algorithm, Digest, digest::Hasher};
use reqwest::Response;
use url::Url;

use super::V1Json;
use crate::{Client, RegistryError, Result, blobs::SLOW_BYTES, error::chain};

/// A layer on its way. One that breaks off is not taken up behind its break: without a digest nobody could tell that
/// the halves belong together.
pub struct V1Layer {
    client: Client,
    url: Url,
    response: Response,
    expected: Option<u64>,
    received: u64,
    payload: Vec<Digest>,
    hasher: Option<Hasher>,
    pace: (Instant, u64),
}

impl V1Layer {
    pub(super) fn new(client: Client, url: Url, response: Response, json: &V1Json) -> Self {
        let hasher = (!json.payload.is_empty()).then(|| {
            let mut hasher = Algorithm::Sha256.hasher();
            hasher.update(&json.bytes);
            hasher.update(b"\n");
            hasher
        });
        Self {
            client,
            url,
            expected: response.content_length(),
            response,
            received: 0,
            payload: json.payload.clone(),
            hasher,
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
                if let Some(hasher) = &mut self.hasher {
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
        let Some(got) = self.hasher.take().map(Hasher::finish) else {
            return Ok(None);
        };
        match self.payload.first() {
            Some(expected) if !self.payload.contains(&got) => Err(RegistryError::Mismatch {
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
