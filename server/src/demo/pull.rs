//! Pulls what was published: by an independent client if one is installed, and by our own registry client, which
//! checks every digest on the way.

use std::{net::SocketAddr, path::Path, process::Stdio};

use anyhow::{Context as _, bail, ensure};
use pulp_model::{Digest, RegistryId, TagName};
use pulp_registry::{Client, ClientOptions, Discard, PullReport, Reference};
use tokio::process::Command;

/// Pulls each tag of a repository; gives how many there were.
pub(super) async fn every_tag(crane: SocketAddr, registry_id: &str, folder: &Path) -> anyhow::Result<usize> {
    let name: RegistryId = registry_id.parse()?;
    let client = Client::new(&format!("http://{crane}"), ClientOptions::default())?;
    let tags = client.tags(&name).await.context("Crane gave no list of tags")?;
    for tag in &tags {
        let report = client.pull(&name, &Reference::Tag(tag.clone()), &Discard).await?;
        independent(crane, &name, tag, folder, &report).await?;
        println!(
            "{name}:{tag} is {}: {} manifest(s), {} blob(s), {} bytes, every digest checked",
            report.root,
            report.manifests.len(),
            report.blobs.len(),
            report.bytes()
        );
    }
    Ok(tags.len())
}

/// Pulls by skopeo or podman, whichever is there, and compares what it got with what was published.
async fn independent(
    crane: SocketAddr,
    name: &RegistryId,
    tag: &TagName,
    folder: &Path,
    expected: &PullReport,
) -> anyhow::Result<()> {
    let target = folder.join(format!("pulled-{tag}"));
    let source = format!("docker://{crane}/{name}:{tag}");
    if is_installed("skopeo").await {
        let place = format!("dir:{}", target.display());
        show_and_run(
            "skopeo",
            &[
                "copy",
                "--quiet",
                "--all",
                "--src-tls-verify=false",
                &source,
                &place,
            ],
        )
        .await?;
        check_directory(&target, expected).await
    } else if is_installed("podman").await {
        let (root, run) = (
            folder.join("podman").display().to_string(),
            folder.join("podman-run").display().to_string(),
        );
        let image = format!("{crane}/{name}:{tag}");
        let store = [
            "--root",
            root.as_str(),
            "--runroot",
            run.as_str(),
            "--storage-driver=vfs",
        ];
        show_and_run(
            "podman",
            &[
                store.as_slice(),
                &["pull", "--tls-verify=false", "--quiet", &image],
            ]
            .concat(),
        )
        .await
    } else {
        println!("\nNeither skopeo nor podman is installed; our own registry client pulls:");
        Ok(())
    }
}

async fn is_installed(program: &str) -> bool {
    let version = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    version.await.is_ok_and(|s| s.success())
}

async fn show_and_run(program: &str, words: &[&str]) -> anyhow::Result<()> {
    println!("\n$ {program} {}", words.join(" "));
    let status = Command::new(program)
        .args(words)
        .status()
        .await
        .with_context(|| format!("can't run {program}"))?;
    ensure!(status.success(), "{program} could not pull: {status}");
    Ok(())
}

/// skopeo's directory holds each blob in a file named by its digest.
async fn check_directory(directory: &Path, expected: &PullReport) -> anyhow::Result<()> {
    let root = directory.join("manifest.json");
    let manifest = tokio::fs::read(&root)
        .await
        .with_context(|| format!("{} is missing", root.display()))?;
    ensure!(
        expected.root.matches(&manifest),
        "the client got another manifest than {}",
        expected.root
    );
    for digest in expected.blobs.keys() {
        let path = directory.join(digest.hex());
        let bytes = tokio::fs::read(&path)
            .await
            .with_context(|| format!("the client has no {digest}"))?;
        if !digest.matches(&bytes) {
            bail!(
                "{} has digest {} instead of {digest}",
                path.display(),
                Digest::sha256(&bytes)
            );
        }
    }
    Ok(())
}
