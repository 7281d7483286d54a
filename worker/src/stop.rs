//! How a running task is told to stop, and why.

use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// Why a task is to stop. The first reason counts, but a lost lease beats them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// Somebody canceled it: it ends as canceled.
    Canceled,
    /// The worker ends: the task is given back and waits again.
    Draining,
    /// The worker's lease is lost: the task is another's; nothing is written.
    LeaseLost,
}

/// A task's stop signal. Clones are handles of the same.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    token: CancellationToken,
    lease_lost: CancellationToken,
    reason: Arc<Mutex<Option<StopReason>>>,
}

impl Stop {
    /// Tells it to stop.
    pub fn stop(&self, reason: StopReason) {
        let mut known = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none() || reason == StopReason::LeaseLost {
            *known = Some(reason);
        }
        drop(known);
        if reason == StopReason::LeaseLost {
            self.lease_lost.cancel();
        }
        self.token.cancel();
    }

    /// Whether it was told to.
    pub fn is_stopped(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits until it is told to.
    pub async fn stopped(&self) {
        self.token.cancelled().await;
    }

    /// Waits until the task has had its time: at once after it was told to stop, but `grace` after a cancel. Nobody
    /// has time whose lease is lost, also in the middle of a grace.
    pub async fn overdue<G: Future<Output = ()>>(&self, grace: impl FnOnce() -> G) {
        self.stopped().await;
        if self.reason() == Some(StopReason::Canceled) {
            tokio::select! {
                biased;
                () = self.lease_lost.cancelled() => {}
                () = grace() => {}
            }
        }
    }

    /// Why, if it was told to.
    pub fn reason(&self) -> Option<StopReason> {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lost_lease_ends_the_grace_of_a_cancel() {
        let stop = Stop::default();
        stop.stop(StopReason::Canceled);
        stop.stop(StopReason::Draining);
        assert_eq!(stop.reason(), Some(StopReason::Canceled), "the first counts");
        let overdue = stop.overdue(std::future::pending);
        tokio::pin!(overdue);
        tokio::select! {
            biased;
            () = &mut overdue => panic!("no grace"),
            () = std::future::ready(()) => {}
        }
        stop.stop(StopReason::LeaseLost);
        overdue.await;
        assert_eq!(stop.reason(), Some(StopReason::LeaseLost));
    }

    #[tokio::test]
    async fn only_a_cancel_has_a_grace() {
        for reason in [StopReason::Draining, StopReason::LeaseLost] {
            let stop = Stop::default();
            stop.stop(reason);
            stop.overdue(std::future::pending).await;
        }
    }
}
