//! What can go wrong with an export, by what the reader can do about it.

use std::{io, path::Path};

use pulp_model::{CodedError, Digest, ErrorCode};

use crate::manifest::{MANIFEST_FILE, SIGNATURE_FILE};

/// A fault of an export, of what it should go into, or of a key.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// It is no export, or of a later format.
    #[error(
        "this is no export that can be imported: {reason}; give the directory that holds {MANIFEST_FILE}"
    )]
    NotAnExport {
        /// What is wrong.
        reason: String,
    },
    /// The export's manifest contradicts itself; it was made badly or changed.
    #[error("the export's manifest contradicts itself: {0}; export again")]
    Inconsistent(String),
    /// There is no signature, and one is asked for.
    #[error(
        "the export has no signature ({SIGNATURE_FILE}); export it with a signing key, or set \
         transfer.require_signature to false to take unsigned exports"
    )]
    Unsigned,
    /// No trusted key made the signature over these bytes.
    #[error(
        "no trusted key made the export's signature: {reason}; if the export is genuine, put its maker's public key \
         into {keys}, else don't use it"
    )]
    WrongSignature {
        /// Why.
        reason: String,
        /// The directory of trusted keys.
        keys: String,
    },
    /// A key's file can't be used.
    #[error("the key {path} can't be used: {reason}")]
    Key {
        /// The file.
        path: String,
        /// Why, and what would do.
        reason: String,
    },
    /// Files of the export are not there.
    #[error(
        "the export lacks {}; copy them into its directory and import again, what was read stays read",
        .0.join(", ")
    )]
    PartMissing(Vec<String>),
    /// A file of the export has another size than it should: it was not copied whole.
    #[error("{name} has {size} bytes and should have {expected}; copy it again, then import again")]
    PartTruncated {
        /// The file.
        name: String,
        /// Its bytes.
        size: u64,
        /// The bytes it should have.
        expected: u64,
    },
    /// A file of the export has other bytes than it should.
    #[error(
        "{name} is damaged: it hashes to {got} and should to {expected}; copy it again, then import again"
    )]
    PartDamaged {
        /// The file.
        name: String,
        /// What it should hash to.
        expected: Digest,
        /// What it hashes to.
        got: Digest,
    },
    /// A blob of the export is another one than its digest says, though the parts are as they were written.
    #[error("blob {0} is damaged in the export itself; export again")]
    BlobDamaged(Digest),
    /// A blob of the exporting side has other bytes than it should.
    #[error(
        "blob {expected} hashes to {got} here: the content store is damaged; restore it, then export again"
    )]
    SourceDamaged {
        /// The blob.
        expected: Digest,
        /// What it hashes to.
        got: Digest,
    },
    /// The disk is full.
    #[error("no space is left for {path}; make room, then try again")]
    NoSpace {
        /// What was being written.
        path: String,
    },
    /// The path can't be written to, or is not ours to replace.
    #[error("the export can't be written to {path}: {reason}")]
    Target {
        /// The path.
        path: String,
        /// Why, and what would do.
        reason: String,
    },
    /// The path names nothing below the folder of imports.
    #[error("{path:?} can't be imported: {reason}")]
    ImportPath {
        /// As given.
        path: String,
        /// Why, and what would do.
        reason: String,
    },
    /// The run was told to stop.
    #[error("stopped")]
    Stopped,
    /// A file can't be read or written; trying again may help.
    #[error("can't {what}: {source}")]
    Io {
        /// What was being done, with the file.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl TransferError {
    pub(crate) fn not_an_export(reason: impl Into<String>) -> Self {
        Self::NotAnExport {
            reason: reason.into(),
        }
    }

    /// A fault while reading.
    pub(crate) fn reading(path: &Path) -> impl Fn(io::Error) -> Self {
        let what = format!("read {}", path.display());
        move |source| Self::Io {
            what: what.clone(),
            source,
        }
    }

    /// A fault while writing: what the path given is to blame for is the request's fault, a full disk is told as one.
    pub fn writing(path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path: path.clone() },
            io::ErrorKind::PermissionDenied
            | io::ErrorKind::NotFound
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::InvalidFilename
            | io::ErrorKind::ReadOnlyFilesystem => Self::Target {
                path: path.clone(),
                reason: format!("{source}; name a directory that the worker may write to"),
            },
            _ => Self::Io {
                what: format!("write {path}"),
                source,
            },
        }
    }

    /// As the REST API and a failed task's row have it.
    pub fn coded(&self) -> CodedError {
        let text = self.to_string();
        let error = |code| CodedError::new(code, text.clone());
        match self {
            Self::NotAnExport { .. } => error(ErrorCode::NOT_AN_EXPORT),
            Self::Inconsistent(_) => error(ErrorCode::EXPORT_INCONSISTENT),
            Self::Unsigned => error(ErrorCode::EXPORT_UNSIGNED),
            Self::WrongSignature { keys, .. } => {
                error(ErrorCode::EXPORT_SIGNATURE_WRONG).with("trusted_keys_dir", keys)
            }
            Self::Key { path, .. } => error(ErrorCode::EXPORT_KEY_UNUSABLE).with("path", path),
            Self::PartMissing(parts) => error(ErrorCode::EXPORT_PART_MISSING).with("parts", parts),
            Self::PartTruncated { name, size, expected } => error(ErrorCode::EXPORT_PART_DAMAGED)
                .with("part", name)
                .with("size", size)
                .with("expected", expected),
            Self::PartDamaged { name, expected, got } => error(ErrorCode::EXPORT_PART_DAMAGED)
                .with("part", name)
                .with("got", got)
                .with("expected", expected),
            Self::BlobDamaged(digest) => error(ErrorCode::EXPORT_INCONSISTENT).with("digest", digest),
            Self::SourceDamaged { expected, got } => error(ErrorCode::DIGEST_MISMATCH)
                .with("expected", expected)
                .with("got", got),
            Self::NoSpace { path } => error(ErrorCode::NO_SPACE).with("path", path),
            Self::Target { path, .. } => error(ErrorCode::INVALID_EXPORT_FILE)
                .with("field", "export_dir")
                .with("value", path),
            Self::ImportPath { path, .. } => error(ErrorCode::INVALID_IMPORT_PATH).with("path", path),
            Self::Stopped | Self::Io { .. } => error(ErrorCode::INTERNAL),
        }
    }
}
