//! What workers share about registries elsewhere, and tasks that wait for it.

use std::time::Duration;

use pulp_model::{Digest, budget::Quota, task::TaskState};
use pulp_store::{
    StoreError,
    tasks::CancelOutcome,
    timeline::EventKind,
    upstreams::{Account, Turn},
};

use crate::support::{BLINK, Bed, LONG, contract, delete, tick};

contract!(
    a_limit_that_was_told_once_holds_for_all_workers,
    accounts_have_budgets_of_their_own,
    a_limit_that_comes_back_is_read_as_it_was_written,
    many_that_ask_at_once_get_no_more_than_there_is,
    a_blob_is_downloaded_by_one_worker_at_a_time,
    a_download_of_a_dead_worker_counts_no_more,
    no_more_is_downloaded_from_a_host_than_may_be,
    a_download_that_is_asked_for_again_stays_ours_however_busy_its_host,
    a_parked_task_waits_for_its_instant_and_holds_nothing,
    a_canceled_task_that_parks_ends_canceled,
    an_attempt_that_is_over_parks_nothing,
);

fn account(login: &str) -> Account {
    Account {
        host: "registry.example.com".to_owned(),
        login: login.to_owned(),
    }
}

const HOUR: i64 = 3_600_000_000;

fn left(remaining: u64) -> Quota {
    Quota {
        limit: Some(100),
        remaining: Some(remaining),
        window: Some(100 * HOUR),
        ..Quota::default()
    }
}

async fn a_limit_that_was_told_once_holds_for_all_workers(bed: &Bed) {
    let account = account("");
    let free = bed.take_allowance(&account, 1000).await.unwrap();
    assert_eq!(free.granted, 1000);
    bed.note_quota(&account, &left(10)).await.unwrap();
    assert_eq!(bed.take_allowance(&account, 7).await.unwrap().granted, 7);
    let last = bed.take_allowance(&account, 7).await.unwrap();
    assert_eq!(last.granted, 3);
    let hours = last.rest_in.as_secs_f64() / 3600.0;
    assert!((3.9..4.1).contains(&hours), "one comes back an hour; got {hours}");
}

async fn accounts_have_budgets_of_their_own(bed: &Bed) {
    bed.note_quota(&account(""), &left(0)).await.unwrap();
    assert_eq!(bed.take_allowance(&account(""), 1).await.unwrap().granted, 0);
    assert_eq!(
        bed.take_allowance(&account("paying"), 1).await.unwrap().granted,
        1
    );
}

async fn a_limit_that_comes_back_is_read_as_it_was_written(bed: &Bed) {
    let account = account("a");
    let quota = Quota {
        limit: Some(60),
        remaining: Some(5),
        reset_after: Some(2 * HOUR),
        retry_after: Some(HOUR),
        ..Quota::default()
    };
    bed.note_quota(&account, &quota).await.unwrap();
    let (budget, now) = bed.upstream_budget(&account).await.unwrap();
    assert_eq!(budget.available(now), Some(0), "it wants quiet");
    let later = |hours: i64| now.plus_micros(hours * HOUR);
    assert_eq!(budget.available(later(1)), Some(5));
    assert_eq!(budget.available(later(2)), Some(60));
}

async fn many_that_ask_at_once_get_no_more_than_there_is(bed: &Bed) {
    bed.note_quota(&account(""), &left(20)).await.unwrap();
    let mut asking = Vec::new();
    for _ in 0..12 {
        let store = bed.store.clone();
        asking.push(tokio::spawn(async move {
            store.take_allowance(&account(""), 3).await.unwrap().granted
        }));
    }
    let mut granted = 0;
    for one in asking {
        granted += one.await.unwrap();
    }
    assert_eq!(granted, 20);
}

fn digests(texts: &[&str]) -> Vec<Digest> {
    texts.iter().map(Digest::sha256).collect()
}

async fn a_blob_is_downloaded_by_one_worker_at_a_time(bed: &Bed) {
    let (one, other) = (bed.worker(LONG).await, bed.worker(LONG).await);
    let wanted = digests(&["a", "b"]);
    let turns = bed.begin_downloads(&one, "h", &wanted, None).await.unwrap();
    assert_eq!(turns, [Turn::Ours, Turn::Ours]);
    let more = digests(&["b", "c"]);
    let turns = bed.begin_downloads(&other, "another", &more, None).await.unwrap();
    assert_eq!(turns, [Turn::Taken, Turn::Ours]);
    bed.end_downloads(&other, &wanted).await.unwrap();
    let turns = bed.begin_downloads(&other, "h", &wanted, None).await.unwrap();
    assert_eq!(turns, [Turn::Taken, Turn::Taken], "nobody ends what is another's");
    bed.end_downloads(&one, &wanted).await.unwrap();
    let turns = bed.begin_downloads(&other, "h", &wanted, None).await.unwrap();
    assert_eq!(turns, [Turn::Ours, Turn::Ours]);
}

async fn a_download_of_a_dead_worker_counts_no_more(bed: &Bed) {
    let (dies, lives) = (bed.worker(BLINK).await, bed.worker(LONG).await);
    let wanted = digests(&["a"]);
    bed.begin_downloads(&dies, "h", &wanted, Some(1)).await.unwrap();
    tick(bed).await;
    let turns = bed.begin_downloads(&lives, "h", &wanted, Some(1)).await.unwrap();
    assert_eq!(turns, [Turn::Ours]);
}

async fn no_more_is_downloaded_from_a_host_than_may_be(bed: &Bed) {
    let workers = [
        bed.worker(LONG).await,
        bed.worker(LONG).await,
        bed.worker(LONG).await,
    ];
    let mut asking = Vec::new();
    for (n, worker) in workers.iter().cloned().enumerate() {
        let store = bed.store.clone();
        asking.push(tokio::spawn(async move {
            let wanted: Vec<_> = (0..4).map(|m| Digest::sha256(format!("{n} {m}"))).collect();
            store
                .begin_downloads(&worker, "h", &wanted, Some(5))
                .await
                .unwrap()
        }));
    }
    let mut turns = Vec::new();
    for one in asking {
        turns.extend(one.await.unwrap());
    }
    assert_eq!(turns.iter().filter(|t| **t == Turn::Ours).count(), 5);
    assert_eq!(turns.iter().filter(|t| **t == Turn::HostIsBusy).count(), 7);
    let elsewhere = bed
        .begin_downloads(&workers[0], "other", &digests(&["x"]), Some(5))
        .await
        .unwrap();
    assert_eq!(elsewhere, [Turn::Ours]);
}

async fn a_download_that_is_asked_for_again_stays_ours_however_busy_its_host(bed: &Bed) {
    let (one, other) = (bed.worker(LONG).await, bed.worker(LONG).await);
    let wanted = digests(&["a", "b", "c"]);
    let first = &wanted[..1];
    let turns = bed.begin_downloads(&one, "h", first, Some(2)).await.unwrap();
    assert_eq!(turns, [Turn::Ours]);
    // The answer was lost: nobody but us could ever end it.
    let twice = [first, first].concat();
    let turns = bed.begin_downloads(&one, "h", &twice, Some(1)).await.unwrap();
    assert_eq!(turns, [Turn::Ours, Turn::Ours]);
    let turns = bed.begin_downloads(&other, "h", &wanted, Some(2)).await.unwrap();
    assert_eq!(turns.iter().filter(|turn| **turn == Turn::Ours).count(), 1);
    assert_eq!(turns[0], Turn::Taken);
    assert!(turns.contains(&Turn::HostIsBusy));
    bed.end_downloads(&one, &twice).await.unwrap();
    let turns = bed.begin_downloads(&other, "h", first, Some(2)).await.unwrap();
    assert_eq!(turns, [Turn::Ours]);
}

async fn a_parked_task_waits_for_its_instant_and_holds_nothing(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let task = bed.running(epoch, &worker, &delete("r")).await;
    let id = task.lease.task_id();
    let before = bed.now().await.unwrap();
    bed.park(
        &task.lease,
        Duration::from_hours(1),
        "the upstream lets nobody ask",
    )
    .await
    .unwrap();
    assert_eq!(bed.task_of(id).await.state, TaskState::Waiting);
    assert_eq!(bed.number("SELECT COUNT(*) FROM reservations").await, 0);
    let live = bed.live_among(&[id]).await.unwrap();
    let until = live.first().unwrap().not_before.unwrap();
    assert!(until >= before.plus_micros(HOUR) && until < before.plus_micros(2 * HOUR));
    let last = bed.timeline(id).await.unwrap().pop().unwrap();
    assert_eq!(last.kind, EventKind::Parked);
    assert_eq!(last.detail.as_deref(), Some("the upstream lets nobody ask"));
    let situation = bed.situation(id).await.unwrap().unwrap();
    assert_eq!(situation.task.parked.unwrap().0, until);
}

async fn a_canceled_task_that_parks_ends_canceled(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let task = bed.running(epoch, &worker, &delete("r")).await;
    let id = task.lease.task_id();
    assert_eq!(bed.cancel(id).await, CancelOutcome::Requested);
    bed.park(&task.lease, LONG, "never").await.unwrap();
    assert_eq!(bed.task_of(id).await.state, TaskState::Canceled);
}

async fn an_attempt_that_is_over_parks_nothing(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let task = bed.running(epoch, &worker, &delete("r")).await;
    bed.hand_back(&task.lease).await.unwrap();
    let refused = bed.park(&task.lease, LONG, "late").await;
    assert!(matches!(refused, Err(StoreError::Fenced { .. })), "{refused:?}");
}
