//! A Crane of its own, with everything that the suite asks for, and what can be asked of such a one only.

use pulp_crane::{CraneConfig, Mode, run};
use pulp_model::{
    Digest, MediaType,
    digest::Algorithm,
    image::Manifest,
    unit::{ManifestKind, TagUnit},
};
use pulp_publication::{BlobFile, Contents, ManifestFile};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    Suite,
    common::{OCI_IMAGE, Site},
    header,
};

/// More than one page of referrers.
const REFERRERS: usize = 620;

pub(crate) fn sha512(bytes: &[u8]) -> Digest {
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
pub(crate) struct Running {
    _site: Site,
    pub(crate) shutdown: CancellationToken,
    pub(crate) crane: JoinHandle<Result<(), pulp_crane::CraneError>>,
}

impl Suite {
    pub(crate) async fn of_own() -> (Self, Running) {
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

    pub(crate) async fn push(&mut self) {
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

    /// Only of a registry of our own, whose namespaces are known.
    pub(crate) async fn namespaces(&mut self) {
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
