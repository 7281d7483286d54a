//! How each fault of the plan is done, and undone.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pulp_tests::{Pulp, wait_for};

use crate::{
    nodes::Nodes,
    plan::{Blow, Engine, Outage, Step, Victim, kinds},
    run::Run,
};

/// Milliseconds for which two of one name run.
const TWINS: u64 = 3000;

/// A process that was struck, until it is well again.
struct Struck {
    victim: Victim,
    index: usize,
    node: String,
    blow: Blow,
}

impl Nodes {
    /// Lets one step of the plan happen, and everything be well again.
    pub(crate) fn suffer(&mut self, step: &Step, run: &Run) -> Result<()> {
        run.note(&step.to_string());
        if let Some(why) = self.can_not(step) {
            run.count(&format!("fault left out: {why}"));
            run.note(why);
            return Ok(());
        }
        for kind in kinds(step) {
            run.count(&format!("fault: {kind}"));
        }
        let struck = match step.outage {
            // The process is struck while the engine is away.
            Some(outage) => self.outage(outage, step, run)?,
            None => self.blow(step)?,
        };
        if let Some(struck) = struck {
            run.pause(step.hold);
            self.heal(&struck, step.outage.is_some(), run)?;
        }
        run.note("well again");
        self.tell_processes(run);
        self.look_for_the_dead(run)
    }

    /// Why a fault can't be had on this machine.
    fn can_not(&self, step: &Step) -> Option<&'static str> {
        match (step.outage, step.blow) {
            (Some(Outage::ContentFull(_) | Outage::ContentReadOnly(_)), _) if !self.volume.can_fail() => {
                Some("only root can mount a volume for the content")
            }
            (_, Some((_, Blow::Clock(_)))) if !self.clocks.can_be_set() => {
                Some("libfaketime is not installed (Debian: faketime)")
            }
            _ => None,
        }
    }

    fn outage(&mut self, outage: Outage, step: &Step, run: &Run) -> Result<Option<Struck>> {
        let url = self.rabbit.url();
        Ok(match outage {
            Outage::BrokerStopped(seconds) => {
                self.rabbit.stop()?;
                let struck = self.blow(step)?;
                run.pause(seconds * 1000);
                self.rabbit.start_again()?;
                struck
            }
            Outage::BrokerKilled => {
                self.rabbit.kill()?;
                let struck = self.blow(step)?;
                self.rabbit.start_again()?;
                struck
            }
            Outage::BrokerWiped => {
                let struck = self.blow(step)?;
                self.rabbit.wipe()?;
                struck
            }
            Outage::BrokerConnectionsClosed => {
                let struck = self.blow(step)?;
                self.rabbit.close_all_connections()?;
                struck
            }
            Outage::BrokerAlarm(millis) => {
                self.rabbit
                    .ctl(&["set_vm_memory_high_watermark", "absolute", "1MB"])?;
                let struck = self.blow(step);
                run.pause(millis);
                self.rabbit
                    .ctl(&["set_vm_memory_high_watermark", "absolute", "1GB"])?;
                struck?
            }
            Outage::BrokerUnreachable(millis) => self.unreachable(Engine::Broker, millis, step, run)?,
            Outage::QueuesPurged => {
                let struck = self.blow(step)?;
                self.rabbit.purge_all_queues(&url)?;
                struck
            }
            Outage::QueuesDeleted => {
                let struck = self.blow(step)?;
                self.rabbit.delete_all_queues(&url)?;
                struck
            }
            Outage::DatabaseRestarted => {
                self.postgres.stop()?;
                let struck = self.blow(step)?;
                self.postgres.start_again()?;
                struck
            }
            Outage::DatabaseKilled => {
                self.postgres.kill()?;
                let struck = self.blow(step)?;
                self.postgres.start_again()?;
                struck
            }
            Outage::DatabaseConnectionsDropped => {
                let struck = self.blow(step)?;
                self.cluster.sql(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                     WHERE datname = current_database() AND pid <> pg_backend_pid()",
                )?;
                struck
            }
            Outage::DatabasePaused(millis) => {
                let processes = self.database_processes()?;
                let first = processes.first().context("no postmaster")?;
                // The one that starts others first, and it is the last to go on.
                signal("STOP", std::slice::from_ref(first))?;
                signal("STOP", &processes)?;
                let struck = self.blow(step);
                run.pause(millis);
                signal("CONT", &processes)?;
                struck?
            }
            Outage::DatabaseUnreachable(millis) => self.unreachable(Engine::Database, millis, step, run)?,
            Outage::ContentFull(millis) => {
                self.volume.fill()?;
                let struck = self.blow(step);
                run.pause(millis);
                self.volume.empty()?;
                struck?
            }
            Outage::ContentReadOnly(millis) => {
                if !self.volume.write_protect()? {
                    run.note("somebody writes all the time; the volume stays writable");
                    run.count("volumes that could not be made read-only");
                }
                let struck = self.blow(step);
                run.pause(millis);
                self.volume.allow_writing()?;
                struck?
            }
        })
    }

    /// Nobody reaches an engine.
    fn unreachable(&mut self, engine: Engine, millis: u64, step: &Step, run: &Run) -> Result<Option<Struck>> {
        self.all_links(engine).iter().for_each(|link| link.cut());
        let struck = self.blow(step);
        run.pause(millis);
        self.all_links(engine).iter().for_each(|link| link.heal());
        struck
    }

    /// The postmaster, then its children.
    fn database_processes(&self) -> Result<Vec<String>> {
        let file = self.postgres.psql("SELECT pg_read_file('postmaster.pid')")?;
        let postmaster = file
            .lines()
            .next()
            .context("postmaster.pid is empty")?
            .trim()
            .to_owned();
        let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"))?;
        let children = children.split_whitespace().map(ToOwned::to_owned);
        Ok(std::iter::once(postmaster).chain(children).collect())
    }

    fn blow(&mut self, step: &Step) -> Result<Option<Struck>> {
        let Some((victim, blow)) = step.blow else {
            return Ok(None);
        };
        let index = self.index(victim);
        let node = name(victim, index);
        match blow {
            Blow::Kill => self.process(victim, index).kill()?,
            Blow::Freeze | Blow::FreezeBeyondLease | Blow::Twin => {
                self.process(victim, index).signal("STOP")?;
            }
            Blow::Stop => self.process(victim, index).signal("TERM")?,
            Blow::Cut(engine) | Blow::CutAndForgotten(engine) => {
                self.links_of(&node, engine).iter().for_each(|link| link.cut());
            }
            Blow::Refused(engine) => self.links_of(&node, engine).iter().for_each(|link| link.refuse()),
            Blow::Slow(engine, millis) => {
                let delay = Duration::from_millis(millis);
                self.links_of(&node, engine)
                    .iter()
                    .for_each(|link| link.slow(delay));
            }
            Blow::Clock(seconds) => self.clocks.set(&node, seconds)?,
        }
        Ok(Some(Struck {
            victim,
            index,
            node,
            blow,
        }))
    }

    /// Undoes it, or starts another in its place once it has ended.
    fn heal(&mut self, struck: &Struck, without_engine: bool, run: &Run) -> Result<()> {
        let Struck {
            victim,
            index,
            ref node,
            blow,
        } = *struck;
        match blow {
            Blow::Freeze | Blow::FreezeBeyondLease => self.process(victim, index).signal("CONT")?,
            Blow::Cut(engine) | Blow::Refused(engine) | Blow::Slow(engine, _) => {
                self.links_of(node, engine).iter().for_each(|link| link.heal());
            }
            Blow::CutAndForgotten(engine) => {
                for link in self.links_of(node, engine) {
                    link.heal_for_new_connections();
                }
            }
            Blow::Clock(_) => self.clocks.set(node, 0)?,
            Blow::Twin => {
                let twin = self.start_again(node)?;
                let mut elder = std::mem::replace(self.process(victim, index), twin);
                wait_for("the twin's connection to the broker", || {
                    let log = self.process(victim, index).log();
                    Ok(log.contains("connected to the broker").then_some(()))
                })?;
                elder.signal("CONT")?;
                run.pause(TWINS);
                elder.signal("TERM")?;
                has_ended(&mut elder, without_engine, run);
            }
            Blow::Stop | Blow::Kill => {
                if blow == Blow::Stop {
                    has_ended(self.process(victim, index), without_engine, run);
                }
                *self.process(victim, index) = self.start_again(node)?;
            }
        }
        Ok(())
    }

    fn index(&self, victim: Victim) -> usize {
        let leads = |m: &Pulp| {
            let log = m.log();
            let lost = log.matches("leading no more").count();
            log.matches("leading").count() - lost > lost
        };
        let leader = self.cluster.managers.iter().position(leads).unwrap_or(0);
        match victim {
            Victim::Worker(n) => n,
            Victim::Leader => leader,
            Victim::Standby => (leader + 1) % self.cluster.managers.len(),
            Victim::Api | Victim::Crane | Victim::Scheduler => 0,
        }
    }

    fn process(&mut self, victim: Victim, index: usize) -> &mut Pulp {
        match victim {
            Victim::Api => &mut self.cluster.api_process,
            Victim::Crane => &mut self.cluster.crane_process,
            Victim::Scheduler => &mut self.cluster.scheduler,
            Victim::Leader | Victim::Standby => &mut self.cluster.managers[index],
            Victim::Worker(_) => &mut self.cluster.workers[index],
        }
    }
}

fn name(victim: Victim, index: usize) -> String {
    match victim {
        Victim::Api => "api".to_owned(),
        Victim::Crane => "crane".to_owned(),
        Victim::Scheduler => "scheduler".to_owned(),
        Victim::Leader | Victim::Standby => format!("manager-{index}"),
        Victim::Worker(_) => format!("worker-{index}"),
    }
}

/// Waits for the end of a process that was told to end.
fn has_ended(process: &mut Pulp, without_engine: bool, run: &Run) {
    let name = process.name.clone();
    match process.wait() {
        // Without an engine it can't always hand back what it had.
        Ok(well) if well || without_engine => {}
        Ok(_) => run.violated(&format!("{name} was told to end and ended badly")),
        Err(error) => run.violated(&format!("{name} was told to end: {error:#}")),
    }
}

fn signal(name: &str, processes: &[String]) -> Result<()> {
    // A session that has ended meanwhile can't be told anything; the first is always there.
    let status = std::process::Command::new("kill")
        .arg(format!("-{name}"))
        .args(processes)
        .stderr(std::process::Stdio::null())
        .status()?;
    ensure!(status.success() || processes.len() > 1, "kill -{name} failed");
    Ok(())
}
