//! Which tags of an upstream repository a sync takes.
//!
//! Grammar of the importer's setting `tags`: a plain tag; a pattern with `*`, `?` or `[…]`; `re:` and a regular
//! expression that must match the whole tag; or a digest, which stands for a manifest without a tag. Plain tags and
//! digests are asked for as they are, so that a filter of them alone needs no list of an upstream's tags, however many
//! it has.

use std::collections::BTreeSet;

use regex::Regex;
use semver::{Version, VersionReq};

use crate::{Digest, TagName};

/// One entry of a list of tags.
#[derive(Debug, Clone)]
enum Pattern {
    Plain(TagName),
    Expression(Regex),
    Digest(Digest),
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, String> {
        if let Some(expression) = text.strip_prefix("re:") {
            return anchored(expression).map(Self::Expression);
        }
        if text.contains(['*', '?', '[']) {
            return anchored(&expression_of(text)).map(Self::Expression);
        }
        if text.contains(':') {
            // No tag has one.
            return text.parse().map(Self::Digest).map_err(|e| format!("{e}"));
        }
        text.parse().map(Self::Plain).map_err(|e| format!("{e}"))
    }

    fn matches(&self, tag: &TagName) -> bool {
        match self {
            Self::Plain(plain) => plain == tag,
            Self::Expression(expression) => expression.is_match(tag.as_str()),
            Self::Digest(_) => false,
        }
    }
}

fn anchored(expression: &str) -> Result<Regex, String> {
    Regex::new(&format!(r"\A(?:{expression})\z")).map_err(|e| {
        format!(
            "{expression:?} is no pattern: {}",
            e.to_string().replace('\n', " ")
        )
    })
}

/// A shell's pattern as a regular expression.
fn expression_of(glob: &str) -> String {
    let mut out = String::new();
    let mut in_class = false;
    let mut class_begins = false;
    for character in glob.chars() {
        match character {
            ']' if in_class && !class_begins => {
                in_class = false;
                out.push(']');
            }
            '!' if class_begins => out.push('^'),
            '-' if in_class => out.push('-'),
            other if in_class => out.push_str(&regex::escape(other.encode_utf8(&mut [0; 4]))),
            '*' => out.push_str(".*"),
            '?' => out.push('.'),
            '[' => {
                in_class = true;
                out.push('[');
                class_begins = true;
                continue;
            }
            other => out.push_str(&regex::escape(other.encode_utf8(&mut [0; 4]))),
        }
        class_begins = false;
    }
    out
}

/// Which tags are taken. The default takes all.
#[derive(Debug, Clone, Default)]
pub struct TagFilter {
    include: Option<Vec<Pattern>>,
    exclude: Vec<Pattern>,
    versions: Option<VersionReq>,
    newest: Option<usize>,
}

impl TagFilter {
    /// Reads the four settings; every fault is told, each with the setting's name.
    ///
    /// `versions` is a range such as `>=1.2, <3`, `newest` how many of the highest versions are taken. Both are about
    /// tags that were found by a pattern, or by no setting at all: a tag that is named plainly is always taken.
    pub fn new(
        include: Option<&[String]>,
        exclude: &[String],
        versions: Option<&str>,
        newest: Option<usize>,
    ) -> Result<Self, Vec<(&'static str, String)>> {
        let mut faults = Vec::new();
        let mut read = |field, texts: &[String]| -> Vec<Pattern> {
            let patterns = texts.iter().map(|t| Pattern::parse(t));
            patterns
                .filter_map(|p| p.map_err(|e| faults.push((field, e))).ok())
                .collect()
        };
        let include = include.map(|texts| read("tags", texts));
        let exclude = read("tags_exclude", exclude);
        for pattern in &exclude {
            if let Pattern::Digest(digest) = pattern {
                let text = format!("{digest} is a digest; only tags can be excluded");
                faults.push(("tags_exclude", text));
            }
        }
        let versions = versions
            .map(VersionReq::parse)
            .transpose()
            .map_err(|e| {
                faults.push((
                    "tags_semver",
                    format!("no range of versions like \">=1.2, <3\": {e}"),
                ));
            })
            .unwrap_or_default();
        if newest == Some(0) {
            faults.push((
                "tags_newest",
                "0 would take none; give a number from 1 on".to_owned(),
            ));
        }
        if faults.is_empty() {
            Ok(Self {
                include,
                exclude,
                versions,
                newest,
            })
        } else {
            Err(faults)
        }
    }

    /// The tags that are taken if they are there, where that can be told without the list of all.
    pub fn plain(&self) -> Option<BTreeSet<TagName>> {
        let include = self.include.as_ref()?;
        let mut names = BTreeSet::new();
        for pattern in include {
            match pattern {
                Pattern::Plain(name) => drop(names.insert(name.clone())),
                Pattern::Digest(_) => {}
                Pattern::Expression(_) => return None,
            }
        }
        Some(self.select(names))
    }

    /// The manifests that are taken by their digests, with or without a tag.
    pub fn digests(&self) -> BTreeSet<Digest> {
        let digest = |pattern: &Pattern| match pattern {
            Pattern::Digest(digest) => Some(digest.clone()),
            _ => None,
        };
        self.include.iter().flatten().filter_map(digest).collect()
    }

    /// Whether a tag is named plainly: whoever does so counts on it.
    pub fn names(&self, tag: &TagName) -> bool {
        let plain = |p: &Pattern| matches!(p, Pattern::Plain(name) if name == tag);
        self.include
            .as_ref()
            .is_some_and(|include| include.iter().any(plain))
    }

    /// The tags that are taken of those that are there.
    pub fn select(&self, there: impl IntoIterator<Item = TagName>) -> BTreeSet<TagName> {
        let mut taken = BTreeSet::new();
        let mut versions: Vec<(Version, TagName)> = Vec::new();
        for tag in there {
            if self.exclude.iter().any(|p| p.matches(&tag)) {
                continue;
            }
            match &self.include {
                Some(_) if self.names(&tag) => {
                    taken.insert(tag);
                    continue;
                }
                Some(include) if !include.iter().any(|p| p.matches(&tag)) => continue,
                _ => {}
            }
            if self.versions.is_none() && self.newest.is_none() {
                taken.insert(tag);
            } else if let Some(version) = version_of(&tag).filter(|v| self.takes(v)) {
                versions.push((version, tag));
            }
        }
        versions.sort();
        let newest = versions.into_iter().rev().take(self.newest.unwrap_or(usize::MAX));
        taken.extend(newest.map(|(_, tag)| tag));
        taken
    }

    fn takes(&self, version: &Version) -> bool {
        match &self.versions {
            Some(range) => range.matches(version),
            // `1.2-alpine` is no version after `1.1`, but another thing.
            None => version.pre.is_empty(),
        }
    }
}

/// `1.2.3`, `v1.2.3`, and with zeros for what is left out `1` and `1.2`.
fn version_of(tag: &TagName) -> Option<Version> {
    let text = tag.as_str();
    let text = text.strip_prefix('v').unwrap_or(text);
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (numbers, rest) = text.split_at(end);
    let missing = 3_usize.checked_sub(numbers.split('.').count())?;
    Version::parse(&format!("{numbers}{}{rest}", ".0".repeat(missing))).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|t| (*t).to_owned()).collect()
    }

    fn select(filter: &TagFilter, tags: &[&str]) -> Vec<String> {
        let there = tags.iter().map(|t| t.parse().unwrap());
        filter.select(there).iter().map(ToString::to_string).collect()
    }

    fn include(list: &[&str]) -> TagFilter {
        TagFilter::new(Some(&texts(list)), &[], None, None).unwrap()
    }

    #[test]
    fn without_settings_every_tag_is_taken() {
        assert_eq!(select(&TagFilter::default(), &["a", "1.0"]), ["1.0", "a"]);
        assert_eq!(TagFilter::default().plain(), None);
    }

    #[test]
    fn plain_tags_need_no_list() {
        let filter = TagFilter::new(Some(&texts(&["a", "b"])), &texts(&["b"]), Some(">=9"), Some(1)).unwrap();
        let plain: Vec<_> = filter.plain().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(plain, ["a"]);
        assert_eq!(include(&["a", "b*"]).plain(), None);
        assert!(include(&[]).plain().unwrap().is_empty());
    }

    #[test]
    fn a_digest_is_a_manifest_and_no_tag() {
        let digest = Digest::sha256("manifest");
        let text = digest.to_string();
        let filter = include(&["a", &text]);
        assert_eq!(filter.digests(), BTreeSet::from([digest]));
        assert_eq!(filter.plain().unwrap().len(), 1, "no list is needed");
        assert_eq!(select(&include(&[&text]), &["a", "b"]), Vec::<String>::new());
        assert!(include(&[&text]).plain().unwrap().is_empty());
        assert_eq!(include(&[&text, "1.*"]).plain(), None);
        assert_eq!(TagFilter::default().digests(), BTreeSet::new());
        let faults = TagFilter::new(Some(&texts(&["sha256:abc"])), &texts(&[&text]), None, None).unwrap_err();
        let fields: Vec<_> = faults.iter().map(|(field, _)| *field).collect();
        assert_eq!(fields, ["tags", "tags_exclude"]);
    }

    #[test]
    fn patterns_match_the_whole_tag() {
        let tags = ["1.0", "1.1", "1.10", "21.1", "latest"];
        assert_eq!(select(&include(&["1.?"]), &tags), ["1.0", "1.1"]);
        assert_eq!(select(&include(&["1.*"]), &tags), ["1.0", "1.1", "1.10"]);
        assert_eq!(select(&include(&["[!1]*"]), &tags), ["21.1", "latest"]);
        assert_eq!(select(&include(&["1.[0-1]"]), &tags), ["1.0", "1.1"]);
        assert_eq!(select(&include(&[r"re:\d\.1"]), &tags), ["1.1"]);
        assert_eq!(select(&include(&["re:l|1.0"]), &tags), ["1.0"]);
    }

    #[test]
    fn a_dot_is_a_dot() {
        assert_eq!(select(&include(&["1.0*"]), &["1x0", "1.0"]), ["1.0"]);
    }

    #[test]
    fn versions_are_compared_as_versions() {
        let tags = ["1.9", "v1.10.0", "2", "2.0.0-rc1", "latest", "3.1.4"];
        let range = TagFilter::new(None, &[], Some(">=1.10, <3"), None).unwrap();
        assert_eq!(select(&range, &tags), ["2", "v1.10.0"]);
        let newest = TagFilter::new(None, &[], None, Some(3)).unwrap();
        assert_eq!(select(&newest, &tags), ["2", "3.1.4", "v1.10.0"]);
        let named = TagFilter::new(Some(&texts(&["latest", "*"])), &[], None, Some(1)).unwrap();
        assert_eq!(select(&named, &tags), ["3.1.4", "latest"]);
    }

    #[test]
    fn every_fault_is_told_with_its_setting() {
        let faults = TagFilter::new(
            Some(&texts(&["-bad", "ok", "re:("])),
            &texts(&["a/b"]),
            Some("newest"),
            Some(0),
        )
        .unwrap_err();
        let fields: Vec<_> = faults.iter().map(|(field, _)| *field).collect();
        assert_eq!(
            fields,
            ["tags", "tags", "tags_exclude", "tags_semver", "tags_newest"]
        );
    }

    proptest! {
        #[test]
        fn what_is_taken_was_there_and_is_not_excluded(
            there in prop::collection::btree_set("[a-c0-2]{1,3}", 0..20),
            include in prop::option::of(prop::collection::vec("[a-c*?]{1,2}", 0..4)),
            exclude in prop::collection::vec("[a-c*?]{1,2}", 0..3),
            newest in prop::option::of(1usize..4),
        ) {
            let there: BTreeSet<TagName> = there.iter().map(|t| t.parse().unwrap()).collect();
            let filter = TagFilter::new(include.as_deref(), &exclude, None, newest).unwrap();
            let taken = filter.select(there.clone());
            prop_assert!(taken.is_subset(&there));
            prop_assert!(taken.iter().all(|t| !filter.exclude.iter().any(|p| p.matches(t))));
            // What can be told without the list is the same as with it.
            if let Some(plain) = filter.plain() {
                prop_assert_eq!(&(&plain & &there), &taken);
            }
            // To take from what was taken changes nothing.
            prop_assert_eq!(filter.select(taken.clone()), taken);
        }

        #[test]
        fn no_pattern_makes_the_parser_fail(text in ".{0,40}") {
            let _ = TagFilter::new(Some(&[text]), &[], None, None);
        }
    }
}
