//! What goes wrong, and when: a pure function of the seed and the length of the run.

use std::fmt;

use crate::random::Random;

/// Whom a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    Api,
    Crane,
    Scheduler,
    Leader,
    Standby,
    Worker(usize),
}

/// What befalls a process. Afterwards it runs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blow {
    /// `kill -9`.
    Kill,
    /// `SIGSTOP`, and `SIGCONT` before its lease ends.
    Freeze,
    /// `SIGSTOP`, and `SIGCONT` when everybody else takes it for dead.
    FreezeBeyondLease,
    /// `SIGTERM`; it must end well.
    Stop,
}

/// What befalls an engine. Afterwards it works again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outage {
    /// Stopped in order, for so many seconds.
    BrokerStopped(u64),
    BrokerKilled,
    /// Killed, and all its data removed.
    BrokerWiped,
    BrokerConnectionsClosed,
    QueuesPurged,
    QueuesDeleted,
    DatabaseRestarted,
    DatabaseKilled,
    /// Every session of it ended.
    DatabaseConnectionsDropped,
    /// Every process of it frozen, for so many milliseconds.
    DatabasePaused(u64),
}

/// One entry of the plan. With both, the process is struck while the engine is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Milliseconds in which nothing goes wrong, before.
    pub(crate) calm: u64,
    pub(crate) outage: Option<Outage>,
    pub(crate) blow: Option<(Victim, Blow)>,
    /// Milliseconds from the blow until the process is started or thawed.
    pub(crate) hold: u64,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(outage) = self.outage {
            write!(f, "{outage:?} ")?;
        }
        if let Some((victim, blow)) = self.blow {
            write!(f, "{blow:?} of {victim:?} for {} ms", self.hold)?;
        }
        Ok(())
    }
}

/// The names by which faults are counted: without their numbers.
pub(crate) fn kinds(step: &Step) -> Vec<String> {
    let word = |s: String| s.split('(').next().unwrap_or_default().to_owned();
    let mut kinds = Vec::new();
    kinds.extend(step.outage.map(|o| word(format!("{o:?}"))));
    kinds.extend(
        step.blow
            .map(|(v, b)| format!("{b:?} {}", word(format!("{v:?}")))),
    );
    kinds
}

/// An endless plan. The first steps are every kind of fault once, in an order of the seed's, so that a short run has
/// as many kinds as it has time for; the rest is drawn.
pub(crate) fn plan(seed: u64, workers: usize, long: bool) -> impl Iterator<Item = Step> {
    let mut random = Random::new(seed);
    let mut first = every_kind(&mut random, workers);
    std::iter::from_fn(move || {
        let (outage, blow) = match first.pop() {
            Some(step) => step,
            None => match random.below(10) {
                0..5 => (None, Some(some_blow(&mut random, workers))),
                5..8 => (Some(some_outage(&mut random, long)), None),
                _ => (
                    Some(some_outage(&mut random, long)),
                    Some(some_blow(&mut random, workers)),
                ),
            },
        };
        let hold = match blow {
            Some((_, Blow::Freeze)) => random.millis(300, 2000),
            Some((_, Blow::FreezeBeyondLease)) => random.millis(8000, 11000),
            Some(_) => random.millis(0, 6000),
            None => 0,
        };
        Some(Step {
            calm: random.millis(200, 2500),
            outage,
            blow,
            hold,
        })
    })
}

type Pair = (Option<Outage>, Option<(Victim, Blow)>);

const BLOWS: [Blow; 4] = [Blow::Kill, Blow::Freeze, Blow::FreezeBeyondLease, Blow::Stop];

fn every_kind(random: &mut Random, workers: usize) -> Vec<Pair> {
    let mut all: Vec<Pair> = Vec::new();
    for blow in BLOWS {
        // Workers and the leader are where it hurts.
        for victim in [Victim::Worker(random.below(workers)), Victim::Leader] {
            all.push((None, Some((victim, blow))));
        }
    }
    for victim in [Victim::Api, Victim::Crane, Victim::Scheduler, Victim::Standby] {
        all.push((None, Some((victim, *random.of(&BLOWS)))));
    }
    let outages = [
        Outage::BrokerStopped(1),
        Outage::BrokerKilled,
        Outage::BrokerWiped,
        Outage::BrokerConnectionsClosed,
        Outage::QueuesPurged,
        Outage::QueuesDeleted,
        Outage::DatabaseRestarted,
        Outage::DatabaseKilled,
        Outage::DatabaseConnectionsDropped,
        Outage::DatabasePaused(3000),
    ];
    all.extend(outages.map(|outage| (Some(outage), None)));
    for end in (1..all.len()).rev() {
        all.swap(end, random.below(end + 1));
    }
    all
}

fn some_blow(random: &mut Random, workers: usize) -> (Victim, Blow) {
    let victim = match random.below(10) {
        0..4 => Victim::Worker(random.below(workers)),
        4..6 => Victim::Leader,
        6 => Victim::Standby,
        7 => Victim::Api,
        8 => Victim::Scheduler,
        _ => Victim::Crane,
    };
    (victim, *random.of(&BLOWS))
}

fn some_outage(random: &mut Random, long: bool) -> Outage {
    match random.below(10) {
        0 => match random.below(if long { 4 } else { 3 }) {
            0 | 1 => Outage::BrokerStopped(1),
            2 => Outage::BrokerStopped(10),
            _ => Outage::BrokerStopped(60),
        },
        1 => Outage::BrokerKilled,
        2 => Outage::BrokerWiped,
        3 => Outage::BrokerConnectionsClosed,
        4 => Outage::QueuesPurged,
        5 => Outage::QueuesDeleted,
        6 => Outage::DatabaseRestarted,
        7 => Outage::DatabaseKilled,
        8 => Outage::DatabaseConnectionsDropped,
        _ => Outage::DatabasePaused(random.millis(300, 6000)),
    }
}

#[test]
fn the_same_seed_gives_the_same_plan_and_another_seed_another() {
    let of = |seed| plan(seed, 3, true).take(200).collect::<Vec<_>>();
    assert_eq!(of(7), of(7));
    assert_ne!(of(7), of(8));
}

#[test]
fn a_plan_begins_with_every_outage_and_every_blow_to_a_worker_and_to_the_leader() {
    let begin: Vec<String> = plan(1, 3, false).take(22).flat_map(|s| kinds(&s)).collect();
    for kind in [
        "Kill Worker",
        "FreezeBeyondLease Leader",
        "Stop Worker",
        "BrokerWiped",
        "DatabasePaused",
    ] {
        assert!(begin.iter().any(|k| k == kind), "{kind} is not in {begin:?}");
    }
}
