//! An image of every media type that registries hold today, at an upstream that Pulp syncs from.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use pulp_model::Digest;
use pulp_testkit::skopeo;
use pulp_tests::{
    images::docker_archive,
    saved::{gzip, members},
};
use serde_json::{Value, json};

use crate::upstream::Upstream;

pub(super) const S1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
const S2: &str = "application/vnd.docker.distribution.manifest.v2+json";
const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Which clients can do something with it at all: docker 20.10, podman 4, skopeo 1.9, containerd 1.6.
#[derive(Clone, Copy)]
#[allow(clippy::struct_excessive_bools)] // One a client.
pub(super) struct Takers {
    pub(super) docker: bool,
    pub(super) podman: bool,
    pub(super) skopeo: bool,
    pub(super) containerd: bool,
}

const EVERYBODY: Takers = Takers {
    docker: true,
    podman: true,
    skopeo: true,
    containerd: true,
};

/// A tag, and what a pull of it must bring.
pub(super) struct Kind {
    pub(super) tag: &'static str,
    pub(super) root: Digest,
    /// The configuration of linux on amd64, which is the image's id; none where clients make one themselves.
    pub(super) config: Option<Digest>,
    pub(super) takers: Takers,
}

/// Blobs and manifests on their way to the upstream.
struct Maker<'a> {
    upstream: &'a Upstream,
    config: Vec<u8>,
    layers: Vec<Vec<u8>>,
}

/// What names a manifest within another one.
type Descriptor = Value;

impl Maker<'_> {
    fn blob(&self, media_type: &str, bytes: &[u8]) -> Descriptor {
        let digest = self.upstream.blob(bytes);
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    fn manifest(&self, tag: &str, media_type: &str, manifest: &Value) -> (Descriptor, Digest) {
        let bytes = manifest.to_string().into_bytes();
        let digest = Digest::sha256(&bytes);
        self.upstream.manifest(tag, media_type, &bytes);
        (
            json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}),
            digest,
        )
    }

    /// An image for an architecture, in the types of Docker or OCI.
    fn image(
        &self,
        tag: &str,
        oci: bool,
        zstd: bool,
        architecture: &str,
    ) -> Result<(Descriptor, Digest, Digest)> {
        let mut config: Value = serde_json::from_slice(&self.config)?;
        config["architecture"] = json!(architecture);
        let config = config.to_string().into_bytes();
        let (media_type, config_type, layer_type) = match (oci, zstd) {
            (false, _) => (
                S2,
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
            ),
            (true, false) => (
                OCI,
                "application/vnd.oci.image.config.v1+json",
                "application/vnd.oci.image.layer.v1.tar+gzip",
            ),
            (true, true) => (
                OCI,
                "application/vnd.oci.image.config.v1+json",
                "application/vnd.oci.image.layer.v1.tar+zstd",
            ),
        };
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|layer| {
                let bytes = if zstd {
                    zstd::encode_all(layer.as_slice(), 3)?
                } else {
                    gzip(layer)?
                };
                Ok(self.blob(layer_type, &bytes))
            })
            .collect::<Result<_>>()?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type, "config": self.blob(config_type, &config), "layers": layers,
        });
        let (mut descriptor, digest) = self.manifest(tag, media_type, &manifest);
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        Ok((descriptor, digest, Digest::sha256(&config)))
    }
}

/// Fills the upstream.
pub(super) fn make(upstream: &Upstream, scratch: &Path) -> Result<Vec<Kind>> {
    let saved = docker_archive("matrix:1", 2, 20_000)?.tar;
    let files = members(&saved)?;
    let listed: Value = serde_json::from_slice(files.get("manifest.json").context("no manifest.json")?)?;
    let file = |name: &Value| files.get(name.as_str().unwrap_or_default()).cloned();
    let layers = listed[0]["Layers"].as_array().context("no Layers")?;
    let maker = Maker {
        upstream,
        config: file(&listed[0]["Config"]).context("no Config")?,
        layers: layers.iter().filter_map(file).collect(),
    };
    let (s2, s2_root, config) = maker.image("s2", false, false, "amd64")?;
    let (s2_arm, ..) = maker.image("s2-arm64", false, false, "arm64")?;
    let (oci, oci_root, _) = maker.image("oci", true, false, "amd64")?;
    let (oci_arm, ..) = maker.image("oci-arm64", true, false, "arm64")?;
    let (_, zstd_root, _) = maker.image("zstd", true, true, "amd64")?;
    let many = |tag: &str, media_type: &str, manifests: Value| {
        let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
        maker.manifest(tag, media_type, &index)
    };
    let (_, list_root) = many("list", LIST, json!([s2, s2_arm]));
    let (index, index_root) = many("index", INDEX, json!([oci_arm, oci]));
    let (_, nested_root) = many("nested", INDEX, json!([index]));
    let subject = json!({"mediaType": oci["mediaType"], "digest": oci["digest"], "size": oci["size"]});
    let artifact = json!({
        "schemaVersion": 2, "mediaType": OCI, "artifactType": "application/vnd.example.sbom",
        "config": maker.blob("application/vnd.oci.empty.v1+json", b"{}"),
        "layers": [maker.blob("application/vnd.example.sbom", b"what is in it")], "subject": subject,
    });
    let (_, artifact_root) = maker.manifest("artifact", OCI, &artifact);
    let s1_root = schema_1(upstream, &saved, scratch)?;
    let nobody = Takers {
        docker: false,
        podman: false,
        skopeo: false,
        containerd: false,
    };
    let kind = |tag, root, config, takers| Kind {
        tag,
        root,
        config,
        takers,
    };
    let config = Some(config);
    Ok(vec![
        kind("s1", s1_root, None, EVERYBODY),
        kind("s2", s2_root, config.clone(), EVERYBODY),
        kind("list", list_root, config.clone(), EVERYBODY),
        kind("oci", oci_root, config.clone(), EVERYBODY),
        kind("index", index_root, config.clone(), EVERYBODY),
        // docker has it since 23.
        kind(
            "zstd",
            zstd_root,
            config.clone(),
            Takers {
                docker: false,
                ..EVERYBODY
            },
        ),
        // Of these, containerd alone looks into an index within an index.
        kind(
            "nested",
            nested_root,
            config,
            Takers {
                containerd: true,
                ..nobody
            },
        ),
        // Nothing to run; skopeo copies it.
        kind(
            "artifact",
            artifact_root,
            None,
            Takers {
                skopeo: true,
                ..nobody
            },
        ),
    ])
}

/// The saved image as skopeo signs it in schema 1.
fn schema_1(upstream: &Upstream, saved: &[u8], scratch: &Path) -> Result<Digest> {
    let (tar, dir) = (scratch.join("s1.tar"), scratch.join("s1"));
    fs::write(&tar, saved)?;
    let (from, to) = (
        format!("docker-archive:{}", tar.display()),
        format!("dir:{}", dir.display()),
    );
    skopeo(&["copy", "--quiet", "--format=v2s1", &from, &to])?;
    for entry in fs::read_dir(&dir)? {
        let bytes = fs::read(entry?.path())?;
        upstream.blob(&bytes);
    }
    let manifest = dir.join("manifest.json");
    // Of what is signed, not of the whole file.
    let digest = skopeo(&["manifest-digest", &manifest.display().to_string()])?;
    let digest: Digest = digest.trim().parse()?;
    upstream.manifest_known_as("s1", S1, &digest, &fs::read(manifest)?);
    Ok(digest)
}
