//! An index and a registry of version 1 within the test, on a port each, that misbehave on demand and remember what
//! they were asked for, and with which login.

use std::{
    collections::BTreeMap,
    io::Write as _,
    sync::{Arc, Mutex},
};

use anyhow::Result;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::header::AUTHORIZATION,
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::{StreamExt as _, stream};
use pulp_model::Digest;
use pulp_tests::images::append;
use serde_json::{Value, json};

/// The account that the index wants, if it wants one.
pub(crate) const LOGIN: (&str, &str) = ("reader", "a secret of the index");
const TOKEN: &str = "signature=123abc,repository=\"up/stream\",access=read";

/// Serves the repository `up/stream`.
pub(crate) struct V1Upstream {
    index: String,
    endpoint: String,
    shared: Arc<Shared>,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Default)]
struct Shared {
    images: Mutex<BTreeMap<String, V1Image>>,
    tags: Mutex<BTreeMap<String, String>>,
    log: Mutex<Vec<Asked>>,
    /// The header `X-Docker-Endpoints`; empty for none.
    endpoints: Mutex<String>,
    /// Whether the index wants a login, and the endpoint a token.
    guarded: Mutex<bool>,
    /// How often the token has been made another.
    renewals: Mutex<usize>,
    /// By path below `/v1/`.
    answers: Mutex<BTreeMap<String, Misbehaviour>>,
    tags_as_list: Mutex<bool>,
}

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// Whether it came to the index.
    pub(crate) of_index: bool,
    /// Below `/v1/`.
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
}

/// An image as it is served.
#[derive(Debug, Clone)]
pub(crate) struct V1Image {
    pub(crate) json: Vec<u8>,
    pub(crate) layer: Vec<u8>,
    /// Child first.
    pub(crate) line: Vec<String>,
}

/// What is answered in place of what should be.
#[derive(Debug, Clone)]
pub(crate) enum Misbehaviour {
    Status(u16),
    /// A body with another content.
    Body(Vec<u8>),
    /// So many bytes of what should come, though all are promised, and then an end.
    Cut(usize),
    /// So many bytes, and then nothing.
    Stall(usize),
    /// All of it, with a header more.
    Header(&'static str, String),
}

impl V1Upstream {
    pub(crate) fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let shared = Arc::new(Shared::default());
        let serve = |of_index: bool| -> Result<String> {
            let app = Router::new()
                .fallback(answer)
                .with_state((of_index, Arc::clone(&shared)));
            let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
            let host = listener.local_addr()?.to_string();
            runtime.spawn(async move { axum::serve(listener, app).await });
            Ok(host)
        };
        let (index, endpoint) = (serve(true)?, serve(false)?);
        shared.endpoints.lock().unwrap().clone_from(&endpoint);
        Ok(Self {
            index,
            endpoint,
            shared,
            _runtime: runtime,
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.index)
    }

    /// Host and port of the registry that has the images.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What the index says about who has the images.
    pub(crate) fn name_endpoints(&self, header: &str) {
        header.clone_into(&mut self.shared.endpoints.lock().unwrap());
    }

    /// The index wants [`LOGIN`] from now on, and the endpoint a token.
    pub(crate) fn guard(&self) {
        *self.shared.guarded.lock().unwrap() = true;
    }

    /// Tokens that were given are good no more.
    pub(crate) fn end_tokens(&self) {
        *self.shared.renewals.lock().unwrap() += 1;
    }

    pub(crate) fn tags_as_list(&self) {
        *self.shared.tags_as_list.lock().unwrap() = true;
    }

    /// An image upon another one, with these bytes as its layer; gives its id.
    pub(crate) fn image(&self, name: &str, parent: Option<&str>, layer: Vec<u8>) -> String {
        let id = Digest::sha256(name).hex().to_owned();
        let mut images = self.shared.images.lock().unwrap();
        let mut line = vec![id.clone()];
        let mut json = json!({
            "id": id, "created": "2014-06-12T19:31:00Z", "architecture": "amd64", "os": "linux",
            "config": {"Cmd": ["/bin/sh"]}, "container_config": {"Cmd": ["/bin/sh", "-c", format!("add {name}")]},
        });
        if let Some(parent) = parent {
            line.extend(images[parent].line.clone());
            json["parent"] = json!(parent);
            json["Size"] = json!(layer.len());
        }
        let json = json.to_string().into_bytes();
        images.insert(id.clone(), V1Image { json, layer, line });
        id
    }

    pub(crate) fn tag(&self, tag: &str, id: &str) {
        self.shared
            .tags
            .lock()
            .unwrap()
            .insert(tag.to_owned(), id.to_owned());
    }

    pub(crate) fn untag(&self, tag: &str) {
        self.shared.tags.lock().unwrap().remove(tag);
    }

    pub(crate) fn served(&self, id: &str) -> V1Image {
        self.shared.images.lock().unwrap()[id].clone()
    }

    /// Answers a path below `/v1/` otherwise than it should; none answers as it should.
    pub(crate) fn misbehave(&self, path: &str, how: Option<Misbehaviour>) {
        let mut answers = self.shared.answers.lock().unwrap();
        match how {
            Some(how) => answers.insert(path.to_owned(), how),
            None => answers.remove(path),
        };
    }

    /// Requests so far.
    pub(crate) fn log(&self) -> Vec<Asked> {
        self.shared.log.lock().unwrap().clone()
    }

    /// Requests for paths with this end.
    pub(crate) fn count(&self, end: &str) -> usize {
        self.log()
            .iter()
            .filter(|asked| asked.path.ends_with(end))
            .count()
    }

    /// `docker save` of the image that a tag names, by a docker of its time.
    pub(crate) fn saved(&self, tag: &str) -> Result<Vec<u8>> {
        let id = self.shared.tags.lock().unwrap()[tag].clone();
        let images = self.shared.images.lock().unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        for id in &images[&id].line {
            append(&mut archive, &format!("{id}/VERSION"), b"1.0")?;
            append(&mut archive, &format!("{id}/json"), &images[id].json)?;
            append(&mut archive, &format!("{id}/layer.tar"), &images[id].layer)?;
        }
        let repositories = json!({"up/stream": {tag: id}}).to_string();
        append(&mut archive, "repositories", repositories.as_bytes())?;
        Ok(archive.into_inner()?)
    }
}

/// A tar of one file.
pub(crate) fn tar_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, name, content).unwrap();
    tar.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn status(status: u16) -> Response {
    Response::builder().status(status).body(Body::empty()).unwrap()
}

async fn answer(State((of_index, shared)): State<(bool, Arc<Shared>)>, request: Request) -> Response {
    let path = request
        .uri()
        .path()
        .strip_prefix("/v1/")
        .unwrap_or_default()
        .to_owned();
    let authorization = request.headers().get(AUTHORIZATION);
    let authorization = authorization.map(|value| value.to_str().unwrap_or_default().to_owned());
    shared.log.lock().unwrap().push(Asked {
        of_index,
        path: path.clone(),
        authorization: authorization.clone(),
    });
    let token = format!("{TOKEN},n={}", *shared.renewals.lock().unwrap());
    if *shared.guarded.lock().unwrap() && path != "_ping" {
        let expected = if of_index {
            format!("Basic {}", STANDARD.encode(format!("{}:{}", LOGIN.0, LOGIN.1)))
        } else {
            format!("Token {token}")
        };
        if authorization != Some(expected) {
            return status(401);
        }
    }
    let wants_token = request.headers().contains_key("x-docker-token");
    let found = if of_index {
        of_the_index(&shared, &path)
    } else {
        of_the_endpoint(&shared, &path)
    };
    let how = shared.answers.lock().unwrap().get(&path).cloned();
    let body = match (&how, found) {
        (Some(Misbehaviour::Status(code)), _) => return status(*code),
        (Some(Misbehaviour::Body(body)), _) => Bytes::from(body.clone()),
        (_, Some(body)) => body,
        (_, None) => return status(404),
    };
    let mut response = Response::builder().header("content-length", body.len());
    if of_index && wants_token && path.ends_with("/images") {
        let endpoints = shared.endpoints.lock().unwrap().clone();
        response = response
            .header("x-docker-token", token)
            .header("x-docker-endpoints", endpoints);
    }
    match how {
        Some(Misbehaviour::Header(name, value)) => {
            response.header(name, value).body(Body::from(body)).unwrap()
        }
        Some(Misbehaviour::Cut(after)) => {
            let some = [Ok(body.slice(..after)), Err(std::io::Error::other("cut"))];
            response.body(Body::from_stream(stream::iter(some))).unwrap()
        }
        Some(Misbehaviour::Stall(after)) => {
            let some = stream::iter([Ok::<_, std::io::Error>(body.slice(..after))]);
            response
                .body(Body::from_stream(some.chain(stream::pending())))
                .unwrap()
        }
        _ => response.body(Body::from(body)).unwrap(),
    }
}

fn bytes(value: &Value) -> Bytes {
    value.to_string().into()
}

fn of_the_index(shared: &Shared, path: &str) -> Option<Bytes> {
    match path {
        "_ping" => Some(bytes(&json!(true))),
        "repositories/up/stream/images" => {
            let images = shared.images.lock().unwrap();
            let list: Vec<Value> = images
                .keys()
                .map(|id| json!({"id": id, "checksum": ""}))
                .collect();
            Some(bytes(&json!(list)))
        }
        _ => None,
    }
}

fn of_the_endpoint(shared: &Shared, path: &str) -> Option<Bytes> {
    if path == "repositories/up/stream/tags" {
        let tags = shared.tags.lock().unwrap();
        let as_list = *shared.tags_as_list.lock().unwrap();
        let entry = |(name, id): (&String, &String)| json!({"name": name, "layer": id});
        return Some(bytes(&if as_list {
            tags.iter().map(entry).collect()
        } else {
            json!(*tags)
        }));
    }
    let (id, file) = path.strip_prefix("images/")?.split_once('/')?;
    let images = shared.images.lock().unwrap();
    let image = images.get(id)?;
    match file {
        "ancestry" => Some(bytes(&json!(image.line))),
        "json" => Some(image.json.clone().into()),
        "layer" => Some(image.layer.clone().into()),
        _ => None,
    }
}
