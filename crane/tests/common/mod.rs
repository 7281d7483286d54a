//! Publications for the tests, made the way the worker makes them, and a client that talks to the router.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::struct_field_names,
    dead_code,
    unreachable_pub
)]

use std::{fs, path::PathBuf, time::Duration};

use axum::{Router, body::Body};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use pulp_crane::{Crane, CraneConfig, Mode};
use pulp_model::{
    Digest, MediaType,
    image::Manifest,
    unit::{ImageId, ManifestKind, TagUnit, V1Tag},
};
use pulp_publication::{
    BlobFile, Contents, ImageFiles, ListFile, ManifestFile, Publication, PublicationId, Root,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt as _;

pub const S2: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const OCI_IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A publish directory and its content store.
pub struct Site {
    pub dir: TempDir,
    pub root: Root,
}

/// What a repository of [`Site::image`] holds.
pub struct Image {
    pub contents: Contents,
    pub image_id: ImageId,
    pub manifest: Digest,
    pub list: Digest,
    pub oci: Digest,
    pub sbom: Digest,
    pub layer: Digest,
    pub layer_bytes: Vec<u8>,
}

impl Site {
    pub fn new() -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("content")).unwrap();
        let root = Root::new(dir.path().canonicalize().unwrap().join("published"));
        root.prepare().unwrap();
        Self { dir, root }
    }

    pub fn put(&self, bytes: &[u8]) -> BlobFile {
        let digest = Digest::sha256(bytes);
        let path = self.dir.path().join("content").join(digest.hex());
        if !path.exists() {
            fs::write(&path, bytes).unwrap();
        }
        BlobFile {
            digest,
            size: bytes.len() as u64,
            path,
        }
    }

    fn image_manifest(&self, contents: &mut Contents, manifest: &Value) -> Digest {
        let bytes = manifest.to_string();
        let Manifest::Image(unit) = Manifest::parse(bytes.as_bytes(), None).unwrap() else {
            panic!("a list")
        };
        let digest = unit.digest.clone();
        contents.manifests.push(ManifestFile {
            unit,
            path: self.put(bytes.as_bytes()).path,
        });
        digest
    }

    /// Tags `latest` (schema 2), `multi` (a list with schema 2 for amd64), `oci` (an OCI image, to which an SBOM is
    /// attached), `tags` (the list again) and `only-<generation>`. The layer has two and a half pieces.
    pub fn image(&self, repository: &str, registry_id: &str, generation: &str) -> Image {
        let mut contents = Self::empty(repository, registry_id);
        let layer_bytes: Vec<u8> = generation.bytes().cycle().take(640 * 1024 + 7).collect();
        let layer = self.put(&layer_bytes);
        let config = self.put(json!({ "generation": generation }).to_string().as_bytes());
        let part = |media_type: MediaType, blob: &BlobFile| json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.size });
        let manifest = self.image_manifest(
            &mut contents,
            &json!({
                "schemaVersion": 2, "mediaType": S2,
                "config": part(MediaType::DOCKER_CONFIG, &config),
                "layers": [part(MediaType::DOCKER_LAYER_GZIP, &layer)],
            }),
        );
        let oci = self.image_manifest(
            &mut contents,
            &json!({
                "schemaVersion": 2, "mediaType": OCI_IMAGE,
                "config": part(MediaType::OCI_CONFIG, &config),
                "layers": [part(MediaType::OCI_LAYER_GZIP, &layer)],
            }),
        );
        let sbom = self.image_manifest(
            &mut contents,
            &json!({
                "schemaVersion": 2, "mediaType": OCI_IMAGE, "artifactType": "application/spdx+json",
                "config": part(MediaType::OCI_CONFIG, &config), "layers": [part(MediaType::OCI_LAYER, &layer)],
                "subject": { "mediaType": OCI_IMAGE, "digest": oci, "size": 1 },
                "annotations": { "about": generation },
            }),
        );
        let list = json!({
            "schemaVersion": 2, "mediaType": LIST,
            "manifests": [{
                "mediaType": S2, "digest": manifest, "size": contents.manifests[0].unit.size,
                "platform": { "os": "linux", "architecture": "amd64" },
            }],
        })
        .to_string();
        let Manifest::List(unit) = Manifest::parse(list.as_bytes(), None).unwrap() else {
            panic!("an image")
        };
        let list_digest = unit.digest.clone();
        contents.lists.push(ListFile {
            unit,
            path: self.put(list.as_bytes()).path,
        });

        let tag = |name: &str, digest: &Digest, manifest_type| TagUnit {
            name: name.parse().unwrap(),
            repo_id: contents.repository.clone(),
            manifest_digest: digest.clone(),
            schema_version: 2,
            manifest_type,
        };
        contents.tags = vec![
            tag("latest", &manifest, ManifestKind::Image),
            tag("multi", &list_digest, ManifestKind::List),
            tag("oci", &oci, ManifestKind::Image),
            tag("tags", &list_digest, ManifestKind::List),
            tag(&format!("only-{generation}"), &manifest, ManifestKind::Image),
        ];
        let image_id: ImageId = Digest::sha256(generation).hex().parse().unwrap();
        contents.images.push(ImageFiles {
            image_id: image_id.clone(),
            json: self.put(json!({ "id": image_id }).to_string().as_bytes()).path,
            ancestry: self.put(json!([image_id]).to_string().as_bytes()).path,
            layer: layer.path.clone(),
        });
        contents.v1_tags = vec![V1Tag {
            tag: "latest".parse().unwrap(),
            image_id: image_id.clone(),
        }];
        let layer_digest = layer.digest.clone();
        contents.blobs = vec![layer, config];
        Image {
            contents,
            image_id,
            manifest,
            list: list_digest,
            oci,
            sbom,
            layer: layer_digest,
            layer_bytes,
        }
    }

    pub fn empty(repository: &str, registry_id: &str) -> Contents {
        Contents {
            repository: repository.parse().unwrap(),
            registry_id: registry_id.parse().unwrap(),
            protected: false,
            v1_url: format!("https://pulp.example.com/pulp/docker/v1/{repository}/"),
            v2_url: format!("https://pulp.example.com/pulp/docker/v2/{repository}/"),
            images: Vec::new(),
            v1_tags: Vec::new(),
            blobs: Vec::new(),
            manifests: Vec::new(),
            lists: Vec::new(),
            tags: Vec::new(),
        }
    }

    pub fn publish(&self, contents: &Contents) {
        let publication = Publication::new(contents.clone()).unwrap();
        self.root
            .stage(&publication, &PublicationId::new(), "1")
            .unwrap()
            .switch()
            .unwrap();
    }

    pub fn config(&self, mode: Mode) -> CraneConfig {
        CraneConfig {
            data_dir: self.root.path().to_owned(),
            polling_interval: Duration::from_hours(1),
            mode,
            ..CraneConfig::default()
        }
    }

    pub fn client(&self) -> Client {
        Client(Crane::open(self.config(Mode::SERVE)).router())
    }
}

impl Image {
    /// Tags `latest` onto an image with another config.
    pub fn relabel(&mut self, site: &Site, config: BlobFile) {
        let layer = self.contents.blobs[0].clone();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": S2,
            "config": { "mediaType": MediaType::DOCKER_CONFIG, "digest": config.digest, "size": config.size },
            "layers": [{ "mediaType": MediaType::DOCKER_LAYER_GZIP, "digest": layer.digest, "size": layer.size }],
        });
        self.manifest = site.image_manifest(&mut self.contents, &manifest);
        self.contents.blobs.push(config);
        self.contents.tags[0].manifest_digest = self.manifest.clone();
    }
}

/// Files as an old Pulp left them.
pub struct Old {
    pub dir: TempDir,
}

impl Old {
    pub fn new() -> Self {
        Self {
            dir: TempDir::new().unwrap(),
        }
    }

    pub fn write(&self, path: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let file = self.dir.path().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, bytes).unwrap();
        file
    }

    pub fn config(&self, mode: Mode) -> CraneConfig {
        CraneConfig {
            data_dir: self.dir.path().to_owned(),
            mode,
            ..CraneConfig::default()
        }
    }
}

#[derive(Clone)]
pub struct Client(pub Router);

pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Client {
    pub async fn ask(&self, method: Method, uri: &str, headers: &[(&str, &str)]) -> Reply {
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header("host", "registry.example.com:5000");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self
            .0
            .clone()
            .oneshot(request.body(Body::empty()).unwrap())
            .await
            .unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Reply {
            status: parts.status,
            headers: parts.headers,
            body,
        }
    }

    pub async fn get(&self, uri: &str) -> Reply {
        self.ask(Method::GET, uri, &[]).await
    }

    pub async fn accepting(&self, uri: &str, accept: &str) -> Reply {
        self.ask(Method::GET, uri, &[("accept", accept)]).await
    }
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|v| v.to_str().unwrap())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Status and code of a registry error.
    pub fn error(&self) -> (u16, String) {
        assert_eq!(self.header("content-type"), Some("application/json"));
        let body = self.json();
        let error = &body["errors"][0];
        assert!(
            error["message"].is_string() && error.get("detail").is_some(),
            "{body}"
        );
        (self.status.as_u16(), error["code"].as_str().unwrap().to_owned())
    }
}
