//! What waits says why, and is canceled with what belongs to it: on both ways to run the server.

use anyhow::{Context as _, Result, ensure};
use pulp_tests::{Cluster, ClusterOptions, Server, Standalone, images, spawned, wait_for};
use serde_json::{Value, json};

use crate::{
    settled::settled,
    sync::{begin, create},
    upstream::Upstream,
};

const GROUP: &str = "6f0f2c1e-7f0e-4b61-9a53-0d2f4f1d8c55";
const WEB: &str = "docker_web_distributor_name_cli";

fn small_cluster(name: &str, tasks: &str) -> Result<Cluster> {
    Cluster::with(ClusterOptions {
        name,
        managers: 1,
        workers: 1,
        tasks: &format!("worker_ttl_seconds = 6\n{tasks}"),
        ..ClusterOptions::default()
    })
}

fn get(server: &impl Server, path: &str) -> Result<Value> {
    let (status, body) = server.call("GET", path, None)?;
    ensure!(status == 200, "{path}: {status} {body}");
    Ok(body)
}

fn cancel(server: &impl Server, path: &str) -> Result<()> {
    let (status, body) = server.call("DELETE", path, None)?;
    ensure!(status == 200, "{path}: {status} {body}");
    Ok(())
}

fn why(server: &impl Server, task: &str) -> Result<Value> {
    get(server, &format!("/tasks/{task}/wait_reason/"))
}

/// Waits until a task waits for this; gives the answer.
fn wait_until(server: &impl Server, task: &str, reason: &str) -> Result<Value> {
    wait_for(&format!("the reason {reason}"), || {
        let told = why(server, task)?;
        Ok((told["reason"] == reason).then_some(told))
    })
}

fn events(server: &impl Server, task: &str) -> Result<Vec<String>> {
    let events = get(server, &format!("/tasks/{task}/timeline/"))?;
    let events = events.as_array().context("no list")?;
    Ok(events
        .iter()
        .map(|e| e["event"].as_str().unwrap_or_default().to_owned())
        .collect())
}

fn a_task_that_waits_says_for_whom(server: &impl Server) -> Result<()> {
    server.create_repository("r", "ns/r")?;
    let long = server.upload(&images::docker_archive("long:latest", 4, 12_000_000)?.tar)?;
    let holder = server.import("r", &long, json!({}))?;
    let row = server.wait_until_running(&holder)?;
    let publish = server.publish("r")?;
    let behind = server.import("r", &long, json!({}))?;

    let told = wait_until(server, &publish, "resources")?;
    let line = &told["resources"][1];
    assert_eq!(
        (&line["resource"], &line["mode"]),
        (&json!("repository:r"), &json!("shared"))
    );
    let by = &line["held_by"][0];
    assert_eq!(
        (&by["task_id"], &by["kind"]),
        (&json!(holder), &json!("import_upload"))
    );
    assert_eq!(
        (&by["mode"], &by["state"]),
        (&json!("exclusive"), &json!("running"))
    );
    assert_eq!(by["worker_name"], row["worker_name"]);
    assert_eq!(told["position"]["resources"], 1);
    assert_eq!(told["owner"], "user:admin");
    let told = wait_until(server, &behind, "resources")?;
    assert_eq!(told["position"]["resources"], 2);
    assert_eq!(told["resources"][0]["before"][0]["task_id"], json!(publish));

    let details = server.admin(&["tasks", "details", &format!("--task-id={publish}")])?;
    assert!(
        details.contains("Wait Reason:") && details.contains(&holder) && details.contains("Timeline:"),
        "{details}"
    );
    assert_eq!(why(server, &holder)?["waits"], false);

    // With its holder gone it goes.
    cancel(server, &format!("/tasks/{behind}/"))?;
    cancel(server, &format!("/tasks/{holder}/"))?;
    server.wait_for_task(&publish)?;
    assert_eq!(
        events(server, &publish)?,
        ["created", "granted", "claimed", "ended"]
    );
    assert_eq!(events(server, &behind)?, ["created", "cancel_requested", "ended"]);
    let told = why(server, &publish)?;
    assert_eq!((&told["waits"], &told["reason"]), (&json!(false), &Value::Null));
    Ok(())
}

#[test]
fn a_task_that_waits_says_for_whom_on_standalone() -> Result<()> {
    a_task_that_waits_says_for_whom(&Standalone::start()?)
}

#[test]
fn a_task_that_waits_says_for_whom_on_separate_processes() -> Result<()> {
    let cluster = small_cluster("waiting", "")?;
    a_task_that_waits_says_for_whom(&cluster)?;
    settled(&cluster)
}

/// On a server whose workers take no publishes.
fn groups_and_trees_are_canceled_whole(server: &impl Server) -> Result<()> {
    // A group of publishes, of which none can begin.
    let mut tasks = Vec::new();
    for n in 0..5 {
        let repo = format!("g{n}");
        server.create_repository(&repo, &format!("ns/{repo}"))?;
        let path = format!("/repositories/{repo}/actions/publish/?task_group={GROUP}");
        tasks.push(server.begin("POST", &path, &json!({"id": WEB}))?);
    }
    server.create_repository("alone", "ns/alone")?;
    let alone = server.publish("alone")?;
    let told = wait_until(server, &tasks[0], "no_worker_for_class")?;
    assert_eq!(told["service"]["slots"], 0);
    let path = format!("/task_groups/{GROUP}/");
    let counts = |state: &str| -> Result<Value> {
        let summary = get(server, &format!("{path}state_summary/"))?;
        assert_eq!(summary["total"], 5);
        Ok(summary[state].clone())
    };
    assert_eq!(counts("waiting")?, 5);
    server.admin(&["tasks", "cancel", &format!("--group-id={GROUP}")])?;
    assert_eq!(counts("canceled")?, 5);
    assert_eq!(get(server, &path)?["tasks"][0]["task_id"], json!(tasks[0]));
    assert_eq!(server.task(&alone)?["state"], "waiting");

    // A sync that has ended, and the publish that it made.
    let upstream = Upstream::start()?;
    upstream.image("t", &[vec![7; 500]]);
    let mut made = Vec::new();
    for (repo, alone) in [("tree", false), ("single", true)] {
        create(server, repo, &upstream.url(), &json!({}))?;
        let path = format!("/repositories/{repo}/distributors/{WEB}/");
        let settings = json!({"distributor_config": {}, "delta": {"auto_publish": true}});
        server.wait_until_finished(&server.begin("PUT", &path, &settings)?)?;
        let sync = begin(server, repo, &json!({}))?;
        let row = server.wait_until_finished(&sync)?;
        let publish = spawned(&row)?;
        assert_eq!(server.task(&publish)?["state"], "waiting");
        let mut words = vec![
            "tasks".to_owned(),
            "cancel".to_owned(),
            format!("--task-id={sync}"),
        ];
        if alone {
            words.push("--alone".to_owned());
        }
        server.admin(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
        assert_eq!(server.task(&sync)?["state"], "finished");
        made.push(server.task(&publish)?["state"].clone());
        cancel(server, &format!("/tasks/{publish}/"))?;
    }
    assert_eq!(made, ["canceled", "waiting"]);
    cancel(server, &format!("/tasks/{alone}/"))
}

#[test]
fn groups_and_trees_are_canceled_whole_on_standalone() -> Result<()> {
    groups_and_trees_are_canceled_whole(&Standalone::with(&[("PULP_TASKS_SLOTS_PUBLISH", "0")])?)
}

#[test]
fn groups_and_trees_are_canceled_whole_on_separate_processes() -> Result<()> {
    let cluster = small_cluster("trees", "[tasks.slots]\npublish = 0")?;
    groups_and_trees_are_canceled_whole(&cluster)?;
    settled(&cluster)
}

/// Cancels syncs at all moments around the one in which they commit and make their publish: whatever the moment, once
/// the cancel has been answered nothing of the tree runs for long, and what was not begun never is.
#[test]
fn a_cancel_at_any_moment_leaves_no_orphan_behind() -> Result<()> {
    const ROUNDS: usize = 24;
    let cluster = small_cluster("orphans", "")?;
    let upstream = Upstream::start()?;
    upstream.image("t0", &[vec![7; 500]]);
    create(&cluster, "r", &upstream.url(), &json!({}))?;
    let path = format!("/repositories/r/distributors/{WEB}/");
    let settings = json!({"distributor_config": {}, "delta": {"auto_publish": true}});
    cluster.wait_until_finished(&cluster.begin("PUT", &path, &settings)?)?;
    let mut ends = std::collections::BTreeMap::<String, usize>::new();
    for round in 0..ROUNDS {
        // Something to commit and to publish each time.
        upstream.image("t0", &[vec![round as u8; 500 + round]]);
        let sync = begin(&cluster, "r", &json!({}))?;
        // So many questions later; the sync goes on meanwhile.
        for _ in 0..round {
            cluster.task(&sync)?;
        }
        cancel(&cluster, &format!("/tasks/{sync}/"))?;
        let children = format!("SELECT COUNT(*) FROM tasks WHERE parent_id = '{sync}'");
        let waiting = format!("{children} AND state IN ('waiting', 'accepted')");
        assert_eq!(cluster.sql(&waiting)?, "0", "round {round}");
        let unasked = format!("{children} AND state = 'running' AND cancel_requested IS NULL");
        assert_eq!(cluster.sql(&unasked)?, "0", "round {round}");
        let ended = cluster.wait_for_task(&sync)?;
        wait_for("the end of what it made", || {
            let live = format!("{children} AND state IN ('waiting', 'accepted', 'running')");
            Ok((cluster.sql(&live)? == "0").then_some(()))
        })?;
        // What it made after it was asked to stop never ran.
        let orphans = format!(
            "SELECT COUNT(*) FROM tasks c JOIN tasks p ON p.task_id = c.parent_id WHERE p.task_id = '{sync}' \
             AND p.cancel_requested IS NOT NULL AND c.started IS NOT NULL"
        );
        assert_eq!(cluster.sql(&orphans)?, "0", "round {round}");
        let publish = match ended["spawned_tasks"][0]["task_id"].as_str() {
            Some(id) => cluster.task(id)?["state"].as_str().unwrap_or_default().to_owned(),
            None => "none".to_owned(),
        };
        let end = format!(
            "sync {}, publish {publish}",
            ended["state"].as_str().unwrap_or_default()
        );
        *ends.entry(end).or_default() += 1;
    }
    println!("{ROUNDS} cancels: {ends:?}");
    settled(&cluster)
}
