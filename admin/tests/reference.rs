//! The user guide has every command and none that is not there.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{collections::BTreeSet, path::Path, process::Command};

/// Whole commands of `--map`: those that have none below them.
fn commands() -> BTreeSet<String> {
    let home = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_pulp-admin"))
        .arg("--map")
        .env("HOME", home.path())
        .output()
        .unwrap();
    assert!(output.status.success());
    let map = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<(usize, &str)> = map
        .lines()
        .filter_map(|line| {
            let name = line.trim_start();
            Some(((line.len() - name.len()) / 2, name.split_once(':')?.0))
        })
        .collect();
    let mut path: Vec<&str> = Vec::new();
    let mut found = BTreeSet::new();
    for (n, (depth, name)) in lines.iter().enumerate() {
        path.truncate(*depth);
        path.push(name);
        if lines.get(n + 1).is_none_or(|(next, _)| next <= depth) {
            found.insert(path.join(" "));
        }
    }
    found
}

#[test]
fn the_guide_has_a_section_for_every_command() {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/pulp-admin.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    // A command stands in the first column of a table.
    let listed: BTreeSet<String> = guide
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(command, _)| command.to_owned())
        .filter(|command| {
            !command.starts_with(['-', '['])
                && command
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c == ' ' || c == '-')
        })
        .collect();
    assert_eq!(
        listed,
        commands(),
        "left: docs/pulp-admin.md, right: pulp-admin --map"
    );
}
