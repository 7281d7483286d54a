//! How long a lease may be believed in, as plain arithmetic on the holder's monotonic clock.

use std::time::{Duration, Instant};

/// A holder's belief in its lease: until when it may act under it, and when to renew it next.
#[derive(Debug, Clone)]
pub struct Trust {
    /// The time to live less a margin for the answer's way back and the work's way to a stop.
    span: Duration,
    period: Duration,
    until: Instant,
    next: Instant,
}

impl Trust {
    /// Of a lease of `ttl` that was taken by a call begun at `taken`.
    pub fn new(ttl: Duration, taken: Instant) -> Self {
        let (span, period) = (ttl * 4 / 5, ttl / 3);
        Self {
            span,
            period,
            until: taken + span,
            next: taken + period,
        }
    }

    /// The instant from which on another must be thought to hold it.
    pub const fn until(&self) -> Instant {
        self.until
    }

    /// When the next renewal is due, or the trust ends.
    pub fn next(&self) -> Instant {
        self.next.min(self.until)
    }

    /// A renewal begun at `begun` was answered `now`: the lease goes on. It counts from the beginning of the call,
    /// because the database may have prolonged it then.
    pub fn renewed(&mut self, begun: Instant, now: Instant) {
        self.until = begun + self.span;
        self.next = now + self.period;
    }

    /// A renewal failed `now`, which tells nothing about the lease: try again soon.
    pub fn failed(&mut self, now: Instant) {
        self.next = now + self.period / 8;
    }

    /// Whether everything done under the lease must have stopped.
    pub fn is_over(&self, now: Instant) -> bool {
        now >= self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(15);

    #[test]
    fn trust_counts_from_the_call_and_ends_before_the_lease() {
        let taken = Instant::now();
        let mut trust = Trust::new(TTL, taken);
        assert_eq!(trust.next(), taken + Duration::from_secs(5));
        let begun = taken + Duration::from_secs(5);
        let answered = begun + Duration::from_secs(4);
        trust.renewed(begun, answered);
        assert_eq!(trust.until(), begun + Duration::from_secs(12));
        assert_eq!(trust.next(), answered + Duration::from_secs(5));
        assert!(
            !trust.is_over(begun + Duration::from_secs(11)) && trust.is_over(begun + Duration::from_secs(12))
        );
    }

    #[test]
    fn failed_renewals_prolong_nothing() {
        let taken = Instant::now();
        let mut trust = Trust::new(TTL, taken);
        trust.failed(taken + Duration::from_secs(11));
        assert_eq!(trust.until(), taken + Duration::from_secs(12));
        trust.failed(taken + Duration::from_millis(11_900));
        assert_eq!(trust.next(), trust.until(), "never later than the trust's end");
    }
}
