//! Upload requests: what was received so far. The bytes lie in a file of the shared storage.

use pulp_model::{Login, Timestamp, UploadId};
use sqlx::{Row as _, any::AnyRow};

use crate::{Store, StoreError, Tx, row};

/// An upload request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// The key.
    pub id: UploadId,
    /// Who began it.
    pub login: String,
    /// Bytes received without a gap.
    pub size: u64,
    /// When it began.
    pub created: Timestamp,
    /// When its last chunk came.
    pub updated: Timestamp,
}

const SELECT: &str = "SELECT upload_id, login, size, created, updated FROM uploads";

impl Store {
    /// One upload.
    pub async fn upload(&self, id: UploadId) -> Result<Option<Upload>, StoreError> {
        let sql = crate::engine::assembled(format!("{SELECT} WHERE upload_id = $1"));
        sqlx::query(sql)
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await?
            .map(|r| read(&r))
            .transpose()
    }

    /// All uploads, oldest first.
    pub async fn uploads(&self) -> Result<Vec<Upload>, StoreError> {
        let sql = crate::engine::assembled(format!("{SELECT} ORDER BY created, upload_id"));
        sqlx::query(sql)
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(read)
            .collect()
    }
}

impl Tx {
    /// Begins an upload.
    pub async fn create_upload(&mut self, login: &Login) -> Result<UploadId, StoreError> {
        let id = UploadId::new();
        let now = self.now().await?;
        sqlx::query(
            "INSERT INTO uploads (upload_id, login, size, created, updated) VALUES ($1, $2, 0, $3, $3)",
        )
        .bind(id.to_string())
        .bind(login.as_str())
        .bind(now.micros())
        .execute(self.on())
        .await?;
        Ok(id)
    }

    /// Notes that bytes up to `end` are there; a chunk sent again changes nothing.
    pub async fn grow_upload(&mut self, id: UploadId, end: u64) -> Result<bool, StoreError> {
        let now = self.now().await?;
        let sql = "UPDATE uploads SET size = CASE WHEN size < $2 THEN $2 ELSE size END, updated = $3 WHERE upload_id = $1";
        let done = sqlx::query(sql)
            .bind(id.to_string())
            .bind(i64::try_from(end).unwrap_or(i64::MAX))
            .bind(now.micros())
            .execute(self.on())
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Forgets an upload; false if there was none.
    pub async fn delete_upload(&mut self, id: UploadId) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM uploads WHERE upload_id = $1")
            .bind(id.to_string())
            .execute(self.on())
            .await?;
        Ok(done.rows_affected() > 0)
    }
}

fn read(found: &AnyRow) -> Result<Upload, StoreError> {
    Ok(Upload {
        id: row::parsed(found, "upload_id")?,
        login: found.try_get("login")?,
        size: found.try_get::<i64, _>("size")?.unsigned_abs(),
        created: row::instant(found, "created")?,
        updated: row::instant(found, "updated")?,
    })
}
