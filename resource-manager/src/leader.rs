//! What a leader does: takes in what is new, grants what may go, revokes what the dead hold.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use pulp_broker::{Broker, BrokerError, Consumer, Delivery, Message, Queue, ack_all};
use pulp_model::{
    Epoch, TaskId, Timestamp,
    task::{Newcomer, TaskState},
};
use pulp_store::{
    Store, StoreError,
    grants::{Grant, LiveTask},
    workers::Capacity,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Settings,
    horizon::Horizon,
    ledger::Ledger,
    lock_table::{LockTable, Waiter},
    metrics,
    pace::Pace,
    quiet::Told,
};

/// Deliveries that wait for one commit.
const INTAKE_BATCH: u16 = 512;

/// How often the dead and the overdue are looked for. Cheap: it asks for running tasks only.
const PATROL: std::time::Duration = std::time::Duration::from_secs(1);

/// Leads until the lease is `lost`, `stop` fires, or another epoch shows.
pub(crate) async fn lead(
    settings: &Settings,
    store: &Store,
    broker: &dyn Broker,
    epoch: Epoch,
    lost: &CancellationToken,
    stop: &CancellationToken,
) {
    metrics::leading(Some(epoch));
    tokio::select! {
        biased;
        () = lost.cancelled() => tracing::warn!(%epoch, "the lease is lost; nothing more is granted"),
        () = stop.cancelled() => {}
        () = run(Leader::new(settings, store, epoch), broker) => {}
    }
    metrics::leading(None);
}

/// Returns when another leads.
async fn run(mut leader: Leader<'_, Store>, broker: &dyn Broker) {
    let mut intake = Intake::default();
    let mut told = Told::default();
    let mut sweep = tokio::time::interval(leader.settings.sweep);
    let mut patrol = tokio::time::interval(PATROL);
    for timer in [&mut sweep, &mut patrol] {
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    }
    loop {
        let done = tokio::select! {
            // The first sweep comes at once and builds the table.
            _ = sweep.tick() => {
                let done = leader.sweep(queues_are_empty(broker).await).await;
                leader.show();
                if let Err(e) = metrics::read_figures(leader.ledger).await {
                    tracing::debug!(error = %e, "figures not read");
                }
                if let Err(e) = told.look(leader.ledger, leader.settings.stalled_after).await {
                    tracing::debug!(error = %e, "not looked for tasks without progress");
                }
                done
            }
            _ = patrol.tick() => leader.patrol().await,
            batch = intake.next(broker) => {
                let messages = || batch.iter().map(Delivery::message);
                let news = News {
                    changed: messages().flat_map(Message::task_ids).copied().collect(),
                    ended: messages().flat_map(Message::terminal).copied().collect(),
                    made: messages().flat_map(Message::made).cloned().collect(),
                };
                let done = leader.take_in(news).await;
                // Only now: whatever is not committed comes again.
                if done.is_ok() && let Err(e) = ack_all(&batch).await {
                    tracing::debug!(error = %e, "messages will come again");
                }
                done
            }
        };
        match leader.after(done) {
            Next::GoOn => {}
            Next::Resign => return,
            Next::Sweep => {
                // What it holds un-acked goes back to the queue; kept, it would use up the prefetch in the end.
                intake = Intake::default();
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                sweep.reset_immediately();
            }
        }
    }
}

/// Whether unclaimed grants can't be waiting in a queue. Unknown counts as no.
async fn queues_are_empty(broker: &dyn Broker) -> bool {
    for class in pulp_model::task::TaskClass::ALL {
        if !matches!(broker.depth(Queue::Class(class)).await, Ok(0)) {
            return false;
        }
    }
    true
}

/// What messages tell of tasks, in any order, late, and any number of times.
#[derive(Debug, Clone, Default)]
pub struct News {
    /// All of whom they tell something.
    pub changed: Vec<TaskId>,
    /// Those that are certain to be in a terminal state.
    pub ended: Vec<TaskId>,
    /// Those that were made, as they were then.
    pub made: Vec<Arc<Newcomer>>,
}

/// How a leader goes on after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// As before.
    GoOn,
    /// The table was thrown away; sweep before anything else.
    Sweep,
    /// Another leads.
    Resign,
}

/// What a leader knows and decides. Its steps are called one after another; when, and what messages bring, is the
/// caller's business.
#[derive(Debug)]
pub struct Leader<'a, L> {
    settings: &'a Settings,
    ledger: &'a L,
    epoch: Epoch,
    table: LockTable,
    /// Whether the table knows every task there is. Until then nothing is granted: what it doesn't know may have come
    /// first.
    complete: bool,
    /// Up to where it knows each resource's line.
    horizon: Horizon,
    pace: Pace,
    /// The database's clock when the pace was last set.
    now: Timestamp,
    /// Tasks that have a place in the table and hold nothing, as they were read.
    waiting: HashMap<TaskId, LiveTask>,
    /// Tasks that wait for a worker that can run them, or for their instant.
    held_back: HashMap<TaskId, LiveTask>,
}

impl<'a, L: Ledger> Leader<'a, L> {
    /// Leads under `epoch`, knowing nothing: begin with a [sweep](Self::sweep).
    pub fn new(settings: &'a Settings, ledger: &'a L, epoch: Epoch) -> Self {
        Self {
            settings,
            ledger,
            epoch,
            table: LockTable::new(Arc::clone(&settings.owner_weights)),
            complete: false,
            horizon: Horizon::default(),
            pace: Pace::default(),
            now: Timestamp(0),
            waiting: HashMap::new(),
            held_back: HashMap::new(),
        }
    }

    /// What the result of a step means for the next one.
    pub fn after(&mut self, done: Result<(), StoreError>) -> Next {
        match done {
            Ok(()) => Next::GoOn,
            Err(StoreError::LeadershipLost) => {
                tracing::warn!(epoch = %self.epoch, "another leads");
                Next::Resign
            }
            Err(e) => {
                tracing::warn!(error = %e, "the table is read anew");
                // Memory may be ahead of what was committed; only the rows tell.
                self.forget_all();
                Next::Sweep
            }
        }
    }

    /// Takes in what messages tell, and grants what may go by it.
    ///
    /// Not every task's row has to be looked at for that. A terminal state is never left. And one that was made is taken to wait
    /// as it was made, if nothing else is known of it: whether it still does, a grant asks its row.
    pub async fn take_in(&mut self, news: News) -> Result<(), StoreError> {
        let mut ids: HashSet<TaskId> = news.changed.into_iter().collect();
        for id in news.ended {
            ids.remove(&id);
            self.has_ended(id);
        }
        let mut made = news.made;
        made.retain(|task| !self.knows(task.task_id) && ids.remove(&task.task_id));
        self.look_at(&ids.into_iter().collect::<Vec<_>>()).await?;
        self.know_with_those_before(
            made.into_iter()
                .map(Arc::unwrap_or_clone)
                .map(LiveTask::from)
                .collect(),
        )
        .await?;
        self.grant().await
    }

    fn knows(&self, id: TaskId) -> bool {
        self.table.knows(id) || self.held_back.contains_key(&id)
    }

    fn has_ended(&mut self, id: TaskId) {
        if let Some(class) = self.table.class_of_holder(id) {
            self.pace.ended(class);
        }
        self.table.forget(id);
        self.waiting.remove(&id);
        self.held_back.remove(&id);
    }

    /// Brings the table up to date about some tasks; the rows decide.
    async fn look_at(&mut self, ids: &[TaskId]) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        let live = self.ledger.live_among(ids).await?;
        let alive: HashSet<TaskId> = live.iter().map(|t| t.id).collect();
        for id in ids.iter().filter(|id| !alive.contains(id)) {
            self.has_ended(*id);
        }
        self.know_with_those_before(live).await
    }

    /// Knows these tasks, and all that wait and came before one of them on a resource: messages may be late.
    async fn know_with_those_before(&mut self, mut live: Vec<LiveTask>) -> Result<(), StoreError> {
        loop {
            let gaps = self.horizon.gaps(&live);
            let known: Vec<TaskId> = live.iter().map(|task| task.id).collect();
            for task in live {
                self.know(task);
            }
            if gaps.is_empty() {
                return Ok(());
            }
            let mut unknown = self.ledger.waiting_in(&gaps, &known).await?;
            unknown.retain(|id| !self.knows(*id));
            self.horizon.close(gaps);
            if unknown.is_empty() {
                return Ok(());
            }
            tracing::debug!(tasks = unknown.len(), "read before their message came");
            // Should this fail, the table is read anew.
            live = self.ledger.live_among(&unknown).await?;
        }
    }

    fn know(&mut self, task: LiveTask) {
        if task.state == TaskState::Waiting && task.steps_aside && !self.is_due(&task) {
            // It holds nothing and keeps nobody from anything until its instant comes.
            self.table.forget(task.id);
            self.waiting.remove(&task.id);
            self.held_back.insert(task.id, task);
            return;
        }
        let eligible = self.is_eligible(&task);
        let waiter = Waiter {
            id: task.id,
            created: task.created,
            class: task.class,
            owner: task.owner.as_str(),
            eligible,
            claims: &task.claims,
        };
        if task.state != TaskState::Waiting {
            self.table.hold(&waiter);
            self.waiting.remove(&task.id);
            self.held_back.remove(&task.id);
            return;
        }
        self.table.wait(&waiter);
        if eligible {
            self.held_back.remove(&task.id);
        } else {
            self.held_back.insert(task.id, task.clone());
        }
        self.waiting.insert(task.id, task);
    }

    /// Whether a live worker can run it, and its instant has come.
    fn is_eligible(&self, task: &LiveTask) -> bool {
        self.is_due(task)
            && self
                .pace
                .can_run(task.class, &task.kind_name, task.schema_version)
    }

    fn is_due(&self, task: &LiveTask) -> bool {
        task.not_before.is_none_or(|at| at <= self.now)
    }

    fn forget_all(&mut self) {
        self.table = LockTable::new(Arc::clone(&self.settings.owner_weights));
        self.complete = false;
        self.waiting.clear();
        self.held_back.clear();
    }

    /// Asks what the live workers can run, and lets go what was held back for want of it.
    async fn set_pace(&mut self) -> Result<(), StoreError> {
        let Capacity { now, serving } = self.ledger.capacity().await?;
        self.pace.serve(serving);
        self.now = now;
        metrics::clock(now);
        let freed: Vec<LiveTask> = self
            .held_back
            .values()
            .filter(|t| self.is_eligible(t) || (t.steps_aside && self.is_due(t) && !self.table.knows(t.id)))
            .cloned()
            .collect();
        for task in freed {
            self.know(task);
        }
        Ok(())
    }

    /// Grants what may go, in batches.
    async fn grant(&mut self) -> Result<(), StoreError> {
        if !self.complete {
            return Ok(());
        }
        loop {
            let room = self.pace.room(&self.table);
            let admitted = self.table.admit(self.settings.grant_batch, room);
            if admitted.is_empty() {
                return Ok(());
            }
            // What they are is known since they were read as waiting, and does not change; whether they still wait is
            // for the rows to say.
            let grants: Vec<Grant> = admitted
                .iter()
                .filter_map(|id| self.waiting.get(id))
                .filter(|task| self.is_eligible(task))
                .map(|task| Grant {
                    id: task.id,
                    class: task.class,
                    claims: task.claims.clone(),
                })
                .collect();
            let mut granted = HashSet::with_capacity(grants.len());
            if !grants.is_empty() {
                let committed = self.ledger.commit_grants(self.epoch, &grants).await?;
                granted.extend(committed.into_iter().map(|(id, _)| id));
            }
            metrics::granted(granted.len());
            for id in &granted {
                if let Some(task) = self.waiting.remove(id) {
                    metrics::waited(&task);
                }
            }
            // Canceled or put off in between: it holds nothing, and may have let others go.
            let passed_over: Vec<TaskId> = admitted.into_iter().filter(|id| !granted.contains(id)).collect();
            self.look_at(&passed_over).await?;
        }
    }

    /// Shows what the table knows: nothing is counted for it in the database.
    fn show(&self) {
        metrics::show(&self.table, |class| {
            let mut held = metrics::HeldBack::default();
            for task in self.held_back.values().filter(|t| t.class == class) {
                held.parked += usize::from(!self.table.knows(task.id));
                held.unserved += usize::from(self.is_due(task));
            }
            held
        });
    }

    /// Takes tasks from dead workers and ends those that don't stop, or go on for too long.
    pub async fn patrol(&mut self) -> Result<(), StoreError> {
        let revoked = self
            .ledger
            .revoke_lost(self.epoch, self.settings.max_attempts)
            .await?;
        for (id, what) in &revoked {
            tracing::warn!(task = %id, ?what, "its worker is dead");
        }
        let canceled = self
            .ledger
            .force_cancel(self.epoch, self.settings.cancel_grace)
            .await?;
        for id in &canceled {
            tracing::warn!(task = %id, "it did not stop in time and was ended; its worker can commit nothing");
        }
        let expired = self.ledger.expire(self.epoch, &self.settings.limits).await?;
        for id in &expired {
            tracing::warn!(task = %id, "it went on for too long and was ended; its worker can commit nothing");
        }
        metrics::revoked(revoked.len());
        metrics::expired(expired.len());
        let revoked = revoked.into_iter().map(|(id, _)| id);
        let ids: Vec<TaskId> = revoked.chain(canceled).chain(expired).collect();
        self.pace.tick();
        self.set_pace().await?;
        self.look_at(&ids).await?;
        self.grant().await
    }

    /// Checks the whole table against the rows, and sends again what was lost on the way to workers if no
    /// unclaimed grant can still be waiting in a queue.
    pub async fn sweep(&mut self, queues_are_empty: bool) -> Result<(), StoreError> {
        // The clock first: what it shows is not after the instant that the rows are of.
        self.set_pace().await?;
        let live = self.ledger.live_tasks().await?;
        self.forget_all();
        self.horizon.swept(self.now, &live);
        for task in live {
            self.know(task);
        }
        self.complete = true;
        self.grant().await?;
        if queues_are_empty {
            let resent = self
                .ledger
                .resend_unclaimed(self.epoch, self.settings.resend_after)
                .await?;
            if resent > 0 {
                tracing::warn!(resent, "grants that no worker claimed were sent again");
            }
        }
        let violations = self.ledger.reservation_violations().await?;
        metrics::violations(violations);
        if violations > 0 {
            tracing::error!(violations, "reservations conflict or have no owner");
        }
        Ok(())
    }
}

/// The intake queue, consumed anew after each broken session.
#[derive(Default)]
struct Intake(Option<Box<dyn Consumer>>);

impl Intake {
    /// The next batch. Dropping the future loses nothing.
    async fn next(&mut self, broker: &dyn Broker) -> Vec<Delivery> {
        loop {
            if let Some(consumer) = &mut self.0 {
                match consumer.next_batch(usize::from(INTAKE_BATCH)).await {
                    Ok(batch) if !batch.is_empty() => return batch,
                    Ok(_) => tracing::debug!("the intake's session is over"),
                    Err(e) => tracing::warn!(error = %e, "the intake's session broke"),
                }
                self.0 = None;
            }
            match broker.consume(Queue::Intake, INTAKE_BATCH).await {
                Ok(consumer) => self.0 = Some(consumer),
                Err(BrokerError::Disconnected { .. }) => {
                    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                }
                Err(e) => {
                    tracing::error!(error = %e, "can't consume the intake");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            }
        }
    }
}
