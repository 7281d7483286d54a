//! Repository names and tags as archives carry them.

use std::collections::BTreeMap;

use pulp_model::TagName;

use crate::{ArchiveError, Rejection};

/// The repositories that an archive names. Their names serve only to tell that they are one: where an
/// image ends up is the importing repository's choice.
#[derive(Debug, Default)]
pub(crate) struct Repositories(BTreeMap<String, String>);

impl Repositories {
    pub(crate) fn add(&mut self, name: &str) {
        self.0
            .entry(familiar(name).to_owned())
            .or_insert_with(|| name.to_owned());
    }

    /// Takes `[registry/]repository[:tag][@digest]` in and gives the tag; `latest` if it names neither tag nor
    /// digest, as image tools take it.
    pub(crate) fn add_reference(&mut self, reference: &str) -> Result<Option<TagName>, ArchiveError> {
        let (named, digest) = match reference.split_once('@') {
            Some((named, digest)) => (named, Some(digest)),
            None => (reference, None),
        };
        let (repository, tag) = match named.rsplit_once(':') {
            // A colon before a slash is that of a port.
            Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
            _ => (named, None),
        };
        self.add(repository);
        match (tag, digest) {
            (Some(name), _) => tag_name(name).map(Some),
            (None, Some(_)) => Ok(None),
            (None, None) => tag_name("latest").map(Some),
        }
    }

    /// Takes an OCI layout's `org.opencontainers.image.ref.name` in: a bare tag, or a whole reference.
    pub(crate) fn add_ref_name(&mut self, name: &str) -> Result<Option<TagName>, ArchiveError> {
        if name.contains(['/', ':', '@']) {
            self.add_reference(name)
        } else {
            tag_name(name).map(Some)
        }
    }

    /// That there is one at most.
    pub(crate) fn check(&self) -> Result<(), ArchiveError> {
        if self.0.len() > 1 {
            return Err(Rejection::NotOneRepository {
                repositories: self.0.values().cloned().collect(),
            }
            .into());
        }
        Ok(())
    }
}

/// Docker Hub's names as its users write them: `docker.io/library/busybox` is `busybox`.
fn familiar(name: &str) -> &str {
    let name = ["docker.io/", "index.docker.io/"]
        .iter()
        .find_map(|hub| name.strip_prefix(hub))
        .unwrap_or(name);
    match name.strip_prefix("library/") {
        Some(official) if !official.contains('/') => official,
        _ => name,
    }
}

pub(crate) fn tag_name(text: &str) -> Result<TagName, ArchiveError> {
    text.parse().map_err(|_| {
        Rejection::InvalidTag {
            value: text.chars().take(300).collect(),
        }
        .into()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn references_give_their_tag() {
        for (reference, tag) in [
            ("busybox:1.35", Some("1.35")),
            ("localhost:5000/a/b:x", Some("x")),
            ("localhost:5000/a/b", Some("latest")),
            ("a@sha256:00", None),
            ("a:t@sha256:00", Some("t")),
        ] {
            let got = Repositories::default().add_reference(reference).unwrap();
            assert_eq!(got.as_ref().map(TagName::as_str), tag, "{reference}");
        }
        assert!(Repositories::default().add_reference("a:.x").is_err());
    }

    #[test]
    fn one_repository_may_be_written_in_several_ways() {
        let mut names = Repositories::default();
        for reference in ["busybox:a", "docker.io/library/busybox:b", "library/busybox:c"] {
            names.add_reference(reference).unwrap();
        }
        names.add_ref_name("latest").unwrap();
        names.check().unwrap();
        names.add("localhost/busybox");
        assert!(names.check().is_err());
    }
}
