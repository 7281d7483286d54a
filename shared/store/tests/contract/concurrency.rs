//! Many at once.

use futures::future::join_all;
use pulp_store::{Store, attempts::Outcome};
use serde_json::json;

use crate::support::{Bed, LONG, blob, claimed, contract, delete, grant};

contract!(
    many_writers_and_readers_go_on_together,
    lives_of_many_tasks_end_once_each
);

/// Several processes, each with many tasks that write: nobody is told that the database is locked.
async fn many_writers_and_readers_go_on_together(bed: &Bed) {
    let mut calls = Vec::new();
    for process in 0..3 {
        let store = bed.another_process().await;
        for n in 0..20 {
            let store = store.clone();
            calls.push(tokio::spawn(async move {
                let repo = format!("r-{process}-{n}");
                let mut tx = store.begin().await.unwrap();
                tx.create_repository(&crate::support::new_repository(&repo))
                    .await
                    .unwrap();
                tx.enqueue(&delete(&repo)).await.unwrap();
                tx.commit().await.unwrap();
                for _ in 0..3 {
                    store.repositories().await.unwrap();
                    store.live_tasks().await.unwrap();
                    let mut tx = store.begin().await.unwrap();
                    tx.enqueue(&delete(&repo)).await.unwrap();
                    tx.commit().await.unwrap();
                }
            }));
        }
    }
    for call in join_all(calls).await {
        call.unwrap();
    }
    assert_eq!(bed.repositories().await.unwrap().len(), 60);
    assert_eq!(bed.live_tasks().await.unwrap().len(), 240);
    assert_eq!(bed.outbox_depth().await.unwrap(), 240);
}

async fn run(store: Store, repo: String, id: pulp_model::TaskId, attempt: pulp_model::Attempt) {
    let worker = store
        .register_worker("worker", "w", "h", true, LONG)
        .await
        .unwrap();
    let task = claimed(store.claim(id, attempt, &worker).await.unwrap());
    store.write_progress(&task.lease, &json!({"n": 1})).await.unwrap();
    store.heartbeat(&worker, LONG).await.unwrap();
    let mut tx = store.begin_fenced(&task.lease).await.unwrap();
    let units = [blob("in all"), blob(&repo)];
    tx.commit_version(&repo.parse().unwrap(), &units)
        .await
        .unwrap()
        .unwrap();
    tx.finish(&Outcome::Finished(json!(null)), &json!({}))
        .await
        .unwrap();
}

async fn lives_of_many_tasks_end_once_each(bed: &Bed) {
    let epoch = bed.lead().await;
    let mut grants = Vec::new();
    for n in 0..24 {
        let repo = format!("r{n}");
        bed.create_repository(&repo).await;
        let kind = delete(&repo);
        grants.push((repo, grant(bed.enqueue(&kind).await, &kind)));
    }
    let batch: Vec<_> = grants.iter().map(|(_, grant)| grant.clone()).collect();
    let granted = bed.commit_grants(epoch, &batch).await.unwrap();
    let runs = grants
        .iter()
        .zip(granted)
        .map(|((repo, _), (id, attempt))| tokio::spawn(run(bed.store.clone(), repo.clone(), id, attempt)));
    for run in join_all(runs).await {
        run.unwrap();
    }
    assert!(bed.live_tasks().await.unwrap().is_empty());
    assert_eq!(bed.reservation_violations().await.unwrap(), 0);
    assert_eq!(bed.number("SELECT COUNT(*) FROM reservations").await, 0);
    for repository in bed.repositories().await.unwrap() {
        assert_eq!(repository.version.0, 1);
        assert_eq!(repository.content_unit_counts["docker_blob"], 2);
    }
}
