//! The processes and the engines, and what is done to them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pulp_testkit::{Postgres, RabbitMq};
use pulp_tests::{Cluster, ClusterOptions, Pulp};

use crate::{
    plan::{Blow, Outage, Step, Victim, kinds},
    run::{Run, pause},
};

/// Leases short enough that a run sees many end, long enough that a busy machine keeps them.
const TASKS: &str = "worker_ttl_seconds = 6\nlease_ttl_seconds = 4\nsweep_seconds = 1\nmax_attempts = 5\n\
                     drain_timeout_seconds = 10\ncancel_grace_seconds = 5";

/// Everything that runs.
pub(crate) struct Nodes {
    pub(crate) cluster: Cluster,
    postgres: Postgres,
    rabbit: RabbitMq,
    /// How often each was started, for the names of the logs.
    starts: usize,
}

/// A process that was struck, until it is well again.
struct Struck {
    victim: Victim,
    index: usize,
    blow: Blow,
}

impl Nodes {
    pub(crate) fn start(managers: usize, workers: usize) -> Result<Self> {
        // Both at the same time: RabbitMQ takes its time.
        let (postgres, rabbit) = std::thread::scope(|scope| {
            let postgres = scope.spawn(Postgres::start);
            let rabbit = RabbitMq::start();
            (postgres.join(), rabbit)
        });
        let (postgres, rabbit) = (postgres.map_err(|_| anyhow::anyhow!("PostgreSQL"))??, rabbit?);
        let cluster = Cluster::with(ClusterOptions {
            name: "faults",
            managers,
            workers,
            database_url: Some(postgres.create_database("faults")?),
            broker_url: Some(rabbit.url()),
            tasks: TASKS,
        })?;
        Ok(Self {
            cluster,
            postgres,
            rabbit,
            starts: 0,
        })
    }

    /// Lets one step of the plan happen, and everything be well again.
    pub(crate) fn suffer(&mut self, step: &Step, run: &Run) -> Result<()> {
        run.note(&step.to_string());
        for kind in kinds(step) {
            run.count(&format!("fault: {kind}"));
        }
        match step.outage {
            // The process is struck while the engine is away.
            Some(outage) => {
                let struck = self.outage(outage, step, run)?;
                if let Some(struck) = struck {
                    run.pause(step.hold);
                    self.heal(&struck, true, run)?;
                }
            }
            None => {
                if let Some(struck) = self.blow(step)? {
                    run.pause(step.hold);
                    self.heal(&struck, false, run)?;
                }
            }
        }
        run.note("well again");
        self.look_for_the_dead(run)
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
        })
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
        let process = self.process(victim, index);
        match blow {
            Blow::Kill => process.kill()?,
            Blow::Freeze | Blow::FreezeBeyondLease => process.signal("STOP")?,
            Blow::Stop => process.signal("TERM")?,
        }
        Ok(Some(Struck { victim, index, blow }))
    }

    /// Thaws it, or starts another in its place once it has ended.
    fn heal(&mut self, struck: &Struck, without_engine: bool, run: &Run) -> Result<()> {
        let &Struck { victim, index, blow } = struck;
        let process = self.process(victim, index);
        match blow {
            Blow::Freeze | Blow::FreezeBeyondLease => return process.signal("CONT"),
            Blow::Stop => match process.wait() {
                // Without an engine it can't always hand back what it had.
                Ok(well) if well || without_engine => {}
                Ok(_) => run.violated(&format!("{victim:?} was told to end and ended badly")),
                Err(error) => run.violated(&format!("{victim:?} was told to end: {error:#}")),
            },
            Blow::Kill => {}
        }
        let role = match victim {
            Victim::Api => "api",
            Victim::Crane => "crane",
            Victim::Scheduler => "scheduler",
            Victim::Leader | Victim::Standby => "resource-manager",
            Victim::Worker(_) => "worker",
        };
        self.starts += 1;
        let name = format!("{role}-{index}-again-{}", self.starts);
        let fresh = self.cluster.start_role(&name, role)?;
        *self.process(victim, index) = fresh;
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

    pub(crate) fn all(&mut self) -> impl Iterator<Item = &mut Pulp> {
        let cluster = &mut self.cluster;
        let others = [
            &mut cluster.api_process,
            &mut cluster.crane_process,
            &mut cluster.scheduler,
        ];
        cluster
            .managers
            .iter_mut()
            .chain(&mut cluster.workers)
            .chain(others)
    }

    /// Nobody ends because of somebody else's trouble.
    fn look_for_the_dead(&mut self, run: &Run) -> Result<()> {
        for process in self.all() {
            if !process.is_alive()? {
                run.violated(&format!("{} ended by itself", process.name));
            }
        }
        Ok(())
    }

    /// Open files and resident memory of every process, the largest of each.
    pub(crate) fn appetite(&mut self) -> Result<(usize, usize)> {
        let (mut files, mut kilobytes) = (0, 0);
        for process in self.all() {
            let proc = format!("/proc/{}", process.pid());
            files = files.max(std::fs::read_dir(format!("{proc}/fd"))?.count());
            let status = std::fs::read_to_string(format!("{proc}/status"))?;
            let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
            let resident = line
                .and_then(|l| l.split_whitespace().next())
                .context("no VmRSS")?;
            kilobytes = kilobytes.max(resident.parse()?);
        }
        Ok((files, kilobytes / 1024))
    }

    /// Copies every log to where it stays; gives the folder.
    pub(crate) fn keep_logs(&self, seed: u64) -> Result<std::path::PathBuf> {
        let kept = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("faults-{seed}"));
        std::fs::create_dir_all(&kept)?;
        let folder = pulp_tests::Server::folder(&self.cluster);
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if let (Some("log"), Some(name)) = (path.extension().and_then(|e| e.to_str()), path.file_name()) {
                std::fs::copy(&path, kept.join(name))?;
            }
        }
        Ok(kept)
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
    pause(Duration::from_millis(1));
    Ok(())
}
