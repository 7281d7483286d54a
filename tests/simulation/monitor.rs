//! What must hold at every instant, judged from what was done and not from how it was decided.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use pulp_model::{
    Attempt, Epoch, TaskId,
    deadline::{HardLimits, Overrun},
    task::{Claim, LockMode, TaskState},
};

use crate::{
    ledger::{Change, Ledger, Message},
    sim::{MILLI, Micros, Pid, Sim},
};

/// A process that was paused notices that its lease is over within this; what it does before is fenced, not prevented.
const WAKING: Micros = 100 * MILLI;

/// How long after a hard deadline a leader that is not disturbed has ended the run at the latest.
const PATROLS: Duration = Duration::from_secs(30);

/// What was parked has its place again when a leader next looks at the clock, and until then it may be passed.
const LOOKS: Duration = Duration::from_mins(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    Granted,
    Running,
    Ended,
}

#[derive(Debug)]
struct Seen {
    attempt: Attempt,
    phase: Phase,
    effects: u32,
    /// When the present run was claimed.
    claimed: Micros,
}

#[derive(Debug, Default)]
pub(crate) struct Monitor {
    pub(crate) violation: Option<String>,
    tasks: BTreeMap<TaskId, Seen>,
    owed: BTreeMap<u64, Message>,
    leads: Option<Epoch>,
    /// Those whose cancel was asked for together with all that they made.
    canceled_trees: BTreeSet<TaskId>,
    runs: BTreeMap<(Pid, TaskId, Attempt), Vec<Claim>>,
}

pub(crate) fn conflict(a: &[Claim], b: &[Claim]) -> bool {
    a.iter().any(|x| {
        b.iter().any(|y| {
            x.resource == y.resource && (x.mode == LockMode::Exclusive || y.mode == LockMode::Exclusive)
        })
    })
}

impl Monitor {
    pub(crate) fn violated(&mut self, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(what());
        }
    }

    fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violated(what);
        }
    }

    /// After each transaction.
    pub(crate) fn judge(&mut self, ledger: &Ledger, changes: &[Change], now: Micros) {
        for change in changes {
            match *change {
                Change::Owes(message) => {
                    self.owed.insert(message.number, message);
                }
                Change::Leads(epoch) => {
                    let before = self.leads.replace(epoch);
                    self.require(before.is_none_or(|b| b < epoch), || {
                        format!("epoch {epoch} follows {before:?}")
                    });
                }
                Change::Enqueued(task) => {
                    let seen = Seen {
                        attempt: Attempt(0),
                        phase: Phase::Waiting,
                        effects: 0,
                        claimed: 0,
                    };
                    self.tasks.insert(task, seen);
                }
                Change::TreeCanceled(root) => {
                    self.canceled_trees.insert(root);
                }
                Change::Granted {
                    task,
                    attempt,
                    epoch,
                    early,
                } => {
                    self.is_of_no_canceled_tree(ledger, task);
                    self.require(!early, || format!("{task} was granted before its instant"));
                    self.granted(ledger, task, attempt, epoch);
                }
                Change::Claimed { task, attempt } => {
                    let was = self.tasks.get_mut(&task).map(|s| {
                        s.claimed = now;
                        (s.attempt, std::mem::replace(&mut s.phase, Phase::Running))
                    });
                    self.require(was == Some((attempt, Phase::Granted)), || {
                        format!("attempt {attempt} of {task} was claimed when it was {was:?}")
                    });
                }
                Change::Committed { task, attempt, state } => self.committed(task, attempt, state),
                Change::WaitsAgain(task) => self.moves(task, Phase::Waiting),
                Change::Ended(task) => self.moves(task, Phase::Ended),
                Change::Expired { task, overrun } => self.expired(task, overrun, now),
            }
        }
        let mut holders = BTreeSet::new();
        for (resource, task, _) in ledger.reservations() {
            holders.insert(task);
            let state = ledger.row(task).map(|r| r.state);
            self.require(
                matches!(state, Some(TaskState::Accepted | TaskState::Running)),
                || format!("{resource} is reserved by {task}, which is {state:?}"),
            );
        }
    }

    fn granted(&mut self, ledger: &Ledger, task: TaskId, attempt: Attempt, epoch: Epoch) {
        let leads = self.leads;
        self.require(leads == Some(epoch), || {
            format!("{task} was granted under epoch {epoch} when {leads:?} led")
        });
        let was = self.tasks.get_mut(&task).map(|s| {
            let was = (s.attempt, s.phase);
            (s.attempt, s.phase) = (attempt, Phase::Granted);
            was
        });
        self.require(
            was.is_some_and(|(a, p)| a.0 + 1 == attempt.0 && p == Phase::Waiting),
            || format!("attempt {attempt} of {task} was granted when it was {was:?}"),
        );
        let Some(row) = ledger.row(task) else { return };
        for (other, theirs) in ledger.rows() {
            if other == task
                || theirs.state.is_terminal()
                || !conflict(&row.request.claims, &theirs.request.claims)
            {
                continue;
            }
            if theirs.state == TaskState::Waiting {
                let parked = theirs.not_before.filter(|_| theirs.steps_aside);
                if parked.is_some_and(|until| row.accepted.is_some_and(|now| now.since(until) < LOOKS)) {
                    continue;
                }
                let overtaken = (theirs.created, other) < (row.created, task);
                self.require(!overtaken, || {
                    format!("{task} was granted before {other}, which came first and waits")
                });
            } else {
                self.require(false, || {
                    format!("{task} was granted while {other} holds what it needs alone")
                });
            }
        }
    }

    /// Nothing of a tree is granted any more once its cancel was asked for, whenever it was made.
    fn is_of_no_canceled_tree(&mut self, ledger: &Ledger, task: TaskId) {
        let line = std::iter::successors(Some(task), |id| ledger.row(*id)?.parent);
        let canceled = line.into_iter().find(|id| self.canceled_trees.contains(id));
        if let Some(root) = canceled {
            self.violated(|| format!("{task} was granted after the cancel of {root} and all that it made"));
        }
    }

    fn committed(&mut self, task: TaskId, attempt: Attempt, state: TaskState) {
        let Some(seen) = self.tasks.get_mut(&task) else {
            return self.violated(|| format!("unknown task {task} ended"));
        };
        let was = (seen.attempt, seen.phase);
        seen.phase = Phase::Ended;
        seen.effects += u32::from(state == TaskState::Finished);
        let effects = seen.effects;
        self.require(was == (attempt, Phase::Running), || {
            format!("attempt {attempt} of {task} committed {state:?} when the task was {was:?}")
        });
        self.require(effects <= 1, || {
            format!("{task} has had its effect {effects} times")
        });
    }

    /// Only what runs, and has run for as long as is said.
    fn expired(&mut self, task: TaskId, overrun: Overrun, now: Micros) {
        let Some(seen) = self.tasks.get(&task) else {
            return self.violated(|| format!("unknown task {task} expired"));
        };
        let (phase, ran) = (seen.phase, Duration::from_micros(now - seen.claimed));
        let (Overrun::Deadline(limit) | Overrun::Standstill(limit)) = overrun;
        self.require(phase == Phase::Running && ran > limit, || {
            format!("{task} expired by {overrun:?} when it was {phase:?} for {ran:?}")
        });
    }

    /// Once nothing is in the way, nobody goes on beyond its hard deadline for longer than a patrol takes.
    pub(crate) fn nobody_overruns(&mut self, ledger: &Ledger, limits: &HardLimits, now: Micros) {
        let running = ledger.rows().filter(|(_, row)| row.state == TaskState::Running);
        for (task, row) in running {
            let Some(seen) = self.tasks.get(&task) else {
                continue;
            };
            let ran = Duration::from_micros(now - seen.claimed);
            let hard = limits.deadlines.of(&row.request.kind).hard;
            if ran > hard + PATROLS {
                return self
                    .violated(|| format!("{task} still runs after {ran:?}; its hard deadline is {hard:?}"));
            }
        }
    }

    fn moves(&mut self, task: TaskId, to: Phase) {
        let was = self
            .tasks
            .get_mut(&task)
            .map(|s| std::mem::replace(&mut s.phase, to));
        self.require(was.is_some_and(|w| w != Phase::Ended), || {
            format!("{task} went to {to:?} from {was:?}")
        });
    }

    /// A message lies in its queue.
    pub(crate) fn paid(&mut self, message: Message) {
        self.owed.remove(&message.number);
    }

    pub(crate) fn owes(&self) -> Option<&Message> {
        self.owed.values().next()
    }

    pub(crate) fn run_begins(&mut self, pid: Pid, task: TaskId, attempt: Attempt, claims: Vec<Claim>) {
        self.runs.insert((pid, task, attempt), claims);
    }

    pub(crate) fn run_ends(&mut self, pid: Pid, task: TaskId, attempt: Attempt) {
        self.runs.remove(&(pid, task, attempt));
    }

    pub(crate) fn process_ended(&mut self, pid: Pid) {
        self.runs.retain(|(p, ..), _| *p != pid);
    }

    /// A run does something to what it holds; nobody else may be at it.
    pub(crate) fn touches(&mut self, sim: &Sim, pid: Pid, task: TaskId, attempt: Attempt) {
        let awake = |pid| sim.awake_for(pid).is_some_and(|t| t > WAKING);
        let Some(claims) = self.runs.get(&(pid, task, attempt)) else {
            return;
        };
        if !awake(pid) {
            return;
        }
        let other = self.runs.iter().find(|((p, t, a), theirs)| {
            (*p, *t, *a) != (pid, task, attempt) && awake(*p) && (*t == task || conflict(claims, theirs))
        });
        if let Some(((p, t, a), _)) = other {
            let (p, t, a) = (*p, *t, *a);
            self.violated(|| {
                format!(
                    "attempt {attempt} of {task} in process {pid} runs together with attempt {a} of {t} in process {p}"
                )
            });
        }
    }
}
