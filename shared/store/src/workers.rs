//! Processes that are alive: workers, and the other roles for the status page.

use std::time::Duration;

use pulp_model::{TaskId, Timestamp, WorkerName};
use sqlx::Row as _;
use uuid::Uuid;

use crate::{Store, StoreError, leases::micros, row};

/// One run of a process. A restart under the same name is another incarnation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incarnation {
    /// The name.
    pub name: WorkerName,
    /// Unique to this run.
    pub id: Uuid,
}

impl Incarnation {
    /// A new run under `name`.
    pub fn new(name: WorkerName) -> Self {
        Self {
            name,
            id: Uuid::new_v4(),
        }
    }
}

/// A process that has shown itself lately.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownWorker {
    /// Its name.
    pub name: WorkerName,
    /// When it last showed itself.
    pub last_heartbeat: Timestamp,
}

/// What a heartbeat told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heartbeat {
    /// The lease goes on; these tasks of ours are to be canceled.
    Alive {
        /// Running tasks of this incarnation with a cancel request.
        cancel: Vec<TaskId>,
    },
    /// The row is another incarnation's, or was taken for dead: stop all work.
    Lost,
}

impl Store {
    /// Announces a process under the first free name: `prefix-0@host`, `prefix-1@host`, … where `numbered`, else
    /// `prefix@host`, `prefix@host.1`, …. A row whose lease has ended is free.
    pub async fn register_worker(
        &self,
        role: &str,
        prefix: &str,
        host: &str,
        numbered: bool,
        ttl: Duration,
    ) -> Result<Incarnation, StoreError> {
        for n in 0..10_000 {
            let name = match (numbered, n) {
                (true, n) => format!("{prefix}-{n}@{host}"),
                (false, 0) => format!("{prefix}@{host}"),
                (false, n) => format!("{prefix}@{host}.{n}"),
            };
            let incarnation = Incarnation::new(WorkerName(name));
            if self.try_register(role, &incarnation, ttl).await? {
                return Ok(incarnation);
            }
        }
        Err(StoreError::Duplicate(format!("every worker name of {host}")))
    }

    async fn try_register(
        &self,
        role: &str,
        incarnation: &Incarnation,
        ttl: Duration,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let now = tx.now().await?;
        let sql = "INSERT INTO workers (name, role, incarnation, started, last_heartbeat, expires) VALUES ($1, $2, $3, $4, $4, $5) \
                   ON CONFLICT (name) DO UPDATE SET role = excluded.role, incarnation = excluded.incarnation, \
                   started = excluded.started, last_heartbeat = excluded.last_heartbeat, expires = excluded.expires \
                   WHERE workers.expires < excluded.last_heartbeat";
        let done = sqlx::query(sql)
            .bind(&incarnation.name.0)
            .bind(role)
            .bind(incarnation.id.to_string())
            .bind(now.micros())
            .bind(now.plus_micros(micros(ttl)).micros())
            .execute(tx.on())
            .await?;
        tx.commit().await?;
        Ok(done.rows_affected() > 0)
    }

    /// Shows that a process lives, and asks which of its tasks are to stop.
    pub async fn heartbeat(&self, incarnation: &Incarnation, ttl: Duration) -> Result<Heartbeat, StoreError> {
        let mut tx = self.begin().await?;
        let now = tx.now().await?;
        // A lease that has ended is not revived: its tasks may be another's already.
        let sql = "UPDATE workers SET last_heartbeat = $3, expires = $4 WHERE name = $1 AND incarnation = $2 AND expires >= $3";
        let done = sqlx::query(sql)
            .bind(&incarnation.name.0)
            .bind(incarnation.id.to_string())
            .bind(now.micros())
            .bind(now.plus_micros(micros(ttl)).micros())
            .execute(tx.on())
            .await?;
        if done.rows_affected() == 0 {
            return Ok(Heartbeat::Lost);
        }
        let sql = "SELECT task_id FROM tasks WHERE worker_name = $1 AND incarnation = $2 AND state = 'running' \
                   AND cancel_requested IS NOT NULL";
        let rows = sqlx::query(sql)
            .bind(&incarnation.name.0)
            .bind(incarnation.id.to_string())
            .fetch_all(tx.on())
            .await?;
        let cancel = rows
            .iter()
            .map(|r| row::parsed(r, "task_id"))
            .collect::<Result<_, _>>()?;
        tx.commit().await?;
        Ok(Heartbeat::Alive { cancel })
    }

    /// Takes a process's name off the list: it stops in order and holds no task any more.
    pub async fn unregister_worker(&self, incarnation: &Incarnation) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        sqlx::query("DELETE FROM workers WHERE name = $1 AND incarnation = $2")
            .bind(&incarnation.name.0)
            .bind(incarnation.id.to_string())
            .execute(tx.on())
            .await?;
        tx.commit().await
    }

    /// Processes whose lease lives, by name.
    pub async fn known_workers(&self) -> Result<Vec<KnownWorker>, StoreError> {
        let now = self.now().await?;
        let sql = "SELECT name, last_heartbeat FROM workers WHERE expires >= $1 ORDER BY name";
        let rows = sqlx::query(sql).bind(now.micros()).fetch_all(&self.pool).await?;
        rows.iter()
            .map(|r| {
                Ok(KnownWorker {
                    name: WorkerName(r.try_get("name")?),
                    last_heartbeat: row::instant(r, "last_heartbeat")?,
                })
            })
            .collect()
    }
}
