//! A worker's life: registers, keeps its lease, takes grants, drains.

use std::rc::Rc;

use pulp_liveness::Trust;
use pulp_worker::{running::Running, stop::StopReason};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Settings, class, pause};
use crate::{
    ledger::{Heartbeat, Life, Mutation},
    sim::Ctx,
};

pub(super) struct Worker {
    pub(super) ctx: Ctx,
    pub(super) settings: Rc<Settings>,
    pub(super) life: Life,
    pub(super) running: Running,
    /// Runs, and those who take grants for more.
    pub(super) tasks: TaskTracker,
}

pub(super) async fn worker(ctx: Ctx, settings: Rc<Settings>) {
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
            class::serve(worker, class, intake).await;
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
