//! What a sync will do: pure, so that it can be asked for alone and proven on any upstream.
//!
//! Three decisions follow one another, each on what the one before let us learn: which tags change; which blobs that
//! takes; and what goes from the repository afterwards.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use pulp_model::{
    Digest, RepositoryId, TagName,
    image::Manifest,
    unit::{ManifestKind, TagUnit, Unit},
};
use serde::Serialize;

/// What an upstream says of a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Upstream {
    /// It names this manifest.
    Digest(Digest),
    /// It is there, but which manifest it names is only found out by fetching that.
    Unknown,
    /// It is not there.
    Absent,
}

/// A repository as it is before the sync.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// The manifests that each tag names; several where an old sync kept several variants.
    pub(crate) tags: BTreeMap<TagName, BTreeSet<Digest>>,
    /// Manifests and lists, under every digest that an upstream may call them by.
    pub(crate) manifests: HashSet<Digest>,
}

/// What becomes of the tags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TagPlan {
    /// New ones with what they name, where that is known.
    pub(crate) added: BTreeMap<TagName, Option<Digest>>,
    /// Those that name something else than before, or may do so.
    pub(crate) moved: BTreeMap<TagName, Option<Digest>>,
    /// Those that name what they named.
    pub(crate) unchanged: BTreeSet<TagName>,
    /// Those that go.
    pub(crate) removed: BTreeSet<TagName>,
    /// Those that were asked for by name and are not there.
    pub(crate) absent: BTreeSet<TagName>,
    /// Manifests that the repository lacks and that tags name.
    pub(crate) manifests: BTreeSet<Digest>,
}

/// Decides about tags. `upstream` has what the filter takes, and of it only what was asked for.
pub(crate) fn plan_tags(
    upstream: &BTreeMap<TagName, Upstream>,
    held: &Held,
    remove_missing: bool,
) -> TagPlan {
    let mut plan = TagPlan::default();
    for (name, found) in upstream {
        let before = held.tags.get(name);
        let digest = match found {
            Upstream::Absent => {
                plan.absent.insert(name.clone());
                continue;
            }
            Upstream::Unknown => None,
            Upstream::Digest(digest) => {
                let complete = held.manifests.contains(digest);
                if complete && before.is_some_and(|b| b.len() == 1 && b.contains(digest)) {
                    plan.unchanged.insert(name.clone());
                    continue;
                }
                if !complete {
                    plan.manifests.insert(digest.clone());
                }
                Some(digest.clone())
            }
        };
        let changed = if before.is_some() {
            &mut plan.moved
        } else {
            &mut plan.added
        };
        changed.insert(name.clone(), digest);
    }
    if remove_missing {
        let there = |name: &TagName| upstream.get(name).is_some_and(|u| *u != Upstream::Absent);
        plan.removed = held.tags.keys().filter(|name| !there(name)).cloned().collect();
    }
    plan
}

/// A blob to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WantedBlob {
    /// Its digest.
    pub(crate) digest: Digest,
    /// Its size, where a manifest tells.
    pub(crate) size: Option<u64>,
}

/// The blobs that `manifests` need and that are not in `held`, biggest first: the longest download begins earliest.
/// Those whose size nobody tells come last; they are configs. Layers that no registry hands out are left out.
///
/// An error names a blob that has two sizes.
pub(crate) fn plan_blobs<'a>(
    manifests: impl IntoIterator<Item = &'a Manifest>,
    held: &HashSet<Digest>,
) -> Result<Vec<WantedBlob>, Digest> {
    let mut wanted: BTreeMap<&Digest, Option<u64>> = BTreeMap::new();
    for manifest in manifests {
        let Manifest::Image(image) = manifest else {
            continue;
        };
        let layers = image.fs_layers.iter().filter(|l| l.is_held());
        let layers = layers.map(|l| (&l.blob_sum, l.size));
        for (digest, size) in layers.chain(image.config_layer.iter().map(|d| (d, None))) {
            if held.contains(digest) {
                continue;
            }
            let known = wanted.entry(digest).or_insert(size);
            match (*known, size) {
                (Some(a), Some(b)) if a != b => return Err(digest.clone()),
                (None, Some(_)) => *known = size,
                _ => {}
            }
        }
    }
    let mut blobs: Vec<WantedBlob> = wanted
        .into_iter()
        .map(|(digest, size)| WantedBlob {
            digest: digest.clone(),
            size,
        })
        .collect();
    blobs.sort_by_key(|b| std::cmp::Reverse(b.size));
    Ok(blobs)
}

/// Members of lists that are not in `known` yet, each once.
pub(crate) fn unknown_members<'a>(
    manifests: impl IntoIterator<Item = &'a Manifest>,
    known: &HashSet<Digest>,
) -> BTreeSet<Digest> {
    let lists = manifests.into_iter().filter_map(|m| match m {
        Manifest::List(list) => Some(list),
        Manifest::Image(_) => None,
    });
    lists
        .flat_map(|list| list.manifests.iter().map(|m| &m.digest))
        .filter(|digest| !known.contains(*digest))
        .cloned()
        .collect()
}

/// A tag of `repo` that names a manifest.
pub(crate) fn tag_of(repo: &RepositoryId, name: &TagName, manifest: &Manifest) -> TagUnit {
    let (schema_version, manifest_type) = match manifest {
        Manifest::Image(m) => (m.schema_version, ManifestKind::Image),
        Manifest::List(l) => (l.schema_version, ManifestKind::List),
    };
    TagUnit {
        name: name.clone(),
        repo_id: repo.clone(),
        manifest_digest: manifest.digest().clone(),
        schema_version,
        manifest_type,
    }
}

/// What goes from a repository in mirror mode: the tags `gone`, those that `new` ones replace, and what only these
/// reach. Units that no tag ever reached (uploads without a tag, v1 images) stay.
pub(crate) fn what_goes(current: &[Unit], new: &[Unit], gone: &BTreeSet<TagName>) -> Vec<Unit> {
    let new_names: HashSet<&TagName> = new.iter().filter_map(as_tag).map(|t| &t.name).collect();
    let leaves = |tag: &TagUnit| gone.contains(&tag.name) || new_names.contains(&tag.name);
    let old_tags: Vec<&TagUnit> = current.iter().filter_map(as_tag).collect();
    let graph = Graph::new(current.iter().chain(new));
    let stay = old_tags.iter().copied().filter(|t| !leaves(t));
    let kept = graph.reach(
        stay.chain(new.iter().filter_map(as_tag))
            .map(|t| &t.manifest_digest),
    );
    let left = graph.reach(old_tags.iter().filter(|t| leaves(t)).map(|t| &t.manifest_digest));
    // What was never reached by a tag may still need what was.
    let unreached = graph.nodes().filter(|d| !kept.contains(d) && !left.contains(d));
    let unreached = graph.reach(unreached);
    let goes =
        |digest: &Digest| left.contains(digest) && !kept.contains(digest) && !unreached.contains(digest);
    current
        .iter()
        .filter(|unit| match unit {
            Unit::Tag(tag) => gone.contains(&tag.name) && !new_names.contains(&tag.name),
            Unit::Manifest(m) => goes(&m.digest),
            Unit::ManifestList(l) => goes(&l.digest),
            Unit::Blob(b) => goes(&b.digest),
            Unit::Image(_) => false,
        })
        .cloned()
        .collect()
}

fn as_tag(unit: &Unit) -> Option<&TagUnit> {
    match unit {
        Unit::Tag(tag) => Some(tag),
        _ => None,
    }
}

/// Which content refers to which.
struct Graph<'a> {
    edges: HashMap<&'a Digest, Vec<&'a Digest>>,
}

impl<'a> Graph<'a> {
    fn new(units: impl Iterator<Item = &'a Unit>) -> Self {
        let mut edges: HashMap<&Digest, Vec<&Digest>> = HashMap::new();
        for unit in units {
            match unit {
                Unit::Manifest(m) => {
                    edges.entry(&m.digest).or_default().extend(m.blobs());
                    // A referrer lives as long as its subject.
                    if let Some(subject) = &m.subject {
                        edges.entry(subject).or_default().push(&m.digest);
                    }
                }
                Unit::ManifestList(l) => {
                    let members = l.manifests.iter().map(|m| &m.digest);
                    edges.entry(&l.digest).or_default().extend(members);
                    if let Some(subject) = &l.subject {
                        edges.entry(subject).or_default().push(&l.digest);
                    }
                }
                _ => {}
            }
        }
        Self { edges }
    }

    fn nodes(&self) -> impl Iterator<Item = &'a Digest> {
        self.edges.keys().copied()
    }

    fn reach<'b>(&self, from: impl Iterator<Item = &'b Digest>) -> HashSet<&'b Digest>
    where
        'a: 'b,
    {
        let mut reached = HashSet::new();
        let mut todo: Vec<&'b Digest> = from.collect();
        while let Some(digest) = todo.pop() {
            if reached.insert(digest) {
                todo.extend(self.edges.get(digest).into_iter().flatten().copied());
            }
        }
        reached
    }
}

/// A plan as people and programs read it, and as it is kept with the task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct PlanReport {
    /// Tags that are new.
    pub(crate) tags_added: Vec<TagName>,
    /// Tags that name another manifest.
    pub(crate) tags_moved: Vec<TagName>,
    /// Tags that go.
    pub(crate) tags_removed: Vec<TagName>,
    /// Tags that the settings name and the upstream doesn't have.
    pub(crate) tags_absent: Vec<TagName>,
    /// How many tags stay as they are.
    pub(crate) tags_unchanged: usize,
    /// Manifests and lists that are new to the repository.
    pub(crate) manifests: usize,
    /// Of the manifests, those that refer to others: signatures and the like.
    pub(crate) referrers: usize,
    /// Of the manifests, those that had to be fetched: what a registry counts as pulls.
    pub(crate) upstream_pulls: u64,
    /// Blobs to fetch.
    pub(crate) blobs: usize,
    /// Their bytes, as far as manifests tell.
    pub(crate) bytes: u64,
    /// Blobs that are new to the repository and lie here already.
    pub(crate) blobs_reused: usize,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use pulp_model::{
        MediaType,
        unit::{BlobUnit, LayerRef, ListMember, ManifestListUnit, ManifestUnit, Selection},
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
            let gone: BTreeSet<TagName> = gone.iter().map(|t| name(t)).collect();
            let goes: BTreeSet<String> =
                what_goes(&current, &[], &gone).iter().map(Unit::identity).collect();
            let stays: Vec<&Unit> = current.iter().filter(|u| !goes.contains(&u.identity())).collect();
            let there: BTreeSet<String> = stays.iter().map(|u| u.identity()).collect();
            for unit in stays {
                match unit {
                    Unit::Tag(t) => {
                        prop_assert!(!gone.contains(&t.name));
                        prop_assert!(there.contains(&t.manifest_digest.to_string()));
                    }
                    Unit::ManifestList(l) => {
                        prop_assert!(l.manifests.iter().all(|m| there.contains(&m.digest.to_string())));
                    }
                    Unit::Manifest(m) => {
                        prop_assert!(m.blobs().all(|b| there.contains(&b.to_string())));
                    }
                    _ => {}
                }
            }
        }
    }
}
