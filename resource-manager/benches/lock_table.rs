//! The lock table alone: how many decisions it makes a second, and whether a long line on one resource costs the others.
//!
//! `cargo bench -p pulp-resource-manager`. A decision is a task that became known, was admitted, and gave up what it held.

#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use pulp_model::{
    TaskId, Timestamp,
    task::{Claim, ResourceKey, TaskClass},
};
use pulp_resource_manager::lock_table::{LockTable, Room, Waiter};

/// Tasks that come, are admitted and end together, as in a batch of the leader.
const BATCH: usize = 500;
const ROUNDS: usize = 7;
const LONG_LINE: usize = 100_000;

struct Load {
    tasks: Vec<(TaskId, Vec<Claim>)>,
    clock: i64,
}

impl Load {
    /// Publishes: each shares its repository with others and is alone on its distributor.
    fn new(repositories: usize) -> Self {
        let tasks = (0..BATCH).map(|n| {
            let repo = n % repositories;
            let claims = vec![
                Claim::exclusive(ResourceKey::from_stored(format!("distributor:r{repo}/d{n}"))),
                Claim::shared(ResourceKey::from_stored(format!("repository:r{repo}"))),
            ];
            (TaskId::new(), claims)
        });
        Self {
            tasks: tasks.collect(),
            clock: 1_000_000_000,
        }
    }

    /// Decisions a second, in batches for about `time`.
    fn run(&mut self, table: &mut LockTable, time: Duration) -> f64 {
        let begun = Instant::now();
        let mut decisions = 0_u32;
        while begun.elapsed() < time {
            for (id, claims) in &self.tasks {
                self.clock += 1;
                table.wait(&waiter(*id, self.clock, claims));
            }
            let admitted = table.admit(BATCH, Room::UNBOUNDED);
            assert_eq!(admitted.len(), BATCH, "something is in the way");
            for id in admitted {
                table.forget(id);
                decisions += 1;
            }
        }
        f64::from(decisions) / begun.elapsed().as_secs_f64()
    }
}

fn waiter(id: TaskId, at: i64, claims: &[Claim]) -> Waiter<'_> {
    Waiter {
        id,
        created: Timestamp(at),
        class: TaskClass::Publish,
        owner: "user:ann",
        eligible: true,
        claims,
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn main() {
    let claims = [Claim::exclusive(ResourceKey::from_stored("repository:busy"))];
    let mut busy = LockTable::default();
    for n in 0..=LONG_LINE {
        busy.wait(&waiter(TaskId::new(), n as i64, &claims));
    }
    // The first holds the resource; the others wait for it.
    assert_eq!(busy.admit(BATCH, Room::UNBOUNDED).len(), 1, "one holds it");
    let (mut empty, mut load) = (LockTable::default(), Load::new(50));
    let (mut alone, mut beside, mut slower) = (Vec::new(), Vec::new(), Vec::new());
    let time = Duration::from_millis(400);
    load.run(&mut empty, time);
    load.run(&mut busy, time);
    // In turns, so that whatever else the machine does concerns both.
    for _ in 0..ROUNDS {
        let (a, b) = (load.run(&mut empty, time), load.run(&mut busy, time));
        alone.push(a);
        beside.push(b);
        slower.push((a / b - 1.0) * 100.0);
    }
    println!("decisions a second: {:.0}", median(&mut alone));
    println!(
        "with {LONG_LINE} tasks waiting on another resource: {:.0}, {:+.1} % slower (median of {ROUNDS} rounds)",
        median(&mut beside),
        median(&mut slower)
    );
}
