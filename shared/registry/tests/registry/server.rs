//! The registry, and what it holds.

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
use pulp_model::{Digest, MediaType, RegistryId};
use pulp_registry::{Client, ClientOptions, Credentials, Reference, Retries};

/// What the registry answers to a path.
#[derive(Clone)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Send only so many bytes of the body that the length promises.
    pub(crate) cut: Option<usize>,
    /// Promise no length.
    pub(crate) chunked: bool,
}

impl Answer {
    pub(crate) fn ok(body: impl Into<Bytes>) -> Self {
        Self {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: body.into(),
            cut: None,
            chunked: false,
        }
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(name, value.parse().unwrap());
        self
    }
}

#[derive(Default)]
pub(crate) struct Registry {
    pub(crate) answers: Mutex<BTreeMap<String, Answer>>,
    pub(crate) requests: Mutex<Vec<String>>,
    /// A value of `Authorization` without which all but `/token` is 401 with this challenge.
    pub(crate) guard: Mutex<Option<(String, String)>>,
    pub(crate) busy: AtomicUsize,
    pub(crate) busiest: AtomicUsize,
}

impl Registry {
    pub(crate) async fn start() -> (Arc<Self>, Client) {
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

    pub(crate) fn set(&self, path: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    pub(crate) fn manifest(&self, reference: &str, media_type: &MediaType, bytes: &str) -> Digest {
        let digest = Digest::sha256(bytes);
        let answer = Answer::ok(bytes.to_owned())
            .header("content-type", media_type.as_str())
            .header("docker-content-digest", &digest.to_string());
        for reference in [reference, &digest.to_string()] {
            self.set(&format!("/v2/a/b/manifests/{reference}"), answer.clone());
        }
        digest
    }

    pub(crate) fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256(bytes);
        self.set(&blob_path(&digest), Answer::ok(bytes.to_vec()));
        digest
    }

    pub(crate) fn requests(&self, part: &str) -> usize {
        self.requests
            .lock()
            .unwrap()
            .iter()
            .filter(|r| r.contains(part))
            .count()
    }
}

pub(crate) fn options(credentials: Option<(&str, &str)>) -> ClientOptions {
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

pub(crate) fn blob_path(digest: &Digest) -> String {
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

pub(crate) fn name() -> RegistryId {
    "a/b".parse().unwrap()
}

pub(crate) fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

pub(crate) fn image(config: &Digest, layers: &[(&Digest, usize)]) -> String {
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

pub(crate) fn index(members: &[(&Digest, usize)]) -> String {
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
pub(crate) fn two_images(registry: &Registry) -> (Vec<Digest>, Digest) {
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
