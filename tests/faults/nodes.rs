//! The processes, the engines, and what is between them.

use std::{collections::HashMap, net::SocketAddr};

use anyhow::{Context as _, Result};
use pulp_testkit::{Postgres, RabbitMq};
use pulp_tests::{
    Cluster, ClusterOptions, Pulp, Server as _,
    network::{Link, Network},
    volume::Volume,
};

use crate::{clock::Clocks, plan::Engine, run::Run};

/// Leases short enough that a run sees many end, long enough that a busy machine keeps them.
const TASKS: &str = "worker_ttl_seconds = 6\nlease_ttl_seconds = 4\nsweep_seconds = 1\nmax_attempts = 5\n\
                     drain_timeout_seconds = 10\ncancel_grace_seconds = 5";

/// Room on the content volume for everything that a run keeps, and little more.
const VOLUME_MEBIBYTES: u32 = 256;

/// Everything that runs. All processes are on one machine: two of a role have the same host name.
pub(crate) struct Nodes {
    pub(crate) cluster: Cluster,
    /// One more of the roles of which a cluster has one.
    pub(crate) second_api: Pulp,
    pub(crate) second_scheduler: Pulp,
    pub(crate) second_api_listens: SocketAddr,
    pub(crate) postgres: Postgres,
    pub(crate) rabbit: RabbitMq,
    pub(crate) volume: Volume,
    pub(crate) clocks: Clocks,
    links: HashMap<String, Links>,
    /// How often any was started again, for the names of the logs.
    pub(crate) starts: usize,
    /// Last, so that the processes are gone before what carries their bytes.
    _network: Network,
}

/// From one process to the engines.
struct Links {
    broker: Link,
    database: Link,
}

/// The process's name among the nodes, which it keeps when it is started again.
pub(crate) const SECOND_API: &str = "api-2";
pub(crate) const SECOND_SCHEDULER: &str = "scheduler-2";

impl Nodes {
    pub(crate) fn start(managers: usize, workers: usize) -> Result<Self> {
        // Both at the same time: RabbitMQ takes its time.
        let (postgres, rabbit) = std::thread::scope(|scope| {
            let postgres = scope.spawn(Postgres::start);
            let rabbit = RabbitMq::start();
            (postgres.join(), rabbit)
        });
        let (postgres, rabbit) = (postgres.map_err(|_| anyhow::anyhow!("PostgreSQL"))??, rabbit?);
        let (network, volume, clocks) = (Network::new()?, Volume::of(VOLUME_MEBIBYTES)?, Clocks::new()?);
        let database_url = postgres.create_database("faults")?;
        let broker_url = rabbit.url();
        let mut names: Vec<String> = (0..managers).map(|n| format!("manager-{n}")).collect();
        names.extend((0..workers).map(|n| format!("worker-{n}")));
        names.extend(["api", SECOND_API, "scheduler", SECOND_SCHEDULER, "crane"].map(ToOwned::to_owned));
        let mut links = HashMap::new();
        let mut envs = HashMap::new();
        for name in names {
            let links_of = Links {
                broker: network.link(address(&broker_url)?)?,
                database: network.link(address(&database_url)?)?,
            };
            let env = env_of(&name, &links_of, &clocks, &volume, [&database_url, &broker_url])?;
            envs.insert(name.clone(), env);
            links.insert(name, links_of);
        }
        let second_api_listens = SocketAddr::from(([127, 0, 0, 1], pulp_testkit::free_port()?));
        envs.entry(SECOND_API.to_owned()).or_default().push((
            "PULP_SERVER_API_LISTEN".to_owned(),
            second_api_listens.to_string(),
        ));
        let known = |name: &str| envs.get(name).cloned().unwrap_or_default();
        let cluster = Cluster::with(ClusterOptions {
            name: "faults",
            managers,
            workers,
            database_url: Some(database_url),
            broker_url: Some(broker_url),
            tasks: TASKS,
            env: &known,
        })?;
        let second_api = cluster.start_role_with(SECOND_API, "api", &known(SECOND_API))?;
        let second_scheduler =
            cluster.start_role_with(SECOND_SCHEDULER, "scheduler", &known(SECOND_SCHEDULER))?;
        pulp_tests::wait_for("the second API", || {
            Ok(std::net::TcpStream::connect(second_api_listens).ok())
        })?;
        Ok(Self {
            cluster,
            second_api,
            second_scheduler,
            second_api_listens,
            postgres,
            rabbit,
            volume,
            clocks,
            links,
            starts: 0,
            _network: network,
        })
    }

    /// Starts a process anew in the place of `node`.
    pub(crate) fn start_again(&mut self, node: &str) -> Result<Pulp> {
        let role = match node.split('-').next().unwrap_or(node) {
            "manager" => "resource-manager",
            other => other,
        };
        self.starts += 1;
        let links = self.links.get(node).context("no such node")?;
        let urls = [&self.cluster.database_url, &self.cluster.broker_url].map(String::as_str);
        let env = env_of(node, links, &self.clocks, &self.volume, urls)?;
        self.cluster
            .start_role_with(&format!("{node}-again-{}", self.starts), role, &env)
    }

    /// The links of a process to an engine, or to both.
    pub(crate) fn links_of(&self, node: &str, engine: Engine) -> Vec<&Link> {
        self.links.get(node).map_or(Vec::new(), |links| match engine {
            Engine::Broker => vec![&links.broker],
            Engine::Database => vec![&links.database],
            Engine::Both => vec![&links.broker, &links.database],
        })
    }

    /// Everybody's links to an engine.
    pub(crate) fn all_links(&self, engine: Engine) -> Vec<&Link> {
        self.links
            .keys()
            .flat_map(|node| self.links_of(node, engine))
            .collect()
    }

    /// Every process with its name among the nodes.
    pub(crate) fn all(&mut self) -> Vec<(String, &mut Pulp)> {
        let cluster = &mut self.cluster;
        let mut all = Vec::new();
        all.extend(numbered("manager", &mut cluster.managers));
        all.extend(numbered("worker", &mut cluster.workers));
        all.extend([
            ("api".to_owned(), &mut cluster.api_process),
            (SECOND_API.to_owned(), &mut self.second_api),
            ("crane".to_owned(), &mut cluster.crane_process),
            ("scheduler".to_owned(), &mut cluster.scheduler),
            (SECOND_SCHEDULER.to_owned(), &mut self.second_scheduler),
        ]);
        all
    }

    /// Nobody ends because of somebody else's trouble.
    pub(crate) fn look_for_the_dead(&mut self, run: &Run) -> Result<()> {
        for (_, process) in self.all() {
            if !process.is_alive()? {
                run.violated(&format!("{} ended by itself", process.name));
            }
        }
        Ok(())
    }

    /// Tells the run which processes there are, for those who look at their appetite.
    pub(crate) fn tell_processes(&mut self, run: &Run) {
        let now = self.all().into_iter().map(|(node, p)| (node, p.pid())).collect();
        *run.processes.lock().unwrap() = now;
    }

    /// Waits until nothing temporary is left.
    pub(crate) fn wait_until_clean(&self) -> Result<()> {
        self.cluster.wait_until_clean()?;
        pulp_tests::wait_for("the end of temporary blobs", || {
            Ok(self.volume.leftovers().is_empty().then_some(()))
        })
        .with_context(|| format!("left behind: {:?}", self.volume.leftovers()))
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

fn numbered<'a>(kind: &str, processes: &'a mut [Pulp]) -> Vec<(String, &'a mut Pulp)> {
    let named = |(n, p)| (format!("{kind}-{n}"), p);
    processes.iter_mut().enumerate().map(named).collect()
}

/// Variables of a process: its own clock, its own way to each engine, and the volume of all.
fn env_of(
    node: &str,
    links: &Links,
    clocks: &Clocks,
    volume: &Volume,
    [database, broker]: [&str; 2],
) -> Result<Vec<(String, String)>> {
    let mut env = clocks.env(node)?;
    let more = [
        ("PULP_DATABASE_URL", links.database.through(database)?),
        ("PULP_BROKER_URL", links.broker.through(broker)?),
        ("PULP_CONTENT_URL", format!("file:{}", volume.path().display())),
        // The C library's allocator keeps what threads have freed, arena by arena, and grows in large steps for as
        // long as it takes more arenas. What is to be seen is what the program keeps.
        ("MALLOC_ARENA_MAX", "2".to_owned()),
    ];
    env.extend(more.map(|(key, value)| (key.to_owned(), value)));
    Ok(env)
}

/// Where an engine's url leads to.
fn address(url: &str) -> Result<SocketAddr> {
    let rest = url.split("://").nth(1).context("no scheme")?;
    let place = rest.split('/').next().unwrap_or(rest);
    let place = place.rsplit('@').next().unwrap_or(place);
    place
        .parse()
        .with_context(|| format!("{place} in an engine's url"))
}
