//! `docker repo import run|status`: exports for closed networks, taken in.

use serde_json::{Value, json};

use super::{App, Stop, missing, runs};
use crate::{
    cli::{ImportArgs, StatusArgs},
    task::spawned,
};

pub(super) async fn run(app: &App, args: &ImportArgs) -> Result<(), Stop> {
    app.screen
        .title(&format!("Importing into Repository [{}]", args.repo_id));
    let path = ["repositories", args.repo_id.as_str(), "actions", "import_export"];
    let body = json!({"path": args.path, "create": args.create, "remove_missing": args.remove_missing});
    let reply = app.client.post(&path, &body).await;
    let tasks = spawned(&reply.map_err(|e| missing(e, &args.repo_id))?)?;
    runs::follow(app, tasks, args.bg, imported).await
}

/// Without a look at the repository: an import may have to make it first.
pub(super) async fn status(app: &App, args: &StatusArgs) -> Result<(), Stop> {
    runs::status(app, args, "import_export", |_| true, imported).await
}

/// What an import did; nothing if the result is of another kind.
fn imported(result: &Value) -> Option<String> {
    let number = |key: &str| result[key].as_u64().unwrap_or(0);
    let version = result["repository_version"].as_i64()?;
    let of = &result["exported"];
    let signed = signature(result);
    Some(format!(
        "Version {} of {} is version {version} here: {} units added, {} removed; {} blobs read, {} bytes, {} were here \
         already; {signed}.",
        of["repository_version"].as_i64()?,
        of["repository"].as_str()?,
        number("added"),
        number("removed"),
        number("blobs_read"),
        number("bytes_read"),
        number("blobs_reused"),
    ))
}

/// Where an export lies and what is in it; nothing for an export of the v1 format.
pub(super) fn exported(result: &Value) -> Option<String> {
    let export = &result["export"];
    let directory = export["directory"].as_str()?;
    let number = |key: &str| export[key].as_u64().unwrap_or(0);
    let since = match export["base"]["repository_version"].as_i64() {
        Some(version) => format!(" since version {version}"),
        None => String::new(),
    };
    let signed = signature(export);
    Some(format!(
        "Version {}{since} lies in {directory}: {} blobs, {} bytes in {} parts; {signed}.",
        export["repository_version"].as_i64()?,
        number("blobs"),
        number("bytes"),
        export["parts"].as_array().map_or(0, Vec::len),
    ))
}

fn signature(told: &Value) -> String {
    match told["signed_by"].as_str() {
        Some(key) => format!("signed by {key}"),
        None => "not signed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_is_summed_up_in_a_line() {
        let result = json!({"repository_version": 1, "added": 4, "removed": 0, "blobs_read": 2, "bytes_read": 10,
            "blobs_reused": 1, "signed_by": null, "exported": {"repository": "r", "repository_version": 7}});
        assert_eq!(
            imported(&result).as_deref(),
            Some(
                "Version 7 of r is version 1 here: 4 units added, 0 removed; 2 blobs read, 10 bytes, 1 were here \
                 already; not signed."
            )
        );
        assert_eq!(imported(&Value::Null), None);
    }

    #[test]
    fn an_export_is_summed_up_in_a_line() {
        let result = json!({"export": {"directory": "/x/r-7-since-3", "repository_version": 7,
            "base": {"repository_version": 3}, "blobs": 2, "bytes": 10, "parts": [{}], "signed_by": "sha256:1"}});
        assert_eq!(
            exported(&result).as_deref(),
            Some(
                "Version 7 since version 3 lies in /x/r-7-since-3: 2 blobs, 10 bytes in 1 parts; signed by sha256:1."
            )
        );
        assert_eq!(exported(&json!({"export_file": "/x.tar"})), None);
    }
}
