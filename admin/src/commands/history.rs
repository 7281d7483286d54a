//! `repo history publish`.

use serde_json::{Value, json};

use super::{App, Stop, missing};
use crate::{
    cli::HistoryArgs,
    output::{Hidden, picked},
};

const ORDER: [&str; 6] = [
    "repo_id",
    "distributor_id",
    "result",
    "started",
    "completed",
    "error_message",
];

pub(super) async fn publish(app: &App, args: &HistoryArgs) -> Result<(), Stop> {
    let limit = args.limit.to_string();
    let mut query = vec![("limit", limit.as_str())];
    for (name, value) in [
        ("sort", &args.sort),
        ("start_date", &args.start_date),
        ("end_date", &args.end_date),
    ] {
        if let Some(value) = value {
            query.push((name, value));
        }
    }
    let path = [
        "repositories",
        args.repo_id.as_str(),
        "history",
        "publish",
        args.distributor_id.as_str(),
    ];
    let found = app.client.get(&path, &query).await;
    let entries = match found {
        Ok(entries) => entries,
        // Which of the two is missing? The repository's own address knows.
        Err(error) if error.status() == Some(404) => {
            app.repository(&args.repo_id, &[]).await?;
            return Err(error.into());
        }
        Err(error) => return Err(missing(error, &args.repo_id).into()),
    };
    app.screen.title(&format!("Publish History [{}]", args.repo_id));
    let list = entries.as_array().map(Vec::as_slice).unwrap_or_default();
    if list.is_empty() {
        app.screen
            .line("The repository does not have any publish history.");
    }
    for entry in list {
        let keys: &[&str] = if args.details {
            &[
                "repo_id",
                "distributor_id",
                "result",
                "started",
                "completed",
                "error_message",
                "summary",
                "details",
            ]
        } else {
            &ORDER
        };
        app.screen.document(&picked(entry, keys), &ORDER, Hidden::Omit);
    }
    app.screen
        .result(&json!(entries.as_array().map_or(Value::Null, |list| json!(list))));
    Ok(())
}
