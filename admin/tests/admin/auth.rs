//! Users, robots and rights against a stand-in for the REST API.

use crate::fake::Fake;
use pulp_admin::Exit;
use serde_json::json;

#[tokio::test]
async fn a_robots_secret_is_shown_once_it_is_made_or_renewed() {
    let fake = Fake::start().await;
    let (create, renew) = (
        "POST /pulp/api/v2/robots/",
        "POST /pulp/api/v2/robots/ci/actions/renew_secret/",
    );
    let robot = json!({"name": "ci", "login": "robot+ci", "secret": "s3cret"});
    fake.on(create, 201, robot.clone());
    fake.on(renew, 200, robot);
    for words in [
        &[
            "auth",
            "robot",
            "create",
            "--name=ci",
            "--description=of the build",
        ][..],
        &["auth", "robot", "renew", "--name=ci"],
    ] {
        let ended = fake.run(words).await;
        assert_eq!(ended.exit, Exit::Success, "{}", ended.err);
        assert!(
            ended.out.contains("robot+ci") && ended.out.contains("s3cret"),
            "{}",
            ended.out
        );
    }
    assert_eq!(
        fake.bodies(create).first(),
        Some(&json!({"name": "ci", "description": "of the build"}))
    );
}

#[tokio::test]
async fn a_right_is_given_to_a_user_or_a_robot_and_to_one_at_a_time() {
    let fake = Fake::start().await;
    let path = |action: &str| format!("POST /pulp/api/v2/repositories/r/actions/{action}/");
    for action in ["grant_pull", "revoke_pull"] {
        fake.on(&path(action), 200, json!(null));
    }
    for (verb, whose) in [
        ("grant", "--user=ann"),
        ("grant", "--robot=ci"),
        ("revoke", "--user=ann"),
    ] {
        let ended = fake.run(&["docker", "repo", verb, "--repo-id=r", whose]).await;
        assert_eq!(ended.exit, Exit::Success, "{}", ended.err);
    }
    assert_eq!(
        fake.bodies(&path("grant_pull")),
        [json!({"login": "ann"}), json!({"robot": "ci"})]
    );
    assert_eq!(fake.bodies(&path("revoke_pull")), [json!({"login": "ann"})]);
    for words in [
        &["docker", "repo", "grant", "--repo-id=r"][..],
        &["docker", "repo", "grant", "--repo-id=r", "--user=a", "--robot=b"],
    ] {
        assert_ne!(fake.run(words).await.exit, Exit::Success, "{words:?}");
    }
}

#[tokio::test]
async fn who_is_not_there_is_told_by_name() {
    let fake = Fake::start().await;
    let absent = json!({"error": {"code": "PLP0009", "description": "", "data": {}, "sub_errors": []}});
    fake.on("DELETE /pulp/api/v2/robots/ci/", 404, absent.clone());
    fake.on("DELETE /pulp/api/v2/users/ann/", 404, absent.clone());
    fake.on("GET /pulp/api/v2/repositories/r/pull_rights/", 404, absent);
    for (words, told) in [
        (
            &["auth", "robot", "delete", "--name=ci"][..],
            "Robot [ci] does not exist",
        ),
        (
            &["auth", "user", "delete", "--login=ann"],
            "User [ann] does not exist",
        ),
        (
            &["docker", "repo", "rights", "--repo-id=r"],
            "Repository [r] does not exist",
        ),
    ] {
        let ended = fake.run(words).await;
        assert_ne!(ended.exit, Exit::Success);
        assert!(ended.err.contains(told), "{}", ended.err);
    }
}
