//! What a sync by version 1 will do: pure.

use std::collections::{BTreeMap, BTreeSet};

use pulp_model::{
    Digest, TagName,
    unit::{ImageId, ImageUnit, V1Tag},
};

/// A repository before the sync.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Its v1 tags.
    pub(super) tags: BTreeMap<TagName, ImageId>,
    /// Its v1 images.
    pub(super) images: BTreeMap<ImageId, ImageUnit>,
    /// Its tags of version 2: of those that name one image alone the layers, base first.
    pub(super) faces: BTreeMap<TagName, Option<Vec<Digest>>>,
}

/// What a sync is told.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// This image and its ancestors are left out.
    pub(super) mask: Option<ImageId>,
    /// Whether tags go that the upstream has no more.
    pub(super) remove_missing: bool,
    /// Tags that version 2 of the upstream's API has as well: what they name comes from there.
    pub(super) other_face: BTreeSet<TagName>,
}

/// What becomes of the tags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) added: BTreeMap<TagName, ImageId>,
    /// Those that name another image than before, or whose image is not whole here in both its faces.
    pub(super) moved: BTreeMap<TagName, ImageId>,
    pub(super) unchanged: BTreeSet<TagName>,
    pub(super) removed: BTreeSet<TagName>,
    pub(super) absent: BTreeSet<TagName>,
}

impl Plan {
    /// Tags whose images are to be looked at.
    pub(super) fn changed(&self) -> impl Iterator<Item = (&TagName, &ImageId)> {
        self.added.iter().chain(&self.moved)
    }
}

/// Decides about tags. `upstream` has what the filter takes; of a tag that was asked for and is not there it has none.
pub(super) fn plan_tags(upstream: &BTreeMap<TagName, Option<ImageId>>, held: &Held, rules: &Rules) -> Plan {
    let mut plan = Plan::default();
    for (name, id) in upstream {
        let Some(id) = id else {
            plan.absent.insert(name.clone());
            continue;
        };
        match held.tags.get(name) {
            Some(before) if before == id && is_whole(name, id, held, rules) => {
                plan.unchanged.insert(name.clone());
            }
            Some(_) => drop(plan.moved.insert(name.clone(), id.clone())),
            None => drop(plan.added.insert(name.clone(), id.clone())),
        }
    }
    if rules.remove_missing {
        let there = |name: &TagName| upstream.get(name).is_some_and(Option::is_some);
        plan.removed = held.tags.keys().filter(|name| !there(name)).cloned().collect();
    }
    plan
}

/// Whether a tag's image is held with its ancestors, and the tag of version 2 names the same layers.
fn is_whole(name: &TagName, id: &ImageId, held: &Held, rules: &Rules) -> bool {
    let Some((line, is_cut)) = line_of(held, id, rules.mask.as_ref()) else {
        return false;
    };
    if is_cut || rules.other_face.contains(name) {
        return true;
    }
    let layers = line.iter().rev().map(|image| &image.layer_digest);
    match held.faces.get(name) {
        Some(Some(face)) => layers.eq(face),
        _ => false,
    }
}

/// An image and its ancestors as they are held, child first, and whether the mask cuts the line; none if one is missing.
fn line_of<'a>(
    held: &'a Held,
    id: &'a ImageId,
    mask: Option<&ImageId>,
) -> Option<(Vec<&'a ImageUnit>, bool)> {
    let mut line: Vec<&ImageUnit> = Vec::new();
    let mut at = Some(id);
    while let Some(id) = at {
        if mask == Some(id) {
            return Some((line, true));
        }
        let image = held.images.get(id)?;
        if line.len() > held.images.len() {
            return None;
        }
        line.push(image);
        at = image.parent_id.as_ref();
    }
    Some((line, false))
}

/// An image with its ancestors, as the upstream tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Child first.
    pub(super) ids: Vec<ImageId>,
    /// How many of them are taken; the mask takes the rest away.
    pub(super) taken: usize,
}

impl Line {
    pub(super) fn new(ids: Vec<ImageId>, mask: Option<&ImageId>) -> Self {
        let masked = ids.iter().position(|id| Some(id) == mask);
        Self {
            taken: masked.unwrap_or(ids.len()),
            ids,
        }
    }

    /// Whether all of it is taken, as a manifest needs it.
    pub(super) fn is_whole(&self) -> bool {
        self.taken == self.ids.len()
    }

    pub(super) fn taken(&self) -> &[ImageId] {
        self.ids.get(..self.taken).unwrap_or(&self.ids)
    }

    /// That each image taken is built on the next one, by what the images say themselves.
    pub(super) fn check(&self, images: &BTreeMap<ImageId, ImageUnit>) -> Result<(), String> {
        let mut parents = self.ids.iter().skip(1);
        for id in self.taken() {
            let next = parents.next();
            let Some(image) = images.get(id) else {
                return Err(format!("image {id} is missing"));
            };
            if image.parent_id.as_ref() != next {
                let or_none =
                    |id: Option<&ImageId>| id.map_or_else(|| "none".to_owned(), ToString::to_string);
                return Err(format!(
                    "image {id} says that its parent is {}, but its ancestry says {}",
                    or_none(image.parent_id.as_ref()),
                    or_none(next)
                ));
            }
        }
        Ok(())
    }

    /// The ancestry of each image taken, child first.
    pub(super) fn ancestries(&self) -> impl Iterator<Item = (&ImageId, &[ImageId])> {
        let of = |(n, id)| (id, self.ids.get(n..).unwrap_or_default());
        self.taken().iter().enumerate().map(of)
    }
}

/// The images that go in mirror mode: those of tags that go or move, with their ancestors, unless a tag that stays, or
/// an image that no tag ever reached, still needs them.
pub(super) fn what_goes(
    images: &BTreeMap<ImageId, ImageUnit>,
    before: &[V1Tag],
    after: &[V1Tag],
) -> Vec<ImageUnit> {
    let reach = |heads: Vec<&ImageId>| {
        let mut reached: BTreeSet<ImageId> = BTreeSet::new();
        for head in heads {
            let mut at = Some(head);
            while let Some(id) = at.filter(|id| reached.insert((*id).clone())) {
                at = images.get(id).and_then(|image| image.parent_id.as_ref());
            }
        }
        reached
    };
    let kept = reach(after.iter().map(|t| &t.image_id).collect());
    let left = reach(before.iter().map(|t| &t.image_id).collect());
    let unreached = images
        .keys()
        .filter(|id| !kept.contains(*id) && !left.contains(*id));
    let unreached = reach(unreached.collect());
    let goes = |id: &ImageId| left.contains(id) && !kept.contains(id) && !unreached.contains(id);
    images
        .iter()
        .filter(|(id, _)| goes(id))
        .map(|(_, image)| image.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn id(n: usize) -> ImageId {
        format!("{n:064x}").parse().unwrap()
    }

    fn name(text: &str) -> TagName {
        text.parse().unwrap()
    }

    fn layer(n: usize) -> Digest {
        Digest::sha256(format!("layer {n}"))
    }

    fn image(n: usize, parent: Option<usize>) -> (ImageId, ImageUnit) {
        let unit = ImageUnit {
            image_id: id(n),
            parent_id: parent.map(id),
            size: None,
            json_digest: Digest::sha256("json"),
            ancestry_digest: Digest::sha256("ancestry"),
            layer_digest: layer(n),
            layer_size: 1,
        };
        (id(n), unit)
    }

    /// Image 2 upon 1 upon 0, tagged `t`, in both faces.
    fn held() -> Held {
        Held {
            tags: BTreeMap::from([(name("t"), id(2))]),
            images: BTreeMap::from([image(0, None), image(1, Some(0)), image(2, Some(1))]),
            faces: BTreeMap::from([(name("t"), Some(vec![layer(0), layer(1), layer(2)]))]),
        }
    }

    fn at(tags: &[(&str, Option<usize>)]) -> BTreeMap<TagName, Option<ImageId>> {
        tags.iter().map(|(tag, n)| (name(tag), n.map(id))).collect()
    }

    #[test]
    fn tags_are_added_moved_left_alone_or_removed() {
        let rules = Rules {
            remove_missing: true,
            ..Rules::default()
        };
        let mut held = held();
        held.tags.insert(name("goes"), id(0));
        held.tags.insert(name("moves"), id(0));
        let there = at(&[
            ("t", Some(2)),
            ("moves", Some(1)),
            ("new", Some(7)),
            ("nowhere", None),
        ]);
        let plan = plan_tags(&there, &held, &rules);
        assert_eq!(plan.unchanged, BTreeSet::from([name("t")]));
        assert_eq!(plan.moved, BTreeMap::from([(name("moves"), id(1))]));
        assert_eq!(plan.added, BTreeMap::from([(name("new"), id(7))]));
        assert_eq!(plan.removed, BTreeSet::from([name("goes")]));
        assert_eq!(plan.absent, BTreeSet::from([name("nowhere")]));
        assert!(plan_tags(&there, &held, &Rules::default()).removed.is_empty());
    }

    #[test]
    fn a_tag_whose_image_or_other_face_is_not_whole_is_looked_at_again() {
        let there = at(&[("t", Some(2))]);
        let is_unchanged = |held: &Held, rules: &Rules| plan_tags(&there, held, rules).moved.is_empty();
        assert!(is_unchanged(&held(), &Rules::default()));
        let mut lacks_ancestor = held();
        lacks_ancestor.images.remove(&id(0));
        assert!(!is_unchanged(&lacks_ancestor, &Rules::default()));
        let mask = Rules {
            mask: Some(id(0)),
            ..Rules::default()
        };
        assert!(is_unchanged(&lacks_ancestor, &mask), "the mask takes it away");
        for face in [None, Some(None), Some(Some(vec![layer(2)]))] {
            let mut other = held();
            other.faces.clear();
            other.faces.extend(face.map(|face| (name("t"), face)));
            assert!(!is_unchanged(&other, &Rules::default()));
            let both = Rules {
                other_face: BTreeSet::from([name("t")]),
                ..Rules::default()
            };
            assert!(is_unchanged(&other, &both), "version 2 brings it");
        }
    }

    #[test]
    fn a_circle_of_parents_that_was_stored_is_no_line() {
        let images = BTreeMap::from([image(0, Some(1)), image(1, Some(0))]);
        let held = Held {
            images,
            ..Held::default()
        };
        assert!(line_of(&held, &id(0), None).is_none());
        let tag = V1Tag {
            tag: name("t"),
            image_id: id(0),
        };
        assert_eq!(what_goes(&held.images, &[tag], &[]).len(), 2);
    }

    #[test]
    fn a_line_is_what_its_images_say() {
        let line = Line::new(vec![id(2), id(1), id(0)], None);
        let images = held().images;
        assert_eq!(line.check(&images), Ok(()));
        assert!(Line::new(vec![id(2), id(0)], None).check(&images).is_err());
        assert!(
            Line::new(vec![id(2), id(1)], None).check(&images).is_err(),
            "it ends too early"
        );
        assert!(
            Line::new(vec![id(2), id(1), id(0), id(7)], None)
                .check(&images)
                .is_err()
        );
        let masked = Line::new(vec![id(2), id(1), id(0)], Some(&id(1)));
        assert_eq!((masked.taken(), masked.is_whole()), (&[id(2)][..], false));
        assert_eq!(masked.check(&images), Ok(()));
        let ancestries: Vec<_> = masked.ancestries().collect();
        assert_eq!(
            ancestries,
            [(&id(2), &[id(2), id(1), id(0)][..])],
            "it lists what is masked"
        );
    }

    proptest! {
        #[test]
        fn what_stays_is_whole(
            parents in prop::collection::vec(prop::option::of(0usize..8), 8),
            before in prop::collection::vec(0usize..8, 0..4),
            after in prop::collection::vec(0usize..8, 0..4),
        ) {
            // A parent has a lower number, so that there is no circle.
            let images: BTreeMap<_, _> =
                parents.iter().enumerate().map(|(n, p)| image(n, p.filter(|p| *p < n))).collect();
            let tags = |heads: &[usize]| -> Vec<V1Tag> {
                let tag = |(n, head): (usize, &usize)| V1Tag { tag: name(&format!("t{n}")), image_id: id(*head) };
                heads.iter().enumerate().map(tag).collect()
            };
            let goes: BTreeSet<ImageId> =
                what_goes(&images, &tags(&before), &tags(&after)).into_iter().map(|i| i.image_id).collect();
            for head in &after {
                prop_assert!(!goes.contains(&id(*head)));
            }
            for (one, image) in &images {
                if let Some(parent) = &image.parent_id && !goes.contains(one) {
                    prop_assert!(!goes.contains(parent));
                }
            }
            if before == after {
                prop_assert!(goes.is_empty());
            }
        }
    }
}
