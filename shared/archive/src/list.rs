//! The JSON of a manifest list or OCI index, uploaded by itself.
//!
//! Checks of pulp_docker 3.1 (`ManifestList.check_json`), with OCI's media types added. That the members are in
//! the repository is the caller's to check: see [`Imported::references`].

use std::{fs::File, io::Read, path::Path};

use pulp_model::{
    MediaType,
    image::{MAX_MANIFEST_BYTES, Manifest},
};
use serde_json::{Map, Value};

use crate::{
    ArchiveError, BlobSink, Imported, Rejection, UploadKind, index::too_large, json, output::Output,
    sink::put_bytes,
};

/// What messages call the upload.
const NAME: &str = "manifest list";

/// Imports the list in `upload`.
pub(crate) fn import(upload: &Path, sink: &dyn BlobSink) -> Result<Imported, ArchiveError> {
    let file = File::open(upload).map_err(ArchiveError::io("opening the upload"))?;
    let mut bytes = Vec::new();
    file.take(MAX_MANIFEST_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(ArchiveError::io("reading the upload"))?;
    if bytes.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(too_large(NAME, bytes.len() as u64, MAX_MANIFEST_BYTES, "bytes"));
    }
    let document: Value = json::parse(NAME, &bytes)?;
    check(
        document
            .as_object()
            .ok_or_else(|| json::bad(NAME, &"it is not a JSON object"))?,
    )?;
    let manifest = Manifest::parse(&bytes, None).map_err(|e| json::bad(NAME, &e))?;
    let Manifest::List(list) = &manifest else {
        let media_type = "that of an image manifest".to_owned();
        return Err(Rejection::ListMediaType { media_type }.into());
    };
    put_bytes(sink, &bytes)?;
    let mut out = Output::default();
    for member in &list.manifests {
        out.reference(member.digest.clone());
    }
    out.v2_head(manifest.digest().clone());
    out.manifest(manifest);
    Ok(out.finish(UploadKind::DockerManifestList))
}

fn check(list: &Map<String, Value>) -> Result<(), Rejection> {
    let missing = |field: &str| Rejection::FieldMissing {
        file: NAME.to_owned(),
        field: field.to_owned(),
    };
    let members = list
        .get("manifests")
        .and_then(Value::as_array)
        .ok_or_else(|| missing("manifests"))?;
    if !list.contains_key("schemaVersion") {
        return Err(missing("schemaVersion"));
    }
    // OCI leaves it optional; an index is known by the media types of its members then.
    let of_oci =
        |member: &Value| text(member, "mediaType").is_some_and(|t| t.starts_with("application/vnd.oci."));
    let media_type = match list.get("mediaType").and_then(Value::as_str) {
        Some(text) => MediaType::new(text),
        None if !members.is_empty() && members.iter().all(of_oci) => MediaType::OCI_INDEX,
        None => return Err(missing("mediaType")),
    };
    if !media_type.is_index() {
        return Err(Rejection::ListMediaType {
            media_type: media_type.to_string(),
        });
    }
    members
        .iter()
        .try_for_each(|member| check_member(member, media_type == MediaType::OCI_INDEX))
}

fn check_member(member: &Value, oci: bool) -> Result<(), Rejection> {
    let missing = |field: &str| Rejection::ListMemberFieldMissing {
        field: field.to_owned(),
    };
    let media_type = MediaType::new(text(member, "mediaType").ok_or_else(|| missing("mediaType"))?);
    text(member, "digest").ok_or_else(|| missing("digest"))?;
    match member.get("platform") {
        Some(platform) => {
            text(platform, "os").ok_or_else(|| missing("platform.os"))?;
            text(platform, "architecture").ok_or_else(|| missing("platform.architecture"))?;
        }
        None if oci => {}
        None => return Err(missing("platform")),
    }
    let nested = oci && media_type.is_index();
    if media_type.is_image_manifest() || media_type.is_schema1() || nested {
        Ok(())
    } else {
        Err(Rejection::ListMemberMediaType {
            media_type: media_type.to_string(),
        })
    }
}

fn text<'a>(object: &'a Value, field: &str) -> Option<&'a str> {
    object.get(field).and_then(Value::as_str)
}
