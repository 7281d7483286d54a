//! Leads by lease, serialises locks per repository, grants tasks.
//!
//! Any number of these processes run; one leads. The others wait for its lease to end. A leader holds the
//! [lock table](lock_table) in memory, rebuilt from the database at each take-over and checked against it at each
//! sweep, so that a lost message costs time and nothing else. Every write it makes is conditional on its epoch.

pub mod horizon;
pub mod leader;
mod ledger;
pub mod lock_table;
mod metrics;
#[cfg(feature = "mutations")]
pub mod mutations;
pub mod pace;
mod quiet;
pub mod rotation;

pub use ledger::Ledger;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use pulp_broker::Broker;
use pulp_liveness::{Database, Keeper, LivenessError, Renewal, presence};
use pulp_model::deadline::HardLimits;
use pulp_runtime::backoff::Backoff;
use pulp_store::grants::ROLE;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How the resource manager works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a leader's lease lives without a renewal; a standby takes over within it and half a second.
    pub lease_ttl: Duration,
    /// How often the whole table is checked against the database, and lost messages are made up for.
    pub sweep: Duration,
    /// Most grants of one transaction.
    pub grant_batch: usize,
    /// Runs that a task may lose to dead workers before it ends in error.
    pub max_attempts: i64,
    /// How long a running task may take to stop after a cancel before it is ended over its worker's head.
    pub cancel_grace: Duration,
    /// How long runs may go on before they are ended over their worker's head.
    pub limits: HardLimits,
    /// How long a run may show no progress before that is told.
    pub stalled_after: Duration,
    /// How long a grant may lie unclaimed in an empty queue before it is sent again.
    pub resend_after: Duration,
    /// Turns that an owner gets where others get one, by the owner's text; see [`rotation`].
    pub owner_weights: Arc<BTreeMap<String, u32>>,
}

/// How often a standby tries to take the lease, …
const CAMPAIGN: Duration = Duration::from_millis(400);

/// … or so many times while a lease lasts, if that is more often: a short one is to be taken over soon.
const TRIES: u32 = 8;

/// Runs until `stop` fires: leads whenever it can, then resigns.
pub async fn run(settings: Settings, database: Database, broker: Arc<dyn Broker>, stop: CancellationToken) {
    let host = presence::host_name();
    let shown = tokio::spawn(presence::show(
        database.store.clone(),
        ROLE,
        "resource_manager",
        host.clone(),
        Duration::from_secs(15),
        stop.clone(),
    ));
    let holder = format!("resource_manager@{host}/{}", Uuid::new_v4());
    let mut backoff = Backoff::for_connections();
    while !stop.is_cancelled() {
        let taken = Instant::now();
        match database
            .store
            .acquire_lease(ROLE, &holder, settings.lease_ttl)
            .await
        {
            Ok(Some(epoch)) => {
                backoff.reset();
                tracing::info!(%epoch, holder, "leading");
                match keep_lease(&database, &holder, epoch, settings.lease_ttl, taken) {
                    Ok(keeper) => {
                        leader::lead(
                            &settings,
                            &database.store,
                            broker.as_ref(),
                            epoch,
                            keeper.lost(),
                            &stop,
                        )
                        .await;
                    }
                    Err(e) => tracing::error!(error = %e, "can't lead"),
                }
                if let Err(e) = database.store.resign_lease(ROLE, &holder, epoch).await {
                    tracing::warn!(error = %e, "could not resign; the lease ends by itself");
                }
                tracing::info!(%epoch, "leading no more");
            }
            Ok(None) => {
                backoff.reset();
                pause(CAMPAIGN.min(settings.lease_ttl / TRIES), &stop).await;
            }
            Err(e) => {
                tracing::warn!(error = %e, "can't reach the lease");
                pause(backoff.next_wait(), &stop).await;
            }
        }
    }
    if let Err(e) = shown.await {
        tracing::debug!(error = %e, "presence");
    }
}

fn keep_lease(
    database: &Database,
    holder: &str,
    epoch: pulp_model::Epoch,
    ttl: Duration,
    taken: Instant,
) -> Result<Keeper, LivenessError> {
    let holder = holder.to_owned();
    Keeper::start(ROLE, database, ttl, taken, move |store| {
        let holder = holder.clone();
        Box::pin(async move {
            let held = store.renew_lease(ROLE, &holder, epoch, ttl).await?;
            Ok(if held { Renewal::Held } else { Renewal::Lost })
        })
    })
}

async fn pause(duration: Duration, stop: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(duration) => {}
        () = stop.cancelled() => {}
    }
}
