//! The ledger and the store, asked the same; each call gives both answers.

use std::{collections::HashMap, time::Duration};

use pulp_model::{
    Attempt, CodedError, Epoch, ErrorCode, TaskId, Timestamp,
    deadline::HardLimits,
    task::{Owner, TaskClass, TaskKind, TaskState},
};
use pulp_store::{
    ClaimOutcome, Store, StoreError, TaskLease,
    attempts::Outcome,
    grants::{Grant, ROLE},
    workers::{Heartbeat as StoreHeartbeat, Incarnation, Serving},
};
use serde_json::{Value, json};

use super::LONG;
use crate::ledger::{Claimed, Heartbeat, Lease, Ledger, Life, Request};

pub(super) struct Both {
    pub(super) store: Store,
    pub(super) ledger: Ledger,
    pub(super) now: Timestamp,
    /// Tasks in the order of their making, by their ids here and there.
    pub(super) tasks: Vec<(TaskId, TaskId, TaskKind)>,
    pub(super) leases: HashMap<(usize, Attempt), TaskLease>,
    pub(super) workers: Vec<(Life, Incarnation)>,
    pub(super) epochs: Vec<Epoch>,
}

/// An answer in words that both have.
pub(super) type Answer = Result<String, &'static str>;

fn fault(error: &StoreError) -> &'static str {
    match error {
        StoreError::LeadershipLost => "leadership lost",
        StoreError::ReservationConflict => "conflict",
        StoreError::Fenced { .. } => "fenced",
        other => panic!("{other:?}"),
    }
}

/// What is said of some tasks, by their numbers; the order in which it is said is neither's promise.
fn told<T, N: std::fmt::Debug>(
    word: &str,
    said: Result<Vec<T>, StoreError>,
    numbered: impl Fn(&T) -> N,
) -> Answer {
    let said = said.map_err(|e| fault(&e))?;
    let mut said: Vec<String> = said.iter().map(|one| format!("{:?}", numbered(one))).collect();
    said.sort();
    Ok(format!("{word}[{}]", said.join(", ")))
}

impl Both {
    pub(super) fn ours(&self, id: TaskId) -> usize {
        self.tasks.iter().position(|t| t.0 == id).unwrap()
    }

    pub(super) fn theirs(&self, id: TaskId) -> usize {
        self.tasks.iter().position(|t| t.1 == id).unwrap()
    }

    /// Both clocks go on, by so much that no instant is the same as one before.
    pub(super) async fn tick(&mut self) {
        let before = self.store.now().await.unwrap();
        while self.store.now().await.unwrap() <= before.plus_micros(1_500) {
            tokio::task::yield_now().await;
        }
        self.now = self.now.plus_micros(2_000);
    }

    pub(super) async fn enqueue(&mut self, kind: TaskKind) {
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

    pub(super) async fn acquire(&mut self, holder: &str) -> (Answer, Answer) {
        let theirs = self.store.acquire_lease(ROLE, holder, LONG).await.unwrap();
        let ours = self.ledger.acquire_lease(self.now, holder, LONG);
        self.epochs.extend(ours);
        (Ok(format!("{ours:?}")), Ok(format!("{theirs:?}")))
    }

    pub(super) async fn grant(&mut self, epoch: Epoch, chosen: &[usize]) -> (Answer, Answer) {
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

    pub(super) async fn register(&mut self, ttl: Duration, publishes: bool) -> (Answer, Answer) {
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

    pub(super) async fn heartbeat(&mut self, worker: usize, ttl: Duration) -> (Answer, Answer) {
        let (ours, theirs) = self.workers[worker].clone();
        let theirs = match self.store.heartbeat(&theirs, ttl).await.unwrap() {
            StoreHeartbeat::Alive { cancel } => told("alive ", Ok(cancel), |id| self.theirs(*id)),
            StoreHeartbeat::Lost => Ok("lost".into()),
        };
        let ours = match self.ledger.heartbeat(self.now, &ours, ttl) {
            Heartbeat::Alive { cancel } => told("alive ", Ok(cancel), |id| self.ours(*id)),
            Heartbeat::Lost => Ok("lost".into()),
        };
        (ours, theirs)
    }

    pub(super) async fn claim(&mut self, task: usize, attempt: Attempt, worker: usize) -> (Answer, Answer) {
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

    pub(super) async fn finish(
        &mut self,
        task: usize,
        lease: &TaskLease,
        state: TaskState,
    ) -> (Answer, Answer) {
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

    pub(super) async fn hand_back(&mut self, task: usize, lease: &TaskLease) -> (Answer, Answer) {
        let theirs = self.store.hand_back(lease).await;
        let lease = self.our_lease(task, lease);
        (answer(self.ledger.hand_back(lease)), answer(theirs))
    }

    pub(super) async fn park(&mut self, task: usize, lease: &TaskLease, pause: Duration) -> (Answer, Answer) {
        let theirs = self.store.park(lease, pause, "for a while").await;
        let lease = self.our_lease(task, lease);
        (answer(self.ledger.park(self.now, lease, pause)), answer(theirs))
    }

    fn our_lease(&self, task: usize, lease: &TaskLease) -> Lease {
        Lease {
            task: self.tasks[task].0,
            attempt: lease.attempt(),
        }
    }

    pub(super) async fn revoke(&mut self, epoch: Epoch) -> (Answer, Answer) {
        let theirs = self.store.revoke_lost(epoch, 2).await;
        let ours = self.ledger.revoke_lost(self.now, epoch, 2);
        (
            told("", ours, |(id, revoked)| (self.ours(*id), *revoked)),
            told("", theirs, |(id, revoked)| (self.theirs(*id), *revoked)),
        )
    }

    pub(super) async fn force_cancel(&mut self, epoch: Epoch, grace: Duration) -> (Answer, Answer) {
        let theirs = self.store.force_cancel(epoch, grace).await;
        let ours = self.ledger.force_cancel(self.now, epoch, grace);
        (
            told("", ours, |id| self.ours(*id)),
            told("", theirs, |id| self.theirs(*id)),
        )
    }

    pub(super) async fn expire(&mut self, epoch: Epoch, limits: &HardLimits) -> (Answer, Answer) {
        let theirs = self.store.expire(epoch, limits).await;
        let ours = self.ledger.expire(self.now, epoch, limits);
        (
            told("expired ", ours, |id| self.ours(*id)),
            told("expired ", theirs, |id| self.theirs(*id)),
        )
    }

    pub(super) async fn progress(&mut self, task: usize, lease: &TaskLease) -> (Answer, Answer) {
        let theirs = self.store.write_progress(lease, &json!({})).await.unwrap();
        let lease = self.our_lease(task, lease);
        let ours = self.ledger.write_progress(self.now, lease);
        (Ok(ours.to_string()), Ok(theirs.to_string()))
    }

    pub(super) async fn resend(&mut self, epoch: Epoch, older_than: Duration) -> (Answer, Answer) {
        let theirs = self.store.resend_unclaimed(epoch, older_than).await;
        let ours = self.ledger.resend_unclaimed(self.now, epoch, older_than);
        let words = |r: Result<u64, StoreError>| r.map(|n| n.to_string()).map_err(|e| fault(&e));
        (words(ours), words(theirs))
    }

    pub(super) async fn cancel(&mut self, task: usize) {
        let (ours, theirs, _) = self.tasks[task];
        let mut tx = self.store.begin().await.unwrap();
        tx.cancel_task(theirs).await.unwrap();
        tx.commit().await.unwrap();
        self.ledger.cancel_task(self.now, ours);
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

fn answer(result: Result<(), StoreError>) -> Answer {
    result.map(|()| "done".into()).map_err(|e| fault(&e))
}
