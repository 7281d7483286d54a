//! `tasks …`: listed, inspected, canceled and purged.

use crate::fake::{Fake, SEARCH, task};
use pulp_admin::Exit;
use serde_json::{Value, json};

#[tokio::test]
async fn tasks_are_listed_inspected_canceled_and_purged() {
    let fake = Fake::start().await;
    let tags = ["pulp:repository:busybox", "pulp:action:publish"];
    let mut done = task("t1", "finished", &tags, &json!({}));
    done["result"] = json!({"result": "success"});
    fake.on(
        SEARCH,
        200,
        json!([
            task("t2", "waiting", &tags, &json!({})),
            task("t1", "running", &tags, &json!({}))
        ]),
    )
    .on("GET /pulp/api/v2/tasks/t1/", 200, done)
    .on("DELETE /pulp/api/v2/tasks/t1/", 200, Value::Null)
    .on(
        "DELETE /pulp/api/v2/tasks/?state=finished&state=error",
        204,
        Value::Null,
    );
    let ended = fake.run(&["tasks", "list"]).await;
    assert!(
        ended
            .out
            .contains("Operations:  publish\nResources:   busybox (repository)\nState:       Running\n"),
        "{}",
        ended.out
    );
    assert!(
        ended.out.find("Task Id:     t1") < ended.out.find("Task Id:     t2"),
        "the oldest first"
    );
    assert_eq!(
        fake.bodies(SEARCH)[0]["criteria"]["filters"],
        json!({"state": {"$in": ["waiting", "accepted", "running"]}, "group_id": null})
    );
    fake.run(&["tasks", "list", "-s", "successful,canceled"]).await;
    assert_eq!(
        fake.bodies(SEARCH)[1]["criteria"]["filters"]["state"],
        json!({"$in": ["finished", "canceled"]})
    );
    fake.run(&["tasks", "search", "--str-eq=state=error", "--limit=2"])
        .await;
    assert_eq!(
        fake.bodies(SEARCH)[2]["criteria"],
        json!({"filters": {"state": "error"}, "limit": 2})
    );

    let ended = fake.run(&["tasks", "details", "--task-id=t1"]).await;
    assert!(
        ended.out.contains("State:           Successful\n"),
        "{}",
        ended.out
    );
    assert!(
        ended.out.contains("Result:\n  Result: success\n"),
        "{}",
        ended.out
    );
    // A server of Pulp 2 has neither of these.
    assert!(!ended.out.contains("Timeline"), "{}", ended.out);
    let told = json!({"waits": true, "reasons": [{"message": "nobody serves it"}], "position": null, "resources": []});
    let events = json!([{"at": "T", "event": "created", "attempt": 0}]);
    fake.on(
        "GET /pulp/api/v2/tasks/t3/",
        200,
        json!({"task_id": "t3", "state": "waiting", "tags": []}),
    )
    .on("GET /pulp/api/v2/tasks/t3/wait_reason/", 200, told.clone())
    .on("GET /pulp/api/v2/tasks/t3/timeline/", 200, events.clone());
    let ended = fake.run(&["tasks", "details", "--task-id=t3"]).await;
    assert!(
        ended.out.contains("nobody serves it\n") && ended.out.contains("T created\n"),
        "{}",
        ended.out
    );
    let json = fake
        .run(&["--json", "tasks", "details", "--task-id=t3"])
        .await
        .json();
    assert_eq!((&json["wait_reason"], &json["timeline"]), (&told, &events));

    let ended = fake.run(&["tasks", "cancel", "--task-id=t1"]).await;
    assert_eq!(ended.out, "Task cancel is successfully initiated.\n");
    fake.on("DELETE /pulp/api/v2/tasks/t1/?tree=false", 200, Value::Null)
        .on("DELETE /pulp/api/v2/task_groups/g1/", 200, Value::Null);
    let ended = fake.run(&["tasks", "cancel", "--task-id=t1", "--alone"]).await;
    assert_eq!(ended.exit, Exit::Success, "{}", ended.err);
    let ended = fake.run(&["tasks", "cancel", "--group-id=g1"]).await;
    assert_eq!(ended.out, "Task group cancel is successfully initiated.\n");
    let ended = fake.run(&["tasks", "cancel", "--group-id=g2"]).await;
    assert_eq!(
        (ended.exit.code(), ended.err.as_str()),
        (65, "Task group [g2] does not exist on the server\n")
    );
    for wrong in [
        &["tasks", "cancel"][..],
        &["tasks", "cancel", "--group-id=g", "--task-id=t"],
        &["tasks", "cancel", "--group-id=g", "--alone"],
    ] {
        assert_eq!(fake.run(wrong).await.exit.code(), 64, "{wrong:?}");
    }
    let ended = fake.run(&["tasks", "cancel", "--task-id=t9"]).await;
    assert_eq!(
        (ended.exit.code(), ended.err.as_str()),
        (65, "Task [t9] does not exist on the server\n")
    );
    assert_eq!(
        fake.run(&["tasks", "purge", "--state=successful,failed"])
            .await
            .exit,
        Exit::Success
    );
    assert_eq!(
        fake.run(&["tasks", "purge", "--state=running"]).await.exit,
        Exit::Data
    );
}
