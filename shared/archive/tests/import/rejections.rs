//! What is refused, with which code and naming what.

use std::{
    io::Write,
    sync::atomic::{AtomicU64, Ordering},
};

use pulp_archive::{ArchiveError, BlobSink, BlobWriter, Progress, Rejection, SinkError, UploadKind, import};
use pulp_model::Digest;
use serde_json::json;
use tar::EntryType;

use crate::support::*;

fn code(archive: &[u8]) -> String {
    rejected(archive).coded().code.to_string()
}

#[test]
fn what_is_no_tar_is_no_archive() {
    for bytes in [
        &b""[..],
        b"{}",
        &[7; 600],
        &[7; 10_000],
        &gzip(&[7; 10_000]),
        &gzip(b""),
    ] {
        assert_eq!(code(bytes), "DKR1101", "{} bytes", bytes.len());
    }
}

#[test]
fn a_tar_without_images_is_refused() {
    assert_eq!(code(&[0; 1024]), "DKR1107");
    assert_eq!(code(&Tar::new().file("README", "x").done()), "DKR1107");
    assert_eq!(
        code(&Tar::new().json("manifest.json", &json!([])).done()),
        "DKR1107"
    );
    assert_eq!(code(&oci(&[], &[]).done()), "DKR1107");
}

#[test]
fn wherever_an_archive_is_cut_it_is_refused() {
    let tar = v1(v1(Tar::new(), 1, None, &layer("a")), 2, Some(1), &layer("b"));
    let archive = tar.json("repositories", &json!({"x": {"latest": id(2)}})).done();
    run(&archive);
    // All that is left out at the last step is the second block of the end marker.
    for cut in (512..archive.len() - 1024).step_by(256) {
        assert_eq!(code(&archive[..cut]), "DKR1102", "cut at {cut}");
    }
    let Rejection::Truncated { file, .. } = rejected(&archive[..archive.len() - 1024 - 100]) else {
        panic!()
    };
    assert_eq!(file, "repositories");
    let zipped = gzip(&archive);
    for cut in [zipped.len() - 4, zipped.len() / 2, 30] {
        assert_eq!(code(&zipped[..cut]), "DKR1102", "gzip cut at {cut}");
    }
    let packed = zstd::encode_all(&archive[..], 3).unwrap();
    assert_eq!(code(&packed[..packed.len() / 2]), "DKR1102");
}

#[test]
fn a_damaged_header_is_found() {
    let mut archive = docker(&[&layer("a")], &["x:y"]).done();
    let second = archive.windows(9).position(|w| w == b"layer.tar").unwrap();
    archive[second] ^= 1;
    assert_eq!(code(&archive), "DKR1102");
}

#[test]
fn names_and_links_that_leave_the_archive_are_refused_even_if_unused() {
    let good = || docker(&[&layer("a")], &["x:y"]);
    run(&good().done());
    for name in ["../x", "a/../../x", "/etc/passwd", "a/..", "./../x"] {
        let Rejection::UnsafeMember { file, .. } = rejected(&good().file(name, "x").done()) else {
            panic!("{name}")
        };
        assert_eq!(file, name);
    }
    for target in ["../x", "/etc/passwd", "a/../../x"] {
        assert_eq!(
            code(&good().symlink("link", target).done()),
            "DKR1103",
            "{target}"
        );
        assert_eq!(
            code(&good().hardlink("dir/link", target).done()),
            "DKR1103",
            "{target}"
        );
    }
    assert_eq!(code(&good().symlink("d/link", "../../x").done()), "DKR1103");
    run(&good()
        .symlink("d/link", "../x")
        .symlink("dangling", "nowhere")
        .done());
    assert_eq!(
        code(&good().symlink("a", "b").symlink("b", "a").done()),
        "DKR1103"
    );
    assert_eq!(code(&good().symlink("a", "a").done()), "DKR1103");
    let chain = (0..30).fold(good(), |tar, n| {
        tar.symlink(&format!("l{n}"), &format!("l{}", n + 1))
    });
    assert_eq!(code(&chain.file("l30", "x").done()), "DKR1103");
}

#[test]
fn names_in_the_metadata_do_not_leave_the_archive_either() {
    let config = config(&[]);
    for name in ["../c.json", "/etc/passwd"] {
        let manifest = json!([{"Config": name, "Layers": []}]);
        let archive = Tar::new()
            .file("c.json", &config)
            .json("manifest.json", &manifest)
            .done();
        assert_eq!(code(&archive), "DKR1103", "{name}");
    }
}

#[test]
fn members_that_no_image_tool_writes_are_refused() {
    let good = || docker(&[&layer("a")], &["x:y"]);
    for kind in [
        EntryType::Char,
        EntryType::Block,
        EntryType::Fifo,
        EntryType::GNUSparse,
        EntryType::new(b'Z'),
    ] {
        assert_eq!(
            code(&good().member(kind, "x", "", &[]).done()),
            "DKR1113",
            "{kind:?}"
        );
    }
    let sparse = good()
        .pax(&[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")])
        .file("x", "y");
    assert_eq!(code(&sparse.done()), "DKR1113");
    assert_eq!(
        code(&good().member(EntryType::Symlink, "x", "c", b"data").done()),
        "DKR1113"
    );
}

#[test]
fn two_repositories_are_refused_wherever_they_are_named() {
    let layer = layer("a");
    let archive = v1(Tar::new(), 1, None, &layer)
        .json("repositories", &json!({"a": {"x": id(1)}, "b": {"y": id(1)}}))
        .done();
    let Rejection::NotOneRepository { repositories } = rejected(&archive) else {
        panic!()
    };
    assert_eq!(repositories, ["a", "b"]);
    assert_eq!(code(&docker(&[&layer], &["a:x", "b:x"]).done()), "DKR1104");
    let config = config(&[&layer]);
    let manifest = oci_manifest(&config, &[("tar", &layer)]);
    let roots = ["a:x", "b:y"].map(|name| {
        descriptor(
            "manifest",
            &manifest,
            &json!({"org.opencontainers.image.ref.name": name}),
        )
    });
    assert_eq!(
        code(&oci(&[&layer, &config, &manifest], &roots).done()),
        "DKR1104"
    );
}

#[test]
fn layers_that_are_missing_are_named() {
    let layer = layer("a");
    let config = config(&[&layer]);
    let manifest = json!([{"Config": "c", "RepoTags": ["a:b"], "Layers": ["x/layer.tar"]}]);
    let archive = Tar::new()
        .file("c", &config)
        .json("manifest.json", &manifest)
        .done();
    assert_eq!(
        rejected(&archive),
        Rejection::LayerMissing {
            layer: "x/layer.tar".to_owned()
        }
    );
    assert_eq!(
        code(&Tar::new().json("manifest.json", &manifest).done()),
        "DKR1018",
        "the config"
    );
    let dangling = Tar::new()
        .file("c", &config)
        .symlink("x/layer.tar", "../gone")
        .json("manifest.json", &manifest);
    assert_eq!(code(&dangling.done()), "DKR1018");

    let archive = Tar::new()
        .json(&format!("{}/json", id(1)), &json!({"id": id(1)}))
        .done();
    assert_eq!(
        rejected(&archive),
        Rejection::LayerMissing {
            layer: format!("{}/layer.tar", id(1))
        }
    );

    let manifest = oci_manifest(&config, &[("tar", &layer)]);
    let root = descriptor("manifest", &manifest, &json!({}));
    let expected = Rejection::LayerMissing {
        layer: Digest::sha256(&layer).to_string(),
    };
    assert_eq!(rejected(&oci(&[&config, &manifest], &[root]).done()), expected);
    let dir = Tar::new()
        .file("manifest.json", &manifest)
        .file_anyhow(Digest::sha256(&config).hex(), &config);
    assert_eq!(rejected(&dir.done()), expected);
}

#[test]
fn bytes_that_are_not_what_their_digest_says_are_refused() {
    let (right, wrong) = (layer("right"), layer("wrong"));
    let config = config(&[&right]);
    let saved = |name: &str| json!([{"Config": name, "RepoTags": ["a:b"], "Layers": ["l"]}]);
    for layer in [
        wrong.clone(),
        gzip(&wrong),
        zstd::encode_all(&wrong[..], 3).unwrap(),
    ] {
        let archive = Tar::new()
            .file("c", &config)
            .file("l", &layer)
            .json("manifest.json", &saved("c"))
            .done();
        let (expected, got) = (Digest::sha256(&right), Digest::sha256(&wrong));
        assert_eq!(
            rejected(&archive),
            Rejection::DigestMismatch {
                expected,
                got,
                file: "l".to_owned()
            }
        );
    }
    let name = format!("{}.json", id(3));
    let archive = Tar::new()
        .file(&name, &config)
        .file("l", &right)
        .json("manifest.json", &saved(&name))
        .done();
    assert_eq!(
        code(&archive),
        "DKR1017",
        "a config that is not what its name says"
    );

    let manifest = oci_manifest(&config, &[("tar", &right)]);
    let root = descriptor("manifest", &manifest, &json!({}));
    for damaged in [&right, &config, &manifest] {
        let mut tar = Tar::new().json("index.json", &json!({"schemaVersion": 2, "manifests": [root]}));
        for blob in [&right, &config, &manifest] {
            let mut bytes = blob.clone();
            if blob == damaged {
                *bytes.last_mut().unwrap() ^= 1;
            }
            tar = tar.file_anyhow(&format!("blobs/sha256/{}", Digest::sha256(blob).hex()), &bytes);
        }
        assert_eq!(code(&tar.done()), "DKR1017");
    }
}

#[test]
fn a_gzip_layer_that_is_damaged_is_refused() {
    let base = layer("a");
    let config = config(&[&base]);
    let mut zipped = gzip(&base);
    let end = zipped.len() - 6;
    zipped[end] ^= 0xff;
    let saved = json!([{"Config": "c", "Layers": ["l"]}]);
    let archive = Tar::new()
        .file("c", &config)
        .file("l", &zipped)
        .json("manifest.json", &saved)
        .done();
    assert_eq!(code(&archive), "DKR1102");
}

#[test]
fn v1_images_must_fit_each_other() {
    let at = |n: u8, json: serde_json::Value| {
        Tar::new()
            .json(&format!("{}/json", id(n)), &json)
            .file(&format!("{}/layer.tar", id(n)), layer("a"))
            .done()
    };
    assert_eq!(
        rejected(&at(1, json!({"id": id(1), "parent": id(2)}))),
        Rejection::ParentMissing {
            image_id: image_id(1),
            parent_id: image_id(2)
        }
    );
    assert_eq!(code(&at(1, json!({"id": id(2)}))), "DKR1108");
    assert_eq!(code(&at(1, json!({"id": id(1), "parent": "../.."}))), "DKR1108");
    assert_eq!(code(&at(1, json!({"id": id(1), "parent": id(1)}))), "DKR1108");
    assert_eq!(code(&at(1, json!({"Size": 1}))), "DKR1015");
    let circle = v1(
        v1(v1(Tar::new(), 1, Some(2), b""), 2, Some(3), b""),
        3,
        Some(1),
        b"",
    );
    assert_eq!(code(&circle.done()), "DKR1108");
    let dangling = v1(Tar::new(), 1, None, &layer("a")).json("repositories", &json!({"a": {"b": id(2)}}));
    assert_eq!(code(&dangling.done()), "DKR1108");
}

#[test]
fn a_tag_for_two_images_and_a_config_with_other_layers_contradict() {
    let layers = [layer("a"), layer("b")];
    let image =
        |n: usize| json!({"Config": format!("c{n}"), "RepoTags": ["x:y"], "Layers": [format!("l{n}")]});
    let archive = Tar::new()
        .file("c0", config(&[&layers[0]]))
        .file("c1", config(&[&layers[1]]))
        .file("l0", &layers[0])
        .file("l1", &layers[1])
        .json("manifest.json", &json!([image(0), image(1)]));
    assert_eq!(code(&archive.done()), "DKR1108");
    let archive = Tar::new()
        .file("c0", config(&[&layers[0], &layers[1]]))
        .file("l0", &layers[0])
        .json("manifest.json", &json!([image(0)]));
    assert_eq!(code(&archive.done()), "DKR1108");
}

#[test]
fn bad_json_names_its_file() {
    for (name, text) in [
        ("manifest.json", "[{"),
        ("manifest.json", "[1]"),
        ("index.json", "[]"),
        ("index.json", "{}"),
    ] {
        let Rejection::BadJson { file, .. } = rejected(&Tar::new().file(name, text).done()) else {
            panic!("{text}")
        };
        assert_eq!(file, name);
    }
    let deep = "[".repeat(100_000);
    assert_eq!(code(&Tar::new().file("manifest.json", deep).done()), "DKR1011");
    let tar = v1(Tar::new(), 1, None, &layer("a")).file("repositories", "{\"a\": 1}");
    assert_eq!(code(&tar.done()), "DKR1011");
    let tar = Tar::new().file(&format!("{}/json", id(1)), "\u{0}");
    assert_eq!(code(&tar.done()), "DKR1011");
    let saved = json!([{"Config": "c", "Layers": []}]);
    assert_eq!(
        code(&Tar::new().file("c", "{}").json("manifest.json", &saved).done()),
        "DKR1015",
        "no rootfs"
    );
}

#[test]
fn a_bad_tag_is_refused() {
    assert_eq!(
        rejected(&docker(&[&layer("a")], &["x:-y"]).done()),
        Rejection::InvalidTag {
            value: "-y".to_owned()
        }
    );
    let tar = v1(Tar::new(), 1, None, &layer("a")).json("repositories", &json!({"a": {"b/c": id(1)}}));
    assert_eq!(code(&tar.done()), "DKR1109");
}

#[test]
fn each_limit_holds() {
    let base = Tar::new().file("zeros", vec![0; 3_000_000]).done();
    let archive = docker(&[&base], &["x:y"]).done();
    let refused = |archive: &[u8], change: fn(&mut pulp_archive::Limits)| {
        let mut options = options(UploadKind::DockerImage);
        change(&mut options.limits);
        match run_with(archive, &options, &Store::default()) {
            Err(ArchiveError::Rejected(rejection)) => rejection.coded().code.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(&archive, |l| l.members = 2), "DKR1105");
    assert_eq!(refused(&archive, |l| l.path_bytes = 10), "DKR1105");
    assert_eq!(refused(&archive, |l| l.metadata_bytes = 10), "DKR1105");
    assert_eq!(refused(&archive, |l| l.config_bytes = 10), "DKR1105");
    assert_eq!(refused(&archive, |l| l.images = 0), "DKR1105");
    assert_eq!(refused(&archive, |l| l.layers = 0), "DKR1105");
    let bomb = |l: &mut pulp_archive::Limits| l.expanded_bytes = 1_000_000;
    assert_eq!(refused(&gzip(&archive), bomb), "DKR1105");
    let saved = json!([{"Config": "c", "Layers": ["l"]}]);
    for layer in [gzip(&base), zstd::encode_all(&base[..], 3).unwrap()] {
        let tar = Tar::new()
            .file("c", config(&[&base]))
            .file("l", layer)
            .json("manifest.json", &saved);
        assert_eq!(refused(&tar.done(), bomb), "DKR1105");
    }
    let line = (2..5).fold(v1(Tar::new(), 1, None, b""), |tar, n| {
        v1(tar, n, Some(n - 1), b"")
    });
    assert_eq!(refused(&line.done(), |l| l.layers = 3), "DKR1105");
}

/// Cancels after so many questions.
struct Patience(AtomicU64);

impl Progress for Patience {
    fn is_canceled(&self) -> bool {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .is_err()
    }
}

#[test]
fn a_cancel_stops_it_at_any_time() {
    let base = Tar::new().file("zeros", vec![3; 5_000_000]).done();
    let archive = docker(&[&base], &["x:y"]).done();
    for archive in [archive.clone(), gzip(&archive)] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&archive).unwrap();
        let mut asked = 0;
        loop {
            let store = Store::default();
            let patience = Patience(AtomicU64::new(asked));
            match import(file.path(), &options(UploadKind::DockerImage), &store, &patience) {
                Err(ArchiveError::Canceled) => asked += 1,
                Ok(_) => break,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(asked > 10, "asked {asked} times only");
    }
}

/// A store that fails once a blob grows.
struct FullDisk;

/// What it says then.
#[derive(Debug)]
struct Full;

impl std::fmt::Display for Full {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no room left")
    }
}

impl std::error::Error for Full {}

struct FullWriter(usize);

impl Write for FullWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let left = self.0.checked_sub(bytes.len());
        self.0 = left.ok_or_else(|| std::io::Error::other(Full))?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl BlobWriter for FullWriter {
    fn commit(self: Box<Self>, _: &Digest) -> Result<(), SinkError> {
        Ok(())
    }
}

impl BlobSink for FullDisk {
    fn contains(&self, _: &Digest) -> Result<Option<u64>, SinkError> {
        Ok(None)
    }
    fn create(&self) -> Result<Box<dyn BlobWriter>, SinkError> {
        Ok(Box::new(FullWriter(2000)))
    }
}

#[test]
fn a_store_that_fails_is_not_blamed_on_the_archive() {
    let noise: Vec<u8> = (0..3_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let base = Tar::new().file("noise", noise).done();
    let saved = json!([{"Config": "c", "Layers": ["l"]}]);
    for layer in [base.clone(), gzip(&base)] {
        let tar = Tar::new()
            .file("c", config(&[&base]))
            .file("l", &layer)
            .json("manifest.json", &saved);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&tar.done()).unwrap();
        let error = import(
            file.path(),
            &options(UploadKind::DockerImage),
            &FullDisk,
            &pulp_archive::NoProgress,
        );
        let error = error.unwrap_err();
        assert!(matches!(error, ArchiveError::Store(_)), "{error}");
        assert_eq!(error.coded().code.as_str(), "PLP2002");
        let ArchiveError::Store(store) = error else { return };
        assert!(
            store.into_inner().is::<Full>(),
            "the store's own error comes through"
        );
    }
}
