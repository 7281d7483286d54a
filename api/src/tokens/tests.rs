//! Tokens by the whole router, checked as Crane does.
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::Request;
use pulp_token::{Pulls, Signer, Verifier};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    ApiConfig,
    testing::{Api, Reply},
};

struct Bed {
    api: Api,
    verifier: Verifier,
    _keys: TempDir,
}

impl Bed {
    /// With the repositories `a` and `b`, published as `test/a` and `test/b`, the user `ann` and the robot `ci`.
    async fn new() -> (Self, String) {
        let keys = tempfile::tempdir().unwrap();
        let (private, public) = (keys.path().join("key"), keys.path().join("public"));
        Signer::generate(&private).unwrap();
        let signer = Signer::open(&private, "pulp", "registry", Duration::from_mins(5)).unwrap();
        std::fs::write(&public, signer.public_pem()).unwrap();
        let api = Api::with(ApiConfig {
            token_signer: Some(signer),
            ..ApiConfig::default()
        })
        .await;
        for repo in ["a", "b"] {
            api.docker_repository(repo).await;
            let name = format!("test/{repo}").parse().unwrap();
            api.published(repo, &name).await;
        }
        let ann = json!({"login": "ann", "password": "secret"});
        assert_eq!(api.post("/users/", &ann).await.status, 201);
        let robot = api.post("/robots/", &json!({"name": "ci"})).await;
        assert_eq!(robot.status, 201, "{}", robot.body);
        let secret = robot.body["secret"].as_str().unwrap().to_owned();
        let bed = Self {
            api,
            verifier: Verifier::open(&[public], "pulp", "registry").unwrap(),
            _keys: keys,
        };
        (bed, secret)
    }

    async fn get(&self, query: &str, credentials: Option<(&str, &str)>) -> Reply {
        let mut request = Request::get(format!("/token?{query}"));
        if let Some((name, secret)) = credentials {
            let basic = STANDARD.encode(format!("{name}:{secret}"));
            request = request.header("authorization", format!("Basic {basic}"));
        }
        self.api.send(request.body(Body::empty()).unwrap()).await
    }

    async fn post(&self, form: &str) -> Reply {
        let request = Request::post("/token").header("content-type", "application/x-www-form-urlencoded");
        self.api
            .send(request.body(Body::from(form.to_owned())).unwrap())
            .await
    }

    fn pulls(&self, reply: &Reply) -> Arc<Pulls> {
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert_eq!(reply.header("cache-control"), "no-store");
        assert_eq!(reply.body["token"], reply.body["access_token"]);
        assert_eq!(reply.body["expires_in"], 300);
        self.verifier
            .verify(reply.body["token"].as_str().unwrap())
            .unwrap()
    }

    async fn names(&self, query: &str, credentials: (&str, &str)) -> String {
        let pulls = self.pulls(&self.get(query, Some(credentials)).await);
        let names: Vec<_> = pulls.repositories.iter().map(ToString::to_string).collect();
        names.join(" ")
    }

    async fn grant(&self, repo: &str, who: serde_json::Value) {
        let path = format!("/repositories/{repo}/actions/grant_pull/");
        let reply = self.api.post(&path, &who).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
}

const BOTH: &str = "service=registry&scope=repository:test/a:pull&scope=repository:test/b:pull,push";

#[tokio::test]
async fn a_token_opens_what_was_asked_for_and_may_be_had() {
    let (bed, secret) = Bed::new().await;
    let ann = ("ann", "secret");
    let ci = ("robot+ci", secret.as_str());
    assert_eq!(bed.names(BOTH, ann).await, "");
    bed.grant("a", json!({"login": "ann"})).await;
    bed.grant("b", json!({"robot": "ci"})).await;
    assert_eq!(bed.names(BOTH, ann).await, "test/a");
    assert_eq!(bed.names(BOTH, ci).await, "test/b");
    assert_eq!(bed.names("scope=repository:test/b:pull", ann).await, "");
    // Several in one, as OAuth 2 has it.
    assert_eq!(
        bed.names("scope=repository:test/a:pull%20repository:test/b:pull", ann)
            .await,
        "test/a"
    );
    // No scope: a login.
    let pulls = bed.pulls(&bed.get("account=ann&service=registry", Some(ann)).await);
    assert_eq!((pulls.subject.as_str(), pulls.repositories.len()), ("ann", 0));
    // Members of super-users pull everything, also what was not published from here.
    let query = "scope=repository:test/a:pull&scope=repository:elsewhere:pull";
    assert_eq!(bed.names(query, ("admin", "admin")).await, "elsewhere test/a");
    // A right ends with the next token.
    let path = "/repositories/a/actions/revoke_pull/";
    let revoked = bed.api.post(path, &json!({"login": "ann"})).await;
    assert_eq!(revoked.status, 200);
    assert_eq!(bed.names(BOTH, ann).await, "");
}

#[tokio::test]
async fn without_credentials_a_token_of_nobody_is_given_out() {
    let (bed, _) = Bed::new().await;
    let pulls = bed.pulls(&bed.get(BOTH, None).await);
    assert_eq!((pulls.subject.as_str(), pulls.repositories.len()), ("", 0));
}

#[tokio::test]
async fn wrong_credentials_are_told_alike_in_the_words_that_clients_show() {
    let (bed, secret) = Bed::new().await;
    for (name, secret) in [
        ("ann", "wrong"),
        ("nobody", "secret"),
        ("robot+ci", "wrong"),
        ("robot+ci", ""),
        ("robot+none", secret.as_str()),
        ("ci", secret.as_str()),
        ("robot+", "x"),
        ("no login", "x"),
    ] {
        let reply = bed.get(BOTH, Some((name, secret))).await;
        assert_eq!(reply.status, 401, "{name}");
        let error = &reply.body["errors"][0];
        assert_eq!(error["code"], "UNAUTHORIZED");
        assert_eq!(error["message"], "incorrect username or password");
        assert!(!reply.body.to_string().contains("PLP"));
    }
    for header in ["", "Basic", "Basic !!!", "Bearer x"] {
        let request = Request::get("/token").header("authorization", header);
        let reply = bed.api.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(reply.status, 401, "{header}");
    }
}

#[tokio::test]
async fn a_robots_secret_ends_when_it_is_renewed_when_its_time_is_over_and_with_the_robot() {
    let (bed, secret) = Bed::new().await;
    let status = async |secret: &str| bed.get(BOTH, Some(("robot+ci", secret))).await.status.as_u16();
    assert_eq!(status(&secret).await, 200);
    let renewed = bed.api.post("/robots/ci/actions/renew_secret/", &json!({})).await;
    let second = renewed.body["secret"].as_str().unwrap();
    assert_eq!((status(&secret).await, status(second).await), (401, 200));
    assert_eq!(bed.api.delete("/robots/ci/").await.status, 200);
    assert_eq!(status(second).await, 401);
    for (expires, expected) in [("2001-01-01T00:00:00Z", 401), ("2101-01-01T00:00:00Z", 200)] {
        let body = json!({"name": "ci", "expires": expires});
        let made = bed.api.post("/robots/", &body).await;
        assert_eq!(status(made.body["secret"].as_str().unwrap()).await, expected);
        assert_eq!(bed.api.delete("/robots/ci/").await.status, 200);
    }
}

#[tokio::test]
async fn a_form_of_oauth_gives_the_same_and_its_own_errors() {
    let (bed, _) = Bed::new().await;
    bed.grant("a", json!({"login": "ann"})).await;
    let form = "grant_type=password&service=registry&client_id=x&username=ann&password=secret\
                &scope=repository%3Atest%2Fa%3Apull+repository%3Atest%2Fb%3Apull";
    let reply = bed.post(form).await;
    assert_eq!(bed.pulls(&reply).repositories.len(), 1);
    assert_eq!(reply.body["scope"], "repository:test/a:pull");
    for (form, status, error) in [
        ("", 400, "unsupported_grant_type"),
        (
            "grant_type=refresh_token&refresh_token=x&service=registry",
            400,
            "unsupported_grant_type",
        ),
        ("grant_type=password&username=ann", 400, "invalid_request"),
        (
            "grant_type=password&username=ann&password=wrong",
            401,
            "invalid_grant",
        ),
        (
            "grant_type=password&username=ann&password=secret&service=other",
            400,
            "invalid_request",
        ),
    ] {
        let reply = bed.post(form).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.body["error"]),
            (status, &json!(error)),
            "{form}"
        );
        assert!(reply.body["errors"][0]["message"].is_string());
    }
    let large = format!("grant_type=password&username={}", "a".repeat(100_000));
    let request = Request::post("/token").body(Body::from(large)).unwrap();
    assert_eq!(bed.api.status_of(request).await, 413);
}

#[tokio::test]
async fn a_token_for_another_registry_is_refused_with_what_to_change() {
    let (bed, _) = Bed::new().await;
    let reply = bed.get("service=other", Some(("ann", "secret"))).await;
    assert_eq!(reply.status, 400);
    assert!(
        reply.body["errors"][0]["message"]
            .as_str()
            .unwrap()
            .contains("token.service")
    );
}

#[tokio::test]
async fn without_a_key_there_is_no_token_endpoint() {
    let api = Api::new().await;
    let request = Request::get("/token").body(Body::empty()).unwrap();
    assert_eq!(api.send(request).await.status, 404);
}

#[tokio::test]
async fn robots_and_rights_are_managed_by_super_users_and_show_no_secret() {
    let (bed, secret) = Bed::new().await;
    bed.grant("a", json!({"robot": "ci"})).await;
    bed.grant("a", json!({"login": "ann"})).await;
    // Once more changes nothing.
    bed.grant("a", json!({"login": "ann"})).await;
    let rights = bed.api.get("/repositories/a/pull_rights/").await;
    assert_eq!(rights.body, json!([{"login": "ann"}, {"robot": "ci"}]));
    let robot = bed.api.get("/robots/ci/").await;
    assert_eq!(robot.body["login"], "robot+ci");
    assert_eq!(robot.body["repositories"], json!(["a"]));
    let list = bed.api.get("/robots/").await.body;
    assert_eq!(list[0]["name"], "ci");
    assert!(!list.to_string().contains(&secret) && !list.to_string().contains("hash"));

    for (path, body, status) in [
        (
            "/repositories/none/actions/grant_pull/",
            json!({"login": "ann"}),
            404,
        ),
        (
            "/repositories/a/actions/grant_pull/",
            json!({"login": "nobody"}),
            400,
        ),
        (
            "/repositories/a/actions/grant_pull/",
            json!({"robot": "none"}),
            400,
        ),
        ("/repositories/a/actions/grant_pull/", json!({}), 400),
        (
            "/repositories/a/actions/grant_pull/",
            json!({"login": "ann", "robot": "ci"}),
            400,
        ),
        (
            "/repositories/a/actions/grant_pull/",
            json!({"login": "ann", "push": true}),
            400,
        ),
        (
            "/repositories/a/actions/revoke_pull/",
            json!({"robot": "none"}),
            200,
        ),
        ("/robots/", json!({"name": "ci"}), 409),
        ("/robots/", json!({"name": "a+b"}), 400),
        ("/robots/", json!({"name": "x", "expires": "tomorrow"}), 400),
        ("/robots/none/actions/renew_secret/", json!({}), 404),
    ] {
        let reply = bed.api.post(path, &body).await;
        assert_eq!(reply.status.as_u16(), status, "{path} {body} {}", reply.body);
    }
    for (method, path) in [
        ("POST", "/robots/"),
        ("DELETE", "/robots/ci/"),
        ("POST", "/robots/ci/actions/renew_secret/"),
        ("POST", "/repositories/a/actions/grant_pull/"),
        ("POST", "/repositories/a/actions/revoke_pull/"),
        ("DELETE", "/users/ann/"),
    ] {
        let reply = bed.api.basic("ann", "secret", method, path).await;
        assert_eq!(reply.code(), "PLP0026", "{method} {path}");
    }
    // A robot pulls, and does nothing else.
    let reply = bed.api.basic("robot+ci", &secret, "GET", "/repositories/").await;
    assert_eq!(reply.status, 401);
}

#[tokio::test]
async fn a_user_is_deleted_with_the_rights_but_never_the_last_super_user() {
    let (bed, _) = Bed::new().await;
    bed.grant("a", json!({"login": "ann"})).await;
    assert_eq!(bed.api.delete("/users/ann/").await.status, 200);
    assert_eq!(bed.api.delete("/users/ann/").await.status, 404);
    assert_eq!(bed.api.get("/repositories/a/pull_rights/").await.body, json!([]));
    assert_eq!(bed.get(BOTH, Some(("ann", "secret"))).await.status, 401);
    assert_eq!(bed.api.delete("/users/admin/").await.status, 400);
}
