//! Weighted rotation between owners, as pure code.
//!
//! Stride scheduling: each owner has a pass that grows by one over its weight with each task of its; the owner with
//! the smallest pass is next. An owner that comes (back) begins at the present pass, so that nobody saves up turns by
//! having nothing to do, and not before its own last one, so that nobody gains by coming one task at a time.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use crate::lock_table::Place;

/// The pass of one task of an owner of weight 1.
const STRIDE: u64 = 1 << 20;

/// Tasks of one class that may go, by owner.
#[derive(Debug, Default, Clone)]
pub struct Rotation {
    owners: HashMap<Arc<str>, Turn>,
    order: BTreeSet<(u64, Arc<str>)>,
    /// The pass of whoever was served last.
    present: u64,
    /// Owners without a task whose last pass is ahead of the present one.
    absent: HashMap<Arc<str>, u64>,
}

#[derive(Debug, Clone)]
struct Turn {
    pass: u64,
    weight: u32,
    tasks: BTreeSet<Place>,
}

impl Rotation {
    /// Adds a task of an owner with this weight (0 counts as 1).
    pub fn insert(&mut self, owner: &Arc<str>, weight: u32, place: Place) {
        if let Some(turn) = self.owners.get_mut(owner) {
            turn.tasks.insert(place);
            return;
        }
        let last = self.absent.remove(owner).unwrap_or(0);
        let turn = Turn {
            pass: last.max(self.present),
            weight: weight.max(1),
            tasks: BTreeSet::from([place]),
        };
        self.order.insert((turn.pass, Arc::clone(owner)));
        self.owners.insert(Arc::clone(owner), turn);
    }

    /// Takes a task out.
    pub fn remove(&mut self, owner: &Arc<str>, place: &Place) {
        if let Some(turn) = self.owners.get_mut(owner) {
            turn.tasks.remove(place);
            if turn.tasks.is_empty() {
                self.leave(owner);
            }
        }
    }

    /// Takes out the next task: the oldest of the owner whose turn it is.
    pub fn pop(&mut self) -> Option<Place> {
        let (pass, owner) = self.order.pop_first()?;
        self.present = pass;
        let turn = self.owners.get_mut(&owner)?;
        let place = turn.tasks.pop_first()?;
        turn.pass += (STRIDE / u64::from(turn.weight)).max(1);
        self.order.insert((turn.pass, Arc::clone(&owner)));
        if turn.tasks.is_empty() {
            self.leave(&owner);
        }
        Some(place)
    }

    /// How many tasks there are.
    pub fn len(&self) -> usize {
        self.owners.values().map(|turn| turn.tasks.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// The oldest task of all owners.
    pub fn oldest(&self) -> Option<Place> {
        let oldest = self.owners.values().filter_map(|turn| turn.tasks.first());
        oldest.min().copied()
    }

    fn leave(&mut self, owner: &Arc<str>) {
        let Some(turn) = self.owners.remove(owner) else {
            return;
        };
        self.order.remove(&(turn.pass, Arc::clone(owner)));
        if self.absent.len() > 1000 {
            let present = self.present;
            self.absent.retain(|_, pass| *pass > present);
        }
        if turn.pass > self.present {
            self.absent.insert(Arc::clone(owner), turn.pass);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use pulp_model::{TaskId, Timestamp};

    use super::*;

    fn place(at: i64) -> Place {
        (Timestamp(at), TaskId::new())
    }

    proptest! {
        #[test]
        fn owners_with_work_get_their_shares_and_each_its_oldest_first(
            weights in prop::collection::vec(1..8_u32, 1..6),
            turns in 1..200_usize,
        ) {
            let mut rotation = Rotation::default();
            let owners: Vec<Arc<str>> = (0..weights.len()).map(|n| format!("u{n}").into()).collect();
            let mut owner_of = HashMap::new();
            for (owner, weight) in owners.iter().zip(&weights) {
                for at in 0..200 {
                    let place = place(at);
                    owner_of.insert(place.1, Arc::clone(owner));
                    rotation.insert(owner, *weight, place);
                }
            }
            let mut served: HashMap<Arc<str>, Vec<Place>> = HashMap::new();
            for _ in 0..turns {
                let place = rotation.pop().unwrap();
                served.entry(Arc::clone(&owner_of[&place.1])).or_default().push(place);
            }
            let total: u32 = weights.iter().sum();
            for (owner, weight) in owners.iter().zip(&weights) {
                let got = served.get(owner).map_or(0, Vec::len);
                let share = turns as f64 * f64::from(*weight) / f64::from(total);
                prop_assert!((got as f64 - share).abs() <= 1.0 + f64::from(*weight), "{} of {}", got, share);
                let list = served.get(owner).cloned().unwrap_or_default();
                prop_assert!(list.is_sorted());
            }
        }

        #[test]
        fn whoever_comes_one_task_at_a_time_gets_no_more_than_their_share(rounds in 10..100_usize) {
            let (steady, trickle): (Arc<str>, Arc<str>) = ("steady".into(), "trickle".into());
            let mut rotation = Rotation::default();
            for at in 0..1000 {
                rotation.insert(&steady, 1, place(at));
            }
            let mut of_trickle = 0;
            for n in 0..rounds {
                let theirs = place(5000 + n as i64);
                rotation.insert(&trickle, 1, theirs);
                if rotation.pop().unwrap() == theirs {
                    of_trickle += 1;
                } else {
                    rotation.remove(&trickle, &theirs);
                }
            }
            prop_assert!(of_trickle <= rounds / 2 + 1 && of_trickle + 2 >= rounds / 2, "{} of {}", of_trickle, rounds);
        }
    }

    #[test]
    fn an_owner_that_was_away_has_not_saved_up_turns() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut rotation = Rotation::default();
        for at in 0..1000 {
            rotation.insert(&a, 1, place(at));
        }
        for _ in 0..500 {
            rotation.pop().unwrap();
        }
        for at in 2000..2100 {
            rotation.insert(&b, 1, place(at));
        }
        let of_b = (0..10).filter(|_| rotation.pop().unwrap().0.0 >= 2000).count();
        assert!((4..=6).contains(&of_b), "{of_b}");
    }
}
