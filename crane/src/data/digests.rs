//! Digests as bytes: a table of a million must not cost more than what is in it.

use std::fmt;

use data_encoding::HEXLOWER;
use pulp_model::{Algorithm, Digest};

/// A digest as bytes, 40 of them instead of a text of a hundred.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Key {
    Sha256([u8; 32]),
    /// Rare: the larger one is not to make the others larger.
    Sha512(Box<[u8; 64]>),
}

impl Key {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.split_once(':')? {
            ("sha256", hex) => Self::decoded(Algorithm::Sha256, hex),
            ("sha512", hex) => Self::decoded(Algorithm::Sha512, hex),
            _ => None,
        }
    }

    pub(crate) fn of(digest: &Digest) -> Option<Self> {
        Self::decoded(digest.algorithm(), digest.hex())
    }

    fn decoded(algorithm: Algorithm, hex: &str) -> Option<Self> {
        match algorithm {
            Algorithm::Sha256 => decoded(hex).map(Self::Sha256),
            Algorithm::Sha512 => decoded(hex).map(|bytes| Self::Sha512(Box::new(bytes))),
        }
    }

    pub(crate) fn digest(&self) -> Digest {
        match self {
            Self::Sha256(bytes) => Digest::of_sha256(bytes),
            Self::Sha512(bytes) => Digest::of_sha512(bytes),
        }
    }
}

/// The text that a digest is everywhere else.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.digest().fmt(f)
    }
}

/// Exactly that many bytes in lower-case hexadecimal digits.
fn decoded<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if hex.len() != 2 * N {
        return None;
    }
    let length = HEXLOWER.decode_mut(hex.as_bytes(), &mut bytes).ok()?;
    (length == N).then_some(bytes)
}

/// What is known of digests: a sorted array, looked up by halving.
#[derive(Debug)]
pub(crate) struct DigestTable<V> {
    rows: Box<[(Key, V)]>,
}

impl<V> DigestTable<V> {
    /// Of rows in any order; of two for one digest one stays.
    pub(crate) fn new(mut rows: Vec<(Key, V)>) -> Self {
        if !rows.is_sorted_by(|(a, _), (b, _)| a < b) {
            rows.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            rows.dedup_by(|(a, _), (b, _)| a == b);
        }
        Self {
            rows: rows.into_boxed_slice(),
        }
    }

    /// The number of a digest's row.
    pub(crate) fn find(&self, key: &Key) -> Option<u32> {
        let found = self.rows.binary_search_by(|(k, _)| k.cmp(key)).ok()?;
        u32::try_from(found).ok()
    }

    pub(crate) fn row(&self, number: u32) -> Option<&(Key, V)> {
        self.rows.get(usize::try_from(number).ok()?)
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&V> {
        self.row(self.find(key)?).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_row_of_a_size_takes_forty_eight_bytes_at_most() {
        assert_eq!((size_of::<Key>(), size_of::<(Key, u64)>()), (40, 48));
    }

    #[test]
    fn only_digests_are_read() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (text, good) in [
            (format!("sha256:{hex}"), true),
            (format!("sha512:{hex}{hex}"), true),
            (format!("sha256:{}", hex.to_uppercase()), false),
            (format!("sha256:{hex}00"), false),
            (format!("sha512:{hex}"), false),
            (hex.to_owned(), false),
        ] {
            let key = Key::parse(&text);
            assert_eq!(key.is_some(), good, "{text}");
            assert!(key.is_none_or(|key| key.to_string() == text && key.digest().to_string() == text));
        }
    }

    proptest! {
        #[test]
        fn what_is_in_the_table_is_found_and_nothing_else(held: Vec<u8>, asked: u8) {
            let key = |n: u8| Key::of(&Digest::sha256([n])).unwrap();
            let table = DigestTable::new(held.iter().map(|n| (key(*n), *n)).collect());
            prop_assert_eq!(table.get(&key(asked)), held.iter().find(|n| **n == asked));
            prop_assert!(table.rows.is_sorted_by(|(a, _), (b, _)| a < b));
        }
    }
}
