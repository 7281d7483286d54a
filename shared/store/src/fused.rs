//! The transactions that every task goes through, each as one statement of PostgreSQL.
//!
//! There a statement is a round trip, and a transaction of four statements is six of them. So what a grant, a claim and a
//! plain end do is one statement, whose parts take their rows from what the part before has changed; it is a
//! transaction by itself. SQLite can't change anything within such a statement, and has [steps](crate::steps) instead.
//!
//! States are compared as `state || substr(r.id, 1, 0)`, which is the state: the planner thinks that few tasks are in a
//! given state, and would find those first, by an index or by reading a small table as a whole. A condition that needs the
//! key can only be looked at once the task was found by it.

use std::collections::HashMap;

use pulp_model::{Attempt, Epoch, TaskId, Timestamp};
use serde_json::{Value, json};
use sqlx::{Row as _, any::AnyRow};

use crate::{
    Engine, Store, StoreError,
    attempts::{Claimable, Claimed, PlainEnd},
    engine::{assembled, keys},
    grants::{Grant, Granted, ROLE, message_of, reservations_of},
    outbox::{Message, OutboxRow},
    row,
    workers::Incarnation,
};

const ENGINE: Engine = Engine::Postgres;

impl Store {
    /// Accepts those of `grants` that still wait, reserves what they take, closes the requests that they stand for, and
    /// tells the workers; refuses under an old epoch. Need not outlive a crash of the database.
    pub(crate) async fn grant_at_once(
        &self,
        epoch: Epoch,
        grants: &[Grant],
    ) -> Result<(Vec<Granted>, Timestamp), StoreError> {
        let messages: HashMap<TaskId, (OutboxRow, &Grant)> = grants
            .iter()
            .map(|grant| (grant.id, (message_of(grant, Attempt(0), epoch).row(), grant)))
            .collect();
        let rows = grants.iter().filter_map(|grant| messages.get(&grant.id)).map(|(message, grant)| {
            json!({"id": grant.id, "message": message.id, "queue": message.queue, "body": message.body(), "claims": row::to_json(&reservations_of(grant))})
        });
        // The lease is locked before a row of it is joined with, and what is joined with is what it is then.
        let sql = format!(
            "WITH lease AS MATERIALIZED (SELECT epoch, {clock} AS now, set_config('synchronous_commit', 'off', true) AS later \
             FROM leases WHERE role = $2 FOR SHARE), \
             accepted AS (UPDATE tasks SET state = 'accepted', attempt = attempt + 1, epoch = $3, accepted = lease.now \
             FROM {ids}, lease WHERE lease.epoch = $3 AND tasks.task_id = r.id AND tasks.state || substr(r.id, 1, 0) = 'waiting' \
             AND COALESCE(tasks.not_before, 0) <= lease.now \
             RETURNING tasks.task_id, tasks.attempt, tasks.created, tasks.accepted, tasks.traceparent, tasks.tracestate, \
             r.message, r.queue, r.body, r.claims), \
             reserved AS (INSERT INTO reservations (resource, task_id, exclusive, place, granted) \
             SELECT c.resource, c.id, c.exclusive, c.place, a.accepted FROM accepted a CROSS JOIN LATERAL \
             json_to_recordset(CAST(a.claims AS json)) AS c(id text, resource text, place bigint, exclusive bigint)), \
             closed AS (DELETE FROM open_requests WHERE task_id IN (SELECT task_id FROM accepted)), \
             told AS (INSERT INTO outbox (id, queue, body, traceparent, tracestate, created) \
             SELECT message, queue, CAST(jsonb_set(CAST(body AS jsonb), '{{attempt}}', to_jsonb(attempt)) AS text), \
             traceparent, tracestate, accepted FROM accepted) \
             SELECT lease.epoch, lease.now, task_id, attempt, created, traceparent, tracestate \
             FROM lease LEFT JOIN accepted ON true",
            clock = ENGINE.clock(),
            ids = keys(
                ENGINE,
                &[
                    ("id", "text"),
                    ("message", "text"),
                    ("queue", "text"),
                    ("body", "text"),
                    ("claims", "text"),
                ]
            ),
        );
        let found = sqlx::query(assembled(sql))
            .bind(Value::Array(rows.collect()).to_string())
            .bind(ROLE)
            .bind(epoch.0)
            .fetch_all(&self.pool)
            .await?;
        let Some(lease) = found.first() else {
            return Err(StoreError::LeadershipLost);
        };
        if lease.try_get::<i64, _>("epoch")? != epoch.0 {
            return Err(StoreError::LeadershipLost);
        }
        let now = row::instant(lease, "now")?;
        let (mut all, mut told) = (Vec::with_capacity(found.len()), Vec::with_capacity(found.len()));
        for r in found.iter().filter(|r| has_task(r)) {
            let granted = Granted::read(r)?;
            if let Some((message, grant)) = messages.get(&granted.id) {
                let row = message_of(grant, granted.attempt, epoch)
                    .within(granted.trace.clone())
                    .row();
                told.push(OutboxRow {
                    id: message.id.clone(),
                    ..row
                });
            }
            all.push(granted);
        }
        self.fresh.committed(told, self.has_outbox);
        Ok((all, now))
    }

    /// Turns accepted attempts into runs of this worker, if its own lease lives; none if it doesn't.
    pub(crate) async fn claim_at_once(
        &self,
        grants: &str,
        worker: &Incarnation,
    ) -> Result<Option<Claimed>, StoreError> {
        let sql = format!(
            "WITH alive AS MATERIALIZED (SELECT supports, {clock} AS now FROM workers \
             WHERE name = $2 AND incarnation = $3 AND expires >= {clock} FOR SHARE), \
             claimed AS (UPDATE tasks SET state = 'running', worker_name = $2, incarnation = $3, started = alive.now, \
             progressed = alive.now FROM {ids}, alive WHERE tasks.task_id = r.id AND tasks.attempt = r.attempt \
             AND (tasks.state || substr(r.id, 1, 0) = 'accepted' \
             OR (tasks.state || substr(r.id, 1, 0) = 'running' AND tasks.worker_name || '' = $2 AND tasks.incarnation = $3)) \
             RETURNING tasks.task_id, tasks.attempt, kind, kind_name, schema_version, declined, created, traceparent, tracestate) \
             SELECT CASE WHEN row_number() OVER () = 1 THEN alive.supports END AS supports, alive.now, claimed.* \
             FROM alive LEFT JOIN claimed ON true",
            clock = ENGINE.clock(),
            ids = keys(ENGINE, &[("id", "text"), ("attempt", "bigint")]),
        );
        let found = sqlx::query(assembled(sql))
            .bind(grants)
            .bind(&worker.name.0)
            .bind(worker.id.to_string())
            .fetch_all(&self.pool)
            .await?;
        let Some(alive) = found.first() else {
            return Ok(None);
        };
        let tasks = found.iter().filter(|r| has_task(r)).map(claimable);
        Ok(Some(Claimed {
            supports: alive.try_get("supports")?,
            now: row::instant(alive, "now")?,
            tasks: tasks.collect::<Result<_, StoreError>>()?,
        }))
    }

    /// Ends runs well, frees what they hold, counts them for their schedules and tells the resource manager. Answers
    /// those that were running as that attempt.
    pub(crate) async fn finish_at_once(&self, ends: &[PlainEnd]) -> Result<Vec<TaskId>, StoreError> {
        let messages: Vec<OutboxRow> = ends
            .iter()
            .map(|end| Message::ended(end.lease.task_id()).row())
            .collect();
        let rows = ends.iter().zip(&messages).map(|(end, message)| {
            json!({
                "id": end.lease.task_id(), "attempt": end.lease.attempt(), "progress": end.progress,
                "message": message.id, "queue": message.queue, "body": message.body(),
                "traceparent": message.traceparent(), "tracestate": message.tracestate(),
            })
        });
        let fields = [
            ("id", "text"),
            ("attempt", "bigint"),
            ("progress", "text"),
            ("message", "text"),
            ("queue", "text"),
            ("body", "text"),
            ("traceparent", "text"),
            ("tracestate", "text"),
        ];
        let sql = format!(
            "WITH done AS (UPDATE tasks SET state = 'finished', result = 'null', error = NULL, finished = {clock}, \
             progress_report = r.progress, spawned_tasks = '[]' FROM {ends} \
             WHERE tasks.task_id = r.id AND tasks.attempt = r.attempt AND tasks.state || substr(r.id, 1, 0) = 'running' \
             RETURNING tasks.task_id, tasks.parent_id, tasks.finished, r.message, r.queue, r.body, r.traceparent AS parent, \
             r.tracestate AS state), \
             freed AS (DELETE FROM reservations WHERE task_id IN (SELECT task_id FROM done)), \
             good AS (UPDATE schedules SET consecutive_failures = 0 WHERE schedule_id IN (\
             SELECT f.schedule_id FROM done JOIN schedule_fires f ON f.task_id = done.task_id UNION \
             SELECT f.schedule_id FROM done JOIN schedule_fires f ON f.task_id = done.parent_id)), \
             told AS (INSERT INTO outbox (id, queue, body, traceparent, tracestate, created) \
             SELECT message, queue, body, parent, state, finished FROM done) \
             SELECT task_id FROM done",
            clock = ENGINE.clock(),
            ends = keys(ENGINE, &fields),
        );
        let found = sqlx::query(assembled(sql))
            .bind(Value::Array(rows.collect()).to_string())
            .fetch_all(&self.pool)
            .await?;
        let finished: Vec<TaskId> = found
            .iter()
            .map(|r| row::parsed(r, "task_id"))
            .collect::<Result<_, _>>()?;
        let told = ends.iter().zip(messages);
        let told = told.filter(|(end, _)| finished.contains(&end.lease.task_id()));
        let told = told.map(|(_, message)| message).collect();
        self.fresh.committed(told, self.has_outbox);
        Ok(finished)
    }
}

fn claimable(found: &AnyRow) -> Result<Claimable, StoreError> {
    Ok(Claimable {
        id: row::parsed(found, "task_id")?,
        attempt: Attempt(found.try_get("attempt")?),
        kind: found.try_get("kind")?,
        kind_name: found.try_get("kind_name")?,
        schema_version: found.try_get("schema_version")?,
        declined: found.try_get("declined")?,
        created: row::instant(found, "created")?,
        trace: row::trace(found)?,
    })
}

/// Whether a row is of a task, and not that of a lease without any.
fn has_task(found: &AnyRow) -> bool {
    matches!(found.try_get::<Option<String>, _>("task_id"), Ok(Some(_)))
}
