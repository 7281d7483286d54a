//! Reading JSON files of an archive.

use serde::Deserialize;

use crate::{ArchiveError, Rejection};

/// Parses `bytes`, the content of `file`.
pub(crate) fn parse<'a, T: Deserialize<'a>>(file: &str, bytes: &'a [u8]) -> Result<T, ArchiveError> {
    serde_json::from_slice(bytes).map_err(|e| bad(file, &e))
}

pub(crate) fn bad(file: &str, reason: &impl ToString) -> ArchiveError {
    Rejection::BadJson {
        file: file.to_owned(),
        reason: reason.to_string(),
    }
    .into()
}

/// Bytes of a document of ours: the fields in the order of the type, no blanks.
pub(crate) fn bytes<T: serde::Serialize>(file: &str, value: &T) -> Result<Vec<u8>, ArchiveError> {
    serde_json::to_vec(value).map_err(|e| bad(file, &e))
}
