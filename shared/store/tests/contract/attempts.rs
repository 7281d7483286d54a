//! A worker's side: claims and the fenced commit.

use std::pin::pin;

use pulp_model::{Attempt, CodedError, ErrorCode, task::TaskState};
use pulp_store::{
    ClaimOutcome, StoreError,
    attempts::Outcome,
    repositories::RepositoryDelta,
    tasks::CancelOutcome,
    timeline::EventKind,
    workers::{Heartbeat, Incarnation},
};
use serde_json::json;

use crate::support::{
    Bed, LONG, PATIENCE, assert_waits, blob, claimed, contract, delete, finish, publish, worker_name,
};

contract!(
    a_claim_runs_the_task_and_tells_what_to_do,
    of_many_claims_of_one_grant_one_succeeds,
    a_claim_whose_answer_was_lost_is_answered_again_until_the_run_has_ended,
    a_claim_with_another_attempt_is_refused,
    a_claim_of_an_earlier_attempt_does_not_take_the_place_of_the_present_one,
    a_claim_of_a_waiting_or_unknown_task_is_refused,
    a_claim_by_a_worker_without_a_lease_is_refused_and_the_task_waits_on,
    arguments_of_a_newer_release_are_left_to_it,
    arguments_that_do_not_read_are_left_alone,
    progress_is_written_while_the_attempt_lives,
    an_effect_and_the_end_of_the_task_are_one_change,
    every_outcome_ends_the_task_and_frees_its_resources,
    a_fenced_transaction_of_another_attempt_is_refused,
    a_plain_end_ends_the_task_frees_its_resources_and_tells_of_it,
    a_plain_end_of_an_attempt_that_is_over_is_refused_and_changes_nothing,
    of_plain_ends_that_come_together_each_is_judged_by_itself,
    an_end_that_the_database_refuses_is_not_taken_for_one_to_try_again,
    an_effect_that_is_dropped_leaves_the_task_running,
    a_cancel_waits_for_an_open_effect_and_finds_the_task_ended,
    a_task_handed_back_waits_again_and_that_is_not_held_against_it,
    a_canceled_task_handed_back_ends_canceled,
    tasks_that_a_task_makes_are_part_of_its_effect,
);

async fn a_claim_runs_the_task_and_tells_what_to_do(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let kind = publish("r", "d");
    let id = bed.enqueue(&kind).await;
    let attempt = bed.grant(epoch, id, &kind).await.unwrap();
    let task = claimed(bed.claim(id, attempt, &worker).await.unwrap());
    assert_eq!(task.kind, kind);
    assert_eq!((task.lease.task_id(), task.lease.attempt()), (id, attempt));
    let row = bed.task_of(id).await;
    assert_eq!(row.state, TaskState::Running);
    assert_eq!(row.worker_name, Some(worker.name));
    assert!(row.started.unwrap() >= row.created);
}

async fn of_many_claims_of_one_grant_one_succeeds(bed: &Bed) {
    let epoch = bed.lead().await;
    let id = bed.enqueue(&delete("r")).await;
    let attempt = bed.grant(epoch, id, &delete("r")).await.unwrap();
    let mut claims = Vec::new();
    for _ in 0..8 {
        let worker = bed.worker(LONG).await;
        let store = bed.store.clone();
        claims.push(tokio::spawn(async move {
            store.claim(id, attempt, &worker).await.unwrap()
        }));
    }
    let mut won = 0;
    for claim in claims {
        match claim.await.unwrap() {
            ClaimOutcome::Claimed(_) => won += 1,
            ClaimOutcome::Refused => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(won, 1);
}

fn assert_refused(outcome: &ClaimOutcome) {
    assert!(matches!(outcome, ClaimOutcome::Refused), "{outcome:?}");
}

async fn a_claim_whose_answer_was_lost_is_answered_again_until_the_run_has_ended(bed: &Bed) {
    let epoch = bed.lead().await;
    let (worker, other) = (bed.worker(LONG).await, bed.worker(LONG).await);
    let id = bed.enqueue(&delete("r")).await;
    let attempt = bed.grant(epoch, id, &delete("r")).await.unwrap();
    let first = claimed(bed.claim(id, attempt, &worker).await.unwrap());
    let again = claimed(bed.claim(id, attempt, &worker).await.unwrap());
    assert_eq!(first.lease, again.lease);
    assert_refused(&bed.claim(id, attempt, &other).await.unwrap());
    finish(bed.begin_fenced(&again.lease).await.unwrap()).await;
    assert_refused(&bed.claim(id, attempt, &worker).await.unwrap());
}

async fn a_claim_with_another_attempt_is_refused(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let task = bed.running(epoch, &worker, &delete("r")).await;
    bed.hand_back(&task.lease).await.unwrap();
    let id = task.lease.task_id();
    assert_eq!(bed.grant(epoch, id, &delete("r")).await, Some(Attempt(2)));
    for attempt in [0, 1, 3] {
        assert_refused(&bed.claim(id, Attempt(attempt), &worker).await.unwrap());
    }
    claimed(bed.claim(id, Attempt(2), &worker).await.unwrap());
}

async fn a_claim_of_an_earlier_attempt_does_not_take_the_place_of_the_present_one(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let task = bed.running(epoch, &worker, &delete("r")).await;
    let (id, earlier) = (task.lease.task_id(), task.lease.attempt());
    bed.hand_back(&task.lease).await.unwrap();
    let present = bed.grant(epoch, id, &delete("r")).await.unwrap();
    let grants = [(id, earlier), (id, present), (id, present)];
    let outcomes = bed.claim_all(&grants, &worker).await.unwrap();
    let [
        ClaimOutcome::Refused,
        ClaimOutcome::Claimed(task),
        ClaimOutcome::Refused,
    ] = outcomes.as_slice()
    else {
        panic!("{outcomes:?}");
    };
    assert_eq!(task.lease.attempt(), present);
    finish(bed.begin_fenced(&task.lease).await.unwrap()).await;
}

async fn a_claim_of_a_waiting_or_unknown_task_is_refused(bed: &Bed) {
    let worker = bed.worker(LONG).await;
    let id = bed.enqueue(&delete("r")).await;
    assert_refused(&bed.claim(id, Attempt(0), &worker).await.unwrap());
    assert_refused(
        &bed.claim(pulp_model::TaskId::new(), Attempt(1), &worker)
            .await
            .unwrap(),
    );
    assert_eq!(bed.task_of(id).await.state, TaskState::Waiting);
}

async fn a_claim_by_a_worker_without_a_lease_is_refused_and_the_task_waits_on(bed: &Bed) {
    let epoch = bed.lead().await;
    let id = bed.enqueue(&delete("r")).await;
    let attempt = bed.grant(epoch, id, &delete("r")).await.unwrap();
    let (expired, unregistered) = (bed.worker(LONG).await, bed.worker(LONG).await);
    bed.unregister_worker(&unregistered).await.unwrap();
    bed.execute("UPDATE workers SET expires = 1").await;
    let impostor = Incarnation::new(expired.name.clone());
    for worker in [
        expired,
        unregistered,
        impostor,
        Incarnation::new(worker_name("x")),
    ] {
        let outcome = bed.claim(id, attempt, &worker).await.unwrap();
        assert!(matches!(outcome, ClaimOutcome::WorkerLost), "{outcome:?}");
    }
    let alive = bed.worker(LONG).await;
    claimed(bed.claim(id, attempt, &alive).await.unwrap());
}

async fn unreadable(bed: &Bed, damage: &str) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let id = bed.enqueue(&delete("r")).await;
    let attempt = bed.grant(epoch, id, &delete("r")).await.unwrap();
    bed.execute(damage).await;
    let outcome = bed.claim(id, attempt, &worker).await.unwrap();
    assert!(matches!(outcome, ClaimOutcome::Unreadable(_)), "{outcome:?}");
    // Its grant is taken back; it is not its fault, and it holds up nobody.
    assert_eq!(bed.task_of(id).await.state, TaskState::Waiting);
    assert_eq!(bed.number("SELECT COUNT(*) FROM reservations").await, 0);
    let told = bed.timeline(id).await.unwrap();
    let kinds: Vec<_> = told.iter().map(|e| e.kind).collect();
    assert_eq!(
        kinds,
        [
            EventKind::Created,
            EventKind::Granted,
            EventKind::Claimed,
            EventKind::Declined
        ]
    );
    assert!(told[3].detail.is_some());
    // Not at once, so that it doesn't go round among those that can't read it.
    let live = bed.live_among(&[id]).await.unwrap().remove(0);
    assert!(live.not_before.unwrap() > bed.now().await.unwrap());
    // A grant that was decided on before, and comes late, finds it pausing.
    assert_eq!(bed.grant(epoch, id, &delete("r")).await, None);
    bed.execute("UPDATE tasks SET not_before = not_before - 60000000")
        .await;
    assert!(bed.grant(epoch, id, &delete("r")).await.is_some());
}

async fn arguments_of_a_newer_release_are_left_to_it(bed: &Bed) {
    unreadable(bed, "UPDATE tasks SET schema_version = 2").await;
}

async fn arguments_that_do_not_read_are_left_alone(bed: &Bed) {
    unreadable(bed, r#"UPDATE tasks SET kind = '{"kind":"unheard_of"}'"#).await;
}

async fn progress_is_written_while_the_attempt_lives(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let task = bed.running(epoch, &worker, &delete("r")).await;
    let report = json!({"docker_importer": [{"state": "IN_PROGRESS", "details": "ü"}]});
    assert!(bed.write_progress(&task.lease, &report).await.unwrap());
    let id = task.lease.task_id();
    assert_eq!(bed.task_of(id).await.progress_report, report);
    let last = json!({"docker_importer": []});
    let tx = bed.begin_fenced(&task.lease).await.unwrap();
    tx.finish(&Outcome::Finished(json!(null)), &last).await.unwrap();
    assert!(!bed.write_progress(&task.lease, &report).await.unwrap());
    assert_eq!(bed.task_of(id).await.progress_report, last);
}

async fn an_effect_and_the_end_of_the_task_are_one_change(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let task = bed.running(epoch, &worker, &delete("r")).await;
    let id = task.lease.task_id();
    let mut tx = bed.begin_fenced(&task.lease).await.unwrap();
    assert_eq!(tx.task_id(), id);
    tx.commit_version(&repo, &[blob("1")]).await.unwrap().unwrap();
    // Readers see the state before, however long the effect is under way.
    assert_eq!(bed.repository(&repo).await.unwrap().unwrap().version.0, 0);
    assert_eq!(bed.task_of(id).await.state, TaskState::Running);
    tx.finish(&Outcome::Finished(json!({"a": 1})), &json!({}))
        .await
        .unwrap();
    assert_eq!(bed.repository(&repo).await.unwrap().unwrap().version.0, 1);
    let ended = bed.task_of(id).await;
    assert_eq!(ended.state, TaskState::Finished);
    assert_eq!(ended.result, Some(json!({"a": 1})));
    assert!(ended.finished.unwrap() >= ended.started.unwrap());
    assert_eq!(
        bed.number(&format!(
            "SELECT COUNT(*) FROM outbox WHERE body LIKE '%\"ended\"%' AND body LIKE '%{id}%'"
        ))
        .await,
        1
    );
}

async fn every_outcome_ends_the_task_and_frees_its_resources(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let error = CodedError::new(ErrorCode::INTERNAL, "no space").with("file", "x");
    let outcomes = [
        (Outcome::Finished(json!([1])), TaskState::Finished),
        (Outcome::Skipped(json!("same")), TaskState::Skipped),
        (Outcome::Failed(error.clone()), TaskState::Error),
        (Outcome::Canceled, TaskState::Canceled),
    ];
    for (outcome, state) in outcomes {
        // The same resource each time: it can be had again only if the one before has freed it.
        let task = bed.running(epoch, &worker, &delete("r")).await;
        let tx = bed.begin_fenced(&task.lease).await.unwrap();
        tx.finish(&outcome, &json!({"p": 1})).await.unwrap();
        let ended = bed.task_of(task.lease.task_id()).await;
        assert_eq!(ended.state, state);
        assert_eq!(ended.progress_report, json!({"p": 1}));
        assert_eq!(ended.error, (state == TaskState::Error).then(|| error.clone()));
        let result = match state {
            TaskState::Finished => Some(json!([1])),
            TaskState::Skipped => Some(json!("same")),
            _ => None,
        };
        assert_eq!(ended.result, result);
        let again = bed.begin_fenced(&task.lease).await.map(drop);
        assert!(matches!(again, Err(StoreError::Fenced { .. })), "{again:?}");
    }
    assert_eq!(bed.number("SELECT COUNT(*) FROM reservations").await, 0);
}

async fn a_fenced_transaction_of_another_attempt_is_refused(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let first = bed.running(epoch, &worker, &delete("r")).await;
    let id = first.lease.task_id();
    let refused = async |now: &str| {
        let result = bed.begin_fenced(&first.lease).await.map(drop);
        let Err(error @ StoreError::Fenced { .. }) = result else {
            panic!("{result:?}");
        };
        let text = error.to_string();
        assert!(text.contains(now) && text.contains(&id.to_string()), "{text}");
        let handed = bed.hand_back(&first.lease).await;
        assert!(matches!(handed, Err(StoreError::Fenced { .. })), "{handed:?}");
    };
    bed.hand_back(&first.lease).await.unwrap();
    refused("waiting at attempt 1").await;
    let attempt = bed.grant(epoch, id, &delete("r")).await.unwrap();
    refused("accepted at attempt 2").await;
    let second = claimed(bed.claim(id, attempt, &worker).await.unwrap());
    refused("running at attempt 2").await;
    finish(bed.begin_fenced(&second.lease).await.unwrap()).await;
    refused("finished at attempt 2").await;
    let mut tx = bed.begin().await.unwrap();
    tx.purge_tasks(&[TaskState::Finished]).await.unwrap();
    tx.commit().await.unwrap();
    refused("gone").await;
}

async fn a_plain_end_ends_the_task_frees_its_resources_and_tells_of_it(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let task = bed.running(epoch, &worker, &delete("r")).await;
    let id = task.lease.task_id();
    let messages = bed.outbox_depth().await.unwrap();
    bed.outbox_fresh(u32::MAX);
    let progress = json!({"done": 1});
    bed.finish_without_effect(&task.lease, &progress).await.unwrap();
    let row = bed.task_of(id).await;
    assert_eq!(
        (row.state, &row.progress_report),
        (TaskState::Finished, &progress)
    );
    assert_eq!((row.result, row.error.is_none()), (Some(json!(null)), true));
    assert!(row.finished.unwrap() >= row.started.unwrap());
    assert_eq!(bed.number("SELECT COUNT(*) FROM reservations").await, 0);
    assert_eq!(bed.outbox_depth().await.unwrap(), messages + 1);
    let told = bed.outbox_fresh(u32::MAX);
    let bodies: Vec<serde_json::Value> = told
        .iter()
        .map(|row| serde_json::from_str(&row.body()).unwrap())
        .collect();
    assert_eq!(
        bodies,
        [json!({"v": 1, "type": "ended", "task_id": id, "terminal": true})]
    );
    assert_eq!(told[0].queue, "intake");
}

async fn a_plain_end_of_an_attempt_that_is_over_is_refused_and_changes_nothing(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let first = bed.running(epoch, &worker, &delete("r")).await;
    let id = first.lease.task_id();
    let refused = async |state: TaskState, reservations: i64| {
        let messages = bed.outbox_depth().await.unwrap();
        bed.outbox_fresh(u32::MAX);
        let told = bed.finish_without_effect(&first.lease, &json!({})).await;
        assert!(matches!(told, Err(StoreError::Fenced { .. })), "{told:?}");
        assert_eq!(bed.task_of(id).await.state, state);
        assert_eq!(
            bed.number("SELECT COUNT(*) FROM reservations").await,
            reservations
        );
        assert_eq!(bed.outbox_depth().await.unwrap(), messages);
        assert_eq!(bed.outbox_fresh(u32::MAX), []);
    };
    bed.hand_back(&first.lease).await.unwrap();
    refused(TaskState::Waiting, 0).await;
    let attempt = bed.grant(epoch, id, &delete("r")).await.unwrap();
    refused(TaskState::Accepted, 1).await;
    let second = claimed(bed.claim(id, attempt, &worker).await.unwrap());
    refused(TaskState::Running, 1).await;
    finish(bed.begin_fenced(&second.lease).await.unwrap()).await;
    refused(TaskState::Finished, 0).await;
    let again = bed.finish_without_effect(&second.lease, &json!({})).await;
    assert!(matches!(again, Err(StoreError::Fenced { .. })), "{again:?}");
}

async fn of_plain_ends_that_come_together_each_is_judged_by_itself(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let mut leases = Vec::new();
    for n in 0..9 {
        let task = bed.running(epoch, &worker, &delete(&format!("r{n}"))).await;
        if n % 3 == 0 {
            bed.hand_back(&task.lease).await.unwrap();
        }
        leases.push(task.lease);
    }
    let progress = json!({});
    let ends = leases
        .iter()
        .map(|lease| bed.finish_without_effect(lease, &progress));
    for (n, told) in futures::future::join_all(ends).await.into_iter().enumerate() {
        let state = bed.task_of(leases[n].task_id()).await.state;
        if n % 3 == 0 {
            assert!(matches!(told, Err(StoreError::Fenced { .. })), "{told:?}");
            assert_eq!(state, TaskState::Waiting);
        } else {
            told.unwrap();
            assert_eq!(state, TaskState::Finished);
        }
    }
    assert_eq!(bed.number("SELECT COUNT(*) FROM reservations").await, 0);
}

async fn an_end_that_the_database_refuses_is_not_taken_for_one_to_try_again(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let task = bed.running(epoch, &worker, &delete("r")).await;
    bed.execute("DROP TABLE outbox").await;
    let told = bed
        .finish_without_effect(&task.lease, &json!({}))
        .await
        .unwrap_err();
    assert!(!told.is_transient(), "{told:?}");
}

async fn an_effect_that_is_dropped_leaves_the_task_running(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let task = bed.running(epoch, &worker, &delete("r")).await;
    let mut tx = bed.begin_fenced(&task.lease).await.unwrap();
    let delta = RepositoryDelta {
        display_name: Some("changed".to_owned()),
        ..RepositoryDelta::default()
    };
    tx.update_repository(&repo, &delta).await.unwrap();
    tx.spawn(&publish("r", "d")).await.unwrap();
    drop(tx);
    assert_ne!(
        bed.repository(&repo).await.unwrap().unwrap().display_name,
        "changed"
    );
    assert_eq!(bed.live_tasks().await.unwrap().len(), 1);
    finish(bed.begin_fenced(&task.lease).await.unwrap()).await;
}

async fn a_cancel_waits_for_an_open_effect_and_finds_the_task_ended(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let task = bed.running(epoch, &worker, &delete("r")).await;
    let id = task.lease.task_id();
    let fenced = bed.begin_fenced(&task.lease).await.unwrap();
    let mut cancel = pin!(bed.cancel(id));
    assert_waits(bed, cancel.as_mut()).await;
    finish(fenced).await;
    let outcome = tokio::time::timeout(PATIENCE, cancel).await.unwrap();
    assert_eq!(outcome, CancelOutcome::AlreadyEnded);
    let ended = bed.task_of(id).await;
    assert_eq!((ended.state, ended.cancel_requested), (TaskState::Finished, None));
}

async fn a_task_handed_back_waits_again_and_that_is_not_held_against_it(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let task = bed.running(epoch, &worker, &delete("r")).await;
    let id = task.lease.task_id();
    let mut lease = task.lease;
    for n in 2..=5 {
        bed.hand_back(&lease).await.unwrap();
        let row = bed.task_of(id).await;
        assert_eq!(
            (row.state, row.worker_name, row.started),
            (TaskState::Waiting, None, None)
        );
        assert_eq!(bed.number("SELECT COUNT(*) FROM reservations").await, 0);
        let attempt = bed.grant(epoch, id, &delete("r")).await.unwrap();
        assert_eq!(attempt, Attempt(n), "a number is never used again");
        lease = claimed(bed.claim(id, attempt, &worker).await.unwrap()).lease;
    }
    // Five attempts, none of them lost until now.
    bed.unregister_worker(&worker).await.unwrap();
    let revoked = bed.revoke_lost(epoch, 2).await.unwrap();
    assert_eq!(revoked, [(id, pulp_store::grants::Revoked::WaitsAgain)]);
    let told = |what: &str| format!("SELECT COUNT(*) FROM outbox WHERE body LIKE '%\"{what}\"%'");
    assert_eq!(bed.number(&told("ended")).await, 0);
    assert_eq!(bed.number(&told("submitted")).await, 5);
}

async fn a_canceled_task_handed_back_ends_canceled(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let task = bed.running(epoch, &worker, &delete("r")).await;
    let id = task.lease.task_id();
    assert_eq!(bed.cancel(id).await, CancelOutcome::Requested);
    assert_eq!(
        bed.heartbeat(&worker, LONG).await.unwrap(),
        Heartbeat::Alive { cancel: vec![id] }
    );
    bed.hand_back(&task.lease).await.unwrap();
    let ended = bed.task_of(id).await;
    assert_eq!(ended.state, TaskState::Canceled);
    assert!(ended.finished.is_some());
    assert_eq!(bed.number("SELECT COUNT(*) FROM reservations").await, 0);
    assert!(bed.live_tasks().await.unwrap().is_empty());
}

async fn tasks_that_a_task_makes_are_part_of_its_effect(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let task = bed.running(epoch, &worker, &delete("r")).await;
    let id = task.lease.task_id();
    let mut tx = bed.begin_fenced(&task.lease).await.unwrap();
    let children = [
        tx.spawn(&publish("r", "a")).await.unwrap(),
        tx.spawn(&publish("r", "b")).await.unwrap(),
    ];
    finish(tx).await;
    assert_eq!(bed.task_of(id).await.spawned_tasks, children);
    let waiting: Vec<_> = bed.live_tasks().await.unwrap().iter().map(|t| t.id).collect();
    assert_eq!(waiting, children);
    assert_eq!(
        bed.number(&format!("SELECT COUNT(*) FROM tasks WHERE parent_id = '{id}'"))
            .await,
        2
    );
}
