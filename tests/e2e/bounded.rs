//! Runs that would never end: beyond their deadline, standing still, or in a process that does nothing any more. Each
//! ends in a coded error, and the next task of its repository runs.

use anyhow::Result;
use pulp_tests::{Cluster, ClusterOptions, Server, Standalone, wait_for};
use serde_json::{Value, json};

use crate::{
    settled::settled,
    sync::{begin, create},
    upstream::Upstream,
};

/// A sync that gets part of a blob and then nothing, and is running.
fn endless_sync(server: &impl Server, upstream: &Upstream) -> Result<String> {
    let layer = vec![7; 50_000];
    upstream.image("latest", std::slice::from_ref(&layer));
    upstream.stall(&upstream.blob(&layer), Some(1_000));
    // The connection's own time-out is not what is shown here.
    create(server, "r", &upstream.url(), &json!({"read_timeout": 600}))?;
    let id = begin(server, "r", &json!({}))?;
    server.wait_until_running(&id)?;
    Ok(id)
}

fn assert_error(task: &Value, code: &str, words: &[&str]) {
    assert_eq!(
        (&task["state"], &task["error"]["code"]),
        (&json!("error"), &json!(code)),
        "{task}"
    );
    let text = task["error"]["description"].as_str().unwrap_or_default();
    for words in words {
        assert!(text.contains(words), "{words:?} in {text:?}");
    }
}

/// The repository is free: its next task runs.
fn assert_free(server: &impl Server) -> Result<()> {
    let publish = server.publish("r")?;
    server.wait_until_finished(&publish)?;
    Ok(())
}

#[test]
fn a_run_beyond_its_deadline_is_stopped_and_the_next_one_of_its_repository_runs() -> Result<()> {
    let server = Standalone::with(&[("PULP_TASKS_DEADLINES_SYNC", "3s")])?;
    let upstream = Upstream::start()?;
    let id = endless_sync(&server, &upstream)?;
    let task = server.wait_for_task(&id)?;
    assert_error(
        &task,
        "PLP0011",
        &["the sync of repository r", "3s", "tasks.deadlines.sync"],
    );
    assert_free(&server)?;
    server.wait_until_clean()
}

#[test]
fn a_run_that_stands_still_is_told_and_then_stopped() -> Result<()> {
    let server = Standalone::with(&[
        ("PULP_TASKS_STALLED_AFTER", "1s"),
        ("PULP_TASKS_END_STALLED_AFTER", "3s"),
    ])?;
    let upstream = Upstream::start()?;
    let id = endless_sync(&server, &upstream)?;
    let task = server.wait_for_task(&id)?;
    assert_error(
        &task,
        "PLP2006",
        &["the sync of repository r", "tasks.end_stalled_after"],
    );
    assert!(server.process.log().contains("shows no progress"));
    assert_free(&server)?;
    server.wait_until_clean()
}

#[test]
fn a_run_that_its_frozen_worker_does_not_stop_is_ended_over_its_head() -> Result<()> {
    let cluster = Cluster::with(ClusterOptions {
        name: "bounded",
        // The lease would outlive the deadline.
        tasks: "worker_ttl_seconds = 60\n[tasks.deadlines]\nsync = { soft = '8s', hard = '10s' }",
        ..ClusterOptions::default()
    })?;
    let upstream = Upstream::start()?;
    let id = endless_sync(&cluster, &upstream)?;
    let frozen = cluster.worker_of(&cluster.task(&id)?)?;
    cluster.workers[frozen].signal("STOP")?;
    let ended = cluster.wait_for_task(&id)?;
    assert_error(&ended, "PLP0011", &["10s", "over the worker's head"]);
    // Its slots are frozen with it; grants that it holds un-acked are not among these classes.
    assert_free(&cluster)?;
    cluster.workers[frozen].signal("CONT")?;
    wait_for("the thawed run's end", || {
        let log = cluster.workers[frozen].log();
        let over = log.contains("this attempt is over") || log.contains("left to another worker");
        Ok(over.then_some(()))
    })?;
    assert_eq!(cluster.task(&id)?, ended, "what is over has changed");
    settled(&cluster)
}
