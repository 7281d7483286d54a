//! Tokens and passwords, and registries that don't answer.

use std::time::Duration;

use pulp_registry::{Client, ClientOptions, Discard, RegistryError};

use crate::server::{Answer, Registry, name, options, reference, two_images};

#[tokio::test]
async fn a_bearer_challenge_is_answered_once_for_a_whole_pull() {
    let (registry, client) = Registry::start().await;
    two_images(&registry);
    registry.set("/token", Answer::ok(r#"{"token":"t0k3n","expires_in":300}"#));
    *registry.guard.lock().unwrap() = Some((
        "Bearer t0k3n".into(),
        r#"Bearer realm="/token",service="s""#.into(),
    ));
    client
        .pull(&name(), &reference("latest"), &Discard)
        .await
        .unwrap();
    assert_eq!(
        registry.requests("GET /token?service=s&scope=repository%3Aa%2Fb%3Apull None"),
        1
    );
    client.tags(&"c".parse().unwrap()).await.unwrap_err();
    assert_eq!(
        registry.requests("/token"),
        2,
        "another repository needs a token of its own"
    );
}

#[tokio::test]
async fn basic_credentials_are_sent_only_when_asked_for() {
    let (registry, anonymous) = Registry::start().await;
    registry.set("/v2/", Answer::ok("{}"));
    let base = format!("{anonymous:?}").split('"').nth(1).unwrap().to_owned();
    let client = Client::new(&base, options(Some(("user", "secret")))).unwrap();
    client.ping().await.unwrap();
    assert_eq!(registry.requests("Basic"), 0);
    // user:secret
    *registry.guard.lock().unwrap() = Some(("Basic dXNlcjpzZWNyZXQ=".into(), r#"Basic realm="r""#.into()));
    client.ping().await.unwrap();
    let error = anonymous.ping().await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
    let wrong = Client::new(&base, options(Some(("user", "wr0ng")))).unwrap();
    let error = wrong.ping().await.unwrap_err();
    assert!(
        error.to_string().contains("who are you") && !error.to_string().contains("wr0ng"),
        "{error}"
    );
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_told_with_its_cause() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = Client::new(&base, options(None))
        .unwrap()
        .ping()
        .await
        .unwrap_err();
    assert!(error.is_retryable());
    let text = error.to_string();
    assert!(
        text.contains(&base) && text.to_lowercase().contains("refused"),
        "{text}"
    );
}

#[tokio::test]
async fn a_registry_that_never_answers_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let options = ClientOptions {
        document_timeout: Duration::from_millis(200),
        ..options(None)
    };
    let error = Client::new(&base, options).unwrap().ping().await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    drop(listener);
}
