//! What is told of a waiting task is what the lock table does: it waits for what is named, and for nothing else.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::HashSet;

use proptest::prelude::*;
use pulp_model::{
    TaskId, Timestamp,
    task::{Claim, LockMode, Owner, ResourceKey, TaskClass, TaskState},
    wait::{Contender, Explanation, Reason, Service, Situation, Subject, explain},
};
use pulp_resource_manager::lock_table::{LockTable, Room, Waiter};

/// A live task's row.
#[derive(Debug, Clone)]
struct Row {
    id: TaskId,
    created: Timestamp,
    claims: Vec<Claim>,
    holds: bool,
}

impl Row {
    fn waiter(&self) -> Waiter<'_> {
        Waiter {
            id: self.id,
            created: self.created,
            class: TaskClass::Publish,
            owner: "system",
            eligible: true,
            claims: &self.claims,
        }
    }

    fn place(&self) -> (Timestamp, TaskId) {
        (self.created, self.id)
    }

    /// As the store reads it for a task with these claims.
    fn contender(&self, wanted: &[Claim]) -> Contender {
        let is_wanted = |claim: &&Claim| wanted.iter().any(|w| w.resource == claim.resource);
        Contender {
            id: self.id,
            kind: "publish".to_owned(),
            state: if self.holds {
                TaskState::Accepted
            } else {
                TaskState::Waiting
            },
            owner: Owner::system(),
            worker: None,
            created: self.created,
            granted: self.holds.then_some(self.created),
            claims: self.claims.iter().filter(is_wanted).cloned().collect(),
        }
    }
}

/// What the store reads of a task: who holds any of its resources, and who came before and waits for any.
fn situation(rows: &[Row], asked: &Row) -> Situation {
    let contenders: Vec<Contender> = rows
        .iter()
        .filter(|r| r.id != asked.id && (r.holds || r.place() < asked.place()))
        .map(|r| r.contender(&asked.claims))
        .filter(|c| !c.claims.is_empty())
        .collect();
    Situation {
        now: Timestamp(0),
        before_on_resources: contenders.iter().filter(|c| c.granted.is_none()).count() as u64,
        contenders,
        service: Service {
            slots: u64::MAX,
            reads: Some(1),
            ..Service::default()
        },
        is_led: true,
        is_unsent: false,
        task: Subject {
            id: asked.id,
            state: TaskState::Waiting,
            kind: "publish".to_owned(),
            schema_version: 1,
            class: TaskClass::Publish,
            owner: Owner::system(),
            created: asked.created,
            since: asked.created,
            parked: None,
            worker: None,
            cancel_requested: None,
            claims: asked.claims.clone(),
        },
    }
}

/// Who is said to be in the task's way.
fn blamed(explanation: &Explanation<'_>) -> HashSet<TaskId> {
    let mut blamed = HashSet::new();
    for line in &explanation.lines {
        for (contender, mode) in line.held_by.iter().chain(&line.before) {
            if *mode == LockMode::Exclusive || line.claim.mode == LockMode::Exclusive {
                blamed.insert(contender.id);
            }
        }
    }
    blamed
}

fn table(rows: &[Row]) -> LockTable {
    let mut table = LockTable::default();
    for row in rows {
        if row.holds {
            table.hold(&row.waiter());
        } else {
            table.wait(&row.waiter());
        }
    }
    table
}

fn admitted(rows: &[Row]) -> HashSet<TaskId> {
    table(rows)
        .admit(usize::MAX, Room::UNBOUNDED)
        .into_iter()
        .collect()
}

fn row((created, claims): (i64, std::collections::BTreeMap<u8, bool>)) -> Row {
    let claim = |(n, exclusive)| {
        let key = ResourceKey::from_stored(format!("r{n}"));
        if exclusive {
            Claim::exclusive(key)
        } else {
            Claim::shared(key)
        }
    };
    Row {
        id: TaskId::new(),
        created: Timestamp(created),
        claims: claims.into_iter().map(claim).collect(),
        holds: false,
    }
}

/// Live tasks as they may stand at some instant: the table has admitted what could go of those that came first, some of
/// these have ended, and others, of any age, became known only then.
fn rows() -> impl Strategy<Value = Vec<Row>> {
    let claims = prop::collection::btree_map(0..4_u8, any::<bool>(), 0..4);
    let tasks = prop::collection::vec((0..5_i64, claims), 1..14);
    (tasks, 0..14_usize, prop::collection::vec(any::<bool>(), 14)).prop_map(|(tasks, early, ended)| {
        let mut rows: Vec<Row> = tasks.into_iter().map(row).collect();
        let early = early.min(rows.len());
        let held = admitted(&rows[..early]);
        for row in &mut rows {
            row.holds = held.contains(&row.id);
        }
        let mut ended = ended.into_iter();
        rows.retain(|row| !(row.holds && ended.next().unwrap_or(false)));
        rows
    })
}

proptest! {
    #[test]
    fn a_task_is_said_to_wait_for_resources_if_and_only_if_the_table_makes_it_wait(rows in rows()) {
        let admitted = admitted(&rows);
        for asked in rows.iter().filter(|r| !r.holds) {
            let situation = situation(&rows, asked);
            let explanation = explain(&situation);
            let goes = admitted.contains(&asked.id);
            let expected = if goes { Reason::Imminent } else { Reason::Resources };
            prop_assert_eq!(&explanation.reasons, &[expected], "{:?} in {:?}", asked, rows);
            prop_assert_eq!(blamed(&explanation).is_empty(), goes);
        }
    }

    #[test]
    fn without_those_that_are_named_it_goes_and_with_any_one_of_them_it_does_not(rows in rows()) {
        for asked in rows.iter().filter(|r| !r.holds) {
            let situation = situation(&rows, asked);
            let named = blamed(&explain(&situation));
            let only = |kept: Option<TaskId>| -> Vec<Row> {
                let stays = |r: &&Row| !named.contains(&r.id) || Some(r.id) == kept;
                rows.iter().filter(stays).cloned().collect()
            };
            prop_assert!(admitted(&only(None)).contains(&asked.id), "{:?} in {:?}", asked, rows);
            for one in &named {
                let goes = admitted(&only(Some(*one))).contains(&asked.id);
                prop_assert!(!goes, "{} does not hold up {:?} in {:?}", one, asked, rows);
            }
        }
    }
}
