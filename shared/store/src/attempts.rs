//! A worker's side of a task: claim, progress, and the fenced commit of its effect.

use std::{
    collections::{BTreeMap, HashSet},
    ops::{Deref, DerefMut},
    time::Duration,
};

use pulp_model::{
    Attempt, CodedError, TaskId, Timestamp,
    task::{Owner, TaskKind, TaskState},
};
use pulp_trace::{Span, SpanKind, TraceContext};
use serde_json::{Value, json};
use sqlx::Row as _;

use crate::{
    Store, StoreError, Tx,
    leases::micros,
    outbox::Message,
    row,
    tasks::{Submission, state},
    timeline::EventKind,
    together::all_or_each,
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

/// What came of claims, by a worker whose lease lives.
pub(crate) struct Claimed {
    /// What it can run, as its row says.
    pub(crate) supports: String,
    pub(crate) now: Timestamp,
    pub(crate) tasks: Vec<Claimable>,
}

/// A task that is the worker's, if it can read what it is to do.
pub(crate) struct Claimable {
    pub(crate) id: TaskId,
    pub(crate) attempt: Attempt,
    pub(crate) kind: String,
    pub(crate) kind_name: String,
    pub(crate) schema_version: i64,
    pub(crate) declined: i64,
    pub(crate) created: Timestamp,
    pub(crate) trace: Option<TraceContext>,
}

/// An end that is all there is of a run.
pub(crate) struct PlainEnd {
    pub(crate) lease: TaskLease,
    pub(crate) progress: String,
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
    /// Turns a grant into a run; see [`Store::claim_all`].
    pub async fn claim(
        &self,
        id: TaskId,
        attempt: Attempt,
        worker: &Incarnation,
    ) -> Result<ClaimOutcome, StoreError> {
        let mut outcomes = self.claim_all(&[(id, attempt)], worker).await?;
        Ok(outcomes.pop().unwrap_or(ClaimOutcome::Refused))
    }

    /// Turns grants into runs, all in one transaction: `accepted` with this attempt becomes `running`, ours. Gives an
    /// outcome for each, in their order.
    ///
    /// Whose answer was lost asks again, and is told that it is theirs: nobody else can have it, and only a worker's
    /// death would free it. So the worker itself must know which of its claims it runs already.
    pub async fn claim_all(
        &self,
        grants: &[(TaskId, Attempt)],
        worker: &Incarnation,
    ) -> Result<Vec<ClaimOutcome>, StoreError> {
        let found = match &self.writer {
            None => self.claim_at_once(&attempts_of(grants), worker).await?,
            Some(writer) => {
                let (grants, worker) = (grants.to_vec(), worker.clone());
                writer.ask(move |writing| writing.claim(&grants, &worker)).await?
            }
        };
        let Some(found) = found else {
            return Ok(grants.iter().map(|_| ClaimOutcome::WorkerLost).collect());
        };
        let supports =
            serde_json::from_str(&found.supports).map_err(|e| StoreError::corrupt("supports", e))?;
        // By attempt too: among the grants may be one of an earlier attempt, and it must not be taken for this one.
        let mut outcomes: BTreeMap<(TaskId, Attempt), ClaimOutcome> = BTreeMap::new();
        for task in found.tasks {
            let lease = TaskLease {
                task_id: task.id,
                attempt: task.attempt,
            };
            let grant = (lease.task_id, lease.attempt);
            let outcome = match task.readable(&supports) {
                Ok(kind) => ClaimOutcome::Claimed(Box::new(ClaimedTask {
                    lease,
                    kind,
                    created: task.created,
                    claimed: found.now,
                    trace: task.trace,
                })),
                Err(why) => self.decline(&lease, why, task.declined).await?,
            };
            outcomes.insert(grant, outcome);
        }
        let of = |grant| outcomes.remove(grant).unwrap_or(ClaimOutcome::Refused);
        Ok(grants.iter().map(of).collect())
    }

    /// Takes back what was claimed and can't be read, unless somebody else has done so.
    async fn decline(
        &self,
        lease: &TaskLease,
        why: String,
        declined: i64,
    ) -> Result<ClaimOutcome, StoreError> {
        let mut fenced = match self.begin_fenced(lease).await {
            Ok(fenced) => fenced,
            Err(StoreError::Fenced { .. }) => return Ok(ClaimOutcome::Refused),
            Err(e) => return Err(e),
        };
        let now = fenced.now().await?;
        if !fenced.end_if_asked(lease.task_id, now).await? {
            fenced.decline(lease.task_id, &why, declined, now).await?;
        }
        fenced.tx.commit().await?;
        Ok(ClaimOutcome::Unreadable(why))
    }

    /// Ends a task well that has no effect but its end, in a transaction shared with others that end at the same time;
    /// refuses with [`StoreError::Fenced`] as [`Store::begin_fenced`] does.
    pub async fn finish_without_effect(&self, lease: &TaskLease, progress: &Value) -> Result<(), StoreError> {
        let end = PlainEnd {
            lease: lease.clone(),
            progress: row::to_json(progress),
        };
        let is_finished = match &self.writer {
            None => self.finish_with_others(end).await?,
            Some(writer) => writer.ask(move |writing| writing.finish(&end)).await?,
        };
        if is_finished {
            return Ok(());
        }
        Err(StoreError::Fenced {
            task_id: lease.task_id,
            attempt: lease.attempt,
            now: "not running as this attempt".to_owned(),
        })
    }

    async fn finish_with_others(&self, end: PlainEnd) -> Result<bool, StoreError> {
        let store = self.clone();
        let all = move |ends: Vec<PlainEnd>| {
            let store = store.clone();
            async move { all_or_each(&ends, |ends| store.finish_together(ends)).await }
        };
        let answer = self.ends.ask(end, all).await;
        answer.unwrap_or_else(|| Err(StoreError::NotTogether("the commit was given up".to_owned())))
    }

    /// Tells of each whether it was finished; it was not if its attempt is over.
    async fn finish_together(&self, ends: &[PlainEnd]) -> Result<Vec<bool>, StoreError> {
        let finished: HashSet<TaskId> = self.finish_at_once(ends).await?.into_iter().collect();
        Ok(ends
            .iter()
            .map(|end| finished.contains(&end.lease.task_id))
            .collect())
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

    /// Gives a task back that can't go on for a while: so long it holds nothing and others pass it. Why is told to
    /// those who ask what it waits for. A cancel that was asked for ends it instead.
    pub async fn park(&self, lease: &TaskLease, pause: Duration, why: &str) -> Result<(), StoreError> {
        self.give_back(lease, EventKind::Parked, why, Some(pause)).await
    }

    async fn give_back(
        &self,
        lease: &TaskLease,
        event: EventKind,
        why: &str,
        pause: Option<Duration>,
    ) -> Result<(), StoreError> {
        let mut fenced = self.begin_fenced(lease).await?;
        let id = lease.task_id;
        let now = fenced.now().await?;
        if fenced.end_if_asked(id, now).await? {
            return fenced.tx.commit().await;
        }
        fenced.take_back(id, event, why, now).await?;
        if let Some(pause) = pause {
            sqlx::query("UPDATE tasks SET not_before = $2, steps_aside = 1 WHERE task_id = $1")
                .bind(id.to_string())
                .bind(now.plus_micros(micros(pause)).micros())
                .execute(fenced.on())
                .await?;
        }
        fenced.tell(now, vec![Message::submitted(id)]).await?;
        fenced.tx.commit().await
    }
}

/// Attempts of tasks as [`keys`] of a field `id` and a field `attempt`.
fn attempts_of(attempts: &[(TaskId, Attempt)]) -> String {
    let rows = attempts
        .iter()
        .map(|(id, attempt)| json!({"id": id, "attempt": attempt}))
        .collect();
    Value::Array(rows).to_string()
}

impl Claimable {
    /// What the worker is to do, or why it can't.
    fn readable(&self, supports: &BTreeMap<String, i64>) -> Result<TaskKind, String> {
        let (name, version) = (&self.kind_name, self.schema_version);
        match supports.get(name) {
            Some(known) if version <= *known => serde_json::from_str(&self.kind).map_err(|e| {
                let e = StoreError::corrupt("kind", e);
                format!("its arguments can't be read: {}", crate::error::with_causes(&e))
            }),
            Some(known) => Err(format!(
                "its arguments have schema version {version}; this worker reads up to {known}"
            )),
            None => Err(format!("this worker knows no task kind {name}")),
        }
    }
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
        let sql =
            "UPDATE tasks SET declined = declined + 1, not_before = $2, steps_aside = 0 WHERE task_id = $1";
        sqlx::query(sql)
            .bind(id.to_string())
            .bind(now.plus_micros(pause).micros())
            .execute(self.on())
            .await?;
        self.tell(now, vec![Message::submitted(id)]).await
    }

    /// Ends a task that doesn't go on as canceled, if its cancel was asked for; it would wait again otherwise.
    async fn end_if_asked(&mut self, id: TaskId, now: Timestamp) -> Result<bool, StoreError> {
        let sql = "UPDATE tasks SET state = 'canceled', finished = $2 WHERE task_id = $1 AND cancel_requested IS NOT NULL";
        let canceled = sqlx::query(sql)
            .bind(id.to_string())
            .bind(now.micros())
            .execute(self.on())
            .await?;
        if canceled.rows_affected() == 0 {
            return Ok(false);
        }
        self.release_reservations(&[id]).await?;
        self.tell(now, vec![Message::ended(id)]).await?;
        Ok(true)
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
        self.release_reservations(&[id]).await
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
            trace: None,
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
                self.tx.count_good_runs(&[id]).await?;
            }
            Outcome::Failed(_) => self.tx.count_bad_run(id).await?,
            Outcome::Finished(_) | Outcome::Skipped(_) | Outcome::Canceled => {}
        }
        self.tx.release_reservations(&[id]).await?;
        self.tx.tell(now, vec![Message::ended(id)]).await?;
        if !self.spawned.is_empty() {
            self.tx.withdraw_children(id).await?;
        }
        self.tx.commit().await
    }
}
