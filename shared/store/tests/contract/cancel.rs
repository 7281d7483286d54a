//! Cancels of trees and groups.

use pulp_model::{
    TaskId,
    task::{Owner, TaskKind, TaskState},
};
use pulp_store::{FencedTx, TaskLease, cancel::Canceled, tasks::Submission};

use crate::support::{Bed, LONG, PATIENCE, claimed, contract, delete, eventually, finish, publish};

contract!(
    a_tree_is_canceled_with_all_that_its_tasks_made,
    a_group_is_canceled_whole_and_nothing_else_is,
    what_ended_stays_as_it_is_when_its_tree_or_group_is_canceled,
    a_task_that_was_asked_to_stop_and_commits_all_the_same_withdraws_what_it_made,
    a_tree_cancel_waits_for_an_open_fence_and_cancels_what_that_makes,
    a_group_cancel_waits_for_an_open_fence_and_cancels_what_that_makes,
    a_request_that_shares_a_waiting_task_does_not_lose_it_to_the_tree_of_another,
    thousands_that_wait_are_canceled_in_few_statements,
);

async fn submit(bed: &Bed, kind: &TaskKind, group: Option<&str>) -> TaskId {
    let mut submission = Submission::new(kind, Owner::system());
    if let Some(group) = group {
        submission = submission.in_group(group);
    }
    let mut tx = bed.begin().await.unwrap();
    let id = tx.submit(&submission).await.unwrap();
    tx.commit().await.unwrap();
    id
}

/// A running task of this kind.
async fn run(bed: &Bed, kind: &TaskKind, group: Option<&str>) -> TaskLease {
    let id = submit(bed, kind, group).await;
    begin(bed, id, kind).await
}

async fn begin(bed: &Bed, id: TaskId, kind: &TaskKind) -> TaskLease {
    let epoch = bed.epoch().await;
    let worker = bed.worker(LONG).await;
    let attempt = bed.grant(epoch, id, kind).await.unwrap();
    claimed(bed.claim(id, attempt, &worker).await.unwrap()).lease
}

async fn cancel_tree(bed: &Bed, root: TaskId) -> Option<Canceled> {
    let mut tx = bed.begin().await.unwrap();
    let canceled = tx.cancel_tree(root).await.unwrap();
    tx.commit().await.unwrap();
    canceled
}

async fn cancel_group(bed: &Bed, group: &str) -> Option<Canceled> {
    let mut tx = bed.begin().await.unwrap();
    let canceled = tx.cancel_group(group).await.unwrap();
    tx.commit().await.unwrap();
    canceled
}

async fn state(bed: &Bed, id: TaskId) -> TaskState {
    bed.task_of(id).await.state
}

/// A fence of a running task in which it has made a publish.
async fn making(bed: &Bed, lease: &TaskLease, kind: &TaskKind) -> (FencedTx, TaskId) {
    let mut fenced = bed.begin_fenced(lease).await.unwrap();
    let child = fenced.spawn(kind).await.unwrap();
    (fenced, child)
}

async fn a_tree_is_canceled_with_all_that_its_tasks_made(bed: &Bed) {
    let root = run(bed, &delete("r"), None).await;
    let mut fenced = bed.begin_fenced(&root).await.unwrap();
    let kinds = [publish("r", "a"), publish("r", "b"), publish("r", "c")];
    let [waits, granted, runs] = [
        fenced.spawn(&kinds[0]).await.unwrap(),
        fenced.spawn(&kinds[1]).await.unwrap(),
        fenced.spawn(&kinds[2]).await.unwrap(),
    ];
    finish(fenced).await;
    bed.grant(bed.epoch().await, granted, &kinds[1]).await.unwrap();
    // A child that made a task of its own and has ended, like the root.
    let lease = begin(bed, runs, &kinds[2]).await;
    let (fenced, grandchild) = making(bed, &lease, &delete("s")).await;
    finish(fenced).await;
    let grandchild = begin(bed, grandchild, &delete("s")).await;
    let other = bed.enqueue(&publish("s", "a")).await;

    let canceled = cancel_tree(bed, root.task_id()).await.unwrap();
    let mut ended = canceled.ended.clone();
    ended.sort();
    let mut expected = vec![waits, granted];
    expected.sort();
    assert_eq!(ended, expected);
    assert_eq!(canceled.asked, [grandchild.task_id()]);
    for id in [waits, granted] {
        let task = bed.task_of(id).await;
        assert_eq!(task.state, TaskState::Canceled);
        assert!(task.finished.is_some() && task.cancel_requested.is_some());
    }
    assert_eq!(state(bed, grandchild.task_id()).await, TaskState::Running);
    assert!(bed.task_of(grandchild.task_id()).await.cancel_requested.is_some());
    assert_eq!(state(bed, root.task_id()).await, TaskState::Finished);
    assert_eq!(state(bed, other).await, TaskState::Waiting);
    // The granted one holds nothing any more, and the resource manager hears of both.
    assert_eq!(bed.number("SELECT COUNT(*) FROM reservations").await, 1);
    for id in expected {
        let told = format!("SELECT COUNT(*) FROM outbox WHERE body LIKE '%{id}%' AND body LIKE '%ended%'");
        assert_eq!(bed.number(&told).await, 1);
    }
    // It stands for no later request.
    assert_ne!(bed.enqueue(&kinds[0]).await, waits);
    assert_eq!(cancel_tree(bed, TaskId::new()).await, None);
}

async fn a_group_is_canceled_whole_and_nothing_else_is(bed: &Bed) {
    let waits = submit(bed, &delete("a"), Some("g")).await;
    let runs = run(bed, &delete("b"), Some("g")).await;
    let other = submit(bed, &delete("c"), Some("h")).await;
    let none = submit(bed, &delete("d"), None).await;
    let canceled = cancel_group(bed, "g").await.unwrap();
    assert_eq!(canceled.ended, [waits]);
    assert_eq!(canceled.asked, [runs.task_id()]);
    assert_eq!(state(bed, waits).await, TaskState::Canceled);
    for id in [other, none] {
        assert_eq!(state(bed, id).await, TaskState::Waiting);
    }
    // Asked once.
    assert_eq!(cancel_group(bed, "g").await, Some(Canceled::default()));
    assert_eq!(cancel_group(bed, "no such group").await, None);
}

async fn what_ended_stays_as_it_is_when_its_tree_or_group_is_canceled(bed: &Bed) {
    let lease = run(bed, &delete("r"), Some("g")).await;
    finish(bed.begin_fenced(&lease).await.unwrap()).await;
    let before = bed.task_of(lease.task_id()).await;
    assert_eq!(cancel_group(bed, "g").await, Some(Canceled::default()));
    assert_eq!(cancel_tree(bed, before.id).await, Some(Canceled::default()));
    assert_eq!(bed.task_of(before.id).await, before);
}

async fn a_task_that_was_asked_to_stop_and_commits_all_the_same_withdraws_what_it_made(bed: &Bed) {
    let shared = bed.enqueue(&publish("r", "shared")).await;
    let lease = run(bed, &delete("s"), None).await;
    cancel_tree(bed, lease.task_id()).await.unwrap();
    let (mut fenced, child) = making(bed, &lease, &publish("r", "d")).await;
    assert_eq!(fenced.spawn(&publish("r", "shared")).await.unwrap(), shared);
    finish(fenced).await;
    // Its effect is there, and so it has finished; what it made will not run.
    let parent = bed.task_of(lease.task_id()).await;
    assert_eq!(parent.state, TaskState::Finished);
    assert_eq!(parent.spawned_tasks, [child, shared]);
    assert_eq!(state(bed, child).await, TaskState::Canceled);
    assert_eq!(state(bed, shared).await, TaskState::Waiting);
}

/// Cancels while a fence is open in which a task is made; gives what became of the task that was made.
async fn cancel_during_a_fence(bed: &Bed, group: Option<&'static str>) -> TaskState {
    let lease = run(bed, &delete("r"), group).await;
    let (fenced, child) = making(bed, &lease, &publish("r", "d")).await;
    let store = bed.store.clone();
    let root = lease.task_id();
    let cancel = tokio::spawn(async move {
        let mut tx = store.begin().await.unwrap();
        let canceled = match group {
            Some(group) => tx.cancel_group(group).await.unwrap(),
            None => tx.cancel_tree(root).await.unwrap(),
        };
        tx.commit().await.unwrap();
        canceled.unwrap()
    });
    if bed.is_postgres() {
        // It waits for the row that the fence has locked.
        eventually("the cancel waits", || async {
            bed.number("SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")
                .await
                > 0
        })
        .await;
    }
    assert!(!cancel.is_finished());
    finish(fenced).await;
    let canceled = tokio::time::timeout(PATIENCE, cancel).await.unwrap().unwrap();
    assert_eq!(canceled.ended, [child]);
    assert_eq!(canceled.asked, []);
    assert_eq!(state(bed, root).await, TaskState::Finished);
    state(bed, child).await
}

async fn a_tree_cancel_waits_for_an_open_fence_and_cancels_what_that_makes(bed: &Bed) {
    assert_eq!(cancel_during_a_fence(bed, None).await, TaskState::Canceled);
}

async fn a_group_cancel_waits_for_an_open_fence_and_cancels_what_that_makes(bed: &Bed) {
    assert_eq!(cancel_during_a_fence(bed, Some("g")).await, TaskState::Canceled);
}

async fn a_request_that_shares_a_waiting_task_does_not_lose_it_to_the_tree_of_another(bed: &Bed) {
    let asked_for = bed.enqueue(&publish("r", "d")).await;
    let lease = run(bed, &delete("s"), None).await;
    let (fenced, child) = making(bed, &lease, &publish("r", "d")).await;
    assert_eq!(child, asked_for);
    finish(fenced).await;
    assert_eq!(cancel_tree(bed, lease.task_id()).await, Some(Canceled::default()));
    assert_eq!(state(bed, asked_for).await, TaskState::Waiting);
}

async fn thousands_that_wait_are_canceled_in_few_statements(bed: &Bed) {
    const MANY: usize = 2_500;
    let mut tx = bed.begin().await.unwrap();
    for n in 0..MANY {
        let kind = delete(&format!("r{n}"));
        let submission = Submission::new(&kind, Owner::system()).in_group("g");
        tx.submit(&submission).await.unwrap();
    }
    tx.commit().await.unwrap();
    let canceled = cancel_group(bed, "g").await.unwrap();
    assert_eq!(canceled.ended.len(), MANY);
    let left = "SELECT COUNT(*) FROM tasks WHERE state <> 'canceled' OR finished IS NULL";
    assert_eq!(bed.number(left).await, 0);
    assert_eq!(bed.outbox_depth().await.unwrap(), 2 * MANY as i64);
}
