//! Robots: credentials of programs that pull.

use pulp_model::{RobotName, Timestamp};
use sqlx::{Row as _, any::AnyRow};

use crate::{Store, StoreError, Tx, engine::assembled, error::duplicate, row};

const COLUMNS: &str = "SELECT name, description, secret_hash, created, expires FROM robots";

/// A robot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Robot {
    /// The key.
    pub name: RobotName,
    /// For people.
    pub description: String,
    /// SHA-256 of its secret, in hexadecimal digits.
    pub secret_hash: String,
    /// When it was made.
    pub created: Timestamp,
    /// From when on it counts for nothing; none means never.
    pub expires: Option<Timestamp>,
}

impl Store {
    /// One robot, also one whose time is over.
    pub async fn robot(&self, name: &RobotName) -> Result<Option<Robot>, StoreError> {
        let found = sqlx::query(assembled(format!("{COLUMNS} WHERE name = $1")))
            .bind(name.as_str())
            .fetch_optional(&self.pool)
            .await?;
        found.map(|r| read(&r)).transpose()
    }

    /// All robots, by name.
    pub async fn robots(&self) -> Result<Vec<Robot>, StoreError> {
        let found = sqlx::query(assembled(format!("{COLUMNS} ORDER BY name")))
            .fetch_all(&self.pool)
            .await?;
        found.iter().map(read).collect()
    }
}

impl Tx {
    /// Makes a robot. [`StoreError::Duplicate`] if the name is taken.
    pub async fn create_robot(
        &mut self,
        name: &RobotName,
        description: &str,
        secret_hash: &str,
        expires: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        let now = self.now().await?;
        let sql = "INSERT INTO robots (name, description, secret_hash, created, expires) VALUES ($1, $2, $3, $4, $5)";
        sqlx::query(sql)
            .bind(name.as_str())
            .bind(description)
            .bind(secret_hash)
            .bind(now.micros())
            .bind(expires.map(Timestamp::micros))
            .execute(self.on())
            .await
            .map_err(|e| duplicate(e, "the robot"))?;
        Ok(())
    }

    /// Gives a robot another secret; false if there is no such robot.
    pub async fn set_robot_secret(
        &mut self,
        name: &RobotName,
        secret_hash: &str,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query("UPDATE robots SET secret_hash = $2 WHERE name = $1")
            .bind(name.as_str())
            .bind(secret_hash)
            .execute(self.on())
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Deletes a robot with its rights; false if there was none.
    pub async fn delete_robot(&mut self, name: &RobotName) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM robots WHERE name = $1")
            .bind(name.as_str())
            .execute(self.on())
            .await?;
        Ok(done.rows_affected() > 0)
    }
}

fn read(found: &AnyRow) -> Result<Robot, StoreError> {
    Ok(Robot {
        name: row::parsed(found, "name")?,
        description: found.try_get("description")?,
        secret_hash: found.try_get("secret_hash")?,
        created: row::instant(found, "created")?,
        expires: row::optional_instant(found, "expires")?,
    })
}
