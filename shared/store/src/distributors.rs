//! Distributors: how a repository is published.

use pulp_model::{DistributorId, RegistryId, RepositoryId, Timestamp, VersionNumber};
use serde_json::{Map, Value};
use sqlx::{Row as _, any::AnyRow};

use crate::{FencedTx, Store, StoreError, Tx, row};

/// A repository's distributor.
#[derive(Debug, Clone, PartialEq)]
pub struct Distributor {
    /// Whose.
    pub repo_id: RepositoryId,
    /// Its id, unique within the repository.
    pub id: DistributorId,
    /// Its type.
    pub distributor_type_id: String,
    /// Settings.
    pub config: Map<String, Value>,
    /// Whether a sync or import publishes by it afterwards.
    pub auto_publish: bool,
    /// When it last published.
    pub last_publish: Option<Timestamp>,
    /// When its settings last changed.
    pub last_updated: Timestamp,
    /// What the last publish was made of.
    pub published_fingerprint: Option<String>,
    /// The version that the last publish made public.
    pub published_version: Option<VersionNumber>,
    /// The publication that the last publish made.
    pub published_id: Option<String>,
}

/// What a publish has done, for the next one.
#[derive(Debug, Clone, Copy)]
pub struct PublishedAs<'a> {
    /// What it was made of besides content; compared with the next one's.
    pub fingerprint: &'a str,
    /// The name under which it went out, if it is served.
    pub registry_id: Option<&'a RegistryId>,
    /// The version made public.
    pub version: VersionNumber,
    /// The publication made, if it lies in the publish directory.
    pub id: Option<&'a str>,
}

/// What a new distributor is made of.
#[derive(Debug, Clone)]
pub struct NewDistributor {
    /// Its id.
    pub id: DistributorId,
    /// Its type.
    pub distributor_type_id: String,
    /// Settings.
    pub config: Map<String, Value>,
    /// Whether a sync or import publishes by it afterwards.
    pub auto_publish: bool,
}

const SELECT: &str = "SELECT repo_id, distributor_id, distributor_type_id, config, auto_publish, last_publish, last_updated, \
                      published_fingerprint, published_version, published_id FROM distributors";

impl Store {
    /// One distributor.
    pub async fn distributor(
        &self,
        repo: &RepositoryId,
        id: &DistributorId,
    ) -> Result<Option<Distributor>, StoreError> {
        let sql = crate::engine::assembled(format!("{SELECT} WHERE repo_id = $1 AND distributor_id = $2"));
        let found = sqlx::query(sql)
            .bind(repo.as_str())
            .bind(id.as_str())
            .fetch_optional(&self.pool)
            .await?;
        found.map(|r| read(&r)).transpose()
    }

    /// The distributors of one repository, by id.
    pub async fn distributors_of(&self, repo: &RepositoryId) -> Result<Vec<Distributor>, StoreError> {
        let sql = crate::engine::assembled(format!("{SELECT} WHERE repo_id = $1 ORDER BY distributor_id"));
        sqlx::query(sql)
            .bind(repo.as_str())
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(read)
            .collect()
    }

    /// All distributors, by repository and id.
    pub async fn distributors(&self) -> Result<Vec<Distributor>, StoreError> {
        let sql = crate::engine::assembled(format!("{SELECT} ORDER BY repo_id, distributor_id"));
        sqlx::query(sql)
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(read)
            .collect()
    }

    /// Another repository that has published under this registry id, if there is one.
    pub async fn registry_id_holder(
        &self,
        registry_id: &RegistryId,
        other_than: &RepositoryId,
    ) -> Result<Option<String>, StoreError> {
        let sql =
            "SELECT repo_id FROM distributors WHERE published_registry_id = $1 AND repo_id <> $2 LIMIT 1";
        let found = sqlx::query(sql)
            .bind(registry_id.as_str())
            .bind(other_than.as_str())
            .fetch_optional(&self.pool)
            .await?;
        Ok(found.map(|r| r.try_get("repo_id")).transpose()?)
    }
}

impl Tx {
    /// Gives a repository a distributor, in place of one with the same id.
    pub async fn put_distributor(
        &mut self,
        repo: &RepositoryId,
        new: &NewDistributor,
    ) -> Result<(), StoreError> {
        let now = self.now().await?;
        let sql = "INSERT INTO distributors (repo_id, distributor_id, distributor_type_id, config, auto_publish, last_updated) \
                   VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (repo_id, distributor_id) DO UPDATE SET \
                   distributor_type_id = excluded.distributor_type_id, config = excluded.config, \
                   auto_publish = excluded.auto_publish, last_updated = excluded.last_updated, \
                   last_publish = NULL, published_fingerprint = NULL, \
                   published_version = NULL, published_id = NULL";
        sqlx::query(sql)
            .bind(repo.as_str())
            .bind(new.id.as_str())
            .bind(&new.distributor_type_id)
            .bind(row::to_json(&new.config))
            .bind(i64::from(new.auto_publish))
            .bind(now.micros())
            .execute(self.on())
            .await?;
        Ok(())
    }
}

impl FencedTx {
    /// Sets the whole configuration and, if given, `auto_publish`; false if there is no such distributor.
    pub async fn update_distributor(
        &mut self,
        repo: &RepositoryId,
        id: &DistributorId,
        config: &Map<String, Value>,
        auto_publish: Option<bool>,
    ) -> Result<bool, StoreError> {
        let now = self.now().await?;
        let sql = "UPDATE distributors SET config = $3, auto_publish = COALESCE($4, auto_publish), last_updated = $5 \
                   WHERE repo_id = $1 AND distributor_id = $2";
        let done = sqlx::query(sql)
            .bind(repo.as_str())
            .bind(id.as_str())
            .bind(row::to_json(config))
            .bind(auto_publish.map(i64::from))
            .bind(now.micros())
            .execute(self.on())
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Notes that it has published.
    pub async fn set_published(
        &mut self,
        repo: &RepositoryId,
        id: &DistributorId,
        published: &PublishedAs<'_>,
    ) -> Result<(), StoreError> {
        let now = self.now().await?;
        let sql = "UPDATE distributors SET last_publish = $3, published_fingerprint = $4, published_registry_id = $5, \
                   published_version = $6, published_id = $7 WHERE repo_id = $1 AND distributor_id = $2";
        sqlx::query(sql)
            .bind(repo.as_str())
            .bind(id.as_str())
            .bind(now.micros())
            .bind(published.fingerprint)
            .bind(published.registry_id.map(RegistryId::as_str))
            .bind(published.version.0)
            .bind(published.id)
            .execute(self.on())
            .await?;
        Ok(())
    }

    /// Takes a distributor away; false if there was none.
    pub async fn delete_distributor(
        &mut self,
        repo: &RepositoryId,
        id: &DistributorId,
    ) -> Result<bool, StoreError> {
        let sql = "DELETE FROM distributors WHERE repo_id = $1 AND distributor_id = $2";
        let done = sqlx::query(sql)
            .bind(repo.as_str())
            .bind(id.as_str())
            .execute(self.on())
            .await?;
        Ok(done.rows_affected() > 0)
    }
}

fn read(found: &AnyRow) -> Result<Distributor, StoreError> {
    Ok(Distributor {
        repo_id: row::parsed(found, "repo_id")?,
        id: row::parsed(found, "distributor_id")?,
        distributor_type_id: found.try_get("distributor_type_id")?,
        config: row::json(found, "config")?,
        auto_publish: found.try_get::<i64, _>("auto_publish")? != 0,
        last_publish: row::optional_instant(found, "last_publish")?,
        last_updated: row::instant(found, "last_updated")?,
        published_fingerprint: found.try_get("published_fingerprint")?,
        published_version: found
            .try_get::<Option<i64>, _>("published_version")?
            .map(VersionNumber),
        published_id: found.try_get("published_id")?,
    })
}
