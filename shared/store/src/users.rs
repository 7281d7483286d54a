//! Users and their sessions.

use std::time::Duration;

use pulp_model::{Login, Timestamp};
use sqlx::{Row as _, any::AnyRow};

use crate::{Store, StoreError, Tx, error::duplicate, leases::micros, row};

/// The role whose members may do everything.
pub const SUPER_USERS: &str = "super-users";

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The key.
    pub login: Login,
    /// For people.
    pub name: String,
    /// Password hash in PHC format.
    pub password_hash: String,
    /// Roles.
    pub roles: Vec<String>,
}

impl User {
    /// Whether the user may do everything.
    pub fn is_super_user(&self) -> bool {
        self.roles.iter().any(|role| role == SUPER_USERS)
    }
}

impl Store {
    /// All users, by login.
    pub async fn users(&self) -> Result<Vec<User>, StoreError> {
        let sql = "SELECT login, name, password_hash, roles FROM users ORDER BY login";
        sqlx::query(sql)
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(read)
            .collect()
    }

    /// The user whose live session has this token hash.
    pub async fn session_user(&self, token_hash: &str) -> Result<Option<User>, StoreError> {
        let now = self.now().await?;
        let sql = "SELECT u.login, u.name, u.password_hash, u.roles FROM sessions s JOIN users u ON u.login = s.login \
                   WHERE s.token_hash = $1 AND s.expires >= $2";
        let found = sqlx::query(sql)
            .bind(token_hash)
            .bind(now.micros())
            .fetch_optional(&self.pool)
            .await?;
        found.map(|r| read(&r)).transpose()
    }
}

impl Tx {
    /// Makes a user. [`StoreError::Duplicate`] if the login is taken.
    pub async fn create_user(&mut self, user: &User) -> Result<(), StoreError> {
        let now = self.now().await?;
        sqlx::query(
            "INSERT INTO users (login, name, password_hash, roles, created) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(user.login.as_str())
        .bind(&user.name)
        .bind(&user.password_hash)
        .bind(row::to_json(&user.roles))
        .bind(now.micros())
        .execute(self.on())
        .await
        .map_err(|e| duplicate(e, "the user"))?;
        Ok(())
    }

    /// Whether this user is a super-user, and nobody else is. It stays so until the transaction ends: of transactions
    /// that ask this at once each knows what the one before has done.
    pub async fn is_last_super_user(&mut self, login: &Login) -> Result<bool, StoreError> {
        // All rows, and always in the same order, lest two transactions wait for each other.
        let sql =
            self.locking("SELECT login, name, password_hash, roles FROM users ORDER BY login FOR UPDATE");
        let mut others = false;
        let mut this = false;
        for row in sqlx::query(sql).fetch_all(self.on()).await? {
            let user = read(&row)?;
            if user.login == *login {
                this = user.is_super_user();
            } else {
                others |= user.is_super_user();
            }
        }
        Ok(this && !others)
    }

    /// Deletes a user with sessions and rights; false if there was none.
    pub async fn delete_user(&mut self, login: &Login) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM users WHERE login = $1")
            .bind(login.as_str())
            .execute(self.on())
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Changes a password and ends the user's sessions; false if there is no such user.
    pub async fn set_password(&mut self, login: &Login, password_hash: &str) -> Result<bool, StoreError> {
        sqlx::query("DELETE FROM sessions WHERE login = $1")
            .bind(login.as_str())
            .execute(self.on())
            .await?;
        let done = sqlx::query("UPDATE users SET password_hash = $2 WHERE login = $1")
            .bind(login.as_str())
            .bind(password_hash)
            .execute(self.on())
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Opens a session and forgets those that have ended; answers when it ends.
    pub async fn create_session(
        &mut self,
        login: &Login,
        token_hash: &str,
        lifetime: Duration,
    ) -> Result<Timestamp, StoreError> {
        let now = self.now().await?;
        sqlx::query("DELETE FROM sessions WHERE expires < $1")
            .bind(now.micros())
            .execute(self.on())
            .await?;
        let expires = now.plus_micros(micros(lifetime));
        sqlx::query("INSERT INTO sessions (token_hash, login, created, expires) VALUES ($1, $2, $3, $4)")
            .bind(token_hash)
            .bind(login.as_str())
            .bind(now.micros())
            .bind(expires.micros())
            .execute(self.on())
            .await?;
        Ok(expires)
    }
}

pub(crate) fn read(found: &AnyRow) -> Result<User, StoreError> {
    Ok(User {
        login: row::parsed(found, "login")?,
        name: found.try_get("name")?,
        password_hash: found.try_get("password_hash")?,
        roles: row::json(found, "roles")?,
    })
}
