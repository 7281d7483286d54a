//! Fires schedules and the periodic duties.
//!
//! Any number of these processes run. All of them fire schedules: whoever is first fires a slot, and nobody after it.
//! A duty is done under a short lease, so that one of them does it at a time; each duty is safe to do twice all the
//! same.

use std::{sync::LazyLock, time::Duration};

use prometheus::{IntCounterVec, register_int_counter_vec};
use pulp_content::{ContentError, ContentStore};
use pulp_liveness::presence;
use pulp_model::TaskId;
use pulp_runtime::registered_metric;
use pulp_store::{Store, StoreError};
use pulp_trace::{Span, SpanKind};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

static FIRES: LazyLock<IntCounterVec> = registered_metric!(register_int_counter_vec!(
    "pulp_schedule_fires_total",
    "Slots of schedules: fired by this process, or failed and put off",
    &["outcome"]
));

/// The role, in leases and in the list of processes.
const ROLE: &str = "scheduler";

/// Rows that one transaction of the retention deletes.
const PURGE_BATCH: u32 = 1000;

/// Schedules that are looked at in one go; more are due when a long outage ends.
const DUE_BATCH: u32 = 1000;

/// How the scheduler works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How often it looks for slots to fire; so late a slot is at most.
    pub fire_every: Duration,
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
            fire_every: Duration::from_secs(1),
            period: Duration::from_secs(30),
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
    let firing = fire_schedules(settings.fire_every, &store, &stop);
    let duties = async {
        while wait(settings.period, &stop).await {
            if let Err(e) = do_duties(&settings, &store, &content, &holder).await {
                tracing::warn!(error = %e, "duties are put off");
            }
        }
    };
    // A long duty holds up no slot.
    tokio::join!(firing, duties);
    if let Err(e) = shown.await {
        tracing::debug!(error = %e, "presence");
    }
}

/// False if it is to end.
async fn wait(time: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = tokio::time::sleep(time) => true,
        () = stop.cancelled() => false,
    }
}

async fn fire_schedules(every: Duration, store: &Store, stop: &CancellationToken) {
    while wait(every, stop).await {
        if let Err(e) = fire_due(store, stop).await {
            tracing::warn!(error = %e, "schedules are put off");
        }
    }
}

/// Fires what is due, each schedule by itself: one that can't be fired is no obstacle for those after it. Answers
/// how many slots were fired here.
async fn fire_due(store: &Store, stop: &CancellationToken) -> Result<u64, StoreError> {
    let mut fired = 0;
    for due in store.due_schedules(DUE_BATCH).await? {
        if stop.is_cancelled() {
            break;
        }
        let span = Span::below(None, "schedule.fire", SpanKind::Internal);
        span.set("pulp.schedule", &due.id);
        span.set("pulp.repository", &due.repo_id);
        match span.of(store.fire(&due)).await {
            Ok(Some(slot)) => {
                fired += 1;
                FIRES.with_label_values(&["fired"]).inc();
                tracing::info!(schedule = %due.id, repository = %due.repo_id, slot = %slot.slot, task = %slot.task_id,
                    "a schedule has fired");
            }
            // Another scheduler was first.
            Ok(None) => {}
            Err(e) => {
                FIRES.with_label_values(&["failed"]).inc();
                tracing::warn!(schedule = %due.id, repository = %due.repo_id, error = %e, "a slot is put off");
            }
        }
    }
    Ok(fired)
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
    store.forget_journals().await?;
    match sweep_temporary_blobs(settings, store, content).await {
        Ok(0) => {}
        Ok(swept) => tracing::info!(swept, "temporary blobs of the dead were removed"),
        Err(e) => tracing::warn!(error = %e, "temporary blobs stay behind"),
    }
    store.resign_lease(ROLE, holder, epoch).await
}

/// Removes what attempts left whose task is over: their worker was killed after its end, or the volume was read-only when
/// it wanted to. What is of no task goes by its age.
async fn sweep_temporary_blobs(
    settings: &Settings,
    store: &Store,
    content: &ContentStore,
) -> Result<usize, Untidy> {
    let owners = content.tmp_owners().await?;
    let tasks: Vec<TaskId> = owners.iter().filter_map(|o| TaskId::of_attempt(o)).collect();
    // Asked after the owners were listed: a task that began since is none of them.
    let over = store.tasks_over(&tasks).await?;
    let mut swept = 0;
    for owner in owners {
        if TaskId::of_attempt(&owner).is_some_and(|task| over.contains(&task)) {
            swept += content.sweep_tmp(&owner).await?;
        }
    }
    Ok(swept
        + content
            .sweep_tmp_older_than(settings.keep_temporary_blobs)
            .await?)
}

/// Why something stays behind; the next time may do better.
#[derive(Debug, thiserror::Error)]
enum Untidy {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Content(#[from] ContentError),
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
            break;
        }
    }
    let mut tx = store.begin().await?;
    tx.prune_fires().await?;
    tx.commit().await?;
    Ok(purged)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use pulp_content::ContentOptions;
    use pulp_model::task::TaskKind;
    use pulp_store::{
        repositories::NewRepository,
        schedules::{NewSchedule, Target},
    };

    use super::*;

    async fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("p.db").display());
        let store = Store::connect(&url, 4).await.unwrap();
        store.migrate().await.unwrap();
        (dir, store)
    }

    #[tokio::test]
    async fn a_slot_is_fired_while_it_runs_and_once() {
        let (_dir, store) = store().await;
        let repo: pulp_model::RepositoryId = "r".parse().unwrap();
        let mut tx = store.begin().await.unwrap();
        tx.create_repository(&NewRepository {
            id: repo.clone(),
            display_name: "r".to_owned(),
            description: None,
            notes: serde_json::Map::new(),
        })
        .await
        .unwrap();
        tx.put_importer(&repo, "docker_importer", &serde_json::Map::new())
            .await
            .unwrap();
        let target = Target::Sync(repo);
        let schedule = NewSchedule {
            target: target.clone(),
            schedule: ("P1D".to_owned(), "P1D".parse().unwrap()),
            override_config: serde_json::Map::new(),
            enabled: true,
            failure_threshold: None,
        };
        tx.create_schedule(&schedule).await.unwrap().unwrap();
        tx.commit().await.unwrap();

        let stop = CancellationToken::new();
        let watch = async {
            let fired = async {
                while store.schedules_of(&target).await.unwrap()[0].total_run_count == 0 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), fired)
                .await
                .unwrap();
            stop.cancel();
        };
        tokio::join!(fire_schedules(Duration::from_millis(1), &store, &stop), watch);
        assert_eq!(fire_due(&store, &CancellationToken::new()).await.unwrap(), 0);
        assert_eq!(store.schedules_of(&target).await.unwrap()[0].total_run_count, 1);
    }

    #[tokio::test]
    async fn ended_tasks_go_and_waiting_ones_stay_however_old() {
        let (dir, store) = store().await;
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

    #[tokio::test]
    async fn temporary_blobs_go_when_their_task_is_over_and_stay_while_it_is_not() {
        let (dir, store) = store().await;
        let place = dir.path().join("content");
        let content = ContentStore::open_directory(&place, &ContentOptions::default()).unwrap();
        let kind = TaskKind::DeleteRepository {
            repo_id: "r".parse().unwrap(),
        };
        let mut tx = store.begin().await.unwrap();
        let ended = tx.enqueue(&kind).await.unwrap();
        let live = tx.enqueue(&kind).await.unwrap();
        tx.cancel_task(ended).await.unwrap();
        tx.commit().await.unwrap();
        let purged = TaskId::new();
        let over = [format!("{ended}-1"), format!("{purged}-3")];
        let kept = [format!("{live}-1"), "somebody".to_owned()];
        for owner in over.iter().chain(&kept) {
            let left = place.join("tmp").join(owner);
            std::fs::create_dir_all(&left).unwrap();
            std::fs::write(left.join("x"), "half a layer").unwrap();
        }
        let settings = Settings::default();
        assert_eq!(
            sweep_temporary_blobs(&settings, &store, &content).await.unwrap(),
            2
        );
        let mut left = content.tmp_owners().await.unwrap();
        left.sort();
        assert_eq!(left, kept);
    }
}
