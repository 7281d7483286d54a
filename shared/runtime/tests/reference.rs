//! The user guide lists every setting with its variable, and its defaults are the real ones.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{collections::BTreeMap, path::Path};

use pulp_runtime::config::{Config, Sources};
use serde::Deserialize as _;
use toml::{Table, Value};

/// The configuration in which one dotted key is set.
fn with(key: &str, value: Value) -> Result<Config, toml::de::Error> {
    let table = key.rsplit('.').fold(value, |inner, part| {
        Value::Table(Table::from_iter([(part.to_owned(), inner)]))
    });
    Config::deserialize(table)
}

/// The keys of a section, from what is said about a key that is not there; none if it is no section.
fn keys_of(section: &str) -> Option<Vec<String>> {
    let dot = if section.is_empty() { "" } else { "." };
    let error = with(&format!("{section}{dot}no_such_key"), Value::Boolean(true)).unwrap_err();
    let (_, expected) = error
        .message()
        .split_once("unknown field `no_such_key`, expected ")?;
    // Between backticks stand the names, outside of them the words.
    let names = expected.split('`').skip(1).step_by(2);
    Some(names.map(|name| format!("{section}{dot}{name}")).collect())
}

/// All keys that are no sections, in dotted form.
fn all_keys() -> Vec<String> {
    let mut sections = vec![String::new()];
    let mut keys = Vec::new();
    while let Some(section) = sections.pop() {
        for key in keys_of(&section).unwrap() {
            if keys_of(&key).is_some() {
                sections.push(key);
            } else if key != "server.host" {
                // Another word for server_name.
                keys.push(key);
            }
        }
    }
    keys.sort_unstable();
    keys
}

/// Rows of the guide's tables: key to the other columns.
fn rows() -> BTreeMap<String, Vec<String>> {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/administration.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    guide
        .lines()
        .filter_map(|line| {
            let columns: Vec<&str> = line.strip_prefix("| ")?.split(" | ").collect();
            let key = columns.first()?.strip_prefix('`')?.strip_suffix('`')?;
            let setting = columns.get(1)?.starts_with("`PULP_");
            setting.then(|| {
                let rest = columns.iter().skip(1).map(|c| (*c).to_owned()).collect();
                (key.to_owned(), rest)
            })
        })
        .collect()
}

#[test]
fn the_guide_lists_every_setting_with_its_variable() {
    let rows = rows();
    let listed: Vec<&String> = rows.keys().collect();
    let keys = all_keys();
    assert_eq!(
        listed,
        keys.iter().collect::<Vec<_>>(),
        "left: docs/administration.md"
    );
    for (key, columns) in &rows {
        let variable = format!("`PULP_{}`", key.replace('.', "_").to_ascii_uppercase());
        assert_eq!(columns[0], variable);
    }
}

/// Those of a section that the loader doesn't know would be passed over without a word.
#[test]
fn variables_of_every_section_are_read() {
    for key in all_keys() {
        let (section, _) = key.rsplit_once('.').unwrap();
        let wrong = format!("{section}.no_such_key");
        let variable = format!("PULP_{}", wrong.replace('.', "_").to_ascii_uppercase());
        let refused = Sources::new().environment([(variable, "1")]).build();
        let told = refused.map(|_| ()).unwrap_err().to_string();
        assert!(told.contains(&wrong), "{told}");
    }
}

#[test]
fn defaults_in_the_guide_are_the_real_ones() {
    let mut checked = 0;
    for (key, columns) in rows() {
        // A default in words is one that depends on something else.
        let literal = columns[1].strip_prefix('`').and_then(|d| d.strip_suffix('`'));
        let Some(default) = literal.filter(|d| !d.contains('`')) else {
            continue;
        };
        let value: Table = format!("value = {default}").parse().unwrap();
        let config = with(&key, value["value"].clone()).unwrap();
        assert_eq!(config, Config::default(), "{key} = {default}");
        checked += 1;
    }
    assert!(checked >= 20, "only {checked} defaults were found");
}
