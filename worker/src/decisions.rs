//! What a worker does next, as plain decisions: the simulation takes the same ones on a virtual clock.

use pulp_model::Attempt;

use crate::stop::StopReason;

/// From this attempt on an outage of the database ends the task: something about it brings the database down.
const GIVE_UP_AT: i64 = 8;

/// Why a run ended without its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The fence refused: the attempt is over.
    Fenced,
    /// The database went away.
    Outage,
    /// It can't go on for a while.
    NotYet,
    /// Anything else, also that the run was told to stop.
    Other,
}

/// What becomes of a run that ended without its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Write nothing: another has the task, or will have it.
    Leave,
    /// It waits again.
    GiveBack,
    /// It waits again, from when it can go on.
    Park,
    /// It ends as canceled.
    Cancel,
    /// It ends in error.
    Fail,
}

/// Decides what becomes of a run that ended by `fault`, having been told to stop for `reason`.
pub fn ending(reason: Option<StopReason>, fault: Fault, attempt: Attempt) -> Ending {
    match (fault, reason) {
        (Fault::Fenced, _) | (_, Some(StopReason::LeaseLost | StopReason::Fenced)) => Ending::Leave,
        (_, Some(StopReason::Draining)) => Ending::GiveBack,
        (_, Some(StopReason::Canceled)) => Ending::Cancel,
        (Fault::NotYet, None) => Ending::Park,
        // Nothing was committed, or the fence refuses to give it back.
        (Fault::Outage, None) if attempt.0 < GIVE_UP_AT => Ending::GiveBack,
        // What overran had its time; with another attempt it would only take it again.
        (_, Some(StopReason::Overran(_))) | (Fault::Outage | Fault::Other, None) => Ending::Fail,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pulp_model::deadline::Overrun;

    use super::*;

    #[test]
    fn a_run_whose_attempt_or_lease_is_over_writes_nothing() {
        for reason in [None, Some(StopReason::Canceled), Some(StopReason::Draining)] {
            assert_eq!(ending(reason, Fault::Fenced, Attempt(1)), Ending::Leave);
        }
        for fault in [Fault::Outage, Fault::Other] {
            for reason in [StopReason::LeaseLost, StopReason::Fenced] {
                assert_eq!(ending(Some(reason), fault, Attempt(1)), Ending::Leave);
            }
        }
    }

    #[test]
    fn a_run_that_took_too_long_fails_whatever_it_fell_over() {
        let overran = StopReason::Overran(Overrun::Deadline(Duration::from_secs(1)));
        for fault in [Fault::Outage, Fault::Other] {
            assert_eq!(ending(Some(overran), fault, Attempt(1)), Ending::Fail);
        }
        assert_eq!(ending(Some(overran), Fault::Fenced, Attempt(1)), Ending::Leave);
    }

    #[test]
    fn an_outage_gives_the_task_back_but_not_for_ever() {
        assert_eq!(ending(None, Fault::Outage, Attempt(1)), Ending::GiveBack);
        assert_eq!(ending(None, Fault::Outage, Attempt(8)), Ending::Fail);
        assert_eq!(ending(None, Fault::Other, Attempt(1)), Ending::Fail);
    }
}
