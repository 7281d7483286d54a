//! Finding, loading and following redirect files.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use common::{Client, LIST, Old, S2, Site};
use pulp_crane::{Crane, CraneConfig, Mode};
use pulp_model::Digest;
use serde_json::{Value, json};

fn v2_file(repository: &str, id: &str, url: &str) -> String {
    json!({ "version": 2, "repository": repository, "repo-registry-id": id, "url": url }).to_string()
}

/// Ids loaded, of one API.
async fn ids(client: &Client, api: &str) -> Vec<String> {
    let Value::Object(listed) = client
        .accepting(&format!("/crane/repositories/{api}"), "application/json")
        .await
        .json()
    else {
        panic!()
    };
    listed.into_iter().map(|(id, _)| id).collect()
}

#[tokio::test]
async fn a_bad_file_does_not_keep_the_others_out() {
    let old = Old::new();
    old.write("bad.json", "{\"version\": 2,");
    old.write("latin1.json", b"{\"version\":2,\"repository\":\"caf\xe9\"}");
    old.write("notes.txt", v2_file("t", "t", "http://x/"));
    old.write("UPPER.JSON", v2_file("u", "u", "http://x/"));
    old.write("deep/down/.hidden.json", v2_file("h", "hidden", "http://x/"));
    old.write("good.json", v2_file("good", "good", "http://x"));
    symlink("/nowhere", old.dir.path().join("dangling.json")).unwrap();
    symlink(old.dir.path(), old.dir.path().join("loop")).unwrap();
    let client = Client(Crane::open(old.config(Mode::Redirect)).router());
    assert_eq!(ids(&client, "v2").await, ["good", "hidden"]);
    let blob = Digest::sha256("x");
    let reply = client.get(&format!("/v2/good/blobs/{blob}")).await;
    assert_eq!(
        reply.header("location"),
        Some(format!("http://x/blobs/{blob}").as_str())
    );
}

#[tokio::test]
async fn a_file_that_turns_bad_leaves_what_it_held_before() {
    let old = Old::new();
    old.write("a.json", v2_file("a", "a", "http://x/"));
    old.write("b.json", v2_file("b", "b", "http://x/"));
    let mut crane = Crane::open(old.config(Mode::Redirect));
    let client = Client(crane.router());
    old.write("a.json", "{");
    fs::remove_file(old.dir.path().join("b.json")).unwrap();
    crane.reload();
    assert_eq!(ids(&client, "v2").await, ["a"]);
}

#[tokio::test]
async fn a_file_rewritten_in_place_is_read_again_even_with_an_older_time() {
    let old = Old::new();
    let file = old.write("a.json", v2_file("a", "before", "http://x/"));
    let mut crane = Crane::open(old.config(Mode::Redirect));
    let client = Client(crane.router());
    fs::write(&file, v2_file("a", "behind", "http://x/")).unwrap();
    fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_modified(SystemTime::UNIX_EPOCH)
        .unwrap();
    crane.reload();
    assert_eq!(ids(&client, "v2").await, ["behind"]);
}

#[tokio::test]
async fn of_two_files_for_one_id_the_newer_wins() {
    let old = Old::new();
    for (name, age) in [("a.json", 10), ("b.json", 5), ("c.json", 20)] {
        let file = old.write(name, v2_file(name, "same", &format!("http://{name}/")));
        let time = SystemTime::now() - Duration::from_secs(age);
        fs::File::options()
            .write(true)
            .open(file)
            .unwrap()
            .set_modified(time)
            .unwrap();
    }
    let client = Client(Crane::open(old.config(Mode::Redirect)).router());
    let digest = Digest::sha256("x");
    let reply = client.get(&format!("/v2/same/blobs/{digest}")).await;
    assert_eq!(
        reply.header("location"),
        Some(format!("http://b.json/blobs/{digest}").as_str())
    );
}

#[tokio::test]
async fn v1_and_v2_files_of_one_id_do_not_meet() {
    let old = Old::new();
    old.write("v2.json", v2_file("r", "dual", "http://x/v2"));
    let v1 = json!({ "version": 1, "repository": "r", "repo-registry-id": "dual", "url": "http://x/v1", "images": [], "tags": {} });
    old.write("v1.json", v1.to_string());
    let client = Client(Crane::open(old.config(Mode::Redirect)).router());
    assert_eq!(client.get("/v1/repositories/dual/images").await.json(), json!([]));
    let reply = client.get("/v2/dual/tags/list").await;
    assert_eq!(reply.header("location"), Some("http://x/v2/tags/list"));
}

#[tokio::test]
async fn a_data_directory_that_vanishes_takes_no_data_with_it() {
    let site = Site::new();
    site.publish(&site.image("busybox", "busybox", "a").contents);
    let mut crane = Crane::open(site.config(Mode::Redirect));
    let client = Client(crane.router());
    let away = site.dir.path().join("away");
    fs::rename(site.root.path(), &away).unwrap();
    crane.reload();
    assert_eq!(ids(&client, "v2").await, ["busybox"]);
    // An empty mount point.
    fs::create_dir(site.root.path()).unwrap();
    crane.reload();
    assert_eq!(ids(&client, "v2").await, ["busybox"]);
    fs::remove_dir(site.root.path()).unwrap();
    fs::rename(&away, site.root.path()).unwrap();
    site.root.unpublish(&"busybox".parse().unwrap()).unwrap();
    crane.reload();
    assert!(ids(&client, "v2").await.is_empty());
}

#[tokio::test]
async fn a_data_directory_may_come_after_the_start() {
    let old = Old::new();
    let config = CraneConfig {
        data_dir: old.dir.path().join("later"),
        ..old.config(Mode::Redirect)
    };
    let mut crane = Crane::open(config);
    let client = Client(crane.router());
    assert_eq!(client.get("/v2/").await.status, 200);
    old.write("later/a.json", v2_file("a", "a", "http://x/"));
    crane.reload();
    assert_eq!(ids(&client, "v2").await, ["a"]);
}

/// An old Pulp's tree: `app` links into `master`, tags link to the same content as digests.
fn old_publication(old: &Old) -> (Digest, Digest, Digest) {
    let layer = b"layer".to_vec();
    let layer_digest = Digest::sha256(&layer);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": S2,
        "config": { "mediaType": "x/y", "digest": layer_digest, "size": 5 }, "layers": [],
    })
    .to_string();
    let manifest_digest = Digest::sha256(&manifest);
    let list = json!({
        "schemaVersion": 2, "mediaType": LIST,
        "manifests": [{ "mediaType": S2, "digest": manifest_digest, "size": manifest.len(),
            "platform": { "os": "linux", "architecture": "amd64" } }],
    })
    .to_string();
    let list_digest = Digest::sha256(&list);
    let master = "v2/master/zoo/1437050000.12";
    let at = |path: &str| old.dir.path().join(master).join(path);
    old.write("content/layer", layer);
    old.write("content/manifest", manifest);
    old.write("content/list", list);
    for (link, content) in [
        (format!("blobs/{layer_digest}"), "layer"),
        (format!("manifests/2/{manifest_digest}"), "manifest"),
        ("manifests/2/latest".into(), "manifest"),
        (format!("manifests/list/{list_digest}"), "list"),
        ("manifests/list/multi".into(), "list"),
    ] {
        fs::create_dir_all(at(&link).parent().unwrap()).unwrap();
        symlink(old.dir.path().join("content").join(content), at(&link)).unwrap();
    }
    old.write(
        &format!("{master}/tags/list"),
        json!({ "name": "redhat/zoo", "tags": ["latest", "multi"] }).to_string(),
    );
    old.write(
        &format!("{master}/zoo.json"),
        json!({
            "type": "pulp-docker-redirect", "version": 4, "repository": "zoo", "repo-registry-id": "redhat/zoo",
            "url": "http://cdn.redhat.com/zoo/bar", "protected": false,
            "schema2_data": [manifest_digest, "latest"],
            "manifest_list_data": [list_digest, "multi"],
            "manifest_list_amd64_tags": { "multi": [manifest_digest, 2] },
        })
        .to_string(),
    );
    fs::create_dir_all(old.dir.path().join("v2/app")).unwrap();
    symlink(at("zoo.json"), old.dir.path().join("v2/app/zoo.json")).unwrap();
    (layer_digest, manifest_digest, list_digest)
}

#[tokio::test]
async fn what_an_old_pulp_published_is_served() {
    let old = Old::new();
    let (layer, manifest, list) = old_publication(&old);
    let client = Client(Crane::open(old.config(Mode::SERVE)).router());
    assert_eq!(
        client.get("/v2/redhat/zoo/tags/list").await.json()["tags"],
        json!(["latest", "multi"])
    );
    for (path, accept, digest, content_type) in [
        ("manifests/latest".to_owned(), S2, &manifest, S2),
        ("manifests/multi".into(), LIST, &list, LIST),
        ("manifests/multi".into(), S2, &manifest, S2),
        (format!("manifests/{list}"), S2, &list, LIST),
        (
            format!("blobs/{layer}"),
            "*/*",
            &layer,
            "application/octet-stream",
        ),
    ] {
        let reply = client.accepting(&format!("/v2/redhat/zoo/{path}"), accept).await;
        assert_eq!(
            (reply.status.as_u16(), reply.header("content-type")),
            (200, Some(content_type)),
            "{path}"
        );
        assert_eq!(
            reply.header("docker-content-digest"),
            Some(digest.to_string().as_str()),
            "{path}"
        );
        assert!(digest.matches(&reply.body), "{path}");
    }
    assert_eq!(
        client.get("/v2/redhat/zoo/manifests/unknown").await.error().1,
        "MANIFEST_UNKNOWN"
    );
    assert!(
        layer.matches(
            &client
                .get(&format!("/pulp/docker/v2/zoo/blobs/{layer}"))
                .await
                .body
        )
    );
}

#[tokio::test]
async fn what_an_old_pulp_published_is_redirected_by_the_originals_rules() {
    let old = Old::new();
    let (_, manifest, _) = old_publication(&old);
    let client = Client(Crane::open(old.config(Mode::Redirect)).router());
    for (path, accept, location) in [
        ("manifests/latest", S2, "manifests/2/latest".to_owned()),
        ("manifests/multi", LIST, "manifests/list/multi".into()),
        ("manifests/multi", S2, format!("manifests/2/{manifest}")),
        ("manifests/unknown", S2, "manifests/1/unknown".into()),
        ("tags/list", "*/*", "tags/list".into()),
    ] {
        let reply = client.accepting(&format!("/v2/redhat/zoo/{path}"), accept).await;
        assert_eq!(
            reply.header("location"),
            Some(format!("http://cdn.redhat.com/zoo/bar/{location}").as_str())
        );
    }
}

#[tokio::test]
async fn content_may_lie_in_directories_of_its_own() {
    let old = Old::new();
    old_publication(&old);
    let content = old.dir.path().join("web");
    fs::create_dir(&content).unwrap();
    fs::rename(
        old.dir.path().join("v2/master/zoo/1437050000.12"),
        content.join("zoo"),
    )
    .unwrap();
    let metadata = old.write(
        "metadata/zoo.json",
        fs::read(content.join("zoo/zoo.json")).unwrap(),
    );
    let v1 = json!({ "version": 1, "repository": "one", "repo-registry-id": "one", "url": "http://x/",
        "images": [{ "id": "abc123" }, { "id": ".." }], "tags": {} });
    old.write("metadata/one.json", v1.to_string());
    old.write("web1/one/abc123/json", "{}");
    old.write("web1/json", "secret");
    let config = CraneConfig {
        data_dir: metadata.parent().unwrap().to_owned(),
        mode: Mode::Serve {
            content_dir_v1: Some(old.dir.path().join("web1")),
            content_dir_v2: Some(content),
        },
        ..CraneConfig::default()
    };
    let client = Client(Crane::open(config).router());
    assert_eq!(
        client
            .accepting("/v2/redhat/zoo/manifests/multi", LIST)
            .await
            .status,
        200
    );
    assert_eq!(&client.get("/v1/images/abc123/json").await.body[..], b"{}");
    assert_eq!(
        client.get("/v1/images/../json").await.status,
        404,
        "an id that is a way out"
    );
}

/// The redirect files that the original's own tests use, where they are at hand.
#[tokio::test]
async fn the_originals_test_data_load() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/crane");
    if !data.is_dir() {
        println!("skipped: no {}", data.display());
        return;
    }
    let load = |dir: &str| {
        let config = CraneConfig {
            data_dir: data.join(dir),
            mode: Mode::Redirect,
            ..CraneConfig::default()
        };
        Client(Crane::open(config).router())
    };
    let good = load("metadata_good");
    // Protected ones are not listed to strangers.
    assert_eq!(ids(&good, "v1").await, ["bar", "nop", "redhat/foo"]);
    assert_eq!(
        ids(&good, "v2").await,
        ["redhat/foo", "redhat/zoo", "registry", "v2/bar"]
    );
    let reply = good.accepting("/v2/redhat/zoo/manifests/latest", LIST).await;
    assert_eq!(
        reply.header("location"),
        Some("http://cdn.redhat.com/zoo/bar/manifests/list/latest")
    );
    assert_eq!(
        good.get("/v1/repositories/library/bar/tags/test").await.json(),
        json!("ghi789")
    );
    assert!(ids(&load("metadata_bad"), "v1").await.is_empty());
    assert!(ids(&load("edge/bad"), "v2").await.is_empty());

    let edge = load("edge");
    let digest = Digest::sha256("x");
    for (name, url) in [
        ("v2float", "https://cdn.example.com/v2float"),
        ("protnull", "https://cdn.example.com/protnull"),
        ("a/b/c/d", "https://cdn.example.com/deep"),
        ("org/tags", "https://cdn.example.com/tagsname"),
        ("sp%20ace", "https://cdn.example.com/sp%20ace/caf%C3%A9"),
        ("dual", "http://cdn.example.com/dual-v2"),
    ] {
        let reply = edge.get(&format!("/v2/{name}/blobs/{digest}")).await;
        assert_eq!(
            reply.header("location"),
            Some(format!("{url}/blobs/{digest}").as_str()),
            "{name}"
        );
    }
    for name in ["protstr", "prot/rhel", "upper", "42"] {
        assert!(
            edge.get(&format!("/v2/{name}/blobs/{digest}"))
                .await
                .status
                .is_client_error(),
            "{name}"
        );
    }
}

#[test]
fn a_publish_directory_is_told_from_other_trees() {
    let site = Site::new();
    let stray: PathBuf = site.root.path().join("stray.json");
    fs::write(stray, v2_file("s", "stray", "http://x/")).unwrap();
    site.publish(&site.image("busybox", "busybox", "a").contents);
    let crane = Crane::open(site.config(Mode::Redirect));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(runtime.block_on(ids(&Client(crane.router()), "v2")), ["busybox"]);
}
