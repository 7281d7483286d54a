//! The upstream of a sync: its tags, manifests and blobs, fetched so that what came is kept for the next try.

mod blobs;
mod faults;
mod manifests;
mod throttle;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use pulp_content::ContentStore;
use pulp_model::{CodedError, Digest, ErrorCode, RegistryId, TagName, importer::ImporterSettings};
use pulp_registry::{
    Client, ClientOptions, Credentials, ProxyOptions, Reference, RegistryError, Requests, Retries, Tls,
};
use pulp_trace::{Span, SpanKind};
use tokio::sync::Semaphore;

use self::throttle::Throttle;
pub(super) use self::{
    blobs::BlobAdvance,
    manifests::{Arrivals, Came, WantedManifest},
};
use super::{allowance::UpstreamAccount, downloads::Downloads, plan};
use crate::{Worker, error::TaskError, progress::StepHandle};

/// Times that content is fetched anew whose bytes were others than promised.
const TRIES: usize = 2;

/// What may be on its way to the disk, of all syncs of this process, beside what is on its way here. The disk takes longer
/// than a small blob's download, and many that wait for it together wait no longer than one. But each takes one of the
/// runtime's threads for what blocks, of which others need some as well.
const KEEPING: usize = 88;
static TO_DISK: Semaphore = Semaphore::const_new(KEEPING);

/// A registry that wants a longer pause gets it, and the worker goes on with other work meanwhile.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A repository of another registry.
pub(super) struct UpstreamRepository {
    pub(super) client: Client,
    account: UpstreamAccount,
    pub(super) downloads: Downloads,
    /// For what is on its way here.
    places: Semaphore,
    pub(super) name: RegistryId,
    pub(super) content: ContentStore,
    /// Whose temporary blobs these are.
    pub(super) owner: String,
    pub(super) at_once: usize,
    throttle: Option<Throttle>,
}

impl UpstreamRepository {
    pub(super) fn new(
        settings: &ImporterSettings,
        worker: &Worker,
        owner: String,
    ) -> Result<Self, CodedError> {
        let (feed, name) = settings.upstream()?;
        let defaults = ClientOptions::default();
        let certificates = &settings.certificates;
        let account = |a: &pulp_model::importer::Account| Credentials {
            login: a.login.clone(),
            password: a.password.clone(),
        };
        let options = ClientOptions {
            credentials: settings.account.as_ref().map(account),
            connect_timeout: settings.connect_timeout.unwrap_or(defaults.connect_timeout),
            idle_timeout: settings.read_timeout.unwrap_or(defaults.idle_timeout),
            concurrency: settings.max_downloads,
            tls: Tls {
                ca: certificates.ca.clone(),
                client: certificates
                    .client
                    .clone()
                    .map(|c| (c, certificates.key.clone().unwrap_or_default())),
                verify: settings.ssl_validation,
            },
            proxy: settings.proxy.as_ref().map(|(url, login)| ProxyOptions {
                url: url.clone(),
                credentials: login.as_ref().map(account),
            }),
            retries: Retries {
                longest_asked: LONGEST_PAUSE,
                ..Retries::default()
            },
            ..defaults
        };
        let client = Client::new(feed.as_str(), options).map_err(|e| {
            CodedError::new(ErrorCode::INVALID_VALUE, e.to_string()).with("property_names", ["feed"])
        })?;
        let host = client.host();
        let login = settings.account.as_ref().map(|a| a.login.clone());
        let at_once = settings.max_downloads.max(1);
        Ok(Self {
            name: client.full_name(name),
            client,
            account: UpstreamAccount::new(worker.store.clone(), host.clone(), login),
            downloads: Downloads::new(
                worker.store.clone(),
                worker.incarnation.clone(),
                host,
                worker.settings.downloads_per_host,
            ),
            places: Semaphore::new(at_once),
            content: worker.content.clone(),
            owner,
            at_once,
            throttle: settings.max_speed.map(Throttle::new),
        })
    }

    /// What was asked of the registry so far.
    pub(super) fn requests(&self) -> Requests {
        self.client.requests()
    }

    /// Tells all workers what the registry has said about its limits since this was last done.
    pub(super) async fn note_limits(&self) -> Result<(), TaskError> {
        Ok(self.account.note(&self.client).await?)
    }

    /// A span for what is asked of the upstream.
    pub(super) fn span(&self, name: &'static str) -> Span {
        let span = Span::begin(name, SpanKind::Client);
        if span.is_recording() {
            // The host alone: a url may hold more than is everybody's business.
            let url = url::Url::parse(self.client.base_url()).ok();
            let host = url.as_ref().and_then(url::Url::host_str).unwrap_or_default();
            span.set("server.address", host);
            span.set("oci.repository", &self.name);
        }
        span
    }

    /// All tags that there are.
    pub(super) async fn list_tags(&self) -> Result<Vec<TagName>, TaskError> {
        let span = self.span("upstream.tags");
        match span.of(self.client.tags(&self.name)).await {
            Ok(tags) => Ok(tags),
            Err(error @ RegistryError::NotFound { .. }) => Err(self.not_found(&error).await),
            Err(error) => Err(self.unreadable(&error)),
        }
    }

    /// Is it the repository that is not there, or is there no registry at all?
    async fn not_found(&self, error: &RegistryError) -> TaskError {
        let no_api = matches!(
            self.client.ping().await,
            Err(RegistryError::NotFound { .. } | RegistryError::Protocol { .. })
        );
        if !no_api {
            return self.unreadable(error);
        }
        let registry = self.client.base_url();
        let text = format!("there is no registry of the API v2 at {registry}; check the importer's feed");
        let error = CodedError::new(ErrorCode::UPSTREAM_NO_API, text);
        error.with("registry", registry).into()
    }

    /// What each tag names, without fetching it: nobody counts these requests as pulls. Of a tag with what it named
    /// before the upstream only has to say that it is so still.
    pub(super) async fn look(
        &self,
        tags: BTreeMap<TagName, Option<Digest>>,
        step: &StepHandle,
    ) -> Result<BTreeMap<TagName, plan::Upstream>, TaskError> {
        let span = self.span("upstream.look");
        span.count("oci.tags", tags.len() as u64);
        let found = stream::iter(tags)
            .map(|(tag, before)| async move {
                let found = self
                    .look_at(&Reference::Tag(tag.clone()), before.as_ref())
                    .await?;
                step.advance(1);
                Ok((tag, found))
            })
            .buffer_unordered(self.at_once)
            .try_collect();
        let found = span.run(found).await;
        self.note_limits().await?;
        found
    }

    /// Which of these manifests are there.
    pub(super) async fn look_for(
        &self,
        digests: BTreeSet<Digest>,
        step: &StepHandle,
    ) -> Result<BTreeMap<Digest, plan::Upstream>, TaskError> {
        let found = stream::iter(digests)
            .map(|digest| async move {
                let found = self.look_at(&Reference::Digest(digest.clone()), None).await?;
                step.advance(1);
                Ok((digest, found))
            })
            .buffer_unordered(self.at_once)
            .try_collect()
            .await;
        self.note_limits().await?;
        found
    }

    async fn look_at(
        &self,
        reference: &Reference,
        before: Option<&Digest>,
    ) -> Result<plan::Upstream, TaskError> {
        match self.client.head_manifest(&self.name, reference, before).await {
            Ok(None) => Ok(plan::Upstream::Absent),
            Ok(Some(head)) => Ok(head
                .digest
                .map_or(plan::Upstream::Unknown, plan::Upstream::Digest)),
            // Some registries know no HEAD.
            Err(RegistryError::Status {
                status: 400 | 405 | 501,
                ..
            }) => Ok(plan::Upstream::Unknown),
            Err(error) => Err(self.unreadable(&error)),
        }
    }

    /// Waits until so many bytes more may have come.
    pub(super) async fn pass(&self, bytes: usize) {
        if let Some(throttle) = &self.throttle {
            throttle.pass(bytes).await;
        }
    }
}
