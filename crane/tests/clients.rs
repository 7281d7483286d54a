//! Today's clients against Crane, those that are installed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{fs, path::Path, time::Duration};

use common::Site;
use pulp_crane::{Mode, run};
use pulp_model::Digest;
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
