//! A worker's side of a task: claim, progress, and the fenced commit of its effect.

use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut},
};

use pulp_model::{
    Attempt, CodedError, TaskId, Timestamp,
    task::{Owner, TaskKind, TaskState},
};
use pulp_trace::{Span, SpanKind, TraceContext};
use serde_json::Value;
use sqlx::{Row as _, any::AnyRow};

use crate::{
    Store, StoreError, Tx,
    outbox::Message,
    row,
    schedules::RunEnd,
    tasks::{Submission, state},
    timeline::EventKind,
    workers::Incarnation,
};

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
    /// Since when it is there.
    pub created: Timestamp,
    /// When it was claimed, by the same clock.
    pub claimed: Timestamp,
    /// Its place in a trace.
    pub trace: Option<TraceContext>,
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
    /// This release can't read its arguments, for the reason given. The task waits again, for one that can: its
    /// grant was taken back, and the next comes a moment later.
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
    ///
    /// Whose answer was lost asks again, and is told that it is theirs: nobody else can have it, and only a worker's
    /// death would free it. So the worker itself must know which of its claims it runs already.
    pub async fn claim(
        &self,
        id: TaskId,
        attempt: Attempt,
        worker: &Incarnation,
    ) -> Result<ClaimOutcome, StoreError> {
        let mut tx = self.begin().await?;
        let now = tx.now().await?;
        let alive = tx.locking(
            "SELECT supports FROM workers WHERE name = $1 AND incarnation = $2 AND expires >= $3 FOR SHARE",
        );
        let alive = sqlx::query(alive)
            .bind(&worker.name.0)
            .bind(worker.id.to_string())
            .bind(now.micros())
            .fetch_optional(tx.on())
            .await?;
        let Some(alive) = alive else {
            return Ok(ClaimOutcome::WorkerLost);
        };
        let sql = "UPDATE tasks SET state = 'running', worker_name = $3, incarnation = $4, started = $5, progressed = $5 \
                   WHERE task_id = $1 AND attempt = $2 \
                   AND (state = 'accepted' OR (state = 'running' AND worker_name = $3 AND incarnation = $4)) \
                   RETURNING kind, kind_name, schema_version, declined, created, traceparent, tracestate";
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
        let kind = match readable(&found, &row::json(&alive, "supports")?)? {
            Ok(kind) => kind,
            Err(why) => {
                tx.decline(id, &why, found.try_get("declined")?, now).await?;
                tx.commit().await?;
                return Ok(ClaimOutcome::Unreadable(why));
            }
        };
        tx.commit().await?;
        Ok(ClaimOutcome::Claimed(Box::new(ClaimedTask {
            lease: TaskLease { task_id: id, attempt },
            kind,
            created: row::instant(&found, "created")?,
            claimed: now,
            trace: row::trace(&found)?,
        })))
    }

    /// Writes a progress report; false if the attempt is over.
    pub async fn write_progress(&self, lease: &TaskLease, report: &Value) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let now = tx.now().await?;
        let sql = "UPDATE tasks SET progress_report = $3, progressed = $4 \
                   WHERE task_id = $1 AND attempt = $2 AND state = 'running'";
        let done = sqlx::query(sql)
            .bind(lease.task_id.to_string())
            .bind(lease.attempt.0)
            .bind(row::to_json(report))
            .bind(now.micros())
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
        self.give_back(lease, EventKind::HandedBack, "its worker ends", None)
            .await
    }

    /// Gives a task back that can't go on before an instant: until then it holds nothing and others pass it. Why is
    /// told to those who ask what it waits for. A cancel that was asked for ends it instead.
    pub async fn park(&self, lease: &TaskLease, until: Timestamp, why: &str) -> Result<(), StoreError> {
        self.give_back(lease, EventKind::Parked, why, Some(until)).await
    }

    async fn give_back(
        &self,
        lease: &TaskLease,
        event: EventKind,
        why: &str,
        until: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        let mut fenced = self.begin_fenced(lease).await?;
        let id = lease.task_id;
        let now = fenced.now().await?;
        let sql = "UPDATE tasks SET state = 'canceled', finished = $2 WHERE task_id = $1 AND cancel_requested IS NOT NULL";
        let canceled = sqlx::query(sql)
            .bind(id.to_string())
            .bind(now.micros())
            .execute(fenced.on())
            .await?;
        if canceled.rows_affected() > 0 {
            fenced.release_reservations(id).await?;
            fenced.tell(now, &[Message::ended(id)]).await?;
            return fenced.tx.commit().await;
        }
        fenced.take_back(id, event, why, now).await?;
        if let Some(until) = until {
            sqlx::query("UPDATE tasks SET not_before = $2 WHERE task_id = $1")
                .bind(id.to_string())
                .bind(until.micros())
                .execute(fenced.on())
                .await?;
        }
        fenced
            .tell(now, &[Message::ended(id), Message::submitted(id)])
            .await?;
        fenced.tx.commit().await
    }
}

/// What the worker is to do, or why it can't.
fn readable(
    found: &AnyRow,
    supports: &BTreeMap<String, i64>,
) -> Result<Result<TaskKind, String>, StoreError> {
    let (name, version): (String, i64) = (found.try_get("kind_name")?, found.try_get("schema_version")?);
    let why = match supports.get(&name) {
        Some(known) if version <= *known => match row::json(found, "kind") {
            Ok(kind) => return Ok(Ok(kind)),
            Err(e) => format!("its arguments can't be read: {}", crate::error::with_causes(&e)),
        },
        Some(known) => {
            format!("its arguments have schema version {version}; this worker reads up to {known}")
        }
        None => format!("this worker knows no task kind {name}"),
    };
    Ok(Err(why))
}

impl Tx {
    /// Takes back a grant that its worker can't read. It is granted again after a pause that grows with each time,
    /// so that it can't go round and round among workers of the older release.
    async fn decline(
        &mut self,
        id: TaskId,
        why: &str,
        declined: i64,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.take_back(id, EventKind::Declined, why, now).await?;
        let pause = 1_000_000 << declined.clamp(0, 5);
        let sql = "UPDATE tasks SET declined = declined + 1, not_before = $2 WHERE task_id = $1";
        sqlx::query(sql)
            .bind(id.to_string())
            .bind(now.plus_micros(pause).micros())
            .execute(self.on())
            .await?;
        self.tell(now, &[Message::ended(id), Message::submitted(id)])
            .await
    }

    /// Ends an attempt without ending the task: it waits again at its old place, with what befell it on record.
    pub(crate) async fn take_back(
        &mut self,
        id: TaskId,
        event: EventKind,
        why: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.record_attempt(id, event, why, now).await?;
        let sql = "UPDATE tasks SET state = 'waiting', accepted = NULL, resent = NULL, started = NULL, progressed = NULL, \
                   worker_name = NULL, incarnation = NULL WHERE task_id = $1";
        sqlx::query(sql).bind(id.to_string()).execute(self.on()).await?;
        self.release_reservations(id).await
    }
}

impl FencedTx {
    /// The task whose effect this is.
    pub const fn task_id(&self) -> TaskId {
        self.lease.task_id
    }

    /// Makes a task as part of this effect, for example a publish after an import: for the same owner, in the same
    /// group. It may be one that waits already; see [`Tx::submit`].
    pub async fn spawn(&mut self, kind: &TaskKind) -> Result<TaskId, StoreError> {
        let parent = self.lease.task_id;
        let sql = "SELECT owner, group_id FROM tasks WHERE task_id = $1";
        let found = sqlx::query(sql)
            .bind(parent.to_string())
            .fetch_one(self.tx.on())
            .await?;
        let submission = Submission {
            kind,
            owner: Owner::from_stored(found.try_get::<String, _>("owner")?),
            group_id: found.try_get("group_id")?,
            parent: Some(parent),
        };
        let id = self.tx.submit(&submission).await?;
        self.spawned.push(id);
        Ok(id)
    }

    /// Ends the task and commits: effect, result, state, released resources and the resource manager's
    /// wake-up become true together, or not at all.
    pub async fn finish(mut self, outcome: &Outcome, progress: &Value) -> Result<(), StoreError> {
        let _span = Span::begin("task.commit", SpanKind::Internal);
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
        match outcome {
            // Of a task that made others, the schedule hears by their ends.
            Outcome::Finished(_) | Outcome::Skipped(_) if self.spawned.is_empty() => {
                self.tx.count_run(id, RunEnd::Well).await?;
            }
            Outcome::Failed(_) => self.tx.count_run(id, RunEnd::Badly).await?,
            Outcome::Finished(_) | Outcome::Skipped(_) | Outcome::Canceled => {}
        }
        self.tx.release_reservations(id).await?;
        self.tx.tell(now, &[Message::ended(id)]).await?;
        if !self.spawned.is_empty() {
            self.tx.withdraw_children(id).await?;
        }
        self.tx.commit().await
    }
}
