//! Settings of importers and distributors: JSON objects merged in layers, checked when they are set.
//!
//! Layers, highest first: the call's override, the repository's own, the plugin's file, the built-in default.

use serde_json::{Map, Value};
use url::Url;

use crate::{
    CodedError, ErrorCode, RegistryId, RepositoryId,
    export::{self, OciExport},
};

/// Type id of the importer.
pub const IMPORTER_TYPE: &str = "docker_importer";
/// Type id of the web distributor.
pub const WEB_DISTRIBUTOR_TYPE: &str = "docker_distributor_web";
/// Type id of the export distributor.
pub const EXPORT_DISTRIBUTOR_TYPE: &str = "docker_distributor_export";

/// A distributor's settings after merging and checking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DistributorSettings {
    /// The name by which clients pull.
    pub registry_id: RegistryId,
    /// Whether Crane asks for an entitlement.
    pub protected: bool,
    /// Base url of the published files; none means the server's own.
    pub redirect_url: Option<Url>,
    /// Where an export is written; none means below the publish directory.
    pub export_file: Option<std::path::PathBuf>,
    /// Of an export: write an OCI layout, and how; none means the v1 tar.
    pub oci_export: Option<OciExport>,
    /// Publish even if nothing changed.
    pub force_full: bool,
}

/// Applies `delta` to `config`: null removes a key, anything else sets it.
pub fn apply_delta(config: &mut Map<String, Value>, delta: &Map<String, Value>) {
    for (key, value) in delta {
        if value.is_null() {
            config.remove(key);
        } else {
            config.insert(key.clone(), value.clone());
        }
    }
}

/// Later layers win over earlier ones; a null in a later layer hides nothing.
pub fn merged(layers: &[&Map<String, Value>]) -> Map<String, Value> {
    let mut out = Map::new();
    for layer in layers {
        out.extend(
            layer
                .iter()
                .filter(|(_, v)| !v.is_null())
                .map(|(k, v)| (k.clone(), v.clone())),
        );
    }
    out
}

/// Checks a distributor's merged settings; all faults are reported at once.
pub fn distributor_settings(
    repo: &RepositoryId,
    config: &Map<String, Value>,
) -> Result<DistributorSettings, CodedError> {
    let mut faults = Vec::new();
    let registry_id = registry_id(repo, config).map_err(|e| faults.push(e)).ok();
    let protected = boolean(config, "protected").map_err(|e| faults.push(e)).ok();
    let force_full = boolean(config, "force_full").map_err(|e| faults.push(e)).ok();
    let redirect_url = redirect_url(config).map_err(|e| faults.extend(e)).ok();
    let export_file = export_file(config).map_err(|e| faults.push(e)).ok();
    let oci_export = export::oci_export(config).map_err(|e| faults.push(e)).ok();
    match (
        registry_id,
        protected,
        force_full,
        redirect_url,
        export_file,
        oci_export,
    ) {
        (
            Some(registry_id),
            Some(protected),
            Some(force_full),
            Some(redirect_url),
            Some(export_file),
            Some(oci_export),
        ) => Ok(DistributorSettings {
            registry_id,
            protected,
            redirect_url,
            export_file,
            oci_export,
            force_full,
        }),
        _ => Err(CodedError::all(faults).unwrap_or_else(|| {
            CodedError::new(ErrorCode::VALIDATION, "the distributor's settings are not valid")
        })),
    }
}

/// Reads a boolean that may come as a JSON boolean or as the text `true` or `false`; absent is false.
pub fn boolean(config: &Map<String, Value>, field: &str) -> Result<bool, CodedError> {
    match config.get(field) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(b)) => Ok(*b),
        Some(Value::String(s)) if s.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(s)) if s.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(CodedError::new(
            ErrorCode::NOT_BOOLEAN,
            format!("{field} is {other}; give true or false"),
        )
        .with("field", field)
        .with("value", other)),
    }
}

fn registry_id(repo: &RepositoryId, config: &Map<String, Value>) -> Result<RegistryId, CodedError> {
    const FIELD: &str = "repo-registry-id";
    let (text, code, hint) = match config.get(FIELD) {
        None | Some(Value::Null) => (
            repo.as_str().to_owned(),
            ErrorCode::REPOSITORY_ID_AS_REGISTRY_ID,
            "; set repo-registry-id, since the repository's id can't be used for it",
        ),
        Some(Value::String(s)) => (s.clone(), ErrorCode::INVALID_REGISTRY_ID, ""),
        Some(other) => (other.to_string(), ErrorCode::INVALID_REGISTRY_ID, ""),
    };
    text.parse::<RegistryId>().map_err(|e| {
        CodedError::new(code, format!("{e}{hint}"))
            .with("field", FIELD)
            .with("value", &text)
    })
}

fn redirect_url(config: &Map<String, Value>) -> Result<Option<Url>, Vec<CodedError>> {
    const FIELD: &str = "redirect-url";
    let text = match config.get(FIELD) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(s)) if s.is_empty() => return Ok(None),
        Some(Value::String(s)) => s.clone(),
        Some(other) => other.to_string(),
    };
    let fault = |code, what: &str| {
        CodedError::new(
            code,
            format!(
                "redirect-url {text:?} has no {what}; give a whole url like https://cdn.example.com/docker/"
            ),
        )
        .with("field", FIELD)
        .with("url", &text)
    };
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) if !scheme.is_empty() => (Some(scheme), rest),
        Some((_, rest)) => (None, rest),
        None => (None, text.as_str()),
    };
    let (host, path) = rest.split_once('/').map_or((rest, None), |(h, p)| (h, Some(p)));
    let mut faults = Vec::new();
    if scheme.is_none() {
        faults.push(fault(ErrorCode::REDIRECT_URL_SCHEME, "scheme"));
    }
    if host.is_empty() || (scheme.is_none() && !text.starts_with("//")) {
        faults.push(fault(ErrorCode::REDIRECT_URL_HOST, "host name"));
    }
    if path.is_none() {
        faults.push(fault(ErrorCode::REDIRECT_URL_PATH, "path"));
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let mut url = Url::parse(&text).map_err(|e| {
        vec![fault(
            ErrorCode::REDIRECT_URL_HOST,
            &format!("valid host name ({e})"),
        )]
    })?;
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    Ok(Some(url))
}

fn export_file(config: &Map<String, Value>) -> Result<Option<std::path::PathBuf>, CodedError> {
    const FIELD: &str = "export_file";
    let text = match config.get(FIELD) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(s)) => s.clone(),
        Some(other) => other.to_string(),
    };
    let path = std::path::PathBuf::from(&text);
    let climbs = path
        .components()
        .any(|c| matches!(c, std::path::Component::ParentDir));
    if !path.is_absolute() || climbs || path.file_name().is_none() || text.ends_with('/') {
        let what = format!("export_file {text:?} must be an absolute path of a file, without '..'");
        return Err(CodedError::new(ErrorCode::INVALID_EXPORT_FILE, what)
            .with("field", FIELD)
            .with("value", &text));
    }
    Ok(Some(path))
}

/// Importer settings for an upload that the system acts on.
pub fn mask_id(config: &Map<String, Value>) -> Result<Option<crate::unit::ImageId>, CodedError> {
    match config.get("mask_id") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) if s.is_empty() => Ok(None),
        Some(value) => {
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), ToOwned::to_owned);
            let id = text.parse().map_err(|e| {
                CodedError::new(ErrorCode::INVALID_VALUE, format!("mask_id: {e}"))
                    .with("property_names", ["mask_id"])
            })?;
            Ok(Some(id))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings(config: Value) -> Result<DistributorSettings, CodedError> {
        let Value::Object(map) = config else {
            panic!("an object")
        };
        distributor_settings(&"Repo".parse().unwrap(), &map)
    }

    #[test]
    fn the_repository_id_serves_as_registry_id_only_if_it_can() {
        assert_eq!(
            settings(json!({})).unwrap_err().code,
            ErrorCode::REPOSITORY_ID_AS_REGISTRY_ID
        );
        assert!(settings(json!({"repo-registry-id": "ns/repo"})).is_ok());
    }

    #[test]
    fn several_faults_are_told_at_once() {
        let error = settings(json!({"repo-registry-id": "A", "protected": "perhaps", "redirect-url": "x"}))
            .unwrap_err();
        let codes: Vec<_> = error.sub_errors.iter().map(|e| e.code.as_str()).collect();
        assert_eq!(codes, ["DKR1005", "DKR1004", "DKR1001", "DKR1002", "DKR1003"]);
    }

    #[test]
    fn a_redirect_url_ends_with_a_slash() {
        let s = settings(json!({"repo-registry-id": "a", "redirect-url": "https://cdn.example.com/docker"}))
            .unwrap();
        assert_eq!(
            s.redirect_url.unwrap().as_str(),
            "https://cdn.example.com/docker/"
        );
    }
}
