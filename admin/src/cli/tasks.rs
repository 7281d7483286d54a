//! Options of `tasks …`.

use clap::{Args, Subcommand};
use pulp_model::{RepositoryId, task::TaskState};

use super::values;
use crate::criteria::CriteriaArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum Tasks {
    /// list tasks; those not yet ended if not told otherwise
    List(TaskListArgs),
    /// display all about a task: why it waits, and what befell it
    Details(TaskArgs),
    /// cancel a task and what it made, or a group of tasks
    Cancel(CancelArgs),
    /// search among all tasks
    Search(TaskSearchArgs),
    /// forget tasks that have ended
    Purge(PurgeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct TaskArgs {
    /// id of the task
    #[arg(long, value_name = "ID")]
    pub(crate) task_id: String,
}

#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// id of the task; what it made, such as the publishes after a sync, is canceled with it
    #[arg(
        long,
        value_name = "ID",
        required_unless_present = "group_id",
        conflicts_with = "group_id"
    )]
    pub(crate) task_id: Option<String>,
    /// id of a group of tasks
    #[arg(long, value_name = "ID")]
    pub(crate) group_id: Option<String>,
    /// only the task itself, not what it made
    #[arg(long, conflicts_with = "group_id")]
    pub(crate) alone: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TaskListArgs {
    /// tasks of every state
    #[arg(short, long, conflicts_with = "state")]
    pub(crate) all: bool,
    /// tasks of these states, separated by commas
    #[arg(short, long, value_name = "A,B", value_delimiter = ',', value_parser = values::task_state)]
    pub(crate) state: Vec<TaskState>,
    /// only tasks of this repository
    #[arg(long)]
    pub(crate) repo_id: Option<RepositoryId>,
}

#[derive(Debug, Args)]
pub(crate) struct TaskSearchArgs {
    /// all about each task
    #[arg(short, long)]
    pub(crate) details: bool,
    #[command(flatten)]
    pub(crate) criteria: Box<CriteriaArgs>,
}

#[derive(Debug, Args)]
#[group(id = "which", required = true, multiple = false, args = ["all", "state"])]
pub(crate) struct PurgeArgs {
    /// every task that has ended
    #[arg(short, long)]
    pub(crate) all: bool,
    /// ended tasks of these states, separated by commas
    #[arg(short, long, value_name = "A,B", value_delimiter = ',', value_parser = values::task_state)]
    pub(crate) state: Vec<TaskState>,
}
