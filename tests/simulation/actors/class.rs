//! One class of tasks at a worker: the slots are the real ones, the loop around them is that of `worker/src/class.rs`.

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use pulp_model::{TaskId, task::TaskClass};
use pulp_store::StoreError;
use pulp_worker::slots::Slots;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{attempt, pause, worker::Worker};
use crate::{
    broker::{Consumer, Delivery},
    ledger::{Claimed, Lease, Queue, Request},
    sim::Ctx,
};

/// A run that ends within this has its grant acked at its end.
const QUICK: Duration = Duration::from_millis(100);

/// How long a worker that ends waits for the database to answer a claim.
const AT_THE_END: Duration = Duration::from_secs(4);

/// Serves the class until `end` fires.
pub(super) async fn serve(worker: Rc<Worker>, class: TaskClass, end: CancellationToken) {
    let (over, mut ends) = mpsc::unbounded_channel();
    let mut served = Served {
        over,
        slots: Slots::new(worker.settings.slots),
        grants: Grants {
            class,
            consumer: None,
            prefetch: 1,
            retired: Vec::new(),
        },
        held: BTreeMap::new(),
        worker,
    };
    loop {
        if let Some(prefetch) = served.slots.renew_prefetch() {
            served.grants.pause();
            served.grants.prefetch = prefetch;
        }
        let (free, settle_at) = (served.slots.free(), served.slots.settle_at());
        if free > 0 {
            tokio::select! {
                biased;
                () = end.cancelled() => break,
                () = served.grants.consume(&served.worker.ctx) => {}
            }
        }
        tokio::select! {
            biased;
            () = end.cancelled() => break,
            Some(ended) = ends.recv() => {
                let mut all = vec![ended];
                while let Ok(ended) = ends.try_recv() {
                    all.push(ended);
                }
                served.runs_ended(&all);
            }
            () = at(&served.worker.ctx, settle_at) => served.settle_slow(),
            batch = served.grants.next_batch(free), if free > 0 => match batch {
                Some(batch) => served.take(batch, &end).await,
                None => served.session_over(),
            },
        }
    }
    served.settle_slow();
}

async fn at(ctx: &Ctx, instant: Option<Instant>) {
    match instant {
        Some(instant) => ctx.sleep_until(instant.into_std()).await,
        None => std::future::pending().await,
    }
}

/// A class with what runs of it here.
struct Served {
    worker: Rc<Worker>,
    over: mpsc::UnboundedSender<TaskId>,
    slots: Slots,
    grants: Grants,
    /// Grants of runs that are not acked. In an order, so that a seed tells the whole story.
    held: BTreeMap<TaskId, Delivery>,
}

impl Served {
    /// Claims grants and starts their runs. What can't be claimed is acked and forgotten.
    async fn take(&mut self, batch: Vec<Delivery>, end: &CancellationToken) {
        let mut wanted: Vec<(Lease, Delivery)> = Vec::new();
        for delivery in batch {
            let lease = Lease {
                task: delivery.message.task,
                attempt: delivery.message.attempt,
            };
            let runs = self.worker.running.contains(lease.task);
            if runs || wanted.iter().any(|(other, _)| other.task == lease.task) {
                self.worker.ctx.ack(delivery);
            } else {
                wanted.push((lease, delivery));
            }
        }
        let leases: Vec<Lease> = wanted.iter().map(|(lease, _)| *lease).collect();
        // Without an answer nothing is acked: if it was committed, the end of our own lease takes it from us.
        let Ok(outcomes) = claim(&self.worker, &leases, end).await else {
            return;
        };
        for ((lease, delivery), outcome) in wanted.into_iter().zip(outcomes) {
            match outcome {
                (Claimed::Ours, Some(request)) => {
                    self.held.insert(lease.task, delivery);
                    let now = Instant::from_std(self.worker.ctx.instant());
                    self.slots.begin(lease.task, now + QUICK);
                    self.start(lease, request);
                }
                // It goes to another worker, or is sent again.
                (Claimed::WorkerLost, _) => {}
                _ => self.worker.ctx.ack(delivery),
            }
        }
    }

    fn start(&self, lease: Lease, request: Request) {
        let (worker, over, token) = (
            Rc::clone(&self.worker),
            self.over.clone(),
            self.worker.tasks.token(),
        );
        // Before anything else runs: a copy of the grant must find it.
        let entered = worker.running.enter(lease.task);
        self.worker.ctx.spawn(async move {
            attempt::run(&worker, lease, request, entered).await;
            let _ = over.send(lease.task);
            drop(token);
        });
    }

    fn runs_ended(&mut self, ended: &[TaskId]) {
        for id in ended {
            if let Some(delivery) = self.held.remove(id) {
                self.worker.ctx.ack(delivery);
            }
            self.slots.end(*id);
        }
        if self.held.is_empty() {
            self.grants.retired.clear();
        }
    }

    /// The broker hands out again what was not acked, and the next consumer counts none of the runs.
    fn session_over(&mut self) {
        self.slots.without_consumer();
        self.held.clear();
        self.grants.retired.clear();
    }

    /// Acks the grants of what runs, whose consumer is given up before.
    fn settle_slow(&mut self) {
        self.grants.pause();
        self.slots.without_consumer();
        for delivery in std::mem::take(&mut self.held).into_values() {
            self.worker.ctx.ack(delivery);
        }
        self.grants.retired.clear();
    }
}

/// Asks until there is an answer, or the worker ends.
async fn claim(
    worker: &Worker,
    leases: &[Lease],
    end: &CancellationToken,
) -> Result<Vec<(Claimed, Option<Request>)>, StoreError> {
    let ctx = &worker.ctx;
    if leases.is_empty() {
        return Ok(Vec::new());
    }
    let patience_at_the_end = async {
        end.cancelled().await;
        ctx.sleep(AT_THE_END).await;
    };
    tokio::pin!(patience_at_the_end);
    loop {
        let (life, leases) = (worker.life.clone(), leases.to_vec());
        let claim = ctx.database("claim", move |l, now| {
            let claim = |lease: Lease| {
                let claimed = l.claim(now, lease, &life);
                (claimed, l.row(lease.task).map(|r| r.request.clone()))
            };
            Ok(leases.into_iter().map(claim).collect())
        });
        let answer = tokio::select! {
            biased;
            answer = claim => answer,
            () = &mut patience_at_the_end => {
                return Err(StoreError::NotTogether("the database said nothing, and the worker ends".to_owned()));
            }
        };
        match answer {
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

/// The class's queue, consumed only while there is a free slot.
struct Grants {
    class: TaskClass,
    consumer: Option<Consumer>,
    /// What the next consumer may have un-acked.
    prefetch: usize,
    /// Consumers that take nothing more, and keep what they handed out from coming again.
    retired: Vec<Consumer>,
}

impl Grants {
    /// Sees to it that there is a consumer.
    async fn consume(&mut self, ctx: &Ctx) {
        if self.consumer.is_none() {
            self.consumer = Some(ctx.consume(Queue::Class(self.class), self.prefetch).await);
        }
    }

    /// What is ready, at most `max`; none if the consumer is over.
    async fn next_batch(&mut self, max: usize) -> Option<Vec<Delivery>> {
        let batch = self.consumer.as_mut()?.next_batch(max).await;
        if batch.is_empty() {
            self.consumer = None;
            return None;
        }
        Some(batch)
    }

    /// Takes nothing more by this consumer; what it handed out can still be acked.
    fn pause(&mut self) {
        if let Some(mut consumer) = self.consumer.take() {
            consumer.cancel();
            self.retired.push(consumer);
        }
    }
}
