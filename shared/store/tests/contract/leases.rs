//! Leadership.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use pulp_model::{Epoch, TaskId, task::TaskKind};
use pulp_store::{Store, StoreError, grants::ROLE, workers::Heartbeat};
use sqlx::{AnyPool, Row as _};

use crate::support::{BLINK, Bed, LONG, contract, delete, grant, tick};

contract!(
    a_lease_has_one_holder_and_its_epoch_grows,
    of_many_that_want_the_lease_at_once_one_gets_it,
    each_role_has_its_own_lease,
    a_lease_is_prolonged_until_it_has_ended_or_is_anothers,
    a_lease_resigned_is_free_at_once,
    what_the_dead_held_is_free_at_once_for_who_knows_that_they_are,
    no_leader_commits_under_an_epoch_that_is_over,
);

async fn a_lease_has_one_holder_and_its_epoch_grows(bed: &Bed) {
    let take = async |holder, ttl| bed.acquire_lease("r", holder, ttl).await.unwrap();
    assert_eq!(take("a", BLINK).await, Some(Epoch(1)));
    tick(bed).await;
    assert_eq!(take("b", LONG).await, Some(Epoch(2)));
    assert_eq!(take("a", LONG).await, None);
    assert_eq!(take("b", LONG).await, None, "to prolong is another call");
}

async fn of_many_that_want_the_lease_at_once_one_gets_it(bed: &Bed) {
    for round in 1..=5 {
        let wants = (0..8).map(|n| {
            let store = bed.store.clone();
            tokio::spawn(async move {
                store
                    .acquire_lease("r", &format!("candidate {n}"), LONG)
                    .await
                    .unwrap()
                    .map(|epoch| (n, epoch))
            })
        });
        let got: Vec<_> = join_all(wants)
            .await
            .into_iter()
            .filter_map(|w| w.unwrap())
            .collect();
        let [(n, epoch)] = got[..] else {
            panic!("{got:?}");
        };
        assert_eq!(epoch, Epoch(round));
        bed.resign_lease("r", &format!("candidate {n}"), epoch)
            .await
            .unwrap();
    }
}

async fn each_role_has_its_own_lease(bed: &Bed) {
    for role in ["a", "b"] {
        assert_eq!(bed.acquire_lease(role, "me", LONG).await.unwrap(), Some(Epoch(1)));
    }
}

async fn a_lease_is_prolonged_until_it_has_ended_or_is_anothers(bed: &Bed) {
    let renew = async |holder, epoch, ttl| bed.renew_lease("r", holder, Epoch(epoch), ttl).await.unwrap();
    assert!(!renew("a", 1, LONG).await, "nobody holds it");
    bed.acquire_lease("r", "a", LONG).await.unwrap().unwrap();
    assert!(renew("a", 1, LONG).await);
    assert!(!renew("b", 1, LONG).await);
    assert!(!renew("a", 2, LONG).await);
    assert!(renew("a", 1, BLINK).await);
    tick(bed).await;
    assert!(!renew("a", 1, LONG).await, "what has ended is not revived");
    bed.acquire_lease("r", "b", LONG).await.unwrap().unwrap();
    assert!(!renew("a", 1, LONG).await);
    assert!(renew("b", 2, LONG).await);
}

async fn a_lease_resigned_is_free_at_once(bed: &Bed) {
    let epoch = bed.acquire_lease("r", "a", LONG).await.unwrap().unwrap();
    bed.resign_lease("r", "b", epoch).await.unwrap();
    bed.resign_lease("r", "a", Epoch(9)).await.unwrap();
    assert_eq!(
        bed.acquire_lease("r", "b", LONG).await.unwrap(),
        None,
        "only its holder resigns it"
    );
    bed.resign_lease("r", "a", epoch).await.unwrap();
    assert!(!bed.renew_lease("r", "a", epoch, LONG).await.unwrap());
    assert_eq!(bed.acquire_lease("r", "b", LONG).await.unwrap(), Some(Epoch(2)));
}

const TASKS: usize = 600;
const BATCH: usize = 3;

/// What the managers of one test share.
struct Contest {
    store: Store,
    raw: AnyPool,
    tasks: Vec<(TaskId, TaskKind)>,
    next: AtomicUsize,
    refused: AtomicUsize,
    /// At each take-over: the new epoch, and how many tasks were granted under earlier ones.
    counted: Mutex<Vec<(i64, i64)>>,
}

/// Steals the lease and grants, over and over. It never looks at its own clock: one that was stopped for a while
/// does not either.
async fn manage(contest: Arc<Contest>, holder: String) {
    while contest.next.load(Ordering::Relaxed) < TASKS {
        let stolen = contest
            .store
            .acquire_lease(ROLE, &holder, Duration::from_millis(2))
            .await
            .unwrap();
        let Some(epoch) = stolen else { continue };
        let before = committed_before(&contest.raw, epoch.0).await;
        contest.counted.lock().unwrap().push((epoch.0, before));
        loop {
            let begin = contest.next.fetch_add(BATCH, Ordering::Relaxed);
            if begin >= TASKS {
                break;
            }
            let batch: Vec<_> = contest.tasks[begin..begin + BATCH]
                .iter()
                .map(|(id, kind)| grant(*id, kind))
                .collect();
            match contest.store.commit_grants(epoch, &batch).await {
                Ok(granted) => assert_eq!(granted.len(), BATCH),
                Err(StoreError::LeadershipLost) => {
                    contest.refused.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                Err(e) => panic!("{e:?}"),
            }
        }
    }
}

async fn committed_before(raw: &AnyPool, epoch: i64) -> i64 {
    sqlx::query("SELECT COUNT(*) FROM tasks WHERE epoch < $1")
        .bind(epoch)
        .fetch_one(raw)
        .await
        .unwrap()
        .get(0)
}

/// Four managers steal one lease from each other. Whoever has taken over counts what was committed under earlier
/// epochs; nothing may be added to that afterwards.
async fn what_the_dead_held_is_free_at_once_for_who_knows_that_they_are(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    bed.running(epoch, &worker, &delete("r")).await;
    let granted = bed.enqueue(&delete("s")).await;
    bed.grant(epoch, granted, &delete("s")).await.unwrap();
    bed.release_what_the_dead_held().await.unwrap();
    assert_eq!(bed.heartbeat(&worker, LONG).await.unwrap(), Heartbeat::Lost);
    let again = bed.worker(LONG).await;
    assert_eq!(again.name, worker.name);
    let next = bed.acquire_lease(ROLE, "the next", LONG).await.unwrap();
    assert!(next > Some(epoch));
    assert_eq!(bed.resend_unclaimed(next.unwrap(), LONG).await.unwrap(), 1);
}

async fn no_leader_commits_under_an_epoch_that_is_over(bed: &Bed) {
    let mut tx = bed.begin().await.unwrap();
    let mut tasks = Vec::new();
    for n in 0..TASKS {
        let kind = delete(&format!("r{n}"));
        tasks.push((tx.enqueue(&kind).await.unwrap(), kind));
    }
    tx.commit().await.unwrap();
    let contest = Arc::new(Contest {
        store: bed.store.clone(),
        raw: bed.raw().await,
        tasks,
        next: AtomicUsize::new(0),
        refused: AtomicUsize::new(0),
        counted: Mutex::default(),
    });
    let managers = (0..4).map(|n| tokio::spawn(manage(Arc::clone(&contest), format!("manager {n}"))));
    for manager in join_all(managers).await {
        manager.unwrap();
    }
    let counted = contest.counted.lock().unwrap().clone();
    for (epoch, before) in &counted {
        let after = committed_before(&contest.raw, *epoch).await;
        assert_eq!(
            after, *before,
            "epoch {epoch} had taken over, then an earlier one committed"
        );
    }
    assert!(
        counted.len() > 4,
        "the lease was stolen {} times only",
        counted.len()
    );
    assert!(
        contest.refused.load(Ordering::Relaxed) > 0,
        "no grant came too late"
    );
    assert_eq!(bed.reservation_violations().await.unwrap(), 0);
}
