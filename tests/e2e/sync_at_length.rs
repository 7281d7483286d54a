//! Syncs that are killed again and again, and syncs from a repository of very many tags.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use pulp_model::Digest;
use pulp_tests::{Cluster, ClusterOptions, Server, Standalone, files_below, wait_for};
use serde_json::{Value, json};

use crate::{
    settled::settled,
    sync::{begin, create, noise, tags_of},
    upstream::Upstream,
};

/// How often the server is killed, and how many syncs of different repositories that hits, each somewhere else.
const KILLS: usize = 4;
const SYNCS: usize = 5;
/// How often a worker of a cluster is killed, and each time some of so many syncs again.
const WORKER_KILLS: usize = 7;

/// What lies whole in the content store.
fn kept(server: &impl Server) -> BTreeSet<Digest> {
    let files = files_below(&server.data_dir().join("content/sha256"));
    let name = |path: &std::path::PathBuf| path.file_name()?.to_str().map(ToOwned::to_owned);
    let hex = files.iter().filter_map(name);
    hex.filter_map(|hex| format!("sha256:{hex}").parse().ok())
        .collect()
}

#[test]
fn a_sync_killed_at_twenty_random_points_ends_well_and_fetches_nothing_whole_twice() -> Result<()> {
    let seed = std::time::UNIX_EPOCH.elapsed()?.as_nanos() as usize % 1_000_000;
    println!("seed {seed}");
    let points = noise(seed, 2 * KILLS);
    let upstream = Upstream::start()?;
    let slots = SYNCS.to_string();
    let mut server = Standalone::with(&[("PULP_TASKS_SLOTS_SYNC", &slots)])?;
    for sync in 0..SYNCS {
        let three = json!({"max_downloads": 3});
        create(&server, &format!("m{sync}"), &upstream.url(), &three)?;
    }
    let mut again = 0;
    for kill in 0..KILLS {
        let repos = || (0..SYNCS).map(|sync| (format!("m{sync}"), format!("k{kill}-{sync}")));
        for (sync, (_, tags)) in repos().enumerate() {
            let own = 100 * kill + 10 * sync;
            for n in 0..4 {
                let layer = noise(1000 * seed + own + n, 20_000);
                upstream.image(&format!("{tags}-{n}"), &[noise(seed + own, 90_000), layer]);
            }
        }
        // The list, four times HEAD, four manifests, their configs, their layers and the one that they share: for each.
        let drawn = usize::from(points[2 * kill]) * 256 + usize::from(points[2 * kill + 1]);
        let answered = 1 + drawn % (18 * SYNCS);
        let context = format!("seed {seed}, kill {kill} after {answered} answers");
        let asked = upstream.asked();
        upstream.answer_only(Some(answered));
        let tasks: Vec<String> = repos()
            .map(|(repo, tags)| begin(&server, &repo, &json!({"tags": [format!("{tags}-*")]})))
            .collect::<Result<_>>()?;
        wait_for("the point to kill it at", || {
            Ok((upstream.asked() >= asked + answered).then_some(()))
        })?;
        let here = kept(&server);
        let before = upstream.fetched_since(asked);
        let mark = upstream.asked();
        server.crash_and_start_again().context(context.clone())?;
        upstream.answer_only(None);
        for task in tasks {
            let ended = server.wait_for_task(&task)?;
            ensure!(ended["state"] == "finished", "{context}: {ended}");
        }
        let after = upstream.fetched_since(mark);
        let twice: Vec<&Digest> = after.iter().filter(|d| here.contains(d)).collect();
        ensure!(twice.is_empty(), "{context}: was here and was fetched: {twice:?}");
        again += after.iter().filter(|d| before.contains(d)).count();
    }
    println!(
        "{KILLS} kills of {SYNCS} syncs: {again} of {} manifests and blobs were on their way and fetched again",
        KILLS * SYNCS * 13
    );
    for sync in 0..SYNCS {
        let tags = tags_of(&server, &format!("m{sync}"))?;
        assert_eq!(tags.len(), 4 * KILLS, "{tags:?}");
    }
    server.wait_until_clean()
}

#[test]
fn a_clusters_worker_killed_in_mid_sync_is_replaced_by_another_that_fetches_nothing_whole_again() -> Result<()>
{
    let seed = std::time::UNIX_EPOCH.elapsed()?.as_nanos() as usize % 1_000_000;
    println!("seed {seed}");
    let points = noise(seed, 2 * WORKER_KILLS);
    let upstream = Upstream::start()?;
    let tasks = format!("worker_ttl_seconds = 4\nsweep_seconds = 1\n[tasks.slots]\nsync = {SYNCS}");
    let mut cluster = Cluster::with(ClusterOptions {
        tasks: &tasks,
        ..ClusterOptions::default()
    })?;
    // As many as two workers do at a time, so that each kill hits as many as one does.
    let syncs = 2 * SYNCS;
    for sync in 0..syncs {
        create(
            &cluster,
            &format!("m{sync}"),
            &upstream.url(),
            &json!({"max_downloads": 3}),
        )?;
    }
    let (mut lost, mut again) = (0, 0);
    for kill in 0..WORKER_KILLS {
        let of_all = noise(7_000_000 + seed + kill, 50_000);
        for sync in 0..syncs {
            let own = noise(seed + 100 * kill + sync, 60_000);
            for n in 0..3 {
                let layer = noise(2000 * seed + 1000 * kill + 10 * sync + n, 20_000);
                upstream.image(
                    &format!("k{kill}-{sync}-{n}"),
                    &[of_all.clone(), own.clone(), layer],
                );
            }
        }
        // The list, three times HEAD, three manifests, their configs, their layers and the one that they share: for each.
        // Not the last of them, so that most syncs are still under way.
        let drawn = usize::from(points[2 * kill]) * 256 + usize::from(points[2 * kill + 1]);
        let answered = 1 + drawn % (12 * syncs);
        let victim = (drawn + kill) % cluster.workers.len();
        let context = format!("seed {seed}, kill {kill} of worker {victim} after {answered} answers");
        let asked = upstream.asked();
        upstream.answer_only(Some(answered));
        let tasks: Vec<String> = (0..syncs)
            .map(|sync| {
                begin(
                    &cluster,
                    &format!("m{sync}"),
                    &json!({"tags": [format!("k{kill}-{sync}-*")]}),
                )
            })
            .collect::<Result<_>>()?;
        wait_for("the point to kill it at", || {
            Ok((upstream.asked() >= asked + answered).then_some(()))
        })?;
        cluster.workers[victim].kill()?;
        let here = kept(&cluster);
        let before = upstream.fetched_since(asked);
        let mark = upstream.asked();
        // The other worker goes on.
        upstream.answer_only(None);
        cluster.workers[victim] = cluster.start_role(&format!("worker-after-{kill}"), "worker")?;
        for task in &tasks {
            let ended = cluster.wait_for_task(task)?;
            ensure!(ended["state"] == "finished", "{context}: {ended}");
        }
        let after = upstream.fetched_since(mark);
        let twice: Vec<&Digest> = after.iter().filter(|d| here.contains(d)).collect();
        ensure!(twice.is_empty(), "{context}: was here and was fetched: {twice:?}");
        let times = upstream
            .fetched_since(asked)
            .iter()
            .filter(|d| **d == Digest::sha256(&of_all))
            .count();
        ensure!(
            times <= 2,
            "{context}: what all share was fetched {times} times; only the killed worker may have lost it"
        );
        again += after.iter().filter(|d| before.contains(d)).count();
        let attempts = cluster.sql("SELECT COALESCE(SUM(attempt - 1), 0) FROM tasks")?;
        lost = attempts.parse::<usize>().context(attempts)?;
    }
    println!(
        "{WORKER_KILLS} kills: {lost} of {} syncs were interrupted, {again} of {} manifests and blobs were on their way and \
         fetched again",
        WORKER_KILLS * syncs,
        WORKER_KILLS * (syncs * 10 + 1)
    );
    ensure!(lost > 0, "no kill hit anything");
    for sync in 0..syncs {
        let tags = tags_of(&cluster, &format!("m{sync}"))?;
        assert_eq!(tags.len(), 3 * WORKER_KILLS, "{tags:?}");
    }
    cluster.wait_until_clean()?;
    settled(&cluster)
}

#[test]
fn twenty_plain_tags_of_fifty_thousand_cost_sixty_requests_at_most() -> Result<()> {
    let upstream = Upstream::start()?;
    // As registries have it: an image has a tag by its whole version and one by the version's beginning.
    for n in 0..10 {
        upstream.image(&format!("1.{n}"), &[noise(0, 5_000), noise(n + 1, 1_000)]);
        upstream.alias(&format!("1.{n}"), &format!("1.{n}.0"));
    }
    for n in 0..49_980 {
        upstream.alias("1.0", &format!("2.{n}"));
    }
    let server = Standalone::start()?;
    let plain: Vec<String> = (0..10)
        .flat_map(|n| [format!("1.{n}"), format!("1.{n}.0")])
        .collect();
    create(&server, "m", &upstream.url(), &json!({ "tags": plain }))?;
    let sync = || -> Result<Value> {
        let task = server.wait_until_finished(&begin(&server, "m", &json!({}))?)?;
        Ok(task["result"]["report"].clone())
    };
    let report = sync()?;
    let asked = upstream.asked();
    println!("{asked} requests: {}", report["requests"]);
    assert_eq!(report["requests"]["total"], asked, "{report}");
    assert!(asked <= 60, "{asked} requests: {report}");
    assert_eq!(report["plan"]["tags_added"].as_array().map(Vec::len), Some(20));
    assert_eq!(upstream.count("tags/list"), 0, "no need to list what is named");

    let again = sync()?;
    assert_eq!(upstream.asked() - asked, 20, "a request a tag: {again}");
    assert_eq!(again["requests"]["manifests"], 0, "{again}");
    server.wait_until_clean()
}

#[test]
fn all_of_fifty_thousand_tags_are_synced_within_200_megabytes() -> Result<()> {
    let upstream = Upstream::start()?;
    for n in 0..100 {
        upstream.image(&format!("1.{n}"), &[noise(0, 5_000), noise(n + 1, 1_000)]);
    }
    for n in 0..49_900 {
        upstream.alias(&format!("1.{}", n % 100), &format!("2.{n}"));
    }
    let server = Standalone::start()?;
    create(&server, "m", &upstream.url(), &json!({"max_downloads": 20}))?;
    let task = begin(&server, "m", &json!({}))?;
    // It takes longer than others: seconds on an idle machine, a minute and more beside other tests.
    let ended = (0..5).find_map(|_| server.wait_for_task(&task).ok());
    let ended = ended.context("it does not end")?;
    assert_eq!(ended["state"], "finished", "{}", ended["error"]);
    let report = &ended["result"]["report"];
    assert_eq!(
        report["plan"]["tags_added"].as_array().map(Vec::len),
        Some(50_000)
    );
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.process.pid()))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes: u64 = peak
        .and_then(|p| p.split_whitespace().next())
        .context("no VmHWM")?
        .parse()?;
    println!(
        "peak {} MB, {} s, {}",
        kilobytes * 1024 / 1_000_000,
        report["seconds"],
        report["requests"]
    );
    assert!(kilobytes * 1024 < 200_000_000, "{kilobytes} KiB");
    Ok(())
}
