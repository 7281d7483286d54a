//! Who goes first where tasks don't concern each other: a leader over a real database, workers told in a few lines.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use pulp_broker::Message;
use pulp_model::{
    Attempt, Epoch, TaskId,
    deadline::{Deadlines, HardLimits},
    task::{Owner, TaskClass, TaskKind, TaskState},
};
use pulp_resource_manager::{
    Settings,
    leader::{Leader, News},
};
use pulp_store::{
    ClaimOutcome, Store,
    attempts::Outcome,
    grants::ROLE,
    outbox::OutboxRow,
    tasks::Submission,
    workers::{Incarnation, Serving},
};
use serde_json::{Map, json};

const LONG: Duration = Duration::from_mins(10);

fn settings(weights: &[(&str, u32)]) -> Settings {
    let weights = weights
        .iter()
        .map(|(owner, weight)| ((*owner).to_owned(), *weight));
    Settings {
        lease_ttl: LONG,
        sweep: LONG,
        grant_batch: 500,
        max_attempts: 3,
        cancel_grace: LONG,
        limits: HardLimits {
            deadlines: Deadlines::of_this_release(LONG),
            without_progress: None,
        },
        stalled_after: LONG,
        resend_after: LONG,
        owner_weights: Arc::new(weights.collect::<BTreeMap<_, _>>()),
    }
}

/// Something befell this task.
fn changed(task: TaskId) -> News {
    News {
        changed: vec![task],
        ..News::default()
    }
}

struct Bed {
    store: Store,
    worker: Incarnation,
    epoch: Epoch,
    _folder: tempfile::TempDir,
}

impl Bed {
    /// A worker with two slots for publishes and two for interactive tasks.
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("pulp.db").display());
        let store = Store::connect(&url, 4).await.unwrap();
        store.migrate().await.unwrap();
        let slots = BTreeMap::from([(TaskClass::Publish, 2), (TaskClass::Interactive, 2)]);
        let serving = Serving::of_this_release(slots);
        let worker = store
            .register_serving("worker", "w", "h", true, LONG, &serving)
            .await
            .unwrap();
        let epoch = store.acquire_lease(ROLE, "leader", LONG).await.unwrap().unwrap();
        Self {
            store,
            worker,
            epoch,
            _folder: folder,
        }
    }

    /// Tasks of this owner, each on a repository of its own.
    async fn submit(&self, owner: &Owner, kinds: impl IntoIterator<Item = TaskKind>) -> Vec<TaskId> {
        let mut tx = self.store.begin().await.unwrap();
        let mut ids = Vec::new();
        for kind in kinds {
            let submission = Submission::new(&kind, owner.clone());
            ids.push(tx.submit(&submission).await.unwrap());
        }
        tx.commit().await.unwrap();
        ids
    }

    /// Of these tasks, those that are granted, in the order of their grants.
    async fn granted(&self, known: &HashSet<TaskId>) -> Vec<TaskId> {
        let live = self.store.live_tasks().await.unwrap();
        live.iter()
            .filter(|t| t.state == TaskState::Accepted && !known.contains(&t.id))
            .map(|t| t.id)
            .collect()
    }

    /// Runs a granted task to its end.
    async fn run(&self, id: TaskId) {
        let live = self.store.live_among(&[id]).await.unwrap().remove(0);
        let claimed = self.store.claim(id, live.attempt, &self.worker).await.unwrap();
        let ClaimOutcome::Claimed(task) = claimed else {
            panic!("{claimed:?}")
        };
        let fenced = self.store.begin_fenced(&task.lease).await.unwrap();
        let end = Outcome::Finished(json!({}));
        fenced.finish(&end, &json!({})).await.unwrap();
    }
}

fn publish(repo: &str) -> TaskKind {
    TaskKind::Publish {
        repo_id: repo.parse().unwrap(),
        distributor_id: "web".parse().unwrap(),
        override_config: Map::new(),
    }
}

fn publishes(of: &str, count: usize) -> impl Iterator<Item = TaskKind> {
    (0..count).map(move |n| publish(&format!("{of}{n}")))
}

fn user(login: &str) -> Owner {
    Owner::user(&login.parse().unwrap())
}

#[tokio::test]
async fn one_task_is_granted_soon_however_much_of_anothers_waits() {
    let bed = Bed::new().await;
    let settings = settings(&[]);
    let mut leader = Leader::new(&settings, &bed.store, bed.epoch);
    bed.submit(&user("bob"), publishes("b", 2_000)).await;
    leader.sweep(true).await.unwrap();
    // What keeps two slots busy is granted, and not the 2,000.
    let ahead = bed.granted(&HashSet::new()).await;
    assert!((2..=8).contains(&ahead.len()), "{}", ahead.len());
    let anns = bed.submit(&user("ann"), [publish("a")]).await[0];
    leader.take_in(changed(anns)).await.unwrap();
    // The next to be granted when a slot is free.
    let mut seen: HashSet<TaskId> = ahead.iter().copied().collect();
    bed.run(ahead[0]).await;
    leader.take_in(changed(ahead[0])).await.unwrap();
    let next = bed.granted(&seen).await;
    assert!(next.contains(&anns), "{next:?}");
    seen.extend(next);
    // And a turn later bob's go on.
    bed.run(anns).await;
    leader.take_in(changed(anns)).await.unwrap();
    assert_eq!(bed.granted(&seen).await.len(), 1);
}

#[tokio::test]
async fn what_somebody_waits_for_is_not_held_up_by_a_burst_of_scheduled_work() {
    let bed = Bed::new().await;
    let settings = settings(&[("scheduler", 1000)]);
    let mut leader = Leader::new(&settings, &bed.store, bed.epoch);
    bed.submit(&Owner::scheduler(), publishes("s", 500)).await;
    leader.sweep(true).await.unwrap();
    let busy: HashSet<TaskId> = bed.granted(&HashSet::new()).await.into_iter().collect();
    // Every slot for publishes is taken, whatever the weights; the class of deletions has slots of its own.
    let delete = TaskKind::DeleteRepository {
        repo_id: "quick".parse().unwrap(),
    };
    let quick = bed.submit(&user("ann"), [delete]).await[0];
    leader.take_in(changed(quick)).await.unwrap();
    assert_eq!(bed.granted(&busy).await, [quick]);
}

#[tokio::test]
async fn owners_get_turns_by_their_weights() {
    let bed = Bed::new().await;
    let settings = settings(&[("user:release", 3)]);
    let mut leader = Leader::new(&settings, &bed.store, bed.epoch);
    let mut owner_of: HashMap<TaskId, &str> = HashMap::new();
    for login in ["bob", "release"] {
        for id in bed.submit(&user(login), publishes(login, 60)).await {
            owner_of.insert(id, login);
        }
    }
    leader.sweep(true).await.unwrap();
    let mut seen = HashSet::new();
    let mut served: HashMap<&str, usize> = HashMap::new();
    while seen.len() < 60 {
        let next = bed.granted(&seen).await;
        assert!(!next.is_empty(), "after {}", seen.len());
        for id in next {
            seen.insert(id);
            *served.entry(owner_of[&id]).or_default() += 1;
            bed.run(id).await;
            leader.take_in(changed(id)).await.unwrap();
        }
    }
    // Three turns to one, give or take what the last round cut off.
    let share = seen.len() * 3 / 4;
    assert!(served["release"].abs_diff(share) <= 2, "{served:?}");
}

#[tokio::test]
async fn a_task_told_of_again_while_it_runs_and_after_its_end_takes_its_place_once() {
    let bed = Bed::new().await;
    let settings = settings(&[]);
    let mut leader = Leader::new(&settings, &bed.store, bed.epoch);
    leader.sweep(true).await.unwrap();
    let first = bed.submit(&user("ann"), [publish("a")]).await[0];
    let made: Vec<_> = bed.store.outbox_fresh(1).iter().map(message).collect();
    let told = || News {
        changed: vec![first],
        made: made.iter().flat_map(Message::made).cloned().collect(),
        ..News::default()
    };
    assert_eq!(told().made.len(), 1);
    leader.take_in(told()).await.unwrap();
    assert_eq!(bed.granted(&HashSet::new()).await, [first]);
    leader.take_in(told()).await.unwrap();
    let granted = bed.store.live_among(&[first]).await.unwrap().remove(0);
    assert_eq!(
        (granted.state, granted.attempt),
        (TaskState::Accepted, Attempt(1))
    );
    // Of its end the leader hears nothing, but twice more that it was made.
    bed.run(first).await;
    leader.take_in(told()).await.unwrap();
    leader.take_in(told()).await.unwrap();
    let second = bed.submit(&user("ann"), [publish("a")]).await[0];
    leader.take_in(changed(second)).await.unwrap();
    assert_eq!(bed.granted(&HashSet::new()).await, [second]);
}

fn message(row: &OutboxRow) -> Message {
    Message::from_json(row.body().as_bytes()).unwrap()
}
