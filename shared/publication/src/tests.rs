#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use pulp_model::{Digest, ErrorCode};
use serde_json::{Value, json};

use crate::{
    Contents, EntrySource, INDEX_FILE, Index, Missing, Publication, PublicationId, Redirect,
    catalog::Catalog,
    fixture::Site,
    redirect::{self, Content},
};

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

fn parsed(path: impl AsRef<Path>) -> Value {
    serde_json::from_str(&read(path)).unwrap()
}

/// All names below a directory, links not followed.
fn below(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}

#[test]
fn a_publication_lies_where_the_documentation_says() {
    let site = Site::new();
    let contents = site.image("a");
    let image = contents.images[0].image_id.clone();
    let manifest = contents.manifests[0].unit.digest.clone();
    let list = contents.lists[0].unit.digest.clone();
    let layer = contents.blobs[0].digest.clone();
    let id = site.publish(contents);

    let root = site.root.path();
    let link = |path: &str| fs::read_link(root.join(path)).unwrap();
    assert_eq!(
        link("app/busybox.json"),
        Path::new(&format!("../master/busybox/{id}/busybox.json"))
    );
    assert_eq!(
        link("web/busybox"),
        Path::new(&format!("../master/busybox/{id}/web"))
    );
    assert_eq!(
        link("v2/app/busybox.json"),
        Path::new(&format!("../master/busybox/{id}/busybox.json"))
    );
    assert_eq!(
        link("v2/web/busybox"),
        Path::new(&format!("../master/busybox/{id}"))
    );

    let web = root.join("web/busybox").join(image.as_str());
    assert_eq!(read(web.join("layer")), "layer a");
    assert_eq!(parsed(web.join("json")), json!({ "id": image }));
    assert_eq!(parsed(web.join("ancestry")), json!([image]));
    assert!(fs::read_link(web.join("layer")).unwrap().is_relative());

    let v2 = root.join("v2/web/busybox");
    assert_eq!(read(v2.join(format!("blobs/{layer}"))), "layer a");
    for (file, digest) in [
        (format!("manifests/2/{manifest}"), &manifest),
        ("manifests/2/latest".to_owned(), &manifest),
        (format!("manifests/list/{list}"), &list),
        ("manifests/list/multi".to_owned(), &list),
    ] {
        assert!(digest.matches(read(v2.join(&file)).as_bytes()), "{file}");
    }
    assert_eq!(
        parsed(v2.join("tags/list")),
        json!({ "name": "pulpdemo/busybox", "tags": ["latest", "multi", "only-a"] })
    );
    let index = Index::parse(read(v2.join(INDEX_FILE)).as_bytes()).unwrap();
    assert_eq!(
        (index.publication, index.manifests.len(), index.blobs.len()),
        (id, 2, 2)
    );
}

#[test]
fn redirect_files_have_the_keys_of_the_original() {
    let site = Site::new();
    let contents = site.image("a");
    let image = contents.images[0].image_id.clone();
    let manifest = contents.manifests[0].unit.digest.to_string();
    let list = contents.lists[0].unit.digest.to_string();
    site.publish(contents);

    assert_eq!(
        parsed(site.root.path().join("app/busybox.json")),
        json!({
            "type": "pulp-docker-redirect", "version": 1, "repository": "busybox",
            "repo-registry-id": "pulpdemo/busybox", "protected": false,
            "url": "https://pulp.example.com/pulp/docker/v1/busybox/",
            "images": [{ "id": image }], "tags": { "latest": image },
        })
    );
    assert_eq!(
        parsed(site.root.path().join("v2/app/busybox.json")),
        json!({
            "type": "pulp-docker-redirect", "version": 4, "repository": "busybox",
            "repo-registry-id": "pulpdemo/busybox", "protected": false,
            "url": "https://pulp.example.com/pulp/docker/v2/busybox/",
            "schema2_data": ["latest", "only-a", &manifest],
            "manifest_list_data": ["multi", list],
            "manifest_list_amd64_tags": { "multi": [&manifest, 2] },
        })
    );
}

#[test]
fn what_is_written_reads_back() {
    let site = Site::new();
    let mut contents = site.image("a");
    contents.protected = true;
    let publication = Publication::new(contents).unwrap();
    let catalog = Catalog::of(&publication, &PublicationId::new());
    let v1 = Redirect::parse(&serde_json::to_vec(&redirect::v1_file(&catalog)).unwrap()).unwrap();
    let v4 = Redirect::parse(&serde_json::to_vec(&redirect::v4_file(&catalog)).unwrap()).unwrap();
    assert!(v1.protected && v4.protected);
    assert!(matches!(v1.content, Content::V1 { images, tags } if images.len() == 1 && tags.len() == 1));
    assert!(
        matches!(v4.content, Content::V4(v) if v.schema2.len() == 3 && v.lists.len() == 2 && v.amd64.len() == 1)
    );
    let index = Index::of(&publication, &PublicationId::new());
    assert_eq!(Index::parse(&serde_json::to_vec(&index).unwrap()).unwrap(), index);
}

#[test]
fn an_index_of_a_later_format_is_refused_by_its_number() {
    let error = Index::parse(br#"{"format":2,"what":"else"}"#).unwrap_err();
    assert_eq!(error.to_string(), "index format 2 is not supported, 1 is");
}

#[test]
fn an_empty_repository_is_published_without_a_dangling_link() {
    let site = Site::new();
    site.publish(Site::empty());
    let root = site.root.path();
    assert!(root.join("web/busybox").is_dir());
    assert_eq!(parsed(root.join("app/busybox.json"))["images"], json!([]));
    assert_eq!(parsed(root.join("v2/web/busybox/tags/list"))["tags"], json!([]));
}

#[test]
fn everything_missing_is_told_at_once() {
    let site = Site::new();
    let mut contents = site.image("a");
    let layer = contents.blobs.remove(0);
    let image = contents.images.remove(0);
    let manifest = contents.manifests[0].unit.digest.clone();
    let list = contents.lists.remove(0).unit.digest;
    fs::write(&contents.manifests[0].path, "short").unwrap();
    let config = contents.blobs[0].clone();
    fs::remove_file(&config.path).unwrap();

    let error = Publication::new(contents).unwrap_err();
    let of = format!("manifest {manifest}");
    assert!(error.missing.contains(&Missing::V1Image {
        tag: "latest".into(),
        image_id: image.image_id
    }));
    assert!(error.missing.contains(&Missing::TagTarget {
        tag: "multi".into(),
        digest: list
    }));
    assert!(error.missing.contains(&Missing::Blob {
        manifest,
        digest: layer.digest
    }));
    assert!(error.missing.contains(&Missing::File {
        of: format!("blob {}", config.digest),
        path: config.path
    }));
    assert!(
        error
            .missing
            .iter()
            .any(|m| matches!(m, Missing::Size { of: o, found: 5, .. } if *o == of))
    );
    assert_eq!(error.missing.len(), 5);
    let coded = error.coded();
    assert_eq!(coded.code, ErrorCode::CLOSURE_INCOMPLETE);
    assert_eq!(coded.data["missing"].as_array().unwrap().len(), 5);
}

#[test]
fn a_lists_missing_member_is_told_by_digest() {
    let site = Site::new();
    let mut contents = site.image("a");
    contents.tags.retain(|t| t.name.as_str() == "multi");
    let member = contents.manifests.remove(0).unit.digest;
    let list = contents.lists[0].unit.digest.clone();
    assert_eq!(
        Publication::new(contents).unwrap_err().missing,
        [Missing::Member { list, digest: member }]
    );
}

#[test]
fn a_publication_given_up_leaves_nothing() {
    let site = Site::new();
    site.publish(site.image("a"));
    let before = below(site.root.path());
    let publication = Publication::new(site.image("b")).unwrap();
    let staged = site
        .root
        .stage(&publication, &PublicationId::new(), "task-1")
        .unwrap();
    assert_ne!(below(site.root.path()), before);
    drop(staged);
    assert_eq!(below(site.root.path()), before);
}

#[test]
fn staging_again_after_a_crash_begins_anew() {
    let site = Site::new();
    let id = PublicationId::new();
    let publication = Publication::new(site.image("a")).unwrap();
    // A crash: nothing is dropped.
    std::mem::forget(site.root.stage(&publication, &id, "task.1").unwrap());
    site.root
        .stage(&publication, &id, "task.1")
        .unwrap()
        .switch()
        .unwrap();
    // Another attempt at the same publication, which got as far as the switch before its worker died.
    site.root
        .stage(&publication, &id, "task.2")
        .unwrap()
        .switch()
        .unwrap();
    let target = fs::read_link(site.root.path().join("v2/web/busybox")).unwrap();
    assert_eq!(target, Path::new(&format!("../master/busybox/{id}.task_2")));
    assert_eq!(
        read(
            site.root.path().join("v2/web/busybox/blobs").join(
                publication
                    .contents()
                    .blobs
                    .iter()
                    .find(|b| b.size == 7)
                    .unwrap()
                    .digest
                    .to_string()
            )
        ),
        "layer a"
    );
}

#[test]
fn a_dead_attempts_remains_are_removed_and_a_live_ones_stay() {
    let site = Site::new();
    site.publish(site.image("a"));
    let before = below(site.root.path());
    let publication = Publication::new(site.image("b")).unwrap();
    std::mem::forget(
        site.root
            .stage(&publication, &PublicationId::new(), "dead")
            .unwrap(),
    );
    let live = site
        .root
        .stage(&publication, &PublicationId::new(), "live")
        .unwrap();
    fs::write(site.root.path().join("app/.tmp+dead+busybox"), "").unwrap();
    let repo = publication.repository();
    let removed = site
        .root
        .remove_abandoned(repo, |attempt| attempt == "dead")
        .unwrap()
        .removed;
    assert_eq!(removed.len(), 2, "{removed:?}");
    live.switch().unwrap();
    let now = below(site.root.path());
    assert!(now.is_superset(&before) && !now.iter().any(|p| p.to_string_lossy().contains("dead")));
}

#[test]
fn a_switch_that_can_not_be_completed_is_not_begun() {
    let site = Site::new();
    let id = site.publish(site.image("a"));
    let root = site.root.path();
    fs::rename(root.join("web"), root.join("web-away")).unwrap();
    fs::write(root.join("web"), "a file in the way").unwrap();
    let publication = Publication::new(site.image("b")).unwrap();
    let staged = site.root.stage(&publication, &PublicationId::new(), "1").unwrap();
    let error = staged.switch().unwrap_err();
    assert_eq!(error.coded().code, ErrorCode::INTERNAL);
    for app in ["app/busybox.json", "v2/app/busybox.json"] {
        let target = fs::read_link(root.join(app)).unwrap();
        assert_eq!(target, Path::new(&format!("../master/busybox/{id}/busybox.json")));
    }
    let left: Vec<PathBuf> = below(root)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "tmp"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn until_the_switch_readers_have_the_old_one_and_then_the_new_one() {
    let site = Site::new();
    site.publish(site.image("a"));
    let only = |api: &str| {
        let file = site
            .root
            .path()
            .join(api)
            .join("busybox.json")
            .canonicalize()
            .unwrap();
        let tags = file.parent().unwrap().join("tags/list");
        if tags.exists() {
            parsed(tags)["tags"][2].clone()
        } else {
            parsed(file)["images"][0]["id"].clone()
        }
    };
    let seen = || (only("app"), only("v2/app"));
    let of = |generation: &str| {
        (
            json!(Digest::sha256(generation).hex()),
            json!(format!("only-{generation}")),
        )
    };
    let publication = Publication::new(site.image("b")).unwrap();
    let staged = site.root.stage(&publication, &PublicationId::new(), "1").unwrap();
    assert_eq!(seen(), of("a"));
    staged.switch().unwrap();
    assert_eq!(seen(), of("b"));
}

#[test]
fn pruning_keeps_the_published_and_the_previous_one() {
    let site = Site::new();
    let ids = ["a", "b", "c", "d"].map(|g| site.publish(site.image(g)));
    let repo = "busybox".parse().unwrap();
    assert!(
        site.root
            .prune(&repo, "tidy", 1, Duration::from_hours(1))
            .unwrap()
            .removed
            .is_empty(),
        "all are young"
    );
    assert_eq!(
        site.root
            .prune(&repo, "tidy", 1, Duration::ZERO)
            .unwrap()
            .removed
            .len(),
        4,
        "two trees of each API"
    );
    for master in ["master/busybox", "v2/master/busybox"] {
        let left: BTreeSet<String> = fs::read_dir(site.root.path().join(master))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(left, [ids[2].to_string(), ids[3].to_string()].into());
    }
    assert!(site.root.path().join("v2/web/busybox/tags/list").exists());
}

#[test]
fn unpublishing_removes_all_and_may_be_repeated() {
    let site = Site::new();
    site.publish(site.image("a"));
    let repo = "busybox".parse().unwrap();
    assert!(site.root.is_published(&repo));
    for _ in 0..2 {
        site.root.unpublish(&repo).unwrap();
        assert!(!site.root.is_published(&repo));
        assert!(
            below(site.root.path())
                .iter()
                .all(|p| !p.to_string_lossy().contains("busybox"))
        );
    }
}

#[test]
fn readers_see_the_old_or_the_new_publication_whole() {
    let site = Site::new();
    let generations = ["a", "b"].map(|g| site.image(g));
    site.publish(generations[0].clone());
    let root = site.root.path();
    let (done, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // The redirect file and what lies beside it, by one resolution of the link.
                let file = root.join("v2/app/busybox.json").canonicalize().unwrap();
                let dir = file.parent().unwrap();
                let tags = parsed(dir.join("tags/list"));
                let generation = if tags["tags"][2] == "only-a" { "a" } else { "b" };
                assert_eq!(tags["tags"][2], format!("only-{generation}"));
                let index = Index::parse(&fs::read(dir.join(INDEX_FILE)).unwrap()).unwrap();
                assert!(
                    index
                        .tags
                        .contains_key(&format!("only-{generation}").parse().unwrap())
                );
                for blob in &index.blobs {
                    let bytes = fs::read(dir.join("blobs").join(blob.digest.to_string())).unwrap();
                    assert!(
                        blob.digest.matches(&bytes) && String::from_utf8(bytes).unwrap().contains(generation)
                    );
                }
                // Each link by itself.
                let v1 = parsed(root.join("app/busybox.json"));
                let image = Digest::sha256("a").hex().to_owned();
                assert!(v1["images"][0]["id"] == image || v1["images"][0]["id"] == Digest::sha256("b").hex());
                assert_eq!(parsed(root.join("v2/web/busybox/tags/list"))["tags"][0], "latest");
                reads.fetch_add(1, Ordering::Relaxed);
            }
        });
        let repo = "busybox".parse().unwrap();
        let mut round = 0_usize;
        while round < 40 || reads.load(Ordering::Relaxed) < 40 {
            round += 1;
            site.publish(generations[round % 2].clone());
            // A slow reader may be some publications behind.
            site.root.prune(&repo, "tidy", 8, Duration::ZERO).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn an_export_lists_the_same_members_in_the_same_order() {
    let site = Site::new();
    let contents = site.image("a");
    let mut shuffled: Contents = contents.clone();
    shuffled.tags.reverse();
    shuffled.blobs.reverse();
    let entries = |contents| {
        site.root
            .export_entries(&Publication::new(contents).unwrap())
            .unwrap()
    };
    let found = entries(contents.clone());
    assert_eq!(found, entries(shuffled));
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    let image = &contents.images[0].image_id;
    let blobs: BTreeSet<String> = contents
        .blobs
        .iter()
        .map(|b| format!("v2/busybox/blobs/{}", b.digest))
        .collect();
    let mut expected = vec!["busybox.json".to_owned()];
    expected.extend(["ancestry", "json", "layer"].map(|file| format!("busybox/{image}/{file}")));
    expected.push("v2/busybox.json".into());
    expected.extend(blobs);
    let manifest = &contents.manifests[0].unit.digest;
    expected.extend(
        ["latest".to_owned(), "only-a".into(), manifest.to_string()]
            .map(|n| format!("v2/busybox/manifests/2/{n}")),
    );
    expected.extend(
        ["multi".to_owned(), contents.lists[0].unit.digest.to_string()]
            .map(|n| format!("v2/busybox/manifests/list/{n}")),
    );
    expected.push("v2/busybox/tags/list".into());
    assert_eq!(names, expected);
    let layer = found.iter().find(|(name, _)| name.ends_with("/layer")).unwrap();
    assert!(matches!(&layer.1, EntrySource::File { size: 7, .. }));
}

#[test]
fn a_bad_redirect_file_is_refused_with_its_reason() {
    for (file, reason) in [
        ("{\"version\": 2,", "not valid JSON: "),
        ("", "not valid JSON: "),
        ("[1,2]", "not a JSON object"),
        (
            r#"{"version":2,"repo-registry-id":"x","url":"http://x/"}"#,
            "key \"repository\" is missing",
        ),
        (
            r#"{"version":2,"repository":"r","repo-registry-id":"x"}"#,
            "key \"url\" is missing",
        ),
        (
            r#"{"version":2,"repository":"r","repo-registry-id":"x","url":null}"#,
            "key \"url\" is not a text",
        ),
        (
            r#"{"repository":"r","repo-registry-id":"x","url":"u"}"#,
            "key \"version\" is missing",
        ),
        (
            r#"{"version":5,"repository":"r","repo-registry-id":"x","url":"u"}"#,
            "metadata version 5 is not supported, 1 to 4 are",
        ),
        (
            r#"{"version":"2","repository":"r","repo-registry-id":"x","url":"u"}"#,
            "metadata version \"2\" is not supported",
        ),
        (
            r#"{"version":1,"repository":"r","repo-registry-id":"x","url":"u","tags":{}}"#,
            "key \"images\" is missing",
        ),
        (
            r#"{"version":1,"repository":"r","repo-registry-id":"x","url":"u","images":[]}"#,
            "key \"tags\" is missing",
        ),
        (
            r#"{"version":3,"repository":"r","repo-registry-id":"x","url":"u"}"#,
            "key \"schema2_data\" is missing",
        ),
        (
            r#"{"version":4,"repository":"r","repo-registry-id":"x","url":"u","schema2_data":[]}"#,
            "key \"manifest_list_data\" is missing",
        ),
    ] {
        let error = Redirect::parse(file.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(reason), "{file}: {error}");
    }
    assert!(Redirect::parse(b"{\"version\":2,\"repository\":\"caf\xe9\"}").is_err());
}

#[test]
fn a_redirect_file_is_judged_as_python_judges_it() {
    let parse = |extra: &str| {
        Redirect::parse(
            format!(r#"{{"repository":"r","repo-registry-id":"x","url":"u",{extra}}}"#).as_bytes(),
        )
        .unwrap()
    };
    assert_eq!(parse(r#""version":2.0"#).content, Content::V2);
    assert!(matches!(
        parse(r#""version":true,"images":[],"tags":{}"#).content,
        Content::V1 { .. }
    ));
    assert!(parse(r#""version":2,"protected":"false""#).protected);
    assert!(!parse(r#""version":2,"protected":null"#).protected);
    assert!(!parse(r#""version":2"#).protected);
    assert_eq!(parse(r#""version":2"#).url, "u/");
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let _ = (Redirect::parse(&bytes), Index::parse(&bytes));
    }
}
