//! What can go wrong with a publication, by what the caller can do about it.

use std::{
    io::{self, ErrorKind},
    path::PathBuf,
};

use pulp_model::{CodedError, ErrorCode};

use crate::ClosureError;

/// Why a tree could not be published, pruned or removed.
#[derive(Debug, thiserror::Error)]
pub enum PublicationError {
    /// Something is missing from the repository; publishing again won't help until it is there.
    #[error(transparent)]
    Closure(#[from] ClosureError),
    /// The file system refused; trying again may help.
    #[error("can't {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl PublicationError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// The error as clients of the REST API see it.
    pub fn coded(&self) -> CodedError {
        match self {
            Self::Closure(e) => e.coded(),
            Self::Io { path, source, .. }
                if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
            {
                let text = format!(
                    "{self}; make room, then publish again: what was published before is still there"
                );
                CodedError::new(ErrorCode::NO_SPACE, text).with("path", path.display().to_string())
            }
            Self::Io { path, .. } => CodedError::new(
                ErrorCode::INTERNAL,
                format!("{self}; check the permissions of the publish directory, then publish again"),
            )
            .with("file", path.display().to_string()),
        }
    }
}
