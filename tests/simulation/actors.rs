//! The processes: their decisions are the real ones, their loops are those of the roles on virtual time.

use std::{cell::Cell, rc::Rc, sync::Arc, time::Duration};

use pulp_liveness::Trust;
use pulp_model::{
    Attempt, Epoch, TaskId,
    deadline::HardLimits,
    task::{TaskClass, TaskState},
};
use pulp_resource_manager::{
    Ledger as Port,
    leader::{Leader, Next},
};
use pulp_store::{
    StoreError,
    grants::{Gap, Grant, LiveTask, Revoked},
    workers::{Capacity, Serving},
};
use pulp_worker::{
    decisions::{self, Ending, Fault},
    running::{Entered, Running},
    stop::{Stop, StopReason},
    watch::{Limits, Look, Watch},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    broker::{Consumer, Delivery},
    ledger::{Claimed, Heartbeat, Lease, Life, Mutation, Queue, Request},
    sim::{Ctx, MILLI, Pid, SECOND},
};

/// How this run's system is set up.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) leader: pulp_resource_manager::Settings,
    pub(crate) worker_ttl: Duration,
    pub(crate) worker_grace: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) slots: usize,
    /// Whether a relay locks what it sends, as on PostgreSQL.
    pub(crate) relays_lock: bool,
    pub(crate) classes: Vec<TaskClass>,
    /// What a worker runs stops by itself at its soft deadline, or when it has stood still.
    pub(crate) quiet: Duration,
    pub(crate) standstill: Option<Duration>,
    /// Workers of the release before this one.
    pub(crate) old: Vec<Pid>,
}

impl Settings {
    /// What a worker can run.
    fn serving(&self, pid: Pid) -> Serving {
        let slots = self.classes.iter().map(|c| (*c, self.slots as u32)).collect();
        let mut serving = Serving::of_this_release(slots);
        if !self.old.contains(&pid) {
            for version in serving.supports.values_mut() {
                *version += 1;
            }
            serving.supports.insert(NEW_KIND.to_owned(), 1);
        }
        serving
    }

    fn limits(&self, kind: &str) -> Limits {
        Limits {
            deadline: self.leader.limits.deadlines.of(kind).soft,
            quiet: self.quiet,
            standstill: self.standstill,
        }
    }
}

/// A kind that only the newer of two releases knows.
pub(crate) const NEW_KIND: &str = "of_the_newer_release";

fn pause(ctx: &Ctx) -> Duration {
    Duration::from_micros(ctx.sim.between(200 * MILLI, 2 * SECOND))
}

// --- resource manager

/// A leader's way to the database.
struct Remote {
    ctx: Ctx,
}

impl Port for Remote {
    async fn live_tasks(&self) -> Result<Vec<LiveTask>, StoreError> {
        self.ctx.database("live tasks", |l, _| Ok(l.live_tasks())).await
    }

    async fn live_among(&self, ids: &[TaskId]) -> Result<Vec<LiveTask>, StoreError> {
        let ids = ids.to_vec();
        self.ctx
            .database("live among", move |l, _| Ok(l.live_among(&ids)))
            .await
    }

    async fn waiting_in(&self, gaps: &[Gap]) -> Result<Vec<TaskId>, StoreError> {
        let gaps = gaps.to_vec();
        self.ctx
            .database("waiting in", move |l, _| Ok(l.waiting_in(&gaps)))
            .await
    }

    async fn commit_grants(
        &self,
        epoch: Epoch,
        grants: &[Grant],
    ) -> Result<Vec<(TaskId, Attempt)>, StoreError> {
        let grants = grants.to_vec();
        self.ctx
            .database("grants", move |l, now| l.commit_grants(now, epoch, &grants))
            .await
    }

    async fn resend_unclaimed(&self, epoch: Epoch, older_than: Duration) -> Result<u64, StoreError> {
        self.ctx
            .database("resend", move |l, now| l.resend_unclaimed(now, epoch, older_than))
            .await
    }

    async fn revoke_lost(
        &self,
        epoch: Epoch,
        max_attempts: i64,
    ) -> Result<Vec<(TaskId, Revoked)>, StoreError> {
        self.ctx
            .database("revoke", move |l, now| l.revoke_lost(now, epoch, max_attempts))
            .await
    }

    async fn force_cancel(&self, epoch: Epoch, grace: Duration) -> Result<Vec<TaskId>, StoreError> {
        self.ctx
            .database("force cancel", move |l, now| l.force_cancel(now, epoch, grace))
            .await
    }

    async fn expire(&self, epoch: Epoch, limits: &HardLimits) -> Result<Vec<TaskId>, StoreError> {
        let limits = limits.clone();
        self.ctx
            .database("expire", move |l, now| l.expire(now, epoch, &limits))
            .await
    }

    async fn capacity(&self) -> Result<Capacity, StoreError> {
        self.ctx.database("capacity", |l, now| Ok(l.capacity(now))).await
    }

    async fn reservation_violations(&self) -> Result<i64, StoreError> {
        self.ctx
            .database("violations", |l, _| Ok(l.reservation_violations()))
            .await
    }
}

pub(crate) async fn resource_manager(ctx: Ctx, settings: Rc<Settings>) {
    let holder = format!("{}/{}", ctx.name(), ctx.life);
    let soft = ctx.soft();
    let ttl = settings.leader.lease_ttl;
    while !soft.is_cancelled() {
        let taken = ctx.instant();
        let me = holder.clone();
        let acquired = ctx.database("acquire", move |l, now| Ok(l.acquire_lease(now, &me, ttl)));
        match acquired.await {
            Ok(Some(epoch)) => {
                tokio::select! {
                    biased;
                    () = keep_leading(&ctx, &holder, epoch, ttl, taken) => ctx.tell(|| "the lease is lost".into()),
                    () = soft.cancelled() => {}
                    () = lead(&ctx, &settings, epoch) => {}
                }
                let me = holder.clone();
                let resigned = ctx.database("resign", move |l, _| {
                    l.resign_lease(&me, epoch);
                    Ok(())
                });
                let _ = resigned.await;
            }
            Ok(None) => ctx.sleep(Duration::from_millis(400)).await,
            Err(_) => ctx.sleep(pause(&ctx)).await,
        }
    }
}

async fn keep_leading(ctx: &Ctx, holder: &str, epoch: Epoch, ttl: Duration, taken: std::time::Instant) {
    let mut trust = Trust::new(ttl, taken);
    loop {
        ctx.sleep_until(trust.next()).await;
        let begun = ctx.instant();
        let me = holder.to_owned();
        let renewal = ctx.database("renew", move |l, now| Ok(l.renew_lease(now, &me, epoch, ttl)));
        tokio::select! {
            biased;
            answer = renewal => match answer {
                Ok(true) => trust.renewed(begun, ctx.instant()),
                Ok(false) => return,
                Err(_) => trust.failed(ctx.instant()),
            },
            () = ctx.sleep_until(trust.until()) => {}
        }
        if trust.is_over(ctx.instant()) {
            return;
        }
    }
}

async fn lead(ctx: &Ctx, settings: &Settings, epoch: Epoch) {
    let port = Remote { ctx: ctx.clone() };
    let mut leader = Leader::new(&settings.leader, &port, epoch);
    let mut intake: Option<Consumer> = None;
    let mut sweep_at = ctx.instant();
    let mut patrol_at = ctx.instant();
    loop {
        let done = tokio::select! {
            biased;
            () = ctx.sleep_until(sweep_at) => {
                let done = leader.sweep(ctx.class_queues_are_empty().await).await;
                sweep_at = ctx.instant() + settings.leader.sweep;
                done
            }
            () = ctx.sleep_until(patrol_at) => {
                let done = leader.patrol().await;
                patrol_at = ctx.instant() + Duration::from_secs(1);
                done
            }
            batch = next_batch(ctx, &mut intake) => {
                let ids: Vec<TaskId> = batch.iter().map(|d| d.message.task).collect();
                let done = leader.take_in(&ids).await;
                if done.is_ok() {
                    for delivery in batch {
                        ctx.ack(delivery);
                    }
                }
                done
            }
        };
        match leader.after(done) {
            Next::GoOn => {}
            Next::Resign => return,
            Next::Sweep => {
                intake = None;
                ctx.sleep(Duration::from_millis(200)).await;
                sweep_at = ctx.instant();
            }
        }
    }
}

async fn next_batch(ctx: &Ctx, intake: &mut Option<Consumer>) -> Vec<Delivery> {
    loop {
        if let Some(consumer) = intake {
            let batch = consumer.next_batch().await;
            if !batch.is_empty() {
                return batch;
            }
            *intake = None;
        }
        *intake = Some(ctx.consume(Queue::Intake, 512).await);
    }
}

// --- relay

pub(crate) async fn relay(ctx: Ctx, settings: Rc<Settings>) {
    loop {
        ctx.sleep(Duration::from_micros(ctx.sim.skewed(2 * MILLI, SECOND)))
            .await;
        if ctx.sim.ledger.borrow().outbox_depth() == 0 || !ctx.reaches_broker() {
            continue;
        }
        let (me, locks) = (ctx.clone(), settings.relays_lock);
        let batch = ctx.database("outbox", move |l, _| {
            let mut held = me.sim.held_rows.borrow_mut();
            let rows = l.outbox_batch(100, &|n| held.contains_key(&n));
            if locks && me.sim.awake_for(me.pid).is_some() {
                held.extend(rows.iter().map(|m| (m.number, me.pid)));
            }
            Ok(rows)
        });
        if let Ok(rows) = batch.await
            && !rows.is_empty()
        {
            let confirmed = ctx.publish(rows).await;
            let settled = ctx.database("settle", move |l, _| {
                l.outbox_settle(&confirmed);
                Ok(())
            });
            let _ = settled.await;
        }
        ctx.sim
            .held_rows
            .borrow_mut()
            .retain(|_, holder| *holder != ctx.pid);
    }
}

// --- worker

struct Worker {
    ctx: Ctx,
    settings: Rc<Settings>,
    life: Life,
    running: Running,
    tasks: TaskTracker,
}

pub(crate) async fn worker(ctx: Ctx, settings: Rc<Settings>) {
    let soft = ctx.soft();
    while !soft.is_cancelled() {
        let taken = ctx.instant();
        let (host, ttl) = (ctx.name(), settings.worker_ttl);
        let serving = settings.serving(ctx.pid);
        let registered = ctx.database("register", move |l, now| {
            Ok(l.register_worker(now, &host, serving, ttl))
        });
        match registered.await {
            Ok(life) => work(&ctx, &settings, life, taken).await,
            Err(_) => ctx.sleep(pause(&ctx)).await,
        }
    }
}

async fn work(ctx: &Ctx, settings: &Rc<Settings>, life: Life, taken: std::time::Instant) {
    let worker = Rc::new(Worker {
        ctx: ctx.clone(),
        settings: Rc::clone(settings),
        life: life.clone(),
        running: Running::default(),
        tasks: TaskTracker::new(),
    });
    let lost = CancellationToken::new();
    let (end, intake) = (CancellationToken::new(), CancellationToken::new());
    {
        let (worker, lost, end) = (Rc::clone(&worker), lost.clone(), end.clone());
        ctx.spawn(async move {
            tokio::select! {
                biased;
                () = end.cancelled() => {}
                () = keep_working(&worker, taken) => lost.cancel(),
            }
        });
    }
    for class in &settings.classes {
        let (worker, class, intake) = (Rc::clone(&worker), *class, intake.clone());
        let token = worker.tasks.token();
        ctx.spawn(async move {
            serve(&worker, class, intake).await;
            drop(token);
        });
    }
    let soft = ctx.soft();
    tokio::select! {
        biased;
        () = lost.cancelled() => {
            ctx.tell(|| "the lease is lost; all work stops".into());
            intake.cancel();
            worker.running.stop_all(StopReason::LeaseLost);
            worker.tasks.close();
            worker.tasks.wait().await;
        }
        () = soft.cancelled() => {
            ctx.tell(|| "drains".into());
            intake.cancel();
            worker.tasks.close();
            let reason = tokio::select! {
                biased;
                () = worker.tasks.wait() => None,
                () = lost.cancelled() => Some(StopReason::LeaseLost),
                () = ctx.sleep(settings.drain_timeout) => Some(StopReason::Draining),
            };
            if let Some(reason) = reason {
                worker.running.stop_all(reason);
                tokio::select! {
                    biased;
                    () = worker.tasks.wait() => {}
                    () = lost.cancelled() => worker.running.stop_all(StopReason::LeaseLost),
                }
                worker.tasks.wait().await;
            }
        }
    }
    end.cancel();
    let unregistered = ctx.database("unregister", move |l, _| {
        l.unregister_worker(&life);
        Ok(())
    });
    let _ = unregistered.await;
}

async fn keep_working(worker: &Worker, taken: std::time::Instant) {
    let ctx = &worker.ctx;
    let ttl = worker.settings.worker_ttl;
    let fences_itself = ctx.sim.ledger.borrow().mutation != Mutation::NoSelfFence;
    let mut trust = Trust::new(ttl, taken);
    loop {
        if fences_itself {
            ctx.sleep_until(trust.next()).await;
        } else {
            ctx.sleep(ttl / 3).await;
        }
        let begun = ctx.instant();
        let life = worker.life.clone();
        let beat = ctx.database("heartbeat", move |l, now| Ok(l.heartbeat(now, &life, ttl)));
        let until = if fences_itself { trust.until() } else { begun + ttl };
        tokio::select! {
            biased;
            answer = beat => match answer {
                Ok(Heartbeat::Alive { cancel }) => {
                    for task in cancel {
                        worker.running.stop(task, StopReason::Canceled);
                    }
                    trust.renewed(begun, ctx.instant());
                }
                Ok(Heartbeat::Lost) if fences_itself => return,
                _ => trust.failed(ctx.instant()),
            },
            () = ctx.sleep_until(until) => {}
        }
        if fences_itself && trust.is_over(ctx.instant()) {
            return;
        }
    }
}

async fn serve(worker: &Rc<Worker>, class: TaskClass, end: CancellationToken) {
    let ctx = &worker.ctx;
    let free = Arc::new(Semaphore::new(worker.settings.slots));
    let mut consumer: Option<Consumer> = None;
    loop {
        let slot = tokio::select! {
            biased;
            () = end.cancelled() => return,
            slot = Arc::clone(&free).acquire_owned() => slot,
        };
        let Ok(slot) = slot else { return };
        let delivery = tokio::select! {
            biased;
            () = end.cancelled() => return,
            delivery = next_grant(ctx, class, &mut consumer) => delivery,
        };
        if free.available_permits() == 0
            && let Some(consumer) = &mut consumer
        {
            consumer.cancel();
        }
        take(worker, delivery, slot, &end).await;
    }
}

async fn next_grant(ctx: &Ctx, class: TaskClass, consumer: &mut Option<Consumer>) -> Delivery {
    loop {
        if let Some(open) = consumer {
            if let Some(delivery) = open.next().await {
                return delivery;
            }
            *consumer = None;
        }
        *consumer = Some(ctx.consume(Queue::Class(class), 1).await);
    }
}

async fn take(worker: &Rc<Worker>, delivery: Delivery, slot: OwnedSemaphorePermit, end: &CancellationToken) {
    let ctx = &worker.ctx;
    let lease = Lease {
        task: delivery.message.task,
        attempt: delivery.message.attempt,
    };
    match claim(worker, lease, end).await {
        Ok((Claimed::Ours, Some(request))) => {
            ctx.ack(delivery);
            let (worker, token) = (Rc::clone(worker), worker.tasks.token());
            let entered = worker.running.enter(lease.task);
            ctx.spawn(async move {
                run(&worker, lease, request, entered).await;
                drop((slot, token));
            });
        }
        Ok((Claimed::WorkerLost, _)) | Err(_) => {}
        Ok(_) => ctx.ack(delivery),
    }
}

async fn claim(
    worker: &Worker,
    lease: Lease,
    end: &CancellationToken,
) -> Result<(Claimed, Option<Request>), StoreError> {
    let ctx = &worker.ctx;
    loop {
        if worker.running.contains(lease.task) {
            return Ok((Claimed::Refused, None));
        }
        let life = worker.life.clone();
        let claim = ctx.database("claim", move |l, now| {
            let claimed = l.claim(now, lease, &life);
            Ok((claimed, l.row(lease.task).map(|r| r.request.clone())))
        });
        match claim.await {
            Err(_) if !end.is_cancelled() => {}
            answer => return answer,
        }
        tokio::select! {
            biased;
            () = end.cancelled() => {}
            () = ctx.sleep(pause(ctx)) => {}
        }
    }
}

/// Ends the run for the monitor, however it ends.
struct AtWork<'a> {
    ctx: &'a Ctx,
    lease: Lease,
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        let mut monitor = self.ctx.sim.monitor.borrow_mut();
        monitor.run_ends(self.ctx.pid, self.lease.task, self.lease.attempt);
    }
}

/// How a run shows that it moves, and that it is at its end; as the worker's report.
#[derive(Debug, Clone, Default)]
struct Pulse {
    beats: Rc<Cell<u64>>,
    closed: Rc<Cell<bool>>,
}

impl Pulse {
    fn beat(&self) {
        self.beats.set(self.beats.get() + 1);
    }

    /// Returns when the attempt is over.
    async fn write_through(&self, ctx: &Ctx, lease: Lease) {
        let mut written = 0;
        while !self.closed.get() {
            ctx.sleep(Duration::from_secs(2)).await;
            let beats = self.beats.get();
            if beats == written || self.closed.get() {
                continue;
            }
            let progress = ctx.database("progress", move |l, now| Ok(l.write_progress(now, lease)));
            match progress.await {
                Ok(false) if !self.closed.get() => return,
                Ok(_) => written = beats,
                Err(_) => {}
            }
        }
        std::future::pending::<()>().await;
    }

    /// Stops the run when it takes too long or stands still.
    async fn watch(&self, ctx: &Ctx, limits: Limits, stop: &Stop) {
        let (mut watch, begun) = (Watch::new(limits), ctx.instant());
        loop {
            ctx.sleep(Duration::from_millis(500)).await;
            let ran = ctx.instant().saturating_duration_since(begun);
            if let Look::Overran(overrun) = watch.look(ran, self.beats.get()) {
                stop.stop(StopReason::Overran(overrun));
                return std::future::pending().await;
            }
        }
    }
}

async fn run(worker: &Worker, lease: Lease, request: Request, (stop, _entered): (Stop, Entered)) {
    let ctx = &worker.ctx;
    let limits = worker.settings.limits(&request.kind);
    ctx.sim.count(|c| c.attempts += 1);
    // Only while there is trouble: of the newer release there may be one slot in all.
    let hangs = ctx.sim.now() < crate::plan::TROUBLE && ctx.sim.chance(0.05);
    if hangs {
        // Nothing that the worker does reaches it; its lease lives on. What it does when it wakes is fenced, not
        // prevented, so that nobody watches it.
        ctx.tell(|| format!("run of {} hangs", lease.task));
        ctx.sleep(Duration::from_micros(ctx.sim.between(SECOND, 400 * SECOND)))
            .await;
    } else {
        let mut monitor = ctx.sim.monitor.borrow_mut();
        monitor.run_begins(ctx.pid, lease.task, lease.attempt, request.claims);
    }
    let pulse = Pulse::default();
    let result = {
        let _at_work = AtWork { ctx, lease };
        tokio::select! {
            biased;
            result = effect(ctx, lease, &stop, &pulse) => result,
            () = stop.overdue(|| ctx.sleep(worker.settings.worker_grace)) => Err(Fault::Other),
            () = pulse.write_through(ctx, lease) => {
                stop.stop(StopReason::Fenced);
                Err(Fault::Other)
            }
            () = pulse.watch(ctx, limits, &stop) => Err(Fault::Other),
        }
    };
    let Err(fault) = result else { return };
    ctx.tell(|| {
        format!(
            "run of {} ended by {fault:?}, told {:?}",
            lease.task,
            stop.reason()
        )
    });
    let end = match decisions::ending(stop.reason(), fault, lease.attempt) {
        Ending::Leave => return,
        Ending::GiveBack | Ending::Park => None,
        Ending::Cancel => Some(TaskState::Canceled),
        Ending::Fail => Some(TaskState::Error),
    };
    loop {
        let written = match end {
            None => ctx.database("hand back", move |l, _| l.hand_back(lease)).await,
            Some(state) => {
                ctx.database("end", move |l, now| l.finish(now, lease, state, None).map(drop))
                    .await
            }
        };
        if matches!(written, Ok(()) | Err(StoreError::Fenced { .. }))
            || stop.reason().is_some_and(StopReason::is_final)
        {
            return;
        }
        ctx.sleep(pause(ctx)).await;
    }
}

/// The work, in steps that touch what the task holds, then the commit.
async fn effect(ctx: &Ctx, lease: Lease, stop: &Stop, pulse: &Pulse) -> Result<(), Fault> {
    let sim = &ctx.sim;
    let end = sim.now() + sim.skewed(10 * MILLI, 40 * SECOND);
    let obeys = !sim.chance(0.2);
    if sim.chance(0.05) {
        // It stands still, but hears when it is stopped.
        let still = Duration::from_micros(sim.between(SECOND, 200 * SECOND));
        tokio::select! {
            biased;
            () = stop.stopped() => return Err(Fault::Other),
            () = ctx.sleep(still) => {}
        }
    }
    while sim.now() < end {
        pulse.beat();
        sim.monitor
            .borrow_mut()
            .touches(sim, ctx.pid, lease.task, lease.attempt);
        if obeys && stop.is_stopped() {
            return Err(Fault::Other);
        }
        let step = sim
            .between(10 * MILLI, 700 * MILLI)
            .min(end.saturating_sub(sim.now()).max(1));
        ctx.sleep(Duration::from_micros(step)).await;
    }
    if sim.chance(0.05) {
        return Err(Fault::Other);
    }
    if stop.is_stopped() {
        return Err(Fault::Other);
    }
    pulse.closed.set(true);
    // Its last deed is the commit, which is one step; then it only waits to hear of it.
    sim.monitor
        .borrow_mut()
        .run_ends(ctx.pid, lease.task, lease.attempt);
    let spawn = sim.chance(0.1).then(|| crate::plan::some_task(sim));
    let finished = ctx.database("finish", move |l, now| {
        l.finish(now, lease, TaskState::Finished, spawn).map(drop)
    });
    finished.await.map_err(|e| match e {
        StoreError::Fenced { .. } => Fault::Fenced,
        _ => Fault::Outage,
    })
}

/// What runs in a process.
pub(crate) fn start(sim: &Rc<crate::sim::Sim>, pid: Pid, role: Role, settings: &Rc<Settings>) {
    let ctx = sim.start(pid);
    ctx.tell(|| "starts".into());
    ctx.spawn(relay(ctx.clone(), Rc::clone(settings)));
    let (me, settings) = (ctx.clone(), Rc::clone(settings));
    ctx.spawn(async move {
        match role {
            Role::Api => std::future::pending().await,
            Role::ResourceManager => resource_manager(me.clone(), settings).await,
            Role::Worker => worker(me.clone(), settings).await,
        }
        // It has stopped in order.
        let (pid, life) = (me.pid, me.life);
        me.sim.after(0, move |sim| {
            if sim.processes.borrow()[pid].life == life {
                sim.tell(|| format!("process {pid} has stopped in order"));
                sim.kill(pid);
            }
        });
    });
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Api,
    ResourceManager,
    Worker,
}
