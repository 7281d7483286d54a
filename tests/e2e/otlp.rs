//! A receiver of OTLP over HTTP within the test, which keeps what comes.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, Result};
use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span as Sent, status::StatusCode as SpanStatus},
};
use prost::Message as _;

/// A span, as a person would read it.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    pub(crate) service: String,
    pub(crate) name: String,
    pub(crate) trace: String,
    pub(crate) id: String,
    /// Empty for the first of a trace.
    pub(crate) parent: String,
    pub(crate) failed: bool,
    attributes: Vec<KeyValue>,
}

impl Span {
    /// An attribute as text.
    pub(crate) fn get(&self, key: &str) -> Option<String> {
        let found = self.attributes.iter().find(|a| a.key == key)?;
        match found.value.as_ref()?.value.as_ref()? {
            Value::StringValue(text) => Some(text.clone()),
            Value::IntValue(number) => Some(number.to_string()),
            other => Some(format!("{other:?}")),
        }
    }
}

type Spans = Arc<Mutex<Vec<Span>>>;

/// Listens as long as it lives.
pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    spans: Spans,
    _runtime: tokio::runtime::Runtime,
}

impl Collector {
    pub(crate) fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let spans = Spans::default();
        let app = Router::new()
            .route("/v1/traces", post(take))
            .with_state(Arc::clone(&spans));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        runtime.spawn(async move { axum::serve(listener, app).await });
        Ok(Self {
            address,
            spans,
            _runtime: runtime,
        })
    }

    /// What has come of a trace so far.
    pub(crate) fn trace(&self, id: &str) -> Vec<Span> {
        let spans = self.spans.lock().unwrap();
        spans.iter().filter(|s| s.trace == id).cloned().collect()
    }

    /// The one span of a trace by this name.
    pub(crate) fn only(&self, trace: &str, name: &str) -> Result<Span> {
        let mut found = self.trace(trace);
        found.retain(|s| s.name == name);
        let one = found.pop().with_context(|| format!("no span {name}"))?;
        anyhow::ensure!(found.is_empty(), "more than one span {name}");
        Ok(one)
    }
}

async fn take(State(spans): State<Spans>, body: Bytes) -> StatusCode {
    let Ok(request) = ExportTraceServiceRequest::decode(body) else {
        return StatusCode::BAD_REQUEST;
    };
    let mut all = spans.lock().unwrap();
    for of in request.resource_spans {
        let resource = of.resource.unwrap_or_default();
        let service = resource.attributes.iter().find(|a| a.key == "service.name");
        let service = service.and_then(|a| a.value.as_ref()?.value.clone());
        let service = match service {
            Some(Value::StringValue(name)) => name,
            _ => String::new(),
        };
        let sent = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
        all.extend(sent.map(|span| read(span, &service)));
    }
    StatusCode::OK
}

fn read(span: Sent, service: &str) -> Span {
    Span {
        service: service.to_owned(),
        name: span.name,
        trace: hex::encode(&span.trace_id),
        id: hex::encode(&span.span_id),
        parent: hex::encode(&span.parent_span_id),
        failed: span.status.is_some_and(|s| s.code() == SpanStatus::Error),
        attributes: span.attributes,
    }
}
