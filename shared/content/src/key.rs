//! Names of blobs and of temporary files, the same below a directory and in a bucket.

use pulp_model::Digest;
use uuid::Uuid;

use crate::ContentError;

/// Where temporary files are.
pub(crate) const TMP: &str = "tmp";

/// `sha256/ab/abcd…`
pub(crate) fn of_blob(digest: &Digest) -> String {
    let hex = digest.hex();
    format!(
        "{}/{}/{hex}",
        digest.algorithm().as_str(),
        hex.get(..2).unwrap_or(hex)
    )
}

/// `tmp/<owner>`
pub(crate) fn of_owner(owner: &str) -> Result<String, ContentError> {
    let fits = (1..=200).contains(&owner.len())
        && !owner.starts_with('.')
        && owner
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if fits {
        Ok(format!("{TMP}/{owner}"))
    } else {
        Err(ContentError::Owner(owner.to_owned()))
    }
}

/// `tmp/<owner>/<uuid>`
pub(crate) fn of_temporary(owner: &str) -> Result<String, ContentError> {
    Ok(format!("{}/{}", of_owner(owner)?, Uuid::new_v4()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_owner_can_not_leave_the_temporary_directory() {
        for bad in ["", ".", "..", "a/b", "../x", "a\0"] {
            assert!(of_owner(bad).is_err(), "{bad:?}");
        }
        assert_eq!(of_owner("0190-a.2").unwrap(), "tmp/0190-a.2");
    }
}
