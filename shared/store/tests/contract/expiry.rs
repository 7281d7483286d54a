//! How long a run may go on, and that it is ended over its worker's head.

use std::time::Duration;

use pulp_model::{
    Attempt, ErrorCode, TaskId,
    deadline::{Deadline, Deadlines, HardLimits},
    task::{Owner, TaskState},
};
use pulp_store::{StoreError, timeline::EventKind};
use serde_json::json;
use sqlx::Row as _;

use crate::support::{BLINK, Bed, LONG, contract, delete, finish, publish, tick};

contract!(
    a_run_beyond_its_deadline_is_ended_and_says_so,
    a_run_without_progress_is_ended_and_says_so,
    an_expired_run_commits_nothing_and_frees_what_it_held,
    nothing_expires_under_an_old_epoch,
    a_run_whose_effect_is_being_committed_is_left_alone,
    a_deadline_counts_from_the_claim_of_the_present_attempt,
    a_run_that_is_quiet_is_told_with_its_worker,
    what_a_task_belongs_to_is_kept_until_it_has_ended_too,
    a_cancel_of_what_waits_looks_at_no_other_task,
);

/// Hard deadlines: all of `long`, that of deletions `delete`.
fn limits(delete: Duration, without_progress: Option<Duration>) -> HardLimits {
    let mut deadlines = Deadlines::of_this_release(LONG);
    deadlines.set(
        "delete_repository",
        Deadline {
            soft: Duration::ZERO,
            hard: delete,
        },
    );
    HardLimits {
        deadlines,
        without_progress,
    }
}

async fn assert_error(bed: &Bed, id: TaskId, code: &ErrorCode, words: &str) {
    let task = bed.task_of(id).await;
    assert_eq!(task.state, TaskState::Error);
    let error = task.error.unwrap();
    assert_eq!(error.code, *code);
    assert!(error.description.contains(words), "{error}");
    let events = bed.timeline(id).await.unwrap();
    let event = events.iter().find(|e| e.kind == EventKind::Expired).unwrap();
    assert_eq!(event.attempt, Attempt(1));
    assert_eq!(event.detail, Some(error.description));
}

async fn a_run_beyond_its_deadline_is_ended_and_says_so(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let late = bed.running(epoch, &worker, &delete("a")).await;
    let other = bed.running(epoch, &worker, &publish("b", "d")).await;
    tick(bed).await;
    assert_eq!(bed.expire(epoch, &limits(LONG, None)).await.unwrap(), []);
    let id = late.lease.task_id();
    assert_eq!(bed.expire(epoch, &limits(BLINK, None)).await.unwrap(), [id]);
    assert_error(
        bed,
        id,
        &ErrorCode::TIMED_OUT,
        "tasks.deadlines.delete_repository",
    )
    .await;
    assert_error(bed, id, &ErrorCode::TIMED_OUT, &worker.name.0).await;
    // Once.
    assert_eq!(bed.expire(epoch, &limits(BLINK, None)).await.unwrap(), []);
    finish(bed.begin_fenced(&other.lease).await.unwrap()).await;
}

async fn an_expired_run_commits_nothing_and_frees_what_it_held(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let kind = delete("a");
    let late = bed.running(epoch, &worker, &kind).await;
    tick(bed).await;
    assert_eq!(bed.expire(epoch, &limits(BLINK, None)).await.unwrap().len(), 1);
    assert_eq!(bed.number("SELECT COUNT(*) FROM reservations").await, 0);
    assert!(matches!(
        bed.begin_fenced(&late.lease).await,
        Err(StoreError::Fenced { .. })
    ));
    assert!(!bed.write_progress(&late.lease, &json!({"n": 1})).await.unwrap());
    assert!(bed.hand_back(&late.lease).await.is_err());
    // The next on its resource runs.
    let next = bed.running(epoch, &worker, &kind).await;
    finish(bed.begin_fenced(&next.lease).await.unwrap()).await;
}

async fn nothing_expires_under_an_old_epoch(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let late = bed.running(epoch, &worker, &delete("a")).await;
    tick(bed).await;
    let old = pulp_model::Epoch(epoch.0 - 1);
    assert!(matches!(
        bed.expire(old, &limits(BLINK, None)).await,
        Err(StoreError::LeadershipLost)
    ));
    finish(bed.begin_fenced(&late.lease).await.unwrap()).await;
}

async fn a_run_whose_effect_is_being_committed_is_left_alone(bed: &Bed) {
    if !bed.is_postgres() {
        // There the one writer's turn keeps them apart.
        return;
    }
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let late = bed.running(epoch, &worker, &delete("a")).await;
    tick(bed).await;
    let effect = bed.begin_fenced(&late.lease).await.unwrap();
    let limits = limits(BLINK, None);
    let expired = tokio::time::timeout(Duration::from_secs(5), bed.expire(epoch, &limits));
    assert_eq!(expired.await.unwrap().unwrap(), []);
    finish(effect).await;
    assert_eq!(bed.task_of(late.lease.task_id()).await.state, TaskState::Finished);
}

async fn a_deadline_counts_from_the_claim_of_the_present_attempt(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let kind = delete("a");
    let first = bed.running(epoch, &worker, &kind).await;
    let id = first.lease.task_id();
    bed.execute("UPDATE tasks SET started = started - 60000000").await;
    bed.hand_back(&first.lease).await.unwrap();
    let limits = limits(Duration::from_secs(30), None);
    assert_eq!(bed.expire(epoch, &limits).await.unwrap(), [], "it only waits");
    let attempt = bed.grant(epoch, id, &kind).await.unwrap();
    let again = crate::support::claimed(bed.claim(id, attempt, &worker).await.unwrap());
    assert_eq!(bed.expire(epoch, &limits).await.unwrap(), []);
    finish(bed.begin_fenced(&again.lease).await.unwrap()).await;
}

async fn a_run_without_progress_is_ended_and_says_so(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let silent = bed.running(epoch, &worker, &delete("a")).await;
    let busy = bed.running(epoch, &worker, &delete("b")).await;
    let pause = Duration::from_secs(5);
    assert_eq!(bed.expire(epoch, &limits(LONG, Some(pause))).await.unwrap(), []);
    bed.execute("UPDATE tasks SET progressed = progressed - 6000000")
        .await;
    assert_eq!(bed.expire(epoch, &limits(LONG, None)).await.unwrap(), []);
    assert!(bed.write_progress(&busy.lease, &json!({"n": 1})).await.unwrap());
    let id = silent.lease.task_id();
    assert_eq!(bed.expire(epoch, &limits(LONG, Some(pause))).await.unwrap(), [id]);
    assert_error(bed, id, &ErrorCode::STALLED, "no progress").await;
    finish(bed.begin_fenced(&busy.lease).await.unwrap()).await;
}

async fn a_run_that_is_quiet_is_told_with_its_worker(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let silent = bed.running(epoch, &worker, &delete("a")).await;
    assert_eq!(bed.quiet_tasks(LONG).await.unwrap(), []);
    bed.execute("UPDATE tasks SET progressed = progressed - 6000000")
        .await;
    bed.running(epoch, &worker, &delete("b")).await;
    let quiet = bed.quiet_tasks(Duration::from_secs(5)).await.unwrap();
    assert_eq!(quiet.len(), 1, "{quiet:?}");
    assert_eq!(quiet[0].id, silent.lease.task_id());
    assert_eq!(quiet[0].worker, Some(worker.name));
    assert!(quiet[0].silent >= Duration::from_secs(6), "{quiet:?}");
}

/// Deletes all that ended; gives how many that were.
async fn forget(bed: &Bed) -> u64 {
    let mut tx = bed.begin().await.unwrap();
    let later = tx.now().await.unwrap().plus_micros(1_000_000);
    let forgotten = tx.purge_ended_before(later, 100).await.unwrap();
    tx.commit().await.unwrap();
    forgotten
}

async fn what_a_task_belongs_to_is_kept_until_it_has_ended_too(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let (kind, other) = (delete("r"), delete("s"));
    let parent = bed.enqueue_in("g", &Owner::system(), &kind).await;
    let sibling = bed.enqueue_in("g", &Owner::system(), &other).await;
    let attempt = bed.grant(epoch, parent, &kind).await.unwrap();
    let task = crate::support::claimed(bed.claim(parent, attempt, &worker).await.unwrap());
    let mut fenced = bed.begin_fenced(&task.lease).await.unwrap();
    let child = fenced.spawn(&publish("r", "d")).await.unwrap();
    finish(fenced).await;
    bed.cancel(sibling).await;
    assert_eq!(forget(bed).await, 0, "the child waits, in the same group");
    // Without the group it is the child alone that keeps its parent.
    bed.execute("UPDATE tasks SET group_id = NULL").await;
    assert_eq!(forget(bed).await, 1, "the sibling");
    assert!(bed.task(parent).await.unwrap().is_some());
    bed.cancel(child).await;
    assert_eq!(forget(bed).await, 2);
}

/// By what the engine plans: it finds rows by their keys, and scans nothing.
async fn a_cancel_of_what_waits_looks_at_no_other_task(bed: &Bed) {
    if bed.is_postgres() {
        // Of tables this small its plans tell nothing; the indexes are the same.
        return;
    }
    let raw = bed.raw().await;
    for statement in [
        "SELECT state FROM tasks WHERE task_id = 'x'",
        "UPDATE tasks SET state = 'canceled', finished = 1, cancel_requested = 1 WHERE task_id = 'x'",
        "DELETE FROM reservations WHERE task_id = 'x'",
        "DELETE FROM open_requests WHERE task_id IN ('x')",
    ] {
        let sql = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"));
        let plan = sqlx::query(sql).fetch_all(&raw).await.unwrap();
        let steps: Vec<String> = plan.iter().map(|step| step.get("detail")).collect();
        assert!(
            !steps.is_empty() && steps.iter().all(|s| s.starts_with("SEARCH")),
            "{statement}: {steps:?}"
        );
    }
}
