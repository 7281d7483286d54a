//! The limit on the speed of a sync.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Lets so many bytes a second pass, of all downloads of a sync together.
pub(super) struct Throttle {
    bytes_a_second: f64,
    free_at: Mutex<Instant>,
}

impl Throttle {
    pub(super) fn new(bytes_a_second: f64) -> Self {
        Self {
            bytes_a_second,
            free_at: Mutex::new(Instant::now()),
        }
    }

    pub(super) async fn pass(&self, bytes: usize) {
        let at = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let at = (*free_at).max(Instant::now());
            *free_at = at + Duration::from_secs_f64((bytes as f64 / self.bytes_a_second).min(86_400.0));
            at
        };
        tokio::time::sleep_until(at).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_limit_holds_for_all_downloads_together() {
        let throttle = Throttle::new(10_000.0);
        let begun = Instant::now();
        futures::future::join_all((0..5).map(|_| throttle.pass(500))).await;
        // The first begins at once, the last when the four before it have had their time.
        assert!(begun.elapsed() >= Duration::from_millis(200));
    }
}
