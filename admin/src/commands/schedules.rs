//! `docker repo sync schedules …` and `docker repo publish schedules …`.

use pulp_model::RepositoryId;
use serde_json::{Map, Value, json};

use super::{App, Stop, WEB_DISTRIBUTOR, missing};
use crate::{
    cli::Schedules,
    error::AdminError,
    output::{Hidden, picked, printable},
};

/// What the schedules are for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Sync,
    Publish,
}

/// Columns of a list, and those that `--details` adds.
const SHORT: [&str; 8] = [
    "id",
    "schedule",
    "enabled",
    "last_run_at",
    "next_run",
    "consecutive_failures",
    "failure_threshold",
    "remaining_runs",
];
const DETAILS: [&str; 4] = ["first_run", "total_run_count", "kwargs", "_href"];

impl Kind {
    fn path<'a>(self, repo: &'a RepositoryId, schedule: Option<&'a str>) -> Vec<&'a str> {
        let mut path = vec!["repositories", repo.as_str()];
        path.extend(match self {
            Self::Sync => ["importers", "docker_importer", "schedules", "sync"],
            Self::Publish => ["distributors", WEB_DISTRIBUTOR, "schedules", "publish"],
        });
        path.extend(schedule);
        path
    }
}

pub(super) async fn run(app: &App, kind: Kind, command: Schedules) -> Result<(), Stop> {
    match command {
        Schedules::List(args) => {
            let schedules = list(app, kind, &args.repo_id).await?;
            app.screen.title("Schedules");
            if schedules.is_empty() {
                app.screen
                    .line("There are no schedules defined for this operation.");
            }
            let mut keys = SHORT.to_vec();
            if args.details {
                keys.extend(DETAILS);
            }
            for schedule in &schedules {
                let mut schedule = schedule.clone();
                // What update and delete ask for; names that begin with _ are not shown.
                schedule["id"] = schedule["_id"].clone();
                app.screen
                    .document(&picked(&schedule, &keys), &keys, Hidden::Omit);
            }
            app.screen.result(&json!(schedules));
        }
        Schedules::Create(args) => {
            let mut body = Map::from_iter([("schedule".to_owned(), json!(args.schedule))]);
            if let Some(threshold) = args.failure_threshold {
                body.insert("failure_threshold".to_owned(), threshold);
            }
            let path = kind.path(&args.repo_id, None);
            let reply = app.client.post(&path, &Value::Object(body)).await;
            let made = reply.map_err(|e| of_repository(e, &args.repo_id))?.body;
            app.screen.success("Schedule successfully created");
            if let Some(next) = made["next_run"].as_str() {
                app.screen.line(&format!("Next run: {}", printable(next)));
            }
            app.screen.result(&made);
        }
        Schedules::Update(args) => {
            let given = [
                ("schedule", args.schedule.map(Value::from)),
                ("failure_threshold", args.failure_threshold),
                ("enabled", args.enabled.map(Value::from)),
            ];
            let body: Map<String, Value> = given
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), value?)))
                .collect();
            let path = kind.path(&args.which.repo_id, Some(&args.which.schedule_id));
            let reply = app.client.put(&path, &Value::Object(body)).await;
            let changed = reply.map_err(|e| of_schedule(e, &args.which.repo_id, &args.which.schedule_id))?;
            app.screen.success("Successfully updated schedule");
            app.screen.result(&changed.body);
        }
        Schedules::Delete(args) => {
            let path = kind.path(&args.repo_id, Some(&args.schedule_id));
            let reply = app.client.delete(&path, &[]).await;
            reply.map_err(|e| of_schedule(e, &args.repo_id, &args.schedule_id))?;
            app.screen.success("Schedule successfully deleted");
            app.screen.result(&Value::Null);
        }
        Schedules::Next(args) => {
            let schedules = list(app, kind, &args.repo_id).await?;
            let next = earliest(&schedules);
            let line = match (next, args.quiet) {
                (Some(next), true) => printable(next),
                (Some(next), false) => format!("Next run: {}", printable(next)),
                (None, _) => "There are no schedules defined for this operation.".to_owned(),
            };
            app.screen.line(&line);
            app.screen.result(&json!({ "next_run": next }));
        }
    }
    Ok(())
}

async fn list(app: &App, kind: Kind, repo: &RepositoryId) -> Result<Vec<Value>, Stop> {
    let found = app.client.get(&kind.path(repo, None), &[]).await;
    let found = found.map_err(|e| of_repository(e, repo))?;
    Ok(found.as_array().cloned().unwrap_or_default())
}

/// When the next run of those that are enabled is. Times of one form are ordered as their texts.
fn earliest(schedules: &[Value]) -> Option<&str> {
    let enabled = schedules.iter().filter(|s| s["enabled"] == json!(true));
    enabled.filter_map(|s| s["next_run"].as_str()).min()
}

/// A 404 that names no importer or distributor is for want of the repository.
fn of_repository(error: AdminError, repo: &RepositoryId) -> AdminError {
    if names(&error, "importer_id") || names(&error, "distributor_id") {
        return error;
    }
    missing(error, repo)
}

fn of_schedule(error: AdminError, repo: &RepositoryId, schedule: &str) -> AdminError {
    if names(&error, "schedule_id") {
        return AdminError::Data(format!("Schedule [{schedule}] does not exist on the server"));
    }
    of_repository(error, repo)
}

fn names(error: &AdminError, key: &str) -> bool {
    let AdminError::Server(answer) = error else {
        return false;
    };
    let resources = answer.error.as_ref().and_then(|e| e.data.get("resources"));
    resources.is_some_and(|r| r.get(key).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_run_is_the_earliest_of_those_enabled() {
        let at = |enabled: bool, next: Value| json!({"enabled": enabled, "next_run": next});
        let schedules = [
            at(true, json!("2026-03-01T00:00:00Z")),
            at(true, json!("2026-02-01T00:00:00Z")),
            at(false, json!("2026-01-01T00:00:00Z")),
            at(true, Value::Null),
        ];
        assert_eq!(earliest(&schedules), Some("2026-02-01T00:00:00Z"));
        assert_eq!(earliest(&schedules[2..]), None);
    }
}
