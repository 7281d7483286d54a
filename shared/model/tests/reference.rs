//! The user guide lists every error code, and none that is not there.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{collections::BTreeSet, path::Path};

use pulp_model::ErrorCode;

#[test]
fn the_guide_lists_each_error_code_once() {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/rest-api.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    // Rows of the table begin with the code.
    let listed: Vec<&str> = guide
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(code, _)| code)
        .filter(|code| code.starts_with("PLP") || code.starts_with("DKR"))
        .collect();
    let once: BTreeSet<&str> = listed.iter().copied().collect();
    assert_eq!(
        listed.len(),
        once.len(),
        "a code stands twice in docs/rest-api.md"
    );
    let known: BTreeSet<&str> = ErrorCode::ALL.iter().map(ErrorCode::as_str).collect();
    assert_eq!(known.len(), ErrorCode::ALL.len(), "two errors share a code");
    assert_eq!(
        once, known,
        "left: docs/rest-api.md, right: shared/model/src/error.rs"
    );
}
