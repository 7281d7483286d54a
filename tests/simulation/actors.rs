//! The processes: their decisions are the real ones, their loops are those of the roles on virtual time.

mod attempt;
mod class;
mod resource_manager;
mod worker;

use std::{rc::Rc, time::Duration};

use pulp_model::task::TaskClass;
use pulp_store::workers::Serving;
use pulp_worker::watch::Limits;

use crate::sim::{Ctx, MILLI, Pid, SECOND};

/// How this run's system is set up.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) leader: pulp_resource_manager::Settings,
    pub(crate) worker_ttl: Duration,
    pub(crate) worker_grace: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) slots: usize,
    /// Whether a relay locks what it sends, as on PostgreSQL.
    pub(crate) relays_lock: bool,
    pub(crate) classes: Vec<TaskClass>,
    /// What a worker runs stops by itself at its soft deadline, or when it has stood still.
    pub(crate) quiet: Duration,
    pub(crate) standstill: Option<Duration>,
    /// Workers of the release before this one.
    pub(crate) old: Vec<Pid>,
}

impl Settings {
    /// What a worker can run.
    fn serving(&self, pid: Pid) -> Serving {
        let slots = self.classes.iter().map(|c| (*c, self.slots as u32)).collect();
        let mut serving = Serving::of_this_release(slots);
        if !self.old.contains(&pid) {
            for version in serving.supports.values_mut() {
                *version += 1;
            }
            serving.supports.insert(NEW_KIND.to_owned(), 1);
        }
        serving
    }

    fn limits(&self, kind: &str) -> Limits {
        Limits {
            deadline: self.leader.limits.deadlines.of(kind).soft,
            quiet: self.quiet,
            standstill: self.standstill,
        }
    }
}

/// A kind that only the newer of two releases knows.
pub(crate) const NEW_KIND: &str = "of_the_newer_release";

fn pause(ctx: &Ctx) -> Duration {
    Duration::from_micros(ctx.sim.between(200 * MILLI, 2 * SECOND))
}

/// Every process relays.
async fn relay(ctx: Ctx, settings: Rc<Settings>) {
    loop {
        ctx.sleep(Duration::from_micros(ctx.sim.skewed(2 * MILLI, SECOND)))
            .await;
        if ctx.sim.ledger.borrow().outbox_depth() == 0 || !ctx.reaches_broker() {
            continue;
        }
        let (me, locks) = (ctx.clone(), settings.relays_lock);
        let batch = ctx.database("outbox", move |l, _| {
            let mut held = me.sim.held_rows.borrow_mut();
            let rows = l.outbox_batch(100, &|n| held.contains_key(&n));
            if locks && me.sim.awake_for(me.pid).is_some() {
                held.extend(rows.iter().map(|m| (m.number, me.pid)));
            }
            Ok(rows)
        });
        if let Ok(rows) = batch.await
            && !rows.is_empty()
        {
            let confirmed = ctx.publish(rows).await;
            let settled = ctx.database("settle", move |l, _| {
                l.outbox_settle(&confirmed);
                Ok(())
            });
            let _ = settled.await;
        }
        ctx.sim
            .held_rows
            .borrow_mut()
            .retain(|_, holder| *holder != ctx.pid);
    }
}

/// What runs in a process.
pub(crate) fn start(sim: &Rc<crate::sim::Sim>, pid: Pid, role: Role, settings: &Rc<Settings>) {
    let ctx = sim.start(pid);
    ctx.tell(|| "starts".into());
    ctx.spawn(relay(ctx.clone(), Rc::clone(settings)));
    let (me, settings) = (ctx.clone(), Rc::clone(settings));
    ctx.spawn(async move {
        match role {
            Role::Api => std::future::pending().await,
            Role::ResourceManager => resource_manager::resource_manager(me.clone(), settings).await,
            Role::Worker => worker::worker(me.clone(), settings).await,
        }
        // It has stopped in order.
        let (pid, life) = (me.pid, me.life);
        me.sim.after(0, move |sim| {
            if sim.processes.borrow()[pid].life == life {
                sim.tell(|| format!("process {pid} has stopped in order"));
                sim.kill(pid);
            }
        });
    });
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Api,
    ResourceManager,
    Worker,
}
