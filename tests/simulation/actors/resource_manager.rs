//! A resource manager: the leader is the real one; the loops are those of `resource-manager/src`.

use std::{rc::Rc, sync::Arc, time::Duration};

use pulp_liveness::Trust;
use pulp_model::{Attempt, Epoch, TaskId, deadline::HardLimits};
use pulp_resource_manager::{
    Ledger as Port,
    leader::{Leader, News, Next},
};
use pulp_store::{
    StoreError,
    grants::{Gap, Grant, LiveTask, Revoked},
    workers::Capacity,
};

use super::{Settings, pause};
use crate::{
    broker::{Consumer, Delivery},
    ledger::Queue,
    sim::Ctx,
};

/// What a leader takes in at once.
const INTAKE: usize = 512;

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

    async fn waiting_in(&self, gaps: &[Gap], known: &[TaskId]) -> Result<Vec<TaskId>, StoreError> {
        let (gaps, known) = (gaps.to_vec(), known.to_vec());
        self.ctx
            .database("waiting in", move |l, _| Ok(l.waiting_in(&gaps, &known)))
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

pub(super) async fn resource_manager(ctx: Ctx, settings: Rc<Settings>) {
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
                let messages = || batch.iter().map(|d| d.message);
                let news = News {
                    changed: messages().map(|m| m.task).collect(),
                    ended: messages().filter(|m| m.terminal).map(|m| m.task).collect(),
                    made: {
                        let ledger = ctx.sim.ledger.borrow();
                        messages().filter(|m| m.made).filter_map(|m| ledger.newcomer(m.task)).map(Arc::new).collect()
                    },
                };
                let done = leader.take_in(news).await;
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
            let batch = consumer.next_batch(INTAKE).await;
            if !batch.is_empty() {
                return batch;
            }
            *intake = None;
        }
        *intake = Some(ctx.consume(Queue::Intake, INTAKE).await);
    }
}
