//! The whole router in the test's process, over a database of its own.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{sync::Arc, time::Duration};

use axum::{Router, body::Body};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use pulp_model::config::{IMPORTER_TYPE, WEB_DISTRIBUTOR_TYPE};
use pulp_model::{Epoch, TaskId};
use pulp_store::{
    ClaimOutcome, Store, TaskLease,
    attempts::Outcome,
    grants::{self, Grant},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tower::ServiceExt as _;

use crate::{ApiConfig, ApiState, PREFIX};

pub(crate) struct Api {
    pub(crate) store: Store,
    pub(crate) folder: TempDir,
    pub(crate) broker: Arc<dyn pulp_broker::Broker>,
    router: Router,
    epoch: OnceCell<Epoch>,
}

pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Reply {
    /// The code of an error body.
    pub(crate) fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// The only task of a call report.
    pub(crate) fn task(&self) -> TaskId {
        assert_eq!(self.status, StatusCode::ACCEPTED, "{}", self.body);
        let tasks = self.body["spawned_tasks"].as_array().unwrap();
        assert_eq!(tasks.len(), 1, "{}", self.body);
        tasks[0]["task_id"].as_str().unwrap().parse().unwrap()
    }
}

impl Api {
    /// An empty installation with the user `admin`, password `admin`. On SQLite, or on the server that
    /// `PULP_TEST_POSTGRES_URL` names.
    pub(crate) async fn new() -> Self {
        Self::with(ApiConfig::default()).await
    }

    pub(crate) async fn with(config: ApiConfig) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = match std::env::var_os("PULP_TEST_POSTGRES_URL") {
            Some(_) => pulp_testkit::shared_postgres()
                .unwrap()
                .create_database("api")
                .unwrap(),
            None => format!("sqlite:{}/pulp.db", folder.path().display()),
        };
        let store = Store::connect(&url, 4).await.unwrap();
        store.migrate().await.unwrap();
        crate::ensure_first_user(&store, "admin", Some("admin".to_owned()))
            .await
            .unwrap();
        let config = ApiConfig {
            uploads_dir: folder.path().join("uploads"),
            ..config
        };
        let broker = pulp_broker::connect("memory:", "test", pulp_broker::ConnectOptions::default());
        let broker = broker.await.unwrap();
        let state = ApiState::new(store.clone(), Some(Arc::clone(&broker)), config);
        crate::uploads::prepare(&state.config.uploads_dir).await.unwrap();
        Self {
            store,
            folder,
            broker,
            router: crate::router(Arc::new(state)),
            epoch: OnceCell::new(),
        }
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Reply {
        let response = tokio::time::timeout(Duration::from_secs(30), self.router.clone().oneshot(request))
            .await
            .expect("an answer in time")
            .unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = if bytes.is_empty() {
            Value::Null
        } else {
            assert_eq!(
                parts.headers[header::CONTENT_TYPE],
                "application/json; charset=utf-8"
            );
            serde_json::from_slice(&bytes).unwrap()
        };
        Reply {
            status: parts.status,
            headers: parts.headers,
            body,
        }
    }

    pub(crate) fn request(method: &str, path: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(format!("{PREFIX}{path}"))
            .header(
                header::AUTHORIZATION,
                format!("Basic {}", STANDARD.encode("admin:admin")),
            )
    }

    pub(crate) async fn authorized(
        &self,
        authorization: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Reply {
        let request = Request::builder()
            .method(method)
            .uri(format!("{PREFIX}{path}"))
            .header(header::AUTHORIZATION, authorization);
        let body = body.map_or_else(Body::empty, |b| Body::from(b.to_string()));
        self.send(request.body(body).unwrap()).await
    }

    pub(crate) async fn basic(&self, login: &str, password: &str, method: &str, path: &str) -> Reply {
        let header = format!("Basic {}", STANDARD.encode(format!("{login}:{password}")));
        self.authorized(&header, method, path, None).await
    }

    pub(crate) async fn anonymous(&self, method: &str, path: &str) -> Reply {
        let request = Request::builder().method(method).uri(format!("{PREFIX}{path}"));
        self.send(request.body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn raw(&self, method: &str, path: &str, body: impl Into<Body>) -> Reply {
        self.send(Self::request(method, path).body(body.into()).unwrap())
            .await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.raw("GET", path, Body::empty()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Reply {
        self.raw("DELETE", path, Body::empty()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        self.raw("POST", path, body.to_string()).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Reply {
        self.raw("PUT", path, body.to_string()).await
    }

    /// A repository as `pulp-admin docker repo create` makes it, with the web distributor `web`.
    pub(crate) async fn docker_repository(&self, id: &str) {
        let reply = self
            .post(
                "/repositories/",
                &json!({
                    "id": id,
                    "notes": {"_repo-type": "docker-repo"},
                    "importer_type_id": IMPORTER_TYPE,
                    "distributors": [{
                        "distributor_type_id": WEB_DISTRIBUTOR_TYPE,
                        "distributor_id": "web",
                        "distributor_config": {"repo-registry-id": format!("test/{}", id.to_lowercase())},
                        "auto_publish": true,
                    }],
                }),
            )
            .await;
        assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.body);
    }

    /// The status alone, for answers that are none of Pulp's.
    pub(crate) async fn status_of(&self, request: Request<Body>) -> u16 {
        self.router
            .clone()
            .oneshot(request)
            .await
            .unwrap()
            .status()
            .as_u16()
    }

    /// Notes that the repository's distributor `web` was published under a name, as a publish would.
    pub(crate) async fn published(&self, repo: &str, name: &pulp_model::RegistryId) {
        let (repo, web) = (repo.parse().unwrap(), "web".parse().unwrap());
        let mut fenced = self.fenced(&repo).await;
        let published = pulp_store::distributors::PublishedAs {
            fingerprint: "f",
            registry_id: Some(name),
            version: pulp_model::VersionNumber(0),
            id: None,
        };
        fenced.set_published(&repo, &web, &published).await.unwrap();
        fenced
            .finish(&Outcome::Finished(json!({})), &json!({}))
            .await
            .unwrap();
    }

    /// What a running task may change content by.
    async fn fenced(&self, repo: &pulp_model::RepositoryId) -> pulp_store::FencedTx {
        let kind = pulp_model::task::TaskKind::ImportUpload {
            repo_id: repo.clone(),
            upload_id: pulp_model::UploadId::new(),
            unit_type_id: "docker_image".to_owned(),
            unit_key: serde_json::Map::new(),
            unit_metadata: serde_json::Map::new(),
            override_config: serde_json::Map::new(),
        };
        let mut tx = self.store.begin().await.unwrap();
        let id = tx.enqueue(&kind).await.unwrap();
        tx.commit().await.unwrap();
        let lease = self.claimed(id).await;
        self.store.begin_fenced(&lease).await.unwrap()
    }

    /// Gives a repository its next version with these units, as an import would.
    pub(crate) async fn add_units(&self, repo: &str, units: &[pulp_model::unit::Unit]) {
        let mut fenced = self.fenced(&repo.parse().unwrap()).await;
        let repo = repo.parse().unwrap();
        fenced.commit_version(&repo, units).await.unwrap().unwrap();
        fenced
            .finish(&Outcome::Finished(json!({})), &json!({}))
            .await
            .unwrap();
    }

    /// Grants a waiting task and claims it, as the resource manager and a worker would.
    pub(crate) async fn claimed(&self, id: TaskId) -> TaskLease {
        let ttl = Duration::from_mins(10);
        let holder = id.to_string();
        let epoch = self.epoch.get_or_init(|| async {
            self.store
                .acquire_lease(grants::ROLE, &holder, ttl)
                .await
                .unwrap()
                .unwrap()
        });
        let epoch = *epoch.await;
        let live = self.store.live_among(&[id]).await.unwrap().remove(0);
        let grant = Grant {
            id,
            class: live.class,
            claims: live.claims,
        };
        let granted = self.store.commit_grants(epoch, &[grant]).await.unwrap();
        let worker = self
            .store
            .register_worker("worker", "reserved_resource_worker", "node1", true, ttl)
            .await
            .unwrap();
        match self.store.claim(id, granted[0].1, &worker).await.unwrap() {
            ClaimOutcome::Claimed(task) => task.lease,
            other => panic!("{other:?}"),
        }
    }

    /// The upload that has these bytes.
    pub(crate) async fn upload(&self, bytes: &'static [u8]) -> String {
        let id = self.raw("POST", "/content/uploads/", Body::empty()).await.body["upload_id"]
            .as_str()
            .unwrap()
            .to_owned();
        if !bytes.is_empty() {
            let put = self.raw("PUT", &format!("/content/uploads/{id}/0/"), bytes).await;
            assert_eq!(put.status, StatusCode::OK, "{}", put.body);
        }
        id
    }
}
