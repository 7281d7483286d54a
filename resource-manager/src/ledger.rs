//! What a leader needs of the database, as a port: the store in production, and a ledger in memory where the whole
//! system is simulated on a virtual clock.

use std::time::Duration;

use pulp_model::{Attempt, Epoch, TaskId, Timestamp, deadline::HardLimits, task::TaskClass};
use pulp_store::{
    Store, StoreError,
    grants::{Gap, Grant, LiveTask, Revoked},
    workers::{Capacity, Serving},
};

/// The rows that a leader decides by. Each call is one transaction; those that write are refused under an old epoch.
///
/// [`Store`]'s methods of the same names say what each does.
#[allow(async_fn_in_trait, missing_docs)] // No bound `Send`: a simulation is of one thread.
pub trait Ledger {
    async fn live_tasks(&self) -> Result<Vec<LiveTask>, StoreError>;
    async fn live_among(&self, ids: &[TaskId]) -> Result<Vec<LiveTask>, StoreError>;
    async fn waiting_in(&self, gaps: &[Gap], known: &[TaskId]) -> Result<Vec<TaskId>, StoreError>;
    async fn commit_grants(
        &self,
        epoch: Epoch,
        grants: &[Grant],
    ) -> Result<Vec<(TaskId, Attempt)>, StoreError>;
    async fn resend_unclaimed(&self, epoch: Epoch, older_than: Duration) -> Result<u64, StoreError>;
    async fn revoke_lost(
        &self,
        epoch: Epoch,
        max_attempts: i64,
    ) -> Result<Vec<(TaskId, Revoked)>, StoreError>;
    async fn force_cancel(&self, epoch: Epoch, grace: Duration) -> Result<Vec<TaskId>, StoreError>;
    async fn expire(&self, epoch: Epoch, limits: &HardLimits) -> Result<Vec<TaskId>, StoreError>;
    /// A ledger that leaves it out has workers for everything.
    async fn capacity(&self) -> Result<Capacity, StoreError> {
        let slots = TaskClass::ALL.into_iter().map(|class| (class, u32::MAX));
        Ok(Capacity {
            now: Timestamp(0),
            serving: vec![Serving::of_this_release(slots.collect())],
        })
    }
    async fn reservation_violations(&self) -> Result<i64, StoreError>;
}

impl Ledger for Store {
    async fn live_tasks(&self) -> Result<Vec<LiveTask>, StoreError> {
        self.live_tasks().await
    }

    async fn live_among(&self, ids: &[TaskId]) -> Result<Vec<LiveTask>, StoreError> {
        self.live_among(ids).await
    }

    async fn waiting_in(&self, gaps: &[Gap], known: &[TaskId]) -> Result<Vec<TaskId>, StoreError> {
        self.waiting_in(gaps, known).await
    }

    async fn commit_grants(
        &self,
        epoch: Epoch,
        grants: &[Grant],
    ) -> Result<Vec<(TaskId, Attempt)>, StoreError> {
        self.commit_grants(epoch, grants).await
    }

    async fn resend_unclaimed(&self, epoch: Epoch, older_than: Duration) -> Result<u64, StoreError> {
        self.resend_unclaimed(epoch, older_than).await
    }

    async fn revoke_lost(
        &self,
        epoch: Epoch,
        max_attempts: i64,
    ) -> Result<Vec<(TaskId, Revoked)>, StoreError> {
        self.revoke_lost(epoch, max_attempts).await
    }

    async fn force_cancel(&self, epoch: Epoch, grace: Duration) -> Result<Vec<TaskId>, StoreError> {
        self.force_cancel(epoch, grace).await
    }

    async fn expire(&self, epoch: Epoch, limits: &HardLimits) -> Result<Vec<TaskId>, StoreError> {
        self.expire(epoch, limits).await
    }

    async fn capacity(&self) -> Result<Capacity, StoreError> {
        self.capacity().await
    }

    async fn reservation_violations(&self) -> Result<i64, StoreError> {
        self.reservation_violations().await
    }
}
