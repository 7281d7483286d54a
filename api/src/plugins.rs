//! `/plugins/`: the types that are there.

use axum::routing::get;
use pulp_model::{
    config::{EXPORT_DISTRIBUTOR_TYPE, IMPORTER_TYPE, WEB_DISTRIBUTOR_TYPE},
    unit::UnitType,
};
use serde_json::{Value, json};

use crate::{
    ApiError, PREFIX, Routes,
    errors::Segments,
    replies::{self, Reply},
};

pub(crate) fn routes() -> Routes {
    Routes::default()
        .at("/plugins/types/", get(async || replies::ok(&types().into())))
        .at(
            "/plugins/importers/",
            get(async || replies::ok(&importers().into())),
        )
        .at(
            "/plugins/distributors/",
            get(async || replies::ok(&distributors().into())),
        )
        .at(
            "/plugins/types/{id}/",
            get(async |Segments(id): Segments<String>| one(types(), &id)),
        )
        .at(
            "/plugins/importers/{id}/",
            get(async |Segments(id): Segments<String>| one(importers(), &id)),
        )
        .at(
            "/plugins/distributors/{id}/",
            get(async |Segments(id): Segments<String>| one(distributors(), &id)),
        )
}

fn one(all: Vec<Value>, id: &str) -> Reply {
    let found = all.into_iter().find(|p| p["id"] == id);
    found.map(|p| replies::ok(&p)).ok_or_else(|| ApiError::NotFound {
        kind: "type_id",
        id: id.to_owned(),
    })
}

fn types() -> Vec<Value> {
    let view = |t: UnitType| {
        let referenced: &[&str] = match t {
            UnitType::DockerImage | UnitType::DockerBlob => &[],
            UnitType::DockerManifest => &["docker_blob"],
            UnitType::DockerManifestList => &["docker_manifest"],
            UnitType::DockerTag => &["docker_manifest", "docker_manifest_list"],
        };
        json!({
            "id": t,
            "_id": t,
            "display_name": t.display_name(),
            "description": t.display_name(),
            "unit_key": t.unit_key(),
            "search_indexes": [],
            "referenced_types": referenced,
            "_ns": "content_types",
            "_href": format!("{PREFIX}/plugins/types/{t}/"),
        })
    };
    UnitType::ALL.into_iter().map(view).collect()
}

fn importers() -> Vec<Value> {
    vec![plugin(
        "importers",
        IMPORTER_TYPE,
        "Docker Importer",
        &UnitType::ALL,
    )]
}

fn distributors() -> Vec<Value> {
    vec![
        plugin(
            "distributors",
            EXPORT_DISTRIBUTOR_TYPE,
            "Docker Export Distributor",
            &UnitType::ALL,
        ),
        plugin(
            "distributors",
            WEB_DISTRIBUTOR_TYPE,
            "Docker Web Distributor",
            &UnitType::ALL,
        ),
    ]
}

fn plugin(kind: &str, id: &str, display_name: &str, types: &[UnitType]) -> Value {
    json!({
        "id": id,
        "display_name": display_name,
        "types": types,
        "_href": format!("{PREFIX}/plugins/{kind}/{id}/"),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::testing::Api;

    #[tokio::test]
    async fn types_and_plugins_are_listed_and_read() {
        let api = Api::new().await;
        let types = api.get("/plugins/types/").await.body;
        assert_eq!(types.as_array().unwrap().len(), 5);
        let tag = api.get("/plugins/types/docker_tag/").await.body;
        assert_eq!(
            tag["unit_key"],
            json!(["name", "repo_id", "schema_version", "manifest_type"])
        );
        assert_eq!(
            api.get("/plugins/importers/").await.body[0]["id"],
            "docker_importer"
        );
        let web = api
            .get("/plugins/distributors/docker_distributor_web/")
            .await
            .body;
        assert_eq!(
            web["_href"],
            "/pulp/api/v2/plugins/distributors/docker_distributor_web/"
        );
        assert_eq!(api.get("/plugins/importers/rpm/").await.code(), "PLP0009");
    }
}
