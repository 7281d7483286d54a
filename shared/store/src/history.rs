//! Publish and sync histories.

use pulp_model::{
    DistributorId, RepositoryId, Timestamp,
    history::{HistoryResult, PublishHistory, SyncHistory},
};
use serde_json::Value;
use sqlx::{Row as _, any::AnyRow};

use crate::{
    FencedTx, Store, StoreError,
    engine::{assembled, placeholders},
    row,
};

/// Which entries a client wants.
#[derive(Debug, Clone, Default)]
pub struct HistoryFilter {
    /// At most so many.
    pub limit: Option<u32>,
    /// Oldest first instead of newest first.
    pub ascending: bool,
    /// Begun at this instant or later.
    pub start: Option<Timestamp>,
    /// Begun at this instant or earlier.
    pub end: Option<Timestamp>,
}

impl Store {
    /// Publishes of one distributor.
    pub async fn publish_history(
        &self,
        repo: &RepositoryId,
        distributor: &DistributorId,
        filter: &HistoryFilter,
    ) -> Result<Vec<PublishHistory>, StoreError> {
        let direction = if filter.ascending { "ASC" } else { "DESC" };
        let limit = filter.limit.map_or_else(|| i64::from(i32::MAX), i64::from);
        let sql = format!(
            "SELECT id, repo_id, distributor_id, distributor_type_id, started, completed, result, summary, details, error_message \
             FROM publish_history WHERE repo_id = $1 AND distributor_id = $2 AND started >= $3 AND started <= $4 \
             ORDER BY started {direction}, id {direction} LIMIT {limit}"
        );
        let rows = sqlx::query(assembled(sql))
            .bind(repo.as_str())
            .bind(distributor.as_str())
            .bind(filter.start.map_or(i64::MIN, Timestamp::micros))
            .bind(filter.end.map_or(i64::MAX, Timestamp::micros))
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(read).collect()
    }

    /// Syncs of a repository.
    pub async fn sync_history(
        &self,
        repo: &RepositoryId,
        filter: &HistoryFilter,
    ) -> Result<Vec<SyncHistory>, StoreError> {
        let direction = if filter.ascending { "ASC" } else { "DESC" };
        let limit = filter.limit.map_or_else(|| i64::from(i32::MAX), i64::from);
        let sql = format!(
            "SELECT id, repo_id, importer_id, importer_type_id, started, completed, result, added_count, updated_count, \
             removed_count, summary, details, report, error_message \
             FROM sync_history WHERE repo_id = $1 AND started >= $2 AND started <= $3 \
             ORDER BY started {direction}, id {direction} LIMIT {limit}"
        );
        let rows = sqlx::query(assembled(sql))
            .bind(repo.as_str())
            .bind(filter.start.map_or(i64::MIN, Timestamp::micros))
            .bind(filter.end.map_or(i64::MAX, Timestamp::micros))
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(read_sync).collect()
    }
}

impl FencedTx {
    /// Adds an entry; a second one of the same id is passed over.
    pub async fn add_publish_history(&mut self, entry: &PublishHistory) -> Result<(), StoreError> {
        let sql = format!(
            "INSERT INTO publish_history (id, repo_id, distributor_id, distributor_type_id, started, completed, result, summary, \
             details, error_message) VALUES ({}) ON CONFLICT (id) DO NOTHING",
            placeholders(1, 10)
        );
        sqlx::query(assembled(sql))
            .bind(&entry.id)
            .bind(entry.repo_id.as_str())
            .bind(entry.distributor_id.as_str())
            .bind(&entry.distributor_type_id)
            .bind(entry.started.micros())
            .bind(entry.completed.micros())
            .bind(result_text(entry.result))
            .bind(row::to_json(&entry.summary))
            .bind(row::to_json(&entry.details))
            .bind(entry.error_message.as_deref())
            .execute(self.on())
            .await?;
        Ok(())
    }

    /// Adds an entry; a second one of the same id is passed over.
    pub async fn add_sync_history(&mut self, entry: &SyncHistory) -> Result<(), StoreError> {
        let sql = format!(
            "INSERT INTO sync_history (id, repo_id, importer_id, importer_type_id, started, completed, result, added_count, \
             updated_count, removed_count, summary, details, report, error_message) VALUES ({}) ON CONFLICT (id) DO NOTHING",
            placeholders(1, 14)
        );
        sqlx::query(assembled(sql))
            .bind(&entry.id)
            .bind(entry.repo_id.as_str())
            .bind(&entry.importer_id)
            .bind(&entry.importer_type_id)
            .bind(entry.started.micros())
            .bind(entry.completed.micros())
            .bind(result_text(entry.result))
            .bind(entry.added_count)
            .bind(entry.updated_count)
            .bind(entry.removed_count)
            .bind(row::to_json(&entry.summary))
            .bind(row::to_json(&entry.details))
            .bind(row::to_json(&entry.report))
            .bind(entry.error_message.as_deref())
            .execute(self.on())
            .await?;
        Ok(())
    }
}

fn result_text(result: HistoryResult) -> String {
    let text = serde_json::to_value(result).ok();
    text.and_then(|v| v.as_str().map(ToOwned::to_owned))
        .unwrap_or_default()
}

fn read_sync(found: &AnyRow) -> Result<SyncHistory, StoreError> {
    let result: String = found.try_get("result")?;
    Ok(SyncHistory {
        id: found.try_get("id")?,
        repo_id: row::parsed(found, "repo_id")?,
        importer_id: found.try_get("importer_id")?,
        importer_type_id: found.try_get("importer_type_id")?,
        started: row::instant(found, "started")?,
        completed: row::instant(found, "completed")?,
        result: serde_json::from_value(Value::String(result))
            .map_err(|e| StoreError::corrupt("sync_history.result", e))?,
        added_count: found.try_get("added_count")?,
        updated_count: found.try_get("updated_count")?,
        removed_count: found.try_get("removed_count")?,
        summary: row::json(found, "summary")?,
        details: row::json(found, "details")?,
        report: row::json(found, "report")?,
        error_message: found.try_get("error_message")?,
        exception: None,
        traceback: None,
    })
}

fn read(found: &AnyRow) -> Result<PublishHistory, StoreError> {
    let result: String = found.try_get("result")?;
    Ok(PublishHistory {
        id: found.try_get("id")?,
        repo_id: row::parsed(found, "repo_id")?,
        distributor_id: row::parsed(found, "distributor_id")?,
        distributor_type_id: found.try_get("distributor_type_id")?,
        started: row::instant(found, "started")?,
        completed: row::instant(found, "completed")?,
        result: serde_json::from_value(Value::String(result))
            .map_err(|e| StoreError::corrupt("publish_history.result", e))?,
        summary: row::json(found, "summary")?,
        details: row::json(found, "details")?,
        error_message: found.try_get("error_message")?,
        exception: None,
        traceback: None,
    })
}
