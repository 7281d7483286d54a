//! Processes that die, freeze and end in mid-work; engines that lose everything they can lose. Whatever happens,
//! every task ends, and what it did was done once.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pulp_tests::{Cluster, ClusterOptions, Server, Standalone, images, wait_for};
use serde_json::{Value, json};

use crate::settled::{attempt_of, settled, versions_of};

/// An image whose import takes seconds, so that it can be met in its middle.
fn long_image() -> Result<images::SavedImage> {
    images::docker_archive("long:latest", 4, 12_000_000)
}

/// Asks for a long import and waits until it writes blobs; gives the task's row of then.
fn long_import(server: &impl Server, repo: &str, image: &images::SavedImage) -> Result<Value> {
    let upload = server.upload(&image.tar)?;
    let id = server.import(repo, &upload, json!({}))?;
    let task = server.wait_until_running(&id)?;
    wait_for("the import's first blob", || {
        Ok((!server.leftovers().is_empty()).then_some(()))
    })?;
    Ok(task)
}

fn id_of(task: &Value) -> &str {
    task["task_id"].as_str().unwrap()
}

/// Publishes and pulls, and compares with what went in.
fn assert_pulls(server: &impl Server, repo: &str, image: &images::SavedImage) -> Result<()> {
    let publish = server.publish(repo)?;
    server.wait_until_finished(&publish)?;
    let pulled = server.pull(&format!("ns/{repo}:latest"))?;
    let expected: Vec<String> = image.diff_ids.iter().map(ToString::to_string).collect();
    assert_eq!(pulled.diff_ids, expected);
    Ok(())
}

#[test]
fn a_worker_killed_in_mid_import_costs_an_attempt_and_nothing_else() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.create_repository("r", "ns/r")?;
    let image = long_image()?;
    let task = long_import(&cluster, "r", &image)?;
    let at = cluster.worker_of(&task)?;
    // Frozen first, so that it can't end between the look and the kill.
    cluster.workers[at].signal("STOP")?;
    assert_eq!(cluster.task(id_of(&task))?["state"], "running");
    assert!(!cluster.leftovers().is_empty());
    cluster.workers[at].kill()?;

    let ended = cluster.wait_until_finished(id_of(&task))?;
    assert_ne!(cluster.worker_of(&ended)?, at);
    assert_eq!(attempt_of(&cluster, &ended)?, 2);
    assert_eq!(versions_of(&cluster, "r")?, 1);
    cluster.wait_until_clean()?;
    assert_pulls(&cluster, "r", &image)?;
    settled(&cluster)
}

#[test]
fn a_worker_frozen_beyond_its_lease_commits_nothing_and_works_again() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.create_repository("r", "ns/r")?;
    let image = long_image()?;
    let task = long_import(&cluster, "r", &image)?;
    let frozen = cluster.worker_of(&task)?;
    cluster.workers[frozen].signal("STOP")?;
    assert_eq!(cluster.task(id_of(&task))?["state"], "running");

    let ended = cluster.wait_until_finished(id_of(&task))?;
    assert_eq!(attempt_of(&cluster, &ended)?, 2);
    cluster.workers[frozen].signal("CONT")?;
    wait_for("the thawed worker's new incarnation", || {
        let log = cluster.workers[frozen].log();
        Ok((log.contains("the lease is lost") && log.matches(": working").count() == 2).then_some(()))
    })?;
    assert_eq!(cluster.task(id_of(&task))?, ended, "what is over has changed");
    assert_eq!(versions_of(&cluster, "r")?, 1);
    cluster.wait_until_clean()?;

    // The other one goes: the next import is the thawed one's.
    let mut other = cluster.workers.remove(1 - frozen);
    other.signal("TERM")?;
    assert!(other.wait()?);
    let next = images::docker_archive("next:latest", 2, 1000)?;
    let upload = cluster.upload(&next.tar)?;
    let import = cluster.import("r", &upload, json!({}))?;
    cluster.wait_until_finished(&import)?;
    assert_eq!(versions_of(&cluster, "r")?, 2);
    assert_pulls(&cluster, "r", &next)?;
    settled(&cluster)
}

#[test]
fn a_worker_told_to_end_finishes_what_it_runs_and_hands_back_when_told_twice() -> Result<()> {
    let mut cluster = Cluster::start()?;
    for repo in ["drained", "back"] {
        cluster.create_repository(repo, &format!("ns/{repo}"))?;
    }
    let image = long_image()?;

    let task = long_import(&cluster, "back", &image)?;
    let at = cluster.worker_of(&task)?;
    cluster.workers[at].signal("TERM")?;
    wait_for("the worker's drain", || {
        Ok(cluster.workers[at].log().contains("draining").then_some(()))
    })?;
    cluster.workers[at].signal("TERM")?;
    assert!(cluster.workers[at].wait()?, "exit code");
    let ended = cluster.wait_until_finished(id_of(&task))?;
    let lost = cluster.sql(&format!(
        "SELECT lost FROM tasks WHERE task_id = '{}'",
        id_of(&task)
    ))?;
    assert_eq!(
        lost, "0",
        "an attempt handed back in order is held against nobody"
    );
    assert_eq!(attempt_of(&cluster, &ended)?, 2);
    assert_eq!(versions_of(&cluster, "back")?, 1);
    assert_pulls(&cluster, "back", &image)?;

    let task = long_import(&cluster, "drained", &image)?;
    let at = cluster.worker_of(&task)?;
    cluster.workers[at].signal("TERM")?;
    assert!(cluster.workers[at].wait()?, "exit code");
    // With the only worker gone, it has ended or it never will.
    let ended = cluster.task(id_of(&task))?;
    assert_eq!(ended["state"], "finished");
    assert_eq!(attempt_of(&cluster, &ended)?, 1);
    cluster.wait_until_clean()?;
    settled(&cluster)
}

#[test]
fn every_role_ends_well_when_told_to() -> Result<()> {
    let mut cluster = Cluster::with(ClusterOptions {
        name: "ends",
        managers: 2,
        workers: 1,
        ..ClusterOptions::default()
    })?;
    let begun = Instant::now();
    for process in roles(&mut cluster) {
        process.signal("TERM")?;
    }
    for process in roles(&mut cluster) {
        assert!(process.wait()?, "{} exited badly", process.name);
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "beyond the drain time");
    Ok(())
}

fn roles(cluster: &mut Cluster) -> impl Iterator<Item = &mut pulp_tests::Pulp> {
    let others = [
        &mut cluster.api_process,
        &mut cluster.crane_process,
        &mut cluster.scheduler,
    ];
    cluster
        .managers
        .iter_mut()
        .chain(&mut cluster.workers)
        .chain(others)
}

/// The design's promise, with the default lease of three seconds.
#[test]
fn a_standby_grants_within_five_seconds_of_its_leaders_death() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.create_repository("r", "ns/r")?;
    let leader = cluster.leader()?;
    let killed = Instant::now();
    cluster.managers[leader].kill()?;
    let task = cluster.publish("r")?;
    wait_for("a grant of the standby", || {
        let task = cluster.task(&task)?;
        Ok((task["state"] != "waiting").then_some(()))
    })?;
    let took = killed.elapsed();
    println!("from the leader's death to the standby's first grant: {took:?}");
    assert!(took <= Duration::from_secs(5), "{took:?}");
    cluster.wait_until_finished(&task)?;
    settled(&cluster)
}

/// Asks for `each` imports of different images and as many publishes in each of `repos`; gives all tasks.
fn much_work(cluster: &Cluster, repos: &[&str], each: usize) -> Result<Vec<String>> {
    let mut tasks = Vec::new();
    for repo in repos {
        cluster.create_repository(repo, &format!("ns/{repo}"))?;
    }
    for n in 0..each {
        let image = images::docker_archive(&format!("work-{n}:latest"), 2, 20_000)?;
        for repo in repos {
            let upload = cluster.upload(&image.tar)?;
            tasks.push(cluster.import(repo, &upload, json!({}))?);
            tasks.push(cluster.publish(repo)?);
        }
    }
    Ok(tasks)
}

/// Waits until all have ended and looks whether each did what it had to, once.
fn assert_all_done(cluster: &Cluster, tasks: &[String], repos: &[&str], each: usize) -> Result<()> {
    for id in tasks {
        let task = cluster.wait_for_task(id)?;
        // A publish of what is published already is skipped, in the history and not in the task.
        ensure!(task["state"] == "finished", "{task}");
    }
    for repo in repos {
        assert_eq!(versions_of(cluster, repo)?, each, "versions of {repo}");
        cluster.pull(&format!("ns/{repo}:latest"))?;
    }
    cluster.wait_until_clean()?;
    settled(cluster)
}

#[test]
fn queues_purged_in_mid_run_cost_time_and_nothing_else() -> Result<()> {
    // A virtual host of its own: everything in it is purged.
    let rabbit = pulp_testkit::shared_rabbitmq()?;
    let url = rabbit.create_vhost("purged")?;
    let cluster = Cluster::with(ClusterOptions {
        name: "purged",
        broker_url: Some(url.clone()),
        tasks: "worker_ttl_seconds = 6\nsweep_seconds = 1",
        ..ClusterOptions::default()
    })?;
    let repos = ["a", "b", "c", "d"];
    let tasks = std::thread::scope(|scope| {
        let purges = scope.spawn(|| (0..8).try_for_each(|_| rabbit.purge_all_queues(&url)));
        let tasks = much_work(&cluster, &repos, 4);
        purges.join().unwrap()?;
        tasks
    })?;
    assert_eq!(tasks.len(), 32);
    assert_all_done(&cluster, &tasks, &repos, 4)
}

#[test]
fn a_broker_that_crashes_or_forgets_everything_in_mid_run_is_waited_for() -> Result<()> {
    let mut rabbit = pulp_testkit::RabbitMq::start()?;
    let mut cluster = Cluster::with(ClusterOptions {
        name: "broker",
        broker_url: Some(rabbit.url()),
        tasks: "worker_ttl_seconds = 6\nsweep_seconds = 1",
        ..ClusterOptions::default()
    })?;
    for (repos, wipe) in [(["a", "b", "c"], false), (["d", "e", "f"], true)] {
        // Work is accepted while the broker is away: the rows are what counts.
        let tasks = std::thread::scope(|scope| {
            let work = scope.spawn(|| much_work(&cluster, &repos, 4));
            let fault = if wipe {
                rabbit.wipe()
            } else {
                rabbit.kill().and_then(|()| rabbit.start_again())
            };
            fault.and(work.join().unwrap())
        })?;
        assert_all_done(&cluster, &tasks, &repos, 4)?;
    }
    assert_all_alive(&mut cluster)
}

#[test]
fn a_database_that_goes_away_in_mid_run_costs_an_attempt_at_most() -> Result<()> {
    let mut postgres = pulp_testkit::Postgres::start()?;
    let mut cluster = Cluster::with(ClusterOptions {
        name: "database",
        database_url: Some(postgres.create_database("outage")?),
        // A lease that outlives the outage: it is the worker itself that must cope.
        tasks: "worker_ttl_seconds = 40\nsweep_seconds = 1",
        ..ClusterOptions::default()
    })?;
    cluster.create_repository("r", "ns/r")?;
    let repos = ["a", "b"];
    let mut tasks = much_work(&cluster, &repos, 3)?;
    let image = long_image()?;
    let import = long_import(&cluster, "r", &image)?;
    let at = cluster.worker_of(&import)?;
    postgres.stop()?;
    // It reads the archive to its end and finds nobody to commit to.
    wait_for("the worker's failure to write", || {
        Ok(cluster.workers[at]
            .log()
            .contains("can't write the task's end")
            .then_some(()))
    })?;
    postgres.start_again()?;
    tasks.push(id_of(&import).to_owned());
    assert_all_done(&cluster, &tasks, &repos, 3)?;
    assert_eq!(versions_of(&cluster, "r")?, 1);
    assert_pulls(&cluster, "r", &image)?;

    let import = long_import(
        &cluster,
        "r",
        &images::docker_archive("again:latest", 6, 12_000_000)?,
    )?;
    postgres.kill()?;
    postgres.start_again()?;
    assert_all_done(&cluster, &[id_of(&import).to_owned()], &[], 0)?;
    assert_eq!(versions_of(&cluster, "r")?, 2);
    assert_all_alive(&mut cluster)
}

fn assert_all_alive(cluster: &mut Cluster) -> Result<()> {
    for process in roles(cluster) {
        assert!(process.is_alive()?, "{} did not survive", process.name);
    }
    Ok(())
}

#[test]
fn standalone_killed_in_mid_import_takes_it_up_again() -> Result<()> {
    let mut server = Standalone::with(&[("PULP_TASKS_WORKER_TTL_SECONDS", "3")])?;
    server.create_repository("r", "ns/r")?;
    let image = long_image()?;
    let task = long_import(&server, "r", &image)?;
    server.process.signal("STOP")?;
    assert!(!server.leftovers().is_empty(), "it was over already");
    server.crash_and_start_again()?;
    let ended = server.wait_until_finished(id_of(&task))?;
    assert_eq!(ended["result"]["details"]["repository_version"], 1);
    server.wait_until_clean()?;
    assert_pulls(&server, "r", &image)
}
