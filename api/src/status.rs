//! `GET /status/`: whether the parts are there. Public, and always 200.

use std::time::Duration;

use axum::{extract::State, response::Response, routing::get};
use serde_json::{Value, json};

use crate::{App, Routes, replies, views};

/// How long the database may take to answer before it counts as gone.
const PATIENCE: Duration = Duration::from_secs(3);

pub(crate) fn routes() -> Routes {
    Routes::default().at("/status/", get(status))
}

async fn status(State(app): State<App>) -> Response {
    let workers = tokio::time::timeout(PATIENCE, app.store.known_workers()).await;
    let (connected, workers) = match workers {
        Ok(Ok(workers)) => (true, workers),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the status page can't read the database");
            (false, Vec::new())
        }
        Err(_) => (false, Vec::new()),
    };
    let messaging = app.broker.as_ref().is_some_and(|broker| broker.is_connected());
    let known_workers: Vec<Value> = workers.iter().map(views::worker).collect();
    replies::ok(&json!({
        "api_version": "2",
        "versions": {"platform_version": env!("CARGO_PKG_VERSION")},
        "database_connection": {"connected": connected},
        "messaging_connection": {"connected": messaging},
        "known_workers": known_workers,
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::testing::Api;

    #[tokio::test]
    async fn the_status_names_live_processes_and_connections() {
        let api = Api::new().await;
        let ttl = Duration::from_mins(1);
        api.store
            .register_worker("worker", "reserved_resource_worker", "node1", true, ttl)
            .await
            .unwrap();
        let reply = api.anonymous("GET", "/status").await;
        assert_eq!(reply.body["api_version"], "2");
        assert_eq!(reply.body["database_connection"]["connected"], true);
        assert_eq!(reply.body["messaging_connection"]["connected"], true);
        let worker = &reply.body["known_workers"][0];
        assert_eq!(worker["_id"], "reserved_resource_worker-0@node1");
        assert_eq!(worker["name"], worker["_id"]);
        assert_eq!(worker["_ns"], "workers");
    }

    #[tokio::test]
    async fn the_status_answers_without_database() {
        let api = Api::new().await;
        api.store.close().await;
        let reply = api.anonymous("GET", "/status/").await;
        assert_eq!(reply.status, http::StatusCode::OK);
        assert_eq!(reply.body["database_connection"]["connected"], false);
        assert_eq!(reply.body["known_workers"], json!([]));
        let other = api.get("/repositories/").await;
        assert_eq!(other.status, http::StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(other.code(), "PLP2002");
    }
}
