//! `/repositories/<repo>/search/units/` and `/content/units/`: what a repository holds, and what is held at all.

use std::collections::BTreeMap;

use axum::{extract::State, routing::get};
use pulp_model::unit::UnitType;
use serde_json::{Map, Value};

use crate::{
    ApiError, ApiState, App, Routes,
    body::JsonObject,
    criteria::{Criteria, UnitCriteria},
    errors::Segments,
    query::Query,
    replies::{self, Reply},
    repositories, views,
};

pub(crate) fn routes() -> Routes {
    Routes::default()
        .at(
            "/repositories/{repo}/search/units/",
            get(search_by_query).post(search_by_body),
        )
        .at("/content/units/{type}/", get(list_type))
        .at(
            "/content/units/{type}/search/",
            get(search_type_by_query).post(search_type_by_body),
        )
        .at("/content/units/{type}/{unit}/", get(read_unit))
}

/// A GET says the same as a POST: `type_ids` as often as wanted, `limit`, `skip`, and the rest as JSON.
async fn search_by_query(State(app): State<App>, Segments(repo): Segments<String>, query: Query) -> Reply {
    let mut map = Map::new();
    for name in query.names() {
        let value = match name {
            "type_ids" => query.all(name).map(Value::from).collect::<Vec<_>>().into(),
            "limit" | "skip" => query.number(name)?.into(),
            _ => query
                .first(name)
                .map_or(Ok(Value::Null), serde_json::from_str)
                .map_err(|e| ApiError::invalid(name, format!("{name} is not valid JSON: {e}")))?,
        };
        map.insert(name.to_owned(), value);
    }
    search(&app, &repo, &UnitCriteria::parse(&map)?).await
}

async fn search_by_body(
    State(app): State<App>,
    Segments(repo): Segments<String>,
    JsonObject(body): JsonObject,
) -> Reply {
    let criteria = match body.get("criteria") {
        Some(Value::Object(map)) => UnitCriteria::parse(map)?,
        None | Some(Value::Null) => return Err(ApiError::Missing(vec!["criteria".to_owned()])),
        Some(_) => return Err(ApiError::invalid("criteria", "criteria must be an object")),
    };
    search(&app, &repo, &criteria).await
}

async fn search(app: &ApiState, repo: &str, criteria: &UnitCriteria) -> Reply {
    let repo = repositories::find_id(&app.store, repo).await?;
    let types: Vec<UnitType> = criteria.type_ids.iter().filter_map(|t| t.parse().ok()).collect();
    // Types that nobody knows have no units; an empty list would mean all of them.
    let associations = if types.is_empty() && !criteria.type_ids.is_empty() {
        Vec::new()
    } else {
        app.store.associations(&repo, &types).await?
    };
    let documents = associations.iter().map(views::association).collect();
    Ok(replies::ok(&criteria.apply(documents).into()))
}

/// Units of a type as documents; a type that nobody knows has none.
async fn of_type(app: &ApiState, unit_type: &str) -> Result<Vec<Value>, ApiError> {
    let Ok(unit_type) = unit_type.parse::<UnitType>() else {
        return Ok(Vec::new());
    };
    let units = app.store.units_of_type(unit_type).await?;
    Ok(units.iter().map(|u| views::unit(u).into()).collect())
}

async fn list_type(State(app): State<App>, Segments(unit_type): Segments<String>) -> Reply {
    Ok(replies::ok(&of_type(&app, &unit_type).await?.into()))
}

async fn read_unit(State(app): State<App>, Segments((unit_type, unit)): Segments<(String, String)>) -> Reply {
    let found = match unit_type.parse() {
        Ok(unit_type) => app.store.unit_by_id(unit_type, &unit).await?,
        Err(()) => None,
    };
    let found = found.ok_or(ApiError::NotFound {
        kind: "content_unit_id",
        id: unit,
    })?;
    Ok(replies::ok(&views::unit(&found).into()))
}

/// Asks for the repositories that hold each unit.
const INCLUDE_REPOS: &str = "include_repos";

async fn search_type_by_query(
    State(app): State<App>,
    Segments(unit_type): Segments<String>,
    query: Query,
) -> Reply {
    let include_repos = query.flag(INCLUDE_REPOS)?;
    let criteria = Criteria::from_query(&query, &[INCLUDE_REPOS])?;
    search_type(&app, &unit_type, &criteria, include_repos).await
}

async fn search_type_by_body(
    State(app): State<App>,
    Segments(unit_type): Segments<String>,
    JsonObject(body): JsonObject,
) -> Reply {
    let include_repos = pulp_model::config::boolean(&body, INCLUDE_REPOS)
        .map_err(|_| ApiError::invalid(INCLUDE_REPOS, "include_repos must be true or false"))?;
    search_type(&app, &unit_type, &Criteria::from_body(&body)?, include_repos).await
}

async fn search_type(app: &ApiState, unit_type: &str, criteria: &Criteria, include_repos: bool) -> Reply {
    let found = criteria.apply(of_type(app, unit_type).await?);
    let mut views: Vec<Value> = found
        .into_iter()
        .map(|document| criteria.project(document, &["_id", "_ns", "_content_type_id", "_href"]))
        .collect();
    if let (true, Ok(unit_type)) = (include_repos, unit_type.parse()) {
        let mut by_unit: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for (unit, repo) in app.store.memberships(unit_type).await? {
            by_unit.entry(unit).or_default().push(repo.as_str().into());
        }
        for view in &mut views {
            let holders = view["_id"].as_str().and_then(|id| by_unit.remove(id));
            view["repository_memberships"] = holders.unwrap_or_default().into();
        }
    }
    Ok(replies::ok(&views.into()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::StatusCode;
    use pulp_model::{
        Digest,
        unit::{BlobUnit, ManifestKind, TagUnit, Unit},
    };
    use serde_json::json;

    use super::*;
    use crate::testing::Api;

    fn blob(text: &str) -> Unit {
        Unit::Blob(BlobUnit {
            digest: Digest::sha256(text),
            size: text.len() as u64,
        })
    }

    fn tag(name: &str) -> Unit {
        Unit::Tag(TagUnit {
            name: name.parse().unwrap(),
            repo_id: "r".parse().unwrap(),
            manifest_digest: Digest::sha256(name),
            schema_version: 2,
            manifest_type: ManifestKind::Image,
        })
    }

    async fn api() -> Api {
        let api = Api::new().await;
        api.docker_repository("r").await;
        api.add_units("r", &[blob("a"), blob("bc"), tag("latest"), tag("1.0")])
            .await;
        api
    }

    async fn found(api: &Api, criteria: Value) -> Vec<Value> {
        let reply = api
            .post("/repositories/r/search/units/", &json!({"criteria": criteria}))
            .await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
        reply.body.as_array().unwrap().clone()
    }

    #[tokio::test]
    async fn units_show_their_association_and_their_fields() {
        let api = api().await;
        let rows = found(
            &api,
            json!({"type_ids": ["docker_tag"], "filters": {"unit": {"name": "latest"}}}),
        )
        .await;
        assert_eq!(rows.len(), 1);
        let row = &rows[0];
        assert_eq!(row["repo_id"], "r");
        assert_eq!(row["unit_type_id"], "docker_tag");
        assert_eq!(row["_ns"], "repo_content_units");
        assert_eq!(row["id"], row["_id"]["$oid"]);
        assert_eq!(row["created"], row["updated"]);
        let metadata = &row["metadata"];
        assert_eq!(metadata["name"], "latest");
        assert_eq!(metadata["manifest_digest"], Digest::sha256("latest").to_string());
        assert_eq!(metadata["manifest_type"], "image");
        assert_eq!(metadata["_content_type_id"], "docker_tag");
        assert_eq!(metadata["_ns"], "units_docker_tag");
        assert_eq!(metadata["_id"], row["unit_id"]);
    }

    #[tokio::test]
    async fn units_are_filtered_sorted_and_cut() {
        let api = api().await;
        assert_eq!(found(&api, json!({})).await.len(), 4);
        assert_eq!(found(&api, json!({"type_ids": ["rpm"]})).await.len(), 0);
        let rows = found(
            &api,
            json!({"type_ids": ["docker_blob"], "filters": {"unit": {"size": {"$gt": 1}}},
                "fields": {"unit": ["size"], "association": ["created"]}}),
        )
        .await;
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0]["metadata"]["size"], 2);
        assert!(rows[0]["metadata"].get("digest").is_none());
        assert!(rows[0].get("updated").is_none());
        let rows = found(
            &api,
            json!({"type_ids": "docker_tag", "sort": {"unit": [["name", 1]]}, "skip": 1, "limit": 1}),
        )
        .await;
        assert_eq!(rows[0]["metadata"]["name"], "latest");
        let association = json!({"association": {"created": {"$gt": "2000-01-01T00:00:00Z"}}});
        assert_eq!(found(&api, json!({"filters": association})).await.len(), 4);
    }

    #[tokio::test]
    async fn a_get_says_the_same() {
        let api = api().await;
        let path = "/repositories/r/search/units/?type_ids=docker_tag&filters=%7B%22unit%22%3A%7B%22name%22%3A%221.0%22%7D%7D&limit=5";
        let reply = api.get(path).await;
        assert_eq!(reply.body.as_array().unwrap().len(), 1, "{}", reply.body);
        assert_eq!(reply.body[0]["metadata"]["name"], "1.0");
    }

    #[tokio::test]
    async fn units_are_found_without_a_repository_too() {
        let api = api().await;
        api.docker_repository("other").await;
        api.add_units("other", &[blob("a")]).await;
        let all = api.get("/content/units/docker_blob/").await.body;
        assert_eq!(all.as_array().unwrap().len(), 2);
        let id = all[0]["_id"].as_str().unwrap();
        let one = api.get(&format!("/content/units/docker_blob/{id}/")).await.body;
        assert_eq!(one, all[0]);
        assert_eq!(
            one["_href"],
            format!("/pulp/api/v2/content/units/docker_blob/{id}/")
        );
        assert!(one["_last_updated"].as_str().unwrap().ends_with('Z'));
        let wrong_type = api.get(&format!("/content/units/docker_tag/{id}/")).await;
        assert_eq!(
            (wrong_type.status, wrong_type.code()),
            (StatusCode::NOT_FOUND, "PLP0009")
        );

        let body = json!({"criteria": {"filters": {"size": 1}, "fields": ["size"]}, "include_repos": true});
        let found = api.post("/content/units/docker_blob/search/", &body).await.body;
        assert_eq!(found.as_array().unwrap().len(), 1);
        assert_eq!(found[0]["repository_memberships"], json!(["other", "r"]));
        assert!(found[0].get("digest").is_none());
        assert_eq!(
            api.get("/content/units/rpm/search/?limit=1").await.body,
            json!([])
        );
    }

    #[tokio::test]
    async fn faults_are_named() {
        let api = api().await;
        for (body, code) in [
            (json!({}), "PLP0016"),
            (json!({"criteria": []}), "PLP0015"),
            (json!({"criteria": {"filter": {}}}), "PLP0015"),
            (json!({"criteria": {"filters": {"name": "x"}}}), "PLP0015"),
            (
                json!({"criteria": {"filters": {"unit": {"a": {"$x": 1}}}}}),
                "PLP0015",
            ),
        ] {
            let reply = api.post("/repositories/r/search/units/", &body).await;
            assert_eq!((reply.status.as_u16(), reply.code()), (400, code), "{body}");
        }
        let unknown = api
            .post("/repositories/nope/search/units/", &json!({"criteria": {}}))
            .await;
        assert_eq!(unknown.status, StatusCode::NOT_FOUND);
        let counts = api.get("/repositories/r/?details=true").await.body;
        assert_eq!(
            counts["content_unit_counts"],
            json!({"docker_blob": 2, "docker_tag": 2})
        );
        assert_eq!(counts["total_repository_units"], 4);
        assert!(counts["last_unit_added"].is_string());
    }
}
