//! What must hold of a cluster when all work is done, and looks into its database.

use anyhow::{Context as _, Result};
use pulp_tests::{Cluster, wait_for};
use serde_json::Value;

/// Waits until no reservation and no message is left, and asks the gauge of violations.
pub(crate) fn settled(cluster: &Cluster) -> Result<()> {
    wait_for("empty reservations and outbox", || {
        let left =
            cluster.sql("SELECT (SELECT count(*) FROM reservations) + (SELECT count(*) FROM outbox)")?;
        Ok((left == "0").then_some(()))
    })?;
    let url = cluster.database_url.clone();
    let violations = tokio::runtime::Runtime::new()?.block_on(async {
        let store = pulp_store::Store::connect(&url, 1).await?;
        store.reservation_violations().await
    })?;
    assert_eq!(violations, 0);
    Ok(())
}

/// How many versions a repository has, without the empty one that it began with.
pub(crate) fn versions_of(cluster: &Cluster, repo: &str) -> Result<usize> {
    let count = format!("SELECT count(*) FROM repository_versions WHERE repo_id = '{repo}' AND number > 0");
    Ok(cluster.sql(&count)?.parse()?)
}

/// The attempt that a task is at.
pub(crate) fn attempt_of(cluster: &Cluster, task: &Value) -> Result<i64> {
    let id = task["task_id"].as_str().context("no task_id")?;
    Ok(cluster
        .sql(&format!("SELECT attempt FROM tasks WHERE task_id = '{id}'"))?
        .parse()?)
}
