//! What can go wrong in a worker and in a task.

use std::time::Duration;

use pulp_content::ContentError;
use pulp_liveness::LivenessError;
use pulp_model::{CodedError, ErrorCode};
use pulp_publication::{ClosureError, PublicationError};
use pulp_store::StoreError;
use pulp_transfer::TransferError;

/// Why a worker can't work at all.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The lease can't be kept.
    #[error("the worker's lease can't be kept")]
    Liveness(#[from] LivenessError),
    /// The working directory can't be made.
    #[error("the working directory can't be made: {0}")]
    WorkingDirectory(std::io::Error),
}

/// Why a run of a task ended without its effect.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    /// What was asked for can't be done; trying again gives the same.
    #[error("{0}")]
    Rejected(#[from] CodedError),
    /// The run was told to stop.
    #[error("stopped")]
    Stopped,
    /// It can't go on for a while, by no fault of anybody here; its worker is given back meanwhile.
    #[error("{why}; goes on in {} s", pause.as_secs())]
    NotYet {
        /// How long.
        pause: Duration,
        /// What it waits for.
        why: String,
    },
    /// The store; a fenced attempt is one of its errors.
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    /// The content volume.
    #[error("the content store: {0}")]
    Content(#[from] ContentError),
    /// The published files.
    #[error("the published files: {0}")]
    Publication(#[from] PublicationError),
    /// A file of our own.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A bug of ours; caught, so that it ends one task and not the worker.
    #[error("the task's code failed: {0}")]
    Bug(String),
}

impl TaskError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Whether the database was away: no fault of the task, which may be begun again.
    pub(crate) const fn is_outage(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_transient())
    }

    /// As the task's row and its clients see it.
    pub(crate) fn coded(&self) -> CodedError {
        match self {
            Self::Rejected(error) => error.clone(),
            Self::Content(error) => error.coded(),
            Self::Publication(error) => error.coded(),
            Self::Stopped | Self::NotYet { .. } | Self::Store(_) | Self::Io { .. } | Self::Bug(_) => {
                CodedError::new(
                    ErrorCode::INTERNAL,
                    format!("{self}; see the worker's log, then try again"),
                )
            }
        }
    }
}

impl From<ClosureError> for TaskError {
    fn from(error: ClosureError) -> Self {
        Self::Rejected(error.coded())
    }
}

impl From<TransferError> for TaskError {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::Stopped => Self::Stopped,
            TransferError::Io { what, source } => Self::Io { what, source },
            other => Self::Rejected(other.coded()),
        }
    }
}
