//! Schedules: what they are told, and that each slot is fired once.

use std::collections::BTreeSet;

use futures::future::join_all;
use pulp_model::{
    CodedError, DistributorId, ErrorCode, RepositoryId, ScheduleId, Timestamp, schedule::Recurrence,
};
use pulp_store::{
    attempts::Outcome,
    schedules::{DueSchedule, Fired, NewSchedule, Schedule, ScheduleChange, Target},
};
use serde_json::{Map, json};

use crate::support::{Bed, LONG, contract, finish, tick};

contract!(
    a_schedule_is_read_back_as_it_was_made,
    a_schedule_goes_with_what_it_runs,
    a_schedule_of_what_is_gone_is_not_made,
    slots_that_were_missed_collapse_into_one_run,
    a_schedule_of_the_future_waits_for_its_start,
    a_publish_that_still_waits_is_not_asked_for_again,
    many_schedulers_at_once_fire_each_slot_once,
    a_slot_that_has_its_task_is_not_fired_again_whatever_the_schedule_says,
    the_last_run_disables_the_schedule,
    failures_in_a_row_disable_it_and_a_success_forgives_them,
    a_lost_worker_counts_as_a_failure_and_a_cancel_as_nothing,
    a_run_is_judged_by_the_publish_that_it_makes,
    a_plain_end_forgives_failures_as_any_good_run_does,
    a_change_counts_from_its_own_start_and_keeps_the_total,
    a_disabled_schedule_does_not_fire,
    fires_are_forgotten_with_their_tasks,
);

fn read(text: &str) -> (String, Recurrence) {
    (text.to_owned(), text.parse().unwrap())
}

fn new(target: &Target, text: &str) -> NewSchedule {
    NewSchedule {
        target: target.clone(),
        schedule: read(text),
        override_config: Map::new(),
        enabled: true,
        failure_threshold: None,
    }
}

/// A repository with an importer and the distributor `d`.
async fn repository(bed: &Bed, id: &str) -> (Target, Target) {
    let repo = bed.create_repository(id).await;
    let mut tx = bed.begin().await.unwrap();
    tx.put_importer(&repo, "docker_importer", &Map::new())
        .await
        .unwrap();
    tx.put_distributor(&repo, &crate::publishing::new_distributor("d"))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    (
        Target::Sync(repo.clone()),
        Target::Publish(repo, "d".parse::<DistributorId>().unwrap()),
    )
}

async fn make(bed: &Bed, new: &NewSchedule) -> Schedule {
    let mut tx = bed.begin().await.unwrap();
    let made = tx.create_schedule(new).await.unwrap().unwrap();
    tx.commit().await.unwrap();
    made
}

async fn change(bed: &Bed, schedule: &Schedule, change: ScheduleChange) -> Schedule {
    let mut tx = bed.begin().await.unwrap();
    let changed = tx
        .update_schedule(&schedule.target, &schedule.id, &change)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    changed.unwrap()
}

async fn again(bed: &Bed, schedule: &Schedule) -> Schedule {
    bed.schedule(&schedule.target, &schedule.id)
        .await
        .unwrap()
        .unwrap()
}

/// Fires what is due, as a scheduler does.
async fn fire(bed: &Bed) -> Vec<(ScheduleId, Fired)> {
    let mut all = Vec::new();
    for due in bed.due_schedules(100).await.unwrap() {
        if let Some(fired) = bed.fire(&due).await.unwrap() {
            all.push((due.id, fired));
        }
    }
    all
}

/// Sets the schedule back as if its last slot had not been fired yet.
async fn make_due(bed: &Bed, schedule: &Schedule) {
    bed.execute(&format!(
        "DELETE FROM schedule_fires WHERE schedule_id = '{0}'; \
         UPDATE schedules SET next_slot = first_run WHERE schedule_id = '{0}'",
        schedule.id
    ))
    .await;
}

async fn a_schedule_is_read_back_as_it_was_made(bed: &Bed) {
    let (sync, publish) = repository(bed, "r").await;
    let mut wanted = new(&sync, "R5/2012-12-16T00:00Z/P1D");
    wanted.failure_threshold = Some(3);
    wanted
        .override_config
        .insert("max_downloads".to_owned(), json!(2));
    let made = make(bed, &wanted).await;
    assert_eq!(again(bed, &made).await, made);
    assert_eq!(made.schedule, "R5/2012-12-16T00:00Z/P1D");
    assert_eq!((made.remaining_runs, made.failure_threshold), (Some(5), Some(3)));
    assert_eq!(made.first_run.to_string(), "2012-12-16T00:00:00Z");
    assert_eq!((made.last_run_at, made.total_run_count), (None, 0));
    assert_eq!(made.override_config, wanted.override_config);

    let other = make(bed, &new(&publish, "PT1H")).await;
    assert!(
        other.first_run >= made.last_updated,
        "without a start it begins when it is made"
    );
    assert_eq!(
        bed.schedules_of(&sync).await.unwrap(),
        std::slice::from_ref(&made)
    );
    assert_eq!(
        bed.schedules_of(&publish).await.unwrap(),
        std::slice::from_ref(&other)
    );
    // An id of another target is none.
    assert!(bed.schedule(&publish, &made.id).await.unwrap().is_none());
    let mut tx = bed.begin().await.unwrap();
    assert!(!tx.delete_schedule(&publish, &made.id).await.unwrap());
    let none = tx
        .update_schedule(&publish, &made.id, &ScheduleChange::default())
        .await;
    assert!(none.unwrap().is_none());
    assert!(tx.delete_schedule(&sync, &made.id).await.unwrap());
    tx.commit().await.unwrap();
    assert!(bed.schedules_of(&sync).await.unwrap().is_empty());
}

async fn a_schedule_goes_with_what_it_runs(bed: &Bed) {
    let (sync, publish) = repository(bed, "r").await;
    for target in [&sync, &publish] {
        make(bed, &new(target, "PT1H")).await;
    }
    fire(bed).await;
    let repo: RepositoryId = "r".parse().unwrap();
    let mut tx = bed.fenced().await;
    tx.delete_distributor(&repo, &"d".parse().unwrap()).await.unwrap();
    finish(tx).await;
    assert!(bed.schedules_of(&publish).await.unwrap().is_empty());
    assert_eq!(bed.schedules_of(&sync).await.unwrap().len(), 1);
    let mut tx = bed.fenced().await;
    tx.delete_repository(&repo).await.unwrap();
    finish(tx).await;
    for table in ["schedules", "schedule_fires"] {
        assert_eq!(bed.number(&format!("SELECT COUNT(*) FROM {table}")).await, 0);
    }
}

async fn a_schedule_of_what_is_gone_is_not_made(bed: &Bed) {
    let repo = bed.create_repository("bare").await;
    let mut tx = bed.begin().await.unwrap();
    for target in [
        Target::Sync(repo.clone()),
        Target::Publish(repo, "d".parse().unwrap()),
        Target::Sync("nope".parse().unwrap()),
    ] {
        assert!(tx.create_schedule(&new(&target, "PT1H")).await.unwrap().is_none());
    }
}

async fn slots_that_were_missed_collapse_into_one_run(bed: &Bed) {
    let (sync, _) = repository(bed, "r").await;
    let made = make(bed, &new(&sync, "2012-01-31T00:00Z/P1M")).await;
    let fired = fire(bed).await;
    assert_eq!(fired.len(), 1);
    let now = bed.now().await.unwrap();
    assert_eq!(Some(fired[0].1.slot), made.slots().unwrap().latest(now));
    assert!(fire(bed).await.is_empty(), "it was fired");
    let after = again(bed, &made).await;
    assert_eq!(after.total_run_count, 1);
    assert!(after.last_run_at.is_some_and(|at| at <= now));
    assert_eq!(after.next_slot, after.next_run(now).unwrap());
    let task = bed.task_of(fired[0].1.task_id).await;
    assert_eq!(task.owner.as_str(), "scheduler");
    assert_eq!(bed.outbox_depth().await.unwrap(), 1, "it was announced");
}

async fn a_schedule_of_the_future_waits_for_its_start(bed: &Bed) {
    let (sync, _) = repository(bed, "r").await;
    let made = make(bed, &new(&sync, "9000-01-01T00:00Z/P1M")).await;
    let due = DueSchedule {
        id: made.id.clone(),
        repo_id: "r".parse().unwrap(),
    };
    assert!(bed.due_schedules(10).await.unwrap().is_empty());
    assert_eq!(bed.fire(&due).await.unwrap(), None);
    let now = bed.now().await.unwrap();
    assert_eq!(made.next_run(now).unwrap(), Some(made.first_run));
}

async fn a_publish_that_still_waits_is_not_asked_for_again(bed: &Bed) {
    let (_, publish) = repository(bed, "r").await;
    let made = make(bed, &new(&publish, "PT1S")).await;
    let first = fire(bed).await[0].1;
    // Its next slot comes while the task waits.
    bed.execute("UPDATE schedules SET first_run = first_run - 60500000, next_slot = next_slot - 60500000")
        .await;
    tick(bed).await;
    let second = fire(bed).await[0].1;
    assert_ne!(first.slot, second.slot);
    assert_eq!(first.task_id, second.task_id);
    assert_eq!(bed.number("SELECT COUNT(*) FROM tasks").await, 1);
    assert_eq!(again(bed, &made).await.total_run_count, 2);
}

async fn many_schedulers_at_once_fire_each_slot_once(bed: &Bed) {
    let mut made = Vec::new();
    for n in 0..6 {
        let (sync, publish) = repository(bed, &format!("r{n}")).await;
        made.push(make(bed, &new(&sync, "2020-01-01T00:00Z/P1D")).await);
        made.push(make(bed, &new(&publish, "2020-01-31T00:00Z/P1M")).await);
    }
    let mut schedulers = Vec::new();
    for _ in 0..3 {
        schedulers.push(bed.another_process().await);
    }
    let rounds = join_all(schedulers.iter().map(|store| async {
        let mut fired = Vec::new();
        for due in store.due_schedules(100).await.unwrap() {
            if let Some(slot) = store.fire(&due).await.unwrap() {
                fired.push((due.id, slot.slot, slot.task_id));
            }
        }
        fired
    }))
    .await;
    let fired: Vec<_> = rounds.into_iter().flatten().collect();
    let ids: BTreeSet<_> = fired.iter().map(|(id, ..)| id.clone()).collect();
    assert_eq!(ids.len(), made.len(), "none is lost");
    assert_eq!(fired.len(), made.len(), "none is fired twice");
    assert_eq!(bed.number("SELECT COUNT(*) FROM tasks").await, 12);
    assert_eq!(bed.number("SELECT COUNT(*) FROM schedule_fires").await, 12);
    assert_eq!(
        bed.number("SELECT CAST(SUM(total_run_count) AS BIGINT) FROM schedules")
            .await,
        12
    );
}

async fn a_slot_that_has_its_task_is_not_fired_again_whatever_the_schedule_says(bed: &Bed) {
    let (sync, _) = repository(bed, "r").await;
    let made = make(bed, &new(&sync, "2020-01-01T00:00Z/P1D")).await;
    let first = fire(bed).await[0].1;
    bed.cancel(first.task_id).await;
    bed.execute("UPDATE schedules SET next_slot = first_run").await;
    assert!(fire(bed).await.is_empty());
    assert_eq!(bed.number("SELECT COUNT(*) FROM tasks").await, 1);
    assert_eq!(again(bed, &made).await.total_run_count, 1);
    assert!(
        bed.due_schedules(10).await.unwrap().is_empty(),
        "it waits for its next slot"
    );
}

async fn the_last_run_disables_the_schedule(bed: &Bed) {
    let (sync, _) = repository(bed, "r").await;
    let made = make(bed, &new(&sync, "R1/2020-01-01T00:00Z/P1D")).await;
    assert_eq!(fire(bed).await.len(), 1);
    let after = again(bed, &made).await;
    assert_eq!((after.enabled, after.remaining_runs), (false, Some(0)));
    assert_eq!(after.next_run(bed.now().await.unwrap()).unwrap(), None);
    // Enabling it gives it no run; another schedule does.
    let on = ScheduleChange {
        enabled: Some(true),
        ..ScheduleChange::default()
    };
    assert!(!change(bed, &made, on.clone()).await.enabled);
    let more = ScheduleChange {
        schedule: Some(read("R2/PT1H")),
        ..on
    };
    let changed = change(bed, &made, more).await;
    assert_eq!(
        (changed.enabled, changed.remaining_runs, changed.total_run_count),
        (true, Some(2), 1)
    );
    assert_eq!(fire(bed).await.len(), 1);
}

/// Fires the schedule's slot and ends its task so.
async fn run(bed: &Bed, schedule: &Schedule, outcome: &Outcome) -> Schedule {
    make_due(bed, schedule).await;
    let task = fire(bed).await[0].1.task_id;
    let lease = claim(bed, schedule, task).await;
    let fenced = bed.begin_fenced(&lease).await.unwrap();
    fenced.finish(outcome, &json!({})).await.unwrap();
    again(bed, schedule).await
}

async fn claim(bed: &Bed, schedule: &Schedule, task: pulp_model::TaskId) -> pulp_store::TaskLease {
    let epoch = bed.epoch().await;
    let worker = bed.worker(LONG).await;
    let Target::Publish(repo, distributor) = &schedule.target else {
        panic!("a publish");
    };
    let kind = crate::support::publish(repo.as_str(), distributor.as_str());
    let attempt = bed.grant(epoch, task, &kind).await.unwrap();
    crate::support::claimed(bed.claim(task, attempt, &worker).await.unwrap()).lease
}

fn failed() -> Outcome {
    Outcome::Failed(CodedError::new(ErrorCode::GENERAL, "no"))
}

async fn failures_in_a_row_disable_it_and_a_success_forgives_them(bed: &Bed) {
    let (_, publish) = repository(bed, "r").await;
    let mut wanted = new(&publish, "2020-01-01T00:00Z/P1D");
    wanted.failure_threshold = Some(2);
    let made = make(bed, &wanted).await;
    let after = run(bed, &made, &failed()).await;
    assert_eq!((after.enabled, after.consecutive_failures), (true, 1));
    let after = run(bed, &made, &Outcome::Finished(json!(null))).await;
    assert_eq!(after.consecutive_failures, 0);
    run(bed, &made, &failed()).await;
    let overdue = Outcome::Failed(CodedError::new(ErrorCode::TIMED_OUT, "late"));
    let after = run(bed, &made, &overdue).await;
    assert_eq!((after.enabled, after.consecutive_failures), (false, 2));
    make_due(bed, &made).await;
    assert!(fire(bed).await.is_empty());
    let on = ScheduleChange {
        enabled: Some(true),
        ..ScheduleChange::default()
    };
    assert_eq!(change(bed, &made, on).await.consecutive_failures, 0);
    // Without a threshold it goes on for ever.
    let never = ScheduleChange {
        failure_threshold: Some(None),
        ..ScheduleChange::default()
    };
    assert_eq!(change(bed, &made, never).await.failure_threshold, None);
    for failures in 1..4 {
        let after = run(bed, &made, &failed()).await;
        assert_eq!((after.enabled, after.consecutive_failures), (true, failures));
    }
}

async fn a_lost_worker_counts_as_a_failure_and_a_cancel_as_nothing(bed: &Bed) {
    let (_, publish) = repository(bed, "r").await;
    let made = make(bed, &new(&publish, "2020-01-01T00:00Z/P1D")).await;
    let after = run(bed, &made, &Outcome::Canceled).await;
    assert_eq!((after.consecutive_failures, after.total_run_count), (0, 1));
    make_due(bed, &made).await;
    let task = fire(bed).await[0].1.task_id;
    claim(bed, &made, task).await;
    bed.execute("UPDATE workers SET expires = 0").await;
    let epoch = bed.epoch().await;
    let revoked = bed.revoke_lost(epoch, 1).await.unwrap();
    assert_eq!(revoked, [(task, pulp_store::grants::Revoked::Ended)]);
    assert_eq!(again(bed, &made).await.consecutive_failures, 1);
}

async fn a_run_is_judged_by_the_publish_that_it_makes(bed: &Bed) {
    let (_, publish) = repository(bed, "r").await;
    let made = make(bed, &new(&publish, "2020-01-01T00:00Z/P1D")).await;
    run(bed, &made, &failed()).await;
    make_due(bed, &made).await;
    let task = fire(bed).await[0].1.task_id;
    let lease = claim(bed, &made, task).await;
    let mut fenced = bed.begin_fenced(&lease).await.unwrap();
    let child = fenced.spawn(&crate::support::publish("r", "d")).await.unwrap();
    fenced
        .finish(&Outcome::Finished(json!(null)), &json!({}))
        .await
        .unwrap();
    assert_eq!(again(bed, &made).await.consecutive_failures, 1, "not known yet");
    let lease = claim(bed, &made, child).await;
    let fenced = bed.begin_fenced(&lease).await.unwrap();
    fenced.finish(&failed(), &json!({})).await.unwrap();
    assert_eq!(again(bed, &made).await.consecutive_failures, 2);
}

async fn a_plain_end_forgives_failures_as_any_good_run_does(bed: &Bed) {
    let (_, of_another) = repository(bed, "other").await;
    let other = make(bed, &new(&of_another, "2020-01-01T00:00Z/P1D")).await;
    assert_eq!(run(bed, &other, &failed()).await.consecutive_failures, 1);
    let (_, publish) = repository(bed, "r").await;
    let made = make(bed, &new(&publish, "2020-01-01T00:00Z/P1D")).await;
    let fail_and_fire = async || {
        assert_eq!(run(bed, &made, &failed()).await.consecutive_failures, 1);
        make_due(bed, &made).await;
        let task = fire(bed).await[0].1.task_id;
        claim(bed, &made, task).await
    };
    let lease = fail_and_fire().await;
    bed.finish_without_effect(&lease, &json!({})).await.unwrap();
    assert_eq!(again(bed, &made).await.consecutive_failures, 0);
    // So does that of the publish that a run has made.
    let lease = fail_and_fire().await;
    let mut fenced = bed.begin_fenced(&lease).await.unwrap();
    let child = fenced.spawn(&crate::support::publish("r", "d")).await.unwrap();
    fenced
        .finish(&Outcome::Finished(json!(null)), &json!({}))
        .await
        .unwrap();
    assert_eq!(again(bed, &made).await.consecutive_failures, 1, "not known yet");
    let lease = claim(bed, &made, child).await;
    bed.finish_without_effect(&lease, &json!({})).await.unwrap();
    assert_eq!(again(bed, &made).await.consecutive_failures, 0);
    assert_eq!(again(bed, &other).await.consecutive_failures, 1);
}

async fn a_change_counts_from_its_own_start_and_keeps_the_total(bed: &Bed) {
    let (sync, _) = repository(bed, "r").await;
    let made = make(bed, &new(&sync, "2020-01-01T00:00Z/P1D")).await;
    fire(bed).await;
    let text = |text: &str| ScheduleChange {
        schedule: Some(read(text)),
        ..ScheduleChange::default()
    };
    let changed = change(bed, &made, text("R3/2020-01-01T00:00Z/P1Y")).await;
    assert_eq!((changed.total_run_count, changed.remaining_runs), (1, Some(3)));
    assert!(fire(bed).await.is_empty(), "it has run since the latest slot");
    tick(bed).await;
    let changed = change(bed, &made, text("PT1H")).await;
    assert!(changed.first_run > made.last_updated);
    assert_eq!(fire(bed).await.len(), 1, "without a start it begins at once");
    assert_eq!(again(bed, &made).await.schedule, "PT1H");
}

async fn a_disabled_schedule_does_not_fire(bed: &Bed) {
    let (sync, _) = repository(bed, "r").await;
    let mut wanted = new(&sync, "2020-01-01T00:00Z/P1D");
    wanted.enabled = false;
    let made = make(bed, &wanted).await;
    let due = DueSchedule {
        id: made.id.clone(),
        repo_id: "r".parse().unwrap(),
    };
    assert!(fire(bed).await.is_empty());
    assert_eq!(bed.fire(&due).await.unwrap(), None);
    let now: Timestamp = bed.now().await.unwrap();
    assert!(made.next_run(now).unwrap().is_some_and(|next| next > now));
}

async fn fires_are_forgotten_with_their_tasks(bed: &Bed) {
    let (sync, _) = repository(bed, "r").await;
    make(bed, &new(&sync, "2020-01-01T00:00Z/P1D")).await;
    let task = fire(bed).await[0].1.task_id;
    let mut tx = bed.begin().await.unwrap();
    assert_eq!(tx.prune_fires().await.unwrap(), 0);
    tx.cancel_task(task).await.unwrap();
    tx.purge_tasks(&[pulp_model::task::TaskState::Canceled])
        .await
        .unwrap();
    assert_eq!(tx.prune_fires().await.unwrap(), 1);
    tx.commit().await.unwrap();
    assert!(fire(bed).await.is_empty(), "it stays fired");
}
