//! Repositories: what is sent when they are made and changed, and how they and their content are shown.

use crate::fake::{API, Fake, RULE, call_report, task};
use pulp_admin::Exit;
use serde_json::{Value, json};

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
