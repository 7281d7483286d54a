//! One class of tasks: take grants when slots are free, claim them, run them, ack them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use pulp_broker::{BrokerError, Consumer, Delivery, Message, Queue, ack_all};
use pulp_model::{Attempt, TaskId, task::TaskClass};
use pulp_runtime::backoff::Backoff;
use pulp_store::{ClaimOutcome, ClaimedTask, StoreError};
use pulp_trace::{Span, SpanKind};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::{Worker, attempt, metrics, slots::Slots};

/// A run that ends within this has its grant acked at its end, together with others; the grants of the others are acked
/// then. Far below what a broker waits for.
const QUICK: Duration = Duration::from_millis(100);

/// How long an answer of the broker to a cancel is waited for, and, when the worker ends, one of the database.
const AT_THE_END: Duration = Duration::from_secs(4);

/// Serves the class until `end` fires.
pub(crate) async fn serve(
    worker: Arc<Worker>,
    class: TaskClass,
    slots: usize,
    end: CancellationToken,
    tasks: TaskTracker,
) {
    let (over, mut ends) = mpsc::unbounded_channel();
    let mut served = Served {
        worker,
        tasks,
        over,
        slots: Slots::new(slots),
        grants: Grants::new(class),
        held: HashMap::new(),
    };
    loop {
        if let Some(prefetch) = served.slots.renew_prefetch() {
            served.grants.retire(prefetch).await;
        }
        let (free, settle_at) = (served.slots.free(), served.slots.settle_at());
        if free > 0 {
            // Brought to its end: one that was given up half-way could leave a consumer behind that nobody hears.
            tokio::select! {
                biased;
                () = end.cancelled() => break,
                () = served.grants.consume(&served.worker) => {}
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
                served.runs_ended(&all).await;
            }
            () = at(settle_at) => served.settle_slow().await,
            batch = served.grants.next_batch(free), if free > 0 => match batch {
                Some(batch) => served.take(batch, &end).await,
                None => served.session_over(),
            },
        }
    }
    served.settle_slow().await;
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// A class with what runs of it here.
struct Served {
    worker: Arc<Worker>,
    tasks: TaskTracker,
    over: mpsc::UnboundedSender<TaskId>,
    slots: Slots,
    grants: Grants,
    /// Grants of runs that are not acked.
    held: HashMap<TaskId, Delivery>,
}

impl Served {
    /// Claims grants and starts their runs. Whatever can't be claimed is acked and forgotten: the rows tell who has it.
    async fn take(&mut self, batch: Vec<Delivery>, end: &CancellationToken) {
        let mut wanted = Vec::with_capacity(batch.len());
        let mut settled = Vec::new();
        for delivery in batch {
            let &Message::Grant { task_id, attempt, .. } = delivery.message() else {
                let message = delivery.message().type_name();
                tracing::warn!(message, "not a grant; passed over");
                settled.push(delivery);
                continue;
            };
            if self.worker.running.contains(task_id) || wanted.iter().any(|w: &Wanted| w.task == task_id) {
                settled.push(delivery);
                continue;
            }
            let span = Span::below(delivery.trace(), "task.claim", SpanKind::Consumer);
            span.set("task.id", &task_id);
            span.set("task.attempt", &attempt);
            wanted.push(Wanted {
                task: task_id,
                attempt,
                delivery,
                span,
            });
        }
        let grants: Vec<_> = wanted.iter().map(|w| (w.task, w.attempt)).collect();
        match claim(&self.worker, &grants, end).await {
            Ok(outcomes) => {
                for (wanted, outcome) in wanted.into_iter().zip(outcomes) {
                    settled.extend(self.claimed(wanted, outcome));
                }
            }
            // Not acked, and if it was committed, the end of our own lease takes it from us.
            Err(e) => {
                tracing::warn!(error = %e, "can't claim, and the worker ends");
                self.grants.keep(wanted.into_iter().map(|w| w.delivery));
            }
        }
        settle(&settled).await;
    }

    /// Gives back the grant if it is done with.
    fn claimed(&mut self, wanted: Wanted, outcome: ClaimOutcome) -> Option<Delivery> {
        let Wanted {
            task,
            attempt,
            delivery,
            span,
        } = wanted;
        let class = self.grants.class;
        span.set("task.claimed", &matches!(outcome, ClaimOutcome::Claimed(_)));
        match outcome {
            ClaimOutcome::Claimed(claimed) => {
                metrics::claimed(class, "claimed");
                metrics::queued(class, attempt, &claimed);
                self.held.insert(task, delivery);
                self.slots.begin(task, Instant::now() + QUICK);
                start(&self.worker, *claimed, self.over.clone(), &self.tasks);
                return None;
            }
            ClaimOutcome::Refused => {
                metrics::claimed(class, "refused");
                tracing::debug!(%task, %attempt, "claimed by another, or over");
            }
            ClaimOutcome::Unreadable(why) => {
                tracing::warn!(%task, why, "this release can't run the task; it waits for one that can");
            }
            // Not acked: it goes to another worker, or is sent again.
            ClaimOutcome::WorkerLost => {
                tracing::warn!(%task, "not claimed: the lease is lost");
                self.grants.keep([delivery]);
                return None;
            }
        }
        Some(delivery)
    }

    async fn runs_ended(&mut self, ended: &[TaskId]) {
        let settled: Vec<Delivery> = ended.iter().filter_map(|id| self.held.remove(id)).collect();
        for id in ended {
            self.slots.end(*id);
        }
        settle(&settled).await;
        if self.held.is_empty() {
            self.grants.forget_retired();
        }
    }

    /// The broker hands out again what was not acked, and the next consumer counts none of the runs.
    fn session_over(&mut self) {
        self.slots.without_consumer();
        self.held.clear();
        self.grants.forget_retired();
    }

    /// Acks the grants of what runs. Before that the consumer is given up: it counts them no more, and the broker would
    /// park as many others here, where nobody can run them.
    async fn settle_slow(&mut self) {
        self.grants.pause().await;
        self.slots.without_consumer();
        let held: Vec<Delivery> = self.held.drain().map(|(_, delivery)| delivery).collect();
        settle(&held).await;
        self.grants.forget_retired();
    }
}

/// A grant that is being claimed.
struct Wanted {
    task: TaskId,
    attempt: Attempt,
    delivery: Delivery,
    span: Span,
}

/// Asks until there is an answer, or the worker ends: a claim that failed may have been committed all the same, and
/// then the task is ours, so that nobody else would ever run it.
async fn claim(
    worker: &Worker,
    grants: &[(TaskId, Attempt)],
    end: &CancellationToken,
) -> Result<Vec<ClaimOutcome>, StoreError> {
    if grants.is_empty() {
        return Ok(Vec::new());
    }
    let mut backoff = Backoff::for_connections();
    loop {
        let answer = tokio::select! {
            answer = worker.store.claim_all(grants, &worker.incarnation) => answer,
            () = patience_at_the_end(end) => return Err(StoreError::NotTogether(
                "the database said nothing, and the worker ends".to_owned(),
            )),
        };
        match answer {
            Err(e) if !end.is_cancelled() => {
                tracing::warn!(tasks = grants.len(), error = %e, "can't claim; asking again");
            }
            answer => return answer,
        }
        tokio::select! {
            () = backoff.sleep() => {}
            () = end.cancelled() => {}
        }
    }
}

/// Over when the worker has been ending for a while: a database that says nothing must not keep it.
async fn patience_at_the_end(end: &CancellationToken) {
    end.cancelled().await;
    tokio::time::sleep(AT_THE_END).await;
}

fn start(
    worker: &Arc<Worker>,
    claimed: ClaimedTask,
    over: mpsc::UnboundedSender<TaskId>,
    tasks: &TaskTracker,
) {
    let worker = Arc::clone(worker);
    // Before anything else runs: a copy of the grant must find it.
    let (id, attempt) = (claimed.lease.task_id(), claimed.lease.attempt());
    let entered = worker.running.enter(id);
    let kind = claimed.kind.name();
    let span = Span::below(
        claimed.trace.as_ref(),
        format!("task.run {kind}"),
        SpanKind::Consumer,
    );
    span.set("task.id", &id);
    span.set("task.attempt", &attempt);
    span.set("task.kind", kind);
    span.set("pulp.repository", claimed.kind.repo_id());
    span.set("pulp.worker", &worker.incarnation.name);
    // Of the highest level, so that no filter takes it from the lines of the run.
    let lines = tracing::error_span!(
        "run", task_id = %id, attempt = attempt.0, kind, trace_id = %span.place().trace_id()
    );
    let run = async move {
        Box::pin(span.run(attempt::run(worker, claimed, entered))).await;
        // Nobody listens when the worker ends.
        let _ = over.send(id);
    };
    tasks.spawn(run.instrument(lines));
}

async fn settle(deliveries: &[Delivery]) {
    if deliveries.is_empty() {
        return;
    }
    if let Err(e) = ack_all(deliveries).await {
        tracing::debug!(error = %e, "messages will come again and be refused");
    }
}

/// The class's queue, consumed only while there is a free slot.
struct Grants {
    class: TaskClass,
    consumer: Option<Box<dyn Consumer>>,
    /// What the next consumer may have un-acked.
    prefetch: u16,
    /// Consumers that take nothing more, and keep what they handed out from coming again.
    retired: Vec<Box<dyn Consumer>>,
    /// Deliveries that must not be acked.
    kept: Vec<Delivery>,
}

impl Grants {
    const fn new(class: TaskClass) -> Self {
        Self {
            class,
            consumer: None,
            prefetch: 1,
            retired: Vec::new(),
            kept: Vec::new(),
        }
    }

    /// What is ready, at most `max`; none if the consumer is over. Dropping the future loses nothing.
    async fn next_batch(&mut self, max: usize) -> Option<Vec<Delivery>> {
        match self.consumer.as_mut()?.next_batch(max).await {
            Ok(batch) if !batch.is_empty() => return Some(batch),
            Ok(_) => {}
            Err(e) => tracing::warn!(class = self.class.as_str(), error = %e, "the session broke"),
        }
        self.consumer = None;
        None
    }

    /// Sees to it that there is a consumer.
    async fn consume(&mut self, worker: &Worker) {
        while self.consumer.is_none() {
            match worker
                .broker
                .consume(Queue::Class(self.class), self.prefetch)
                .await
            {
                Ok(consumer) => self.consumer = Some(consumer),
                Err(BrokerError::Disconnected { .. }) => tokio::time::sleep(Duration::from_millis(200)).await,
                Err(e) => {
                    tracing::error!(class = self.class.as_str(), error = %e, "can't consume");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// Takes nothing more by this consumer; what it handed out can still be acked.
    async fn pause(&mut self) {
        let Some(mut consumer) = self.consumer.take() else {
            return;
        };
        match tokio::time::timeout(AT_THE_END, consumer.cancel()).await {
            Ok(Ok(())) => self.retired.push(consumer),
            Ok(Err(e)) => {
                tracing::debug!(error = %e, "cancel");
                self.retired.push(consumer);
            }
            // The session is as good as over. With it goes what it handed out, and comes again.
            Err(_) => tracing::warn!(class = self.class.as_str(), "the broker doesn't answer a cancel"),
        }
    }

    /// The next consumer may have so much un-acked.
    async fn retire(&mut self, prefetch: usize) {
        self.pause().await;
        self.prefetch = u16::try_from(prefetch).unwrap_or(u16::MAX);
    }

    /// Lets consumers go that have nothing un-acked.
    fn forget_retired(&mut self) {
        self.retired.clear();
    }

    fn keep(&mut self, deliveries: impl IntoIterator<Item = Delivery>) {
        self.kept.extend(deliveries);
    }
}
