//! Messages that wait for the relay.

use std::collections::HashSet;

use pulp_store::{Store, outbox::OutboxRow};

use crate::support::{Bed, PATIENCE, contract, delete, eventually};

contract!(
    messages_come_oldest_first_and_at_most_as_many_as_asked_for,
    confirmed_messages_go_and_the_others_stay,
    a_batch_that_is_dropped_frees_its_messages,
    two_relays_never_hold_the_same_message_on_postgresql,
    many_relays_send_each_message,
    a_commit_with_messages_rings_the_relay_and_others_do_not,
);

async fn fill(bed: &Bed, n: usize) {
    for n in 0..n {
        bed.enqueue(&delete(&format!("r{n}"))).await;
    }
}

fn ids(rows: &[OutboxRow]) -> Vec<String> {
    rows.iter().map(|r| r.id.clone()).collect()
}

async fn messages_come_oldest_first_and_at_most_as_many_as_asked_for(bed: &Bed) {
    assert_eq!(bed.outbox_depth().await.unwrap(), 0);
    assert!(bed.outbox_batch(5).await.unwrap().rows.is_empty());
    let mut tasks = Vec::new();
    for n in 0..6 {
        tasks.push(bed.enqueue(&delete(&format!("r{n}"))).await.to_string());
    }
    assert_eq!(bed.outbox_depth().await.unwrap(), 6);
    let batch = bed.outbox_batch(4).await.unwrap();
    assert_eq!(batch.rows.len(), 4);
    for (row, task) in batch.rows.iter().zip(&tasks) {
        assert!(row.body().contains(task), "{} is not of {task}", row.body());
    }
}

async fn confirmed_messages_go_and_the_others_stay(bed: &Bed) {
    fill(bed, 5).await;
    let batch = bed.outbox_batch(5).await.unwrap();
    let all = ids(&batch.rows);
    batch.settle(&[all[0].clone(), all[3].clone()]).await.unwrap();
    let batch = bed.outbox_batch(5).await.unwrap();
    let left = ids(&batch.rows);
    assert_eq!(left, [all[1].clone(), all[2].clone(), all[4].clone()]);
    batch.settle(&[]).await.unwrap();
    assert_eq!(bed.outbox_depth().await.unwrap(), 3);
    let batch = bed.outbox_batch(5).await.unwrap();
    batch.settle(&left).await.unwrap();
    assert_eq!(bed.outbox_depth().await.unwrap(), 0);
}

async fn a_batch_that_is_dropped_frees_its_messages(bed: &Bed) {
    fill(bed, 3).await;
    let batch = bed.outbox_batch(3).await.unwrap();
    let held = ids(&batch.rows);
    drop(batch);
    eventually("the messages are free", || async {
        ids(&bed.outbox_batch(3).await.unwrap().rows) == held
    })
    .await;
}

async fn two_relays_never_hold_the_same_message_on_postgresql(bed: &Bed) {
    fill(bed, 6).await;
    let other = bed.another_process().await;
    let first = bed.outbox_batch(4).await.unwrap();
    let second = other.outbox_batch(4).await.unwrap();
    if bed.is_postgres() {
        assert_eq!((first.rows.len(), second.rows.len()), (4, 2));
        assert!(ids(&second.rows).iter().all(|id| !ids(&first.rows).contains(id)));
    } else {
        // The writer's place is not held while a broker is waited for, so nothing is locked: consumers are idempotent.
        assert_eq!(ids(&first.rows), ids(&second.rows));
    }
    let (first_ids, second_ids) = (ids(&first.rows), ids(&second.rows));
    first.settle(&first_ids).await.unwrap();
    second.settle(&second_ids).await.unwrap();
    assert_eq!(
        bed.outbox_depth().await.unwrap(),
        if bed.is_postgres() { 0 } else { 2 }
    );
}

async fn relay(store: Store) -> Vec<String> {
    let mut sent = Vec::new();
    loop {
        let batch = store.outbox_batch(7).await.unwrap();
        let ids = ids(&batch.rows);
        if ids.is_empty() && store.outbox_depth().await.unwrap() == 0 {
            return sent;
        }
        sent.extend(ids.iter().cloned());
        batch.settle(&ids).await.unwrap();
    }
}

async fn many_relays_send_each_message(bed: &Bed) {
    let mut relays = Vec::new();
    fill(bed, 20).await;
    for _ in 0..3 {
        relays.push(tokio::spawn(relay(bed.another_process().await)));
    }
    fill(bed, 40).await;
    let mut sent = Vec::new();
    for relay in relays {
        sent.extend(tokio::time::timeout(PATIENCE, relay).await.unwrap().unwrap());
    }
    // The relays may have stopped before the last came.
    sent.extend(relay(bed.store.clone()).await);
    let distinct: HashSet<_> = sent.iter().cloned().collect();
    assert_eq!(distinct.len(), 60);
    if bed.is_postgres() {
        assert_eq!(sent.len(), 60, "each once");
    }
}

async fn a_commit_with_messages_rings_the_relay_and_others_do_not(bed: &Bed) {
    let rung = async || {
        tokio::time::timeout(std::time::Duration::from_millis(100), bed.outbox_rung())
            .await
            .is_ok()
    };
    assert!(!rung().await);
    bed.create_repository("r").await;
    assert!(!rung().await, "no message");
    let mut tx = bed.begin().await.unwrap();
    tx.enqueue(&delete("r")).await.unwrap();
    drop(tx);
    assert!(!rung().await, "rolled back");
    bed.enqueue(&delete("r")).await;
    assert!(rung().await, "kept until somebody waits");
    assert!(!rung().await);
}
