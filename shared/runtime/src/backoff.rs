//! Waits between tries of something that fails: they grow, have a ceiling, and differ between processes.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Jittered exponential waits without an end. Call [`reset`](Self::reset) when a try succeeded.
///
/// The jitter keeps a fleet of workers from knocking at a database that came back all at the same instant.
#[derive(Debug)]
pub struct Backoff {
    builder: ExponentialBuilder,
    waits: ExponentialBackoff,
    max: Duration,
}

impl Backoff {
    /// Begins at `first`, doubles up to `max`; each wait has a random part.
    pub fn new(first: Duration, max: Duration) -> Self {
        let builder = ExponentialBuilder::default()
            .with_min_delay(first)
            .with_max_delay(max)
            .with_factor(2.0)
            .with_jitter()
            .without_max_times();
        Self {
            builder,
            waits: builder.build(),
            max,
        }
    }

    /// From 0.1 s to 5 s: for a database or a broker that a role can't do without.
    pub fn for_connections() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(5))
    }

    /// The next wait, never above the ceiling.
    pub fn next_wait(&mut self) -> Duration {
        self.waits.next().unwrap_or(self.max).min(self.max)
    }

    /// Sleeps for the next wait. Cancel-safe; the wait counts as taken.
    pub async fn sleep(&mut self) {
        tokio::time::sleep(self.next_wait()).await;
    }

    /// Begins again with the first wait.
    pub fn reset(&mut self) {
        self.waits = self.builder.build();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_the_ceiling_and_begin_again_after_a_reset() {
        let (first, max) = (Duration::from_millis(10), Duration::from_millis(200));
        let mut backoff = Backoff::new(first, max);
        let waits: Vec<_> = (0..50).map(|_| backoff.next_wait()).collect();
        assert!(waits.iter().all(|w| *w >= first && *w <= max), "{waits:?}");
        assert!(waits[0] <= first * 2, "{waits:?}");
        assert_eq!(waits[49], max);
        backoff.reset();
        assert!(backoff.next_wait() <= first * 2);
    }
}
