//! What can go wrong with blobs, by what the caller can do about it.

use std::{error::Error, io, path::Path};

use pulp_model::{Algorithm, CodedError, Digest, ErrorCode};

/// A fault of the content store.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The bytes are others than promised. Nothing was kept; trying again with the same bytes is useless.
    #[error("the bytes hash to {got}, not to {expected} as they should ({size} bytes)")]
    Mismatch {
        /// What was promised.
        expected: Digest,
        /// What came.
        got: Digest,
        /// How many bytes came.
        size: u64,
    },
    /// The blob is not here.
    #[error("{0} is not in the content store")]
    NotFound(Digest),
    /// The first byte asked for lies behind the end.
    #[error("{digest} has {size} bytes; the range asked for begins at {start}")]
    Range {
        /// The blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// The first byte asked for.
        start: u64,
    },
    /// The writer hashes with another algorithm than the digest's: open it by `writer_with`.
    #[error("the writer computes {writer:?} and can't commit {expected}")]
    Algorithm {
        /// What the writer computes.
        writer: Algorithm,
        /// What it should be committed as.
        expected: Digest,
    },
    /// An owner's name that can't name a directory.
    #[error(
        "{0:?} can't own temporary files: give 1 to 200 letters, digits, '.', '_' and '-', the first no '.'"
    )]
    Owner(String),
    /// The configuration names no usable store.
    #[error("content.url {url:?} can't be used: {reason}")]
    Config {
        /// The url as configured.
        url: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The disk or the object store failed; trying again may help.
    #[error("content store: can't {what}: {source}")]
    Storage {
        /// What was tried, with the file or key.
        what: String,
        /// Why it failed.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl ContentError {
    pub(crate) fn file(verb: &str, path: &Path, source: io::Error) -> Self {
        Self::Storage {
            what: format!("{verb} {}", path.display()),
            source: Box::new(source),
        }
    }

    pub(crate) fn object(verb: &str, key: impl std::fmt::Display, source: object_store::Error) -> Self {
        Self::Storage {
            what: format!("{verb} {key}"),
            source: Box::new(source),
        }
    }

    pub(crate) fn task(source: tokio::task::JoinError) -> Self {
        Self::Storage {
            what: "finish a file operation".to_owned(),
            source: Box::new(source),
        }
    }

    /// As the REST API and a failed task's row have it.
    pub fn coded(&self) -> CodedError {
        match self {
            Self::Mismatch { expected, got, size } => {
                CodedError::new(ErrorCode::DIGEST_MISMATCH, format!("{self}; nothing was kept"))
                    .with("expected", expected)
                    .with("got", got)
                    .with("size", size)
            }
            _ => CodedError::new(ErrorCode::INTERNAL, self.to_string()),
        }
    }

    /// As an error of `std::io`, for code that only knows those; [`Self::from_io`] gets it back.
    pub fn into_io(self) -> io::Error {
        io::Error::other(self)
    }

    /// The error that [`Self::into_io`] wrapped, or a storage fault.
    pub fn from_io(error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(own) => own,
            Err(source) => Self::Storage {
                what: "write a blob".to_owned(),
                source: Box::new(source),
            },
        }
    }
}
