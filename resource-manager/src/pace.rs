//! How much of each class may be granted ahead of the workers, as pure code.
//!
//! What is granted lies in the broker's queue in the order in which it was granted: too late to be fair. So only as
//! much is granted as keeps the workers busy: what runs, and as much again; where tasks are so short that this would
//! leave workers idle between two grants, as many as the class ended in the last quarter of a second. The backlog stays
//! in the table, where it can be ordered.

use std::collections::BTreeMap;

use pulp_model::task::TaskClass;
use pulp_store::workers::Serving;

use crate::lock_table::{LockTable, Room};

/// Of the tasks that a class ended in one patrol's period (a second), the part that may be granted ahead.
const AHEAD: usize = 4;

/// What the live workers can run, and how fast they have been.
#[derive(Debug, Default)]
pub struct Pace {
    serving: Vec<Serving>,
    slots: BTreeMap<TaskClass, usize>,
    ended: BTreeMap<TaskClass, usize>,
    ended_before: BTreeMap<TaskClass, usize>,
}

impl Pace {
    /// What the live workers say now.
    pub fn serve(&mut self, serving: Vec<Serving>) {
        self.slots.clear();
        for worker in &serving {
            for (class, slots) in &worker.slots {
                let sum = self.slots.entry(*class).or_default();
                *sum = sum.saturating_add(*slots as usize);
            }
        }
        self.serving = serving;
    }

    /// Whether a live worker can run it.
    pub fn can_run(&self, class: TaskClass, kind: &str, schema_version: i64) -> bool {
        self.serving
            .iter()
            .any(|worker| worker.can_run(class, kind, schema_version))
    }

    /// A task of the class gave up what it held.
    pub fn ended(&mut self, class: TaskClass) {
        *self.ended.entry(class).or_default() += 1;
    }

    /// A patrol's period is over.
    pub fn tick(&mut self) {
        self.ended_before = std::mem::take(&mut self.ended);
    }

    /// How many more tasks of each class may be granted, beside those that hold their resources now.
    pub fn room(&self, table: &LockTable) -> Room {
        Room::by(|class| {
            let of = |counts: &BTreeMap<TaskClass, usize>| counts.get(&class).copied().unwrap_or(0);
            let slots = of(&self.slots);
            if slots == 0 {
                return 0;
            }
            let ahead = slots.max(of(&self.ended).max(of(&self.ended_before)) / AHEAD);
            slots
                .saturating_add(ahead)
                .saturating_sub(table.admitted_in(class))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn worker(slots: u32) -> Serving {
        Serving::of_this_release(BTreeMap::from([(TaskClass::Publish, slots)]))
    }

    #[test]
    fn twice_the_slots_of_a_class_are_granted_and_nothing_that_nobody_serves() {
        let mut pace = Pace::default();
        let table = LockTable::default();
        assert_eq!(pace.room(&table), Room::default());
        pace.serve(vec![worker(2), worker(3)]);
        assert_eq!(pace.room(&table).of(TaskClass::Publish), 10);
        assert_eq!(pace.room(&table).of(TaskClass::Import), 0);
        pace.serve(Vec::new());
        assert_eq!(pace.room(&table), Room::default());
    }

    #[test]
    fn short_tasks_are_granted_further_ahead_while_they_last() {
        let mut pace = Pace::default();
        let table = LockTable::default();
        pace.serve(vec![worker(2)]);
        for _ in 0..1000 {
            pace.ended(TaskClass::Publish);
        }
        assert_eq!(pace.room(&table).of(TaskClass::Publish), 252);
        pace.tick();
        assert_eq!(pace.room(&table).of(TaskClass::Publish), 252);
        pace.tick();
        assert_eq!(pace.room(&table).of(TaskClass::Publish), 4);
    }

    #[test]
    fn a_kind_is_run_by_a_worker_that_knows_its_version_and_serves_its_class() {
        let mut pace = Pace::default();
        let mut newer = worker(1);
        newer.supports.insert("publish".to_owned(), 2);
        pace.serve(vec![worker(1)]);
        assert!(pace.can_run(TaskClass::Publish, "publish", 1));
        assert!(!pace.can_run(TaskClass::Publish, "publish", 2));
        assert!(!pace.can_run(TaskClass::Publish, "unheard_of", 1));
        assert!(!pace.can_run(TaskClass::Import, "import_upload", 1));
        pace.serve(vec![worker(1), newer]);
        assert!(pace.can_run(TaskClass::Publish, "publish", 2));
    }
}
