//! The ledger tells the truth: whatever is asked of it and of the SQL store, in any order, both answer the same.
//!
//! Seeded sequences of calls, wrong ones among them (old epochs, attempts that are over, workers that are dead), run
//! on both side by side; after each call the answers are compared, and with them all live tasks, the reservations'
//! health and the messages left for the relay.

mod both;
mod compare;

use std::{collections::HashMap, time::Duration};

use pulp_model::{
    Attempt, Epoch, Timestamp,
    deadline::{Deadline, Deadlines, HardLimits},
    task::{TaskKind, TaskState},
};
use pulp_store::{Store, grants::ROLE};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use serde_json::{Map, json};

use crate::ledger::{Ledger, Mutation};
use both::Both;

/// No test outlives it.
const LONG: Duration = Duration::from_mins(10);
/// Over at the next tick.
const BLINK: Duration = Duration::from_millis(1);
const CALLS: u32 = 120;

/// All runs are beyond them, those of one kind are, or those without progress, or none.
fn some_limits(rng: &mut SmallRng) -> HardLimits {
    let mut deadlines = Deadlines::of_this_release(LONG);
    for kind in ["publish", "update_importer"] {
        if rng.random_bool(0.3) {
            let (soft, hard) = (Duration::ZERO, BLINK);
            deadlines.set(kind, Deadline { soft, hard });
        }
    }
    let still = if rng.random_bool(0.3) { BLINK * 3 } else { LONG };
    HardLimits {
        deadlines,
        without_progress: rng.random_bool(0.5).then_some(still),
    }
}

fn some_kind(rng: &mut SmallRng, n: u32) -> TaskKind {
    let repo_id = format!("r{}", rng.random_range(0..6)).parse().unwrap();
    // Each is another request, or two that wait would share a task.
    let config = Map::from_iter([("n".to_owned(), json!(n))]);
    if rng.random_bool(0.5) {
        TaskKind::UpdateImporter {
            repo_id,
            importer_type_id: None,
            config,
        }
    } else {
        TaskKind::Publish {
            repo_id,
            distributor_id: format!("d{}", rng.random_range(0..3)).parse().unwrap(),
            override_config: config,
        }
    }
}

/// Counts the answers by their words, so that a test can tell what was tried.
async fn both_answer_the_same(store: Store, seed: u64, mutation: Mutation) -> HashMap<String, u32> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut both = Both {
        store,
        ledger: Ledger::new(mutation),
        now: Timestamp(1_700_000_000_000_000),
        tasks: Vec::new(),
        leases: HashMap::new(),
        workers: Vec::new(),
        epochs: Vec::new(),
    };
    let mut answers = HashMap::new();
    let mut story = vec![format!("seed {seed}")];
    both.acquire("a").await.0.unwrap();
    for n in 0..CALLS {
        both.tick().await;
        let epoch = match both.epochs.len() {
            0 => Epoch(1),
            // Mostly the present one.
            len if rng.random_bool(0.9) => both.epochs[len - 1],
            len => both.epochs[rng.random_range(0..len)],
        };
        let zero_or_long = if rng.random_bool(0.5) {
            Duration::ZERO
        } else {
            LONG
        };
        let some = |rng: &mut SmallRng, len: usize| (len > 0).then(|| rng.random_range(0..len.max(1)));
        let (task, worker) = (
            some(&mut rng, both.tasks.len()),
            some(&mut rng, both.workers.len()),
        );
        let lease = some(&mut rng, both.leases.len()).map(|at| {
            let mut keys: Vec<_> = both.leases.keys().copied().collect();
            keys.sort();
            (keys[at].0, both.leases[&keys[at]].clone())
        });
        let state = [TaskState::Finished, TaskState::Error, TaskState::Canceled][rng.random_range(0..3)];
        let choice = rng.random_range(0..110);
        let (call, (ours, theirs)) = match (choice, task, worker, lease) {
            (0..20, ..) => {
                let kind = some_kind(&mut rng, n);
                let call = format!("enqueue {kind:?}");
                both.enqueue(kind).await;
                (call, (Ok(String::new()), Ok(String::new())))
            }
            (20..24, ..) => (
                "acquire".into(),
                both.acquire(["a", "b"][rng.random_range(0..2)]).await,
            ),
            (24..26, ..) => {
                for holder in ["a", "b"] {
                    both.store.resign_lease(ROLE, holder, epoch).await.unwrap();
                    both.ledger.resign_lease(holder, epoch);
                }
                (format!("resign {epoch}"), (Ok(String::new()), Ok(String::new())))
            }
            (26..28, ..) => {
                let theirs = both.store.renew_lease(ROLE, "a", epoch, LONG).await.unwrap();
                let ours = both.ledger.renew_lease(both.now, "a", epoch, LONG);
                (
                    format!("renew {epoch}"),
                    (Ok(ours.to_string()), Ok(theirs.to_string())),
                )
            }
            (28..45, Some(_), ..) => {
                let count = rng.random_range(1..4);
                // The two clocks don't agree on when a pause is over.
                let pauses = |n: &usize| {
                    both.ledger
                        .row(both.tasks[*n].0)
                        .is_some_and(|r| r.not_before.is_some())
                };
                let chosen: Vec<usize> = (0..count)
                    .map(|_| rng.random_range(0..both.tasks.len()))
                    .filter(|n| !pauses(n))
                    .collect();
                (
                    format!("grant {chosen:?} under {epoch}"),
                    both.grant(epoch, &chosen).await,
                )
            }
            (45..50, ..) => {
                let ttl = if rng.random_bool(0.9) { LONG } else { BLINK };
                let publishes = rng.random_bool(0.7);
                (
                    format!("register {ttl:?}, publishes: {publishes}"),
                    both.register(ttl, publishes).await,
                )
            }
            (50..54, _, Some(worker), _) => {
                let ttl = if rng.random_bool(0.7) { LONG } else { BLINK };
                (
                    format!("heartbeat {worker} {ttl:?}"),
                    both.heartbeat(worker, ttl).await,
                )
            }
            (54..56, _, Some(worker), _) => {
                let (life, incarnation) = both.workers[worker].clone();
                both.store.unregister_worker(&incarnation).await.unwrap();
                both.ledger.unregister_worker(&life);
                (
                    format!("unregister {worker}"),
                    (Ok(String::new()), Ok(String::new())),
                )
            }
            (56..78, Some(task), Some(worker), _) => {
                // Mostly one that can succeed.
                let accepted = both.ledger.rows().find(|(_, r)| r.state == TaskState::Accepted);
                let task = accepted
                    .filter(|_| rng.random_bool(0.8))
                    .map_or(task, |(id, _)| both.ours(id));
                let worker = if rng.random_bool(0.8) {
                    both.workers.len() - 1
                } else {
                    worker
                };
                let granted = both.ledger.row(both.tasks[task].0).unwrap().attempt;
                let attempt = Attempt(
                    granted.0
                        + if rng.random_bool(0.9) {
                            0
                        } else {
                            rng.random_range(-1..2)
                        },
                );
                let call = format!("claim attempt {attempt} of {task} by {worker}");
                (call, both.claim(task, attempt, worker).await)
            }
            (78..86, .., Some((task, lease))) => {
                let call = format!("finish attempt {} of {task}: {state:?}", lease.attempt());
                (call, both.finish(task, &lease, state).await)
            }
            (86..87, .., Some((task, lease))) => {
                let call = format!("park attempt {} of {task} for {zero_or_long:?}", lease.attempt());
                (call, both.park(task, &lease, zero_or_long).await)
            }
            (87..89, .., Some((task, lease))) => {
                let call = format!("hand back attempt {} of {task}", lease.attempt());
                (call, both.hand_back(task, &lease).await)
            }
            (89..92, Some(task), ..) => {
                both.cancel(task).await;
                (format!("cancel {task}"), (Ok(String::new()), Ok(String::new())))
            }
            (92..95, ..) => (format!("revoke under {epoch}"), both.revoke(epoch).await),
            (95..97, ..) => {
                let call = format!("force cancel under {epoch} {zero_or_long:?}");
                (call, both.force_cancel(epoch, zero_or_long).await)
            }
            (97..100, ..) => {
                let call = format!("resend under {epoch} {zero_or_long:?}");
                (call, both.resend(epoch, zero_or_long).await)
            }
            (100..105, .., Some((task, lease))) => {
                let call = format!("progress of attempt {} of {task}", lease.attempt());
                (call, both.progress(task, &lease).await)
            }
            (105.., ..) => {
                let limits = some_limits(&mut rng);
                let call = format!("expire under {epoch} {:?}", limits.without_progress);
                (call, both.expire(epoch, &limits).await)
            }
            _ => continue,
        };
        story.push(format!("{call}: {ours:?}"));
        let word = match &ours {
            Ok(answer) => answer.split(['[', '@']).next().unwrap_or_default().to_owned(),
            Err(fault) => (*fault).to_owned(),
        };
        *answers.entry(word).or_default() += 1;
        assert_eq!(
            ours,
            theirs,
            "the ledger (left) and the store after\n{}",
            story.join("\n")
        );
        if n % 8 == 0 || n + 1 == CALLS {
            both.compare(&story).await;
        }
    }
    answers
}

async fn sqlite(folder: &tempfile::TempDir) -> Store {
    let url = format!("sqlite:{}", folder.path().join("pulp.sqlite").display());
    let store = Store::connect(&url, 4).await.unwrap();
    store.migrate().await.unwrap();
    store
}

#[tokio::test]
async fn the_ledger_answers_as_the_store_on_sqlite() {
    let mut answers: HashMap<String, u32> = HashMap::new();
    for seed in 0..12 {
        let folder = tempfile::tempdir().unwrap();
        for (word, n) in both_answer_the_same(sqlite(&folder).await, seed, Mutation::None).await {
            *answers.entry(word).or_default() += n;
        }
    }
    println!("{answers:?}");
    for word in [
        "Ours",
        "Refused",
        "WorkerLost",
        "Unreadable",
        "expired ",
        "lost",
        "done",
        "fenced",
        "conflict",
        "leadership lost",
    ] {
        assert!(
            answers.get(word).is_some_and(|n| *n >= 3),
            "{word} was hardly tried: {answers:?}"
        );
    }
}

#[tokio::test]
async fn the_ledger_answers_as_the_store_on_postgresql() {
    for seed in 100..103 {
        let url = pulp_testkit::shared_postgres()
            .unwrap()
            .create_database("ledger")
            .unwrap();
        let store = Store::connect(&url, 4).await.unwrap();
        store.migrate().await.unwrap();
        both_answer_the_same(store.clone(), seed, Mutation::None).await;
        store.close().await;
    }
}

#[tokio::test]
async fn a_ledger_that_does_not_tell_the_truth_is_found_out() {
    for mutation in [
        Mutation::NoCommitFence,
        Mutation::NoEpochCondition,
        Mutation::NoOutbox,
    ] {
        let mut found = false;
        for seed in 0..10 {
            let folder = tempfile::tempdir().unwrap();
            let store = sqlite(&folder).await;
            // Its panic is what is hoped for.
            found = tokio::spawn(async move {
                both_answer_the_same(store, seed, mutation).await;
            })
            .await
            .is_err();
            if found {
                break;
            }
        }
        assert!(found, "{mutation:?} was not noticed");
    }
}
