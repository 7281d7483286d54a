//! Whether a run takes too long or stands still: plain decisions, which the simulation takes on a virtual clock.

use std::time::Duration;

use pulp_model::deadline::Overrun;

/// What a run is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long it may take.
    pub deadline: Duration,
    /// How long it may show no progress before that is told.
    pub quiet: Duration,
    /// How long it may show no progress before it is stopped; none means for ever.
    pub standstill: Option<Duration>,
}

impl Limits {
    /// How often a run that moves, but whose report says the same, tells the database so: often enough that nobody
    /// takes it for one that stands still.
    pub fn touch(&self) -> Duration {
        let shortest = self.standstill.map_or(self.quiet, |still| still.min(self.quiet));
        (shortest / 4).clamp(Duration::from_millis(500), Duration::from_secs(10))
    }
}

/// What a look at a run shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// It goes on as it may.
    Well,
    /// It has shown no progress for so long. Told once until it moves again.
    Quiet(Duration),
    /// It is to be stopped.
    Overran(Overrun),
}

/// The watch over one run.
#[derive(Debug)]
pub struct Watch {
    limits: Limits,
    beats: u64,
    /// How long the run had gone on when it was last seen to have moved.
    moved_at: Duration,
    told: bool,
}

impl Watch {
    /// A run begins.
    pub const fn new(limits: Limits) -> Self {
        Self {
            limits,
            beats: 0,
            moved_at: Duration::ZERO,
            told: false,
        }
    }

    /// Looks at the run, which began `ran` ago and has moved `beats` times since.
    pub fn look(&mut self, ran: Duration, beats: u64) -> Look {
        if beats != self.beats {
            self.beats = beats;
            self.moved_at = ran;
            self.told = false;
        }
        let silent = ran.saturating_sub(self.moved_at);
        match self.limits.standstill {
            _ if ran >= self.limits.deadline => Look::Overran(Overrun::Deadline(self.limits.deadline)),
            Some(still) if silent >= still => Look::Overran(Overrun::Standstill(still)),
            _ if silent >= self.limits.quiet && !self.told => {
                self.told = true;
                Look::Quiet(silent)
            }
            _ => Look::Well,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_quiet_run_is_told_once_until_it_moves() {
        let mut watch = Watch::new(Limits {
            deadline: seconds(1000),
            quiet: seconds(10),
            standstill: None,
        });
        assert_eq!(watch.look(seconds(9), 0), Look::Well);
        assert_eq!(watch.look(seconds(10), 0), Look::Quiet(seconds(10)));
        assert_eq!(watch.look(seconds(11), 0), Look::Well);
        assert_eq!(watch.look(seconds(12), 1), Look::Well);
        assert_eq!(watch.look(seconds(22), 1), Look::Quiet(seconds(10)));
    }

    #[test]
    fn what_moves_is_touched_before_anybody_takes_it_for_one_that_stands_still() {
        let limits = |quiet, standstill| Limits {
            deadline: seconds(1000),
            quiet,
            standstill,
        };
        assert_eq!(limits(seconds(900), None).touch(), seconds(10));
        assert_eq!(limits(seconds(8), Some(seconds(4))).touch(), seconds(1));
        assert_eq!(limits(seconds(1), None).touch(), Duration::from_millis(500));
    }

    proptest! {
        /// Against what is plain: the run's moves, each with its instant.
        #[test]
        fn a_run_is_stopped_at_its_first_limit_and_not_before(
            steps in proptest::collection::vec((1_u64..50, any::<bool>()), 1..40),
            deadline in 1_u64..1000,
            quiet in 1_u64..100,
            standstill in proptest::option::of(1_u64..200),
        ) {
            let mut watch = Watch::new(Limits {
                deadline: seconds(deadline),
                quiet: seconds(quiet),
                standstill: standstill.map(seconds),
            });
            let (mut now, mut moved, mut beats, mut told) = (0, 0, 0, false);
            for (pause, moves) in steps {
                now += pause;
                if moves {
                    (beats, moved, told) = (beats + 1, now, false);
                }
                let silent = now - moved;
                let expected = if now >= deadline {
                    Look::Overran(Overrun::Deadline(seconds(deadline)))
                } else if let Some(still) = standstill.filter(|still| silent >= *still) {
                    Look::Overran(Overrun::Standstill(seconds(still)))
                } else if silent >= quiet && !told {
                    told = true;
                    Look::Quiet(seconds(silent))
                } else {
                    Look::Well
                };
                prop_assert_eq!(watch.look(seconds(now), beats), expected);
                if matches!(expected, Look::Overran(_)) {
                    break;
                }
            }
        }
    }
}
