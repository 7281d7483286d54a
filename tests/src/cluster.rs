//! Separate processes over PostgreSQL and RabbitMQ.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::{PASSWORD, Pulp, Server, binary, process::words, wait_for};

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
