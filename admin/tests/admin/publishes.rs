//! Publishes and exports: `run`, `status` and their history.

use crate::fake::{API, Fake, RULE, SEARCH, call_report, step, task};
use pulp_admin::Exit;
use serde_json::{Value, json};

pub(crate) const PUBLISH: &str = "POST /pulp/api/v2/repositories/busybox/actions/publish/";

fn full() -> String {
    format!("[{}] 100%", "=".repeat(50))
}

/// A report of the task `t1`, which publishes.
pub(crate) fn published(state: &str) -> Value {
    let steps = [
        step("Publishing Image Files.", "FINISHED", 4, 4),
        step("Making files available via web.", "FINISHED", 1, 1),
    ];
    let tags = ["pulp:repository:busybox", "pulp:action:publish"];
    task(
        "t1",
        state,
        &tags,
        &json!({"docker_web_distributor_name_cli": steps}),
    )
}

#[tokio::test]
async fn a_publish_reads_as_documented() {
    let fake = Fake::start().await;
    let waiting = task("t1", "waiting", &[], &json!({}));
    let mut begun = published("running");
    begun["progress_report"]["docker_web_distributor_name_cli"] = json!([
        step("Publishing Image Files.", "IN_PROGRESS", 1, 4),
        step("Making files available via web.", "NOT_STARTED", 0, 1)
    ]);
    fake.on(SEARCH, 200, json!([]))
        .on(PUBLISH, 202, call_report(&["t1"]));
    for report in [waiting, begun.clone(), begun, published("finished")] {
        fake.on(&format!("GET {API}/tasks/t1/"), 200, report);
    }
    let ended = fake
        .run(&["docker", "repo", "publish", "run", "--repo-id=busybox"])
        .await;
    assert_eq!(ended.exit, Exit::Success);
    assert_eq!(ended.err, "");
    assert_eq!(
        ended.out,
        format!(
            "{RULE}\n                    Publishing Repository [busybox]\n{RULE}\n\n\
             This command may be exited via ctrl+c without affecting the request.\n\n\n\
             Publishing Image Files.\n{}\n4 of 4 items\n... completed\n\n\
             Making files available via web.\n[-]\n... completed\n\n\n\
             Task Succeeded\n\n\n",
            full()
        )
    );
    assert_eq!(
        fake.bodies(PUBLISH),
        [json!({"id": "docker_web_distributor_name_cli", "override_config": {}})]
    );
}

#[tokio::test]
async fn a_publish_under_way_is_followed_instead_of_queued_again() {
    let fake = Fake::start().await;
    let mut export = published("running");
    export["task_id"] = json!("t0");
    export["progress_report"] = json!({"docker_export_distributor_name_cli": []});
    fake.on(SEARCH, 200, json!([export, published("running")]))
        .on(PUBLISH, 202, call_report(&["t9"]))
        .on(&format!("GET {API}/tasks/t1/"), 200, published("finished"))
        .on(&format!("GET {API}/tasks/t9/"), 200, published("finished"));
    let ended = fake
        .run(&["docker", "repo", "publish", "run", "--repo-id=busybox"])
        .await;
    assert!(
        ended.out.contains("A publish task is already in progress"),
        "{}",
        ended.out
    );
    assert_eq!(fake.bodies(PUBLISH).len(), 0);
    assert_eq!(
        fake.bodies(SEARCH)[0]["criteria"]["filters"]["tags"],
        json!({"$all": ["pulp:repository:busybox", "pulp:action:publish"]})
    );
    // With an option it is another request than the one under way.
    let command = [
        "docker",
        "repo",
        "export",
        "run",
        "--repo-id=busybox",
        "--export-file=/x.tar",
        "--bg",
        "--json",
    ];
    let ended = fake.run(&command).await;
    assert_eq!(ended.json(), json!({"spawned_tasks": [{"task_id": "t9"}]}));
    assert_eq!(
        fake.bodies(PUBLISH),
        [json!({"id": "docker_export_distributor_name_cli", "override_config": {"export_file": "/x.tar"}})]
    );
}

#[tokio::test]
async fn status_of_an_idle_repository_says_so() {
    let fake = Fake::start().await;
    fake.with_repository().on(SEARCH, 200, json!([]));
    let ended = fake
        .run(&["docker", "repo", "publish", "status", "--repo-id=busybox"])
        .await;
    assert_eq!(ended.exit, Exit::Success);
    assert!(
        ended
            .out
            .ends_with("The repository is not performing any operations\n"),
        "{}",
        ended.out
    );
}

#[tokio::test]
async fn publish_history_is_listed() {
    let fake = Fake::start().await;
    fake.on(
        "GET /pulp/api/v2/repositories/busybox/history/publish/docker_web_distributor_name_cli/?limit=5&sort=ascending",
        200,
        json!([{"repo_id": "busybox", "distributor_id": "docker_web_distributor_name_cli", "result": "success",
            "started": "a", "completed": "b", "error_message": null, "summary": {"publish_images": "FINISHED"}}]),
    );
    let ended = fake
        .run(&[
            "repo",
            "history",
            "publish",
            "--repo-id=busybox",
            "--sort=ascending",
        ])
        .await;
    assert!(
        ended.out.contains("Publish History [busybox]\n"),
        "{}{}",
        ended.out,
        ended.err
    );
    assert!(
        ended.out.contains("Result:         success\n") && !ended.out.contains("FINISHED"),
        "{}",
        ended.out
    );
}
