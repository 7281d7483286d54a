//! The main job on both ways to run the server: a saved image goes in, a pull brings it out.

use anyhow::Result;
use pulp_tests::{Cluster, Server, Standalone, images};

fn a_saved_image_goes_in_and_a_pull_brings_it_out(server: &impl Server) -> Result<()> {
    let image = images::docker_archive("demo:latest", 3, 100_000)?;
    let file = server.folder().join("demo.tar");
    std::fs::write(&file, &image.tar)?;
    server.admin(&[
        "docker",
        "repo",
        "create",
        "--repo-id=demo",
        "--repo-registry-id=ns/demo",
    ])?;
    server.admin(&[
        "docker",
        "repo",
        "uploads",
        "upload",
        "--repo-id=demo",
        "-f",
        &file.display().to_string(),
    ])?;
    server.admin(&["docker", "repo", "publish", "run", "--repo-id=demo"])?;
    let source = format!("docker://{}/ns/demo:latest", server.crane());
    let target = server.folder().join("pulled");
    pulp_testkit::skopeo(&[
        "copy",
        "--src-tls-verify=false",
        &source,
        &format!("dir:{}", target.display()),
    ])?;
    let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(target.join("manifest.json"))?)?;
    let config = manifest["config"]["digest"]
        .as_str()
        .unwrap()
        .trim_start_matches("sha256:");
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(target.join(config))?)?;
    let expected: Vec<String> = image.diff_ids.iter().map(ToString::to_string).collect();
    assert_eq!(config["rootfs"]["diff_ids"], serde_json::json!(expected));
    Ok(())
}

#[test]
fn on_standalone() -> Result<()> {
    a_saved_image_goes_in_and_a_pull_brings_it_out(&Standalone::start()?)
}

#[test]
fn on_separate_processes() -> Result<()> {
    a_saved_image_goes_in_and_a_pull_brings_it_out(&Cluster::start()?)
}
