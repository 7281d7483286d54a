//! Processes that are alive: workers, and the other roles for the status page.

use std::{collections::BTreeMap, time::Duration};

use pulp_model::{
    TaskId, Timestamp, WorkerName,
    task::{KINDS, TaskClass},
};
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

/// What a process says it can run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// Tasks that it runs at once, a class; one that is absent or 0 is not served.
    pub slots: BTreeMap<TaskClass, u32>,
    /// Kinds that it can run, each with the largest schema version of its arguments that it reads.
    pub supports: BTreeMap<String, i64>,
}

impl Serving {
    /// The kinds of this release, with these slots.
    pub fn of_this_release(slots: BTreeMap<TaskClass, u32>) -> Self {
        Self {
            slots,
            supports: KINDS
                .iter()
                .map(|kind| (kind.name.to_owned(), kind.schema_version))
                .collect(),
        }
    }

    /// Whether it can run a kind with arguments of this version, in this class.
    pub fn can_run(&self, class: TaskClass, kind: &str, schema_version: i64) -> bool {
        self.slots.get(&class).is_some_and(|slots| *slots > 0)
            && self
                .supports
                .get(kind)
                .is_some_and(|known| schema_version <= *known)
    }
}

/// What all live workers can run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// When, by the database's clock.
    pub now: Timestamp,
    /// Each worker that has slots.
    pub serving: Vec<Serving>,
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
    /// `prefix@host`, `prefix@host.1`, …. A row whose lease has ended is free. It has no slots.
    pub async fn register_worker(
        &self,
        role: &str,
        prefix: &str,
        host: &str,
        numbered: bool,
        ttl: Duration,
    ) -> Result<Incarnation, StoreError> {
        let serving = Serving::of_this_release(BTreeMap::new());
        self.register_serving(role, prefix, host, numbered, ttl, &serving)
            .await
    }

    /// Announces a process that runs tasks; as [`Store::register_worker`].
    pub async fn register_serving(
        &self,
        role: &str,
        prefix: &str,
        host: &str,
        numbered: bool,
        ttl: Duration,
        serving: &Serving,
    ) -> Result<Incarnation, StoreError> {
        for n in 0..10_000 {
            let name = match (numbered, n) {
                (true, n) => format!("{prefix}-{n}@{host}"),
                (false, 0) => format!("{prefix}@{host}"),
                (false, n) => format!("{prefix}@{host}.{n}"),
            };
            let incarnation = Incarnation::new(WorkerName(name));
            if self.try_register(role, &incarnation, ttl, serving).await? {
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
        serving: &Serving,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let now = tx.now().await?;
        let sql = "INSERT INTO workers (name, role, incarnation, started, last_heartbeat, expires, slots, supports) \
                   VALUES ($1, $2, $3, $4, $4, $5, $6, $7) \
                   ON CONFLICT (name) DO UPDATE SET role = excluded.role, incarnation = excluded.incarnation, \
                   started = excluded.started, last_heartbeat = excluded.last_heartbeat, expires = excluded.expires, \
                   slots = excluded.slots, supports = excluded.supports \
                   WHERE workers.expires < excluded.last_heartbeat";
        let done = sqlx::query(sql)
            .bind(&incarnation.name.0)
            .bind(role)
            .bind(incarnation.id.to_string())
            .bind(now.micros())
            .bind(now.plus_micros(micros(ttl)).micros())
            .bind(row::to_json(&serving.slots))
            .bind(row::to_json(&serving.supports))
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

    /// What the live workers can run now, those without slots left out.
    pub async fn capacity(&self) -> Result<Capacity, StoreError> {
        let now = self.now().await?;
        let sql = "SELECT slots, supports FROM workers WHERE expires >= $1 AND slots <> '{}' ORDER BY name";
        let rows = sqlx::query(sql).bind(now.micros()).fetch_all(&self.pool).await?;
        let serving = rows
            .iter()
            .map(|r| {
                Ok(Serving {
                    slots: row::json(r, "slots")?,
                    supports: row::json(r, "supports")?,
                })
            })
            .collect::<Result<_, StoreError>>()?;
        Ok(Capacity { now, serving })
    }
}
