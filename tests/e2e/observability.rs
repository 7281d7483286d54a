//! What an operator sees: one trace from a request to the bytes that it fetched, lines of logs that name their task and
//! trace, and figures of every role after real work.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pulp_tests::{Cluster, ClusterOptions, PASSWORD, Pulp, Server, Standalone, wait_for};
use serde_json::{Value, json};

use crate::{
    otlp::{Collector, Span},
    upstream::Upstream,
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
const SECRET: &str = "hunter2";

/// Sends a request as a part of the caller's trace.
fn traced(method: &str, url: &str, body: Option<&Value>) -> Result<(u16, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let request = reqwest::Client::new()
            .request(method.parse()?, url)
            .header("traceparent", format!("00-{TRACE}-{CALLER}-01"))
            .basic_auth("admin", Some(PASSWORD));
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        let response = request.send().await?;
        Ok((response.status().as_u16(), response.text().await?))
    })
}

/// A repository that mirrors one image of two layers and publishes whatever a sync brings; gives the sync and the
/// publish that it made.
fn sync_and_publish(server: &impl Server, upstream: &Upstream) -> Result<(String, String)> {
    upstream.image("t", &[vec![1; 40_000], vec![2; 30_000]]);
    let body = json!({
        "id": "m", "importer_type_id": "docker_importer",
        "importer_config": {"feed": upstream.url(), "upstream_name": "up/stream",
                            "basic_auth_username": "ann", "basic_auth_password": SECRET},
        "distributors": [{"distributor_type_id": "docker_distributor_web", "distributor_id": "web",
                          "distributor_config": {"repo-registry-id": "mirror/m"}, "auto_publish": true}],
    });
    let (status, made) = server.call("POST", "/repositories/", Some(&body))?;
    ensure!(status == 201, "{status} {made}");
    let url = format!("http://{}/pulp/api/v2/repositories/m/actions/sync/", server.api());
    let (status, report) = traced("POST", &url, Some(&json!({})))?;
    ensure!(status == 202, "{status} {report}");
    let sync = pulp_tests::spawned(&serde_json::from_str(&report)?)?;
    let ended = server.wait_until_finished(&sync)?;
    let publish = ended["spawned_tasks"][0]["task_id"].as_str();
    let publish = publish.context("the sync made no publish")?.to_owned();
    server.wait_until_finished(&publish)?;
    let manifest = format!("http://{}/v2/mirror/m/manifests/t", server.crane());
    wait_for("the image in Crane", || {
        let (status, _) = traced("GET", &manifest, None)?;
        Ok((status == 200).then_some(()))
    })?;
    Ok((sync, publish))
}

const REQUEST: &str = "POST /pulp/api/v2/repositories/{repo}/actions/sync/";
const PULL: &str = "GET /v2/{name}/manifests/{reference}";

/// The whole trace, once it is there.
fn whole_trace(collector: &Collector) -> Result<Vec<Span>> {
    let expected = BTreeMap::from([
        (REQUEST, 1),
        ("task.enqueue", 2),
        // To the resource manager and to the workers, of both tasks.
        ("outbox.publish", 4),
        ("task.grant", 2),
        ("task.claim", 2),
        ("task.run sync", 1),
        ("task.run publish", 1),
        ("download.manifest", 1),
        // Two layers and the config.
        ("download.blob", 3),
        ("publish.switch", 1),
        ("task.commit", 2),
        (PULL, 1),
    ]);
    wait_for("the whole trace", || {
        let spans = collector.trace(TRACE);
        let count = |name: &str| spans.iter().filter(|s| s.name == name).count();
        let all = expected.iter().all(|(name, least)| count(name) >= *least);
        Ok(all.then_some(spans))
    })
}

/// That the trace hangs together as it should; `service` names a role's processes.
fn check_trace(
    collector: &Collector,
    (sync, publish): (&str, &str),
    service: impl Fn(&str) -> String,
) -> Result<()> {
    let spans = whole_trace(collector)?;
    let of_task = |name: &str, task: &str| -> Result<Span> {
        let mut found = spans
            .iter()
            .filter(|s| s.name == name && s.get("task.id").as_deref() == Some(task));
        let one = found.next().with_context(|| format!("no {name} of {task}"))?;
        ensure!(found.next().is_none(), "{name} of {task} twice");
        Ok(one.clone())
    };
    let request = collector.only(TRACE, REQUEST)?;
    assert_eq!(request.parent, CALLER);
    assert_eq!(request.service, service("api"));
    assert_eq!(request.get("http.response.status_code").unwrap(), "202");

    for (task, maker, run) in [
        (sync, request.clone(), "task.run sync"),
        (
            publish,
            collector.only(TRACE, "task.run sync")?,
            "task.run publish",
        ),
    ] {
        let enqueue = of_task("task.enqueue", task)?;
        assert_eq!(enqueue.parent, maker.id, "made by {}", maker.name);
        let grant = of_task("task.grant", task)?;
        let claim = of_task("task.claim", task)?;
        let run = of_task(run, task)?;
        for (span, role) in [(&grant, "resource-manager"), (&claim, "worker"), (&run, "worker")] {
            assert_eq!(span.parent, enqueue.id, "{}", span.name);
            assert_eq!(span.service, service(role), "{}", span.name);
            assert_eq!(span.get("task.attempt").unwrap(), "1");
        }
        assert_eq!(run.get("task.outcome").unwrap(), "finished");
        let sent: Vec<&Span> = spans
            .iter()
            .filter(|s| s.name == "outbox.publish" && s.get("task.id").as_deref() == Some(task))
            .collect();
        // The news of its end goes the same way as that of its beginning, below another span.
        let from_its_making = |queue: &str| {
            let here = |s: &&&Span| s.get("messaging.destination.name").as_deref() == Some(queue);
            sent.iter().filter(here).any(|s| s.parent == enqueue.id)
        };
        let class = grant.get("task.class").unwrap();
        assert!(from_its_making("intake"), "{sent:?}");
        assert!(from_its_making(&format!("tasks.{class}")), "{sent:?}");
    }
    let run = collector.only(TRACE, "task.run sync")?;
    for download in spans.iter().filter(|s| s.name.starts_with("download.")) {
        assert_eq!(download.parent, run.id, "{}", download.name);
        assert_eq!(download.get("server.address").unwrap(), "127.0.0.1");
        assert!(
            download.get("oci.digest").unwrap().starts_with("sha256:"),
            "{download:?}"
        );
    }
    let bytes = spans.iter().filter(|s| s.name == "download.blob");
    let bytes: u64 = bytes
        .map(|s| s.get("bytes").unwrap().parse::<u64>().unwrap())
        .sum();
    assert!(bytes > 70_000, "{bytes}");
    let run = collector.only(TRACE, "task.run publish")?;
    assert_eq!(collector.only(TRACE, "publish.switch")?.parent, run.id);
    let pulls = spans.iter().filter(|s| s.name == PULL);
    assert!(
        pulls
            .clone()
            .all(|s| s.parent == CALLER && s.service == service("crane")),
        "{pulls:?}"
    );
    for span in &spans {
        assert!(!span.failed, "{span:?}");
        assert!(
            !format!("{span:?}").contains(SECRET),
            "a secret left the house: {span:?}"
        );
    }
    Ok(())
}

/// The lines of a log in JSON.
fn lines(log: &str) -> Vec<Value> {
    log.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect()
}

/// Each line of the run names task, attempt and trace.
fn check_lines(log: &str, task: &str) {
    let all = lines(log);
    let of_run: Vec<&Value> = all.iter().filter(|l| l["task_id"] == task).collect();
    let says = |text: &str| of_run.iter().any(|l| l["message"] == text);
    assert!(says("running") && says("ended well"), "{of_run:#?}");
    for line in &of_run {
        assert_eq!(
            (&line["attempt"], &line["trace_id"]),
            (&json!(1), &json!(TRACE)),
            "{line}"
        );
    }
    for line in all
        .iter()
        .filter(|l| l["task"] == task && l["target"] == "pulp_worker::attempt")
    {
        assert_eq!(
            line["task_id"], task,
            "a line of the run without its span: {line}"
        );
    }
}

/// `/metrics` of a process, by where its log says that it is.
fn figures(log: &str) -> Result<Vec<(String, f64)>> {
    let served = lines(log)
        .into_iter()
        .find(|l| l["message"] == "figures are served");
    let served = served.context("no figures are served")?;
    let address: SocketAddr = served["address"].as_str().context("no address")?.parse()?;
    let (status, text) = traced("GET", &format!("http://{address}/metrics"), None)?;
    ensure!(status == 200, "{status} {text}");
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').context("no value")?;
            Ok((name.to_owned(), value.parse()?))
        })
        .collect()
}

/// The figure by this name with its labels; none if it isn't told.
fn figure(of: &[(String, f64)], name: &str) -> Option<f64> {
    of.iter().find(|(n, _)| n == name).map(|(_, value)| *value)
}

#[test]
fn a_standalone_shows_a_sync_and_its_publish_as_one_trace() -> Result<()> {
    let (collector, upstream) = (Collector::start()?, Upstream::start()?);
    let endpoint = format!("http://{}", collector.address);
    let server = Standalone::with(&[
        ("PULP_TRACING_ENDPOINT", &endpoint),
        ("PULP_LOG_FORMAT", "json"),
        ("PULP_METRICS_LISTEN", "127.0.0.1:0"),
        ("OTEL_BSP_SCHEDULE_DELAY", "200"),
    ])?;
    let (sync, publish) = sync_and_publish(&server, &upstream)?;
    check_trace(&collector, (&sync, &publish), |_| "pulp-standalone".to_owned())?;
    check_lines(&server.process.log(), &sync);
    check_lines(&server.process.log(), &publish);
    Ok(())
}

#[test]
fn a_cluster_shows_a_sync_and_its_publish_as_one_trace_and_every_role_its_figures() -> Result<()> {
    let (collector, upstream) = (Collector::start()?, Upstream::start()?);
    let cluster = Cluster::with(ClusterOptions {
        name: "trace",
        workers: 1,
        tasks: &format!(
            "sweep_seconds = 1\n[tracing]\nendpoint = \"http://{}\"\n[log]\nformat = \"json\"\n[metrics]\nlisten = \"127.0.0.1:0\"",
            collector.address
        ),
        ..ClusterOptions::default()
    })?;
    let (sync, publish) = sync_and_publish(&cluster, &upstream)?;
    check_trace(&collector, (&sync, &publish), |role| format!("pulp-{role}"))?;
    check_lines(&cluster.workers[0].log(), &sync);
    check_lines(&cluster.workers[0].log(), &publish);

    let roles: [&Pulp; 3] = [&cluster.api_process, &cluster.crane_process, &cluster.scheduler];
    for role in roles {
        let figures = figures(&role.log())?;
        assert!(
            figure(&figures, "process_resident_memory_bytes").is_some_and(|b| b > 0.0),
            "{}",
            role.name
        );
    }
    let worker = figures(&cluster.workers[0].log())?;
    for class in ["sync", "publish"] {
        let label = format!("{{class=\"{class}\"}}");
        assert!(figure(&worker, &format!("pulp_task_queue_seconds_count{label}")).is_some_and(|n| n >= 1.0));
        let queued = figure(&worker, &format!("pulp_task_queue_seconds_sum{label}")).unwrap();
        assert!(queued > 0.0 && queued < 600.0, "{queued}");
        let ran = format!("pulp_task_run_seconds_count{{class=\"{class}\",outcome=\"finished\"}}");
        assert!(figure(&worker, &ran).is_some_and(|n| n >= 1.0), "{ran}");
    }
    // The first renewal is due after a third of the time to live.
    let margin = "pulp_lease_margin_seconds_count{lease=\"reserved_resource_worker\"}";
    wait_for("a renewal", || {
        let worker = figures(&cluster.workers[0].log())?;
        Ok(figure(&worker, margin).filter(|n| *n >= 1.0))
    })?;

    let leader = || figures(&cluster.managers[cluster.leader()?].log());
    // They are read at each sweep; the tasks are granted by then.
    let leader = wait_for("figures of work that is over", || {
        let leader = leader()?;
        let idle = figure(&leader, "pulp_tasks_live{class=\"publish\",state=\"running\"}") == Some(0.0);
        Ok(idle.then_some(leader))
    })?;
    assert!(figure(&leader, "pulp_leader_epoch").is_some_and(|n| n >= 1.0));
    for class in ["sync", "publish"] {
        let waited = format!("pulp_task_lock_wait_seconds_count{{class=\"{class}\"}}");
        assert!(figure(&leader, &waited).is_some_and(|n| n >= 1.0), "{waited}");
        for none in [
            "pulp_tasks_runnable_unclaimed",
            "pulp_tasks_runnable_oldest_seconds",
            "pulp_tasks_unserved",
        ] {
            assert_eq!(
                figure(&leader, &format!("{none}{{class=\"{class}\"}}")),
                Some(0.0),
                "{none}"
            );
        }
    }
    for none in [
        "pulp_reservation_violations",
        "pulp_tasks_oldest_waiting_seconds",
        "pulp_revocations_total",
    ] {
        assert_eq!(figure(&leader, none), Some(0.0), "{none}");
    }
    for told in [
        "pulp_outbox_depth",
        "pulp_outbox_lag_seconds",
        "pulp_grants_total",
    ] {
        assert!(figure(&leader, told).is_some(), "{told}");
    }
    Ok(())
}

#[test]
fn more_work_than_slots_shows_as_runnable_and_unclaimed() -> Result<()> {
    let upstream = Upstream::start()?;
    let layer = upstream.blob(&vec![7; 50_000]);
    upstream.image("t", &[vec![7; 50_000]]);
    upstream.stall(&layer, Some(1_000));
    let server = Standalone::with(&[
        ("PULP_TASKS_SLOTS_SYNC", "1"),
        ("PULP_TASKS_SWEEP_SECONDS", "1"),
        ("PULP_LOG_FORMAT", "json"),
        ("PULP_METRICS_LISTEN", "127.0.0.1:0"),
    ])?;
    let mut syncs = Vec::new();
    for n in 0..5 {
        let repo = format!("m{n}");
        crate::sync::create(&server, &repo, &upstream.url(), &json!({}))?;
        syncs.push(crate::sync::begin(&server, &repo, &json!({}))?);
    }
    // One runs. Of the others one is granted ahead, three wait for room: all four lack a slot only.
    let unclaimed = "pulp_tasks_runnable_unclaimed{class=\"sync\"}";
    let seen = wait_for("four that lack a slot", || {
        let now = figures(&server.process.log())?;
        Ok((figure(&now, unclaimed) == Some(4.0)).then_some(now))
    })?;
    assert!(figure(&seen, "pulp_tasks_runnable_oldest_seconds{class=\"sync\"}").is_some_and(|s| s > 0.0));
    assert_eq!(
        figure(&seen, "pulp_tasks_live{class=\"sync\",state=\"waiting\"}"),
        Some(3.0)
    );
    for sync in &syncs {
        server.call("DELETE", &format!("/tasks/{sync}/"), None)?;
    }
    wait_for("none", || {
        let now = figures(&server.process.log())?;
        Ok((figure(&now, unclaimed) == Some(0.0)).then_some(()))
    })
}

#[test]
fn a_collector_that_is_away_or_hangs_holds_up_neither_work_nor_the_end() -> Result<()> {
    // It takes connections, and nobody ever answers on them.
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let gone = pulp_testkit::free_port()?;
    for endpoint in [silent.local_addr()?, SocketAddr::from(([127, 0, 0, 1], gone))] {
        let endpoint = format!("http://{endpoint}");
        let mut server = Standalone::with(&[
            ("PULP_TRACING_ENDPOINT", &endpoint),
            ("PULP_TRACING_TIMEOUT_SECONDS", "600"),
            ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ])?;
        let upstream = Upstream::start()?;
        sync_and_publish(&server, &upstream)?;
        let asked = std::time::Instant::now();
        server.process.signal("TERM")?;
        assert!(server.process.wait()?, "{}", server.process.log());
        assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
    }
    Ok(())
}
