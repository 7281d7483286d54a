//! `docker repo publish run|status` and `docker repo export run|status`.

use pulp_model::RepositoryId;
use serde_json::{Map, Value, json};

use super::{App, EXPORT_DISTRIBUTOR, Stop, WEB_DISTRIBUTOR, missing, transfer};
use crate::{
    cli::{ExportArgs, RunArgs, StatusArgs},
    error::AdminError,
    output::{Hidden, printable},
    task::{Style, TaskReport, spawned, tasks_document},
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
    let under_way = if options.is_empty() {
        under_way(app, &args.repo_id, "publish").await?
    } else {
        Vec::new()
    };
    let attached = under_way
        .into_iter()
        .find(|(_, report)| report.is_of_distributor(distributor) == Some(true));
    let tasks = if let Some((task_id, _)) = attached {
        app.screen.line(
            "A publish task is already in progress for this repository. Its progress will be tracked below.\n",
        );
        vec![task_id]
    } else {
        let path = ["repositories", args.repo_id.as_str(), "actions", "publish"];
        let body = json!({"id": distributor, "override_config": options});
        spawned(
            &app.client
                .post(&path, &body)
                .await
                .map_err(|e| missing_distributor(e, &args.repo_id))?,
        )?
    };
    if args.bg {
        app.queued(&tasks);
        return Ok(());
    }
    follow(app, tasks).await
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
    app.screen.title(&format!("Repository Status [{}]", args.repo_id));
    let tasks: Vec<String> = under_way(app, &args.repo_id, "publish")
        .await?
        .into_iter()
        .filter(|(_, report)| report.is_of_distributor(distributor) != Some(false))
        .map(|(task_id, _)| task_id)
        .collect();
    if tasks.is_empty() {
        app.screen.line("The repository is not performing any operations");
        app.screen.result(&tasks_document(&[]));
        return Ok(());
    }
    if args.bg {
        app.queued(&tasks);
        return Ok(());
    }
    follow(app, tasks).await
}

async fn follow(app: &App, tasks: Vec<String>) -> Result<(), Stop> {
    let reports = app.follower().follow(tasks, Style::Steps).await?;
    for line in reports.iter().filter_map(|r| transfer::exported(&r["result"])) {
        app.screen.line(&printable(&line));
    }
    app.screen.result(&tasks_document(&reports));
    Ok(())
}

/// Tasks of an action (`publish`, which exports are too, or `sync`) on the repository that have not ended.
pub(super) async fn under_way(
    app: &App,
    repo: &RepositoryId,
    action: &str,
) -> Result<Vec<(String, TaskReport)>, AdminError> {
    let criteria = json!({"filters": {
        "state": {"$nin": ["finished", "error", "canceled", "skipped"]},
        "tags": {"$all": [format!("pulp:repository:{repo}"), format!("pulp:action:{action}")]},
    }});
    let reply = app
        .client
        .post(&["tasks", "search"], &json!({"criteria": criteria}))
        .await?;
    let documents = reply.body.as_array().cloned().unwrap_or_default();
    Ok(documents
        .into_iter()
        .filter_map(|document| {
            let task_id = document.get("task_id")?.as_str()?.to_owned();
            let report: TaskReport = serde_json::from_value(document).ok()?;
            (!report.state.is_terminal()).then_some((task_id, report))
        })
        .collect())
}
