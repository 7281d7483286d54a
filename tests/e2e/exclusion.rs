//! One change of a repository at a time, none held up by another repository's; cancels; the switch of a publish.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pulp_tests::{Cluster, ClusterOptions, Server, files_below, http, images, wait_for};
use serde_json::{Value, json};

use crate::settled::{settled, versions_of};

const WEB: &str = "docker_web_distributor_name_cli";
const MANIFESTS: &str =
    "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json";

pub(crate) fn upload_of(server: &impl Server, name: &str, layers: usize, bytes: usize) -> Result<String> {
    server.upload(&images::docker_archive(&format!("{name}:latest"), layers, bytes)?.tar)
}

fn cancel(server: &impl Server, task: &str) -> Result<()> {
    let (status, body) = server.call("DELETE", &format!("/tasks/{task}/"), None)?;
    ensure!(status == 200, "cancel: {status} {body}");
    Ok(())
}

/// Pairs of tasks that held a resource at the same time though one of them had to hold it alone.
fn overlaps(cluster: &Cluster) -> Result<String> {
    cluster.sql(
        "SELECT count(*) FROM tasks a JOIN task_resources x ON x.task_id = a.task_id \
         JOIN task_resources y ON y.resource = x.resource AND y.task_id > x.task_id \
         JOIN tasks b ON b.task_id = y.task_id \
         WHERE (x.exclusive = 1 OR y.exclusive = 1) AND a.accepted < b.finished AND b.accepted < a.finished",
    )
}

#[test]
fn changes_of_a_repository_take_turns_and_hold_up_no_other_repository() -> Result<()> {
    let cluster = Cluster::start()?;
    for repo in ["busy", "long", "quiet"] {
        cluster.create_repository(repo, &format!("ns/{repo}"))?;
    }
    let uploads: Vec<String> = (0..10)
        .map(|n| upload_of(&cluster, &format!("busy-{n}"), 2, 10_000))
        .collect::<Result<_>>()?;
    let long = cluster.import("long", &upload_of(&cluster, "long", 4, 12_000_000)?, json!({}))?;
    cluster.wait_until_running(&long)?;

    // Twenty clients at the same time.
    let tasks: Vec<String> = std::thread::scope(|scope| {
        let imports = uploads
            .iter()
            .map(|upload| scope.spawn(|| cluster.import("busy", upload, json!({}))));
        let publishes = (0..10).map(|_| scope.spawn(|| cluster.publish("busy")));
        let all: Vec<_> = imports.chain(publishes).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect::<Result<_>>()
    })?;
    let path = format!("/repositories/quiet/distributors/{WEB}/");
    let settings = json!({"distributor_config": {"protected": false}});
    let quick = cluster.begin("PUT", &path, &settings)?;
    cluster.wait_until_finished(&quick)?;
    assert_eq!(
        cluster.task(&long)?["state"],
        "running",
        "the short task of another repository waited for the long one"
    );

    for id in tasks.iter().chain([&long]) {
        cluster.wait_until_finished(id)?;
    }
    assert_eq!(versions_of(&cluster, "busy")?, 10);
    assert_eq!(overlaps(&cluster)?, "0");
    // The gauge of the same: the long import and the work on the other repository did overlap.
    let parallel = cluster.sql(&format!(
        "SELECT count(*) FROM tasks a, tasks b WHERE a.task_id = '{long}' AND b.task_id <> a.task_id \
         AND a.accepted < b.finished AND b.accepted < a.finished"
    ))?;
    assert_ne!(parallel, "0");
    let last = cluster.publish("busy")?;
    cluster.wait_until_finished(&last)?;
    cluster.pull("ns/busy:latest")?;
    settled(&cluster)
}

#[test]
fn a_cancel_ends_a_waiting_task_at_once_and_a_running_one_soon_and_leaves_nothing() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.create_repository("r", "ns/r")?;
    let long = upload_of(&cluster, "long", 4, 12_000_000)?;
    let short = upload_of(&cluster, "short", 1, 1000)?;
    let content = cluster.data_dir().join("content");
    let running = cluster.import("r", &long, json!({}))?;
    cluster.wait_until_running(&running)?;
    wait_for("the import's first blob", || {
        Ok((!cluster.leftovers().is_empty()).then_some(()))
    })?;

    let blocked = cluster.import("r", &short, json!({}))?;
    assert_eq!(cluster.task(&blocked)?["state"], "waiting");
    cancel(&cluster, &blocked)?;
    assert_eq!(cluster.task(&blocked)?["state"], "canceled");

    let asked = Instant::now();
    cancel(&cluster, &running)?;
    let ended = cluster.wait_for_task(&running)?;
    let took = asked.elapsed();
    assert_eq!(ended["state"], "canceled", "{ended}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    let steps = ended["progress_report"]["docker_importer"].as_array().unwrap();
    assert!(steps.iter().any(|s| s["state"] == "CANCELLED"), "{steps:?}");
    cluster.wait_until_clean()?;
    assert_eq!(versions_of(&cluster, "r")?, 0);
    assert_eq!(files_below(&content), Vec::<std::path::PathBuf>::new());
    let (_, repo) = cluster.call("GET", "/repositories/r/", None)?;
    assert_eq!(repo["content_unit_counts"], json!({}));

    // A second cancel changes nothing; the uploads are still there, the repository is free.
    cancel(&cluster, &running)?;
    assert_eq!(cluster.task(&running)?, ended);
    for upload in [&short, &long] {
        let again = cluster.import("r", upload, json!({}))?;
        cluster.wait_until_finished(&again)?;
    }
    assert_eq!(versions_of(&cluster, "r")?, 2);
    settled(&cluster)
}

#[test]
fn while_a_publish_switches_a_reader_gets_the_old_or_the_new_whole() -> Result<()> {
    const PUBLISHES: usize = 6;
    let cluster = Cluster::with(ClusterOptions {
        name: "switch",
        managers: 1,
        workers: 1,
        ..ClusterOptions::default()
    })?;
    cluster.create_repository("r", "ns/r")?;
    let publish = |n: usize| -> Result<()> {
        let upload = upload_of(&cluster, &format!("switch-{n}"), 1 + n, 2000)?;
        let import = cluster.import("r", &upload, json!({}))?;
        cluster.wait_until_finished(&import)?;
        let publish = cluster.publish("r")?;
        cluster.wait_until_finished(&publish)?;
        Ok(())
    };
    publish(0)?;
    wait_for("the first publication in Crane", || {
        Ok(read_whole(cluster.crane(), "ns/r").ok().map(|_| ()))
    })?;
    let done = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let reader = scope.spawn(|| -> Result<Vec<usize>> {
            let mut seen: Vec<usize> = Vec::new();
            // Once more after the last publish.
            loop {
                let last = done.load(Ordering::SeqCst);
                let layers = read_whole(cluster.crane(), "ns/r")?;
                if seen.last() != Some(&layers) {
                    seen.push(layers);
                }
                if last && layers == PUBLISHES {
                    return Ok(seen);
                }
            }
        });
        let published = (1..PUBLISHES).try_for_each(publish);
        done.store(true, Ordering::SeqCst);
        published.and(reader.join().unwrap())
    })?;
    // The nth image has n layers: never back to an older one.
    assert!(seen.is_sorted(), "{seen:?}");
    assert_eq!((seen.first(), seen.last()), (Some(&1), Some(&PUBLISHES)));
    settled(&cluster)
}

/// Reads what a repository's one tag names, to its last blob; gives the number of layers.
pub(crate) fn read_whole(crane: SocketAddr, registry_id: &str) -> Result<usize> {
    let base = format!("http://{crane}/v2/{registry_id}");
    let tags = http::get(&format!("{base}/tags/list"))?;
    ensure!(
        tags.status == 200 && tags.json()?["tags"] == json!(["latest"]),
        "{tags:?}"
    );
    let manifest = http::get_as(&format!("{base}/manifests/latest"), MANIFESTS)?;
    ensure!(manifest.status == 200, "the manifest: {manifest:?}");
    let manifest: Value = manifest.json()?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    for blob in layers.iter().chain([&manifest["config"]]) {
        let digest = blob["digest"].as_str().context("no digest")?;
        let answer = http::get(&format!("{base}/blobs/{digest}"))?;
        ensure!(answer.status == 200, "blob {digest}: {}", answer.status);
        let got = pulp_model::Digest::sha256(&answer.body).to_string();
        ensure!(got == digest, "blob {digest} has digest {got}");
    }
    Ok(layers.len())
}
