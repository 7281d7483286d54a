//! Settings of an export as an OCI layout: how the export distributor writes it.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{CodedError, ErrorCode, VersionNumber};

/// Fewest bytes of a part: below, an export would be files and nothing in them.
pub const MIN_PART_SIZE: u64 = 1024 * 1024;

/// How an OCI layout is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportLayout {
    /// As one tar, perhaps in parts: an OCI archive, once the parts are put together.
    #[default]
    Tar,
    /// As files.
    Directory,
}

/// What an incremental export builds on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportBase {
    /// The version that was exported last.
    Last,
    /// This version.
    Version(VersionNumber),
}

/// Settings of an export as an OCI layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OciExport {
    /// The directory to write; none means one below the publish directory.
    pub directory: Option<PathBuf>,
    /// As a tar or as files.
    pub layout: ExportLayout,
    /// Most bytes of one part of the tar.
    pub part_size: Option<u64>,
    /// None for a full export.
    pub base: Option<ExportBase>,
}

/// Reads the settings: none if `export_format` is not `oci`.
pub fn oci_export(config: &Map<String, Value>) -> Result<Option<OciExport>, CodedError> {
    let text = |field: &str| match config.get(field) {
        None | Some(Value::Null) => None,
        Some(Value::String(s)) => Some(s.clone()),
        Some(other) => Some(other.to_string()),
    };
    match text("export_format").as_deref() {
        None | Some("" | "v1") => return Ok(None),
        Some("oci") => {}
        Some(other) => {
            return Err(invalid(
                "export_format",
                &format!("{other:?} is neither v1 nor oci"),
            ));
        }
    }
    let layout = match text("export_layout").as_deref() {
        None | Some("" | "tar") => ExportLayout::Tar,
        Some("directory") => ExportLayout::Directory,
        Some(other) => {
            return Err(invalid(
                "export_layout",
                &format!("{other:?} is neither tar nor directory"),
            ));
        }
    };
    let part_size = match text("part_size").filter(|s| !s.is_empty()) {
        None => None,
        Some(text) => Some(bytes(&text).filter(|n| *n >= MIN_PART_SIZE).ok_or_else(|| {
            invalid(
                "part_size",
                &format!("{text:?} is no size of 1M or more; give bytes, or a number with K, M, G or T"),
            )
        })?),
    };
    if part_size.is_some() && layout == ExportLayout::Directory {
        return Err(invalid("part_size", "only a tar can be cut into parts"));
    }
    let base = match text("base").as_deref() {
        None | Some("") => None,
        Some("last") => Some(ExportBase::Last),
        Some(text) => Some(ExportBase::Version(VersionNumber(
            text.parse().ok().filter(|n| *n >= 0).ok_or_else(|| {
                invalid(
                    "base",
                    &format!("{text:?} is neither last nor the number of a version"),
                )
            })?,
        ))),
    };
    let directory = text("export_dir").filter(|s| !s.is_empty()).map(PathBuf::from);
    if let Some(path) = &directory {
        check_directory(path)?;
    }
    Ok(Some(OciExport {
        directory,
        layout,
        part_size,
        base,
    }))
}

fn check_directory(path: &Path) -> Result<(), CodedError> {
    let climbs = path.components().any(|c| matches!(c, Component::ParentDir));
    if path.is_absolute() && !climbs && path.file_name().is_some() {
        return Ok(());
    }
    let what = format!(
        "export_dir {:?} must be the absolute path of a directory, without '..'",
        path.display().to_string()
    );
    Err(CodedError::new(ErrorCode::INVALID_EXPORT_FILE, what)
        .with("field", "export_dir")
        .with("value", path))
}

fn invalid(field: &str, reason: &str) -> CodedError {
    CodedError::new(ErrorCode::INVALID_VALUE, format!("{field}: {reason}")).with("property_names", [field])
}

/// A number of bytes, with an ending K, M, G or T for powers of 1024.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, power) = match text.chars().last()?.to_ascii_uppercase() {
        'K' => (text.len() - 1, 1),
        'M' => (text.len() - 1, 2),
        'G' => (text.len() - 1, 3),
        'T' => (text.len() - 1, 4),
        _ => (text.len(), 0),
    };
    let number: u64 = text.get(..digits)?.parse().ok()?;
    number.checked_mul(1024u64.pow(power))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn read(config: Value) -> Result<Option<OciExport>, CodedError> {
        let Value::Object(map) = config else {
            panic!("an object")
        };
        oci_export(&map)
    }

    #[test]
    fn an_export_is_of_v1_unless_asked_otherwise() {
        assert_eq!(read(json!({})).unwrap(), None);
        assert_eq!(read(json!({"export_format": "v1"})).unwrap(), None);
        let plain = read(json!({"export_format": "oci"})).unwrap().unwrap();
        assert_eq!(
            (plain.layout, plain.part_size, plain.base),
            (ExportLayout::Tar, None, None)
        );
    }

    #[test]
    fn sizes_and_bases_are_read() {
        let of = |part_size: Value, base: Value| {
            read(json!({"export_format": "oci", "part_size": part_size, "base": base}))
                .map(|o| o.map(|o| (o.part_size, o.base)))
        };
        assert_eq!(
            of(json!("4G"), json!("last")).unwrap(),
            Some((Some(4 << 30), Some(ExportBase::Last)))
        );
        let version = ExportBase::Version(VersionNumber(7));
        assert_eq!(
            of(json!(2_000_000), json!(7)).unwrap(),
            Some((Some(2_000_000), Some(version)))
        );
        for (part_size, base) in [
            ("1", ""),
            ("-1", ""),
            ("x", ""),
            ("99999999T", ""),
            ("1M", "-1"),
            ("1M", "first"),
        ] {
            assert!(of(json!(part_size), json!(base)).is_err(), "{part_size} {base}");
        }
    }

    #[test]
    fn a_directory_is_not_cut_and_lies_at_an_absolute_path() {
        for config in [
            json!({"export_format": "oci", "export_layout": "directory", "part_size": "1M"}),
            json!({"export_format": "oci", "export_layout": "zip"}),
            json!({"export_format": "v3"}),
            json!({"export_format": "oci", "export_dir": "relative"}),
            json!({"export_format": "oci", "export_dir": "/a/../b"}),
        ] {
            assert!(read(config.clone()).is_err(), "{config}");
        }
    }
}
