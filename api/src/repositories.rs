//! `/repositories/`: description, importer and distributors of repositories.

use std::collections::BTreeMap;

use axum::{
    extract::State,
    routing::{get, post},
};
use pulp_model::{CodedError, DistributorId, ErrorCode, RepositoryId, TaskId, config, task::TaskKind};
use pulp_store::{
    Store, StoreError,
    distributors::NewDistributor,
    repositories::{NewRepository, Repository, RepositoryDelta},
};
use serde_json::{Map, Value, json};

use crate::{
    ApiError, ApiState, App, Routes,
    body::{JsonObject, type_name},
    criteria::Criteria,
    distributors,
    errors::Segments,
    fields::Fields,
    importers,
    query::Query,
    replies::{self, Reply},
    requester::Requester,
    views,
};

pub(crate) fn routes() -> Routes {
    Routes::default()
        .at("/repositories/", get(list).post(create))
        .at("/repositories/search/", get(search_by_query).post(search_by_body))
        .at("/repositories/{repo}/", get(read).put(update).delete(delete))
        .at(
            "/repositories/actions/content/regenerate_applicability/",
            post(regenerate_applicability),
        )
}

/// The repository of a path's segment. A text that can't be an id names none.
pub(crate) async fn find(store: &Store, segment: &str) -> Result<Repository, ApiError> {
    let found = match segment.parse() {
        Ok(id) => store.repository(&id).await?,
        Err(_) => None,
    };
    found.ok_or_else(|| unknown(segment))
}

/// The id of a repository that exists.
pub(crate) async fn find_id(store: &Store, segment: &str) -> Result<RepositoryId, ApiError> {
    match segment.parse() {
        Ok(id) if store.repository_exists(&id).await? => Ok(id),
        _ => Err(unknown(segment)),
    }
}

fn unknown(segment: &str) -> ApiError {
    ApiError::NotFound {
        kind: "repo_id",
        id: segment.to_owned(),
    }
}

/// What of its surroundings a repository is shown with.
#[derive(Clone, Copy, Default)]
struct Shown {
    importers: bool,
    distributors: bool,
}

/// Names of the flags.
const FLAGS: [&str; 3] = ["details", "importers", "distributors"];

impl Shown {
    fn by_query(query: &Query) -> Result<Self, ApiError> {
        let details = query.flag("details")?;
        Ok(Self {
            importers: details || query.flag("importers")?,
            distributors: details || query.flag("distributors")?,
        })
    }

    fn by_body(body: &Map<String, Value>) -> Result<Self, ApiError> {
        let flag = |name| {
            config::boolean(body, name)
                .map_err(|_| ApiError::invalid(name, format!("{name} must be true or false")))
        };
        let details = flag("details")?;
        Ok(Self {
            importers: details || flag("importers")?,
            distributors: details || flag("distributors")?,
        })
    }

    /// Adds to many repositories' views, with one read for each kind.
    async fn add_to(self, store: &Store, views: &mut [Value]) -> Result<(), ApiError> {
        if self.importers {
            let mut by_repo: BTreeMap<String, Vec<Value>> = BTreeMap::new();
            for i in store.importers().await? {
                by_repo
                    .entry(i.repo_id.to_string())
                    .or_default()
                    .push(views::importer(&i));
            }
            attach(views, "importers", by_repo);
        }
        if self.distributors {
            let mut by_repo: BTreeMap<String, Vec<Value>> = BTreeMap::new();
            for d in store.distributors().await? {
                by_repo
                    .entry(d.repo_id.to_string())
                    .or_default()
                    .push(views::distributor(&d));
            }
            attach(views, "distributors", by_repo);
        }
        Ok(())
    }
}

fn attach(views: &mut [Value], name: &str, mut by_repo: BTreeMap<String, Vec<Value>>) {
    for view in views {
        let own = view["id"].as_str().and_then(|id| by_repo.remove(id));
        view[name] = json!(own.unwrap_or_default());
    }
}

async fn list(State(app): State<App>, query: Query) -> Reply {
    let shown = Shown::by_query(&query)?;
    let repositories = app.store.repositories().await?;
    let mut views: Vec<Value> = repositories.iter().map(|r| views::repository(r).into()).collect();
    shown.add_to(&app.store, &mut views).await?;
    Ok(replies::ok(&views.into()))
}

async fn read(State(app): State<App>, Segments(repo): Segments<String>, query: Query) -> Reply {
    let shown = Shown::by_query(&query)?;
    let repository = find(&app.store, &repo).await?;
    let mut view = views::repository(&repository);
    if shown.importers {
        let importer = app.store.importer(&repository.id).await?;
        let importers: Vec<_> = importer.iter().map(views::importer).collect();
        view.insert("importers".to_owned(), importers.into());
    }
    if shown.distributors {
        let distributors = app.store.distributors_of(&repository.id).await?;
        let distributors: Vec<_> = distributors.iter().map(views::distributor).collect();
        view.insert("distributors".to_owned(), distributors.into());
    }
    if query.flag("details")? {
        view.extend(views::unit_totals(&repository));
    }
    Ok(replies::ok(&view.into()))
}

async fn search_by_query(State(app): State<App>, query: Query) -> Reply {
    let shown = Shown::by_query(&query)?;
    search(&app, &Criteria::from_query(&query, &FLAGS)?, shown).await
}

async fn search_by_body(State(app): State<App>, JsonObject(body): JsonObject) -> Reply {
    let shown = Shown::by_body(&body)?;
    search(&app, &Criteria::from_body(&body)?, shown).await
}

async fn search(app: &ApiState, criteria: &Criteria, shown: Shown) -> Reply {
    let repositories = app.store.repositories().await?;
    let documents = repositories.iter().map(|r| {
        let mut document = views::repository(r);
        // The name that the id has in Pulp's database; filters may use either.
        document.insert("repo_id".to_owned(), json!(r.id));
        document.into()
    });
    let found = criteria.apply(documents.collect());
    let mut views: Vec<Value> = found
        .into_iter()
        .map(|mut document| {
            if let Some(map) = document.as_object_mut() {
                map.remove("repo_id");
            }
            criteria.project(document, &["id", "_id", "_ns", "_href"])
        })
        .collect();
    shown.add_to(&app.store, &mut views).await?;
    Ok(replies::ok(&views.into()))
}

/// A request for a repository, checked as a whole before anything is written.
struct Creation {
    repository: NewRepository,
    importer: Option<(String, Map<String, Value>)>,
    distributors: Vec<NewDistributor>,
}

impl Creation {
    fn read(app: &ApiState, body: Map<String, Value>) -> Result<Self, ApiError> {
        let mut fields = Fields::new(body);
        let id: Option<RepositoryId> = fields.required_parsed("id");
        if id.as_ref().is_some_and(|id| id.as_str() == "search") {
            fields.refuse(
                "id",
                "\"search\" is the name of a path beside the repositories; choose another id",
            );
        }
        let display_name = fields.text("display_name");
        let description = fields.text("description");
        let notes = fields.object("notes").unwrap_or_default();
        let importer_type = fields.text("importer_type_id");
        let importer_config = fields.object("importer_config").unwrap_or_default();
        let distributors = fields.array("distributors").unwrap_or_default();
        fields.finish()?;
        let Some(id) = id else {
            return Err(ApiError::Missing(vec!["id".to_owned()]));
        };
        let importer = match importer_type {
            None => None,
            Some(type_id) => {
                importers::check_type(&type_id)?;
                Some((type_id, importers::whole_config(app, importer_config)?))
            }
        };
        let distributors = distributors
            .into_iter()
            .map(|entry| match entry {
                Value::Object(map) => distributors::read_new(app, &id, map),
                other => Err(ApiError::invalid(
                    "distributors",
                    format!(
                        "distributors holds a {}; it is a list of objects",
                        type_name(&other)
                    ),
                )),
            })
            .collect::<Result<Vec<_>, _>>()?;
        for (n, distributor) in distributors.iter().enumerate() {
            if distributors.iter().take(n).any(|d| d.id == distributor.id) {
                let reason = format!(
                    "distributors holds the distributor_id {:?} twice",
                    distributor.id.as_str()
                );
                return Err(ApiError::invalid("distributors", reason));
            }
        }
        Ok(Self {
            repository: NewRepository {
                display_name: display_name.unwrap_or_else(|| id.to_string()),
                description,
                notes: config::merged(&[&notes]),
                id,
            },
            importer,
            distributors,
        })
    }
}

/// Everything in one transaction: a repository is there with its plugins, or not at all.
async fn create(State(app): State<App>, JsonObject(body): JsonObject) -> Reply {
    let new = Creation::read(&app, body)?;
    let id = &new.repository.id;
    let mut tx = app.store.begin().await?;
    tx.create_repository(&new.repository).await.map_err(|e| match e {
        StoreError::Duplicate(_) => ApiError::Duplicate { id: id.to_string() },
        other => other.into(),
    })?;
    if let Some((type_id, config)) = &new.importer {
        tx.put_importer(id, type_id, config).await?;
    }
    for distributor in &new.distributors {
        tx.put_distributor(id, distributor).await?;
    }
    tx.commit().await?;
    tracing::info!(repo_id = %id, "repository created");
    let repository = find(&app.store, id.as_str()).await?;
    Ok(replies::created(&views::repository(&repository).into()))
}

/// An object that a client may leave out or send as null; another type has a code of its own here.
fn typed_object(body: &mut Map<String, Value>, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
    match body.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(other) => Err(CodedError::new(
            ErrorCode::WRONG_TYPE,
            format!("{name} is a {}; it must be an object", type_name(&other)),
        )
        .with("value", &other)
        .with("field", name)
        .with("field_type", "object")
        .into()),
    }
}

fn read_delta(delta: Map<String, Value>) -> Result<RepositoryDelta, ApiError> {
    let mut fields = Fields::new(delta);
    let clears = fields.has("description");
    let description = fields.text("description");
    let delta = RepositoryDelta {
        display_name: fields.text("display_name"),
        description: clears.then_some(description),
        notes: fields.object("notes"),
        scratchpad: fields.object("scratchpad"),
    };
    fields.finish()?;
    Ok(delta)
}

/// The description changes at once; importer and distributors by a task each, since others may be using them.
/// All of it is accepted together or not at all.
async fn update(
    State(app): State<App>,
    requester: Requester,
    Segments(repo): Segments<String>,
    JsonObject(mut body): JsonObject,
) -> Reply {
    let id = find_id(&app.store, &repo).await?;
    let delta = typed_object(&mut body, "delta")?.map(read_delta).transpose()?;
    let importer_config = typed_object(&mut body, "importer_config")?;
    let distributor_configs = typed_object(&mut body, "distributor_configs")?.unwrap_or_default();

    let mut kinds = Vec::new();
    if let Some(config) = importer_config {
        kinds.push(importers::update_kind(&app, &id, config).await?);
    }
    for (distributor, config) in distributor_configs {
        let Value::Object(config) = config else {
            let reason = format!("the settings of {distributor:?} must be an object");
            return Err(ApiError::invalid("distributor_configs", reason));
        };
        kinds.push(distributors::update_kind(&app, &id, &distributor, config, None).await?);
    }

    let mut tx = app.store.begin().await?;
    if let Some(delta) = &delta
        && !tx.update_repository(&id, delta).await?
    {
        return Err(unknown(&repo));
    }
    let mut tasks: Vec<TaskId> = Vec::with_capacity(kinds.len());
    for kind in &kinds {
        tasks.push(tx.submit(&requester.submission(kind)).await?);
    }
    tx.commit().await?;
    let result = Value::Object(views::repository(&find(&app.store, &repo).await?));
    Ok(if tasks.is_empty() {
        replies::ok(&views::call_report(&result, &[]))
    } else {
        replies::accepted(&tasks, &result)
    })
}

async fn delete(State(app): State<App>, requester: Requester, Segments(repo): Segments<String>) -> Reply {
    let repo_id = find_id(&app.store, &repo).await?;
    replies::enqueued(&app.store, &requester, &TaskKind::DeleteRepository { repo_id }).await
}

async fn regenerate_applicability() -> ApiError {
    ApiError::NotImplemented {
        operation: "regenerate_applicability",
        instead: "it concerns packages of consumers, which container images don't have",
    }
}

/// The distributor id of a path's segment.
pub(crate) fn distributor_id(segment: &str) -> Result<DistributorId, ApiError> {
    segment.parse().map_err(|_| ApiError::NotFound {
        kind: "distributor_id",
        id: segment.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::StatusCode;
    use pulp_model::config::{IMPORTER_TYPE, WEB_DISTRIBUTOR_TYPE};

    use super::*;
    use crate::testing::Api;

    #[tokio::test]
    async fn a_repository_is_created_with_its_importer_and_distributors() {
        let api = Api::new().await;
        let reply = api
            .post(
                "/repositories/",
                &json!({
                    "id": "busybox", "description": "small", "notes": {"_repo-type": "docker-repo", "gone": null},
                    "importer_type_id": IMPORTER_TYPE,
                    "importer_config": {"feed": "https://me:secret@registry.example.com", "tags": null},
                    "distributors": [{"distributor_type_id": WEB_DISTRIBUTOR_TYPE, "distributor_id": "web",
                        "distributor_config": {"repo-registry-id": "pulpdemo/busybox"}, "auto_publish": true}],
                    "unknown": "passed over",
                }),
            )
            .await;
        assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.body);
        assert_eq!(reply.header("location"), "/pulp/api/v2/repositories/busybox/");
        assert_eq!(reply.body["_href"], "/pulp/api/v2/repositories/busybox/");
        assert_eq!(reply.body["display_name"], "busybox");
        assert_eq!(reply.body["notes"], json!({"_repo-type": "docker-repo"}));
        assert_eq!(reply.body["_ns"], "repos");
        assert_eq!(reply.body["_id"]["$oid"].as_str().unwrap().len(), 24);
        assert!(reply.body.get("importers").is_none());

        let details = api.get("/repositories/busybox/?details=true").await.body;
        assert_eq!(details["total_repository_units"], 0);
        assert_eq!(details["locally_stored_units"], 0);
        let importer = &details["importers"][0];
        assert_eq!(importer["id"], "docker_importer");
        assert_eq!(
            importer["config"],
            json!({"feed": "https://registry.example.com/", "basic_auth_username": "me", "basic_auth_password": "*****"})
        );
        let distributor = &details["distributors"][0];
        assert_eq!(distributor["id"], "web");
        assert_eq!(distributor["auto_publish"], true);
        assert_eq!(distributor["last_override_config"], json!({}));
        assert_eq!(
            distributor["_href"],
            "/pulp/api/v2/repositories/busybox/distributors/web/"
        );
    }

    #[tokio::test]
    async fn a_refused_distributor_leaves_no_repository_behind() {
        let api = Api::new().await;
        let with = |distributor: Value| json!({"id": "r", "distributors": [distributor]});
        let web = |config: Value| json!({"distributor_type_id": WEB_DISTRIBUTOR_TYPE, "distributor_config": config});
        for (body, code) in [
            (with(json!({})), "PLP0016"),
            (with(json!({"distributor_type_id": "yum_distributor"})), "PLP0015"),
            (with(web(json!({"repo-registry-id": "Upper"}))), "DKR1005"),
            (with(web(json!({"protected": "maybe"}))), "DKR1004"),
            (with(web(json!({"redirect-url": "x", "protected": 5}))), "PLP1000"),
            (with(json!(5)), "PLP0015"),
            (json!({"id": "r", "importer_type_id": "yum_importer"}), "PLP1008"),
        ] {
            let reply = api.post("/repositories/", &body).await;
            assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{body}");
            assert_eq!(reply.code(), code, "{body}: {}", reply.body);
        }
        assert_eq!(api.get("/repositories/").await.body, json!([]));
    }

    #[tokio::test]
    async fn an_id_is_checked_and_taken_once() {
        let api = Api::new().await;
        for bad in [json!("a b"), json!("a/b"), json!(".."), json!("search"), json!(5)] {
            let reply = api.post("/repositories/", &json!({"id": bad})).await;
            assert_eq!(reply.status, StatusCode::BAD_REQUEST);
            assert_eq!(reply.code(), "PLP0015");
            assert_eq!(reply.body["property_names"], json!(["id"]));
        }
        let reply = api.post("/repositories/", &json!({"display_name": "x"})).await;
        assert_eq!(reply.code(), "PLP0016");
        assert_eq!(reply.body["missing_property_names"], json!(["id"]));

        api.docker_repository("r").await;
        let again = api.post("/repositories", &json!({"id": "r"})).await;
        assert_eq!(again.status, StatusCode::CONFLICT);
        assert_eq!(again.code(), "PLP0018");
        assert_eq!(again.body["resource_id"], "r");
    }

    #[tokio::test]
    async fn an_unknown_repository_is_told_in_pulps_shape() {
        let api = Api::new().await;
        let reply = api.get("/repositories/nope/").await;
        assert_eq!(reply.status, StatusCode::NOT_FOUND);
        let description = "there is no repository \"nope\"";
        assert_eq!(
            reply.body,
            json!({
                "_href": "/pulp/api/v2/repositories/nope/", "http_request_method": "GET", "http_status": 404,
                "error_message": description, "exception": null, "traceback": null,
                "resources": {"repo_id": "nope"},
                "error": {"code": "PLP0009", "description": description,
                    "data": {"resources": {"repo_id": "nope"}}, "sub_errors": []},
            })
        );
        for path in [
            "/repositories/%2e%2e/",
            "/repositories/a%20b/",
            "/repositories/%ff/",
        ] {
            assert_eq!(api.get(path).await.status, StatusCode::NOT_FOUND, "{path}");
        }
        assert_eq!(
            api.put("/repositories/nope/", &json!({})).await.status,
            StatusCode::NOT_FOUND
        );
        assert_eq!(
            api.delete("/repositories/nope/").await.status,
            StatusCode::NOT_FOUND
        );
    }

    #[tokio::test]
    async fn an_update_answers_200_until_plugins_are_touched() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        let delta = json!({"delta": {"display_name": "R", "notes": {"_repo-type": null, "a": 1}}});
        let plain = api.put("/repositories/r/", &delta).await;
        assert_eq!(plain.status, StatusCode::OK);
        assert_eq!(plain.body["result"]["display_name"], "R");
        assert_eq!(plain.body["result"]["notes"], json!({"a": 1}));
        assert_eq!(plain.body["spawned_tasks"], json!([]));
        assert_eq!(plain.body["error"], Value::Null);

        let both = json!({
            "delta": {"description": "d"}, "importer_config": {"feed": "https://registry.example.com"},
            "distributor_configs": {"web": {"protected": true}},
        });
        let reply = api.put("/repositories/r/", &both).await;
        assert_eq!(reply.status, StatusCode::ACCEPTED);
        assert_eq!(reply.body["spawned_tasks"].as_array().unwrap().len(), 2);
        assert_eq!(reply.body["result"]["description"], "d");
    }

    #[tokio::test]
    async fn a_refused_update_changes_nothing() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        for (body, status, code) in [
            (json!({"delta": 5}), 400, "PLP1010"),
            (json!({"delta": {"notes": 5}}), 400, "PLP0015"),
            (
                json!({"delta": {"display_name": "X"}, "distributor_configs": {"nope": {}}}),
                404,
                "PLP0009",
            ),
            (
                json!({"delta": {"display_name": "X"}, "distributor_configs": {"web": {"protected": 5}}}),
                400,
                "DKR1004",
            ),
        ] {
            let reply = api.put("/repositories/r/", &body).await;
            assert_eq!((reply.status.as_u16(), reply.code()), (status, code), "{body}");
        }
        assert_eq!(api.get("/repositories/r/").await.body["display_name"], "r");
        assert_eq!(api.get("/tasks/").await.body, json!([]));
    }

    #[tokio::test]
    async fn a_deletion_is_a_task() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        let id = api.delete("/repositories/r/").await.task();
        let task = api.get(&format!("/tasks/{id}/")).await.body;
        assert_eq!(task["task_type"], "pulp.server.tasks.repository.delete");
        assert_eq!(task["tags"], json!(["pulp:repository:r", "pulp:action:delete"]));
        assert_eq!(api.get("/repositories/r/").await.status, StatusCode::OK);
    }

    #[tokio::test]
    async fn searches_filter_sort_and_show_what_is_asked_for() {
        let api = Api::new().await;
        for id in ["b", "a", "c"] {
            api.docker_repository(id).await;
        }
        api.post("/repositories/", &json!({"id": "plain"})).await;
        let criteria = json!({"criteria": {
            "filters": {"notes._repo-type": "docker-repo", "repo_id": {"$ne": "b"}},
            "sort": [["id", "descending"]], "fields": ["display_name"],
        }, "distributors": true});
        let found = api.post("/repositories/search/", &criteria).await;
        let ids: Vec<_> = found
            .body
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r["id"].clone())
            .collect();
        assert_eq!(ids, ["c", "a"]);
        assert_eq!(found.body[0]["display_name"], "c");
        assert_eq!(found.body[0]["distributors"][0]["id"], "web");
        assert!(found.body[0].get("notes").is_none());

        let by_query = api
            .get("/repositories/search/?filters=%7B%22id%22%3A%22plain%22%7D&importers=true")
            .await;
        assert_eq!(by_query.body[0]["id"], "plain");
        assert_eq!(by_query.body[0]["importers"], json!([]));

        let missing = api.post("/repositories/search/", &json!({})).await;
        assert_eq!(missing.body["missing_property_names"], json!(["criteria"]));
        let wrong = api
            .post("/repositories/search/", &json!({"criteria": {"filter": {}}}))
            .await;
        assert_eq!(wrong.body["property_names"], json!(["filter"]));
    }

    #[tokio::test]
    async fn bodies_that_are_no_json_objects_are_refused_by_code() {
        let api = Api::new().await;
        for (body, code) in [("{", "PLP1009"), ("", "PLP1009"), ("[]", "PLP1015")] {
            assert_eq!(api.raw("POST", "/repositories/", body).await.code(), code);
        }
        assert_eq!(
            api.raw("POST", "/repositories/", vec![b'"', 0xff, b'"'])
                .await
                .code(),
            "PLP0019"
        );
        let huge = api
            .raw("POST", "/repositories/", vec![b' '; crate::body::MAX_JSON + 1])
            .await;
        assert_eq!(huge.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(huge.code(), "PLP2005");
    }

    #[tokio::test]
    async fn wrong_verbs_and_unknown_paths_answer_in_json() {
        let api = Api::new().await;
        let verb = api.raw("PATCH", "/repositories/r/", "").await;
        assert_eq!(verb.status, StatusCode::METHOD_NOT_ALLOWED);
        assert!(
            verb.header("allow").contains("DELETE"),
            "{}",
            verb.header("allow")
        );
        assert_eq!(verb.body["http_request_method"], "PATCH");
        let path = api.get("/nothing/here/").await;
        assert_eq!(path.status, StatusCode::NOT_FOUND);
        assert_eq!(path.body["_href"], "/pulp/api/v2/nothing/here/");
        assert!(!path.header("x-request-id").is_empty());
    }
}
