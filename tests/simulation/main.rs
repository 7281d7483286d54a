//! The tasking core, simulated; see the crate's documentation for how to run it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod actors;
mod broker;
mod contract;
mod ledger;
mod monitor;
mod plan;
mod records;
mod sim;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use ledger::Mutation;
use plan::{Outcome, run};
use sim::Counts;

/// Seeds of an ordinary run.
const SEEDS: u64 = 3_000;
/// Within so many seeds every mutation must have been found.
const MUTATION_SEEDS: u64 = 20_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is no number")),
    )
}

/// The seed's story, told again with everything written down.
fn report(seed: u64, mutation: Mutation) -> String {
    let Outcome {
        violation, time_line, ..
    } = run(seed, mutation, true);
    format!(
        "{}\nseed {seed}: {}\nagain: PULP_SIMULATION_SEED={seed} cargo test -p pulp-simulation",
        time_line.join("\n"),
        violation.as_deref().unwrap_or("no violation")
    )
}

/// The first seed below `seeds` that violates anything, and what was done until then.
fn search(seeds: u64, mutation: Mutation) -> (Option<(u64, String)>, Counts, u64) {
    let (next, threads) = (
        AtomicU64::new(0),
        std::thread::available_parallelism().map_or(1, usize::from),
    );
    let lowest = AtomicU64::new(u64::MAX);
    let work = || {
        let (mut counts, mut found, mut done) = (Counts::default(), Vec::new(), 0);
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds || seed > lowest.load(Ordering::Relaxed) {
                return (counts, found, done);
            }
            let outcome = run(seed, mutation, false);
            done += 1;
            counts.events += outcome.counts.events;
            counts.faults += outcome.counts.faults;
            counts.tasks += outcome.counts.tasks;
            counts.attempts += outcome.counts.attempts;
            counts.virtual_micros += outcome.counts.virtual_micros;
            if let Some(violation) = outcome.violation {
                lowest.fetch_min(seed, Ordering::Relaxed);
                found.push((seed, violation));
            }
        }
    };
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let (mut all, mut total, mut done) = (Vec::new(), Counts::default(), 0);
        for handle in handles {
            let (counts, found, n) = handle.join().unwrap();
            all.extend(found);
            done += n;
            total.events += counts.events;
            total.faults += counts.faults;
            total.tasks += counts.tasks;
            total.attempts += counts.attempts;
            total.virtual_micros += counts.virtual_micros;
        }
        all.sort();
        (all.into_iter().next(), total, done)
    })
}

#[test]
fn no_seed_violates_anything() {
    if let Some(seed) = number("PULP_SIMULATION_SEED") {
        println!("{}", report(seed, Mutation::None));
        assert!(run(seed, Mutation::None, false).violation.is_none());
        return;
    }
    let seeds = number("PULP_SIMULATION_SEEDS").unwrap_or(SEEDS);
    let begun = Instant::now();
    let (found, counts, done) = search(seeds, Mutation::None);
    println!(
        "{done} seeds in {:.1} s: {} events, {} faults, {} tasks, {} attempts, {} s of virtual time",
        begun.elapsed().as_secs_f64(),
        counts.events,
        counts.faults,
        counts.tasks,
        counts.attempts,
        counts.virtual_micros / sim::SECOND
    );
    if let Some((seed, violation)) = found {
        panic!("{}\n{violation}", report(seed, Mutation::None));
    }
}

#[test]
fn a_seed_tells_the_whole_story() {
    for seed in 0..200 {
        let (first, second) = (run(seed, Mutation::None, false), run(seed, Mutation::None, true));
        assert_eq!(first.fingerprint, second.fingerprint, "seed {seed} went two ways");
        assert!(!second.time_line.is_empty());
    }
}

/// What is taken out must be missed, or the checks check nothing.
fn is_missed(mutation: Mutation) {
    let (found, ..) = search(MUTATION_SEEDS, mutation);
    let Some((seed, violation)) = found else {
        panic!("{mutation:?}: nothing noticed in {MUTATION_SEEDS} seeds");
    };
    println!("{mutation:?}: found by seed {seed}: {violation}");
}

#[test]
fn the_fence_of_the_commit_is_missed() {
    is_missed(Mutation::NoCommitFence);
}

#[test]
fn the_epoch_condition_is_missed() {
    is_missed(Mutation::NoEpochCondition);
}

#[test]
fn the_outbox_is_missed() {
    is_missed(Mutation::NoOutbox);
}

#[test]
fn the_self_fence_is_missed() {
    is_missed(Mutation::NoSelfFence);
}

#[test]
fn the_look_at_those_whose_message_is_late_is_missed() {
    is_missed(Mutation::NoLookBack);
}

#[test]
fn the_end_of_runs_that_go_on_for_too_long_is_missed() {
    is_missed(Mutation::NoExpiry);
}

#[test]
fn the_withdrawal_of_what_a_canceled_task_made_is_missed() {
    is_missed(Mutation::NoWithdrawal);
}

#[test]
fn the_wait_for_those_who_came_first_is_missed() {
    is_missed(Mutation::Overtaking);
}
