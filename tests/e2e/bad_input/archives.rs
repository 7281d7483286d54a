//! Archives of which every byte may be wrong, and the code that each gets.

use std::io::Write as _;

use pulp_model::Digest;
use serde_json::json;
use tar::{EntryType, Header};

use super::LIMIT;

const GIB_10: u64 = 10 << 30;

/// A tar of which every byte may be wrong.
#[derive(Default)]
pub(super) struct Tar(Vec<u8>);

impl Tar {
    /// A header with a name that nobody checks, `size` as told, then the bytes.
    fn raw(mut self, kind: EntryType, name: &str, link: &str, size: u64, bytes: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(size);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.data(bytes)
    }

    fn data(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn file(self, name: &str, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        self.raw(EntryType::Regular, name, "", bytes.len() as u64, bytes)
    }

    pub(super) fn link(self, kind: EntryType, name: &str, target: &str) -> Self {
        self.raw(kind, name, target, 0, &[])
    }

    /// GNU's old form of a file with holes: 10 GiB of nothing.
    fn gnu_sparse(mut self, name: &str) -> Self {
        let mut header = Header::new_gnu();
        header.set_path(name).unwrap();
        header.set_entry_type(EntryType::GNUSparse);
        header.set_size(0);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.realsize.copy_from_slice(format!("{GIB_10:012o}").as_bytes());
        gnu.sparse[0]
            .offset
            .copy_from_slice(format!("{GIB_10:012o}").as_bytes());
        gnu.sparse[0].numbytes.copy_from_slice(b"00000000000\0");
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self
    }

    /// The form of POSIX archives: the map before the data, the name and size in records.
    fn pax_sparse(self, name: &str) -> Self {
        let records: String = [
            ("GNU.sparse.major", "1".to_owned()),
            ("GNU.sparse.minor", "0".to_owned()),
            ("GNU.sparse.name", name.to_owned()),
            ("GNU.sparse.realsize", GIB_10.to_string()),
        ]
        .iter()
        .map(|(key, value)| record(key, value))
        .collect();
        self.raw(
            EntryType::XHeader,
            "pax",
            "",
            records.len() as u64,
            records.as_bytes(),
        )
        .file(name, format!("1\n{GIB_10}\n0\n"))
    }

    pub(super) fn done(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// A PAX record, which tells its own length.
fn record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len() + 1;
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    format!("{length}{rest}")
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A layer: a tar of one file.
pub(super) fn layer(name: &str, bytes: usize) -> Vec<u8> {
    Tar::default().file(name, vec![b'x'; bytes]).done()
}

/// `docker save`'s metadata of one image with these layers, without the layers themselves.
pub(super) fn docker(tags: &[&str], layers: &[(&str, &[u8])]) -> Tar {
    let diff_ids: Vec<Digest> = layers.iter().map(|(_, bytes)| Digest::sha256(bytes)).collect();
    let config = json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    .to_string();
    let name = format!("{}.json", Digest::sha256(&config).hex());
    let names: Vec<&str> = layers.iter().map(|(name, _)| *name).collect();
    let manifest = json!([{"Config": name, "RepoTags": tags, "Layers": names}]);
    Tar::default()
        .file(&name, config)
        .file("manifest.json", manifest.to_string())
}

/// An OCI layout of one image, with a layer that is stored as `stored`.
fn oci(layer: &[u8], stored: &[u8]) -> Vec<u8> {
    let describe = |kind: &str, bytes: &[u8]| {
        let media_type = format!("application/vnd.oci.image.{kind}");
        json!({"mediaType": media_type, "digest": Digest::sha256(bytes), "size": bytes.len()})
    };
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::sha256(bytes).hex());
    let config = json!({"architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [Digest::sha256(layer)]}})
    .to_string();
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": describe("config.v1+json", config.as_bytes()),
        "layers": [describe("layer.v1.tar", layer)]})
    .to_string();
    let index = json!({"schemaVersion": 2,
        "manifests": [describe("manifest.v1+json", manifest.as_bytes())]});
    Tar::default()
        .file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", index.to_string())
        .file(&blob(manifest.as_bytes()), &manifest)
        .file(&blob(config.as_bytes()), &config)
        .file(&blob(layer), stored)
        .done()
}

/// A bad upload: what it is, its bytes, the code, and a word that the description must have to say where.
pub(super) type Bad = (&'static str, Vec<u8>, &'static str, &'static str);

fn good() -> Tar {
    let bytes = layer("good", 100);
    docker(&["demo:latest"], &[("l/layer.tar", &bytes)]).file("l/layer.tar", bytes)
}

pub(super) fn bad_archives() -> Vec<Bad> {
    let small = layer("small", 100);
    let other = layer("other", 100);
    let large = layer("large", 2 * LIMIT);
    let zeros = vec![0; 2 * LIMIT];
    let whole = good().done();
    let docker_of = |bytes: &[u8]| docker(&["demo:latest"], &[("l/layer.tar", bytes)]);
    vec![
        ("text", b"this is no tar".repeat(100), "DKR1101", "docker save"),
        ("nearly nothing", b"x".to_vec(), "DKR1101", "1 bytes"),
        (
            "a tar of something else",
            layer("etc/passwd", 10),
            "DKR1107",
            "no image",
        ),
        (
            "a truncated archive",
            whole[..whole.len() - 1600].to_vec(),
            "DKR1102",
            "l/layer.tar",
        ),
        (
            "a missing layer",
            docker_of(&small).done(),
            "DKR1018",
            "l/layer.tar",
        ),
        (
            "a layer that is not what the config says",
            docker_of(&small).file("l/layer.tar", &other).done(),
            "DKR1017",
            "l/layer.tar",
        ),
        (
            "a blob that is not what its name says",
            oci(&small, &other),
            "DKR1017",
            "blobs/sha256/",
        ),
        (
            "a path that climbs",
            good().file("a/../../../etc/x", "x").done(),
            "DKR1103",
            "a/../../../etc/x",
        ),
        (
            "an absolute path",
            good().file("/etc/x", "x").done(),
            "DKR1103",
            "/etc/x",
        ),
        (
            "a symbolic link out",
            good()
                .link(EntryType::Symlink, "a/out", "../../etc/passwd")
                .done(),
            "DKR1103",
            "a/out",
        ),
        (
            "a layer that is a link out",
            docker_of(&small)
                .link(EntryType::Symlink, "l/layer.tar", "/etc/passwd")
                .done(),
            "DKR1103",
            "l/layer.tar",
        ),
        (
            "links in a circle",
            good()
                .link(EntryType::Symlink, "one", "two")
                .link(EntryType::Symlink, "two", "one")
                .done(),
            "DKR1103",
            "circle",
        ),
        (
            "a hard link out",
            good().link(EntryType::Link, "hard", "../etc/shadow").done(),
            "DKR1103",
            "hard",
        ),
        (
            "two repositories in one archive",
            docker(&["one:latest", "two:latest"], &[("l/layer.tar", &small)])
                .file("l/layer.tar", &small)
                .done(),
            "DKR1104",
            "one, two",
        ),
        (
            "two repositories in `repositories`",
            two_repositories(),
            "DKR1104",
            "one, two",
        ),
        (
            "10 GiB of holes, as GNU wrote them",
            good().gnu_sparse("holes").done(),
            "DKR1113",
            "holes",
        ),
        (
            "10 GiB of holes, as POSIX has them",
            good().pax_sparse("holes").done(),
            "DKR1113",
            "sparse",
        ),
        (
            "a member that says 10 GiB and has none",
            good()
                .raw(EntryType::Regular, "huge", "", GIB_10, b"little")
                .done(),
            "DKR1102",
            "huge",
        ),
        (
            "a layer that expands beyond the limit",
            docker_of(&large).file("l/layer.tar", gzip(&large)).done(),
            "DKR1105",
            "l/layer.tar",
        ),
        (
            "an archive that expands beyond the limit",
            gzip(&good().file("zeros", &zeros).done()),
            "DKR1105",
            "8000000",
        ),
        (
            "an archive of garbage in gzip",
            gzip(b"no tar at all"),
            "DKR1101",
            "docker save",
        ),
        (
            "a manifest.json that is none",
            Tar::default().file("manifest.json", "[{").done(),
            "DKR1011",
            "manifest.json",
        ),
        (
            "a config that is none",
            Tar::default()
                .file(
                    "manifest.json",
                    r#"[{"Config":"c.json","RepoTags":["demo:latest"],"Layers":[]}]"#,
                )
                .file("c.json", "nothing")
                .done(),
            "DKR1011",
            "c.json",
        ),
    ]
}

/// The oldest layout, with a second name beside the first.
fn two_repositories() -> Vec<u8> {
    let id = "a".repeat(64);
    Tar::default()
        .file(
            "repositories",
            json!({"one": {"latest": id}, "two": {"latest": id}}).to_string(),
        )
        .file(
            &format!("{id}/json"),
            json!({"id": id, "os": "linux"}).to_string(),
        )
        .file(&format!("{id}/VERSION"), "1.0")
        .file(&format!("{id}/layer.tar"), layer("x", 10))
        .done()
}
