//! Real servers for tests that cross crates: the `pulp` binary as its users start it, on free ports and in a
//! temporary folder, either standalone or as separate processes over PostgreSQL and RabbitMQ.
//!
//! Everything here waits for events, never for a time, and gives up after [`PATIENCE`].
#![allow(clippy::missing_panics_doc)]

pub mod http;
pub mod images;
pub mod network;
pub mod saved;
pub mod volume;

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take on a busy machine before a test gives up.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The password of the user `admin` in every test.
pub const PASSWORD: &str = "a password for tests";

/// Bytes of one piece of an upload.
const CHUNK: usize = 4 * 1024 * 1024;

/// A binary of this workspace. The test command builds them all first.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap_or_default();
    let path = test
        .parent()
        .and_then(Path::parent)
        .unwrap_or(Path::new("target/debug"))
        .join(name);
    assert!(
        path.exists(),
        "{} is not built; run `cargo build --workspace` first",
        path.display()
    );
    path
}

/// A `pulp` process; killed when dropped.
pub struct Pulp {
    child: Child,
    /// What it is, for messages.
    pub name: String,
    log: PathBuf,
}

impl Pulp {
    /// Starts `pulp <words…>`; its log goes to `<folder>/<name>.log`.
    pub fn start(name: &str, folder: &Path, words: &[&str], env: &[(&str, &str)]) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = std::fs::File::create(&log)?;
        let child = Command::new(binary("pulp"))
            .args(words)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .context("can't start pulp")?;
        Ok(Self {
            child,
            name: name.to_owned(),
            log,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal by name: `TERM`, `KILL`, `STOP`, `CONT`.
    pub fn signal(&self, signal: &str) -> Result<()> {
        let status = Command::new("kill")
            .args([format!("-{signal}"), self.pid().to_string()])
            .status()?;
        ensure!(status.success(), "kill -{signal} {} failed", self.name);
        Ok(())
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits until it has ended by itself; whether well.
    pub fn wait(&mut self) -> Result<bool> {
        let ended = wait_for(&format!("the end of {}", self.name), || {
            Ok(self.child.try_wait()?)
        })?;
        Ok(ended.success())
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Pulp {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of {} ---\n{}", self.name, self.log());
        }
    }
}

/// Where a server answers, whatever it is made of.
pub trait Server {
    /// The REST API.
    fn api(&self) -> SocketAddr;
    /// Crane.
    fn crane(&self) -> SocketAddr;
    /// Files of this test; goes with the server.
    fn folder(&self) -> &Path;
    /// The data directory: `content`, `uploads`, `working`, `published/docker` are below it.
    fn data_dir(&self) -> PathBuf {
        self.folder().join("data")
    }

    /// Runs `pulp-admin <words…>` as the user `admin`.
    fn admin_output(&self, words: &[&str]) -> Result<Output> {
        let output = Command::new(binary("pulp-admin"))
            .args(words)
            .env("HOME", self.folder())
            .env("PULP_SERVER", format!("http://{}", self.api()))
            .env("PULP_USERNAME", "admin")
            .env("PULP_PASSWORD", PASSWORD)
            .stdin(Stdio::null())
            .output()?;
        Ok(output)
    }

    /// Runs `pulp-admin <words…>`, which must succeed; gives what it printed.
    fn admin(&self, words: &[&str]) -> Result<String> {
        let output = self.admin_output(words)?;
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "pulp-admin {} exited {:?}\n{out}{}",
            words.join(" "),
            output.status.code(),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(out)
    }

    /// A REST call as the user `admin`: status and JSON body. `path` follows `/pulp/api/v2`.
    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let url = format!("http://{}/pulp/api/v2{path}", self.api());
        let body = body.cloned();
        let method: reqwest::Method = method.parse()?;
        on_own_runtime(async move {
            let request = reqwest::Client::new()
                .request(method, url)
                .basic_auth("admin", Some(PASSWORD));
            let request = match &body {
                Some(body) => request.json(body),
                None => request,
            };
            let response = request.send().await?;
            let status = response.status().as_u16();
            let text = response.text().await?;
            Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
        })
    }

    /// A REST call that a task answers; gives the task's id.
    fn begin(&self, method: &str, path: &str, body: &Value) -> Result<String> {
        let (status, report) = self.call(method, path, Some(body))?;
        ensure!(status == 202, "{method} {path}: {status} {report}");
        spawned(&report)
    }

    /// The task's row.
    fn task(&self, id: &str) -> Result<Value> {
        let (status, task) = self.call("GET", &format!("/tasks/{id}/"), None)?;
        ensure!(status == 200, "task {id}: {status} {task}");
        Ok(task)
    }

    /// Waits until a task has ended; gives its row.
    fn wait_for_task(&self, id: &str) -> Result<Value> {
        wait_for(&format!("the end of task {id}"), || {
            // The API itself may be in the middle of a restart.
            let Ok(task) = self.task(id) else { return Ok(None) };
            let ended = matches!(
                task["state"].as_str(),
                Some("finished" | "error" | "canceled" | "skipped")
            );
            Ok(ended.then_some(task))
        })
    }

    /// Uploads a file's bytes; gives the upload's id.
    fn upload(&self, bytes: &[u8]) -> Result<String> {
        let (status, made) = self.call("POST", "/content/uploads/", None)?;
        ensure!(status == 201, "create upload: {status} {made}");
        let id = made["upload_id"].as_str().context("no upload_id")?.to_owned();
        for (n, chunk) in bytes.chunks(CHUNK).enumerate() {
            let url = format!(
                "http://{}/pulp/api/v2/content/uploads/{id}/{}/",
                self.api(),
                n * CHUNK
            );
            let chunk = chunk.to_vec();
            on_own_runtime(async move {
                let put = reqwest::Client::new()
                    .put(url)
                    .basic_auth("admin", Some(PASSWORD))
                    .body(chunk);
                let response = put.send().await?;
                ensure!(
                    response.status().is_success(),
                    "chunk: {}",
                    response.text().await?
                );
                Ok(())
            })?;
        }
        Ok(id)
    }

    /// Asks for the import of an upload; gives the task's id.
    fn import(&self, repo: &str, upload: &str, overrides: Value) -> Result<String> {
        let body = serde_json::json!({
            "upload_id": upload, "unit_type_id": "docker_image", "unit_key": {}, "unit_metadata": {},
            "override_config": overrides,
        });
        self.begin(
            "POST",
            &format!("/repositories/{repo}/actions/import_upload/"),
            &body,
        )
    }

    /// Makes a repository with an importer and both distributors, as `pulp-admin docker repo create` does.
    fn create_repository(&self, repo: &str, registry_id: &str) -> Result<()> {
        let settings = serde_json::json!({"repo-registry-id": registry_id});
        let body = serde_json::json!({
            "id": repo, "importer_type_id": "docker_importer", "importer_config": {},
            "distributors": [
                {"distributor_type_id": "docker_distributor_web", "distributor_config": settings,
                 "distributor_id": "docker_web_distributor_name_cli", "auto_publish": false},
                {"distributor_type_id": "docker_distributor_export", "distributor_config": settings,
                 "distributor_id": "docker_export_distributor_name_cli", "auto_publish": false},
            ],
        });
        let (status, made) = self.call("POST", "/repositories/", Some(&body))?;
        ensure!(status == 201, "create repository {repo}: {status} {made}");
        Ok(())
    }

    /// Waits until a task has ended and is `finished`; gives its row.
    fn wait_until_finished(&self, id: &str) -> Result<Value> {
        let task = self.wait_for_task(id)?;
        ensure!(
            task["state"] == "finished",
            "task {id} is {}: {}",
            task["state"],
            task["error"]
        );
        Ok(task)
    }

    /// Waits until a worker runs a task; gives its row. Fails if it has ended by then.
    fn wait_until_running(&self, id: &str) -> Result<Value> {
        wait_for(&format!("the start of task {id}"), || {
            let task = self.task(id)?;
            match task["state"].as_str() {
                Some("waiting" | "accepted") => Ok(None),
                Some("running") => Ok(Some(task)),
                _ => bail!("task {id} ended before it could be met while it ran: {task}"),
            }
        })
    }

    /// Pulls an image from Crane with skopeo, which checks every digest.
    fn pull(&self, name: &str) -> Result<Pulled> {
        let target = tempfile::tempdir_in(self.folder())?;
        let target = target.path().join("pulled");
        pulp_testkit::skopeo(&[
            "copy",
            "--src-tls-verify=false",
            &format!("docker://{}/{name}", self.crane()),
            &format!("dir:{}", target.display()),
        ])?;
        let manifest: Value = serde_json::from_slice(&std::fs::read(target.join("manifest.json"))?)?;
        let digest = manifest["config"]["digest"].as_str().context("no config")?;
        let file = target.join(digest.trim_start_matches("sha256:"));
        let config: Value = serde_json::from_slice(&std::fs::read(file)?)?;
        let diff_ids = config["rootfs"]["diff_ids"].as_array().context("no diff_ids")?;
        Ok(Pulled {
            diff_ids: diff_ids
                .iter()
                .filter_map(|d| Some(d.as_str()?.to_owned()))
                .collect(),
            config: digest.to_owned(),
        })
    }

    /// Files that a task may leave behind: temporary blobs, and whatever is in the working directory.
    fn leftovers(&self) -> Vec<PathBuf> {
        let mut found = files_below(&self.data_dir().join("content/tmp"));
        found.extend(files_below(&self.data_dir().join("working")));
        found
    }

    /// Waits until nothing temporary is left; a task cleans up just after its end.
    fn wait_until_clean(&self) -> Result<()> {
        let clean = wait_for("the end of temporary files", || {
            Ok(self.leftovers().is_empty().then_some(()))
        });
        clean.with_context(|| format!("left behind: {:?}", self.leftovers()))
    }

    /// Asks for a publish by the web distributor; gives the task's id.
    fn publish(&self, repo: &str) -> Result<String> {
        let body = serde_json::json!({"id": "docker_web_distributor_name_cli"});
        self.begin("POST", &format!("/repositories/{repo}/actions/publish/"), &body)
    }
}

/// What a pull brought.
pub struct Pulled {
    /// Digests of the uncompressed layers, base first, as the config tells them.
    pub diff_ids: Vec<String>,
    /// Digest of the config.
    pub config: String,
}

/// The task of a call report.
pub fn spawned(report: &Value) -> Result<String> {
    let id = report["spawned_tasks"][0]["task_id"].as_str();
    Ok(id.with_context(|| format!("no task in {report}"))?.to_owned())
}

/// Every file below a directory, sorted.
pub fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // What vanishes while it is listed is not there.
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files_below(&entry.path())),
            Ok(_) => found.push(entry.path()),
            Err(_) => {}
        }
    }
    found.sort();
    found
}

/// `pulp standalone`.
pub struct Standalone {
    /// The process.
    pub process: Pulp,
    api: SocketAddr,
    crane: SocketAddr,
    env: Vec<(String, String)>,
    folder: TempDir,
}

impl Standalone {
    /// Starts one and waits until it says that it is ready.
    pub fn start() -> Result<Self> {
        Self::with(&[])
    }

    /// As [`start`](Self::start), with more variables `PULP_<SECTION>_<KEY>` in its environment.
    pub fn with(env: &[(&str, &str)]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (process, api, crane) = Self::run(folder.path(), env)?;
        Ok(Self {
            process,
            api,
            crane,
            env: env
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            folder,
        })
    }

    /// Kills it as a crash does and starts it on the same data again. It listens on other ports then.
    pub fn crash_and_start_again(&mut self) -> Result<()> {
        self.process.kill()?;
        let env = self.env.clone();
        (self.process, self.api, self.crane) = Self::run(self.folder.path(), &words(&env))?;
        Ok(())
    }

    fn run(folder: &Path, env: &[(&str, &str)]) -> Result<(Pulp, SocketAddr, SocketAddr)> {
        let data = folder.join("data").display().to_string();
        let words = [
            "standalone",
            "--data-dir",
            &data,
            "--api",
            "127.0.0.1:0",
            "--crane",
            "127.0.0.1:0",
        ];
        let env = [&[("PULP_ADMIN_PASSWORD", PASSWORD)], env].concat();
        let mut process = Pulp::start("standalone", folder, &words, &env)?;
        let out = process.child.stdout.take().context("no stdout")?;
        let (mut api, mut crane) = (None, None);
        for line in BufReader::new(out).lines() {
            let line = line?;
            let address = |l: &str| l.split("http://").nth(1)?.split('/').next()?.parse().ok();
            if line.trim_start().starts_with("REST API") {
                api = address(&line);
            } else if line.trim_start().starts_with("Crane") {
                crane = address(&line);
            } else if line.starts_with("Next:") {
                break;
            }
        }
        match (api, crane) {
            (Some(api), Some(crane)) => Ok((process, api, crane)),
            _ => bail!("standalone did not say where it listens:\n{}", process.log()),
        }
    }
}

impl Server for Standalone {
    fn api(&self) -> SocketAddr {
        self.api
    }

    fn crane(&self) -> SocketAddr {
        self.crane
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Separate processes over PostgreSQL and RabbitMQ: an api, a Crane, a scheduler, and as many resource managers and
/// workers as asked for.
pub struct Cluster {
    /// The resource managers; one of them leads.
    pub managers: Vec<Pulp>,
    /// The workers.
    pub workers: Vec<Pulp>,
    /// The API process.
    pub api_process: Pulp,
    /// The Crane process.
    pub crane_process: Pulp,
    /// The scheduler.
    pub scheduler: Pulp,
    /// `postgres://…` of this cluster's own database.
    pub database_url: String,
    /// `amqp://…` of the broker, shared by prefix.
    pub broker_url: String,
    /// Prefix of this cluster's queues.
    pub prefix: String,
    api: SocketAddr,
    crane: SocketAddr,
    config: PathBuf,
    folder: TempDir,
}

/// What a cluster is made of.
pub struct ClusterOptions<'a> {
    /// Goes into the names of the database and of the queues.
    pub name: &'a str,
    /// How many resource managers.
    pub managers: usize,
    /// How many workers.
    pub workers: usize,
    /// An empty database; none means one of its own on the shared server.
    pub database_url: Option<String>,
    /// A broker; none means the shared one.
    pub broker_url: Option<String>,
    /// Lines of `[tasks]`.
    pub tasks: &'a str,
    /// Variables of a process, by its name: `manager-0`, `worker-1`, `api`, `crane`, `scheduler`.
    pub env: &'a dyn Fn(&str) -> Vec<(String, String)>,
}

impl Default for ClusterOptions<'_> {
    fn default() -> Self {
        Self {
            name: "e2e",
            managers: 2,
            workers: 2,
            database_url: None,
            broker_url: None,
            tasks: "worker_ttl_seconds = 6",
            env: &|_| Vec::new(),
        }
    }
}

impl Cluster {
    /// Two resource managers and two workers.
    pub fn start() -> Result<Self> {
        Self::with(ClusterOptions::default())
    }

    /// As the options say.
    pub fn with(options: ClusterOptions<'_>) -> Result<Self> {
        let (managers, workers) = (options.managers, options.workers);
        let folder = tempfile::tempdir()?;
        let prefix = pulp_testkit::unique_prefix(options.name);
        let database_url = match options.database_url {
            Some(url) => url,
            None => pulp_testkit::shared_postgres()?.create_database(&prefix.replace(['.', '-'], "_"))?,
        };
        let broker_url = match options.broker_url {
            Some(url) => url,
            None => pulp_testkit::shared_rabbitmq()?.url(),
        };
        let api = SocketAddr::from(([127, 0, 0, 1], pulp_testkit::free_port()?));
        let crane = SocketAddr::from(([127, 0, 0, 1], pulp_testkit::free_port()?));
        let config = folder.path().join("pulp.toml");
        std::fs::write(
            &config,
            format!(
                "[database]\nurl = \"{database_url}\"\n[broker]\nurl = \"{broker_url}\"\nprefix = \"{prefix}\"\n\
                 [storage]\nroot = \"{}\"\n[server]\napi_listen = \"{api}\"\ncrane_listen = \"{crane}\"\n\
                 redirect_base = \"http://{crane}/pulp/docker/\"\nplugins_dir = \"{}\"\n\
                 [crane]\npolling_interval_seconds = 2\n[tasks]\n{}\n",
                folder.path().join("data").display(),
                folder.path().join("plugins.conf.d").display(),
                options.tasks,
            ),
        )?;
        let path = config.display().to_string();
        let migrated = Command::new(binary("pulp"))
            .args(["manage-db", "--config", &path])
            .env("PULP_ADMIN_PASSWORD", PASSWORD)
            .output()?;
        ensure!(
            migrated.status.success(),
            "manage-db: {}",
            String::from_utf8_lossy(&migrated.stderr)
        );
        let start = |name: &str, role: &str| {
            let env = (options.env)(name);
            Pulp::start(name, folder.path(), &[role, "--config", &path], &words(&env))
        };
        let cluster = Self {
            managers: (0..managers)
                .map(|n| start(&format!("manager-{n}"), "resource-manager"))
                .collect::<Result<_>>()?,
            workers: (0..workers)
                .map(|n| start(&format!("worker-{n}"), "worker"))
                .collect::<Result<_>>()?,
            api_process: start("api", "api")?,
            crane_process: start("crane", "crane")?,
            scheduler: start("scheduler", "scheduler")?,
            database_url,
            broker_url,
            prefix,
            api,
            crane,
            config,
            folder,
        };
        cluster.wait_until_ready(managers, workers)?;
        Ok(cluster)
    }

    /// Starts one more process of a role.
    pub fn start_role(&self, name: &str, role: &str) -> Result<Pulp> {
        self.start_role_with(name, role, &[])
    }

    /// As [`start_role`](Self::start_role), with variables of its own.
    pub fn start_role_with(&self, name: &str, role: &str, env: &[(String, String)]) -> Result<Pulp> {
        let path = self.config.display().to_string();
        Pulp::start(name, self.folder.path(), &[role, "--config", &path], &words(env))
    }

    /// Runs a statement in this cluster's database; gives the rows, unaligned.
    pub fn sql(&self, statement: &str) -> Result<String> {
        Ok(pulp_testkit::psql(&self.database_url, statement)?
            .trim()
            .to_owned())
    }

    /// Index of the worker process that runs a task, by the name in the task's row.
    pub fn worker_of(&self, task: &Value) -> Result<usize> {
        let id = task["task_id"].as_str().context("no task_id")?;
        let name = self.sql(&format!("SELECT worker_name FROM tasks WHERE task_id = '{id}'"))?;
        let says_so = |w: &Pulp| {
            w.log()
                .lines()
                .any(|l| l.contains("working") && l.contains(&name))
        };
        let found = self.workers.iter().position(says_so);
        found.with_context(|| format!("no worker process is named {name:?}"))
    }

    /// Index of the resource manager that leads, by its log.
    pub fn leader(&self) -> Result<usize> {
        wait_for("a leading resource manager", || {
            Ok(self.managers.iter().position(|m| {
                let log = m.log();
                log.matches("leading no more").count()
                    < log.matches("leading").count() - log.matches("leading no more").count()
            }))
        })
    }

    fn wait_until_ready(&self, managers: usize, workers: usize) -> Result<()> {
        wait_for("all roles in the status", || {
            let Ok((200, status)) = self.call("GET", "/status/", None) else {
                return Ok(None);
            };
            let names: Vec<&str> = status["known_workers"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|w| w["_id"].as_str())
                .collect();
            let count = |prefix: &str| names.iter().filter(|n| n.starts_with(prefix)).count();
            let ready = count("resource_manager") >= managers
                && count("reserved_resource_worker") >= workers
                && count("scheduler") >= 1
                && std::net::TcpStream::connect(self.crane).is_ok();
            Ok(ready.then_some(()))
        })
    }
}

impl Server for Cluster {
    fn api(&self) -> SocketAddr {
        self.api
    }

    fn crane(&self) -> SocketAddr {
        self.crane
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Asks again and again until there is an answer.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        ensure!(Instant::now() < end, "{what} did not come within {PATIENCE:?}");
        // The only way to wait for another process that tells nothing: ask again.
        #[allow(clippy::disallowed_methods)]
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn words(env: &[(String, String)]) -> Vec<(&str, &str)> {
    env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect()
}

/// Runs a future to its end from code that blocks.
pub fn on_own_runtime<T: Send + 'static>(run: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let thread = std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(run)
    });
    thread.join().map_err(|_| anyhow::anyhow!("the call panicked"))?
}

/// Where the shared fixtures of the project's developers lie, if they are here.
pub fn shared_fixtures() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures");
    if path.is_dir() {
        return Some(path);
    }
    println!("../shared/fixtures is absent: what runs on it as well is passed over");
    None
}
