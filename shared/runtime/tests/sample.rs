//! The sample configuration is one that a cluster could start with.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use pulp_runtime::config::{Config, Sources};

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/pulp.toml")
}

#[test]
fn the_sample_is_valid_and_for_a_cluster() {
    let config = Sources::new().file(&sample()).unwrap().build().unwrap();
    assert_eq!(config.database_url().scheme(), "postgres");
    assert_eq!(config.broker.url.scheme(), "amqp");
    // What it states beyond the services' addresses are the defaults, so it documents them truthfully.
    let defaults = Config::default();
    assert_eq!(config.tasks, defaults.tasks);
    assert_eq!(config.crane, defaults.crane);
    assert_eq!(config.log, defaults.log);
    assert_eq!(config.storage, defaults.storage);
    assert_eq!(config.content_url(), defaults.content_url());
    let mut server = config.server.clone();
    server.server_name = defaults.server.server_name.clone();
    assert_eq!(server, defaults.server);
}

#[test]
fn what_the_sample_has_commented_out_is_valid_too() {
    let text = std::fs::read_to_string(sample()).unwrap();
    // `# key = value` is a setting, other comments are prose.
    let is_setting = |line: &str| {
        let key = line.split_once(" = ").map(|(key, _)| key);
        key.is_some_and(|k| !k.is_empty() && k.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
    };
    let mut section = String::new();
    let mut tried = 0;
    for line in text.lines() {
        if line.starts_with('[') {
            line.clone_into(&mut section);
        }
        let Some(setting) = line.strip_prefix("# ").filter(|l| is_setting(l)) else {
            continue;
        };
        let (key, value) = setting.split_once(" = ").unwrap();
        let table: toml::Table = format!("{section}\n{key} = {value}").parse().unwrap();
        let read = <Config as serde::Deserialize>::deserialize(table);
        assert!(read.is_ok(), "{section} {setting}: {}", read.unwrap_err());
        tried += 1;
    }
    assert!(tried >= 15, "only {tried} settings were found");
}
