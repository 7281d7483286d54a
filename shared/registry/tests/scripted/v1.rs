//! The client against an index and endpoints of version 1 that follow a script.

use std::time::Duration;

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use pulp_model::{Digest, unit::ImageId};
use pulp_registry::{
    Client, ClientOptions, Credentials, RegistryError, Retries, V1Checksums, V1Layer, V1Repository,
};
use serde_json::json;

use crate::upstream::{Log, Seen, name, ok, status, upstream};

/// A server, and what it has seen.
struct Server {
    host: String,
    log: Log,
}

impl Server {
    /// `script` answers from the number of earlier requests for the same path, and the request.
    async fn start(script: impl Fn(usize, &Seen) -> Response + Send + Sync + 'static) -> Self {
        let (base, log) = upstream(script).await;
        let host = base.trim_start_matches("http://").to_owned();
        Self { host, log }
    }

    fn seen(&self) -> Vec<Seen> {
        self.log.lock().unwrap().clone()
    }

    fn client(&self, login: bool) -> Client {
        let options = ClientOptions {
            credentials: login.then(|| Credentials {
                login: "me".to_owned(),
                password: "secret".to_owned(),
            }),
            retries: Retries {
                first: Duration::from_millis(1),
                ..Retries::default()
            },
            idle_timeout: Duration::from_millis(500),
            ..ClientOptions::default()
        };
        Client::new(&format!("http://{}", self.host), options).unwrap()
    }
}

fn id() -> ImageId {
    "a".repeat(64).parse().unwrap()
}

/// An index that names these endpoints and gives this token.
fn index(endpoints: &str, token: &str) -> Response {
    let list = json!([{"id": id()}]).to_string();
    Response::builder()
        .header("x-docker-endpoints", endpoints)
        .header("x-docker-token", token)
        .body(Body::from(list))
        .unwrap()
}

async fn open(server: &Server, login: bool) -> V1Repository {
    server.client(login).v1(&name()).await.unwrap()
}

fn tags() -> Response {
    ok(json!({"latest": "aaaa"}).to_string())
}

#[tokio::test]
async fn endpoints_are_asked_in_turn_and_the_one_that_answers_is_asked_first_from_then_on() {
    let nonsense = Server::start(|_, _| ok("<html>welcome</html>")).await;
    let good = Server::start(|_, seen| match seen.target.as_str() {
        "/v1/repositories/a/b/tags" => tags(),
        path if path.ends_with("/ancestry") => ok(json!([id()]).to_string()),
        _ => status(404),
    })
    .await;
    let named = format!("127.0.0.1:1,{},{}", nonsense.host, good.host);
    let server = Server::start(move |_, _| index(&named, "t")).await;
    let repository = open(&server, false).await;
    let found = repository.tags().await.unwrap();
    assert_eq!(
        found.into_values().next(),
        Some(Ok(id())),
        "its abbreviation stands for it"
    );
    assert_eq!(repository.ancestry(&id()).await.unwrap(), [id()]);
    assert_eq!((nonsense.seen().len(), good.seen().len()), (1, 2));
    // An endpoint that is not there now may have what the others don't.
    let missing = repository.json(&id()).await.unwrap_err();
    assert!(matches!(missing, RegistryError::Transport { .. }), "{missing}");
    let asked = good
        .seen()
        .into_iter()
        .filter(|s| s.target.ends_with("/json"))
        .count();
    assert_eq!(asked, 5);
}

#[tokio::test]
async fn the_password_goes_to_the_index_alone_whatever_others_ask_for() {
    let stranger = Server::start(|_, _| {
        Response::builder()
            .status(401)
            .header("www-authenticate", "Basic realm=\"give it to me\"")
            .body(Body::empty())
            .unwrap()
    })
    .await;
    let named = stranger.host.clone();
    let server = Server::start(move |_, seen| match seen.header("authorization") {
        None => status(401),
        Some(_) => index(&named, "the token"),
    })
    .await;
    let repository = open(&server, true).await;
    let error = repository.tags().await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
    assert!(
        !format!("{repository:?}{error}").contains("the token"),
        "nor is it shown"
    );
    for seen in stranger.seen() {
        assert_eq!(seen.header("authorization"), Some("Token the token"));
        assert!(!seen.headers.contains_key("x-docker-token"));
    }
    let logins = server
        .seen()
        .into_iter()
        .map(|s| s.header("authorization").map(ToOwned::to_owned))
        .collect::<Vec<_>>();
    let basic = Some("Basic bWU6c2VjcmV0".to_owned());
    assert_eq!(logins[..2], [None, basic.clone()]);
    assert!(
        logins[2..].iter().all(|login| *login == basic),
        "another token is asked for once: {logins:?}"
    );
    assert!(
        server
            .seen()
            .iter()
            .all(|s| s.headers["x-docker-token"] == "true")
    );
}

#[tokio::test]
async fn a_token_that_has_ended_is_replaced_once_for_all_and_an_endless_refusal_is_final() {
    let endpoint = Server::start(|_, seen| match seen.header("authorization") {
        Some("Token 1") => tags(),
        _ => status(401),
    })
    .await;
    let named = endpoint.host.clone();
    let server = Server::start(move |earlier, _| index(&named, &earlier.to_string())).await;
    let repository = open(&server, false).await;
    let all = futures::future::join_all((0..5).map(|_| repository.tags())).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!(server.seen().len(), 2, "one other token does for all");

    let never = Server::start(|_, _| status(401)).await;
    let named = never.host.clone();
    let server = Server::start(move |earlier, _| index(&named, &earlier.to_string())).await;
    let error = open(&server, false).await.tags().await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
    assert_eq!(never.seen().len(), 2);
}

#[tokio::test]
async fn an_index_that_fails_when_a_token_has_ended_is_asked_as_often_as_any_other_request() {
    let endpoint = Server::start(|_, _| status(401)).await;
    let named = endpoint.host.clone();
    let server = Server::start(move |earlier, _| match earlier {
        0 => index(&named, "t"),
        _ => status(503),
    })
    .await;
    let error = open(&server, false).await.tags().await.unwrap_err();
    assert!(
        matches!(error, RegistryError::Status { status: 503, .. }),
        "{error}"
    );
    assert_eq!((server.seen().len(), endpoint.seen().len()), (6, 5));
}

#[tokio::test]
async fn an_index_that_is_its_own_endpoint_may_want_the_password_there_and_a_redirect_elsewhere_hears_nothing()
 {
    let elsewhere = Server::start(|_, _| ok("bytes")).await;
    let to = format!("http://{}/blob", elsewhere.host);
    let server = Server::start(move |_, seen| {
        if seen.header("authorization") != Some("Basic bWU6c2VjcmV0") {
            return status(401);
        }
        match seen.target.as_str() {
            "/v1/repositories/a/b/images" => ok(json!([{"id": id()}]).to_string()),
            "/v1/repositories/a/b/tags" => tags(),
            _ => Response::builder()
                .status(302)
                .header("location", &to)
                .body(Body::empty())
                .unwrap(),
        }
    })
    .await;
    let repository = open(&server, true).await;
    assert_eq!(repository.tags().await.unwrap().len(), 1);
    let layer = repository.layer(&id(), &V1Checksums::default()).await.unwrap();
    assert_eq!(read(layer).await.unwrap(), b"bytes");
    assert_eq!(elsewhere.seen()[0].header("authorization"), None);
}

async fn read(mut layer: V1Layer) -> Result<Vec<u8>, RegistryError> {
    let mut all = Vec::new();
    while let Some(bytes) = layer.next().await? {
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}

#[tokio::test]
async fn a_layer_that_breaks_off_or_has_another_checksum_than_told_is_an_error() {
    let json = json!({"id": id()}).to_string();
    let told = Digest::sha256(format!("{json}\na layer"));
    let server = Server::start(move |earlier, seen| match seen.target.rsplit('/').next() {
        Some("images") => ok("[]"),
        Some("json") => Response::builder()
            .header("x-docker-checksum-payload", told.to_string())
            .header("x-docker-size", "7")
            .body(Body::from(json.clone()))
            .unwrap(),
        _ => match earlier {
            0 => ok("a layer"),
            1 => ok("another"),
            _ => {
                let some = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"a "))]);
                let body = Body::from_stream(some.chain(stream::pending()));
                Response::builder()
                    .header("content-length", 7)
                    .body(body)
                    .unwrap()
            }
        },
    })
    .await;
    let repository = open(&server, false).await;
    let json = repository.json(&id()).await.unwrap();
    assert_eq!(json.layer_bytes, Some(7));
    let layer = async || read(repository.layer(&id(), &json.checksums).await.unwrap()).await;
    assert_eq!(layer().await.unwrap(), b"a layer");
    assert!(matches!(
        layer().await.unwrap_err(),
        RegistryError::Mismatch { .. }
    ));
    assert!(matches!(
        layer().await.unwrap_err(),
        RegistryError::Interrupted { received: 2, .. }
    ));
}

#[tokio::test]
async fn what_a_registry_refuses_for_a_while_is_asked_for_again_and_documents_have_a_limit() {
    let server = Server::start(|earlier, seen| match seen.target.rsplit('/').next() {
        Some("_ping") if earlier == 0 => status(503),
        Some("_ping") => ok("true"),
        Some("images") => ok("null"),
        Some("ancestry") => ok(vec![b' '; 200_000]),
        _ if earlier == 0 => status(500),
        _ => tags(),
    })
    .await;
    let client = server.client(false);
    client.v1_ping().await.unwrap();
    let repository = client.v1(&name()).await.unwrap();
    assert!(repository.images().is_empty());
    let found = repository.tags().await.unwrap();
    assert!(
        found.into_values().all(|id| id.is_err()),
        "an abbreviation of nothing that is listed"
    );
    let error = repository.ancestry(&id()).await.unwrap_err();
    assert!(matches!(error, RegistryError::Protocol { .. }), "{error}");
    assert_eq!(client.requests().images, 4);
}
