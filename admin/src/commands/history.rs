//! `repo history publish|sync`.

use serde_json::{Value, json};

use super::{App, Stop, missing};
use crate::{
    cli::{HistoryArgs, SyncHistoryArgs, WhichHistory},
    output::{Hidden, picked},
};

const PUBLISH: [&str; 6] = [
    "repo_id",
    "distributor_id",
    "result",
    "started",
    "completed",
    "error_message",
];
const SYNC: [&str; 8] = [
    "repo_id",
    "result",
    "started",
    "completed",
    "added_count",
    "updated_count",
    "removed_count",
    "error_message",
];
/// What `--details` adds.
const DETAILS: [&str; 3] = ["summary", "details", "report"];

pub(super) async fn publish(app: &App, args: &HistoryArgs) -> Result<(), Stop> {
    let path = [
        "repositories",
        args.repo_id.as_str(),
        "history",
        "publish",
        args.distributor_id.as_str(),
    ];
    let limit = args.which.limit.to_string();
    let entries = match app.client.get(&path, &query(&args.which, &limit)).await {
        Ok(entries) => entries,
        // Which of the two is missing? The repository's own address knows.
        Err(error) if error.status() == Some(404) => {
            app.repository(&args.repo_id, &[]).await?;
            return Err(error.into());
        }
        Err(error) => return Err(missing(error, &args.repo_id).into()),
    };
    app.screen.title(&format!("Publish History [{}]", args.repo_id));
    show(app, &entries, "publish", &PUBLISH, args.which.details);
    Ok(())
}

pub(super) async fn sync(app: &App, args: &SyncHistoryArgs) -> Result<(), Stop> {
    let path = ["repositories", args.repo_id.as_str(), "history", "sync"];
    let limit = args.which.limit.to_string();
    let found = app.client.get(&path, &query(&args.which, &limit)).await;
    let entries = found.map_err(|e| missing(e, &args.repo_id))?;
    app.screen.title(&format!("Sync History [{}]", args.repo_id));
    show(app, &entries, "sync", &SYNC, args.which.details);
    Ok(())
}

fn query<'a>(which: &'a WhichHistory, limit: &'a str) -> Vec<(&'static str, &'a str)> {
    let given = [
        ("limit", Some(limit)),
        ("sort", which.sort.as_deref()),
        ("start_date", which.start_date.as_deref()),
        ("end_date", which.end_date.as_deref()),
    ];
    given
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
}

fn show(app: &App, entries: &Value, what: &str, order: &[&str], details: bool) {
    let list = entries.as_array().map(Vec::as_slice).unwrap_or_default();
    if list.is_empty() {
        app.screen
            .line(&format!("The repository does not have any {what} history."));
    }
    let mut keys = order.to_vec();
    if details {
        keys.extend(DETAILS);
    }
    for entry in list {
        app.screen.document(&picked(entry, &keys), order, Hidden::Omit);
    }
    app.screen
        .result(&json!(entries.as_array().map_or(Value::Null, |list| json!(list))));
}
