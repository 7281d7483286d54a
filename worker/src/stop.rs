//! How a running task is told to stop, and why.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

/// Why a task is to stop. The first reason counts.
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
    reason: Arc<OnceLock<StopReason>>,
}

impl Stop {
    /// Tells it to stop.
    pub fn stop(&self, reason: StopReason) {
        // A second reason changes nothing.
        let _ = self.reason.set(reason);
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

    /// Why, if it was told to.
    pub fn reason(&self) -> Option<StopReason> {
        self.reason.get().copied()
    }
}
