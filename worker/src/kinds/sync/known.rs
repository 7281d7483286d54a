//! What an upstream need not tell again: pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pulp_model::{Digest, TagName};

/// Tags with the digest by which the upstream called what each names here; none for those that are new or name
/// several. `called` has the manifests' digests, each after the one that the upstream has for it.
pub(super) fn as_named_before<'a>(
    tags: BTreeSet<TagName>,
    named: &BTreeMap<TagName, BTreeSet<Digest>>,
    called: impl Iterator<Item = (&'a Digest, &'a Digest)>,
) -> BTreeMap<TagName, Option<Digest>> {
    let otherwise: HashMap<&Digest, &Digest> = called
        .filter(|(called, digest)| called != digest)
        .map(|(called, digest)| (digest, called))
        .collect();
    let before = |tag: &TagName| {
        let mut digests = named.get(tag)?.iter();
        let digest = digests.next().filter(|_| digests.next().is_none())?;
        Some((*otherwise.get(digest).unwrap_or(&digest)).clone())
    };
    let with_before = |tag: TagName| {
        let before = before(&tag);
        (tag, before)
    };
    tags.into_iter().map(with_before).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_tag_is_known_by_the_digest_that_the_upstream_has_for_it() {
        let name = |text: &str| -> TagName { text.parse().unwrap() };
        let digest = |text: &str| Digest::sha256(text);
        let named = BTreeMap::from([
            (name("plain"), BTreeSet::from([digest("a")])),
            (name("signed"), BTreeSet::from([digest("kept")])),
            (name("several"), BTreeSet::from([digest("a"), digest("kept")])),
        ]);
        let (a, kept, signed) = (digest("a"), digest("kept"), digest("signed part"));
        let called = [(&a, &a), (&kept, &kept), (&signed, &kept)];
        let tags = ["plain", "signed", "several", "new"].map(name).into();
        let expected = BTreeMap::from([
            (name("plain"), Some(digest("a"))),
            (name("signed"), Some(digest("signed part"))),
            (name("several"), None),
            (name("new"), None),
        ]);
        assert_eq!(as_named_before(tags, &named, called.into_iter()), expected);
    }
}
