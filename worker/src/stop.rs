//! How a running task is told to stop, and why.

use std::sync::{Arc, Mutex, PoisonError};

use pulp_model::deadline::Overrun;
use tokio_util::sync::CancellationToken;

/// Why a task is to stop. The first reason counts, but one by which the task is not ours any more beats the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// Somebody canceled it: it ends as canceled.
    Canceled,
    /// It takes too long, or stands still: it ends in error.
    Overran(Overrun),
    /// The worker ends: the task is given back and waits again.
    Draining,
    /// The worker's lease is lost: the task is another's; nothing is written.
    LeaseLost,
    /// The attempt is over: it was ended, or given to another, over our head; nothing is written.
    Fenced,
}

impl StopReason {
    /// Whether the task is not ours any more.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::LeaseLost | Self::Fenced)
    }

    /// Whether the run has a grace to stop by itself.
    pub const fn has_grace(self) -> bool {
        matches!(self, Self::Canceled | Self::Overran(_))
    }
}

/// A task's stop signal. Clones are handles of the same.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    token: CancellationToken,
    not_ours: CancellationToken,
    reason: Arc<Mutex<Option<StopReason>>>,
}

impl Stop {
    /// Tells it to stop.
    pub fn stop(&self, reason: StopReason) {
        let mut known = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none() || reason.is_final() {
            *known = Some(reason);
        }
        drop(known);
        if reason.is_final() {
            self.not_ours.cancel();
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

    /// Waits until the task has had its time: at once after it was told to stop, but `grace` after a cancel or at the
    /// end of its time. Nobody has time whose task is another's, also in the middle of a grace.
    pub async fn overdue<G: Future<Output = ()>>(&self, grace: impl FnOnce() -> G) {
        self.stopped().await;
        if self.reason().is_some_and(StopReason::has_grace) {
            tokio::select! {
                biased;
                () = self.not_ours.cancelled() => {}
                () = grace() => {}
            }
        }
    }

    /// Whether the task is not ours any more.
    pub fn is_final(&self) -> bool {
        self.not_ours.is_cancelled()
    }

    /// Why, if it was told to.
    pub fn reason(&self) -> Option<StopReason> {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const OVERRAN: StopReason = StopReason::Overran(Overrun::Deadline(Duration::from_secs(1)));

    #[tokio::test]
    async fn a_task_that_is_anothers_has_no_grace_any_more() {
        for (first, last) in [
            (StopReason::Canceled, StopReason::LeaseLost),
            (StopReason::Canceled, StopReason::Fenced),
            (OVERRAN, StopReason::LeaseLost),
            (OVERRAN, StopReason::Fenced),
        ] {
            let stop = Stop::default();
            stop.stop(first);
            stop.stop(StopReason::Draining);
            assert_eq!(stop.reason(), Some(first), "the first counts");
            let overdue = stop.overdue(std::future::pending);
            tokio::pin!(overdue);
            tokio::select! {
                biased;
                () = &mut overdue => panic!("no grace"),
                () = std::future::ready(()) => {}
            }
            stop.stop(last);
            overdue.await;
            assert_eq!(stop.reason(), Some(last));
        }
    }

    #[tokio::test]
    async fn only_a_cancel_and_the_end_of_its_time_have_a_grace() {
        for reason in [StopReason::Draining, StopReason::LeaseLost, StopReason::Fenced] {
            let stop = Stop::default();
            stop.stop(reason);
            stop.overdue(std::future::pending).await;
        }
    }
}
