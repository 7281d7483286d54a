//! What befell a task, and how long it may go on.

use std::time::Duration;

use pulp_model::{Attempt, ErrorCode, TaskId, task::TaskState};
use pulp_store::{
    attempts::Outcome,
    grants::HardLimits,
    timeline::EventKind::{self, Claimed, Created, Ended, Expired, Granted, HandedBack, Revoked},
};
use serde_json::json;

use crate::support::{BLINK, Bed, LONG, contract, delete, finish, tick};

contract!(
    the_straight_way_is_told_without_a_row_of_its_own,
    attempts_that_came_to_nothing_stay_on_record,
    an_unknown_task_has_no_timeline,
    a_run_beyond_its_deadline_is_ended_and_says_so,
    a_run_without_progress_is_ended_and_says_so,
    a_run_that_took_too_long_ends_canceled_with_a_reason,
);

async fn told(bed: &Bed, id: TaskId) -> Vec<(EventKind, i64)> {
    let events = bed.timeline(id).await.unwrap();
    assert!(events.windows(2).all(|pair| pair[0].at <= pair[1].at));
    events.iter().map(|e| (e.kind, e.attempt.0)).collect()
}

async fn the_straight_way_is_told_without_a_row_of_its_own(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let task = bed.running(epoch, &worker, &delete("r")).await;
    let id = task.lease.task_id();
    finish(bed.begin_fenced(&task.lease).await.unwrap()).await;
    assert_eq!(
        told(bed, id).await,
        [(Created, 0), (Granted, 1), (Claimed, 1), (Ended, 1)]
    );
    let events = bed.timeline(id).await.unwrap();
    assert_eq!(events[2].worker, Some(worker.name));
    assert_eq!(events[3].detail.as_deref(), Some("finished"));
    assert_eq!(bed.number("SELECT COUNT(*) FROM task_events").await, 0);
}

async fn attempts_that_came_to_nothing_stay_on_record(bed: &Bed) {
    let epoch = bed.lead().await;
    let kind = delete("r");
    let (first, second) = (bed.worker(LONG).await, bed.worker(LONG).await);
    let task = bed.running(epoch, &first, &kind).await;
    let id = task.lease.task_id();
    bed.unregister_worker(&first).await.unwrap();
    bed.revoke_lost(epoch, 3).await.unwrap();
    let attempt = bed.grant(epoch, id, &kind).await.unwrap();
    let task = crate::support::claimed(bed.claim(id, attempt, &second).await.unwrap());
    bed.hand_back(&task.lease).await.unwrap();
    bed.grant(epoch, id, &kind).await.unwrap();
    assert_eq!(
        told(bed, id).await,
        [
            (Created, 0),
            (Granted, 1),
            (Claimed, 1),
            (Revoked, 1),
            (Granted, 2),
            (Claimed, 2),
            (HandedBack, 2),
            (Granted, 3),
        ]
    );
    let events = bed.timeline(id).await.unwrap();
    assert_eq!(events[3].worker, Some(first.name));
    assert!(events[3].detail.as_deref().unwrap().contains("gone"));
    // It goes with its task.
    let mut tx = bed.begin().await.unwrap();
    tx.cancel_task(id).await.unwrap();
    tx.purge_tasks(&[TaskState::Canceled]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(bed.number("SELECT COUNT(*) FROM task_events").await, 0);
}

async fn an_unknown_task_has_no_timeline(bed: &Bed) {
    assert_eq!(bed.timeline(TaskId::new()).await.unwrap(), []);
}

fn limits(beyond_deadline: Duration, without_progress: Option<Duration>) -> HardLimits {
    HardLimits {
        beyond_deadline,
        without_progress,
    }
}

async fn a_run_beyond_its_deadline_is_ended_and_says_so(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let (late, in_time, unlimited) = (
        bed.running(epoch, &worker, &delete("a")).await,
        bed.running(epoch, &worker, &delete("b")).await,
        bed.running(epoch, &worker, &delete("c")).await,
    );
    assert!(bed.set_deadline(&late.lease, BLINK).await.unwrap());
    assert!(bed.set_deadline(&in_time.lease, LONG).await.unwrap());
    tick(bed).await;
    assert_eq!(bed.expire(epoch, &limits(LONG, None)).await.unwrap(), []);
    let id = late.lease.task_id();
    assert_eq!(bed.expire(epoch, &limits(BLINK, None)).await.unwrap(), [id]);
    let task = bed.task_of(id).await;
    assert_eq!(task.state, TaskState::Canceled);
    assert_eq!(task.error.unwrap().code, ErrorCode::TIMED_OUT);
    assert!(told(bed, id).await.contains(&(Expired, 1)));
    assert_eq!(bed.number("SELECT COUNT(*) FROM reservations").await, 2);
    // It commits nothing, and its deadline is no concern any more.
    assert!(bed.begin_fenced(&late.lease).await.is_err());
    assert!(!bed.set_deadline(&late.lease, LONG).await.unwrap());
    for other in [in_time, unlimited] {
        finish(bed.begin_fenced(&other.lease).await.unwrap()).await;
    }
}

async fn a_run_without_progress_is_ended_and_says_so(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let silent = bed.running(epoch, &worker, &delete("a")).await;
    let busy = bed.running(epoch, &worker, &delete("b")).await;
    tick(bed).await;
    let pause = Duration::from_secs(5);
    assert_eq!(bed.expire(epoch, &limits(LONG, Some(pause))).await.unwrap(), []);
    bed.execute("UPDATE tasks SET progressed = progressed - 6000000")
        .await;
    assert_eq!(bed.expire(epoch, &limits(LONG, None)).await.unwrap(), []);
    assert!(bed.write_progress(&busy.lease, &json!({"n": 1})).await.unwrap());
    let id = silent.lease.task_id();
    assert_eq!(bed.expire(epoch, &limits(LONG, Some(pause))).await.unwrap(), [id]);
    let error = bed.task_of(id).await.error.unwrap();
    assert!(error.description.contains("no progress"), "{error:?}");
}

async fn a_run_that_took_too_long_ends_canceled_with_a_reason(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let task = bed.running(epoch, &worker, &delete("a")).await;
    let error = pulp_model::CodedError::new(ErrorCode::TIMED_OUT, "too long");
    let tx = bed.begin_fenced(&task.lease).await.unwrap();
    tx.finish(&Outcome::Overdue(error.clone()), &json!({}))
        .await
        .unwrap();
    let row = bed.task_of(task.lease.task_id()).await;
    assert_eq!((row.state, row.error), (TaskState::Canceled, Some(error)));
    assert_eq!(row.attempt, Attempt(1));
}
