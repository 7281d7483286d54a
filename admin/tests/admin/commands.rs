//! Commands against a stand-in for the REST API: what is sent, what is shown, how it ends.

use std::sync::Arc;

use crate::fake::{Fake, call_report, fault, run, step, task};
use pulp_admin::{Exit, Interrupt, Io};
use serde_json::{Value, json};

const API: &str = "/pulp/api/v2";
const RULE: &str = "+----------------------------------------------------------------------+";
const SEARCH: &str = "POST /pulp/api/v2/tasks/search/";
const PUBLISH: &str = "POST /pulp/api/v2/repositories/busybox/actions/publish/";

fn full() -> String {
    format!("[{}] 100%", "=".repeat(50))
}

fn published(state: &str) -> Value {
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
async fn create_sends_the_repository_its_importer_and_both_distributors() {
    let fake = Fake::start().await;
    fake.on("POST /pulp/api/v2/repositories/", 201, json!({"id": "busybox"}));
    let command = [
        "docker",
        "repo",
        "create",
        "--repo-id=busybox",
        "--note=team=a=b",
        "--auto-publish",
        "False",
        "--repo-registry-id",
        "pulpdemo/busybox",
        "--feed=https://registry-1.docker.io",
        "--upstream-name",
        "library/busybox",
        "--enable-v1=false",
        "--tags=latest,1.36",
        "--max-downloads=3",
        "--description",
        "",
    ];
    let ended = fake.run(&command).await;
    assert_eq!(
        (ended.exit, ended.out.as_str()),
        (Exit::Success, "Repository [busybox] successfully created\n")
    );
    let config = json!({"repo-registry-id": "pulpdemo/busybox"});
    assert_eq!(
        fake.bodies("POST /pulp/api/v2/repositories/"),
        [json!({
            "id": "busybox",
            "notes": {"_repo-type": "docker-repo", "team": "a=b"},
            "importer_type_id": "docker_importer",
            "importer_config": {"feed": "https://registry-1.docker.io", "upstream_name": "library/busybox",
                "enable_v1": false, "tags": ["latest", "1.36"], "max_downloads": 3},
            "distributors": [
                {"distributor_id": "docker_web_distributor_name_cli", "distributor_type_id": "docker_distributor_web",
                 "distributor_config": config, "auto_publish": false},
                {"distributor_id": "docker_export_distributor_name_cli",
                 "distributor_type_id": "docker_distributor_export", "distributor_config": config,
                 "auto_publish": false},
            ],
        })]
    );
}

#[tokio::test]
async fn an_update_follows_one_task_a_distributor() {
    let fake = Fake::start().await;
    fake.on(
        "PUT /pulp/api/v2/repositories/busybox/",
        202,
        call_report(&["t1", "t2"]),
    );
    let of = |distributor: &str| format!("pulp:repository_distributor:{distributor}");
    for (id, distributor) in [
        ("t1", "docker_web_distributor_name_cli"),
        ("t2", "docker_export_distributor_name_cli"),
    ] {
        let tags = [
            "pulp:repository:busybox",
            &of(distributor),
            "pulp:action:update_distributor",
        ];
        fake.on(
            &format!("GET {API}/tasks/{id}/"),
            200,
            task(id, "finished", &tags, &json!({})),
        );
    }
    let command = [
        "docker",
        "repo",
        "update",
        "--repo-id=busybox",
        "--repo-registry-id=pulpdemo/busybox",
        "--feed",
        "",
    ];
    let ended = fake.run(&command).await;
    assert_eq!(ended.exit, Exit::Success);
    assert_eq!(
        ended.out,
        "This command may be exited via ctrl+c without affecting the request.\n\n\n\
         [-]\nRunning...\nUpdating distributor: docker_web_distributor_name_cli\n\nTask Succeeded\n\n\n\n\
         [-]\nRunning...\nUpdating distributor: docker_export_distributor_name_cli\n\nTask Succeeded\n\n\n"
    );
    let config = json!({"repo-registry-id": "pulpdemo/busybox"});
    assert_eq!(
        fake.bodies("PUT"),
        [
            json!({"delta": {}, "importer_config": {"feed": null}, "distributor_configs":
            {"docker_web_distributor_name_cli": config, "docker_export_distributor_name_cli": config}})
        ]
    );
}

#[tokio::test]
async fn auto_publish_is_changed_at_the_distributor_and_only_when_given() {
    let fake = Fake::start().await;
    let distributor = "PUT /pulp/api/v2/repositories/busybox/distributors/docker_web_distributor_name_cli/";
    fake.on(distributor, 202, call_report(&["t1"]))
        .on(
            &format!("GET {API}/tasks/t1/"),
            200,
            task("t1", "finished", &[], &json!({})),
        )
        .on(
            "PUT /pulp/api/v2/repositories/busybox/",
            200,
            json!({"result": {"id": "busybox"}, "spawned_tasks": []}),
        );
    let ended = fake
        .run(&[
            "docker",
            "repo",
            "update",
            "--repo-id=busybox",
            "--auto-publish=false",
        ])
        .await;
    assert_eq!(ended.exit, Exit::Success);
    assert_eq!(
        fake.bodies("PUT"),
        [json!({"distributor_config": {}, "delta": {"auto_publish": false}})]
    );

    let ended = fake
        .run(&[
            "docker",
            "repo",
            "update",
            "--repo-id=busybox",
            "--display-name=B",
            "--note=a=",
        ])
        .await;
    assert_eq!(ended.out, "Repository [busybox] successfully updated\n");
    assert_eq!(
        fake.bodies("PUT")[1..],
        [json!({"delta": {"display_name": "B", "notes": {"a": null}}})]
    );
}

#[tokio::test]
async fn v1_tags_are_changed_in_the_scratchpad_and_the_rest_of_it_stays() {
    let fake = Fake::start().await;
    let scratchpad =
        json!({"other": 1, "tags": [{"tag": "latest", "image_id": "old"}, {"tag": "x", "image_id": "y"}]});
    fake.on(
        "GET /pulp/api/v2/repositories/busybox/",
        200,
        json!({"id": "busybox", "scratchpad": scratchpad}),
    )
    .on(
        "POST /pulp/api/v2/repositories/busybox/search/units/",
        200,
        json!([{"metadata": {"image_id": "769b9341d937"}}, {"metadata": {"image_id": "48e5f45168b9"}}]),
    )
    .on(
        "PUT /pulp/api/v2/repositories/busybox/",
        200,
        json!({"result": {}, "spawned_tasks": []}),
    );
    let command = [
        "docker",
        "repo",
        "update",
        "--repo-id=busybox",
        "--tag",
        "latest:769b93",
        "--remove-tag=x",
        "--tag=a:b:48e5f4",
    ];
    assert_eq!(fake.run(&command).await.exit, Exit::Success);
    assert_eq!(
        fake.bodies("POST")[0]["criteria"]["filters"],
        json!({"unit": {"image_id": {"$regex": "^769b93|^48e5f4"}}})
    );
    assert_eq!(
        fake.bodies("PUT"),
        [json!({"delta": {"scratchpad": {"other": 1, "tags": [
            {"tag": "latest", "image_id": "769b9341d937"}, {"tag": "a:b", "image_id": "48e5f45168b9"}]}}})]
    );
    let ended = fake
        .run(&[
            "docker",
            "repo",
            "update",
            "--repo-id=busybox",
            "--tag=latest:769b",
        ])
        .await;
    assert_eq!(ended.exit, Exit::Data, "a prefix of four digits is too short");
    assert_eq!(fake.bodies("PUT").len(), 1);
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
    fake.on(
        "DELETE /pulp/api/v2/repositories/busybox/",
        202,
        call_report(&["t1"]),
    )
    .on(
        &format!("GET {API}/tasks/t1/"),
        200,
        task("t1", "canceled", &[], &json!({})),
    );
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
    fake.on(
        "DELETE /pulp/api/v2/repositories/busybox/",
        202,
        call_report(&["t1"]),
    )
    .on(&format!("GET {API}/tasks/t1/"), 200, parent)
    .on(
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
    fake.on(
        "DELETE /pulp/api/v2/repositories/busybox/",
        202,
        call_report(&["t1"]),
    )
    .on(
        &format!("GET {API}/tasks/t1/"),
        200,
        task("t1", "finished", &[], &json!({})),
    );
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
    fake.on(
        "DELETE /pulp/api/v2/repositories/busybox/",
        202,
        call_report(&["t1"]),
    )
    .on(
        &format!("GET {API}/tasks/t1/"),
        200,
        task("t1", "running", &[], &json!({})),
    );
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

#[tokio::test]
async fn exit_codes_tell_what_went_wrong() {
    let fake = Fake::start().await;
    let exit = async |command: &[&str]| fake.run(command).await.exit.code();
    assert_eq!(
        exit(&["docker", "repo", "delete", "--repo-id=nope"]).await,
        65,
        "404"
    );
    assert_eq!(
        exit(&["docker", "repo", "list", "--repo-id=nope"]).await,
        65,
        "404"
    );
    fake.on(
        "POST /pulp/api/v2/repositories/",
        409,
        fault(409, "PLP0018", "exists").1,
    );
    assert_eq!(
        exit(&["docker", "repo", "create", "--repo-id=r"]).await,
        65,
        "409"
    );
    fake.on("GET /pulp/api/v2/status/", 500, fault(500, "PLP2002", "broken").1);
    assert_eq!(exit(&["status"]).await, 70, "500");
    assert_eq!(
        exit(&["-u", "admin", "-p", "wrong", "repo", "list"]).await,
        77,
        "wrong password"
    );
    assert_eq!(
        exit(&["--server", "http://127.0.0.1:1", "status"]).await,
        78,
        "nobody listens"
    );
    assert_eq!(exit(&["--server", "ftp://h", "status"]).await, 78, "no address");
    assert_eq!(
        exit(&["docker", "repo", "create"]).await,
        64,
        "an option is missing"
    );
    assert_eq!(exit(&["docker", "repo"]).await, 64, "a section without a command");
    assert_eq!(exit(&["frobnicate"]).await, 64, "no such command");
    assert_eq!(exit(&["tasks", "purge"]).await, 64, "neither --all nor --state");
    assert_eq!(
        exit(&["docker", "repo", "create", "--repo-id=a/b"]).await,
        65,
        "a value that can't be"
    );
    assert_eq!(
        exit(&["docker", "repo", "create", "--repo-id=a", "--protected=x"]).await,
        65,
        "no boolean"
    );
    assert_eq!(
        exit(&["docker", "repo", "create", "--repo-id=a", "--feed-key=/nope"]).await,
        74,
        "no file"
    );
    assert_eq!(
        exit(&["--config", "/nope", "status"]).await,
        74,
        "no configuration file"
    );
    assert_eq!(
        exit(&["-u", "else", "repo", "list"]).await,
        67,
        "nobody answers the question for a password"
    );
    assert_eq!(exit(&["--help"]).await, 0);
}

#[tokio::test]
async fn the_servers_own_words_reach_the_user() {
    let fake = Fake::start().await;
    let ended = fake.run(&["docker", "repo", "delete", "--repo-id=nope"]).await;
    assert_eq!(ended.err, "Repository [nope] does not exist on the server\n");
    fake.on(
        "POST /pulp/api/v2/repositories/",
        409,
        fault(409, "PLP0018", "r is taken").1,
    );
    let ended = fake.run(&["docker", "repo", "create", "--repo-id=r"]).await;
    assert_eq!(ended.err, "PLP0018: r is taken\n");
    let ended = fake
        .run(&["docker", "repo", "create", "--repo-id=r", "--json"])
        .await;
    assert_eq!(ended.json()["error"]["code"], "PLP0018");
    assert_eq!(ended.json()["exit_code"], 65);
}

#[tokio::test]
async fn a_session_is_kept_used_for_its_server_only_and_ends() {
    let fake = Fake::start().await;
    let login = |expires: &str| json!({"token": "session-1", "login": "admin", "expires": expires});
    fake.on(
        "POST /pulp/api/v2/actions/login/",
        200,
        login("2999-01-01T00:00:00Z"),
    )
    .on(
        "GET /pulp/api/v2/repositories/?importers=false&distributors=false",
        200,
        json!([]),
    );
    let plain = || Io::captured(fake.home.path());
    let (io, captured) = plain();
    let ended = run(
        &["--server", &fake.url, "login", "-u", "admin", "-p", "admin"],
        &io,
        &captured,
    )
    .await;
    assert_eq!(ended.exit, Exit::Success, "{}", ended.err);
    assert!(!ended.out.contains("session-1"), "the token is a secret");

    let (io, captured) = plain();
    let ended = run(&["--server", &fake.url, "repo", "list"], &io, &captured).await;
    assert_eq!(ended.exit, Exit::Success);
    assert_eq!(
        fake.seen().last().unwrap().authorization.as_deref(),
        Some("Bearer session-1")
    );

    let other = Fake::start().await;
    let (io, captured) = plain();
    assert_eq!(
        run(&["--server", &other.url, "repo", "list"], &io, &captured)
            .await
            .exit,
        Exit::NoPermission
    );
    assert_eq!(
        other.seen().last().unwrap().authorization,
        None,
        "it is sent to no other server"
    );

    let path = fake.home.path().join(".pulp/user-session.json");
    fake.hook(|_| Some(fault(401, "PLP0025", "the token has expired")));
    let (io, captured) = plain();
    let ended = run(&["--server", &fake.url, "repo", "list"], &io, &captured).await;
    assert_eq!(ended.exit.code(), 77);
    assert!(
        ended.err.contains("log in again by: pulp-admin login -u admin"),
        "{}",
        ended.err
    );

    let (io, captured) = plain();
    assert_eq!(
        run(&["--server", &fake.url, "logout"], &io, &captured).await.exit,
        Exit::Success
    );
    assert!(!path.exists());
}

#[tokio::test]
async fn docker_repositories_are_listed_apart_from_others() {
    let fake = Fake::start().await;
    let repository = |id: &str, kind: &str, counts: Value| {
        json!({"id": id, "display_name": id, "description": null,
        "notes": {"_repo-type": kind}, "content_unit_counts": counts, "_href": "x", "scratchpad": {}})
    };
    fake.on(
        "GET /pulp/api/v2/repositories/?importers=false&distributors=false",
        200,
        json!([
            repository("busybox", "docker-repo", json!({"docker_image": 4})),
            repository("zoo", "rpm-repo", json!({}))
        ]),
    );
    let ended = fake.run(&["docker", "repo", "list"]).await;
    let docker = format!(
        "{RULE}\n                          Docker Repositories\n{RULE}\n\n\
         Id:                  busybox\nDisplay Name:        busybox\nDescription:         None\n\
         Content Unit Counts:\n  Docker Image: 4\n\n"
    );
    assert_eq!(ended.out, docker);
    let ended = fake
        .run(&["docker", "repo", "list", "--all", "--fields=notes"])
        .await;
    assert!(ended.out.contains("Other Pulp Repositories\n"), "{}", ended.out);
    assert!(ended.out.contains("Id:    zoo\nNotes:\n"), "{}", ended.out);
    let ended = fake.run(&["repo", "list", "-s"]).await;
    assert!(
        ended.out.ends_with("\nbusybox  busybox\nzoo      zoo\n\n"),
        "{}",
        ended.out
    );
    assert_eq!(
        fake.run(&["docker", "repo", "list", "--json"]).await.json()[0]["id"],
        "busybox"
    );
    assert_eq!(
        fake.run(&["repo", "list", "-s", "--details"]).await.exit,
        Exit::Usage
    );
}

#[tokio::test]
async fn images_are_listed_with_the_tags_that_point_to_them() {
    let fake = Fake::start().await;
    let scratchpad =
        json!({"tags": [{"tag": "latest", "image_id": "769b"}, {"tag": "1", "image_id": "769b"}]});
    fake.on("GET /pulp/api/v2/repositories/busybox/", 200, json!({"id": "busybox", "scratchpad": scratchpad}))
        .on("POST /pulp/api/v2/repositories/busybox/search/units/", 200, json!([
            {"created": "2015-05-21T13:42:25Z", "updated": "2015-05-21T13:42:25Z", "repo_id": "busybox", "_ns": "x",
             "unit_id": "u", "unit_type_id": "docker_image", "metadata": {"image_id": "769b", "_id": "u"}}]));
    let ended = fake
        .run(&[
            "docker",
            "repo",
            "images",
            "--repo-id=busybox",
            "--str-eq=image_id=769b",
            "--fields=size",
        ])
        .await;
    assert_eq!(
        ended.out,
        "Created:      2015-05-21T13:42:25Z\nMetadata:\n  Image Id: 769b\n  Tags:     latest, 1\nRepo Id:      busybox\n\
         Unit Id:      u\nUnit Type Id: docker_image\nUpdated:      2015-05-21T13:42:25Z\n\n"
    );
    assert_eq!(
        fake.bodies("POST"),
        [
            json!({"criteria": {"type_ids": ["docker_image"], "fields": {"unit": ["size", "image_id"]},
            "filters": {"unit": {"image_id": "769b"}, "association": {}}}})
        ]
    );
    for (word, type_id) in [
        ("manifest", "docker_manifest"),
        ("manifest-list", "docker_manifest_list"),
        ("tag", "docker_tag"),
        ("blob", "docker_blob"),
    ] {
        assert_eq!(
            fake.run(&["docker", "repo", "search", word, "--repo-id=busybox"])
                .await
                .exit,
            Exit::Success
        );
        assert_eq!(
            fake.bodies("POST").last().unwrap()["criteria"]["type_ids"],
            json!([type_id])
        );
    }
}

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

#[tokio::test]
async fn status_is_shown_as_the_server_gives_it() {
    let fake = Fake::start().await;
    fake.on("GET /pulp/api/v2/status/", 200, json!({"database_connection": {"connected": true},
        "known_workers": [{"_id": "scheduler@h", "last_heartbeat": "2026-01-01T00:00:00Z"}], "api_version": "2"}));
    let ended = fake.run(&["status"]).await;
    assert_eq!(
        ended.out,
        format!(
            "{RULE}\n                          Status of the server\n{RULE}\n\n\
             Api Version:         2\nDatabase Connection:\n  Connected: True\nKnown Workers:\n  \
             _id:            scheduler@h\n  Last Heartbeat: 2026-01-01T00:00:00Z\n\n"
        )
    );
}

#[tokio::test]
async fn the_log_of_requests_goes_to_stderr_and_holds_no_password() {
    let fake = Fake::start().await;
    fake.on("GET /pulp/api/v2/status/", 200, json!({}));
    let ended = fake.run(&["-vv", "-u", "admin", "-p", "admin", "status"]).await;
    assert!(ended.err.contains("/pulp/api/v2/status/ -> 200"), "{}", ended.err);
    assert!(!ended.err.contains("YWRtaW46YWRtaW4"), "{}", ended.err);
}

#[tokio::test]
async fn the_map_shows_every_command() {
    let (io, captured) = Io::captured("/nonexistent");
    let ended = run(&["--map"], &io, &captured).await;
    assert!(ended.out.contains("\n      upload: "), "{}", ended.out);
    for word in ["login", "history", "manifest-list", "purge", "export"] {
        assert!(ended.out.contains(&format!("{word}: ")), "{word}");
    }
}
