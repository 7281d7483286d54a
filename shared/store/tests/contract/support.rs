//! A database a test, and short ways to say what a test needs.

use std::{future::Future, ops::Deref, pin::Pin, time::Duration};

use pulp_model::{
    Attempt, Digest, Epoch, MediaType, RepositoryId, TaskId, WorkerName,
    task::{Owner, TaskKind},
    unit::{BlobUnit, LayerRef, ManifestKind, ManifestUnit, TagUnit, Unit},
};
use pulp_store::{
    ClaimOutcome, ClaimedTask, Engine, FencedTx, Store,
    attempts::Outcome,
    grants::{Grant, ROLE},
    repositories::NewRepository,
    tasks::{CancelOutcome, Submission, Task},
    workers::Incarnation,
};
use serde_json::{Map, json};
use sqlx::{AnyPool, AssertSqlSafe, Row as _, any::AnyPoolOptions};
use tempfile::TempDir;

/// Makes `sqlite::<name>` and `postgres::<name>` of each named `async fn(&Bed)`.
macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let bed = crate::support::Bed::sqlite().await;
                    super::$name(&bed).await;
                }
            )*
        }

        mod postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let bed = crate::support::Bed::postgres(stringify!($name)).await;
                    super::$name(&bed).await;
                }
            )*
        }
    };
}
pub(crate) use contract;

/// Long enough for any machine; reached only by a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// A lease that no test outlives.
pub(crate) const LONG: Duration = Duration::from_mins(10);
/// A lease that ends at once.
pub(crate) const BLINK: Duration = Duration::from_millis(1);

/// A migrated database that only one test sees.
pub(crate) struct Bed {
    pub(crate) store: Store,
    pub(crate) url: String,
    _folder: Option<TempDir>,
}

impl Deref for Bed {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

impl Bed {
    pub(crate) async fn sqlite() -> Self {
        let bed = Self::empty_sqlite().await;
        bed.store.migrate().await.unwrap();
        bed
    }

    pub(crate) async fn postgres(name: &str) -> Self {
        let bed = Self::empty_postgres(name).await;
        bed.store.migrate().await.unwrap();
        bed
    }

    pub(crate) async fn empty_sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("pulp.sqlite").display());
        Self {
            store: Store::connect(&url, 8).await.unwrap(),
            url,
            _folder: Some(folder),
        }
    }

    pub(crate) async fn empty_postgres(name: &str) -> Self {
        let url = pulp_testkit::shared_postgres()
            .unwrap()
            .create_database(name)
            .unwrap();
        Self {
            store: Store::connect(&url, 8).await.unwrap(),
            url,
            _folder: None,
        }
    }

    /// Another process's way to the same database.
    pub(crate) async fn another_process(&self) -> Store {
        Store::connect(&self.url, 4).await.unwrap()
    }

    pub(crate) fn is_postgres(&self) -> bool {
        self.engine() == Engine::Postgres
    }

    /// Connections of the test's own, to look behind the store or to break something on purpose.
    pub(crate) async fn raw(&self) -> AnyPool {
        sqlx::any::install_default_drivers();
        AnyPoolOptions::new()
            .max_connections(2)
            .connect(&self.url)
            .await
            .unwrap()
    }

    /// Runs one statement behind the store's back.
    pub(crate) async fn execute(&self, sql: &str) {
        let pool = self.raw().await;
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&pool)
            .await
            .unwrap();
        pool.close().await;
    }

    /// The first column of the only row.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        let pool = self.raw().await;
        let found = sqlx::query(AssertSqlSafe(sql.to_owned()))
            .fetch_one(&pool)
            .await
            .unwrap();
        pool.close().await;
        found.get(0)
    }

    pub(crate) async fn enqueue(&self, kind: &TaskKind) -> TaskId {
        let mut tx = self.begin().await.unwrap();
        let id = tx.enqueue(kind).await.unwrap();
        tx.commit().await.unwrap();
        id
    }

    /// Enqueues in a group.
    pub(crate) async fn enqueue_in(&self, group: &str, owner: &Owner, kind: &TaskKind) -> TaskId {
        let mut tx = self.begin().await.unwrap();
        let submission = Submission::new(kind, owner.clone()).in_group(group);
        let id = tx.submit(&submission).await.unwrap();
        tx.commit().await.unwrap();
        id
    }

    pub(crate) async fn cancel(&self, id: TaskId) -> CancelOutcome {
        let mut tx = self.begin().await.unwrap();
        let outcome = tx.cancel_task(id).await.unwrap();
        tx.commit().await.unwrap();
        outcome
    }

    pub(crate) async fn task_of(&self, id: TaskId) -> Task {
        self.task(id).await.unwrap().unwrap()
    }

    pub(crate) async fn lead(&self) -> Epoch {
        self.acquire_lease(ROLE, "the leader", LONG)
            .await
            .unwrap()
            .unwrap()
    }

    /// Grants as the resource manager does: all that `kind` claims.
    pub(crate) async fn grant(&self, epoch: Epoch, id: TaskId, kind: &TaskKind) -> Option<Attempt> {
        let granted = self.commit_grants(epoch, &[grant(id, kind)]).await.unwrap();
        granted.first().map(|(_, attempt)| *attempt)
    }

    pub(crate) async fn worker(&self, ttl: Duration) -> Incarnation {
        self.register_worker("worker", "w", "h", true, ttl).await.unwrap()
    }

    /// A task of `kind` that this worker runs.
    pub(crate) async fn running(&self, epoch: Epoch, worker: &Incarnation, kind: &TaskKind) -> ClaimedTask {
        let id = self.enqueue(kind).await;
        let attempt = self.grant(epoch, id, kind).await.unwrap();
        claimed(self.claim(id, attempt, worker).await.unwrap())
    }

    /// A fenced transaction of a fresh task, for tests that are about its effect.
    pub(crate) async fn fenced(&self) -> FencedTx {
        let epoch = self.epoch().await;
        let worker = self.worker(LONG).await;
        let kind = delete(&format!("scratch-{}", TaskId::new()));
        let task = self.running(epoch, &worker, &kind).await;
        self.begin_fenced(&task.lease).await.unwrap()
    }

    pub(crate) async fn epoch(&self) -> Epoch {
        match self.acquire_lease(ROLE, "the leader", LONG).await.unwrap() {
            Some(epoch) => epoch,
            None => Epoch(self.number("SELECT epoch FROM leases").await),
        }
    }

    pub(crate) async fn create_repository(&self, id: &str) -> RepositoryId {
        let mut tx = self.begin().await.unwrap();
        tx.create_repository(&new_repository(id)).await.unwrap();
        tx.commit().await.unwrap();
        id.parse().unwrap()
    }

    /// Commits units as one task does; answers version number, added and removed.
    pub(crate) async fn commit_units(&self, repo: &RepositoryId, units: &[Unit]) -> (i64, u64, u64) {
        let mut tx = self.fenced().await;
        let change = tx.commit_version(repo, units).await.unwrap().unwrap();
        finish(tx).await;
        (change.number.0, change.added, change.removed)
    }
}

pub(crate) fn new_repository(id: &str) -> NewRepository {
    NewRepository {
        id: id.parse().unwrap(),
        display_name: format!("Repository {id}"),
        description: None,
        notes: Map::new(),
    }
}

pub(crate) async fn finish(tx: FencedTx) {
    tx.finish(&Outcome::Finished(json!(null)), &json!({}))
        .await
        .unwrap();
}

pub(crate) fn claimed(outcome: ClaimOutcome) -> ClaimedTask {
    match outcome {
        ClaimOutcome::Claimed(task) => *task,
        other => panic!("not claimed: {other:?}"),
    }
}

pub(crate) fn grant(id: TaskId, kind: &TaskKind) -> Grant {
    Grant {
        id,
        class: kind.class(),
        claims: kind.claims(),
    }
}

/// A task that is alone on its repository.
pub(crate) fn delete(repo: &str) -> TaskKind {
    TaskKind::DeleteRepository {
        repo_id: repo.parse().unwrap(),
    }
}

/// A task that shares its repository and is alone on its distributor.
pub(crate) fn publish(repo: &str, distributor: &str) -> TaskKind {
    TaskKind::Publish {
        repo_id: repo.parse().unwrap(),
        distributor_id: distributor.parse().unwrap(),
        override_config: Map::new(),
    }
}

pub(crate) fn worker_name(name: &str) -> WorkerName {
    WorkerName(name.to_owned())
}

pub(crate) fn digest(seed: impl AsRef<[u8]>) -> Digest {
    Digest::sha256(seed)
}

pub(crate) fn blob(seed: &str) -> Unit {
    Unit::Blob(BlobUnit {
        digest: digest(seed),
        size: seed.len() as u64,
    })
}

/// A manifest with its config `<seed>-config` and the layers named.
pub(crate) fn manifest(seed: &str, layers: &[&str]) -> Unit {
    Unit::Manifest(ManifestUnit {
        digest: digest(seed),
        media_type: MediaType::OCI_MANIFEST,
        schema_version: 2,
        size: 500,
        config_layer: Some(digest(format!("{seed}-config"))),
        fs_layers: layers
            .iter()
            .map(|l| LayerRef {
                blob_sum: digest(l),
                size: Some(7),
                layer_type: Some(MediaType::OCI_LAYER_GZIP),
            })
            .collect(),
        subject: None,
        artifact_type: None,
        annotations: std::collections::BTreeMap::new(),
    })
}

pub(crate) fn tag(repo: &RepositoryId, name: &str, target: &str, manifest_type: ManifestKind) -> Unit {
    Unit::Tag(TagUnit {
        name: name.parse().unwrap(),
        repo_id: repo.clone(),
        manifest_digest: digest(target),
        schema_version: 2,
        manifest_type,
    })
}

/// Waits until `condition` holds, looking every few milliseconds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{what}: not within {PATIENCE:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until `call` waits for somebody else's transaction to end.
pub(crate) async fn assert_waits<T>(bed: &Bed, mut call: Pin<&mut impl Future<Output = T>>) {
    if !bed.is_postgres() {
        // One writer: the first thing that the call does is to queue for its place.
        assert!(futures::poll!(call).is_pending(), "it did not wait");
        return;
    }
    let waits = eventually("it waits for a lock", || async {
        let sql = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        bed.number(sql).await > 0
    });
    tokio::select! {
        _ = &mut call => panic!("it did not wait"),
        () = waits => {}
    }
}

/// Waits until the database's clock has gone on.
pub(crate) async fn tick(store: &Store) {
    let before = store.now().await.unwrap();
    eventually("the clock goes on", || async {
        // A lease lives up to and including its last instant.
        store.now().await.unwrap() > before.plus_micros(3_000)
    })
    .await;
}
