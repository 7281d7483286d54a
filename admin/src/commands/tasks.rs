//! `tasks list|details|cancel|search|purge`.

use pulp_model::task::TaskState;
use serde_json::{Map, Value, json};

use super::{App, Stop};
use crate::{
    cli::{PurgeArgs, TaskArgs, TaskListArgs, TaskSearchArgs, Tasks},
    error::AdminError,
    output::{Hidden, picked},
};

const ORDER: [&str; 11] = [
    "operations",
    "resources",
    "state",
    "start_time",
    "finish_time",
    "result",
    "task_id",
    "worker_name",
    "progress_report",
    "error",
    "spawned_tasks",
];

pub(super) async fn run(app: &App, command: Tasks) -> Result<(), Stop> {
    match command {
        Tasks::List(args) => list(app, &args).await,
        Tasks::Details(args) => details(app, &args).await,
        Tasks::Cancel(args) => cancel(app, &args).await,
        Tasks::Search(args) => search(app, &args).await,
        Tasks::Purge(args) => purge(app, &args).await,
    }
}

async fn list(app: &App, args: &TaskListArgs) -> Result<(), Stop> {
    let mut filters = Map::new();
    if !args.all {
        let states: Vec<&str> = if args.state.is_empty() {
            // What has not ended; Pulp's own client forgot the second of them.
            vec!["waiting", "accepted", "running"]
        } else {
            args.state.iter().map(|state| state.as_str()).collect()
        };
        filters.insert("state".to_owned(), json!({"$in": states}));
    }
    if let Some(repo) = &args.repo_id {
        filters.insert(
            "tags".to_owned(),
            json!({"$all": [format!("pulp:repository:{repo}")]}),
        );
    }
    filters.insert("group_id".to_owned(), Value::Null);
    let mut tasks = found(app, &json!({"filters": filters})).await?;
    // The row's id grows with the time of creation.
    tasks.sort_by(|a, b| text(a, "id").cmp(text(b, "id")));
    app.screen.title("Tasks");
    show(app, &tasks, false);
    Ok(())
}

async fn search(app: &App, args: &TaskSearchArgs) -> Result<(), Stop> {
    let tasks = found(app, &Value::Object(args.criteria.plain())).await?;
    app.screen.title("Tasks");
    let fields: Vec<&str> = args.criteria.fields.iter().map(String::as_str).collect();
    if fields.is_empty() {
        show(app, &tasks, args.details);
        return Ok(());
    }
    let tasks: Vec<Value> = tasks
        .iter()
        .map(|task| picked(task, &[&["task_id"], &fields[..]].concat()))
        .collect();
    for task in &tasks {
        app.screen.document(task, &ORDER, Hidden::Omit);
    }
    app.screen.result(&json!(tasks));
    Ok(())
}

async fn found(app: &App, criteria: &Value) -> Result<Vec<Value>, AdminError> {
    let reply = app
        .client
        .post(&["tasks", "search"], &json!({"criteria": criteria}))
        .await?;
    Ok(reply.body.as_array().cloned().unwrap_or_default())
}

fn show(app: &App, tasks: &[Value], details: bool) {
    if tasks.is_empty() {
        app.screen.line("No tasks found\n");
    }
    for task in tasks {
        app.screen
            .document(&document(task, details), &ORDER, Hidden::Omit);
    }
    app.screen.result(&json!(tasks));
}

async fn details(app: &App, args: &TaskArgs) -> Result<(), Stop> {
    let task = app
        .client
        .get(&["tasks", &args.task_id], &[])
        .await
        .map_err(|e| unknown(e, args))?;
    app.screen.title("Task Details");
    app.screen.document(&document(&task, true), &ORDER, Hidden::Omit);
    app.screen.result(&task);
    Ok(())
}

async fn cancel(app: &App, args: &TaskArgs) -> Result<(), Stop> {
    let sent = app.client.delete(&["tasks", &args.task_id], &[]).await;
    sent.map_err(|error| match error.status() {
        Some(501) => AdminError::Data("The requested task does not support cancellation.".to_owned()),
        _ => unknown(error, args),
    })?;
    app.screen.success("Task cancel is successfully initiated.");
    app.screen.result(&json!({"task_id": args.task_id}));
    Ok(())
}

fn unknown(error: AdminError, args: &TaskArgs) -> AdminError {
    match error.status() {
        Some(404) => AdminError::Data(format!("Task [{}] does not exist on the server", args.task_id)),
        _ => error,
    }
}

async fn purge(app: &App, args: &PurgeArgs) -> Result<(), Stop> {
    if let Some(state) = args.state.iter().find(|state| !state.is_terminal()) {
        return Err(AdminError::Data(format!(
            "tasks that are {} have not ended and can't be purged; cancel them first",
            state.as_str()
        ))
        .into());
    }
    let states: Vec<TaskState> = if args.all {
        TaskState::ALL
            .into_iter()
            .filter(|state| state.is_terminal())
            .collect()
    } else {
        args.state.clone()
    };
    let query: Vec<(&str, &str)> = states.iter().map(|state| ("state", state.as_str())).collect();
    let sent = app.client.delete(&["tasks"], &query).await;
    match sent {
        // Servers of Pulp 2 don't purge canceled tasks.
        Err(error) if args.all && error.status() == Some(400) => {
            let query: Vec<_> = query
                .into_iter()
                .filter(|(_, state)| *state != "canceled")
                .collect();
            app.client.delete(&["tasks"], &query).await?;
        }
        other => {
            other?;
        }
    }
    app.screen.success("Task purge is successfully initiated.");
    app.screen.result(&json!({"states": states}));
    Ok(())
}

fn text<'a>(task: &'a Value, key: &str) -> &'a str {
    task.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// A task report in people's words.
fn document(task: &Value, details: bool) -> Value {
    let tags = task.get("tags").and_then(Value::as_array);
    let (mut operations, mut resources) = (Vec::new(), Vec::new());
    for tag in tags.into_iter().flatten().filter_map(Value::as_str) {
        // `pulp:<type>:<id>`; the id may hold further colons.
        match tag.splitn(3, ':').collect::<Vec<_>>()[..] {
            [_, "action", name] => operations.push(name.to_owned()),
            [_, kind, id] => resources.push(format!("{id} ({kind})")),
            _ => {}
        }
    }
    let time = |key: &str, absent: &str| match task.get(key) {
        Some(Value::String(time)) => json!(time),
        _ => json!(absent),
    };
    let mut document = json!({
        "operations": operations,
        "resources": resources,
        "state": state_word(text(task, "state")),
        "start_time": time("start_time", "Unstarted"),
        "finish_time": time("finish_time", "Incomplete"),
        "task_id": task.get("task_id"),
        "worker_name": task.get("worker_name"),
    });
    if let (true, Some(map)) = (details, document.as_object_mut()) {
        for key in [
            "result",
            "progress_report",
            "error",
            "exception",
            "traceback",
            "spawned_tasks",
        ] {
            map.insert(key.to_owned(), task.get(key).cloned().unwrap_or_default());
        }
    }
    document
}

fn state_word(state: &str) -> &'static str {
    match state {
        "waiting" => "Waiting",
        "accepted" => "Accepted",
        "running" => "Running",
        "finished" => "Successful",
        "error" => "Failed",
        "skipped" => "Skipped",
        "canceled" => "Canceled",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::render;

    #[test]
    fn a_task_is_told_in_peoples_words() {
        let task = json!({"task_id": "t", "state": "finished", "worker_name": null, "start_time": null,
            "finish_time": "2015-01-02T20:39:58Z", "tags": ["pulp:repository:a:b", "pulp:action:publish", "odd"]});
        assert_eq!(
            render(&document(&task, false), &ORDER, Hidden::Omit),
            "Operations:  publish\n\
             Resources:   a:b (repository)\n\
             State:       Successful\n\
             Start Time:  Unstarted\n\
             Finish Time: 2015-01-02T20:39:58Z\n\
             Task Id:     t\n\
             Worker Name: None\n"
        );
    }
}
