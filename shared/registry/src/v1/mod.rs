//! The registry API of docker before 1.6, as far as pulling needs it: an *index* says which images a repository has and
//! which *endpoints* keep them, and gives a token for these.
//!
//! Nothing in this API is a digest, so less can be checked than of version 2: that an answer is what its form promises,
//! that an image says to be the one asked for, that a layer came to its end. What a registry tells about a layer beyond
//! that ([`V1Checksums`]) is checked where it tells.
//!
//! The password goes to the index alone; endpoints that it names get the token, and the token goes to nobody else.
//!
//! Sources: Docker Registry API v1 and Docker Hub and Registry Spec (docker 1.5's documentation); pulp_docker 1.0
//! `importers/sync.py`, `plugins/registry.py`.

mod answers;
mod endpoints;
mod layer;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use pulp_model::{RegistryId, TagName, unit::ImageId};
use reqwest::{
    Response, StatusCode,
    header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap},
};
use tokio::sync::Mutex as AsyncMutex;
use url::Url;

use self::{
    answers::{MAX_ANCESTRY, MAX_JSON, MAX_LIST},
    endpoints::Index,
};
pub use self::{
    answers::{V1Checksums, V1Json},
    layer::V1Layer,
};
use crate::{
    Client, RegistryError, Result,
    answer::{Document, checked, read_document, transport},
    auth::Authorization,
    counters::Purpose,
    request::{Failures, Length},
};

/// One repository of a registry of version 1.
pub struct V1Repository {
    client: Client,
    name: RegistryId,
    images: BTreeSet<ImageId>,
    endpoints: Vec<Url>,
    /// The endpoint that answered last.
    preferred: AtomicUsize,
    token: Mutex<Option<String>>,
    /// Whoever holds it asks for another token.
    renewal: AsyncMutex<()>,
    /// Whether the index's own server has taken our password.
    basic: AtomicBool,
}

impl std::fmt::Debug for V1Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("V1Repository")
            .field("name", &self.name)
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

/// A request of this API.
#[derive(Clone, Copy)]
struct Ask<'a> {
    url: &'a Url,
    purpose: Purpose,
    length: Length,
    /// Whether a token is asked for.
    wants_token: bool,
}

/// What is wanted of an endpoint.
#[derive(Clone, Copy)]
enum Want {
    /// A document of so many bytes at most.
    Document(u64),
    Stream,
}

/// What an endpoint gives.
enum Answer {
    Document(Document),
    Stream(Response),
}

impl Client {
    /// Whether an index or registry of version 1 is there.
    pub async fn v1_ping(&self) -> Result<()> {
        let url = self.url("v1/_ping")?;
        let ask = Ask {
            url: &url,
            purpose: Purpose::Ping,
            length: Length::Document,
            wants_token: false,
        };
        let answer = self.until_done(|| async {
            let response = checked(self.send_v1(ask, None).await?, &url).await?;
            read_document(response, &url, MAX_ANCESTRY).await
        });
        match serde_json::from_slice::<serde::de::IgnoredAny>(&answer.await?) {
            Ok(_) => Ok(()),
            Err(_) => Err(protocol(&url, "no registry of version 1 answers".to_owned())),
        }
    }

    /// Asks the index for a repository: its images, where they are kept, and a token.
    pub async fn v1(&self, name: &RegistryId) -> Result<V1Repository> {
        let url = self.url(&format!("v1/repositories/{name}/images"))?;
        let basic = AtomicBool::new(false);
        let document = self.until_done(|| self.index(&url, &basic)).await?;
        let images = answers::images(&document.bytes).map_err(|e| protocol(&url, e))?;
        let index = Index::read(&document.headers, &self.base).map_err(|e| protocol(&url, e))?;
        Ok(V1Repository {
            client: self.clone(),
            name: name.clone(),
            images,
            endpoints: index.endpoints,
            preferred: AtomicUsize::new(0),
            token: Mutex::new(index.token),
            renewal: AsyncMutex::default(),
            basic,
        })
    }

    /// Asks the index once, with our login where it wants one.
    async fn index(&self, url: &Url, basic: &AtomicBool) -> Result<Document> {
        let ask = Ask {
            url,
            purpose: Purpose::Image,
            length: Length::Document,
            wants_token: true,
        };
        let response = self.send_as_user(ask, basic).await?;
        Document::read(response, url, MAX_LIST).await
    }

    /// Asks the server that our login is for; tells the login only if asked to.
    async fn send_as_user(&self, ask: Ask<'_>, basic: &AtomicBool) -> Result<Response> {
        let login = self.shared.options.credentials.as_ref();
        let login = login.map(|c| Authorization {
            header: c.basic(),
            until: None,
        });
        let known = login.as_ref().filter(|_| basic.load(Ordering::Relaxed));
        let response = self.send_v1(ask, known.map(|a| a.header.as_str())).await?;
        if response.status() != StatusCode::UNAUTHORIZED || known.is_some() {
            return checked(response, ask.url).await;
        }
        let Some(login) = login else {
            return checked(response, ask.url).await;
        };
        let response = checked(self.send_v1(ask, Some(&login.header)).await?, ask.url).await?;
        basic.store(true, Ordering::Relaxed);
        Ok(response)
    }

    async fn send_v1(&self, ask: Ask<'_>, authorization: Option<&str>) -> Result<Response> {
        self.wait_for_leave().await;
        self.shared.counters.sent(ask.purpose);
        // A layer that is labelled as packed for the way must come as it is kept.
        let mut request = self.http.get(ask.url.clone()).header(ACCEPT_ENCODING, "identity");
        if ask.wants_token {
            request = request.header("x-docker-token", "true");
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if ask.length == Length::Document {
            request = request.timeout(self.shared.options.document_timeout);
        }
        let response = request.send().await.map_err(|e| transport(ask.url, e))?;
        self.note_quota(ask.purpose, &response);
        Ok(response)
    }
}

impl V1Repository {
    /// Ids of all images that the index knows of.
    pub const fn images(&self) -> &BTreeSet<ImageId> {
        &self.images
    }

    /// Its tags and what each names: an id, or why the text is none. Registries may abbreviate ids.
    pub async fn tags(&self) -> Result<BTreeMap<TagName, Result<ImageId, String>>> {
        // Only here an official image has its full name (pulp_docker 1.0).
        let name = self.name.as_str();
        let full = if name.contains('/') { "" } else { "library/" };
        let path = format!("v1/repositories/{full}{name}/tags");
        let named = self
            .document(&path, MAX_LIST, |_, body| answers::tags(body))
            .await?;
        let resolved = named.into_iter().map(|(tag, text)| {
            let id = answers::resolve(&text, &self.images);
            (tag, id)
        });
        Ok(resolved.collect())
    }

    /// An image and its ancestors, child first.
    pub async fn ancestry(&self, id: &ImageId) -> Result<Vec<ImageId>> {
        let path = format!("v1/images/{id}/ancestry");
        self.document(&path, MAX_ANCESTRY, |_, body| answers::ancestry(body, id))
            .await
    }

    /// An image's JSON.
    pub async fn json(&self, id: &ImageId) -> Result<V1Json> {
        let path = format!("v1/images/{id}/json");
        self.document(&path, MAX_JSON, |headers, body| V1Json::read(headers, body, id))
            .await
    }

    /// Begins to fetch an image's layer.
    pub async fn layer(&self, id: &ImageId, checksums: &V1Checksums) -> Result<V1Layer> {
        let path = format!("v1/images/{id}/layer");
        let begin = |url: &Url, answer| match answer {
            Answer::Stream(response) => Ok(V1Layer::new(
                self.client.clone(),
                url.clone(),
                response,
                checksums,
            )),
            Answer::Document(_) => Err(protocol(url, "a stream was asked for".to_owned())),
        };
        self.client
            .until_done(|| self.try_endpoints(&path, Want::Stream, begin))
            .await
    }

    /// Waits as long as `failures` downloads in a row that failed ask for, the last of them with `error`; gives the
    /// error back if there shall be no other try.
    pub async fn pause(&self, failures: u32, error: RegistryError) -> Result<()> {
        let mut before = Failures::after(failures.saturating_sub(1));
        self.client.pause(&mut before, error).await
    }

    /// A small document, from the first endpoint that has it in a form that can be read.
    async fn document<T>(
        &self,
        path: &str,
        limit: u64,
        parse: impl Fn(&HeaderMap, &bytes::Bytes) -> Result<T, String>,
    ) -> Result<T> {
        let read = |url: &Url, answer| match answer {
            Answer::Document(it) => parse(&it.headers, &it.bytes).map_err(|e| protocol(url, e)),
            Answer::Stream(_) => Err(protocol(url, "a document was asked for".to_owned())),
        };
        self.client
            .until_done(|| self.try_endpoints(path, Want::Document(limit), read))
            .await
    }

    /// Asks each endpoint once, the one that answered last before the others. If none gives what is wanted: the first
    /// fault that another try may help against, else the first.
    async fn try_endpoints<T>(
        &self,
        path: &str,
        want: Want,
        read: impl Fn(&Url, Answer) -> Result<T>,
    ) -> Result<T> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut fault: Option<RegistryError> = None;
        for turn in 0..self.endpoints.len() {
            let at = (first + turn) % self.endpoints.len();
            let Some(endpoint) = self.endpoints.get(at) else {
                break;
            };
            let url = endpoint
                .join(path)
                .map_err(|e| protocol(endpoint, e.to_string()))?;
            let answer = self.answer(&url, want).await;
            match answer.and_then(|answer| read(&url, answer)) {
                Ok(found) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return Ok(found);
                }
                Err(error) => {
                    tracing::debug!(%error, endpoint = %endpoint, "the next endpoint is asked, if there is one");
                    let told = fault
                        .as_ref()
                        .is_some_and(|f| f.is_retryable() || !error.is_retryable());
                    if !told {
                        fault = Some(error);
                    }
                }
            }
        }
        Err(fault.unwrap_or_else(|| protocol(&self.client.base, "there is no endpoint".to_owned())))
    }

    async fn answer(&self, url: &Url, want: Want) -> Result<Answer> {
        let (purpose, length) = match want {
            Want::Document(_) => (Purpose::Image, Length::Document),
            Want::Stream => (Purpose::Layer, Length::Stream),
        };
        let ask = Ask {
            url,
            purpose,
            length,
            wants_token: false,
        };
        let response = self.send(ask).await?;
        let Want::Document(limit) = want else {
            return Ok(Answer::Stream(response));
        };
        let document = Document::read(response, url, limit).await?;
        self.client.received(document.bytes.len());
        Ok(Answer::Document(document))
    }

    /// Asks an endpoint: with the token, with another token if that one has ended. The index's own server may want our
    /// login in its place; no other server is told that.
    async fn send(&self, ask: Ask<'_>) -> Result<Response> {
        let is_index = self.client.is_ours(ask.url);
        let token = self.token();
        let Some(token) = token else {
            if is_index {
                return self.client.send_as_user(ask, &self.basic).await;
            }
            return checked(self.client.send_v1(ask, None).await?, ask.url).await;
        };
        let response = self.client.send_v1(ask, Some(&authorization(&token))).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return checked(response, ask.url).await;
        }
        let response = match self.renewed(&token).await? {
            Some(newer) => self.client.send_v1(ask, Some(&authorization(&newer))).await?,
            None => response,
        };
        if response.status() == StatusCode::UNAUTHORIZED && is_index {
            return self.client.send_as_user(ask, &self.basic).await;
        }
        checked(response, ask.url).await
    }

    fn token(&self) -> Option<String> {
        let token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        token.clone()
    }

    /// Another token than the one that was refused; none if the index gives the same again. The index is asked once:
    /// whoever needs the token tries again as a whole.
    async fn renewed(&self, refused: &str) -> Result<Option<String>> {
        let _alone = self.renewal.lock().await;
        let differs = |token: &String| token != refused;
        if let Some(newer) = self.token().filter(differs) {
            return Ok(Some(newer));
        }
        let url = self
            .client
            .url(&format!("v1/repositories/{}/images", self.name))?;
        let document = self.client.index(&url, &self.basic).await?;
        let index = Index::read(&document.headers, &self.client.base).map_err(|e| protocol(&url, e))?;
        let newer = index.token.filter(differs);
        if newer.is_some() {
            (*self.token.lock().unwrap_or_else(PoisonError::into_inner)).clone_from(&newer);
        }
        Ok(newer)
    }
}

fn authorization(token: &str) -> String {
    format!("Token {token}")
}

fn protocol(url: &Url, reason: String) -> RegistryError {
    RegistryError::Protocol {
        url: url.to_string(),
        reason,
    }
}
