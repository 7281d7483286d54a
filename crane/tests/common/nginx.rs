//! Debian's nginx before a Crane.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::{fs, net::SocketAddr, path::Path, process::Stdio, time::Duration};

use pulp_crane::{CraneConfig, CraneError, run};
use reqwest::{Client, Response};
use tokio::{
    net::TcpListener,
    process::{Child, Command},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

pub const LIMIT: Duration = Duration::from_secs(30);

/// An nginx and the Crane behind it, both running.
pub struct Nginx {
    process: Child,
    /// Where nginx listens, on 127.0.0.1.
    pub port: u16,
    /// Where Crane does.
    pub crane: SocketAddr,
    shutdown: CancellationToken,
    running: Option<JoinHandle<Result<(), CraneError>>>,
}

/// Where it is installed; none, and a line that says so, if it isn't.
pub fn program() -> Option<&'static str> {
    let programs = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"];
    let found = programs.into_iter().find(|program| Path::new(program).exists());
    if found.is_none() {
        println!("skipped: nginx is not installed");
    }
    found
}

impl Nginx {
    /// Starts a Crane, and nginx before it: `http` is the rest of its `http` block, by the port to listen at and the
    /// address of Crane.
    pub async fn start(
        program: &str,
        dir: &Path,
        config: CraneConfig,
        http: impl FnOnce(u16, SocketAddr) -> String,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let crane = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let running = Some(tokio::spawn(run(config, listener, shutdown.clone())));
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let (place, http) = (dir.display(), http(port, crane));
        let mut text = format!(
            r"daemon off; worker_processes 1; pid {place}/nginx.pid; error_log {place}/nginx.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {place}/tmp; proxy_temp_path {place}/tmp; fastcgi_temp_path {place}/tmp;
  uwsgi_temp_path {place}/tmp; scgi_temp_path {place}/tmp;
{http}}}
"
        );
        if fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0) {
            // Its workers would else be somebody who may not read a test's directory.
            text.insert_str(0, "user root; ");
        }
        fs::create_dir(dir.join("tmp")).unwrap();
        fs::write(dir.join("nginx.conf"), text).unwrap();
        let process = Command::new(program)
            .arg("-e")
            .arg(dir.join("nginx.log"))
            .arg("-c")
            .arg(dir.join("nginx.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            process,
            port,
            crane,
            shutdown,
            running,
        }
    }

    /// Waits until it answers at `url`.
    pub async fn is_up(&self, client: &Client, url: &str) {
        let up = async {
            while client.get(url).send().await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(LIMIT, up).await.unwrap();
    }

    /// Stops Crane alone.
    pub async fn stop_crane(&mut self) {
        self.shutdown.cancel();
        if let Some(running) = self.running.take() {
            timeout(LIMIT, running).await.unwrap().unwrap().unwrap();
        }
    }

    /// Stops both.
    pub async fn stop(mut self) {
        self.process.kill().await.unwrap();
        self.stop_crane().await;
    }
}

/// A header's text; empty if there is none.
pub fn header<'a>(reply: &'a Response, name: &str) -> &'a str {
    reply.headers().get(name).map_or("", |v| v.to_str().unwrap())
}
