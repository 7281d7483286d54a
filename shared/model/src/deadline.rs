//! How long a run may take, and how long it may stand still.

use std::{collections::BTreeMap, time::Duration};

use crate::{CodedError, ErrorCode, TaskId, task::KINDS};

/// How long a run of one kind may take, from its claim on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// Then its worker stops it, as after a cancel.
    pub soft: Duration,
    /// Then the resource manager ends it over its worker's head. Not below `soft`.
    pub hard: Duration,
}

/// The deadlines of all kinds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadlines(BTreeMap<String, Deadline>);

impl Deadlines {
    /// Those of this release's [`KINDS`], the hard one `margin` after the soft one.
    pub fn of_this_release(margin: Duration) -> Self {
        let of = |seconds| {
            let soft = Duration::from_secs(seconds);
            Deadline {
                soft,
                hard: soft.saturating_add(margin),
            }
        };
        Self(
            KINDS
                .iter()
                .map(|kind| (kind.name.to_owned(), of(kind.deadline_seconds)))
                .collect(),
        )
    }

    /// Sets that of one kind.
    pub fn set(&mut self, kind: &str, deadline: Deadline) {
        let hard = deadline.hard.max(deadline.soft);
        self.0.insert(kind.to_owned(), Deadline { hard, ..deadline });
    }

    /// That of a kind by its name; of one that this release doesn't know (a newer worker may run it) the longest.
    pub fn of(&self, kind: &str) -> Deadline {
        let longest = || self.0.values().copied().max_by_key(|d| d.hard);
        self.0.get(kind).copied().or_else(longest).unwrap_or(Deadline {
            soft: Duration::MAX,
            hard: Duration::MAX,
        })
    }

    /// No run that took less is beyond its hard deadline.
    pub fn shortest_hard(&self) -> Duration {
        self.0.values().map(|d| d.hard).min().unwrap_or(Duration::MAX)
    }
}

/// When the resource manager ends a run over its worker's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HardLimits {
    /// How long it may take.
    pub deadlines: Deadlines,
    /// How long it may show no progress; none means for ever.
    pub without_progress: Option<Duration>,
}

/// Why a run is ended that did not end by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overrun {
    /// It took longer than so.
    Deadline(Duration),
    /// It has shown no progress for so long.
    Standstill(Duration),
}

impl HardLimits {
    /// Whether a run has gone on for too long: of this kind, begun `ran` ago, last seen to advance `silent` ago.
    pub fn overrun(&self, kind: &str, ran: Duration, silent: Duration) -> Option<Overrun> {
        let hard = self.deadlines.of(kind).hard;
        match self.without_progress {
            _ if ran > hard => Some(Overrun::Deadline(hard)),
            Some(limit) if silent > limit => Some(Overrun::Standstill(limit)),
            _ => None,
        }
    }
}

/// A run that is ended for an [`Overrun`], in words.
#[derive(Debug, Clone, Copy)]
pub struct Overran<'a> {
    /// The task.
    pub task: TaskId,
    /// Its kind, by the name that the configuration has.
    pub kind: &'a str,
    /// The repository that it works on.
    pub repository: &'a str,
    /// What it was at, as far as that is known.
    pub at: Option<&'a str>,
    /// The worker that did not stop it, if it is ended over that worker's head.
    pub stuck: Option<&'a str>,
    /// How long it ran.
    pub ran: Duration,
}

impl Overrun {
    /// What the task's clients see: `PLP0011` of a deadline, `PLP2006` of a standstill.
    pub fn coded(self, run: &Overran<'_>) -> CodedError {
        let Overran { kind, repository, .. } = run;
        let words =
            |d: Duration| humantime::format_duration(Duration::from_secs(d.as_secs().max(1))).to_string();
        let (code, limit, how, advice) = match self {
            Self::Deadline(limit) => (
                ErrorCode::TIMED_OUT,
                limit,
                format!("ran for {}, which is its deadline", words(limit)),
                format!("if such a task needs longer, raise tasks.deadlines.{kind}"),
            ),
            Self::Standstill(limit) => (
                ErrorCode::STALLED,
                limit,
                format!(
                    "showed no progress for {} ({} after it began)",
                    words(limit),
                    words(run.ran)
                ),
                "if such a task may be silent for longer, raise tasks.end_stalled_after".to_owned(),
            ),
        };
        let at = run.at.map(|at| format!(" while at {at:?}")).unwrap_or_default();
        let by = match run.stuck {
            None => "and was stopped".to_owned(),
            Some(worker) => format!(
                "and its worker {worker} did not stop it, so it was ended over the worker's head; look at that worker's log, \
                 and at its disks and network, for what hangs"
            ),
        };
        let text = format!(
            "the {kind} of repository {repository} {how}{at}, {by}. Nothing of it was committed; {advice}, then ask for it again"
        );
        CodedError::new(code, text)
            .with("task_id", run.task)
            .with("timeout", limit.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MARGIN: Duration = Duration::from_secs(42);

    #[test]
    fn every_kind_has_a_deadline_and_an_unknown_one_the_longest() {
        let deadlines = Deadlines::of_this_release(MARGIN);
        for kind in KINDS {
            let deadline = deadlines.of(kind.name);
            assert_eq!(deadline.soft, Duration::from_secs(kind.deadline_seconds));
            assert_eq!(deadline.hard, deadline.soft + MARGIN);
            assert!(deadlines.of("of a newer release").hard >= deadline.hard);
            assert!(deadlines.shortest_hard() <= deadline.hard);
        }
    }

    #[test]
    fn a_hard_deadline_is_never_before_the_soft_one() {
        let mut deadlines = Deadlines::of_this_release(MARGIN);
        let (soft, hard) = (Duration::from_secs(10), Duration::from_secs(5));
        deadlines.set("sync", Deadline { soft, hard });
        assert_eq!(deadlines.of("sync").hard, soft);
    }

    #[test]
    fn what_was_ended_is_told_with_what_it_did_how_long_and_what_to_change() {
        let run = Overran {
            task: TaskId::new(),
            kind: "sync",
            repository: "busybox",
            at: Some("Copying blobs. (3 of 9)"),
            stuck: None,
            ran: Duration::from_hours(6),
        };
        let error = Overrun::Deadline(Duration::from_hours(6)).coded(&run);
        assert_eq!(error.code, ErrorCode::TIMED_OUT);
        assert_eq!(error.data["timeout"], 6 * 3600);
        for words in [
            "the sync of repository busybox",
            "6h",
            "Copying blobs. (3 of 9)",
            "tasks.deadlines.sync",
        ] {
            assert!(error.description.contains(words), "{words}: {error}");
        }
        let stuck = Overran {
            at: None,
            stuck: Some("w-0@host"),
            ..run
        };
        let error = Overrun::Standstill(Duration::from_mins(90)).coded(&stuck);
        assert_eq!(error.code, ErrorCode::STALLED);
        for words in ["1h 30m", "w-0@host", "tasks.end_stalled_after"] {
            assert!(error.description.contains(words), "{words}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_run_is_ended_beyond_a_limit_and_never_before_one(
            ran in 0_u64..200_000,
            silent in 0_u64..200_000,
            quiet in proptest::option::of(1_u64..100_000),
            kind in 0..KINDS.len(),
        ) {
            let kind = KINDS[kind];
            let limits = HardLimits {
                deadlines: Deadlines::of_this_release(MARGIN),
                without_progress: quiet.map(Duration::from_secs),
            };
            let overrun = limits.overrun(kind.name, Duration::from_secs(ran), Duration::from_secs(silent));
            let late = ran > kind.deadline_seconds + MARGIN.as_secs();
            let still = quiet.is_some_and(|q| silent > q);
            prop_assert_eq!(overrun.is_some(), late || still);
            prop_assert_eq!(matches!(overrun, Some(Overrun::Deadline(_))), late);
        }
    }
}
