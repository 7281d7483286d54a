//! The leader's figures for Prometheus.

use std::{collections::BTreeMap, sync::LazyLock};

use prometheus::{
    Gauge, GaugeVec, IntCounter, IntGauge, IntGaugeVec, register_gauge, register_gauge_vec,
    register_int_counter, register_int_gauge, register_int_gauge_vec,
};
use pulp_model::{
    Epoch,
    task::{TaskClass, TaskState},
};
use pulp_runtime::registered_metric;
use pulp_store::{Store, StoreError};

static LEADER_EPOCH: LazyLock<IntGauge> = registered_metric!(register_int_gauge!(
    "pulp_leader_epoch",
    "Epoch of this process's leadership; 0 while another leads"
));
static LIVE: LazyLock<IntGaugeVec> = registered_metric!(register_int_gauge_vec!(
    "pulp_tasks_live",
    "Tasks that have not ended, by class and state; accepted ones are runnable and unclaimed",
    &["class", "state"]
));
static OLDEST: LazyLock<GaugeVec> = registered_metric!(register_gauge_vec!(
    "pulp_tasks_oldest_seconds",
    "Age of the oldest task that has not ended, by class and state",
    &["class", "state"]
));
static OUTBOX_DEPTH: LazyLock<IntGauge> = registered_metric!(register_int_gauge!(
    "pulp_outbox_depth",
    "Messages that wait for the broker's confirm"
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

/// This process leads, or leads no more.
pub(crate) fn leading(epoch: Option<Epoch>) {
    LEADER_EPOCH.set(epoch.map_or(0, |e| e.0));
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

/// Reads the installation's figures.
pub(crate) async fn read_figures(store: &Store) -> Result<(), StoreError> {
    for class in TaskClass::ALL {
        for state in [TaskState::Waiting, TaskState::Accepted, TaskState::Running] {
            // Those that the query doesn't mention are none.
            LIVE.with_label_values(&[class.as_str(), state.as_str()]).set(0);
            OLDEST
                .with_label_values(&[class.as_str(), state.as_str()])
                .set(0.0);
        }
    }
    for figures in store.live_figures().await? {
        let labels = [figures.class.as_str(), figures.state.as_str()];
        LIVE.with_label_values(&labels).set(figures.count);
        OLDEST
            .with_label_values(&labels)
            .set(figures.oldest.as_secs_f64());
    }
    let outbox = store.outbox_figures().await?;
    OUTBOX_DEPTH.set(outbox.depth);
    OUTBOX_LAG.set(outbox.lag.as_secs_f64());
    Ok(())
}
