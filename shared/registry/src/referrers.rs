//! Referrers: signatures, SBOMs and other artifacts that are attached to a manifest.
//!
//! Source: OCI distribution specification 1.1, "Listing Referrers" and "Referrers Tag Schema".

use std::collections::HashSet;

use pulp_model::{Digest, MediaType, RegistryId, image::MAX_MANIFEST_BYTES};
use serde::Deserialize;

use crate::{Client, Reference, RegistryError, Result, answer::next_page, counters::Purpose, request::Ask};

/// Pages of referrers of one manifest at most.
const MAX_PAGES: usize = 100;

/// A manifest that refers to another one. Nothing of it is verified.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Referrer {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: MediaType,
    /// What kind of artifact it is, where the registry tells.
    #[serde(default)]
    pub artifact_type: Option<String>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Referrer>,
}

impl Client {
    /// What refers to a manifest: by the API, or where a registry doesn't have it by the tag that stands in for it.
    pub async fn referrers(&self, name: &RegistryId, subject: &Digest) -> Result<Vec<Referrer>> {
        match self.referrers_by_api(name, subject).await {
            Ok(Some(found)) => Ok(found),
            Ok(None)
            | Err(
                RegistryError::NotFound { .. }
                | RegistryError::Status {
                    status: 400 | 405 | 501,
                    ..
                },
            ) => self.referrers_by_tag(name, subject).await,
            Err(error) => Err(error),
        }
    }

    /// None if the answer is no list of referrers, as of a server that answers every path by a page of its own.
    async fn referrers_by_api(&self, name: &RegistryId, subject: &Digest) -> Result<Option<Vec<Referrer>>> {
        let mut url = self.url(&format!("v2/{name}/referrers/{subject}"))?;
        let (mut seen, mut found) = (HashSet::new(), Vec::new());
        loop {
            let ask = Ask::document(&url, name.as_str(), Purpose::Referrers);
            let document = self.document(ask, MAX_MANIFEST_BYTES).await?;
            let Ok(index) = serde_json::from_slice::<Index>(&document.bytes) else {
                return Ok(None);
            };
            found.extend(index.manifests);
            let next = next_page(&document.headers);
            let Some(next) = next.and_then(|n| url.join(&n).ok()) else {
                return Ok(Some(found));
            };
            let circle = !seen.insert(std::mem::replace(&mut url, next)) || seen.contains(&url);
            if circle || seen.len() > MAX_PAGES || !self.is_ours(&url) {
                return Err(RegistryError::Protocol {
                    url: url.to_string(),
                    reason: "the pages of referrers don't end, or lead to another server".to_owned(),
                });
            }
        }
    }

    async fn referrers_by_tag(&self, name: &RegistryId, subject: &Digest) -> Result<Vec<Referrer>> {
        // `sha256-<hex>`; of the digits at most 64, so that it is a tag.
        let hex = subject.hex();
        let hex = hex.get(..64).unwrap_or(hex);
        let tag = format!("{}-{hex}", subject.algorithm().as_str());
        let Ok(reference) = tag.parse::<Reference>() else {
            return Ok(Vec::new());
        };
        match self.manifest(name, &reference).await {
            Ok(found) => Ok(serde_json::from_slice::<Index>(&found.bytes)
                .map(|index| index.manifests)
                .unwrap_or_default()),
            Err(RegistryError::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}
