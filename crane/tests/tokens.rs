//! Protected repositories by tokens, checked with public keys alone.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/authority.rs"]
mod authority;
mod common;

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use authority::{Ca, entitlement};
use common::{Client, Reply, Site};
use http::Method;
use pulp_crane::{Challenge, Crane, CraneConfig, Entitlements, Mode, TokenService, run};
use pulp_token::Signer;
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

const LIMIT: Duration = Duration::from_secs(30);

struct Registry {
    site: Site,
    signer: Signer,
}

impl Registry {
    /// With `open` and, if asked for, `secret` and `other/secret`, which are protected.
    fn new(protected: bool) -> Self {
        let site = Site::new();
        site.publish(&site.image("open", "open", "a").contents);
        if protected {
            for (repository, name) in [("secret", "secret"), ("other", "other/secret")] {
                let mut secret = site.image(repository, name, "b").contents;
                secret.protected = true;
                site.publish(&secret);
            }
        }
        let signer = Self::key(&site, "first");
        fs::write(site.dir.path().join("public.pem"), signer.public_pem()).unwrap();
        Self { site, signer }
    }

    fn key(site: &Site, name: &str) -> Signer {
        let path = site.dir.path().join(format!("{name}.pem"));
        Signer::generate(&path).unwrap();
        Signer::open(&path, "pulp", "registry", Duration::from_mins(5)).unwrap()
    }

    fn public(&self) -> PathBuf {
        self.site.dir.path().join("public.pem")
    }

    fn config(&self, challenge: Challenge) -> CraneConfig {
        CraneConfig {
            tokens: Some(TokenService {
                realm: Some("https://pulp.example.com/token".into()),
                service: "registry".into(),
                issuer: "pulp".into(),
                public_keys: vec![self.public()],
                challenge,
            }),
            reload_interval: Duration::from_millis(20),
            ..self.site.config(Mode::SERVE)
        }
    }

    fn client(&self) -> Client {
        Client(Crane::open(self.config(Challenge::Protected)).router())
    }

    fn bearer(&self, names: &[&str]) -> String {
        bearer(&self.signer, names, SystemTime::now())
    }
}

fn bearer(signer: &Signer, names: &[&str], now: SystemTime) -> String {
    let names: BTreeSet<_> = names.iter().map(|n| n.parse().unwrap()).collect();
    let ann = "ann".parse().unwrap();
    format!("Bearer {}", signer.sign(Some(&ann), &names, now).unwrap().token)
}

async fn get(client: &Client, uri: &str, authorization: Option<&str>) -> Reply {
    let headers: Vec<_> = authorization.map(|a| ("authorization", a)).into_iter().collect();
    client.ask(Method::GET, uri, &headers).await
}

const REALM: &str = "Bearer realm=\"https://pulp.example.com/token\",service=\"registry\"";

#[tokio::test]
async fn a_token_opens_the_repositories_that_it_names() {
    let registry = Registry::new(true);
    let client = registry.client();
    let token = registry.bearer(&["secret"]);
    let digest = registry.site.image("secret", "secret", "b").layer;
    for uri in [
        "/v2/secret/manifests/latest".to_owned(),
        "/v2/secret/tags/list".to_owned(),
        format!("/v2/secret/blobs/{digest}"),
        "/v2/".to_owned(),
    ] {
        assert_eq!(get(&client, &uri, Some(&token)).await.status, 200, "{uri}");
        assert_eq!(get(&client, &uri, None).await.status, 401, "{uri}");
    }
    // The scheme in any case; caches of many keep nothing.
    let lower = token.replacen("Bearer", "bearer", 1);
    let reply = get(&client, "/v2/secret/manifests/latest", Some(&lower)).await;
    assert_eq!(reply.header("cache-control"), Some("private, no-cache"));
    let reply = get(&client, "/v2/other/secret/manifests/latest", Some(&token)).await;
    assert_eq!(reply.status, 401);
    // Lists show what the client may see.
    for (authorization, shown) in [(None, false), (Some(token.as_str()), true)] {
        let catalog = get(&client, "/v2/_catalog", authorization).await.json();
        let names = catalog["repositories"].to_string();
        assert_eq!(names.contains("\"secret\""), shown, "{names}");
        assert!(
            !names.contains("other/secret") && names.contains("open"),
            "{names}"
        );
    }
    // Two headers, of which one isn't the client's.
    let both = [("authorization", token.as_str()), ("authorization", "Bearer x")];
    let reply = client
        .ask(Method::GET, "/v2/secret/manifests/latest", &both)
        .await;
    assert_eq!(reply.status, 401);
}

#[tokio::test]
async fn denied_looks_like_absent_and_both_tell_where_to_get_a_token() {
    let registry = Registry::new(true);
    let client = registry.client();
    let ended = bearer(
        &registry.signer,
        &["secret"],
        SystemTime::now() - Duration::from_hours(1),
    );
    let scope = ",scope=\"repository:secret:pull\"";
    for (authorization, suffix, code) in [
        (None, "", "UNAUTHORIZED"),
        (Some("Basic YTpi".to_owned()), "", "UNAUTHORIZED"),
        (
            Some("Bearer nonsense".to_owned()),
            ",error=\"invalid_token\"",
            "UNAUTHORIZED",
        ),
        (Some(ended), ",error=\"invalid_token\"", "UNAUTHORIZED"),
        (
            Some("Bearer anonymous".to_owned()),
            ",error=\"insufficient_scope\"",
            "DENIED",
        ),
        (
            Some(registry.bearer(&["other/secret"])),
            ",error=\"insufficient_scope\"",
            "DENIED",
        ),
    ] {
        let authorization = authorization.as_deref();
        for path in ["manifests/latest", "tags/list", "manifests/none"] {
            let reply = get(&client, &format!("/v2/secret/{path}"), authorization).await;
            assert_eq!(reply.status, 401, "{authorization:?} {path}");
            assert_eq!(
                reply.header("www-authenticate"),
                Some(format!("{REALM}{scope}{suffix}").as_str())
            );
            assert_eq!(reply.json()["errors"][0]["code"], code, "{authorization:?}");
            assert_eq!(
                reply.header("docker-distribution-api-version"),
                Some("registry/2.0")
            );
            let absent = get(&client, &format!("/v2/absent/{path}"), authorization).await;
            let told = |reply: &Reply| {
                let challenge = reply.header("www-authenticate").unwrap().to_owned();
                let text = format!("{} {challenge} {}", reply.status, reply.json());
                text.replace("absent", "secret")
            };
            assert_eq!(told(&absent), told(&reply));
        }
        let headers: Vec<_> = authorization.map(|a| ("authorization", a)).into_iter().collect();
        let head = client
            .ask(Method::HEAD, "/v2/secret/manifests/latest", &headers)
            .await;
        assert_eq!((head.status.as_u16(), head.body.len()), (401, 0));
        assert!(head.header("www-authenticate").is_some());
        // What can be no name is told as ever.
        assert_eq!(
            get(&client, "/v2/Bad_/tags/list", authorization).await.status,
            400
        );
    }
}

#[tokio::test]
async fn what_is_open_needs_no_token_and_minds_none() {
    let registry = Registry::new(true);
    let client = registry.client();
    for authorization in [
        None,
        Some("Bearer nonsense"),
        Some("Bearer anonymous"),
        Some("Basic YTpi"),
    ] {
        let reply = get(&client, "/v2/open/manifests/latest", authorization).await;
        assert_eq!(reply.status, 200, "{authorization:?}");
        assert_eq!(reply.header("www-authenticate"), None);
    }
}

#[tokio::test]
async fn the_ping_asks_for_a_token_as_long_as_it_can_be_of_use() {
    for (protected, challenge, asks) in [
        (true, Challenge::Protected, true),
        (false, Challenge::Protected, false),
        (false, Challenge::Always, true),
    ] {
        let registry = Registry::new(protected);
        let client = Client(Crane::open(registry.config(challenge)).router());
        let ping = client.get("/v2/").await;
        assert_eq!(ping.status, if asks { 401 } else { 200 }, "{challenge:?}");
        assert_eq!(ping.header("www-authenticate"), asks.then_some(REALM));
        let absent = client.get("/v2/absent/tags/list").await;
        assert_eq!(absent.status, if asks { 401 } else { 404 }, "{challenge:?}");
        for good in ["Bearer anonymous".to_owned(), registry.bearer(&[])] {
            assert_eq!(get(&client, "/v2/", Some(&good)).await.status, 200, "{good}");
        }
        if asks {
            let bad = get(&client, "/v2/", Some("Bearer nonsense")).await;
            assert_eq!(
                bad.header("www-authenticate"),
                Some(format!("{REALM},error=\"invalid_token\"").as_str())
            );
        }
    }
}

#[tokio::test]
async fn without_a_realm_clients_are_sent_to_the_host_they_came_to() {
    let registry = Registry::new(true);
    let mut config = registry.config(Challenge::Protected);
    config.tokens.as_mut().unwrap().realm = None;
    let client = Client(Crane::open(config).router());
    for (host, realm) in [
        ("crane.example.com:5000", "http://crane.example.com:5000/token"),
        ("[::1]:5000", "http://[::1]:5000/token"),
        ("evil\",service=\"x", "http://evilservicex/token"),
    ] {
        let request = http::Request::get("/v2/").header("host", host);
        let request = request.body(axum::body::Body::empty()).unwrap();
        let reply = client.0.clone().oneshot(request).await.unwrap();
        assert_eq!(
            reply.headers()["www-authenticate"],
            format!("Bearer realm=\"{realm}\",service=\"registry\"")
        );
    }
}

#[tokio::test]
async fn who_has_no_credentials_gets_a_token_of_nobody_from_crane_itself() {
    let registry = Registry::new(true);
    let client = registry.client();
    let reply = client
        .get("/token?service=registry&scope=repository:secret:pull")
        .await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    let token = format!("Bearer {}", reply.json()["token"].as_str().unwrap());
    assert_eq!(get(&client, "/v2/", Some(&token)).await.status, 200);
    assert_eq!(get(&client, "/v2/open/tags/list", Some(&token)).await.status, 200);
    assert_eq!(
        get(&client, "/v2/secret/tags/list", Some(&token)).await.status,
        401
    );
    // Credentials can't be checked without the API.
    assert_eq!(get(&client, "/token", Some("Basic YTpi")).await.status, 401);
    assert_eq!(client.ask(Method::POST, "/token", &[]).await.status, 401);
    // Without tokens there is no such path.
    let client = registry.site.client();
    assert_eq!(client.get("/token").await.status, 404);
    assert_eq!(client.get("/v2/secret/tags/list").await.status, 404);
    let token = registry.bearer(&["secret"]);
    assert_eq!(
        get(&client, "/v2/secret/tags/list", Some(&token)).await.status,
        404
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_replaced_without_a_restart_and_what_can_not_be_read_leaves_those_before() {
    let registry = Registry::new(true);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v2/secret/tags/list", listener.local_addr().unwrap());
    let shutdown = CancellationToken::new();
    let crane = tokio::spawn(run(
        registry.config(Challenge::Protected),
        listener,
        shutdown.clone(),
    ));
    let status = async |token: &str| {
        let request = reqwest::Client::new().get(&url).header("authorization", token);
        request.send().await.unwrap().status().as_u16()
    };
    let becomes = async |token: &str, wanted: u16| {
        let wait = async { while status(token).await != wanted {} };
        timeout(LIMIT, wait).await.unwrap();
    };
    let old = registry.bearer(&["secret"]);
    let second = Registry::key(&registry.site, "second");
    let new = bearer(&second, &["secret"], SystemTime::now());
    assert_eq!((status(&old).await, status(&new).await), (200, 401));
    let both = registry.signer.public_pem() + &second.public_pem();
    fs::write(registry.public(), &both).unwrap();
    becomes(&new, 200).await;
    assert_eq!(status(&old).await, 200);
    fs::write(registry.public(), "nothing").unwrap();
    assert_eq!(status(&new).await, 200);
    fs::write(registry.public(), second.public_pem()).unwrap();
    becomes(&old, 401).await;
    assert_eq!(status(&new).await, 200);
    shutdown.cancel();
    timeout(LIMIT, crane).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entitlement_or_a_token_opens_either_is_enough() {
    let registry = Registry::new(true);
    let dir = registry.site.dir.path();
    let ca = Ca::new();
    fs::write(dir.join("ca.pem"), &ca.pem).unwrap();
    let (certificate, _) = ca.sign(&entitlement("/pulp/docker/v2/secret", 1));
    let certificate =
        percent_encoding::utf8_percent_encode(&certificate, percent_encoding::NON_ALPHANUMERIC).to_string();
    let mut config = registry.config(Challenge::Protected);
    config.entitlements = Some(Entitlements {
        ca: dir.join("ca.pem"),
        crl: None,
        trusted_proxies: vec!["127.0.0.0/8".parse().unwrap()],
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/v2", listener.local_addr().unwrap());
    let shutdown = CancellationToken::new();
    let crane = tokio::spawn(run(config, listener, shutdown.clone()));
    let status = async |path: &str, certificate: Option<&str>, token: Option<&str>| {
        let mut request = reqwest::Client::new().get(format!("{base}{path}"));
        if let Some(certificate) = certificate {
            request = request.header("ssl-client-cert", certificate);
        }
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        request.send().await.unwrap().status().as_u16()
    };
    let certificate = Some(certificate.as_str());
    let (right, other) = (registry.bearer(&["secret"]), registry.bearer(&["other/secret"]));
    let secret = "/secret/tags/list";
    assert_eq!(status(secret, None, None).await, 401);
    assert_eq!(status(secret, certificate, None).await, 200);
    assert_eq!(status(secret, None, Some(&right)).await, 200);
    assert_eq!(status(secret, certificate, Some(&other)).await, 200);
    assert_eq!(status(secret, certificate, Some("Bearer anonymous")).await, 200);
    assert_eq!(
        status("/other/secret/tags/list", certificate, Some(&other)).await,
        200
    );
    assert_eq!(status("/other/secret/tags/list", certificate, None).await, 401);
    // Who is entitled by a certificate is not sent for a token.
    assert_eq!(status("/", certificate, None).await, 200);
    assert_eq!(status("/", None, None).await, 401);
    shutdown.cancel();
    timeout(LIMIT, crane).await.unwrap().unwrap().unwrap();
}
