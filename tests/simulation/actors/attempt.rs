//! One run of a task: its work, what watches it, and its end by the real decisions.

use std::{cell::Cell, rc::Rc, time::Duration};

use pulp_model::task::TaskState;
use pulp_store::StoreError;
use pulp_worker::{
    decisions::{self, Ending, Fault},
    running::Entered,
    stop::{Stop, StopReason},
    watch::{Limits, Look, Watch},
};

use super::{pause, worker::Worker};
use crate::{
    ledger::{Lease, Request},
    sim::{Ctx, MILLI, SECOND},
};

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

pub(super) async fn run(worker: &Worker, lease: Lease, request: Request, (stop, _entered): (Stop, Entered)) {
    let ctx = &worker.ctx;
    if stop.is_final() {
        return;
    }
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
    let end = decisions::ending(stop.reason(), fault, lease.attempt);
    let parked_for = Duration::from_micros(ctx.sim.skewed(SECOND, 60 * SECOND));
    loop {
        let finish = |state| ctx.database("end", move |l, now| l.finish(now, lease, state, None).map(drop));
        let written = match end {
            Ending::Leave => return,
            Ending::GiveBack => ctx.database("hand back", move |l, _| l.hand_back(lease)).await,
            Ending::Park => {
                ctx.database("park", move |l, now| l.park(now, lease, parked_for))
                    .await
            }
            Ending::Cancel => finish(TaskState::Canceled).await,
            Ending::Fail => finish(TaskState::Error).await,
        };
        if matches!(written, Ok(()) | Err(StoreError::Fenced { .. })) || stop.is_final() {
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
    if sim.chance(0.05) {
        return Err(Fault::NotYet);
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
