//! Exports for closed networks: what an incremental one builds on, on both sides.

use pulp_model::{Digest, RepositoryId, VersionNumber};
use sqlx::Row as _;

use crate::{FencedTx, Store, StoreError};

/// What is known of a repository's last export and import.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transfers {
    /// The version that was exported last.
    pub exported_version: Option<VersionNumber>,
    /// The state that was imported last, as the export told it.
    pub imported_state: Option<Digest>,
}

impl Store {
    /// Of one repository; nothing is known of one that is not there.
    pub async fn transfers(&self, repo: &RepositoryId) -> Result<Transfers, StoreError> {
        let sql = "SELECT exported_version, imported_state FROM transfers WHERE repo_id = $1";
        let Some(found) = sqlx::query(sql)
            .bind(repo.as_str())
            .fetch_optional(&self.pool)
            .await?
        else {
            return Ok(Transfers::default());
        };
        let version: Option<i64> = found.try_get("exported_version")?;
        let state: Option<String> = found.try_get("imported_state")?;
        Ok(Transfers {
            exported_version: version.map(VersionNumber),
            // A state that can't be read is none that an export could build on.
            imported_state: state.and_then(|s| s.parse().ok()),
        })
    }
}

impl FencedTx {
    /// Notes that this version was exported.
    pub async fn set_exported(
        &mut self,
        repo: &RepositoryId,
        version: VersionNumber,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO transfers (repo_id, exported_version) VALUES ($1, $2) \
                   ON CONFLICT (repo_id) DO UPDATE SET exported_version = excluded.exported_version";
        sqlx::query(sql)
            .bind(repo.as_str())
            .bind(version.0)
            .execute(self.on())
            .await?;
        Ok(())
    }

    /// Notes that the repository was brought to this state of an export.
    pub async fn set_imported(&mut self, repo: &RepositoryId, state: &Digest) -> Result<(), StoreError> {
        let sql = "INSERT INTO transfers (repo_id, imported_state) VALUES ($1, $2) \
                   ON CONFLICT (repo_id) DO UPDATE SET imported_state = excluded.imported_state";
        sqlx::query(sql)
            .bind(repo.as_str())
            .bind(state.to_string())
            .execute(self.on())
            .await?;
        Ok(())
    }
}
