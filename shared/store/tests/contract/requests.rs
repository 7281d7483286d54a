//! Requests that are the same as one that waits already.

use std::collections::BTreeSet;

use pulp_model::{
    TaskId,
    task::{Owner, TaskKind},
};
use serde_json::json;

use crate::support::{Bed, LONG, contract, delete, finish, publish};

contract!(
    a_request_like_one_that_waits_is_answered_with_its_task,
    a_request_with_other_options_or_another_distributor_is_a_task_of_its_own,
    a_request_after_a_change_of_the_repository_is_not_answered_with_one_before_it,
    the_last_word_on_a_distributor_stays_the_last,
    a_task_that_was_granted_or_canceled_stands_for_no_request,
    a_task_that_waits_again_stands_for_no_request,
    a_request_that_is_taken_back_stands_for_none,
    of_many_like_requests_at_once_one_makes_a_task,
    a_request_is_either_before_the_grant_or_a_task_of_its_own,
    a_spawned_task_has_the_owner_and_group_of_its_parent,
);

async fn a_request_like_one_that_waits_is_answered_with_its_task(bed: &Bed) {
    let first = bed.enqueue(&publish("r", "d")).await;
    assert_eq!(bed.enqueue(&publish("r", "d")).await, first);
    assert_eq!(bed.number("SELECT COUNT(*) FROM tasks").await, 1);
    assert_eq!(bed.outbox_depth().await.unwrap(), 1);
    // Changes are each done by themselves.
    assert_ne!(bed.enqueue(&delete("r")).await, bed.enqueue(&delete("r")).await);
}

fn forced(repo: &str, distributor: &str) -> TaskKind {
    let mut kind = publish(repo, distributor);
    if let TaskKind::Publish { override_config, .. } = &mut kind {
        override_config.insert("force_full".to_owned(), json!(true));
    }
    kind
}

async fn a_request_with_other_options_or_another_distributor_is_a_task_of_its_own(bed: &Bed) {
    let kinds = [
        publish("r", "d"),
        publish("r", "e"),
        publish("s", "d"),
        forced("r", "d"),
        // An id may hold any of these characters; no two scopes run into one.
        publish("r-d", "d"),
    ];
    let mut tasks = BTreeSet::new();
    for kind in &kinds {
        tasks.insert(bed.enqueue(kind).await);
    }
    assert_eq!(tasks.len(), kinds.len());
}

async fn a_request_after_a_change_of_the_repository_is_not_answered_with_one_before_it(bed: &Bed) {
    let before = bed.enqueue(&publish("r", "d")).await;
    let elsewhere = bed.enqueue(&publish("s", "d")).await;
    bed.enqueue(&delete("r")).await;
    let after = bed.enqueue(&publish("r", "d")).await;
    assert_ne!(after, before);
    assert_eq!(bed.enqueue(&publish("r", "d")).await, after);
    assert_eq!(bed.enqueue(&publish("s", "d")).await, elsewhere);
}

async fn the_last_word_on_a_distributor_stays_the_last(bed: &Bed) {
    let plain = bed.enqueue(&publish("r", "d")).await;
    let full = bed.enqueue(&forced("r", "d")).await;
    let again = bed.enqueue(&publish("r", "d")).await;
    assert_ne!(again, plain);
    assert_ne!(again, full);
}

async fn a_task_that_was_granted_or_canceled_stands_for_no_request(bed: &Bed) {
    let epoch = bed.lead().await;
    let kind = publish("r", "d");
    let granted = bed.enqueue(&kind).await;
    bed.grant(epoch, granted, &kind).await.unwrap();
    let canceled = bed.enqueue(&kind).await;
    assert_ne!(canceled, granted);
    bed.cancel(canceled).await;
    let third = bed.enqueue(&kind).await;
    assert_ne!(third, canceled);
    assert_eq!(bed.enqueue(&kind).await, third);
    assert_eq!(bed.number("SELECT COUNT(*) FROM open_requests").await, 1);
}

async fn a_task_that_waits_again_stands_for_no_request(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let kind = publish("r", "d");
    let task = bed.running(epoch, &worker, &kind).await;
    let second = bed.enqueue(&kind).await;
    bed.hand_back(&task.lease).await.unwrap();
    assert_eq!(bed.enqueue(&kind).await, second);
}

async fn a_request_that_is_taken_back_stands_for_none(bed: &Bed) {
    let mut tx = bed.begin().await.unwrap();
    let gone = tx.enqueue(&publish("r", "d")).await.unwrap();
    drop(tx);
    let first = bed.enqueue(&publish("r", "d")).await;
    assert_ne!(first, gone);
    // Nor does a change that never came close one.
    let mut tx = bed.begin().await.unwrap();
    tx.enqueue(&delete("r")).await.unwrap();
    drop(tx);
    assert_eq!(bed.enqueue(&publish("r", "d")).await, first);
}

async fn of_many_like_requests_at_once_one_makes_a_task(bed: &Bed) {
    let mut calls = Vec::new();
    for _ in 0..24 {
        let store = bed.store.clone();
        calls.push(tokio::spawn(async move {
            let mut tx = store.begin().await.unwrap();
            let id = tx.enqueue(&publish("r", "d")).await.unwrap();
            tx.commit().await.unwrap();
            id
        }));
    }
    let mut answers = BTreeSet::new();
    for call in calls {
        answers.insert(call.await.unwrap());
    }
    assert_eq!(answers.len(), 1);
    assert_eq!(bed.number("SELECT COUNT(*) FROM tasks").await, 1);
}

/// Whoever is answered with a waiting task must find that it was not granted before the answer: its run must see
/// all that was committed before the request.
async fn a_request_is_either_before_the_grant_or_a_task_of_its_own(bed: &Bed) {
    let epoch = bed.lead().await;
    for n in 0..20 {
        let kind = publish(&format!("r{n}"), "d");
        let first = bed.enqueue(&kind).await;
        let (store, theirs) = (bed.store.clone(), kind.clone());
        let grant = tokio::spawn(async move {
            let granted = store
                .commit_grants(epoch, &[crate::support::grant(first, &theirs)])
                .await
                .unwrap();
            assert_eq!(granted.len(), 1);
        });
        let mut tx = bed.begin().await.unwrap();
        let answer = tx.enqueue(&kind).await.unwrap();
        if answer == first {
            // While we hold the request, the grant can't have been committed, nor can it be now.
            let state = tx_state(bed, first).await;
            assert_eq!(state, "waiting");
        }
        tx.commit().await.unwrap();
        grant.await.unwrap();
        assert_eq!(tx_state(bed, first).await, "accepted");
    }
}

async fn tx_state(bed: &Bed, id: TaskId) -> &'static str {
    bed.task_of(id).await.state.as_str()
}

async fn a_spawned_task_has_the_owner_and_group_of_its_parent(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let owner = Owner::user(&"ann".parse().unwrap());
    let kind = delete("r");
    let parent = bed.enqueue_in("g", &owner, &kind).await;
    let attempt = bed.grant(epoch, parent, &kind).await.unwrap();
    let task = crate::support::claimed(bed.claim(parent, attempt, &worker).await.unwrap());
    let mut fenced = bed.begin_fenced(&task.lease).await.unwrap();
    let child = fenced.spawn(&publish("r", "d")).await.unwrap();
    finish(fenced).await;
    for id in [parent, child] {
        let task = bed.task_of(id).await;
        assert_eq!((task.owner, task.group_id.as_deref()), (owner.clone(), Some("g")));
    }
    assert_eq!(
        bed.task_of(bed.enqueue(&delete("x")).await).await.owner,
        Owner::system()
    );
}
