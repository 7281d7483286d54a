//! One class of tasks: take a grant when a slot is free, claim it, ack it, run it.

use std::{sync::Arc, time::Duration};

use pulp_broker::{BrokerError, Consumer, Delivery, Message, Queue};
use pulp_model::{Attempt, TaskId, task::TaskClass};
use pulp_runtime::backoff::Backoff;
use pulp_store::{ClaimOutcome, ClaimedTask, StoreError};
use pulp_trace::{Span, SpanKind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::{Worker, attempt, metrics};

/// Serves the class until `end` fires.
pub(crate) async fn serve(
    worker: Arc<Worker>,
    class: TaskClass,
    slots: usize,
    end: CancellationToken,
    tasks: TaskTracker,
) {
    let free = Arc::new(Semaphore::new(slots));
    let mut grants = Grants {
        class,
        consumer: None,
    };
    loop {
        let slot = tokio::select! {
            slot = Arc::clone(&free).acquire_owned() => slot,
            () = end.cancelled() => return,
        };
        let Ok(slot) = slot else { return };
        let delivery = tokio::select! {
            delivery = grants.next(&worker) => delivery,
            () = end.cancelled() => return,
        };
        if free.available_permits() == 0 {
            // Before the ack: otherwise the broker parks the next grant here, where nobody can run it.
            grants.pause().await;
        }
        take(&worker, &delivery, slot, &tasks, &end).await;
    }
}

/// Claims a grant and starts its run. Whatever can't be claimed is acked and forgotten: the rows tell who has it.
async fn take(
    worker: &Arc<Worker>,
    delivery: &Delivery,
    slot: OwnedSemaphorePermit,
    tasks: &TaskTracker,
    end: &CancellationToken,
) {
    let Message::Grant {
        task_id,
        attempt,
        class,
        ..
    } = *delivery.message()
    else {
        tracing::warn!(
            message = delivery.message().type_name(),
            "not a grant; passed over"
        );
        settle(delivery).await;
        return;
    };
    let span = Span::below(delivery.trace(), "task.claim", SpanKind::Consumer);
    span.set("task.id", &task_id);
    span.set("task.attempt", &attempt);
    let outcome = span.run(claim(worker, task_id, attempt, end)).await;
    span.set("task.claimed", &matches!(outcome, Ok(ClaimOutcome::Claimed(_))));
    drop(span);
    match outcome {
        Ok(ClaimOutcome::Claimed(claimed)) => {
            metrics::claimed(class, "claimed");
            metrics::queued(class, attempt, &claimed);
            settle(delivery).await;
            start(worker, *claimed, slot, tasks);
        }
        Ok(ClaimOutcome::Refused) => {
            metrics::claimed(class, "refused");
            tracing::debug!(task = %task_id, %attempt, "claimed by another, or over");
            settle(delivery).await;
        }
        Ok(ClaimOutcome::Unreadable(why)) => {
            tracing::warn!(task = %task_id, why, "this release can't run the task; it waits for one that can");
            settle(delivery).await;
        }
        // Not acked: it goes to another worker, or is sent again.
        Ok(ClaimOutcome::WorkerLost) => tracing::warn!(task = %task_id, "not claimed: the lease is lost"),
        // Not acked either, and if it was committed, the end of our own lease takes it from us.
        Err(e) => tracing::warn!(task = %task_id, error = %e, "can't claim, and the worker ends"),
    }
}

/// Asks until there is an answer, or the worker ends: a claim that failed may have been committed all the same, and
/// then the task is ours, so that nobody else would ever run it.
async fn claim(
    worker: &Worker,
    task: TaskId,
    attempt: Attempt,
    end: &CancellationToken,
) -> Result<ClaimOutcome, StoreError> {
    let mut backoff = Backoff::for_connections();
    loop {
        if worker.running.contains(task) {
            return Ok(ClaimOutcome::Refused);
        }
        match worker.store.claim(task, attempt, &worker.incarnation).await {
            Err(e) if !end.is_cancelled() => {
                tracing::warn!(task = %task, error = %e, "can't claim; asking again");
            }
            answer => return answer,
        }
        tokio::select! {
            () = backoff.sleep() => {}
            () = end.cancelled() => {}
        }
    }
}

fn start(worker: &Arc<Worker>, claimed: ClaimedTask, slot: OwnedSemaphorePermit, tasks: &TaskTracker) {
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
        span.run(attempt::run(worker, claimed, entered)).await;
        drop(slot);
    };
    tasks.spawn(run.instrument(lines));
}

async fn settle(delivery: &Delivery) {
    if let Err(e) = delivery.ack().await {
        tracing::debug!(error = %e, "the message will come again and be refused");
    }
}

/// The class's queue, consumed only while there is a free slot.
struct Grants {
    class: TaskClass,
    consumer: Option<Box<dyn Consumer>>,
}

impl Grants {
    /// The next grant. Dropping the future loses nothing.
    async fn next(&mut self, worker: &Worker) -> Delivery {
        loop {
            if let Some(consumer) = &mut self.consumer {
                match consumer.next().await {
                    Ok(Some(delivery)) => return delivery,
                    Ok(None) => {}
                    Err(e) => tracing::warn!(class = self.class.as_str(), error = %e, "the session broke"),
                }
                self.consumer = None;
            }
            match worker.broker.consume(Queue::Class(self.class), 1).await {
                Ok(consumer) => self.consumer = Some(consumer),
                Err(BrokerError::Disconnected { .. }) => tokio::time::sleep(Duration::from_millis(200)).await,
                Err(e) => {
                    tracing::error!(class = self.class.as_str(), error = %e, "can't consume");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn pause(&mut self) {
        if let Some(consumer) = &mut self.consumer
            && let Err(e) = consumer.cancel().await
        {
            tracing::debug!(error = %e, "cancel");
        }
    }
}
