//! Syncs: from a registry of others and from our own Crane, byte for byte; what changes nothing costs next to nothing;
//! whatever goes wrong leaves the repository as it was, and what came whole is not fetched again.

mod by_digest;
mod credentials;
mod platforms;
mod pusher;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use pulp_model::Digest;
use pulp_testkit::{Registry, skopeo};
use pulp_tests::{Server, Standalone, files_below, wait_for};
use serde_json::{Value, json};

use pusher::{Pusher, fill};

use crate::upstream::Upstream;

/// What registries of tests hold: the only repository of [`Upstream`], and where a [`Pusher`] pushes to.
const UPSTREAM: &str = "up/stream";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Makes a repository that syncs from `feed`: `up/stream`, unless `more` of the importer's settings says otherwise.
pub(crate) fn create(server: &impl Server, repo: &str, feed: &str, more: &Value) -> Result<()> {
    server.create_repository(repo, &format!("mirror/{repo}"))?;
    let mut config = json!({"feed": feed, "upstream_name": UPSTREAM});
    config
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let path = format!("/repositories/{repo}/importers/docker_importer/");
    server.wait_until_finished(&server.begin("PUT", &path, &json!({ "importer_config": config }))?)?;
    Ok(())
}

/// Asks for a sync; gives the task's id.
pub(crate) fn begin(server: &impl Server, repo: &str, overrides: &Value) -> Result<String> {
    let path = format!("/repositories/{repo}/actions/sync/");
    server.begin("POST", &path, &json!({ "override_config": overrides }))
}

/// Syncs and gives the task's result.
fn sync(server: &impl Server, repo: &str) -> Result<Value> {
    let task = server.wait_until_finished(&begin(server, repo, &json!({}))?)?;
    Ok(task["result"].clone())
}

/// Each tag's digest, as a client that checks every byte sees it.
fn digests(registry: &str, name: &str, tags: &[&str]) -> Result<BTreeMap<String, Digest>> {
    tags.iter()
        .map(|tag| {
            let image = format!("docker://{registry}/{name}:{tag}");
            let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", &image])?;
            Ok(((*tag).to_owned(), Digest::sha256(raw)))
        })
        .collect()
}

pub(crate) fn tags_of(server: &impl Server, repo: &str) -> Result<Vec<String>> {
    let path = format!("/repositories/{repo}/search/units/");
    let (_, units) = server.call(
        "POST",
        &path,
        Some(&json!({"criteria": {"type_ids": ["docker_tag"]}})),
    )?;
    let units = units.as_array().context("no list")?;
    let mut names: Vec<String> = units
        .iter()
        .map(|u| u["metadata"]["name"].as_str().unwrap_or_default().to_owned())
        .collect();
    names.sort();
    Ok(names)
}

fn version_of(server: &impl Server, repo: &str) -> Result<Value> {
    let (_, found) = server.call("GET", &format!("/repositories/{repo}/"), None)?;
    Ok(json!([
        found["content_unit_counts"],
        found["last_unit_added"],
        found["last_unit_removed"]
    ]))
}

/// Bytes that nobody can compress, the same for the same seed.
pub(crate) fn noise(seed: usize, length: usize) -> Vec<u8> {
    let mut state = seed as u64 + 1;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        })
        .collect()
}

#[test]
fn a_mirror_is_the_upstream_byte_for_byte_and_an_unchanged_one_costs_a_request_a_tag() -> Result<()> {
    let registry = Registry::start()?;
    let tags = fill(&registry)?;
    let server = Standalone::start()?;
    let feed = registry.url();
    server.admin(&[
        "docker",
        "repo",
        "create",
        "--repo-id=m",
        "--repo-registry-id=mirror/m",
        "--upstream-name=up/stream",
        &format!("--feed={feed}"),
    ])?;

    let plan = server.admin(&["docker", "repo", "sync", "run", "--repo-id=m", "--dry-run"])?;
    assert!(
        plan.contains("+ nested") && plan.contains("Tags: 6 added, 0 moved"),
        "{plan}"
    );
    assert!(tags_of(&server, "m")?.is_empty(), "a dry run changes nothing");

    let told = server.admin(&["docker", "repo", "sync", "run", "--repo-id=m"])?;
    for step in [
        "Downloading manifests",
        "Copying units already in pulp",
        "Downloading remote files",
        "Saving Manifests and Blobs",
        "Saving Tags",
        "Task Succeeded",
        "Tags: 6 added, 0 moved, 0 removed, 0 unchanged.",
    ] {
        assert!(told.contains(step), "{step} is not in:\n{told}");
    }
    assert_eq!(tags_of(&server, "m")?, tags);

    // Published by itself.
    let crane = server.crane().to_string();
    let upstream = digests(&registry.host(), UPSTREAM, &tags)?;
    let published = wait_for("the publish after the sync", || {
        Ok(digests(&crane, "mirror/m", &tags).ok())
    })?;
    assert_eq!(published, upstream);
    let target = server.folder().join("pulled");
    skopeo(&[
        "copy",
        "--all",
        "--src-tls-verify=false",
        &format!("docker://{crane}/mirror/m:multi"),
        &format!("dir:{}", target.display()),
    ])?;

    let again = sync(&server, "m")?;
    let requests = &again["report"]["requests"];
    assert_eq!(requests["manifests"], 0);
    assert_eq!(requests["blobs"], 0);
    assert_eq!(requests["manifest_heads"], 6);
    assert_eq!(requests["total"], 7, "one for the list");
    assert_eq!(
        (&again["added_count"], &again["removed_count"]),
        (&json!(0), &json!(0))
    );

    // Our own Crane is an upstream like any other.
    let ours = json!({"upstream_name": "mirror/m"});
    create(&server, "copy", &format!("http://{crane}"), &ours)?;
    let copied = sync(&server, "copy")?;
    assert_eq!(
        copied["report"]["requests"]["blobs"], 0,
        "all blobs lie here already"
    );
    server.wait_until_finished(&server.publish("copy")?)?;
    assert_eq!(digests(&crane, "mirror/copy", &tags)?, upstream);

    let (_, history) = server.call("GET", "/repositories/m/history/sync/", None)?;
    assert_eq!(history.as_array().unwrap().len(), 2, "a dry run is no sync");
    assert_eq!(history[0]["result"], "success");
    let (_, importer) = server.call("GET", "/repositories/m/importers/docker_importer/", None)?;
    assert!(importer["last_sync"].is_string(), "{importer}");
    server.wait_until_clean()
}

#[test]
fn a_mirror_follows_what_moves_and_what_goes() -> Result<()> {
    let registry = Registry::start()?;
    fill(&registry)?;
    let server = Standalone::start()?;
    let filter = json!({"tags": ["1.*", "oci", "nowhere"], "remove_missing": true});
    create(&server, "m", &registry.url(), &filter)?;
    let first = sync(&server, "m")?;
    assert_eq!(tags_of(&server, "m")?, ["1.0", "1.1", "oci"]);
    let counts = || -> Result<Value> {
        Ok(server.call("GET", "/repositories/m/", None)?.1["content_unit_counts"].clone())
    };
    assert_eq!(counts()?["docker_manifest"], 3, "{first}");
    assert_eq!(counts()?["docker_blob"], 7);

    // One tag becomes an index, another leaves the filter; what only they needed goes.
    let to = Pusher::new(registry.url())?;
    let member = to.image("", OCI_MANIFEST, &[noise(0, 50_000), noise(9, 10)])?;
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [member]});
    to.manifest("1.0", OCI_INDEX, &index)?;
    let path = "/repositories/m/importers/docker_importer/";
    let change = json!({"importer_config": {"tags": ["1.0", "1.1"]}});
    server.wait_until_finished(&server.begin("PUT", path, &change)?)?;
    let second = sync(&server, "m")?;
    assert_eq!(tags_of(&server, "m")?, ["1.0", "1.1"]);
    let plan = &second["report"]["plan"];
    assert_eq!(
        (&plan["tags_moved"], &plan["tags_removed"]),
        (&json!(["1.0"]), &json!(["oci"]))
    );
    let requests = &second["report"]["requests"];
    assert_eq!(requests["tags"], 0, "plain tags need no list");
    assert_eq!(
        (&requests["manifest_heads"], &requests["manifests"]),
        (&json!(2), &json!(2))
    );
    assert_eq!(requests["blobs"], 2, "the shared layer is here");
    let now = counts()?;
    assert_eq!(
        (
            &now["docker_manifest"],
            &now["docker_manifest_list"],
            &now["docker_blob"]
        ),
        (&json!(2), &json!(1), &json!(5))
    );
    server.wait_until_finished(&server.publish("m")?)?;
    let crane = server.crane().to_string();
    assert_eq!(
        digests(&crane, "mirror/m", &["1.0", "1.1"])?,
        digests(&registry.host(), UPSTREAM, &["1.0", "1.1"])?
    );
    Ok(())
}

#[test]
fn a_sync_killed_in_its_midst_goes_on_and_fetches_nothing_twice() -> Result<()> {
    let upstream = Upstream::start()?;
    for n in 0..8 {
        upstream.image(&format!("t{n}"), &[noise(0, 9_000), noise(n + 1, 60_000 - n)]);
    }
    // The smallest layers come last; this one never ends.
    let stuck = Digest::sha256(noise(8, 60_000 - 7));
    upstream.stall(&stuck, Some(30_000));
    let mut server = Standalone::start()?;
    create(&server, "m", &upstream.url(), &json!({"max_downloads": 2}))?;
    let task = begin(&server, "m", &json!({}))?;
    // Eight manifests, their configs, seven layers and the one they share.
    wait_for("the blob that hangs, with all others here", || {
        let here = files_below(&server.data_dir().join("content/sha256")).len();
        Ok((upstream.count(&format!("blobs/{stuck}")) > 0 && here == 24).then_some(()))
    })?;
    let plan = "8 tags added, 0 moved, 0 removed, 0 unchanged; to fetch: 17 blobs, 488972 bytes";
    wait_for("its row to tell the plan", || {
        let running = server.task(&task)?;
        let steps = running["progress_report"]["docker_importer"].as_array();
        let told = steps.is_some_and(|steps| steps.iter().any(|s| s["details"] == plan));
        Ok(told.then_some(()))
    })?;
    server.crash_and_start_again()?;
    upstream.stall(&stuck, None);
    let ended = server.wait_until_finished(&task)?;
    assert_eq!(
        ended["result"]["report"]["plan"]["tags_added"]
            .as_array()
            .unwrap()
            .len(),
        8
    );
    assert_eq!(
        upstream.fetched_more_than_once(),
        [stuck],
        "of blobs and manifests"
    );
    let asked = &ended["result"]["report"]["requests"];
    for what in ["tags", "manifest_heads", "manifests"] {
        assert_eq!(asked[what], 0, "the attempt before had seen it: {asked}");
    }
    assert_eq!(asked["blobs"], 1);
    assert_eq!(tags_of(&server, "m")?.len(), 8);
    server.wait_until_clean()
}

#[test]
fn a_sync_that_fails_changes_nothing_and_the_next_one_fetches_only_the_rest() -> Result<()> {
    let upstream = Upstream::start()?;
    upstream.image("good", &[noise(1, 40_000)]);
    upstream.image("bad", &[noise(1, 40_000), noise(2, 30_000)]);
    let server = Standalone::start()?;
    create(
        &server,
        "m",
        &upstream.url(),
        &json!({"tags": ["good"], "max_downloads": 1}),
    )?;
    sync(&server, "m")?;
    let before = version_of(&server, "m")?;

    let all = json!({"tags": null, "tags_exclude": []});
    let path = "/repositories/m/importers/docker_importer/";
    server.wait_until_finished(&server.begin("PUT", path, &json!({ "importer_config": all }))?)?;
    let layer = Digest::sha256(noise(2, 30_000));
    upstream.corrupt(&layer, true);
    let failed = server.wait_for_task(&begin(&server, "m", &json!({}))?)?;
    assert_eq!(failed["state"], "error");
    assert_eq!(failed["error"]["code"], "DKR1017", "{failed}");
    let text = failed["error"]["description"].as_str().unwrap();
    assert!(
        text.contains(&upstream.url()) && text.contains(&layer.to_string()),
        "{text}"
    );
    assert_eq!(version_of(&server, "m")?, before);
    assert_eq!(tags_of(&server, "m")?, ["good"]);
    assert_eq!(upstream.count(&format!("blobs/{layer}")), 2, "tried again once");
    let (_, history) = server.call("GET", "/repositories/m/history/sync/", None)?;
    assert_eq!(history[0]["result"], "error");
    assert_eq!(history[0]["error_message"], text);

    upstream.corrupt(&layer, false);
    let asked = upstream.count("blobs/");
    let result = sync(&server, "m")?;
    let again = upstream.count("blobs/") - asked;
    assert!(
        (1..=2).contains(&again),
        "only the blob that was wrong, and its config if that had not come meanwhile: {again}"
    );
    let shared = Digest::sha256(noise(1, 40_000));
    assert_eq!(upstream.count(&format!("blobs/{shared}")), 1, "it was here");
    assert_eq!(
        result["report"]["requests"]["manifests"], 0,
        "its manifest was kept"
    );
    assert_eq!(tags_of(&server, "m")?, ["bad", "good"]);
    server.wait_until_clean()
}

#[test]
fn a_canceled_sync_ends_soon_and_changes_nothing() -> Result<()> {
    let upstream = Upstream::start()?;
    upstream.image("t", &[noise(1, 60_000)]);
    let layer = Digest::sha256(noise(1, 60_000));
    upstream.stall(&layer, Some(1_000));
    let server = Standalone::start()?;
    create(&server, "m", &upstream.url(), &json!({}))?;
    let task = begin(&server, "m", &json!({}))?;
    wait_for("the blob that hangs", || {
        Ok((upstream.count(&format!("blobs/{layer}")) > 0).then_some(()))
    })?;
    server.call("DELETE", &format!("/tasks/{task}/"), None)?;
    let ended = server.wait_for_task(&task)?;
    assert_eq!(ended["state"], "canceled");
    assert!(tags_of(&server, "m")?.is_empty());
    let (_, history) = server.call("GET", "/repositories/m/history/sync/", None)?;
    assert_eq!(history[0]["result"], "canceled");
    server.wait_until_clean()
}

#[test]
fn what_an_upstream_can_do_wrong_has_a_code() -> Result<()> {
    let upstream = Upstream::start()?;
    upstream.image("t", &[noise(1, 100)]);
    let server = Standalone::start()?;
    create(&server, "m", &upstream.url(), &json!({}))?;
    let fails = |overrides: &Value, code: &str, says: &str| -> Result<()> {
        let id = begin(&server, "m", overrides)?;
        let task = server.wait_for_task(&id).with_context(|| {
            let now = server.call("GET", &format!("/tasks/{id}/wait_reason/"), None);
            format!("{overrides} for {code}: {now:?}\n{}", server.process.log())
        })?;
        ensure!(
            task["error"]["code"] == code,
            "{overrides} gave {}",
            task["error"]
        );
        let text = task["error"]["description"].as_str().unwrap_or_default();
        ensure!(text.contains(says), "{says} is not in: {text}");
        Ok(())
    };
    fails(&json!({"upstream_name": "no/such"}), "DKR1007", "no/such")?;
    fails(
        &json!({"upstream_name": "no/such", "tags": ["t"]}),
        "DKR1007",
        "no/such",
    )?;
    fails(
        &json!({"feed": format!("{}/elsewhere", upstream.url())}),
        "DKR1008",
        "elsewhere",
    )?;
    fails(&json!({"enable_v2": false}), "PLP0017", "enable_v2")?;
    upstream.manifest("odd", OCI_MANIFEST, b"{\"schemaVersion\": 7}");
    fails(&json!({}), "DKR1116", "schema version 7")?;
    upstream.answer("manifests/t", 401);
    fails(&json!({}), "DKR1114", "basic_auth_username")?;
    // Last: what it asks for holds for the syncs after this one, too.
    upstream.answer("manifests/t", 429);
    fails(&json!({}), "DKR1115", "too many requests")?;
    assert!(tags_of(&server, "m")?.is_empty());
    Ok(())
}

#[test]
fn signatures_come_along_where_the_settings_want_them() -> Result<()> {
    let registry = Registry::start()?;
    let to = Pusher::new(registry.url())?;
    let signed = to.image("signed", OCI_MANIFEST, &[noise(1, 1000)])?;
    to.image("other", OCI_MANIFEST, &[noise(2, 1000)])?;
    let server = Standalone::start()?;
    let settings = json!({"tags": ["signed"], "referrers": true, "referrer_types": ["application/vnd.example.signature"]});
    create(&server, "m", &registry.url(), &settings)?;
    sync(&server, "m")?;

    // Signed later: the tag's manifest stays the same. This registry has no referrers API, but the tag for it.
    let attach = |kind: &str, payload: &[u8]| -> Result<Value> {
        let (empty, payload) = (to.blob(b"{}")?, to.blob(payload)?);
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": kind,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty["digest"], "size": 2},
            "layers": [{"mediaType": "text/plain", "digest": payload["digest"], "size": payload["size"]}],
            "subject": signed});
        let mut made = to.manifest("", OCI_MANIFEST, &manifest)?;
        made["artifactType"] = json!(kind);
        Ok(made)
    };
    let signature = attach("application/vnd.example.signature", b"signature")?;
    let unwanted = attach("application/vnd.example.other", b"something else")?;
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [signature, unwanted]});
    let digest = signed["digest"].as_str().unwrap();
    to.manifest(&digest.replace(':', "-"), OCI_INDEX, &index)?;

    let result = sync(&server, "m")?;
    assert_eq!(result["report"]["plan"]["referrers"], 1, "{result}");
    assert_eq!(tags_of(&server, "m")?, ["signed"]);
    server.wait_until_finished(&server.publish("m")?)?;
    let url = format!("http://{}/v2/mirror/m/referrers/{digest}", server.crane());
    let found = pulp_tests::http::get(&url)?.json()?;
    let found = found["manifests"].as_array().unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["digest"], signature["digest"]);
    assert_eq!(sync(&server, "m")?["added_count"], 0);

    // Our own Crane has the API.
    let feed = format!("http://{}", server.crane());
    let ours = json!({"upstream_name": "mirror/m", "referrers": true});
    create(&server, "copy", &feed, &ours)?;
    let copied = sync(&server, "copy")?;
    assert_eq!(copied["report"]["plan"]["referrers"], 1, "{copied}");
    Ok(())
}

#[test]
fn signed_manifests_of_old_and_layers_that_live_elsewhere_are_taken_as_they_are() -> Result<()> {
    let upstream = Upstream::start()?;
    // Signed the way Docker did: the digest is that of the part before the signatures and the tail.
    let layer = upstream.blob(b"a layer of old");
    let payload = format!(
        "{{\n   \"schemaVersion\": 1,\n   \"name\": \"up/stream\",\n   \"tag\": \"old\",\n   \
         \"fsLayers\": [{{\"blobSum\": \"{layer}\"}}],\n   \"history\": [{{\"v1Compatibility\": \"{{}}\"}}]\n}}"
    );
    let length = payload.len() - 2;
    // formatTail is "\n}".
    let protected =
        URL_SAFE_NO_PAD.encode(format!(r#"{{"formatLength":{length},"formatTail":"Cn0"}}"#).as_bytes());
    let signed = format!(
        "{},\n   \"signatures\": [{{\"protected\": \"{protected}\"}}]\n}}",
        &payload[..length]
    );
    let media_type = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    upstream.manifest_known_as("old", media_type, &Digest::sha256(&payload), signed.as_bytes());

    let config = upstream.blob(b"{}");
    let elsewhere = json!({"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": Digest::sha256("windows"), "size": 7, "urls": ["https://mcr.example.com/windows"]});
    let windows = json!({"schemaVersion": 2, "mediaType": DOCKER_MANIFEST,
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": config, "size": 2},
        "layers": [elsewhere]})
    .to_string();
    upstream.manifest("windows", DOCKER_MANIFEST, windows.as_bytes());

    let server = Standalone::start()?;
    create(&server, "m", &upstream.url(), &json!({}))?;
    sync(&server, "m")?;
    assert_eq!(tags_of(&server, "m")?, ["old", "windows"]);
    assert_eq!(upstream.count("blobs/"), 2, "not the layer that lives elsewhere");
    let again = sync(&server, "m")?;
    assert_eq!(again["report"]["requests"]["manifests"], 0, "{again}");
    assert_eq!(again["report"]["plan"]["tags_unchanged"], 2);

    server.wait_until_finished(&server.publish("m")?)?;
    let crane = server.crane();
    for (tag, bytes) in [("old", &signed), ("windows", &windows)] {
        let url = format!("http://{crane}/v2/mirror/m/manifests/{tag}");
        let accept = format!("{DOCKER_MANIFEST}, {media_type}");
        let answer = pulp_tests::http::get_as(&url, &accept)?;
        assert_eq!(answer.status, 200, "{tag}");
        assert_eq!(answer.body, bytes.as_bytes(), "{tag} verbatim");
    }
    Ok(())
}
