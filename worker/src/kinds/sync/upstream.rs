//! The upstream of a sync: its tags, manifests and blobs, fetched so that what came is kept for the next try.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use pulp_content::{ContentError, ContentStore};
use pulp_model::{
    CodedError, Digest, ErrorCode, MediaType, RegistryId, TagName,
    image::{MAX_MANIFEST_BYTES, Manifest},
    importer::ImporterSettings,
    unit::BlobUnit,
};
use pulp_registry::{
    Client, ClientOptions, Credentials, ProxyOptions, Reference, Referrer, RegistryError, Requests, Retries,
    Tls,
};
use pulp_store::upstreams::Turn;
use pulp_trace::{Span, SpanKind};
use serde_json::json;
use tokio::{sync::Semaphore, time::Instant};

use super::{
    allowance::{LONGEST_PARK, UpstreamAccount},
    downloads::{Downloads, LOOK, PATIENCE, turn_of},
    plan::{self, WantedBlob},
};
use crate::{Worker, error::TaskError, progress::StepHandle};

/// Times that content is fetched anew whose bytes were others than promised.
const TRIES: usize = 2;

/// What may be on its way to the disk beside what is on its way here. The disk takes longer than a small blob's
/// download, and many that wait for it together wait no longer than one.
const KEEPING: usize = 24;

/// A registry that wants a longer pause gets it, and the worker goes on with other work meanwhile.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A repository of another registry.
pub(super) struct UpstreamRepository {
    pub(super) client: Client,
    account: UpstreamAccount,
    pub(super) downloads: Downloads,
    /// For what is on its way here.
    places: Semaphore,
    /// For what is on its way here or to the disk.
    open: Semaphore,
    pub(super) name: RegistryId,
    pub(super) content: ContentStore,
    /// Whose temporary blobs these are.
    pub(super) owner: String,
    pub(super) at_once: usize,
    throttle: Option<Throttle>,
}

/// A manifest to fetch.
#[derive(Debug, Clone)]
pub(super) struct WantedManifest {
    pub(super) reference: Reference,
    /// The type that a list says it has.
    pub(super) media_type: Option<MediaType>,
}

/// A manifest that is here now.
pub(super) struct Came {
    /// What it was asked for by.
    pub(super) reference: Reference,
    /// The manifest; its digest is the one that it is kept under.
    pub(super) manifest: Manifest,
    /// The digest that the upstream knows it by; another one for a signed manifest of schema 1.
    pub(super) known_as: Digest,
    /// Whether it came from the upstream, and not from an earlier try.
    pub(super) fetched: bool,
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
            open: Semaphore::new(at_once + KEEPING),
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
    ) -> Result<Vec<(Digest, plan::Upstream)>, TaskError> {
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

    /// Brings manifests here, several at a time. If the upstream allows less than that, those that it allows are kept
    /// for the next try, which comes when it allows more.
    pub(super) async fn manifests(&self, wanted: Vec<WantedManifest>) -> Result<Vec<Came>, TaskError> {
        let looked: Vec<(WantedManifest, Option<Came>)> = stream::iter(wanted)
            .map(|one| async move {
                let kept = self.kept_manifest(&one).await?;
                Ok::<_, TaskError>((one, kept))
            })
            .buffer_unordered(self.at_once)
            .try_collect()
            .await?;
        let (mut came, mut missing) = (Vec::new(), Vec::new());
        for (one, kept) in looked {
            match kept {
                Some(kept) => came.push(kept),
                None => missing.push(one),
            }
        }
        if missing.is_empty() {
            return Ok(came);
        }
        let allowance = self.account.take(missing.len() as u64).await?;
        let allowed = usize::try_from(allowance.granted).unwrap_or(usize::MAX);
        let later = missing.split_off(allowed.min(missing.len()));
        let fetched: Result<Vec<Came>, TaskError> = stream::iter(missing)
            .map(|wanted| self.manifest(wanted))
            .buffer_unordered(self.at_once + KEEPING)
            .try_collect()
            .await;
        self.note_limits().await?;
        came.extend(fetched?);
        if !later.is_empty() {
            return Err(self.account.parked(allowance, later.len()));
        }
        Ok(came)
    }

    async fn manifest(&self, wanted: WantedManifest) -> Result<Came, TaskError> {
        // It is never closed.
        let place = self.places.acquire().await;
        let mut tries = 0;
        let found = loop {
            tries += 1;
            let span = self.span("download.manifest");
            span.set("oci.reference", &wanted.reference);
            let fetched = span
                .run(self.client.manifest(&self.name, &wanted.reference))
                .await;
            match &fetched {
                Ok(found) => {
                    span.set("oci.digest", &found.digest);
                    span.count("bytes", found.bytes.len() as u64);
                }
                Err(error) => span.fail(error),
            }
            match fetched {
                Ok(found) => break found,
                Err(RegistryError::Mismatch { .. }) if tries < TRIES => {}
                Err(error) => return Err(self.unreadable(&error)),
            }
        };
        drop(place);
        let declared = found.media_type.as_ref().or(wanted.media_type.as_ref());
        let mut manifest =
            Manifest::parse(&found.bytes, declared).map_err(|e| self.unfit(&found.digest, &e.to_string()))?;
        // Kept and named by what the upstream calls it, unless that is the digest of a part of its bytes.
        if found.digest.matches(&found.bytes) {
            set_digest(&mut manifest, &found.digest);
        }
        let digest = manifest.digest();
        self.content.put_bytes(&self.owner, digest, found.bytes).await?;
        Ok(Came {
            reference: wanted.reference,
            manifest,
            known_as: found.digest,
            fetched: true,
        })
    }

    /// A manifest that an earlier try, or another repository's sync, brought here.
    async fn kept_manifest(&self, wanted: &WantedManifest) -> Result<Option<Came>, TaskError> {
        let Reference::Digest(digest) = &wanted.reference else {
            return Ok(None);
        };
        if self.content.size(digest).await?.is_none() {
            return Ok(None);
        }
        let bytes = self.content.read_bytes(digest, MAX_MANIFEST_BYTES).await?;
        let Ok(mut manifest) = Manifest::parse(&bytes, wanted.media_type.as_ref()) else {
            return Ok(None);
        };
        set_digest(&mut manifest, digest);
        Ok(Some(Came {
            reference: wanted.reference.clone(),
            manifest,
            known_as: digest.clone(),
            fetched: false,
        }))
    }

    /// What refers to these manifests, of the types wanted; kinds that no repository here can hold are left out.
    pub(super) async fn referrers(
        &self,
        subjects: Vec<Digest>,
        types: &[String],
    ) -> Result<Vec<WantedManifest>, TaskError> {
        let lists: Vec<_> = stream::iter(subjects)
            .map(|subject| async move {
                let found = self.client.referrers(&self.name, &subject).await;
                found.map_err(|e| self.unreadable(&e))
            })
            .buffer_unordered(self.at_once)
            .try_collect()
            .await?;
        let wanted = |r: &Referrer| {
            let fits = r.media_type.is_image_manifest() || r.media_type.is_index();
            fits && (types.is_empty() || r.artifact_type.as_ref().is_some_and(|t| types.contains(t)))
        };
        let found = lists.into_iter().flatten().filter(wanted);
        Ok(found
            .map(|r| WantedManifest {
                reference: Reference::Digest(r.digest),
                media_type: Some(r.media_type),
            })
            .collect())
    }

    /// Brings blobs here, several at a time, in their order; each is kept as soon as it is whole and verified.
    pub(super) async fn blobs(
        &self,
        wanted: Vec<WantedBlob>,
        advance: &BlobAdvance,
    ) -> Result<Vec<BlobUnit>, TaskError> {
        let came: Vec<Vec<BlobUnit>> = stream::iter(self.downloads.groups(wanted))
            .map(|group| self.group(group, advance))
            .buffer_unordered(self.at_once)
            .try_collect()
            .await?;
        Ok(came.into_iter().flatten().collect())
    }

    /// Brings blobs here that are asked for together, then those that others are at.
    async fn group(&self, group: Vec<WantedBlob>, advance: &BlobAdvance) -> Result<Vec<BlobUnit>, TaskError> {
        let digests: Vec<Digest> = group.iter().map(|b| b.digest.clone()).collect();
        let turns = self.downloads.begin(&digests).await?;
        let (ours, others): (Vec<_>, Vec<_>) = group
            .into_iter()
            .zip(turns)
            .partition(|(_, turn)| *turn == Turn::Ours);
        let mut came: Vec<BlobUnit> = stream::iter(ours)
            .map(|(blob, _)| self.blob(blob, advance))
            .buffer_unordered(self.at_once + KEEPING)
            .try_collect()
            .await?;
        self.downloads.end(&digests).await?;
        for (blob, _) in others {
            came.push(self.in_turn(blob, advance).await?);
        }
        Ok(came)
    }

    /// Waits until somebody else has brought a blob here, or lets us do it.
    async fn in_turn(&self, blob: WantedBlob, advance: &BlobAdvance) -> Result<BlobUnit, TaskError> {
        let begun = Instant::now();
        loop {
            if let Some(here) = self.here(&blob).await? {
                advance.whole();
                return Ok(here);
            }
            let turns = self.downloads.begin(std::slice::from_ref(&blob.digest)).await?;
            let is_late = begun.elapsed() > PATIENCE;
            if turns
                .iter()
                .any(|t| *t == Turn::Ours || (*t == Turn::Taken && is_late))
            {
                let digest = blob.digest.clone();
                let came = self.blob(blob, advance).await;
                self.downloads.end(std::slice::from_ref(&digest)).await?;
                return came;
            }
            // Whoever is at it is watched; to wait for that is no standstill of ours.
            advance.step.beat();
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn here(&self, wanted: &WantedBlob) -> Result<Option<BlobUnit>, ContentError> {
        let size = self.content.size(&wanted.digest).await?;
        let size = size.filter(|size| wanted.size.is_none_or(|s| s == *size));
        Ok(size.map(|size| BlobUnit {
            digest: wanted.digest.clone(),
            size,
        }))
    }

    async fn blob(&self, wanted: WantedBlob, advance: &BlobAdvance) -> Result<BlobUnit, TaskError> {
        let digest = wanted.digest.clone();
        // Another sync of this process may be fetching it; then it is here once that is done.
        let turn = turn_of(&digest);
        let _turn = turn.lock().await;
        if let Some(here) = self.here(&wanted).await? {
            advance.whole();
            return Ok(here);
        }
        let mut tries = 0;
        let size = loop {
            tries += 1;
            match self.download(&wanted, advance).await {
                Ok(size) => break size,
                Err(Download::Registry(RegistryError::Mismatch { .. } | RegistryError::Size { .. }))
                    if tries < TRIES => {}
                Err(Download::Registry(error)) => return Err(self.not_downloaded(&error)),
                Err(Download::Content(error)) => return Err(error.into()),
            }
        };
        advance.whole();
        Ok(BlobUnit { digest, size })
    }

    async fn download(&self, wanted: &WantedBlob, advance: &BlobAdvance) -> Result<u64, Download> {
        let span = self.span("download.blob");
        span.set("oci.digest", &wanted.digest);
        let came = span.run(self.download_bytes(wanted, advance)).await;
        match &came {
            Ok(bytes) => span.count("bytes", *bytes),
            Err(Download::Registry(error)) => span.fail(error),
            Err(Download::Content(error)) => span.fail(error),
        }
        came
    }

    async fn download_bytes(&self, wanted: &WantedBlob, advance: &BlobAdvance) -> Result<u64, Download> {
        // They are never closed.
        let _open = self.open.acquire().await;
        let place = self.places.acquire().await;
        let mut reader = self.client.blob(&self.name, &wanted.digest).await?;
        if let Some(size) = wanted.size {
            reader.expect_size(size)?;
        }
        let mut writer = self
            .content
            .writer_with(&self.owner, wanted.digest.algorithm())
            .await?;
        while let Some(bytes) = reader.next().await? {
            self.pass(bytes.len()).await;
            advance.came(bytes.len() as u64);
            writer.write(bytes).await?;
        }
        // What is whole waits for the disk in nobody's way.
        drop((reader, place));
        Ok(writer.commit(&wanted.digest).await?)
    }

    /// Waits until so many bytes more may have come.
    pub(super) async fn pass(&self, bytes: usize) {
        if let Some(throttle) = &self.throttle {
            throttle.pass(bytes).await;
        }
    }

    fn unfit(&self, digest: &Digest, reason: &str) -> TaskError {
        let text = format!(
            "manifest {digest} of {} at {} can't be taken in: {reason}",
            self.name,
            self.client.base_url()
        );
        CodedError::new(ErrorCode::UPSTREAM_MANIFEST, text)
            .with("digest", digest)
            .with("reason", reason)
            .into()
    }

    /// A fault on the way to tags and manifests.
    pub(super) fn unreadable(&self, error: &RegistryError) -> TaskError {
        let registry = self.client.base_url();
        self.common(error).unwrap_or_else(|| {
            let text = format!("{} can't be read from {registry}: {error}", self.name);
            CodedError::new(ErrorCode::UPSTREAM_UNREADABLE, text)
                .with("repo", &self.name)
                .with("registry", registry)
                .with("reason", error.to_string())
                .into()
        })
    }

    /// A fault on the way to a blob.
    pub(super) fn not_downloaded(&self, error: &RegistryError) -> TaskError {
        self.common(error).unwrap_or_else(|| {
            let text = format!("{error}; nothing was changed, and what came whole is kept for the next sync");
            let coded = CodedError::new(ErrorCode::DOWNLOAD_FAILED, text);
            coded.with("failed_urls", error.url()).into()
        })
    }

    fn common(&self, error: &RegistryError) -> Option<TaskError> {
        let registry = self.client.base_url();
        let coded = match error {
            RegistryError::Mismatch { .. } => error.coded(),
            RegistryError::Unauthorized { reason, .. } => {
                let text = format!(
                    "{error}; the repository may not exist there, or basic_auth_username and basic_auth_password are wrong"
                );
                CodedError::new(ErrorCode::UPSTREAM_DENIED, text)
                    .with("registry", registry)
                    .with("reason", reason)
            }
            RegistryError::RateLimited {
                retry_after: Some(pause),
                ..
            } if *pause > LONGEST_PAUSE && *pause <= LONGEST_PARK => {
                return Some(TaskError::NotYet {
                    pause: *pause,
                    why: error.to_string(),
                });
            }
            RegistryError::RateLimited { retry_after, .. } => {
                let text = format!("{error}; sync again later, or with credentials that have a higher limit");
                CodedError::new(ErrorCode::UPSTREAM_RATE_LIMITED, text)
                    .with("registry", registry)
                    .with("retry_after", json!(retry_after.map(|d| d.as_secs())))
            }
            _ => return None,
        };
        Some(coded.into())
    }
}

fn set_digest(manifest: &mut Manifest, digest: &Digest) {
    match manifest {
        Manifest::Image(m) => m.digest = digest.clone(),
        Manifest::List(l) => l.digest = digest.clone(),
    }
}

/// Why a download failed, by whose fault.
enum Download {
    Registry(RegistryError),
    Content(ContentError),
}

impl From<RegistryError> for Download {
    fn from(error: RegistryError) -> Self {
        Self::Registry(error)
    }
}

impl From<ContentError> for Download {
    fn from(error: ContentError) -> Self {
        Self::Content(error)
    }
}

/// Shows blobs as they come.
pub(super) struct BlobAdvance {
    pub(super) step: StepHandle,
    pub(super) expected: u64,
    pub(super) came: Mutex<u64>,
}

impl BlobAdvance {
    pub(super) fn came(&self, bytes: u64) {
        let mut came = self.came.lock().unwrap_or_else(PoisonError::into_inner);
        *came += bytes;
        self.step
            .details(format!("{} of {} bytes", *came, self.expected.max(*came)));
    }

    pub(super) fn whole(&self) {
        self.step.advance(1);
    }
}

/// Lets so many bytes a second pass, of all downloads of a sync together.
struct Throttle {
    bytes_a_second: f64,
    free_at: Mutex<Instant>,
}

impl Throttle {
    fn new(bytes_a_second: f64) -> Self {
        Self {
            bytes_a_second,
            free_at: Mutex::new(Instant::now()),
        }
    }

    async fn pass(&self, bytes: usize) {
        let at = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let at = (*free_at).max(Instant::now());
            *free_at = at + Duration::from_secs_f64((bytes as f64 / self.bytes_a_second).min(86_400.0));
            at
        };
        tokio::time::sleep_until(at).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_limit_holds_for_all_downloads_together() {
        let throttle = Throttle::new(10_000.0);
        let begun = Instant::now();
        futures::future::join_all((0..5).map(|_| throttle.pass(500))).await;
        // The first begins at once, the last when the four before it have had their time.
        assert!(begun.elapsed() >= Duration::from_millis(200));
    }
}
