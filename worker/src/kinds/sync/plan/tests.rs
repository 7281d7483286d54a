#![allow(clippy::unwrap_used)]
use proptest::prelude::*;
use pulp_model::{
    MediaType,
    unit::{BlobUnit, LayerRef, ListMember, ManifestUnit, Selection},
};

use super::*;

fn name(text: &str) -> TagName {
    text.parse().unwrap()
}

fn digest(text: &str) -> Digest {
    Digest::sha256(text)
}

fn held(tags: &[(&str, &str)]) -> Held {
    let mut held = Held::default();
    for (tag, manifest) in tags {
        held.tags.entry(name(tag)).or_default().insert(digest(manifest));
        held.manifests.insert(digest(manifest));
    }
    held
}

fn at(tags: &[(&str, Option<&str>)]) -> BTreeMap<TagName, Upstream> {
    let state = |d: Option<&str>| d.map_or(Upstream::Absent, |d| Upstream::Digest(digest(d)));
    tags.iter().map(|(tag, d)| (name(tag), state(*d))).collect()
}

fn manifest(id: &str, layers: &[&str]) -> ManifestUnit {
    ManifestUnit {
        digest: digest(id),
        media_type: MediaType::OCI_MANIFEST,
        schema_version: 2,
        size: 1,
        config_layer: Some(digest(&format!("config of {id}"))),
        fs_layers: layers
            .iter()
            .map(|l| LayerRef {
                blob_sum: digest(l),
                size: Some(l.len() as u64),
                layer_type: Some(MediaType::OCI_LAYER_GZIP),
            })
            .collect(),
        subject: None,
        artifact_type: None,
        annotations: BTreeMap::new(),
    }
}

fn list(id: &str, members: &[&str]) -> ManifestListUnit {
    ManifestListUnit {
        digest: digest(id),
        media_type: MediaType::OCI_INDEX,
        schema_version: 2,
        size: 1,
        manifests: members
            .iter()
            .map(|m| ListMember {
                digest: digest(m),
                media_type: MediaType::OCI_MANIFEST,
                size: 1,
                os: None,
                arch: None,
                variant: None,
                attests: None,
            })
            .collect(),
        amd64_digest: None,
        amd64_schema_version: None,
        subject: None,
        artifact_type: None,
        annotations: BTreeMap::new(),
        selection: Selection::default(),
    }
}

fn tag(tag: &str, manifest: &str) -> Unit {
    Unit::Tag(TagUnit {
        name: name(tag),
        repo_id: "r".parse().unwrap(),
        manifest_digest: digest(manifest),
        schema_version: 2,
        manifest_type: ManifestKind::Image,
    })
}

fn blob(id: &str) -> Unit {
    Unit::Blob(BlobUnit {
        digest: digest(id),
        size: 1,
    })
}

#[test]
fn tags_are_added_moved_left_alone_or_removed() {
    let held = held(&[("same", "a"), ("moves", "a"), ("goes", "a")]);
    let upstream = at(&[
        ("same", Some("a")),
        ("moves", Some("b")),
        ("new", Some("a")),
        ("nowhere", None),
    ]);
    let plan = plan_tags(&upstream, &held, true);
    assert_eq!(plan.added, BTreeMap::from([(name("new"), Some(digest("a")))]));
    assert_eq!(plan.moved, BTreeMap::from([(name("moves"), Some(digest("b")))]));
    assert_eq!(plan.unchanged, BTreeSet::from([name("same")]));
    assert_eq!(plan.removed, BTreeSet::from([name("goes")]));
    assert_eq!(plan.absent, BTreeSet::from([name("nowhere")]));
    assert_eq!(plan.manifests, BTreeSet::from([digest("b")]));
    assert!(plan_tags(&upstream, &held, false).removed.is_empty());
}

#[test]
fn a_tag_whose_manifest_is_not_held_is_not_unchanged() {
    let mut held = held(&[("t", "a")]);
    held.manifests.clear();
    let plan = plan_tags(&at(&[("t", Some("a"))]), &held, false);
    assert!(plan.moved.contains_key(&name("t")) && plan.manifests.contains(&digest("a")));
}

#[test]
fn a_tag_with_several_variants_is_set_to_the_one_of_the_upstream() {
    let mut held = held(&[("t", "a")]);
    held.tags
        .get_mut(&name("t"))
        .unwrap()
        .insert(digest("old variant"));
    let plan = plan_tags(&at(&[("t", Some("a"))]), &held, false);
    assert!(plan.moved.contains_key(&name("t")));
}

#[test]
fn blobs_come_once_biggest_first_and_without_those_held_or_foreign() {
    let mut foreign = manifest("m1", &["aa", "bbbb"]);
    foreign.fs_layers.push(LayerRef {
        blob_sum: digest("windows"),
        size: Some(99),
        layer_type: Some(MediaType::DOCKER_FOREIGN_LAYER),
    });
    let manifests = [
        Manifest::Image(foreign),
        Manifest::Image(manifest("m2", &["aa", "ccc"])),
        Manifest::List(list("l", &["m1", "m2"])),
    ];
    let blobs = plan_blobs(&manifests, &HashSet::from([digest("ccc")])).unwrap();
    let sizes: Vec<_> = blobs.iter().map(|b| b.size).collect();
    assert_eq!(sizes, [Some(4), Some(2), None, None]);
    assert_eq!(blobs[0].digest, digest("bbbb"));
}

#[test]
fn a_blob_with_two_sizes_is_an_error() {
    let mut other = manifest("m2", &["aa"]);
    other.fs_layers[0].size = Some(7);
    let manifests = [Manifest::Image(manifest("m1", &["aa"])), Manifest::Image(other)];
    assert_eq!(plan_blobs(&manifests, &HashSet::new()), Err(digest("aa")));
}

#[test]
fn what_only_a_removed_tag_reached_goes_with_it() {
    let current = [
        tag("stays", "m1"),
        tag("goes", "l"),
        Unit::Manifest(manifest("m1", &["shared", "one"])),
        Unit::Manifest(manifest("m2", &["shared", "two"])),
        Unit::ManifestList(list("l", &["m1", "m2"])),
        Unit::Manifest(manifest("untagged", &["two"])),
        blob("shared"),
        blob("one"),
        blob("two"),
        blob("config of m2"),
    ];
    let gone = what_goes(&current, &[], &BTreeSet::from([name("goes")]));
    let identities: BTreeSet<String> = gone.iter().map(Unit::identity).collect();
    let expected = [
        tag("goes", "l").identity(),
        digest("l").to_string(),
        digest("m2").to_string(),
        digest("config of m2").to_string(),
    ];
    assert_eq!(identities, BTreeSet::from(expected));
}

#[test]
fn a_signature_goes_with_what_it_signs() {
    let mut signature = manifest("signature", &["payload"]);
    signature.subject = Some(digest("m"));
    let current = [
        tag("t", "m"),
        Unit::Manifest(manifest("m", &[])),
        Unit::Manifest(signature),
        blob("payload"),
    ];
    let gone = what_goes(&current, &[], &BTreeSet::from([name("t")]));
    assert_eq!(gone.len(), 4);
    assert!(what_goes(&current, &[], &BTreeSet::new()).is_empty());
}

#[test]
fn members_that_a_list_needs_no_more_go_with_what_only_they_need() {
    let mut narrower = list("l", &["m1", "m2", "m3"]);
    narrower.selection.absent = [digest("m2"), digest("m3")].into();
    let current = [
        tag("t", "l"),
        tag("other", "m3"),
        Unit::ManifestList(list("l", &["m1", "m2", "m3"])),
        Unit::Manifest(manifest("m1", &["shared"])),
        Unit::Manifest(manifest("m2", &["shared", "two"])),
        Unit::Manifest(manifest("m3", &["three"])),
        blob("shared"),
        blob("two"),
        blob("three"),
    ];
    let gone = what_goes(&current, &[Unit::ManifestList(narrower)], &BTreeSet::new());
    let identities: BTreeSet<String> = gone.iter().map(Unit::identity).collect();
    let expected = [digest("m2").to_string(), digest("two").to_string()];
    assert_eq!(identities, BTreeSet::from(expected));
}

#[test]
fn a_skipped_tag_is_as_if_the_filter_did_not_take_it() {
    let held = held(&[("held", "a")]);
    let upstream = at(&[("held", Some("b")), ("new", Some("c")), ("taken", Some("d"))]);
    for remove_missing in [false, true] {
        let mut plan = plan_tags(&upstream, &held, remove_missing);
        plan.skip([name("held"), name("new")], &held, remove_missing);
        assert_eq!(plan.added.keys().collect::<Vec<_>>(), [&name("taken")]);
        assert!(plan.moved.is_empty());
        assert_eq!(plan.skipped, BTreeSet::from([name("held"), name("new")]));
        assert_eq!(plan.removed.contains(&name("held")), remove_missing);
        assert!(!plan.removed.contains(&name("new")));
    }
}

proptest! {
    #[test]
    fn a_plan_leads_to_what_the_upstream_has(
        before in prop::collection::btree_map("[a-d]", "[m-p]", 0..5),
        upstream in prop::collection::btree_map("[a-d]", "[m-p]", 0..5),
        remove in any::<bool>(),
    ) {
        let held = held(&before.iter().map(|(t, d)| (t.as_str(), d.as_str())).collect::<Vec<_>>());
        let there: BTreeMap<_, _> =
            upstream.iter().map(|(t, d)| (name(t), Upstream::Digest(digest(d)))).collect();
        let plan = plan_tags(&there, &held, remove);
        let mut after: BTreeMap<TagName, Digest> =
            before.iter().map(|(t, d)| (name(t), digest(d))).collect();
        for (tag, d) in plan.added.iter().chain(&plan.moved) {
            after.insert(tag.clone(), d.clone().unwrap());
        }
        after.retain(|tag, _| !plan.removed.contains(tag));
        for (tag, d) in &upstream {
            prop_assert_eq!(after.get(&name(tag)), Some(&digest(d)));
        }
        if remove {
            prop_assert_eq!(after.len(), upstream.len());
        } else {
            prop_assert!(before.keys().all(|t| after.contains_key(&name(t))));
        }
        // Nothing is fetched that is held; a second sync has nothing to do.
        prop_assert!(plan.manifests.iter().all(|d| !held.manifests.contains(d)));
        let mut second = Held { manifests: held.manifests, ..Held::default() };
        for (tag, d) in after {
            second.manifests.insert(d.clone());
            second.tags.entry(tag).or_default().insert(d);
        }
        let again = plan_tags(&there, &second, remove);
        prop_assert!(again.added.is_empty() && again.moved.is_empty() && again.removed.is_empty());
        prop_assert!(again.manifests.is_empty());
    }

    #[test]
    fn what_stays_is_complete(
        tags in prop::collection::btree_map("[a-d]", 0usize..4, 0..5),
        members in prop::collection::vec(prop::collection::btree_set(0usize..4, 0..4), 4),
        gone in prop::collection::btree_set("[a-d]", 0..4),
        less in prop::collection::btree_map(0usize..4, prop::collection::btree_set(0usize..4, 0..4), 0..3),
    ) {
        // Four lists over four manifests, each of one layer; tags name lists.
        let mut current: Vec<Unit> = Vec::new();
        for (n, of) in members.iter().enumerate() {
            let ids: Vec<String> = of.iter().map(|m| format!("m{m}")).collect();
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            current.push(Unit::ManifestList(list(&format!("l{n}"), &ids)));
            current.push(Unit::Manifest(manifest(&format!("m{n}"), &[&format!("b{n}")])));
            current.push(blob(&format!("b{n}")));
            current.push(blob(&format!("config of m{n}")));
        }
        current.extend(tags.iter().map(|(t, l)| tag(t, &format!("l{l}"))));
        // Some of them need fewer members than before.
        let narrowed = |n: &usize, absent: &BTreeSet<usize>| {
            let Some(Unit::ManifestList(l)) = current.get(4 * n) else { unreachable!() };
            let mut l = l.clone();
            l.selection.absent = absent.iter().map(|m| digest(&format!("m{m}"))).collect();
            Unit::ManifestList(l)
        };
        let new: Vec<Unit> = less.iter().map(|(n, absent)| narrowed(n, absent)).collect();
        let gone: BTreeSet<TagName> = gone.iter().map(|t| name(t)).collect();
        let goes: BTreeSet<String> =
            what_goes(&current, &new, &gone).iter().map(Unit::identity).collect();
        let renewed: BTreeSet<String> = new.iter().map(Unit::identity).collect();
        let stays = current.iter().filter(|u| {
            !goes.contains(&u.identity()) && !renewed.contains(&u.identity())
        });
        let stays: Vec<&Unit> = stays.chain(&new).collect();
        let there: BTreeSet<String> = stays.iter().map(|u| u.identity()).collect();
        for unit in stays {
            match unit {
                Unit::Tag(t) => {
                    prop_assert!(!gone.contains(&t.name));
                    prop_assert!(there.contains(&t.manifest_digest.to_string()));
                }
                Unit::ManifestList(l) => {
                    prop_assert!(l.needed().all(|m| there.contains(&m.digest.to_string())));
                }
                Unit::Manifest(m) => {
                    prop_assert!(m.blobs().all(|b| there.contains(&b.to_string())));
                }
                _ => {}
            }
        }
    }
}
