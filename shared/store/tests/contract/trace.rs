//! The trace of a request is the trace of its task, of the task's messages, and of what the task makes.

use pulp_model::TaskId;
use pulp_trace::TraceContext;

use crate::support::{Bed, LONG, claimed, contract, delete, finish};

contract!(
    a_task_and_its_messages_keep_the_trace_of_the_request,
    a_task_that_nobody_traces_has_a_trace_of_its_own,
    a_grant_that_is_sent_again_keeps_its_trace,
    what_a_task_makes_belongs_to_the_trace_that_it_runs_in,
);

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn caller() -> TraceContext {
    TraceContext::parse(CALLER, Some("vendor=x")).unwrap()
}

/// The traces of the messages about a task; they leave the outbox.
async fn traces_of_messages(bed: &Bed, id: TaskId) -> Vec<Option<TraceContext>> {
    let batch = bed.outbox_batch(100).await.unwrap();
    let of_task = batch.rows.iter().filter(|r| r.body().contains(&id.to_string()));
    let traces = of_task.map(|r| r.trace.clone()).collect();
    let all: Vec<String> = batch.rows.iter().map(|r| r.id.clone()).collect();
    batch.settle(&all).await.unwrap();
    traces
}

async fn a_task_and_its_messages_keep_the_trace_of_the_request(bed: &Bed) {
    let kind = delete("r");
    let id = caller().run(bed.enqueue(&kind)).await;
    let attempt = bed.grant(bed.epoch().await, id, &kind).await.unwrap();
    let traces = traces_of_messages(bed, id).await;
    assert_eq!(
        traces,
        [Some(caller()), Some(caller())],
        "to the manager, to the workers"
    );
    let worker = bed.worker(LONG).await;
    let task = claimed(bed.claim(id, attempt, &worker).await.unwrap());
    assert_eq!(task.trace, Some(caller()));
    assert_eq!(task.trace.unwrap().tracestate().unwrap(), "vendor=x");
    assert!(task.created <= task.claimed);
}

async fn a_task_that_nobody_traces_has_a_trace_of_its_own(bed: &Bed) {
    let (a, b) = (bed.enqueue(&delete("a")).await, bed.enqueue(&delete("b")).await);
    let batch = bed.outbox_batch(10).await.unwrap();
    let trace = |id: TaskId| {
        let mut rows = batch.rows.iter();
        let row = rows.find(|r| r.body().contains(&id.to_string())).unwrap();
        row.trace.clone().unwrap()
    };
    assert_ne!(trace(a).trace_id(), trace(b).trace_id());
    assert!(!trace(a).is_sampled());
}

async fn a_grant_that_is_sent_again_keeps_its_trace(bed: &Bed) {
    let kind = delete("r");
    let id = caller().run(bed.enqueue(&kind)).await;
    let epoch = bed.epoch().await;
    bed.grant(epoch, id, &kind).await.unwrap();
    traces_of_messages(bed, id).await;
    crate::support::tick(bed).await;
    assert_eq!(
        bed.resend_unclaimed(epoch, std::time::Duration::ZERO)
            .await
            .unwrap(),
        1
    );
    assert_eq!(traces_of_messages(bed, id).await, [Some(caller())]);
}

async fn what_a_task_makes_belongs_to_the_trace_that_it_runs_in(bed: &Bed) {
    let mut tx = bed.fenced().await;
    let made = caller().run(tx.spawn(&delete("r"))).await.unwrap();
    finish(tx).await;
    assert_eq!(traces_of_messages(bed, made).await, [Some(caller())]);
}
