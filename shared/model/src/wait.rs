//! Why a task waits: the rules by which tasks get their resources, told about one of them. Pure.
//!
//! What decides is the resource manager's lock table, in the memory of another process. It decides by rows alone, so
//! the same rules over a [`Situation`] read from these rows give the same answer.

use crate::{
    TaskId, Timestamp, WorkerName,
    task::{Claim, LockMode, Owner, TaskClass, TaskState},
};

/// What is known about a task and all that may hold it up, at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Situation {
    /// The instant, by the database's clock.
    pub now: Timestamp,
    /// The task.
    pub task: Subject,
    /// Other tasks that hold or, having come before, wait for a resource that it needs; those that hold first, then
    /// by age. Of a long line only the beginning.
    pub contenders: Vec<Contender>,
    /// How many tasks in all came before and wait for a resource that it needs.
    pub before_on_resources: u64,
    /// How its class is served.
    pub service: Service,
    /// Whether a resource manager leads.
    pub is_led: bool,
    /// Whether the message that tells of its present state still lies in the outbox.
    pub is_unsent: bool,
}

/// The task that is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The key.
    pub id: TaskId,
    /// How far it is.
    pub state: TaskState,
    /// The name of its kind.
    pub kind: String,
    /// The schema version of its arguments.
    pub schema_version: i64,
    /// In whose room it is granted.
    pub class: TaskClass,
    /// For whom it is done.
    pub owner: Owner,
    /// When it was made: its place in every line, with the id as tie-break.
    pub created: Timestamp,
    /// Since when it has been in its present state.
    pub since: Timestamp,
    /// Not granted before this instant, and why.
    pub parked: Option<(Timestamp, Parked)>,
    /// Who runs or ran it.
    pub worker: Option<WorkerName>,
    /// When a cancel was asked for.
    pub cancel_requested: Option<Timestamp>,
    /// What it needs.
    pub claims: Vec<Claim>,
}

/// Why a task is not granted before an instant.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Parked {
    /// A worker could not read it, for this reason; it is offered again later.
    Declined(String),
    /// It was put off, with or without a word why.
    PutOff(Option<String>),
}

/// Another task, with what it claims of the same resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contender {
    /// The key.
    pub id: TaskId,
    /// The name of its kind.
    pub kind: String,
    /// Waiting, accepted or running.
    pub state: TaskState,
    /// For whom it is done.
    pub owner: Owner,
    /// Who runs it.
    pub worker: Option<WorkerName>,
    /// When it was made.
    pub created: Timestamp,
    /// Since when it has held its resources.
    pub granted: Option<Timestamp>,
    /// Of the resources in question, those that it claims.
    pub claims: Vec<Claim>,
}

impl Contender {
    fn mode_on(&self, claim: &Claim) -> Option<LockMode> {
        let same = self.claims.iter().find(|c| c.resource == claim.resource);
        same.map(|c| c.mode)
    }

    /// Whether it holds up `task` on this claim of its: it holds the resource or came before, and one of them wants to
    /// be alone.
    fn holds_up(&self, task: &Subject, claim: &Claim) -> bool {
        let is_first = self.state != TaskState::Waiting || (self.created, self.id) < (task.created, task.id);
        is_first
            && self
                .mode_on(claim)
                .is_some_and(|mode| mode == LockMode::Exclusive || claim.mode == LockMode::Exclusive)
    }
}

/// How a class is served and what is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// Slots of all live workers for the class.
    pub slots: u64,
    /// The largest schema version of the task's kind that a live worker with slots for the class reads; none if no
    /// such worker knows the kind.
    pub reads: Option<i64>,
    /// Tasks of the class that run.
    pub running: u64,
    /// Tasks of the class that are granted and not begun.
    pub granted: u64,
    /// Those of them that were granted before this one; 0 if it waits.
    pub granted_before: u64,
    /// Tasks of the class that came before and wait.
    pub before: u64,
    /// Those of them that have the same owner.
    pub before_of_owner: u64,
}

/// One thing that a task waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// No live worker has slots for its class.
    NoWorkerForClass,
    /// Workers serve its class, but none can read it: none knows the kind, or only up to this schema version.
    NoWorkerForKind(Option<i64>),
    /// It is not granted before this instant.
    Parked(Timestamp, Parked),
    /// Others hold or come first on what it needs.
    Resources,
    /// No resource manager leads.
    NoResourceManager,
    /// Its message has not left the database yet: the broker is away, or slow.
    Unsent,
    /// It may go, or is granted, and waits for a free slot of its class.
    Slot,
    /// Nothing holds it up: it goes within moments.
    Imminent,
}

impl Reason {
    /// The name on the wire.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::NoWorkerForClass => "no_worker_for_class",
            Self::NoWorkerForKind(_) => "no_worker_for_kind",
            Self::Parked(..) => "parked",
            Self::Resources => "resources",
            Self::NoResourceManager => "no_resource_manager",
            Self::Unsent => "unsent",
            Self::Slot => "slot",
            Self::Imminent => "imminent",
        }
    }
}

/// One resource that the task needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    /// What, and how.
    pub claim: &'a Claim,
    /// Whether the task could have it now.
    pub is_free: bool,
    /// Who holds it, and how; those that would share it included.
    pub held_by: Vec<(&'a Contender, LockMode)>,
    /// Who waits for it and goes first, and how, oldest first.
    pub before: Vec<(&'a Contender, LockMode)>,
}

/// What a task waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation<'a> {
    /// All that it waits for, what will take longest first. Empty if it doesn't wait.
    pub reasons: Vec<Reason>,
    /// The resources that it needs. Empty if it doesn't wait for them.
    pub lines: Vec<Line<'a>>,
}

/// Why the task waits, if it does.
pub fn explain(situation: &Situation) -> Explanation<'_> {
    let task = &situation.task;
    let lines: Vec<Line<'_>> = match task.state {
        TaskState::Waiting => task.claims.iter().map(|c| line(situation, c)).collect(),
        _ => Vec::new(),
    };
    let mut reasons = Vec::new();
    let service = &situation.service;
    let waits = matches!(task.state, TaskState::Waiting | TaskState::Accepted);
    if waits && service.slots == 0 {
        reasons.push(Reason::NoWorkerForClass);
    } else if waits && service.reads.is_none_or(|known| known < task.schema_version) {
        reasons.push(Reason::NoWorkerForKind(service.reads));
    }
    match task.state {
        TaskState::Waiting => {
            if let Some((until, why)) = &task.parked
                && *until > situation.now
            {
                reasons.push(Reason::Parked(*until, why.clone()));
            }
            if lines.iter().any(|line| !line.is_free) {
                reasons.push(Reason::Resources);
            }
            if !situation.is_led {
                reasons.push(Reason::NoResourceManager);
            }
            if situation.is_unsent {
                reasons.push(Reason::Unsent);
            }
            if reasons.is_empty() {
                let free = service.running + service.granted < service.slots;
                reasons.push(if free { Reason::Imminent } else { Reason::Slot });
            }
        }
        TaskState::Accepted => {
            if situation.is_unsent {
                reasons.push(Reason::Unsent);
            }
            if reasons.is_empty() {
                let free = service.running + service.granted_before < service.slots;
                reasons.push(if free { Reason::Imminent } else { Reason::Slot });
            }
        }
        _ => {}
    }
    Explanation { reasons, lines }
}

fn line<'a>(situation: &'a Situation, claim: &'a Claim) -> Line<'a> {
    let task = &situation.task;
    let on_it = || {
        let others = situation.contenders.iter().filter(|c| c.id != task.id);
        others.filter_map(|c| Some((c, c.mode_on(claim)?)))
    };
    Line {
        claim,
        is_free: !on_it().any(|(c, _)| c.holds_up(task, claim)),
        held_by: on_it().filter(|(c, _)| c.state != TaskState::Waiting).collect(),
        before: on_it()
            .filter(|(c, _)| c.state == TaskState::Waiting && c.holds_up(task, claim))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::ResourceKey;

    fn key(name: &str) -> ResourceKey {
        ResourceKey::from_stored(name)
    }

    fn waiting(claims: Vec<Claim>) -> Situation {
        Situation {
            now: Timestamp(1_000),
            task: Subject {
                id: TaskId::new(),
                state: TaskState::Waiting,
                kind: "publish".to_owned(),
                schema_version: 1,
                class: TaskClass::Publish,
                owner: Owner::system(),
                created: Timestamp(100),
                since: Timestamp(100),
                parked: None,
                worker: None,
                cancel_requested: None,
                claims,
            },
            contenders: Vec::new(),
            before_on_resources: 0,
            service: Service {
                slots: 2,
                reads: Some(1),
                ..Service::default()
            },
            is_led: true,
            is_unsent: false,
        }
    }

    fn contender(state: TaskState, created: i64, claims: Vec<Claim>) -> Contender {
        Contender {
            id: TaskId::new(),
            kind: "sync".to_owned(),
            state,
            owner: Owner::system(),
            worker: None,
            created: Timestamp(created),
            granted: (state != TaskState::Waiting).then_some(Timestamp(created)),
            claims,
        }
    }

    fn reasons(situation: &Situation) -> Vec<&'static str> {
        explain(situation).reasons.iter().map(Reason::as_str).collect()
    }

    #[test]
    fn a_task_waits_behind_who_holds_and_who_came_before_and_not_behind_who_shares() {
        let mut situation = waiting(vec![Claim::exclusive(key("d")), Claim::shared(key("r"))]);
        assert_eq!(reasons(&situation), ["imminent"]);
        // A reader holds, a reader came before, a writer came after: none of them is in the way.
        situation.contenders = vec![
            contender(TaskState::Running, 10, vec![Claim::shared(key("r"))]),
            contender(TaskState::Waiting, 20, vec![Claim::shared(key("r"))]),
            contender(TaskState::Waiting, 900, vec![Claim::exclusive(key("r"))]),
        ];
        assert_eq!(reasons(&situation), ["imminent"]);
        let explanation = explain(&situation);
        assert!(explanation.lines.iter().all(|l| l.is_free && l.before.is_empty()));
        assert_eq!(explanation.lines[1].held_by.len(), 1);
        // A writer before it, though it holds nothing yet, is.
        let writer = contender(TaskState::Waiting, 50, vec![Claim::exclusive(key("r"))]);
        situation.contenders.push(writer.clone());
        assert_eq!(reasons(&situation), ["resources"]);
        let explanation = explain(&situation);
        assert!(explanation.lines[0].is_free);
        assert_eq!(explanation.lines[1].before, [(&writer, LockMode::Exclusive)]);
    }

    #[test]
    fn whoever_holds_is_in_the_way_whatever_its_age() {
        let mut situation = waiting(vec![Claim::shared(key("r"))]);
        let young = contender(TaskState::Accepted, 900, vec![Claim::exclusive(key("r"))]);
        situation.contenders = vec![young];
        assert_eq!(reasons(&situation), ["resources"]);
    }

    #[test]
    fn what_can_not_be_run_says_so_first() {
        let mut situation = waiting(vec![Claim::shared(key("r"))]);
        situation.contenders = vec![contender(TaskState::Running, 1, vec![Claim::exclusive(key("r"))])];
        situation.service.reads = Some(0);
        assert_eq!(reasons(&situation), ["no_worker_for_kind", "resources"]);
        assert_eq!(explain(&situation).reasons[0], Reason::NoWorkerForKind(Some(0)));
        situation.service.slots = 0;
        situation.is_led = false;
        situation.is_unsent = true;
        assert_eq!(
            reasons(&situation),
            [
                "no_worker_for_class",
                "resources",
                "no_resource_manager",
                "unsent"
            ]
        );
    }

    #[test]
    fn a_parked_task_is_parked_until_its_instant() {
        let mut situation = waiting(Vec::new());
        let why = Parked::Declined("too new".to_owned());
        situation.task.parked = Some((Timestamp(1_001), why.clone()));
        assert_eq!(
            explain(&situation).reasons,
            [Reason::Parked(Timestamp(1_001), why)]
        );
        situation.now = Timestamp(1_001);
        assert_eq!(reasons(&situation), ["imminent"]);
    }

    #[test]
    fn without_a_free_slot_it_waits_for_one() {
        let mut situation = waiting(Vec::new());
        situation.service.running = 1;
        situation.service.granted = 1;
        assert_eq!(reasons(&situation), ["slot"]);
        // Granted itself, only those before it count.
        situation.task.state = TaskState::Accepted;
        assert_eq!(reasons(&situation), ["imminent"]);
        situation.service.granted_before = 1;
        assert_eq!(reasons(&situation), ["slot"]);
        situation.is_unsent = true;
        assert_eq!(reasons(&situation), ["unsent"]);
    }

    #[test]
    fn who_runs_or_has_ended_waits_for_nothing() {
        let mut situation = waiting(vec![Claim::shared(key("r"))]);
        situation.is_led = false;
        situation.service = Service::default();
        for state in TaskState::ALL {
            if !matches!(state, TaskState::Waiting | TaskState::Accepted) {
                situation.task.state = state;
                let explanation = explain(&situation);
                assert!(explanation.reasons.is_empty() && explanation.lines.is_empty());
            }
        }
    }
}
