//! How soon work goes on after a fault: what operators are promised, with the middle of several measured.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pulp_tests::{
    Cluster, ClusterOptions, Pulp, Server, images,
    network::{Link, Network},
    wait_for,
};
use serde_json::json;

use crate::settled::settled;

/// What happens between a fault and the next sign of work, several times, and the middle of it.
fn middle(what: &str, mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    let middle = times[times.len() / 2];
    println!("{what}: {middle:.2?} in the middle of {times:.2?}");
    middle
}

/// Kills the leader, has a task asked for at once, and waits for its grant.
fn take_over(cluster: &mut Cluster, round: usize) -> Result<Duration> {
    let leader = cluster.leader()?;
    let killed = Instant::now();
    cluster.managers[leader].kill()?;
    let task = cluster.publish("r")?;
    wait_for("a grant of the standby", || {
        Ok((cluster.task(&task)?["state"] != "waiting").then_some(()))
    })?;
    let took = killed.elapsed();
    cluster.wait_until_finished(&task)?;
    cluster.managers[leader] = cluster.start_role(&format!("manager-again-{round}"), "resource-manager")?;
    // Connected, it can take over next.
    wait_for("the new standby", || {
        let log = cluster.managers[leader].log();
        Ok(log.contains("connected to the broker").then_some(()))
    })?;
    Ok(took)
}

#[test]
fn a_standby_takes_over_within_five_seconds_and_within_two_if_the_lease_is_short() -> Result<()> {
    for (tasks, bound) in [
        ("", Duration::from_secs(5)),
        ("lease_ttl_seconds = 1", Duration::from_secs(2)),
    ] {
        let mut cluster = Cluster::with(ClusterOptions {
            name: "takeover",
            workers: 1,
            managers: 2,
            tasks,
            ..ClusterOptions::default()
        })?;
        cluster.create_repository("r", "ns/r")?;
        let times = (0..5)
            .map(|n| take_over(&mut cluster, n))
            .collect::<Result<_>>()?;
        let lease = if tasks.is_empty() {
            "the default lease"
        } else {
            tasks
        };
        let took = middle(
            &format!("from a leader's death to the next grant, {lease}"),
            times,
        );
        assert!(took <= bound, "{took:?}");
        settled(&cluster)?;
    }
    Ok(())
}

/// Kills the worker that runs a long import; gives when that was noticed and when the import ran elsewhere.
fn lose_worker(
    cluster: &mut Cluster,
    image: &images::SavedImage,
    round: usize,
) -> Result<(Duration, Duration)> {
    let upload = cluster.upload(&image.tar)?;
    let id = cluster.import("r", &upload, json!({}))?;
    let task = cluster.wait_until_running(&id)?;
    let at = cluster.worker_of(&task)?;
    // Frozen first, so that it can't end between the look and the kill.
    cluster.workers[at].signal("STOP")?;
    ensure!(cluster.task(&id)?["state"] == "running", "it ended too soon");
    let killed = Instant::now();
    cluster.workers[at].kill()?;
    let detected = wait_for("the loss of the worker", || {
        let lost = cluster.sql(&format!("SELECT lost FROM tasks WHERE task_id = '{id}'"))?;
        Ok((lost == "1").then(|| killed.elapsed()))
    })?;
    let elsewhere = wait_for("the task on another worker", || {
        let sql = format!("SELECT state || attempt FROM tasks WHERE task_id = '{id}'");
        let now = cluster.sql(&sql)?;
        Ok(matches!(now.as_str(), "running2" | "finished2").then(|| killed.elapsed()))
    })?;
    cluster.wait_until_finished(&id)?;
    let name = format!("worker-again-{round}");
    cluster.workers[at] = cluster.start_role(&name, "worker")?;
    wait_for("the new worker", || {
        Ok(cluster.workers[at].log().contains("working").then_some(()))
    })?;
    Ok((detected, elsewhere))
}

#[test]
fn a_lost_worker_is_noticed_within_fifteen_seconds_and_its_task_runs_elsewhere_within_twenty() -> Result<()> {
    // With the default time to live of a worker.
    let mut cluster = Cluster::with(ClusterOptions {
        name: "lost",
        managers: 1,
        workers: 2,
        tasks: "",
        ..ClusterOptions::default()
    })?;
    cluster.create_repository("r", "ns/r")?;
    let image = images::docker_archive("long:latest", 4, 12_000_000)?;
    let times: Vec<(Duration, Duration)> = (0..3)
        .map(|n| lose_worker(&mut cluster, &image, n))
        .collect::<Result<_>>()?;
    let (detected, elsewhere) = times.into_iter().unzip();
    let detected = middle("from a worker's death to its detection", detected);
    let elsewhere = middle("from a worker's death to its task elsewhere", elsewhere);
    assert!(detected <= Duration::from_secs(15), "{detected:?}");
    assert!(elsewhere <= Duration::from_secs(20), "{elsewhere:?}");
    settled(&cluster)
}

#[test]
fn a_broker_that_is_back_after_a_minute_has_work_flowing_within_five_seconds() -> Result<()> {
    let mut rabbit = pulp_testkit::RabbitMq::start()?;
    let cluster = Cluster::with(ClusterOptions {
        name: "minute",
        managers: 1,
        workers: 1,
        broker_url: Some(rabbit.url()),
        ..ClusterOptions::default()
    })?;
    cluster.create_repository("r", "ns/r")?;
    let first = cluster.publish("r")?;
    cluster.wait_until_finished(&first)?;
    rabbit.stop()?;
    let task = cluster.publish("r")?;
    // The longest pause between attempts to connect is what counts, so it must be reached.
    pause(Duration::from_mins(1));
    rabbit.start_again()?;
    let back = Instant::now();
    cluster.wait_until_finished(&task)?;
    let took = back.elapsed();
    println!("from the broker's return after a minute to the end of a task that had waited: {took:.2?}");
    assert!(took <= Duration::from_secs(5), "{took:?}");
    settled(&cluster)
}

/// The fault is time itself.
#[allow(clippy::disallowed_methods)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// A cluster of one API, one resource manager and one worker, each with a link of its own to the database and the broker.
struct Linked {
    cluster: Cluster,
    links: Vec<(String, Link)>,
    _network: Network,
}

fn linked(name: &str, tasks: &str, workers: usize) -> Result<Linked> {
    let network = Network::new()?;
    let database = pulp_testkit::shared_postgres()?.create_database(name)?;
    let broker = pulp_testkit::shared_rabbitmq()?.url();
    let place = |url: &str| -> Result<std::net::SocketAddr> {
        let place = url.split('@').nth(1).context("no user")?;
        Ok(place.split('/').next().context("no path")?.parse()?)
    };
    let mut links = Vec::new();
    let mut envs: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut names: Vec<String> = (0..workers).map(|n| format!("worker-{n}")).collect();
    names.extend(["api", "manager-0", "manager-1"].map(ToOwned::to_owned));
    for node in names {
        let mut env = Vec::new();
        for (variable, url) in [("PULP_DATABASE_URL", &database), ("PULP_BROKER_URL", &broker)] {
            let link = network.link(place(url)?)?;
            env.push((variable.to_owned(), link.through(url)?));
            links.push((format!("{node} {variable}"), link));
        }
        envs.push((node, env));
    }
    let env_of = |name: &str| {
        let found = envs.iter().find(|(node, _)| node == name);
        found.map_or(Vec::new(), |(_, env)| env.clone())
    };
    let cluster = Cluster::with(ClusterOptions {
        name,
        managers: 2,
        workers,
        database_url: Some(database),
        broker_url: Some(broker),
        tasks,
        env: &env_of,
    })?;
    Ok(Linked {
        cluster,
        links,
        _network: network,
    })
}

impl Linked {
    /// The links of a process.
    fn of(&self, node: &str) -> impl Iterator<Item = &Link> {
        let begins = format!("{node} ");
        self.links
            .iter()
            .filter(move |(name, _)| name.starts_with(&begins))
            .map(|(_, link)| link)
    }
}

fn said(process: &Pulp, what: &str) -> usize {
    process.log().matches(what).count()
}

/// Nothing tells a process that its connections are dead: what it had under way must not hang for ever.
#[test]
fn whoever_was_cut_off_without_a_word_works_again_though_its_old_connections_never_answer() -> Result<()> {
    let linked = linked(
        "silent",
        "worker_ttl_seconds = 6\nlease_ttl_seconds = 4\nsweep_seconds = 1",
        1,
    )?;
    let cluster = &linked.cluster;
    cluster.create_repository("r", "ns/r")?;
    let first = cluster.publish("r")?;
    cluster.wait_until_finished(&first)?;
    let leader = cluster.leader()?;
    for node in ["worker-0", "api", &format!("manager-{leader}")] {
        linked.of(node).for_each(Link::cut);
    }
    wait_for("the worker's own end of its lease", || {
        Ok((said(&cluster.workers[0], "the lease is lost") > 0).then_some(()))
    })?;
    for node in ["worker-0", "api", &format!("manager-{leader}")] {
        linked.of(node).for_each(Link::heal_for_new_connections);
    }
    let healed = Instant::now();
    let task = wait_for("the API", || Ok(cluster.publish("r").ok()))?;
    cluster.wait_until_finished(&task)?;
    println!(
        "from the heal to the end of the next task: {:.2?}",
        healed.elapsed()
    );
    wait_for("the worker's next incarnation", || {
        Ok((said(&cluster.workers[0], ": working") >= 2).then_some(()))
    })?;
    // The one that led until it was cut off leads again once the other is gone.
    let other = 1 - leader;
    cluster.managers[other].signal("TERM")?;
    wait_for("the old leader's return", || {
        Ok((said(&cluster.managers[leader], "leading epoch") >= 2).then_some(()))
    })?;
    let last = cluster.publish("r")?;
    cluster.wait_until_finished(&last)?;
    settled(cluster)
}
