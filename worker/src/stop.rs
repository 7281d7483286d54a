//! How a running task is told to stop, and why.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

/// Why a task is to stop. The first reason counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// Somebody canceled it: it ends as canceled.
    Canceled,
    /// The worker ends: the task is given back and waits again.
    Draining,
    /// The worker's lease is lost: the task is another's; nothing is written.
    LeaseLost,
}

/// A task's stop signal. Clones are handles of the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop {
    token: CancellationToken,
    reason: Arc<OnceLock<StopReason>>,
}

impl Stop {
    pub(crate) fn stop(&self, reason: StopReason) {
        // A second reason changes nothing.
        let _ = self.reason.set(reason);
        self.token.cancel();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.token.is_cancelled()
    }

    pub(crate) async fn stopped(&self) {
        self.token.cancelled().await;
    }

    pub(crate) fn reason(&self) -> Option<StopReason> {
        self.reason.get().copied()
    }
}
