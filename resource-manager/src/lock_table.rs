//! The lock table: which waiting tasks may go, and in which order, as pure code.
//!
//! A task names resources, each shared or exclusive, and gets all of them at once or waits. Two claims on one
//! resource conflict unless both are shared. A waiting task may go when none of its claims conflicts with an
//! admitted task, whatever its age, nor with a waiting task that came before it. So nothing overtakes on a
//! resource, a writer is not starved by readers, and nothing waits behind a task that shares no resource with it.
//!
//! The age alone must not decide: places become known out of order, and a younger task may be admitted before an
//! older one is seen.
//!
//! Of the tasks that may go, those of a class are admitted in rotation between their owners, as far as there is
//! room in the class; see [`Rotation`]. Two tasks that may go never conflict, so this order is free.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hashbrown::HashMap;
use pulp_model::{
    TaskId, Timestamp,
    task::{Claim, LockMode, ResourceKey, TaskClass},
};

use crate::rotation::Rotation;

/// A task's place in the order of arrival.
pub type Place = (Timestamp, TaskId);

/// How many more tasks of each class may be admitted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Room([usize; TaskClass::ALL.len()]);

impl Room {
    /// As much as `of` says for each class.
    pub fn by(of: impl Fn(TaskClass) -> usize) -> Self {
        Self(TaskClass::ALL.map(of))
    }

    /// No bounds.
    pub const UNBOUNDED: Self = Self([usize::MAX; TaskClass::ALL.len()]);

    /// What is left in a class.
    pub const fn of(&self, class: TaskClass) -> usize {
        self.0[class as usize]
    }
}

/// A task that waits, as the table learns of it.
#[derive(Debug, Clone, Copy)]
pub struct Waiter<'a> {
    /// The task.
    pub id: TaskId,
    /// When it was made: its place, with the id as tie-break.
    pub created: Timestamp,
    /// In whose room it is admitted.
    pub class: TaskClass,
    /// Between whom the class rotates.
    pub owner: &'a str,
    /// Whether it may be admitted at all for now. One that may not keeps its place, and others wait behind it.
    pub eligible: bool,
    /// What it needs.
    pub claims: &'a [Claim],
}

/// Of hashbrown: its entry takes a key by reference, and copies it only if it isn't there.
type Resources = HashMap<ResourceKey, Resource>;

/// All that is known of tasks that wait or hold.
#[derive(Debug, Default, Clone)]
pub struct LockTable {
    tasks: HashMap<TaskId, Entry>,
    resources: Resources,
    /// Waiting tasks whose chance has to be looked at; everything else is known to be blocked, ready, or not
    /// eligible.
    candidates: BTreeSet<Place>,
    /// Eligible tasks that may go but for room in their class.
    ready: [Rotation; TaskClass::ALL.len()],
    admitted: [usize; TaskClass::ALL.len()],
    known: [usize; TaskClass::ALL.len()],
    weights: Arc<BTreeMap<String, u32>>,
}

#[derive(Debug, Clone)]
struct Entry {
    created: Timestamp,
    claims: Arc<[Claim]>,
    class: TaskClass,
    owner: Arc<str>,
    eligible: bool,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    Ready,
    Admitted,
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

    fn hold(&mut self, mode: LockMode) {
        match mode {
            LockMode::Exclusive => self.exclusive_holder = true,
            LockMode::Shared => self.shared_holders += 1,
        }
    }

    /// Gives up a hold; tells whom it may have held up.
    fn release(&mut self, mode: LockMode, freed: &mut BTreeSet<Place>) {
        match mode {
            LockMode::Exclusive => {
                self.exclusive_holder = false;
                self.run_from(None, freed);
            }
            LockMode::Shared => {
                self.shared_holders -= 1;
                // Readers were not held up by a reader.
                if self.shared_holders == 0 {
                    self.writer_at_the_head(freed);
                }
            }
        }
    }

    /// Takes a waiter out of the line that will not come to hold; tells whom it may have held up.
    fn leave(&mut self, place: &Place, freed: &mut BTreeSet<Place>) {
        let held_up_readers = self.exclusive_waiters.first() == Some(place);
        self.unqueue(place);
        if held_up_readers {
            self.run_from(Some(place), freed);
        }
        self.writer_at_the_head(freed);
    }

    fn unqueue(&mut self, place: &Place) {
        self.waiters.remove(place);
        self.exclusive_waiters.remove(place);
    }

    /// Readers up to the next writer, and that writer: those behind it are held up by it.
    fn run_from(&self, start: Option<&Place>, freed: &mut BTreeSet<Place>) {
        let next_writer = self.exclusive_waiters.first();
        let line = match start {
            Some(start) => self.waiters.range(start..),
            None => self.waiters.range::<Place, _>(..),
        };
        let run = line.map(|(place, _)| place);
        freed.extend(run.take_while(|p| next_writer.is_none_or(|w| *p <= w)));
    }

    fn writer_at_the_head(&self, freed: &mut BTreeSet<Place>) {
        if let Some((place, LockMode::Exclusive)) = self.waiters.first_key_value() {
            freed.insert(*place);
        }
    }
}

impl LockTable {
    /// An empty table that rotates between owners by these weights; an owner without one has 1.
    pub fn new(weights: Arc<BTreeMap<String, u32>>) -> Self {
        Self {
            weights,
            ..Self::default()
        }
    }

    /// Knows a task that waits. Of one that is known already only its eligibility changes, unless it was
    /// admitted: then it gives up what it held and queues again at its old place.
    pub fn wait(&mut self, waiter: &Waiter<'_>) {
        let id = waiter.id;
        let place = (waiter.created, id);
        match self.tasks.get_mut(&id) {
            Some(entry) if entry.stage != Stage::Admitted => {
                if entry.eligible != waiter.eligible {
                    entry.eligible = waiter.eligible;
                    self.candidates.insert(place);
                }
                return;
            }
            Some(_) => self.forget(id),
            None => {}
        }
        for claim in waiter.claims {
            let resource = resource(&mut self.resources, &claim.resource);
            resource.waiters.insert(place, claim.mode);
            if claim.mode == LockMode::Exclusive {
                resource.exclusive_waiters.insert(place);
            }
        }
        self.tasks.insert(
            id,
            Entry {
                created: waiter.created,
                claims: waiter.claims.into(),
                class: waiter.class,
                owner: waiter.owner.into(),
                eligible: waiter.eligible,
                stage: Stage::Waiting,
            },
        );
        self.known[waiter.class as usize] += 1;
        self.candidates.insert(place);
    }

    /// Knows a task that holds its resources already, as after a take-over.
    pub fn hold(&mut self, waiter: &Waiter<'_>) {
        let id = waiter.id;
        if self.tasks.get(&id).is_some_and(|e| e.stage == Stage::Admitted) {
            return;
        }
        self.forget(id);
        self.tasks.insert(
            id,
            Entry {
                created: waiter.created,
                claims: waiter.claims.into(),
                class: waiter.class,
                owner: waiter.owner.into(),
                eligible: true,
                stage: Stage::Admitted,
            },
        );
        self.known[waiter.class as usize] += 1;
        self.admitted[waiter.class as usize] += 1;
        for claim in waiter.claims {
            resource(&mut self.resources, &claim.resource).hold(claim.mode);
        }
    }

    /// Knows no more of a task; those that it held up get their chance.
    pub fn forget(&mut self, id: TaskId) {
        let Some(entry) = self.tasks.remove(&id) else {
            return;
        };
        let place = (entry.created, id);
        self.candidates.remove(&place);
        self.known[entry.class as usize] -= 1;
        match entry.stage {
            Stage::Admitted => self.admitted[entry.class as usize] -= 1,
            Stage::Ready => self.ready[entry.class as usize].remove(&entry.owner, &place),
            Stage::Waiting => {}
        }
        for claim in &*entry.claims {
            let Some(resource) = self.resources.get_mut(&claim.resource) else {
                continue;
            };
            if entry.stage == Stage::Admitted {
                resource.release(claim.mode, &mut self.candidates);
            } else {
                resource.leave(&place, &mut self.candidates);
            }
            if resource.is_idle() {
                self.resources.remove(&claim.resource);
            }
        }
    }

    /// Admits waiting tasks that may go, at most `limit` and as many of each class as there is room: of each
    /// owner the oldest first, owners in rotation.
    pub fn admit(&mut self, limit: usize, room: Room) -> Vec<TaskId> {
        self.look_at_candidates();
        let mut admitted = Vec::new();
        for class in TaskClass::ALL {
            let mut left = room.of(class).min(limit - admitted.len());
            while left > 0 {
                let Some(place) = self.ready[class as usize].pop() else {
                    break;
                };
                if self.try_admit(place) {
                    admitted.push(place.1);
                    left -= 1;
                }
            }
        }
        admitted
    }

    /// How many tasks of a class hold their resources.
    pub const fn admitted_in(&self, class: TaskClass) -> usize {
        self.admitted[class as usize]
    }

    /// How many tasks of a class wait, for whatever.
    pub const fn waiting_in(&self, class: TaskClass) -> usize {
        self.known[class as usize] - self.admitted[class as usize]
    }

    /// Tasks of a class that wait for room alone, as of the last [`admit`](Self::admit): how many, and when the oldest
    /// was made.
    pub fn runnable_in(&self, class: TaskClass) -> (usize, Option<Timestamp>) {
        let ready = &self.ready[class as usize];
        (ready.len(), ready.oldest().map(|place| place.0))
    }

    /// Whether a task waits or holds here.
    pub fn knows(&self, id: TaskId) -> bool {
        self.tasks.contains_key(&id)
    }

    /// What a task claims, if it is known.
    pub fn claims(&self, id: TaskId) -> Option<&[Claim]> {
        self.tasks.get(&id).map(|e| &*e.claims)
    }

    /// The class of a task that holds its resources.
    pub fn class_of_holder(&self, id: TaskId) -> Option<TaskClass> {
        let entry = self.tasks.get(&id)?;
        (entry.stage == Stage::Admitted).then_some(entry.class)
    }

    /// Every task known, and whether it is admitted.
    pub fn tasks(&self) -> impl Iterator<Item = (TaskId, bool)> + '_ {
        self.tasks.iter().map(|(id, e)| (*id, e.stage == Stage::Admitted))
    }

    fn look_at_candidates(&mut self) {
        for place in std::mem::take(&mut self.candidates) {
            let Some(entry) = self.tasks.get_mut(&place.1) else {
                continue;
            };
            let rotation = &mut self.ready[entry.class as usize];
            match entry.stage {
                Stage::Ready if !entry.eligible => {
                    rotation.remove(&entry.owner, &place);
                    entry.stage = Stage::Waiting;
                }
                Stage::Waiting if entry.eligible && may_go(&self.resources, &place, &entry.claims) => {
                    let weight = self.weights.get(&*entry.owner).copied().unwrap_or(1);
                    rotation.insert(&entry.owner, weight, place);
                    entry.stage = Stage::Ready;
                }
                _ => {}
            }
        }
    }

    /// Looks once more: since it was found ready, an older task may have become known.
    fn try_admit(&mut self, place: Place) -> bool {
        let Some(entry) = self.tasks.get_mut(&place.1) else {
            return false;
        };
        if !may_go(&self.resources, &place, &entry.claims) {
            entry.stage = Stage::Waiting;
            return false;
        }
        entry.stage = Stage::Admitted;
        self.admitted[entry.class as usize] += 1;
        for claim in &*entry.claims {
            let resource = resource(&mut self.resources, &claim.resource);
            resource.unqueue(&place);
            resource.hold(claim.mode);
        }
        true
    }
}

fn resource<'r>(resources: &'r mut Resources, key: &ResourceKey) -> &'r mut Resource {
    resources.entry_ref(key).or_default()
}

fn may_go(resources: &Resources, place: &Place, claims: &[Claim]) -> bool {
    claims
        .iter()
        .all(|c| resources.get(&c.resource).is_none_or(|r| r.admits(place, c.mode)))
}

#[cfg(test)]
mod tests;
