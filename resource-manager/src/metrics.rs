//! The leader's figures for Prometheus.
//!
//! What the lock table knows is told from it, so that nothing is counted in the database whose cost would grow with the
//! number of waiting tasks; what is read there is bounded by what runs.

use std::{
    collections::BTreeMap,
    sync::{LazyLock, Mutex, PoisonError},
    time::Instant,
};

use prometheus::{
    Gauge, GaugeVec, HistogramVec, IntCounter, IntGauge, IntGaugeVec, exponential_buckets, register_gauge,
    register_gauge_vec, register_histogram_vec, register_int_counter, register_int_gauge,
    register_int_gauge_vec,
};
use pulp_model::{
    Attempt, Epoch, Timestamp,
    task::{TaskClass, TaskState},
};
use pulp_runtime::registered_metric;
use pulp_store::{Store, StoreError, grants::LiveTask};

use crate::lock_table::LockTable;

static LEADER_EPOCH: LazyLock<IntGauge> = registered_metric!(register_int_gauge!(
    "pulp_leader_epoch",
    "Epoch of this process's leadership; 0 while another leads"
));
static LIVE: LazyLock<IntGaugeVec> = registered_metric!(register_int_gauge_vec!(
    "pulp_tasks_live",
    "Tasks that have not ended, by class and state; accepted ones are granted and unclaimed",
    &["class", "state"]
));
static OLDEST_WAITING: LazyLock<Gauge> = registered_metric!(register_gauge!(
    "pulp_tasks_oldest_waiting_seconds",
    "Age of the oldest task that waits, for whatever; 0 if none does"
));
static RUNNABLE: LazyLock<IntGaugeVec> = registered_metric!(register_int_gauge_vec!(
    "pulp_tasks_runnable_unclaimed",
    "Tasks that lack nothing but a free slot of their class: more workers would run them at once",
    &["class"]
));
static OLDEST_RUNNABLE: LazyLock<GaugeVec> = registered_metric!(register_gauge_vec!(
    "pulp_tasks_runnable_oldest_seconds",
    "Age of the oldest task that lacks nothing but a free slot, by class; 0 if there is none",
    &["class"]
));
static UNSERVED: LazyLock<IntGaugeVec> = registered_metric!(register_int_gauge_vec!(
    "pulp_tasks_unserved",
    "Waiting tasks that no live worker can run: none serves their class, or none knows their kind or its version",
    &["class"]
));
static LOCK_WAIT: LazyLock<HistogramVec> = registered_metric!(register_histogram_vec!(
    "pulp_task_lock_wait_seconds",
    "Time from the creation of a task to its first grant: for its resources, and for its turn in the class",
    &["class"],
    exponential_buckets(0.002, 2.0, 22).unwrap_or_default()
));
static OUTBOX_DEPTH: LazyLock<IntGauge> = registered_metric!(register_int_gauge!(
    "pulp_outbox_depth",
    "Messages that wait for the broker's confirm; counted up to 100000"
));
static OUTBOX_LAG: LazyLock<Gauge> = registered_metric!(register_gauge!(
    "pulp_outbox_lag_seconds",
    "Age of the oldest message in the outbox"
));
static VIOLATIONS: LazyLock<IntGauge> = registered_metric!(register_int_gauge!(
    "pulp_reservation_violations",
    "Reservations that conflict or have no owner; must be 0"
));
static GRANTED: LazyLock<IntCounter> = registered_metric!(register_int_counter!(
    "pulp_grants_total",
    "Tasks granted by this process"
));
static REVOKED: LazyLock<IntCounter> = registered_metric!(register_int_counter!(
    "pulp_revocations_total",
    "Running tasks taken from dead workers"
));
static EXPIRED: LazyLock<IntCounter> = registered_metric!(register_int_counter!(
    "pulp_expirations_total",
    "Running tasks that were ended over their worker's head: beyond the hard deadline, or without progress"
));
static QUIET: LazyLock<IntGaugeVec> = registered_metric!(register_int_gauge_vec!(
    "pulp_tasks_stalled",
    "Running tasks that have shown no progress for tasks.stalled_after, by class",
    &["class"]
));

/// This process leads, or leads no more: then it knows nothing, and what it showed is another's to show.
pub(crate) fn leading(epoch: Option<Epoch>) {
    LEADER_EPOCH.set(epoch.map_or(0, |e| e.0));
    if epoch.is_none() {
        LIVE.reset();
        RUNNABLE.reset();
        OLDEST_RUNNABLE.reset();
        UNSERVED.reset();
        OLDEST_WAITING.set(0.0);
        OUTBOX_DEPTH.set(0);
        OUTBOX_LAG.set(0.0);
        VIOLATIONS.set(0);
    }
}

pub(crate) fn granted(tasks: usize) {
    GRANTED.inc_by(tasks as u64);
}

pub(crate) fn revoked(tasks: usize) {
    REVOKED.inc_by(tasks as u64);
}

pub(crate) fn expired(tasks: usize) {
    EXPIRED.inc_by(tasks as u64);
}

pub(crate) fn quiet(by_class: &BTreeMap<TaskClass, i64>) {
    for (class, tasks) in by_class {
        QUIET.with_label_values(&[class.as_str()]).set(*tasks);
    }
}

pub(crate) fn violations(found: i64) {
    VIOLATIONS.set(found);
}

/// The database's clock, as seen last.
static CLOCK: Mutex<Option<(Timestamp, Instant)>> = Mutex::new(None);

/// The database's clock shows this now.
pub(crate) fn clock(now: Timestamp) {
    *CLOCK.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, Instant::now()));
}

/// Seconds by the database's clock since `then`.
fn since(then: Timestamp) -> f64 {
    let seen = *CLOCK.lock().unwrap_or_else(PoisonError::into_inner);
    seen.map_or(0.0, |(now, at)| {
        let then = (now.micros() - then.micros()) as f64 / 1e6;
        (then + at.elapsed().as_secs_f64()).max(0.0)
    })
}

/// A task, as it was just before its grant.
pub(crate) fn waited(task: &LiveTask) {
    // A later grant waited for a worker's death before.
    if task.attempt == Attempt(0) {
        LOCK_WAIT
            .with_label_values(&[task.class.as_str()])
            .observe(since(task.created));
    }
}

/// Waiting tasks of a class that are held back for other reasons than resources and room.
#[derive(Debug, Default)]
pub(crate) struct HeldBack {
    /// They have no place in the lock table until their instant comes.
    pub(crate) parked: usize,
    /// No live worker can run them.
    pub(crate) unserved: usize,
}

/// Shows what the lock table knows, and what is held back.
pub(crate) fn show(table: &LockTable, held_back: impl Fn(TaskClass) -> HeldBack) {
    for class in TaskClass::ALL {
        let label = class.as_str();
        let held = held_back(class);
        LIVE.with_label_values(&[label, TaskState::Waiting.as_str()])
            .set((table.waiting_in(class) + held.parked) as i64);
        let (ready, oldest) = table.runnable_in(class);
        RUNNABLE.with_label_values(&[label]).set(ready as i64);
        OLDEST_RUNNABLE
            .with_label_values(&[label])
            .set(oldest.map_or(0.0, since));
        UNSERVED.with_label_values(&[label]).set(held.unserved as i64);
    }
}

/// Reads what only the database knows, upon what [`show`] showed.
pub(crate) async fn read_figures(store: &Store) -> Result<(), StoreError> {
    let figures = store.live_figures().await?;
    for class in TaskClass::ALL {
        for state in [TaskState::Accepted, TaskState::Running] {
            // Those that the query doesn't mention are none.
            let found = figures.iter().find(|f| f.class == class && f.state == state);
            let count = found.map_or(0, |f| f.count);
            LIVE.with_label_values(&[class.as_str(), state.as_str()])
                .set(count);
            if let (TaskState::Accepted, Some(found)) = (state, found) {
                RUNNABLE.with_label_values(&[class.as_str()]).add(count);
                let oldest = OLDEST_RUNNABLE.with_label_values(&[class.as_str()]);
                oldest.set(oldest.get().max(found.oldest.as_secs_f64()));
            }
        }
    }
    OLDEST_WAITING.set(store.oldest_waiting().await?.as_secs_f64());
    let outbox = store.outbox_figures().await?;
    OUTBOX_DEPTH.set(outbox.depth);
    OUTBOX_LAG.set(outbox.lag.as_secs_f64());
    Ok(())
}
