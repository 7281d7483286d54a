//! Which manifest a client gets for a tag: pure decisions on its `Accept` headers.

use http::{HeaderMap, header};
use pulp_model::MediaType;
use pulp_publication::redirect::Variants;

use crate::data::{Folder, Held, Holdings, TagTargets};

/// What a client accepts. Weights only matter where they are 0; manifests are offered as stored, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accept {
    /// Anything: no header, or a wildcard.
    any: bool,
    list: bool,
    image: bool,
}

impl Accept {
    /// Reads all `Accept` headers; clients send one with many types, or many with one.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let (mut says, mut read) = (
            false,
            Self {
                any: false,
                list: false,
                image: false,
            },
        );
        let values = headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|v| v.to_str().ok());
        for name in values.flat_map(|v| v.split(',')).filter_map(accepted) {
            let is = |types: &[&str]| types.iter().any(|t| name.eq_ignore_ascii_case(t));
            says = true;
            read.any |= is(&["*/*", "application/*"]);
            read.list |= is(&[MediaType::DOCKER_LIST.as_str(), MediaType::OCI_INDEX.as_str()]);
            read.image |= is(&[
                MediaType::DOCKER_MANIFEST.as_str(),
                MediaType::OCI_MANIFEST.as_str(),
            ]);
        }
        read.any |= !says;
        read
    }

    /// Docker's and OCI's forms are one for this: a client that knows lists at all is given what is stored, as the
    /// OCI distribution specification has it.
    const fn takes_list(self) -> bool {
        self.any || self.list
    }

    const fn takes_image(self) -> bool {
        self.any || self.image
    }
}

/// The media type of a range, such as `a/b;q=0.5`; none if it has weight 0.
fn accepted(range: &str) -> Option<&str> {
    let mut parts = range.split(';').map(str::trim);
    let name = parts.next().filter(|n| !n.is_empty())?;
    let refused = parts.any(|p| {
        let weight = p.strip_prefix("q=").or_else(|| p.strip_prefix("Q="));
        weight
            .and_then(|w| w.parse::<f32>().ok())
            .is_some_and(|w| w <= 0.0)
    });
    (!refused).then_some(name)
}

/// The manifest for a tag, in the order of the original Crane: the list, the list's member for linux on amd64,
/// the image, schema 1. A client that accepts none of what is there gets what the tag names.
pub(crate) fn choose<'a>(
    accept: Accept,
    targets: TagTargets<'a>,
    holdings: &'a Holdings,
) -> Option<Held<'a>> {
    let TagTargets { schema1, image, list } = targets;
    if list.is_some() && accept.takes_list() {
        return list;
    }
    let amd64 = list.as_ref().and_then(|list| holdings.amd64(list));
    let amd64 = amd64.filter(|m| accept.takes_image() || m.folder() == Folder::Schema1);
    if amd64.is_some() {
        return amd64;
    }
    if accept.takes_image() {
        image.or(schema1).or(list)
    } else {
        schema1.or(image).or(list)
    }
}

/// Path of a manifest below the url of a repository of which only the redirect file of an old Pulp is known; the
/// original Crane's rules to the letter, since nothing tells what is really there. `variants` is none for version 2.
pub(crate) fn legacy_path(headers: &HeaderMap, variants: Option<&Variants>, reference: &str) -> String {
    let Some(variants) = variants else {
        return format!("manifests/{reference}");
    };
    let values: Vec<&str> = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .collect();
    let accepts = |media_type: MediaType| {
        let mut types = values.iter().flat_map(|v| v.split(','));
        types.any(|t| t.split(';').next().map(str::trim) == Some(media_type.as_str()))
    };
    let schema2 = accepts(MediaType::DOCKER_MANIFEST);
    if variants.schema2.is_empty() && variants.lists.is_empty() {
        return format!("manifests/1/{reference}");
    }
    if accepts(MediaType::DOCKER_LIST) && variants.lists.contains(reference) {
        return format!("manifests/list/{reference}");
    }
    match variants.amd64.get(reference) {
        Some((digest, version)) if schema2 => format!("manifests/{version}/{digest}"),
        Some((digest, 1)) => format!("manifests/1/{digest}"),
        None if schema2 && variants.schema2.contains(reference) => format!("manifests/2/{reference}"),
        Some(_) | None => format!("manifests/1/{reference}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    const S2: &str = "application/vnd.docker.distribution.manifest.v2+json";
    const OCI: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json";

    fn accept(values: &[&str]) -> HeaderMap {
        values
            .iter()
            .map(|v| (header::ACCEPT, v.parse().unwrap()))
            .collect()
    }

    /// What the original Crane answered, captured from a running copy with its own test data (`redhat/zoo`).
    #[test]
    fn an_old_publication_is_negotiated_as_the_original_does() {
        let variants = Variants {
            schema2: ["sha256:a", "1.25.1-musl"].map(String::from).into(),
            lists: ["bar", "latest", "sha256:3"].map(String::from).into(),
            amd64: [("bar", 2), ("latest", 1)]
                .map(|(t, n)| (t.to_owned(), ("sha256:c".to_owned(), n)))
                .into(),
        };
        let both = format!("{LIST};q=0.5, {S2};q=0.9");
        let upper = LIST.to_uppercase();
        let headers: [&[&str]; 8] = [
            &[],
            &["*/*"],
            &[S2],
            &[LIST],
            &[LIST, S2],
            &[OCI],
            &[&both],
            &[&upper],
        ];
        let expected = [
            (
                "latest",
                [
                    "1/sha256:c",
                    "1/sha256:c",
                    "1/sha256:c",
                    "list/latest",
                    "list/latest",
                    "1/sha256:c",
                    "list/latest",
                    "1/sha256:c",
                ],
            ),
            (
                "bar",
                [
                    "1/bar",
                    "1/bar",
                    "2/sha256:c",
                    "list/bar",
                    "list/bar",
                    "1/bar",
                    "list/bar",
                    "1/bar",
                ],
            ),
            (
                "1.25.1-musl",
                [
                    "1/1.25.1-musl",
                    "1/1.25.1-musl",
                    "2/1.25.1-musl",
                    "1/1.25.1-musl",
                    "2/1.25.1-musl",
                    "1/1.25.1-musl",
                    "2/1.25.1-musl",
                    "1/1.25.1-musl",
                ],
            ),
            (
                "sha256:a",
                [
                    "1/sha256:a",
                    "1/sha256:a",
                    "2/sha256:a",
                    "1/sha256:a",
                    "2/sha256:a",
                    "1/sha256:a",
                    "2/sha256:a",
                    "1/sha256:a",
                ],
            ),
            (
                "sha256:3",
                [
                    "1/sha256:3",
                    "1/sha256:3",
                    "1/sha256:3",
                    "list/sha256:3",
                    "list/sha256:3",
                    "1/sha256:3",
                    "list/sha256:3",
                    "1/sha256:3",
                ],
            ),
            ("unknown", ["1/unknown"; 8]),
        ];
        for (reference, paths) in expected {
            for (values, path) in headers.iter().zip(paths) {
                let got = legacy_path(&accept(values), Some(&variants), reference);
                assert_eq!(got, format!("manifests/{path}"), "{reference} {values:?}");
            }
        }
    }

    #[test]
    fn without_schema_2_and_lists_everything_is_schema_1() {
        let variants = Variants {
            schema2: BTreeSet::new(),
            lists: BTreeSet::new(),
            amd64: BTreeMap::from([("multi".into(), ("sha256:2".into(), 2))]),
        };
        assert_eq!(
            legacy_path(&accept(&[S2]), Some(&variants), "multi"),
            "manifests/1/multi"
        );
        assert_eq!(legacy_path(&accept(&[S2]), None, "multi"), "manifests/multi");
    }

    #[test]
    fn a_type_that_has_a_known_one_as_prefix_is_another_type() {
        let junk = format!("{LIST}junk");
        let read = Accept::of(&accept(&[&junk]));
        assert!(!read.takes_list() && !read.takes_image());
    }

    #[test]
    fn accept_is_read_from_all_headers_and_weight_zero_refuses() {
        let read = Accept::of(&accept(&[&format!("{LIST}; q=0"), S2]));
        assert!(!read.takes_list() && read.takes_image());
        assert!(Accept::of(&accept(&[])).takes_list());
        assert!(Accept::of(&accept(&[S2, "*/*"])).takes_list());
    }
}
