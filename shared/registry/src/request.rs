//! A request and what it takes to get it answered: authentication, pauses, trying again.

use std::{future::Future, sync::PoisonError, time::Instant};

use pulp_model::Digest;
use reqwest::{
    Method, Response, StatusCode,
    header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, IF_NONE_MATCH, RANGE},
};
use url::Url;

use crate::{
    Client, Credentials, RegistryError, Result,
    answer::{Document, MAX_DOCUMENT, challenges, checked, read_document, transport},
    auth::{Authorization, Challenge, TokenAnswer, token_request},
    counters::Purpose,
    scope::Known,
};

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
    /// What need not be told again: if it is still so, the answer is 304 and has nothing else.
    pub(crate) known: Option<&'a Digest>,
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
            known: None,
        }
    }
}

/// Failures of a request in a row.
pub(crate) struct Failures(u32);

impl Failures {
    pub(crate) const fn none() -> Self {
        Self(0)
    }

    pub(crate) const fn after(failures: u32) -> Self {
        Self(failures)
    }

    pub(crate) const fn forget(&mut self) {
        self.0 = 0;
    }
}

/// Whether a request is for a document that comes at once or for a stream that takes its time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Length {
    Document,
    Stream,
}

/// What was asked for, or that it is as it was known; any other answer is an error.
async fn answered(response: Response, ask: Ask<'_>) -> Result<Response> {
    if ask.known.is_some() && response.status() == StatusCode::NOT_MODIFIED {
        return Ok(response);
    }
    checked(response, ask.url).await
}

impl Client {
    /// Sends a request until it succeeds or trying again is of no use; gives its headers, with the body to come.
    pub(crate) async fn request(&self, ask: Ask<'_>) -> Result<Response> {
        self.until_done(|| self.attempt(ask)).await
    }

    /// The same for a document that is read whole; more than `limit` bytes are an error.
    pub(crate) async fn document(&self, ask: Ask<'_>, limit: u64) -> Result<Document> {
        self.until_done(|| async {
            let response = self.attempt(ask).await?;
            Document::read(response, ask.url, limit).await
        })
        .await
    }

    /// Does something again, after a pause, until it is done or trying again is of no use.
    pub(crate) async fn until_done<T, F: Future<Output = Result<T>>>(
        &self,
        once: impl Fn() -> F,
    ) -> Result<T> {
        let mut failures = Failures::none();
        loop {
            match once().await {
                Ok(done) => return Ok(done),
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
                return answered(response, ask).await;
            }
            return self.answer_challenge(ask, response, known, used).await;
        }
        drop(known);
        let response = self.send(ask, used.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return answered(response, ask).await;
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
        answered(response, ask).await
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
        if let Some(known) = ask.known {
            request = request.header(IF_NONE_MATCH, format!("\"{known}\""));
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
    pub(crate) async fn wait_for_leave(&self) {
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
