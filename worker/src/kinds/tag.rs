//! `docker_tag`: an upload without a file that names a manifest of the repository.
//!
//! Upstream: `pulp_docker/plugins/importers/upload.py`, class `TagUnit…`.

use pulp_model::{
    CodedError, Digest, ErrorCode, TagName,
    task::TaskKind,
    unit::{ManifestKind, TagUnit, Unit, UnitType},
};
use pulp_store::attempts::Outcome;
use serde_json::{Map, Value};

use super::{Context, import::report};
use crate::error::TaskError;

pub(crate) async fn run(context: &Context, kind: &TaskKind) -> Result<(), TaskError> {
    let TaskKind::ImportUpload {
        repo_id,
        unit_metadata,
        unit_key,
        ..
    } = kind
    else {
        return Ok(());
    };
    context.repository(repo_id).await?;
    let name: TagName = field(unit_metadata, unit_key, &["name"])?.parse().map_err(|e| {
        CodedError::new(ErrorCode::INVALID_TAG, format!("{e}")).with("value", unit_metadata.get("name"))
    })?;
    let digest_text = field(unit_metadata, unit_key, &["manifest_digest", "digest"])?;
    let digest: Digest = digest_text.parse().map_err(|e| {
        CodedError::new(ErrorCode::INVALID_VALUE, format!("manifest_digest: {e}"))
            .with("property_names", ["manifest_digest"])
    })?;

    let types = [UnitType::DockerManifest, UnitType::DockerManifestList];
    let associations = context.worker.store.associations(repo_id, &types).await?;
    let target = associations.iter().find_map(|a| match &a.unit {
        Unit::Manifest(m) if m.digest == digest => Some((m.schema_version, ManifestKind::Image)),
        Unit::ManifestList(l) if l.digest == digest => Some((l.schema_version, ManifestKind::List)),
        _ => None,
    });
    let Some((schema_version, manifest_type)) = target else {
        let text = format!("manifest {digest} is not in repository {repo_id}; upload it, then tag it");
        return Err(CodedError::new(ErrorCode::MANIFEST_NOT_IN_REPOSITORY, text)
            .with("digest", &digest)
            .with("repo_id", repo_id)
            .into());
    };
    let tag = TagUnit {
        name,
        repo_id: repo_id.clone(),
        manifest_digest: digest,
        schema_version,
        manifest_type,
    };
    let unit = Unit::Tag(tag);

    let mut tx = context.fence().await?;
    let change = tx
        .commit_version(repo_id, std::slice::from_ref(&unit))
        .await?
        .ok_or_else(|| super::unknown_repository(repo_id))?;
    let result = report(Some(&unit), &[], &change);
    tx.finish(&Outcome::Finished(result), &context.report.to_json())
        .await?;
    Ok(())
}

fn field(
    metadata: &Map<String, Value>,
    key: &Map<String, Value>,
    names: &[&str],
) -> Result<String, CodedError> {
    let found = names
        .iter()
        .find_map(|n| metadata.get(*n).or_else(|| key.get(*n)).and_then(Value::as_str));
    found
        .filter(|s| !s.is_empty())
        .map(ToOwned::to_owned)
        .ok_or_else(|| {
            let name = names.first().copied().unwrap_or_default();
            CodedError::new(
                ErrorCode::TAG_FIELD_MISSING,
                format!("a tag needs {name}; give it in unit_metadata"),
            )
            .with("field", name)
        })
}
