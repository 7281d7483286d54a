//! The trace of a request: the caller's, if it sends one, else a new one.

use axum::{
    extract::{MatchedPath, Request},
    middleware::Next,
    response::Response,
};
use pulp_trace::{Span, SpanKind, TraceContext};
use tracing::Instrument as _;

/// Runs the request as a part of its trace: its tasks belong to it, and the lines that it logs name it.
pub(crate) async fn traced(request: Request, next: Next) -> Response {
    let caller = TraceContext::from_headers(request.headers());
    // The pattern, not the path: a name for each repository would be of no use.
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let method = request.method().as_str().to_owned();
    let name = route.map_or_else(|| method.clone(), |route| format!("{method} {route}"));
    let span = Span::below(caller.as_ref(), name, SpanKind::Server);
    if span.is_recording() {
        span.set("http.request.method", &method);
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
    response
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
