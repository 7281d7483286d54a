//! The configuration of every role: one TOML file, the environment over it.
//!
//! A key `key` of section `[section]` is `PULP_SECTION_KEY` in the environment, which wins over the file. All
//! keys have defaults, those of a server that needs nothing installed. Faults are told all at once, each with
//! its file and line or its variable.

mod check;
mod deadlines;
mod load;
mod sync;
mod token;
mod transfer;
mod value;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use url::Url;

pub use deadlines::DeadlinesConfig;
pub use load::{ConfigError, Fault, Sources};
pub use sync::SyncConfig;
pub use token::{TokenChallenge, TokenConfig};
pub use transfer::TransferConfig;
pub use value::{ConnectionUrl, Secret};

/// All settings.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `[database]`: where the truth is.
    pub database: DatabaseConfig,
    /// `[broker]`: how roles wake each other.
    pub broker: BrokerConfig,
    /// `[content]`: where blobs lie.
    pub content: ContentConfig,
    /// `[storage]`: directories of this machine, or of the volume that roles share.
    pub storage: StorageConfig,
    /// `[server]`: addresses.
    pub server: ServerConfig,
    /// `[tasks]`: leases, limits and slots.
    pub tasks: TasksConfig,
    /// `[crane]`: the registry that clients pull from.
    pub crane: CraneConfig,
    /// `[token]`: tokens for clients that pull from protected repositories.
    pub token: TokenConfig,
    /// `[sync]`: what syncs may take of the registries they fetch from.
    pub sync: SyncConfig,
    /// `[transfer]`: exports for closed networks.
    pub transfer: TransferConfig,
    /// `[log]`: what is logged, and how.
    pub log: LogConfig,
    /// Figures for a monitoring system.
    pub metrics: MetricsConfig,
    /// `[tracing]`: where spans are sent.
    pub tracing: TracingConfig,
}

/// `[database]`
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DatabaseConfig {
    /// `sqlite:/path/to/pulp.db` or `postgres://user:password@host/database`; none means
    /// [`Config::database_url`]'s default.
    pub url: Option<ConnectionUrl>,
    /// A file that holds the url, for example a systemd credential. Instead of `url`.
    pub url_file: Option<PathBuf>,
    /// Connections of one process at most; none means the store's default for the engine.
    pub max_connections: Option<u32>,
}

/// `[broker]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerConfig {
    /// `memory:` (roles of one process) or `amqp://user:password@host:5672/vhost` (`amqps` for TLS).
    pub url: ConnectionUrl,
    /// A file that holds the url. Instead of `url`.
    pub url_file: Option<PathBuf>,
    /// What the names of all queues and exchanges begin with, so that installations can share a broker.
    pub prefix: String,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            url: ConnectionUrl::new("memory:"),
            url_file: None,
            prefix: "pulp".to_owned(),
        }
    }
}

/// `[content]`
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContentConfig {
    /// `file:/directory` or `s3://bucket/prefix`; none means `content` below the storage root.
    pub url: Option<String>,
    /// `[content.s3]`
    pub s3: S3Config,
}

/// `[content.s3]`: only read for an `s3:` url. Keys not set come from the environment that AWS tools know
/// (`AWS_ACCESS_KEY_ID`, …) or from the instance's role.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3Config {
    /// Base url of a service that speaks S3 and is not Amazon's, for example `https://minio.example.com:9000`.
    pub endpoint: Option<Url>,
    /// The bucket's region.
    pub region: Option<String>,
    /// Whether `http:` endpoints are allowed.
    pub allow_http: bool,
    /// Id of the access key.
    pub access_key_id: Option<String>,
    /// The access key itself.
    pub secret_access_key: Option<Secret>,
    /// A file that holds the access key. Instead of `secret_access_key`.
    pub secret_access_key_file: Option<PathBuf>,
}

/// `[storage]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageConfig {
    /// Everything lies below it unless said otherwise.
    pub root: PathBuf,
    /// Uploads under way: the api writes, workers read. Default `uploads` below the root.
    #[serde(rename = "uploads_dir")]
    uploads: Option<PathBuf>,
    /// Files of a running task. Default `working` below the root.
    #[serde(rename = "working_dir")]
    working: Option<PathBuf>,
    /// The published tree: workers write, crane reads. Default `published/docker` below the root.
    #[serde(rename = "published_dir")]
    published: Option<PathBuf>,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/var/lib/pulp"),
            uploads: None,
            working: None,
            published: None,
        }
    }
}

impl StorageConfig {
    /// Uploads under way.
    pub fn uploads_dir(&self) -> PathBuf {
        self.uploads.clone().unwrap_or_else(|| self.root.join("uploads"))
    }

    /// Files of a running task; a worker makes a directory an attempt in it.
    pub fn working_dir(&self) -> PathBuf {
        self.working.clone().unwrap_or_else(|| self.root.join("working"))
    }

    /// The published tree.
    pub fn published_dir(&self) -> PathBuf {
        self.published
            .clone()
            .unwrap_or_else(|| self.root.join("published/docker"))
    }
}

/// `[server]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// The name by which clients reach this server; `host` is another word for it.
    #[serde(alias = "host")]
    pub server_name: String,
    /// Where the api listens.
    pub api_listen: SocketAddr,
    /// Where crane listens.
    pub crane_listen: SocketAddr,
    /// Base url of the published files, written into redirect files of distributors that set no
    /// `redirect-url`. None means [`Config::redirect_base`]'s default.
    pub redirect_base: Option<Url>,
    /// How long a login lasts.
    #[serde(rename = "session_lifetime_seconds", deserialize_with = "value::seconds")]
    pub session_lifetime: Duration,
    /// Largest chunk of an upload that the api takes, in bytes.
    pub max_chunk_bytes: u64,
    /// Folder of the plugins' own defaults, `<type>.json` each; it need not exist.
    pub plugins_dir: PathBuf,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            server_name: "localhost".to_owned(),
            api_listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            crane_listen: SocketAddr::from(([127, 0, 0, 1], 5000)),
            redirect_base: None,
            session_lifetime: Duration::from_hours(7 * 24),
            max_chunk_bytes: 5 * 1024 * 1024,
            plugins_dir: PathBuf::from("/etc/pulp/server/plugins.conf.d"),
        }
    }
}

/// `[tasks]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TasksConfig {
    /// How long the resource manager leads without renewing. A standby takes over within this and a poll.
    #[serde(rename = "lease_ttl_seconds", deserialize_with = "value::seconds")]
    pub lease_ttl: Duration,
    /// How long a worker counts as alive without renewing.
    #[serde(rename = "worker_ttl_seconds", deserialize_with = "value::seconds")]
    pub worker_ttl: Duration,
    /// How long a canceled task may take to stop before it is ended without it.
    #[serde(rename = "cancel_grace_seconds", deserialize_with = "value::seconds")]
    pub cancel_grace: Duration,
    /// How long an ending process waits for what it runs.
    #[serde(rename = "drain_timeout_seconds", deserialize_with = "value::seconds")]
    pub drain_timeout: Duration,
    /// How often a task whose worker was lost is begun at most, the first time included.
    pub max_attempts: u32,
    /// How often the sweep looks for messages that got lost and leases that ended.
    #[serde(rename = "sweep_seconds", deserialize_with = "value::seconds")]
    pub sweep: Duration,
    /// Bytes that one upload may expand to, its layers and itself in sum.
    pub max_expanded_bytes: u64,
    /// How long ended tasks are kept.
    #[serde(rename = "keep_ended_tasks_seconds", deserialize_with = "value::seconds")]
    pub keep_ended_tasks: Duration,
    /// Outbox rows that the relay publishes in one batch.
    pub relay_batch: u32,
    /// Task rows that the resource manager decides on in one batch.
    pub grant_batch: u32,
    /// How many turns an owner (`user:<login>`, `scheduler`, `system`) gets where owners take turns; 1 for those that
    /// are not named.
    #[serde(deserialize_with = "value::weights")]
    pub owner_weights: BTreeMap<String, u32>,
    /// How long a running task may show no progress before that is told.
    #[serde(deserialize_with = "deadlines::duration")]
    pub stalled_after: Duration,
    /// How long a running task may show no progress before it is ended; none means for ever.
    #[serde(deserialize_with = "deadlines::duration_or_never")]
    pub end_stalled_after: Option<Duration>,
    /// `[tasks.deadlines]`: how long a run may take, a kind.
    pub deadlines: DeadlinesConfig,
    /// `[tasks.slots]`: how much one worker runs at a time, a class.
    pub slots: SlotsConfig,
}

impl Default for TasksConfig {
    fn default() -> Self {
        Self {
            lease_ttl: Duration::from_secs(3),
            worker_ttl: Duration::from_secs(12),
            cancel_grace: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(30),
            max_attempts: 3,
            sweep: Duration::from_secs(5),
            max_expanded_bytes: 64 * 1024 * 1024 * 1024,
            keep_ended_tasks: Duration::from_hours(7 * 24),
            relay_batch: 500,
            grant_batch: 500,
            owner_weights: BTreeMap::new(),
            stalled_after: Duration::from_mins(15),
            end_stalled_after: Some(Duration::from_hours(2)),
            deadlines: DeadlinesConfig::default(),
            slots: SlotsConfig::default(),
        }
    }
}

impl TasksConfig {
    /// How long after its worker should have ended it a task is ended over the worker's head: the worker has the
    /// grace itself, and then time to say so.
    pub fn hard_margin(&self) -> Duration {
        self.cancel_grace + self.worker_ttl
    }

    /// How long a run may take, a kind.
    pub fn deadlines(&self) -> pulp_model::deadline::Deadlines {
        self.deadlines.with_margin(self.hard_margin())
    }
}

/// `[tasks.slots]`: tasks that one worker process runs at a time, each class by itself. 0 means that this
/// worker takes none of the class. Defaults follow the number of cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SlotsConfig {
    /// Short work that somebody waits for.
    pub interactive: u32,
    /// Imports of uploads: bound by processor and disk.
    pub import: u32,
    /// Publishes and exports.
    pub publish: u32,
    /// Syncs: bound by the network.
    pub sync: u32,
    /// Garbage collection and the like.
    pub maintenance: u32,
}

impl SlotsConfig {
    /// The defaults on a machine of `cores` cores.
    pub fn for_cores(cores: u32) -> Self {
        let cores = cores.max(1);
        Self {
            interactive: cores.saturating_mul(2).clamp(4, 32),
            import: cores.min(16),
            publish: cores.clamp(2, 16),
            sync: cores.clamp(2, 16),
            maintenance: 1,
        }
    }

    /// Sum over all classes.
    pub fn total(&self) -> u32 {
        [
            self.interactive,
            self.import,
            self.publish,
            self.sync,
            self.maintenance,
        ]
        .into_iter()
        .fold(0, u32::saturating_add)
    }
}

impl Default for SlotsConfig {
    fn default() -> Self {
        Self::for_cores(std::thread::available_parallelism().map_or(1, |n| n.get() as u32))
    }
}

/// What crane answers to a request for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CraneMode {
    /// It sends them.
    #[default]
    Serve,
    /// It redirects to the url in the redirect file, as the original did.
    Redirect,
}

/// `[crane]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CraneConfig {
    /// Send bytes, or redirect to where they are.
    pub mode: CraneMode,
    /// Where the redirect files are; none means the published directory.
    pub data_dir: Option<PathBuf>,
    /// How often it looks for new ones when the file system tells of no change.
    #[serde(rename = "polling_interval_seconds", deserialize_with = "value::seconds")]
    pub polling_interval: Duration,
    /// `host[:port]` for the header `X-Docker-Endpoints`; none means the request's own host.
    pub endpoint: Option<String>,
}

impl Default for CraneConfig {
    fn default() -> Self {
        Self {
            mode: CraneMode::Serve,
            data_dir: None,
            polling_interval: Duration::from_mins(1),
            endpoint: None,
        }
    }
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// A level (`info`) or directives (`info,pulp_worker=debug`).
    pub level: String,
    /// For people or for machines.
    pub format: LogFormat,
}

/// `[metrics]`: where Prometheus finds this process's figures.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Where `/metrics` and `/livez` are served, without authentication; not at all if unset.
    pub listen: Option<SocketAddr>,
}

/// `[tracing]`: the OpenTelemetry collector that spans are sent to, by OTLP over HTTP (protobuf).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TracingConfig {
    /// Its base url; `v1/traces` is appended. None means that of the variables that OpenTelemetry defines
    /// (`OTEL_EXPORTER_OTLP_ENDPOINT`, …); without those nothing is recorded.
    pub endpoint: Option<Url>,
    /// The part, 0 to 1, of the traces begun here that is recorded. A caller that sends a `traceparent` has decided
    /// for its own.
    pub sample_ratio: f64,
    /// Headers of each export, `name=value,name=value`, values percent-encoded where need be.
    pub headers: Option<Secret>,
    /// A file that holds the headers. Instead of `headers`.
    pub headers_file: Option<PathBuf>,
    /// How long an export may take. Spans of one that fails are lost; work never waits for it.
    #[serde(rename = "timeout_seconds", deserialize_with = "value::seconds")]
    pub timeout: Duration,
}

impl Default for TracingConfig {
    fn default() -> Self {
        Self {
            endpoint: None,
            sample_ratio: 1.0,
            headers: None,
            headers_file: None,
            timeout: Duration::from_secs(5),
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Text,
        }
    }
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// Reads `file` if given, the environment over it.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let sources = match file {
            Some(file) => Sources::new().file(file)?,
            None => Sources::new(),
        };
        sources.environment(std::env::vars_os()).build()
    }

    /// The settings of `pulp standalone`: everything below `data_dir`, nothing installed. To put a file or the
    /// environment over them use [`Sources::standalone`].
    pub fn standalone(data_dir: &Path) -> Self {
        Self {
            storage: StorageConfig {
                root: data_dir.to_owned(),
                ..StorageConfig::default()
            },
            server: ServerConfig {
                plugins_dir: data_dir.join("plugins.conf.d"),
                ..ServerConfig::default()
            },
            crane: CraneConfig {
                polling_interval: Duration::from_secs(2),
                ..CraneConfig::default()
            },
            // Nobody else could go on with what one process holds, and a disk that is busy with an import may keep the
            // database waiting for longer than a cluster would.
            tasks: TasksConfig {
                lease_ttl: Duration::from_mins(1),
                worker_ttl: Duration::from_mins(1),
                ..TasksConfig::default()
            },
            ..Self::default()
        }
    }

    /// The database; SQLite in `pulp.db` below the storage root if none is set.
    pub fn database_url(&self) -> ConnectionUrl {
        self.database.url.clone().unwrap_or_else(|| {
            ConnectionUrl::new(format!("sqlite:{}", self.storage.root.join("pulp.db").display()))
        })
    }

    /// The blob store; `content` below the storage root if none is set.
    pub fn content_url(&self) -> String {
        let default = || format!("file:{}", self.storage.root.join("content").display());
        self.content.url.clone().unwrap_or_else(default)
    }

    /// Where crane looks for redirect files.
    pub fn crane_data_dir(&self) -> PathBuf {
        self.crane
            .data_dir
            .clone()
            .unwrap_or_else(|| self.storage.published_dir())
    }

    /// Base url of the published files, with a slash at its end: the one configured, or
    /// `https://<server_name>/pulp/docker/` as the plugin's documentation has it.
    pub fn redirect_base(&self) -> String {
        let mut base = match &self.server.redirect_base {
            Some(url) => url.to_string(),
            None => format!("https://{}/pulp/docker/", self.server.server_name),
        };
        if !base.ends_with('/') {
            base.push('/');
        }
        base
    }
}
