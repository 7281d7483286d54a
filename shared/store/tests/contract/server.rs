//! A server that goes away. Each test has one of its own.

use std::time::Duration;

use pulp_model::task::TaskState;
use pulp_store::{Store, StoreError, attempts::Outcome};
use pulp_testkit::Postgres;
use serde_json::json;

use crate::support::{LONG, PATIENCE, blob, claimed, delete, eventually, grant, new_repository};

async fn fresh() -> (Postgres, Store) {
    let postgres = Postgres::start().unwrap();
    let url = postgres.create_database("faults").unwrap();
    let store = Store::connect(&url, 4).await.unwrap();
    store.migrate().await.unwrap();
    (postgres, store)
}

async fn create(store: &Store, id: &str) -> Result<(), StoreError> {
    let mut tx = store.begin().await?;
    tx.create_repository(&new_repository(id)).await?;
    tx.commit().await
}

fn assert_transient<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    match result {
        Err(e) if e.is_transient() => {}
        other => panic!("not transient: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_never_was_there_is_unavailable_not_unmigrated() {
    let port = pulp_testkit::free_port().unwrap();
    let store = Store::connect(&format!("postgres://x@127.0.0.1:{port}/y"), 2)
        .await
        .unwrap();
    assert!(!store.is_connected().await);
    assert_transient(store.pending_migrations().await);
    assert_transient(store.migrate().await);
    assert_transient(store.begin().await.map(drop));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_fail_as_transient_while_the_server_is_down_and_work_again_after() {
    let (mut postgres, store) = fresh().await;
    create(&store, "before").await.unwrap();
    postgres.stop().unwrap();
    assert_transient(create(&store, "during").await);
    assert_transient(store.repositories().await);
    assert_transient(store.check_schema().await);
    assert!(!store.is_connected().await);
    postgres.start_again().unwrap();
    // The pool's connections are all dead; the first call finds a new one.
    create(&store, "after").await.unwrap();
    let ids: Vec<_> = store
        .repositories()
        .await
        .unwrap()
        .iter()
        .map(|r| r.id.to_string())
        .collect();
    assert_eq!(ids, ["after", "before"]);
    postgres.restart().unwrap();
    assert!(store.is_connected().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_within_an_effect_leaves_nothing_of_it_and_the_attempt_goes_on() {
    let (mut postgres, store) = fresh().await;
    create(&store, "r").await.unwrap();
    let repo = "r".parse().unwrap();
    let epoch = store
        .acquire_lease(pulp_store::grants::ROLE, "me", LONG)
        .await
        .unwrap()
        .unwrap();
    let mut tx = store.begin().await.unwrap();
    let id = tx.enqueue(&delete("r")).await.unwrap();
    tx.commit().await.unwrap();
    let granted = store
        .commit_grants(epoch, &[grant(id, &delete("r"))])
        .await
        .unwrap();
    let worker = store
        .register_worker("worker", "w", "h", true, LONG)
        .await
        .unwrap();
    let lease = claimed(store.claim(id, granted[0].1, &worker).await.unwrap()).lease;

    let mut fenced = store.begin_fenced(&lease).await.unwrap();
    fenced.commit_version(&repo, &[blob("1")]).await.unwrap().unwrap();
    postgres.kill().unwrap();
    let ended = fenced.finish(&Outcome::Finished(json!(null)), &json!({})).await;
    assert_transient(ended);
    postgres.start_again().unwrap();

    assert_eq!(store.repository(&repo).await.unwrap().unwrap().version.0, 0);
    assert_eq!(store.task(id).await.unwrap().unwrap().state, TaskState::Running);
    let mut fenced = store.begin_fenced(&lease).await.unwrap();
    let change = fenced.commit_version(&repo, &[blob("1")]).await.unwrap().unwrap();
    assert_eq!((change.number.0, change.added), (1, 1));
    fenced
        .finish(&Outcome::Finished(json!(null)), &json!({}))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_within_a_transaction_fails_it_and_the_pool_makes_another() {
    let (postgres, store) = fresh().await;
    let mut tx = store.begin().await.unwrap();
    tx.create_repository(&new_repository("r")).await.unwrap();
    postgres
        .psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pulp'")
        .unwrap();
    assert_transient(tx.commit().await);
    assert!(store.repositories().await.unwrap().is_empty());
    // Locks of the lost transaction are gone too.
    create(&store, "r").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_come_through_a_restart_by_trying_again() {
    let (mut postgres, store) = fresh().await;
    let callers: Vec<_> = (0..8)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                for k in 0..30 {
                    loop {
                        match create(&store, &format!("r-{n}-{k}")).await {
                            // A duplicate: the commit before was done, but its answer was lost.
                            Ok(()) | Err(StoreError::Duplicate(_)) => break,
                            Err(e) if e.is_transient() => {
                                tokio::time::sleep(Duration::from_millis(10)).await;
                            }
                            Err(e) => panic!("{e:?}"),
                        }
                    }
                }
            })
        })
        .collect();
    eventually("they are at work", || async {
        store.repositories().await.is_ok_and(|r| r.len() > 20)
    })
    .await;
    postgres.kill().unwrap();
    postgres.start_again().unwrap();
    for caller in callers {
        tokio::time::timeout(PATIENCE, caller).await.unwrap().unwrap();
    }
    assert_eq!(store.repositories().await.unwrap().len(), 240);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_is_all_taken_is_told_as_unavailable() {
    let (_postgres, store) = fresh().await;
    let mut taken = Vec::new();
    for _ in 0..4 {
        taken.push(store.begin().await.unwrap());
    }
    assert_transient(store.begin().await.map(drop));
    drop(taken);
    create(&store, "r").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_does_not_exist_is_told() {
    let (postgres, _store) = fresh().await;
    let url = postgres.url().replace("/postgres", "/nowhere");
    // The user's name is `postgres` as well.
    let url = url.replace("//nowhere", "//postgres");
    let store = Store::connect(&url, 2).await.unwrap();
    let told = store.pending_migrations().await.unwrap_err();
    assert!(!told.is_transient(), "{told:?}");
    assert!(format!("{told:?}").contains("nowhere"), "{told:?}");
}
