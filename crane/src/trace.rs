//! A span for each request, where spans are exported; it ends with the headers of the answer.

use axum::response::Response;
use http::request::Parts;
use pulp_trace::{Span, SpanKind, TraceContext};

/// Answers the request as a part of the caller's trace, or of a new one.
pub(crate) async fn traced<F>(request: Parts, answer: impl FnOnce(Parts) -> F) -> Response
where
    F: Future<Output = Response>,
{
    if !pulp_trace::is_exporting() {
        return answer(request).await;
    }
    let caller = TraceContext::from_headers(&request.headers);
    let route = route(request.uri.path());
    let span = Span::below(
        caller.as_ref(),
        format!("{} {route}", request.method),
        SpanKind::Server,
    );
    if span.is_recording() {
        span.set("http.request.method", &request.method);
        span.set("http.route", route);
        span.set("url.path", request.uri.path());
    }
    let response = span.run(answer(request)).await;
    let status = response.status();
    span.count("http.response.status_code", u64::from(status.as_u16()));
    if status.is_server_error() {
        span.fail(&status);
    }
    response
}

/// What kind of path it is: a name for each repository would be of no use.
fn route(path: &str) -> &'static str {
    let has = |part: &str| path.contains(part);
    if path.starts_with("/v2/") {
        match () {
            () if has("/manifests/") => "/v2/{name}/manifests/{reference}",
            () if has("/blobs/") => "/v2/{name}/blobs/{digest}",
            () if has("/referrers/") => "/v2/{name}/referrers/{digest}",
            () if path.ends_with("/tags/list") => "/v2/{name}/tags/list",
            () => "/v2/",
        }
    } else if path.starts_with("/v1/images/") {
        "/v1/images/{id}"
    } else if path.starts_with("/v1/repositories/") {
        "/v1/repositories/{name}"
    } else if path.starts_with("/pulp/docker/") {
        "/pulp/docker/{path}"
    } else if path.starts_with("/crane/") {
        "/crane/{page}"
    } else {
        "/"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_named_by_what_is_asked_for_and_not_by_whose() {
        for (path, name) in [
            ("/v2/", "/v2/"),
            ("/v2/a/b/manifests/latest", "/v2/{name}/manifests/{reference}"),
            ("/v2/a/blobs/sha256:00", "/v2/{name}/blobs/{digest}"),
            ("/v2/a/tags/list", "/v2/{name}/tags/list"),
            ("/v2/a/referrers/sha256:00", "/v2/{name}/referrers/{digest}"),
            ("/v1/images/abc/layer", "/v1/images/{id}"),
            ("/v1/_ping", "/"),
            ("/crane/repositories", "/crane/{page}"),
        ] {
            assert_eq!(route(path), name, "{path}");
        }
    }
}
