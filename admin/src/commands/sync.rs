//! `docker repo sync run|status`.

use serde_json::{Map, Value, json};

use super::{App, Stop, missing, runs};
use crate::{
    cli::{StatusArgs, SyncArgs},
    task::spawned,
};

pub(super) async fn run(app: &App, args: &SyncArgs) -> Result<(), Stop> {
    app.screen
        .title(&format!("Synchronizing Repository [{}]", args.repo_id));
    // A dry run is another request than the sync under way.
    let attached = if args.dry_run {
        None
    } else {
        runs::attached(app, &args.repo_id, "sync", |_| true).await?
    };
    let tasks = if let Some(task_id) = attached {
        vec![task_id]
    } else {
        let mut options = Map::new();
        if args.dry_run {
            options.insert("dry_run".to_owned(), json!(true));
        }
        let path = ["repositories", args.repo_id.as_str(), "actions", "sync"];
        let reply = app.client.post(&path, &json!({"override_config": options})).await;
        spawned(&reply.map_err(|e| missing(e, &args.repo_id))?)?
    };
    runs::follow(app, tasks, args.bg, summary).await
}

pub(super) async fn status(app: &App, args: &StatusArgs) -> Result<(), Stop> {
    app.repository(&args.repo_id, &[]).await?;
    runs::status(app, args, "sync", |_| true, summary).await
}

/// What a sync did, or would do; nothing if the result is of another kind.
fn summary(result: &Value) -> Vec<String> {
    let report = &result["report"];
    let plan = &report["plan"];
    if !plan.is_object() {
        return Vec::new();
    }
    let count = |key: &str| plan[key].as_array().map_or(0, Vec::len);
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let dry_run = result["dry_run"] == json!(true);
    let tags = format!(
        "Tags: {} added, {} moved, {} removed, {} unchanged.",
        count("tags_added"),
        count("tags_moved"),
        count("tags_removed"),
        number(&plan["tags_unchanged"]),
    );
    let requests = number(&report["requests"]["total"]);
    let seconds = report["seconds"].as_f64().unwrap_or(0.0);
    let mut lines = Vec::new();
    if dry_run {
        for (key, sign) in [("tags_added", '+'), ("tags_moved", '~'), ("tags_removed", '-')] {
            let names = plan[key]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str);
            lines.extend(names.map(|name| format!("  {sign} {name}")));
        }
        let images = match number(&plan["images"]) {
            0 => String::new(),
            n => format!(", {n} images of version 1"),
        };
        lines.push(format!(
            "{tags} To fetch: {} blobs, {} bytes{images}. Nothing was changed ({requests} requests, {seconds:.1} s).",
            number(&plan["blobs"]),
            number(&plan["bytes"]),
        ));
    } else {
        lines.push(format!(
            "{tags} {} bytes in {requests} requests, {seconds:.1} s.",
            number(&report["bytes_received"]),
        ));
    }
    let absent = ["tags_absent", "manifests_absent"].map(|key| plan[key].as_array());
    let absent = absent.into_iter().flatten().flatten();
    let absent: Vec<&str> = absent.filter_map(Value::as_str).collect();
    if !absent.is_empty() {
        lines.push(format!("Not there upstream: {}.", absent.join(", ")));
    }
    let skipped = plan["tags_skipped"].as_array().into_iter().flatten();
    let skipped: Vec<&str> = skipped.filter_map(Value::as_str).collect();
    if !skipped.is_empty() {
        lines.push(format!("No image for the platforms: {}.", skipped.join(", ")));
    }
    let notices = report["notices"].as_array().into_iter().flatten();
    lines.extend(
        notices
            .filter_map(Value::as_str)
            .map(|text| format!("Note: {text}.")),
    );
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Value {
        json!({
            "plan": {"tags_added": ["a", "b"], "tags_moved": ["c"], "tags_removed": [], "tags_absent": ["d"],
                "tags_unchanged": 7, "blobs": 3, "bytes": 100},
            "requests": {"total": 12}, "bytes_received": 120, "seconds": 1.26,
        })
    }

    #[test]
    fn a_sync_is_summed_up_in_a_line() {
        assert_eq!(
            summary(&json!({ "report": report() })),
            [
                "Tags: 2 added, 1 moved, 0 removed, 7 unchanged. 120 bytes in 12 requests, 1.3 s.",
                "Not there upstream: d."
            ]
        );
        assert!(summary(&Value::Null).is_empty());
    }

    #[test]
    fn images_of_version_1_are_told_where_there_are_some() {
        let mut report = report();
        report["plan"]["images"] = json!(5);
        report["notices"] = json!(["image x gets no manifest"]);
        let lines = summary(&json!({"dry_run": true, "report": report}));
        assert!(
            lines[3].contains("3 blobs, 100 bytes, 5 images of version 1. Nothing"),
            "{lines:?}"
        );
        assert_eq!(
            lines.last().map(String::as_str),
            Some("Note: image x gets no manifest.")
        );
    }

    #[test]
    fn tags_without_an_image_for_the_platforms_are_named() {
        let mut report = report();
        report["plan"]["tags_skipped"] = json!(["mainframe", "old"]);
        let lines = summary(&json!({ "report": report }));
        assert_eq!(
            lines.last().map(String::as_str),
            Some("No image for the platforms: mainframe, old.")
        );
    }

    #[test]
    fn a_dry_run_names_the_tags() {
        let lines = summary(&json!({"dry_run": true, "report": report()}));
        assert_eq!(lines[..3], ["  + a", "  + b", "  ~ c"]);
        assert!(lines[3].contains("3 blobs, 100 bytes. Nothing was changed"));
    }
}
