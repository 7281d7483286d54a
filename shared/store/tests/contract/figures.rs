//! Figures for a monitoring system: right, and bounded by what workers hold.

use std::time::Duration;

use pulp_model::task::{TaskClass, TaskState};

use crate::support::{Bed, LONG, claimed, contract, delete, publish, tick};

contract!(
    what_workers_hold_is_counted_by_class_and_state,
    the_oldest_that_waits_and_the_oldest_message_are_told,
);

async fn what_workers_hold_is_counted_by_class_and_state(bed: &Bed) {
    assert_eq!(bed.live_figures().await.unwrap(), []);
    let epoch = bed.epoch().await;
    let worker = bed.worker(LONG).await;
    for n in 0..3 {
        bed.enqueue(&publish(&format!("waits-{n}"), "d")).await;
    }
    let kind = publish("granted", "d");
    let granted = bed.enqueue(&kind).await;
    bed.grant(epoch, granted, &kind).await.unwrap();
    let kind = delete("runs");
    let runs = bed.enqueue(&kind).await;
    let attempt = bed.grant(epoch, runs, &kind).await.unwrap();
    claimed(bed.claim(runs, attempt, &worker).await.unwrap());
    let figures = bed.live_figures().await.unwrap();
    let mut counts: Vec<_> = figures.iter().map(|f| (f.class, f.state, f.count)).collect();
    counts.sort_unstable_by_key(|(_, state, _)| state.as_str());
    assert_eq!(
        counts,
        [
            (TaskClass::Publish, TaskState::Accepted, 1),
            (kind.class(), TaskState::Running, 1)
        ]
    );
}

async fn the_oldest_that_waits_and_the_oldest_message_are_told(bed: &Bed) {
    assert_eq!(bed.oldest_waiting().await.unwrap(), Duration::ZERO);
    let none = bed.outbox_figures().await.unwrap();
    assert_eq!((none.depth, none.lag), (0, Duration::ZERO));
    bed.enqueue(&delete("a")).await;
    tick(bed).await;
    let between = bed.oldest_waiting().await.unwrap();
    bed.enqueue(&delete("b")).await;
    assert!(between > Duration::ZERO && bed.oldest_waiting().await.unwrap() >= between);
    let some = bed.outbox_figures().await.unwrap();
    assert!(some.depth == 2 && some.lag >= between, "{some:?}");
}
