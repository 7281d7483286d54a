//! `tasks list|details|cancel|search|purge`.

use pulp_model::task::TaskState;
use serde_json::{Map, Value, json};

use super::{App, Stop, not_there};
use crate::{
    cli::{CancelArgs, PurgeArgs, TaskArgs, TaskListArgs, TaskSearchArgs, Tasks},
    error::AdminError,
    output::{Hidden, picked},
};

const ORDER: [&str; 15] = [
    "operations",
    "resources",
    "state",
    "wait_reason",
    "position",
    "waits_for",
    "start_time",
    "finish_time",
    "result",
    "task_id",
    "worker_name",
    "progress_report",
    "error",
    "spawned_tasks",
    "timeline",
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
    let mut task = app
        .client
        .get(&["tasks", &args.task_id], &[])
        .await
        .map_err(|e| not_there(e, "Task", &args.task_id))?;
    let mut document = document(&task, true);
    if matches!(text(&task, "state"), "waiting" | "accepted")
        && let Some(why) = more(app, &args.task_id, "wait_reason").await?
    {
        if let (Some(document), Value::Object(told)) = (document.as_object_mut(), waiting(&why)) {
            document.extend(told);
        }
        task["wait_reason"] = why;
    }
    if let Some(events) = more(app, &args.task_id, "timeline").await? {
        document["timeline"] = json!(timeline(&events));
        task["timeline"] = events;
    }
    app.screen.title("Task Details");
    app.screen.document(&document, &ORDER, Hidden::Omit);
    app.screen.result(&task);
    Ok(())
}

/// What lies below a task's path; none on servers that don't have it, those of Pulp 2.
async fn more(app: &App, task: &str, what: &str) -> Result<Option<Value>, AdminError> {
    match app.client.get(&["tasks", task, what], &[]).await {
        Ok(told) => Ok(Some(told)),
        Err(error) if error.status() == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Why it waits, in people's words.
fn waiting(why: &Value) -> Value {
    let list = |value: &Value, key: &str| {
        let list = value.get(key).and_then(Value::as_array);
        list.cloned().unwrap_or_default()
    };
    let messages: Vec<String> = list(why, "reasons")
        .iter()
        .map(|reason| text(reason, "message").to_owned())
        .collect();
    let mut told = json!({"wait_reason": messages.join("\n")});
    if let Some(Value::Object(place)) = why.get("position") {
        let nth = |key: &str| place.get(key).cloned().unwrap_or_default();
        told["position"] = json!(format!(
            "{} on its resources, {} in its class, {} of its owner",
            nth("resources"),
            nth("class"),
            nth("owner")
        ));
    }
    let mut lines = Vec::new();
    for resource in list(why, "resources") {
        if resource.get("free") == Some(&json!(true)) {
            continue;
        }
        for (key, word) in [("held_by", "held by"), ("before", "before it")] {
            for other in list(&resource, key) {
                lines.push(format!(
                    "{} ({}), {word} {} {} ({}, {}) since {}",
                    text(&resource, "resource"),
                    text(&resource, "mode"),
                    text(&other, "kind"),
                    text(&other, "task_id"),
                    text(&other, "state"),
                    text(&other, "mode"),
                    text(&other, "since"),
                ));
            }
        }
    }
    if !lines.is_empty() {
        told["waits_for"] = json!(lines.join("\n"));
    }
    told
}

/// A line for each event.
fn timeline(events: &Value) -> String {
    let line = |event: &Value| {
        let mut line = format!("{} {}", text(event, "at"), text(event, "event").replace('_', " "));
        if let Some(attempt) = event.get("attempt").and_then(Value::as_i64).filter(|n| *n > 1) {
            line = format!("{line}, attempt {attempt}");
        }
        for (key, word) in [("worker_name", " by "), ("detail", ": ")] {
            if let Some(value) = event.get(key).and_then(Value::as_str) {
                line.push_str(word);
                line.push_str(value);
            }
        }
        line
    };
    let lines: Vec<String> = events.as_array().into_iter().flatten().map(line).collect();
    lines.join("\n")
}

async fn cancel(app: &App, args: &CancelArgs) -> Result<(), Stop> {
    if let Some(group) = &args.group_id {
        let sent = app.client.delete(&["task_groups", group], &[]).await;
        sent.map_err(|e| not_there(e, "Task group", group))?;
        app.screen.success("Task group cancel is successfully initiated.");
        app.screen.result(&json!({"group_id": group}));
        return Ok(());
    }
    let task = args.task_id.as_deref().unwrap_or_default();
    let query: &[(&str, &str)] = if args.alone { &[("tree", "false")] } else { &[] };
    let sent = app.client.delete(&["tasks", task], query).await;
    sent.map_err(|error| match error.status() {
        Some(501) => AdminError::Data("The requested task does not support cancellation.".to_owned()),
        _ => not_there(error, "Task", task),
    })?;
    app.screen.success("Task cancel is successfully initiated.");
    app.screen.result(&json!({"task_id": task}));
    Ok(())
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
    fn why_a_task_waits_is_told_in_peoples_words() {
        let why = json!({
            "reasons": [{"message": "first"}, {"message": "second"}],
            "position": {"resources": 2, "class": 3, "owner": 1},
            "resources": [
                {"resource": "distributor:r/d", "mode": "exclusive", "free": true, "held_by": [], "before": []},
                {"resource": "repository:r", "mode": "shared", "free": false, "before": [],
                 "held_by": [{"task_id": "t", "kind": "sync", "state": "running", "mode": "exclusive", "since": "S"}]},
            ],
        });
        assert_eq!(
            render(&waiting(&why), &ORDER, Hidden::Omit),
            "Wait Reason: first\n             second\n\
             Position:    2 on its resources, 3 in its class, 1 of its owner\n\
             Waits For:   repository:r (shared), held by sync t (running, exclusive) since S\n"
        );
        assert_eq!(waiting(&json!({"reasons": []})), json!({"wait_reason": ""}));
    }

    #[test]
    fn a_timeline_has_a_line_for_each_event() {
        let events = json!([
            {"at": "1", "event": "created", "attempt": 0, "worker_name": null, "detail": null},
            {"at": "2", "event": "claimed", "attempt": 1, "worker_name": "w", "detail": null},
            {"at": "3", "event": "handed_back", "attempt": 2, "worker_name": "w", "detail": "its worker ends"},
        ]);
        assert_eq!(
            timeline(&events),
            "1 created\n2 claimed by w\n3 handed back, attempt 2 by w: its worker ends"
        );
        assert_eq!(timeline(&Value::Null), "");
    }

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
