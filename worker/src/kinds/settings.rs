//! Changes of importers and distributors.

use pulp_model::{
    CodedError, DistributorId, ErrorCode, RepositoryId,
    config::{self, IMPORTER_TYPE},
};
use pulp_store::attempts::Outcome;
use serde_json::{Map, Value};

use super::{Context, not_found};
use crate::error::TaskError;

pub(crate) async fn update_importer(
    context: &Context,
    repo: &RepositoryId,
    type_id: Option<&str>,
    delta: &Map<String, Value>,
) -> Result<(), TaskError> {
    context.repository(repo).await?;
    let mut tx = context.fence().await?;
    match type_id {
        Some(type_id) if type_id != IMPORTER_TYPE => {
            let text = format!("there is no importer type {type_id:?}; the one there is: {IMPORTER_TYPE}");
            return Err(CodedError::new(ErrorCode::INVALID_VALUE, text)
                .with("property_names", ["importer_type_id"])
                .into());
        }
        Some(type_id) => {
            let config = config::merged(&[delta]);
            tx.put_importer(repo, type_id, &config).await?;
        }
        None if !tx.update_importer(repo, delta).await? => {
            return Err(not_found("importer_id", "importer of repository", repo.as_str()).into());
        }
        None => {}
    }
    tx.finish(&Outcome::Finished(Value::Null), &context.report.to_json())
        .await?;
    Ok(())
}

pub(crate) async fn delete_importer(context: &Context, repo: &RepositoryId) -> Result<(), TaskError> {
    let mut tx = context.fence().await?;
    // Gone already is what was asked for.
    tx.delete_importer(repo).await?;
    tx.finish(&Outcome::Finished(Value::Null), &context.report.to_json())
        .await?;
    Ok(())
}

pub(crate) async fn update_distributor(
    context: &Context,
    repo: &RepositoryId,
    id: &DistributorId,
    delta: &Map<String, Value>,
    auto_publish: Option<bool>,
) -> Result<(), TaskError> {
    let distributor = context
        .worker
        .store
        .distributor(repo, id)
        .await?
        .ok_or_else(|| not_found("distributor_id", "distributor", id.as_str()))?;
    let mut own = distributor.config;
    config::apply_delta(&mut own, delta);
    let defaults = context.worker.plugin_defaults(&distributor.distributor_type_id);
    config::distributor_settings(repo, &config::merged(&[&defaults, &own]))?;

    let mut tx = context.fence().await?;
    if !tx.update_distributor(repo, id, &own, auto_publish).await? {
        return Err(not_found("distributor_id", "distributor", id.as_str()).into());
    }
    tx.finish(&Outcome::Finished(Value::Null), &context.report.to_json())
        .await?;
    Ok(())
}
