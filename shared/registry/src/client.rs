//! Requests to one registry: addresses, authentication, statuses, paging.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use pulp_model::{RegistryId, TagName};
use reqwest::{
    Method, Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, HeaderMap, LINK, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use url::Url;

use crate::{
    Credentials, RegistryError, Result,
    auth::{Authorization, Challenge, TokenAnswer, token_request},
    error::chain,
};

/// Largest answer of a token server, of a tag page, or of an error, in bytes.
const MAX_DOCUMENT: u64 = 4 * 1024 * 1024;
/// Tags asked for by one request, and pages followed at most.
const PAGE: u32 = 1000;
const MAX_PAGES: usize = 10_000;

/// How a registry is talked to.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Login and password; none means anonymous.
    pub credentials: Option<Credentials>,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long nothing may come on a connection, in the midst of a blob too.
    pub idle_timeout: Duration,
    /// How long a small document (token, tags, manifest) may take as a whole.
    pub document_timeout: Duration,
    /// Requests for content at a time; 1 or more.
    pub concurrency: usize,
    /// Sent as `User-Agent`.
    pub user_agent: String,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            credentials: None,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_mins(1),
            document_timeout: Duration::from_mins(1),
            concurrency: 4,
            user_agent: concat!("pulp/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// A registry. Clones share connections and tokens.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    options: Arc<ClientOptions>,
    /// What was good for a scope (a repository's name, empty for the registry itself).
    authorizations: Arc<Mutex<HashMap<String, Authorization>>>,
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
        let http = reqwest::Client::builder()
            .user_agent(&options.user_agent)
            .connect_timeout(options.connect_timeout)
            .read_timeout(options.idle_timeout)
            .build()
            .map_err(|e| wrong(chain(&e)))?;
        let (options, authorizations) = (Arc::new(options), Arc::default());
        Ok(Self {
            http,
            base,
            options,
            authorizations,
        })
    }

    /// Requests for content at a time.
    pub(crate) fn concurrency(&self) -> usize {
        self.options.concurrency.max(1)
    }

    /// Whether a registry is there that speaks version 2 and lets us in.
    pub async fn ping(&self) -> Result<()> {
        let url = self.url("v2/")?;
        self.request(Method::GET, &url, None, "", Length::Document)
            .await?;
        Ok(())
    }

    /// All tags of a repository, page by page.
    pub async fn tags(&self, name: &RegistryId) -> Result<Vec<TagName>> {
        #[derive(Deserialize)]
        struct Page {
            tags: Option<Vec<TagName>>,
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
            let response = self
                .request(Method::GET, &url, None, name.as_str(), Length::Document)
                .await?;
            let next = next_page(response.headers());
            let body = read_document(response, &url, MAX_DOCUMENT).await?;
            let page: Page =
                serde_json::from_slice(&body).map_err(|e| protocol(format!("no list of tags: {e}")))?;
            tags.extend(page.tags.unwrap_or_default());
            let Some(next) = next else { return Ok(tags) };
            let next = url
                .join(&next)
                .map_err(|e| protocol(format!("next page {next:?}: {e}")))?;
            if next.origin() != self.base.origin() {
                // Our token is for this registry only.
                return Err(protocol(format!("the next page is on another server: {next}")));
            }
            url = next;
        }
    }

    /// An address below the registry's.
    pub(crate) fn url(&self, path: &str) -> Result<Url> {
        self.base.join(path).map_err(|e| RegistryError::Url {
            url: format!("{}{path}", self.base),
            reason: e.to_string(),
        })
    }

    /// Sends a request; authenticates if asked to; any status but success is an error.
    pub(crate) async fn request(
        &self,
        method: Method,
        url: &Url,
        accept: Option<&str>,
        name: &str,
        length: Length,
    ) -> Result<Response> {
        let known = self.known_authorization(name);
        let response = self
            .send(method.clone(), url, accept, known.as_ref(), length)
            .await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return checked(response, url).await;
        }
        let challenges = challenges(response.headers());
        let fresh = self.authorize(&challenges, url, name, known.is_some()).await?;
        let response = self.send(method, url, accept, Some(&fresh), length).await?;
        if response.status().is_success() {
            let mut known = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
            known.insert(name.to_owned(), fresh);
        }
        checked(response, url).await
    }

    fn known_authorization(&self, name: &str) -> Option<Authorization> {
        let known = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(name).filter(|a| a.is_good(Instant::now())).cloned()
    }

    async fn send(
        &self,
        method: Method,
        url: &Url,
        accept: Option<&str>,
        authorization: Option<&Authorization>,
        length: Length,
    ) -> Result<Response> {
        let mut request = self.http.request(method, url.clone());
        if let Some(accept) = accept {
            request = request.header(ACCEPT, accept);
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, &authorization.header);
        }
        if length == Length::Document {
            request = request.timeout(self.options.document_timeout);
        }
        request.send().await.map_err(|e| transport(url, e))
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
            let credentials = self.options.credentials.as_ref();
            if credentials.is_some() && !wanted.trusted {
                return Err(denied(format!(
                    "the password is not sent to {} over an open line",
                    wanted.url
                )));
            }
            return self.fetch_token(&wanted.url, credentials).await;
        }
        if find("basic").is_some() {
            return match &self.options.credentials {
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
        let response = self
            .send(Method::GET, url, None, basic.as_ref(), Length::Document)
            .await?;
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
fn next_page(headers: &HeaderMap) -> Option<String> {
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
    fn the_registrys_own_words_are_told_in_one_line() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no\nsuch"},{"code":"X"}]}"#;
        assert_eq!(reason_of(body), "MANIFEST_UNKNOWN: no such; X:");
        assert_eq!(reason_of(b"<html>"), "<html>");
    }
}
