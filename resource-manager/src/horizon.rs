//! How much of each resource's line the lock table knows, as pure code.
//!
//! A leader learns of tasks by messages, and a message may come late, after that of a younger task, or not at all. So
//! before a task is granted, the rows are asked for those that came before it. That is cheap because the line of a
//! resource is known up to some place: tasks of one resource become visible in the order of their `created` (see
//! `Tx::submit`), so whoever has seen one of them can have seen all before it, once and for all.

use std::collections::HashMap;

use pulp_model::{Timestamp, task::ResourceKey, task::TaskState};
use pulp_store::grants::{Gap, LiveTask};

/// Between the instant that a task is created at and its commit there is less than this: no statement and no pause
/// of a transaction may take longer than a minute.
const LONGEST_COMMIT_MICROS: i64 = 600_000_000;

/// Up to where the table knows every waiting task of each resource.
#[derive(Debug)]
pub struct Horizon {
    known: HashMap<ResourceKey, Timestamp>,
    /// For resources without an entry of their own.
    floor: Timestamp,
}

impl Default for Horizon {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            floor: Timestamp(0),
        }
    }
}

impl Horizon {
    /// The parts of lines that must be looked at before any of these tasks may be granted.
    pub fn gaps<'t>(&self, tasks: impl IntoIterator<Item = &'t LiveTask>) -> Vec<Gap> {
        let mut until: HashMap<&ResourceKey, Timestamp> = HashMap::new();
        for task in tasks {
            if task.state != TaskState::Waiting {
                continue;
            }
            for claim in &task.claims {
                if task.created > self.known_of(&claim.resource) {
                    let last = until.entry(&claim.resource).or_insert(task.created);
                    *last = task.created.max(*last);
                }
            }
        }
        until
            .into_iter()
            .map(|(resource, until)| Gap {
                resource: resource.clone(),
                from: self.known_of(resource),
                until,
            })
            .collect()
    }

    /// These parts were looked at, and the table knows what waits in them.
    pub fn close(&mut self, gaps: Vec<Gap>) {
        for gap in gaps {
            self.learn(gap.resource, gap.until);
        }
    }

    /// The table knows all of `live`, which is every task there was at some instant not before `now`.
    pub fn swept(&mut self, now: Timestamp, live: &[LiveTask]) {
        self.floor = self.floor.max(now.plus_micros(-LONGEST_COMMIT_MICROS));
        let floor = self.floor;
        self.known.retain(|_, known| *known > floor);
        for task in live {
            for claim in &task.claims {
                self.learn(claim.resource.clone(), task.created);
            }
        }
    }

    fn learn(&mut self, resource: ResourceKey, until: Timestamp) {
        let known = self.known.entry(resource).or_insert(until);
        *known = until.max(*known);
    }

    fn known_of(&self, resource: &ResourceKey) -> Timestamp {
        self.known.get(resource).copied().unwrap_or(self.floor)
    }
}

#[cfg(test)]
mod tests {
    use pulp_model::{
        Attempt, TaskId,
        task::{Claim, Owner, TaskClass},
    };

    use super::*;

    fn task(created: i64, resources: &[&str]) -> LiveTask {
        LiveTask {
            id: TaskId::new(),
            state: TaskState::Waiting,
            attempt: Attempt(0),
            class: TaskClass::Interactive,
            owner: Owner::system(),
            kind_name: "publish".to_owned(),
            schema_version: 1,
            not_before: None,
            steps_aside: false,
            claims: resources
                .iter()
                .map(|r| Claim::exclusive(ResourceKey::from_stored(*r)))
                .collect(),
            created: Timestamp(created),
        }
    }

    fn bounds(gaps: &[Gap]) -> Vec<(&str, i64, i64)> {
        let mut bounds: Vec<_> = gaps
            .iter()
            .map(|g| (g.resource.as_str(), g.from.0, g.until.0))
            .collect();
        bounds.sort_unstable();
        bounds
    }

    #[test]
    fn a_line_is_looked_at_from_where_it_was_last_known_to_the_youngest_task() {
        let mut horizon = Horizon::default();
        let gaps = horizon.gaps(&[task(5, &["a"]), task(9, &["a", "b"])]);
        assert_eq!(bounds(&gaps), [("a", 0, 9), ("b", 0, 9)]);
        horizon.close(gaps);
        let gaps = horizon.gaps(&[task(8, &["a"]), task(12, &["b"])]);
        assert_eq!(bounds(&gaps), [("b", 9, 12)]);
    }

    #[test]
    fn a_sweep_knows_the_line_up_to_its_youngest_task_and_forgets_what_is_long_past() {
        let mut horizon = Horizon::default();
        horizon.close(horizon.gaps(&[task(7, &["old"])]));
        let now = LONGEST_COMMIT_MICROS + 1_000;
        horizon.swept(Timestamp(now), &[task(now - 5, &["a"]), task(now - 9, &["a"])]);
        let gaps = horizon.gaps(&[task(now, &["a"]), task(now, &["new"]), task(now - 7, &["a"])]);
        assert_eq!(bounds(&gaps), [("a", now - 5, now), ("new", 1_000, now)]);
        assert!(!horizon.known.contains_key(&ResourceKey::from_stored("old")));
    }

    #[test]
    fn a_task_that_holds_already_asks_for_nothing() {
        let mut running = task(5, &["a"]);
        running.state = TaskState::Running;
        assert!(Horizon::default().gaps(&[running]).is_empty());
    }
}
