//! Runs that went on for too long: found by the database's clock, ended over their worker's head.

use std::time::Duration;

use pulp_model::{
    Attempt, Epoch, TaskId, Timestamp, WorkerName,
    deadline::{HardLimits, Overran},
    task::{TaskClass, TaskState},
};
use serde_json::Value;
use sqlx::{Row as _, any::AnyRow};

use crate::{Store, StoreError, Tx, grants::ROLE, leases::micros, row, timeline::EventKind};

/// A running task that has shown no progress for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quiet {
    /// The task.
    pub id: TaskId,
    /// The name of its kind.
    pub kind_name: String,
    /// Its class.
    pub class: TaskClass,
    /// Who runs it.
    pub worker: Option<WorkerName>,
    /// For how long.
    pub silent: Duration,
}

impl Store {
    /// Ends running tasks that are beyond their `limits` in error, and frees what they hold: whatever is wrong with
    /// their worker, nobody waits for them for ever. Its commit is fenced. One whose effect is being committed at this
    /// very moment is left for the next time.
    pub async fn expire(&self, epoch: Epoch, limits: &HardLimits) -> Result<Vec<TaskId>, StoreError> {
        let mut tx = self.begin().await?;
        let now = tx.require_epoch(ROLE, epoch).await?;
        // Without a lock: a run that is within its limits is not held up.
        let sql = "SELECT task_id, attempt, kind, kind_name, worker_name, started, progressed FROM tasks \
                   WHERE state = 'running' AND (started < $1 OR progressed < $2)";
        let since = |limit: Duration| now.plus_micros(-micros(limit)).micros();
        let rows = sqlx::query(sql)
            .bind(since(limits.deadlines.shortest_hard()))
            .bind(limits.without_progress.map_or(0, since))
            .fetch_all(tx.on())
            .await?;
        let mut ended = Vec::new();
        for run in &rows {
            if let Some(id) = tx.expire_one(limits, run, now).await? {
                ended.push(id);
            }
        }
        tx.commit().await?;
        Ok(ended)
    }

    /// Running tasks whose progress last changed longer ago than `after`.
    pub async fn quiet_tasks(&self, after: Duration) -> Result<Vec<Quiet>, StoreError> {
        let now = self.now().await?;
        let sql = "SELECT task_id, kind_name, class, worker_name, progressed FROM tasks \
                   WHERE state = 'running' AND progressed < $1 ORDER BY progressed";
        let rows = sqlx::query(sql)
            .bind(now.plus_micros(-micros(after)).micros())
            .fetch_all(&self.pool)
            .await?;
        rows.iter()
            .map(|r| {
                let class: String = r.try_get("class")?;
                Ok(Quiet {
                    id: row::parsed(r, "task_id")?,
                    kind_name: r.try_get("kind_name")?,
                    class: TaskClass::parse(&class).ok_or_else(|| {
                        StoreError::corrupt("tasks.class", format!("unknown class {class}"))
                    })?,
                    worker: r.try_get::<Option<String>, _>("worker_name")?.map(WorkerName),
                    silent: now.since(row::instant(r, "progressed")?),
                })
            })
            .collect()
    }
}

impl Tx {
    /// Ends one run if it is beyond its limits; it is looked at again once its row is ours.
    async fn expire_one(
        &mut self,
        limits: &HardLimits,
        run: &AnyRow,
        now: Timestamp,
    ) -> Result<Option<TaskId>, StoreError> {
        let id: TaskId = row::parsed(run, "task_id")?;
        let attempt = Attempt(run.try_get("attempt")?);
        let kind: String = run.try_get("kind_name")?;
        let ran = now.since(row::instant(run, "started")?);
        if limits
            .overrun(&kind, ran, now.since(row::instant(run, "progressed")?))
            .is_none()
        {
            return Ok(None);
        }
        let sql = self.locking(
            "SELECT progressed FROM tasks WHERE task_id = $1 AND attempt = $2 AND state = 'running' FOR UPDATE SKIP LOCKED",
        );
        let Some(found) = sqlx::query(sql)
            .bind(id.to_string())
            .bind(attempt.0)
            .fetch_optional(self.on())
            .await?
        else {
            return Ok(None);
        };
        let silent = now.since(row::instant(&found, "progressed")?);
        let Some(overrun) = limits.overrun(&kind, ran, silent) else {
            return Ok(None);
        };
        let arguments: Value = row::json(run, "kind")?;
        let worker: Option<String> = run.try_get("worker_name")?;
        let error = overrun.coded(&Overran {
            task: id,
            kind: &kind,
            repository: arguments["repo_id"].as_str().unwrap_or_default(),
            at: None,
            stuck: Some(worker.as_deref().unwrap_or("(unknown)")),
            ran,
        });
        self.record_event(id, EventKind::Expired, &error.description, now)
            .await?;
        self.end_revoked(id, TaskState::Error, Some(&error), now).await?;
        Ok(Some(id))
    }
}
