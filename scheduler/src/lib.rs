//! Fires schedules and the periodic duties.
//!
//! Any number of these processes run. A duty is done under a short lease, so that one of them does it at a time;
//! each duty is safe to do twice all the same.

use std::time::Duration;

use pulp_content::ContentStore;
use pulp_liveness::presence;
use pulp_store::{Store, StoreError};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The role, in leases and in the list of processes.
const ROLE: &str = "scheduler";

/// Rows that one transaction of the retention deletes.
const PURGE_BATCH: u32 = 1000;

/// How the scheduler works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How often the duties are done.
    pub period: Duration,
    /// How long ended tasks are kept. Pulp 2: `data_reaping.task_status_history`, 7 days.
    pub keep_ended_tasks: Duration,
    /// How long a temporary blob may lie untouched before its writer is taken for dead.
    pub keep_temporary_blobs: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            period: Duration::from_mins(1),
            keep_ended_tasks: Duration::from_hours(7 * 24),
            keep_temporary_blobs: Duration::from_hours(24),
        }
    }
}

/// Runs until `stop` fires.
pub async fn run(settings: Settings, store: Store, content: ContentStore, stop: CancellationToken) {
    let host = presence::host_name();
    let shown = tokio::spawn(presence::show(
        store.clone(),
        ROLE,
        "scheduler",
        host.clone(),
        Duration::from_secs(15),
        stop.clone(),
    ));
    let holder = format!("scheduler@{host}/{}", Uuid::new_v4());
    while !stop.is_cancelled() {
        tokio::select! {
            () = tokio::time::sleep(settings.period) => {}
            () = stop.cancelled() => break,
        }
        if let Err(e) = do_duties(&settings, &store, &content, &holder).await {
            tracing::warn!(error = %e, "duties are put off");
        }
    }
    if let Err(e) = shown.await {
        tracing::debug!(error = %e, "presence");
    }
}

/// Does each duty once, unless another scheduler is at it.
async fn do_duties(
    settings: &Settings,
    store: &Store,
    content: &ContentStore,
    holder: &str,
) -> Result<(), StoreError> {
    let lease = settings.period.max(Duration::from_secs(10));
    let Some(epoch) = store.acquire_lease(ROLE, holder, lease).await? else {
        return Ok(());
    };
    let purged = purge_ended_tasks(store, settings.keep_ended_tasks).await?;
    if purged > 0 {
        tracing::info!(purged, "ended tasks were deleted");
    }
    match content.sweep_tmp_older_than(settings.keep_temporary_blobs).await {
        Ok(0) => {}
        Ok(swept) => tracing::info!(swept, "temporary blobs of the dead were removed"),
        Err(e) => tracing::warn!(error = %e, "temporary blobs stay behind"),
    }
    store.resign_lease(ROLE, holder, epoch).await
}

async fn purge_ended_tasks(store: &Store, keep: Duration) -> Result<u64, StoreError> {
    let keep = i64::try_from(keep.as_micros()).unwrap_or(i64::MAX);
    let before = store.now().await?.plus_micros(-keep);
    let mut purged = 0;
    loop {
        let mut tx = store.begin().await?;
        let some = tx.purge_ended_before(before, PURGE_BATCH).await?;
        tx.commit().await?;
        purged += some;
        if some < u64::from(PURGE_BATCH) {
            return Ok(purged);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use pulp_content::ContentOptions;
    use pulp_model::task::TaskKind;

    use super::*;

    #[tokio::test]
    async fn ended_tasks_go_and_waiting_ones_stay_however_old() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::connect(&format!("sqlite:{}", dir.path().join("p.db").display()), 4)
            .await
            .unwrap();
        store.migrate().await.unwrap();
        let content =
            ContentStore::open_directory(&dir.path().join("content"), &ContentOptions::default()).unwrap();
        let kind = TaskKind::DeleteRepository {
            repo_id: "r".parse().unwrap(),
        };
        let mut tx = store.begin().await.unwrap();
        let canceled = tx.enqueue(&kind).await.unwrap();
        let waiting = tx.enqueue(&kind).await.unwrap();
        tx.cancel_task(canceled).await.unwrap();
        tx.commit().await.unwrap();

        let settings = Settings {
            keep_ended_tasks: Duration::ZERO,
            ..Settings::default()
        };
        do_duties(&settings, &store, &content, "me").await.unwrap();
        assert!(store.task(canceled).await.unwrap().is_none());
        assert!(store.task(waiting).await.unwrap().is_some());
    }
}
