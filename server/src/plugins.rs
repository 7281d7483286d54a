//! The plugins' own defaults: `<plugins_dir>/<name>.json`, as Pulp 2 had them in `/etc/pulp/server/plugins.conf.d`.

use std::{collections::BTreeMap, io::ErrorKind, path::Path};

use anyhow::Context as _;
use pulp_model::config::{EXPORT_DISTRIBUTOR_TYPE, IMPORTER_TYPE, WEB_DISTRIBUTOR_TYPE};
use serde_json::{Map, Value};

/// File names and the types that they are for.
const FILES: [(&str, &str); 3] = [
    ("docker_importer.json", IMPORTER_TYPE),
    ("docker_distributor.json", WEB_DISTRIBUTOR_TYPE),
    ("docker_distributor_export.json", EXPORT_DISTRIBUTOR_TYPE),
];

/// Reads the files that are there; one that is not a JSON object is an error that names it.
pub(crate) fn defaults(directory: &Path) -> anyhow::Result<BTreeMap<String, Map<String, Value>>> {
    let mut defaults = BTreeMap::new();
    for (name, type_id) in FILES {
        let path = directory.join(name);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(e).with_context(|| format!("can't read {}", path.display())),
        };
        let settings = serde_json::from_str(&text)
            .with_context(|| format!("{} must hold one JSON object of settings", path.display()))?;
        defaults.insert(type_id.to_owned(), settings);
    }
    Ok(defaults)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_that_is_no_object_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(defaults(dir.path()).unwrap().is_empty());
        std::fs::write(
            dir.path().join("docker_distributor.json"),
            r#"{"protected": true}"#,
        )
        .unwrap();
        assert_eq!(
            defaults(dir.path()).unwrap()[WEB_DISTRIBUTOR_TYPE]["protected"],
            true
        );
        std::fs::write(dir.path().join("docker_importer.json"), "[]").unwrap();
        assert!(
            defaults(dir.path())
                .unwrap_err()
                .to_string()
                .contains("docker_importer.json")
        );
    }
}
