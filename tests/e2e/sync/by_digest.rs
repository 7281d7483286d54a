//! Manifests that an importer's `tags` name by digest.

use anyhow::Result;
use pulp_model::Digest;
use pulp_testkit::skopeo;
use pulp_tests::{Server, Standalone};
use serde_json::{Value, json};

use super::{begin, create, noise, tags_of};
use crate::upstream::Upstream;

/// Syncs with these tags; gives the task's report.
fn sync(server: &Standalone, tags: &[&str], mirror: bool) -> Result<Value> {
    let overrides = json!({"tags": tags, "remove_missing": mirror});
    let task = server.wait_until_finished(&begin(server, "m", &overrides)?)?;
    Ok(task["result"]["report"].clone())
}

/// How many units of a type the repository has.
fn count(server: &Standalone, unit_type: &str) -> Result<u64> {
    let (_, found) = server.call("GET", "/repositories/m/", None)?;
    Ok(found["content_unit_counts"][unit_type].as_u64().unwrap_or(0))
}

#[test]
fn a_manifest_named_by_its_digest_comes_without_a_tag_and_without_a_list() -> Result<()> {
    let upstream = Upstream::start()?;
    let wanted = upstream.image("1.0", &[noise(1, 5_000)]).to_string();
    upstream.image("2.0", &[noise(2, 5_000)]);
    let server = Standalone::start()?;
    create(&server, "m", &upstream.url(), &json!({}))?;

    let dry = json!({"tags": [&wanted], "dry_run": true});
    let task = server.wait_until_finished(&begin(&server, "m", &dry)?)?;
    let plan = &task["result"]["report"]["plan"];
    assert_eq!(
        (&plan["manifests"], &plan["blobs"]),
        (&json!(1), &json!(2)),
        "{plan}"
    );
    assert_eq!(count(&server, "docker_manifest")?, 0, "a dry run changes nothing");

    let report = sync(&server, &[&wanted], false)?;
    assert_eq!(report["plan"]["tags_added"], json!([]), "{report}");
    assert!(tags_of(&server, "m")?.is_empty());
    assert_eq!(count(&server, "docker_manifest")?, 1);
    assert_eq!(count(&server, "docker_blob")?, 2);
    assert_eq!(upstream.count("tags/list"), 0, "no need to list what is named");

    let again = sync(&server, &[&wanted], false)?;
    assert_eq!(
        again["requests"]["total"], 0,
        "a digest stands for the same for ever: {again}"
    );

    server.wait_until_finished(&server.publish("m")?)?;
    let image = format!("docker://{}/mirror/m@{wanted}", server.crane());
    let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", &image])?;
    assert_eq!(
        Digest::sha256(raw).to_string(),
        wanted,
        "clients pull it by its digest"
    );

    let nowhere = Digest::sha256("nowhere").to_string();
    let report = sync(&server, &[&nowhere, "2.0"], false)?;
    assert_eq!(report["plan"]["manifests_absent"], json!([nowhere]), "{report}");
    assert_eq!(tags_of(&server, "m")?, ["2.0"]);
    server.wait_until_clean()
}

#[test]
fn a_mirror_keeps_what_is_named_by_digest_when_its_tag_moves() -> Result<()> {
    let upstream = Upstream::start()?;
    let old = upstream.image("latest", &[noise(1, 5_000)]).to_string();
    let server = Standalone::start()?;
    create(&server, "m", &upstream.url(), &json!({}))?;
    sync(&server, &["latest"], true)?;

    upstream.image("latest", &[noise(2, 5_000)]);
    let report = sync(&server, &["latest", &old], true)?;
    assert_eq!(report["plan"]["tags_moved"], json!(["latest"]), "{report}");
    assert_eq!(count(&server, "docker_manifest")?, 2);
    assert_eq!(
        count(&server, "docker_blob")?,
        3,
        "two layers and a config for both"
    );

    upstream.image("latest", &[noise(3, 5_000)]);
    sync(&server, &["latest", &old], true)?;
    assert_eq!(
        count(&server, "docker_manifest")?,
        2,
        "what only the tag named went"
    );
    server.wait_until_clean()
}
