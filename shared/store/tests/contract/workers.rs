//! Processes that are alive.

use std::{collections::HashSet, time::Duration};

use futures::future::join_all;
use pulp_store::workers::Heartbeat;

use crate::support::{BLINK, Bed, LONG, contract, delete, eventually, tick};

contract!(
    workers_take_the_first_free_number,
    processes_that_start_at_once_get_names_of_their_own,
    a_name_whose_lease_has_ended_is_free,
    a_heartbeat_goes_on_until_the_lease_has_ended,
    a_heartbeat_tells_which_tasks_to_cancel,
    a_process_that_stops_in_order_is_off_the_list_at_once,
);

async fn workers_take_the_first_free_number(bed: &Bed) {
    let names = [
        bed.worker(LONG).await,
        bed.worker(LONG).await,
        bed.worker(LONG).await,
    ];
    let names: Vec<_> = names.iter().map(|w| w.name.0.as_str()).collect();
    assert_eq!(names, ["w-0@h", "w-1@h", "w-2@h"]);
    for name in ["api@h", "api@h.1"] {
        let api = bed.register_worker("api", "api", "h", false, LONG).await.unwrap();
        assert_eq!(api.name.0, name);
    }
    let known = bed.known_workers().await.unwrap();
    let known: Vec<_> = known.iter().map(|w| w.name.0.as_str()).collect();
    assert_eq!(known, ["api@h", "api@h.1", "w-0@h", "w-1@h", "w-2@h"]);
}

async fn processes_that_start_at_once_get_names_of_their_own(bed: &Bed) {
    let starts = (0..10).map(|_| {
        let store = bed.store.clone();
        tokio::spawn(async move { store.register_worker("worker", "w", "h", true, LONG).await })
    });
    let names: HashSet<_> = join_all(starts)
        .await
        .into_iter()
        .map(|w| w.unwrap().unwrap().name.0)
        .collect();
    assert_eq!(names, (0..10).map(|n| format!("w-{n}@h")).collect());
}

async fn a_name_whose_lease_has_ended_is_free(bed: &Bed) {
    let old = bed.worker(BLINK).await;
    tick(bed).await;
    assert!(bed.known_workers().await.unwrap().is_empty());
    let new = bed.worker(LONG).await;
    assert_eq!(new.name, old.name);
    assert_ne!(new.id, old.id);
    assert_eq!(bed.heartbeat(&old, LONG).await.unwrap(), Heartbeat::Lost);
    // The old one's parting words don't touch the new one.
    bed.unregister_worker(&old).await.unwrap();
    assert_eq!(bed.known_workers().await.unwrap().len(), 1);
}

async fn a_heartbeat_goes_on_until_the_lease_has_ended(bed: &Bed) {
    let worker = bed.worker(LONG).await;
    let before = bed.known_workers().await.unwrap().remove(0).last_heartbeat;
    tick(bed).await;
    let alive = bed.heartbeat(&worker, Duration::from_millis(100)).await.unwrap();
    assert_eq!(alive, Heartbeat::Alive { cancel: vec![] });
    let known = bed.known_workers().await.unwrap();
    if let [known] = &known[..] {
        assert!(known.last_heartbeat > before);
    }
    eventually("the lease ends", || async {
        bed.known_workers().await.unwrap().is_empty()
    })
    .await;
    // A lease that has ended is not revived.
    assert_eq!(bed.heartbeat(&worker, LONG).await.unwrap(), Heartbeat::Lost);
    assert!(bed.known_workers().await.unwrap().is_empty());
}

async fn a_heartbeat_tells_which_tasks_to_cancel(bed: &Bed) {
    let epoch = bed.lead().await;
    let (worker, other) = (bed.worker(LONG).await, bed.worker(LONG).await);
    let mine = bed.running(epoch, &worker, &delete("a")).await;
    let kept = bed.running(epoch, &worker, &delete("b")).await;
    let theirs = bed.running(epoch, &other, &delete("c")).await;
    let mut tx = bed.begin().await.unwrap();
    for task in [&mine, &theirs] {
        tx.cancel_task(task.lease.task_id()).await.unwrap();
    }
    tx.commit().await.unwrap();
    let expected = Heartbeat::Alive {
        cancel: vec![mine.lease.task_id()],
    };
    assert_eq!(bed.heartbeat(&worker, LONG).await.unwrap(), expected);
    assert_eq!(
        bed.heartbeat(&worker, LONG).await.unwrap(),
        expected,
        "until it has stopped"
    );
    for task in [&mine, &kept] {
        crate::support::finish(bed.begin_fenced(&task.lease).await.unwrap()).await;
    }
    assert_eq!(
        bed.heartbeat(&worker, LONG).await.unwrap(),
        Heartbeat::Alive { cancel: vec![] }
    );
}

async fn a_process_that_stops_in_order_is_off_the_list_at_once(bed: &Bed) {
    let (first, second) = (bed.worker(LONG).await, bed.worker(LONG).await);
    bed.unregister_worker(&first).await.unwrap();
    let known = bed.known_workers().await.unwrap();
    assert_eq!(known.len(), 1);
    assert_eq!(known[0].name, second.name);
    assert_eq!(bed.heartbeat(&first, LONG).await.unwrap(), Heartbeat::Lost);
    assert_eq!(bed.worker(LONG).await.name, first.name);
}
