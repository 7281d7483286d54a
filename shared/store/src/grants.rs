//! What the resource manager reads and commits. Every write is conditional on its epoch.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use pulp_model::{
    Attempt, CodedError, Epoch, ErrorCode, TaskId, Timestamp,
    task::{Claim, LockMode, Newcomer, Owner, ResourceKey, TaskClass, TaskState},
};
use pulp_trace::{Span, SpanKind, TraceContext};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::{Row as _, any::AnyRow};

use crate::{
    Store, StoreError, Tx,
    engine::{Engine, assembled, ids_of, keys, records, records_of},
    leases::micros,
    outbox::Message,
    row,
    tasks::state,
    timeline::EventKind,
    writer::Writing,
};

/// The role whose lease guards these writes.
pub const ROLE: &str = "resource-manager";

/// A task that is not at its end, as the lock table needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveTask {
    /// The key.
    pub id: TaskId,
    /// Waiting, accepted or running.
    pub state: TaskState,
    /// The attempt that holds it; 0 before the first grant.
    pub attempt: Attempt,
    /// The queue its grant goes to.
    pub class: TaskClass,
    /// For whom it is done.
    pub owner: Owner,
    /// The name of its kind.
    pub kind_name: String,
    /// The schema version of its arguments.
    pub schema_version: i64,
    /// Not to be granted before this instant, of the database's clock.
    pub not_before: Option<Timestamp>,
    /// Whether it gives up its place until then: others pass it.
    pub steps_aside: bool,
    /// What it needs.
    pub claims: Vec<Claim>,
    /// Its place in the order of arrival, with the id as tie-break.
    pub created: Timestamp,
}

impl From<Newcomer> for LiveTask {
    /// As it was when it was made.
    fn from(new: Newcomer) -> Self {
        Self {
            id: new.task_id,
            state: TaskState::Waiting,
            attempt: Attempt(0),
            class: new.class,
            owner: new.owner,
            kind_name: new.kind_name,
            schema_version: new.schema_version,
            not_before: None,
            steps_aside: false,
            claims: new.claims,
            created: new.created,
        }
    }
}

/// A part of a resource's line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The resource.
    pub resource: ResourceKey,
    /// Tasks created at this instant or later …
    pub from: Timestamp,
    /// … and at this one or earlier.
    pub until: Timestamp,
}

/// A grant that is to be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The task.
    pub id: TaskId,
    /// Its class.
    pub class: TaskClass,
    /// What it takes.
    pub claims: Vec<Claim>,
}

/// What became of a task whose worker was lost or which did not stop in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revoked {
    /// It waits again, for its next attempt.
    WaitsAgain,
    /// It has ended.
    Ended,
}

/// What an event says of an attempt whose worker was lost.
const WORKER_GONE: &str = "its worker is gone";

const LIVE_COLUMNS: &str =
    "task_id, state, attempt, class, owner, kind_name, schema_version, not_before, steps_aside, created";

impl Store {
    /// Every task that is not at its end, oldest first.
    pub async fn live_tasks(&self) -> Result<Vec<LiveTask>, StoreError> {
        let sql = assembled(format!(
            "SELECT {LIVE_COLUMNS} FROM tasks \
             WHERE state IN ('waiting', 'accepted', 'running') AND finished IS NULL ORDER BY created, task_id"
        ));
        let rows = sqlx::query(sql).fetch_all(&self.pool).await?;
        let claims = "SELECT task_id, resource, exclusive FROM task_resources WHERE task_id IN (SELECT task_id FROM tasks \
                      WHERE state IN ('waiting', 'accepted', 'running') AND finished IS NULL) ORDER BY resource";
        let mut claims = by_task(&sqlx::query(claims).fetch_all(&self.pool).await?)?;
        let of = |r: &AnyRow| {
            live(
                r,
                claims
                    .remove(&r.try_get::<String, _>("task_id")?)
                    .unwrap_or_default(),
            )
        };
        rows.iter().map(of).collect()
    }

    /// Those of `ids` that are not at their end, oldest first.
    pub async fn live_among(&self, ids: &[TaskId]) -> Result<Vec<LiveTask>, StoreError> {
        let sql = format!(
            "SELECT {LIVE_COLUMNS}, resource, exclusive FROM {} JOIN tasks t ON t.task_id = r.id \
             LEFT JOIN (SELECT task_id AS of, resource, exclusive FROM task_resources) AS x ON x.of = t.task_id \
             WHERE state || substr(r.id, 1, 0) IN ('waiting', 'accepted', 'running') ORDER BY created, t.task_id, resource",
            keys(self.engine, &[("id", "text")])
        );
        // Planned each time: a plan made while the tables were small would read them as a whole for each task, long after
        // they have grown.
        let rows = sqlx::query(assembled(sql))
            .persistent(self.engine == Engine::Sqlite)
            .bind(ids_of(ids))
            .fetch_all(&self.pool)
            .await?;
        let mut found: Vec<LiveTask> = Vec::with_capacity(ids.len());
        for r in &rows {
            let id: TaskId = row::parsed(r, "task_id")?;
            if found.last().is_none_or(|task| task.id != id) {
                found.push(live(r, Vec::new())?);
            }
            // A task without claims has one row, without any.
            let claims = r.try_get::<Option<String>, _>("resource")?.is_some();
            if let Some(task) = found.last_mut().filter(|_| claims) {
                task.claims.push(claim(r)?);
            }
        }
        Ok(found)
    }

    /// Those that wait in these parts of lines, each once, but for these. The cost is that of the parts, not of the lines.
    pub async fn waiting_in(&self, gaps: &[Gap], known: &[TaskId]) -> Result<Vec<TaskId>, StoreError> {
        // SQLite joins in the order told.
        let join = match self.engine {
            Engine::Postgres => "JOIN",
            Engine::Sqlite => "CROSS JOIN",
        };
        let sql = format!(
            "SELECT DISTINCT t.task_id FROM {} {join} task_resources x ON x.resource = r.of \
             AND x.created BETWEEN r.since AND r.until {join} tasks t ON t.task_id = x.task_id WHERE t.state || '' = 'waiting' \
             AND x.task_id NOT IN (SELECT r.id FROM {})",
            keys(
                self.engine,
                &[("of", "text"), ("since", "bigint"), ("until", "bigint")]
            ),
            records_of(self.engine, 2, &[("id", "text")])
        );
        let list: Vec<Value> = gaps
            .iter()
            .map(|g| json!({"of": g.resource.as_str(), "since": g.from.micros(), "until": g.until.micros()}))
            .collect();
        let rows = sqlx::query(assembled(sql))
            .bind(Value::Array(list).to_string())
            .bind(ids_of(known))
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|r| row::parsed(r, "task_id")).collect()
    }

    /// Commits grants under `epoch`: task accepted, attempt counted, resources reserved, worker told. A task
    /// that waits no more, or is to wait for an instant that has not come, is passed over. Answers those granted.
    pub async fn commit_grants(
        &self,
        epoch: Epoch,
        grants: &[Grant],
    ) -> Result<Vec<(TaskId, Attempt)>, StoreError> {
        let mut seen = HashSet::with_capacity(grants.len());
        let grants: Vec<Grant> = grants.iter().filter(|g| seen.insert(g.id)).cloned().collect();
        let (granted, now) = match &self.writer {
            None => self.grant_at_once(epoch, &grants).await?,
            Some(writer) => {
                let grants = grants.clone();
                // A grant that a crash takes is one that was never made: no claim can have outlived it.
                let step =
                    move |writing: &mut Writing<'_>| Ok((writing.grant(epoch, &grants)?, writing.now()));
                let (granted, now) = writer.ask_repeatable(step).await?;
                (granted.ok_or(StoreError::LeadershipLost)?, now)
            }
        };
        tell_of_grants(epoch, &grants, &granted, now);
        let attempts: HashMap<TaskId, Attempt> = granted.iter().map(|g| (g.id, g.attempt)).collect();
        let of = |grant: &Grant| Some((grant.id, *attempts.get(&grant.id)?));
        Ok(grants.iter().filter_map(of).collect())
    }

    /// Sends grants again that no worker has claimed for `older_than`: their message was lost, or its queue is
    /// long. The attempt stays the same, so that of two messages only one claims. Answers how many.
    pub async fn resend_unclaimed(&self, epoch: Epoch, older_than: Duration) -> Result<u64, StoreError> {
        let mut tx = self.begin().await?;
        let now = tx.require_epoch(ROLE, epoch).await?;
        // One that is being claimed just now needs no second message.
        let unclaimed = tx.locking(
            "SELECT task_id, attempt, class, traceparent, tracestate FROM tasks WHERE state = 'accepted' AND finished IS NULL \
             AND COALESCE(resent, accepted) < $1 ORDER BY accepted LIMIT 1000 FOR UPDATE SKIP LOCKED",
        );
        let before = now.plus_micros(-micros(older_than)).micros();
        let rows = sqlx::query(unclaimed).bind(before).fetch_all(tx.on()).await?;
        let (mut ids, mut messages) = (Vec::new(), Vec::new());
        for r in &rows {
            let id: TaskId = row::parsed(r, "task_id")?;
            let attempt = Attempt(r.try_get("attempt")?);
            messages.push(Message::granted(id, attempt, class(r)?, epoch).within(row::trace(r)?));
            ids.push(id);
        }
        let touch = format!(
            "UPDATE tasks SET resent = $2 WHERE task_id IN (SELECT r.id FROM {})",
            records(tx.engine, &[("id", "text")])
        );
        sqlx::query(assembled(touch))
            .bind(ids_of(&ids))
            .bind(now.micros())
            .execute(tx.on())
            .await?;
        tx.tell(now, messages).await?;
        tx.commit().await?;
        Ok(rows.len() as u64)
    }

    /// Takes running tasks from workers that are dead, by liveness and not by age: their lease has ended, their
    /// row is gone, or another incarnation has their name. A restartable task waits again unless `max_attempts` of
    /// its attempts were lost by now; another ends in error `PLP0049`. Rows of dead workers go a minute later.
    pub async fn revoke_lost(
        &self,
        epoch: Epoch,
        max_attempts: i64,
    ) -> Result<Vec<(TaskId, Revoked)>, StoreError> {
        let mut tx = self.begin().await?;
        let now = tx.require_epoch(ROLE, epoch).await?;
        let sql = tx.locking(
            "SELECT t.task_id, t.lost, t.restartable, t.worker_name, t.cancel_requested FROM tasks t WHERE t.state = 'running' \
             AND NOT EXISTS (SELECT 1 FROM workers w WHERE w.name = t.worker_name AND w.incarnation = t.incarnation AND w.expires >= $1) \
             FOR UPDATE SKIP LOCKED",
        );
        let rows = sqlx::query(sql).bind(now.micros()).fetch_all(tx.on()).await?;
        let mut revoked = Vec::new();
        for r in &rows {
            let id: TaskId = row::parsed(r, "task_id")?;
            let lost = r.try_get::<i64, _>("lost")? + 1;
            let worker: Option<String> = r.try_get("worker_name")?;
            let canceled = r.try_get::<Option<i64>, _>("cancel_requested")?.is_some();
            let again = r.try_get::<i64, _>("restartable")? != 0 && lost < max_attempts;
            if canceled {
                tx.record_event(id, EventKind::Revoked, WORKER_GONE, now).await?;
                tx.end_revoked(id, TaskState::Canceled, None, now).await?;
                revoked.push((id, Revoked::Ended));
            } else if again {
                tx.take_back(id, EventKind::Revoked, WORKER_GONE, now).await?;
                sqlx::query("UPDATE tasks SET lost = $2 WHERE task_id = $1")
                    .bind(id.to_string())
                    .bind(lost)
                    .execute(tx.on())
                    .await?;
                revoked.push((id, Revoked::WaitsAgain));
            } else {
                tx.record_event(id, EventKind::Revoked, WORKER_GONE, now).await?;
                let error = worker_lost(id, worker.as_deref().unwrap_or("unknown"), lost);
                tx.end_revoked(id, TaskState::Error, Some(&error), now).await?;
                revoked.push((id, Revoked::Ended));
            }
        }
        sqlx::query("DELETE FROM workers WHERE expires < $1")
            .bind(now.plus_micros(-micros(Duration::from_mins(1))).micros())
            .execute(tx.on())
            .await?;
        tx.commit().await?;
        Ok(revoked)
    }

    /// Ends tasks that were asked to stop more than `grace` ago and still run. Their worker's commit is fenced.
    pub async fn force_cancel(&self, epoch: Epoch, grace: Duration) -> Result<Vec<TaskId>, StoreError> {
        let mut tx = self.begin().await?;
        let now = tx.require_epoch(ROLE, epoch).await?;
        let sql = tx.locking(
            "SELECT task_id FROM tasks WHERE state = 'running' AND cancel_requested < $1 FOR UPDATE SKIP LOCKED",
        );
        let before = now.plus_micros(-micros(grace)).micros();
        let rows = sqlx::query(sql).bind(before).fetch_all(tx.on()).await?;
        let mut ended = Vec::new();
        for r in &rows {
            let id: TaskId = row::parsed(r, "task_id")?;
            let why = "it did not stop in time after the cancel";
            tx.record_event(id, EventKind::Expired, why, now).await?;
            tx.end_revoked(id, TaskState::Canceled, None, now).await?;
            ended.push(id);
        }
        tx.commit().await?;
        Ok(ended)
    }

    /// How many pairs of reservations conflict, plus reservations of tasks that hold nothing. Must be 0.
    pub async fn reservation_violations(&self) -> Result<i64, StoreError> {
        let conflicts = "SELECT COUNT(*) AS n FROM reservations a JOIN reservations b ON a.resource = b.resource \
                         AND a.task_id < b.task_id WHERE a.exclusive = 1 OR b.exclusive = 1";
        let orphans = "SELECT COUNT(*) AS n FROM reservations r JOIN tasks t ON t.task_id = r.task_id \
                       WHERE t.state NOT IN ('accepted', 'running')";
        let mut violations = 0;
        for sql in [conflicts, orphans] {
            violations += sqlx::query(sql)
                .fetch_one(&self.pool)
                .await?
                .try_get::<i64, _>("n")?;
        }
        Ok(violations)
    }
}

impl Tx {
    pub(crate) async fn end_revoked(
        &mut self,
        id: TaskId,
        state: TaskState,
        error: Option<&CodedError>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query("UPDATE tasks SET state = $2, error = $3, finished = $4 WHERE task_id = $1")
            .bind(id.to_string())
            .bind(state.as_str())
            .bind(error.map(row::to_json))
            .bind(now.micros())
            .execute(self.on())
            .await?;
        // Without an error it was a person who canceled it.
        if error.is_some() {
            self.count_bad_run(id).await?;
        }
        self.release_reservations(&[id]).await
    }
}

/// A task that was granted.
pub(crate) struct Granted {
    pub(crate) id: TaskId,
    pub(crate) attempt: Attempt,
    /// Since when it waited.
    pub(crate) created: Timestamp,
    pub(crate) trace: Option<TraceContext>,
}

impl Granted {
    pub(crate) fn read(found: &AnyRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: row::parsed(found, "task_id")?,
            attempt: Attempt(found.try_get("attempt")?),
            created: row::instant(found, "created")?,
            trace: row::trace(found)?,
        })
    }
}

/// What tells a worker of this grant.
pub(crate) fn message_of(grant: &Grant, attempt: Attempt, epoch: Epoch) -> Message {
    Message::granted(grant.id, attempt, grant.class, epoch)
}

/// What a task takes, as [`records`] of id, resource, place and exclusive.
pub(crate) fn reservations_of<'a>(grant: &'a Grant) -> Vec<ReservationRow<'a>> {
    let of = |claim: &'a Claim| ReservationRow {
        id: grant.id,
        resource: &claim.resource,
        place: place(grant.id),
        exclusive: (claim.mode == LockMode::Exclusive).into(),
    };
    grant.claims.iter().map(of).collect()
}

/// A reservation that is made, as a row of parameters.
#[derive(Serialize)]
pub(crate) struct ReservationRow<'a> {
    id: TaskId,
    pub(crate) resource: &'a ResourceKey,
    pub(crate) place: i64,
    pub(crate) exclusive: i64,
}

/// A span for each grant, from the task's creation: it waited for its resources all that time, and for its turn.
fn tell_of_grants(epoch: Epoch, grants: &[Grant], granted: &[Granted], now: Timestamp) {
    if !pulp_trace::is_exporting() {
        return;
    }
    for Granted {
        id,
        attempt,
        created,
        trace,
    } in granted
    {
        let grant = grants.iter().find(|grant| grant.id == *id);
        let (Some(grant), Some(trace)) = (grant, trace) else {
            continue;
        };
        if !trace.is_sampled() {
            continue;
        }
        let waited = Duration::from_micros(u64::try_from(now.micros() - created.micros()).unwrap_or(0));
        let span = Span::began(Some(trace), "task.grant", SpanKind::Internal, waited);
        span.set("task.id", &grant.id);
        span.set("task.attempt", attempt);
        span.set("task.class", grant.class.as_str());
        span.set("leader.epoch", &epoch);
    }
}

/// A point on a resource's line that no other task has: the random half of its id.
fn place(id: TaskId) -> i64 {
    let hex: String = id
        .to_string()
        .chars()
        .filter(char::is_ascii_hexdigit)
        .skip(16)
        .collect();
    i64::from_str_radix(&hex, 16)
        .or_else(|_| u64::from_str_radix(&hex, 16).map(|n| (n >> 1) as i64))
        .unwrap_or(0)
}

fn worker_lost(id: TaskId, worker: &str, lost: i64) -> CodedError {
    let text = format!(
        "the worker {worker} that ran this task is gone, as at {lost} attempt(s) in all; nothing of it was committed. \
         Look at that worker's log (out of memory?), then ask for the task again"
    );
    CodedError::new(ErrorCode::WORKER_LOST, text).with("task_id", id)
}

fn by_task(rows: &[AnyRow]) -> Result<HashMap<String, Vec<Claim>>, StoreError> {
    let mut claims: HashMap<String, Vec<Claim>> = HashMap::new();
    for r in rows {
        let of = claims.entry(r.try_get("task_id")?).or_default();
        of.push(claim(r)?);
    }
    Ok(claims)
}

/// The claim that a row tells of.
pub(crate) fn claim(found: &AnyRow) -> Result<Claim, StoreError> {
    let resource = ResourceKey::from_stored(found.try_get::<String, _>("resource")?);
    let mode = if found.try_get::<i64, _>("exclusive")? != 0 {
        LockMode::Exclusive
    } else {
        LockMode::Shared
    };
    Ok(Claim { resource, mode })
}

pub(crate) fn class(found: &AnyRow) -> Result<TaskClass, StoreError> {
    let text: String = found.try_get("class")?;
    TaskClass::parse(&text).ok_or_else(|| StoreError::corrupt("tasks.class", format!("unknown class {text}")))
}

fn live(found: &AnyRow, claims: Vec<Claim>) -> Result<LiveTask, StoreError> {
    Ok(LiveTask {
        id: row::parsed(found, "task_id")?,
        state: state(found)?,
        attempt: Attempt(found.try_get("attempt")?),
        class: class(found)?,
        owner: Owner::from_stored(found.try_get::<String, _>("owner")?),
        kind_name: found.try_get("kind_name")?,
        schema_version: found.try_get("schema_version")?,
        not_before: row::optional_instant(found, "not_before")?,
        steps_aside: found.try_get::<i64, _>("steps_aside")? != 0,
        claims,
        created: row::instant(found, "created")?,
    })
}
