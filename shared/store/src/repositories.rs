//! Repositories: their description and what they count. Their content is in [`crate::versions`].

use std::collections::BTreeMap;

use pulp_model::{RepositoryId, Timestamp, VersionNumber, unit::V1Tag};
use serde_json::{Map, Value};
use sqlx::{Row as _, any::AnyRow};

use crate::{FencedTx, Store, StoreError, Tx, error::duplicate, row};

/// A repository as it stands now.
#[derive(Debug, Clone, PartialEq)]
pub struct Repository {
    /// The key.
    pub id: RepositoryId,
    /// For people.
    pub display_name: String,
    /// For people.
    pub description: Option<String>,
    /// Free notes of clients; `_repo-type` tells the kind.
    pub notes: Map<String, Value>,
    /// What plugins keep; `tags` are those of the v1 API.
    pub scratchpad: Map<String, Value>,
    /// Newest version.
    pub version: VersionNumber,
    /// When a unit was last added.
    pub last_unit_added: Option<Timestamp>,
    /// When a unit was last removed.
    pub last_unit_removed: Option<Timestamp>,
    /// Units of the newest version by type.
    pub content_unit_counts: BTreeMap<String, i64>,
}

impl Repository {
    /// The tags of the v1 API. Entries that a client wrote in another shape are passed over.
    pub fn v1_tags(&self) -> Vec<V1Tag> {
        v1_tags(&self.scratchpad)
    }
}

/// Reads `tags` out of a scratchpad.
pub(crate) fn v1_tags(scratchpad: &Map<String, Value>) -> Vec<V1Tag> {
    let entries = scratchpad.get("tags").and_then(Value::as_array);
    entries
        .into_iter()
        .flatten()
        .filter_map(|e| serde_json::from_value(e.clone()).ok())
        .collect()
}

/// What a new repository is made of.
#[derive(Debug, Clone)]
pub struct NewRepository {
    /// The key.
    pub id: RepositoryId,
    /// For people.
    pub display_name: String,
    /// For people.
    pub description: Option<String>,
    /// Free notes.
    pub notes: Map<String, Value>,
}

/// Changes of a repository's description; absent fields stay as they are.
#[derive(Debug, Clone, Default)]
pub struct RepositoryDelta {
    /// New display name.
    pub display_name: Option<String>,
    /// New description; the inner `None` clears it.
    pub description: Option<Option<String>>,
    /// Notes to set; a null deletes one.
    pub notes: Option<Map<String, Value>>,
    /// Scratchpad keys to set; a null deletes one.
    pub scratchpad: Option<Map<String, Value>>,
}

const COLUMNS: &str =
    "repo_id, display_name, description, notes, scratchpad, version, last_unit_added, last_unit_removed";

impl Store {
    /// One repository without its counts, which cost the more the more it holds.
    pub async fn repository_uncounted(&self, id: &RepositoryId) -> Result<Option<Repository>, StoreError> {
        let sql = crate::engine::assembled(format!("SELECT {COLUMNS} FROM repositories WHERE repo_id = $1"));
        let found = sqlx::query(sql)
            .bind(id.as_str())
            .fetch_optional(&self.pool)
            .await?;
        found.map(|r| read(&r)).transpose()
    }

    /// One repository.
    pub async fn repository(&self, id: &RepositoryId) -> Result<Option<Repository>, StoreError> {
        let Some(mut repository) = self.repository_uncounted(id).await? else {
            return Ok(None);
        };
        let counts = "SELECT u.unit_type_id, COUNT(*) AS n FROM repository_units ru JOIN units u ON u.unit_id = ru.unit_id \
                      WHERE ru.repo_id = $1 AND ru.removed_in IS NULL GROUP BY u.unit_type_id";
        for count in sqlx::query(counts)
            .bind(id.as_str())
            .fetch_all(&self.pool)
            .await?
        {
            repository
                .content_unit_counts
                .insert(count.try_get("unit_type_id")?, count.try_get("n")?);
        }
        Ok(Some(repository))
    }

    /// All repositories, by id.
    pub async fn repositories(&self) -> Result<Vec<Repository>, StoreError> {
        let sql = crate::engine::assembled(format!("SELECT {COLUMNS} FROM repositories ORDER BY repo_id"));
        let rows = sqlx::query(sql).fetch_all(&self.pool).await?;
        let mut repositories = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let counts = "SELECT ru.repo_id, u.unit_type_id, COUNT(*) AS n FROM repository_units ru \
                      JOIN units u ON u.unit_id = ru.unit_id WHERE ru.removed_in IS NULL GROUP BY ru.repo_id, u.unit_type_id";
        let mut by_repo: BTreeMap<String, BTreeMap<String, i64>> = BTreeMap::new();
        for count in sqlx::query(counts).fetch_all(&self.pool).await? {
            by_repo
                .entry(count.try_get("repo_id")?)
                .or_default()
                .insert(count.try_get("unit_type_id")?, count.try_get("n")?);
        }
        for repository in &mut repositories {
            repository.content_unit_counts = by_repo.remove(repository.id.as_str()).unwrap_or_default();
        }
        Ok(repositories)
    }
}

impl Tx {
    /// Makes a repository with its empty version 0. [`StoreError::Duplicate`] if the id is taken.
    pub async fn create_repository(&mut self, new: &NewRepository) -> Result<(), StoreError> {
        let now = self.now().await?;
        let insert = "INSERT INTO repositories (repo_id, display_name, description, notes, scratchpad, version, created) \
                      VALUES ($1, $2, $3, $4, '{}', 0, $5)";
        sqlx::query(insert)
            .bind(new.id.as_str())
            .bind(&new.display_name)
            .bind(new.description.as_deref())
            .bind(row::to_json(&new.notes))
            .bind(now.micros())
            .execute(self.on())
            .await
            .map_err(|e| duplicate(e, "the repository"))?;
        let version = "INSERT INTO repository_versions (repo_id, number, created, added, removed, scratchpad_tags) \
                       VALUES ($1, 0, $2, 0, 0, '[]')";
        sqlx::query(version)
            .bind(new.id.as_str())
            .bind(now.micros())
            .execute(self.on())
            .await?;
        Ok(())
    }

    /// Changes a repository's description; false if there is no such repository.
    pub async fn update_repository(
        &mut self,
        id: &RepositoryId,
        delta: &RepositoryDelta,
    ) -> Result<bool, StoreError> {
        let select = self.locking(
            "SELECT display_name, description, notes, scratchpad FROM repositories WHERE repo_id = $1 FOR UPDATE",
        );
        let Some(found) = sqlx::query(select)
            .bind(id.as_str())
            .fetch_optional(self.on())
            .await?
        else {
            return Ok(false);
        };
        let mut notes: Map<String, Value> = row::json(&found, "notes")?;
        let mut scratchpad: Map<String, Value> = row::json(&found, "scratchpad")?;
        if let Some(delta) = &delta.notes {
            pulp_model::config::apply_delta(&mut notes, delta);
        }
        if let Some(delta) = &delta.scratchpad {
            pulp_model::config::apply_delta(&mut scratchpad, delta);
        }
        let display_name = match &delta.display_name {
            Some(name) => name.clone(),
            None => found.try_get("display_name")?,
        };
        let description = match &delta.description {
            Some(description) => description.clone(),
            None => found.try_get("description")?,
        };
        let update = "UPDATE repositories SET display_name = $2, description = $3, notes = $4, scratchpad = $5 WHERE repo_id = $1";
        sqlx::query(update)
            .bind(id.as_str())
            .bind(display_name)
            .bind(description)
            .bind(row::to_json(&notes))
            .bind(row::to_json(&scratchpad))
            .execute(self.on())
            .await?;
        Ok(true)
    }
}

impl FencedTx {
    /// Deletes a repository with its importer, distributors, associations and publish history. Units stay, for
    /// others or as orphans. False if there was none.
    pub async fn delete_repository(&mut self, id: &RepositoryId) -> Result<bool, StoreError> {
        // Another repository of this name must not be shown it.
        sqlx::query("DELETE FROM publish_history WHERE repo_id = $1")
            .bind(id.as_str())
            .execute(self.on())
            .await?;
        sqlx::query("DELETE FROM sync_history WHERE repo_id = $1")
            .bind(id.as_str())
            .execute(self.on())
            .await?;
        let done = sqlx::query("DELETE FROM repositories WHERE repo_id = $1")
            .bind(id.as_str())
            .execute(self.on())
            .await?;
        Ok(done.rows_affected() > 0)
    }
}

fn read(found: &AnyRow) -> Result<Repository, StoreError> {
    Ok(Repository {
        id: row::parsed(found, "repo_id")?,
        display_name: found.try_get("display_name")?,
        description: found.try_get("description")?,
        notes: row::json(found, "notes")?,
        scratchpad: row::json(found, "scratchpad")?,
        version: VersionNumber(found.try_get("version")?),
        last_unit_added: row::optional_instant(found, "last_unit_added")?,
        last_unit_removed: row::optional_instant(found, "last_unit_removed")?,
        content_unit_counts: BTreeMap::new(),
    })
}
