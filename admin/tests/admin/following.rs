//! Tasks that are followed to their end, whatever that is.

use std::sync::Arc;

use crate::fake::{API, Fake, SEARCH, call_report, run, step, task};
use crate::publishes::{PUBLISH, published};
use pulp_admin::{Exit, Interrupt};
use serde_json::{Value, json};

/// Busybox is deleted by a task that is seen like this.
fn a_deletion(fake: &Fake, seen: Value) {
    fake.on(
        "DELETE /pulp/api/v2/repositories/busybox/",
        202,
        call_report(&["t1"]),
    )
    .on(&format!("GET {API}/tasks/t1/"), 200, seen);
}

#[tokio::test]
async fn a_failed_task_exits_1_and_tells_why() {
    let fake = Fake::start().await;
    let mut failed = published("error");
    failed["progress_report"] = json!({"d": [step("Publishing Image Files.", "FAILED", 1, 4)]});
    failed["error"] = json!({"code": "PLP0034", "description": "the publish failed", "data": {},
        "sub_errors": [{"code": "DKR1110", "description": "a blob is missing", "data": {}, "sub_errors": []}]});
    fake.on(SEARCH, 200, json!([]))
        .on(PUBLISH, 202, call_report(&["t1"]))
        .on(&format!("GET {API}/tasks/t1/"), 200, failed);
    let ended = fake
        .run(&["docker", "repo", "publish", "run", "--repo-id=busybox"])
        .await;
    assert_eq!(ended.exit.code(), 1);
    assert!(
        ended.out.ends_with(
            "1 of 4 items\n... failed\n\n\nTask Failed\n\nPLP0034: the publish failed\n  DKR1110: a blob is missing\n\n\n"
        ),
        "{}",
        ended.out
    );
    let json = fake
        .run(&["--json", "docker", "repo", "publish", "run", "--repo-id=busybox"])
        .await;
    assert_eq!(json.exit.code(), 1);
    assert_eq!(json.json()["tasks"][0]["error"]["code"], "PLP0034");
}

#[tokio::test]
async fn a_canceled_task_exits_1() {
    let fake = Fake::start().await;
    a_deletion(&fake, task("t1", "canceled", &[], &json!({})));
    let ended = fake.run(&["docker", "repo", "delete", "--repo-id=busybox"]).await;
    assert_eq!(ended.exit, Exit::TaskFailed);
    assert!(
        ended.out.contains("Task Canceled") && !ended.out.contains("successfully deleted"),
        "{}",
        ended.out
    );
}

#[tokio::test]
async fn spawned_tasks_are_followed_in_order_until_one_fails() {
    let fake = Fake::start().await;
    let mut parent = task("t1", "finished", &[], &json!({}));
    parent["spawned_tasks"] = json!([{"task_id": "t2"}, {"task_id": "t3"}, {"task_id": "t1"}]);
    a_deletion(&fake, parent);
    fake.on(
        &format!("GET {API}/tasks/t2/"),
        200,
        task("t2", "error", &[], &json!({})),
    )
    .on(
        &format!("GET {API}/tasks/t3/"),
        200,
        task("t3", "finished", &[], &json!({})),
    );
    let ended = fake.run(&["docker", "repo", "delete", "--repo-id=busybox"]).await;
    assert_eq!(ended.exit, Exit::TaskFailed);
    let looked: Vec<_> = fake
        .seen()
        .into_iter()
        .map(|s| s.line)
        .filter(|l| l.starts_with("GET"))
        .collect();
    assert_eq!(
        looked,
        [format!("GET {API}/tasks/t1/"), format!("GET {API}/tasks/t2/")]
    );
}

#[tokio::test]
async fn a_server_that_restarts_while_a_task_is_followed_is_waited_for() {
    let fake = Fake::start().await;
    a_deletion(&fake, task("t1", "finished", &[], &json!({})));
    let mut failures = 3;
    fake.hook(move |line| {
        (line.contains("/tasks/") && failures > 0).then(|| {
            failures -= 1;
            (503, json!("restarting"))
        })
    });
    let ended = fake.run(&["docker", "repo", "delete", "--repo-id=busybox"]).await;
    assert_eq!(ended.exit, Exit::Success, "{}{}", ended.out, ended.err);
    assert!(ended.out.ends_with("Repository [busybox] successfully deleted\n"));
}

#[tokio::test]
async fn ctrl_c_detaches_from_a_task_and_does_not_touch_it() {
    let fake = Fake::start().await;
    a_deletion(&fake, task("t1", "running", &[], &json!({})));
    let (mut io, captured) = fake.io();
    let ctrl_c = Arc::new(tokio::sync::Notify::new());
    io.interrupt = Interrupt::Notified(ctrl_c.clone());
    fake.hook(move |line| {
        if line.contains("/tasks/t1/") {
            ctrl_c.notify_one();
        }
        None
    });
    let ended = run(&["docker", "repo", "delete", "--repo-id=busybox"], &io, &captured).await;
    assert_eq!(ended.exit.code(), 130);
    assert!(
        ended.err.contains("pulp-admin tasks details --task-id t1"),
        "{}",
        ended.err
    );
    assert!(
        !fake
            .seen()
            .iter()
            .any(|s| s.line.starts_with("DELETE /pulp/api/v2/tasks/"))
    );
}
