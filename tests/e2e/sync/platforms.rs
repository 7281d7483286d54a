//! Syncs of some platforms only: indexes that keep their digest and lack members, and such as are made anew.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use pulp_model::Digest;
use pulp_testkit::{Dockerd, Podman, Registry, skopeo};
use pulp_tests::{Server, Standalone, http, images::docker_archive, saved, saved::Parts, wait_for};
use serde_json::{Value, json};

use super::{
    OCI_INDEX, OCI_MANIFEST, UPSTREAM, begin, create, digests, noise, pusher::Pusher, sync, tags_of,
};
use crate::{
    clients::unless_root_is_needed,
    transfer::{carry, export, import, trust},
};

const ORIGINAL: &str = "org.pulpproject.docker.original-digest";

/// A registry with an index of three platforms, each with an attestation, under the tag `multi`, one around it under
/// `nested`, and one for s390x alone under `mainframe`.
struct Images {
    registry: Registry,
    /// Of `multi`.
    index: Digest,
    /// Of its images, by architecture, and of what attests them.
    amd64: [String; 2],
    arm64: [String; 2],
    /// Of amd64's configuration, by which docker and podman know an image.
    amd64_id: Digest,
}

impl Images {
    fn fill() -> Result<Self> {
        let registry = Registry::start()?;
        let saved = docker_archive("app:multi", 2, 60_000)?.tar;
        let on = |architecture: &'static str| -> Result<_> {
            Ok((architecture, Parts::of(&saved)?.on(architecture)))
        };
        let platforms = [on("arm64")?, on("amd64")?, on("s390x")?];
        let archive = saved::oci_index_archive(&platforms, "multi")?;
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("multi.tar");
        fs::write(&path, archive)?;
        let host = registry.host();
        let image = |tag: &str| format!("docker://{host}/{UPSTREAM}:{tag}");
        skopeo(&[
            "copy",
            "--all",
            "--dest-tls-verify=false",
            &format!("oci-archive:{}:multi", path.display()),
            &image("multi"),
        ])?;

        let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", &image("multi")])?;
        let mut members = serde_json::from_str::<Value>(&raw)?["manifests"]
            .as_array()
            .context("no index")?
            .clone();
        let to = Pusher::new(registry.url())?;
        let mut attested = Vec::new();
        for (n, member) in members.clone().iter().enumerate() {
            let mut attestation = to.image("", OCI_MANIFEST, &[noise(20 + n, 500)])?;
            attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
            attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest",
                "vnd.docker.reference.digest": member["digest"]});
            let text = |member: &Value| member["digest"].as_str().unwrap_or_default().to_owned();
            attested.push([text(member), text(&attestation)]);
            members.push(attestation);
        }
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": members});
        let index = to.manifest("multi", OCI_INDEX, &index)?;
        let nested = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [index]});
        to.manifest("nested", OCI_INDEX, &nested)?;
        let mainframe = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [members[2]]});
        to.manifest("mainframe", OCI_INDEX, &mainframe)?;
        let [arm64, amd64, _] = <[_; 3]>::try_from(attested).ok().context("three images")?;
        let config = skopeo(&[
            "inspect",
            "--raw",
            "--tls-verify=false",
            &format!("docker://{host}/{UPSTREAM}@{}", amd64[0]),
        ])?;
        let config: Value = serde_json::from_str(&config)?;
        Ok(Self {
            index: index["digest"].as_str().context("no digest")?.parse()?,
            amd64_id: config["config"]["digest"]
                .as_str()
                .context("no config")?
                .parse()?,
            registry,
            amd64,
            arm64,
        })
    }
}

/// `multi` as Crane has it.
fn at_crane(server: &impl Server) -> Result<Value> {
    let url = format!("http://{}/v2/mirror/m/manifests/multi", server.crane());
    http::get_as(&url, OCI_INDEX)?.json()
}

/// What Crane answers for a manifest: its status and error code.
fn answer(server: &impl Server, digest: &str) -> Result<(u16, String)> {
    let url = format!("http://{}/v2/mirror/m/manifests/{digest}", server.crane());
    let answer = http::get(&url)?;
    Ok((answer.status, answer.error_code()))
}

fn update(server: &impl Server, config: &Value) -> Result<()> {
    let path = "/repositories/m/importers/docker_importer/";
    server.wait_until_finished(&server.begin("PUT", path, &json!({ "importer_config": config }))?)?;
    Ok(())
}

/// Syncs and publishes; gives the sync's report.
fn mirror(server: &impl Server) -> Result<Value> {
    let result = sync(server, "m")?;
    server.wait_until_finished(&server.publish("m")?)?;
    Ok(result["report"].clone())
}

/// Pulls `multi` for linux on amd64 by docker, where we may, podman and skopeo.
fn pull(server: &impl Server, images: &Images, expected: &Digest) -> Result<()> {
    let reference = format!("{}/mirror/m:multi", server.crane());
    if let Some(docker) = unless_root_is_needed(Dockerd::start(&[]))? {
        docker.docker(&["pull", "--quiet", &reference])?;
        let inspected: Value = serde_json::from_str(&docker.docker(&["image", "inspect", &reference])?)?;
        assert_eq!(inspected[0]["Id"], images.amd64_id.to_string());
        let digests = inspected[0]["RepoDigests"].to_string();
        assert!(digests.contains(&expected.to_string()), "{digests}");
    }
    assert_eq!(Podman::new()?.pull(&reference)?, images.amd64_id.hex());
    let target = server.folder().join("pulled");
    skopeo(&[
        "--override-arch=amd64",
        "copy",
        "--src-tls-verify=false",
        &format!("docker://{reference}"),
        &format!("dir:{}", target.display()),
    ])?;
    fs::remove_dir_all(target)?;
    Ok(())
}

/// Copies `multi` with all its members.
fn copy_all(server: &impl Server) -> Result<()> {
    let (source, target) = (
        format!("docker://{}/mirror/m:multi", server.crane()),
        server.folder().join("all"),
    );
    let target = format!("dir:{}", target.display());
    skopeo(&["copy", "--all", "--src-tls-verify=false", &source, &target])?;
    Ok(())
}

/// Follows an index down to its images, each of which must be there; gives their number.
fn images_below(server: &impl Server, reference: &str) -> Result<usize> {
    let url = format!("http://{}/v2/mirror/m/manifests/{reference}", server.crane());
    let answer = http::get_as(&url, &format!("{OCI_INDEX}, {OCI_MANIFEST}"))?;
    ensure!(answer.status == 200, "{reference}: {}", answer.status);
    match answer.json()?["manifests"].as_array() {
        None => Ok(1),
        Some(members) => {
            let below = members
                .iter()
                .map(|m| images_below(server, m["digest"].as_str().unwrap_or_default()));
            Ok(below.collect::<Result<Vec<_>>>()?.iter().sum())
        }
    }
}

#[test]
fn a_sparse_index_keeps_its_digest_and_only_what_was_left_out_is_missing() -> Result<()> {
    let images = Images::fill()?;
    let server = Standalone::start()?;
    let feed = format!("--feed={}", images.registry.url());
    server.admin(&[
        "docker",
        "repo",
        "create",
        "--repo-id=m",
        "--repo-registry-id=mirror/m",
        &feed,
        "--upstream-name=up/stream",
        "--platforms=linux/amd64",
        "--platforms-mode=sparse",
        "--auto-publish=false",
    ])?;
    let plan = server.admin(&["docker", "repo", "sync", "run", "--repo-id=m", "--dry-run"])?;
    // Two layers and a configuration of amd64, the same of what attests it, with one layer.
    assert!(
        plan.contains("Tags: 2 added") && plan.contains("To fetch: 5 blobs"),
        "{plan}"
    );
    assert!(plan.contains("No image for the platforms: mainframe."), "{plan}");

    let first = mirror(&server)?;
    let plan = &first["plan"];
    assert_eq!(plan["tags_skipped"], json!(["mainframe"]));
    assert_eq!(
        (&plan["manifests"], &plan["members_left_out"]),
        (&json!(4), &json!(4)),
        "{plan}"
    );
    assert_eq!(
        first["requests"]["manifests"], 0,
        "the dry run has brought them: {first}"
    );
    assert_eq!(tags_of(&server, "m")?, ["multi", "nested"]);
    let tags = ["multi", "nested"];
    assert_eq!(
        digests(&server.crane().to_string(), "mirror/m", &tags)?,
        digests(&images.registry.host(), UPSTREAM, &tags)?
    );
    for here in &images.amd64 {
        assert_eq!(answer(&server, here)?.0, 200);
    }
    for left_out in &images.arm64 {
        assert_eq!(answer(&server, left_out)?, (404, "MANIFEST_UNKNOWN".to_owned()));
    }
    pull(&server, &images, &images.index)?;
    let criteria = json!({"criteria": {"type_ids": ["docker_manifest_list"],
        "filters": {"unit": {"digest": images.index}}}});
    let (_, found) = server.call("POST", "/repositories/m/search/units/", Some(&criteria))?;
    assert_eq!(
        found[0]["metadata"]["absent_manifests"].as_array().map(Vec::len),
        Some(4),
        "{found}"
    );

    let again = mirror(&server)?;
    assert_eq!(again["requests"]["manifests"], 0, "{again}");
    assert_eq!(again["requests"]["blobs"], 0);
    assert_eq!(again["repository_version"], first["repository_version"]);

    // Wider: what was missing comes, and nothing else.
    update(&server, &json!({"platforms": ["linux/amd64", "linux/arm64/v8"]}))?;
    let wider = mirror(&server)?;
    assert_eq!(wider["requests"]["manifests"], 2, "{wider}");
    assert_eq!(wider["plan"]["tags_unchanged"], 2);
    for here in images.amd64.iter().chain(&images.arm64) {
        assert_eq!(answer(&server, here)?.0, 200);
    }
    // Narrower: nothing goes but from a mirror.
    update(&server, &json!({"platforms": ["linux/arm64"]}))?;
    assert_eq!(
        mirror(&server)?["repository_version"],
        wider["repository_version"]
    );
    update(&server, &json!({"remove_missing": true}))?;
    let narrower = mirror(&server)?;
    assert_eq!(narrower["requests"]["manifests"], 0, "{narrower}");
    assert_eq!(
        answer(&server, &images.amd64[0])?,
        (404, "MANIFEST_UNKNOWN".to_owned())
    );
    assert_eq!(answer(&server, &images.arm64[0])?.0, 200);
    assert_eq!(
        digests(&server.crane().to_string(), "mirror/m", &["multi"])?["multi"],
        images.index
    );
    // Clients that know no index get the one there is: its member for linux on amd64 is not here.
    let url = format!("http://{}/v2/mirror/m/manifests/multi", server.crane());
    let plain = http::get_as(&url, OCI_MANIFEST)?;
    assert!(images.index.matches(&plain.body), "{}", plain.status);
    let (_, found) = server.call("GET", "/repositories/m/", None)?;
    assert_eq!(found["content_unit_counts"]["docker_manifest"], 2);

    // Whoever names a tag wants it.
    let named = json!({"tags": ["mainframe"]});
    let failed = server.wait_for_task(&begin(&server, "m", &named)?)?;
    assert_eq!(failed["error"]["code"], "DKR1117", "{failed}");
    let text = failed["error"]["description"].as_str().unwrap_or_default();
    assert!(text.contains("mainframe has: linux/s390x"), "{text}");

    // All of it again.
    update(&server, &json!({"platforms": null, "remove_missing": false}))?;
    mirror(&server)?;
    copy_all(&server)?;
    assert_eq!(images_below(&server, "nested")?, 6);
    server.wait_until_clean()
}

#[test]
fn a_rewritten_index_has_the_platforms_taken_and_names_the_original() -> Result<()> {
    let images = Images::fill()?;
    let server = Standalone::start()?;
    let settings = json!({"platforms": ["linux/amd64"], "platforms_mode": "rewrite", "remove_missing": true, "tags": ["multi", "nested"]});
    create(&server, "m", &images.registry.url(), &settings)?;
    let first = mirror(&server)?;
    assert_eq!(first["requests"]["manifests"], 4, "{first}");
    let index = at_crane(&server)?;
    assert_eq!(index["annotations"][ORIGINAL], images.index.to_string());
    let members = |index: &Value| -> Vec<Value> {
        let members = index["manifests"].as_array().into_iter().flatten();
        members.map(|m| m["digest"].clone()).collect()
    };
    assert_eq!(json!(members(&index)), json!(images.amd64));
    let made = digests(&server.crane().to_string(), "mirror/m", &["multi"])?["multi"].clone();
    assert_ne!(made, images.index);
    assert_eq!(answer(&server, &images.index.to_string())?.0, 404);
    pull(&server, &images, &made)?;
    // Nothing of it is missing.
    copy_all(&server)?;
    assert_eq!(images_below(&server, "nested")?, 2);

    let again = mirror(&server)?;
    let requests = &again["requests"];
    assert_eq!(
        (&requests["manifest_heads"], &requests["manifests"]),
        (&json!(2), &json!(0))
    );
    assert_eq!(requests["total"], 2, "{requests}");
    assert_eq!(again["plan"]["tags_unchanged"], 2);
    assert_eq!(again["repository_version"], first["repository_version"]);

    update(&server, &json!({"platforms": ["linux/arm64", "linux/amd64"]}))?;
    let wider = mirror(&server)?;
    assert_eq!(wider["requests"]["manifests"], 2, "{wider}");
    assert_eq!(wider["plan"]["tags_moved"], json!(["multi", "nested"]));
    assert_eq!(members(&at_crane(&server)?).len(), 4);

    // The digest that upstream has, by the other mode.
    update(&server, &json!({"platforms_mode": "sparse"}))?;
    mirror(&server)?;
    assert_eq!(
        digests(&server.crane().to_string(), "mirror/m", &["multi"])?["multi"],
        images.index
    );
    let (_, found) = server.call("GET", "/repositories/m/", None)?;
    assert_eq!(
        found["content_unit_counts"]["docker_manifest_list"], 2,
        "those made before went"
    );
    server.wait_until_clean()
}

#[test]
fn a_sparse_index_crosses_to_a_closed_network_as_it_is() -> Result<()> {
    let images = Images::fill()?;
    let (open, closed) = (Standalone::start()?, Standalone::start()?);
    trust(&open, &closed)?;
    let settings = json!({"platforms": ["linux/amd64"], "tags": ["multi"]});
    create(&open, "m", &images.registry.url(), &settings)?;
    sync(&open, "m")?;
    carry(&export(&open, "m", &json!({}))?, &closed, "full")?;
    import(&closed, "m", "full")?;
    wait_for("the publish after the import", || {
        Ok(answer(&closed, &images.amd64[0])
            .ok()
            .filter(|(status, _)| *status == 200))
    })?;
    assert_eq!(
        digests(&closed.crane().to_string(), "mirror/m", &["multi"])?["multi"],
        images.index
    );
    assert_eq!(
        answer(&closed, &images.arm64[0])?,
        (404, "MANIFEST_UNKNOWN".to_owned())
    );

    // What came since builds on that.
    update(&open, &json!({"platforms": ["linux/amd64", "linux/arm64"]}))?;
    sync(&open, "m")?;
    carry(&export(&open, "m", &json!({"base": "last"}))?, &closed, "since")?;
    import(&closed, "m", "since")?;
    wait_for("the publish after the import", || {
        Ok(answer(&closed, &images.arm64[0])
            .ok()
            .filter(|(status, _)| *status == 200))
    })?;
    Ok(())
}
