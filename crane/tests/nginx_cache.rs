//! Debian's nginx as a cache, set up as docs/crane.md has it: what never changes is kept, tags are asked for each
//! time, and what is protected is kept for nobody.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/nginx.rs"]
mod nginx;

use std::{fs, time::Duration};

use common::Site;
use nginx::{LIMIT, Nginx, header};
use pulp_crane::{Challenge, CraneConfig, Mode, TokenService};
use pulp_token::Signer;
use reqwest::{Client, Response};
use tokio::time::timeout;

fn configuration(dir: &str, port: u16, crane: std::net::SocketAddr) -> String {
    format!(
        r"  proxy_cache_path {dir}/cache keys_zone=crane:1m max_size=1g inactive=90d use_temp_path=off;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://{crane};
      proxy_http_version 1.1;
      proxy_set_header Connection '';
      proxy_set_header Host $http_host;
      proxy_cache crane;
      proxy_cache_key $request_method$host$uri$is_args$args;
      proxy_cache_convert_head off;
      proxy_cache_lock on;
      proxy_cache_lock_timeout 10m;
      proxy_cache_bypass $http_authorization;
      proxy_no_cache $http_authorization;
      add_header X-Cache-Status $upstream_cache_status;
    }}
  }}
"
    )
}

/// Status, and what the cache did.
fn told(reply: &Response) -> (u16, &str) {
    (reply.status().as_u16(), header(reply, "x-cache-status"))
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_keeps_what_never_changes_and_asks_for_tags_each_time() {
    let Some(program) = nginx::program() else {
        return;
    };
    let site = Site::new();
    let first = site.image("open", "open", "a");
    site.publish(&first.contents);
    let mut secret = site.image("secret", "secret", "s");
    secret.contents.protected = true;
    site.publish(&secret.contents);
    let dir = site.dir.path();
    Signer::generate(&dir.join("key.pem")).unwrap();
    let signer = Signer::open(&dir.join("key.pem"), "pulp", "registry", Duration::from_mins(5)).unwrap();
    fs::write(dir.join("public.pem"), signer.public_pem()).unwrap();
    let config = CraneConfig {
        tokens: Some(TokenService {
            realm: None,
            service: "registry".into(),
            issuer: "pulp".into(),
            public_keys: vec![dir.join("public.pem")],
            challenge: Challenge::Protected,
        }),
        ..site.config(Mode::SERVE)
    };
    let mut nginx = Nginx::start(program, dir, config, |port, crane| {
        configuration(dir.to_str().unwrap(), port, crane)
    })
    .await;
    let port = nginx.port;
    let client = Client::builder().timeout(LIMIT).build().unwrap();
    let base = format!("http://127.0.0.1:{port}/v2");
    nginx.is_up(&client, &format!("{base}/open/tags/list")).await;
    let get = async |path: &str| client.get(format!("{base}{path}")).send().await.unwrap();

    // What never changes. A HEAD fetches no layer, and a range is cut from what is kept.
    let blob = format!("/open/blobs/{}", first.layer);
    let manifest = format!("/open/manifests/{}", first.manifest);
    let head = client.head(format!("{base}{blob}")).send().await.unwrap();
    assert_eq!(told(&head), (200, "MISS"));
    for path in [&blob, &manifest] {
        let digest = path.rsplit('/').next().unwrap();
        for cache in ["MISS", "HIT"] {
            let reply = get(path).await;
            assert_eq!(told(&reply), (200, cache), "{path}");
            assert_eq!(header(&reply, "docker-content-digest"), digest);
            assert_eq!(header(&reply, "etag"), format!("\"{digest}\""));
            let bytes = reply.bytes().await.unwrap();
            assert_eq!(pulp_model::Digest::sha256(&bytes).to_string(), digest);
        }
    }
    let part = client.get(format!("{base}{blob}")).header("range", "bytes=5-9");
    let part = part.send().await.unwrap();
    assert_eq!(told(&part), (206, "HIT"));
    assert_eq!(part.bytes().await.unwrap(), first.layer_bytes[5..10]);

    // A tag moves: whoever asks through the cache gets the new image as soon as Crane has it.
    let latest = "/open/manifests/latest";
    for _ in 0..2 {
        let reply = get(latest).await;
        assert_ne!(header(&reply, "x-cache-status"), "HIT");
        assert_eq!(
            header(&reply, "docker-content-digest"),
            first.manifest.to_string()
        );
    }
    let second = site.image("open", "open", "b");
    site.publish(&second.contents);
    let direct = format!("http://{}/v2{latest}", nginx.crane);
    let noticed = async {
        let new = second.manifest.to_string();
        while header(
            &client.get(&direct).send().await.unwrap(),
            "docker-content-digest",
        ) != new
        {}
    };
    timeout(LIMIT, noticed).await.unwrap();
    let reply = get(latest).await;
    assert_eq!(
        header(&reply, "docker-content-digest"),
        second.manifest.to_string()
    );

    // Protected: nothing is kept, for nobody.
    let ann = "ann".parse().unwrap();
    let names = ["secret".parse().unwrap()].into();
    let token = signer
        .sign(Some(&ann), &names, std::time::SystemTime::now())
        .unwrap()
        .token;
    for path in [
        format!("/secret/blobs/{}", secret.layer),
        format!("/secret/manifests/{}", secret.manifest),
    ] {
        for _ in 0..2 {
            let with = client.get(format!("{base}{path}")).bearer_auth(&token);
            let with = with.send().await.unwrap();
            assert_eq!(told(&with), (200, "BYPASS"), "{path}");
            assert!(header(&with, "cache-control").starts_with("private"));
            let without = get(&path).await;
            assert_eq!(without.status(), 401, "{path}");
            assert_ne!(header(&without, "x-cache-status"), "HIT");
        }
    }

    // Without Crane: what is kept by digest is there, the tag is not.
    nginx.stop_crane().await;
    assert_eq!(told(&get(&blob).await), (200, "HIT"));
    assert_eq!(get(latest).await.status(), 502);
    nginx.stop().await;
}
