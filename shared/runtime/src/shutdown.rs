//! Ending a process in order: a first signal asks, a second one insists.

use std::{future::Future, io, time::Duration};

use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The two stages of an end, and the tasks that it waits for. Clones are handles of the same.
///
/// *Soft*: take no new work, finish what runs. *Hard*: stop now. Hard implies soft.
#[derive(Debug, Clone)]
pub struct Shutdown {
    soft: CancellationToken,
    hard: CancellationToken,
    tracker: TaskTracker,
}

/// How an ordered end went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Everything ended by itself in time.
    Clean,
    /// Some work had to be stopped, and stopped.
    Forced,
    /// Some work did not even stop when told to; the process should exit all the same.
    Abandoned,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    /// How long work may take to stop after the hard token fired, before it is abandoned.
    const HARD_GRACE: Duration = Duration::from_secs(5);

    /// Not asked to end yet; listens to no signal (see [`listen`](Self::listen)).
    pub fn new() -> Self {
        let hard = CancellationToken::new();
        Self {
            soft: hard.child_token(),
            hard,
            tracker: TaskTracker::new(),
        }
    }

    /// Fires when no new work shall begin.
    pub const fn soft(&self) -> &CancellationToken {
        &self.soft
    }

    /// Fires when running work shall stop at once.
    pub const fn hard(&self) -> &CancellationToken {
        &self.hard
    }

    /// Tasks that [`drain`](Self::drain) waits for.
    pub const fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    /// Runs a task that [`drain`](Self::drain) waits for.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(task)
    }

    /// Asks for the soft end.
    pub fn request(&self) {
        self.soft.cancel();
    }

    /// Asks for the hard end.
    pub fn force(&self) {
        self.hard.cancel();
    }

    /// Turns SIGTERM and SIGINT into the soft end, and the second of them into the hard one.
    #[cfg(unix)]
    pub fn listen(&self) -> io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let this = self.clone();
        // Not tracked: it must not hold up the end that it listens for.
        tokio::spawn(async move {
            for stage in ["soft", "hard"] {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                if stage == "soft" {
                    tracing::info!(
                        signal = name,
                        "ending; a second signal stops running work at once"
                    );
                    this.request();
                } else {
                    tracing::warn!(signal = name, "stopping running work");
                    this.force();
                }
            }
        });
        Ok(())
    }

    /// Waits until the end is asked for, then for the tracked tasks: at most `timeout` by themselves, then
    /// forced. Returns at once when the last of them has ended.
    pub async fn drain(&self, timeout: Duration) -> Drained {
        self.soft.cancelled().await;
        notify_stopping();
        self.tracker.close();
        let forced = tokio::select! {
            () = self.tracker.wait() => return self.outcome(),
            () = self.hard.cancelled() => "by a second signal",
            () = tokio::time::sleep(timeout) => "since the drain timeout is over",
        };
        tracing::warn!(tasks = self.tracker.len(), "stopping running work {forced}");
        self.hard.cancel();
        match tokio::time::timeout(Self::HARD_GRACE, self.tracker.wait()).await {
            Ok(()) => Drained::Forced,
            Err(_) => Drained::Abandoned,
        }
    }

    fn outcome(&self) -> Drained {
        if self.hard.is_cancelled() {
            Drained::Forced
        } else {
            Drained::Clean
        }
    }
}

/// Tells systemd that the role serves. Without `NOTIFY_SOCKET` it does nothing.
pub fn notify_ready() {
    notify(&[sd_notify::NotifyState::Ready]);
}

/// Tells systemd what the role does now, as `systemctl status` shows it.
pub fn notify_status(text: &str) {
    notify(&[sd_notify::NotifyState::Status(text)]);
}

fn notify_stopping() {
    notify(&[sd_notify::NotifyState::Stopping]);
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        tracing::warn!(error = %e, "could not notify the service manager");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn work_that_ends_in_time_is_waited_for() {
        let shutdown = Shutdown::new();
        let soft = shutdown.soft().clone();
        let work = shutdown.spawn(async move {
            soft.cancelled().await;
            7
        });
        shutdown.request();
        assert_eq!(
            tokio::time::timeout(SOON, shutdown.drain(SOON)).await,
            Ok(Drained::Clean)
        );
        assert_eq!(work.await.unwrap(), 7);
        assert!(!shutdown.hard().is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_outlasts_the_drain_timeout_is_stopped() {
        let shutdown = Shutdown::new();
        let hard = shutdown.hard().clone();
        shutdown.spawn(async move { hard.cancelled().await });
        shutdown.request();
        assert_eq!(shutdown.drain(Duration::from_secs(1)).await, Drained::Forced);
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_ignores_everything_does_not_hold_the_process() {
        let shutdown = Shutdown::new();
        shutdown.spawn(std::future::pending::<()>());
        shutdown.request();
        assert_eq!(shutdown.drain(Duration::from_secs(1)).await, Drained::Abandoned);
    }

    #[tokio::test]
    async fn the_hard_end_implies_the_soft_one_and_not_the_other_way_round() {
        let shutdown = Shutdown::new();
        shutdown.request();
        assert!(!shutdown.hard().is_cancelled());
        let shutdown = Shutdown::new();
        shutdown.force();
        assert!(shutdown.soft().is_cancelled());
    }
}
