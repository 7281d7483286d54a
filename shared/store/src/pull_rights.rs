//! Who may pull from protected repositories.

use std::collections::BTreeSet;

use pulp_model::{Puller, RegistryId, RepositoryId};
use serde_json::{Value, json};

use crate::{
    Store, StoreError, Tx,
    engine::{assembled, records},
    row,
};

impl Store {
    /// Who may pull from a repository, in order.
    pub async fn pullers(&self, repo: &RepositoryId) -> Result<Vec<Puller>, StoreError> {
        let found = sqlx::query("SELECT puller FROM pull_rights WHERE repo_id = $1 ORDER BY puller")
            .bind(repo.as_str())
            .fetch_all(&self.pool)
            .await?;
        found.iter().map(|r| row::parsed(r, "puller")).collect()
    }

    /// The repositories that somebody may pull from, in order.
    pub async fn pullable(&self, puller: &Puller) -> Result<Vec<RepositoryId>, StoreError> {
        let found = sqlx::query("SELECT repo_id FROM pull_rights WHERE puller = $1 ORDER BY repo_id")
            .bind(puller.to_string())
            .fetch_all(&self.pool)
            .await?;
        found.iter().map(|r| row::parsed(r, "repo_id")).collect()
    }

    /// Of these names, those under which repositories were published that `puller` may all pull from. Where two
    /// repositories claim one name, a right on one of them is not enough: it isn't known here which one is served.
    pub async fn names_open_to(
        &self,
        puller: &Puller,
        names: &BTreeSet<RegistryId>,
    ) -> Result<BTreeSet<RegistryId>, StoreError> {
        let sql = format!(
            "SELECT d.published_registry_id AS name FROM distributors d \
             LEFT JOIN pull_rights p ON p.repo_id = d.repo_id AND p.puller = $2 \
             WHERE d.published_registry_id IN (SELECT r.name FROM {}) GROUP BY d.published_registry_id \
             HAVING COUNT(DISTINCT d.repo_id) = COUNT(DISTINCT p.repo_id)",
            records(self.engine, &[("name", "text")])
        );
        let names = names.iter().map(|name| json!({ "name": name }));
        let rows = sqlx::query(assembled(sql))
            .bind(Value::Array(names.collect()).to_string())
            .bind(puller.to_string())
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|r| row::parsed(r, "name")).collect()
    }
}

impl Tx {
    /// Lets somebody pull from a repository; nothing if it may already. False if the repository, the user or the
    /// robot is not there; then this transaction can only be given up.
    pub async fn grant_pull(&mut self, repo: &RepositoryId, puller: &Puller) -> Result<bool, StoreError> {
        let now = self.now().await?;
        let (login, robot) = match puller {
            Puller::User(login) => (Some(login.as_str()), None),
            Puller::Robot(name) => (None, Some(name.as_str())),
        };
        let sql = "INSERT INTO pull_rights (repo_id, puller, login, robot, granted) VALUES ($1, $2, $3, $4, $5) \
                   ON CONFLICT (repo_id, puller) DO NOTHING";
        let done = sqlx::query(sql)
            .bind(repo.as_str())
            .bind(puller.to_string())
            .bind(login)
            .bind(robot)
            .bind(now.micros())
            .execute(self.on())
            .await;
        match done {
            Ok(_) => Ok(true),
            Err(sqlx::Error::Database(e)) if e.is_foreign_key_violation() => Ok(false),
            Err(other) => Err(other.into()),
        }
    }

    /// Takes the right to pull away; false if there was none.
    pub async fn revoke_pull(&mut self, repo: &RepositoryId, puller: &Puller) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM pull_rights WHERE repo_id = $1 AND puller = $2")
            .bind(repo.as_str())
            .bind(puller.to_string())
            .execute(self.on())
            .await?;
        Ok(done.rows_affected() > 0)
    }
}
