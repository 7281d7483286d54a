//! Search over what is loaded: names, tags, and the labels of one image of each repository.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

use crate::{
    clients::Viewer,
    data::{Tables, V2Content},
};

/// Results at most.
const RESULTS: usize = 100;
/// Labels that say in a sentence what an image is, best first.
const DESCRIPTIONS: [&str; 4] = [
    "org.opencontainers.image.description",
    "description",
    "summary",
    "io.k8s.description",
];

/// A repository found, as `docker search` wants it.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) struct Found {
    name: String,
    description: String,
    is_official: bool,
    is_trusted: bool,
    star_count: u64,
}

/// What a repository is found by. Smaller is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    Name,
    PartOfName,
    Tag,
    Label,
}

/// Repositories of both APIs that hold the term, whatever its case; those with it in the name come first.
pub(crate) async fn results(tables: &Tables, viewer: &Viewer, term: &str) -> Vec<Found> {
    let wanted = term.to_lowercase();
    let mut found: BTreeMap<(By, &str), String> = BTreeMap::new();
    for (name, repo) in tables.v2.iter().filter(|(_, r)| r.shown_to(viewer)) {
        // Files that are elsewhere, or not read yet, are not read for this.
        let holdings = match &repo.content {
            V2Content::Indexed(holdings) => Some(Arc::clone(holdings)),
            V2Content::Legacy { .. } => None,
        };
        let labels = match &holdings {
            Some(holdings) => holdings.labels().await,
            None => &BTreeMap::new(),
        };
        let tags = holdings.iter().flat_map(|h| h.tag_names());
        if let Some(by) = found_by(&wanted, name, tags, labels) {
            let description = DESCRIPTIONS.iter().find_map(|key| labels.get(*key));
            found.insert((by, name), description.cloned().unwrap_or_default());
        }
    }
    for (name, repo) in tables.v1.iter().filter(|(_, r)| r.shown_to(viewer)) {
        let known = tables.v2.get(name).is_some_and(|r| r.shown_to(viewer));
        if let (false, Some(by)) = (
            known,
            found_by(
                &wanted,
                name,
                repo.images.tags().map(|(tag, _)| tag),
                &BTreeMap::new(),
            ),
        ) {
            found.insert((by, name), String::new());
        }
    }
    found
        .into_iter()
        .take(RESULTS)
        .map(|((_, name), description)| Found {
            name: name.to_owned(),
            description,
            is_official: false,
            is_trusted: false,
            star_count: 0,
        })
        .collect()
}

fn found_by<'a>(
    wanted: &str,
    name: &str,
    mut tags: impl Iterator<Item = &'a str>,
    labels: &BTreeMap<String, String>,
) -> Option<By> {
    let holds = |text: &str| text.to_lowercase().contains(wanted);
    let name = name.to_lowercase();
    if name == wanted {
        Some(By::Name)
    } else if name.contains(wanted) {
        Some(By::PartOfName)
    } else if tags.any(holds) {
        Some(By::Tag)
    } else {
        labels.values().any(|text| holds(text)).then_some(By::Label)
    }
}
