//! The trace of a request: the caller's, if it sends one, else a new one; and how long it took.

use std::{sync::LazyLock, time::Instant};

use axum::{
    extract::{MatchedPath, Request},
    middleware::Next,
    response::Response,
};
use http::Method;
use prometheus::{HistogramVec, exponential_buckets, register_histogram_vec};
use pulp_runtime::registered_metric;
use pulp_trace::{Span, SpanKind, TraceContext};
use tracing::Instrument as _;

static REQUESTS: LazyLock<HistogramVec> = registered_metric!(register_histogram_vec!(
    "pulp_api_request_seconds",
    "Time from a request to its answer's headers, by route, method and class of the status",
    &["route", "method", "status"],
    exponential_buckets(0.001, 2.0, 15).unwrap_or_default()
));

/// Runs the request as a part of its trace: its tasks belong to it, and the lines that it logs name it.
pub(crate) async fn traced(request: Request, next: Next) -> Response {
    let caller = TraceContext::from_headers(request.headers());
    let begun = Instant::now();
    // The pattern, not the path: a name for each repository would be of no use.
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map(MatchedPath::as_str);
    let method = known(request.method());
    let name = route.map_or_else(|| method.to_owned(), |route| format!("{method} {route}"));
    let span = Span::below(caller.as_ref(), name, SpanKind::Server);
    if span.is_recording() {
        span.set("http.request.method", method);
        span.set("http.route", route.unwrap_or_default());
        span.set("url.path", request.uri().path());
    }
    let lines = tracing::error_span!("request", trace_id = %span.place().trace_id());
    let response = span.run(next.run(request)).instrument(lines).await;
    let status = response.status();
    span.count("http.response.status_code", u64::from(status.as_u16()));
    if status.is_server_error() {
        span.fail(&status);
    }
    let class = match status.as_u16() / 100 {
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        5 => "5xx",
        _ => "1xx",
    };
    REQUESTS
        .with_label_values(&[route.unwrap_or_default(), method, class])
        .observe(begun.elapsed().as_secs_f64());
    response
}

/// The method, if it is one of those that are answered: others are a client's to invent, without end.
fn known(method: &Method) -> &'static str {
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    known
        .into_iter()
        .find(|k| *k == method.as_str())
        .unwrap_or("OTHER")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::testing::Api;

    const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    async fn trace_of_the_last_message(api: &Api) -> TraceContext {
        let batch = api.store.outbox_batch(100).await.unwrap();
        batch.rows.last().unwrap().trace.clone().unwrap()
    }

    #[tokio::test]
    async fn a_task_belongs_to_the_trace_of_the_request_that_made_it() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        let path = "/repositories/r/actions/publish/";
        let request = Api::request("POST", path)
            .header("traceparent", CALLER)
            .header("tracestate", "vendor=x")
            .body(axum::body::Body::from(json!({"id": "web"}).to_string()))
            .unwrap();
        api.send(request).await.task();
        let trace = trace_of_the_last_message(&api).await;
        assert_eq!(
            (trace.traceparent().as_str(), trace.tracestate().as_deref()),
            (CALLER, Some("vendor=x"))
        );

        api.post("/repositories/", &json!({"id": "s"})).await;
        let id = api.delete("/repositories/s/").await.task();
        let other = trace_of_the_last_message(&api).await;
        assert_ne!(other.trace_id(), trace.trace_id(), "{id}: a trace of its own");
    }
}
