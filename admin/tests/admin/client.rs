//! What all commands have in common: exit codes, errors, sessions, the log.

use crate::fake::{Fake, RULE, fault, run};
use pulp_admin::{Exit, Io};
use serde_json::json;

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
