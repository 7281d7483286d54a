//! Importers: at most one a repository.

use pulp_model::{RepositoryId, Timestamp};
use serde_json::{Map, Value};
use sqlx::{Row as _, any::AnyRow};

use crate::{FencedTx, Store, StoreError, Tx, row};

/// A repository's importer.
#[derive(Debug, Clone, PartialEq)]
pub struct Importer {
    /// Whose.
    pub repo_id: RepositoryId,
    /// Its type, which is its id too.
    pub importer_type_id: String,
    /// Settings.
    pub config: Map<String, Value>,
    /// When it last synced.
    pub last_sync: Option<Timestamp>,
    /// When its settings last changed.
    pub last_updated: Timestamp,
}

const SELECT: &str = "SELECT repo_id, importer_type_id, config, last_sync, last_updated FROM importers";

impl Store {
    /// The importer of one repository.
    pub async fn importer(&self, repo: &RepositoryId) -> Result<Option<Importer>, StoreError> {
        let sql = crate::engine::assembled(format!("{SELECT} WHERE repo_id = $1"));
        sqlx::query(sql)
            .bind(repo.as_str())
            .fetch_optional(&self.pool)
            .await?
            .map(|r| read(&r))
            .transpose()
    }

    /// All importers.
    pub async fn importers(&self) -> Result<Vec<Importer>, StoreError> {
        let sql = crate::engine::assembled(format!("{SELECT} ORDER BY repo_id"));
        sqlx::query(sql)
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(read)
            .collect()
    }
}

impl Tx {
    /// Gives a repository an importer, in place of any it had.
    pub async fn put_importer(
        &mut self,
        repo: &RepositoryId,
        type_id: &str,
        config: &Map<String, Value>,
    ) -> Result<(), StoreError> {
        let now = self.now().await?;
        let sql = "INSERT INTO importers (repo_id, importer_type_id, config, last_updated) VALUES ($1, $2, $3, $4) \
                   ON CONFLICT (repo_id) DO UPDATE SET importer_type_id = excluded.importer_type_id, \
                   config = excluded.config, last_updated = excluded.last_updated, last_sync = NULL";
        sqlx::query(sql)
            .bind(repo.as_str())
            .bind(type_id)
            .bind(row::to_json(config))
            .bind(now.micros())
            .execute(self.on())
            .await?;
        Ok(())
    }
}

impl FencedTx {
    /// Applies a change of settings; false if there is no importer.
    pub async fn update_importer(
        &mut self,
        repo: &RepositoryId,
        delta: &Map<String, Value>,
    ) -> Result<bool, StoreError> {
        let select = self.locking("SELECT config FROM importers WHERE repo_id = $1 FOR UPDATE");
        let Some(found) = sqlx::query(select)
            .bind(repo.as_str())
            .fetch_optional(self.on())
            .await?
        else {
            return Ok(false);
        };
        let mut config: Map<String, Value> = row::json(&found, "config")?;
        pulp_model::config::apply_delta(&mut config, delta);
        let now = self.now().await?;
        sqlx::query("UPDATE importers SET config = $2, last_updated = $3 WHERE repo_id = $1")
            .bind(repo.as_str())
            .bind(row::to_json(&config))
            .bind(now.micros())
            .execute(self.on())
            .await?;
        Ok(true)
    }

    /// Notes that the importer has synced now.
    pub async fn set_synced(&mut self, repo: &RepositoryId) -> Result<(), StoreError> {
        let now = self.now().await?;
        sqlx::query("UPDATE importers SET last_sync = $2 WHERE repo_id = $1")
            .bind(repo.as_str())
            .bind(now.micros())
            .execute(self.on())
            .await?;
        Ok(())
    }

    /// Takes the importer away; false if there was none.
    pub async fn delete_importer(&mut self, repo: &RepositoryId) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM importers WHERE repo_id = $1")
            .bind(repo.as_str())
            .execute(self.on())
            .await?;
        Ok(done.rows_affected() > 0)
    }
}

fn read(found: &AnyRow) -> Result<Importer, StoreError> {
    Ok(Importer {
        repo_id: row::parsed(found, "repo_id")?,
        importer_type_id: found.try_get("importer_type_id")?,
        config: row::json(found, "config")?,
        last_sync: row::optional_instant(found, "last_sync")?,
        last_updated: row::instant(found, "last_updated")?,
    })
}
