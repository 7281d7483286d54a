//! Every url of the v1 API.

use http::Method;
use serde_json::json;

use crate::{
    Body::{Anything, Json, Text, To},
    common::Reply,
    expect, good,
};

#[tokio::test]
async fn answers_of_v1_are_the_originals() {
    let (_old, client) = good();
    let pair = |reply: &Reply| {
        assert_eq!(reply.header("x-docker-registry-version"), Some("0.6.6"));
        assert_eq!(reply.header("x-docker-registry-config"), Some("common"));
    };
    let cdn = |path: &str| To(format!("http://cdn.redhat.com/{path}"));
    let missing = || Text("Not Found");
    let foo_images = || Json(json!([{ "id": "abc123" }, { "id": "xyz789" }]));
    let foo_tags = || Json(json!({ "latest": "abc123", "test": "def234" }));
    let bar_tags = || Json(json!({ "latest": "def456", "test": "ghi789" }));
    for (method, path, status, body) in [
        ("GET", "_ping", 200, Json(json!(true))),
        ("HEAD", "_ping", 200, Text("")),
        ("POST", "_ping", 405, Anything),
        ("DELETE", "_ping", 405, Anything),
        ("OPTIONS", "_ping", 200, Text("")),
        ("GET", "_ping/", 404, Anything),
        ("GET", "users/", 200, Json(json!("OK"))),
        ("POST", "users/", 201, Json(json!("User Created"))),
        ("PUT", "users/", 405, Anything),
        ("GET", "nothing", 404, Anything),
        ("GET", "repositories/redhat/foo/images", 200, foo_images()),
        ("HEAD", "repositories/redhat/foo/images", 200, Text("")),
        (
            "GET",
            "repositories/bar/images",
            200,
            Json(json!([{ "id": "def456" }])),
        ),
        (
            "GET",
            "repositories/library/bar/images",
            200,
            Json(json!([{ "id": "def456" }])),
        ),
        (
            "GET",
            "repositories/nop/images",
            200,
            Json(json!([{ "id": "def4561" }])),
        ),
        ("GET", "repositories/idontexist/images", 404, missing()),
        ("GET", "repositories/redhat/idontexist/images", 404, missing()),
        ("GET", "repositories/a/b/c/d/images", 404, missing()),
        ("GET", "repositories/library/a/b/images", 404, missing()),
        ("GET", "repositories/baz/images", 404, missing()),
        ("GET", "repositories/library/baz/images", 404, missing()),
        ("GET", "repositories/qux/images", 404, missing()),
        ("GET", "repositories/redhat/foo/images/", 404, Anything),
        ("GET", "repositories//bar/images", 404, Anything),
        ("PUT", "repositories/redhat/foo/images", 405, Anything),
        ("GET", "repositories/redhat/foo/tags", 200, foo_tags()),
        ("GET", "repositories/bar/tags", 200, bar_tags()),
        ("GET", "repositories/library/bar/tags", 200, bar_tags()),
        (
            "GET",
            "repositories/nop/tags",
            200,
            Json(json!({ "ab": "def456" })),
        ),
        ("GET", "repositories/idontexist/tags", 404, missing()),
        ("GET", "repositories/a/b/c/d/tags", 404, missing()),
        ("GET", "repositories/baz/tags", 404, missing()),
        ("GET", "repositories/redhat/foo/tags/", 404, Anything),
        (
            "GET",
            "repositories/redhat/foo/tags/latest",
            200,
            Json(json!("abc123")),
        ),
        (
            "GET",
            "repositories/redhat/foo/tags/test",
            200,
            Json(json!("def234")),
        ),
        (
            "GET",
            "repositories/library/bar/tags/latest",
            200,
            Json(json!("def456")),
        ),
        ("GET", "repositories/bar/tags/test", 200, Json(json!("ghi789"))),
        ("GET", "repositories/nop/tags/latest", 404, missing()),
        ("GET", "repositories/nop/tags/ab", 200, Json(json!("def456"))),
        ("GET", "repositories/idontexist/tags/latest", 404, missing()),
        ("GET", "repositories/a/b/c/d/tags/latest", 404, missing()),
        ("GET", "repositories/redhat/foo/tag/latest", 404, Anything),
        ("GET", "repositories/redhat/foo/tags/latest/", 404, Anything),
        ("GET", "repositories/baz/tags/latest", 404, missing()),
        (
            "GET",
            "images/abc123/json",
            302,
            cdn("foo/bar/images/abc123/json"),
        ),
        (
            "GET",
            "images/abc123/ancestry",
            302,
            cdn("foo/bar/images/abc123/ancestry"),
        ),
        (
            "GET",
            "images/abc123/layer",
            302,
            cdn("foo/bar/images/abc123/layer"),
        ),
        (
            "HEAD",
            "images/abc123/layer",
            302,
            cdn("foo/bar/images/abc123/layer"),
        ),
        ("PUT", "images/abc123/layer", 405, Anything),
        ("GET", "images/abc123/notvalid", 404, missing()),
        ("GET", "images/abc123/json/", 404, Anything),
        (
            "GET",
            "images/xyz789/json",
            302,
            cdn("foo/bar/images/xyz789/json"),
        ),
        (
            "GET",
            "images/def456/json",
            302,
            cdn("bar/baz/images/def456/json"),
        ),
        (
            "GET",
            "images/def4561/json",
            302,
            cdn("nop/baz/images/def4561/json"),
        ),
        ("GET", "images/baz123/json", 404, missing()),
        ("GET", "images/qux123/json", 404, missing()),
        ("GET", "images/idontexist/json", 404, missing()),
        ("GET", "search", 400, Text("parameter \"q\" is required")),
        ("GET", "search?q=", 400, Text("parameter \"q\" is required")),
        ("GET", "search?n=5", 400, Text("parameter \"q\" is required")),
        ("GET", "search/?q=x", 404, Anything),
        // The original had a search only where another service was configured for it.
        (
            "GET",
            "search?q=rhel",
            200,
            Json(json!({ "query": "rhel", "num_results": 0, "results": [] })),
        ),
    ] {
        let row = format!("{method} /v1/{path}");
        let reply = client
            .ask(method.parse().unwrap(), &format!("/v1/{path}"), &[])
            .await;
        pair(&reply);
        expect(&row, &reply, status, &body);
        if matches!(body, Text(t) if !t.is_empty()) {
            assert_eq!(
                reply.header("content-type"),
                Some("text/html; charset=utf-8"),
                "{row}"
            );
        }
        let endpoint = reply.header("x-docker-endpoints");
        let images = status == 200 && path.ends_with("/images");
        assert_eq!(endpoint, images.then_some("registry.example.com:5000"), "{row}");
        let standalone = reply.header("x-docker-registry-standalone");
        let expected =
            matches!(path, "_ping" | "users/") && matches!(method, "GET" | "HEAD" | "POST") && status < 300;
        assert_eq!(standalone, expected.then_some("True"), "{row}");
        let allow = match (status, method, path) {
            (405, _, "users/") => Some("GET, HEAD, OPTIONS, POST"),
            (405, ..) | (_, "OPTIONS", _) => Some("GET, HEAD, OPTIONS"),
            _ => None,
        };
        assert_eq!(reply.header("allow"), allow, "{row}");
    }
    // A forwarded host is not believed.
    let forwarded = [("x-forwarded-host", "evil.example.com")];
    let reply = client
        .ask(Method::GET, "/v1/repositories/redhat/foo/images", &forwarded)
        .await;
    assert_eq!(
        reply.header("x-docker-endpoints"),
        Some("registry.example.com:5000")
    );
}
