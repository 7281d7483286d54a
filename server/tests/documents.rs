//! What the documents point at is there: files, headings, and the tests that show the invariants.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap()
}

/// Files with this ending below the root, but for what is built and what is hidden.
fn files(ending: &str) -> Vec<PathBuf> {
    let mut folders = vec![root()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    found
}

/// `## Where do I add …?` is linked to as `where-do-i-add-`.
fn anchor(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| anchor(line.trim_start_matches('#').trim()))
        .collect()
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let mut dead = Vec::new();
    let documents = files(".md");
    assert!(documents.len() >= 10);
    for document in &documents {
        let text = fs::read_to_string(document).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')) {
            let link = link.0;
            if link.starts_with("http") {
                continue;
            }
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() {
                document.clone()
            } else {
                document.parent().unwrap().join(path)
            };
            let there = target.exists()
                && (heading.is_empty() || anchors(&fs::read_to_string(&target).unwrap()).contains(heading));
            if !there {
                dead.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert_eq!(dead, Vec::<String>::new());
}

/// Names of figures, which all begin alike, in a text.
fn figures(text: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words = text.split(|c: char| !is_name(c));
    let figure = |word: &&str| word.starts_with("pulp_") && word.matches('_').count() >= 2;
    words.filter(figure).map(ToOwned::to_owned).collect()
}

#[test]
fn every_figure_is_in_the_guide_and_every_alert_is_of_one() {
    let mut told = BTreeSet::new();
    for source in files(".rs") {
        let text = fs::read_to_string(source).unwrap();
        // `registered_metric!(register_…!("pulp_…", …))`
        for registered in text.split("registered_metric!(register_").skip(1) {
            told.extend(registered.split('"').nth(1).map(figures).unwrap_or_default());
        }
    }
    assert!(told.len() >= 20, "{told:?}");
    let guide = figures(&fs::read_to_string(root().join("docs/observability.md")).unwrap());
    let absent: Vec<&String> = told.difference(&guide).collect();
    assert_eq!(absent, Vec::<&String>::new(), "left out of docs/observability.md");
    let invented: Vec<&String> = guide.difference(&told).collect();
    assert_eq!(invented, Vec::<&String>::new(), "in docs/observability.md only");
    let alerts = figures(&fs::read_to_string(root().join("deploy/prometheus-alerts.yml")).unwrap());
    for name in &alerts {
        let of_histogram = ["_bucket", "_count", "_sum"]
            .iter()
            .find_map(|end| name.strip_suffix(end));
        assert!(
            told.contains(name) || of_histogram.is_some_and(|n| told.contains(n)),
            "{name}"
        );
    }
}

#[test]
fn every_test_that_the_architecture_names_is_there() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, invariants) = text.split_once("\n## Invariants").unwrap();
    let (invariants, _) = invariants.split_once("\n## ").unwrap();
    let named: BTreeSet<&str> = invariants
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| name.matches('_').count() >= 4)
        .collect();
    assert!(named.len() >= 20, "only {} tests are named", named.len());
    let sources: Vec<String> = files(".rs")
        .iter()
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    let absent: Vec<&str> = named
        .into_iter()
        .filter(|name| {
            let declaration = format!("fn {name}(");
            sources.iter().all(|source| !source.contains(&declaration))
        })
        .collect();
    assert_eq!(absent, Vec::<&str>::new());
}
