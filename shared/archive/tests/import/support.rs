//! Making archives, and a content store in memory.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    sync::{Arc, Mutex},
};

use pulp_archive::{
    ArchiveError, BlobSink, BlobWriter, ImportOptions, Imported, NoProgress, Rejection, SinkError,
    UploadKind, import,
};
use pulp_model::{
    Digest,
    unit::{ImageId, ImageUnit, ManifestKind, ManifestUnit, Unit},
};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

/// A store that checks what it is told.
#[derive(Default, Clone)]
pub(crate) struct Store {
    pub(crate) blobs: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    pub(crate) commits: Arc<Mutex<Vec<String>>>,
}

struct Writer(Vec<u8>, Store);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl BlobWriter for Writer {
    fn commit(self: Box<Self>, digest: &Digest) -> Result<(), SinkError> {
        assert!(
            digest.matches(&self.0),
            "committed under a digest that is not its own"
        );
        self.1.commits.lock().unwrap().push(digest.to_string());
        self.1.blobs.lock().unwrap().insert(digest.to_string(), self.0);
        Ok(())
    }
}

impl BlobSink for Store {
    fn contains(&self, digest: &Digest) -> Result<Option<u64>, SinkError> {
        let blobs = self.blobs.lock().unwrap();
        Ok(blobs.get(&digest.to_string()).map(|bytes| bytes.len() as u64))
    }
    fn create(&self) -> Result<Box<dyn BlobWriter>, SinkError> {
        Ok(Box::new(Writer(Vec::new(), self.clone())))
    }
}

impl Store {
    pub(crate) fn bytes(&self, digest: &Digest) -> Vec<u8> {
        let blobs = self.blobs.lock().unwrap();
        blobs
            .get(&digest.to_string())
            .unwrap_or_else(|| panic!("{digest} is not stored"))
            .clone()
    }
    pub(crate) fn json(&self, digest: &Digest) -> Value {
        serde_json::from_slice(&self.bytes(digest)).unwrap()
    }
    pub(crate) fn unzipped(&self, digest: &Digest) -> Vec<u8> {
        gunzip(&self.bytes(digest))
    }
    pub(crate) fn put(&self, bytes: &[u8]) {
        self.blobs
            .lock()
            .unwrap()
            .insert(Digest::sha256(bytes).to_string(), bytes.to_vec());
    }
}

/// An archive in the making.
pub(crate) struct Tar(Builder<Vec<u8>>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }
    /// The name is written as it is, which the builder would refuse for bad ones.
    pub(crate) fn member(mut self, kind: EntryType, name: &str, link: &str, bytes: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        self.0.append(&header, bytes).unwrap();
        self
    }
    pub(crate) fn file(self, name: &str, bytes: impl AsRef<[u8]>) -> Self {
        self.member(EntryType::Regular, name, "", bytes.as_ref())
    }
    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.member(EntryType::Symlink, name, target, &[])
    }
    pub(crate) fn hardlink(self, name: &str, target: &str) -> Self {
        self.member(EntryType::Link, name, target, &[])
    }
    pub(crate) fn json(self, name: &str, value: &Value) -> Self {
        self.file(name, value.to_string())
    }
    pub(crate) fn pax(mut self, records: &[(&str, &str)]) -> Self {
        self.0
            .append_pax_extensions(records.iter().map(|(k, v)| (*k, v.as_bytes())))
            .unwrap();
        self
    }
    /// An OCI blob; gives its digest.
    pub(crate) fn blob(self, bytes: &[u8]) -> Self {
        let name = format!("blobs/sha256/{}", Digest::sha256(bytes).hex());
        self.file_anyhow(&name, bytes)
    }
    /// Longer names than fit a header.
    pub(crate) fn file_anyhow(mut self, name: &str, bytes: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        self.0.append_data(&mut header, name, bytes).unwrap();
        self
    }
    pub(crate) fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(9));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes)
        .read_to_end(&mut out)
        .unwrap();
    out
}

/// A layer with one file.
pub(crate) fn layer(text: &str) -> Vec<u8> {
    Tar::new().file(&format!("etc/{text}"), text.repeat(500)).done()
}

pub(crate) fn config(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(Digest::sha256).collect();
    json!({
        "architecture": "amd64", "os": "linux", "created": "2024-01-02T03:04:05Z",
        "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
    .into_bytes()
}

pub(crate) fn id(n: u8) -> String {
    format!("{n:02x}").repeat(32)
}

pub(crate) fn image_id(n: u8) -> ImageId {
    id(n).parse().unwrap()
}

/// A v1 image's directory.
pub(crate) fn v1(tar: Tar, n: u8, parent: Option<u8>, layer: &[u8]) -> Tar {
    let mut json = json!({"id": id(n), "created": "2014-02-03T15:58:08Z", "Size": 7,
        "container_config": {"Cmd": ["/bin/sh", "-c", format!("step {n}")]}, "config": {"Cmd": ["sh"]}});
    if let Some(parent) = parent {
        json["parent"] = json!(id(parent));
    }
    tar.file(&format!("{}/VERSION", id(n)), "1.0")
        .json(&format!("{}/json", id(n)), &json)
        .file(&format!("{}/layer.tar", id(n)), layer)
}

/// A `manifest.json` archive of one image with tags.
pub(crate) fn docker(layers: &[&[u8]], tags: &[&str]) -> Tar {
    let config = config(layers);
    let name = format!("{}.json", Digest::sha256(&config).hex());
    let names: Vec<_> = (0..layers.len())
        .map(|n| format!("{}/layer.tar", id(0xa0 + n as u8)))
        .collect();
    let mut tar = Tar::new().file(&name, &config);
    for (name, layer) in names.iter().zip(layers) {
        tar = tar.file(name, layer);
    }
    tar.json(
        "manifest.json",
        &json!([{"Config": name, "RepoTags": tags, "Layers": names}]),
    )
}

/// Bytes of an OCI manifest over these blobs.
pub(crate) fn oci_manifest(config: &[u8], layers: &[(&str, &[u8])]) -> Vec<u8> {
    let layers: Vec<_> = layers
        .iter()
        .map(|(kind, bytes)| {
            json!({"mediaType": format!("application/vnd.oci.image.layer.v1.{kind}"),
                "digest": Digest::sha256(bytes), "size": bytes.len()})
        })
        .collect();
    json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::sha256(config),
            "size": config.len()}, "layers": layers})
    .to_string()
    .into_bytes()
}

pub(crate) fn descriptor(kind: &str, bytes: &[u8], annotations: &Value) -> Value {
    json!({"mediaType": format!("application/vnd.oci.image.{kind}.v1+json"), "digest": Digest::sha256(bytes),
        "size": bytes.len(), "annotations": annotations})
}

pub(crate) fn member(bytes: &[u8], os: &str, arch: &str) -> Value {
    let mut value = descriptor("manifest", bytes, &json!({}));
    value["platform"] = json!({"os": os, "architecture": arch});
    value
}

/// An OCI layout around blobs already added.
pub(crate) fn oci(blobs: &[&[u8]], roots: &[Value]) -> Tar {
    let mut tar = Tar::new().file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    for blob in blobs {
        tar = tar.blob(blob);
    }
    tar.json("index.json", &json!({"schemaVersion": 2, "manifests": roots}))
}

pub(crate) fn options(kind: UploadKind) -> ImportOptions {
    let mut options = ImportOptions::new("busybox".parse().unwrap(), kind);
    options.threads = 2;
    options
}

pub(crate) fn run_with(
    archive: &[u8],
    options: &ImportOptions,
    store: &Store,
) -> Result<Imported, ArchiveError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(archive).unwrap();
    import(file.path(), options, store, &NoProgress)
}

pub(crate) fn run(archive: &[u8]) -> (Imported, Store) {
    let store = Store::default();
    let imported = run_with(archive, &options(UploadKind::DockerImage), &store).unwrap();
    check(&imported, &store);
    (imported, store)
}

pub(crate) fn rejected(archive: &[u8]) -> Rejection {
    match run_with(archive, &options(UploadKind::DockerImage), &Store::default()) {
        Err(ArchiveError::Rejected(rejection)) => *rejection,
        other => panic!("not rejected: {other:?}"),
    }
}

pub(crate) fn images(imported: &Imported) -> Vec<&ImageUnit> {
    let units = imported.units.iter();
    units
        .filter_map(|unit| match unit {
            Unit::Image(image) => Some(image),
            _ => None,
        })
        .collect()
}

pub(crate) fn manifests(imported: &Imported) -> Vec<&ManifestUnit> {
    let units = imported.units.iter();
    units
        .filter_map(|unit| match unit {
            Unit::Manifest(manifest) => Some(manifest),
            _ => None,
        })
        .collect()
}

/// Tags as `name → digest`, lists marked.
pub(crate) fn tags(imported: &Imported) -> Vec<(String, Digest, ManifestKind)> {
    let tag = |unit: &Unit| match unit {
        Unit::Tag(tag) => Some((
            tag.name.to_string(),
            tag.manifest_digest.clone(),
            tag.manifest_type,
        )),
        _ => None,
    };
    imported.units.iter().filter_map(tag).collect()
}

/// What holds of every import: everything referred to is stored, nothing stands twice, the order is right.
pub(crate) fn check(imported: &Imported, store: &Store) {
    let mut seen: Vec<String> = Vec::new();
    for unit in &imported.units {
        let name = format!("{} {}", unit.unit_type(), unit.identity());
        assert!(!seen.contains(&name), "{name} twice");
        let has = |kind: &str, digest: &Digest| {
            assert!(
                seen.contains(&format!("{kind} {digest}")),
                "{name} stands before {digest}"
            );
        };
        match unit {
            Unit::Blob(blob) => assert_eq!(store.bytes(&blob.digest).len() as u64, blob.size),
            Unit::Manifest(manifest) => {
                assert_eq!(store.bytes(&manifest.digest).len() as u64, manifest.size);
                manifest.blobs().for_each(|digest| has("docker_blob", digest));
            }
            Unit::ManifestList(list) => {
                store.bytes(&list.digest);
                let held = list
                    .manifests
                    .iter()
                    .filter(|m| !imported.references.contains(&m.digest));
                held.for_each(|m| {
                    let kind = if m.media_type.is_index() {
                        "docker_manifest_list"
                    } else {
                        "docker_manifest"
                    };
                    has(kind, &m.digest);
                });
            }
            Unit::Image(image) => {
                assert_eq!(store.bytes(&image.layer_digest).len() as u64, image.layer_size);
                store.unzipped(&image.layer_digest);
                let json = store.json(&image.json_digest);
                assert_eq!(json["id"], json!(image.image_id));
                assert_eq!(
                    json.get("parent"),
                    image.parent_id.as_ref().map(|p| json!(p)).as_ref()
                );
                let ancestry = store.json(&image.ancestry_digest);
                assert_eq!(ancestry[0], json!(image.image_id));
                assert_eq!(
                    ancestry.get(1),
                    image.parent_id.as_ref().map(|p| json!(p)).as_ref()
                );
            }
            Unit::Tag(_) => {}
        }
        seen.push(name);
    }
    for tag in &imported.v1_tags {
        assert!(
            images(imported)
                .iter()
                .any(|image| image.image_id == tag.image_id),
            "dangling {tag:?}"
        );
    }
}
