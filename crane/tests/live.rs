//! Crane as it runs: over TCP, while repositories are published.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use common::{Client, Reply, Site};
use http::{HeaderMap, HeaderName, StatusCode};
use pulp_crane::{Crane, CraneConfig, CraneError, Mode, run};
use pulp_model::Digest;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(30);

struct Running {
    address: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), CraneError>>,
}

async fn start(config: CraneConfig) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(run(config, listener, shutdown.clone()));
    Running {
        address,
        shutdown,
        task,
    }
}

impl Running {
    async fn get(&self, path: &str, headers: &str) -> Reply {
        self.ask("GET", path, headers).await
    }

    async fn ask(&self, method: &str, path: &str, headers: &str) -> Reply {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        timeout(LIMIT, stream.read_to_end(&mut answer))
            .await
            .unwrap()
            .unwrap();
        let end = answer
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .expect("a whole head");
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        let headers: HeaderMap = lines
            .map(|l| l.split_once(": ").unwrap())
            .map(|(n, v)| (n.parse::<HeaderName>().unwrap(), v.parse().unwrap()))
            .collect();
        Reply {
            status: StatusCode::from_bytes(status.as_bytes()).unwrap(),
            headers,
            body: answer.split_off(end + 4).into(),
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        timeout(LIMIT, self.task).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_comes_whole_over_tcp_and_shutdown_ends_it() {
    let site = Site::new();
    let image = site.image("busybox", "busybox", "abc");
    site.publish(&image.contents);
    let crane = start(site.config(Mode::SERVE)).await;
    let path = format!("/v2/busybox/blobs/{}", image.layer);
    let reply = crane.get(&path, "").await;
    assert!(reply.status == 200 && reply.body == image.layer_bytes[..]);
    let head = crane.ask("HEAD", &path, "").await;
    assert_eq!(
        head.header("content-length"),
        Some(image.layer_bytes.len().to_string().as_str())
    );
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    let held = crane
        .get(&path, &format!("if-none-match: \"{}\"\r\n", image.layer))
        .await;
    assert_eq!((held.status.as_u16(), held.body.len()), (304, 0));
    let part = crane.get(&path, "range: bytes=10-19\r\n").await;
    assert!(part.status == 206 && part.body == image.layer_bytes[10..20]);
    // Seen from the host itself, protected repositories are listed.
    let mut secret = site.image("secret", "secret", "s");
    secret.contents.protected = true;
    site.publish(&secret.contents);
    until(|| async {
        crane
            .get("/crane/repositories/v2", "accept: application/json\r\n")
            .await
            .json()
            .get("secret")
            .is_some()
    })
    .await;
    let forwarded = crane
        .get(
            "/crane/repositories/v2",
            "accept: application/json\r\nx-forwarded-for: 192.0.2.1\r\n",
        )
        .await;
    assert!(forwarded.json().get("secret").is_none());
    crane.stop().await;
}

/// Asks until it is so; the limit is generous, the polling interval of the tests' Crane is an hour.
async fn until<F: Future<Output = bool>>(so: impl Fn() -> F) {
    let asking = async {
        while !so().await {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, asking)
        .await
        .expect("it should have been so by now");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_and_removed_is_noticed_at_once() {
    let site = Site::new();
    // The very first publication makes the directories.
    std::fs::remove_dir_all(site.root.path()).unwrap();
    let crane = start(site.config(Mode::SERVE)).await;
    let status = |path: &'static str| async { crane.get(path, "").await.status };
    assert_eq!(status("/v2/busybox/tags/list").await, 404);
    site.publish(&site.image("busybox", "busybox", "a").contents);
    until(|| async { status("/v2/busybox/manifests/only-a").await == 200 }).await;
    until(|| async { status("/v1/repositories/busybox/images").await == 200 }).await;
    site.publish(&site.image("busybox", "busybox", "b").contents);
    until(|| async { status("/v2/busybox/manifests/only-b").await == 200 }).await;
    assert_eq!(status("/v2/busybox/manifests/only-a").await, 404);
    site.root.unpublish(&"busybox".parse().unwrap()).unwrap();
    until(|| async { status("/v2/busybox/tags/list").await == 404 }).await;
    until(|| async { status("/v1/repositories/busybox/images").await == 404 }).await;
    crane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_is_not_ours_is_noticed_by_polling_too() {
    let old = common::Old::new();
    let config = CraneConfig {
        polling_interval: Duration::from_millis(20),
        ..old.config(Mode::Redirect)
    };
    let crane = start(config).await;
    let file = r#"{"version":2,"repository":"r","repo-registry-id":"deep","url":"http://x/"}"#;
    old.write("made/later/deep.json", file);
    until(|| async { crane.get("/v2/deep/tags/list", "").await.status == 302 }).await;
    crane.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_never_see_an_error_or_a_mixture_while_a_repository_is_published() {
    let site = Arc::new(Site::new());
    let generations = [
        site.image("busybox", "busybox", "a"),
        site.image("busybox", "busybox", "b"),
    ];
    site.publish(&generations[0].contents);
    let crane = Crane::open(site.config(Mode::SERVE));
    let client = Client(crane.router());
    let shutdown = CancellationToken::new();
    let watching = tokio::spawn(crane.watch(shutdown.clone()));
    let known: Vec<(Digest, Digest, String)> = generations
        .iter()
        .zip(["a", "b"])
        .map(|(g, n)| (g.manifest.clone(), g.layer.clone(), format!("only-{n}")))
        .collect();

    let readers: Vec<JoinHandle<(usize, usize)>> = (0..3)
        .map(|_| {
            let (client, known, shutdown) = (client.clone(), known.clone(), shutdown.clone());
            tokio::spawn(async move {
                let (mut rounds, mut changes, mut before) = (0, 0, String::new());
                while !shutdown.is_cancelled() {
                    let manifest = client.get("/v2/busybox/manifests/latest").await;
                    assert_eq!(manifest.status, 200);
                    let digest = Digest::sha256(&manifest.body);
                    assert_eq!(
                        manifest.header("docker-content-digest"),
                        Some(digest.to_string().as_str())
                    );
                    assert!(
                        known.iter().any(|(m, ..)| *m == digest),
                        "a manifest that was never published"
                    );
                    let tags = client.get("/v2/busybox/tags/list").await.json();
                    let only: Vec<&str> = tags["tags"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .filter_map(|t| t.as_str())
                        .filter(|t| t.starts_with("only-"))
                        .collect();
                    assert!(known.iter().any(|(.., tag)| only == [tag.as_str()]), "{only:?}");
                    let images = client.get("/v1/repositories/busybox/images").await.json();
                    assert_eq!(images.as_array().unwrap().len(), 1);
                    changes += usize::from(before != only[0]);
                    only[0].clone_into(&mut before);
                    // The blob of the generation just seen: there, unless it has been replaced meanwhile.
                    let (_, layer, _) = known.iter().find(|(m, ..)| *m == digest).unwrap();
                    let blob = client.get(&format!("/v2/busybox/blobs/{layer}")).await;
                    assert!(blob.status == 404 || layer.matches(&blob.body));
                    assert!(blob.status == 200 || blob.error().1 == "BLOB_UNKNOWN");
                    rounds += 1;
                }
                (rounds, changes)
            })
        })
        .collect();

    let publisher = tokio::task::spawn_blocking(move || {
        let repo = "busybox".parse().unwrap();
        for round in 1..=60 {
            site.publish(&generations[round % 2].contents);
            site.root.prune(&repo, "tidy", 1, Duration::ZERO).unwrap();
        }
        site
    });
    let _site = timeout(LIMIT * 2, publisher).await.unwrap().unwrap();
    shutdown.cancel();
    for reader in readers {
        let (rounds, changes) = timeout(LIMIT, reader).await.unwrap().unwrap();
        assert!(
            rounds > 5 && changes > 2,
            "{rounds} rounds, {changes} changes: it has to be read while it changes"
        );
    }
    timeout(LIMIT, watching).await.unwrap().unwrap();
}
