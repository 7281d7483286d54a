//! Putting the layers together: each value is looked at by itself, so that a fault names its place.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::{Table, Value};

use super::{Config, ConnectionUrl, Secret, check};

/// Sections, and those within a section. A variable's name is split by the longest that fits.
const SECTIONS: [&str; 16] = [
    "database",
    "broker",
    "content",
    "content.s3",
    "storage",
    "server",
    "tasks",
    "tasks.deadlines",
    "tasks.slots",
    "crane",
    "token",
    "sync",
    "transfer",
    "log",
    "metrics",
    "tracing",
];

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Why.
        reason: String,
    },
    /// Keys or values that are not valid: all of them.
    #[error("{}", list(.0))]
    Faults(Vec<Fault>),
}

/// One key or value that is not valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// `file:line`, a variable of the environment, or empty for a default.
    pub place: String,
    /// Dotted, for example `tasks.slots.import`.
    pub key: String,
    /// What is wrong and what is allowed.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place.is_empty() {
            write!(f, "{}: {}", self.key, self.reason)
        } else {
            write!(f, "{}: {}: {}", self.place, self.key, self.reason)
        }
    }
}

fn list(faults: &[Fault]) -> String {
    let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
    format!("the configuration is not valid:\n  {}", lines.join("\n  "))
}

/// The layers of a configuration, lowest first. A later one wins.
#[derive(Debug, Default)]
pub struct Sources {
    base: Option<PathBuf>,
    settings: Vec<Setting>,
}

#[derive(Debug)]
struct Setting {
    path: Vec<String>,
    value: Value,
    place: String,
}

impl Sources {
    /// Only the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The defaults of `pulp standalone` instead of those of a role; see [`Config::standalone`].
    #[must_use]
    pub fn standalone(mut self, data_dir: &Path) -> Self {
        self.base = Some(data_dir.to_owned());
        self
    }

    /// Adds a TOML file.
    pub fn file(mut self, path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        self.settings.extend(settings_of_file(path, &text)?);
        Ok(self)
    }

    /// Adds variables `PULP_<SECTION>_<KEY>`; others are none of ours.
    #[must_use]
    pub fn environment<I, K, V>(mut self, variables: I) -> Self
    where
        I: IntoIterator<Item = (K, V)>,
        K: Into<OsString>,
        V: Into<OsString>,
    {
        for (name, value) in variables {
            // A name or value that is not UTF-8 can't be ours.
            if let (Ok(name), Ok(value)) = (name.into().into_string(), value.into().into_string())
                && let Some(path) = path_of_variable(&name)
            {
                let value = value_of_variable(&path, value);
                self.settings.push(Setting {
                    path,
                    value,
                    place: name,
                });
            }
        }
        self
    }

    /// Checks everything and gives the configuration.
    pub fn build(self) -> Result<Config, ConfigError> {
        let mut faults = Vec::new();
        let mut places = BTreeMap::new();
        let mut merged = Table::new();
        if let Some(data_dir) = &self.base {
            // The settings in which `Config::standalone` differs from the defaults.
            let text = |path: &Path| Value::String(path.to_string_lossy().into_owned());
            for (section, key, value) in [
                ("storage", "root", text(data_dir)),
                ("server", "plugins_dir", text(&data_dir.join("plugins.conf.d"))),
                ("crane", "polling_interval_seconds", Value::Integer(2)),
                ("tasks", "lease_ttl_seconds", Value::Integer(60)),
                ("tasks", "worker_ttl_seconds", Value::Integer(60)),
            ] {
                merge(&mut merged, &[section.to_owned(), key.to_owned()], value);
            }
        }
        for Setting { path, value, place } in self.settings {
            let mut alone = Table::new();
            merge(&mut alone, &path, value.clone());
            match Config::deserialize(alone) {
                Ok(_) => {
                    merge(&mut merged, &path, value);
                    places.insert(path.join("."), place);
                }
                Err(e) => faults.push(Fault {
                    place,
                    key: path.join("."),
                    reason: one_line(&e),
                }),
            }
        }
        let mut config = Config::deserialize(merged).map_err(|e| {
            let fault = Fault {
                place: String::new(),
                key: "configuration".into(),
                reason: one_line(&e),
            };
            ConfigError::Faults(vec![fault])
        })?;
        let mut findings = secrets_from_files(&mut config);
        findings.extend(check::findings(&config));
        faults.extend(findings.into_iter().map(|(key, reason)| {
            let place = places.get(key).cloned().unwrap_or_default();
            Fault {
                place,
                key: key.to_owned(),
                reason,
            }
        }));
        if faults.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError::Faults(faults))
        }
    }
}

/// Replaces `*_file` keys by what stands in the file.
fn secrets_from_files(config: &mut Config) -> Vec<check::Finding> {
    let mut found = Vec::new();
    let mut read = |file: &Option<PathBuf>, taken: bool, key: &'static str| -> Option<String> {
        let file = file.as_ref()?;
        if taken {
            found.push((key, "set the value or its file, not both".to_owned()));
            return None;
        }
        match fs::read_to_string(file) {
            Ok(text) => Some(text.trim_end_matches(['\r', '\n']).to_owned()),
            Err(e) => {
                found.push((key, format!("can't read {}: {e}", file.display())));
                None
            }
        }
    };
    let database = &mut config.database;
    if let Some(url) = read(&database.url_file, database.url.is_some(), "database.url_file") {
        database.url = Some(ConnectionUrl::new(url));
    }
    let broker = &mut config.broker;
    let taken = broker.url != super::BrokerConfig::default().url;
    if let Some(url) = read(&broker.url_file, taken, "broker.url_file") {
        broker.url = ConnectionUrl::new(url);
    }
    let s3 = &mut config.content.s3;
    let taken = s3.secret_access_key.is_some();
    if let Some(key) = read(
        &s3.secret_access_key_file,
        taken,
        "content.s3.secret_access_key_file",
    ) {
        s3.secret_access_key = Some(Secret::new(key));
    }
    let tracing = &mut config.tracing;
    if let Some(text) = read(
        &tracing.headers_file,
        tracing.headers.is_some(),
        "tracing.headers_file",
    ) {
        tracing.headers = Some(Secret::new(text));
    }
    found
}

/// Sets the value at a path, making the tables on the way.
fn merge(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [key] => {
            table.insert(key.clone(), value);
        }
        [key, rest @ ..] => {
            let inner = table
                .entry(key.clone())
                .or_insert_with(|| Value::Table(Table::new()));
            if !inner.is_table() {
                *inner = Value::Table(Table::new());
            }
            if let Value::Table(inner) = inner {
                merge(inner, rest, value);
            }
        }
    }
}

/// Every value of a file that is no table of ours, with its line.
fn settings_of_file(path: &Path, text: &str) -> Result<Vec<Setting>, ConfigError> {
    let line_at = |at: usize| {
        text.get(..at)
            .map_or(1, |before| before.matches('\n').count() + 1)
    };
    let syntax = |e: &toml::de::Error| ConfigError::Syntax {
        path: path.to_owned(),
        line: e.span().map_or(1, |s| line_at(s.start)),
        reason: one_line(e),
    };
    let values: Table = toml::from_str(text).map_err(|e| syntax(&e))?;
    let spans = toml::de::DeTable::parse(text).map_err(|e| syntax(&e))?;
    let mut settings = Vec::new();
    walk(
        &values,
        spans.get_ref(),
        &mut Vec::new(),
        &mut |key, value, at| {
            let place = format!("{}:{}", path.display(), line_at(at));
            settings.push(Setting {
                path: key.to_vec(),
                value: value.clone(),
                place,
            });
        },
    );
    Ok(settings)
}

fn walk(
    values: &Table,
    spans: &toml::de::DeTable<'_>,
    path: &mut Vec<String>,
    visit: &mut impl FnMut(&[String], &Value, usize),
) {
    for (key, span) in spans {
        let Some(value) = values.get(key.get_ref().as_ref()) else {
            continue;
        };
        path.push(key.get_ref().to_string());
        match (value, span.get_ref()) {
            (Value::Table(inner), toml::de::DeValue::Table(spans))
                if SECTIONS.contains(&path.join(".").as_str()) =>
            {
                walk(inner, spans, path, visit);
            }
            _ => visit(path, value, key.span().start),
        }
        path.pop();
    }
}

/// `PULP_TASKS_SLOTS_IMPORT` → `tasks.slots.import`.
fn path_of_variable(name: &str) -> Option<Vec<String>> {
    let words = name.strip_prefix("PULP_")?.to_ascii_lowercase();
    let fitting = SECTIONS.iter().filter_map(|section| {
        let key = words
            .strip_prefix(section.replace('.', "_").as_str())?
            .strip_prefix('_')?;
        Some((section, key))
    });
    let (section, key) = fitting.max_by_key(|(section, _)| section.len())?;
    // Kubernetes sets PULP_CRANE_PORT, PULP_CRANE_SERVICE_HOST, … for a service named pulp-crane.
    if key.is_empty() || key == "port" || key.starts_with("port_") || key.starts_with("service_") {
        return None;
    }
    Some(section.split('.').chain([key]).map(ToOwned::to_owned).collect())
}

/// Variables are text: the first reading that the key takes is it (number, boolean, else the text itself).
fn value_of_variable(path: &[String], text: String) -> Value {
    let typed = [
        text.parse().ok().map(Value::Integer),
        text.parse().ok().map(Value::Float),
        text.parse().ok().map(Value::Boolean),
    ];
    let fits = |value: &Value| {
        let mut alone = Table::new();
        merge(&mut alone, path, value.clone());
        Config::deserialize(alone).is_ok()
    };
    typed
        .into_iter()
        .flatten()
        .find(fits)
        .unwrap_or(Value::String(text))
}

/// The message without the excerpt of the file that the parser draws.
fn one_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', "; ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{io::Write as _, time::Duration};

    use super::*;
    use crate::config::{CraneMode, LogFormat, SlotsConfig};

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Sources::new()
            .file(file(text).path())?
            .environment(environment.iter().copied())
            .build()
    }

    fn faults(result: Result<Config, ConfigError>) -> Vec<String> {
        match result.unwrap_err() {
            ConfigError::Faults(faults) => {
                // The file's name is another one in each run.
                let place = |f: &Fault| {
                    f.place
                        .rsplit('/')
                        .next()
                        .unwrap()
                        .rsplit(':')
                        .next()
                        .unwrap()
                        .to_owned()
                };
                faults
                    .iter()
                    .map(|f| format!("{} {}: {}", place(f), f.key, f.reason))
                    .collect()
            }
            other => panic!("{other}"),
        }
    }

    #[test]
    fn nothing_set_is_a_server_that_needs_nothing_installed() {
        let config = Sources::new().build().unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(config.database_url().expose(), "sqlite:/var/lib/pulp/pulp.db");
        assert_eq!(config.content_url(), "file:/var/lib/pulp/content");
        assert_eq!(
            config.crane_data_dir(),
            Path::new("/var/lib/pulp/published/docker")
        );
        assert_eq!(config.tasks.lease_ttl, Duration::from_secs(3));
    }

    #[test]
    fn standalone_keeps_everything_in_its_directory_and_takes_overrides() {
        let dir = Path::new("/srv/p");
        let config = Sources::new().standalone(dir).build().unwrap();
        assert_eq!(config, Config::standalone(dir));
        assert_eq!(config.database_url().expose(), "sqlite:/srv/p/pulp.db");
        assert_eq!(config.storage.uploads_dir(), Path::new("/srv/p/uploads"));
        assert_eq!(config.crane.polling_interval, Duration::from_secs(2));
        let variables = [
            ("PULP_CRANE_POLLING_INTERVAL_SECONDS", "0.5"),
            ("PULP_SERVER_API_LISTEN", "0.0.0.0:80"),
        ];
        let config = Sources::new()
            .standalone(dir)
            .environment(variables)
            .build()
            .unwrap();
        assert_eq!(config.crane.polling_interval, Duration::from_millis(500));
        assert_eq!(config.server.api_listen.port(), 80);
        assert_eq!(config.storage.root, dir);
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let config = load(
            "[tasks]\nmax_attempts = 5\nsweep_seconds = 2\n[tasks.slots]\nimport = 3\n[server]\nhost = 'a.example'\n",
            &[
                ("PULP_TASKS_MAX_ATTEMPTS", "7"),
                ("PULP_TASKS_SLOTS_SYNC", "9"),
                ("PULP_DATABASE_URL", "postgres://u:p@db/pulp"),
                ("PULP_CONTENT_S3_ALLOW_HTTP", "true"),
                ("PULP_BROKER_PREFIX", "12"),
                ("PULP_CRANE_MODE", "redirect"),
                ("PULP_LOG_FORMAT", "json"),
            ],
        )
        .unwrap();
        assert_eq!(
            (config.tasks.max_attempts, config.tasks.sweep),
            (7, Duration::from_secs(2))
        );
        assert_eq!((config.tasks.slots.import, config.tasks.slots.sync), (3, 9));
        assert_eq!(config.tasks.slots.interactive, SlotsConfig::default().interactive);
        assert_eq!(config.database_url().expose(), "postgres://u:p@db/pulp");
        assert!(config.content.s3.allow_http);
        assert_eq!(config.broker.prefix, "12");
        assert_eq!(
            (config.crane.mode, config.log.format),
            (CraneMode::Redirect, LogFormat::Json)
        );
        assert_eq!(config.server.server_name, "a.example");
    }

    #[test]
    fn weights_of_owners_come_as_a_table_or_as_text() {
        let text = "[tasks]\nowner_weights = { scheduler = 2, 'user:ann' = 4 }";
        let expected = BTreeMap::from([("scheduler".to_owned(), 2), ("user:ann".to_owned(), 4)]);
        assert_eq!(load(text, &[]).unwrap().tasks.owner_weights, expected);
        let table = "[tasks.owner_weights]\nscheduler = 2\n'user:ann' = 4";
        assert_eq!(load(table, &[]).unwrap().tasks.owner_weights, expected);
        let variable = [("PULP_TASKS_OWNER_WEIGHTS", "user:ann=4, scheduler=2")];
        assert_eq!(load("", &variable).unwrap().tasks.owner_weights, expected);
        assert!(load("", &[]).unwrap().tasks.owner_weights.is_empty());
    }

    #[test]
    fn deadlines_are_read_as_people_write_them() {
        let text = "[tasks]\nstalled_after = '1h 30m'\n[tasks.deadlines]\nsync = '6h'\npublish = { soft = '90s', hard = '2m' }";
        let tasks = load(text, &[("PULP_TASKS_DEADLINES_IMPORT_UPLOAD", "2days")])
            .unwrap()
            .tasks;
        let hours = |n| Duration::from_hours(n);
        assert_eq!(tasks.stalled_after, Duration::from_mins(90));
        let deadlines = tasks.deadlines();
        assert_eq!(deadlines.of("sync").soft, hours(6));
        assert_eq!(deadlines.of("sync").hard, hours(6) + tasks.hard_margin());
        assert_eq!(deadlines.of("import_upload").soft, hours(48));
        assert_eq!(deadlines.of("publish").hard, Duration::from_mins(2));
        // What is not set has the release's own.
        assert_eq!(deadlines.of("delete_repository").soft, hours(1));
        let never = load("[tasks]\nend_stalled_after = 'never'", &[]).unwrap().tasks;
        assert_eq!(never.end_stalled_after, None);
    }

    #[test]
    fn a_deadline_that_is_wrong_is_refused_with_its_line() {
        let text = "[tasks.deadlines]\nsnyc = '6h'\npublish = '6 parsecs'\nimport_upload = 6\nsync = { soft = '2h', hard = '1h' }\n\
                    delete_importer = '0s'\n[tasks]\nstalled_after = 'later'\nend_stalled_after = '1m'";
        let found = faults(load(text, &[("PULP_TASKS_DEADLINES_SYNC", "soon")]));
        for (at, key, words) in [
            ("2", "tasks.deadlines.snyc", "expected one of"),
            ("3", "tasks.deadlines.publish", "6 parsecs"),
            ("4", "tasks.deadlines.import_upload", "expected a duration"),
            ("5", "tasks.deadlines.sync", "before the soft"),
            ("6", "tasks.deadlines.delete_importer", "above 0"),
            ("8", "tasks.stalled_after", "later"),
            ("9", "tasks.end_stalled_after", "stalled_after"),
            ("PULP_TASKS_DEADLINES_SYNC", "tasks.deadlines.sync", "soon"),
        ] {
            let place = format!("{at} {key}: ");
            assert!(
                found.iter().any(|f| f.starts_with(&place) && f.contains(words)),
                "{place}{words} in {found:#?}"
            );
        }
        assert_eq!(found.len(), 8, "{found:#?}");
    }

    #[test]
    fn every_fault_is_told_with_its_place() {
        let text = "[tasks]\nmax_attempts = 'many'\nswep_seconds = 2\n\n[brokr]\nurl = 'memory:'\n\n[content]\nurl = 'ftp://x'\n";
        let found = faults(load(
            text,
            &[("PULP_TASKS_SLOTS_IMPRT", "1"), ("PULP_LOG_LEVEL", "inof")],
        ));
        assert_eq!(found.len(), 6, "{found:#?}");
        for (at, key) in [
            ("2", "tasks.max_attempts"),
            ("3", "tasks.swep_seconds"),
            ("5", "brokr"),
            ("9", "content.url"),
            ("PULP_TASKS_SLOTS_IMPRT", "tasks.slots.imprt"),
            ("PULP_LOG_LEVEL", "log.level"),
        ] {
            assert!(
                found.iter().any(|f| f.starts_with(&format!("{at} {key}: "))),
                "{at} {key} in {found:#?}"
            );
        }
    }

    #[test]
    fn a_file_that_is_no_toml_is_told_with_its_line() {
        let error = load("[tasks]\nmax_attempts = \n", &[]).unwrap_err();
        assert!(matches!(error, ConfigError::Syntax { line: 2, .. }), "{error}");
        let missing = Sources::new()
            .file(Path::new("/nonexistent/pulp.toml"))
            .unwrap_err()
            .to_string();
        assert!(missing.contains("/nonexistent/pulp.toml"), "{missing}");
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for (text, key) in [
            ("[tasks]\nlease_ttl_seconds = 0", "tasks.lease_ttl_seconds"),
            ("[tasks]\nlease_ttl_seconds = -1", "tasks.lease_ttl_seconds"),
            ("[tasks]\nlease_ttl_seconds = nan", "tasks.lease_ttl_seconds"),
            ("[tasks]\nmax_attempts = 0", "tasks.max_attempts"),
            ("[database]\nurl = 'mysql://x'", "database.url"),
            ("[database]\nurl = 'postgres:'", "database.url"),
            ("[broker]\nurl = 'redis://x'", "broker.url"),
            ("[storage]\nroot = 'relative'", "storage.root"),
            ("[server]\nserver_name = 'no host'", "server.server_name"),
            ("[server]\ncrane_listen = '127.0.0.1:8080'", "server.crane_listen"),
            ("[crane]\nendpoint = 'http://x/'", "crane.endpoint"),
            (
                "[content.s3]\nendpoint = 'http://minio:9000'",
                "content.s3.endpoint",
            ),
            ("[content.s3]\naccess_key_id = 'a'", "content.s3.access_key_id"),
            ("[tasks]\nowner_weights = {scheduler = 0}", "tasks.owner_weights"),
            ("[tasks]\nowner_weights = {ann = 2}", "tasks.owner_weights"),
            ("[tasks]\nowner_weights = 'scheduler'", "tasks.owner_weights"),
            ("[tracing]\nendpoint = 'ftp://x'", "tracing.endpoint"),
            (
                "[tracing]\nendpoint = 'http://user:secret@collector:4318'",
                "tracing.endpoint",
            ),
            ("[tracing]\nsample_ratio = 1.5", "tracing.sample_ratio"),
            ("[tracing]\nheaders = 'no pair'", "tracing.headers"),
            (
                "[tasks.slots]\ninteractive=0\nimport=0\npublish=0\nsync=0\nmaintenance=0",
                "tasks.slots",
            ),
        ] {
            let found = faults(load(text, &[]));
            assert!(found.len() == 1 && found[0].contains(key), "{text}: {found:?}");
        }
    }

    #[test]
    fn secrets_come_from_files_and_never_show() {
        let url = file("postgres://pulp:hunter2@db/pulp\n");
        let path = url.path().to_str().unwrap();
        let text = format!(
            "[database]\nurl_file = '{path}'\n[content.s3]\naccess_key_id = 'id'\nsecret_access_key_file = '{path}'\n"
        );
        let config = load(&text, &[]).unwrap();
        assert_eq!(config.database_url().expose(), "postgres://pulp:hunter2@db/pulp");
        assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
        let found = faults(load(&text, &[("PULP_DATABASE_URL", "sqlite:/x")]));
        assert!(found[0].contains("database.url_file"), "{found:?}");
    }

    #[test]
    fn a_wrong_url_is_told_without_its_password() {
        let error = load("[database]\nurl = 'mysql://u:hunter2@db/x'", &[])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("database.url") && !error.contains("hunter2"),
            "{error}"
        );
    }

    #[test]
    fn variables_that_kubernetes_sets_for_a_service_are_not_ours() {
        let variables = [
            ("PULP_CRANE_PORT", "tcp://10.0.0.1:5000"),
            ("PULP_CRANE_PORT_5000_TCP", "x"),
            ("PULP_CRANE_SERVICE_HOST", "x"),
            ("PULP_ADMIN_PASSWORD", "x"),
            ("PULP_CONFIG", "x"),
            ("PULP_LOG", "x"),
        ];
        assert_eq!(load("", &variables).unwrap(), Config::default());
    }

    #[test]
    fn the_base_of_redirects_ends_with_a_slash() {
        let config = load("[server]\nserver_name = 'pulp.example.com'", &[]).unwrap();
        assert_eq!(config.redirect_base(), "https://pulp.example.com/pulp/docker/");
        let config = load("[server]\nredirect_base = 'http://cdn.example.com/docker'", &[]).unwrap();
        assert_eq!(config.redirect_base(), "http://cdn.example.com/docker/");
    }
}
