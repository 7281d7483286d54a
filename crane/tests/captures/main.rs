//! What the original Crane 3.3.1 answered, captured from a running copy: the same data, the same requests.
//!
//! Left out are pages of its web framework. Where this Crane does better on purpose, the row says so.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;

mod answers_v1;
mod answers_v2;
mod delivery;
mod manifests;
mod pages;

use common::{Client, Old, Reply};
use pulp_crane::{Crane, Mode};
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
