//! A worker's side of a task: claim, progress, and the fenced commit of its effect.

use std::ops::{Deref, DerefMut};

use pulp_model::{
    Attempt, CodedError, TaskId,
    task::{TaskKind, TaskState},
};
use serde_json::Value;
use sqlx::Row as _;

use crate::{Store, StoreError, Tx, outbox::Message, row, tasks::state, workers::Incarnation};

/// The right to run one attempt of one task. Only a claim makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskLease {
    task_id: TaskId,
    attempt: Attempt,
}

impl TaskLease {
    /// The task.
    pub const fn task_id(&self) -> TaskId {
        self.task_id
    }

    /// The attempt.
    pub const fn attempt(&self) -> Attempt {
        self.attempt
    }
}

/// A task that is ours to run.
#[derive(Debug, Clone)]
pub struct ClaimedTask {
    /// The right to run it.
    pub lease: TaskLease,
    /// What to do.
    pub kind: TaskKind,
}

/// What came of a claim.
#[derive(Debug)]
pub enum ClaimOutcome {
    /// It is ours.
    Claimed(Box<ClaimedTask>),
    /// Not this attempt any more: canceled, granted anew, or claimed by a copy of the same message.
    Refused,
    /// Our own lease has ended; claim nothing more.
    WorkerLost,
    /// This release can't read its arguments. The task waits on for one that can.
    Unreadable(String),
}

/// How a run ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// Well, with a result.
    Finished(Value),
    /// There was nothing to do.
    Skipped(Value),
    /// Badly.
    Failed(CodedError),
    /// Stopped by a cancel.
    Canceled,
}

/// A transaction that may change content, because it holds the task's row while the attempt is the current one.
///
/// Until it ends nobody can cancel, revoke or grant the task anew; a take-over waits.
pub struct FencedTx {
    tx: Tx,
    lease: TaskLease,
    spawned: Vec<TaskId>,
}

impl Deref for FencedTx {
    type Target = Tx;

    fn deref(&self) -> &Tx {
        &self.tx
    }
}

impl DerefMut for FencedTx {
    fn deref_mut(&mut self) -> &mut Tx {
        &mut self.tx
    }
}

impl Store {
    /// Turns a grant into a run: `accepted` with this attempt becomes `running`, ours.
    pub async fn claim(
        &self,
        id: TaskId,
        attempt: Attempt,
        worker: &Incarnation,
    ) -> Result<ClaimOutcome, StoreError> {
        let mut tx = self.begin().await?;
        let now = tx.now().await?;
        let alive = tx.locking(
            "SELECT 1 AS one FROM workers WHERE name = $1 AND incarnation = $2 AND expires >= $3 FOR SHARE",
        );
        let alive = sqlx::query(alive)
            .bind(&worker.name.0)
            .bind(worker.id.to_string())
            .bind(now.micros())
            .fetch_optional(tx.on())
            .await?;
        if alive.is_none() {
            return Ok(ClaimOutcome::WorkerLost);
        }
        let sql = "UPDATE tasks SET state = 'running', worker_name = $3, incarnation = $4, started = $5 \
                   WHERE task_id = $1 AND attempt = $2 AND state = 'accepted' RETURNING kind, schema_version";
        let found = sqlx::query(sql)
            .bind(id.to_string())
            .bind(attempt.0)
            .bind(&worker.name.0)
            .bind(worker.id.to_string())
            .bind(now.micros())
            .fetch_optional(tx.on())
            .await?;
        let Some(found) = found else {
            return Ok(ClaimOutcome::Refused);
        };
        let version: i64 = found.try_get("schema_version")?;
        if version > pulp_model::task::TASK_SCHEMA_VERSION {
            return Ok(ClaimOutcome::Unreadable(format!(
                "its arguments have schema version {version}"
            )));
        }
        let kind = match row::json(&found, "kind") {
            Ok(kind) => kind,
            Err(e) => return Ok(ClaimOutcome::Unreadable(e.to_string())),
        };
        tx.commit().await?;
        Ok(ClaimOutcome::Claimed(Box::new(ClaimedTask {
            lease: TaskLease { task_id: id, attempt },
            kind,
        })))
    }

    /// Writes a progress report; false if the attempt is over.
    pub async fn write_progress(&self, lease: &TaskLease, report: &Value) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let sql =
            "UPDATE tasks SET progress_report = $3 WHERE task_id = $1 AND attempt = $2 AND state = 'running'";
        let done = sqlx::query(sql)
            .bind(lease.task_id.to_string())
            .bind(lease.attempt.0)
            .bind(row::to_json(report))
            .execute(tx.on())
            .await?;
        tx.commit().await?;
        Ok(done.rows_affected() > 0)
    }

    /// Begins the transaction that commits the task's effect, or refuses with [`StoreError::Fenced`].
    pub async fn begin_fenced(&self, lease: &TaskLease) -> Result<FencedTx, StoreError> {
        let mut tx = self.begin().await?;
        let sql = tx.locking("SELECT state, attempt FROM tasks WHERE task_id = $1 FOR UPDATE");
        let found = sqlx::query(sql)
            .bind(lease.task_id.to_string())
            .fetch_optional(tx.on())
            .await?;
        let now = match &found {
            None => "gone".to_owned(),
            Some(r) => {
                let (state, attempt) = (state(r)?, Attempt(r.try_get("attempt")?));
                if state == TaskState::Running && attempt == lease.attempt {
                    return Ok(FencedTx {
                        tx,
                        lease: lease.clone(),
                        spawned: Vec::new(),
                    });
                }
                format!("{} at attempt {attempt}", state.as_str())
            }
        };
        Err(StoreError::Fenced {
            task_id: lease.task_id,
            attempt: lease.attempt,
            now,
        })
    }

    /// Gives a task back that was stopped by no fault of its own (its worker drains): it waits again at once,
    /// and the attempt is not held against it. If a cancel was asked for meanwhile, it ends canceled instead.
    pub async fn hand_back(&self, lease: &TaskLease) -> Result<(), StoreError> {
        let mut fenced = self.begin_fenced(lease).await?;
        let id = lease.task_id;
        let now = fenced.now().await?;
        let sql = "UPDATE tasks SET state = 'canceled', finished = $2 WHERE task_id = $1 AND cancel_requested IS NOT NULL";
        let canceled = sqlx::query(sql)
            .bind(id.to_string())
            .bind(now.micros())
            .execute(fenced.on())
            .await?;
        fenced.release_reservations(id).await?;
        if canceled.rows_affected() > 0 {
            fenced.tell(now, &[Message::ended(id)]).await?;
            return fenced.tx.commit().await;
        }
        let sql = "UPDATE tasks SET state = 'waiting', accepted = NULL, started = NULL, worker_name = NULL, incarnation = NULL \
                   WHERE task_id = $1";
        sqlx::query(sql).bind(id.to_string()).execute(fenced.on()).await?;
        fenced
            .tell(now, &[Message::ended(id), Message::submitted(id)])
            .await?;
        fenced.tx.commit().await
    }
}

impl FencedTx {
    /// The task whose effect this is.
    pub const fn task_id(&self) -> TaskId {
        self.lease.task_id
    }

    /// Makes a task as part of this effect, for example a publish after an import.
    pub async fn spawn(&mut self, kind: &TaskKind) -> Result<TaskId, StoreError> {
        let parent = self.lease.task_id;
        let id = self.tx.enqueue_child(kind, Some(parent)).await?;
        self.spawned.push(id);
        Ok(id)
    }

    /// Ends the task and commits: effect, result, state, released resources and the resource manager's
    /// wake-up become true together, or not at all.
    pub async fn finish(mut self, outcome: &Outcome, progress: &Value) -> Result<(), StoreError> {
        let id = self.lease.task_id;
        let now = self.tx.now().await?;
        let (state, result, error) = match outcome {
            Outcome::Finished(result) => (TaskState::Finished, Some(result), None),
            Outcome::Skipped(result) => (TaskState::Skipped, Some(result), None),
            Outcome::Failed(error) => (TaskState::Error, None, Some(error)),
            Outcome::Canceled => (TaskState::Canceled, None, None),
        };
        let sql = "UPDATE tasks SET state = $2, result = $3, error = $4, finished = $5, progress_report = $6, spawned_tasks = $7 \
                   WHERE task_id = $1";
        sqlx::query(sql)
            .bind(id.to_string())
            .bind(state.as_str())
            .bind(result.map(row::to_json))
            .bind(error.map(row::to_json))
            .bind(now.micros())
            .bind(row::to_json(progress))
            .bind(row::to_json(&self.spawned))
            .execute(self.tx.on())
            .await?;
        self.tx.release_reservations(id).await?;
        self.tx.tell(now, &[Message::ended(id)]).await?;
        self.tx.commit().await
    }
}
