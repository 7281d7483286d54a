//! Names that people choose, each checked against its grammar once.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize};

/// Why a name was refused: which kind of name, what was given, what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a valid {kind}: {rule}")]
pub struct InvalidName {
    /// What the name was meant for, for example `repository id`.
    pub kind: &'static str,
    /// The text given, cut to 300 characters.
    pub given: String,
    /// The grammar in words.
    pub rule: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(Box<str>);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidName { kind: $kind, given: text.chars().take(300).collect(), rule: $rule })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name! {
    /// A repository's id in Pulp: its key in the REST API and the name of its published files.
    ///
    /// `.` and `..` are refused besides, since the id names files.
    RepositoryId, "repository id", "letters, digits, '.', '-' and '_' (1 to 200 of them, not '.' or '..')",
    |t| (1..=200).contains(&t.len()) && t != "." && t != ".." && t.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
}

name! {
    /// A distributor's id, unique within its repository.
    DistributorId, "distributor id", "letters, digits, '-' and '_' (1 to 200 of them)",
    |t| (1..=200).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

name! {
    /// The name by which clients pull: `busybox`, `pulpdemo/busybox`, any number of parts.
    ///
    /// Grammar of pulp_docker 3.1.1 and the OCI distribution specification, matched as a whole.
    RegistryId, "repo-registry-id",
    "parts of lower-case letters and digits, joined within a part by '.', '_', '__' or dashes, separated by '/', 255 characters at most",
    |t| t.len() < 256 && t.split('/').all(is_registry_part)
}

name! {
    /// A tag: `latest`, `1.35`.
    TagName, "tag", "a letter, digit or '_', then up to 127 letters, digits, '.', '-' and '_'",
    |t| {
        let bytes = t.as_bytes();
        (1..=128).contains(&bytes.len())
            && (bytes[0].is_ascii_alphanumeric() || bytes[0] == b'_')
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b))
    }
}

name! {
    /// A user's login.
    Login, "login", "letters, digits, '.', '@', '-' and '_' (1 to 100 of them)",
    |t| (1..=100).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_alphanumeric() || b".@-_".contains(&b))
}

name! {
    /// A robot's name: credentials of a program. It logs in as `robot+<name>`.
    RobotName, "robot name", "letters, digits, '.', '-' and '_' (1 to 100 of them)",
    |t| (1..=100).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
}

/// One slash-separated part: runs of `[a-z0-9]`, between two runs one `.`, one `_`, `__`, or any number of `-`.
/// Linear time, unlike the pattern it stands for.
fn is_registry_part(part: &str) -> bool {
    let mut rest = part.as_bytes();
    let run = |b: &[u8]| {
        b.iter()
            .take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
            .count()
    };
    loop {
        let letters = run(rest);
        if letters == 0 {
            return false;
        }
        rest = &rest[letters..];
        let separator = rest.len() - rest.iter().skip_while(|c| b"._-".contains(c)).count();
        match &rest[..separator] {
            [] => return rest.is_empty(),
            b"." | b"_" | b"__" => {}
            dashes if dashes.iter().all(|c| *c == b'-') => {}
            _ => return false,
        }
        rest = &rest[separator..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors of pulp_docker 3.2, `test_configuration.py`.
    #[test]
    fn registry_ids_follow_the_plugins_vectors() {
        let longest = "a".repeat(255);
        for good in [
            "lowercase",
            "lower-case",
            "lower_case",
            "123",
            "periods.are.cool",
            "part/another/andanother",
            &longest,
            "foo--foo",
            "foo---foo",
            "foo__foo",
        ] {
            assert!(good.parse::<RegistryId>().is_ok(), "{good}");
        }
        let too_long = "a".repeat(256);
        for bad in [
            "Upper",
            "..............",
            "/cannotstart",
            "cannot//double",
            "trailing/",
            &too_long,
            "foo___foo",
            "",
            "a\n",
            "-a",
            "a-",
            "a.-a",
        ] {
            assert!(bad.parse::<RegistryId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_repository_id_can_not_name_another_folder() {
        for bad in ["", ".", "..", "a/b", "a b", "ä", "a\0"] {
            assert!(bad.parse::<RepositoryId>().is_err(), "{bad:?}");
        }
        assert!("Busy_box-1.0".parse::<RepositoryId>().is_ok());
    }

    #[test]
    fn tags_follow_the_specification() {
        assert!("_a.B-9".parse::<TagName>().is_ok());
        for bad in ["", ".a", "-a", "a/b", &"a".repeat(129)] {
            assert!(bad.parse::<TagName>().is_err(), "{bad:?}");
        }
    }
}
