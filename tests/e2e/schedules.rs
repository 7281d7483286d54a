//! What begins by itself: publishes by schedule, with one scheduler, with two of which one dies, and with two that are
//! killed and paused over and over.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pulp_tests::{Cluster, ClusterOptions, Pulp, Server, Standalone, images, wait_for};
use serde_json::{Value, json};

const SCHEDULES: &str = "/repositories/r/distributors/docker_web_distributor_name_cli/schedules/publish/";

fn the_only(server: &impl Server) -> Result<Value> {
    let (status, list) = server.call("GET", SCHEDULES, None)?;
    ensure!(status == 200, "{status} {list}");
    ensure!(list.as_array().is_some_and(|l| l.len() == 1), "{list}");
    Ok(list[0].clone())
}

fn runs(server: &impl Server) -> Result<i64> {
    the_only(server)?["total_run_count"].as_i64().context("no count")
}

#[test]
fn a_schedule_publishes_what_was_imported_and_ends_with_its_last_run() -> Result<()> {
    let server = Standalone::start()?;
    let create = [
        "docker",
        "repo",
        "create",
        "--repo-id=r",
        "--repo-registry-id=ns/r",
    ];
    server.admin(&create)?;
    let image = images::docker_archive("x:latest", 1, 1000)?;
    let upload = server.upload(&image.tar)?;
    let import = server.import("r", &upload, json!({}))?;
    server.wait_until_finished(&import)?;

    let schedules = ["docker", "repo", "publish", "schedules"];
    let admin = |words: &[&str]| server.admin(&[&schedules[..], words].concat());
    let out = admin(&["create", "--repo-id=r", "--schedule=R2/PT1S", "-f", "3"])?;
    assert!(out.contains("Schedule successfully created"), "{out}");
    wait_for("both runs", || Ok((runs(&server)? == 2).then_some(())))?;
    let pulled = wait_for("the published image", || Ok(server.pull("ns/r:latest").ok()))?;
    let expected: Vec<String> = image.diff_ids.iter().map(ToString::to_string).collect();
    assert_eq!(pulled.diff_ids, expected);

    let ended = the_only(&server)?;
    assert_eq!(ended["enabled"], false);
    assert_eq!(
        (&ended["remaining_runs"], &ended["next_run"]),
        (&json!(0), &Value::Null)
    );
    assert_eq!(ended["consecutive_failures"], 0);
    let id = ended["_id"].as_str().context("no id")?;
    let out = admin(&["list", "--repo-id=r"])?;
    assert!(out.contains(id) && out.contains("R2/PT1S"), "{out}");
    let id = format!("--schedule-id={id}");
    admin(&[
        "update",
        "--repo-id=r",
        &id,
        "--schedule=9000-01-01T00:00Z/P1M",
        "--enabled=true",
    ])?;
    let out = admin(&["next", "--repo-id=r", "--quiet"])?;
    assert_eq!(out.trim(), "9000-01-01T00:00:00Z");
    admin(&["delete", "--repo-id=r", &id])?;
    let (_, list) = server.call("GET", SCHEDULES, None)?;
    assert_eq!(list, json!([]));
    Ok(())
}

/// The slots that a scheduler's log tells of.
fn fired(scheduler: &Pulp) -> Vec<String> {
    let log = scheduler.log();
    let lines = log.lines().filter(|line| line.contains("a schedule has fired"));
    lines
        .filter_map(|line| {
            line.split_whitespace()
                .find_map(|word| word.strip_prefix("slot="))
        })
        .map(ToOwned::to_owned)
        .collect()
}

#[test]
fn of_two_schedulers_one_is_killed_and_every_slot_is_fired_once() -> Result<()> {
    let mut cluster = Cluster::with(ClusterOptions {
        name: "schedules",
        managers: 1,
        workers: 1,
        ..ClusterOptions::default()
    })?;
    let mut second = cluster.start_role("scheduler-2", "scheduler")?;
    cluster.create_repository("r", "ns/r")?;
    let (status, made) = cluster.call("POST", SCHEDULES, Some(&json!({"schedule": "PT1S"})))?;
    ensure!(status == 201, "{status} {made}");
    wait_for("some runs", || Ok((runs(&cluster)? >= 3).then_some(())))?;
    cluster.scheduler.kill()?;
    let before = runs(&cluster)?;
    wait_for("runs after the death", || {
        Ok((runs(&cluster)? >= before + 3).then_some(()))
    })?;
    second.signal("TERM")?;
    ensure!(second.wait()?, "the second scheduler ended badly");

    let total = runs(&cluster)?;
    let counted = cluster.sql("SELECT COUNT(*) FROM schedule_fires")?;
    assert_eq!(counted, total.to_string());
    let off = "SELECT COUNT(*) FROM schedule_fires f JOIN schedules s ON s.schedule_id = f.schedule_id \
               WHERE (f.slot - s.first_run) % 1000000 <> 0 OR f.slot > f.fired";
    assert_eq!(
        cluster.sql(off)?,
        "0",
        "slots are at start + n seconds, and not fired early"
    );
    let told: Vec<String> = [fired(&cluster.scheduler), fired(&second)].concat();
    let distinct: BTreeSet<&String> = told.iter().collect();
    println!(
        "{total} slots fired, {} of them by the one that was killed",
        fired(&cluster.scheduler).len()
    );
    assert_eq!(distinct.len(), told.len(), "fired twice: {told:?}");
    // The one that was killed may have died between the commit and its line.
    assert!(
        (total - 1..=total).contains(&(told.len() as i64)),
        "{total} runs, told {told:?}"
    );
    let failed = "SELECT COUNT(*) FROM tasks WHERE owner = 'scheduler' AND state = 'error'";
    assert_eq!(cluster.sql(failed)?, "0");
    Ok(())
}

/// Schedules, and runs of each, at a slot a second: the shortest period that there is.
const SCHEDULED: i64 = 200;
const RUNS: i64 = 3;
const REPOSITORIES: i64 = 10;

#[test]
fn with_schedulers_killed_and_paused_over_and_over_each_of_200_schedules_fires_each_slot_once() -> Result<()>
{
    let mut cluster = Cluster::with(ClusterOptions {
        name: "slots",
        managers: 1,
        workers: 1,
        ..ClusterOptions::default()
    })?;
    for repo in 0..REPOSITORIES {
        cluster.create_repository(&format!("r{repo}"), &format!("ns/r{repo}"))?;
    }
    for n in 0..SCHEDULED {
        let distributor = format!(
            "/repositories/r{}/distributors/docker_web_distributor_name_cli",
            n % REPOSITORIES
        );
        let schedule = json!({"schedule": format!("R{RUNS}/2020-01-01T00:00:00Z/PT1S"), "enabled": false});
        let (status, made) = cluster.call(
            "POST",
            &format!("{distributor}/schedules/publish/"),
            Some(&schedule),
        )?;
        ensure!(status == 201, "{status} {made}");
    }
    let paused = cluster.start_role("scheduler-paused", "scheduler")?;
    let mut dead: Vec<String> = Vec::new();
    let (mut kills, mut pauses) = (0, 0);
    // All of them are due from one moment on.
    cluster.sql("UPDATE schedules SET enabled = 1, next_slot = first_run")?;
    let all = SCHEDULED * RUNS;
    let count = |cluster: &Cluster| -> Result<i64> {
        Ok(cluster.sql("SELECT COUNT(*) FROM schedule_fires")?.parse()?)
    };
    // Some more slots, or some time: whoever is paused may hold what the other waits for.
    let a_little = |cluster: &Cluster| -> Result<bool> {
        let (before, since) = (count(cluster)?, Instant::now());
        wait_for("slots to be fired", || {
            let now = count(cluster)?;
            let over = now >= before + 40 || since.elapsed() > Duration::from_secs(3);
            Ok((over || now >= all).then_some(now >= all))
        })
    };
    let begun = Instant::now();
    loop {
        paused.signal("STOP")?;
        pauses += 1;
        let is_over = a_little(&cluster)?;
        paused.signal("CONT")?;
        cluster.scheduler.kill()?;
        dead.extend(fired(&cluster.scheduler));
        kills += 1;
        if is_over || a_little(&cluster)? {
            break;
        }
        cluster.scheduler = cluster.start_role(&format!("scheduler-{kills}"), "scheduler")?;
        ensure!(
            begun.elapsed() < Duration::from_mins(2),
            "{} of {all} slots",
            count(&cluster)?
        );
    }

    let sql = |statement: &str| cluster.sql(statement);
    println!(
        "{} slots of {SCHEDULED} schedules, {kills} kills, {pauses} pauses",
        count(&cluster)?
    );
    assert_eq!(count(&cluster)?, all);
    let each = format!(
        "SELECT COUNT(*) FROM schedules WHERE total_run_count = {RUNS} AND remaining_runs = 0 AND enabled = 0"
    );
    assert_eq!(sql(&each)?, SCHEDULED.to_string());
    // A publish that still waits is not queued again: slots may share it. But each has one, and none is of no slot.
    let with_task = "SELECT COUNT(*) FROM schedule_fires f JOIN tasks t ON t.task_id = f.task_id";
    assert_eq!(sql(with_task)?, all.to_string());
    let beside = "SELECT COUNT(*) FROM tasks WHERE owner = 'scheduler' \
                  AND task_id NOT IN (SELECT task_id FROM schedule_fires)";
    assert_eq!(sql(beside)?, "0");
    let off = "SELECT COUNT(*) FROM schedule_fires f JOIN schedules s ON s.schedule_id = f.schedule_id \
               WHERE (f.slot - s.first_run) % 1000000 <> 0 OR f.fired - f.slot NOT BETWEEN 0 AND 999999";
    assert_eq!(sql(off)?, "0", "each was the latest slot when it was fired");
    let told = dead.len() + fired(&paused).len();
    assert!(told as i64 <= all, "{told} were told of {all}");
    // Each that was killed may have died between a commit and its line.
    assert!(
        told as i64 >= all - kills,
        "{told} were told of {all}, {kills} were killed"
    );
    Ok(())
}
