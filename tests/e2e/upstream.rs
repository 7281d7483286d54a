//! A registry within the test that misbehaves on demand and remembers what it was asked for.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Result;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::Method,
    response::Response,
};
use futures::{StreamExt as _, stream};
use pulp_model::Digest;
use serde_json::json;

/// Serves the repository `up/stream`.
pub(crate) struct Upstream {
    base: String,
    shared: Arc<Shared>,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Default)]
struct Shared {
    blobs: Mutex<HashMap<String, Bytes>>,
    /// By tag and by digest: media type, digest and bytes.
    manifests: Mutex<BTreeMap<String, (String, Digest, Bytes)>>,
    /// Methods and paths, in their order.
    log: Mutex<Vec<(String, String)>>,
    stalled: Mutex<HashMap<String, usize>>,
    corrupt: Mutex<HashMap<String, bool>>,
    answers: Mutex<HashMap<String, u16>>,
    limit: Mutex<Option<Limit>>,
    /// Blobs that are sent at the moment, and the most that there were.
    sending: Mutex<(usize, usize)>,
    pause: Mutex<Duration>,
    retry_after: Mutex<u64>,
    /// How many requests are answered still, if that is limited; and when the others are.
    answered: Mutex<Option<usize>>,
    released: tokio::sync::Notify,
}

/// How many manifests may be fetched, as Docker Hub tells it.
struct Limit {
    most: u64,
    left: f64,
    window: Duration,
    as_of: Instant,
}

impl Limit {
    fn left(&mut self) -> u64 {
        let back = self.most as f64 * self.as_of.elapsed().as_secs_f64() / self.window.as_secs_f64();
        self.left = (self.left + back).min(self.most as f64);
        self.as_of = Instant::now();
        self.left as u64
    }
}

const PREFIX: &str = "/v2/up/stream/";

impl Upstream {
    pub(crate) fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let shared = Arc::new(Shared {
            // More than a sync waits for.
            retry_after: Mutex::new(2 * 24 * 3600),
            ..Shared::default()
        });
        let app = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
        let base = format!("http://{}", listener.local_addr()?);
        runtime.spawn(async move { axum::serve(listener, app).await });
        Ok(Self {
            base,
            shared,
            _runtime: runtime,
        })
    }

    pub(crate) fn url(&self) -> String {
        self.base.clone()
    }

    /// A blob that no manifest names yet.
    pub(crate) fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256(bytes);
        let mut blobs = self.shared.blobs.lock().unwrap();
        blobs.insert(digest.to_string(), Bytes::copy_from_slice(bytes));
        digest
    }

    /// An image of these layers under a tag; gives its manifest's digest.
    pub(crate) fn image(&self, tag: &str, layers: &[Vec<u8>]) -> Digest {
        let blob = |bytes: &[u8], media_type: &str| {
            let digest = Digest::sha256(bytes);
            let mut blobs = self.shared.blobs.lock().unwrap();
            blobs.insert(digest.to_string(), Bytes::copy_from_slice(bytes));
            json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
        };
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Labels": {"tag": tag}}});
        let config = blob(
            config.to_string().as_bytes(),
            "application/vnd.oci.image.config.v1+json",
        );
        let layers: Vec<_> = layers
            .iter()
            .map(|l| blob(l, "application/vnd.oci.image.layer.v1.tar+gzip"))
            .collect();
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest =
            json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
        self.manifest(tag, media_type, manifest.to_string().as_bytes())
    }

    pub(crate) fn manifest(&self, tag: &str, media_type: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256(bytes);
        self.manifest_known_as(tag, media_type, &digest, bytes);
        digest
    }

    /// A manifest whose digest is not that of all its bytes, as of those that are signed.
    pub(crate) fn manifest_known_as(&self, tag: &str, media_type: &str, digest: &Digest, bytes: &[u8]) {
        let bytes = Bytes::copy_from_slice(bytes);
        let mut manifests = self.shared.manifests.lock().unwrap();
        for reference in [tag.to_owned(), digest.to_string()] {
            manifests.insert(reference, (media_type.to_owned(), digest.clone(), bytes.clone()));
        }
    }

    /// Another tag for what a tag names.
    pub(crate) fn alias(&self, tag: &str, other: &str) {
        let mut manifests = self.shared.manifests.lock().unwrap();
        let same = manifests[tag].clone();
        manifests.insert(other.to_owned(), same);
    }

    /// Answers so many requests more and lets those after them wait; none answers all, those that wait as well.
    pub(crate) fn answer_only(&self, requests: Option<usize>) {
        *self.shared.answered.lock().unwrap() = requests;
        if requests.is_none() {
            self.shared.released.notify_waiters();
        }
    }

    /// Requests so far.
    pub(crate) fn asked(&self) -> usize {
        self.shared.log.lock().unwrap().len()
    }

    /// Blobs and manifests that were asked for by digest after so many requests, in their order.
    pub(crate) fn fetched_since(&self, asked: usize) -> Vec<Digest> {
        let log = self.shared.log.lock().unwrap();
        let gets = log.iter().skip(asked).filter(|(method, _)| method == "GET");
        gets.filter_map(|(_, path)| path.rsplit('/').next()?.parse().ok())
            .collect()
    }

    /// Sends so many bytes of a blob and then nothing; none sends all.
    pub(crate) fn stall(&self, blob: &Digest, after: Option<usize>) {
        let mut stalled = self.shared.stalled.lock().unwrap();
        match after {
            Some(bytes) => stalled.insert(blob.to_string(), bytes),
            None => stalled.remove(&blob.to_string()),
        };
    }

    /// Sends other bytes in place of a blob's, as many.
    pub(crate) fn corrupt(&self, blob: &Digest, corrupt: bool) {
        self.shared
            .corrupt
            .lock()
            .unwrap()
            .insert(blob.to_string(), corrupt);
    }

    /// Answers a path below the repository by a status; 0 answers as it should.
    pub(crate) fn answer(&self, path: &str, status: u16) {
        self.shared
            .answers
            .lock()
            .unwrap()
            .insert(path.to_owned(), status);
    }

    /// Lets so many manifests be fetched in a window that moves; `HEAD` is free.
    pub(crate) fn limit(&self, most: u64, window: Duration) {
        let limit = Limit {
            most,
            left: most as f64,
            window,
            as_of: Instant::now(),
        };
        *self.shared.limit.lock().unwrap() = Some(limit);
    }

    /// What a refusal by 429 asks for, in seconds.
    pub(crate) fn retry_after(&self, seconds: u64) {
        *self.shared.retry_after.lock().unwrap() = seconds;
    }

    /// Takes so long to send a blob.
    pub(crate) fn slow_blobs(&self, pause: Duration) {
        *self.shared.pause.lock().unwrap() = pause;
    }

    /// The most blobs that were sent at a time.
    pub(crate) fn most_at_once(&self) -> usize {
        self.shared.sending.lock().unwrap().1
    }

    /// GETs of paths with this part.
    pub(crate) fn count(&self, part: &str) -> usize {
        let log = self.shared.log.lock().unwrap();
        log.iter()
            .filter(|(m, path)| m == "GET" && path.contains(part))
            .count()
    }

    /// Whether it is a blob and no manifest.
    pub(crate) fn is_blob(&self, digest: &Digest) -> bool {
        self.shared
            .blobs
            .lock()
            .unwrap()
            .contains_key(&digest.to_string())
    }

    /// Blobs and manifests that were asked for by digest more than once.
    pub(crate) fn fetched_more_than_once(&self) -> Vec<Digest> {
        let mut times: BTreeMap<Digest, usize> = BTreeMap::new();
        for (method, path) in self.shared.log.lock().unwrap().iter() {
            if method == "GET"
                && let Some(Ok(digest)) = path.rsplit('/').next().map(str::parse)
            {
                *times.entry(digest).or_default() += 1;
            }
        }
        times
            .into_iter()
            .filter(|(_, n)| *n > 1)
            .map(|(d, _)| d)
            .collect()
    }
}

fn status(status: u16) -> Response {
    Response::builder().status(status).body(Body::empty()).unwrap()
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    shared
        .log
        .lock()
        .unwrap()
        .push((request.method().to_string(), path.clone()));
    let released = shared.released.notified();
    let answers = match shared.answered.lock().unwrap().as_mut() {
        Some(0) => false,
        Some(left) => {
            *left -= 1;
            true
        }
        None => true,
    };
    if !answers {
        released.await;
    }
    if path == "/v2/" {
        return Response::new(Body::from("{}"));
    }
    let Some(path) = path.strip_prefix(PREFIX) else {
        return status(404);
    };
    if let Some(code) = shared.answers.lock().unwrap().get(path).filter(|code| **code > 0) {
        let mut response = status(*code);
        if *code == 401 {
            response
                .headers_mut()
                .insert("www-authenticate", "Basic realm=\"r\"".parse().unwrap());
        }
        if *code == 429 {
            let seconds = *shared.retry_after.lock().unwrap();
            response
                .headers_mut()
                .insert("retry-after", seconds.to_string().parse().unwrap());
        }
        return response;
    }
    if path == "tags/list" {
        let manifests = shared.manifests.lock().unwrap();
        let tags: Vec<&String> = manifests.keys().filter(|k| !k.contains(':')).collect();
        return Response::new(Body::from(json!({"name": "up/stream", "tags": tags}).to_string()));
    }
    if let Some(reference) = path.strip_prefix("manifests/") {
        let manifests = shared.manifests.lock().unwrap();
        let Some((media_type, digest, bytes)) = manifests.get(reference) else {
            return status(404);
        };
        let mut response = Response::builder()
            .header("content-type", media_type)
            .header("docker-content-digest", digest.to_string());
        if let Some(limit) = shared.limit.lock().unwrap().as_mut() {
            let left = limit.left();
            let is_pull = request.method() == Method::GET;
            if is_pull && left == 0 {
                return status(429);
            }
            limit.left -= f64::from(u8::from(is_pull));
            let told = |n: u64| format!("{n};w={}", limit.window.as_secs());
            response = response
                .header("ratelimit-limit", told(limit.most))
                .header("ratelimit-remaining", told(left - u64::from(is_pull)));
        }
        if request
            .headers()
            .get("if-none-match")
            .is_some_and(|known| *known == format!("\"{digest}\""))
        {
            // As docker-registry answers it.
            return status(304);
        }
        return response.body(Body::from(bytes.clone())).unwrap();
    }
    match path.strip_prefix("blobs/") {
        Some(digest) => {
            let pause = *shared.pause.lock().unwrap();
            {
                let mut sending = shared.sending.lock().unwrap();
                sending.0 += 1;
                sending.1 = sending.1.max(sending.0);
            }
            tokio::time::sleep(pause).await;
            shared.sending.lock().unwrap().0 -= 1;
            blob(&shared, digest)
        }
        None => status(404),
    }
}

fn blob(shared: &Arc<Shared>, digest: &str) -> Response {
    let Some(bytes) = shared.blobs.lock().unwrap().get(digest).cloned() else {
        return status(404);
    };
    let response = Response::builder().header("content-length", bytes.len());
    if let Some(after) = shared.stalled.lock().unwrap().get(digest) {
        let first = stream::iter([Ok::<_, std::io::Error>(bytes.slice(..*after))]);
        return response
            .body(Body::from_stream(first.chain(stream::pending())))
            .unwrap();
    }
    let bytes = if shared.corrupt.lock().unwrap().get(digest) == Some(&true) {
        Bytes::from(vec![0; bytes.len()])
    } else {
        bytes
    };
    response.body(Body::from(bytes)).unwrap()
}
