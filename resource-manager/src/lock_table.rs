//! The lock table: which waiting tasks may go, as pure code.
//!
//! A task names resources, each shared or exclusive, and gets all of them at once or waits. Two claims on one
//! resource conflict unless both are shared. A waiting task may go when none of its claims conflicts with an
//! admitted task, whatever its age, nor with a waiting task that came before it. So nothing overtakes on a
//! resource, a writer is not starved by readers, and nothing waits behind a task that shares no resource with it.
//!
//! The age alone must not decide: places become known out of order, and a younger task may be admitted before an
//! older one is seen.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pulp_model::{
    TaskId, Timestamp,
    task::{Claim, LockMode, ResourceKey},
};

/// A task's place in the order of arrival.
pub type Place = (Timestamp, TaskId);

/// All that is known of tasks that wait or hold.
#[derive(Debug, Default, Clone)]
pub struct LockTable {
    tasks: HashMap<TaskId, Entry>,
    resources: HashMap<ResourceKey, Resource>,
    /// Waiting tasks whose chance has to be looked at; everything else is known to be blocked.
    candidates: BTreeSet<Place>,
}

#[derive(Debug, Clone)]
struct Entry {
    created: Timestamp,
    claims: Vec<Claim>,
    admitted: bool,
}

#[derive(Debug, Default, Clone)]
struct Resource {
    shared_holders: usize,
    exclusive_holder: bool,
    waiters: BTreeMap<Place, LockMode>,
    exclusive_waiters: BTreeSet<Place>,
}

impl Resource {
    fn is_idle(&self) -> bool {
        self.shared_holders == 0 && !self.exclusive_holder && self.waiters.is_empty()
    }

    fn admits(&self, place: &Place, mode: LockMode) -> bool {
        #[cfg(feature = "mutations")]
        if crate::mutations::overtaking() {
            return !self.exclusive_holder && (mode == LockMode::Shared || self.shared_holders == 0);
        }
        match mode {
            LockMode::Exclusive => {
                self.shared_holders == 0
                    && !self.exclusive_holder
                    && self.waiters.keys().next().is_none_or(|first| first == place)
            }
            LockMode::Shared => {
                !self.exclusive_holder && self.exclusive_waiters.first().is_none_or(|first| first > place)
            }
        }
    }
}

impl LockTable {
    /// Knows a task that waits. One that is known already is left as it is, unless it was admitted: then it
    /// gives up what it held and queues again at its old place.
    pub fn wait(&mut self, id: TaskId, created: Timestamp, claims: &[Claim]) {
        match self.tasks.get(&id) {
            Some(entry) if !entry.admitted => return,
            Some(_) => self.forget(id),
            None => {}
        }
        let place = (created, id);
        for claim in claims {
            let resource = self.resources.entry(claim.resource.clone()).or_default();
            resource.waiters.insert(place, claim.mode);
            if claim.mode == LockMode::Exclusive {
                resource.exclusive_waiters.insert(place);
            }
        }
        self.tasks.insert(
            id,
            Entry {
                created,
                claims: claims.to_vec(),
                admitted: false,
            },
        );
        self.candidates.insert(place);
    }

    /// Knows a task that holds its resources already, as after a take-over.
    pub fn hold(&mut self, id: TaskId, created: Timestamp, claims: &[Claim]) {
        if self.tasks.get(&id).is_some_and(|e| e.admitted) {
            return;
        }
        self.forget(id);
        self.tasks.insert(
            id,
            Entry {
                created,
                claims: claims.to_vec(),
                admitted: true,
            },
        );
        self.take(claims);
    }

    /// Knows no more of a task; those that it held up get their chance.
    pub fn forget(&mut self, id: TaskId) {
        let Some(entry) = self.tasks.remove(&id) else {
            return;
        };
        let place = (entry.created, id);
        self.candidates.remove(&place);
        for claim in &entry.claims {
            let Some(resource) = self.resources.get_mut(&claim.resource) else {
                continue;
            };
            if !entry.admitted {
                resource.waiters.remove(&place);
                resource.exclusive_waiters.remove(&place);
            } else if claim.mode == LockMode::Exclusive {
                resource.exclusive_holder = false;
            } else {
                resource.shared_holders -= 1;
            }
            // Only the first waiter, and shared ones before the first exclusive, can have been held up by it.
            let first_exclusive = resource.exclusive_waiters.first().copied();
            let may_go = resource
                .waiters
                .keys()
                .take_while(|p| first_exclusive.is_none_or(|e| **p <= e));
            self.candidates.extend(may_go.copied());
            if resource.is_idle() {
                self.resources.remove(&claim.resource);
            }
        }
    }

    /// Admits waiting tasks that may go, oldest first, at most `limit`.
    pub fn admit(&mut self, limit: usize) -> Vec<TaskId> {
        let mut admitted = Vec::new();
        while admitted.len() < limit {
            let Some(place) = self.candidates.pop_first() else {
                break;
            };
            if self.try_admit(place) {
                admitted.push(place.1);
            }
        }
        admitted
    }

    /// What a task claims, if it is known.
    pub fn claims(&self, id: TaskId) -> Option<&[Claim]> {
        self.tasks.get(&id).map(|e| e.claims.as_slice())
    }

    /// Every task known, and whether it is admitted.
    pub fn tasks(&self) -> impl Iterator<Item = (TaskId, bool)> + '_ {
        self.tasks.iter().map(|(id, e)| (*id, e.admitted))
    }

    /// Whether there are tasks that may be able to go.
    pub fn has_candidates(&self) -> bool {
        !self.candidates.is_empty()
    }

    fn try_admit(&mut self, place: Place) -> bool {
        let Some(entry) = self.tasks.get(&place.1) else {
            return false;
        };
        let may_go = entry.claims.iter().all(|c| {
            self.resources
                .get(&c.resource)
                .is_none_or(|r| r.admits(&place, c.mode))
        });
        if !may_go {
            return false;
        }
        let claims = entry.claims.clone();
        for claim in &claims {
            if let Some(resource) = self.resources.get_mut(&claim.resource) {
                resource.waiters.remove(&place);
                resource.exclusive_waiters.remove(&place);
            }
        }
        self.take(&claims);
        if let Some(entry) = self.tasks.get_mut(&place.1) {
            entry.admitted = true;
        }
        true
    }

    fn take(&mut self, claims: &[Claim]) {
        for claim in claims {
            let resource = self.resources.entry(claim.resource.clone()).or_default();
            match claim.mode {
                LockMode::Exclusive => resource.exclusive_holder = true,
                LockMode::Shared => resource.shared_holders += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    /// The same rules, written without any cleverness.
    #[derive(Default)]
    struct Model(Vec<(Place, Vec<Claim>, bool)>);

    impl Model {
        fn conflict(a: &[Claim], b: &[Claim]) -> bool {
            a.iter().any(|x| {
                b.iter().any(|y| {
                    x.resource == y.resource
                        && (x.mode == LockMode::Exclusive || y.mode == LockMode::Exclusive)
                })
            })
        }

        fn may_go(&self, index: usize) -> bool {
            let (place, claims, admitted) = &self.0[index];
            !admitted
                && self.0.iter().enumerate().all(|(i, (other, theirs, admitted))| {
                    i == index || !(*admitted || other < place) || !Self::conflict(claims, theirs)
                })
        }

        fn admit_all(&mut self) -> Vec<TaskId> {
            let mut order: Vec<usize> = (0..self.0.len()).collect();
            order.sort_by_key(|i| self.0[*i].0);
            let mut admitted = Vec::new();
            for i in order {
                if self.may_go(i) {
                    self.0[i].2 = true;
                    admitted.push(self.0[i].0.1);
                }
            }
            admitted
        }
    }

    #[derive(Debug, Clone)]
    enum Event {
        Wait { at: i64, claims: Vec<(u8, bool)> },
        Forget(usize),
        Requeue(usize),
        Admit(usize),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let claims = prop::collection::btree_map(0..5_u8, any::<bool>(), 1..4);
        let wait = (0..1000_i64, claims).prop_map(|(at, c)| Event::Wait {
            at,
            claims: c.into_iter().collect(),
        });
        let event = prop_oneof![
            4 => wait,
            2 => any::<prop::sample::Index>().prop_map(|i| Event::Forget(i.index(1000))),
            1 => any::<prop::sample::Index>().prop_map(|i| Event::Requeue(i.index(1000))),
            2 => (1..5_usize).prop_map(Event::Admit),
        ];
        prop::collection::vec(event, 1..80)
    }

    fn claims_of(claims: &[(u8, bool)]) -> Vec<Claim> {
        let key = |n: &u8| ResourceKey::from_stored(format!("r{n}"));
        claims
            .iter()
            .map(|(n, x)| {
                if *x {
                    Claim::exclusive(key(n))
                } else {
                    Claim::shared(key(n))
                }
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn it_admits_what_the_model_admits_and_never_a_conflict(events in events()) {
            let mut table = LockTable::default();
            let mut model = Model::default();
            for event in events {
                match event {
                    Event::Wait { at, claims } => {
                        let id = TaskId::new();
                        let claims = claims_of(&claims);
                        table.wait(id, Timestamp(at), &claims);
                        model.0.push(((Timestamp(at), id), claims, false));
                    }
                    Event::Forget(i) if !model.0.is_empty() => {
                        let i = i % model.0.len();
                        let (place, ..) = model.0.remove(i);
                        table.forget(place.1);
                    }
                    Event::Requeue(i) if !model.0.is_empty() => {
                        let i = i % model.0.len();
                        let (place, claims, admitted) = &mut model.0[i];
                        *admitted = false;
                        table.wait(place.1, place.0, claims);
                    }
                    Event::Admit(limit) => {
                        let ours = table.admit(limit);
                        // Admitting oldest first in steps, the model must agree with each of ours.
                        for id in &ours {
                            let i = model.0.iter().position(|t| t.0.1 == *id).unwrap();
                            prop_assert!(model.may_go(i), "admitted a task that may not go");
                            model.0[i].2 = true;
                        }
                    }
                    _ => {}
                }
            }
            let mut ours = table.admit(usize::MAX);
            let mut theirs = model.admit_all();
            ours.sort();
            theirs.sort();
            prop_assert_eq!(ours, theirs, "every task that may go goes");
            let mut state: Vec<_> = table.tasks().collect();
            state.sort();
            let mut expected: Vec<_> = model.0.iter().map(|(p, _, a)| (p.1, *a)).collect();
            expected.sort();
            prop_assert_eq!(state, expected);
        }

        #[test]
        fn when_admitted_tasks_end_every_task_is_admitted_in_the_end(events in events()) {
            let mut table = LockTable::default();
            for event in &events {
                if let Event::Wait { at, claims } = event {
                    table.wait(TaskId::new(), Timestamp(*at), &claims_of(claims));
                }
            }
            let mut left = table.tasks().count();
            while left > 0 {
                let admitted = table.admit(usize::MAX);
                prop_assert!(!admitted.is_empty(), "{} tasks wait for nothing", left);
                for id in admitted {
                    table.forget(id);
                    left -= 1;
                }
            }
            prop_assert!(table.resources.is_empty(), "an idle resource is remembered");
        }
    }

    #[test]
    fn a_reader_does_not_overtake_a_waiting_writer() {
        let key = ResourceKey::from_stored("repository:r");
        let mut table = LockTable::default();
        let [first, writer, late] = [TaskId::new(), TaskId::new(), TaskId::new()];
        table.wait(first, Timestamp(1), &[Claim::shared(key.clone())]);
        assert_eq!(table.admit(9), [first]);
        table.wait(writer, Timestamp(2), &[Claim::exclusive(key.clone())]);
        table.wait(late, Timestamp(3), &[Claim::shared(key)]);
        assert!(table.admit(9).is_empty());
        table.forget(first);
        assert_eq!(table.admit(9), [writer]);
        table.forget(writer);
        assert_eq!(table.admit(9), [late]);
    }

    #[test]
    fn a_task_known_twice_is_queued_once() {
        let claims = [Claim::exclusive(ResourceKey::from_stored("r"))];
        let mut table = LockTable::default();
        let id = TaskId::new();
        table.wait(id, Timestamp(1), &claims);
        table.wait(id, Timestamp(1), &claims);
        assert_eq!(table.admit(9), [id]);
        table.hold(id, Timestamp(1), &claims);
        table.forget(id);
        assert!(table.tasks().next().is_none());
    }
}
