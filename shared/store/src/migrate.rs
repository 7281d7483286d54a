//! The schema: migrations for both engines and for one alone, in the order of their numbers.

use std::collections::HashSet;

use sqlx::{
    Connection as _, Executor as _, Row as _,
    migrate::{MigrateError, Migrator},
};

use crate::{Engine, Store, StoreError, error::EngineError};

static COMMON: Migrator = sqlx::migrate!("migrations/common");
static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");
static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");

impl Store {
    /// Names of the migrations that `pulp manage-db` would run, in their order.
    pub async fn pending_migrations(&self) -> Result<Vec<String>, StoreError> {
        // Asking the catalogue rather than trying the table: an unreachable database must not read as an empty one.
        let catalogue = match self.engine {
            Engine::Postgres => "SELECT COUNT(to_regclass('_sqlx_migrations')) AS n",
            Engine::Sqlite => "SELECT COUNT(*) AS n FROM sqlite_master WHERE name = '_sqlx_migrations'",
        };
        let tables: i64 = sqlx::query(catalogue).fetch_one(&self.pool).await?.try_get("n")?;
        let mut applied = HashSet::new();
        if tables > 0 {
            for row in sqlx::query("SELECT version FROM _sqlx_migrations")
                .fetch_all(&self.pool)
                .await?
            {
                applied.insert(row.try_get::<i64, _>("version")?);
            }
        }
        let known = self.migrations();
        if let Some(newer) = applied
            .iter()
            .find(|v| known.iter().all(|(version, _)| version != *v))
        {
            return Err(StoreError::SchemaMismatch(format!(
                "it is at schema version {newer}, which this release doesn't know; use the release that made it, or a newer one"
            )));
        }
        Ok(known
            .into_iter()
            .filter(|(version, _)| !applied.contains(version))
            .map(|(version, what)| format!("{version:04} {what}"))
            .collect())
    }

    /// Runs what is pending. Safe to call from several processes at once.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        self.pending_migrations().await?;
        let migrations = self
            .migrators()
            .into_iter()
            .flat_map(|set| set.iter().cloned())
            .collect();
        let migrator = Migrator::with_migrations(migrations);
        match self.engine {
            // One transaction around all: the writer's place keeps other processes out.
            Engine::Sqlite => {
                let _turn = self.writer_turn().await;
                // The library's own, for it opens others within.
                let mut tx = self.pool.inner.begin_with("BEGIN IMMEDIATE").await?;
                migrator.run(&mut *tx).await.map_err(failed)?;
                Ok(tx.commit().await?)
            }
            // An advisory lock keeps the others out. A table may take longer to rewrite, or another process to
            // finish, than an everyday statement may last; so the connection is not one of the pool's.
            Engine::Postgres => {
                let mut connection = self.pool.inner.acquire().await?.detach();
                connection
                    .execute("SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0")
                    .await?;
                migrator.run(&mut connection).await.map_err(failed)?;
                Ok(connection.close().await?)
            }
        }
    }

    /// Refuses a database that is behind this release or ahead of it.
    pub async fn check_schema(&self) -> Result<(), StoreError> {
        let pending = self.pending_migrations().await?;
        if pending.is_empty() {
            return Ok(());
        }
        Err(StoreError::SchemaMismatch(format!(
            "pending: {}",
            pending.join(", ")
        )))
    }

    fn migrators(&self) -> Vec<&'static Migrator> {
        match self.engine {
            Engine::Sqlite => vec![&COMMON, &SQLITE],
            Engine::Postgres => vec![&COMMON, &POSTGRES],
        }
    }

    fn migrations(&self) -> Vec<(i64, String)> {
        let sets = self.migrators();
        let mut known: Vec<_> = sets
            .iter()
            .flat_map(|set| set.iter())
            .map(|m| (m.version, m.description.to_string()))
            .collect();
        known.sort();
        known
    }
}

fn failed(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(cause) => match StoreError::from(cause) {
            StoreError::Database(EngineError::Sqlx(cause)) => {
                StoreError::Migrate(MigrateError::Execute(cause))
            }
            passing => passing,
        },
        MigrateError::ExecuteMigration(cause, version) => match StoreError::from(cause) {
            StoreError::Database(EngineError::Sqlx(cause)) => {
                StoreError::Migrate(MigrateError::ExecuteMigration(cause, version))
            }
            passing => passing,
        },
        other => StoreError::Migrate(other),
    }
}
