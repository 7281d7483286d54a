//! Virtual time, processes and the network between them, in one thread and from one seed.
//!
//! A process is a set of futures. It crashes by having them dropped, wherever they stand; it is paused by not being
//! polled; its clock runs a little fast or slow. All that happens is an event in one queue ordered by time, and
//! whatever has to be chosen is drawn from one generator, so a seed tells the whole story.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex},
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use pulp_model::Timestamp;
use pulp_store::StoreError;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use tokio::sync::oneshot;

use crate::{
    broker::Broker,
    ledger::{Ledger, Message, Mutation},
    monitor::Monitor,
};

/// Microseconds since the run began.
pub(crate) type Micros = u64;

pub(crate) const MILLI: Micros = 1_000;
pub(crate) const SECOND: Micros = 1_000_000;

/// Year 2023, so that no instant is negative.
const EPOCH: i64 = 1_700_000_000_000_000;

/// How long a caller waits for the database.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// A run of many times this is none that ends.
const MOST_EVENTS: u64 = 1_000_000;

pub(crate) type Pid = usize;
type Action = Box<dyn FnOnce(&Rc<Sim>)>;
type Job = Pin<Box<dyn Future<Output = ()>>>;

/// How bad the network is. Probabilities of one message.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Noise {
    pub(crate) lost: f64,
    pub(crate) doubled: f64,
    pub(crate) reordered: f64,
    pub(crate) slow: f64,
}

#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // Faults, each on or off.
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) alive: bool,
    pub(crate) paused: bool,
    pub(crate) awake_since: Micros,
    pub(crate) cut_from_database: bool,
    pub(crate) cut_from_broker: bool,
    /// Runs of its clock against true time.
    rate: f64,
    /// Counted at each start.
    pub(crate) life: u64,
    /// Woken while paused.
    held: Vec<u64>,
    /// Fires at a request to stop in order.
    pub(crate) soft: tokio_util::sync::CancellationToken,
}

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) events: u64,
    pub(crate) faults: u64,
    pub(crate) tasks: u64,
    pub(crate) attempts: u64,
    pub(crate) virtual_micros: u64,
}

struct Running {
    pid: Pid,
    job: Option<Job>,
    waker: Waker,
}

struct Bell {
    number: u64,
    ready: Arc<Mutex<Vec<u64>>>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ready.lock().unwrap().push(self.number);
    }
}

pub(crate) struct Sim {
    now: Cell<Micros>,
    base: Instant,
    rng: RefCell<SmallRng>,
    events: RefCell<BTreeMap<(Micros, u64), Action>>,
    numbers: Cell<u64>,
    jobs: RefCell<BTreeMap<u64, Running>>,
    ready: Arc<Mutex<Vec<u64>>>,
    pub(crate) processes: RefCell<Vec<Process>>,
    pub(crate) noise: Cell<Noise>,
    pub(crate) database_up: Cell<bool>,
    pub(crate) ledger: RefCell<Ledger>,
    pub(crate) broker: RefCell<Broker>,
    pub(crate) monitor: RefCell<Monitor>,
    pub(crate) counts: Cell<Counts>,
    /// Outbox rows that an open transaction of a process holds.
    pub(crate) held_rows: RefCell<BTreeMap<u64, Pid>>,
    line: RefCell<Option<Vec<String>>>,
    fingerprint: Cell<u64>,
}

impl Sim {
    pub(crate) fn new(seed: u64, mutation: Mutation, traced: bool) -> Rc<Self> {
        Rc::new(Self {
            now: Cell::new(0),
            base: Instant::now(),
            rng: RefCell::new(SmallRng::seed_from_u64(seed)),
            events: RefCell::default(),
            numbers: Cell::new(0),
            jobs: RefCell::default(),
            ready: Arc::default(),
            processes: RefCell::default(),
            noise: Cell::default(),
            database_up: Cell::new(true),
            ledger: RefCell::new(Ledger::new(mutation)),
            broker: RefCell::default(),
            monitor: RefCell::default(),
            counts: Cell::default(),
            held_rows: RefCell::default(),
            line: RefCell::new(traced.then(Vec::new)),
            fingerprint: Cell::new(0),
        })
    }

    // --- time, chance, and what is told about them

    pub(crate) fn now(&self) -> Micros {
        self.now.get()
    }

    /// The database's clock.
    pub(crate) fn timestamp(&self) -> Timestamp {
        Timestamp(EPOCH + self.now.get() as i64)
    }

    pub(crate) fn chance(&self, probability: f64) -> bool {
        probability > 0.0 && self.rng.borrow_mut().random_bool(probability.min(1.0))
    }

    pub(crate) fn between(&self, low: u64, high: u64) -> u64 {
        self.rng.borrow_mut().random_range(low..=high)
    }

    /// Mostly near `low`, seldom near `high`.
    pub(crate) fn skewed(&self, low: u64, high: u64) -> u64 {
        let x: f64 = self.rng.borrow_mut().random();
        low + ((high - low) as f64 * x * x * x) as u64
    }

    fn number(&self) -> u64 {
        self.numbers.set(self.numbers.get() + 1);
        self.numbers.get()
    }

    pub(crate) fn count(&self, what: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.get();
        what(&mut counts);
        self.counts.set(counts);
    }

    /// Tells the time line, if anybody reads it.
    pub(crate) fn tell(&self, what: impl FnOnce() -> String) {
        if let Some(line) = &mut *self.line.borrow_mut() {
            line.push(format!("{:>12.6}  {}", self.now.get() as f64 / 1e6, what()));
        }
    }

    pub(crate) fn time_line(&self) -> Vec<String> {
        self.line.borrow().clone().unwrap_or_default()
    }

    /// Two runs with the same number went the same way.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint.get()
    }

    pub(crate) fn at(&self, when: Micros, action: impl FnOnce(&Rc<Self>) + 'static) {
        let key = (when.max(self.now.get()), self.number());
        self.events.borrow_mut().insert(key, Box::new(action));
    }

    pub(crate) fn after(&self, delay: Micros, action: impl FnOnce(&Rc<Self>) + 'static) {
        self.at(self.now.get() + delay, action);
    }

    // --- processes

    pub(crate) fn add_process(&self, name: String) -> Pid {
        self.processes.borrow_mut().push(Process {
            name,
            alive: false,
            paused: false,
            awake_since: 0,
            cut_from_database: false,
            cut_from_broker: false,
            rate: 1.0,
            life: 0,
            held: Vec::new(),
            soft: tokio_util::sync::CancellationToken::new(),
        });
        self.processes.borrow().len() - 1
    }

    /// A new life of a process that is down.
    pub(crate) fn start(self: &Rc<Self>, pid: Pid) -> Ctx {
        let rate = 0.98 + 0.04 * (self.between(0, 1000) as f64 / 1000.0);
        let mut processes = self.processes.borrow_mut();
        let process = &mut processes[pid];
        process.alive = true;
        process.paused = false;
        process.awake_since = self.now();
        process.life += 1;
        process.rate = rate;
        process.soft = tokio_util::sync::CancellationToken::new();
        Ctx {
            sim: Rc::clone(self),
            pid,
            life: process.life,
        }
    }

    /// Ends a process where it stands.
    pub(crate) fn kill(&self, pid: Pid) {
        {
            let mut processes = self.processes.borrow_mut();
            processes[pid].alive = false;
            processes[pid].paused = false;
            processes[pid].held.clear();
        }
        let numbers: Vec<u64> = {
            let jobs = self.jobs.borrow();
            jobs.iter()
                .filter(|(_, j)| j.pid == pid)
                .map(|(n, _)| *n)
                .collect()
        };
        for number in numbers {
            let job = self.jobs.borrow_mut().remove(&number);
            drop(job);
        }
        self.monitor.borrow_mut().process_ended(pid);
        self.held_rows.borrow_mut().retain(|_, holder| *holder != pid);
        self.broker.borrow_mut().close_sessions(|s| s == pid);
    }

    pub(crate) fn pause(&self, pid: Pid) {
        self.processes.borrow_mut()[pid].paused = true;
    }

    pub(crate) fn resume(&self, pid: Pid) {
        let mut processes = self.processes.borrow_mut();
        let process = &mut processes[pid];
        if process.paused {
            process.paused = false;
            process.awake_since = self.now();
            self.ready.lock().unwrap().append(&mut process.held);
        }
    }

    /// A process as it is now, if it is up and not on its way out.
    pub(crate) fn of(self: &Rc<Self>, pid: Pid) -> Option<Ctx> {
        let life = self.processes.borrow()[pid].life;
        self.awake_for(pid).map(|_| Ctx {
            sim: Rc::clone(self),
            pid,
            life,
        })
    }

    pub(crate) fn forget_events(&self) {
        let events = std::mem::take(&mut *self.events.borrow_mut());
        drop(events);
        let events = std::mem::take(&mut *self.events.borrow_mut());
        drop(events);
    }

    pub(crate) fn awake_for(&self, pid: Pid) -> Option<Micros> {
        let processes = self.processes.borrow();
        let p = &processes[pid];
        (p.alive && !p.paused).then(|| self.now() - p.awake_since)
    }

    fn spawn(&self, pid: Pid, job: Job) {
        let number = self.number();
        let bell = Bell {
            number,
            ready: Arc::clone(&self.ready),
        };
        let waker = Waker::from(Arc::new(bell));
        let job = Some(job);
        self.jobs.borrow_mut().insert(number, Running { pid, job, waker });
        self.ready.lock().unwrap().push(number);
    }

    // --- the loop

    /// Lets happen what happens until `until`, or until the monitor has seen a violation.
    pub(crate) fn run(self: &Rc<Self>, until: Micros) {
        loop {
            self.poll_ready();
            if self.monitor.borrow().violation.is_some() {
                return;
            }
            let next = self.events.borrow_mut().pop_first();
            let Some(((when, number), action)) = next else {
                return;
            };
            if when > until {
                self.events.borrow_mut().insert((when, number), action);
                self.now.set(until);
                return;
            }
            self.now.set(when);
            self.count(|c| c.events += 1);
            if self.counts.get().events > MOST_EVENTS {
                self.monitor
                    .borrow_mut()
                    .violated(|| "it goes round in circles".into());
                return;
            }
            let mixed = (self.fingerprint.get() ^ when ^ (number << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.fingerprint.set(mixed.rotate_left(23));
            action(self);
        }
    }

    fn poll_ready(self: &Rc<Self>) {
        for polls in 0_u64.. {
            if polls > MOST_EVENTS {
                self.monitor
                    .borrow_mut()
                    .violated(|| "a process goes round in circles".into());
                return;
            }
            let number = {
                let mut ready = self.ready.lock().unwrap();
                if ready.is_empty() {
                    return;
                }
                let at = if ready.len() == 1 {
                    0
                } else {
                    self.between(0, ready.len() as u64 - 1) as usize
                };
                ready.swap_remove(at)
            };
            let (mut job, waker, pid) = {
                let mut jobs = self.jobs.borrow_mut();
                let Some(running) = jobs.get_mut(&number) else {
                    continue;
                };
                let pid = running.pid;
                let mut processes = self.processes.borrow_mut();
                if processes[pid].paused {
                    processes[pid].held.push(number);
                    continue;
                }
                let Some(job) = running.job.take() else { continue };
                (job, running.waker.clone(), pid)
            };
            let _ = pid;
            let done = job.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
            if done {
                drop(job);
                self.jobs.borrow_mut().remove(&number);
            } else if let Some(running) = self.jobs.borrow_mut().get_mut(&number) {
                running.job = Some(job);
            }
        }
    }

    /// Hands what a transaction did to the monitor.
    pub(crate) fn judge(&self) {
        let changes = std::mem::take(&mut self.ledger.borrow_mut().changes);
        if changes.is_empty() {
            return;
        }
        for change in &changes {
            self.tell(|| format!("database: {change:?}"));
        }
        let ledger = self.ledger.borrow();
        self.monitor.borrow_mut().judge(&ledger, &changes, self.now());
    }
}

/// What a process sees of the world.
#[derive(Clone)]
pub(crate) struct Ctx {
    pub(crate) sim: Rc<Sim>,
    pub(crate) pid: Pid,
    pub(crate) life: u64,
}

impl Ctx {
    fn rate(&self) -> f64 {
        self.sim.processes.borrow()[self.pid].rate
    }

    pub(crate) fn name(&self) -> String {
        self.sim.processes.borrow()[self.pid].name.clone()
    }

    pub(crate) fn soft(&self) -> tokio_util::sync::CancellationToken {
        self.sim.processes.borrow()[self.pid].soft.clone()
    }

    /// The process's monotonic clock.
    pub(crate) fn instant(&self) -> Instant {
        self.sim.base + Duration::from_micros((self.sim.now() as f64 * self.rate()) as u64)
    }

    pub(crate) fn sleep(&self, duration: Duration) -> Sleep {
        // Never without any time at all, or a loop of short sleeps would stand still.
        let micros = ((duration.as_micros() as f64 / self.rate()) as u64).max(1);
        Sleep {
            sim: Rc::clone(&self.sim),
            at: self.sim.now() + micros,
            set: false,
        }
    }

    pub(crate) fn sleep_until(&self, instant: Instant) -> Sleep {
        let local = instant.saturating_duration_since(self.sim.base).as_micros() as f64;
        Sleep {
            sim: Rc::clone(&self.sim),
            // Not a microsecond early by rounding.
            at: (local / self.rate()).ceil() as u64 + 1,
            set: false,
        }
    }

    pub(crate) fn spawn(&self, job: impl Future<Output = ()> + 'static) {
        self.sim.spawn(self.pid, Box::pin(job));
    }

    pub(crate) fn tell(&self, what: impl FnOnce() -> String) {
        self.sim
            .tell(|| format!("{}/{}: {}", self.name(), self.life, what()));
    }

    fn reaches_database(&self) -> bool {
        !self.sim.processes.borrow()[self.pid].cut_from_database
    }

    pub(crate) fn reaches_broker(&self) -> bool {
        !self.sim.processes.borrow()[self.pid].cut_from_broker
    }

    /// One way over the network.
    pub(crate) fn latency(&self) -> Micros {
        let noise = self.sim.noise.get();
        if self.sim.chance(noise.slow) {
            self.sim.skewed(10 * MILLI, 8 * SECOND)
        } else {
            self.sim.between(100, 3 * MILLI)
        }
    }

    /// One transaction. The request, or its answer, may be lost or late: an error tells nothing about whether it
    /// was committed, and it may be committed after the error.
    pub(crate) async fn database<T: 'static>(
        &self,
        what: &'static str,
        transaction: impl FnOnce(&mut Ledger, Timestamp) -> Result<T, StoreError> + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let noise = self.sim.noise.get();
        if self.reaches_database() && !self.sim.chance(noise.lost) {
            let ctx = self.clone();
            self.sim.after(self.latency(), move |sim| {
                if !ctx.reaches_database() {
                    return;
                }
                let result = if sim.database_up.get() {
                    let result = transaction(&mut sim.ledger.borrow_mut(), sim.timestamp());
                    ctx.tell(|| match &result {
                        Ok(_) => format!("{what} committed"),
                        Err(e) => format!("{what}: {e}"),
                    });
                    result
                } else {
                    Err(unavailable())
                };
                let owed = crate::broker::owed_outside_outbox(sim);
                sim.judge();
                if sim.chance(sim.noise.get().lost) {
                    ctx.tell(|| format!("the answer to {what} is lost"));
                    return;
                }
                let back = ctx.latency();
                sim.after(back, move |_| {
                    if ctx.reaches_database() {
                        let _ = answer.send((result, owed));
                    }
                });
            });
        }
        tokio::select! {
            biased;
            Ok((result, owed)) = answered => {
                self.send_outside_outbox(owed);
                result
            }
            // What was lost on the way is learned of by this only.
            () = self.sleep(CALL_TIMEOUT) => Err(unavailable()),
        }
    }

    /// Only of a system whose outbox was taken out.
    fn send_outside_outbox(&self, owed: Vec<Message>) {
        if !owed.is_empty() {
            let ctx = self.clone();
            self.spawn(async move {
                let _ = ctx.publish(owed).await;
            });
        }
    }
}

pub(crate) fn unavailable() -> StoreError {
    StoreError::Unavailable(sqlx::Error::PoolTimedOut.into())
}

pub(crate) struct Sleep {
    sim: Rc<Sim>,
    at: Micros,
    set: bool,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.sim.now() >= self.at {
            return Poll::Ready(());
        }
        if !self.set {
            self.set = true;
            let waker = context.waker().clone();
            self.sim.at(self.at, move |_| waker.wake());
        }
        Poll::Pending
    }
}
