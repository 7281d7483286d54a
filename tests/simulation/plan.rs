//! One run: a system, its load and its faults, all drawn from the seed.

use std::{rc::Rc, time::Duration};

use pulp_model::{
    deadline::{Deadline, Deadlines, HardLimits},
    task::{Claim, KINDS, Owner, ResourceKey, TaskClass, TaskState},
};

use crate::{
    actors::{self, Role, Settings},
    broker,
    ledger::{Mutation, Request},
    sim::{Counts, MILLI, Micros, Noise, Pid, SECOND, Sim},
};

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) violation: Option<String>,
    pub(crate) counts: Counts,
    pub(crate) fingerprint: u64,
    pub(crate) time_line: Vec<String>,
}

/// Until then there are faults and new tasks.
pub(crate) const TROUBLE: Micros = 60 * SECOND;
/// After that everything must have come to its end within so long.
const PATIENCE: Micros = 900 * SECOND;

/// So long after the last fault somebody leads again, undisturbed.
const QUIET_AGAIN: Micros = 60 * SECOND;

struct Cast {
    processes: Vec<(Pid, Role)>,
    settings: Rc<Settings>,
}

impl Cast {
    fn some(&self, sim: &Sim) -> (Pid, Role) {
        self.processes[sim.between(0, self.processes.len() as u64 - 1) as usize]
    }
}

/// Runs a seed to its end or to its first violation.
pub(crate) fn run(seed: u64, mutation: Mutation, traced: bool) -> Outcome {
    let sim = Sim::new(seed, mutation, traced);
    pulp_resource_manager::mutations::set_overtaking(mutation == Mutation::Overtaking);
    let mut settings = some_settings(&sim);
    let mut processes = Vec::new();
    let workers = sim.between(2, 4);
    let names = [
        ("api", Role::Api),
        ("rm-a", Role::ResourceManager),
        ("rm-b", Role::ResourceManager),
    ];
    for (name, role) in names {
        processes.push((sim.add_process(name.to_owned()), role));
    }
    for n in 0..workers {
        processes.push((sim.add_process(format!("worker-{n}")), Role::Worker));
    }
    // Of two releases. One of the older at most: a grant that it declines comes to the others a pause later, by chance.
    if sim.chance(0.5) {
        settings.old.extend(processes.last().map(|(pid, _)| *pid));
    }
    sim.tell(|| format!("{settings:?}"));
    let settings = Rc::new(settings);
    let cast = Rc::new(Cast { processes, settings });
    for (pid, role) in &cast.processes {
        actors::start(&sim, *pid, *role, &cast.settings);
    }
    let strength = sim.between(0, 3) as f64 / 3.0;
    sim.noise.set(Noise {
        lost: 0.05 * strength,
        doubled: 0.1 * strength,
        reordered: 0.3 * strength,
        slow: 0.03 * strength,
    });
    load(&sim, &cast);
    for _ in 0..sim.between(0, 12) {
        let (when, cast) = (sim.between(0, TROUBLE - SECOND), Rc::clone(&cast));
        sim.at(when, move |sim| fault(sim, &cast));
    }
    sim.run(TROUBLE);
    heal(&sim, &cast);
    wait_for_the_end(&sim, &cast.settings);
    sim.count(|c| c.virtual_micros = sim.now());
    let violation = sim.monitor.borrow_mut().violation.take();
    pulp_resource_manager::mutations::set_overtaking(false);
    let outcome = Outcome {
        violation,
        counts: sim.counts.get(),
        fingerprint: sim.fingerprint(),
        time_line: sim.time_line(),
    };
    // The futures hold the simulation, and it them.
    for (pid, _) in &cast.processes {
        sim.kill(*pid);
    }
    sim.forget_events();
    outcome
}

fn some_settings(sim: &Sim) -> Settings {
    let seconds = |low: u64, high: u64| Duration::from_millis(sim.between(low * 1000, high * 1000));
    let worker_ttl = seconds(4, 15);
    let worker_grace = seconds(1, 10);
    let sweep = seconds(3, 20);
    let margin = worker_grace + worker_ttl;
    let mut deadlines = Deadlines::of_this_release(margin);
    for kind in kinds() {
        let soft = seconds(2, 60);
        let hard = soft + margin;
        deadlines.set(kind, Deadline { soft, hard });
    }
    let standstill = sim.chance(0.7).then(|| seconds(5, 60));
    let classes = TaskClass::ALL[..sim.between(1, 3) as usize].to_vec();
    Settings {
        leader: pulp_resource_manager::Settings {
            lease_ttl: seconds(2, 10),
            sweep,
            grant_batch: sim.between(1, 20) as usize,
            max_attempts: 3,
            cancel_grace: margin,
            limits: HardLimits {
                deadlines,
                // What moves is written each 2 s at the latest, unless the database is out of reach.
                without_progress: standstill.map(|still| still + margin + Duration::from_secs(10)),
            },
            stalled_after: Duration::from_secs(5),
            resend_after: sweep * 2,
            owner_weights: std::sync::Arc::default(),
        },
        worker_ttl,
        worker_grace,
        drain_timeout: seconds(1, 10),
        slots: sim.between(1, 3) as usize,
        relays_lock: sim.chance(0.5),
        classes,
        quiet: Duration::from_secs(5),
        standstill,
        old: Vec::new(),
    }
}

/// The names of all kinds of tasks.
fn kinds() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|kind| kind.name).chain([actors::NEW_KIND])
}

/// Some task: few resources, so that there is something to wait for; now and then one for the newer release only.
pub(crate) fn some_task(sim: &Sim) -> Request {
    let mut claims: Vec<Claim> = Vec::new();
    for _ in 0..sim.between(1, 2) {
        let resource = ResourceKey::from_stored(format!("r{}", sim.skewed(0, 5)));
        if claims.iter().all(|c| c.resource != resource) {
            claims.push(if sim.chance(0.6) {
                Claim::exclusive(resource)
            } else {
                Claim::shared(resource)
            });
        }
    }
    claims.sort_by(|a, b| a.resource.cmp(&b.resource));
    let newer = sim.chance(0.1);
    let kind = match sim.between(0, KINDS.len() as u64) as usize {
        n if n < KINDS.len() => KINDS[n].name,
        _ => actors::NEW_KIND,
    };
    let owners = ["user:ann", "user:bob", "scheduler", "system"];
    Request {
        class: TaskClass::ALL[0],
        kind: kind.to_owned(),
        version: if newer && kind != actors::NEW_KIND { 2 } else { 1 },
        owner: Owner::from_stored(owners[sim.skewed(0, 3) as usize]),
        claims,
    }
}

/// Tasks submitted and canceled by clients of the API.
fn load(sim: &Rc<Sim>, cast: &Rc<Cast>) {
    let api = cast.processes[0].0;
    for _ in 0..sim.between(5, 40) {
        let at = sim.skewed(0, TROUBLE - 5 * SECOND);
        let cast = Rc::clone(cast);
        sim.at(at, move |sim| {
            let Some(ctx) = sim.of(api) else { return };
            let classes = &cast.settings.classes;
            let request = Request {
                class: classes[sim.between(0, classes.len() as u64 - 1) as usize],
                ..some_task(sim)
            };
            let me = ctx.clone();
            ctx.spawn(async move {
                let made = me.database("submit", move |l, now| Ok(l.enqueue(now, request)));
                if let Ok(id) = made.await {
                    me.sim.count(|c| c.tasks += 1);
                    if me.sim.chance(0.15) {
                        me.sleep(Duration::from_micros(me.sim.skewed(MILLI, 30 * SECOND)))
                            .await;
                        let with_what_it_made = me.sim.chance(0.5);
                        let asked = me.database("cancel", move |l, now| {
                            if with_what_it_made {
                                l.cancel_tree(now, id);
                            } else {
                                l.cancel_task(now, id);
                            }
                            Ok(())
                        });
                        let _ = asked.await;
                    }
                }
            });
        });
    }
}

fn fault(sim: &Rc<Sim>, cast: &Rc<Cast>) {
    sim.count(|c| c.faults += 1);
    let (pid, role) = cast.some(sim);
    let until = (sim.now() + sim.skewed(50 * MILLI, 40 * SECOND)).min(TROUBLE);
    match sim.between(0, 9) {
        0 | 1 => {
            sim.tell(|| format!("fault: process {pid} is killed"));
            sim.kill(pid);
            broker::pump(sim);
            restart_at(sim, cast, pid, role, until);
        }
        2 | 3 => {
            sim.tell(|| format!("fault: process {pid} is paused"));
            sim.pause(pid);
            sim.at(until, move |sim| {
                sim.tell(|| format!("process {pid} is resumed"));
                sim.resume(pid);
            });
        }
        4 => {
            sim.tell(|| format!("fault: process {pid} can't reach the database"));
            sim.processes.borrow_mut()[pid].cut_from_database = true;
            sim.at(until, move |sim| {
                sim.tell(|| format!("process {pid} reaches the database again"));
                sim.processes.borrow_mut()[pid].cut_from_database = false;
            });
        }
        5 => {
            sim.tell(|| format!("fault: process {pid} can't reach the broker"));
            sim.processes.borrow_mut()[pid].cut_from_broker = true;
            // Both ends notice by missing heartbeats.
            sim.after(sim.between(SECOND, 20 * SECOND), move |sim| {
                sim.broker.borrow_mut().close_sessions(|p| p == pid);
                broker::pump(sim);
            });
            sim.at(until, move |sim| {
                sim.tell(|| format!("process {pid} reaches the broker again"));
                sim.broker.borrow_mut().close_sessions(|p| p == pid);
                sim.processes.borrow_mut()[pid].cut_from_broker = false;
                broker::pump(sim);
            });
        }
        6 => {
            sim.tell(|| "fault: the database is down".into());
            sim.database_up.set(false);
            let until = until.min(sim.now() + 15 * SECOND);
            sim.at(until, |sim| {
                sim.tell(|| "the database is up again".into());
                sim.database_up.set(true);
            });
        }
        7 => {
            sim.tell(|| "fault: the broker is down".into());
            sim.broker.borrow_mut().stop();
            sim.at(until, |sim| {
                sim.tell(|| "the broker is up again".into());
                sim.broker.borrow_mut().start();
            });
        }
        8 => {
            sim.tell(|| "fault: the broker loses all its data".into());
            sim.broker.borrow_mut().wipe();
        }
        _ => {
            sim.tell(|| format!("fault: process {pid} is asked to stop in order"));
            let soft = sim.processes.borrow()[pid].soft.clone();
            soft.cancel();
            restart_at(sim, cast, pid, role, until);
        }
    }
}

fn restart_at(sim: &Rc<Sim>, cast: &Rc<Cast>, pid: Pid, role: Role, when: Micros) {
    let cast = Rc::clone(cast);
    sim.at(when, move |sim| {
        if sim.processes.borrow()[pid].alive {
            // Whoever asked has no more patience.
            sim.kill(pid);
        }
        actors::start(sim, pid, role, &cast.settings);
    });
}

/// All faults are over; what is down comes up.
fn heal(sim: &Rc<Sim>, cast: &Cast) {
    sim.tell(|| "all faults are over".into());
    sim.noise.set(Noise::default());
    sim.database_up.set(true);
    sim.broker.borrow_mut().start();
    for (pid, role) in &cast.processes {
        {
            let mut processes = sim.processes.borrow_mut();
            processes[*pid].cut_from_database = false;
            processes[*pid].cut_from_broker = false;
        }
        sim.resume(*pid);
        let (alive, leaving) = {
            let processes = sim.processes.borrow();
            (processes[*pid].alive, processes[*pid].soft.is_cancelled())
        };
        if alive && leaving {
            sim.kill(*pid);
        }
        if !alive || leaving {
            actors::start(sim, *pid, *role, &cast.settings);
        }
    }
    broker::pump(sim);
}

fn wait_for_the_end(sim: &Rc<Sim>, settings: &Settings) {
    let deadline = TROUBLE + PATIENCE;
    loop {
        sim.run(sim.now() + SECOND);
        if sim.now() > TROUBLE + QUIET_AGAIN {
            let mut monitor = sim.monitor.borrow_mut();
            monitor.nobody_overruns(&sim.ledger.borrow(), &settings.leader.limits, sim.now());
        }
        if sim.monitor.borrow().violation.is_some() {
            return;
        }
        let (live, outbox) = {
            let ledger = sim.ledger.borrow();
            (ledger.live_tasks(), ledger.outbox_depth())
        };
        if live.is_empty() && outbox == 0 {
            break;
        }
        if sim.now() >= deadline {
            let waiting = live.iter().filter(|t| t.state == TaskState::Waiting).count();
            sim.monitor.borrow_mut().violated(|| {
                format!(
                    "{} tasks have not ended {} s after the last fault ({waiting} of them wait; the first is {:?}), {outbox} messages wait in the outbox",
                    live.len(),
                    PATIENCE / SECOND,
                    live.first()
                )
            });
            return;
        }
    }
    // What was committed has been told to the broker, not only found by a sweep.
    sim.run(sim.now() + 20 * SECOND);
    let mut monitor = sim.monitor.borrow_mut();
    let owed = monitor.owes().copied();
    if let Some(message) = owed {
        monitor.violated(|| format!("{message:?} was owed by a commit and never reached the broker"));
    }
}
