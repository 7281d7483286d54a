//! What a registry of others is filled with.

use anyhow::{Context as _, Result, ensure};
use pulp_model::Digest;
use pulp_testkit::Registry;
use serde_json::{Value, json};

use super::{DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, UPSTREAM, noise};

/// Pushes [`UPSTREAM`] to a registry by the distribution API.
pub(crate) struct Pusher {
    base: String,
    runtime: tokio::runtime::Runtime,
    http: reqwest::Client,
}

impl Pusher {
    pub(crate) fn new(base: String) -> Result<Self> {
        Self::with(base, reqwest::Client::new())
    }

    /// By a client that the registry lets in.
    pub(crate) fn with(base: String, http: reqwest::Client) -> Result<Self> {
        Ok(Self {
            base,
            runtime: tokio::runtime::Runtime::new()?,
            http,
        })
    }

    /// Gives its digest and size.
    pub(crate) fn blob(&self, bytes: &[u8]) -> Result<Value> {
        let digest = Digest::sha256(bytes);
        self.runtime.block_on(async {
            let begun = self
                .http
                .post(format!("{}/v2/{}/blobs/uploads/", self.base, UPSTREAM))
                .send()
                .await?;
            let location = begun
                .headers()
                .get("location")
                .context("no location")?
                .to_str()?
                .to_owned();
            let separator = if location.contains('?') { '&' } else { '?' };
            let url = format!("{location}{separator}digest={digest}");
            let put = self.http.put(url).body(bytes.to_vec()).send().await?;
            ensure!(put.status() == 201, "blob: {}", put.text().await?);
            Ok(())
        })?;
        Ok(json!({"digest": digest, "size": bytes.len()}))
    }

    /// Under a tag, or by its digest alone if that is empty; gives its descriptor.
    pub(crate) fn manifest(&self, reference: &str, media_type: &str, manifest: &Value) -> Result<Value> {
        // With blanks, so that nobody gets away with writing it anew.
        let bytes = serde_json::to_string_pretty(manifest)?;
        let digest = Digest::sha256(&bytes);
        let reference = if reference.is_empty() {
            digest.to_string()
        } else {
            reference.to_owned()
        };
        let size = bytes.len();
        self.runtime.block_on(async {
            let url = format!("{}/v2/{}/manifests/{reference}", self.base, UPSTREAM);
            let put = self
                .http
                .put(url)
                .header("content-type", media_type)
                .body(bytes)
                .send()
                .await?;
            ensure!(put.status() == 201, "manifest: {}", put.text().await?);
            Ok(())
        })?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": size}))
    }

    /// An image of these layers under a tag; an empty one means by its digest alone.
    pub(crate) fn image(&self, tag: &str, media_type: &str, layers: &[Vec<u8>]) -> Result<Value> {
        let (config_type, layer_type) = if media_type == DOCKER_MANIFEST {
            (
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
            )
        } else {
            (
                "application/vnd.oci.image.config.v1+json",
                "application/vnd.oci.image.layer.v1.tar+gzip",
            )
        };
        let typed = |blob: Value, media_type: &str| json!({"mediaType": media_type, "digest": blob["digest"], "size": blob["size"]});
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Labels": {"tag": tag}}});
        let config = typed(self.blob(config.to_string().as_bytes())?, config_type);
        let layers: Vec<Value> = layers
            .iter()
            .map(|l| Ok(typed(self.blob(l)?, layer_type)))
            .collect::<Result<_>>()?;
        let manifest =
            json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
        self.manifest(tag, media_type, &manifest)
    }
}

/// Six tags: images of both kinds that share layers, an index of two platforms, an index of that index, an artifact.
pub(crate) fn fill(registry: &Registry) -> Result<Vec<&'static str>> {
    let to = Pusher::new(registry.url())?;
    let shared = noise(0, 50_000);
    to.image("1.0", DOCKER_MANIFEST, &[shared.clone(), noise(1, 20_000)])?;
    to.image("1.1", DOCKER_MANIFEST, &[shared.clone(), noise(2, 20_000)])?;
    to.image("oci", OCI_MANIFEST, &[shared.clone(), noise(3, 300_000)])?;
    let mut amd64 = to.image("", OCI_MANIFEST, &[shared.clone(), noise(4, 10)])?;
    let mut arm64 = to.image("", OCI_MANIFEST, &[shared, noise(5, 10)])?;
    amd64["platform"] = json!({"os": "linux", "architecture": "amd64"});
    arm64["platform"] = json!({"os": "linux", "architecture": "arm64", "variant": "v8"});
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [amd64, arm64]});
    let mut nested = to.manifest("multi", OCI_INDEX, &index)?;
    nested["annotations"] = json!({"of": "all"});
    let outer = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [nested]});
    to.manifest("nested", OCI_INDEX, &outer)?;
    let payload = to.blob(b"an artifact")?;
    let empty = to.blob(b"{}")?;
    let artifact = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.example.config", "digest": empty["digest"], "size": 2},
        "layers": [{"mediaType": "text/plain", "digest": payload["digest"], "size": payload["size"]}]});
    to.manifest("artifact", OCI_MANIFEST, &artifact)?;
    Ok(vec!["1.0", "1.1", "artifact", "multi", "nested", "oci"])
}
