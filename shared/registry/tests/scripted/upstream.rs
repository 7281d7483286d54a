//! An upstream that follows a script.

use std::sync::{Arc, Mutex};

use axum::{Router, body::Body, extract::Request, response::Response};
use bytes::Bytes;
use http::HeaderMap;
use pulp_model::RegistryId;

/// One request as the upstream saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|v| v.to_str().unwrap())
    }
}

pub(crate) type Log = Arc<Mutex<Vec<Seen>>>;

/// An upstream whose answers are made by `script` from the number of earlier requests with the same target, and
/// the request. Gives its base url and what it sees.
pub(crate) async fn upstream(
    script: impl Fn(usize, &Seen) -> Response + Send + Sync + 'static,
) -> (String, Log) {
    let log = Log::default();
    let (seen, script) = (log.clone(), Arc::new(script));
    let app = Router::new().fallback(move |request: Request| {
        let now = Seen {
            target: request.uri().to_string(),
            headers: request.headers().clone(),
        };
        let earlier = {
            let mut seen = seen.lock().unwrap();
            seen.push(now.clone());
            seen.iter().filter(|s| s.target == now.target).count() - 1
        };
        let answer = script(earlier, &now);
        async move { answer }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (base, log)
}

pub(crate) fn name() -> RegistryId {
    "a/b".parse().unwrap()
}

pub(crate) fn status(status: u16) -> Response {
    Response::builder().status(status).body(Body::empty()).unwrap()
}

pub(crate) fn ok(body: impl Into<Bytes>) -> Response {
    Response::new(Body::from(body.into()))
}
