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

/// The other end of a process's links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Broker,
    Database,
    Both,
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
    /// Frozen until it is taken for dead and another has its name, then both run for a while.
    Twin,
    /// Nothing passes between it and an engine, and nobody is told; then what waited arrives.
    Cut(Engine),
    /// The same, but the connections of then never say a word again; only new ones work.
    CutAndForgotten(Engine),
    /// Its connections to an engine are reset, and new ones refused.
    Refused(Engine),
    /// Whatever passes between it and an engine takes so many milliseconds.
    Slow(Engine, u64),
    /// Its clock is this many seconds off.
    Clock(i64),
}

/// What befalls an engine, or what everybody shares. Afterwards it works again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outage {
    /// Stopped in order, for so many seconds.
    BrokerStopped(u64),
    BrokerKilled,
    /// Killed, and all its data removed.
    BrokerWiped,
    BrokerConnectionsClosed,
    /// It takes no messages for want of memory, for so many milliseconds.
    BrokerAlarm(u64),
    /// Nobody reaches it, for so many milliseconds.
    BrokerUnreachable(u64),
    QueuesPurged,
    QueuesDeleted,
    DatabaseRestarted,
    DatabaseKilled,
    /// Every session of it ended.
    DatabaseConnectionsDropped,
    /// Every process of it frozen, for so many milliseconds.
    DatabasePaused(u64),
    /// Nobody reaches it, for so many milliseconds.
    DatabaseUnreachable(u64),
    /// The content volume takes not a byte more, for so many milliseconds.
    ContentFull(u64),
    /// The content volume can't be written to, for so many milliseconds.
    ContentReadOnly(u64),
}

/// One entry of the plan. With both, the process is struck while the engine is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Milliseconds in which nothing goes wrong, before.
    pub(crate) calm: u64,
    pub(crate) outage: Option<Outage>,
    pub(crate) blow: Option<(Victim, Blow)>,
    /// Milliseconds from the blow until the process is started, thawed or reached again.
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
    kinds.extend(step.blow.map(|(victim, blow)| {
        let whom = word(format!("{victim:?}"));
        let (Blow::Cut(from) | Blow::CutAndForgotten(from) | Blow::Refused(from) | Blow::Slow(from, _)) =
            blow
        else {
            return format!("{} {whom}", word(format!("{blow:?}")));
        };
        let ends = match from {
            Engine::Both => "both engines".to_owned(),
            one => format!("{one:?}"),
        };
        format!("{} {whom} and {ends}", word(format!("{blow:?}")))
    }));
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
                0..6 => (None, Some(some_blow(&mut random, workers))),
                6..8 => (Some(some_outage(&mut random, long)), None),
                _ => (
                    Some(some_outage(&mut random, long)),
                    Some(some_blow(&mut random, workers)),
                ),
            },
        };
        let hold = match blow {
            Some((_, Blow::Freeze)) => random.millis(300, 2000),
            Some((_, Blow::FreezeBeyondLease | Blow::Twin)) => random.millis(8000, 11000),
            Some((
                _,
                Blow::Cut(_) | Blow::CutAndForgotten(_) | Blow::Refused(_) | Blow::Slow(..) | Blow::Clock(_),
            )) => {
                // Within the lease, and beyond it.
                if random.below(2) == 0 {
                    random.millis(500, 3000)
                } else {
                    random.millis(7000, 12000)
                }
            }
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

const HOUR: i64 = 3600;

const ENGINES: [Engine; 3] = [Engine::Broker, Engine::Database, Engine::Both];

/// What can befall any process but Crane, which talks to no engine and shares its port with nobody.
fn blows(random: &mut Random) -> [Blow; 10] {
    [
        Blow::Kill,
        Blow::Freeze,
        Blow::FreezeBeyondLease,
        Blow::Stop,
        Blow::Twin,
        Blow::Cut(*random.of(&ENGINES)),
        Blow::CutAndForgotten(*random.of(&ENGINES)),
        Blow::Refused(*random.of(&ENGINES)),
        Blow::Slow(*random.of(&ENGINES), random.millis(20, 400)),
        Blow::Clock(*random.of(&[HOUR, -HOUR])),
    ]
}

fn blow_to(victim: Victim, random: &mut Random) -> Blow {
    let all = blows(random);
    loop {
        let blow = *random.of(&all);
        let fits = match victim {
            Victim::Crane => matches!(
                blow,
                Blow::Kill | Blow::Freeze | Blow::FreezeBeyondLease | Blow::Stop | Blow::Clock(_)
            ),
            // Two can't listen on one port.
            Victim::Api => blow != Blow::Twin,
            _ => true,
        };
        if fits {
            return blow;
        }
    }
}

/// The first worker is never ended, so that what it may leak has time to show.
fn a_worker(blow: Blow, random: &mut Random, workers: usize) -> Victim {
    let spared = matches!(blow, Blow::Kill | Blow::Stop | Blow::Twin);
    Victim::Worker(if spared {
        1 + random.below(workers - 1)
    } else {
        random.below(workers)
    })
}

fn every_kind(random: &mut Random, workers: usize) -> Vec<Pair> {
    let mut all: Vec<Pair> = Vec::new();
    // Workers and the leader are where it hurts.
    for blow in blows(random) {
        all.push((None, Some((a_worker(blow, random, workers), blow))));
    }
    for blow in blows(random) {
        all.push((None, Some((Victim::Leader, blow))));
    }
    for victim in [Victim::Api, Victim::Crane, Victim::Scheduler, Victim::Standby] {
        let blow = blow_to(victim, random);
        all.push((None, Some((victim, blow))));
    }
    let outages = [
        Outage::BrokerStopped(1),
        Outage::BrokerKilled,
        Outage::BrokerWiped,
        Outage::BrokerConnectionsClosed,
        Outage::BrokerAlarm(3000),
        Outage::BrokerUnreachable(5000),
        Outage::QueuesPurged,
        Outage::QueuesDeleted,
        Outage::DatabaseRestarted,
        Outage::DatabaseKilled,
        Outage::DatabaseConnectionsDropped,
        Outage::DatabasePaused(3000),
        Outage::DatabaseUnreachable(5000),
        Outage::ContentFull(3000),
        Outage::ContentReadOnly(3000),
    ];
    all.extend(outages.map(|outage| (Some(outage), None)));
    for end in (1..all.len()).rev() {
        all.swap(end, random.below(end + 1));
    }
    all
}

fn some_blow(random: &mut Random, workers: usize) -> (Victim, Blow) {
    let victim = match random.below(10) {
        0..4 => {
            let all = blows(random);
            let blow = *random.of(&all);
            return (a_worker(blow, random, workers), blow);
        }
        4..6 => Victim::Leader,
        6 => Victim::Standby,
        7 => Victim::Api,
        8 => Victim::Scheduler,
        _ => Victim::Crane,
    };
    (victim, blow_to(victim, random))
}

fn some_outage(random: &mut Random, long: bool) -> Outage {
    match random.below(15) {
        0 => match random.below(if long { 4 } else { 3 }) {
            0 | 1 => Outage::BrokerStopped(1),
            2 => Outage::BrokerStopped(10),
            _ => Outage::BrokerStopped(60),
        },
        1 => Outage::BrokerKilled,
        2 => Outage::BrokerWiped,
        3 => Outage::BrokerConnectionsClosed,
        4 => Outage::BrokerAlarm(random.millis(500, 8000)),
        5 => Outage::BrokerUnreachable(random.millis(500, 12000)),
        6 => Outage::QueuesPurged,
        7 => Outage::QueuesDeleted,
        8 => Outage::DatabaseRestarted,
        9 => Outage::DatabaseKilled,
        10 => Outage::DatabaseConnectionsDropped,
        11 => Outage::DatabasePaused(random.millis(300, 6000)),
        12 => Outage::DatabaseUnreachable(random.millis(500, 12000)),
        13 => Outage::ContentFull(random.millis(1000, 6000)),
        _ => Outage::ContentReadOnly(random.millis(1000, 6000)),
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
    let begin: Vec<String> = plan(1, 3, false).take(39).flat_map(|s| kinds(&s)).collect();
    for kind in [
        "Kill Worker",
        "FreezeBeyondLease Leader",
        "Stop Worker",
        "Twin Leader",
        "Cut Worker and ",
        "CutAndForgotten Leader and ",
        "Refused Worker and ",
        "Slow Leader and ",
        "Clock Worker",
        "BrokerWiped",
        "BrokerAlarm",
        "DatabasePaused",
        "DatabaseUnreachable",
        "ContentFull",
        "ContentReadOnly",
    ] {
        assert!(
            begin.iter().any(|k| k.starts_with(kind)),
            "{kind} is not in {begin:?}"
        );
    }
}
