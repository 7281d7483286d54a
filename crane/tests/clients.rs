//! Today's clients against Crane, those that are installed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/authority.rs"]
mod authority;
mod common;

use std::{fs, path::Path, time::Duration};

use authority::{Ca, entitlement};
use common::Site;
use pulp_crane::{Entitlements, Mode, TlsFiles, run};
use pulp_model::Digest;
use rcgen::CertificateParams;
use tokio::{net::TcpListener, process::Command, time::timeout};
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_mins(1);

async fn skopeo(arguments: &[&str]) -> String {
    let output = Command::new("skopeo").args(arguments).output();
    let output = timeout(LIMIT, output).await.unwrap().unwrap();
    assert!(
        output.status.success(),
        "skopeo {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_images_lists_and_oci_images() {
    if Command::new("skopeo").arg("--version").output().await.is_err() {
        println!("skipped: skopeo is not installed");
        return;
    }
    let site = Site::new();
    let image = site.image("busybox", "pulpdemo/busybox", "a");
    site.publish(&image.contents);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let name = format!("docker://{}/pulpdemo/busybox", listener.local_addr().unwrap());
    let shutdown = CancellationToken::new();
    let crane = tokio::spawn(run(site.config(Mode::SERVE), listener, shutdown.clone()));

    let tags = skopeo(&["list-tags", "--tls-verify=false", &name]).await;
    let tags: serde_json::Value = serde_json::from_str(&tags).unwrap();
    assert_eq!(tags["Tags"].as_array().unwrap().len(), 5);

    let target = site.dir.path().join("copies");
    fs::create_dir(&target).unwrap();
    for (tag, all, digest) in [
        ("latest", false, &image.manifest),
        ("multi", false, &image.manifest),
        ("multi", true, &image.list),
        ("oci", false, &image.oci),
    ] {
        let dir = target.join(format!("{tag}-{all}"));
        let (from, to) = (format!("{name}:{tag}"), format!("dir:{}", dir.display()));
        let mut arguments = vec![
            "copy",
            "--preserve-digests",
            "--insecure-policy",
            "--src-tls-verify=false",
            "--override-arch=amd64",
        ];
        arguments.extend(all.then_some("--all"));
        arguments.extend([from.as_str(), to.as_str()]);
        skopeo(&arguments).await;
        assert_eq!(digest_of(&dir.join("manifest.json")), *digest, "{tag}");
        assert_eq!(digest_of(&dir.join(image.layer.hex())), image.layer, "{tag}");
    }
    shutdown.cancel();
    timeout(LIMIT, crane).await.unwrap().unwrap().unwrap();
}

fn digest_of(path: &Path) -> Digest {
    Digest::sha256(fs::read(path).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_pulls_a_protected_image_over_tls_with_its_certificate_only() {
    if Command::new("skopeo").arg("--version").output().await.is_err() {
        println!("skipped: skopeo is not installed");
        return;
    }
    let site = Site::new();
    let mut image = site.image("secret", "pulpdemo/secret", "a");
    image.contents.protected = true;
    site.publish(&image.contents);
    let ca = Ca::new();
    let entitled = entitlement("/pulp/docker/v2/secret", 1);
    // As docker and skopeo want it: a directory a registry.
    let (with, without) = (site.dir.path().join("with"), site.dir.path().join("without"));
    for (dir, params) in [(&with, &entitled), (&without, &CertificateParams::default())] {
        let (certificate, key) = ca.sign(params);
        fs::create_dir(dir).unwrap();
        for (name, text) in [
            ("ca.crt", &ca.pem),
            ("client.cert", &certificate),
            ("client.key", &key),
        ] {
            fs::write(dir.join(name), text).unwrap();
        }
    }
    let (certificate, key) = ca.sign(&CertificateParams::new(["localhost".to_owned()]).unwrap());
    let mut config = site.config(Mode::SERVE);
    let file = |name: &str, text: &str| {
        let path = site.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    config.tls = Some(TlsFiles {
        certificate: file("server.pem", &certificate),
        key: file("server.key", &key),
    });
    config.entitlements = Some(Entitlements {
        ca: file("ca.pem", &ca.pem),
        crl: None,
        trusted_proxies: Vec::new(),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let from = format!("docker://localhost:{port}/pulpdemo/secret:latest");
    let shutdown = CancellationToken::new();
    let crane = tokio::spawn(run(config, listener, shutdown.clone()));

    let copy = site.dir.path().join("copy");
    let to = format!("dir:{}", copy.display());
    let certificates = format!("--src-cert-dir={}", with.display());
    skopeo(&[
        "copy",
        "--preserve-digests",
        "--insecure-policy",
        &certificates,
        &from,
        &to,
    ])
    .await;
    assert_eq!(digest_of(&copy.join("manifest.json")), image.manifest);
    assert_eq!(digest_of(&copy.join(image.layer.hex())), image.layer);

    let refused = Command::new("skopeo")
        .args(["inspect", "--raw", "--cert-dir"])
        .arg(&without)
        .arg(&from)
        .output();
    let refused = timeout(LIMIT, refused).await.unwrap().unwrap();
    assert!(!refused.status.success());
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("not known to registry"), "{told}");
    shutdown.cancel();
    timeout(LIMIT, crane).await.unwrap().unwrap().unwrap();
}
