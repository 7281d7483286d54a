//! `…/importers/<importer>/schedules/sync/` and `…/distributors/<distributor>/schedules/publish/`: what begins by
//! itself.

use axum::{extract::State, routing::get};
use http::StatusCode;
use pulp_model::{
    ScheduleId,
    config::{self, IMPORTER_TYPE},
    importer::importer_settings,
    schedule::Recurrence,
};
use pulp_store::{
    distributors::Distributor,
    importers::Importer,
    schedules::{NewSchedule, Schedule, ScheduleChange, Target},
};
use serde_json::{Map, Value};

use crate::{
    ApiError, ApiState, App, Routes,
    body::JsonObject,
    distributors,
    errors::Segments,
    fields::Fields,
    importers,
    replies::{self, Reply},
    repositories, views,
};

pub(crate) fn routes() -> Routes {
    Routes::default()
        .at(
            "/repositories/{repo}/importers/{importer}/schedules/sync/",
            get(list_syncs).post(create_sync),
        )
        .at(
            "/repositories/{repo}/importers/{importer}/schedules/sync/{schedule}/",
            get(read_sync).put(update_sync).delete(delete_sync),
        )
        .at(
            "/repositories/{repo}/distributors/{distributor}/schedules/publish/",
            get(list_publishes).post(create_publish),
        )
        .at(
            "/repositories/{repo}/distributors/{distributor}/schedules/publish/{schedule}/",
            get(read_publish).put(update_publish).delete(delete_publish),
        )
}

/// What the schedules of a path run.
enum Parent {
    Importer(Importer),
    Distributor(Distributor),
}

impl Parent {
    async fn importer(app: &ApiState, repo: &str, importer: &str) -> Result<Self, ApiError> {
        Ok(Self::Importer(importers::find(app, repo, importer).await?))
    }

    async fn distributor(app: &ApiState, repo: &str, distributor: &str) -> Result<Self, ApiError> {
        let repo = repositories::find_id(&app.store, repo).await?;
        Ok(Self::Distributor(
            distributors::find(app, &repo, distributor).await?,
        ))
    }

    fn target(&self) -> Target {
        match self {
            Self::Importer(i) => Target::Sync(i.repo_id.clone()),
            Self::Distributor(d) => Target::Publish(d.repo_id.clone(), d.id.clone()),
        }
    }

    /// The importer's or distributor's id, as paths have it.
    fn id(&self) -> &str {
        match self {
            Self::Importer(i) => &i.importer_type_id,
            Self::Distributor(d) => d.id.as_str(),
        }
    }

    /// It is gone, though it was there a moment ago.
    fn gone(&self) -> ApiError {
        let kind = match self {
            Self::Importer(_) => "importer_id",
            Self::Distributor(_) => "distributor_id",
        };
        ApiError::NotFound {
            kind,
            id: self.id().to_owned(),
        }
    }

    /// Settings for the runs of a schedule alone, checked together with what they override.
    fn checked(&self, app: &ApiState, overrides: Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
        match self {
            Self::Importer(i) => {
                let overrides = importers::with_account_apart(overrides);
                config::boolean(&overrides, "dry_run")?;
                let defaults = app.plugin_defaults(IMPORTER_TYPE);
                importer_settings(&config::merged(&[&defaults, &i.config, &overrides]))?;
                Ok(overrides)
            }
            Self::Distributor(d) => {
                let merged = config::merged(&[&d.config, &overrides]);
                distributors::check(app, &d.repo_id, &d.distributor_type_id, &merged)?;
                Ok(overrides)
            }
        }
    }

    async fn find(&self, app: &ApiState, segment: &str) -> Result<Schedule, ApiError> {
        let id = schedule_id(segment)?;
        let found = app.store.schedule(&self.target(), &id).await?;
        found.ok_or_else(|| unknown(segment))
    }

    async fn view(&self, app: &ApiState, schedule: &Schedule) -> Result<Value, ApiError> {
        let next = schedule.next_run(app.store.now().await?)?;
        Ok(views::schedule(schedule, self.id(), next))
    }
}

fn unknown(segment: &str) -> ApiError {
    ApiError::NotFound {
        kind: "schedule_id",
        id: segment.to_owned(),
    }
}

fn schedule_id(segment: &str) -> Result<ScheduleId, ApiError> {
    segment.parse().map_err(|_| unknown(segment))
}

/// Reads `schedule`: its text, and the same read.
fn recurrence(fields: &mut Fields) -> Option<(String, Recurrence)> {
    let text = fields.text("schedule")?;
    match text.parse::<Recurrence>() {
        Ok(read) => Some((text, read)),
        Err(e) => {
            fields.refuse("schedule", format!("schedule {text:?}: {e}"));
            None
        }
    }
}

/// Reads `failure_threshold`; null means never.
fn failure_threshold(fields: &mut Fields) -> Option<i64> {
    fields.positive("failure_threshold")
}

async fn list(app: &ApiState, parent: &Parent) -> Reply {
    let mut views = Vec::new();
    for schedule in app.store.schedules_of(&parent.target()).await? {
        views.push(parent.view(app, &schedule).await?);
    }
    Ok(replies::ok(&views.into()))
}

async fn create(app: &ApiState, parent: &Parent, body: Map<String, Value>) -> Reply {
    let mut fields = Fields::new(body);
    if !fields.holds("schedule") {
        fields.lacks("schedule");
    }
    let schedule = recurrence(&mut fields);
    let overrides = fields.object("override_config").unwrap_or_default();
    let failure_threshold = failure_threshold(&mut fields);
    let enabled = fields.boolean("enabled").unwrap_or(true);
    fields.finish_strict()?;
    let Some(schedule) = schedule else {
        return Err(ApiError::Missing(vec!["schedule".to_owned()]));
    };
    let new = NewSchedule {
        target: parent.target(),
        schedule,
        override_config: parent.checked(app, overrides)?,
        enabled,
        failure_threshold,
    };
    let mut tx = app.store.begin().await?;
    let made = tx.create_schedule(&new).await?.ok_or_else(|| parent.gone())?;
    tx.commit().await?;
    Ok(replies::created(&parent.view(app, &made).await?))
}

async fn read(app: &ApiState, parent: &Parent, schedule: &str) -> Reply {
    let schedule = parent.find(app, schedule).await?;
    Ok(replies::ok(&parent.view(app, &schedule).await?))
}

async fn update(app: &ApiState, parent: &Parent, schedule: &str, body: Map<String, Value>) -> Reply {
    let found = parent.find(app, schedule).await?;
    let mut fields = Fields::new(body);
    let threshold_given = fields.has("failure_threshold");
    let recurrence = recurrence(&mut fields);
    let overrides = fields.object("override_config");
    let failure_threshold = failure_threshold(&mut fields);
    let enabled = fields.boolean("enabled");
    fields.finish_strict()?;
    let change = ScheduleChange {
        schedule: recurrence,
        override_config: overrides.map(|o| parent.checked(app, o)).transpose()?,
        enabled,
        failure_threshold: threshold_given.then_some(failure_threshold),
    };
    let mut tx = app.store.begin().await?;
    let changed = tx.update_schedule(&found.target, &found.id, &change).await?;
    let changed = changed.ok_or_else(|| unknown(schedule))?;
    tx.commit().await?;
    Ok(replies::ok(&parent.view(app, &changed).await?))
}

async fn delete(app: &ApiState, parent: &Parent, schedule: &str) -> Reply {
    let id = schedule_id(schedule)?;
    let mut tx = app.store.begin().await?;
    if !tx.delete_schedule(&parent.target(), &id).await? {
        return Err(unknown(schedule));
    }
    tx.commit().await?;
    Ok(replies::with_status(StatusCode::OK, &Value::Null))
}

async fn list_syncs(State(app): State<App>, Segments((repo, importer)): Segments<(String, String)>) -> Reply {
    list(&app, &Parent::importer(&app, &repo, &importer).await?).await
}

async fn create_sync(
    State(app): State<App>,
    Segments((repo, importer)): Segments<(String, String)>,
    JsonObject(body): JsonObject,
) -> Reply {
    create(&app, &Parent::importer(&app, &repo, &importer).await?, body).await
}

async fn read_sync(
    State(app): State<App>,
    Segments((repo, importer, schedule)): Segments<(String, String, String)>,
) -> Reply {
    read(&app, &Parent::importer(&app, &repo, &importer).await?, &schedule).await
}

async fn update_sync(
    State(app): State<App>,
    Segments((repo, importer, schedule)): Segments<(String, String, String)>,
    JsonObject(body): JsonObject,
) -> Reply {
    let parent = Parent::importer(&app, &repo, &importer).await?;
    update(&app, &parent, &schedule, body).await
}

async fn delete_sync(
    State(app): State<App>,
    Segments((repo, importer, schedule)): Segments<(String, String, String)>,
) -> Reply {
    delete(&app, &Parent::importer(&app, &repo, &importer).await?, &schedule).await
}

async fn list_publishes(
    State(app): State<App>,
    Segments((repo, distributor)): Segments<(String, String)>,
) -> Reply {
    list(&app, &Parent::distributor(&app, &repo, &distributor).await?).await
}

async fn create_publish(
    State(app): State<App>,
    Segments((repo, distributor)): Segments<(String, String)>,
    JsonObject(body): JsonObject,
) -> Reply {
    create(&app, &Parent::distributor(&app, &repo, &distributor).await?, body).await
}

async fn read_publish(
    State(app): State<App>,
    Segments((repo, distributor, schedule)): Segments<(String, String, String)>,
) -> Reply {
    read(
        &app,
        &Parent::distributor(&app, &repo, &distributor).await?,
        &schedule,
    )
    .await
}

async fn update_publish(
    State(app): State<App>,
    Segments((repo, distributor, schedule)): Segments<(String, String, String)>,
    JsonObject(body): JsonObject,
) -> Reply {
    let parent = Parent::distributor(&app, &repo, &distributor).await?;
    update(&app, &parent, &schedule, body).await
}

async fn delete_publish(
    State(app): State<App>,
    Segments((repo, distributor, schedule)): Segments<(String, String, String)>,
) -> Reply {
    let parent = Parent::distributor(&app, &repo, &distributor).await?;
    delete(&app, &parent, &schedule).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::testing::Api;

    const SYNC: &str = "/repositories/r/importers/docker_importer/schedules/sync/";
    const PUBLISH: &str = "/repositories/r/distributors/web/schedules/publish/";

    async fn api() -> Api {
        let api = Api::new().await;
        api.docker_repository("r").await;
        api
    }

    fn path_of(schedule: &Value) -> String {
        let href = schedule["_href"].as_str().unwrap();
        href.strip_prefix(crate::PREFIX).unwrap().to_owned()
    }

    #[tokio::test]
    async fn a_sync_schedule_has_the_fields_that_clients_know() {
        let api = api().await;
        let body = json!({"schedule": "2021-01-01T00:00:00Z/P1D", "failure_threshold": 3});
        let made = api.post(SYNC, &body).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
        assert_eq!(made.header("location"), made.body["_href"].as_str().unwrap());
        let id = made.body["_id"].as_str().unwrap();
        assert_eq!(id.len(), 24);
        let mut shown = made.body.clone();
        let next = shown["next_run"].take();
        assert!(next.as_str().unwrap().ends_with("T00:00:00Z"), "{next}");
        assert!(shown["last_updated"].take().as_f64().unwrap() > 1.6e9);
        assert_eq!(
            shown,
            json!({
                "_id": id,
                "_href": format!("/pulp/api/v2{SYNC}{id}/"),
                "schedule": "2021-01-01T00:00:00Z/P1D",
                "enabled": true,
                "failure_threshold": 3,
                "consecutive_failures": 0,
                "first_run": "2021-01-01T00:00:00Z",
                "last_run_at": null,
                "next_run": null,
                "remaining_runs": null,
                "total_run_count": 0,
                "last_updated": null,
                "task": "pulp.server.tasks.repository.sync_with_auto_publish",
                "args": ["r"],
                "kwargs": {"overrides": {}, "scheduled_call_id": id},
                "resource": "pulp:importer:r:docker_importer",
            })
        );
        assert_eq!(api.get(&path_of(&made.body)).await.body, made.body);
        assert_eq!(api.get(SYNC).await.body, json!([made.body]));
        assert_eq!(api.get(PUBLISH).await.body, json!([]));
    }

    #[tokio::test]
    async fn a_publish_schedule_is_changed_and_deleted() {
        let api = api().await;
        let made = api
            .post(PUBLISH, &json!({"schedule": "R3/PT1H", "enabled": false}))
            .await
            .body;
        assert_eq!(made["resource"], "pulp:distributor:r:web");
        assert_eq!(made["args"], json!(["r", "web"]));
        assert_eq!(
            (&made["enabled"], &made["remaining_runs"]),
            (&json!(false), &json!(3))
        );
        let path = path_of(&made);
        let change =
            json!({"enabled": true, "failure_threshold": 2, "override_config": {"force_full": true}});
        let changed = api.put(&path, &change).await;
        assert_eq!(changed.status, StatusCode::OK, "{}", changed.body);
        assert_eq!(changed.body["failure_threshold"], 2);
        assert_eq!(changed.body["kwargs"]["overrides"], json!({"force_full": true}));
        assert_eq!(changed.body["first_run"], made["first_run"]);
        let changed = api
            .put(&path, &json!({"failure_threshold": null, "schedule": "PT2H"}))
            .await
            .body;
        assert_eq!(changed["failure_threshold"], Value::Null);
        assert_eq!(
            (&changed["schedule"], &changed["remaining_runs"]),
            (&json!("PT2H"), &Value::Null)
        );
        let deleted = api.delete(&path).await;
        assert_eq!((deleted.status, deleted.body), (StatusCode::OK, Value::Null));
        for gone in [
            api.get(&path).await,
            api.delete(&path).await,
            api.put(&path, &json!({})).await,
        ] {
            assert_eq!(gone.status, StatusCode::NOT_FOUND);
            assert!(gone.body["resources"]["schedule_id"].is_string());
        }
    }

    #[tokio::test]
    async fn what_is_wrong_is_refused_by_its_name() {
        let api = api().await;
        let made = api.post(SYNC, &json!({"schedule": "PT1H"})).await.body;
        assert_eq!(api.post(SYNC, &json!({})).await.code(), "PLP0016");
        for (body, property) in [
            (json!({"schedule": "P1M"}), "schedule"),
            (json!({"schedule": "R0/P1D"}), "schedule"),
            (json!({"schedule": 5}), "schedule"),
            (
                json!({"schedule": "P1D", "failure_threshold": 0}),
                "failure_threshold",
            ),
            (
                json!({"schedule": "P1D", "failure_threshold": "2"}),
                "failure_threshold",
            ),
            (json!({"schedule": "P1D", "enabled": "yes"}), "enabled"),
            (
                json!({"schedule": "P1D", "override_config": {"max_downloads": "x"}}),
                "max_downloads",
            ),
        ] {
            let reply = api.post(SYNC, &body).await;
            assert_eq!(
                (reply.status, reply.code()),
                (StatusCode::BAD_REQUEST, "PLP0015"),
                "{body}"
            );
            assert_eq!(reply.body["property_names"], json!([property]), "{body}");
        }
        for unknown in ["remaining_runs", "first_run"] {
            let reply = api.put(&path_of(&made), &json!({ unknown: 1 })).await;
            assert_eq!(reply.status, StatusCode::BAD_REQUEST);
            assert_eq!(reply.body["unsupported_property_names"], json!([unknown]));
        }
    }

    #[tokio::test]
    async fn a_schedule_is_found_below_its_own_parent_only() {
        let api = api().await;
        let made = api.post(SYNC, &json!({"schedule": "PT1H"})).await.body;
        let id = made["_id"].as_str().unwrap();
        for path in [
            format!("{PUBLISH}{id}/"),
            format!("{SYNC}nonsense/"),
            format!("{SYNC}{}/", "0".repeat(24)),
            format!("/repositories/nope/importers/docker_importer/schedules/sync/{id}/"),
            format!("/repositories/r/importers/yum_importer/schedules/sync/{id}/"),
            "/repositories/r/distributors/nope/schedules/publish/".to_owned(),
        ] {
            assert_eq!(api.get(&path).await.status, StatusCode::NOT_FOUND, "{path}");
        }
    }
}
