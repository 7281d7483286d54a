//! What the settings must agree on beyond their types.

use super::Config;

/// A fault found: the dotted key and what is wrong with it.
pub(super) type Finding = (&'static str, String);

/// All faults of a configuration.
pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut demand = |holds: bool, key: &'static str, reason: String| {
        if !holds {
            found.push((key, reason));
        }
    };
    services(config, &mut demand);
    storage(config, &mut demand);
    server(config, &mut demand);
    tasks(config, &mut demand);
    tracing(config, &mut demand);
    super::token::check(config, &mut demand);
    if let Err(e) = crate::telemetry::filter(&config.log.level) {
        demand(false, "log.level", e.to_string());
    }
    found
}

fn services(config: &Config, demand: &mut impl FnMut(bool, &'static str, String)) {
    if let Some(url) = &config.database.url {
        let path = url.expose().strip_prefix("sqlite:").map(str::trim);
        let known = match url.scheme() {
            "sqlite" => path.is_some_and(|p| !p.is_empty()),
            "postgres" | "postgresql" => is_network_url(url.expose()),
            _ => false,
        };
        demand(
            known,
            "database.url",
            format!("{url} is none of sqlite:/path/to/pulp.db and postgres://user:password@host/database"),
        );
    }
    demand(
        config.database.max_connections != Some(0),
        "database.max_connections",
        "must be 1 or more".into(),
    );
    let broker = &config.broker;
    let known = match broker.url.scheme() {
        "memory" => true,
        "amqp" | "amqps" => is_network_url(broker.url.expose()),
        _ => false,
    };
    demand(
        known,
        "broker.url",
        format!(
            "{} is none of memory: and amqp://user:password@host:5672/vhost",
            broker.url
        ),
    );
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let prefix_fits = (1..=64).contains(&broker.prefix.len()) && broker.prefix.chars().all(plain);
    demand(
        prefix_fits,
        "broker.prefix",
        format!(
            "{:?} must be 1 to 64 letters, digits, '.', '_' and '-'",
            broker.prefix
        ),
    );
    if let Some(url) = &config.content.url {
        let file = url
            .strip_prefix("file:")
            .map(|p| p.strip_prefix("//").unwrap_or(p));
        let bucket = url
            .strip_prefix("s3://")
            .map(|rest| rest.split('/').next().unwrap_or_default());
        let known = file.is_some_and(|p| p.starts_with('/')) || bucket.is_some_and(|b| !b.is_empty());
        demand(
            known,
            "content.url",
            format!("{url:?} is none of file:/directory and s3://bucket/prefix"),
        );
    }
    let s3 = &config.content.s3;
    if let Some(endpoint) = &s3.endpoint {
        demand(
            matches!(endpoint.scheme(), "http" | "https"),
            "content.s3.endpoint",
            format!("{endpoint} must begin with https:// or http://"),
        );
        demand(
            endpoint.scheme() != "http" || s3.allow_http,
            "content.s3.endpoint",
            format!("{endpoint} is not encrypted; set content.s3.allow_http = true if that is meant"),
        );
    }
    demand(
        s3.access_key_id.is_some() == s3.secret_access_key.is_some(),
        "content.s3.access_key_id",
        "access_key_id and secret_access_key (or its file) go together; set both or none".into(),
    );
}

fn storage(config: &Config, demand: &mut impl FnMut(bool, &'static str, String)) {
    let storage = &config.storage;
    let directories = [
        ("storage.root", Some(storage.root.clone())),
        ("storage.uploads_dir", storage.uploads.clone()),
        ("storage.working_dir", storage.working.clone()),
        ("storage.published_dir", storage.published.clone()),
        ("server.plugins_dir", Some(config.server.plugins_dir.clone())),
        ("crane.data_dir", config.crane.data_dir.clone()),
    ];
    for (key, directory) in directories {
        if let Some(directory) = directory {
            demand(
                directory.is_absolute(),
                key,
                format!("{} must be an absolute path", directory.display()),
            );
        }
    }
}

fn server(config: &Config, demand: &mut impl FnMut(bool, &'static str, String)) {
    let server = &config.server;
    let named = url::Host::parse(&server.server_name).is_ok();
    demand(
        named,
        "server.server_name",
        format!("{:?} is no host name", server.server_name),
    );
    let (api, crane) = (server.api_listen, server.crane_listen);
    demand(
        api != crane || api.port() == 0,
        "server.crane_listen",
        format!("{crane} is where the api listens; give crane a port of its own"),
    );
    if let Some(base) = &server.redirect_base {
        demand(
            matches!(base.scheme(), "http" | "https"),
            "server.redirect_base",
            format!("{base} must begin with https:// or http://"),
        );
    }
    if let Some(endpoint) = &config.crane.endpoint {
        let fits = url::Url::parse(&format!("http://{endpoint}/"))
            .is_ok_and(|u| u.path() == "/" && u.username().is_empty() && !endpoint.contains('/'));
        demand(
            fits,
            "crane.endpoint",
            format!("{endpoint:?} must be host or host:port"),
        );
    }
}

fn tasks(config: &Config, demand: &mut impl FnMut(bool, &'static str, String)) {
    let tasks = &config.tasks;
    demand(
        tasks.max_attempts >= 1,
        "tasks.max_attempts",
        "must be 1 or more".into(),
    );
    demand(
        (1..=10_000).contains(&tasks.relay_batch),
        "tasks.relay_batch",
        "must be 1 to 10000".into(),
    );
    demand(
        (1..=10_000).contains(&tasks.grant_batch),
        "tasks.grant_batch",
        "must be 1 to 10000".into(),
    );
    // A misspelt owner would only be a weight that never counts.
    let known = |owner: &str| {
        matches!(owner, "scheduler" | "system")
            || owner.strip_prefix("user:").is_some_and(|login| !login.is_empty())
    };
    for owner in tasks.owner_weights.keys() {
        demand(
            known(owner),
            "tasks.owner_weights",
            format!("{owner:?} is none of user:<login>, scheduler and system"),
        );
    }
    demand(
        tasks.max_expanded_bytes >= 1,
        "tasks.max_expanded_bytes",
        "must be 1 or more".into(),
    );
    demand(
        (1..=64 * 1024 * 1024).contains(&config.server.max_chunk_bytes),
        "server.max_chunk_bytes",
        "must be 1 to 67108864 (64 MiB)".into(),
    );
    demand(
        tasks
            .end_stalled_after
            .is_none_or(|end| end >= tasks.stalled_after),
        "tasks.end_stalled_after",
        "must not be shorter than tasks.stalled_after, after which it is told".into(),
    );
    demand(
        tasks.slots.total() >= 1,
        "tasks.slots",
        "all classes are 0: this worker would never work".into(),
    );
}

fn tracing(config: &Config, demand: &mut impl FnMut(bool, &'static str, String)) {
    let tracing = &config.tracing;
    if let Some(url) = &tracing.endpoint {
        demand(
            matches!(url.scheme(), "http" | "https") && url.has_host(),
            "tracing.endpoint",
            "must be the http: or https: base url of an OTLP receiver, for example http://collector:4318"
                .into(),
        );
        // They would stand in the log when the receiver can't be reached.
        demand(
            url.username().is_empty() && url.password().is_none(),
            "tracing.endpoint",
            "must hold neither user nor password; give them by tracing.headers or tracing.headers_file"
                .into(),
        );
    }
    demand(
        (0.0..=1.0).contains(&tracing.sample_ratio),
        "tracing.sample_ratio",
        "must be 0 to 1".into(),
    );
    if let Some(headers) = &tracing.headers {
        demand(
            crate::export::headers(headers.expose()).is_some(),
            "tracing.headers",
            "must be name=value, several of them parted by commas, values percent-encoded".into(),
        );
    }
}

/// Whether it is a url with a host name or address.
fn is_network_url(text: &str) -> bool {
    url::Url::parse(text).is_ok_and(|u| u.has_host())
}
