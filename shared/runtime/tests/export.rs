//! Spans arrive at a receiver of OTLP as protobuf, and one that hangs holds up nobody.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use pulp_runtime::{
    config::{Secret, TracingConfig},
    export,
};
use pulp_trace::{Span, SpanKind};

#[derive(Clone, Default)]
struct Receiver {
    hangs: Arc<AtomicBool>,
    came: Arc<Mutex<Vec<(HeaderMap, ExportTraceServiceRequest)>>>,
}

async fn take(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) {
    if receiver.hangs.load(Ordering::SeqCst) {
        std::future::pending::<()>().await;
    }
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    receiver.came.lock().unwrap().push((headers, request));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_arrive_with_their_headers_and_a_receiver_that_hangs_holds_up_no_end() {
    let receiver = Receiver::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new()
        .route("/otlp/v1/traces", post(take))
        .with_state(receiver.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });

    let off = TracingConfig::default();
    assert!(!export::start(&off, "pulp-test").unwrap());
    assert!(!pulp_trace::is_exporting());
    let config = TracingConfig {
        endpoint: Some(format!("http://{address}/otlp").parse().unwrap()),
        headers: Some(Secret::new("authorization=Bearer%20token")),
        timeout: Duration::from_mins(10),
        ..TracingConfig::default()
    };
    assert!(export::start(&config, "pulp-test").unwrap());
    assert!(export::start(&config, "pulp-test").is_err(), "twice");

    // As many as make a batch go out before its time.
    let trace_id = Span::begin("one", SpanKind::Internal)
        .place()
        .trace_id()
        .to_string();
    for _ in 0..600 {
        Span::begin("more", SpanKind::Internal);
    }
    let deadline = Instant::now() + Duration::from_mins(1);
    while receiver.came.lock().unwrap().is_empty() {
        assert!(Instant::now() < deadline, "nothing came");
        tokio::task::yield_now().await;
    }
    {
        let came = receiver.came.lock().unwrap();
        let (headers, request) = &came[0];
        assert_eq!(headers["authorization"], "Bearer token");
        assert_eq!(headers["content-type"], "application/x-protobuf");
        let of = &request.resource_spans[0];
        let attributes = &of.resource.as_ref().unwrap().attributes;
        let named = attributes.iter().find(|a| a.key == "service.name").unwrap();
        assert!(format!("{named:?}").contains("pulp-test"), "{named:?}");
        let first = &of.scope_spans[0].spans[0];
        assert_eq!((first.name.as_str(), hex(&first.trace_id)), ("one", trace_id));
    }

    // Many more than the queue holds: the work goes on at once, and the end comes though the last try hangs.
    receiver.hangs.store(true, Ordering::SeqCst);
    for _ in 0..10_000 {
        Span::begin("lost", SpanKind::Internal);
    }
    let ended = tokio::time::timeout(Duration::from_secs(30), export::end());
    ended.await.unwrap();
}

fn hex(bytes: &[u8]) -> String {
    hex::encode(bytes)
}
