//! Schedules against a stand-in for the REST API.

use crate::fake::Fake;
use pulp_admin::Exit;
use serde_json::{Value, json};

const SYNC: &str = "/pulp/api/v2/repositories/busybox/importers/docker_importer/schedules/sync/";
const PUBLISH: &str =
    "/pulp/api/v2/repositories/busybox/distributors/docker_web_distributor_name_cli/schedules/publish/";

fn schedule(id: &str, next: &str) -> Value {
    json!({"_id": id, "schedule": "P1D", "enabled": true, "failure_threshold": null, "consecutive_failures": 0,
        "last_run_at": null, "next_run": next, "remaining_runs": null, "total_run_count": 7})
}

#[tokio::test]
async fn create_and_update_send_what_was_given_and_nothing_else() {
    let fake = Fake::start().await;
    let (post, put) = (format!("POST {SYNC}"), format!("PUT {PUBLISH}abc/"));
    fake.on(&post, 201, schedule("abc", "2026-01-01T00:00:00Z"));
    fake.on(&put, 200, schedule("abc", "2026-01-01T00:00:00Z"));
    let sync = [
        "docker",
        "repo",
        "sync",
        "schedules",
        "create",
        "--repo-id=busybox",
        "-s",
        "P1D",
    ];
    let ended = fake.run(&sync).await;
    assert_eq!(ended.exit, Exit::Success, "{}", ended.err);
    assert!(
        ended.out.contains("Schedule successfully created"),
        "{}",
        ended.out
    );
    assert!(
        ended.out.contains("Next run: 2026-01-01T00:00:00Z"),
        "{}",
        ended.out
    );
    fake.run(&[&sync[..], &["--failure-threshold=3"]].concat()).await;
    assert_eq!(
        fake.bodies(&post),
        [
            json!({"schedule": "P1D"}),
            json!({"schedule": "P1D", "failure_threshold": 3})
        ]
    );
    let publish = [
        "docker",
        "repo",
        "publish",
        "schedules",
        "update",
        "--repo-id=busybox",
        "--schedule-id=abc",
    ];
    let ended = fake
        .run(&[&publish[..], &["-f", "", "--enabled=False"]].concat())
        .await;
    assert_eq!(ended.exit, Exit::Success, "{}", ended.err);
    assert_eq!(
        fake.bodies(&put),
        [json!({"failure_threshold": null, "enabled": false})]
    );
}

#[tokio::test]
async fn list_and_next_show_when_it_runs() {
    let fake = Fake::start().await;
    let both = [
        schedule("a", "2026-02-01T00:00:00Z"),
        schedule("b", "2026-01-01T00:00:00Z"),
    ];
    fake.on(&format!("GET {PUBLISH}"), 200, json!(both));
    let of = |last: &[&'static str]| {
        [
            &["docker", "repo", "publish", "schedules"],
            last,
            &["--repo-id=busybox"],
        ]
        .concat()
    };
    let ended = fake.run(&of(&["list"])).await;
    assert!(ended.out.contains("2026-02-01T00:00:00Z"), "{}", ended.out);
    assert!(
        ended
            .out
            .lines()
            .any(|l| l.starts_with("Id:") && l.ends_with(" a")),
        "{}",
        ended.out
    );
    assert!(!ended.out.to_lowercase().contains("total"), "{}", ended.out);
    let ended = fake.run(&of(&["list", "--details"])).await;
    assert!(ended.out.to_lowercase().contains("total"), "{}", ended.out);
    assert_eq!(fake.run(&of(&["next", "-q"])).await.out, "2026-01-01T00:00:00Z\n");
    assert_eq!(
        fake.run(&of(&["next"])).await.out,
        "Next run: 2026-01-01T00:00:00Z\n"
    );
}

#[tokio::test]
async fn a_schedule_that_is_not_there_is_told_by_its_id() {
    let fake = Fake::start().await;
    let error = json!({"code": "PLP0009", "description": "there is no schedule \"abc\"",
        "data": {"resources": {"schedule_id": "abc"}}, "sub_errors": []});
    let missing = json!({"http_status": 404, "error_message": "no", "exception": null, "traceback": null, "error": error});
    fake.on(&format!("DELETE {SYNC}abc/"), 404, missing);
    let words = [
        "docker",
        "repo",
        "sync",
        "schedules",
        "delete",
        "--repo-id=busybox",
        "--schedule-id=abc",
    ];
    let ended = fake.run(&words).await;
    assert_eq!(ended.exit, Exit::Data);
    assert!(
        ended.err.contains("Schedule [abc] does not exist on the server"),
        "{}",
        ended.err
    );
}
