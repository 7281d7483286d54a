//! What every request asks first: who asks, and whether the repository is there. SQLite is asked [at once](crate::reader); of
//! PostgreSQL, requests that come together ask together.

use std::collections::{HashMap, HashSet};

use pulp_model::{Login, RepositoryId};
use serde_json::{Value, json};
use sqlx::Row as _;

use crate::{
    Store, StoreError,
    engine::{assembled, keys},
    together::{Together, all_or_each},
    users::{self, User},
};

/// The look-ups that wait for each other.
#[derive(Clone, Default)]
pub(crate) struct Lookups {
    users: Together<Login, Result<Option<User>, StoreError>>,
    repositories: Together<RepositoryId, Result<bool, StoreError>>,
}

impl Store {
    /// One user.
    pub async fn user(&self, login: &Login) -> Result<Option<User>, StoreError> {
        if let Some(reader) = &self.reader {
            let sql = "SELECT name, password_hash, roles FROM users WHERE login = ?1";
            let read = |r: &rusqlite::Row<'_>| Ok((r.get(0)?, r.get(1)?, r.get(2)?));
            if let Ok(found) = reader.row(sql, [login.as_str()], read) {
                return found.map(|columns| user_of(login, columns)).transpose();
            }
        }
        let store = self.clone();
        let all = move |logins: Vec<Login>| {
            let store = store.clone();
            async move { all_or_each(&logins, |logins| store.users_of(logins)).await }
        };
        let answer = self.lookups.users.ask(login.clone(), all).await;
        answer.unwrap_or_else(|| Err(given_up()))
    }

    /// Whether there is this repository.
    pub async fn repository_exists(&self, id: &RepositoryId) -> Result<bool, StoreError> {
        if let Some(reader) = &self.reader {
            let sql = "SELECT 1 FROM repositories WHERE repo_id = ?1";
            if let Ok(found) = reader.row(sql, [id.as_str()], |_| Ok(())) {
                return Ok(found.is_some());
            }
        }
        let store = self.clone();
        let all = move |ids: Vec<RepositoryId>| {
            let store = store.clone();
            async move { all_or_each(&ids, |ids| store.which_exist(ids)).await }
        };
        let answer = self.lookups.repositories.ask(id.clone(), all).await;
        answer.unwrap_or_else(|| Err(given_up()))
    }

    async fn users_of(&self, logins: &[Login]) -> Result<Vec<Option<User>>, StoreError> {
        let sql = format!(
            "SELECT login, name, password_hash, roles FROM users WHERE login IN (SELECT r.id FROM {})",
            keys(self.engine, &[("id", "text")])
        );
        let rows = sqlx::query(assembled(sql))
            .bind(list(logins.iter().map(Login::as_str)))
            .fetch_all(&self.pool)
            .await?;
        let mut found = HashMap::with_capacity(rows.len());
        for row in &rows {
            let user = users::read(row)?;
            found.insert(user.login.clone(), user);
        }
        Ok(logins.iter().map(|login| found.get(login).cloned()).collect())
    }

    async fn which_exist(&self, ids: &[RepositoryId]) -> Result<Vec<bool>, StoreError> {
        let sql = format!(
            "SELECT repo_id FROM repositories WHERE repo_id IN (SELECT r.id FROM {})",
            keys(self.engine, &[("id", "text")])
        );
        let rows = sqlx::query(assembled(sql))
            .bind(list(ids.iter().map(RepositoryId::as_str)))
            .fetch_all(&self.pool)
            .await?;
        let found: HashSet<String> = rows
            .iter()
            .map(|row| row.try_get("repo_id"))
            .collect::<Result<_, _>>()?;
        Ok(ids.iter().map(|id| found.contains(id.as_str())).collect())
    }
}

fn user_of(
    login: &Login,
    (name, password_hash, roles): (String, String, String),
) -> Result<User, StoreError> {
    Ok(User {
        login: login.clone(),
        name,
        password_hash,
        roles: serde_json::from_str(&roles).map_err(|e| StoreError::corrupt("roles", e))?,
    })
}

/// Each once, as [`keys`] of a field `id`.
fn list<'k>(all: impl Iterator<Item = &'k str>) -> String {
    let each: HashSet<&str> = all.collect();
    Value::Array(each.into_iter().map(|id| json!({ "id": id })).collect()).to_string()
}

fn given_up() -> StoreError {
    StoreError::NotTogether("the look-up was given up".to_owned())
}
