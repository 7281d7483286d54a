//! The client against a registry within the process that can be made to misbehave.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::Response,
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use pulp_model::{Digest, ErrorCode, MediaType, RegistryId};
use pulp_registry::{
    BlobRef, BlobSink, Client, ClientOptions, Credentials, Discard, FetchedManifest, PullVisitor, Reference,
    RegistryError, Retries, VisitError,
};

/// What the registry answers to a path.
#[derive(Clone)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    /// Send only so many bytes of the body that the length promises.
    cut: Option<usize>,
    /// Promise no length.
    chunked: bool,
}

impl Answer {
    fn ok(body: impl Into<Bytes>) -> Self {
        Self {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: body.into(),
            cut: None,
            chunked: false,
        }
    }

    fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(name, value.parse().unwrap());
        self
    }
}

#[derive(Default)]
struct Registry {
    answers: Mutex<BTreeMap<String, Answer>>,
    requests: Mutex<Vec<String>>,
    /// A value of `Authorization` without which all but `/token` is 401 with this challenge.
    guard: Mutex<Option<(String, String)>>,
    busy: AtomicUsize,
    busiest: AtomicUsize,
}

impl Registry {
    async fn start() -> (Arc<Self>, Client) {
        let this = Arc::new(Self::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(this.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let options = ClientOptions {
            concurrency: 3,
            ..options(None)
        };
        (this, Client::new(&base, options).unwrap())
    }

    fn set(&self, path: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    fn manifest(&self, reference: &str, media_type: &MediaType, bytes: &str) -> Digest {
        let digest = Digest::sha256(bytes);
        let answer = Answer::ok(bytes.to_owned())
            .header("content-type", media_type.as_str())
            .header("docker-content-digest", &digest.to_string());
        for reference in [reference, &digest.to_string()] {
            self.set(&format!("/v2/a/b/manifests/{reference}"), answer.clone());
        }
        digest
    }

    fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256(bytes);
        self.set(&blob_path(&digest), Answer::ok(bytes.to_vec()));
        digest
    }

    fn requests(&self, part: &str) -> usize {
        self.requests
            .lock()
            .unwrap()
            .iter()
            .filter(|r| r.contains(part))
            .count()
    }
}

fn options(credentials: Option<(&str, &str)>) -> ClientOptions {
    ClientOptions {
        credentials: credentials.map(|(l, p)| Credentials {
            login: l.to_owned(),
            password: p.to_owned(),
        }),
        idle_timeout: Duration::from_secs(20),
        retries: Retries {
            first: Duration::from_millis(1),
            ..Retries::default()
        },
        ..ClientOptions::default()
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("/v2/a/b/blobs/{digest}")
}

async fn answer(State(registry): State<Arc<Registry>>, request: Request) -> Response {
    let busy = registry.busy.fetch_add(1, Ordering::SeqCst) + 1;
    registry.busiest.fetch_max(busy, Ordering::SeqCst);
    // Let the other requests of the same client come in.
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    let response = respond(&registry, &request);
    registry.busy.fetch_sub(1, Ordering::SeqCst);
    response
}

fn respond(registry: &Registry, request: &Request) -> Response {
    let target = request.uri().path_and_query().unwrap().as_str().to_owned();
    let authorization = request
        .headers()
        .get(header::AUTHORIZATION)
        .map(|v| v.to_str().unwrap().to_owned());
    registry
        .requests
        .lock()
        .unwrap()
        .push(format!("{} {target} {authorization:?}", request.method()));
    if let Some((wanted, challenge)) = &*registry.guard.lock().unwrap()
        && !target.starts_with("/token")
        && authorization.as_ref() != Some(wanted)
    {
        let refused = Response::builder()
            .status(401)
            .header(header::WWW_AUTHENTICATE, challenge);
        return refused
            .body(Body::from(
                r#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}"#,
            ))
            .unwrap();
    }
    let answers = registry.answers.lock().unwrap();
    let Some(answer) = answers.get(&target).or_else(|| answers.get(request.uri().path())) else {
        let body = Body::from(r#"{"errors":[{"code":"NAME_UNKNOWN","message":"not here"}]}"#);
        return Response::builder().status(404).body(body).unwrap();
    };
    let known = request.headers().get(header::IF_NONE_MATCH);
    let digest = answer.headers.get("docker-content-digest");
    if let (Some(known), Some(digest)) = (known, digest)
        && known.to_str().unwrap() == format!("\"{}\"", digest.to_str().unwrap())
    {
        // As docker-registry answers it: without the digest.
        return Response::builder().status(304).body(Body::empty()).unwrap();
    }
    let mut response = Response::builder().status(answer.status);
    response.headers_mut().unwrap().extend(answer.headers.clone());
    let sent = answer.body.slice(..answer.cut.unwrap_or(answer.body.len()));
    if answer.chunked {
        return response
            .body(Body::from_stream(futures::stream::iter([
                Ok::<_, std::io::Error>(sent),
            ])))
            .unwrap();
    }
    response = response.header(header::CONTENT_LENGTH, answer.body.len());
    if answer.cut.is_some() {
        // The connection breaks where the bytes end.
        let first = futures::stream::iter([Ok(sent)]);
        let broken = futures::stream::once(async {
            // The server flushes what it has when there is nothing more for the moment.
            tokio::task::yield_now().await;
            Err(std::io::Error::other("cut"))
        });
        return response
            .body(Body::from_stream(futures::StreamExt::chain(first, broken)))
            .unwrap();
    }
    response.body(Body::from(sent)).unwrap()
}

fn name() -> RegistryId {
    "a/b".parse().unwrap()
}

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

fn image(config: &Digest, layers: &[(&Digest, usize)]) -> String {
    let layers: Vec<_> = layers
        .iter()
        .map(|(digest, size)| {
            format!(r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":{size}}}"#)
        })
        .collect();
    format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":2}},"layers":[{}]}}"#,
        layers.join(",")
    )
}

fn index(members: &[(&Digest, usize)]) -> String {
    let members: Vec<_> = members
        .iter()
        .map(|(digest, size)| {
            format!(r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":{size}}}"#)
        })
        .collect();
    format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{}]}}"#,
        members.join(",")
    )
}

/// An index of two images that share a layer: digests of the blobs, and the index.
fn two_images(registry: &Registry) -> (Vec<Digest>, Digest) {
    let shared = registry.blob(b"shared layer");
    let (one, two) = (registry.blob(b"layer of one"), registry.blob(b"layer of two"));
    let (c1, c2) = (registry.blob(b"{}"), registry.blob(b"[]"));
    let m1 = image(&c1, &[(&shared, 12), (&one, 12)]);
    let m2 = image(&c2, &[(&shared, 12), (&two, 12)]);
    let (d1, d2) = (
        registry.manifest("unused1", &MediaType::OCI_MANIFEST, &m1),
        registry.manifest("unused2", &MediaType::OCI_MANIFEST, &m2),
    );
    let text = index(&[(&d1, m1.len()), (&d2, m2.len())]);
    (
        vec![shared, one, two, c1, c2],
        registry.manifest("latest", &MediaType::OCI_INDEX, &text),
    )
}

/// Keeps what comes in memory.
#[derive(Default)]
struct Keep {
    manifests: Mutex<Vec<Digest>>,
    blobs: Arc<Mutex<BTreeMap<Digest, Vec<u8>>>>,
    held: Option<Digest>,
}

struct KeepOne {
    digest: Digest,
    bytes: Vec<u8>,
    into: Arc<Mutex<BTreeMap<Digest, Vec<u8>>>>,
}

#[async_trait::async_trait]
impl PullVisitor for Keep {
    async fn manifest(&self, manifest: &FetchedManifest) -> Result<(), VisitError> {
        self.manifests.lock().unwrap().push(manifest.digest.clone());
        Ok(())
    }

    async fn blob(&self, blob: &BlobRef) -> Result<Option<Box<dyn BlobSink>>, VisitError> {
        if self.held.as_ref() == Some(&blob.digest) {
            return Ok(None);
        }
        let (digest, into) = (blob.digest.clone(), self.blobs.clone());
        Ok(Some(Box::new(KeepOne {
            digest,
            bytes: Vec::new(),
            into,
        })))
    }
}

#[async_trait::async_trait]
impl BlobSink for KeepOne {
    async fn write(&mut self, bytes: Bytes) -> Result<(), VisitError> {
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<(), VisitError> {
        self.into.lock().unwrap().insert(self.digest, self.bytes);
        Ok(())
    }
}

#[tokio::test]
async fn an_image_of_several_platforms_is_pulled_whole_and_each_part_once() {
    let (registry, client) = Registry::start().await;
    let (blobs, root) = two_images(&registry);
    let keep = Keep {
        held: Some(blobs[1].clone()),
        ..Keep::default()
    };
    let report = client.pull(&name(), &reference("latest"), &keep).await.unwrap();
    assert_eq!(report.root, root);
    assert_eq!(
        (report.manifests.len(), report.blobs.len(), report.skipped.len()),
        (3, 4, 1)
    );
    assert_eq!(keep.manifests.lock().unwrap()[0], root);
    let kept = keep.blobs.lock().unwrap();
    assert_eq!(kept[&blobs[0]], b"shared layer");
    assert_eq!(kept.len(), 4);
    assert_eq!(registry.requests(&blob_path(&blobs[0])), 1);
    assert_eq!(registry.requests(&blob_path(&blobs[1])), 0);
    let sizes: u64 = report.manifests.values().sum::<u64>() + 12 + 12 + 2 + 2;
    assert_eq!(report.bytes(), sizes);
    assert!(registry.busiest.load(Ordering::SeqCst) <= 3);
}

#[tokio::test]
async fn a_corrupt_blob_is_told_with_its_url_and_both_digests_and_is_not_finished() {
    let (registry, client) = Registry::start().await;
    let (blobs, _) = two_images(&registry);
    registry.set(&blob_path(&blobs[2]), Answer::ok("LAYER of two"));
    let keep = Keep::default();
    let error = client
        .pull(&name(), &reference("latest"), &keep)
        .await
        .unwrap_err();
    let RegistryError::Mismatch { url, expected, got } = &error else {
        panic!("{error}")
    };
    assert!(
        url.starts_with("http://127.0.0.1:") && url.ends_with(&blob_path(&blobs[2])),
        "{url}"
    );
    assert_eq!((expected, got), (&blobs[2], &Digest::sha256("LAYER of two")));
    assert_eq!(error.coded().code, ErrorCode::DIGEST_MISMATCH);
    assert!(!error.is_retryable());
    assert!(!keep.blobs.lock().unwrap().contains_key(&blobs[2]));
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error_that_may_pass() {
    let (registry, client) = Registry::start().await;
    let digest = registry.blob(&vec![7; 100_000]);
    let whole = Answer::ok(vec![7; 100_000]);
    registry.set(
        &blob_path(&digest),
        Answer {
            cut: Some(60_000),
            ..whole.clone()
        },
    );
    let error = client
        .blob(&name(), &digest)
        .await
        .unwrap()
        .drain()
        .await
        .unwrap_err();
    let RegistryError::Interrupted {
        received, expected, ..
    } = &error
    else {
        panic!("{error}")
    };
    assert!(*received <= 60_000 && *expected == Some(100_000), "{error}");
    assert!(error.is_retryable());
    // Without a length only the digest can tell.
    registry.set(
        &blob_path(&digest),
        Answer {
            cut: Some(60_000),
            chunked: true,
            ..whole
        },
    );
    let error = client
        .blob(&name(), &digest)
        .await
        .unwrap()
        .drain()
        .await
        .unwrap_err();
    assert!(matches!(error, RegistryError::Mismatch { .. }), "{error}");
}

#[tokio::test]
async fn a_blob_larger_than_its_descriptor_is_noticed_before_it_is_read() {
    let (registry, client) = Registry::start().await;
    let (blobs, _) = two_images(&registry);
    for chunked in [false, true] {
        registry.set(
            &blob_path(&blobs[0]),
            Answer {
                chunked,
                ..Answer::ok(vec![0; 1_000_000])
            },
        );
        let error = client
            .pull(&name(), &reference("latest"), &Discard)
            .await
            .unwrap_err();
        assert!(
            matches!(error, RegistryError::Size { expected: 12, .. }),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_manifest_asked_for_by_digest_must_hash_to_it() {
    let (registry, client) = Registry::start().await;
    let digest = Digest::sha256("what was promised");
    registry.set(
        &format!("/v2/a/b/manifests/{digest}"),
        Answer::ok(r#"{"schemaVersion":2}"#),
    );
    let error = client
        .manifest(&name(), &Reference::Digest(digest.clone()))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, RegistryError::Mismatch { expected, .. } if *expected == digest),
        "{error}"
    );
}

#[tokio::test]
async fn a_declared_digest_must_be_right() {
    let (registry, client) = Registry::start().await;
    let lie = Digest::sha256("another");
    let answer = Answer::ok(r#"{"schemaVersion":2}"#).header("docker-content-digest", &lie.to_string());
    registry.set("/v2/a/b/manifests/latest", answer);
    let error = client.manifest(&name(), &reference("latest")).await.unwrap_err();
    assert!(
        matches!(&error, RegistryError::Mismatch { expected, .. } if *expected == lie),
        "{error}"
    );
}

#[tokio::test]
async fn a_manifest_keeps_its_bytes_and_its_declared_type() {
    let (registry, client) = Registry::start().await;
    let text = "{ \"schemaVersion\": 2,\n\n \"layers\": [] }";
    let digest = registry.manifest("latest", &MediaType::DOCKER_MANIFEST, text);
    let manifest = client.manifest(&name(), &reference("latest")).await.unwrap();
    assert_eq!(
        (manifest.bytes.as_ref(), &manifest.digest),
        (text.as_bytes(), &digest)
    );
    assert_eq!(manifest.media_type, Some(MediaType::DOCKER_MANIFEST));
    let head = client
        .head_manifest(&name(), &reference("latest"), None)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (head.digest, head.size),
        (Some(digest.clone()), Some(text.len() as u64))
    );
    assert_eq!(
        client
            .head_manifest(&name(), &reference("gone"), None)
            .await
            .unwrap(),
        None
    );
    let told = |known| {
        let client = &client;
        async move {
            let head = client
                .head_manifest(&name(), &reference("latest"), Some(&known))
                .await;
            let head = head.unwrap().unwrap();
            (head.digest, head.size)
        }
    };
    assert_eq!(
        told(digest.clone()).await,
        (Some(digest.clone()), None),
        "the registry need not read it"
    );
    assert_eq!(
        told(Digest::sha256("older")).await,
        (Some(digest), Some(text.len() as u64))
    );
    let error = client.manifest(&name(), &reference("gone")).await.unwrap_err();
    assert!(
        matches!(&error, RegistryError::NotFound { .. }) && error.to_string().contains("not here"),
        "{error}"
    );
}

#[tokio::test]
async fn a_manifest_that_is_too_large_is_not_read() {
    let (registry, client) = Registry::start().await;
    for chunked in [false, true] {
        registry.set(
            "/v2/a/b/manifests/latest",
            Answer {
                chunked,
                ..Answer::ok(vec![b' '; 5 << 20])
            },
        );
        let error = client.manifest(&name(), &reference("latest")).await.unwrap_err();
        assert!(matches!(error, RegistryError::Protocol { .. }), "{error}");
    }
}

#[tokio::test]
async fn tags_come_from_all_pages() {
    let (registry, client) = Registry::start().await;
    let first = Answer::ok(r#"{"name":"a/b","tags":["1","2"]}"#);
    registry.set(
        "/v2/a/b/tags/list?n=1000",
        first.header("link", r#"</v2/a/b/tags/list?last=2>; rel="next""#),
    );
    registry.set(
        "/v2/a/b/tags/list?last=2",
        Answer::ok(r#"{"name":"a/b","tags":["-no-tag","3"]}"#),
    );
    let tags: Vec<_> = client
        .tags(&name())
        .await
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(tags, ["1", "2", "3"]);
    registry.set(
        "/v2/a/b/tags/list?n=1000",
        Answer::ok(r#"{"name":"a/b","tags":null}"#),
    );
    assert!(client.tags(&name()).await.unwrap().is_empty());
}

#[tokio::test]
async fn pages_of_tags_in_a_circle_or_elsewhere_end_in_an_error() {
    let (registry, client) = Registry::start().await;
    for link in [
        "</v2/a/b/tags/list?n=1000>; rel=next",
        "<http://evil.example/v2/a/b/tags/list>; rel=next",
    ] {
        registry.set(
            "/v2/a/b/tags/list?n=1000",
            Answer::ok(r#"{"tags":["1"]}"#).header("link", link),
        );
        let error = client.tags(&name()).await.unwrap_err();
        assert!(matches!(error, RegistryError::Protocol { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_bearer_challenge_is_answered_once_for_a_whole_pull() {
    let (registry, client) = Registry::start().await;
    two_images(&registry);
    registry.set("/token", Answer::ok(r#"{"token":"t0k3n","expires_in":300}"#));
    *registry.guard.lock().unwrap() = Some((
        "Bearer t0k3n".into(),
        r#"Bearer realm="/token",service="s""#.into(),
    ));
    client
        .pull(&name(), &reference("latest"), &Discard)
        .await
        .unwrap();
    assert_eq!(
        registry.requests("GET /token?service=s&scope=repository%3Aa%2Fb%3Apull None"),
        1
    );
    client.tags(&"c".parse().unwrap()).await.unwrap_err();
    assert_eq!(
        registry.requests("/token"),
        2,
        "another repository needs a token of its own"
    );
}

#[tokio::test]
async fn basic_credentials_are_sent_only_when_asked_for() {
    let (registry, anonymous) = Registry::start().await;
    registry.set("/v2/", Answer::ok("{}"));
    let base = format!("{anonymous:?}").split('"').nth(1).unwrap().to_owned();
    let client = Client::new(&base, options(Some(("user", "secret")))).unwrap();
    client.ping().await.unwrap();
    assert_eq!(registry.requests("Basic"), 0);
    // user:secret
    *registry.guard.lock().unwrap() = Some(("Basic dXNlcjpzZWNyZXQ=".into(), r#"Basic realm="r""#.into()));
    client.ping().await.unwrap();
    let error = anonymous.ping().await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
    let wrong = Client::new(&base, options(Some(("user", "wr0ng")))).unwrap();
    let error = wrong.ping().await.unwrap_err();
    assert!(
        error.to_string().contains("who are you") && !error.to_string().contains("wr0ng"),
        "{error}"
    );
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_told_with_its_cause() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = Client::new(&base, options(None))
        .unwrap()
        .ping()
        .await
        .unwrap_err();
    assert!(error.is_retryable());
    let text = error.to_string();
    assert!(
        text.contains(&base) && text.to_lowercase().contains("refused"),
        "{text}"
    );
}

#[tokio::test]
async fn a_registry_that_never_answers_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let options = ClientOptions {
        document_timeout: Duration::from_millis(200),
        ..options(None)
    };
    let error = Client::new(&base, options).unwrap().ping().await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    drop(listener);
}

#[tokio::test]
async fn members_named_many_times_are_fetched_once() {
    let (registry, client) = Registry::start().await;
    let leaf = registry.manifest("leaf", &MediaType::OCI_INDEX, &index(&[]));
    let size = index(&[]).len();
    let middle_text = index(&[(&leaf, size), (&leaf, size)]);
    let middle = registry.manifest("middle", &MediaType::OCI_INDEX, &middle_text);
    let root_text = index(&[
        (&middle, middle_text.len()),
        (&leaf, size),
        (&middle, middle_text.len()),
    ]);
    registry.manifest("latest", &MediaType::OCI_INDEX, &root_text);
    let report = client
        .pull(&name(), &reference("latest"), &Discard)
        .await
        .unwrap();
    assert_eq!(report.manifests.len(), 3);
    assert_eq!(registry.requests(&leaf.to_string()), 1);
}

#[tokio::test]
async fn layers_that_no_registry_hands_out_are_named_and_not_fetched() {
    let (registry, client) = Registry::start().await;
    let config = registry.blob(b"{}");
    let foreign = Digest::sha256("windows");
    let text =
        image(&config, &[(&foreign, 7)]).replace("layer.v1.tar+gzip", "layer.nondistributable.v1.tar+gzip");
    registry.manifest("latest", &MediaType::OCI_MANIFEST, &text);
    let report = client
        .pull(&name(), &reference("latest"), &Discard)
        .await
        .unwrap();
    assert!(report.foreign.contains(&foreign));
    assert_eq!(registry.requests(&foreign.to_string()), 0);
}

#[tokio::test]
async fn a_fault_of_the_visitor_names_the_content() {
    struct Full;
    #[async_trait::async_trait]
    impl PullVisitor for Full {
        async fn manifest(&self, _: &FetchedManifest) -> Result<(), VisitError> {
            Err("the disk is full".into())
        }
        async fn blob(&self, _: &BlobRef) -> Result<Option<Box<dyn BlobSink>>, VisitError> {
            Ok(None)
        }
    }
    let (registry, client) = Registry::start().await;
    let (_, root) = two_images(&registry);
    let error = client
        .pull(&name(), &reference("latest"), &Full)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&root.to_string()) && error.contains("the disk is full"),
        "{error}"
    );
}
