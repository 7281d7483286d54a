//! Publications that are changes of others: the same files as if made anew, for the price of the change.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use proptest::prelude::*;
use pulp_model::{
    Digest,
    unit::{BlobUnit, ImageUnit, TagUnit, Unit},
};

use crate::{
    Change, Changed, Contents, INDEX_FILE, Index, Missing, Publication, PublicationError, PublicationId,
    fixture::Site,
};

const HOUR: Duration = Duration::from_hours(1);

/// Images of some generations in one repository; `latest` and `multi` are those of the last.
fn contents(site: &Site, generations: &[u8]) -> Contents {
    let mut all = Site::empty();
    for generation in generations {
        let one = site.image(&format!("g{generation}"));
        all.images.extend(one.images);
        all.blobs.extend(one.blobs);
        all.manifests.extend(one.manifests);
        all.lists.extend(one.lists);
        all.v1_tags.extend(one.v1_tags);
        all.tags.extend(one.tags);
    }
    Publication::new(all).unwrap().contents().clone()
}

fn units(contents: &Contents) -> Vec<Unit> {
    let none = Digest::sha256("");
    let images = contents.images.iter().map(|i| {
        Unit::Image(ImageUnit {
            image_id: i.image_id.clone(),
            parent_id: None,
            size: None,
            json_digest: none.clone(),
            ancestry_digest: none.clone(),
            layer_digest: none.clone(),
            layer_size: 0,
        })
    });
    let blobs = contents.blobs.iter().map(|b| {
        Unit::Blob(BlobUnit {
            digest: b.digest.clone(),
            size: b.size,
        })
    });
    let manifests = contents.manifests.iter().map(|m| Unit::Manifest(m.unit.clone()));
    let lists = contents.lists.iter().map(|l| Unit::ManifestList(l.unit.clone()));
    let tags = contents.tags.iter().map(|t| Unit::Tag(t.clone()));
    images
        .chain(blobs)
        .chain(manifests)
        .chain(lists)
        .chain(tags)
        .collect()
}

fn change(old: &Contents, new: &Contents) -> Change {
    let (before, after) = (units(old), units(new));
    let is_new = |unit: Unit| !before.contains(&unit);
    let mut added = new.clone();
    added.images.retain(|i| !old.images.contains(i));
    added.blobs.retain(|b| !old.blobs.contains(b));
    added.manifests.retain(|m| !old.manifests.contains(m));
    added.lists.retain(|l| !old.lists.contains(l));
    added.tags.retain(|t: &TagUnit| is_new(Unit::Tag(t.clone())));
    let removed = before.iter().filter(|unit| !after.contains(unit));
    Change {
        added,
        removed: removed.cloned().collect(),
    }
}

fn publish_change(site: &Site, old: &Contents, new: &Contents, drained: Duration) -> PublicationId {
    let id = PublicationId::new();
    let base = site.root.published(&new.repository).unwrap().unwrap();
    let changed = Changed::new(base, change(old, new)).unwrap();
    let staged = site.root.stage_change(changed, &id, "1", drained).unwrap();
    staged.switch().unwrap();
    id
}

/// Every published name with what is read under it; the publication's id is the only thing that may differ.
fn read_all(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for place in [
        "app/busybox.json",
        "v2/app/busybox.json",
        "web/busybox",
        "v2/web/busybox",
    ] {
        let mut left = vec![root.join(place)];
        while let Some(path) = left.pop() {
            if path.is_dir() {
                left.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
                found.insert(path.strip_prefix(root).unwrap().to_owned(), Vec::new());
            } else if path.ends_with(INDEX_FILE) {
                let mut index = Index::parse(&fs::read(&path).unwrap()).unwrap();
                index.publication = "00000000-0000-0000-0000-000000000000".parse().unwrap();
                found.insert(
                    path.strip_prefix(root).unwrap().to_owned(),
                    serde_json::to_vec(&index).unwrap(),
                );
            } else {
                let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                found.insert(path.strip_prefix(root).unwrap().to_owned(), bytes);
            }
        }
    }
    found
}

fn trees(site: &Site) -> BTreeSet<String> {
    let names = |master: &str| -> BTreeSet<String> {
        let dir = fs::read_dir(site.root.path().join(master)).unwrap();
        dir.map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    let (v1, v2) = (names("master/busybox"), names("v2/master/busybox"));
    assert_eq!(v1, v2);
    v2
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn changes_one_upon_the_other_read_as_the_whole_made_anew(
        steps in prop::collection::vec((prop::collection::vec(0_u8..6, 0..5), any::<bool>(), any::<bool>()), 1..6),
    ) {
        let (changing, anew) = (Site::new(), Site::new());
        let mut old = contents(&changing, &[1, 2]);
        changing.publish(old.clone());
        for (generations, drained, protected) in steps {
            let mut new = contents(&changing, &generations);
            new.protected = protected;
            let drained = if drained { Duration::ZERO } else { HOUR };
            publish_change(&changing, &old, &new, drained);
            let mut whole = contents(&anew, &generations);
            whole.protected = protected;
            anew.publish(whole);
            prop_assert_eq!(read_all(changing.root.path()), read_all(anew.root.path()));
            old = new;
        }
    }
}

#[test]
fn a_tree_whose_readers_are_gone_is_made_into_the_next_one() {
    let site = Site::new();
    let all = [[1, 2].as_slice(), &[1, 2, 3], &[1, 2, 3, 4], &[1, 3, 4]].map(|g| contents(&site, g));
    let first = site.publish(all[0].clone());
    let second = publish_change(&site, &all[0], &all[1], HOUR);
    assert_eq!(trees(&site), [first, second].map(|id| id.to_string()).into());
    let blob = all[0].blobs[0].digest.to_string();
    let inode = |id: &PublicationId| {
        let tree = site.root.path().join("v2/master/busybox").join(id.to_string());
        fs::symlink_metadata(tree).unwrap().ino()
    };
    let before = inode(&first);
    // The first one has readers for an hour: it is as it was.
    let third = publish_change(&site, &all[1], &all[2], HOUR);
    assert!(
        site.root
            .path()
            .join(format!("v2/master/busybox/{first}/blobs/{blob}"))
            .exists()
    );
    // Now nobody reads any of them: the latest becomes the next.
    let taken = inode(&second);
    let fourth = publish_change(&site, &all[2], &all[3], Duration::ZERO);
    assert_eq!(
        trees(&site),
        [first, third, fourth].map(|id| id.to_string()).into()
    );
    assert_eq!((inode(&first), inode(&fourth)), (before, taken));
}

#[test]
fn how_long_a_tree_has_been_replaced_is_counted_from_its_replacement() {
    let site = Site::new();
    let all = [[1].as_slice(), &[1, 2]].map(|g| contents(&site, g));
    let first = site.publish(all[0].clone());
    let tree = site.root.path().join(format!("v2/master/busybox/{first}"));
    let long_ago = std::time::SystemTime::now() - HOUR * 48;
    fs::File::open(&tree).unwrap().set_modified(long_ago).unwrap();
    publish_change(&site, &all[0], &all[1], HOUR);
    let repo = "busybox".parse().unwrap();
    assert!(
        site.root
            .prune(&repo, "tidy", 0, HOUR)
            .unwrap()
            .removed
            .is_empty()
    );
    assert!(tree.exists());
}

/// Tags without end of one image.
fn many(site: &Site, count: usize) -> Contents {
    let mut many = contents(site, &[1]);
    let tag = many.tags[0].clone();
    many.tags.extend((0..count).map(|n| TagUnit {
        name: format!("v{n}").parse().unwrap(),
        ..tag.clone()
    }));
    Publication::new(many).unwrap().contents().clone()
}

#[test]
fn a_large_publication_has_a_spare_copy_that_the_next_change_takes() {
    let site = Site::new();
    let repo = "busybox".parse().unwrap();
    let spare = |attempt| site.root.prepare_spare(&repo, attempt, HOUR, &|| false).unwrap();
    site.publish(many(&site, 10));
    assert!(!spare("small"), "not worth it");
    let old = many(&site, 2_000);
    let first = site.publish(old.clone());
    site.root.prune(&repo, "tidy", 0, Duration::ZERO).unwrap();
    assert!(
        !site.root.prepare_spare(&repo, "1", HOUR, &|| true).unwrap(),
        "told to stop"
    );
    assert_eq!(trees(&site), [first.to_string()].into());
    assert!(spare("2"));
    assert_eq!(
        trees(&site),
        [first.to_string(), format!("{first}.spare-2")].into()
    );
    assert!(!spare("3"), "one is enough");
    // It stays when what is old goes.
    site.root.prune(&repo, "tidy", 1, HOUR).unwrap();
    assert_eq!(trees(&site).len(), 2);

    let mut new = old.clone();
    let moved = site.image("moved");
    new.blobs.extend(moved.blobs);
    new.manifests.extend(moved.manifests);
    let tag = new.tags.iter_mut().find(|t| t.name.as_str() == "v7").unwrap();
    tag.manifest_digest = moved.tags[0].manifest_digest.clone();
    let second = publish_change(&site, &old, &new, HOUR);
    assert_eq!(trees(&site), [first, second].map(|id| id.to_string()).into());
    let v2 = site.root.path().join("v2/web/busybox");
    let read = |tag: &str| fs::read(v2.join("manifests/2").join(tag)).unwrap();
    assert!(tag_digest(&new, "v7").matches(&read("v7")) && tag_digest(&old, "v8").matches(&read("v8")));
    // Readers of the first one are not disturbed.
    let before = site
        .root
        .path()
        .join(format!("v2/master/busybox/{first}/manifests/2/v7"));
    assert!(tag_digest(&old, "v7").matches(&fs::read(before).unwrap()));
}

#[test]
fn a_tree_that_is_being_removed_is_not_taken_for_the_next_change() {
    let site = Site::new();
    let repo = "busybox".parse().unwrap();
    let held = many(&site, 10_000);
    let first = site.publish(held.clone());
    assert!(site.root.prepare_spare(&repo, "1", HOUR, &|| false).unwrap());
    let v2 = site.root.path().join("v2");
    let spare = v2.join(format!("master/busybox/{first}.spare-1/manifests/2"));
    let links = |folder: &Path| fs::read_dir(folder).map_or(0, Iterator::count);
    let all = links(&spare);
    let base = site.root.published(&repo).unwrap().unwrap();
    let changed = Changed::new(base, change(&held, &held)).unwrap();
    std::thread::scope(|scope| {
        let prune = scope.spawn(|| site.root.prune(&repo, "tidy", 0, Duration::ZERO).unwrap());
        while links(&spare) == all {
            std::thread::yield_now();
        }
        let next = site
            .root
            .stage_change(changed, &PublicationId::new(), "2", Duration::ZERO);
        next.unwrap().switch().unwrap();
        prune.join().unwrap();
    });
    assert_eq!(links(&v2.join("web/busybox/manifests/2")), all);
    assert!(site.root.attempts(&repo).unwrap().is_empty());
}

#[test]
fn what_a_dead_attempt_was_removing_goes_with_the_rest_of_it() {
    let site = Site::new();
    let repo = "busybox".parse().unwrap();
    let [first, second] = ["a", "b"].map(|g| site.publish(site.image(g)));
    for api in ["master", "v2/master"] {
        let master = site.root.path().join(api).join("busybox");
        // As far as it gets before its first file goes.
        fs::rename(
            master.join(first.to_string()),
            master.join(format!(".{first}.dead-1.tmp")),
        )
        .unwrap();
    }
    assert_eq!(site.root.attempts(&repo).unwrap(), ["dead-1".to_owned()].into());
    site.root
        .remove_abandoned(&repo, |attempt| attempt == "dead-1")
        .unwrap();
    assert!(site.root.attempts(&repo).unwrap().is_empty());
    assert_eq!(trees(&site), [second.to_string()].into());
}

#[test]
fn a_repository_is_unpublished_also_while_a_spare_copy_is_made() {
    let site = Site::new();
    let repo = "busybox".parse().unwrap();
    site.publish(site.image("a"));
    let master = site.root.path().join("v2/master/busybox");
    let copy = master.join(".copy.tmp");
    fs::create_dir(&copy).unwrap();
    let begun = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0.. {
                if std::os::unix::fs::symlink("x", copy.join(n.to_string())).is_err() {
                    return;
                }
                if n == 2_000 {
                    begun.wait();
                }
            }
        });
        begun.wait();
        let removed = site.root.unpublish(&repo);
        // So that the other thread ends, whatever has become of this one.
        let _ = fs::rename(&copy, site.dir.path().join("away"));
        removed.unwrap();
    });
    assert!(!master.exists());
    assert_eq!(fs::read_dir(master.parent().unwrap()).unwrap().count(), 0);
}

fn tag_digest<'a>(contents: &'a Contents, tag: &str) -> &'a Digest {
    let tag = contents.tags.iter().find(|t| t.name.as_str() == tag);
    &tag.unwrap().manifest_digest
}

#[test]
fn a_change_given_up_leaves_the_publication_as_it_is_and_nothing_else() {
    let site = Site::new();
    let repo = "busybox".parse().unwrap();
    let all = [[1].as_slice(), &[1, 2], &[1, 2, 3]].map(|g| contents(&site, g));
    site.publish(all[0].clone());
    let second = publish_change(&site, &all[0], &all[1], HOUR);
    let before = read_all(site.root.path());
    let base = || site.root.published(&repo).unwrap().unwrap();
    let changed = || Changed::new(base(), change(&all[1], &all[2])).unwrap();
    // Within the old tree, which it takes: that is no publication any more.
    drop(
        site.root
            .stage_change(changed(), &PublicationId::new(), "1", Duration::ZERO)
            .unwrap(),
    );
    assert_eq!(trees(&site), [second.to_string()].into());
    // By a worker that dies: what it left goes once it is known to be dead.
    std::mem::forget(
        site.root
            .stage_change(changed(), &PublicationId::new(), "2", HOUR)
            .unwrap(),
    );
    assert_eq!(site.root.attempts(&repo).unwrap(), ["2".to_owned()].into());
    site.root
        .remove_abandoned(&repo, |attempt| attempt == "2")
        .unwrap();
    assert_eq!(trees(&site), [second.to_string()].into());
    assert_eq!(read_all(site.root.path()), before);
}

#[test]
fn a_tree_that_something_is_in_the_way_of_is_made_anew() {
    let site = Site::new();
    let all = [[1].as_slice(), &[1, 2], &[1, 2, 3]].map(|g| contents(&site, g));
    let first = site.publish(all[0].clone());
    publish_change(&site, &all[0], &all[1], HOUR);
    fs::write(
        site.root
            .path()
            .join(format!("v2/master/busybox/{first}/{INDEX_FILE}")),
        "not ours",
    )
    .unwrap();
    publish_change(&site, &all[1], &all[2], Duration::ZERO);
    let anew = Site::new();
    anew.publish(contents(&anew, &[1, 2, 3]));
    assert_eq!(read_all(site.root.path()), read_all(anew.root.path()));
}

#[test]
fn a_change_must_be_complete_with_what_there_is() {
    let site = Site::new();
    let repo = "busybox".parse().unwrap();
    let (old, mut new) = (contents(&site, &[1]), contents(&site, &[1, 2]));
    site.publish(old.clone());
    let layer = new
        .blobs
        .iter()
        .find(|b| !old.blobs.contains(b))
        .unwrap()
        .digest
        .clone();
    new.blobs.retain(|b| b.digest != layer);
    let absent = new.manifests.iter().find(|m| !old.manifests.contains(m)).unwrap();
    fs::remove_file(&absent.path).unwrap();
    let base = site.root.published(&repo).unwrap().unwrap();
    let PublicationError::Closure(error) = Changed::new(base, change(&old, &new)).unwrap_err() else {
        panic!("another error");
    };
    let manifest = absent.unit.digest.clone();
    assert_eq!(
        error.missing,
        [
            Missing::Blob {
                manifest: manifest.clone(),
                digest: layer
            },
            Missing::File {
                of: format!("manifest {manifest}"),
                path: absent.path.clone()
            }
        ]
    );
}

#[test]
fn the_publication_of_an_old_pulp_is_no_base() {
    let site = Site::new();
    let repo = "busybox".parse().unwrap();
    assert!(site.root.published(&repo).unwrap().is_none());
    let id = site.publish(contents(&site, &[1]));
    assert_eq!(site.root.published(&repo).unwrap().unwrap().id(), &id);
    fs::remove_file(site.root.path().join("v2/web/busybox").join(INDEX_FILE)).unwrap();
    assert!(site.root.published(&repo).unwrap().is_none());
}
