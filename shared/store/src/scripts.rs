//! The transactions that every task goes through, in as few calls of SQLite as can be.
//!
//! SQLite is in this process but works on a thread of its own, so that each call is two changes of threads, for which
//! everybody waits who wants to write. A call may have several statements, each with the parameters of all: one call begins the
//! transaction and changes the tasks, the next one does what follows from that and commits. PostgreSQL does the same
//! in [one statement](crate::fused).

use std::collections::HashMap;

use pulp_model::{Attempt, Epoch, TaskId, Timestamp};
use serde::Serialize;
use sqlx::{
    Any, Row as _,
    any::{AnyArguments, AnyRow},
    query::Query,
};

use crate::{
    Engine, Store, StoreError,
    attempts::PlainEnd,
    engine::{Turn, assembled, ids_of, keys, records_of},
    fused::has_task,
    grants::{Grant, Granted, ROLE, message_of, reservations_of},
    outbox::{self, Message},
    row,
    workers::Incarnation,
};

const ENGINE: Engine = Engine::Sqlite;

/// A call whose parameters are its own.
pub(crate) type Script = Query<'static, Any, AnyArguments>;

/// An end, as a row of parameters.
#[derive(Serialize)]
struct EndRow<'a> {
    id: TaskId,
    attempt: Attempt,
    progress: &'a str,
}

impl<'a> EndRow<'a> {
    fn of(end: &'a PlainEnd) -> Self {
        Self {
            id: end.lease.task_id(),
            attempt: end.lease.attempt(),
            progress: &end.progress,
        }
    }
}

impl Store {
    /// As [`Store::grant_at_once`].
    pub(crate) async fn grant_in_two_calls(
        &self,
        epoch: Epoch,
        grants: &[Grant],
    ) -> Result<(Vec<Granted>, Timestamp), StoreError> {
        let clock = ENGINE.clock();
        let lease = format!("SELECT epoch, {clock} AS now, NULL AS task_id FROM leases WHERE role = $2");
        let accept = format!(
            "UPDATE tasks SET state = 'accepted', attempt = attempt + 1, epoch = $3, accepted = {clock} FROM {} \
             WHERE task_id = r.id AND state || '' = 'waiting' AND COALESCE(not_before, 0) <= {clock} \
             RETURNING task_id, attempt, created, traceparent, tracestate",
            keys(ENGINE, &[("id", "text")])
        );
        let ids: Vec<TaskId> = grants.iter().map(|grant| grant.id).collect();
        let first = sqlx::query(assembled(format!("{BEGIN}; {lease}; {accept}")))
            .bind(ids_of(&ids))
            .bind(ROLE)
            .bind(epoch.0);
        // A grant that a crash takes is one that was never made: no claim can have outlived it.
        let (mut tx, found) = self.begin_repeatable_asking(first).await?;
        let now = match found.first() {
            Some(lease) if !has_task(lease) && lease.try_get::<i64, _>("epoch")? == epoch.0 => {
                row::instant(lease, "now")?
            }
            _ => return Err(StoreError::LeadershipLost),
        };
        let granted = found.iter().filter(|r| has_task(r)).map(Granted::read);
        let granted: Vec<Granted> = granted.collect::<Result<_, _>>()?;
        let of: HashMap<TaskId, &Granted> = granted.iter().map(|g| (g.id, g)).collect();
        let (mut reservations, mut messages) = (Vec::new(), Vec::with_capacity(granted.len()));
        for (grant, granted) in grants.iter().filter_map(|g| Some((g, *of.get(&g.id)?))) {
            reservations.extend(reservations_of(grant));
            messages.push(message_of(grant, granted.attempt, epoch).within(granted.trace.clone()));
        }
        let fields = [
            ("id", "text"),
            ("resource", "text"),
            ("place", "bigint"),
            ("exclusive", "bigint"),
        ];
        let reserve = format!(
            "INSERT INTO reservations (resource, task_id, exclusive, place, granted) \
             SELECT r.resource, r.id, r.exclusive, r.place, $2 FROM {}",
            records_of(ENGINE, 3, &fields)
        );
        let close = format!(
            "DELETE FROM open_requests WHERE task_id IN (SELECT r.id FROM {})",
            keys(ENGINE, &[("id", "text")])
        );
        let ids: Vec<TaskId> = granted.iter().map(|granted| granted.id).collect();
        let told = tx.leave_rows(&messages);
        let tell = told.as_ref().map(|_| outbox::insertion(ENGINE, 4));
        let statements = [Some(reserve), Some(close), tell].into_iter().flatten();
        let last = sqlx::query(assembled(joined(statements, COMMIT)))
            .bind(ids_of(&ids))
            .bind(now.micros())
            .bind(row::to_json(&reservations))
            .bind(told);
        tx.commit_by(last).await?;
        Ok((granted, now))
    }

    /// As [`Store::claim_at_once`].
    pub(crate) async fn claim_in_one_call(
        &self,
        grants: &str,
        worker: &Incarnation,
    ) -> Result<Vec<AnyRow>, StoreError> {
        let clock = ENGINE.clock();
        let claim = format!(
            "UPDATE tasks SET state = 'running', worker_name = $2, incarnation = $3, started = {clock}, progressed = {clock} \
             FROM {} WHERE tasks.task_id = r.id AND tasks.attempt = r.attempt AND (tasks.state || '' = 'accepted' \
             OR (tasks.state || '' = 'running' AND tasks.worker_name || '' = $2 AND tasks.incarnation = $3)) \
             AND EXISTS (SELECT 1 FROM workers WHERE name = $2 AND incarnation = $3 AND expires >= {clock}) \
             RETURNING tasks.task_id, tasks.attempt, kind, kind_name, schema_version, declined, created, traceparent, tracestate",
            keys(ENGINE, &[("id", "text"), ("attempt", "bigint")])
        );
        // Afterwards: a lease that lives now has lived before.
        let alive = format!(
            "SELECT supports, {clock} AS now, NULL AS task_id FROM workers WHERE name = $2 AND incarnation = $3 AND expires >= {clock}"
        );
        let query = sqlx::query(assembled(format!("{BEGIN}; {claim}; {alive}; {COMMIT}")))
            .bind(grants.to_owned())
            .bind(worker.name.0.clone())
            .bind(worker.id.to_string());
        let mut claimed = self.transaction(query).await?;
        match claimed.pop() {
            Some(alive) if !has_task(&alive) => Ok([alive].into_iter().chain(claimed).collect()),
            // The lease ended at this very moment. What was claimed under it is revoked like any other run of the dead.
            _ => Ok(Vec::new()),
        }
    }

    /// As [`Store::finish_at_once`].
    pub(crate) async fn finish_in_two_calls(
        &self,
        ends: &[PlainEnd],
        turn: Option<Turn>,
    ) -> Result<Vec<TaskId>, StoreError> {
        let fields = [("id", "text"), ("attempt", "bigint"), ("progress", "text")];
        // The condition is the fence: it holds the row as an update does, and finds state and attempt as they are then.
        let finish = format!(
            "UPDATE tasks SET state = 'finished', result = 'null', error = NULL, finished = {}, \
             progress_report = r.progress, spawned_tasks = '[]' FROM {} \
             WHERE tasks.task_id = r.id AND tasks.attempt = r.attempt AND tasks.state || '' = 'running' \
             RETURNING task_id, finished, (SELECT COUNT(*) FROM schedule_fires f \
             WHERE f.task_id = tasks.task_id OR f.task_id = tasks.parent_id) AS fires",
            ENGINE.clock(),
            keys(ENGINE, &fields)
        );
        let rows: Vec<EndRow<'_>> = ends.iter().map(EndRow::of).collect();
        let first = sqlx::query(assembled(format!("{BEGIN}; {finish}"))).bind(row::to_json(&rows));
        let (mut tx, found) = self.begin_asking(first, turn).await?;
        let (mut finished, mut fired, mut now) = (Vec::with_capacity(found.len()), Vec::new(), Timestamp(0));
        for r in &found {
            let id: TaskId = row::parsed(r, "task_id")?;
            now = now.max(row::instant(r, "finished")?);
            finished.push(id);
            if r.try_get::<i64, _>("fires")? > 0 {
                fired.push(id);
            }
        }
        if !fired.is_empty() {
            tx.count_good_runs(&fired).await?;
        }
        let messages: Vec<Message> = finished.iter().map(|id| Message::ended(*id)).collect();
        let told = tx.leave_rows(&messages);
        let free = format!(
            "DELETE FROM reservations WHERE task_id IN (SELECT r.id FROM {})",
            keys(ENGINE, &[("id", "text")])
        );
        let tell = told.as_ref().map(|_| outbox::insertion(ENGINE, 3));
        let last = sqlx::query(assembled(joined(
            [Some(free), tell].into_iter().flatten(),
            COMMIT,
        )))
        .bind(ids_of(&finished))
        .bind(now.micros())
        .bind(told);
        tx.commit_by(last).await?;
        Ok(finished)
    }
}

/// What begins a transaction that writes.
pub(crate) const BEGIN: &str = "BEGIN IMMEDIATE";

/// What ends one.
pub(crate) const COMMIT: &str = "COMMIT";

/// The text of these statements, with one that ends them.
pub(crate) fn joined(statements: impl IntoIterator<Item = String>, end: &str) -> String {
    let mut script = String::new();
    for statement in statements {
        script += &statement;
        script += "; ";
    }
    script + end
}
