//! `/task_groups/`: tasks that a client asked for as one; see `Requester` for how they become it.

use axum::{extract::State, routing::get};
use pulp_store::tasks::TaskFilter;
use serde_json::Value;

use crate::{
    ApiError, App, Routes,
    errors::Segments,
    query::Query,
    replies::{self, Reply},
    tasks, views,
};

pub(crate) fn routes() -> Routes {
    Routes::default()
        .at("/task_groups/{group}/", get(read).delete(cancel))
        .at("/task_groups/{group}/state_summary/", get(summary))
}

fn unknown(group: &str) -> ApiError {
    ApiError::NotFound {
        kind: "task_group_id",
        id: group.to_owned(),
    }
}

/// Groups are known by the one spelling of their UUID.
fn spelt(group: &str) -> Result<String, ApiError> {
    let id = group.parse::<uuid::Uuid>().map_err(|_| unknown(group))?;
    Ok(id.to_string())
}

/// Its tasks, oldest first, and how many are in which state. Servers of Pulp 2 always answered 404.
async fn read(State(app): State<App>, Segments(group): Segments<String>, query: Query) -> Reply {
    let group = spelt(&group)?;
    let filter = TaskFilter {
        group_id: Some(group.clone()),
        limit: query.number("limit")?,
        skip: query.number("skip")?.unwrap_or(0),
        ..TaskFilter::default()
    };
    let states = app.store.group_states(&group).await?;
    let states = states.ok_or_else(|| unknown(&group))?;
    let tasks = app.store.search_tasks(&filter).await?;
    Ok(replies::ok(&views::task_group(&group, &states, &tasks)))
}

/// How many of its tasks are in which state. Servers of Pulp 2 told zeros of groups that they didn't know.
async fn summary(State(app): State<App>, Segments(group): Segments<String>) -> Reply {
    let states = app.store.group_states(&spelt(&group)?).await?;
    let states = states.ok_or_else(|| unknown(&group))?;
    Ok(replies::ok(&views::state_summary(&states)))
}

/// Cancels what has not ended.
async fn cancel(State(app): State<App>, Segments(group): Segments<String>) -> Reply {
    let id = spelt(&group)?;
    match tasks::stop(&app, &tasks::Stop::Group(&id)).await? {
        true => Ok(replies::ok(&Value::Null)),
        false => Err(unknown(&group)),
    }
}
