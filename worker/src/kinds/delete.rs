//! Deleting repositories and distributors, with what they published.
//!
//! The files go inside the fence, before the rows: if the commit then fails, the rows still name what to delete,
//! and the next attempt finds less to do. The other order could leave files that nothing names.

use pulp_model::{
    DistributorId, RepositoryId,
    config::{EXPORT_DISTRIBUTOR_TYPE, WEB_DISTRIBUTOR_TYPE},
};
use pulp_store::{FencedTx, attempts::Outcome, distributors::Distributor};
use serde_json::Value;

use super::{Context, publish::within};
use crate::error::TaskError;

pub(crate) async fn repository(context: &Context, repo: &RepositoryId) -> Result<(), TaskError> {
    let distributors = context.worker.store.distributors_of(repo).await?;
    let mut tx = context.fence().await?;
    for distributor in &distributors {
        tx = unpublish(context, tx, repo, distributor).await?;
    }
    tx.delete_repository(repo).await?;
    tx.finish(&Outcome::Finished(Value::Null), &context.report.to_json())
        .await?;
    Ok(())
}

pub(crate) async fn distributor(
    context: &Context,
    repo: &RepositoryId,
    id: &DistributorId,
) -> Result<(), TaskError> {
    let distributor = context.worker.store.distributor(repo, id).await?;
    let mut tx = context.fence().await?;
    if let Some(distributor) = &distributor {
        tx = unpublish(context, tx, repo, distributor).await?;
        tx.delete_distributor(repo, id).await?;
    }
    tx.finish(&Outcome::Finished(Value::Null), &context.report.to_json())
        .await?;
    Ok(())
}

/// Removes what a distributor published, and gives the fence back.
async fn unpublish(
    context: &Context,
    tx: FencedTx,
    repo: &RepositoryId,
    distributor: &Distributor,
) -> Result<FencedTx, TaskError> {
    let (root, repo) = (context.worker.published.clone(), repo.clone());
    match distributor.distributor_type_id.as_str() {
        WEB_DISTRIBUTOR_TYPE => {
            let (tx, removed) = within(tx, move || root.unpublish(&repo)).await?;
            removed?;
            Ok(tx)
        }
        EXPORT_DISTRIBUTOR_TYPE => {
            // Only the place that is ours: a file exported elsewhere belongs to whoever asked for it there.
            let file = root.export_file(&repo);
            let of = file.clone();
            match within(tx, move || std::fs::remove_file(of)).await? {
                (_, Err(e)) if e.kind() != std::io::ErrorKind::NotFound => {
                    Err(TaskError::io(format!("remove {}", file.display()))(e))
                }
                (tx, _) => Ok(tx),
            }
        }
        _ => Ok(tx),
    }
}
