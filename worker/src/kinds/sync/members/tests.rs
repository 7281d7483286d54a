#![allow(clippy::unwrap_used)]
use proptest::prelude::*;
use pulp_model::{image::Manifest, importer::importer_settings};
use serde_json::json;

use super::*;

/// The digest of what is called so.
fn digest(name: &str) -> Digest {
    Digest::sha256(name)
}

/// A list called `name`; each member by its name and its platform, none for a list.
fn list(name: &str, members: &[(&str, Option<&str>)]) -> ManifestListUnit {
    let members: Vec<_> = members
        .iter()
        .map(|(name, platform)| {
            let mut member = json!({"digest": digest(name), "size": 1,
                "mediaType": "application/vnd.oci.image.manifest.v1+json"});
            if let Some((os, architecture)) = platform.and_then(|p| p.split_once('/')) {
                member["platform"] = json!({"os": os, "architecture": architecture});
            }
            member
        })
        .collect();
    let text = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": members});
    match Manifest::parse(text.to_string().as_bytes(), None).unwrap() {
        Manifest::List(list) => ManifestListUnit {
            digest: digest(name),
            ..list
        },
        Manifest::Image(_) => unreachable!(),
    }
}

fn platforms(list: &[&str], mode: &str) -> Option<Platforms> {
    let config = json!({"platforms": list, "platforms_mode": mode});
    importer_settings(config.as_object().unwrap()).unwrap().platforms
}

const AMD64: Option<&str> = Some("linux/amd64");
const ARM64: Option<&str> = Some("linux/arm64");

fn names(list: &BTreeSet<Digest>, of: &[&str]) -> bool {
    *list == of.iter().map(|n| digest(n)).collect()
}

#[test]
fn a_sparse_list_lacks_what_the_filter_left_out_and_nothing_else() {
    let list = list("l", &[("a", AMD64), ("b", ARM64), ("artifact", None)]);
    let filter = platforms(&["linux/amd64"], "sparse");
    let lacked = |before: Option<&ManifestListUnit>, present: &[&Digest], remove_missing| {
        let present = present.iter().copied().collect();
        absent(filter.as_ref(), &list, before, &present, remove_missing)
    };
    assert!(names(&lacked(None, &[], false), &["b"]));
    // What was required and is here stays so, unless the repository is a mirror.
    let b = digest("b");
    assert!(names(&lacked(Some(&list), &[&b], false), &[]));
    assert!(names(&lacked(Some(&list), &[], false), &["b"]));
    assert!(names(&lacked(Some(&list), &[&b], true), &["b"]));
    // One that is here by another way is not required for that.
    let mut sparse = list.clone();
    sparse.selection.absent = [b.clone()].into();
    assert!(names(&lacked(Some(&sparse), &[&b], false), &["b"]));
    assert!(absent(None, &list, Some(&sparse), &HashSet::new(), false).is_empty());
}

#[test]
fn a_list_of_which_nothing_is_left_is_of_no_use() {
    let lists = [
        list("amd64", &[("a", AMD64), ("b", ARM64)]),
        list("arm64", &[("b", ARM64)]),
        list("empty", &[]),
        list("around arm64", &[("arm64", None)]),
        list("around both", &[("amd64", None), ("arm64", None)]),
        list("amd64 by its own word", &[("amd64", ARM64)]),
    ];
    let filter = platforms(&["linux/amd64"], "sparse");
    let members = Members::of(filter.as_ref(), &lists);
    let expected = ["amd64", "empty", "around both"].map(digest);
    assert_eq!(members.of_use(), expected.iter().collect());
    assert_eq!(Members::of(None, &lists).of_use().len(), lists.len());
}

#[test]
fn what_the_filter_or_its_mode_would_change_is_not_complete() {
    let whole = list("l", &[("a", AMD64), ("b", ARM64)]);
    let mut sparse = whole.clone();
    sparse.selection.absent = [digest("b")].into();
    let digests = ["l", "a", "b"].map(digest);
    let present: HashSet<&Digest> = digests.iter().collect();
    let is_complete = |list: &ManifestListUnit, filter: &[&str], mode, remove_missing| {
        let filter = if filter.is_empty() {
            None
        } else {
            platforms(filter, mode)
        };
        let members = Members::of(filter.as_ref(), [list]);
        members.complete(&present, remove_missing).contains(&list.digest)
    };
    let (amd64, both) = (&["linux/amd64"][..], &["linux/amd64", "linux/arm64"][..]);
    assert!(is_complete(&whole, &[], "", false) && !is_complete(&sparse, &[], "", false));
    assert!(is_complete(&sparse, amd64, "sparse", true) && !is_complete(&sparse, both, "sparse", true));
    // More than is wanted is left alone, but not in a mirror.
    assert!(is_complete(&whole, amd64, "sparse", false) && !is_complete(&whole, amd64, "sparse", true));
    assert!(!is_complete(&whole, amd64, "rewrite", false) && is_complete(&whole, both, "rewrite", false));
    assert!(!is_complete(&sparse, amd64, "rewrite", false));
    assert!(
        !is_complete(&whole, &["linux/s390x"], "sparse", false),
        "it is to be skipped"
    );
}

#[test]
fn a_list_without_a_member_that_it_needs_is_not_complete() {
    let lists = [
        list("l", &[("a", AMD64), ("b", ARM64)]),
        list("around", &[("l", None)]),
    ];
    let complete = |present: &[&str]| {
        let present: Vec<Digest> = present.iter().map(|n| digest(n)).collect();
        let members = Members::of(None, &lists);
        members.complete(&present.iter().collect(), false).len()
    };
    assert_eq!(complete(&["l", "around", "a", "b"]), 2);
    assert_eq!(complete(&["l", "around", "a"]), 0, "nor is what refers to it");
    assert_eq!(complete(&["around", "a", "b"]), 1);
}

#[test]
fn lists_may_be_nested_twenty_thousand_deep() {
    let mut lists = vec![list("0", &[("a", AMD64)])];
    for n in 1..20_000 {
        let inner = (n - 1).to_string();
        lists.push(list(&n.to_string(), &[(&inner, None)]));
    }
    let filter = platforms(&["linux/amd64"], "sparse");
    assert_eq!(Members::of(filter.as_ref(), &lists).of_use().len(), lists.len());
}

const PLATFORMS: [&str; 3] = ["linux/amd64", "linux/arm64", "linux/s390x"];

prop_compose! {
    /// Lists `l0…` whose members are images `i0…`, each for a platform of its own, and lists before them.
    fn world()(members in prop::collection::vec(prop::collection::btree_set(0usize..9, 0..5), 1..5))
        -> Vec<ManifestListUnit>
    {
        members.iter().enumerate().map(|(n, of)| {
            let name = |m: usize| if m < 6 { format!("i{m}") } else { format!("l{}", m - 6) };
            let of: Vec<_> = of.iter().filter(|m| **m < n + 6).map(|m| (name(*m), *m)).collect();
            let of: Vec<_> = of
                .iter()
                .map(|(name, m)| (name.as_str(), (*m < 6).then(|| PLATFORMS[m % 3])))
                .collect();
            list(&format!("l{n}"), &of)
        }).collect()
    }
}

fn filter() -> impl Strategy<Value = Option<Platforms>> {
    prop::option::of(prop::collection::btree_set(0usize..3, 1..3)).prop_map(|of| {
        let of: Vec<&str> = of?.into_iter().map(|n| PLATFORMS[n]).collect();
        platforms(&of, "sparse")
    })
}

/// A repository, and a sync of all lists: what it takes comes, and lists are told what they may lack.
#[derive(Default)]
struct Repository {
    lists: HashMap<Digest, ManifestListUnit>,
    present: HashSet<Digest>,
}

impl Repository {
    fn complete(&self, filter: Option<&Platforms>, remove_missing: bool) -> HashSet<Digest> {
        let members = Members::of(filter, self.lists.values());
        let present = self.present.iter().collect();
        members
            .complete(&present, remove_missing)
            .into_iter()
            .cloned()
            .collect()
    }

    fn sync(&mut self, upstream: &[ManifestListUnit], filter: Option<&Platforms>, remove_missing: bool) {
        let complete = self.complete(filter, remove_missing);
        let of_use = Members::of(filter, upstream).of_use();
        let mut todo: Vec<&Digest> = of_use.into_iter().collect();
        let mut renewed: HashMap<&Digest, ManifestListUnit> = HashMap::new();
        while let Some(digest) = todo.pop() {
            let Some(list) = upstream.iter().find(|l| l.digest == *digest) else {
                continue;
            };
            if complete.contains(digest) || renewed.contains_key(digest) {
                continue;
            }
            let mut new = list.clone();
            let present = self.present.iter().collect();
            let before = self.lists.get(digest);
            new.selection.absent = absent(filter, list, before, &present, remove_missing);
            renewed.insert(digest, new);
            todo.extend(taken(filter, list));
        }
        for (digest, list) in renewed {
            self.present.insert(digest.clone());
            self.present.extend(taken(filter, &list).into_iter().cloned());
            self.lists.insert(digest.clone(), list);
        }
    }
}

proptest! {
    #[test]
    fn after_each_sync_all_that_lists_need_is_there_and_nothing_is_left_to_do(
        upstream in world(),
        filters in prop::collection::vec((filter(), any::<bool>()), 1..4),
    ) {
        let mut repository = Repository::default();
        for (filter, remove_missing) in &filters {
            let before = repository.lists.clone();
            repository.sync(&upstream, filter.as_ref(), *remove_missing);
            let of_use = Members::of(filter.as_ref(), &upstream).of_use().len();
            for list in repository.lists.values() {
                for member in list.needed() {
                    prop_assert!(repository.present.contains(&member.digest));
                }
                let left_out = |d: &Digest| !taken(filter.as_ref(), list).contains(d);
                let lacked = |d: &Digest| before.get(&list.digest).is_some_and(|b| b.selection.absent.contains(d));
                // Nothing is let go that is wanted now, or was not left out by this filter or one before.
                prop_assert!(list.selection.absent.iter().all(|d| left_out(d) || lacked(d)));
            }
            let complete = repository.complete(filter.as_ref(), *remove_missing);
            prop_assert!(complete.len() >= of_use, "{} of {of_use}", complete.len());
        }
    }

    #[test]
    fn members_stand_before_what_refers_to_them(upstream in world()) {
        let mut seen = HashSet::new();
        for list in Members::of(None, &upstream).in_order() {
            let nested = list.manifests.iter().filter(|m| upstream.iter().any(|l| l.digest == m.digest));
            for member in nested {
                prop_assert!(seen.contains(&member.digest));
            }
            seen.insert(list.digest.clone());
        }
        prop_assert_eq!(seen.len(), upstream.len());
    }
}
