//! What the original Crane 3.3.1 answered, captured from a running copy: the same data, the same requests.
//!
//! Left out are pages of its web framework. Where this Crane does better on purpose, the row says so.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Client, LIST, Old, Reply, S2, Site};
use http::Method;
use pulp_crane::{Cdn, Crane, CraneConfig, Mode, Sendfile, Token};
use serde_json::{Value, json};

const C: &str = "sha256:c55544de64a01e157b9d931f5db7a16554a14be19c367f91c9a8cdc46db086bf";
const A1: &str = "sha256:a1d963a97357110bdbfc70767a495c8df6ddfa9bda4da3183165ca73c3b990d2";
const L3: &str = "sha256:3e0e8f106ef40081ed9977a432dcf1720e4a6af101b243686b3dc548540e7ca8";
const OCI: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json";
const S1: &str = "application/vnd.docker.distribution.manifest.v1+json";

fn v1(old: &Old, id: &str, protected: bool, url: &str, images: &[&str], tags: &Value) {
    let images: Vec<Value> = images.iter().map(|id| json!({ "id": id })).collect();
    let file = json!({
        "version": 1, "repository": id.replace("redhat/", ""), "repo-registry-id": id, "protected": protected,
        "url": url, "images": images, "tags": tags,
    });
    old.write(&format!("v1-{}.json", id.replace('/', "-")), file.to_string());
}

fn v2(old: &Old, id: &str, url: &str, also: Value) {
    let mut file =
        json!({ "version": 2, "repository": id.replace('/', ""), "repo-registry-id": id, "url": url });
    if let Value::Object(also) = also {
        file.as_object_mut().unwrap().extend(also);
    }
    old.write(&format!("v2-{}.json", id.replace('/', "-")), file.to_string());
}

/// The data that the original's own tests use.
fn good() -> (Old, Client) {
    let old = Old::new();
    let cdn = "http://cdn.redhat.com";
    v1(
        &old,
        "redhat/foo",
        false,
        &format!("{cdn}/foo/bar/images/"),
        &["abc123", "xyz789"],
        &json!({ "latest": "abc123", "test": "def234" }),
    );
    v1(
        &old,
        "bar",
        false,
        &format!("{cdn}/bar/baz/images"),
        &["def456"],
        &json!({ "latest": "def456", "test": "ghi789" }),
    );
    v1(
        &old,
        "baz",
        true,
        &format!("{cdn}/foo/path/bar/baz/images"),
        &["baz123"],
        &json!({ "latest": "baz123" }),
    );
    v1(
        &old,
        "qux",
        true,
        &format!("{cdn}/some/invalid/path/qux/images"),
        &["qux123"],
        &json!({ "latest": "qux123" }),
    );
    v1(
        &old,
        "nop",
        false,
        &format!("{cdn}/nop/baz/images"),
        &["def4561"],
        &json!({ "ab": "def456" }),
    );
    v2(&old, "redhat/foo", &format!("{cdn}/foo/bar"), json!({}));
    v2(&old, "v2/bar", &format!("{cdn}/bar/baz/images/"), json!({}));
    v2(
        &old,
        "protected",
        &format!("{cdn}/bar/baz/images"),
        json!({ "protected": true }),
    );
    v2(
        &old,
        "registry",
        "https://cdn.example.com/pulp/docker/v2/registry/",
        json!({ "type": "pulp-docker-redirect" }),
    );
    v2(
        &old,
        "redhat/zoo",
        &format!("{cdn}/zoo/bar"),
        json!({
            "version": 4, "schema2_data": [A1, "1.25.1-musl", "1.25.0-glibc"],
            "manifest_list_data": ["bar", L3, "latest"],
            "manifest_list_amd64_tags": { "bar": [C, 2], "latest": [C, 1] },
        }),
    );
    let client = Client(Crane::open(old.config(Mode::Redirect)).router());
    (old, client)
}

/// What is expected of an answer's rest.
enum Body {
    Json(Value),
    Text(&'static str),
    /// 302 to there.
    To(String),
    /// An error of the v2 API with this code; the original had the status for a code.
    Error(&'static str),
    Anything,
}

use Body::{Anything, Error, Json, Text, To};

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

fn expect(row: &str, reply: &Reply, status: u16, body: &Body) {
    assert_eq!(reply.status.as_u16(), status, "{row}");
    match body {
        Json(value) => {
            assert_eq!(reply.header("content-type"), Some("application/json"), "{row}");
            assert_eq!(reply.json(), *value, "{row}");
        }
        Text(text) => assert_eq!(String::from_utf8_lossy(&reply.body), *text, "{row}"),
        To(url) => assert_eq!(reply.header("location"), Some(url.as_str()), "{row}"),
        Error(code) => assert_eq!(reply.error(), (status, (*code).to_owned()), "{row}"),
        Anything => {}
    }
}

#[tokio::test]
async fn answers_of_v2_are_the_originals() {
    let (_old, client) = good();
    let foo = |path: &str| To(format!("http://cdn.redhat.com/foo/bar/{path}"));
    let zoo = |path: &str| To(format!("http://cdn.redhat.com/zoo/bar/{path}"));
    let (name, invalid) = (|| Error("NAME_UNKNOWN"), || Error("NAME_INVALID"));
    for (method, path, status, body) in [
        ("GET", "", 200, Json(json!({}))),
        ("HEAD", "", 200, Text("")),
        ("OPTIONS", "", 200, Text("")),
        ("POST", "", 405, Error("UNSUPPORTED")),
        ("PUT", "", 405, Error("UNSUPPORTED")),
        ("DELETE", "redhat/foo/manifests/latest", 405, Error("UNSUPPORTED")),
        ("POST", "redhat/foo/blobs/uploads/", 405, Error("UNSUPPORTED")),
        ("PUT", "redhat/foo/manifests/latest", 405, Error("UNSUPPORTED")),
        ("PATCH", "redhat/foo/blobs/uploads/x", 405, Error("UNSUPPORTED")),
        // The original had none.
        (
            "GET",
            "_catalog",
            200,
            Json(json!({ "repositories": ["redhat/foo", "redhat/zoo", "registry", "v2/bar"] })),
        ),
        ("GET", "no/name/test", 404, name()),
        ("GET", "foo/test", 404, name()),
        ("GET", "tags", 404, name()),
        ("GET", "tags/list", 404, name()),
        ("GET", "manifests/latest", 404, name()),
        ("GET", "idontexist/tags/list", 404, name()),
        ("GET", "idontexist/manifests/latest", 404, name()),
        ("HEAD", "idontexist/manifests/latest", 404, Text("")),
        ("GET", "idontexist/blobs/x", 404, name()),
        ("GET", "redhat/foo/tags/list", 302, foo("tags/list")),
        ("GET", "redhat/foo/tags/latest", 302, foo("tags/latest")),
        ("GET", "redhat/foo/tags", 302, foo("tags")),
        ("GET", "redhat/foo/tags/", 302, foo("tags/")),
        ("GET", "redhat/foo/tags/list?n=5&last=x", 302, foo("tags/list")),
        ("GET", "redhat/foo/tags/list/", 302, foo("tags/list/")),
        ("GET", "redhat/foo/blobs/123", 302, foo("blobs/123")),
        ("HEAD", "redhat/foo/blobs/123", 302, foo("blobs/123")),
        (
            "GET",
            &format!("redhat/foo/blobs/{C}"),
            302,
            foo(&format!("blobs/{C}")),
        ),
        ("GET", "redhat/foo/manifests/latest", 302, foo("manifests/latest")),
        (
            "GET",
            "redhat/foo/manifests/123456789",
            302,
            foo("manifests/123456789"),
        ),
        (
            "GET",
            &format!("redhat/foo/manifests/{A1}"),
            302,
            foo(&format!("manifests/{A1}")),
        ),
        (
            "GET",
            "registry/blobs/123",
            302,
            To("https://cdn.example.com/pulp/docker/v2/registry/blobs/123".into()),
        ),
        (
            "GET",
            "registry/tags/list",
            302,
            To("https://cdn.example.com/pulp/docker/v2/registry/tags/list".into()),
        ),
        (
            "GET",
            "v2/bar/manifests/latest",
            302,
            To("http://cdn.redhat.com/bar/baz/images/manifests/latest".into()),
        ),
        ("GET", "bar/manifests/latest", 404, name()),
        ("GET", "library/registry/manifests/latest", 404, name()),
        ("GET", "library/registry/tags/list", 404, name()),
        ("GET", "redhat/zoo/blobs/a/b", 302, zoo("blobs/a/b")),
        ("GET", "redhat/zoo/blobs", 302, zoo("blobs")),
        ("GET", "redhat/zoo/blobs/", 302, zoo("blobs/")),
        ("GET", "redhat/zoo/blobs/a%20b", 302, zoo("blobs/a%20b")),
        ("GET", "redhat/zoo/blobs/caf%C3%A9", 302, zoo("blobs/caf%C3%A9")),
        ("GET", "redhat/zoo/blobs/a?b=c", 302, zoo("blobs/a")),
        ("GET", "redhat%2Fzoo/blobs/x", 302, zoo("blobs/x")),
        ("GET", "redhat/zoo/tags/blobs/x", 404, name()),
        ("GET", "protected/manifests/latest", 404, name()),
        ("GET", "protected/tags/list", 404, name()),
        ("GET", "protected/blobs/x", 404, name()),
        // The original: 404. The specification has a code for names that can be none.
        ("GET", "redhat//zoo/blobs/x", 400, invalid()),
        ("GET", "REDHAT/zoo/blobs/x", 400, invalid()),
        // The original led out of the repository's url, broke down, or split the header.
        ("GET", "redhat/zoo/blobs/../x", 400, Anything),
        ("GET", "redhat/zoo/blobs/%2e%2e/x", 400, Anything),
        ("GET", "redhat/zoo/blobs/a%0d%0aX-Evil:%201", 400, Anything),
        ("GET", "redhat/zoo/manifests", 404, Anything),
        ("GET", "redhat/zoo/manifests/a/b", 404, Anything),
    ] {
        let row = format!("{method} /v2/{path}");
        let reply = client
            .ask(method.parse().unwrap(), &format!("/v2/{path}"), &[])
            .await;
        expect(&row, &reply, status, &body);
        // The original had it on 200 alone.
        assert_eq!(
            reply.header("docker-distribution-api-version"),
            Some("registry/2.0"),
            "{row}"
        );
        assert_eq!(reply.header("x-evil"), None);
    }
    for (path, location) in [("/v2", "/v2/"), ("/v1/users", "/v1/users/")] {
        let reply = client.get(path).await;
        assert_eq!(
            (reply.status.as_u16(), reply.header("location")),
            (301, Some(location))
        );
    }
    for path in [
        "/",
        "/favicon.ico",
        "/v1",
        "/v1/",
        "/crane",
        "/crane/",
        "/crane/repositories/",
        "/crane/repositories/v3",
    ] {
        assert_eq!(client.get(path).await.status, 404, "{path}");
    }
}

/// Rows: a reference. Columns: what is accepted. Cells: what follows the url and `manifests/`.
async fn table(client: &Client, id: &str, url: &str, accepts: &[Option<&str>], rows: &[(&str, &[&str])]) {
    for (reference, cells) in rows {
        for (accept, cell) in accepts.iter().zip(*cells) {
            let headers: Vec<_> = accept.iter().map(|a| ("accept", *a)).collect();
            let path = format!("/v2/{id}/manifests/{reference}");
            let reply = client.ask(Method::GET, &path, &headers).await;
            assert_eq!(
                (reply.status.as_u16(), reply.header("location")),
                (302, Some(format!("{url}/manifests/{cell}").as_str())),
                "{id} {reference} {accept:?}"
            );
        }
        assert_eq!(accepts.len(), cells.len(), "{id} {reference}");
    }
}

#[tokio::test]
async fn manifests_are_chosen_as_the_original_chose_them() {
    let (_old, client) = good();
    let (both, junk) = (format!("{LIST}, {S2}"), format!("{LIST}junk, {S2}"));
    let (weighted, upper) = (format!("{LIST};q=0.5, {S2};q=0.9"), LIST.to_uppercase());
    let accepts = [
        None,
        Some("*/*"),
        Some(S1),
        Some(S2),
        Some(LIST),
        Some(&both),
        Some(OCI),
        Some(&junk),
        Some(&weighted),
        Some(&upper),
    ];
    let c1 = format!("1/{C}");
    let c2 = format!("2/{C}");
    let (a1, a2) = (format!("1/{A1}"), format!("2/{A1}"));
    let (l1, l) = (format!("1/{L3}"), format!("list/{L3}"));
    table(
        &client,
        "redhat/zoo",
        "http://cdn.redhat.com/zoo/bar",
        &accepts,
        &[
            (
                "latest",
                &[
                    &c1,
                    &c1,
                    &c1,
                    &c1,
                    "list/latest",
                    "list/latest",
                    &c1,
                    &c1,
                    "list/latest",
                    &c1,
                ],
            ),
            (
                "bar",
                &[
                    "1/bar", "1/bar", "1/bar", &c2, "list/bar", "list/bar", "1/bar", &c2, "list/bar", "1/bar",
                ],
            ),
            (
                "1.25.1-musl",
                &[
                    "1/1.25.1-musl",
                    "1/1.25.1-musl",
                    "1/1.25.1-musl",
                    "2/1.25.1-musl",
                    "1/1.25.1-musl",
                    "2/1.25.1-musl",
                    "1/1.25.1-musl",
                    "2/1.25.1-musl",
                    "2/1.25.1-musl",
                    "1/1.25.1-musl",
                ],
            ),
            ("unknown", &["1/unknown"; 10]),
            (A1, &[&a1, &a1, &a1, &a2, &a1, &a2, &a1, &a2, &a2, &a1]),
            (L3, &[&l1, &l1, &l1, &l1, &l, &l, &l1, &l1, &l, &l1]),
            (C, &[c1.as_str(); 10]),
        ],
    )
    .await;

    let old = Old::new();
    let digest = |n: char| format!("sha256:{}", n.to_string().repeat(64));
    let (d1, d2, d3, d4, da, d9) = (
        digest('1'),
        digest('2'),
        digest('3'),
        digest('4'),
        digest('a'),
        digest('9'),
    );
    let cdn = |id: &str| format!("https://cdn.example.com/{}", id.replace('/', "-"));
    let put = |id: &str, also: Value| v2(&old, id, &cdn(id), also);
    put(
        "v4/full",
        json!({
            "version": 4, "schema2_data": ["both", "s2only", d2],
            "manifest_list_data": ["multi", "multi1", "noamd", "both", da],
            "manifest_list_amd64_tags": { "multi": [d2, 2], "multi1": [d1, 1], "amdonly": [d3, 2], "amdonly1": [d4, 1] },
        }),
    );
    put(
        "v4/nos2",
        json!({
            "version": 4, "schema2_data": [], "manifest_list_data": ["multi"], "manifest_list_amd64_tags": { "multi": [d2, 2] },
        }),
    );
    put(
        "v4/nolist",
        json!({ "version": 4, "schema2_data": ["s2"], "manifest_list_data": [], "manifest_list_amd64_tags": {} }),
    );
    put(
        "v4/empty",
        json!({ "version": 4, "schema2_data": [], "manifest_list_data": [], "manifest_list_amd64_tags": {} }),
    );
    put("v3/full", json!({ "version": 3, "schema2_data": ["s2only", d2] }));
    put("v3/empty", json!({ "version": 3, "schema2_data": [] }));
    let client = Client(Crane::open(old.config(Mode::Redirect)).router());
    let m = |folder: &str, digest: &str| format!("{folder}/{digest}");
    table(
        &client,
        "v4/full",
        &cdn("v4/full"),
        &[None, Some(S2), Some(LIST), Some(&both)],
        &[
            ("multi", &["1/multi", &m("2", &d2), "list/multi", "list/multi"]),
            (
                "multi1",
                &[&m("1", &d1), &m("1", &d1), "list/multi1", "list/multi1"],
            ),
            ("noamd", &["1/noamd", "1/noamd", "list/noamd", "list/noamd"]),
            ("both", &["1/both", "2/both", "list/both", "list/both"]),
            ("s2only", &["1/s2only", "2/s2only", "1/s2only", "2/s2only"]),
            ("amdonly", &["1/amdonly", &m("2", &d3), "1/amdonly", &m("2", &d3)]),
            (
                "amdonly1",
                &[&m("1", &d4), &m("1", &d4), &m("1", &d4), &m("1", &d4)],
            ),
            ("unknown", &["1/unknown"; 4]),
            (&d2, &[&m("1", &d2), &m("2", &d2), &m("1", &d2), &m("2", &d2)]),
            (&d1, &[&m("1", &d1), &m("1", &d1), &m("1", &d1), &m("1", &d1)]),
            (
                &da,
                &[&m("1", &da), &m("1", &da), &m("list", &da), &m("list", &da)],
            ),
            (&d9, &[&m("1", &d9), &m("1", &d9), &m("1", &d9), &m("1", &d9)]),
        ],
    )
    .await;
    let three = [None, Some(S2), Some(both.as_str())];
    let (m2, all1): (String, [[&str; 3]; 4]) = (
        m("2", &d2),
        [["1/multi"; 3], ["1/s2"; 3], ["1/s2only"; 3], ["1/unknown"; 3]],
    );
    for (id, row, cells) in [
        ("v4/nos2", "multi", ["1/multi", &m2, "list/multi"]),
        ("v4/nolist", "s2", ["1/s2", "2/s2", "2/s2"]),
        ("v4/empty", "", [""; 3]),
        ("v3/full", "s2only", ["1/s2only", "2/s2only", "2/s2only"]),
        ("v3/empty", "", [""; 3]),
    ] {
        for (reference, plain) in ["multi", "s2", "s2only", "unknown"].iter().zip(&all1) {
            let cells = if *reference == row { &cells } else { plain };
            table(&client, id, &cdn(id), &three, &[(reference, cells)]).await;
        }
    }
}

#[tokio::test]
async fn the_list_of_repositories_is_json_for_who_asks_for_just_that_and_a_page_for_others() {
    let (old, client) = good();
    let listed = client.accepting("/crane/repositories", "application/json").await;
    // Without protected ones, which the original named to anybody that its web server let through.
    assert_eq!(
        listed.json(),
        json!({
            "bar": { "image_ids": ["def456"], "protected": false, "tags": { "latest": "def456", "test": "ghi789" } },
            "nop": { "image_ids": ["def4561"], "protected": false, "tags": { "ab": "def456" } },
            "redhat/foo": { "image_ids": ["abc123", "xyz789"], "protected": false, "tags": { "latest": "abc123", "test": "def234" } },
        })
    );
    let listed = client
        .accepting("/crane/repositories/v2", "application/json")
        .await;
    let open = json!({ "protected": false });
    assert_eq!(
        listed.json(),
        json!({ "redhat/foo": open, "redhat/zoo": open, "registry": open, "v2/bar": open })
    );
    for accept in [
        "application/json, text/html",
        "application/json;q=1",
        "*/*",
        "text/html",
        "Application/JSON",
    ] {
        for path in [
            "/crane/repositories",
            "/crane/repositories/v1",
            "/crane/repositories/v2",
        ] {
            let reply = client.accepting(path, accept).await;
            assert_eq!(reply.status, 200);
            assert_eq!(
                reply.header("content-type"),
                Some("text/html; charset=utf-8"),
                "{accept}"
            );
            let page = String::from_utf8(reply.body.to_vec()).unwrap();
            assert!(
                page.contains("Repository id: redhat/foo") && page.contains("Protected: False"),
                "{page}"
            );
            assert!(page.contains("abc123") || path.ends_with("v2"));
            assert!(!page.contains("://"), "nothing from elsewhere: {page}");
        }
    }
    let head = client.ask(Method::HEAD, "/crane/repositories", &[]).await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    let post = client.ask(Method::POST, "/crane/repositories", &[]).await;
    assert_eq!(
        (post.status.as_u16(), post.header("allow")),
        (405, Some("GET, HEAD, OPTIONS"))
    );

    v1(
        &old,
        "evil",
        false,
        "http://x/",
        &["i"],
        &json!({ "<script>alert('&\")</script>": "<b>" }),
    );
    let client = Client(Crane::open(old.config(Mode::Redirect)).router());
    let page = client.get("/crane/repositories").await;
    let page = String::from_utf8(page.body.to_vec()).unwrap();
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;alert(&#39;&amp;&quot;)"));
}

#[tokio::test]
async fn urls_of_v2_go_through_the_cdn_and_those_of_v1_do_not() {
    let (old, _) = good();
    let open = |cdn| {
        let config = CraneConfig {
            cdn,
            ..old.config(Mode::Redirect)
        };
        Client(Crane::open(config).router())
    };
    let rewrite = Some(("cdn.redhat.com".to_owned(), "cdn.fedora.com".to_owned()));
    let client = open(Cdn { rewrite, token: None });
    for (path, location) in [
        (
            "/v2/redhat/zoo/manifests/latest",
            format!("http://cdn.fedora.com/zoo/bar/manifests/1/{C}"),
        ),
        (
            "/v2/redhat/foo/tags/list",
            "http://cdn.fedora.com/foo/bar/tags/list".into(),
        ),
        (
            "/v2/redhat/zoo/blobs/a%20b",
            "http://cdn.fedora.com/zoo/bar/blobs/a%20b".into(),
        ),
        (
            "/v2/redhat/zoo/blobs/cdn.redhat.com",
            "http://cdn.fedora.com/zoo/bar/blobs/cdn.fedora.com".into(),
        ),
        (
            "/v2/registry/blobs/x",
            "https://cdn.example.com/pulp/docker/v2/registry/blobs/x".into(),
        ),
        (
            "/v1/images/abc123/json",
            "http://cdn.redhat.com/foo/bar/images/abc123/json".into(),
        ),
    ] {
        let reply = client.get(path).await;
        assert_eq!(
            (reply.status.as_u16(), reply.header("location")),
            (302, Some(location.as_str()))
        );
    }
    assert_eq!(client.get("/v2/protected/blobs/x").await.status, 404);
    let client = open(Cdn {
        rewrite: None,
        token: Some(Token::new(vec![0xab, 0xc1, 0x23])),
    });
    let reply = client.get("/v2/redhat/foo/tags/list").await;
    let location = reply.header("location").unwrap();
    let (url, token) = location.split_once("?_auth_=exp=").unwrap();
    assert_eq!(url, "http://cdn.redhat.com/foo/bar/tags/list");
    let (expires, code) = token.split_once("~hmac=").unwrap();
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!((now..=now + 300).contains(&expires.parse().unwrap()), "{expires}");
    assert_eq!(code.len(), 64);
    let reply = client.get("/v1/images/abc123/json").await;
    assert_eq!(
        reply.header("location"),
        Some("http://cdn.redhat.com/foo/bar/images/abc123/json")
    );
}

#[tokio::test]
async fn a_web_server_in_front_is_named_the_file_to_send() {
    let site = Site::new();
    let image = site.image("busybox", "busybox", "a");
    site.publish(&image.contents);
    let accel = Sendfile::XAccelRedirect {
        prefix: "/files".into(),
    };
    for (sendfile, name, prefix) in [
        (Sendfile::XSendfile, "x-sendfile", ""),
        (accel, "x-accel-redirect", "/files"),
    ] {
        let config = CraneConfig {
            sendfile: Some(sendfile),
            max_age: Some(std::time::Duration::from_mins(1)),
            ..site.config(Mode::SERVE)
        };
        let client = Client(Crane::open(config).router());
        for (path, content_type, cache) in [
            (
                "/v2/busybox/manifests/latest".to_owned(),
                S2,
                "public, max-age=60",
            ),
            (
                format!("/v2/busybox/manifests/{}", image.manifest),
                S2,
                "public, max-age=31536000, immutable",
            ),
            (
                format!("/v2/busybox/blobs/{}", image.layer),
                "application/octet-stream",
                "public, max-age=31536000, immutable",
            ),
            (
                format!("/v1/images/{}/layer", image.image_id),
                "application/octet-stream",
                "public, max-age=60",
            ),
            (
                format!("/v1/images/{}/json", image.image_id),
                "application/json",
                "public, max-age=60",
            ),
        ] {
            for method in [Method::GET, Method::HEAD] {
                let reply = client.ask(method, &path, &[]).await;
                assert_eq!((reply.status.as_u16(), reply.body.len()), (200, 0), "{path}");
                assert_eq!(reply.header("content-type"), Some(content_type), "{path}");
                assert_eq!(reply.header("cache-control"), Some(cache), "{path}");
                assert!(reply.header("expires").unwrap().ends_with(" GMT"));
                let file = reply.header(name).unwrap().strip_prefix(prefix).unwrap();
                let bytes = std::fs::read(file).unwrap();
                assert!(!path.ends_with(&image.layer.to_string()) || bytes == image.layer_bytes);
                if path.starts_with("/v2/") {
                    let digest: pulp_model::Digest =
                        reply.header("docker-content-digest").unwrap().parse().unwrap();
                    assert!(digest.matches(&bytes), "{path}");
                }
            }
        }
        let etag = format!("\"{}\"", image.layer);
        let held = [("if-none-match", etag.as_str())];
        let reply = client
            .ask(Method::GET, &format!("/v2/busybox/blobs/{}", image.layer), &held)
            .await;
        assert_eq!((reply.status.as_u16(), reply.header(name)), (304, None));
        assert_eq!(client.get("/v2/busybox/manifests/unknown").await.status, 404);
    }
}
