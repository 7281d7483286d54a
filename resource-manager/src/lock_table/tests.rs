//! The lock table against a model that is slow and plainly right, and its rules one by one.
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
                x.resource == y.resource && (x.mode == LockMode::Exclusive || y.mode == LockMode::Exclusive)
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
