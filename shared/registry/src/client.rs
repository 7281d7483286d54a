//! Requests to one registry: addresses, authentication, statuses, paging.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Instant, SystemTime},
};

use bytes::{Bytes, BytesMut};
use pulp_model::{RegistryId, TagName, budget::Quota};
use reqwest::{
    Method, Response, StatusCode,
    header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, LINK, RANGE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use url::Url;

use crate::{
    ClientOptions, Credentials, RegistryError, Requests, Result,
    auth::{Authorization, Challenge, TokenAnswer, token_request},
    counters::{Counters, Purpose},
    error::chain,
    options,
    quota::{asked_pause, quota},
    scope::{Known, Scopes},
};

/// Largest answer of a token server, of a tag page, or of an error, in bytes.
const MAX_DOCUMENT: u64 = 4 * 1024 * 1024;
/// Tags asked for by one request, and pages followed at most.
const PAGE: u32 = 1000;
const MAX_PAGES: usize = 10_000;
/// Where Docker Hub's registry is.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// A registry. Clones share connections and tokens.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    shared: Arc<Shared>,
}

/// What all clones of a client have in common.
struct Shared {
    options: ClientOptions,
    scopes: Scopes,
    counters: Counters,
    /// Nobody asks before this instant: the registry said so to one of us.
    not_before: Mutex<Option<Instant>>,
    /// What was told about the limit and nobody has taken note of.
    told: Mutex<Option<Quota>>,
}

/// A request, as often as it is sent.
#[derive(Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) method: &'a Method,
    pub(crate) url: &'a Url,
    pub(crate) accept: Option<&'a str>,
    /// The scope of its token.
    pub(crate) name: &'a str,
    pub(crate) length: Length,
    pub(crate) purpose: Purpose,
    /// First byte wanted.
    pub(crate) from: u64,
}

impl<'a> Ask<'a> {
    /// A small document.
    pub(crate) const fn document(url: &'a Url, name: &'a str, purpose: Purpose) -> Self {
        Self {
            method: &Method::GET,
            url,
            accept: None,
            name,
            length: Length::Document,
            purpose,
            from: 0,
        }
    }
}

/// A small document with what was said of it.
pub(crate) struct Document {
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Bytes,
}

/// Failures of a request in a row.
pub(crate) struct Failures(u32);

impl Failures {
    pub(crate) const fn none() -> Self {
        Self(0)
    }

    pub(crate) const fn forget(&mut self) {
        self.0 = 0;
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("base", &self.base.as_str())
            .finish_non_exhaustive()
    }
}

/// Whether a request is for a document that comes at once or for a stream that takes its time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Length {
    Document,
    Stream,
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
        let http = options::build(&options).map_err(wrong)?;
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
    fn note_quota(&self, purpose: Purpose, response: &Response) {
        let told = quota(response.headers(), SystemTime::now());
        let refused = response.status() == StatusCode::TOO_MANY_REQUESTS;
        let is_limited = matches!(purpose, Purpose::Manifest | Purpose::ManifestHead);
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

    /// Requests for content at a time.
    pub(crate) fn slow_for(&self) -> std::time::Duration {
        self.shared.options.slow_for
    }

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

    /// Sends a request until it succeeds or trying again is of no use; gives its headers, with the body to come.
    pub(crate) async fn request(&self, ask: Ask<'_>) -> Result<Response> {
        let mut failures = Failures::none();
        loop {
            match self.attempt(ask).await {
                Ok(response) => return Ok(response),
                Err(error) => self.pause(&mut failures, error).await?,
            }
        }
    }

    /// The same for a document that is read whole; more than `limit` bytes are an error.
    pub(crate) async fn document(&self, ask: Ask<'_>, limit: u64) -> Result<Document> {
        let mut failures = Failures::none();
        loop {
            let read = async {
                let response = self.attempt(ask).await?;
                let headers = response.headers().clone();
                let bytes = read_document(response, ask.url, limit).await?;
                Ok(Document { headers, bytes })
            };
            match read.await {
                Ok(document) => return Ok(document),
                Err(error) => self.pause(&mut failures, error).await?,
            }
        }
    }

    /// Waits before the next try, or hands the error back if there shall be none.
    pub(crate) async fn pause(&self, failures: &mut Failures, error: RegistryError) -> Result<()> {
        failures.0 = failures.0.saturating_add(1);
        let pause = self
            .shared
            .options
            .retries
            .pause(failures.0, &error, rand::random());
        let Some(pause) = pause else { return Err(error) };
        tracing::debug!(error = %error, pause = ?pause, "trying again");
        if matches!(error, RegistryError::RateLimited { .. }) {
            // One of us was told; all of us are meant.
            let mut not_before = self
                .shared
                .not_before
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let until = Instant::now() + pause;
            *not_before = Some(not_before.map_or(until, |earlier| earlier.max(until)));
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Sends a request once; authenticates if asked to; any status but success is an error.
    ///
    /// Of many requests of a scope that begin together the first goes alone, so that one token does for all.
    async fn attempt(&self, ask: Ask<'_>) -> Result<Response> {
        let scope = self.shared.scopes.of(ask.name);
        let mut known = scope.lock().await;
        if known.has_ended() {
            let challenges = std::mem::take(&mut known.challenges);
            let fresh = self.authorize(&challenges, ask.url, ask.name, false).await;
            known.challenges = challenges;
            known.authorization = Some(fresh?);
        }
        let used = known.good();
        if !known.asked {
            let response = self.send(ask, used.as_ref()).await?;
            known.asked = true;
            if response.status() != StatusCode::UNAUTHORIZED {
                drop(known);
                return checked(response, ask.url).await;
            }
            return self.answer_challenge(ask, response, known, used).await;
        }
        drop(known);
        let response = self.send(ask, used.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return checked(response, ask.url).await;
        }
        let known = scope.lock().await;
        self.answer_challenge(ask, response, known, used).await
    }

    /// After a 401: with what another request got meanwhile, or with a new authorization. A second 401 is final.
    async fn answer_challenge(
        &self,
        ask: Ask<'_>,
        refused: Response,
        mut known: tokio::sync::MutexGuard<'_, Known>,
        used: Option<Authorization>,
    ) -> Result<Response> {
        let newer = known
            .good()
            .filter(|now| used.as_ref().is_none_or(|used| used.header != now.header));
        let authorization = if let Some(newer) = newer {
            newer
        } else {
            let challenges = challenges(refused.headers());
            // Basic stays the same: refused once, it is wrong.
            let fresh = self
                .authorize(&challenges, ask.url, ask.name, used.is_some())
                .await?;
            known.authorization = Some(fresh.clone());
            known.challenges = challenges;
            fresh
        };
        drop(known);
        let response = self.send(ask, Some(&authorization)).await?;
        checked(response, ask.url).await
    }

    async fn send(&self, ask: Ask<'_>, authorization: Option<&Authorization>) -> Result<Response> {
        self.wait_for_leave().await;
        self.shared.counters.sent(ask.purpose);
        // What comes is hashed as it comes: nobody may pack or unpack it on the way.
        let mut request = self
            .http
            .request(ask.method.clone(), ask.url.clone())
            .header(ACCEPT_ENCODING, "identity");
        if let Some(accept) = ask.accept {
            request = request.header(ACCEPT, accept);
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, &authorization.header);
        }
        if ask.from > 0 {
            request = request.header(RANGE, format!("bytes={}-", ask.from));
        }
        if ask.length == Length::Document {
            request = request.timeout(self.shared.options.document_timeout);
        }
        let response = request.send().await.map_err(|e| transport(ask.url, e))?;
        self.note_quota(ask.purpose, &response);
        Ok(response)
    }

    /// Keeps quiet while the registry wants it.
    async fn wait_for_leave(&self) {
        let not_before = *self
            .shared
            .not_before
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = not_before.filter(|at| *at > Instant::now()) {
            tokio::time::sleep_until(at.into()).await;
        }
    }

    /// Answers the challenge that we can answer best.
    async fn authorize(
        &self,
        challenges: &[Challenge],
        url: &Url,
        name: &str,
        had_one: bool,
    ) -> Result<Authorization> {
        let denied = |reason: String| RegistryError::Unauthorized {
            url: url.to_string(),
            reason,
        };
        let find = |scheme: &str| challenges.iter().find(|c| c.scheme == scheme);
        if let Some(bearer) = find("bearer") {
            let scope = (!name.is_empty()).then(|| format!("repository:{name}:pull"));
            let wanted = token_request(bearer, &self.base, scope.as_deref()).map_err(denied)?;
            let credentials = self.shared.options.credentials.as_ref();
            if credentials.is_some() && !wanted.trusted {
                return Err(denied(format!(
                    "the password is not sent to {} over an open line",
                    wanted.url
                )));
            }
            return self.fetch_token(&wanted.url, credentials).await;
        }
        if find("basic").is_some() {
            return match &self.shared.options.credentials {
                Some(_) if had_one => Err(denied("the login or password is wrong".to_owned())),
                Some(credentials) => Ok(Authorization {
                    header: credentials.basic(),
                    until: None,
                }),
                None => Err(denied("a login and password are needed".to_owned())),
            };
        }
        let schemes: Vec<_> = challenges.iter().map(|c| c.scheme.as_str()).collect();
        Err(denied(format!(
            "the registry offers none of Basic and Bearer, but {schemes:?}"
        )))
    }

    async fn fetch_token(&self, url: &Url, credentials: Option<&Credentials>) -> Result<Authorization> {
        let basic = credentials.map(|c| Authorization {
            header: c.basic(),
            until: None,
        });
        let ask = Ask::document(url, "", Purpose::Token);
        let response = self.send(ask, basic.as_ref()).await?;
        let body = read_document(checked(response, url).await?, url, MAX_DOCUMENT).await?;
        // The body may hold the token: say nothing of it.
        let answer: Option<TokenAnswer> = serde_json::from_slice(&body).ok();
        answer
            .and_then(|a| Authorization::bearer(a, Instant::now()))
            .ok_or_else(|| RegistryError::Protocol {
                url: url.to_string(),
                reason: "the token server's answer holds no token".to_owned(),
            })
    }
}

pub(crate) fn transport(url: &Url, error: reqwest::Error) -> RegistryError {
    // The url within may be that of a redirect, with a signature in it.
    RegistryError::Transport {
        url: url.to_string(),
        source: error.without_url(),
    }
}

fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).into_iter();
    values
        .filter_map(|v| v.to_str().ok())
        .flat_map(Challenge::parse)
        .collect()
}

/// Turns a status that is no success into an error with the registry's own words.
async fn checked(response: Response, url: &Url) -> Result<Response> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    // The words are a courtesy: whatever happens to them, the status is told.
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok());
    let retry_after = retry_after.and_then(|text| asked_pause(text, SystemTime::now()));
    let body = read_document(response, url, 64 * 1024).await.unwrap_or_default();
    let (url, reason) = (url.to_string(), reason_of(&body));
    Err(match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Unauthorized {
            url,
            reason: if reason.is_empty() {
                status.to_string()
            } else {
                reason
            },
        },
        StatusCode::NOT_FOUND => RegistryError::NotFound { url, reason },
        StatusCode::TOO_MANY_REQUESTS => RegistryError::RateLimited {
            url,
            retry_after,
            reason,
        },
        StatusCode::SERVICE_UNAVAILABLE if retry_after.is_some() => RegistryError::RateLimited {
            url,
            retry_after,
            reason,
        },
        _ => RegistryError::Status {
            url,
            status: status.as_u16(),
            reason,
        },
    })
}

/// `CODE: message` of an error body as the distribution specification has it; of others the beginning.
fn reason_of(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Errors>(body) {
        Ok(it) => it
            .errors
            .iter()
            .map(|e| format!("{}: {}", e.code, e.message))
            .collect::<Vec<_>>()
            .join("; "),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(200)
        .collect::<String>()
        .trim()
        .to_owned()
}

/// Reads a body that is small; more than `limit` bytes are an error.
pub(crate) async fn read_document(mut response: Response, url: &Url, limit: u64) -> Result<Bytes> {
    let expected = response.content_length();
    let too_large = || RegistryError::Protocol {
        url: url.to_string(),
        reason: format!("the answer has more than the {limit} bytes allowed"),
    };
    if expected.is_some_and(|n| n > limit) {
        return Err(too_large());
    }
    let mut body = BytesMut::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if (body.len() + chunk.len()) as u64 > limit => return Err(too_large()),
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body.freeze()),
            Err(e) => {
                let (received, reason) = (body.len() as u64, chain(&e.without_url()));
                return Err(RegistryError::Interrupted {
                    url: url.to_string(),
                    received,
                    expected,
                    reason,
                });
            }
        }
    }
}

/// The target of `Link: <…>; rel="next"` (RFC 8288).
pub(crate) fn next_page(headers: &HeaderMap) -> Option<String> {
    headers
        .get_all(LINK)
        .into_iter()
        .filter_map(|v| v.to_str().ok())
        .find_map(next_of)
}

fn next_of(header: &str) -> Option<String> {
    let mut rest = header;
    while let Some((_, after)) = rest.split_once('<') {
        let (target, after) = after.split_once('>')?;
        let end = after.find('<').unwrap_or(after.len());
        let (parameters, next) = after.split_at(end);
        let is_next = parameters.split([';', ',']).any(|p| {
            let (name, value) = p.split_once('=').unwrap_or((p, ""));
            name.trim().eq_ignore_ascii_case("rel")
                && value.trim().trim_matches('"').eq_ignore_ascii_case("next")
        });
        if is_next {
            return Some(target.to_owned());
        }
        rest = next;
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_next_page_is_found_among_other_links() {
        assert_eq!(
            next_of(r#"</v2/a/tags/list?n=1&last=x,y>; rel="next""#).unwrap(),
            "/v2/a/tags/list?n=1&last=x,y"
        );
        assert_eq!(
            next_of(r#"<a>; rel="prev", <b>; title="t"; Rel=next"#).unwrap(),
            "b"
        );
        assert_eq!(next_of(r#"<a>; rel="prev""#), None);
        assert_eq!(next_of("rel=next"), None);
    }

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

    #[test]
    fn the_registrys_own_words_are_told_in_one_line() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no\nsuch"},{"code":"X"}]}"#;
        assert_eq!(reason_of(body), "MANIFEST_UNKNOWN: no such; X:");
        assert_eq!(reason_of(b"<html>"), "<html>");
    }
}
