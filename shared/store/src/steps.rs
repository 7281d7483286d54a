//! The steps that every task goes through, as SQLite's [writer](crate::writer) does them: one row at a time, by statements that are
//! compiled once. PostgreSQL does each of them in [one statement](crate::fused), for many tasks.
//!
//! A row is looked for, then changed by its place: nobody else writes in between, and `RETURNING`, a subquery after `IN`, or a
//! deletion of several rows of a table without rowid would make SQLite set up a table for what it finds, which costs more than the
//! change.

use std::{iter, sync::LazyLock};

use pulp_model::{Attempt, Epoch, TaskId, Timestamp, task::Coalescing};
use pulp_trace::TraceContext;
use rusqlite::{OptionalExtension as _, Row, params};

use crate::{
    StoreError,
    attempts::{Claimable, Claimed, PlainEnd},
    grants::{Grant, Granted, ROLE, message_of, reservations_of},
    outbox::Message,
    tasks::{AT_BIRTH, BORN_WITH, Birth, CLOSE_REQUESTS, LIKE_REQUEST, OPEN_REQUEST, Request},
    workers::Incarnation,
    writer::Writing,
};

static INSERT_TASK: LazyLock<String> = LazyLock::new(|| {
    format!(
        "INSERT INTO tasks ({BORN_WITH}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, {AT_BIRTH})"
    )
});

/// A task of this schedule ended well.
const GOOD_RUN: &str = "UPDATE schedules SET consecutive_failures = 0 WHERE schedule_id = ?1";

impl Writing<'_> {
    /// As [`crate::Tx::submit`].
    pub(crate) fn submit(&mut self, request: &Request) -> Result<TaskId, StoreError> {
        let kind = &request.kind;
        let coalescing = kind.coalescing();
        if let Some(Coalescing { scope, options }) = &coalescing {
            let mut like = self.statement(LIKE_REQUEST)?;
            let waiting: Option<String> = like.query_row((scope, options), |r| r.get(0)).optional()?;
            if let Some(waiting) = waiting {
                return waiting.parse().map_err(|e| StoreError::corrupt("task_id", e));
            }
        }
        let submission = request.submission();
        let birth = Birth::of(&submission);
        let (id, repo) = (birth.id.to_string(), kind.repo_id().as_str());
        if kind.changes_repository() {
            self.execute(CLOSE_REQUESTS, [repo])?;
        }
        if let Some(Coalescing { scope, options }) = &coalescing {
            self.execute(OPEN_REQUEST, (scope, options, repo, &id))?;
        }
        let written = birth.at(self.now());
        let (row, now) = (&written.row, self.now().micros());
        self.execute(
            &INSERT_TASK,
            params![
                id,
                row.kind,
                row.name,
                row.r#type,
                row.version,
                row.owner,
                row.class,
                row.tags,
                row.grp,
                row.parent.map(|parent| parent.to_string()),
                row.restartable,
                row.traceparent,
                row.tracestate,
                now
            ],
        )?;
        let insert_tag = "INSERT INTO task_tags (task_id, tag) VALUES (?1, ?2)";
        for tag in &written.tags {
            self.execute(insert_tag, (&id, &tag.tag))?;
        }
        let insert_claim =
            "INSERT INTO task_resources (task_id, resource, exclusive, created) VALUES (?1, ?2, ?3, ?4)";
        for claim in &written.claims {
            self.execute(insert_claim, (&id, claim.resource.as_str(), claim.exclusive, now))?;
        }
        self.tell(written.message)?;
        Ok(birth.id)
    }

    /// As [`crate::Store::grant_at_once`]; none under an epoch that is over.
    pub(crate) fn grant(
        &mut self,
        epoch: Epoch,
        grants: &[Grant],
    ) -> Result<Option<Vec<Granted>>, StoreError> {
        let mut leader = self.statement("SELECT epoch FROM leases WHERE role = ?1")?;
        let current: Option<i64> = leader.query_row([ROLE], |r| r.get(0)).optional()?;
        if current != Some(epoch.0) {
            return Ok(None);
        }
        let now = self.now().micros();
        let mut waiting = self.statement(
            "SELECT rowid, attempt + 1, created, traceparent, tracestate FROM tasks \
             WHERE task_id = ?1 AND state = 'waiting' AND COALESCE(not_before, 0) <= ?2",
        )?;
        let mut accept = self.statement(
            "UPDATE tasks SET state = 'accepted', attempt = ?2, epoch = ?3, accepted = ?4 WHERE rowid = ?1",
        )?;
        let mut reserve = self.statement(
            "INSERT INTO reservations (resource, task_id, exclusive, place, granted) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        let mut close = self.statement("DELETE FROM open_requests WHERE task_id = ?1")?;
        let mut granted = Vec::with_capacity(grants.len());
        for grant in grants {
            let id = grant.id.to_string();
            let found = waiting.query_row((&id, now), |r| {
                let granted = Granted {
                    id: grant.id,
                    attempt: Attempt(r.get(1)?),
                    created: Timestamp(r.get(2)?),
                    trace: trace(r, 3)?,
                };
                Ok((r.get::<_, i64>(0)?, granted))
            });
            let Some((row, accepted)) = found.optional()? else {
                continue;
            };
            accept.execute((row, accepted.attempt.0, epoch.0, now))?;
            for row in reservations_of(grant) {
                reserve.execute((row.resource.as_str(), &id, row.exclusive, row.place, now))?;
            }
            close.execute([&id])?;
            self.tell(message_of(grant, accepted.attempt, epoch).within(accepted.trace.clone()))?;
            granted.push(accepted);
        }
        Ok(Some(granted))
    }

    /// As [`crate::Store::claim_at_once`].
    pub(crate) fn claim(
        &self,
        grants: &[(TaskId, Attempt)],
        worker: &Incarnation,
    ) -> Result<Option<Claimed>, StoreError> {
        let (incarnation, now) = (worker.id.to_string(), self.now().micros());
        let mut alive = self.statement(
            "SELECT supports FROM workers WHERE name = ?1 AND incarnation = ?2 AND expires >= ?3",
        )?;
        let supports = alive.query_row((&worker.name.0, &incarnation, now), |r| r.get(0));
        let Some(supports) = supports.optional()? else {
            return Ok(None);
        };
        let mut granted = self.statement(
            "SELECT rowid, kind, kind_name, schema_version, declined, created, traceparent, tracestate FROM tasks \
             WHERE task_id = ?1 AND attempt = ?2 \
             AND (state = 'accepted' OR (state = 'running' AND worker_name = ?3 AND incarnation = ?4))",
        )?;
        let mut claim = self.statement(
            "UPDATE tasks SET state = 'running', worker_name = ?2, incarnation = ?3, started = ?4, progressed = ?4 WHERE rowid = ?1",
        )?;
        let mut tasks = Vec::with_capacity(grants.len());
        for (id, attempt) in grants {
            let grant = (id.to_string(), attempt.0, &worker.name.0, &incarnation);
            let found = granted.query_row(grant, |r| {
                let task = Claimable {
                    id: *id,
                    attempt: *attempt,
                    kind: r.get(1)?,
                    kind_name: r.get(2)?,
                    schema_version: r.get(3)?,
                    declined: r.get(4)?,
                    created: Timestamp(r.get(5)?),
                    trace: trace(r, 6)?,
                };
                Ok((r.get::<_, i64>(0)?, task))
            });
            if let Some((row, task)) = found.optional()? {
                claim.execute((row, &worker.name.0, &incarnation, now))?;
                tasks.push(task);
            }
        }
        Ok(Some(Claimed {
            supports,
            now: self.now(),
            tasks,
        }))
    }

    /// As [`crate::Store::finish_at_once`]; whether it was running as that attempt.
    pub(crate) fn finish(&mut self, end: &PlainEnd) -> Result<bool, StoreError> {
        let (task_id, now) = (end.lease.task_id(), self.now().micros());
        let id = task_id.to_string();
        // The condition is the fence.
        let mut running = self.statement(
            "SELECT rowid, parent_id FROM tasks WHERE task_id = ?1 AND attempt = ?2 AND state = 'running'",
        )?;
        let found = running.query_row((&id, end.lease.attempt().0), |r| Ok((r.get(0)?, r.get(1)?)));
        let Some((row, parent)): Option<(i64, Option<String>)> = found.optional()? else {
            return Ok(false);
        };
        let finish = "UPDATE tasks SET state = 'finished', result = 'null', error = NULL, finished = ?2, \
                      progress_report = ?3, spawned_tasks = '[]' WHERE rowid = ?1";
        self.execute(finish, (row, now, &end.progress))?;
        let mut fires = self.statement("SELECT schedule_id FROM schedule_fires WHERE task_id = ?1")?;
        for fired in iter::once(&id).chain(&parent) {
            let schedules = fires.query_map([fired], |r| r.get(0))?;
            for schedule in schedules.collect::<Result<Vec<String>, _>>()? {
                self.execute(GOOD_RUN, [schedule])?;
            }
        }
        let mut held = self.statement("SELECT resource FROM reservations WHERE task_id = ?1")?;
        let held = held.query_map([&id], |r| r.get(0))?;
        for resource in held.collect::<Result<Vec<String>, _>>()? {
            let free = "DELETE FROM reservations WHERE resource = ?1 AND task_id = ?2";
            self.execute(free, (resource, &id))?;
        }
        self.tell(Message::ended(task_id))?;
        Ok(true)
    }
}

/// The place in a trace that this column and the next one tell.
fn trace(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<TraceContext>> {
    let (parent, state): (Option<String>, Option<String>) = (row.get(column)?, row.get(column + 1)?);
    Ok(TraceContext::from_row(parent.as_deref(), state.as_deref()))
}
