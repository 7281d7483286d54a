//! A small content store, and repositories of it, for the tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, path::PathBuf};

use pulp_model::{
    Digest, MediaType,
    image::Manifest,
    unit::{ManifestKind, TagUnit, V1Tag},
};
use serde_json::json;
use tempfile::TempDir;

use crate::{BlobFile, Contents, ImageFiles, ListFile, ManifestFile, Publication, PublicationId, Root};

pub(crate) struct Site {
    pub(crate) dir: TempDir,
    pub(crate) root: Root,
}

impl Site {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("content")).unwrap();
        let root = Root::new(dir.path().canonicalize().unwrap().join("published/docker"));
        Self { dir, root }
    }

    pub(crate) fn put(&self, bytes: &[u8]) -> BlobFile {
        let digest = Digest::sha256(bytes);
        let path = self.dir.path().join("content").join(digest.hex());
        fs::write(&path, bytes).unwrap();
        BlobFile {
            digest,
            size: bytes.len() as u64,
            path,
        }
    }

    pub(crate) fn empty() -> Contents {
        Contents {
            repository: "busybox".parse().unwrap(),
            registry_id: "pulpdemo/busybox".parse().unwrap(),
            protected: false,
            v1_url: "https://pulp.example.com/pulp/docker/v1/busybox".into(),
            v2_url: "https://pulp.example.com/pulp/docker/v2/busybox/".into(),
            images: Vec::new(),
            v1_tags: Vec::new(),
            blobs: Vec::new(),
            manifests: Vec::new(),
            lists: Vec::new(),
            tags: Vec::new(),
        }
    }

    fn path_of(&self, bytes: &[u8]) -> PathBuf {
        self.put(bytes).path
    }

    /// One image with both faces, in a list; everything in it tells its `generation`.
    pub(crate) fn image(&self, generation: &str) -> Contents {
        let mut contents = Self::empty();
        let layer = self.put(format!("layer {generation}").as_bytes());
        let config = self.put(json!({ "generation": generation }).to_string().as_bytes());
        let bytes = json!({
            "schemaVersion": 2,
            "mediaType": MediaType::DOCKER_MANIFEST,
            "config": { "mediaType": MediaType::DOCKER_CONFIG, "digest": config.digest, "size": config.size },
            "layers": [{ "mediaType": MediaType::DOCKER_LAYER_GZIP, "digest": layer.digest, "size": layer.size }],
        })
        .to_string();
        let Manifest::Image(image) = Manifest::parse(bytes.as_bytes(), None).unwrap() else {
            panic!("a list")
        };
        let list = json!({
            "schemaVersion": 2,
            "mediaType": MediaType::DOCKER_LIST,
            "manifests": [{
                "mediaType": MediaType::DOCKER_MANIFEST, "digest": image.digest, "size": image.size,
                "platform": { "os": "linux", "architecture": "amd64" },
            }],
        })
        .to_string();
        let Manifest::List(list_unit) = Manifest::parse(list.as_bytes(), None).unwrap() else {
            panic!("an image")
        };
        let tag = |name: &str, digest: &Digest, manifest_type| TagUnit {
            name: name.parse().unwrap(),
            repo_id: contents.repository.clone(),
            manifest_digest: digest.clone(),
            schema_version: 2,
            manifest_type,
        };
        contents.tags = vec![
            tag("latest", &image.digest, ManifestKind::Image),
            tag("multi", &list_unit.digest, ManifestKind::List),
            tag(&format!("only-{generation}"), &image.digest, ManifestKind::Image),
        ];
        let image_id = Digest::sha256(generation)
            .hex()
            .parse::<pulp_model::unit::ImageId>()
            .unwrap();
        contents.images.push(ImageFiles {
            image_id: image_id.clone(),
            json: self.path_of(json!({ "id": image_id }).to_string().as_bytes()),
            ancestry: self.path_of(json!([image_id]).to_string().as_bytes()),
            layer: layer.path.clone(),
        });
        contents.v1_tags = vec![V1Tag {
            tag: "latest".parse().unwrap(),
            image_id,
        }];
        contents.blobs = vec![layer, config];
        contents.manifests = vec![ManifestFile {
            unit: image,
            path: self.path_of(bytes.as_bytes()),
        }];
        contents.lists = vec![ListFile {
            unit: list_unit,
            path: self.path_of(list.as_bytes()),
        }];
        contents
    }

    pub(crate) fn publish(&self, contents: Contents) -> PublicationId {
        let id = PublicationId::new();
        let publication = Publication::new(contents).unwrap();
        self.root.stage(&publication, &id, "1").unwrap().switch().unwrap();
        id
    }
}
