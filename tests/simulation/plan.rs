//! One run: a system, its load and its faults, all drawn from the seed.

use std::{rc::Rc, time::Duration};

use pulp_model::task::{Claim, ResourceKey, TaskClass, TaskState};

use crate::{
    actors::{self, Role, Settings},
    broker,
    ledger::Mutation,
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
const TROUBLE: Micros = 60 * SECOND;
/// After that everything must have come to its end within so long.
const PATIENCE: Micros = 900 * SECOND;

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
    let settings = Rc::new(some_settings(&sim));
    sim.tell(|| format!("{settings:?}"));
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
    wait_for_the_end(&sim);
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
    let classes = TaskClass::ALL[..sim.between(1, 3) as usize].to_vec();
    Settings {
        leader: pulp_resource_manager::Settings {
            lease_ttl: seconds(2, 10),
            sweep,
            grant_batch: sim.between(1, 20) as usize,
            max_attempts: 3,
            cancel_grace: worker_grace + worker_ttl,
            resend_after: sweep * 2,
            owner_weights: std::sync::Arc::default(),
        },
        worker_ttl,
        worker_grace,
        drain_timeout: seconds(1, 10),
        slots: sim.between(1, 3) as usize,
        relays_lock: sim.chance(0.5),
        classes,
    }
}

/// A task's class and claims: few resources, so that there is something to wait for.
pub(crate) fn some_task(sim: &Sim) -> (TaskClass, Vec<Claim>) {
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
    (TaskClass::ALL[0], claims)
}

/// Tasks submitted and canceled by clients of the API.
fn load(sim: &Rc<Sim>, cast: &Rc<Cast>) {
    let api = cast.processes[0].0;
    for _ in 0..sim.between(5, 40) {
        let at = sim.skewed(0, TROUBLE - 5 * SECOND);
        let cast = Rc::clone(cast);
        sim.at(at, move |sim| {
            let Some(ctx) = sim.of(api) else { return };
            let (_, claims) = some_task(sim);
            let classes = &cast.settings.classes;
            let class = classes[sim.between(0, classes.len() as u64 - 1) as usize];
            let me = ctx.clone();
            ctx.spawn(async move {
                let made = me.database("submit", move |l, now| Ok(l.enqueue(now, class, claims)));
                if let Ok(id) = made.await {
                    me.sim.count(|c| c.tasks += 1);
                    if me.sim.chance(0.15) {
                        me.sleep(Duration::from_micros(me.sim.skewed(MILLI, 30 * SECOND)))
                            .await;
                        let asked = me.database("cancel", move |l, now| {
                            l.cancel_task(now, id);
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

fn wait_for_the_end(sim: &Rc<Sim>) {
    let deadline = TROUBLE + PATIENCE;
    loop {
        sim.run(sim.now() + SECOND);
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
