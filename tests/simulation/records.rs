//! What stands in the ledger, what is asked of it, and what its transactions did.

use pulp_model::{
    Attempt, Epoch, TaskId, Timestamp,
    deadline::Overrun,
    task::{Claim, Owner, TaskClass, TaskState},
};
use pulp_store::workers::Serving;

/// What is taken out of the system, to see that the checks notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Mutation {
    /// Nothing: the system as it is.
    #[default]
    None,
    /// A run's end is committed without a look at state and attempt.
    NoCommitFence,
    /// The leader's writes are accepted under any epoch, and nothing in the database refuses a conflict.
    NoEpochCondition,
    /// Messages are sent after the commit, by whoever is still there to send them.
    NoOutbox,
    /// A worker goes on though it could not renew its lease.
    NoSelfFence,
    /// The lock table lets a task pass others that came before it.
    Overtaking,
    /// The leader knows of no task but those whose messages it got.
    NoLookBack,
    /// Nobody ends a run over its worker's head that goes on for too long.
    NoExpiry,
    /// A task that was asked to stop and commits all the same leaves what it made to be run.
    NoWithdrawal,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) class: TaskClass,
    pub(crate) kind: String,
    pub(crate) version: i64,
    pub(crate) owner: Owner,
    pub(crate) claims: Vec<Claim>,
}

/// A message on its way; the number is unique to what owes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) number: u64,
    pub(crate) queue: Queue,
    pub(crate) task: TaskId,
    pub(crate) attempt: Attempt,
    /// Whether it says that the task is in a terminal state.
    pub(crate) terminal: bool,
    /// Whether it says what the task is, as it was made.
    pub(crate) made: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Queue {
    Intake,
    Class(TaskClass),
}

/// One run of a worker process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) name: String,
    pub(crate) number: u64,
}

/// A right to run, as the store's `TaskLease`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) task: TaskId,
    pub(crate) attempt: Attempt,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claimed {
    Ours,
    Refused,
    WorkerLost,
    Unreadable,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Heartbeat {
    Alive { cancel: Vec<TaskId> },
    Lost,
}

#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) state: TaskState,
    pub(crate) attempt: Attempt,
    pub(crate) lost: i64,
    pub(crate) request: Request,
    /// The task that made it.
    pub(crate) parent: Option<TaskId>,
    pub(crate) created: Timestamp,
    pub(crate) not_before: Option<Timestamp>,
    /// Until then it keeps nobody from anything.
    pub(crate) steps_aside: bool,
    pub(crate) declined: i64,
    pub(crate) accepted: Option<Timestamp>,
    pub(crate) started: Option<Timestamp>,
    pub(crate) progressed: Option<Timestamp>,
    pub(crate) worker: Option<Life>,
    pub(crate) cancel_requested: Option<Timestamp>,
}

#[derive(Debug)]
pub(crate) struct WorkerRow {
    pub(crate) number: u64,
    pub(crate) expires: Timestamp,
    pub(crate) serving: Serving,
}

#[derive(Debug)]
pub(crate) struct LeaseRow {
    pub(crate) holder: String,
    pub(crate) epoch: Epoch,
    pub(crate) expires: Timestamp,
}

/// What a transaction did, for the monitor to judge.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Leads(Epoch),
    Enqueued(TaskId),
    /// The cancel of a task and all that it made was asked for.
    TreeCanceled(TaskId),
    Granted {
        task: TaskId,
        attempt: Attempt,
        epoch: Epoch,
        /// Before the instant that it is to wait for.
        early: bool,
    },
    Claimed {
        task: TaskId,
        attempt: Attempt,
    },
    Committed {
        task: TaskId,
        attempt: Attempt,
        state: TaskState,
    },
    WaitsAgain(TaskId),
    /// Ended without its worker.
    Ended(TaskId),
    /// About to be ended without its worker, since it takes too long.
    Expired {
        task: TaskId,
        overrun: Overrun,
    },
    Owes(Message),
}
