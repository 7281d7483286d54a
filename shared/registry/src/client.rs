//! One registry: its address, what all requests to it share, its tags.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Instant, SystemTime},
};

use pulp_model::{RegistryId, TagName, budget::Quota};
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use url::Url;

use crate::{
    ClientOptions, RegistryError, Requests, Result,
    answer::{MAX_DOCUMENT, next_page},
    counters::{Counters, Purpose},
    options,
    quota::quota,
    request::Ask,
    scope::Scopes,
};

/// Tags asked for by one request, and pages followed at most.
const PAGE: u32 = 1000;
const MAX_PAGES: usize = 10_000;
/// Tags of one repository that are taken to be meant: they are held all at once.
const MAX_TAGS: usize = 1_000_000;
/// Where Docker Hub's registry is.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// A registry. Clones share connections and tokens.
#[derive(Clone)]
pub struct Client {
    pub(crate) http: reqwest::Client,
    pub(crate) base: Url,
    pub(crate) shared: Arc<Shared>,
}

/// What all clones of a client have in common.
pub(crate) struct Shared {
    pub(crate) options: ClientOptions,
    pub(crate) scopes: Scopes,
    pub(crate) counters: Counters,
    /// Nobody asks before this instant: the registry said so to one of us.
    pub(crate) not_before: Mutex<Option<Instant>>,
    /// What was told about the limit and nobody has taken note of.
    pub(crate) told: Mutex<Option<Quota>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("base", &self.base.as_str())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// `base_url` is `https://host[:port][/prefix]`, `http:` for a registry without TLS; `/v2/` is added.
    pub fn new(base_url: &str, options: ClientOptions) -> Result<Self> {
        let wrong = |reason: String| RegistryError::Url {
            url: base_url.to_owned(),
            reason,
        };
        let mut base = Url::parse(base_url)
            .map_err(|e| wrong(format!("{e}; give a url like https://registry.example.com")))?;
        if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
            return Err(wrong("give a url like https://registry.example.com".to_owned()));
        }
        if !base.username().is_empty() || base.password().is_some() {
            // They would show in every message.
            return Err(RegistryError::Url {
                url: base.host_str().unwrap_or_default().to_owned(),
                reason: "give login and password apart from the url".to_owned(),
            });
        }
        base.set_query(None);
        base.set_fragment(None);
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        if matches!(
            base.host_str(),
            Some("docker.io" | "index.docker.io" | "registry.hub.docker.com")
        ) {
            // The names that people know; the registry of today is behind this one.
            base.set_host(Some(DOCKER_HUB))
                .map_err(|e| wrong(e.to_string()))?;
        }
        let http = options::shared(&options).map_err(wrong)?;
        Ok(Self {
            http,
            base,
            shared: Arc::new(Shared {
                options,
                scopes: Scopes::default(),
                counters: Counters::default(),
                not_before: Mutex::default(),
                told: Mutex::default(),
            }),
        })
    }

    /// The registry's address, as all requests begin.
    pub fn base_url(&self) -> &str {
        self.base.as_str()
    }

    /// The registry's host, with the port unless that is the scheme's own.
    pub fn host(&self) -> String {
        let host = self.base.host_str().unwrap_or_default();
        self.base
            .port()
            .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }

    /// What was asked so far, by all clones of this client together.
    pub fn requests(&self) -> Requests {
        self.shared.counters.read()
    }

    /// What the registry has said about its limit since this was asked last; none if it has answered nothing that
    /// could tell. Of several answers the sternest.
    pub fn take_quota(&self) -> Option<Quota> {
        self.shared
            .told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Takes note of what an answer says about the registry's limit. Only manifests are limited; of other answers
    /// it counts that they are refused.
    pub(crate) fn note_quota(&self, purpose: Purpose, response: &Response) {
        let told = quota(response.headers(), SystemTime::now());
        let refused = response.status() == StatusCode::TOO_MANY_REQUESTS;
        let is_limited = matches!(purpose, Purpose::Manifest | Purpose::ManifestHead);
        // That nothing has changed may be told without the limit though there is one.
        if refused || (is_limited && (told.is_told() || response.status().is_success())) {
            let mut last = self.shared.told.lock().unwrap_or_else(PoisonError::into_inner);
            *last = Some(last.map_or(told, |last| last.sterner(told)));
        }
    }

    /// The full name of a repository: Docker Hub keeps those without a namespace under `library/`.
    pub fn full_name(&self, name: &RegistryId) -> RegistryId {
        let host = self.base.host_str().unwrap_or_default();
        let hub = host
            .strip_suffix(".docker.io")
            .is_some_and(|first| first.starts_with("registry"));
        if hub && !name.as_str().contains('/') {
            format!("library/{name}").parse().unwrap_or_else(|_| name.clone())
        } else {
            name.clone()
        }
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.shared.counters.received(bytes);
    }

    /// In how long a blob must not come too slowly.
    pub(crate) fn slow_for(&self) -> std::time::Duration {
        self.shared.options.slow_for
    }

    /// Requests for content at a time.
    pub(crate) fn concurrency(&self) -> usize {
        self.shared.options.concurrency.max(1)
    }

    /// Whether a registry is there that speaks version 2 and lets us in.
    pub async fn ping(&self) -> Result<()> {
        let url = self.url("v2/")?;
        self.document(Ask::document(&url, "", Purpose::Ping), MAX_DOCUMENT)
            .await?;
        Ok(())
    }

    /// All tags of a repository, page by page.
    pub async fn tags(&self, name: &RegistryId) -> Result<Vec<TagName>> {
        #[derive(Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let mut url = self.url(&format!("v2/{name}/tags/list?n={PAGE}"))?;
        let mut seen = HashSet::new();
        let mut tags = Vec::new();
        loop {
            let protocol = |reason: String| RegistryError::Protocol {
                url: url.to_string(),
                reason,
            };
            if !seen.insert(url.clone()) {
                return Err(protocol("the pages of tags go round in a circle".to_owned()));
            }
            if seen.len() > MAX_PAGES {
                return Err(protocol(format!("more than {MAX_PAGES} pages of tags")));
            }
            let ask = Ask::document(&url, name.as_str(), Purpose::Tags);
            let document = self.document(ask, MAX_DOCUMENT).await?;
            let next = next_page(&document.headers);
            let page: Page = serde_json::from_slice(&document.bytes)
                .map_err(|e| protocol(format!("no list of tags: {e}")))?;
            // What is no tag by the specification can't be asked for either, and must not hide the others.
            for text in page.tags.unwrap_or_default() {
                match text.parse() {
                    Ok(tag) => tags.push(tag),
                    Err(e) => tracing::warn!(repository = %name, "passed over: {e}"),
                }
            }
            if tags.len() > MAX_TAGS {
                return Err(protocol(format!(
                    "more than {MAX_TAGS} tags; a filter of plain names needs no list of them"
                )));
            }
            let Some(next) = next else { return Ok(tags) };
            let next = url
                .join(&next)
                .map_err(|e| protocol(format!("next page {next:?}: {e}")))?;
            if !self.is_ours(&next) {
                // Our token is for this registry only.
                return Err(protocol(format!("the next page is on another server: {next}")));
            }
            url = next;
        }
    }

    /// Whether a url is one of the registry itself, which our token is for.
    pub(crate) fn is_ours(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    /// An address below the registry's.
    pub(crate) fn url(&self, path: &str) -> Result<Url> {
        self.base.join(path).map_err(|e| RegistryError::Url {
            url: format!("{}{path}", self.base),
            reason: e.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_address_is_a_web_address_without_a_password() {
        for bad in ["", "registry.example.com", "ftp://x", "https://u:secret@x/"] {
            let error = Client::new(bad, ClientOptions::default())
                .unwrap_err()
                .to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        let client = Client::new("https://x:5000/prefix", ClientOptions::default()).unwrap();
        assert_eq!(client.url("v2/").unwrap().as_str(), "https://x:5000/prefix/v2/");
    }

    #[test]
    fn docker_hub_keeps_short_names_under_library_and_others_do_not() {
        let full = |base: &str, name: &str| {
            let client = Client::new(base, ClientOptions::default()).unwrap();
            (
                client.full_name(&name.parse().unwrap()).to_string(),
                client.base_url().to_owned(),
            )
        };
        let hub = "https://registry-1.docker.io/".to_owned();
        assert_eq!(
            full("https://registry-1.docker.io", "busybox"),
            ("library/busybox".into(), hub.clone())
        );
        assert_eq!(
            full("https://docker.io", "busybox"),
            ("library/busybox".into(), hub.clone())
        );
        assert_eq!(full("https://index.docker.io/", "a/b"), ("a/b".into(), hub));
        assert_eq!(full("https://quay.io", "busybox").0, "busybox");
        assert_eq!(
            full("https://registry.docker.io.evil.example", "busybox").0,
            "busybox"
        );
    }
}
