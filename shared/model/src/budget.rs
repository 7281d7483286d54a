//! What an upstream registry gives one account in a time: a budget that all workers share. Pure.
//!
//! A registry tells its limit with its answers ([`Quota`]); what was told last is the truth, and between two answers
//! the budget is reckoned on. Where a registry tells nothing, nothing is held back.

use crate::Timestamp;

/// Millionths of a request: a budget grows by parts of one.
const WHOLE: i128 = 1_000_000;

/// What one answer of a registry says about its limit. Spans are in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quota {
    /// Requests that may be made in a window.
    pub limit: Option<u64>,
    /// How many of them are left.
    pub remaining: Option<u64>,
    /// How long a window is.
    pub window: Option<i64>,
    /// How long until all of them may be made again.
    pub reset_after: Option<i64>,
    /// How long nothing may be asked at all.
    pub retry_after: Option<i64>,
}

impl Quota {
    /// Whether it says how much is left.
    pub const fn is_told(&self) -> bool {
        self.remaining.is_some()
    }

    /// Of two answers that came at about the same time the sterner one.
    #[must_use]
    pub fn sterner(self, other: Self) -> Self {
        let pauses = self.retry_after.max(other.retry_after);
        let one = match (self.remaining, other.remaining) {
            (Some(a), Some(b)) if b < a => other,
            (None, Some(_)) => other,
            _ => self,
        };
        Self {
            retry_after: pauses,
            ..one
        }
    }
}

/// How used requests come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refill {
    /// Evenly, all of them within so many microseconds: the registry looks back over a window that moves.
    Even(i64),
    /// All at once, at an instant.
    At(Timestamp),
}

/// Requests that may be made, as they were at an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// The most that there can be.
    pub capacity: u64,
    /// How many millionths of a request there were.
    pub level: i64,
    /// When.
    pub as_of: Timestamp,
    /// How they come back.
    pub refill: Refill,
}

impl Bucket {
    fn full(&self) -> i128 {
        i128::from(self.capacity) * WHOLE
    }

    fn level_at(&self, now: Timestamp) -> i128 {
        let level = i128::from(self.level);
        match self.refill {
            Refill::At(at) if now >= at => self.full(),
            Refill::At(_) => level,
            Refill::Even(window) => {
                let passed = i128::from(now.micros().saturating_sub(self.as_of.micros()).max(0));
                let back = self.full().saturating_mul(passed) / i128::from(window.max(1));
                level.saturating_add(back).min(self.full())
            }
        }
    }

    fn when(&self, wanted: u64, now: Timestamp) -> Timestamp {
        let wanted = i128::from(wanted.clamp(1, self.capacity.max(1))) * WHOLE;
        let missing = wanted - self.level_at(now);
        if missing <= 0 {
            return now;
        }
        match self.refill {
            Refill::At(at) => at.max(now),
            Refill::Even(window) => {
                let full = self.full().max(WHOLE);
                let micros = missing
                    .saturating_mul(i128::from(window.max(1)))
                    .saturating_add(full - 1)
                    / full;
                now.plus_micros(i64::try_from(micros).unwrap_or(i64::MAX))
            }
        }
    }
}

/// What may still be asked of one host under one account.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Budget {
    /// What the registry said about its limit; none if it has none.
    pub bucket: Option<Bucket>,
    /// Nothing may be asked before this instant.
    pub blocked_until: Option<Timestamp>,
}

/// Where a registry tells no window: a limit that never comes back would hold up syncs for ever.
const UNTOLD_WINDOW: i64 = 3_600_000_000;

/// Longer than a month, the longest that registries reckon by, none is believed: a nonsensical `Retry-After` would keep
/// everybody from that registry for years.
const LONGEST_TOLD: i64 = 31 * 24 * 3_600_000_000;

impl Budget {
    /// The budget after an answer that came at `now`.
    ///
    /// An answer without a limit ends one that was known: the registry has given it up.
    #[must_use]
    pub fn observed(self, quota: &Quota, now: Timestamp) -> Self {
        let bucket = quota.remaining.map(|remaining| {
            let capacity = quota.limit.unwrap_or(0).max(remaining).max(1);
            let refill = match (quota.window, quota.reset_after) {
                (_, Some(after)) => Refill::At(now.plus_micros(after.clamp(0, LONGEST_TOLD))),
                (Some(window), None) if window > 0 => Refill::Even(window.min(LONGEST_TOLD)),
                _ => Refill::Even(UNTOLD_WINDOW),
            };
            let level = i128::from(remaining) * WHOLE;
            Bucket {
                capacity,
                level: i64::try_from(level).unwrap_or(i64::MAX),
                as_of: now,
                refill,
            }
        });
        let asked = quota
            .retry_after
            .map(|pause| now.plus_micros(pause.clamp(0, LONGEST_TOLD)));
        let blocked_until = asked.max(self.blocked_until).filter(|until| *until > now);
        // To be refused says nothing of the limit.
        let bucket = if quota.retry_after.is_some() && bucket.is_none() {
            self.bucket
        } else {
            bucket
        };
        Self {
            bucket,
            blocked_until,
        }
    }

    /// Whole requests that may be made at `now`; none if there is no limit.
    pub fn available(&self, now: Timestamp) -> Option<u64> {
        if self.blocked_until.is_some_and(|until| until > now) {
            return Some(0);
        }
        let whole = self.bucket?.level_at(now) / WHOLE;
        Some(u64::try_from(whole.max(0)).unwrap_or(u64::MAX))
    }

    /// Takes up to `wanted` requests at `now`, and says how many.
    pub fn take(&mut self, wanted: u64, now: Timestamp) -> u64 {
        let Some(available) = self.available(now) else {
            return wanted;
        };
        let taken = wanted.min(available);
        if let Some(bucket) = &mut self.bucket {
            let left = bucket.level_at(now) - i128::from(taken) * WHOLE;
            bucket.level = i64::try_from(left).unwrap_or(i64::MAX);
            if let Refill::At(at) = bucket.refill
                && now >= at
            {
                // The next window begins with its first request; how long it is nobody has said yet.
                bucket.refill = Refill::Even(UNTOLD_WINDOW);
            }
            bucket.as_of = now;
        }
        taken
    }

    /// When `wanted` requests can be made, or as many as there can ever be at once.
    pub fn when(&self, wanted: u64, now: Timestamp) -> Timestamp {
        let unblocked = self.blocked_until.map_or(now, |until| until.max(now));
        self.bucket
            .map_or(unblocked, |bucket| bucket.when(wanted, now).max(unblocked))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000;

    fn at(seconds: i64) -> Timestamp {
        Timestamp(seconds * SECOND)
    }

    fn told(limit: u64, remaining: u64, window: i64) -> Quota {
        Quota {
            limit: Some(limit),
            remaining: Some(remaining),
            window: Some(window * SECOND),
            ..Quota::default()
        }
    }

    #[test]
    fn where_no_limit_is_told_everything_may_be_asked() {
        let mut budget = Budget::default();
        assert_eq!(budget.available(at(0)), None);
        assert_eq!(budget.take(1000, at(0)), 1000);
        assert_eq!(budget.when(1000, at(0)), at(0));
    }

    #[test]
    fn what_is_used_comes_back_evenly_over_the_window() {
        let mut budget = Budget::default().observed(&told(100, 10, 1000), at(0));
        assert_eq!(budget.take(25, at(0)), 10);
        assert_eq!(budget.take(1, at(0)), 0);
        assert_eq!(budget.when(1, at(0)), at(10));
        assert_eq!(budget.when(50, at(0)), at(500));
        assert_eq!(budget.available(at(500)), Some(50));
        assert_eq!(budget.available(at(100_000)), Some(100));
        // More than there can ever be: as many as there can be.
        assert_eq!(budget.when(5000, at(0)), at(1000));
    }

    #[test]
    fn what_comes_back_at_an_instant_comes_back_whole() {
        let quota = Quota {
            limit: Some(60),
            remaining: Some(0),
            reset_after: Some(30 * SECOND),
            ..Quota::default()
        };
        let mut budget = Budget::default().observed(&quota, at(0));
        assert_eq!((budget.take(1, at(29)), budget.when(1, at(29))), (0, at(30)));
        assert_eq!(budget.take(20, at(30)), 20);
        assert_eq!(budget.available(at(30)), Some(40));
    }

    #[test]
    fn a_registry_that_wants_quiet_gets_it_whatever_is_left() {
        let budget = Budget::default().observed(&told(100, 10, 100), at(0));
        let quiet = Quota {
            retry_after: Some(60 * SECOND),
            ..Quota::default()
        };
        let budget = budget.observed(&quiet, at(0));
        assert_eq!(budget.available(at(59)), Some(0));
        assert_eq!(budget.when(1, at(1)), at(60));
        assert!(budget.available(at(60)).unwrap() >= 10);
        // An answer that says nothing of it doesn't end it.
        assert_eq!(
            budget.observed(&told(100, 100, 100), at(1)).available(at(2)),
            Some(0)
        );
    }

    #[test]
    fn nothing_is_believed_that_would_hold_for_longer_than_a_month() {
        let month = at(31 * 86_400);
        let never = i64::MAX;
        for quota in [
            Quota {
                retry_after: Some(never),
                ..Quota::default()
            },
            Quota {
                remaining: Some(0),
                reset_after: Some(never),
                ..Quota::default()
            },
            Quota {
                remaining: Some(0),
                window: Some(never),
                ..Quota::default()
            },
        ] {
            assert_eq!(Budget::default().observed(&quota, at(0)).when(1, at(0)), month);
        }
    }

    #[test]
    fn the_largest_limit_is_reckoned_with_for_years() {
        let mut budget = Budget::default().observed(&told(u64::MAX, 0, 1), at(0));
        let years = at(1_000_000_000);
        assert!(budget.available(years).unwrap() > 1000);
        assert_eq!(budget.take(1000, years), 1000);
        assert_eq!(budget.when(1000, years), years);
    }

    #[test]
    fn a_limit_that_is_not_told_any_more_is_none() {
        let budget = Budget::default().observed(&told(100, 0, 100), at(0));
        assert_eq!(budget.observed(&Quota::default(), at(1)), Budget::default());
    }

    fn a_quota() -> impl Strategy<Value = Quota> {
        let span = || proptest::option::of(-5 * SECOND..100_000 * SECOND);
        (
            proptest::option::of(any::<u64>()),
            proptest::option::of(prop_oneof![0u64..300, any::<u64>()]),
            span(),
            span(),
            span(),
        )
            .prop_map(|(limit, remaining, window, reset_after, retry_after)| Quota {
                limit,
                remaining,
                window,
                reset_after,
                retry_after,
            })
    }

    proptest! {
        #[test]
        fn waiting_until_the_instant_told_gives_what_was_wanted(
            quotas in proptest::collection::vec((a_quota(), 0i64..100), 1..6),
            wanted in 1u64..500,
        ) {
            let mut now = at(0);
            let mut budget = Budget::default();
            for (quota, pause) in quotas {
                now = now.plus_micros(pause * SECOND);
                budget = budget.observed(&quota, now);
                budget.take(wanted / 2, now);
            }
            let when = budget.when(wanted, now);
            prop_assert!(when >= now);
            let most = budget.bucket.map_or(u64::MAX, |b| b.capacity);
            prop_assert!(budget.available(when).is_none_or(|n| n >= wanted.min(most)));
        }

        #[test]
        fn no_more_is_taken_than_there_is(quota in a_quota(), takes in proptest::collection::vec(0u64..50, 0..20)) {
            let mut budget = Budget::default().observed(&quota, at(0));
            let before = budget.available(at(0));
            let taken: u64 = takes.into_iter().map(|n| budget.take(n, at(0))).sum();
            prop_assert!(before.is_none_or(|before| taken <= before));
        }
    }
}
