//! The read side of the OCI distribution specification, 1.1 and what is coming after it, case by case.
//!
//! Cases and environment variables are named as in the specification's own suite, so that this runs against any
//! registry, too: set `OCI_ROOT_URL`, `OCI_NAMESPACE` and what is there, `OCI_TAG_NAME`, `OCI_MANIFEST_DIGEST`,
//! `OCI_BLOB_DIGEST`, `OCI_TAG_LIST` (or their newer names `OCI_REGISTRY`, `OCI_REPO1`, `OCI_RO_DATA_TAGS`,
//! `OCI_RO_DATA_MANIFESTS`, `OCI_RO_DATA_BLOBS`, `OCI_RO_DATA_REFERRERS`). Without, a Crane of its own is tested.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{env, io::Write as _, time::Duration};

use common::{LIST, OCI_IMAGE, OCI_INDEX, S2, Site};
use pulp_crane::{CraneConfig, Mode, run};
use pulp_model::{
    Digest, MediaType,
    digest::Algorithm,
    image::Manifest,
    unit::{ManifestKind, TagUnit},
};
use pulp_publication::{BlobFile, Contents, ManifestFile};
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

const ACCEPT: [&str; 4] = [OCI_IMAGE, OCI_INDEX, S2, LIST];
/// More than one page of referrers.
const REFERRERS: usize = 620;

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

fn sha512(bytes: &[u8]) -> Digest {
    let mut hasher = Algorithm::Sha512.hasher();
    hasher.update(bytes);
    hasher.finish()
}

/// Adds a manifest under the digest that `name` makes of its bytes.
fn add(site: &Site, contents: &mut Contents, manifest: &Value, name: impl Fn(&[u8]) -> Digest) -> Digest {
    let bytes = manifest.to_string();
    let Manifest::Image(mut unit) = Manifest::parse(bytes.as_bytes(), None).unwrap() else {
        panic!("a list")
    };
    unit.digest = name(bytes.as_bytes());
    let digest = unit.digest.clone();
    contents.manifests.push(ManifestFile {
        unit,
        path: site.put(bytes.as_bytes()).path,
    });
    digest
}

fn artifact(subject: &Digest, layer: &BlobFile, artifact_type: &str, n: usize) -> Value {
    json!({
        "schemaVersion": 2, "mediaType": OCI_IMAGE, "artifactType": artifact_type,
        "config": { "mediaType": MediaType::OCI_CONFIG, "digest": layer.digest, "size": layer.size },
        "layers": [{ "mediaType": MediaType::OCI_LAYER, "digest": layer.digest, "size": layer.size }],
        "subject": { "mediaType": OCI_IMAGE, "digest": subject, "size": 1 },
        "annotations": { "org.example.number": n.to_string() },
    })
}

/// A repository with everything that the suite asks for.
fn publish(site: &Site) -> (Contents, Digest) {
    let image = site.image("conformance", "oci/conformance", "a");
    let mut contents = image.contents;
    let layer = contents.blobs[0].clone();
    for n in 0..REFERRERS {
        let artifact_type = if n % 3 == 0 {
            "application/vnd.example.sbom"
        } else {
            "text/example"
        };
        add(
            site,
            &mut contents,
            &artifact(&image.manifest, &layer, artifact_type, n),
            |b| Digest::sha256(b),
        );
    }
    // A subject that is not there must be no hindrance.
    let missing = Digest::sha256("missing");
    add(
        site,
        &mut contents,
        &artifact(&missing, &layer, "text/example", 0),
        |b| Digest::sha256(b),
    );
    let strong = add(
        site,
        &mut contents,
        &json!({
            "schemaVersion": 2, "mediaType": OCI_IMAGE,
            "config": { "mediaType": MediaType::OCI_CONFIG, "digest": layer.digest, "size": layer.size },
            "layers": [],
        }),
        sha512,
    );
    let empty = site.put(b"");
    let blob512 = BlobFile {
        digest: sha512(&image.layer_bytes),
        ..layer
    };
    contents.blobs.extend([empty, blob512]);
    for (name, digest) in [
        ("manifests", &image.manifest),
        ("blobs", &image.manifest),
        ("list", &image.oci),
        ("strong", &strong),
    ] {
        contents.tags.push(TagUnit {
            name: name.parse().unwrap(),
            repo_id: contents.repository.clone(),
            manifest_digest: digest.clone(),
            schema_version: 2,
            manifest_type: ManifestKind::Image,
        });
    }
    site.publish(&contents);
    (contents, image.manifest)
}

/// A Crane that runs as long as this.
struct Running {
    _site: Site,
    shutdown: CancellationToken,
    crane: JoinHandle<Result<(), pulp_crane::CraneError>>,
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

    async fn of_own() -> (Self, Running) {
        let site = Site::new();
        let (contents, subject) = publish(&site);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let root = format!("http://{}", listener.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        let config = CraneConfig {
            namespaces: vec!["docker.io".into()],
            ..site.config(Mode::SERVE)
        };
        let crane = tokio::spawn(run(config, listener, shutdown.clone()));
        let mut all_tags: Vec<String> = contents.tags.iter().map(|t| t.name.to_string()).collect();
        all_tags.sort();
        let lists = contents.lists.iter().map(|l| &l.unit.digest);
        let manifests = contents.manifests.iter().map(|m| &m.unit.digest);
        let suite = Self {
            client: Client::new(),
            root,
            namespace: contents.registry_id.to_string(),
            tags: all_tags.clone(),
            // All kinds, and the one named by SHA-512, which comes last.
            manifests: lists
                .chain(manifests.clone().take(3))
                .chain(manifests.rev().take(1))
                .map(ToString::to_string)
                .collect(),
            blobs: contents.blobs.iter().map(|b| b.digest.to_string()).collect(),
            subjects: vec![subject.to_string()],
            all_tags,
            artifact_type: "application/vnd.example.sbom".into(),
            failed: Vec::new(),
        };
        let running = Running {
            _site: site,
            shutdown,
            crane,
        };
        (suite, running)
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

    /// Content by HEAD and GET: the same headers, and bytes of that digest.
    async fn content(&mut self, what: &str, reference: &str) {
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

    async fn ranges(&mut self, path: &str, bytes: &[u8]) {
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

    async fn pull(&mut self) {
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

    async fn push(&mut self) {
        let digest = Digest::sha256("x");
        for (method, rest) in [
            (Method::POST, "blobs/uploads/".to_owned()),
            (Method::POST, format!("blobs/uploads/?digest={digest}")),
            (Method::POST, format!("blobs/uploads/?mount={digest}&from=other")),
            (Method::PATCH, "blobs/uploads/1".into()),
            (Method::PUT, format!("blobs/uploads/1?digest={digest}")),
            (Method::PUT, "manifests/latest".into()),
            (Method::PUT, format!("manifests/{digest}?tag=a&tag=b")),
            (Method::DELETE, "manifests/latest".into()),
            (Method::DELETE, format!("manifests/{digest}")),
            (Method::DELETE, format!("blobs/{digest}")),
            (Method::DELETE, "blobs/uploads/1".into()),
        ] {
            let path = self.path(&rest);
            let case = format!("{method} on a read-only registry should yield 405");
            let reply = self.status(&case, method, &path, &[405]).await;
            let allow = header(&reply, "allow").unwrap_or_default().to_owned();
            self.check(
                "405 has Allow",
                &path,
                allow.contains("GET") && allow.contains("HEAD"),
                &allow,
            );
            self.error(&path, reply, "UNSUPPORTED").await;
        }
    }

    async fn tags(&mut self) {
        let path = self.path("tags/list");
        let head = self.status("HEAD of the tags", Method::HEAD, &path, &[200]).await;
        let reply = self
            .status(
                "GET request to list tags should yield 200 response and be in sorted order",
                Method::GET,
                &path,
                &[200],
            )
            .await;
        let (h, g) = (header(&head, "content-length"), header(&reply, "content-length"));
        self.check(
            "HEAD and GET agree on the length of the tags",
            &path,
            h == g && g.is_some(),
            &format!("{h:?} {g:?}"),
        );
        let body: Value = reply.json().await.unwrap();
        let got = names(&body["tags"]);
        self.check(
            "name is the repository's",
            &path,
            body["name"] == self.namespace.as_str(),
            &body.to_string(),
        );
        self.check("tags are in order", &path, got.is_sorted(), &format!("{got:?}"));
        let expected = self.all_tags.clone();
        self.check(
            "all tags are there",
            &path,
            expected.is_empty() || got == expected,
            &format!("{got:?}"),
        );

        for n in [1, 2, got.len(), got.len() + 1] {
            let (mut seen, mut next, mut sizes) = (Vec::new(), Some(format!("{path}?n={n}")), Vec::new());
            while let Some(uri) = next.take() {
                let page = self.ask(Method::GET, &uri, &[]).await;
                next = link(&page);
                let body: Value = page.json().await.unwrap();
                let page = names(&body["tags"]);
                sizes.push(page.len());
                seen.extend(page);
                if sizes.len() > got.len() + 1 {
                    break;
                }
            }
            self.check(
                "GET number of tags should be limitable by `n` query parameter",
                &path,
                sizes.iter().all(|s| *s <= n),
                &format!("{sizes:?}"),
            );
            self.check(
                "pages make up the whole list",
                &path,
                seen == got,
                &format!("n={n}: {seen:?}"),
            );
        }
        let none = self.ask(Method::GET, &format!("{path}?n=0"), &[]).await;
        let linked = link(&none);
        let body: Value = none.json().await.unwrap();
        self.check(
            "n=0 is an empty list without Link",
            &path,
            body["tags"] == json!([]) && linked.is_none(),
            &body.to_string(),
        );
        if let Some(first) = got.first() {
            let rest: Value = self
                .ask(Method::GET, &format!("{path}?last={first}"), &[])
                .await
                .json()
                .await
                .unwrap();
            self.check(
                "GET start of tag is set by `last` query parameter",
                &path,
                names(&rest["tags"]) == got[1..],
                &rest.to_string(),
            );
            let rest: Value = self
                .ask(Method::GET, &format!("{path}?n=1&last={first}0"), &[])
                .await
                .json()
                .await
                .unwrap();
            let after: Vec<_> = got
                .iter()
                .filter(|t| **t > format!("{first}0"))
                .take(1)
                .cloned()
                .collect();
            self.check(
                "`last` need not be a tag",
                &path,
                names(&rest["tags"]) == after,
                &rest.to_string(),
            );
        }
    }

    async fn referrers(&mut self) {
        let path = self.path(&format!("referrers/{}", Digest::sha256("unknown")));
        let reply = self
            .status(
                "GET request to nonexistent blob should result in empty 200 response",
                Method::GET,
                &path,
                &[200],
            )
            .await;
        let content_type = header(&reply, "content-type").unwrap_or_default().to_owned();
        let body: Value = reply.json().await.unwrap();
        let so = body["manifests"] == json!([]) && body["schemaVersion"] == 2 && content_type == OCI_INDEX;
        self.check(
            "referrers of nothing are an empty index",
            &path,
            so,
            &body.to_string(),
        );
        for subject in self.subjects.clone() {
            let path = self.path(&format!("referrers/{subject}"));
            let (all, filters, _) = self.walk(&path).await;
            self.check(
                "GET request to existing blob should yield 200",
                &path,
                !all.is_empty(),
                "none",
            );
            self.check(
                "no filter is said to be applied",
                &path,
                filters.is_none(),
                "one is",
            );
            let well_formed = all.iter().all(|m| {
                m["digest"].is_string()
                    && m["size"].is_u64()
                    && m["mediaType"].is_string()
                    && m["annotations"].is_object()
            });
            self.check(
                "each is a descriptor with its annotations",
                &path,
                well_formed,
                "not so",
            );
            let wanted = self.artifact_type.clone();
            let (some, filters, pages) = self
                .walk(&format!("{path}?artifactType={}", wanted.replace('+', "%2B")))
                .await;
            self.check(
                "GET request to existing blob with filter should yield 200",
                &path,
                !some.is_empty(),
                "none",
            );
            self.check(
                "OCI-Filters-Applied names the filter",
                &path,
                filters.as_deref() == Some("artifactType"),
                "absent",
            );
            let expected: Vec<_> = all
                .iter()
                .filter(|m| m["artifactType"] == wanted.as_str())
                .cloned()
                .collect();
            self.check(
                "the filter leaves those of the type and no others",
                &path,
                some == expected,
                &format!("{} of {}", some.len(), expected.len()),
            );
            let (limited, _, pages_of_100) = self.walk(&format!("{path}?n=100")).await;
            let so = limited == all && (pages_of_100 > pages || all.len() <= 100);
            self.check(
                "pages of referrers make up the whole list",
                &path,
                so,
                &limited.len().to_string(),
            );
            // What refers is itself there to be pulled.
            if let Some(digest) = all
                .first()
                .and_then(|m| m["digest"].as_str())
                .map(ToOwned::to_owned)
            {
                self.content("manifests", &digest).await;
            }
        }
        let missing = self.path(&format!("referrers/{}", Digest::sha256("missing")));
        self.status(
            "GET request to missing manifest should yield 200",
            Method::GET,
            &missing,
            &[200],
        )
        .await;
    }

    /// All referrers, page by page: they, `OCI-Filters-Applied`, and the number of pages.
    async fn walk(&mut self, path: &str) -> (Vec<Value>, Option<String>, usize) {
        let (mut all, mut filters, mut pages) = (Vec::new(), None, 0);
        let mut next = Some(path.to_owned());
        while let Some(uri) = next.take() {
            let reply = self.ask(Method::GET, &uri, &[]).await;
            let so = reply.status() == 200 && header(&reply, "content-type") == Some(OCI_INDEX);
            self.check(
                "each page of referrers is an index",
                &uri,
                so,
                reply.status().as_str(),
            );
            next = link(&reply).filter(|_| pages < 100);
            filters = header(&reply, "oci-filters-applied").map(ToOwned::to_owned);
            let body: Value = reply.json().await.unwrap();
            all.extend(body["manifests"].as_array().cloned().unwrap_or_default());
            pages += 1;
        }
        (all, filters, pages)
    }

    /// Only of a registry of our own, whose namespaces are known.
    async fn namespaces(&mut self) {
        let tag = self.tags.first().cloned().unwrap_or_default();
        for (ns, expected) in [("docker.io", Some("docker.io")), ("quay.io", None)] {
            let path = self.path(&format!("manifests/{tag}?ns={ns}"));
            let reply = self
                .status("ns is no hindrance", Method::GET, &path, &[200])
                .await;
            let got = header(&reply, "oci-namespace");
            self.check(
                "OCI-Namespace where ns is honoured",
                &path,
                got == expected,
                &format!("{got:?}"),
            );
        }
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
