//! What a sync will do: pure, so that it can be asked for alone and proven on any upstream.
//!
//! Three decisions follow one another, each on what the one before let us learn: which tags change; which blobs that
//! takes; and what goes from the repository afterwards.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use pulp_model::{
    Digest, RepositoryId, TagName,
    image::Manifest,
    platform::Platforms,
    unit::{ManifestKind, ManifestListUnit, TagUnit, Unit},
};
use serde::{Deserialize, Serialize};

use super::members::taken;

/// What an upstream says of a tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
    /// Those that have no image for the platforms wanted.
    pub(crate) skipped: BTreeSet<TagName>,
    /// Manifests that the repository lacks and that tags or the settings name.
    pub(crate) manifests: BTreeSet<Digest>,
    /// Manifests that the settings name by digest, and that are here or upstream.
    pub(crate) by_digest: BTreeSet<Digest>,
    /// Those that are at neither place.
    pub(crate) digests_absent: BTreeSet<Digest>,
}

impl TagPlan {
    /// Whether tags and manifests stay as they are.
    pub(crate) fn changes_nothing(&self) -> bool {
        self.added.is_empty() && self.moved.is_empty() && self.manifests.is_empty()
    }

    /// Leaves out tags that turn out to have nothing that is wanted: they are as if the filter didn't take them.
    pub(crate) fn skip(
        &mut self,
        tags: impl IntoIterator<Item = TagName>,
        held: &Held,
        remove_missing: bool,
    ) {
        for name in tags {
            self.added.remove(&name);
            self.moved.remove(&name);
            if remove_missing && held.tags.contains_key(&name) {
                self.removed.insert(name.clone());
            }
            self.skipped.insert(name);
        }
    }
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

/// Members of lists that are taken and not in `known` yet, each once.
pub(crate) fn unknown_members<'a>(
    manifests: impl IntoIterator<Item = &'a Manifest>,
    known: &HashSet<Digest>,
    platforms: Option<&Platforms>,
) -> BTreeSet<Digest> {
    let lists = manifests.into_iter().filter_map(|m| match m {
        Manifest::List(list) => Some(list),
        Manifest::Image(_) => None,
    });
    lists
        .flat_map(|list| taken(platforms, list))
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

/// What goes from a repository in mirror mode: the tags `gone`, those that `new` ones replace, the members that a list
/// needs no more, and what only these reach. Units that no tag ever reached (uploads without a tag, v1 images) stay.
pub(crate) fn what_goes(current: &[Unit], new: &[Unit], gone: &BTreeSet<TagName>) -> Vec<Unit> {
    let new_names: HashSet<&TagName> = new.iter().filter_map(as_tag).map(|t| &t.name).collect();
    let leaves = |tag: &TagUnit| gone.contains(&tag.name) || new_names.contains(&tag.name);
    let old_tags: Vec<&TagUnit> = current.iter().filter_map(as_tag).collect();
    let new_lists: HashSet<&Digest> = new.iter().filter_map(as_list).map(|l| &l.digest).collect();
    let is_renewed = |unit: &&Unit| as_list(unit).is_some_and(|l| new_lists.contains(&l.digest));
    let before = Graph::new(current.iter());
    let after = Graph::new(current.iter().filter(|unit| !is_renewed(unit)).chain(new));
    let stay = old_tags.iter().copied().filter(|t| !leaves(t));
    let kept = after.reach(
        stay.chain(new.iter().filter_map(as_tag))
            .map(|t| &t.manifest_digest)
            .chain(new.iter().filter_map(digest_of)),
    );
    let renewed = current.iter().filter(is_renewed).filter_map(digest_of);
    let left = before.reach(
        old_tags
            .iter()
            .filter(|t| leaves(t))
            .map(|t| &t.manifest_digest)
            .chain(renewed),
    );
    // What was never reached by a tag may still need what was.
    let unreached = after.nodes().filter(|d| !kept.contains(d) && !left.contains(d));
    let unreached = after.reach(unreached);
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

fn as_list(unit: &Unit) -> Option<&ManifestListUnit> {
    match unit {
        Unit::ManifestList(list) => Some(list),
        _ => None,
    }
}

/// The digest of content.
fn digest_of(unit: &Unit) -> Option<&Digest> {
    match unit {
        Unit::Manifest(m) => Some(&m.digest),
        Unit::ManifestList(l) => Some(&l.digest),
        Unit::Blob(b) => Some(&b.digest),
        Unit::Image(_) | Unit::Tag(_) => None,
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
                    let members = l.needed().map(|m| &m.digest);
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct PlanReport {
    /// Tags that are new.
    pub(crate) tags_added: Vec<TagName>,
    /// Tags that name another manifest.
    pub(crate) tags_moved: Vec<TagName>,
    /// Tags that go.
    pub(crate) tags_removed: Vec<TagName>,
    /// Tags that the settings name and the upstream doesn't have.
    pub(crate) tags_absent: Vec<TagName>,
    /// Manifests that the settings name by digest and the upstream doesn't have.
    pub(crate) manifests_absent: Vec<Digest>,
    /// Tags that have no image for the platforms that the settings name.
    pub(crate) tags_skipped: Vec<TagName>,
    /// How many tags stay as they are.
    pub(crate) tags_unchanged: usize,
    /// Manifests and lists that are new to the repository.
    pub(crate) manifests: usize,
    /// Members of lists and indexes that the platforms left out.
    pub(crate) members_left_out: usize,
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
    /// Images of version 1 to fetch; nothing tells their bytes beforehand.
    pub(crate) images: usize,
    /// Images of version 1 that changed tags need and that are here already.
    pub(crate) images_reused: usize,
}

impl PlanReport {
    /// The plan in a line, for those who look at a sync that runs.
    pub(crate) fn summary(&self) -> String {
        format!(
            "{} tags added, {} moved, {} removed, {} unchanged; to fetch: {} blobs, {} bytes",
            self.tags_added.len(),
            self.tags_moved.len(),
            self.tags_removed.len(),
            self.tags_unchanged,
            self.blobs,
            self.bytes,
        )
    }

    /// Puts what version 1 of the API brings to what version 2 does. A tag of both is told once.
    pub(crate) fn add(&mut self, v1: Self) {
        let both = |a: &mut Vec<TagName>, b: Vec<TagName>| {
            let all: BTreeSet<TagName> = a.drain(..).chain(b).collect();
            a.extend(all);
        };
        both(&mut self.tags_added, v1.tags_added);
        both(&mut self.tags_moved, v1.tags_moved);
        both(&mut self.tags_removed, v1.tags_removed);
        both(&mut self.tags_absent, v1.tags_absent);
        self.tags_moved.retain(|name| !self.tags_added.contains(name));
        self.tags_unchanged += v1.tags_unchanged;
        self.manifests += v1.manifests;
        self.images += v1.images;
        self.images_reused += v1.images_reused;
    }
}

#[cfg(test)]
mod tests;
