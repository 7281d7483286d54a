//! Syncs by version 1 of the registry API, from an index within the test and from our own Crane.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use pulp_model::Digest;
use pulp_testkit::skopeo;
use pulp_tests::{Server, Standalone, http, wait_for};
use serde_json::{Value, json};

use crate::{
    sync::{begin, create, noise, tags_of},
    upstream_v1::{LOGIN, Misbehaviour, V1Upstream, gzip, tar_of},
};

/// The settings of an importer that syncs by version 1 alone.
fn by_v1(more: &Value) -> Value {
    let mut config = json!({"enable_v1": true, "enable_v2": false});
    config
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    config
}

fn sync(server: &impl Server, repo: &str) -> Result<Value> {
    let task = server.wait_until_finished(&begin(server, repo, &json!({}))?)?;
    Ok(task["result"].clone())
}

/// Three images in a line, and one upon the second: `1.0` names the third, `latest` the fourth.
fn fill(upstream: &V1Upstream) -> Vec<String> {
    let base = upstream.image("base", None, gzip(&tar_of("etc/base", &noise(1, 40_000))));
    let middle = upstream.image("middle", Some(&base), gzip(&tar_of("etc/middle", b"middle")));
    let old = upstream.image("old", Some(&middle), gzip(&tar_of("etc/old", &noise(2, 90_000))));
    // Not all registries keep layers packed.
    let new = upstream.image("new", Some(&middle), tar_of("etc/new", &noise(3, 70_000)));
    upstream.tag("1.0", &old);
    upstream.tag("latest", &new[..12]);
    vec![base, middle, old, new]
}

/// What a repository is seen to have.
fn seen(server: &impl Server, repo: &str) -> Result<Value> {
    let (_, found) = server.call("GET", &format!("/repositories/{repo}/"), None)?;
    Ok(json!([
        found["content_unit_counts"],
        found["scratchpad"]["tags"],
        found["last_unit_added"],
        found["last_unit_removed"]
    ]))
}

fn v1_tags(server: &impl Server, repo: &str) -> Result<BTreeMap<String, String>> {
    let (_, found) = server.call("GET", &format!("/repositories/{repo}/"), None)?;
    let tags = found["scratchpad"]["tags"].as_array().context("no tags")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(tags
        .iter()
        .map(|t| (text(&t["tag"]), text(&t["image_id"])))
        .collect())
}

fn image_ids(server: &impl Server, repo: &str) -> Result<Vec<String>> {
    let criteria = json!({"criteria": {"type_ids": ["docker_image"]}});
    let (_, units) = server.call(
        "POST",
        &format!("/repositories/{repo}/search/units/"),
        Some(&criteria),
    )?;
    let units = units.as_array().context("no list")?;
    let ids = units
        .iter()
        .map(|u| u["metadata"]["image_id"].as_str().unwrap_or_default().to_owned());
    Ok(ids.collect())
}

/// Each tag's manifest, as a client of today sees it.
fn manifests(server: &impl Server, name: &str, tags: &[&str]) -> Result<BTreeMap<String, Digest>> {
    let of = |tag: &&str| {
        let image = format!("docker://{}/{name}:{tag}", server.crane());
        let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", &image])?;
        Ok(((*tag).to_owned(), Digest::sha256(raw)))
    };
    tags.iter().map(of).collect()
}

#[test]
fn a_repository_of_version_1_comes_with_both_faces_and_an_unchanged_one_costs_two_requests() -> Result<()> {
    let upstream = V1Upstream::start()?;
    let ids = fill(&upstream);
    upstream.guard();
    // Nobody answers at the first.
    upstream.name_endpoints(&format!("127.0.0.1:1, {}", upstream.endpoint()));
    let server = Standalone::start()?;
    server.admin(&[
        "docker",
        "repo",
        "create",
        "--repo-id=old",
        "--repo-registry-id=mirror/old",
        "--upstream-name=up/stream",
        &format!("--feed={}", upstream.url()),
        "--enable-v1=true",
        "--enable-v2=false",
        &format!("--basicauth-user={}", LOGIN.0),
        &format!("--basicauth-pass={}", LOGIN.1),
    ])?;
    let plan = server.admin(&["docker", "repo", "sync", "run", "--repo-id=old", "--dry-run"])?;
    assert!(
        plan.contains("+ latest") && plan.contains("4 images of version 1"),
        "{plan}"
    );
    assert_eq!(
        upstream.count("/json") + upstream.count("/layer"),
        0,
        "a plan takes ancestries alone"
    );
    assert!(image_ids(&server, "old")?.is_empty());

    let told = server.admin(&["docker", "repo", "sync", "run", "--repo-id=old"])?;
    for step in [
        "Retrieving v1 metadata",
        "Copying units already in pulp",
        "Downloading remote files",
        "Saving v1 images and tags",
        "Task Succeeded",
        "Tags: 2 added, 0 moved, 0 removed, 0 unchanged.",
    ] {
        assert!(told.contains(step), "{step}: {told}");
    }
    assert!(
        !told.contains("Downloading manifests"),
        "that is a step of version 2: {told}"
    );
    let expected = [("1.0", &ids[2]), ("latest", &ids[3])].map(|(tag, id)| (tag.to_owned(), id.clone()));
    assert_eq!(
        v1_tags(&server, "old")?,
        BTreeMap::from(expected),
        "the abbreviated id stands for a whole one"
    );
    assert_eq!(image_ids(&server, "old")?.len(), 4);
    assert_eq!(tags_of(&server, "old")?, ["1.0", "latest"]);
    for id in &ids {
        assert_eq!(upstream.count(&format!("{id}/layer")), 1);
    }
    for asked in upstream.log() {
        let login = asked.authorization.unwrap_or_default();
        let kind = if asked.of_index { "Basic " } else { "Token " };
        assert!(
            login.is_empty() || login.starts_with(kind),
            "{login} for {}",
            asked.path
        );
    }

    // Clients of its time get what the upstream has, byte for byte.
    wait_for("the publish that follows", || {
        let answer = http::get(&format!(
            "http://{}/v1/repositories/mirror/old/tags",
            server.crane()
        ))?;
        Ok((answer.status == 200).then_some(()))
    })?;
    let crane = server.crane();
    for (n, id) in ids.iter().enumerate() {
        let file = |name: &str| http::get(&format!("http://{crane}/v1/images/{id}/{name}"));
        let served = upstream.served(id);
        assert_eq!(file("json")?.body, served.json);
        let ancestry: Value = serde_json::from_slice(&file("ancestry")?.body)?;
        assert_eq!(ancestry, json!(served.line));
        if n < 3 {
            assert_eq!(file("layer")?.body, served.layer);
        } else {
            let mut unpacked = Vec::new();
            let layer = file("layer")?.body;
            std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(&layer[..]), &mut unpacked)?;
            assert_eq!(unpacked, served.layer, "packed here");
        }
    }
    // Clients of today get an image that they take, the same that a saved one would have been imported to.
    let pulled = server.pull("mirror/old:latest")?;
    let unpacked = [
        tar_of("etc/base", &noise(1, 40_000)),
        tar_of("etc/middle", b"middle"),
    ];
    let unpacked = [&unpacked[..], &[tar_of("etc/new", &noise(3, 70_000))]].concat();
    let diff_ids: Vec<String> = unpacked.iter().map(|t| Digest::sha256(t).to_string()).collect();
    assert_eq!(pulled.diff_ids, diff_ids, "base first");
    for (repo, tag) in [("saved-1", "1.0"), ("saved-2", "latest")] {
        let whole = if tag == "latest" {
            ids[3].clone()
        } else {
            ids[2].clone()
        };
        upstream.tag(tag, &whole);
        server.create_repository(repo, &format!("mirror/{repo}"))?;
        let upload = server.upload(&upstream.saved(tag)?)?;
        server.wait_until_finished(&server.import(repo, &upload, json!({}))?)?;
        server.wait_until_finished(&server.publish(repo)?)?;
        let imported = manifests(&server, &format!("mirror/{repo}"), &[tag])?;
        assert_eq!(manifests(&server, "mirror/old", &[tag])?, imported);
    }

    // Another token, another form of the same tags, and nothing new.
    upstream.end_tokens();
    upstream.tags_as_list();
    let before = seen(&server, "old")?;
    let again = sync(&server, "old")?;
    let requests = &again["report"]["requests"];
    // The index wants to see the login first; its answer tells the endpoints, of which the first is not there.
    assert_eq!(
        (&requests["total"], &requests["layers"]),
        (&json!(4), &json!(0)),
        "{again}"
    );
    assert_eq!(again["report"]["plan"]["tags_unchanged"], 2);
    assert_eq!(seen(&server, "old")?, before);
    server.wait_until_clean()
}

#[test]
fn tokens_that_end_are_replaced_and_nobody_but_the_index_hears_the_password() -> Result<()> {
    let upstream = V1Upstream::start()?;
    let ids = fill(&upstream);
    upstream.guard();
    // A registry that is none of ours asks for a login, and gets a token.
    let stranger = V1Upstream::start()?;
    stranger.guard();
    stranger.end_tokens();
    upstream.name_endpoints(&format!("{}, {}", stranger.endpoint(), upstream.endpoint()));
    upstream.misbehave(
        &format!("images/{}/layer", ids[2]),
        Some(Misbehaviour::Stall(1000)),
    );
    let server = Standalone::start()?;
    let account = json!({"basic_auth_username": LOGIN.0, "basic_auth_password": LOGIN.1, "read_timeout": 1});
    create(&server, "old", &upstream.url(), &by_v1(&account))?;
    let task = begin(&server, "old", &json!({}))?;
    wait_for("the layer that hangs", || {
        Ok((upstream.count(&format!("{}/layer", ids[2])) > 0).then_some(()))
    })?;
    upstream.end_tokens();
    upstream.misbehave(&format!("images/{}/layer", ids[2]), None);
    server.wait_until_finished(&task)?;
    assert_eq!(image_ids(&server, "old")?.len(), 4);
    ensure!(!stranger.log().is_empty(), "it was asked first");
    for asked in stranger.log().iter().chain(&upstream.log()) {
        let login = asked.authorization.as_deref().unwrap_or("Token ");
        let is_index = asked.of_index && !upstream.url().is_empty();
        assert!(
            login.starts_with("Token ") || is_index,
            "{login} for {}",
            asked.path
        );
        assert!(
            !asked.of_index || login.starts_with("Basic ") || login == "Token ",
            "{login}"
        );
    }
    server.wait_until_clean()
}

#[test]
fn a_mirror_of_version_1_follows_what_moves_and_what_goes() -> Result<()> {
    let upstream = V1Upstream::start()?;
    let ids = fill(&upstream);
    // One download at a time, over all workers, has to do.
    let server = Standalone::with(&[("PULP_SYNC_DOWNLOADS_PER_HOST", "1")])?;
    let mirror = json!({"remove_missing": true, "tags_exclude": ["nightly*"]});
    create(&server, "old", &upstream.url(), &by_v1(&mirror))?;
    sync(&server, "old")?;
    let mut expected = ids.clone();
    expected.sort();
    let held = || -> Result<Vec<String>> {
        let mut ids = image_ids(&server, "old")?;
        ids.sort();
        Ok(ids)
    };
    assert_eq!(held()?, expected);

    let newest = upstream.image("newest", Some(&ids[3]), gzip(&tar_of("etc/newest", b"newest")));
    upstream.tag("latest", &newest);
    upstream.tag("nightly-7", &ids[2]);
    upstream.untag("1.0");
    let second = sync(&server, "old")?;
    let plan = &second["report"]["plan"];
    assert_eq!(
        (
            &plan["tags_moved"],
            &plan["tags_removed"],
            &plan["images"],
            &plan["images_reused"]
        ),
        (&json!(["latest"]), &json!(["1.0"]), &json!(1), &json!(3)),
        "{second}"
    );
    assert_eq!(second["report"]["requests"]["layers"], 1);
    assert_eq!(
        v1_tags(&server, "old")?,
        BTreeMap::from([("latest".to_owned(), newest.clone())])
    );
    assert_eq!(tags_of(&server, "old")?, ["latest"]);
    let mut expected = vec![ids[0].clone(), ids[1].clone(), ids[3].clone(), newest.clone()];
    expected.sort();
    assert_eq!(
        held()?,
        expected,
        "the image of the tag that went is gone, its ancestors are needed"
    );
    let (_, found) = server.call("GET", "/repositories/old/", None)?;
    let counts = &found["content_unit_counts"];
    assert_eq!(
        (&counts["docker_manifest"], &counts["docker_blob"]),
        (&json!(1), &json!(5))
    );
    server.wait_until_finished(&server.publish("old")?)?;
    let target = server.folder().join("pulled");
    let image = format!("docker://{}/mirror/old:latest", server.crane());
    skopeo(&[
        "copy",
        "--src-tls-verify=false",
        &image,
        &format!("dir:{}", target.display()),
    ])?;

    // The face follows also where only it was changed.
    let overrides = json!({"mask_id": newest});
    let masked = server.wait_until_finished(&begin(&server, "old", &overrides)?)?;
    assert_eq!(
        masked["result"]["report"]["plan"]["tags_unchanged"], 1,
        "{masked}"
    );
    server.wait_until_clean()
}

#[test]
fn our_own_crane_is_an_upstream_by_either_version_or_both() -> Result<()> {
    let upstream = V1Upstream::start()?;
    let ids = fill(&upstream);
    let ours = Standalone::start()?;
    create(&ours, "old", &upstream.url(), &by_v1(&json!({})))?;
    sync(&ours, "old")?;
    ours.wait_until_finished(&ours.publish("old")?)?;
    let feed = format!("http://{}", ours.crane());
    let expected = manifests(&ours, "mirror/old", &["1.0", "latest"])?;

    let theirs = Standalone::start()?;
    let name = json!({"upstream_name": "mirror/old"});
    create(&theirs, "one", &feed, &by_v1(&name))?;
    let first = sync(&theirs, "one")?;
    assert_eq!(first["report"]["requests"]["layers"], 4);
    theirs.wait_until_finished(&theirs.publish("one")?)?;
    assert_eq!(manifests(&theirs, "mirror/one", &["1.0", "latest"])?, expected);
    for id in &ids {
        let file =
            |server: &Standalone| http::get(&format!("http://{}/v1/images/{id}/layer", server.crane()));
        assert_eq!(file(&theirs)?.body, file(&ours)?.body);
    }

    // What another repository has is not fetched again, by whichever version.
    create(
        &theirs,
        "both",
        &feed,
        &json!({"upstream_name": "mirror/old", "enable_v1": true}),
    )?;
    let both = sync(&theirs, "both")?;
    let (requests, plan) = (&both["report"]["requests"], &both["report"]["plan"]);
    assert_eq!(
        (&requests["layers"], &requests["blobs"]),
        (&json!(0), &json!(0)),
        "{both}"
    );
    assert_eq!(
        (&plan["tags_added"], &plan["images_reused"]),
        (&json!(["1.0", "latest"]), &json!(4))
    );
    assert_eq!(image_ids(&theirs, "both")?.len(), 4);
    assert_eq!(tags_of(&theirs, "both")?, ["1.0", "latest"]);
    theirs.wait_until_finished(&theirs.publish("both")?)?;
    assert_eq!(manifests(&theirs, "mirror/both", &["1.0", "latest"])?, expected);
    let again = sync(&theirs, "both")?;
    assert_eq!(again["report"]["plan"]["tags_unchanged"], 2, "{again}");

    // An index without version 2 is synced by what there is; a feed with neither is none.
    let mirror = json!({"enable_v1": true, "remove_missing": true});
    create(&theirs, "index", &upstream.url(), &mirror)?;
    sync(&theirs, "index")?;
    assert_eq!(tags_of(&theirs, "index")?, ["1.0", "latest"]);
    upstream.untag("1.0");
    let second = sync(&theirs, "index")?;
    assert_eq!(second["report"]["plan"]["tags_removed"], json!(["1.0"]));
    assert_eq!(tags_of(&theirs, "index")?, ["latest"]);
    assert_eq!(image_ids(&theirs, "index")?.len(), 3);
    upstream.misbehave("_ping", Some(Misbehaviour::Status(404)));
    upstream.misbehave("repositories/up/stream/images", Some(Misbehaviour::Status(404)));
    for config in [json!({"enable_v1": true}), by_v1(&json!({}))] {
        let task = begin(&theirs, "index", &config)?;
        let failed = theirs.wait_for_task(&task)?;
        assert_eq!(failed["error"]["code"], "DKR1008", "{failed}");
    }
    let neither = json!({"enable_v1": false, "enable_v2": false});
    let failed = theirs.wait_for_task(&begin(&theirs, "index", &neither)?)?;
    assert_eq!(failed["state"], "error", "{failed}");
    Ok(())
}

#[test]
fn layers_that_are_no_tars_come_as_with_an_upload_and_give_no_manifest() -> Result<()> {
    let upstream = V1Upstream::start()?;
    let id = upstream.image("text", None, gzip(b"a text, and no tar"));
    upstream.tag("latest", &id);
    let server = Standalone::start()?;
    create(&server, "old", &upstream.url(), &by_v1(&json!({})))?;
    let result = sync(&server, "old")?;
    assert_eq!(image_ids(&server, "old")?, [id]);
    assert!(tags_of(&server, "old")?.is_empty());
    let notice = result["report"]["notices"][0].as_str().context("no notice")?;
    assert!(notice.contains("is not a tar"), "{notice}");
    Ok(())
}

#[test]
fn whatever_an_upstream_of_version_1_does_wrong_has_a_code_and_changes_nothing() -> Result<()> {
    let upstream = V1Upstream::start()?;
    let ids = fill(&upstream);
    let server = Standalone::start()?;
    let settings = json!({"tags": ["1.0"], "read_timeout": 1});
    create(&server, "old", &upstream.url(), &by_v1(&settings))?;
    sync(&server, "old")?;
    let before = seen(&server, "old")?;

    let (list, tags) = ("repositories/up/stream/images", "repositories/up/stream/tags");
    let of = |file: &str| format!("images/{}/{file}", ids[3]);
    let (ancestry, json, layer) = (of("ancestry"), of("json"), of("layer"));
    let whole = upstream.served(&ids[3]).layer;
    let body = |value: Value| Misbehaviour::Body(value.to_string().into_bytes());
    let endless: Vec<String> = (0..3000).map(|n| format!("{n:064x}")).collect();
    let cut = gzip(&whole);
    let cases = [
        (list, Misbehaviour::Status(401), "DKR1114"),
        (list, Misbehaviour::Status(404), "DKR1007"),
        (list, Misbehaviour::Body(b"<html>".to_vec()), "DKR1007"),
        (tags, Misbehaviour::Status(404), "DKR1007"),
        (tags, Misbehaviour::Body(b"[1, 2]".to_vec()), "DKR1007"),
        (tags, body(json!({"latest": "../../../etc/passwd"})), "DKR1007"),
        (tags, body(json!({"latest": "0123"})), "DKR1007"),
        (&ancestry, Misbehaviour::Status(404), "DKR1007"),
        (&ancestry, body(json!([ids[0], ids[1]])), "DKR1007"),
        (&ancestry, body(json!([ids[3], ids[1], ids[3]])), "DKR1007"),
        (&ancestry, body(json!([ids[3], ids[0]])), "DKR1007"),
        (&ancestry, body(json!([ids[3], "../../x"])), "DKR1007"),
        (&ancestry, body(json!(endless)), "DKR1007"),
        (&json, Misbehaviour::Status(404), "DKR1007"),
        (&json, body(json!({"id": ids[0]})), "DKR1007"),
        (&json, body(json!({"id": ids[3], "parent": ids[3]})), "DKR1007"),
        (&json, Misbehaviour::Body(vec![b' '; 5 * 1024 * 1024]), "DKR1007"),
        (&layer, Misbehaviour::Status(404), "DKR1020"),
        (&layer, Misbehaviour::Cut(1000), "DKR1020"),
        (&layer, Misbehaviour::Body(b"<html>".to_vec()), "DKR1020"),
        (
            &layer,
            Misbehaviour::Body(whole[..whole.len() / 2].to_vec()),
            "DKR1020",
        ),
        (
            &layer,
            Misbehaviour::Body(cut[..cut.len() / 2].to_vec()),
            "DKR1020",
        ),
    ];
    let all = json!({"tags": ["1.0", "latest"]});
    for (path, how, code) in cases {
        upstream.misbehave(path, Some(how.clone()));
        let failed = server.wait_for_task(&begin(&server, "old", &all)?)?;
        upstream.misbehave(path, None);
        assert_eq!(failed["error"]["code"], code, "{path}, {how:?}: {failed}");
        let text = failed["error"]["description"].as_str().unwrap();
        assert!(
            text.contains(&upstream.url()) || text.contains(upstream.endpoint()),
            "{text}"
        );
        assert_eq!(seen(&server, "old")?, before, "{path}");
    }

    // A checksum of the kind that can be computed is held to.
    let mut summed = upstream.served(&ids[3]).json;
    summed.push(b'\n');
    summed.extend(&whole);
    for (sum, fits) in [(Digest::sha256("other"), false), (Digest::sha256(&summed), true)] {
        let header = Misbehaviour::Header("x-docker-checksum-payload", sum.to_string());
        upstream.misbehave(&json, Some(header));
        let ended = server.wait_for_task(&begin(&server, "old", &all)?)?;
        if fits {
            assert_eq!(ended["state"], "finished", "{ended}");
        } else {
            assert_eq!(ended["error"]["code"], "DKR1017", "{ended}");
            assert_eq!(seen(&server, "old")?, before);
        }
    }
    assert_eq!(v1_tags(&server, "old")?.len(), 2);
    server.wait_until_clean()
}

#[test]
fn a_canceled_sync_by_version_1_ends_soon_and_changes_nothing() -> Result<()> {
    let upstream = V1Upstream::start()?;
    let ids = fill(&upstream);
    let layer = format!("images/{}/layer", ids[2]);
    upstream.misbehave(&layer, Some(Misbehaviour::Stall(1000)));
    let server = Standalone::start()?;
    create(&server, "old", &upstream.url(), &by_v1(&json!({})))?;
    let task = begin(&server, "old", &json!({}))?;
    wait_for("the layer that hangs", || {
        Ok((upstream.count(&layer) > 0).then_some(()))
    })?;
    server.call("DELETE", &format!("/tasks/{task}/"), None)?;
    assert_eq!(server.wait_for_task(&task)?["state"], "canceled");
    assert!(image_ids(&server, "old")?.is_empty() && tags_of(&server, "old")?.is_empty());
    server.wait_until_clean()
}

#[test]
fn a_sync_by_version_1_that_is_killed_goes_on_and_fetches_no_whole_layer_twice() -> Result<()> {
    let upstream = V1Upstream::start()?;
    let ids = fill(&upstream);
    let stuck = format!("images/{}/layer", ids[2]);
    upstream.misbehave(&stuck, Some(Misbehaviour::Stall(1000)));
    let mut server = Standalone::start()?;
    create(&server, "old", &upstream.url(), &by_v1(&json!({})))?;
    let task = begin(&server, "old", &json!({}))?;
    wait_for("all layers but the one that hangs", || {
        let steps = &server.task(&task)?["progress_report"]["docker_importer"];
        Ok((steps[2]["num_processed"] == 3).then_some(()))
    })?;
    server.crash_and_start_again()?;
    upstream.misbehave(&stuck, None);
    let ended = server.wait_until_finished(&task)?;
    assert_eq!(ended["result"]["report"]["plan"]["images_reused"], 3, "{ended}");
    for id in &ids {
        let expected = if *id == ids[2] { 2 } else { 1 };
        assert_eq!(upstream.count(&format!("{id}/layer")), expected);
    }
    assert_eq!(image_ids(&server, "old")?.len(), 4);
    assert_eq!(tags_of(&server, "old")?, ["1.0", "latest"]);
    server.wait_until_clean()
}
