//! A worker's figures for Prometheus.

use std::{sync::LazyLock, time::Instant};

use prometheus::{
    HistogramVec, IntCounterVec, IntGaugeVec, exponential_buckets, register_histogram_vec,
    register_int_counter_vec, register_int_gauge_vec,
};
use pulp_model::{
    Attempt,
    task::{TaskClass, TaskKind},
};
use pulp_runtime::registered_metric;
use pulp_store::ClaimedTask;

static RUNNING: LazyLock<IntGaugeVec> = registered_metric!(register_int_gauge_vec!(
    "pulp_worker_running",
    "Tasks that run in this process",
    &["class"]
));
static RUN_TIME: LazyLock<HistogramVec> = registered_metric!(register_histogram_vec!(
    "pulp_task_run_seconds",
    "Time from claim to end of a run, by class and how it ended",
    &["class", "outcome"],
    exponential_buckets(0.005, 2.0, 20).unwrap_or_default()
));
static CLAIMS: LazyLock<IntCounterVec> = registered_metric!(register_int_counter_vec!(
    "pulp_claims_total",
    "Grants that this process tried to claim",
    &["class", "outcome"]
));

static QUEUE_TIME: LazyLock<HistogramVec> = registered_metric!(register_histogram_vec!(
    "pulp_task_queue_seconds",
    "Time from the creation of a task to its first claim, by class",
    &["class"],
    exponential_buckets(0.002, 2.0, 22).unwrap_or_default()
));

/// How a run ended, as the figures tell it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ended {
    Well,
    Failed,
    /// Its deadline came, or it stood still.
    Overran,
    Canceled,
    GivenBack,
    /// It waits for an upstream that lets it ask no more for now.
    Parked,
    Fenced,
}

impl Ended {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Well => "finished",
            Self::Failed => "error",
            Self::Overran => "overran",
            Self::Canceled => "canceled",
            Self::GivenBack => "given_back",
            Self::Parked => "parked",
            Self::Fenced => "fenced",
        }
    }
}

/// A grant was claimed, refused, or could not be claimed.
pub(crate) fn claimed(class: TaskClass, outcome: &'static str) {
    CLAIMS.with_label_values(&[class.as_str(), outcome]).inc();
}

/// How long a task waited for its first run, by the database's clock.
pub(crate) fn queued(class: TaskClass, attempt: Attempt, task: &ClaimedTask) {
    // A later one waited for a worker's death before.
    if attempt == Attempt(1) {
        let micros = (task.claimed.micros() - task.created.micros()).max(0);
        QUEUE_TIME
            .with_label_values(&[class.as_str()])
            .observe(micros as f64 / 1e6);
    }
}

/// A run under way; counts as running until it is told how it ended.
#[derive(Debug)]
pub(crate) struct Run {
    class: TaskClass,
    began: Instant,
}

impl Run {
    pub(crate) fn begin(kind: &TaskKind) -> Self {
        let class = kind.class();
        RUNNING.with_label_values(&[class.as_str()]).inc();
        Self {
            class,
            began: Instant::now(),
        }
    }

    pub(crate) fn end(&self, how: Ended) {
        let took = self.began.elapsed().as_secs_f64();
        RUN_TIME
            .with_label_values(&[self.class.as_str(), how.as_str()])
            .observe(took);
        pulp_trace::note("task.outcome", how.as_str());
        if !matches!(how, Ended::Well | Ended::Canceled | Ended::Parked) {
            pulp_trace::note_failure(how.as_str());
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        RUNNING.with_label_values(&[self.class.as_str()]).dec();
    }
}
