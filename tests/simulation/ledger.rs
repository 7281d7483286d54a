//! The database: rows in memory, each call one transaction, by the virtual clock.
//!
//! What it answers is what the SQL store answers; `contract` holds both to the same sentences.

use std::{collections::BTreeMap, time::Duration};

use pulp_model::{
    Attempt, Epoch, TaskId, Timestamp,
    deadline::{HardLimits, Overrun},
    task::{LockMode, Newcomer, ResourceKey, TaskState},
};
use pulp_store::{
    StoreError,
    grants::{Gap, Grant, LiveTask, Revoked},
    workers::{Capacity, Serving},
};

pub(crate) use crate::records::{
    Change, Claimed, Heartbeat, Lease, LeaseRow, Life, Message, Mutation, Queue, Request, Row, WorkerRow,
};

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) mutation: Mutation,
    tasks: BTreeMap<TaskId, Row>,
    reservations: BTreeMap<(ResourceKey, TaskId), LockMode>,
    workers: BTreeMap<String, WorkerRow>,
    lease: Option<LeaseRow>,
    outbox: BTreeMap<u64, Message>,
    numbers: u64,
    pub(crate) changes: Vec<Change>,
}

impl Ledger {
    pub(crate) fn new(mutation: Mutation) -> Self {
        Self {
            mutation,
            ..Self::default()
        }
    }

    pub(crate) fn row(&self, id: TaskId) -> Option<&Row> {
        self.tasks.get(&id)
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = (TaskId, &Row)> {
        self.tasks.iter().map(|(id, row)| (*id, row))
    }

    /// What a message says of a task that was made. Nothing of it changes later, so it can be read from the row at any time.
    pub(crate) fn newcomer(&self, id: TaskId) -> Option<Newcomer> {
        let row = self.tasks.get(&id)?;
        Some(Newcomer {
            task_id: id,
            class: row.request.class,
            owner: row.request.owner.clone(),
            kind_name: row.request.kind.clone(),
            schema_version: row.request.version,
            claims: row.request.claims.clone(),
            created: row.created,
        })
    }

    pub(crate) fn reservations(&self) -> impl Iterator<Item = (&ResourceKey, TaskId, LockMode)> {
        self.reservations
            .iter()
            .map(|((resource, id), mode)| (resource, *id, *mode))
    }

    pub(crate) fn outbox_depth(&self) -> usize {
        self.outbox.len()
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn tell(&mut self, queue: Queue, task: TaskId, attempt: Attempt) {
        self.tell_that(queue, task, attempt, false);
    }

    fn tell_that(&mut self, queue: Queue, task: TaskId, attempt: Attempt, made: bool) {
        let message = Message {
            number: self.number(),
            queue,
            task,
            attempt,
            terminal: self.tasks.get(&task).is_some_and(|row| row.state.is_terminal()),
            made,
        };
        self.changes.push(Change::Owes(message));
        if self.mutation != Mutation::NoOutbox {
            self.outbox.insert(message.number, message);
        }
    }

    // --- the clients' side

    pub(crate) fn enqueue(&mut self, now: Timestamp, request: Request) -> TaskId {
        self.enqueue_below(now, request, None)
    }

    fn enqueue_below(&mut self, now: Timestamp, request: Request, parent: Option<TaskId>) -> TaskId {
        let number = self.number();
        let text = format!("{:08x}-0000-7000-8000-{number:012x}", now.micros() & 0xffff_ffff);
        let id: TaskId = text.parse().unwrap();
        self.tasks.insert(
            id,
            Row {
                state: TaskState::Waiting,
                attempt: Attempt(0),
                lost: 0,
                request,
                parent,
                created: now,
                not_before: None,
                steps_aside: false,
                declined: 0,
                accepted: None,
                started: None,
                progressed: None,
                worker: None,
                cancel_requested: None,
            },
        );
        self.changes.push(Change::Enqueued(id));
        self.tell_that(Queue::Intake, id, Attempt(0), true);
        id
    }

    pub(crate) fn cancel_task(&mut self, now: Timestamp, id: TaskId) {
        let Some(row) = self.tasks.get_mut(&id) else {
            return;
        };
        match row.state {
            TaskState::Running => {
                row.cancel_requested.get_or_insert(now);
            }
            TaskState::Waiting | TaskState::Accepted => {
                self.end(id, TaskState::Canceled);
                self.tell(Queue::Intake, id, Attempt(0));
            }
            _ => {}
        }
    }

    /// Cancels a task and all that it made, and that these made in turn.
    pub(crate) fn cancel_tree(&mut self, now: Timestamp, root: TaskId) {
        self.changes.push(Change::TreeCanceled(root));
        let mut left = vec![root];
        while let Some(id) = left.pop() {
            self.cancel_task(now, id);
            left.extend(self.children(id));
        }
    }

    fn children(&self, parent: TaskId) -> Vec<TaskId> {
        let made = self.tasks.iter().filter(|(_, row)| row.parent == Some(parent));
        made.map(|(id, _)| *id).collect()
    }

    // --- leadership

    pub(crate) fn acquire_lease(&mut self, now: Timestamp, holder: &str, ttl: Duration) -> Option<Epoch> {
        let epoch = match &self.lease {
            Some(lease) if lease.expires >= now => return None,
            Some(lease) => Epoch(lease.epoch.0 + 1),
            None => Epoch(1),
        };
        self.lease = Some(LeaseRow {
            holder: holder.to_owned(),
            epoch,
            expires: after(now, ttl),
        });
        self.changes.push(Change::Leads(epoch));
        Some(epoch)
    }

    pub(crate) fn renew_lease(&mut self, now: Timestamp, holder: &str, epoch: Epoch, ttl: Duration) -> bool {
        match &mut self.lease {
            Some(l) if l.holder == holder && l.epoch == epoch && l.expires >= now => {
                l.expires = after(now, ttl);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn resign_lease(&mut self, holder: &str, epoch: Epoch) {
        if let Some(lease) = &mut self.lease
            && lease.holder == holder
            && lease.epoch == epoch
        {
            lease.expires = Timestamp(0);
        }
    }

    fn require_epoch(&self, epoch: Epoch) -> Result<(), StoreError> {
        let current = self.lease.as_ref().map(|l| l.epoch);
        if current == Some(epoch) || self.mutation == Mutation::NoEpochCondition {
            Ok(())
        } else {
            Err(StoreError::LeadershipLost)
        }
    }

    // --- the leader's side

    pub(crate) fn live_tasks(&self) -> Vec<LiveTask> {
        let mut live: Vec<LiveTask> = self.tasks.iter().filter_map(|(id, row)| live(*id, row)).collect();
        live.sort_by_key(|t| (t.created, t.id));
        live
    }

    pub(crate) fn live_among(&self, ids: &[TaskId]) -> Vec<LiveTask> {
        let mut live: Vec<LiveTask> = ids
            .iter()
            .filter_map(|id| live(*id, self.tasks.get(id)?))
            .collect();
        live.sort_by_key(|t| (t.created, t.id));
        live
    }

    pub(crate) fn waiting_in(&self, gaps: &[Gap], known: &[TaskId]) -> Vec<TaskId> {
        if self.mutation == Mutation::NoLookBack {
            return Vec::new();
        }
        let waits = |row: &Row| {
            row.state == TaskState::Waiting
                && gaps.iter().any(|gap| {
                    row.request
                        .claims
                        .iter()
                        .any(|claim| claim.resource == gap.resource)
                        && (gap.from..=gap.until).contains(&row.created)
                })
        };
        self.tasks
            .iter()
            .filter(|(id, row)| waits(row) && !known.contains(id))
            .map(|(id, _)| *id)
            .collect()
    }

    pub(crate) fn commit_grants(
        &mut self,
        now: Timestamp,
        epoch: Epoch,
        grants: &[Grant],
    ) -> Result<Vec<(TaskId, Attempt)>, StoreError> {
        self.require_epoch(epoch)?;
        let mut accepted: Vec<&Grant> = Vec::new();
        for grant in grants {
            let may_go = |r: &Row| r.state == TaskState::Waiting && r.not_before.is_none_or(|at| at <= now);
            let waits = self.tasks.get(&grant.id).is_some_and(may_go);
            if waits && accepted.iter().all(|g| g.id != grant.id) {
                accepted.push(grant);
            }
        }
        let mut reserved = self.reservations.clone();
        for grant in &accepted {
            for claim in &grant.claims {
                let conflicts = reserved.iter().any(|((resource, _), mode)| {
                    *resource == claim.resource
                        && (*mode == LockMode::Exclusive || claim.mode == LockMode::Exclusive)
                });
                if conflicts && self.mutation != Mutation::NoEpochCondition {
                    return Err(StoreError::ReservationConflict);
                }
                reserved.insert((claim.resource.clone(), grant.id), claim.mode);
            }
        }
        self.reservations = reserved;
        let mut granted = Vec::with_capacity(accepted.len());
        for grant in accepted {
            let Some(row) = self.tasks.get_mut(&grant.id) else {
                continue;
            };
            row.state = TaskState::Accepted;
            row.attempt = Attempt(row.attempt.0 + 1);
            row.accepted = Some(now);
            let attempt = row.attempt;
            granted.push((grant.id, attempt));
            let early = row.not_before.is_some_and(|at| at > now);
            self.changes.push(Change::Granted {
                task: grant.id,
                attempt,
                epoch,
                early,
            });
            self.tell(Queue::Class(grant.class), grant.id, attempt);
        }
        Ok(granted)
    }

    pub(crate) fn resend_unclaimed(
        &mut self,
        now: Timestamp,
        epoch: Epoch,
        older_than: Duration,
    ) -> Result<u64, StoreError> {
        self.require_epoch(epoch)?;
        let before = before(now, older_than);
        let mut again = Vec::new();
        for (id, row) in &mut self.tasks {
            if row.state == TaskState::Accepted && row.accepted.is_some_and(|a| a < before) {
                row.accepted = Some(now);
                again.push((*id, row.attempt, row.request.class));
            }
        }
        for (id, attempt, class) in &again {
            self.tell(Queue::Class(*class), *id, *attempt);
        }
        Ok(again.len() as u64)
    }

    pub(crate) fn revoke_lost(
        &mut self,
        now: Timestamp,
        epoch: Epoch,
        max_attempts: i64,
    ) -> Result<Vec<(TaskId, Revoked)>, StoreError> {
        self.require_epoch(epoch)?;
        let lost: Vec<TaskId> = self
            .tasks
            .iter()
            .filter(|(_, r)| {
                r.state == TaskState::Running && !r.worker.as_ref().is_some_and(|w| self.is_alive(w, now))
            })
            .map(|(id, _)| *id)
            .collect();
        let mut revoked = Vec::new();
        for id in lost {
            let Some(row) = self.tasks.get_mut(&id) else {
                continue;
            };
            row.lost += 1;
            if row.cancel_requested.is_some() {
                self.end(id, TaskState::Canceled);
                revoked.push((id, Revoked::Ended));
            } else if row.lost < max_attempts {
                self.wait_again(id);
                revoked.push((id, Revoked::WaitsAgain));
            } else {
                self.end(id, TaskState::Error);
                revoked.push((id, Revoked::Ended));
            }
        }
        let long_ago = before(now, Duration::from_mins(1));
        self.workers.retain(|_, w| w.expires >= long_ago);
        Ok(revoked)
    }

    pub(crate) fn force_cancel(
        &mut self,
        now: Timestamp,
        epoch: Epoch,
        grace: Duration,
    ) -> Result<Vec<TaskId>, StoreError> {
        self.require_epoch(epoch)?;
        let before = before(now, grace);
        let overdue: Vec<TaskId> = self
            .tasks
            .iter()
            .filter(|(_, r)| r.state == TaskState::Running && r.cancel_requested.is_some_and(|c| c < before))
            .map(|(id, _)| *id)
            .collect();
        for id in &overdue {
            self.end(*id, TaskState::Canceled);
        }
        Ok(overdue)
    }

    pub(crate) fn expire(
        &mut self,
        now: Timestamp,
        epoch: Epoch,
        limits: &HardLimits,
    ) -> Result<Vec<TaskId>, StoreError> {
        self.require_epoch(epoch)?;
        if self.mutation == Mutation::NoExpiry {
            return Ok(Vec::new());
        }
        let since = |at: Option<Timestamp>| at.map_or(Duration::ZERO, |at| now.since(at));
        let running = self.tasks.iter().filter(|(_, r)| r.state == TaskState::Running);
        let overran: Vec<(TaskId, Overrun)> = running
            .filter_map(|(id, r)| {
                let overrun = limits.overrun(&r.request.kind, since(r.started), since(r.progressed));
                Some((*id, overrun?))
            })
            .collect();
        for (task, overrun) in &overran {
            self.changes.push(Change::Expired {
                task: *task,
                overrun: *overrun,
            });
            self.end(*task, TaskState::Error);
        }
        Ok(overran.into_iter().map(|(id, _)| id).collect())
    }

    /// What the live workers can run.
    pub(crate) fn capacity(&self, now: Timestamp) -> Capacity {
        let alive = self.workers.values().filter(|w| w.expires >= now);
        Capacity {
            now,
            serving: alive.map(|w| w.serving.clone()).collect(),
        }
    }

    pub(crate) fn reservation_violations(&self) -> i64 {
        let mut violations = 0;
        for ((resource, id), mode) in &self.reservations {
            let conflicts = self.reservations.iter().filter(|((r, other), m)| {
                r == resource && other > id && (*mode == LockMode::Exclusive || **m == LockMode::Exclusive)
            });
            violations += conflicts.count() as i64;
            let holds = |row: &Row| matches!(row.state, TaskState::Accepted | TaskState::Running);
            violations += i64::from(!self.tasks.get(id).is_some_and(holds));
        }
        violations
    }

    // --- the workers' side

    pub(crate) fn register_worker(
        &mut self,
        now: Timestamp,
        host: &str,
        serving: Serving,
        ttl: Duration,
    ) -> Life {
        let number = self.number();
        let mut n = 0;
        loop {
            let name = format!("w-{n}@{host}");
            if self.workers.get(&name).is_none_or(|w| w.expires < now) {
                let expires = after(now, ttl);
                let row = WorkerRow {
                    number,
                    expires,
                    serving,
                };
                self.workers.insert(name.clone(), row);
                return Life { name, number };
            }
            n += 1;
        }
    }

    pub(crate) fn heartbeat(&mut self, now: Timestamp, life: &Life, ttl: Duration) -> Heartbeat {
        match self.workers.get_mut(&life.name) {
            Some(w) if w.number == life.number && w.expires >= now => w.expires = after(now, ttl),
            _ => return Heartbeat::Lost,
        }
        let cancel = self.tasks.iter().filter(|(_, r)| {
            r.state == TaskState::Running && r.worker.as_ref() == Some(life) && r.cancel_requested.is_some()
        });
        Heartbeat::Alive {
            cancel: cancel.map(|(id, _)| *id).collect(),
        }
    }

    pub(crate) fn unregister_worker(&mut self, life: &Life) {
        if self
            .workers
            .get(&life.name)
            .is_some_and(|w| w.number == life.number)
        {
            self.workers.remove(&life.name);
        }
    }

    fn is_alive(&self, life: &Life, now: Timestamp) -> bool {
        self.workers
            .get(&life.name)
            .is_some_and(|w| w.number == life.number && w.expires >= now)
    }

    pub(crate) fn claim(&mut self, now: Timestamp, lease: Lease, life: &Life) -> Claimed {
        if !self.is_alive(life, now) {
            return Claimed::WorkerLost;
        }
        let supports = self.workers.get(&life.name).map(|w| w.serving.supports.clone());
        let Some(row) = self.tasks.get_mut(&lease.task) else {
            return Claimed::Refused;
        };
        // The answer to an earlier claim may have been lost.
        let again = row.state == TaskState::Running && row.worker.as_ref() == Some(life);
        if row.attempt != lease.attempt || !(again || row.state == TaskState::Accepted) {
            return Claimed::Refused;
        }
        let known = supports.and_then(|s| s.get(&row.request.kind).copied());
        if known.is_none_or(|known| row.request.version > known) {
            let pause = 1_000_000 << row.declined.clamp(0, 5);
            row.declined += 1;
            row.not_before = Some(now.plus_micros(pause));
            row.steps_aside = false;
            self.wait_again(lease.task);
            self.tell(Queue::Intake, lease.task, Attempt(0));
            return Claimed::Unreadable;
        }
        row.state = TaskState::Running;
        row.worker = Some(life.clone());
        (row.started, row.progressed) = (Some(now), Some(now));
        if !again {
            self.changes.push(Change::Claimed {
                task: lease.task,
                attempt: lease.attempt,
            });
        }
        Claimed::Ours
    }

    pub(crate) fn write_progress(&mut self, now: Timestamp, lease: Lease) -> bool {
        if self.fence(lease).is_err() {
            return false;
        }
        if let Some(row) = self.tasks.get_mut(&lease.task) {
            row.progressed = Some(now);
        }
        true
    }

    fn fence(&self, lease: Lease) -> Result<(), StoreError> {
        let now = match self.tasks.get(&lease.task) {
            None => "gone".to_owned(),
            Some(r) if r.state == TaskState::Running && r.attempt == lease.attempt => return Ok(()),
            Some(r) => format!("{} at attempt {}", r.state.as_str(), r.attempt),
        };
        Err(StoreError::Fenced {
            task_id: lease.task,
            attempt: lease.attempt,
            now,
        })
    }

    /// The fenced commit of a run's end: state, resources, spawned tasks and the message, or nothing.
    pub(crate) fn finish(
        &mut self,
        now: Timestamp,
        lease: Lease,
        state: TaskState,
        spawn: Option<Request>,
    ) -> Result<Option<TaskId>, StoreError> {
        if self.mutation != Mutation::NoCommitFence {
            self.fence(lease)?;
        }
        // For whom the parent is done.
        let owner = self.tasks.get(&lease.task).map(|row| row.request.owner.clone());
        let spawned = spawn.zip(owner).map(|(request, owner)| {
            let request = Request { owner, ..request };
            self.enqueue_below(now, request, Some(lease.task))
        });
        if let Some(row) = self.tasks.get_mut(&lease.task) {
            row.state = state;
        }
        self.reservations.retain(|(_, holder), _| *holder != lease.task);
        self.changes.push(Change::Committed {
            task: lease.task,
            attempt: lease.attempt,
            state,
        });
        self.tell(Queue::Intake, lease.task, Attempt(0));
        let asked = self.tasks.get(&lease.task).and_then(|row| row.cancel_requested);
        if spawned.is_some() && asked.is_some() && self.mutation != Mutation::NoWithdrawal {
            for child in self.children(lease.task) {
                self.cancel_task(now, child);
            }
        }
        Ok(spawned)
    }

    pub(crate) fn hand_back(&mut self, lease: Lease) -> Result<(), StoreError> {
        self.fence(lease)?;
        let canceled = self
            .tasks
            .get(&lease.task)
            .is_some_and(|r| r.cancel_requested.is_some());
        if canceled {
            self.end(lease.task, TaskState::Canceled);
            self.tell(Queue::Intake, lease.task, Attempt(0));
        } else {
            self.wait_again(lease.task);
            self.tell(Queue::Intake, lease.task, Attempt(0));
        }
        Ok(())
    }

    pub(crate) fn park(&mut self, now: Timestamp, lease: Lease, pause: Duration) -> Result<(), StoreError> {
        self.hand_back(lease)?;
        if let Some(row) = self.tasks.get_mut(&lease.task)
            && row.state == TaskState::Waiting
        {
            row.not_before = Some(after(now, pause));
            row.steps_aside = true;
        }
        Ok(())
    }

    fn end(&mut self, id: TaskId, state: TaskState) {
        if let Some(row) = self.tasks.get_mut(&id) {
            row.state = state;
        }
        self.reservations.retain(|(_, holder), _| *holder != id);
        self.changes.push(Change::Ended(id));
    }

    fn wait_again(&mut self, id: TaskId) {
        if let Some(row) = self.tasks.get_mut(&id) {
            row.state = TaskState::Waiting;
            row.worker = None;
            (row.accepted, row.started, row.progressed) = (None, None, None);
        }
        self.reservations.retain(|(_, holder), _| *holder != id);
        self.changes.push(Change::WaitsAgain(id));
    }

    // --- the relays' side

    /// Waiting messages, oldest first, but for those that another relay holds.
    pub(crate) fn outbox_batch(&self, limit: usize, held: &dyn Fn(u64) -> bool) -> Vec<Message> {
        let free = self.outbox.values().filter(|m| !held(m.number));
        free.take(limit).copied().collect()
    }

    pub(crate) fn outbox_settle(&mut self, confirmed: &[u64]) {
        for number in confirmed {
            self.outbox.remove(number);
        }
    }
}

fn live(id: TaskId, row: &Row) -> Option<LiveTask> {
    (!row.state.is_terminal()).then(|| LiveTask {
        id,
        state: row.state,
        attempt: row.attempt,
        class: row.request.class,
        owner: row.request.owner.clone(),
        kind_name: row.request.kind.clone(),
        schema_version: row.request.version,
        not_before: row.not_before,
        steps_aside: row.steps_aside,
        claims: row.request.claims.clone(),
        created: row.created,
    })
}

fn micros(duration: Duration) -> i64 {
    duration.as_micros() as i64
}

fn after(now: Timestamp, duration: Duration) -> Timestamp {
    now.plus_micros(micros(duration))
}

fn before(now: Timestamp, duration: Duration) -> Timestamp {
    now.plus_micros(-micros(duration))
}
