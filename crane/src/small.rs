//! Small content kept in memory: manifests and configs, which every pull begins with.

use std::{
    collections::HashMap,
    mem,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use pulp_model::Digest;

/// Largest content that is kept.
const SMALL: usize = 64 * 1024;
/// Bytes kept in each of the two generations.
const GENERATION: usize = 8 << 20;

/// Content by digest, so that it is right whatever is published meanwhile; whether a client may have it is asked
/// before. When the younger generation is full it becomes the older one, and what nobody asked for since is dropped.
#[derive(Default)]
pub(crate) struct Small(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: HashMap<Digest, Bytes>,
    old: HashMap<Digest, Bytes>,
    young_bytes: usize,
}

impl Small {
    pub(crate) fn get(&self, digest: &Digest) -> Option<Bytes> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = kept.young.get(digest) {
            return Some(bytes.clone());
        }
        let (digest, bytes) = kept.old.remove_entry(digest)?;
        kept.put(digest, bytes.clone());
        Some(bytes)
    }

    pub(crate) fn put(&self, digest: &Digest, bytes: &Bytes) {
        if bytes.len() <= SMALL {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.put(digest.clone(), bytes.clone());
        }
    }
}

impl Generations {
    fn put(&mut self, digest: Digest, bytes: Bytes) {
        if self.young_bytes + bytes.len() > GENERATION {
            self.old = mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += bytes.len();
        if let Some(before) = self.young.insert(digest, bytes) {
            self.young_bytes -= before.len();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_asked_for_stays_and_memory_has_a_limit() {
        let small = Small::default();
        let bytes = Bytes::from(vec![7; SMALL]);
        let hot = Digest::sha256("hot");
        small.put(&hot, &Bytes::from("hot"));
        for n in 0..1000_u32 {
            small.put(&Digest::sha256(n.to_be_bytes()), &bytes);
            assert_eq!(small.get(&hot).unwrap(), "hot");
        }
        let kept = small.0.lock().unwrap();
        let held: usize = kept.young.values().chain(kept.old.values()).map(Bytes::len).sum();
        assert!(held <= 2 * GENERATION, "{held}");
        assert!(kept.young_bytes <= GENERATION);
        drop(kept);
        assert!(small.get(&Digest::sha256(0_u32.to_be_bytes())).is_none());
        small.put(&Digest::sha256("large"), &Bytes::from(vec![0; SMALL + 1]));
        assert!(small.get(&Digest::sha256("large")).is_none());
    }
}
