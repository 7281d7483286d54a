//! What tests know of a saved image: read from its archive, with nothing of the code under test.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
};

use anyhow::{Context as _, Result, bail, ensure};
use pulp_model::Digest;
use serde_json::{Value, json};

use crate::images::append;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What must come out of a pull on linux/amd64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Digest of the manifest or index that the archive holds; `None` where it holds none (`docker save` up to 24).
    pub root: Option<Digest>,
    /// Manifests below an index, in its order.
    pub members: Vec<Digest>,
    /// Digest of the amd64 image's configuration: its id.
    pub image_id: Digest,
    /// Digests of its uncompressed layers, base first.
    pub diff_ids: Vec<String>,
}

/// Members of a tar by name, without a leading `./`; links and directories left out.
pub fn members(tar: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut out = BTreeMap::new();
    for entry in tar::Archive::new(tar).entries()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() {
            let path = entry.path()?.display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            out.insert(path.trim_start_matches("./").to_owned(), bytes);
        }
    }
    Ok(out)
}

/// Reads an archive of one image or one index.
pub fn contents(tar: &[u8]) -> Result<Contents> {
    let members = members(tar)?;
    let file = |name: &str| members.get(name).with_context(|| format!("no {name}"));
    if let Ok(index) = file("index.json") {
        let index: Value = serde_json::from_slice(index)?;
        let root = digest(&index["manifests"][0]["digest"])?;
        return tree(&root, &|d| file(&format!("blobs/sha256/{}", d.hex())));
    }
    let bytes = file("manifest.json")?;
    let manifest: Value = serde_json::from_slice(bytes)?;
    if manifest.is_object() {
        let root = Digest::sha256(bytes);
        return tree(&root, &|d| {
            if *d == root {
                return Ok(bytes);
            }
            // skopeo's dir: the members of a list have names of their own.
            file(d.hex()).or_else(|_| file(&format!("{}.manifest.json", d.hex())))
        });
    }
    let config = file(manifest[0]["Config"].as_str().context("no Config")?)?;
    Ok(Contents {
        root: None,
        members: Vec::new(),
        image_id: Digest::sha256(config),
        diff_ids: diff_ids(config)?,
    })
}

fn tree<'a>(root: &Digest, file: &dyn Fn(&Digest) -> Result<&'a Vec<u8>>) -> Result<Contents> {
    let bytes = file(root)?;
    ensure!(*root == Digest::sha256(bytes), "{root} has another digest");
    let manifest: Value = serde_json::from_slice(bytes)?;
    let (mut members, mut image) = (Vec::new(), manifest.clone());
    for member in manifest["manifests"].as_array().into_iter().flatten() {
        members.push(digest(&member["digest"])?);
        if member["platform"]["architecture"] == "amd64" {
            image = serde_json::from_slice(file(&digest(&member["digest"])?)?)?;
        }
    }
    let image_id = digest(&image["config"]["digest"])?;
    Ok(Contents {
        root: Some(root.clone()),
        members,
        diff_ids: diff_ids(file(&image_id)?)?,
        image_id,
    })
}

fn digest(value: &Value) -> Result<Digest> {
    Ok(value.as_str().context("no digest")?.parse()?)
}

fn diff_ids(config: &[u8]) -> Result<Vec<String>> {
    let config: Value = serde_json::from_slice(config)?;
    Ok(serde_json::from_value(config["rootfs"]["diff_ids"].clone())?)
}

/// A configuration and its layers, uncompressed, taken from a `docker save` archive of one image.
pub struct Parts {
    config: Vec<u8>,
    layers: Vec<Vec<u8>>,
}

impl Parts {
    /// Takes a `docker save` archive apart.
    pub fn of(docker_archive: &[u8]) -> Result<Self> {
        let members = members(docker_archive)?;
        let file = |name: &Value| -> Result<Vec<u8>> {
            let name = name.as_str().context("no name")?;
            Ok(members.get(name).with_context(|| format!("no {name}"))?.clone())
        };
        let saved: Value = serde_json::from_slice(&file(&json!("manifest.json"))?)?;
        let layers = saved[0]["Layers"].as_array().context("no Layers")?;
        Ok(Self {
            config: file(&saved[0]["Config"])?,
            layers: layers.iter().map(file).collect::<Result<_>>()?,
        })
    }

    /// The same image for another architecture.
    #[must_use]
    pub fn on(mut self, architecture: &str) -> Self {
        if let Ok(mut config) = serde_json::from_slice::<Value>(&self.config) {
            config["architecture"] = json!(architecture);
            self.config = config.to_string().into_bytes();
        }
        self
    }
}

/// An OCI layout that grows.
struct Layout {
    tar: tar::Builder<Vec<u8>>,
    written: std::collections::BTreeSet<Digest>,
}

impl Layout {
    fn new() -> Result<Self> {
        let mut tar = tar::Builder::new(Vec::new());
        append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Self {
            tar,
            written: std::collections::BTreeSet::new(),
        })
    }

    /// Adds a blob; gives its descriptor.
    fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Result<Value> {
        let digest = Digest::sha256(bytes);
        if self.written.insert(digest.clone()) {
            append(&mut self.tar, &format!("blobs/sha256/{}", digest.hex()), bytes)?;
        }
        Ok(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}))
    }

    /// Adds an image; gives its manifest's descriptor.
    fn image(&mut self, parts: &Parts, compressed: bool) -> Result<Value> {
        let config = self.blob(OCI_CONFIG, &parts.config)?;
        let mut layers = Vec::new();
        for layer in &parts.layers {
            layers.push(if compressed {
                self.blob(&format!("{OCI_LAYER}+gzip"), &gzip(layer)?)?
            } else {
                self.blob(OCI_LAYER, layer)?
            });
        }
        let manifest =
            json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
        self.blob(OCI_MANIFEST, manifest.to_string().as_bytes())
    }

    fn finish(mut self, root: &Value) -> Result<Vec<u8>> {
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [root]});
        append(&mut self.tar, "index.json", index.to_string().as_bytes())?;
        Ok(self.tar.into_inner()?)
    }
}

/// What `docker save <name>:<tag>` writes since Docker 25: an OCI layout with uncompressed layers, and Docker's own
/// `manifest.json` and `repositories` beside it.
pub fn docker25_archive(parts: &Parts, name: &str, tag: &str) -> Result<Vec<u8>> {
    let mut layout = Layout::new()?;
    let mut root = layout.image(parts, false)?;
    root["annotations"] = json!({
        "io.containerd.image.name": format!("docker.io/library/{name}:{tag}"),
        "org.opencontainers.image.ref.name": tag,
    });
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::sha256(bytes).hex());
    let sources = parts.layers.iter().map(|layer| {
        let digest = Digest::sha256(layer).to_string();
        let source = json!({"mediaType": OCI_LAYER, "digest": digest, "size": layer.len()});
        (digest, source)
    });
    let saved = json!([{
        "Config": blob(&parts.config),
        "RepoTags": [format!("{name}:{tag}")],
        "Layers": parts.layers.iter().map(|l| blob(l)).collect::<Vec<_>>(),
        "LayerSources": sources.collect::<serde_json::Map<_, _>>(),
    }]);
    append(&mut layout.tar, "manifest.json", saved.to_string().as_bytes())?;
    let top = parts.layers.last().context("no layers")?;
    let repositories = json!({name: {tag: Digest::sha256(top).hex()}});
    append(
        &mut layout.tar,
        "repositories",
        repositories.to_string().as_bytes(),
    )?;
    layout.finish(&root)
}

/// An OCI layout of one index, named `tag`, with an image a platform.
pub fn oci_index_archive(platforms: &[(&str, Parts)], tag: &str) -> Result<Vec<u8>> {
    let mut layout = Layout::new()?;
    let mut members = Vec::new();
    for (architecture, parts) in platforms {
        let mut member = layout.image(parts, true)?;
        member["platform"] = json!({"os": "linux", "architecture": architecture});
        members.push(member);
    }
    if members.is_empty() {
        bail!("an index of nothing");
    }
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": members});
    let mut root = layout.blob(OCI_INDEX, index.to_string().as_bytes())?;
    root["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    layout.finish(&root)
}

/// Compresses.
pub fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes)?;
    Ok(out.finish()?)
}

/// A tar of a folder's files, at its root: skopeo's `dir:` as Pulp takes it.
pub fn tar_of_folder(folder: &std::path::Path) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all("", folder)?;
    Ok(tar.into_inner()?)
}
