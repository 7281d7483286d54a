//! `/repositories/<repo>/history/`: what was synced and published, and how it went.

use axum::{extract::State, routing::get};
use pulp_store::history::HistoryFilter;

use crate::{
    ApiError, App, Routes, distributors,
    errors::Segments,
    query::Query,
    replies::{self, Reply},
    repositories, views,
};

pub(crate) fn routes() -> Routes {
    Routes::default()
        .at(
            "/repositories/{repo}/history/publish/{distributor}/",
            get(publishes),
        )
        .at("/repositories/{repo}/history/sync/", get(syncs))
}

/// Reads the query; every fault is named, not the first alone.
fn filter(query: &Query) -> Result<HistoryFilter, ApiError> {
    let mut faults: Vec<(String, String)> = Vec::new();
    let mut note = |error: ApiError| {
        if let ApiError::Invalid { properties, reason } = error {
            faults.extend(properties.into_iter().map(|p| (p, reason.clone())));
        }
    };
    let limit = query.number("limit").and_then(|limit| match limit {
        Some(0) => Err(ApiError::invalid(
            "limit",
            "limit is 0; give a whole number from 1 on",
        )),
        other => Ok(other),
    });
    let ascending = match query.first("sort") {
        None | Some("descending") => Ok(false),
        Some("ascending") => Ok(true),
        Some(other) => Err(ApiError::invalid(
            "sort",
            format!("sort is {other:?}; give ascending or descending"),
        )),
    };
    let filter = HistoryFilter {
        limit: limit.map_err(&mut note).ok().flatten(),
        ascending: ascending.map_err(&mut note).unwrap_or(false),
        start: query.instant("start_date").map_err(&mut note).ok().flatten(),
        end: query.instant("end_date").map_err(&mut note).ok().flatten(),
    };
    if faults.is_empty() {
        return Ok(filter);
    }
    let (properties, reasons): (Vec<_>, Vec<_>) = faults.into_iter().unzip();
    Err(ApiError::Invalid {
        properties,
        reason: reasons.join("; "),
    })
}

async fn publishes(
    State(app): State<App>,
    Segments((repo, distributor)): Segments<(String, String)>,
    query: Query,
) -> Reply {
    let filter = filter(&query)?;
    let repo = repositories::find_id(&app.store, &repo).await?;
    let distributor = distributors::find(&app, &repo, &distributor).await?;
    let entries = app.store.publish_history(&repo, &distributor.id, &filter).await?;
    let views: Vec<_> = entries.iter().map(views::publish_history).collect();
    Ok(replies::ok(&views.into()))
}

async fn syncs(State(app): State<App>, Segments(repo): Segments<String>, query: Query) -> Reply {
    let filter = filter(&query)?;
    let repo = repositories::find_id(&app.store, &repo).await?;
    let entries = app.store.sync_history(&repo, &filter).await?;
    let views: Vec<_> = entries.iter().map(views::sync_history).collect();
    Ok(replies::ok(&views.into()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::StatusCode;
    use pulp_model::{
        Timestamp,
        history::{HistoryResult, PublishHistory, SyncHistory},
        task::TaskKind,
    };
    use serde_json::{Map, Value, json};

    use crate::testing::Api;

    async fn published(api: &Api, started: i64) {
        let task = api
            .post("/repositories/r/actions/publish/", &json!({"id": "web"}))
            .await
            .task();
        let lease = api.claimed(task).await;
        let mut fenced = api.store.begin_fenced(&lease).await.unwrap();
        let entry = PublishHistory {
            id: task.to_string(),
            repo_id: "r".parse().unwrap(),
            distributor_id: "web".parse().unwrap(),
            distributor_type_id: "docker_distributor_web".to_owned(),
            started: Timestamp(started * 1_000_000),
            completed: Timestamp(started * 1_000_000),
            result: HistoryResult::Success,
            summary: json!({"publish_images": "FINISHED"}),
            details: json!([]),
            error_message: None,
            exception: None,
            traceback: None,
        };
        fenced.add_publish_history(&entry).await.unwrap();
        let outcome = pulp_store::attempts::Outcome::Finished(json!(entry));
        fenced.finish(&outcome, &json!({})).await.unwrap();
    }

    #[tokio::test]
    async fn publishes_are_listed_newest_first_and_by_range() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        for started in [0, 86_400, 2 * 86_400] {
            published(&api, started).await;
        }
        let starts = |reply: &Value| -> Vec<String> {
            let rows = reply.as_array().unwrap().iter();
            rows.map(|r| r["started"].as_str().unwrap().to_owned()).collect()
        };
        let path = "/repositories/r/history/publish/web/";
        let all = api.get(path).await.body;
        assert_eq!(
            starts(&all),
            [
                "1970-01-03T00:00:00Z",
                "1970-01-02T00:00:00Z",
                "1970-01-01T00:00:00Z"
            ]
        );
        assert_eq!(all[0]["result"], "success");
        assert_eq!(all[0]["_ns"], "repo_publish_results");
        assert_eq!(all[0]["error_message"], Value::Null);
        let one = api
            .get(&format!("{path}?sort=ascending&limit=1&start_date=1970-01-02"))
            .await
            .body;
        assert_eq!(starts(&one), ["1970-01-02T00:00:00Z"]);
        let old = api
            .get(&format!("{path}?end_date=1970-01-01T12:00:00%2B00:00"))
            .await
            .body;
        assert_eq!(old.as_array().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn syncs_are_listed() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        let mut tx = api.store.begin().await.unwrap();
        let kind = TaskKind::Sync {
            repo_id: "r".parse().unwrap(),
            override_config: Map::new(),
        };
        let task = tx.enqueue(&kind).await.unwrap();
        tx.commit().await.unwrap();
        let lease = api.claimed(task).await;
        let mut fenced = api.store.begin_fenced(&lease).await.unwrap();
        let entry = SyncHistory {
            id: task.to_string(),
            repo_id: "r".parse().unwrap(),
            importer_id: "docker_importer".to_owned(),
            importer_type_id: "docker_importer".to_owned(),
            started: Timestamp(0),
            completed: Timestamp(1),
            result: HistoryResult::Success,
            added_count: 2,
            updated_count: 1,
            removed_count: 0,
            summary: json!({}),
            details: json!([]),
            report: json!({"seconds": 1.5}),
            error_message: None,
            exception: None,
            traceback: None,
        };
        fenced.add_sync_history(&entry).await.unwrap();
        let outcome = pulp_store::attempts::Outcome::Finished(json!(entry));
        fenced.finish(&outcome, &json!({})).await.unwrap();
        let all = api.get("/repositories/r/history/sync/").await.body;
        assert_eq!(all[0]["_ns"], "repo_sync_results");
        assert_eq!(
            (&all[0]["added_count"], &all[0]["result"]),
            (&json!(2), &json!("success"))
        );
        assert_eq!(all[0]["report"]["seconds"], 1.5);
        let none = api
            .get("/repositories/r/history/sync/?start_date=2020-01-01")
            .await;
        assert_eq!(none.body, json!([]));
    }

    #[tokio::test]
    async fn every_bad_parameter_is_named() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        let reply = api
            .get("/repositories/r/history/publish/web/?limit=0&sort=up&start_date=x&end_date=y")
            .await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST);
        assert_eq!(
            reply.body["property_names"],
            json!(["limit", "sort", "start_date", "end_date"])
        );
        let unknown = api.get("/repositories/r/history/publish/nope/").await;
        assert_eq!(unknown.status, StatusCode::NOT_FOUND);
        assert_eq!(api.get("/repositories/r/history/sync/").await.body, json!([]));
        assert_eq!(
            api.get("/repositories/nope/history/sync/").await.status,
            StatusCode::NOT_FOUND
        );
    }
}
