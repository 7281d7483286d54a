//! The fault harness: real processes over a PostgreSQL and a RabbitMQ of their own, clients that ask for tasks of all
//! kinds, and a plan of faults drawn from a seed. What must never be is looked for all the while.
//!
//! ```text
//! PULP_FAULTS_SEED=7 PULP_FAULTS_SECONDS=1200 cargo test -p pulp-tests --test faults -- --nocapture
//! ```
//!
//! `PULP_FAULTS_LOUD=1` prints the time line while it goes. Without variables: three minutes of a seed that is new each
//! time and printed. The same seed gives the same faults in the same order; what they meet depends on the machine.
//!
//! Every process talks to PostgreSQL and RabbitMQ through links of its own, which can be cut; it looks at a clock of
//! its own, if libfaketime is installed; the blobs are on a volume of their own, if root runs this.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation)]

mod appetite;
mod checks;
mod clock;
mod effects;
mod load;
mod nodes;
mod plan;
mod random;
mod run;
mod strike;
mod upstream;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use appetite::Appetite;
use checks::{Reader, Tables};
use effects::Switches;
use load::{Body, Client, Load, create_repository, create_with_importer};
use nodes::Nodes;
use pulp_tests::{Server, images};
use random::Random;
use run::{Run, pause};
use upstream::{Schedules, Upstream};

const MANAGERS: usize = 2;
const WORKERS: usize = 3;
const CLIENTS: usize = 3;

/// How long after the last fault everything accepted must have ended, on a busy machine.
const SETTLED_WITHIN: Duration = Duration::from_mins(2);

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text:?} is no number")),
    )
}

#[test]
fn whatever_fails_every_task_ends_once_and_nothing_is_done_twice() -> Result<()> {
    let of_now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() as u64 % 1_000_000;
    let seed = number("PULP_FAULTS_SEED").unwrap_or(of_now);
    let seconds = number("PULP_FAULTS_SECONDS").unwrap_or(180);
    println!("PULP_FAULTS_SEED={seed} PULP_FAULTS_SECONDS={seconds}");
    let loud = std::env::var_os("PULP_FAULTS_LOUD").is_some();
    let mut nodes = Nodes::start(MANAGERS, WORKERS)?;
    let run = Run::new(loud);
    let ended = suffer(&run, &mut nodes, seed, seconds);
    let wrong = ended.is_err() || !run.violations().is_empty();
    if wrong || loud {
        println!("logs: {}", nodes.keep_logs(seed)?.display());
    }
    if wrong {
        println!("{}", run.time_line());
        println!(
            "again: PULP_FAULTS_SEED={seed} PULP_FAULTS_SECONDS={seconds} cargo test -p pulp-tests --test faults"
        );
    }
    report(&run, &nodes);
    ended?;
    let violations = run.violations();
    ensure!(violations.is_empty(), "seed {seed}: {}", violations.join("\n"));
    the_checks_can_fail(&nodes)
}

/// The whole run: load, faults and looks at the same time, then calm, then the last looks.
fn suffer(run: &Run, nodes: &mut Nodes, seed: u64, seconds: u64) -> Result<()> {
    let named = |kind: &str, n: usize| (0..n).map(|n| format!("{kind}-{n}")).collect::<Vec<_>>();
    let (lasting, passing) = (named("lasting", 8), named("passing", 2));
    let (api, crane) = (nodes.cluster.api(), nodes.cluster.crane());
    let apis = [api, nodes.second_api_listens];
    let client = Client::new()?;
    for repo in lasting.iter().chain(&passing) {
        create_repository(&client, api, repo)?;
    }
    let mut images = (0..8)
        .map(|n| images::docker_archive(&format!("image-{n}:v{n}"), 1 + n % 3, 20_000 + 10_000 * n))
        .collect::<Result<Vec<_>>>()?;
    let upstream = Upstream::start(&images, nodes.cluster.folder())?;
    for mirror in &upstream.mirrors {
        create_with_importer(&client, api, mirror, &upstream.importer())?;
    }
    images.push(images::docker_archive("large:large", 3, 4_000_000)?);
    let schedules = Schedules::begin(&client, api, &upstream)?;
    let switches = Switches::watch(&nodes.cluster.data_dir().join("published/docker"))?;
    let mut appetite = Appetite::default();
    nodes.tell_processes(run);
    let mirrors = upstream.mirrors.clone();
    let read: Vec<String> = lasting.iter().chain(&mirrors).cloned().collect();
    let mut tables = Tables::new(&nodes.cluster.database_url);
    let mut reader = Reader::new(crane)?;
    let settled = AtomicBool::new(false);

    std::thread::scope(|scope| {
        let over = || settled.load(Ordering::SeqCst) || !run.violations().is_empty();
        let tables = scope.spawn({
            let tables = &mut tables;
            move || tables.watch(run, &over)
        });
        let reader = scope.spawn({
            let (reader, read) = (&mut reader, &read);
            move || reader.watch(run, read, &over)
        });
        let appetite = scope.spawn({
            let appetite = &mut appetite;
            move || appetite.watch(run, &over)
        });
        for n in 0..CLIENTS {
            let load = Load {
                run,
                apis,
                client: Client::new()?,
                random: Random::new(seed.wrapping_mul(1000) + n as u64),
                images: &images,
                lasting: &lasting,
                passing: &passing,
                upstream: &upstream,
                own: Vec::new(),
            };
            scope.spawn(move || load.drive());
        }
        let faults = break_things(run, nodes, seed, seconds);
        run.end();
        run.note("calm: no more faults, no more requests");
        let calm = faults
            .and_then(|()| schedules.end(&client, api))
            .and_then(|()| wait_until_settled(run));
        settled.store(true, Ordering::SeqCst);
        for thread in [tables, reader, appetite] {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a thread that looks panicked"))?;
        }
        calm
    })?;
    if !run.violations().is_empty() {
        return Ok(());
    }
    tables.look_at_the_end(run)?;
    publish_and_read(run, nodes, &client, &read, &mut reader)?;
    switches.look(&nodes.cluster.database_url, run)?;
    appetite.judge(run);
    nodes.wait_until_clean()?;
    match nodes.volume.verify() {
        Ok(blobs) => run.note(&format!("{blobs} blobs read and compared with their names")),
        Err(error) => run.violated(&format!("{error:#}")),
    }
    let url = nodes.cluster.database_url.clone();
    let violations = tokio::runtime::Runtime::new()?.block_on(async {
        pulp_store::Store::connect(&url, 1)
            .await?
            .reservation_violations()
            .await
    })?;
    ensure!(violations == 0, "the gauge says {violations} violations");
    Ok(())
}

fn break_things(run: &Run, nodes: &mut Nodes, seed: u64, seconds: u64) -> Result<()> {
    // Work first, so that the first fault meets some.
    run.pause(2000);
    for step in plan::plan(seed, WORKERS, seconds >= 600) {
        run.pause(step.calm);
        if run.is_over() || run.elapsed() > Duration::from_secs(seconds) {
            break;
        }
        nodes.suffer(&step, run).with_context(|| step.to_string())?;
    }
    Ok(())
}

/// Waits until nothing is open, by what the looks at the tables say.
fn wait_until_settled(run: &Run) -> Result<()> {
    let calm = Instant::now();
    // The look after the one that is under way begins after the last request.
    let fresh = run.looks.load(Ordering::SeqCst) + 2;
    while run.violations().is_empty() {
        let open = run.open.load(Ordering::Relaxed);
        if open == 0 && run.looks.load(Ordering::SeqCst) >= fresh {
            run.note(&format!("settled after {:.1} s", calm.elapsed().as_secs_f64()));
            return Ok(());
        }
        ensure!(
            calm.elapsed() < SETTLED_WITHIN,
            "{open} tasks have no end {SETTLED_WITHIN:?} after the last fault"
        );
        pause(Duration::from_millis(200));
    }
    Ok(())
}

/// Everything works as on the first day.
fn publish_and_read(
    run: &Run,
    nodes: &Nodes,
    client: &Client,
    repos: &[String],
    reader: &mut Reader,
) -> Result<()> {
    let mut images = 0;
    for repo in repos {
        let body = serde_json::json!({"id": load::WEB});
        let path = format!("/repositories/{repo}/actions/publish/");
        let (status, report) = client.call(nodes.cluster.api(), "POST", &path, Body::Json(body))?;
        ensure!(status == 202, "{status} {report}");
        nodes
            .cluster
            .wait_until_finished(&pulp_tests::spawned(&report)?)?;
        let tags = nodes.cluster.sql(&format!(
            "SELECT count(*) FROM repository_units ru JOIN units u ON u.unit_id = ru.unit_id \
             WHERE ru.repo_id = '{repo}' AND ru.removed_in IS NULL AND u.unit_type_id = 'docker_tag'"
        ))?;
        let tags: usize = tags.parse()?;
        images += pulp_tests::wait_for(&format!("the {tags} tags of {repo} in Crane"), || {
            Ok(reader.read(repo)?.filter(|read| *read == tags || tags == 0))
        })
        .or_else(|error| if tags == 0 { Ok(0) } else { Err(error) })?;
    }
    run.note(&format!("published once more and read whole: {images} images"));
    Ok(())
}

fn report(run: &Run, nodes: &Nodes) {
    println!("--- {:.0} s", run.elapsed().as_secs_f64());
    for (what, times) in run.counts() {
        println!("{times:6}  {what}");
    }
    for sql in [
        "SELECT 'tasks: ' || kind_name || ' ' || state || COALESCE(' ' || (error::json ->> 'code'), ''), count(*) \
         FROM tasks GROUP BY 1 ORDER BY 1",
        "SELECT 'tasks that needed attempts: ' || attempt, count(*) FROM tasks GROUP BY attempt ORDER BY attempt",
        "SELECT 'tasks in all', count(*) FROM tasks",
        "SELECT 'attempts in all', sum(attempt) FROM tasks",
        "SELECT 'versions made', count(*) FROM repository_versions WHERE number > 0",
        "SELECT 'slots of schedules fired', count(*) FROM schedule_fires",
        "SELECT 'seconds from a task''s making to its end, median', \
         round(percentile_cont(0.5) WITHIN GROUP (ORDER BY finished - created) / 1000000) FROM tasks",
        "SELECT 'seconds from a task''s making to its end, longest', round(max(finished - created) / 1000000.0) FROM tasks",
    ] {
        match nodes.cluster.sql(sql) {
            Ok(rows) => rows
                .lines()
                .filter_map(|l| l.rsplit_once('|'))
                .for_each(|(what, n)| println!("{n:>6}  {what}")),
            Err(error) => println!("{error:#}"),
        }
    }
    println!("{:6}  violations", run.violations().len());
}

/// A check that can't fail proves nothing: each is shown what it must not pass.
fn the_checks_can_fail(nodes: &Nodes) -> Result<()> {
    let url = &nodes.cluster.database_url;
    let tamper = |break_it: &str, expected: &str| -> Result<()> {
        let quiet = Run::new(false);
        let mut tables = Tables::new(url);
        tables.look(&quiet)?;
        ensure!(quiet.violations().is_empty(), "{:?}", quiet.violations());
        nodes.cluster.sql(break_it)?;
        tables.look_at_the_end(&quiet)?;
        let found = quiet.violations();
        ensure!(
            found.iter().any(|v| v.contains(expected)),
            "{break_it}: {found:?}"
        );
        Ok(())
    };
    // From what leaves the rest as it was to what does not.
    let finished = "(SELECT min(task_id) FROM tasks WHERE state = 'finished')";
    tamper(
        &format!("UPDATE tasks SET attempt = attempt + 1 WHERE task_id = {finished}"),
        "had ended as",
    )?;
    for (break_it, expected, repair) in [
        (
            "INSERT INTO reservations SELECT 'r', task_id, 1, 0, 0 FROM tasks WHERE state = 'finished' LIMIT 1",
            "a reservation without",
            "DELETE FROM reservations",
        ),
        (
            "UPDATE repositories SET version = version + 1 WHERE repo_id = 'lasting-0'",
            "versions with gaps",
            "UPDATE repositories SET version = version - 1 WHERE repo_id = 'lasting-0'",
        ),
        (
            "UPDATE tasks SET state = 'canceled' WHERE task_id IN (SELECT task_id FROM repository_versions)",
            "and committed",
            "UPDATE tasks SET state = 'finished' WHERE task_id IN (SELECT task_id FROM repository_versions)",
        ),
        (
            "UPDATE tasks SET accepted = accepted - 3600000000 WHERE state = 'finished'",
            "held a resource at the same time",
            "UPDATE tasks SET accepted = accepted + 3600000000 WHERE state = 'finished'",
        ),
    ] {
        tamper(break_it, expected)?;
        nodes.cluster.sql(repair)?;
    }
    Ok(())
}
