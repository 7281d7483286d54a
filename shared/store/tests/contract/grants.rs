//! What the resource manager reads and commits.

use std::{collections::HashSet, time::Duration};

use pulp_model::{
    Attempt, TaskId,
    task::{Claim, ResourceKey, TaskState},
};
use pulp_store::{
    ClaimOutcome, Engine, StoreError,
    attempts::Outcome,
    grants::{Grant, ROLE, Revoked},
    tasks::CancelOutcome,
    workers::Heartbeat,
};
use serde_json::json;

use crate::support::{
    BLINK, Bed, LONG, PATIENCE, claimed, contract, delete, eventually, finish, grant, publish, tick,
};

contract!(
    a_grant_counts_the_attempt_reserves_and_tells_the_class,
    a_grant_under_an_old_epoch_is_refused_and_leaves_nothing,
    a_grant_without_any_lease_is_refused,
    a_task_that_waits_no_more_is_passed_over,
    a_task_that_stands_twice_is_granted_once,
    two_exclusive_reservations_of_one_resource_are_refused_and_leave_nothing,
    a_shared_reservation_beside_an_exclusive_one_is_refused_both_ways,
    shared_reservations_go_together,
    live_tasks_are_those_not_ended_with_their_claims,
    live_among_finds_thousands,
    thousands_of_grants_are_one_commit,
    a_grant_that_nobody_claimed_is_sent_again_under_the_same_attempt,
    a_lost_workers_task_waits_again_until_its_attempts_are_used_up,
    a_lost_workers_canceled_task_ends_canceled,
    a_task_that_is_not_restartable_ends_when_its_worker_is_lost,
    another_incarnation_of_the_name_loses_the_old_ones_tasks,
    a_live_workers_tasks_are_not_revoked,
    rows_of_workers_long_dead_go,
    a_revoke_passes_over_an_open_effect_that_then_is_done,
    a_task_that_does_not_stop_in_time_is_ended,
    the_gauge_of_violations_counts_what_must_not_be,
);

async fn a_grant_counts_the_attempt_reserves_and_tells_the_class(bed: &Bed) {
    let epoch = bed.lead().await;
    let kind = publish("r", "d");
    let id = bed.enqueue(&kind).await;
    assert_eq!(
        bed.commit_grants(epoch, &[grant(id, &kind)]).await.unwrap(),
        [(id, Attempt(1))]
    );
    let task = bed.task_of(id).await;
    assert_eq!((task.state, task.attempt), (TaskState::Accepted, Attempt(1)));
    assert_eq!(bed.number("SELECT COUNT(*) FROM reservations").await, 2);
    let batch = bed.outbox_batch(10).await.unwrap();
    let grants: Vec<_> = batch.rows.iter().filter(|r| r.queue == "publish").collect();
    assert_eq!(grants.len(), 1);
    let body: serde_json::Value = serde_json::from_str(&grants[0].body()).unwrap();
    let expected =
        json!({"v": 1, "type": "grant", "task_id": id, "attempt": 1, "class": "publish", "epoch": epoch});
    assert_eq!(body, expected);
    assert_eq!(bed.reservation_violations().await.unwrap(), 0);
}

async fn a_grant_under_an_old_epoch_is_refused_and_leaves_nothing(bed: &Bed) {
    let old = bed.lead().await;
    let id = bed.enqueue(&delete("r")).await;
    bed.resign_lease(ROLE, "the leader", old).await.unwrap();
    // Nobody has taken over yet, so the old epoch is still the newest: its writes harm nobody.
    let new = bed.lead().await;
    assert!(new > old);
    let messages = bed.outbox_depth().await.unwrap();
    let lost = |result: Result<(), StoreError>| {
        assert!(matches!(result, Err(StoreError::LeadershipLost)), "{result:?}");
    };
    lost(bed.commit_grants(old, &[grant(id, &delete("r"))]).await.map(drop));
    lost(bed.resend_unclaimed(old, Duration::ZERO).await.map(drop));
    lost(bed.revoke_lost(old, 3).await.map(drop));
    lost(bed.force_cancel(old, Duration::ZERO).await.map(drop));
    assert_eq!(bed.task_of(id).await.state, TaskState::Waiting);
    assert_eq!(bed.task_of(id).await.attempt, Attempt(0));
    assert_eq!(bed.number("SELECT COUNT(*) FROM reservations").await, 0);
    assert_eq!(bed.outbox_depth().await.unwrap(), messages);
    assert!(bed.grant(new, id, &delete("r")).await.is_some());
}

async fn a_grant_without_any_lease_is_refused(bed: &Bed) {
    let id = bed.enqueue(&delete("r")).await;
    let result = bed
        .commit_grants(pulp_model::Epoch(1), &[grant(id, &delete("r"))])
        .await;
    assert!(matches!(result, Err(StoreError::LeadershipLost)), "{result:?}");
}

async fn a_task_that_waits_no_more_is_passed_over(bed: &Bed) {
    let epoch = bed.lead().await;
    let (canceled, granted, waiting) = (
        bed.enqueue(&delete("a")).await,
        bed.enqueue(&delete("b")).await,
        bed.enqueue(&delete("c")).await,
    );
    assert_eq!(bed.cancel(canceled).await, CancelOutcome::Canceled);
    bed.grant(epoch, granted, &delete("b")).await.unwrap();
    let grants = [
        grant(TaskId::new(), &delete("gone")),
        grant(canceled, &delete("a")),
        grant(granted, &delete("b")),
        grant(waiting, &delete("c")),
    ];
    assert_eq!(
        bed.commit_grants(epoch, &grants).await.unwrap(),
        [(waiting, Attempt(1))]
    );
    assert_eq!(bed.task_of(canceled).await.state, TaskState::Canceled);
    assert_eq!(bed.task_of(granted).await.attempt, Attempt(1));
    assert_eq!(bed.number("SELECT COUNT(*) FROM reservations").await, 2);
    assert_eq!(bed.commit_grants(epoch, &[]).await.unwrap(), []);
}

async fn a_task_that_stands_twice_is_granted_once(bed: &Bed) {
    let epoch = bed.lead().await;
    let id = bed.enqueue(&delete("r")).await;
    let twice = [grant(id, &delete("r")), grant(id, &delete("r"))];
    assert_eq!(
        bed.commit_grants(epoch, &twice).await.unwrap(),
        [(id, Attempt(1))]
    );
}

fn grant_of(id: TaskId, claim: Claim) -> Grant {
    Grant {
        id,
        class: pulp_model::task::TaskClass::Import,
        claims: vec![claim],
    }
}

fn shared() -> Claim {
    Claim::shared(ResourceKey::from_stored("x"))
}

fn exclusive() -> Claim {
    Claim::exclusive(ResourceKey::from_stored("x"))
}

async fn conflict(bed: &Bed, held: Claim, wanted: Claim) {
    let epoch = bed.lead().await;
    let (holder, other, free) = (
        bed.enqueue(&delete("a")).await,
        bed.enqueue(&delete("b")).await,
        bed.enqueue(&delete("c")).await,
    );
    bed.commit_grants(epoch, &[grant_of(holder, held.clone())])
        .await
        .unwrap();
    let messages = bed.outbox_depth().await.unwrap();
    let elsewhere = Claim::exclusive(ResourceKey::from_stored("y"));
    let both = [grant_of(free, elsewhere), grant_of(other, wanted.clone())];
    let refused = bed.commit_grants(epoch, &both).await;
    assert!(
        matches!(refused, Err(StoreError::ReservationConflict)),
        "{refused:?}"
    );
    for id in [other, free] {
        let task = bed.task_of(id).await;
        assert_eq!((task.state, task.attempt), (TaskState::Waiting, Attempt(0)));
    }
    assert_eq!(bed.outbox_depth().await.unwrap(), messages);
    // Within one commit as well.
    bed.cancel(holder).await;
    let both = [grant_of(free, held), grant_of(other, wanted.clone())];
    let refused = bed.commit_grants(epoch, &both).await;
    assert!(
        matches!(refused, Err(StoreError::ReservationConflict)),
        "{refused:?}"
    );
    // The holder has ended: its place is free.
    assert_eq!(
        bed.commit_grants(epoch, &[grant_of(other, wanted)])
            .await
            .unwrap()
            .len(),
        1
    );
}

async fn two_exclusive_reservations_of_one_resource_are_refused_and_leave_nothing(bed: &Bed) {
    conflict(bed, exclusive(), exclusive()).await;
}

async fn a_shared_reservation_beside_an_exclusive_one_is_refused_both_ways(bed: &Bed) {
    conflict(bed, exclusive(), shared()).await;
    bed.execute("DELETE FROM reservations").await;
    bed.resign_lease(ROLE, "the leader", pulp_model::Epoch(1))
        .await
        .unwrap();
    conflict(bed, shared(), exclusive()).await;
}

async fn shared_reservations_go_together(bed: &Bed) {
    let epoch = bed.lead().await;
    let mut grants = Vec::new();
    for n in 0..50 {
        let kind = publish("r", &format!("d{n}"));
        grants.push(grant(bed.enqueue(&kind).await, &kind));
    }
    assert_eq!(bed.commit_grants(epoch, &grants[..1]).await.unwrap().len(), 1);
    assert_eq!(bed.commit_grants(epoch, &grants).await.unwrap().len(), 49);
    assert_eq!(bed.reservation_violations().await.unwrap(), 0);
}

async fn live_tasks_are_those_not_ended_with_their_claims(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let waiting = bed.enqueue(&publish("a", "d")).await;
    let accepted = bed.enqueue(&delete("b")).await;
    bed.grant(epoch, accepted, &delete("b")).await.unwrap();
    let running = bed.running(epoch, &worker, &delete("c")).await.lease.task_id();
    let ended = bed.running(epoch, &worker, &delete("d")).await;
    finish(bed.begin_fenced(&ended.lease).await.unwrap()).await;

    let live = bed.live_tasks().await.unwrap();
    let told: Vec<_> = live
        .iter()
        .map(|t| (t.id, t.state, t.attempt.0, t.claims.clone()))
        .collect();
    assert_eq!(
        told,
        [
            (waiting, TaskState::Waiting, 0, publish("a", "d").claims()),
            (accepted, TaskState::Accepted, 1, delete("b").claims()),
            (running, TaskState::Running, 1, delete("c").claims()),
        ]
    );
    let among = bed
        .live_among(&[running, ended.lease.task_id(), TaskId::new(), waiting])
        .await
        .unwrap();
    assert_eq!(among, [live[0].clone(), live[2].clone()]);
    assert_eq!(bed.live_among(&[]).await.unwrap(), []);
}

async fn live_among_finds_thousands(bed: &Bed) {
    let mut tx = bed.begin().await.unwrap();
    let mut ids = Vec::new();
    for n in 0..1100 {
        ids.push(tx.enqueue(&delete(&format!("r{n}"))).await.unwrap());
    }
    tx.commit().await.unwrap();
    let found = bed.live_among(&ids).await.unwrap();
    assert_eq!(found.iter().map(|t| t.id).collect::<Vec<_>>(), ids);
    assert!(found.iter().all(|t| t.claims.len() == 1));
}

async fn thousands_of_grants_are_one_commit(bed: &Bed) {
    let epoch = bed.lead().await;
    let begun = std::time::Instant::now();
    let mut tx = bed.begin().await.unwrap();
    let mut grants = Vec::new();
    for n in 0..2000 {
        let kind = publish(&format!("r{n}"), "d");
        grants.push(grant(tx.enqueue(&kind).await.unwrap(), &kind));
    }
    tx.commit().await.unwrap();
    let enqueued = begun.elapsed();
    let begun = std::time::Instant::now();
    let granted = bed.commit_grants(epoch, &grants).await.unwrap();
    println!(
        "{:?}: 2,000 tasks enqueued in {enqueued:?}, granted in {:?}",
        bed.engine(),
        begun.elapsed()
    );
    let expected: Vec<_> = grants.iter().map(|g| (g.id, Attempt(1))).collect();
    assert_eq!(granted, expected);
    assert_eq!(bed.outbox_depth().await.unwrap(), 4000);
    assert_eq!(bed.reservation_violations().await.unwrap(), 0);
}

async fn a_grant_that_nobody_claimed_is_sent_again_under_the_same_attempt(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let id = bed.enqueue(&delete("r")).await;
    let attempt = bed.grant(epoch, id, &delete("r")).await.unwrap();
    let sent = "SELECT COUNT(*) FROM outbox WHERE queue = 'interactive'";
    assert_eq!(bed.resend_unclaimed(epoch, LONG).await.unwrap(), 0);
    assert_eq!(bed.number(sent).await, 1);
    tick(bed).await;
    assert_eq!(bed.resend_unclaimed(epoch, BLINK).await.unwrap(), 1);
    assert_eq!(bed.number(sent).await, 2);
    assert_eq!(bed.task_of(id).await.attempt, attempt);
    // Counted from the last sending on.
    assert_eq!(
        bed.resend_unclaimed(epoch, Duration::from_secs(5)).await.unwrap(),
        0
    );
    // Of the two messages only one claims.
    claimed(bed.claim(id, attempt, &worker).await.unwrap());
    let copy = bed.claim(id, attempt, &bed.worker(LONG).await).await.unwrap();
    assert!(matches!(copy, ClaimOutcome::Refused), "{copy:?}");
    tick(bed).await;
    assert_eq!(bed.resend_unclaimed(epoch, BLINK).await.unwrap(), 0);
}

async fn a_lost_workers_task_waits_again_until_its_attempts_are_used_up(bed: &Bed) {
    let epoch = bed.lead().await;
    let kind = delete("r");
    let id = bed.enqueue(&kind).await;
    for n in 1..=3 {
        // Each life takes the name of the one before, whose lease has ended.
        let worker = bed.worker(Duration::from_millis(200)).await;
        let attempt = bed.grant(epoch, id, &kind).await.unwrap();
        assert_eq!(attempt, Attempt(n));
        let lease = claimed(bed.claim(id, attempt, &worker).await.unwrap()).lease;
        assert_eq!(bed.reservation_violations().await.unwrap(), 0);
        eventually("the worker is lost", || async {
            let revoked = bed.revoke_lost(epoch, 3).await.unwrap();
            let expected = if n < 3 {
                Revoked::WaitsAgain
            } else {
                Revoked::Ended
            };
            match revoked[..] {
                [] => false,
                [ref one] => {
                    assert_eq!(*one, (id, expected));
                    true
                }
                _ => panic!("{revoked:?}"),
            }
        })
        .await;
        let fenced = bed.begin_fenced(&lease).await.map(drop);
        assert!(matches!(fenced, Err(StoreError::Fenced { .. })), "{fenced:?}");
        assert!(!bed.write_progress(&lease, &json!({})).await.unwrap());
        assert_eq!(bed.number("SELECT COUNT(*) FROM reservations").await, 0);
    }
    let task = bed.task_of(id).await;
    assert_eq!(task.state, TaskState::Error);
    assert!(task.finished.is_some());
    let error = task.error.unwrap();
    assert_eq!(error.code.as_str(), "PLP0049");
    assert_eq!(error.data["task_id"], json!(id));
    assert!(error.description.contains("w-0@h"), "{}", error.description);
    assert_eq!(bed.revoke_lost(epoch, 3).await.unwrap(), []);
}

async fn run_on_a_dead_worker(bed: &Bed) -> (pulp_model::Epoch, TaskId) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let task = bed.running(epoch, &worker, &delete("r")).await;
    bed.execute("UPDATE workers SET expires = 1").await;
    (epoch, task.lease.task_id())
}

async fn a_lost_workers_canceled_task_ends_canceled(bed: &Bed) {
    let (epoch, id) = run_on_a_dead_worker(bed).await;
    assert_eq!(bed.cancel(id).await, CancelOutcome::Requested);
    assert_eq!(bed.revoke_lost(epoch, 3).await.unwrap(), [(id, Revoked::Ended)]);
    assert_eq!(bed.task_of(id).await.state, TaskState::Canceled);
}

async fn a_task_that_is_not_restartable_ends_when_its_worker_is_lost(bed: &Bed) {
    let (epoch, id) = run_on_a_dead_worker(bed).await;
    bed.execute("UPDATE tasks SET restartable = 0").await;
    assert_eq!(bed.revoke_lost(epoch, 3).await.unwrap(), [(id, Revoked::Ended)]);
    assert_eq!(bed.task_of(id).await.error.unwrap().code.as_str(), "PLP0049");
}

async fn another_incarnation_of_the_name_loses_the_old_ones_tasks(bed: &Bed) {
    let epoch = bed.lead().await;
    let old = bed.worker(LONG).await;
    let task = bed.running(epoch, &old, &delete("r")).await;
    assert_eq!(bed.revoke_lost(epoch, 3).await.unwrap(), []);
    // It was killed, and its next life takes the name before anybody has looked for what it left.
    bed.execute("UPDATE workers SET expires = 1").await;
    let new = bed.worker(LONG).await;
    assert_eq!(old.name, new.name);
    assert_eq!(bed.heartbeat(&old, LONG).await.unwrap(), Heartbeat::Lost);
    assert_eq!(
        bed.revoke_lost(epoch, 3).await.unwrap(),
        [(task.lease.task_id(), Revoked::WaitsAgain)]
    );
    assert!(matches!(
        bed.heartbeat(&new, LONG).await.unwrap(),
        Heartbeat::Alive { .. }
    ));
}

async fn a_live_workers_tasks_are_not_revoked(bed: &Bed) {
    let epoch = bed.lead().await;
    let (alive, gone) = (bed.worker(LONG).await, bed.worker(LONG).await);
    let kept = bed.running(epoch, &alive, &delete("a")).await;
    let lost = bed.running(epoch, &gone, &delete("b")).await;
    bed.unregister_worker(&gone).await.unwrap();
    assert_eq!(
        bed.revoke_lost(epoch, 3).await.unwrap(),
        [(lost.lease.task_id(), Revoked::WaitsAgain)]
    );
    finish(bed.begin_fenced(&kept.lease).await.unwrap()).await;
}

async fn rows_of_workers_long_dead_go(bed: &Bed) {
    let epoch = bed.lead().await;
    let (kept, _gone) = (bed.worker(LONG).await, bed.worker(LONG).await);
    let long_ago = bed.now().await.unwrap().plus_micros(-61_000_000).micros();
    bed.execute(&format!(
        "UPDATE workers SET expires = {long_ago} WHERE name = 'w-1@h'"
    ))
    .await;
    bed.revoke_lost(epoch, 3).await.unwrap();
    assert_eq!(bed.number("SELECT COUNT(*) FROM workers").await, 1);
    assert_eq!(bed.known_workers().await.unwrap()[0].name, kept.name);
}

async fn a_revoke_passes_over_an_open_effect_that_then_is_done(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let task = bed.running(epoch, &worker, &delete("r")).await;
    bed.unregister_worker(&worker).await.unwrap();
    let fenced = bed.begin_fenced(&task.lease).await.unwrap();
    let store = bed.store.clone();
    let revoke = tokio::spawn(async move { store.revoke_lost(epoch, 3).await });
    if bed.store.engine() == Engine::Postgres {
        // It doesn't wait: one effect that hangs would hold up what all other dead workers held.
        let revoked = tokio::time::timeout(PATIENCE, revoke).await.unwrap().unwrap();
        assert_eq!(revoked.unwrap(), []);
        fenced
            .finish(&Outcome::Finished(json!("done")), &json!({}))
            .await
            .unwrap();
    } else {
        // There is one writer.
        fenced
            .finish(&Outcome::Finished(json!("done")), &json!({}))
            .await
            .unwrap();
        let revoked = tokio::time::timeout(PATIENCE, revoke).await.unwrap().unwrap();
        assert_eq!(revoked.unwrap(), []);
    }
    assert_eq!(bed.task_of(task.lease.task_id()).await.state, TaskState::Finished);
}

async fn a_task_that_does_not_stop_in_time_is_ended(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let asked = bed.running(epoch, &worker, &delete("a")).await;
    let other = bed.running(epoch, &worker, &delete("b")).await;
    let id = asked.lease.task_id();
    bed.cancel(id).await;
    assert_eq!(bed.force_cancel(epoch, LONG).await.unwrap(), []);
    tick(bed).await;
    assert_eq!(bed.force_cancel(epoch, BLINK).await.unwrap(), [id]);
    assert_eq!(bed.task_of(id).await.state, TaskState::Canceled);
    let late = bed.begin_fenced(&asked.lease).await.map(drop);
    let Err(StoreError::Fenced { now, .. }) = late else {
        panic!("{late:?}");
    };
    assert_eq!(now, "canceled at attempt 1");
    assert!(
        bed.grant(epoch, bed.enqueue(&delete("a")).await, &delete("a"))
            .await
            .is_some()
    );
    finish(bed.begin_fenced(&other.lease).await.unwrap()).await;
}

async fn the_gauge_of_violations_counts_what_must_not_be(bed: &Bed) {
    let epoch = bed.lead().await;
    let mut ids = HashSet::new();
    for repo in ["a", "b"] {
        let id = bed.enqueue(&delete(repo)).await;
        bed.grant(epoch, id, &delete(repo)).await.unwrap();
        ids.insert(id);
    }
    assert_eq!(bed.reservation_violations().await.unwrap(), 0);
    // Both tasks end behind the store's back, and one reservation is moved onto the other's resource.
    bed.execute("UPDATE tasks SET state = 'finished'").await;
    assert_eq!(bed.reservation_violations().await.unwrap(), 2);
    if bed.is_postgres() {
        bed.execute("ALTER TABLE reservations DROP CONSTRAINT reservations_compatible")
            .await;
        bed.execute("DROP INDEX reservations_one_exclusive").await;
    } else {
        bed.execute("DROP TRIGGER reservations_compatible_as_changed")
            .await;
    }
    bed.execute("UPDATE reservations SET resource = 'x'").await;
    assert_eq!(bed.reservation_violations().await.unwrap(), 3);
}
