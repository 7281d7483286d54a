//! One run of one task: from its claim to its terminal state, whatever happens.

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use pulp_model::{
    CodedError, Timestamp,
    deadline::{Overran, Overrun},
    progress::StepState,
    task::TaskKind,
};
use pulp_runtime::backoff::Backoff;
use pulp_store::{ClaimedTask, FencedTx, StoreError, TaskLease, attempts::Outcome};
use tokio::time::Instant;

use crate::{
    Worker,
    decisions::{self, Ending, Fault},
    error::TaskError,
    kinds::{self, Context},
    metrics::{self, Ended},
    progress::Report,
    running::Entered,
    stop::{Stop, StopReason},
    watch::{Limits, Look, Watch},
};

/// How often a run is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Runs a claimed task and sees to its end.
pub(crate) async fn run(worker: Arc<Worker>, claimed: ClaimedTask, (stop, _entered): (Stop, Entered)) {
    let ClaimedTask { lease, kind, .. } = claimed;
    if stop.is_final() {
        // The claim was answered after the lease was lost: by now another may run it, and not one step may be taken here.
        tracing::warn!(task = %lease.task_id(), "claimed too late; left to another worker");
        return;
    }
    let context = Context {
        worker: Arc::clone(&worker),
        lease: lease.clone(),
        report: Report::default(),
        stop: stop.clone(),
        started: Timestamp::now(),
        begun: Instant::now(),
    };
    tracing::info!(task = %lease.task_id(), task_type = kind.task_type(), "running");
    let figures = metrics::Run::begin(&kind);
    let limits = worker.limits(&kind);
    let result = tokio::select! {
        // What has ended has ended, whatever else is the case.
        biased;
        result = caught(kinds::run(&context, &kind)) => result,
        () = stop.overdue(|| tokio::time::sleep(worker.settings.cancel_grace)) => Err(TaskError::Stopped),
        () = context.report.write_through(&worker.store, &lease, limits.touch()) => {
            // Threads that it left behind look at this.
            stop.stop(StopReason::Fenced);
            Err(TaskError::Stopped)
        }
        () = watch(&context, limits) => Err(TaskError::Stopped),
    };
    let ended = match result {
        Ok(()) => {
            tracing::info!(task = %lease.task_id(), "ended well");
            Ended::Well
        }
        Err(error) => end_badly(&context, &kind, error).await,
    };
    figures.end(ended);
    kinds::clean_up(&context, &kind).await;
}

/// Stops the run when it takes too long or stands still, and tells when it is quiet. Never returns: what is stopped
/// still has its grace.
async fn watch(context: &Context, limits: Limits) {
    let task = context.lease.task_id();
    let mut watch = Watch::new(limits);
    loop {
        tokio::time::sleep(LOOK).await;
        match watch.look(context.begun.elapsed(), context.report.beats()) {
            Look::Well => {}
            Look::Quiet(silent) => {
                let at = context.report.under_way().unwrap_or_default();
                tracing::warn!(%task, silent = ?silent, at, "shows no progress");
            }
            Look::Overran(overrun) => {
                tracing::warn!(%task, ?overrun, "goes on for too long; it is stopped");
                context.stop.stop(StopReason::Overran(overrun));
                return std::future::pending().await;
            }
        }
    }
}

/// A panic of a task ends the task, not the worker.
async fn caught(run: impl Future<Output = Result<(), TaskError>>) -> Result<(), TaskError> {
    match std::panic::AssertUnwindSafe(run).catch_unwind().await {
        Ok(result) => result,
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
            Err(TaskError::Bug(
                text.or_else(|| panic.downcast_ref::<String>().cloned())
                    .unwrap_or_default(),
            ))
        }
    }
}

/// Gives the task its terminal state, gives it back, or leaves it to whoever has it now.
async fn end_badly(context: &Context, kind: &TaskKind, error: TaskError) -> Ended {
    let lease = &context.lease;
    if let TaskError::Store(StoreError::Fenced { now, .. }) = &error {
        tracing::warn!(task = %lease.task_id(), now, "this attempt is over; nothing was committed");
        return Ended::Fenced;
    }
    let fault = match &error {
        TaskError::NotYet { .. } => Fault::NotYet,
        error if error.is_outage() => Fault::Outage,
        _ => Fault::Other,
    };
    match decisions::ending(context.stop.reason(), fault, lease.attempt()) {
        Ending::Leave => {
            tracing::warn!(task = %lease.task_id(), "left to another worker");
            Ended::Fenced
        }
        Ending::GiveBack => {
            tracing::warn!(task = %lease.task_id(), error = ?error, "given back");
            persist(context, |worker, lease| async move {
                worker.store.hand_back(&lease).await
            })
            .await;
            Ended::GivenBack
        }
        Ending::Park => {
            let (pause, why) = match &error {
                TaskError::NotYet { pause, why } => (*pause, why.as_str()),
                _ => (Duration::ZERO, ""),
            };
            tracing::info!(task = %lease.task_id(), ?pause, "parked: {why}");
            persist(context, |worker, lease| async move {
                worker.store.park(&lease, pause, why).await
            })
            .await;
            Ended::Parked
        }
        Ending::Cancel => {
            context.report.end_all(StepState::Cancelled, None);
            tracing::info!(task = %lease.task_id(), "canceled");
            end(context, kind, &Outcome::Canceled).await;
            Ended::Canceled
        }
        Ending::Fail => {
            let overrun = match context.stop.reason() {
                Some(StopReason::Overran(overrun)) => Some(overrun),
                _ => None,
            };
            let coded = overrun.map_or_else(|| error.coded(), |o| overran(context, kind, o));
            tracing::warn!(task = %lease.task_id(), code = %coded.code, "failed: {}", coded.description);
            if overrun.is_none() && !matches!(error, TaskError::Rejected(_)) {
                tracing::error!(task = %lease.task_id(), error = ?error, "not the request's fault");
            }
            context
                .report
                .end_all(StepState::Failed, Some(&coded.description));
            end(context, kind, &Outcome::Failed(coded)).await;
            if overrun.is_some() {
                Ended::Overran
            } else {
                Ended::Failed
            }
        }
    }
}

/// What the clients of a run that was stopped for its time see.
fn overran(context: &Context, kind: &TaskKind, overrun: Overrun) -> CodedError {
    let at = context.report.under_way();
    overrun.coded(&Overran {
        task: context.lease.task_id(),
        kind: kind.name(),
        repository: kind.repo_id().as_str(),
        at: at.as_deref(),
        stuck: None,
        ran: context.begun.elapsed(),
    })
}

async fn end(context: &Context, kind: &TaskKind, outcome: &Outcome) {
    persist(context, |worker, lease| async move {
        let mut tx: FencedTx = worker.store.begin_fenced(&lease).await?;
        kinds::record_failure(context, kind, &mut tx, outcome).await?;
        tx.finish(outcome, &context.report.to_json()).await
    })
    .await;
}

/// Tries until it is written, the attempt is over, or the lease is lost: a database that is down for a moment
/// must not cost a task its end.
async fn persist<F, R>(context: &Context, write: F)
where
    F: Fn(Arc<Worker>, TaskLease) -> R,
    R: Future<Output = Result<(), StoreError>>,
{
    let mut backoff = Backoff::for_connections();
    loop {
        match write(Arc::clone(&context.worker), context.lease.clone()).await {
            Ok(()) => return,
            Err(StoreError::Fenced { now, .. }) => {
                tracing::warn!(task = %context.lease.task_id(), now, "this attempt is over");
                return;
            }
            Err(e) => {
                tracing::warn!(task = %context.lease.task_id(), error = %e, "can't write the task's end");
            }
        }
        if context.stop.is_final() {
            return;
        }
        backoff.sleep().await;
    }
}
