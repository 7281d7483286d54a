//! Pulling: manifests and blobs, their headers, ranges, and what is not there.

use pulp_model::Digest;
use reqwest::Method;
use serde_json::Value;

use crate::{Suite, header, own::sha512};

impl Suite {
    /// Content by HEAD and GET: the same headers, and bytes of that digest.
    pub(crate) async fn content(&mut self, what: &str, reference: &str) {
        let path = self.path(&format!("{what}/{reference}"));
        let named: Option<Digest> = reference.parse().ok();
        let kind = what.trim_end_matches('s');
        let head = self
            .status(
                &format!("HEAD request to existing {kind} should yield 200"),
                Method::HEAD,
                &path,
                &[200],
            )
            .await;
        let get = self
            .status(
                &format!("GET request to existing {kind} should yield 200"),
                Method::GET,
                &path,
                &[200],
            )
            .await;
        for name in ["docker-content-digest", "content-type", "content-length", "etag"] {
            let (h, g) = (header(&head, name), header(&get, name));
            self.check(
                &format!("HEAD and GET agree on {name}"),
                &path,
                h == g && h.is_some(),
                &format!("{h:?} {g:?}"),
            );
        }
        let digest: Option<Digest> = header(&get, "docker-content-digest").and_then(|d| d.parse().ok());
        self.check(
            "Docker-Content-Digest is the digest asked for",
            &path,
            named.is_none() || digest == named,
            &format!("{digest:?}"),
        );
        let content_type = header(&get, "content-type").unwrap_or_default().to_owned();
        let etag = header(&get, "etag").unwrap_or_default().to_owned();
        let length = header(&get, "content-length").unwrap_or_default().to_owned();
        let bytes = get.bytes().await.unwrap();
        self.check(
            "Content-Length is that of the body",
            &path,
            length == bytes.len().to_string(),
            &length,
        );
        let matches = digest.is_some_and(|d| d.matches(&bytes));
        self.check("the body has the digest", &path, matches, "another");
        if what == "manifests" {
            let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let said = body["mediaType"].as_str().unwrap_or(&content_type);
            self.check(
                "Content-Type is the manifest's mediaType",
                &path,
                said == content_type,
                &content_type,
            );
        }
        let unchanged = self.ask(Method::GET, &path, &[("if-none-match", &etag)]).await;
        self.check(
            "If-None-Match with the ETag yields 304",
            &path,
            unchanged.status() == 304,
            unchanged.status().as_str(),
        );
        if what == "blobs" {
            self.ranges(&path, &bytes).await;
        }
    }

    pub(crate) async fn ranges(&mut self, path: &str, bytes: &[u8]) {
        let length = bytes.len();
        if length > 2 {
            let part = self.ask(Method::GET, path, &[("range", "bytes=1-")]).await;
            let expected = format!("bytes 1-{}/{length}", length - 1);
            let so = part.status() == 206 && header(&part, "content-range") == Some(expected.as_str());
            self.check(
                "GET with Range yields 206 and Content-Range",
                path,
                so,
                part.status().as_str(),
            );
            let so = part.bytes().await.unwrap() == bytes[1..];
            self.check("the part is that part of the blob", path, so, "others");
        }
        let beyond = self
            .ask(Method::GET, path, &[("range", &format!("bytes={length}-"))])
            .await;
        let so = beyond.status() == 416
            && header(&beyond, "content-range") == Some(format!("bytes */{length}").as_str());
        self.check(
            "GET with Range beyond the end yields 416",
            path,
            so,
            beyond.status().as_str(),
        );
    }

    pub(crate) async fn pull(&mut self) {
        let ping = self
            .status("GET /v2/ should yield 200", Method::GET, "/v2/", &[200])
            .await;
        let body = ping.text().await.unwrap();
        self.check(
            "GET /v2/ is JSON",
            "/v2/",
            serde_json::from_str::<Value>(&body).is_ok(),
            &body,
        );
        for blob in self.blobs.clone() {
            self.content("blobs", &blob).await;
        }
        for manifest in self.manifests.clone() {
            self.content("manifests", &manifest).await;
        }
        for tag in self.tags.clone() {
            self.content("manifests", &tag).await;
        }
        let (unknown, unknown512) = (Digest::sha256("unknown"), sha512(b"unknown"));
        for (case, rest, allowed, code) in [
            (
                "nonexistent blob should result in 404 response",
                format!("blobs/{unknown}"),
                404,
                "BLOB_UNKNOWN",
            ),
            (
                "nonexistent sha512 blob should result in 404 response",
                format!("blobs/{unknown512}"),
                404,
                "BLOB_UNKNOWN",
            ),
            (
                "nonexistent manifest should return 404",
                format!("manifests/{unknown}"),
                404,
                "MANIFEST_UNKNOWN",
            ),
            (
                "nonexistent tag should return 404",
                "manifests/.INVALID_MANIFEST_NAME".into(),
                404,
                "MANIFEST_UNKNOWN",
            ),
            (
                "malformed digest of a blob should result in 400",
                "blobs/sha256:totallywrong".into(),
                400,
                "DIGEST_INVALID",
            ),
            (
                "malformed digest of a manifest should result in 400",
                "manifests/sha256:totallywrong".into(),
                400,
                "DIGEST_INVALID",
            ),
            (
                "malformed digest of referrers should result in 400",
                "referrers/sha256:totallywrong".into(),
                400,
                "DIGEST_INVALID",
            ),
        ] {
            let path = self.path(&rest);
            let head = self
                .status(
                    &format!("HEAD request to {case}"),
                    Method::HEAD,
                    &path,
                    &[allowed],
                )
                .await;
            self.check(
                "HEAD has no body",
                &path,
                head.bytes().await.unwrap().is_empty(),
                "one",
            );
            let get = self
                .status(&format!("GET {case}"), Method::GET, &path, &[allowed])
                .await;
            self.error(&path, get, code).await;
        }
        for (rest, code, allowed) in [
            ("nowhere/at-all", "NAME_UNKNOWN", 404),
            ("Wrong_-Name", "NAME_INVALID", 400),
        ] {
            for kind in [
                "manifests/latest".to_owned(),
                format!("blobs/{unknown}"),
                "tags/list".into(),
                format!("referrers/{unknown}"),
            ] {
                let path = format!("/v2/{rest}/{kind}");
                let reply = self
                    .status("a repository that is not there", Method::GET, &path, &[allowed])
                    .await;
                self.error(&path, reply, code).await;
            }
        }
    }
}
