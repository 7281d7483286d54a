//! What syncs take of a registry that has only so much to give: its limit holds for all workers, who waits for it holds up
//! nobody, and no two fetch the same blob.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, ensure};
use pulp_tests::{Cluster, ClusterOptions, Server, Standalone, wait_for};
use serde_json::{Value, json};

use crate::{
    sync::{begin, create, noise},
    upstream::Upstream,
};

fn why(server: &impl Server, task: &str) -> Result<Value> {
    let (status, reason) = server.call("GET", &format!("/tasks/{task}/wait_reason/"), None)?;
    ensure!(status == 200, "{status} {reason}");
    Ok(reason)
}

/// Waits until a task is parked; gives what it is told to wait for.
fn parked(server: &impl Server, task: &str) -> Result<Value> {
    wait_for("the task to be parked", || {
        let reasons = why(server, task)?;
        let reasons = reasons["reasons"].as_array().cloned().unwrap_or_default();
        Ok(reasons.into_iter().find(|r| r["reason"] == "parked"))
    })
}

#[test]
fn a_sync_beyond_the_upstreams_limit_waits_for_it_and_holds_up_nobody() -> Result<()> {
    let upstream = Upstream::start()?;
    for n in 0..14 {
        upstream.image(&format!("t{n}"), &[noise(n, 500)]);
    }
    upstream.limit(10, Duration::from_secs(20));
    let server = Standalone::with(&[("PULP_TASKS_SLOTS_SYNC", "1")])?;
    create(&server, "m", &upstream.url(), &json!({}))?;
    let task = begin(&server, "m", &json!({}))?;
    let reason = parked(&server, &task)?;
    let text = reason["message"].as_str().unwrap_or_default();
    let host = upstream.url().replace("http://", "");
    assert!(
        text.contains(&host) && text.contains("4 are still to come"),
        "{reason}"
    );
    assert!(reason["until"].is_string(), "{reason}");
    assert_eq!(server.task(&task)?["state"], "waiting");

    // Its slot and its repository are free.
    let other = Upstream::start()?;
    other.image("t", &[noise(99, 500)]);
    create(&server, "other", &other.url(), &json!({}))?;
    server.wait_until_finished(&begin(&server, "other", &json!({}))?)?;
    server.wait_until_finished(&server.publish("m")?)?;
    assert_eq!(
        server.task(&task)?["state"],
        "waiting",
        "the limit is no matter of moments"
    );

    let ended = server.wait_until_finished(&task)?;
    let plan = &ended["result"]["report"]["plan"];
    assert_eq!(plan["tags_added"].as_array().map(Vec::len), Some(14), "{plan}");
    let asked = &ended["result"]["report"]["requests"];
    assert_eq!(
        (&asked["tags"], &asked["manifest_heads"]),
        (&json!(0), &json!(0)),
        "it was seen before the pause: {asked}"
    );
    assert_eq!(upstream.fetched_more_than_once(), []);
    assert_eq!(
        upstream.count("manifests/"),
        14,
        "the registry never had to refuse"
    );
    Ok(())
}

#[test]
fn a_registry_that_wants_an_hour_of_quiet_gets_it_and_a_cancel_need_not_wait() -> Result<()> {
    let upstream = Upstream::start()?;
    upstream.image("t", &[noise(1, 500)]);
    upstream.retry_after(3600);
    upstream.answer("manifests/t", 429);
    let server = Standalone::start()?;
    create(&server, "m", &upstream.url(), &json!({"tags": ["t"]}))?;
    let task = begin(&server, "m", &json!({}))?;
    let reason = parked(&server, &task)?;
    assert!(
        reason["message"].as_str().unwrap_or_default().contains("3600 s"),
        "{reason}"
    );
    // Another sync from there doesn't even ask.
    upstream.answer("manifests/t", 0);
    create(&server, "n", &upstream.url(), &json!({"tags": ["t"]}))?;
    let second = begin(&server, "n", &json!({}))?;
    parked(&server, &second)?;
    for task in [task, second] {
        let (status, _) = server.call("DELETE", &format!("/tasks/{task}/"), None)?;
        assert_eq!(status, 200);
        assert_eq!(server.task(&task)?["state"], "canceled");
    }
    Ok(())
}

#[test]
fn syncs_on_two_workers_fetch_a_blob_once() -> Result<()> {
    let upstream = Upstream::start()?;
    for n in 0..6 {
        // Small ones that are asked for together, and large ones that are not.
        upstream.image(&format!("t{n}"), &[noise(n, 4_000), noise(n + 50, 1_100_000)]);
    }
    upstream.slow_blobs(Duration::from_millis(150));
    let server = Cluster::with(ClusterOptions {
        tasks: "slots = { sync = 1 }",
        ..ClusterOptions::default()
    })?;
    let repos = ["a", "b"];
    for repo in repos {
        create(&server, repo, &upstream.url(), &json!({"max_downloads": 2}))?;
    }
    let tasks: Vec<String> = repos
        .iter()
        .map(|repo| begin(&server, repo, &json!({})))
        .collect::<Result<_>>()?;
    let mut workers = BTreeSet::new();
    for task in &tasks {
        let ended = server.wait_until_finished(task)?;
        workers.insert(ended["worker_name"].as_str().unwrap_or_default().to_owned());
    }
    assert_eq!(workers.len(), 2, "they ran side by side");
    let twice = upstream.fetched_more_than_once();
    let blobs: Vec<_> = twice.iter().filter(|digest| upstream.is_blob(digest)).collect();
    assert!(blobs.is_empty(), "{blobs:?}");
    Ok(())
}

#[test]
fn no_more_is_fetched_from_a_host_at_a_time_than_configured_on_all_workers_together() -> Result<()> {
    let upstream = Upstream::start()?;
    let repos = ["a", "b"];
    for n in 0..20 {
        upstream.image(&format!("t{n}"), &[noise(n, 4_000)]);
    }
    upstream.slow_blobs(Duration::from_millis(50));
    let server = Cluster::with(ClusterOptions {
        tasks: "slots = { sync = 1 }\n[sync]\ndownloads_per_host = 3",
        ..ClusterOptions::default()
    })?;
    for (n, repo) in repos.iter().enumerate() {
        let tags: Vec<String> = (0..10).map(|t| format!("t{}", n * 10 + t)).collect();
        create(
            &server,
            repo,
            &upstream.url(),
            &json!({"max_downloads": 8, "tags": tags}),
        )?;
    }
    let tasks: Vec<String> = repos
        .iter()
        .map(|repo| begin(&server, repo, &json!({})))
        .collect::<Result<_>>()?;
    for task in &tasks {
        server.wait_until_finished(task)?;
    }
    assert!(
        (2..=3).contains(&upstream.most_at_once()),
        "{}",
        upstream.most_at_once()
    );
    Ok(())
}
