//! Which members of a list or index a sync takes, by the platforms they are for.
//!
//! Grammar of the importer's setting `platforms`: `os/architecture` or `os/architecture/variant`, in the words of
//! images' own indexes (Go's `GOOS`, `GOARCH`), such as `linux/amd64` or `linux/arm/v7`.

use std::{collections::BTreeSet, fmt, str::FromStr};

use crate::{
    Digest,
    unit::{ListMember, ManifestListUnit},
};

/// Annotation of an index that [`PlatformsMode::Rewrite`] made: the digest of the one that it was made of.
pub const ORIGINAL_DIGEST: &str = "org.pulpproject.docker.original-digest";

/// A platform, or all variants of one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// What an architecture's members are that name no variant.
///
/// Source: containerd `platforms` (`normalizeArch`), which clients choose by.
fn default_variant(architecture: &str) -> Option<&'static str> {
    match architecture {
        "amd64" => Some("v1"),
        "arm" => Some("v7"),
        "arm64" => Some("v8"),
        _ => None,
    }
}

/// What indexes call an architecture that people call otherwise.
fn proper_name(architecture: &str) -> Option<&'static str> {
    match architecture {
        "x86_64" | "x86-64" => Some("amd64"),
        "aarch64" => Some("arm64"),
        "i386" | "i486" | "i586" | "i686" | "x86" => Some("386"),
        "armhf" => Some("arm/v7"),
        "armel" => Some("arm/v6"),
        "powerpc64le" | "ppc64el" => Some("ppc64le"),
        "loongarch64" => Some("loong64"),
        _ => None,
    }
}

impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let is_word = |part: &&str| {
            let fits =
                |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
            !part.is_empty() && part.len() <= 64 && part.bytes().all(fits)
        };
        let shown: String = text.chars().take(100).collect();
        let wrong = || {
            format!(
                "{shown:?} is no platform; give os/architecture or os/architecture/variant, like linux/arm64 or linux/arm/v7"
            )
        };
        if !parts.iter().all(is_word) {
            return Err(wrong());
        }
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return Err(wrong()),
        };
        if let Some(proper) = proper_name(architecture) {
            return Err(format!(
                "{shown:?}: indexes call {architecture} {proper}; give {os}/{proper}"
            ));
        }
        if os == UNKNOWN || architecture == UNKNOWN {
            return Err(format!(
                "{shown:?} is no platform; attestations come with the image that they are of"
            ));
        }
        Ok(Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(ToOwned::to_owned),
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// What builders write as the platform of a member that is no image.
const UNKNOWN: &str = "unknown";

impl Platform {
    fn takes(&self, os: &str, architecture: &str, variant: Option<&str>) -> bool {
        let variant = variant
            .filter(|v| !v.is_empty())
            .or_else(|| default_variant(architecture));
        self.os == os
            && self.architecture == architecture
            && self
                .variant
                .as_deref()
                .is_none_or(|wanted| Some(wanted) == variant)
    }
}

/// The platform that a member is for; none if it names none.
fn platform_of(member: &ListMember) -> Option<(&str, &str)> {
    let known = |text: &Option<String>| text.as_deref().is_some_and(|t| !t.is_empty() && t != UNKNOWN);
    if known(&member.os) && known(&member.arch) {
        member.os.as_deref().zip(member.arch.as_deref())
    } else {
        None
    }
}

/// The platforms whose images are taken; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformFilter(BTreeSet<Platform>);

impl PlatformFilter {
    /// Reads a list of platforms; every fault is told.
    pub fn new(texts: &[String]) -> Result<Self, Vec<String>> {
        let (mut platforms, mut faults) = (BTreeSet::new(), Vec::new());
        for text in texts {
            match text.trim().parse() {
                Ok(platform) => drop(platforms.insert(platform)),
                Err(fault) => faults.push(fault),
            }
        }
        if texts.is_empty() {
            faults.push("an empty list would take no image; leave it out (null) to take all".to_owned());
        }
        if faults.is_empty() {
            Ok(Self(platforms))
        } else {
            Err(faults)
        }
    }

    /// Whether a member's image is taken by its own platform. One that names none (an artifact, a nested index) is;
    /// an attestation isn't asked by itself.
    fn takes(&self, member: &ListMember) -> bool {
        platform_of(member).is_none_or(|(os, architecture)| {
            let variant = member.variant.as_deref();
            self.0.iter().any(|p| p.takes(os, architecture, variant))
        })
    }

    /// The members of a list that are taken. Attestations come with the image that they are of.
    pub fn taken<'a>(&self, list: &'a ManifestListUnit) -> BTreeSet<&'a Digest> {
        let images = list.manifests.iter().filter(|m| m.attests.is_none());
        let mut taken: BTreeSet<&Digest> = images.filter(|m| self.takes(m)).map(|m| &m.digest).collect();
        let attestations: Vec<&Digest> = list
            .manifests
            .iter()
            .filter(|m| m.attests.as_ref().is_some_and(|image| taken.contains(image)))
            .map(|m| &m.digest)
            .collect();
        taken.extend(attestations);
        taken
    }
}

/// As it can be read again: platforms with commas between them, sorted.
impl fmt::Display for PlatformFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, platform) in self.0.iter().enumerate() {
            write!(f, "{}{platform}", if n == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// What becomes of an index of which not all members are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PlatformsMode {
    /// It stays what it is, with its digest; the members left out are known to be missing.
    #[default]
    Sparse,
    /// A new index takes its place that has the members taken only, and names the original one in an annotation.
    Rewrite,
}

impl FromStr for PlatformsMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "sparse" => Ok(Self::Sparse),
            "rewrite" => Ok(Self::Rewrite),
            other => {
                let shown: String = other.chars().take(100).collect();
                Err(format!("{shown:?} is neither \"sparse\" nor \"rewrite\""))
            }
        }
    }
}

/// The platforms of a sync, and what becomes of indexes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platforms {
    /// Which members are taken.
    pub filter: PlatformFilter,
    /// What becomes of an index with others.
    pub mode: PlatformsMode,
}

/// The platforms of a list's members, for people: each once, sorted.
pub fn platforms_of(list: &ManifestListUnit) -> Vec<String> {
    let of = |m: &ListMember| {
        let (os, architecture) = platform_of(m)?;
        let variant = m.variant.as_deref().filter(|v| !v.is_empty());
        Some(variant.map_or_else(
            || format!("{os}/{architecture}"),
            |variant| format!("{os}/{architecture}/{variant}"),
        ))
    };
    let all: BTreeSet<String> = list.manifests.iter().filter_map(of).collect();
    all.into_iter().collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::image::Manifest;

    fn filter(list: &[&str]) -> PlatformFilter {
        let texts: Vec<String> = list.iter().map(|t| (*t).to_owned()).collect();
        PlatformFilter::new(&texts).unwrap()
    }

    fn member(name: &str, platform: &str) -> Value {
        let mut member = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": Digest::sha256(name), "size": 1});
        let parts: Vec<&str> = platform.split('/').collect();
        if let [os, architecture, variant @ ..] = &parts[..] {
            member["platform"] = json!({"os": os, "architecture": architecture, "variant": variant.first()});
        }
        member
    }

    fn attestation(name: &str, of: &str) -> Value {
        let mut member = member(name, "unknown/unknown");
        member["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": Digest::sha256(of)});
        member
    }

    fn list(members: &[Value]) -> ManifestListUnit {
        let text = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": members});
        match Manifest::parse(text.to_string().as_bytes(), None).unwrap() {
            Manifest::List(list) => list,
            Manifest::Image(_) => unreachable!(),
        }
    }

    fn takes(platforms: &[&str], platform: &str) -> bool {
        !filter(platforms)
            .taken(&list(&[member("m", platform)]))
            .is_empty()
    }

    #[test]
    fn a_platform_without_a_variant_takes_all_of_them() {
        for platform in ["linux/arm", "linux/arm/v5", "linux/arm/v7"] {
            assert!(takes(&["linux/arm"], platform), "{platform}");
        }
        for platform in ["linux/arm64", "windows/arm", "linux/amd64"] {
            assert!(!takes(&["linux/arm"], platform), "{platform}");
        }
    }

    #[test]
    fn a_member_without_a_variant_is_of_its_architectures_default() {
        assert!(takes(&["linux/arm64/v8"], "linux/arm64") && takes(&["linux/arm64/v8"], "linux/arm64/v8"));
        assert!(takes(&["linux/arm/v7"], "linux/arm") && !takes(&["linux/arm/v6"], "linux/arm"));
        assert!(takes(&["linux/amd64/v1"], "linux/amd64") && !takes(&["linux/amd64/v3"], "linux/amd64"));
        assert!(!takes(&["linux/riscv64/v1"], "linux/riscv64"));
    }

    #[test]
    fn a_member_without_a_platform_is_taken() {
        for platform in ["", "unknown/unknown"] {
            assert!(takes(&["linux/s390x"], platform), "{platform}");
        }
    }

    #[test]
    fn attestations_come_with_their_image() {
        let list = list(&[
            attestation("attests amd64", "amd64"),
            member("amd64", "linux/amd64"),
            member("arm64", "linux/arm64"),
            attestation("attests arm64", "arm64"),
            attestation("attests nothing here", "elsewhere"),
        ]);
        let digests: BTreeSet<Digest> = ["amd64", "attests amd64"].iter().map(Digest::sha256).collect();
        let filter = filter(&["linux/amd64"]);
        assert_eq!(filter.taken(&list), digests.iter().collect());
        assert_eq!(platforms_of(&list), ["linux/amd64", "linux/arm64"]);
    }

    #[test]
    fn what_is_no_platform_is_told_with_what_to_write() {
        for (text, hint) in [
            ("linux", "like linux/arm64"),
            ("linux/", "like linux/arm64"),
            ("linux/*", "like linux/arm64"),
            ("linux/arm/v7/x", "like linux/arm64"),
            ("Linux/amd64", "like linux/arm64"),
            ("linux/x86_64", "give linux/amd64"),
            ("linux/armhf", "give linux/arm/v7"),
            ("unknown/unknown", "attestations come with the image"),
        ] {
            let faults = PlatformFilter::new(&[text.to_owned()]).unwrap_err();
            assert!(faults[0].contains(hint), "{text}: {faults:?}");
        }
        assert!(PlatformFilter::new(&[]).unwrap_err()[0].contains("no image"));
        assert!("both".parse::<PlatformsMode>().is_err());
    }

    #[test]
    fn order_and_repetition_make_no_difference() {
        let one = filter(&["linux/arm64", "linux/amd64", "linux/amd64"]);
        assert_eq!(one, filter(&["linux/amd64", "linux/arm64"]));
        assert_eq!(one.to_string(), "linux/amd64, linux/arm64");
    }

    proptest! {
        #[test]
        fn a_wider_filter_takes_no_less(
            members in prop::collection::vec(("[a-c]", "(linux|windows)/(arm|amd64)(/v[678])?"), 0..6),
            some in prop::collection::vec("(linux|windows)/(arm|amd64)(/v[678])?", 1..4),
            more in prop::collection::vec("(linux|windows)/(arm|amd64)(/v[678])?", 0..4),
        ) {
            let list = list(&members.iter().map(|(n, p)| member(n, p)).collect::<Vec<_>>());
            let narrow = PlatformFilter::new(&some).unwrap();
            let wide = PlatformFilter::new(&[some, more].concat()).unwrap();
            prop_assert!(narrow.taken(&list).is_subset(&wide.taken(&list)));
        }

        #[test]
        fn no_text_makes_the_parser_fail(text in ".{0,40}") {
            if let Ok(filter) = PlatformFilter::new(&[text]) {
                let again: Vec<String> = filter.to_string().split(", ").map(ToOwned::to_owned).collect();
                prop_assert_eq!(PlatformFilter::new(&again), Ok(filter));
            }
        }
    }
}
