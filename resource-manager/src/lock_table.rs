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
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

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

/// All that is known of tasks that wait or hold.
#[derive(Debug, Default, Clone)]
pub struct LockTable {
    tasks: HashMap<TaskId, Entry>,
    resources: HashMap<ResourceKey, Resource>,
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
    claims: Vec<Claim>,
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
            let resource = self.resource(&claim.resource);
            resource.waiters.insert(place, claim.mode);
            if claim.mode == LockMode::Exclusive {
                resource.exclusive_waiters.insert(place);
            }
        }
        self.tasks.insert(
            id,
            Entry {
                created: waiter.created,
                claims: waiter.claims.to_vec(),
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
                claims: waiter.claims.to_vec(),
                class: waiter.class,
                owner: waiter.owner.into(),
                eligible: true,
                stage: Stage::Admitted,
            },
        );
        self.known[waiter.class as usize] += 1;
        self.take(waiter.class, waiter.claims);
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
        for claim in &entry.claims {
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
        self.tasks.get(&id).map(|e| e.claims.as_slice())
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
        let (class, claims) = (entry.class, entry.claims.clone());
        for claim in &claims {
            if let Some(resource) = self.resources.get_mut(&claim.resource) {
                resource.unqueue(&place);
            }
        }
        self.take(class, &claims);
        true
    }

    fn take(&mut self, class: TaskClass, claims: &[Claim]) {
        self.admitted[class as usize] += 1;
        for claim in claims {
            let resource = self.resource(&claim.resource);
            match claim.mode {
                LockMode::Exclusive => resource.exclusive_holder = true,
                LockMode::Shared => resource.shared_holders += 1,
            }
        }
    }

    fn resource(&mut self, key: &ResourceKey) -> &mut Resource {
        self.resources.entry(key.clone()).or_default()
    }
}

fn may_go(resources: &HashMap<ResourceKey, Resource>, place: &Place, claims: &[Claim]) -> bool {
    claims
        .iter()
        .all(|c| resources.get(&c.resource).is_none_or(|r| r.admits(place, c.mode)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn waiter(id: TaskId, at: i64, claims: &[Claim]) -> Waiter<'_> {
        Waiter {
            id,
            created: Timestamp(at),
            class: TaskClass::Import,
            owner: "user:ann",
            eligible: true,
            claims,
        }
    }

    const CLASSES: [TaskClass; 2] = [TaskClass::Interactive, TaskClass::Publish];

    /// A task as the model knows it.
    struct Known {
        place: Place,
        claims: Vec<Claim>,
        admitted: bool,
        owner: String,
        class: TaskClass,
        eligible: bool,
    }

    impl Known {
        fn waiter(&self) -> Waiter<'_> {
            Waiter {
                id: self.place.1,
                created: self.place.0,
                class: self.class,
                owner: &self.owner,
                eligible: self.eligible,
                claims: &self.claims,
            }
        }
    }

    /// The same rules, written without any cleverness.
    #[derive(Default)]
    struct Model(Vec<Known>);

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
            let task = &self.0[index];
            !task.admitted
                && task.eligible
                && self.0.iter().enumerate().all(|(i, other)| {
                    i == index
                        || !(other.admitted || other.place < task.place)
                        || !Self::conflict(&task.claims, &other.claims)
                })
        }

        fn admit_all(&mut self) -> Vec<TaskId> {
            let mut order: Vec<usize> = (0..self.0.len()).collect();
            order.sort_by_key(|i| self.0[*i].place);
            let mut admitted = Vec::new();
            for i in order {
                if self.may_go(i) {
                    self.0[i].admitted = true;
                    admitted.push(self.0[i].place.1);
                }
            }
            admitted
        }
    }

    #[derive(Debug, Clone)]
    enum Event {
        Wait {
            at: i64,
            claims: Vec<(u8, bool)>,
            owner: u8,
            class: usize,
            eligible: bool,
        },
        Eligible(usize, bool),
        Forget(usize),
        Requeue(usize),
        Admit(usize, [usize; 2]),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let claims = prop::collection::btree_map(0..5_u8, any::<bool>(), 1..4);
        let wait = (
            0..1000_i64,
            claims,
            0..3_u8,
            0..2_usize,
            prop::bool::weighted(0.9),
        )
            .prop_map(|(at, c, owner, class, eligible)| Event::Wait {
                at,
                claims: c.into_iter().collect(),
                owner,
                class,
                eligible,
            });
        let event = prop_oneof![
            4 => wait,
            2 => any::<prop::sample::Index>().prop_map(|i| Event::Forget(i.index(1000))),
            1 => any::<prop::sample::Index>().prop_map(|i| Event::Requeue(i.index(1000))),
            1 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(i, on)| Event::Eligible(i.index(1000), on)),
            2 => (1..5_usize, 0..4_usize, 0..4_usize).prop_map(|(n, a, b)| Event::Admit(n, [a, b])),
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
                    Event::Wait { at, claims, owner, class, eligible } => {
                        let id = TaskId::new();
                        let task = Known {
                            place: (Timestamp(at), id),
                            claims: claims_of(&claims),
                            admitted: false,
                            owner: format!("user:{owner}"),
                            class: CLASSES[class],
                            eligible,
                        };
                        table.wait(&task.waiter());
                        model.0.push(task);
                    }
                    Event::Forget(i) if !model.0.is_empty() => {
                        let i = i % model.0.len();
                        table.forget(model.0.remove(i).place.1);
                    }
                    Event::Requeue(i) if !model.0.is_empty() => {
                        let i = i % model.0.len();
                        model.0[i].admitted = false;
                        table.wait(&model.0[i].waiter());
                    }
                    Event::Eligible(i, on) if !model.0.is_empty() => {
                        let i = i % model.0.len();
                        if !model.0[i].admitted {
                            model.0[i].eligible = on;
                            table.wait(&model.0[i].waiter());
                        }
                    }
                    Event::Admit(limit, room) => {
                        let room = Room::by(|c| CLASSES.iter().position(|x| *x == c).map_or(0, |i| room[i]));
                        let before = CLASSES.map(|c| table.admitted_in(c));
                        let ours = table.admit(limit, room);
                        prop_assert!(ours.len() <= limit);
                        for id in &ours {
                            let i = model.0.iter().position(|t| t.place.1 == *id).unwrap();
                            prop_assert!(model.may_go(i), "admitted a task that may not go");
                            model.0[i].admitted = true;
                        }
                        for (class, before) in CLASSES.into_iter().zip(before) {
                            let now = table.admitted_in(class);
                            prop_assert!(now - before <= room.of(class), "more than there is room");
                            prop_assert_eq!(now, model.0.iter().filter(|t| t.admitted && t.class == class).count());
                        }
                    }
                    _ => {}
                }
            }
            let mut ours = table.admit(usize::MAX, Room::UNBOUNDED);
            let mut theirs = model.admit_all();
            ours.sort();
            theirs.sort();
            prop_assert_eq!(ours, theirs, "every task that may go goes");
            let mut state: Vec<_> = table.tasks().collect();
            state.sort();
            let mut expected: Vec<_> = model.0.iter().map(|t| (t.place.1, t.admitted)).collect();
            expected.sort();
            prop_assert_eq!(state, expected);
        }

        #[test]
        fn when_admitted_tasks_end_every_task_is_admitted_in_the_end(events in events()) {
            let mut table = LockTable::default();
            for event in &events {
                if let Event::Wait { at, claims, .. } = event {
                    table.wait(&waiter(TaskId::new(), *at, &claims_of(claims)));
                }
            }
            let mut left = table.tasks().count();
            while left > 0 {
                let admitted = table.admit(usize::MAX, Room::UNBOUNDED);
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
        table.wait(&waiter(first, 1, &[Claim::shared(key.clone())]));
        assert_eq!(table.admit(9, Room::UNBOUNDED), [first]);
        table.wait(&waiter(writer, 2, &[Claim::exclusive(key.clone())]));
        table.wait(&waiter(late, 3, &[Claim::shared(key)]));
        assert!(table.admit(9, Room::UNBOUNDED).is_empty());
        table.forget(first);
        assert_eq!(table.admit(9, Room::UNBOUNDED), [writer]);
        table.forget(writer);
        assert_eq!(table.admit(9, Room::UNBOUNDED), [late]);
    }

    #[test]
    fn a_task_known_twice_is_queued_once() {
        let claims = [Claim::exclusive(ResourceKey::from_stored("r"))];
        let mut table = LockTable::default();
        let id = TaskId::new();
        table.wait(&waiter(id, 1, &claims));
        table.wait(&waiter(id, 1, &claims));
        assert_eq!(table.admit(9, Room::UNBOUNDED), [id]);
        table.hold(&waiter(id, 1, &claims));
        table.forget(id);
        assert!(table.tasks().next().is_none());
    }

    #[test]
    fn much_work_of_one_does_not_hold_up_anothers() {
        let mut table = LockTable::default();
        let key = |n: i64| [Claim::exclusive(ResourceKey::from_stored(format!("r{n}")))];
        for n in 0..17_000 {
            table.wait(&waiter(TaskId::new(), n, &key(n)));
        }
        let room = |n| Room::by(|_| n);
        assert_eq!(table.admit(100, room(10)).len(), 10);
        let theirs = [TaskId::new(), TaskId::new()];
        for (n, id) in (20_000..).zip(theirs) {
            table.wait(&Waiter {
                owner: "user:bob",
                ..waiter(id, n, &key(n))
            });
        }
        let next = table.admit(100, room(4));
        assert!(theirs.iter().all(|id| next.contains(id)), "{next:?}");
    }

    #[test]
    fn what_lacks_room_alone_is_told_apart_from_what_waits_for_its_resources() {
        let (a, b) = (
            [Claim::exclusive(ResourceKey::from_stored("a"))],
            [Claim::exclusive(ResourceKey::from_stored("b"))],
        );
        let mut table = LockTable::default();
        let first = TaskId::new();
        table.wait(&waiter(first, 3, &a));
        table.wait(&waiter(TaskId::new(), 4, &a));
        table.wait(&waiter(TaskId::new(), 5, &b));
        table.admit(9, Room::default());
        let class = TaskClass::Import;
        assert_eq!(
            (table.waiting_in(class), table.runnable_in(class)),
            (3, (2, Some(Timestamp(3))))
        );
        assert_eq!(table.admit(1, Room::UNBOUNDED), [first]);
        assert_eq!(
            (table.waiting_in(class), table.runnable_in(class)),
            (2, (1, Some(Timestamp(5))))
        );
        table.forget(first);
        table.admit(9, Room::default());
        assert_eq!(
            (table.waiting_in(class), table.runnable_in(class)),
            (2, (2, Some(Timestamp(4))))
        );
        assert_eq!(table.runnable_in(TaskClass::Sync), (0, None));
    }

    #[test]
    fn a_task_that_is_not_eligible_keeps_its_place() {
        let claims = [Claim::exclusive(ResourceKey::from_stored("r"))];
        let mut table = LockTable::default();
        let [unknown, behind] = [TaskId::new(), TaskId::new()];
        let mut first = Waiter {
            eligible: false,
            ..waiter(unknown, 1, &claims)
        };
        table.wait(&first);
        table.wait(&waiter(behind, 2, &claims));
        assert!(table.admit(9, Room::UNBOUNDED).is_empty());
        first.eligible = true;
        table.wait(&first);
        assert_eq!(table.admit(9, Room::UNBOUNDED), [unknown]);
        // Found ready, but without room, it may lose its eligibility again.
        table.forget(unknown);
        assert!(table.admit(9, Room::default()).is_empty());
        table.wait(&Waiter {
            eligible: false,
            ..waiter(behind, 2, &claims)
        });
        assert!(table.admit(9, Room::UNBOUNDED).is_empty());
    }
}
