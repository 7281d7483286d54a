//! `docker repo publish run|status` and `docker repo export run|status`.

use pulp_model::RepositoryId;
use serde_json::{Map, Value, json};

use super::{App, EXPORT_DISTRIBUTOR, Stop, WEB_DISTRIBUTOR, missing, runs, transfer};
use crate::{
    cli::{ExportArgs, RunArgs, StatusArgs},
    error::AdminError,
    output::Hidden,
    task::{TaskReport, spawned},
};

pub(super) async fn publish(app: &App, args: &RunArgs) -> Result<(), Stop> {
    run(app, args, WEB_DISTRIBUTOR, Map::new()).await
}

pub(super) async fn export(app: &App, args: &ExportArgs) -> Result<(), Stop> {
    let mut options = Map::new();
    for (key, value) in [
        ("export_file", &args.export_file),
        ("export_format", &args.format),
        ("export_dir", &args.export_dir),
        ("export_layout", &args.layout),
        ("part_size", &args.part_size),
        ("base", &args.base),
    ] {
        if let Some(value) = value {
            options.insert(key.to_owned(), json!(value));
        }
    }
    run(app, &args.run, EXPORT_DISTRIBUTOR, options).await
}

async fn run(
    app: &App,
    args: &RunArgs,
    distributor: &str,
    mut options: Map<String, Value>,
) -> Result<(), Stop> {
    app.screen
        .title(&format!("Publishing Repository [{}]", args.repo_id));
    if args.force_full {
        options.insert("force_full".to_owned(), json!(true));
    }
    if !options.is_empty() {
        app.screen
            .line("The following publish configuration options will be used:\n");
        app.screen
            .document(&Value::Object(options.clone()), &[], Hidden::Omit);
    }
    // With options of its own it is another request than the one under way.
    let attached = if options.is_empty() {
        let same = |report: &TaskReport| report.is_of_distributor(distributor) == Some(true);
        runs::attached(app, &args.repo_id, "publish", same).await?
    } else {
        None
    };
    let tasks = if let Some(task_id) = attached {
        vec![task_id]
    } else {
        let path = ["repositories", args.repo_id.as_str(), "actions", "publish"];
        let body = json!({"id": distributor, "override_config": options});
        let reply = app.client.post(&path, &body).await;
        spawned(&reply.map_err(|e| missing_distributor(e, &args.repo_id))?)?
    };
    runs::follow(app, tasks, args.bg, transfer::exported).await
}

/// A 404 names the repository, unless it is the distributor that is missing.
fn missing_distributor(error: AdminError, repo: &RepositoryId) -> AdminError {
    match &error {
        AdminError::Server(answer)
            if answer
                .error
                .as_ref()
                .is_some_and(|e| json!(e.data).to_string().contains("distributor")) =>
        {
            error
        }
        _ => missing(error, repo),
    }
}

pub(super) async fn status(app: &App, args: &StatusArgs, distributor: &str) -> Result<(), Stop> {
    app.repository(&args.repo_id, &[]).await?;
    let may_be = |report: &TaskReport| report.is_of_distributor(distributor) != Some(false);
    runs::status(app, args, "publish", may_be, transfer::exported).await
}
