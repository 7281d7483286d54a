//! Which members of lists and indexes a sync takes, and which a repository then need not have: pure, as the plan is.
//!
//! A filter of platforms chooses members by what the list says of them, attestations with their image. A member that
//! is an index itself is taken, unless the list names a platform for it, and its own members are chosen likewise.

use std::collections::{BTreeSet, HashMap, HashSet};

use pulp_model::{
    Digest,
    platform::{Platforms, PlatformsMode},
    unit::ManifestListUnit,
};

/// Lists that refer to one another, and the filter that is asked about them.
pub(crate) struct Members<'a> {
    platforms: Option<&'a Platforms>,
    lists: HashMap<&'a Digest, &'a ManifestListUnit>,
    /// Each list after those that are members of it.
    order: Vec<&'a ManifestListUnit>,
}

/// The members of a list that are taken; without a filter all.
pub(crate) fn taken<'a>(platforms: Option<&Platforms>, list: &'a ManifestListUnit) -> BTreeSet<&'a Digest> {
    match platforms {
        Some(platforms) => platforms.filter.taken(list),
        None => list.manifests.iter().map(|m| &m.digest).collect(),
    }
}

impl<'a> Members<'a> {
    /// Of several lists of one digest the last one counts.
    pub(crate) fn of(
        platforms: Option<&'a Platforms>,
        lists: impl IntoIterator<Item = &'a ManifestListUnit>,
    ) -> Self {
        let lists: HashMap<_, _> = lists.into_iter().map(|list| (&list.digest, list)).collect();
        let order = members_first(&lists);
        Self {
            platforms,
            lists,
            order,
        }
    }

    /// All lists, each after those that are members of it.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = &'a ManifestListUnit> {
        self.order.iter().copied()
    }

    /// Whether one of the lists has this digest.
    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.lists.contains_key(digest)
    }

    pub(crate) fn taken(&self, list: &'a ManifestListUnit) -> BTreeSet<&'a Digest> {
        taken(self.platforms, list)
    }

    /// The lists of which something is left besides attestations. Of an empty one nothing was left out.
    pub(crate) fn of_use(&self) -> HashSet<&'a Digest> {
        let mut of_use: HashSet<&Digest> = HashSet::new();
        for list in &self.order {
            let taken = self.taken(list);
            let has_it = list.manifests.iter().any(|m| {
                let is_useful = !self.lists.contains_key(&m.digest) || of_use.contains(&m.digest);
                m.attests.is_none() && taken.contains(&m.digest) && is_useful
            });
            if has_it || list.manifests.is_empty() {
                of_use.insert(&list.digest);
            }
        }
        if self.platforms.is_none() {
            of_use.extend(self.lists.keys());
        }
        of_use
    }

    /// Of a repository's lists, those that are as a sync would leave them, all the way down, and of use. `present` are
    /// the manifests and lists that the repository has.
    pub(crate) fn complete(&self, present: &HashSet<&Digest>, remove_missing: bool) -> HashSet<&'a Digest> {
        let mut complete: HashSet<&Digest> = HashSet::new();
        for list in &self.order {
            let taken = self.taken(list);
            let absent = &list.selection.absent;
            let here = |digest: &Digest| {
                let settled = !self.lists.contains_key(digest) || complete.contains(digest);
                present.contains(digest) && settled && !absent.contains(digest)
            };
            let left_out = || {
                list.manifests
                    .iter()
                    .map(|m| &m.digest)
                    .filter(|d| !taken.contains(d))
            };
            let fits = match self.platforms.map(|p| p.mode) {
                None => true,
                Some(PlatformsMode::Sparse) => !remove_missing || left_out().all(|d| absent.contains(d)),
                Some(PlatformsMode::Rewrite) => left_out().next().is_none(),
            };
            if fits && taken.iter().all(|d| here(d)) {
                complete.insert(&list.digest);
            }
        }
        // Of no use by itself, one may be a member of another.
        let of_use = self.of_use();
        complete.retain(|d| of_use.contains(d));
        complete
    }
}

/// The members that a repository need not have of a list that it takes as it is: those left out. Unless
/// `remove_missing`, what the repository had to have of it until now, `before`, stays, as everything else does.
pub(crate) fn absent(
    platforms: Option<&Platforms>,
    list: &ManifestListUnit,
    before: Option<&ManifestListUnit>,
    present: &HashSet<&Digest>,
    remove_missing: bool,
) -> BTreeSet<Digest> {
    let taken = taken(platforms, list);
    let stays = |digest: &Digest| {
        !remove_missing
            && present.contains(digest)
            && before.is_some_and(|b| b.needed().any(|m| m.digest == *digest))
    };
    let left_out = list
        .manifests
        .iter()
        .map(|m| &m.digest)
        .filter(|d| !taken.contains(d));
    left_out.filter(|d| !stays(d)).cloned().collect()
}

/// Lists of lists may be any number deep, so this doesn't call itself.
fn members_first<'a>(lists: &HashMap<&'a Digest, &'a ManifestListUnit>) -> Vec<&'a ManifestListUnit> {
    let mut order = Vec::with_capacity(lists.len());
    let mut begun: HashSet<&Digest> = HashSet::new();
    let mut roots: Vec<&ManifestListUnit> = lists.values().copied().collect();
    roots.sort_by(|a, b| a.digest.cmp(&b.digest));
    for root in roots {
        let mut todo = vec![(root, false)];
        while let Some((list, members_done)) = todo.pop() {
            if members_done {
                order.push(list);
            } else if begun.insert(&list.digest) {
                todo.push((list, true));
                let members = list.manifests.iter().filter_map(|m| lists.get(&m.digest));
                todo.extend(members.map(|member| (*member, false)));
            }
        }
    }
    order
}

#[cfg(test)]
mod tests;
