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
    if tasks::stop(&app, &tasks::Stop::Group(&id)).await? {
        Ok(replies::ok(&Value::Null))
    } else {
        Err(unknown(&group))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::StatusCode;
    use pulp_model::TaskId;
    use pulp_store::attempts::Outcome;
    use serde_json::json;

    use super::*;
    use crate::testing::Api;

    const GROUP: &str = "0e0c7a3e-5f3a-4d47-9b8f-2c1f8b9f3a11";

    async fn publish(api: &Api, repo: &str, query: &str) -> TaskId {
        api.docker_repository(repo).await;
        let path = format!("/repositories/{repo}/actions/publish/{query}");
        api.post(&path, &json!({"id": "web"})).await.task()
    }

    async fn state(api: &Api, id: TaskId) -> Value {
        api.get(&format!("/tasks/{id}/")).await.body["state"].clone()
    }

    #[tokio::test]
    async fn tasks_of_a_group_are_counted_listed_and_canceled_as_one() {
        let api = Api::new().await;
        let grouped = format!("?task_group={}", GROUP.to_uppercase());
        let (waits, runs) = (
            publish(&api, "a", &grouped).await,
            publish(&api, "b", &grouped).await,
        );
        let alone = publish(&api, "c", "").await;
        api.claimed(runs).await;
        let path = format!("/task_groups/{GROUP}/");
        let summary = json!({"total": 2, "accepted": 0, "finished": 0, "running": 1, "canceled": 0, "waiting": 1,
            "skipped": 0, "suspended": 0, "error": 0});
        assert_eq!(api.get(&format!("{path}state_summary/")).await.body, summary);
        let group = api.get(&path).await.body;
        assert_eq!(group["state_summary"], summary);
        assert_eq!(group["_href"], format!("/pulp/api/v2{path}"));
        let tasks = group["tasks"].as_array().unwrap();
        let ids: Vec<_> = tasks.iter().map(|t| t["task_id"].clone()).collect();
        assert_eq!(ids, [json!(waits), json!(runs)]);
        assert_eq!(tasks[1]["state"], "running");
        let page = api.get(&format!("{path}?limit=1&skip=1")).await.body;
        assert_eq!(page["tasks"][0]["task_id"], json!(runs));
        // As in Pulp 2, the list of tasks leaves them out and the search finds them.
        let list = api.get("/tasks/").await.body;
        assert_eq!(
            (list.as_array().unwrap().len(), &list[0]["task_id"]),
            (1, &json!(alone))
        );
        let criteria = json!({"criteria": {"filters": {"group_id": GROUP}}});
        let found = api.post("/tasks/search/", &criteria).await.body;
        assert_eq!(found.as_array().unwrap().len(), 2);

        let canceled = api.delete(&path).await;
        assert_eq!((canceled.status, canceled.body), (StatusCode::OK, Value::Null));
        assert_eq!(state(&api, waits).await, "canceled");
        let running = api.store.task(runs).await.unwrap().unwrap();
        assert!(running.cancel_requested.is_some());
        assert_eq!(state(&api, alone).await, "waiting");
    }

    #[tokio::test]
    async fn a_group_that_is_not_there_is_told_so() {
        let api = Api::new().await;
        for path in [
            format!("/task_groups/{GROUP}/"),
            format!("/task_groups/{GROUP}/state_summary/"),
        ] {
            let reply = api.get(&path).await;
            assert_eq!((reply.status, reply.code()), (StatusCode::NOT_FOUND, "PLP0009"));
        }
        for id in [GROUP, "no-uuid"] {
            let reply = api.delete(&format!("/task_groups/{id}/")).await;
            assert_eq!(reply.status, StatusCode::NOT_FOUND);
            assert_eq!(reply.body["resources"], json!({"task_group_id": id}));
        }
        api.docker_repository("r").await;
        let path = "/repositories/r/actions/publish/?task_group=mine";
        let reply = api.post(path, &json!({"id": "web"})).await;
        assert_eq!(reply.body["property_names"], json!(["task_group"]));
    }

    #[tokio::test]
    async fn a_cancel_takes_what_a_task_made_unless_it_is_told_not_to() {
        let api = Api::new().await;
        for (repo, query, expected) in [("a", "", "canceled"), ("b", "?tree=false", "waiting")] {
            let parent = publish(&api, repo, "").await;
            let lease = api.claimed(parent).await;
            let mut fenced = api.store.begin_fenced(&lease).await.unwrap();
            let kind = pulp_model::task::TaskKind::DeleteRepository {
                repo_id: repo.parse().unwrap(),
            };
            let child = fenced.spawn(&kind).await.unwrap();
            fenced
                .finish(&Outcome::Finished(json!({})), &json!({}))
                .await
                .unwrap();
            let reply = api.delete(&format!("/tasks/{parent}/{query}")).await;
            assert_eq!((reply.status, reply.body), (StatusCode::OK, Value::Null));
            assert_eq!(state(&api, child).await, expected);
            assert_eq!(state(&api, parent).await, "finished");
        }
        let wrong = api
            .delete(&format!("/tasks/{}/?tree=perhaps", TaskId::new()))
            .await;
        assert_eq!(wrong.body["property_names"], json!(["tree"]));
    }

    #[tokio::test]
    async fn tasks_are_made_for_the_user_who_asks() {
        let api = Api::new().await;
        let asked = publish(&api, "a", "").await;
        let deleted = api.delete("/repositories/a/").await.task();
        let settings = json!({"importer_config": {}, "distributor_configs": {"web": {}}});
        let updated = api.put("/repositories/a/", &settings).await.body;
        let updated = updated["spawned_tasks"].as_array().unwrap().clone();
        assert_eq!(updated.len(), 2);
        let updated = updated
            .iter()
            .map(|t| t["task_id"].as_str().unwrap().parse().unwrap());
        for id in [asked, deleted].into_iter().chain(updated) {
            let task = api.store.task(id).await.unwrap().unwrap();
            assert_eq!(task.owner.as_str(), "user:admin");
        }
    }
}
