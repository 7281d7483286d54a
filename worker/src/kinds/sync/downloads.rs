//! Whose turn it is to download a blob: of all syncs on all workers that want it one fetches it, and from one host no
//! more are fetched at a time than the configuration says.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
    time::Duration,
};

use pulp_model::Digest;
use pulp_store::{Engine, Store, StoreError, upstreams::Turn, workers::Incarnation};
use tokio::sync::Mutex as AsyncMutex;

use super::plan::WantedBlob;

/// Smaller blobs are asked for together: to ask costs as much as to fetch one.
const SMALL: u64 = 1024 * 1024;
/// So many of them.
const TOGETHER: usize = 64;
/// How often it is looked whether a blob that somebody else downloads has come, or one from a busy host may begin.
pub(super) const LOOK: Duration = Duration::from_millis(500);
/// After so long a blob is downloaded though somebody else says to be at it.
pub(super) const PATIENCE: Duration = Duration::from_mins(30);

/// Downloads of one sync.
pub(super) struct Downloads {
    store: Store,
    worker: Incarnation,
    host: String,
    at_once: Option<u32>,
    ours: Mutex<BTreeSet<Digest>>,
}

impl Downloads {
    pub(super) fn new(store: Store, worker: Incarnation, host: String, at_once: Option<u32>) -> Self {
        Self {
            store,
            worker,
            host,
            at_once,
            ours: Mutex::default(),
        }
    }

    /// Parts blobs into those that are asked for together, in their order.
    pub(super) fn groups(&self, wanted: Vec<WantedBlob>) -> Vec<Vec<WantedBlob>> {
        // What is asked for counts as begun: where that is limited, only what begins at once is asked for.
        let together = if self.at_once.is_some() { 1 } else { TOGETHER };
        let mut groups: Vec<Vec<WantedBlob>> = Vec::new();
        for blob in wanted {
            let is_small = |b: &WantedBlob| b.size.is_none_or(|size| size < SMALL);
            match groups.last_mut() {
                Some(group) if group.len() < together && is_small(&blob) && group.iter().all(is_small) => {
                    group.push(blob);
                }
                _ => groups.push(vec![blob]),
            }
        }
        groups
    }

    /// Asks for the download of each. Within one process alone there is nobody to ask.
    pub(super) async fn begin(&self, digests: &[Digest]) -> Result<Vec<Turn>, StoreError> {
        if self.store.engine() == Engine::Sqlite && self.at_once.is_none() {
            return Ok(vec![Turn::Ours; digests.len()]);
        }
        let turns = self
            .store
            .begin_downloads(&self.worker, &self.host, digests, self.at_once)
            .await?;
        let ours = digests
            .iter()
            .zip(&turns)
            .filter(|(_, turn)| **turn == Turn::Ours);
        self.lock().extend(ours.map(|(digest, _)| digest.clone()));
        Ok(turns)
    }

    /// Whether somebody else may have to end before a download of ours begins.
    pub(super) const fn is_limited(&self) -> bool {
        self.at_once.is_some()
    }

    /// Gives downloads of ours back, whatever became of them.
    pub(super) async fn end(&self, digests: &[Digest]) -> Result<(), StoreError> {
        let ours: Vec<Digest> = {
            let mut all = self.lock();
            digests.iter().filter(|d| all.remove(*d)).cloned().collect()
        };
        if ours.is_empty() {
            return Ok(());
        }
        self.store.end_downloads(&self.worker, &ours).await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<Digest>> {
        self.ours.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Downloads {
    /// A sync that fails or is stopped lets others have what it was at.
    fn drop(&mut self) {
        let left: Vec<Digest> = std::mem::take(&mut *self.lock()).into_iter().collect();
        let (store, worker) = (self.store.clone(), self.worker.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current()
            && !left.is_empty()
        {
            runtime.spawn(async move {
                if let Err(error) = store.end_downloads(&worker, &left).await {
                    tracing::warn!(%error, blobs = left.len(), "others wait for downloads that have ended");
                }
            });
        }
    }
}

/// One download of a blob at a time in this process.
pub(super) fn turn_of(digest: &Digest) -> Arc<AsyncMutex<()>> {
    static TURNS: LazyLock<Mutex<HashMap<Digest, Weak<AsyncMutex<()>>>>> = LazyLock::new(Mutex::default);
    let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(turn) = turns.get(digest).and_then(Weak::upgrade) {
        return turn;
    }
    if turns.len() > 1000 {
        turns.retain(|_, turn| turn.strong_count() > 0);
    }
    let turn = Arc::default();
    turns.insert(digest.clone(), Arc::downgrade(&turn));
    turn
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_blob_has_one_turn_as_long_as_somebody_wants_it() {
        let (a, b) = (Digest::sha256("a"), Digest::sha256("b"));
        let first = turn_of(&a);
        assert!(Arc::ptr_eq(&first, &turn_of(&a)));
        assert!(!Arc::ptr_eq(&first, &turn_of(&b)));
    }
}
