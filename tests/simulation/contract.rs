//! The ledger tells the truth: whatever is asked of it and of the SQL store, in any order, both answer the same.
//!
//! Seeded sequences of calls, wrong ones among them (old epochs, attempts that are over, workers that are dead), run
//! on both side by side; after each call the answers are compared, and with them all live tasks, the reservations'
//! health and the messages left for the relay.

use std::{collections::HashMap, time::Duration};

use pulp_model::{
    Attempt, CodedError, Epoch, ErrorCode, TaskId, Timestamp,
    deadline::{Deadline, Deadlines, HardLimits},
    task::{Claim, Owner, TaskClass, TaskKind, TaskState},
};
use pulp_store::{
    ClaimOutcome, Store, StoreError, TaskLease,
    attempts::Outcome,
    grants::{Gap, Grant, LiveTask, ROLE},
    workers::{Heartbeat as StoreHeartbeat, Incarnation, Serving},
};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use serde_json::{Map, Value, json};

use crate::ledger::{Claimed, Heartbeat, Lease, Ledger, Life, Mutation, Queue, Request};

/// No test outlives it.
const LONG: Duration = Duration::from_mins(10);
/// Over at the next tick.
const BLINK: Duration = Duration::from_millis(1);
const CALLS: u32 = 120;

struct Both {
    store: Store,
    ledger: Ledger,
    now: Timestamp,
    /// Tasks in the order of their making, by their ids here and there.
    tasks: Vec<(TaskId, TaskId, TaskKind)>,
    leases: HashMap<(usize, Attempt), TaskLease>,
    workers: Vec<(Life, Incarnation)>,
    epochs: Vec<Epoch>,
}

/// An answer in words that both have.
type Answer = Result<String, &'static str>;

fn fault(error: &StoreError) -> &'static str {
    match error {
        StoreError::LeadershipLost => "leadership lost",
        StoreError::ReservationConflict => "conflict",
        StoreError::Fenced { .. } => "fenced",
        other => panic!("{other:?}"),
    }
}

impl Both {
    fn ours(&self, id: TaskId) -> usize {
        self.tasks.iter().position(|t| t.0 == id).unwrap()
    }

    fn theirs(&self, id: TaskId) -> usize {
        self.tasks.iter().position(|t| t.1 == id).unwrap()
    }

    /// Both clocks go on, by so much that no instant is the same as one before.
    async fn tick(&mut self) {
        let before = self.store.now().await.unwrap();
        while self.store.now().await.unwrap() <= before.plus_micros(1_500) {
            tokio::task::yield_now().await;
        }
        self.now = self.now.plus_micros(2_000);
    }

    async fn enqueue(&mut self, kind: TaskKind) {
        let mut tx = self.store.begin().await.unwrap();
        let theirs = tx.enqueue(&kind).await.unwrap();
        tx.commit().await.unwrap();
        let ours = self.ledger.enqueue(self.now, request(&kind));
        assert!(
            self.tasks.iter().all(|t| t.1 != theirs),
            "two requests share a task"
        );
        self.tasks.push((ours, theirs, kind));
    }

    async fn acquire(&mut self, holder: &str) -> (Answer, Answer) {
        let theirs = self.store.acquire_lease(ROLE, holder, LONG).await.unwrap();
        let ours = self.ledger.acquire_lease(self.now, holder, LONG);
        self.epochs.extend(ours);
        (Ok(format!("{ours:?}")), Ok(format!("{theirs:?}")))
    }

    async fn grant(&mut self, epoch: Epoch, chosen: &[usize]) -> (Answer, Answer) {
        let grants = |their: bool| -> Vec<Grant> {
            let of = |n: &usize| {
                let (ours, theirs, kind) = &self.tasks[*n];
                Grant {
                    id: if their { *theirs } else { *ours },
                    class: kind.class(),
                    claims: kind.claims(),
                }
            };
            chosen.iter().map(of).collect()
        };
        let theirs = match self.store.commit_grants(epoch, &grants(true)).await {
            Ok(granted) => {
                let granted = granted.iter().map(|(id, attempt)| (self.theirs(*id), *attempt));
                Ok(format!("{:?}", granted.collect::<Vec<_>>()))
            }
            Err(e) => Err(fault(&e)),
        };
        let grants = grants(false);
        let ours = match self.ledger.commit_grants(self.now, epoch, &grants) {
            Ok(granted) => {
                let granted = granted.iter().map(|(id, attempt)| (self.ours(*id), *attempt));
                Ok(format!("{:?}", granted.collect::<Vec<_>>()))
            }
            Err(e) => Err(fault(&e)),
        };
        (ours, theirs)
    }

    async fn register(&mut self, ttl: Duration, publishes: bool) -> (Answer, Answer) {
        let mut serving = Serving::of_this_release([(TaskClass::Interactive, 2)].into());
        if !publishes {
            serving.supports.remove("publish");
        }
        let theirs = self
            .store
            .register_serving("worker", "w", "h", true, ttl, &serving)
            .await
            .unwrap();
        let ours = self.ledger.register_worker(self.now, "h", serving, ttl);
        let names = (Ok(ours.name.clone()), Ok(theirs.name.0.clone()));
        self.workers.push((ours, theirs));
        names
    }

    async fn heartbeat(&mut self, worker: usize, ttl: Duration) -> (Answer, Answer) {
        let (ours, theirs) = self.workers[worker].clone();
        let theirs = match self.store.heartbeat(&theirs, ttl).await.unwrap() {
            StoreHeartbeat::Alive { cancel } => {
                let mut cancel: Vec<usize> = cancel.iter().map(|id| self.theirs(*id)).collect();
                cancel.sort_unstable();
                format!("alive {cancel:?}")
            }
            StoreHeartbeat::Lost => "lost".into(),
        };
        let ours = match self.ledger.heartbeat(self.now, &ours, ttl) {
            Heartbeat::Alive { cancel } => {
                let mut cancel: Vec<usize> = cancel.iter().map(|id| self.ours(*id)).collect();
                cancel.sort_unstable();
                format!("alive {cancel:?}")
            }
            Heartbeat::Lost => "lost".into(),
        };
        (Ok(ours), Ok(theirs))
    }

    async fn claim(&mut self, task: usize, attempt: Attempt, worker: usize) -> (Answer, Answer) {
        let (our_id, their_id, _) = self.tasks[task];
        let (life, incarnation) = self.workers[worker].clone();
        let theirs = match self.store.claim(their_id, attempt, &incarnation).await.unwrap() {
            ClaimOutcome::Claimed(claimed) => {
                self.leases.insert((task, attempt), claimed.lease.clone());
                Claimed::Ours
            }
            ClaimOutcome::Refused => Claimed::Refused,
            ClaimOutcome::WorkerLost => Claimed::WorkerLost,
            ClaimOutcome::Unreadable(_) => Claimed::Unreadable,
        };
        let lease = Lease {
            task: our_id,
            attempt,
        };
        let ours = self.ledger.claim(self.now, lease, &life);
        (Ok(format!("{ours:?}")), Ok(format!("{theirs:?}")))
    }

    async fn finish(&mut self, task: usize, lease: &TaskLease, state: TaskState) -> (Answer, Answer) {
        let outcome = match state {
            TaskState::Finished => Outcome::Finished(Value::Null),
            TaskState::Canceled => Outcome::Canceled,
            _ => Outcome::Failed(CodedError::new(ErrorCode::INTERNAL, "no")),
        };
        let theirs = match self.store.begin_fenced(lease).await {
            Ok(tx) => tx.finish(&outcome, &json!({})).await,
            Err(e) => Err(e),
        };
        let lease = self.our_lease(task, lease);
        let ours = self.ledger.finish(self.now, lease, state, None);
        (answer(ours.map(drop)), answer(theirs))
    }

    async fn hand_back(&mut self, task: usize, lease: &TaskLease) -> (Answer, Answer) {
        let theirs = self.store.hand_back(lease).await;
        let lease = self.our_lease(task, lease);
        (answer(self.ledger.hand_back(lease)), answer(theirs))
    }

    fn our_lease(&self, task: usize, lease: &TaskLease) -> Lease {
        Lease {
            task: self.tasks[task].0,
            attempt: lease.attempt(),
        }
    }

    async fn revoke(&mut self, epoch: Epoch) -> (Answer, Answer) {
        let theirs = self.store.revoke_lost(epoch, 2).await.map(|mut revoked| {
            revoked.sort_by_key(|(id, _)| self.theirs(*id));
            format!(
                "{:?}",
                revoked
                    .iter()
                    .map(|(id, r)| (self.theirs(*id), *r))
                    .collect::<Vec<_>>()
            )
        });
        let ours = self.ledger.revoke_lost(self.now, epoch, 2);
        let ours = ours.map(|mut revoked| {
            revoked.sort_by_key(|(id, _)| self.ours(*id));
            format!(
                "{:?}",
                revoked
                    .iter()
                    .map(|(id, r)| (self.ours(*id), *r))
                    .collect::<Vec<_>>()
            )
        });
        (ours.map_err(|e| fault(&e)), theirs.map_err(|e| fault(&e)))
    }

    async fn force_cancel(&mut self, epoch: Epoch, grace: Duration) -> (Answer, Answer) {
        let sorted = |mut ids: Vec<usize>| {
            ids.sort_unstable();
            format!("{ids:?}")
        };
        let theirs = self.store.force_cancel(epoch, grace).await;
        let theirs = theirs.map(|ids| sorted(ids.iter().map(|id| self.theirs(*id)).collect()));
        let ours = self.ledger.force_cancel(self.now, epoch, grace);
        let ours = ours.map(|ids| sorted(ids.iter().map(|id| self.ours(*id)).collect()));
        (ours.map_err(|e| fault(&e)), theirs.map_err(|e| fault(&e)))
    }

    async fn expire(&mut self, epoch: Epoch, limits: &HardLimits) -> (Answer, Answer) {
        let sorted = |mut ids: Vec<usize>| {
            ids.sort_unstable();
            format!("expired {ids:?}")
        };
        let theirs = self.store.expire(epoch, limits).await;
        let theirs = theirs.map(|ids| sorted(ids.iter().map(|id| self.theirs(*id)).collect()));
        let ours = self.ledger.expire(self.now, epoch, limits);
        let ours = ours.map(|ids| sorted(ids.iter().map(|id| self.ours(*id)).collect()));
        (ours.map_err(|e| fault(&e)), theirs.map_err(|e| fault(&e)))
    }

    async fn progress(&mut self, task: usize, lease: &TaskLease) -> (Answer, Answer) {
        let theirs = self.store.write_progress(lease, &json!({})).await.unwrap();
        let lease = self.our_lease(task, lease);
        let ours = self.ledger.write_progress(self.now, lease);
        (Ok(ours.to_string()), Ok(theirs.to_string()))
    }

    async fn resend(&mut self, epoch: Epoch, older_than: Duration) -> (Answer, Answer) {
        let theirs = self.store.resend_unclaimed(epoch, older_than).await;
        let ours = self.ledger.resend_unclaimed(self.now, epoch, older_than);
        let words = |r: Result<u64, StoreError>| r.map(|n| n.to_string()).map_err(|e| fault(&e));
        (words(ours), words(theirs))
    }

    async fn cancel(&mut self, task: usize) {
        let (ours, theirs, _) = self.tasks[task];
        let mut tx = self.store.begin().await.unwrap();
        tx.cancel_task(theirs).await.unwrap();
        tx.commit().await.unwrap();
        self.ledger.cancel_task(self.now, ours);
    }

    /// Who waits before the middle one of the live tasks, on each side by its own clock.
    async fn compare_lines(&self, live: &[LiveTask], story: &[String]) {
        let Some(middle) = live.get(live.len() / 2) else {
            return;
        };
        let gaps = |until: Timestamp| -> Vec<Gap> {
            let of = |claim: &Claim| Gap {
                resource: claim.resource.clone(),
                from: Timestamp(0),
                until,
            };
            middle.claims.iter().map(of).collect()
        };
        let theirs = self.store.waiting_in(&gaps(middle.created)).await.unwrap();
        let mut theirs: Vec<usize> = theirs.iter().map(|id| self.theirs(*id)).collect();
        let here = self.tasks[self.theirs(middle.id)].0;
        let ours = self
            .ledger
            .waiting_in(&gaps(self.ledger.row(here).unwrap().created));
        let mut ours: Vec<usize> = ours.iter().map(|id| self.ours(*id)).collect();
        ours.sort_unstable();
        theirs.sort_unstable();
        assert_eq!(
            ours,
            theirs,
            "who waits before {} after\n{}",
            middle.id,
            story.join("\n")
        );
    }

    async fn compare(&self, story: &[String]) {
        let told = || story.join("\n");
        let live = self.store.live_tasks().await.unwrap();
        let theirs: Vec<_> = live
            .iter()
            .map(|t| {
                let request = (t.class, t.kind_name.clone(), t.schema_version, t.owner.clone());
                let waits = t.not_before.is_some();
                (
                    self.theirs(t.id),
                    t.state,
                    t.attempt,
                    request,
                    waits,
                    t.claims.clone(),
                )
            })
            .collect();
        let ours = self.ledger.live_tasks();
        let ours: Vec<_> = ours
            .iter()
            .map(|t| {
                let request = (t.class, t.kind_name.clone(), t.schema_version, t.owner.clone());
                let waits = t.not_before.is_some();
                (
                    self.ours(t.id),
                    t.state,
                    t.attempt,
                    request,
                    waits,
                    t.claims.clone(),
                )
            })
            .collect();
        assert_eq!(ours, theirs, "live tasks after\n{}", told());
        self.compare_lines(&live, story).await;
        let violations = self.store.reservation_violations().await.unwrap();
        assert_eq!(self.ledger.reservation_violations(), violations, "{}", told());
        for (ours, theirs, _) in &self.tasks {
            let theirs = self.store.task(*theirs).await.unwrap().unwrap();
            let ours = self.ledger.row(*ours).unwrap();
            assert_eq!(
                (ours.state, ours.attempt),
                (theirs.state, theirs.attempt),
                "{}",
                told()
            );
        }
        let batch = self.store.outbox_batch(10_000).await.unwrap();
        let mut theirs: Vec<_> = batch
            .rows
            .iter()
            .map(|row| {
                let body: Value = serde_json::from_str(&row.body).unwrap();
                let id: TaskId = body["task_id"].as_str().unwrap().parse().unwrap();
                (
                    row.queue.clone(),
                    self.theirs(id),
                    body["attempt"].as_i64().unwrap_or(0),
                )
            })
            .collect();
        batch.settle(&[]).await.unwrap();
        let mut ours: Vec<_> = self
            .ledger
            .outbox_batch(10_000, &|_| false)
            .iter()
            .map(|message| {
                let queue = match message.queue {
                    Queue::Intake => "intake".to_owned(),
                    Queue::Class(class) => class.as_str().to_owned(),
                };
                (queue, self.ours(message.task), message.attempt.0)
            })
            .collect();
        theirs.sort();
        ours.sort();
        assert_eq!(ours, theirs, "messages after\n{}", told());
    }
}

/// What a client asks for who asks for this kind.
fn request(kind: &TaskKind) -> Request {
    Request {
        class: kind.class(),
        kind: kind.name().to_owned(),
        version: kind.schema_version(),
        owner: Owner::system(),
        claims: kind.claims(),
    }
}

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

fn answer(result: Result<(), StoreError>) -> Answer {
    result.map(|()| "done".into()).map_err(|e| fault(&e))
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
            (86..89, .., Some((task, lease))) => {
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
