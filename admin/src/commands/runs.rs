//! What `run` and `status` of syncs, publishes, exports and imports have in common: what is under way on a repository,
//! and how it is followed.

use pulp_model::RepositoryId;
use serde_json::{Value, json};

use super::{App, Stop};
use crate::{
    cli::StatusArgs,
    error::AdminError,
    output::printable,
    task::{Style, TaskReport, tasks_document},
};

/// Follows tasks to their ends and sums up what they gave; in the background, only tells how they can be followed.
pub(super) async fn follow<L: IntoIterator<Item = String>>(
    app: &App,
    tasks: Vec<String>,
    background: bool,
    summary: fn(&Value) -> L,
) -> Result<(), Stop> {
    if background {
        app.queued(&tasks);
        return Ok(());
    }
    let reports = app.follower().follow(tasks, Style::Steps).await?;
    for line in reports.iter().flat_map(|report| summary(&report["result"])) {
        app.screen.line(&printable(&line));
    }
    app.screen.result(&tasks_document(&reports));
    Ok(())
}

/// Follows those tasks of an action that are under way on the repository and `concern` the command.
pub(super) async fn status<L: IntoIterator<Item = String>>(
    app: &App,
    args: &StatusArgs,
    action: &str,
    concern: impl Fn(&TaskReport) -> bool,
    summary: fn(&Value) -> L,
) -> Result<(), Stop> {
    app.screen.title(&format!("Repository Status [{}]", args.repo_id));
    let found = under_way(app, &args.repo_id, action).await?;
    let concerned = found.into_iter().filter(|(_, report)| concern(report));
    let tasks: Vec<String> = concerned.map(|(task_id, _)| task_id).collect();
    if tasks.is_empty() {
        app.screen.line("The repository is not performing any operations");
        app.screen.result(&tasks_document(&[]));
        return Ok(());
    }
    follow(app, tasks, args.bg, summary).await
}

/// The first task of an action that is under way and `concerns` the command, and can be followed instead of a new one;
/// then that is told.
pub(super) async fn attached(
    app: &App,
    repo: &RepositoryId,
    action: &str,
    concerns: impl Fn(&TaskReport) -> bool,
) -> Result<Option<String>, AdminError> {
    let found = under_way(app, repo, action).await?;
    let first = found.into_iter().find(|(_, report)| concerns(report));
    Ok(first.map(|(task_id, _)| {
        app.screen.line(&format!(
            "A {action} task is already in progress for this repository. Its progress will be tracked below.\n"
        ));
        task_id
    }))
}

/// Tasks of an action (`publish`, which exports are too, `sync` or `import_export`) on the repository that have not
/// ended.
async fn under_way(
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
