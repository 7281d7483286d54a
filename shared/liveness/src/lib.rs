//! Leases kept from a thread of their own, trusted by the monotonic clock only.
//!
//! A lease in the database ends by the database's clock, which its holder can't see. So the holder trusts it
//! only until (the instant before its last successful renewal call + time to live − a margin), and when that passes
//! it must assume that another holds it: [`Keeper::lost`] fires, and everything done under the lease stops.
//!
//! The thread has a runtime of its own, and on PostgreSQL a connection of its own, so that neither a busy runtime
//! nor an exhausted pool looks like a death.

use std::{
    future::Future,
    pin::Pin,
    thread,
    time::{Duration, Instant},
};

use pulp_store::{
    Engine, Store, StoreError,
    workers::{Heartbeat, Incarnation},
};
use tokio_util::sync::CancellationToken;

mod metrics;
pub mod presence;
mod trust;

pub use trust::Trust;

use metrics::Figures;

/// What a renewal said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// The lease goes on.
    Held,
    /// It is another's.
    Lost,
}

type RenewFuture = Pin<Box<dyn Future<Output = Result<Renewal, StoreError>>>>;

/// Keeps one lease until it is dropped or lost.
#[derive(Debug)]
pub struct Keeper {
    lost: CancellationToken,
    stop: CancellationToken,
}

impl Keeper {
    /// Begins to renew a lease that was taken by a call begun at `taken`, a third of `ttl` apart.
    ///
    /// `renew` is called on the keeper's thread with the keeper's own store.
    pub fn start<F>(
        name: &str,
        database: &Database,
        ttl: Duration,
        taken: Instant,
        renew: F,
    ) -> Result<Self, LivenessError>
    where
        F: Fn(Store) -> RenewFuture + Send + 'static,
    {
        let keeper = Self {
            lost: CancellationToken::new(),
            stop: CancellationToken::new(),
        };
        let (lost, stop) = (keeper.lost.clone(), keeper.stop.clone());
        let database = database.clone();
        let figures = Figures::of(name);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(LivenessError::Thread)?;
        thread::Builder::new()
            .name(format!("lease-{name}"))
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = keep(&database, ttl, taken, renew, &figures) => lost.cancel(),
                        () = stop.cancelled() => {}
                    }
                });
            })
            .map_err(LivenessError::Thread)?;
        Ok(keeper)
    }

    /// Fires when the lease can't be trusted any more. It never fires after the keeper was dropped.
    pub const fn lost(&self) -> &CancellationToken {
        &self.lost
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Where a keeper finds the database.
#[derive(Clone)]
pub struct Database {
    /// The store of the process; SQLite's own connections belong to no runtime and are shared.
    pub store: Store,
    /// The url, for a connection of the keeper's own on PostgreSQL.
    pub url: String,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// Why a lease can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum LivenessError {
    /// No thread could be started.
    #[error("can't start the thread that keeps the lease")]
    Thread(#[source] std::io::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Renews until the lease is lost or its trust has ended.
async fn keep<F>(database: &Database, ttl: Duration, taken: Instant, renew: F, figures: &Figures)
where
    F: Fn(Store) -> RenewFuture,
{
    let mut trust = Trust::new(ttl, taken);
    let store = match database.store.engine() {
        Engine::Sqlite => database.store.clone(),
        Engine::Postgres => match Store::connect(&database.url, 2).await {
            Ok(store) => store,
            Err(e) => {
                tracing::error!(error = %e, "the lease can't be kept");
                return;
            }
        },
    };
    loop {
        tokio::time::sleep_until(trust.next().into()).await;
        let begun = Instant::now();
        let answer = tokio::time::timeout_at(trust.until().into(), renew(store.clone())).await;
        match answer {
            Ok(Ok(Renewal::Held)) => {
                let now = Instant::now();
                figures.held(trust.until(), now);
                trust.renewed(begun, now);
            }
            Ok(Ok(Renewal::Lost)) => {
                figures.lost();
                tracing::warn!("the lease is another's now");
                return;
            }
            Ok(Err(e)) => {
                tracing::warn!(error = %e, "a renewal failed; trying again");
                figures.failed();
                trust.failed(Instant::now());
            }
            Err(_) => {}
        }
        if trust.is_over(Instant::now()) {
            tracing::warn!("no renewal in time; the lease can't be trusted any more");
            figures.lost();
            return;
        }
    }
}

/// Keeps a worker's lease; `on_cancel` is called with each task of ours that is to stop.
pub fn keep_worker<C>(
    database: &Database,
    incarnation: &Incarnation,
    ttl: Duration,
    taken: Instant,
    on_cancel: C,
) -> Result<Keeper, LivenessError>
where
    C: Fn(pulp_model::TaskId) + Clone + Send + 'static,
{
    let incarnation = incarnation.clone();
    Keeper::start(&incarnation.name.0.clone(), database, ttl, taken, move |store| {
        let (incarnation, on_cancel) = (incarnation.clone(), on_cancel.clone());
        Box::pin(async move {
            match store.heartbeat(&incarnation, ttl).await? {
                Heartbeat::Lost => Ok(Renewal::Lost),
                Heartbeat::Alive { cancel } => {
                    cancel.into_iter().for_each(on_cancel);
                    Ok(Renewal::Held)
                }
            }
        })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    async fn database(dir: &tempfile::TempDir) -> Database {
        let url = format!("sqlite:{}", dir.path().join("pulp.db").display());
        let store = Store::connect(&url, 4).await.unwrap();
        store.migrate().await.unwrap();
        Database { store, url }
    }

    #[tokio::test]
    async fn a_kept_lease_outlives_its_time_to_live_and_a_stolen_one_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let db = database(&dir).await;
        let ttl = Duration::from_millis(600);
        let taken = Instant::now();
        let epoch = db.store.acquire_lease("r", "me", ttl).await.unwrap().unwrap();
        let keeper = Keeper::start("r", &db, ttl, taken, move |store| {
            Box::pin(async move {
                let held = store.renew_lease("r", "me", epoch, ttl).await?;
                Ok(if held { Renewal::Held } else { Renewal::Lost })
            })
        })
        .unwrap();
        assert!(
            tokio::time::timeout(ttl * 3, keeper.lost().cancelled())
                .await
                .is_err(),
            "lost though kept"
        );
        db.store.resign_lease("r", "me", epoch).await.unwrap();
        assert!(db.store.acquire_lease("r", "other", ttl).await.unwrap().is_some());
        tokio::time::timeout(Duration::from_secs(20), keeper.lost().cancelled())
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_lease_that_can_not_be_renewed_is_given_up_before_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let db = database(&dir).await;
        let ttl = Duration::from_millis(500);
        let taken = Instant::now();
        let keeper = Keeper::start("r", &db, ttl, taken, |_| Box::pin(std::future::pending())).unwrap();
        tokio::time::timeout(Duration::from_secs(20), keeper.lost().cancelled())
            .await
            .unwrap();
        assert!(taken.elapsed() >= ttl / 2, "given up far too early");
    }
}
