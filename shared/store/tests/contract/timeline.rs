//! What befell a task.

use pulp_model::{TaskId, task::TaskState};
use pulp_store::timeline::EventKind::{self, Claimed, Created, Ended, Granted, HandedBack, Revoked};

use crate::support::{Bed, LONG, contract, delete, finish};

contract!(
    the_straight_way_is_told_without_a_row_of_its_own,
    attempts_that_came_to_nothing_stay_on_record,
    an_unknown_task_has_no_timeline,
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
