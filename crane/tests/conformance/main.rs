//! The read side of the OCI distribution specification, 1.1 and what is coming after it, case by case.
//!
//! Cases and environment variables are named as in the specification's own suite, so that this runs against any
//! registry, too: set `OCI_ROOT_URL`, `OCI_NAMESPACE` and what is there, `OCI_TAG_NAME`, `OCI_MANIFEST_DIGEST`,
//! `OCI_BLOB_DIGEST`, `OCI_TAG_LIST` (or their newer names `OCI_REGISTRY`, `OCI_REPO1`, `OCI_RO_DATA_TAGS`,
//! `OCI_RO_DATA_MANIFESTS`, `OCI_RO_DATA_BLOBS`, `OCI_RO_DATA_REFERRERS`). Without, a Crane of its own is tested.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;

mod discovery;
mod own;
mod pull;

use std::{env, io::Write as _, time::Duration};

use common::{LIST, OCI_IMAGE, OCI_INDEX, S2};
use own::Running;
use reqwest::{Client, Method, Response};
use serde_json::Value;

const ACCEPT: [&str; 4] = [OCI_IMAGE, OCI_INDEX, S2, LIST];

/// What is asked, and what is known to be there.
struct Suite {
    client: Client,
    root: String,
    namespace: String,
    tags: Vec<String>,
    manifests: Vec<String>,
    blobs: Vec<String>,
    /// What others refer to.
    subjects: Vec<String>,
    all_tags: Vec<String>,
    /// A type that some referrers have and others have not.
    artifact_type: String,
    failed: Vec<String>,
}

impl Suite {
    /// Of the environment; none if it doesn't say what to test.
    fn of_environment() -> Option<Self> {
        let one = |names: &[&str]| {
            names
                .iter()
                .find_map(|n| env::var(n).ok())
                .filter(|v| !v.is_empty())
        };
        let many = |names: &[&str]| -> Vec<String> {
            one(names)
                .map(|v| {
                    v.split([' ', ','])
                        .filter(|p| !p.is_empty())
                        .map(ToOwned::to_owned)
                        .collect()
                })
                .unwrap_or_default()
        };
        let root = one(&["OCI_ROOT_URL", "OCI_REGISTRY"])?;
        let root = if root.contains("://") {
            root
        } else {
            format!("http://{root}")
        };
        Some(Self {
            client: Client::new(),
            root: root.trim_end_matches('/').to_owned(),
            namespace: one(&["OCI_NAMESPACE", "OCI_REPO1"]).expect("OCI_NAMESPACE or OCI_REPO1"),
            tags: many(&["OCI_TAG_NAME", "OCI_RO_DATA_TAGS"]),
            manifests: many(&["OCI_MANIFEST_DIGEST", "OCI_RO_DATA_MANIFESTS"]),
            blobs: many(&["OCI_BLOB_DIGEST", "OCI_RO_DATA_BLOBS"]),
            subjects: many(&["OCI_RO_DATA_REFERRERS"]),
            all_tags: many(&["OCI_TAG_LIST"]),
            artifact_type: "application/vnd.example.sbom".into(),
            failed: Vec::new(),
        })
    }

    fn check(&mut self, case: &str, on: &str, holds: bool, got: &str) {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{} {case} ({on})", if holds { "ok    " } else { "FAILED" }).unwrap();
        if !holds {
            self.failed.push(format!("{case} ({on}): {got}"));
        }
    }

    async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
        let url = format!("{}{path}", self.root);
        let mut request = self.client.request(method, url).timeout(Duration::from_secs(30));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    async fn status(&mut self, case: &str, method: Method, path: &str, allowed: &[u16]) -> Response {
        let accept: Vec<_> = ACCEPT.iter().map(|t| ("accept", *t)).collect();
        let reply = self.ask(method, path, &accept).await;
        let status = reply.status().as_u16();
        self.check(case, path, allowed.contains(&status), &status.to_string());
        self.check(
            "header Docker-Distribution-API-Version is on every response",
            path,
            header(&reply, "docker-distribution-api-version") == Some("registry/2.0"),
            "absent",
        );
        reply
    }

    fn path(&self, rest: &str) -> String {
        format!("/v2/{}/{rest}", self.namespace)
    }

    async fn error(&mut self, path: &str, reply: Response, code: &str) {
        let json = header(&reply, "content-type").is_some_and(|t| t.starts_with("application/json"));
        let text = reply.text().await.unwrap();
        let body: Value = serde_json::from_str(&text).unwrap_or_default();
        let so = json && body["errors"][0]["code"] == code && body["errors"][0]["message"].is_string();
        self.check(
            "response body should contain OCI-conforming JSON message",
            path,
            so,
            &text,
        );
    }
}

fn header<'a>(reply: &'a Response, name: &str) -> Option<&'a str> {
    reply.headers().get(name)?.to_str().ok()
}

/// Where the next page is.
fn link(reply: &Response) -> Option<String> {
    let (target, rel) = header(reply, "link")?.strip_prefix('<')?.split_once('>')?;
    rel.contains("rel=\"next\"").then(|| target.to_owned())
}

fn names(list: &Value) -> Vec<String> {
    let list = list.as_array().cloned().unwrap_or_default();
    list.iter()
        .filter_map(|n| n.as_str().map(ToOwned::to_owned))
        .collect()
}

/// A part of the suite runs unless its variable says 0.
fn wanted(name: &str) -> bool {
    env::var(name).map_or(true, |v| !matches!(v.as_str(), "0" | "false"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_read_side_of_the_distribution_specification_holds() {
    let (mut suite, own) = if let Some(suite) = Suite::of_environment() {
        (suite, None)
    } else {
        let (suite, running) = Suite::of_own().await;
        (suite, Some(running))
    };
    if wanted("OCI_TEST_PULL") {
        suite.pull().await;
    }
    if wanted("OCI_TEST_CONTENT_DISCOVERY") {
        suite.tags().await;
        suite.referrers().await;
    }
    if own.is_some() {
        suite.push().await;
        suite.namespaces().await;
    }
    if let Some(Running { shutdown, crane, .. }) = own {
        shutdown.cancel();
        crane.await.unwrap().unwrap();
    }
    assert!(suite.failed.is_empty(), "{:#?}", suite.failed);
}
