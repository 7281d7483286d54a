//! Debian's nginx as a cache, set up as docs/crane.md has it: what never changes is kept, tags are asked for each
//! time, and what is protected is kept for nobody.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{fs, path::Path, process::Stdio, time::Duration};

use common::Site;
use pulp_crane::{Challenge, CraneConfig, Mode, TokenService, run};
use pulp_token::Signer;
use reqwest::{Client, Response};
use tokio::{net::TcpListener, process::Command, time::timeout};
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(30);

fn configuration(dir: &str, port: u16, crane: std::net::SocketAddr) -> String {
    format!(
        r"daemon off; worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/nginx.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {dir}/tmp; proxy_temp_path {dir}/tmp; fastcgi_temp_path {dir}/tmp;
  uwsgi_temp_path {dir}/tmp; scgi_temp_path {dir}/tmp;
  proxy_cache_path {dir}/cache keys_zone=crane:1m max_size=1g inactive=90d use_temp_path=off;
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
}}
"
    )
}

fn header<'a>(reply: &'a Response, name: &str) -> &'a str {
    reply.headers().get(name).map_or("", |v| v.to_str().unwrap())
}

/// Status, and what the cache did.
fn told(reply: &Response) -> (u16, &str) {
    (reply.status().as_u16(), header(reply, "x-cache-status"))
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_keeps_what_never_changes_and_asks_for_tags_each_time() {
    let program = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"];
    let Some(program) = program.iter().find(|p| Path::new(p).exists()) else {
        println!("skipped: nginx is not installed");
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
    fs::create_dir(dir.join("tmp")).unwrap();
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
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let crane_address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let crane = tokio::spawn(run(config, listener, shutdown.clone()));
    let port = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut text = configuration(dir.to_str().unwrap(), port, crane_address);
    if fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0) {
        // Its workers would else be somebody who may not read a test's directory.
        text.insert_str(0, "user root; ");
    }
    fs::write(dir.join("nginx.conf"), text).unwrap();
    let mut nginx = Command::new(program)
        .arg("-e")
        .arg(dir.join("nginx.log"))
        .arg("-c")
        .arg(dir.join("nginx.conf"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let client = Client::builder().timeout(LIMIT).build().unwrap();
    let base = format!("http://127.0.0.1:{port}/v2");
    let up = async {
        while client.get(format!("{base}/open/tags/list")).send().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, up).await.unwrap();
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
    let direct = format!("http://{crane_address}/v2{latest}");
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
    shutdown.cancel();
    timeout(LIMIT, crane).await.unwrap().unwrap().unwrap();
    assert_eq!(told(&get(&blob).await), (200, "HIT"));
    assert_eq!(get(latest).await.status(), 502);
    nginx.kill().await.unwrap();
}
