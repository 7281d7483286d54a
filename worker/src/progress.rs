//! A task's progress report: steps under the importer's or distributor's id, written at most twice a second.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use pulp_model::progress::{Step, StepError, StepState};
use pulp_store::{Store, TaskLease};
use serde_json::{Value, json};
use tokio::time::Instant;

/// How often a changed report is written.
const PERIOD: Duration = Duration::from_millis(500);

/// The steps of one task. Clones are handles of the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    steps: Mutex<Steps>,
    /// Counts whatever shows that the run moves.
    beats: AtomicU64,
    /// Whether the run is at its end, and writes its report itself.
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Steps {
    owner: String,
    list: Vec<Step>,
    changed: bool,
}

/// Handle of one step.
#[derive(Debug, Clone)]
pub(crate) struct StepHandle {
    report: Report,
    index: usize,
}

impl Report {
    /// Under whose id the steps stand: the importer's or the distributor's.
    pub(crate) fn of(&self, owner: &str) {
        self.change(|steps| owner.clone_into(&mut steps.owner));
    }

    /// Announces a step; it has not begun.
    pub(crate) fn step(&self, step_type: &str, description: &str, items_total: u64) -> StepHandle {
        let mut index = 0;
        self.change(|steps| {
            index = steps.list.len();
            steps.list.push(Step::new(step_type, description, items_total));
        });
        StepHandle {
            report: self.clone(),
            index,
        }
    }

    /// Marks what is not at its end: the one under way failed or canceled.
    pub(crate) fn end_all(&self, state: StepState, error: Option<&str>) {
        self.change(|steps| {
            for step in &mut steps.list {
                let under_way = step.state == StepState::InProgress;
                if state == StepState::Cancelled && (under_way || step.state == StepState::NotStarted) {
                    step.state = state;
                } else if under_way {
                    step.state = state;
                    step.num_failures += 1;
                    step.num_processed += 1;
                    step.error_details.push(StepError {
                        error: error.map(ToOwned::to_owned),
                        traceback: None,
                    });
                }
            }
        });
    }

    /// The report as the task's row has it.
    pub(crate) fn to_json(&self) -> Value {
        self.lock().to_json()
    }

    /// `{step id: state}` and the steps, as histories have them.
    pub(crate) fn summary_and_details(&self) -> (Value, Value) {
        let steps = self.lock();
        let summary: serde_json::Map<_, _> = steps
            .list
            .iter()
            .map(|s| (s.step_type.clone(), json!(s.state)))
            .collect();
        (Value::Object(summary), json!(steps.list))
    }

    /// The run moves: bytes came, an item was looked at. Cheap; for what the steps don't show.
    pub(crate) fn beat(&self) {
        self.0.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// How often the run has been seen to move.
    pub(crate) fn beats(&self) -> u64 {
        self.0.beats.load(Ordering::Relaxed)
    }

    /// The run is at its end: what is written from now on, it writes with its effect.
    pub(crate) fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
    }

    fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::SeqCst)
    }

    /// The step under way, in words.
    pub(crate) fn under_way(&self) -> Option<String> {
        let steps = self.lock();
        let step = steps
            .list
            .iter()
            .rev()
            .find(|step| step.state == StepState::InProgress)?;
        let mut text = format!(
            "{} {} of {}",
            step.description,
            step.num_processed,
            step.items_total.max(step.num_processed)
        );
        if !step.details.is_empty() {
            text.push_str(", ");
            text.push_str(&step.details);
        }
        Some(text)
    }

    /// Writes changes for as long as it is polled, and each `touch` that the run moves, if only its beats show that.
    /// Returns when the attempt is over, which nothing else tells a run that is ended over its worker's head.
    pub(crate) async fn write_through(&self, store: &Store, lease: &TaskLease, touch: Duration) {
        let (mut beats, mut written) = (self.beats(), Instant::now());
        while !self.is_closed() {
            tokio::time::sleep(PERIOD).await;
            let moves = self.beats() != beats && written.elapsed() >= touch;
            let report = {
                let mut steps = self.lock();
                (std::mem::take(&mut steps.changed) || moves).then(|| steps.to_json())
            };
            let Some(report) = report.filter(|_| !self.is_closed()) else {
                continue;
            };
            (beats, written) = (self.beats(), Instant::now());
            match store.write_progress(lease, &report).await {
                Ok(true) => {}
                // Its own end is one, too.
                Ok(false) if self.is_closed() => {}
                Ok(false) => return,
                Err(e) => {
                    tracing::debug!(error = %e, "progress not written");
                    self.lock().changed = true;
                }
            }
        }
        std::future::pending::<()>().await;
    }

    fn change(&self, with: impl FnOnce(&mut Steps)) {
        let mut steps = self.lock();
        with(&mut steps);
        steps.changed = true;
        drop(steps);
        self.beat();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Steps> {
        self.0.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Steps {
    fn to_json(&self) -> Value {
        if self.list.is_empty() {
            return json!({});
        }
        json!({ self.owner.clone(): self.list })
    }
}

impl StepHandle {
    pub(crate) fn begin(&self) {
        self.change(|s| s.state = StepState::InProgress);
    }

    pub(crate) fn add_total(&self, items: u64) {
        self.change(|s| s.items_total += items);
    }

    pub(crate) fn advance(&self, items: u64) {
        self.change(|s| {
            s.num_success += items;
            s.num_processed += items;
        });
    }

    pub(crate) fn details(&self, text: String) {
        self.change(|s| s.details = text);
    }

    /// See [`Report::beat`].
    pub(crate) fn beat(&self) {
        self.report.beat();
    }

    pub(crate) fn finish(&self) {
        self.change(|s| {
            s.state = StepState::Finished;
            s.items_total = s.items_total.max(s.num_processed);
        });
    }

    fn change(&self, with: impl FnOnce(&mut Step)) {
        self.report.change(|steps| {
            if let Some(step) = steps.list.get_mut(self.index) {
                with(step);
            }
        });
    }
}
