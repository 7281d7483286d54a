//! Progress reports: steps with the ids and descriptions of the docker plugin.
//!
//! Upstream: `pulp/plugins/util/publish_step.py`.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// State of one step. `CANCELLED` has two Ls here, unlike the task's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum StepState {
    /// Not begun.
    NotStarted,
    /// Under way.
    InProgress,
    /// Ended well.
    Finished,
    /// Ended badly.
    Failed,
    /// Nothing to do.
    Skipped,
    /// Stopped by a cancel.
    Cancelled,
}

/// One error of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepError {
    /// What went wrong.
    pub error: Option<String>,
    /// Always null here; Pulp 2 put frames of Python in it.
    pub traceback: Option<String>,
}

/// One step's report, as stored and sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Unique within the task.
    pub step_id: Uuid,
    /// The plugin's id, for example `publish_images`.
    pub step_type: String,
    /// What people read; an empty one is not shown by clients.
    pub description: String,
    /// How far it is.
    pub state: StepState,
    /// How many items it will handle; 1 for an unbounded one.
    pub items_total: u64,
    /// `num_success + num_failures`.
    pub num_processed: u64,
    /// Items done.
    pub num_success: u64,
    /// Items failed.
    pub num_failures: u64,
    /// What failed.
    pub error_details: Vec<StepError>,
    /// Shown behind the progress bar.
    pub details: String,
}

impl Step {
    /// A step not yet begun.
    pub fn new(step_type: &str, description: &str, items_total: u64) -> Self {
        Self {
            step_id: Uuid::new_v4(),
            step_type: step_type.to_owned(),
            description: description.to_owned(),
            state: StepState::NotStarted,
            items_total,
            num_processed: 0,
            num_success: 0,
            num_failures: 0,
            error_details: Vec::new(),
            details: String::new(),
        }
    }
}
