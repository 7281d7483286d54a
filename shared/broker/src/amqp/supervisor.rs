//! Keeps a session, for as long as the broker object lives.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Link, Settings, session::Session};
use crate::BrokerError;

/// One attempt to connect and declare may take this long.
const ATTEMPT: Duration = Duration::from_secs(15);
/// The longest pause between attempts: work flows again within five seconds of the broker's return, and connecting takes
/// its part of them.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A session that lived this long ended by a fresh fault, not by the one before.
const STABLE: Duration = Duration::from_secs(5);

/// Connects, and connects again, until `stop`.
pub(super) async fn run(settings: Arc<Settings>, link: watch::Sender<Link>, stop: CancellationToken) {
    let mut failures = 0;
    for generation in 1.. {
        let opened = tokio::select! {
            () = stop.cancelled() => break,
            opened = tokio::time::timeout(ATTEMPT, Session::open(Arc::clone(&settings), generation)) => opened,
        };
        match opened.unwrap_or_else(|_| Err(super::disconnected(format!("no answer within {ATTEMPT:?}")))) {
            Ok(session) => {
                tracing::info!(generation, "connected to the broker");
                let session = Arc::new(session);
                let since = Instant::now();
                link.send_replace(Link::Up(Arc::clone(&session)));
                let reason = tokio::select! {
                    () = stop.cancelled() => {
                        link.send_replace(Link::Closed);
                        session.close().await;
                        break;
                    }
                    reason = session.ended() => reason,
                };
                tracing::warn!(generation, reason, "the connection to the broker broke");
                link.send_replace(Link::Down { reason });
                if since.elapsed() >= STABLE {
                    failures = 0;
                } else {
                    failures += 1;
                }
            }
            Err(error) => {
                failures += 1;
                tell(&error, failures);
                link.send_replace(match error {
                    BrokerError::Refused { .. } => Link::Refused(error),
                    other => Link::Down {
                        reason: other.to_string(),
                    },
                });
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause(failures, rand::random_range(0.5..1.0))) => {}
        }
    }
    link.send_replace(Link::Closed);
}

/// How long to wait after so many failures in a row: not at all after a fresh one, then twice as long each
/// time. `jitter`, 0.5 to 1, keeps a fleet from coming back in step.
fn pause(failures: u32, jitter: f64) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    let full = Duration::from_millis(100).saturating_mul(1 << failures.min(10));
    full.min(LONGEST_PAUSE).mul_f64(jitter)
}

/// The first failure and then every fortieth: about once a minute while the broker is away.
fn tell(error: &BrokerError, failures: u32) {
    if failures % 40 == 1 || matches!(error, BrokerError::Refused { .. }) {
        tracing::warn!(failures, "can't connect to the broker: {error}");
    } else {
        tracing::debug!(failures, "can't connect to the broker: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_begin_with_none() {
        let pauses: Vec<u128> = (0..9).map(|n| pause(n, 1.0).as_millis()).collect();
        assert_eq!(pauses, [0, 200, 400, 800, 1600, 2000, 2000, 2000, 2000]);
        assert_eq!(pause(u32::MAX, 0.5), Duration::from_secs(1));
    }
}
