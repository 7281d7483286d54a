//! A private RabbitMQ node.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::process::{Server, as_user, folder, free_port, program, run};

/// Names a running node to use instead of starting one; see [`shared_rabbitmq`].
pub(crate) const URL_VARIABLE: &str = "PULP_TEST_RABBITMQ_URL";
/// The folder of that node, for those who need more of it than to connect.
pub(crate) const NODE_VARIABLE: &str = "PULP_TEST_RABBITMQ_NODE";

const USER: Option<&str> = Some("rabbitmq");
/// Under the node's folder: the variables that make `rabbitmqctl` find the node.
const ENVIRONMENT: &str = "node.env";

/// A RabbitMQ node that nobody else sees. It forgets everything when dropped.
///
/// Tests that share one keep apart by a prefix of their own ([`unique_prefix`]), which costs nothing, or by a
/// virtual host of their own, which costs a run of `rabbitmqctl` (one to two seconds).
#[derive(Debug)]
pub struct RabbitMq {
    /// `amqp://guest:guest@127.0.0.1:5672`, without virtual host.
    base_url: String,
    environment: Vec<(String, String)>,
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    port: u16,
    server: Option<Server>,
    /// Erlang's name server; ours alone, on a port of its own, because a shared one would outlive us.
    _names: Server,
    /// Last, so that the servers are gone before their files.
    folder: TempDir,
}

impl RabbitMq {
    /// Starts a new node on a free loopback port. Takes five to ten seconds.
    ///
    /// # Errors
    ///
    /// When RabbitMQ is not installed or doesn't start; the text says why.
    pub fn start() -> Result<Self> {
        script("rabbitmq-server")?;
        let folder = folder("pulp-test-rabbit-", USER)?;
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (port, names_port, distribution_port) = (free_port()?, free_port()?, free_port()?);
        fs::write(
            path("rabbitmq.conf"),
            format!(
                "listeners.tcp.1 = 127.0.0.1:{port}\n\
                 loopback_users = none\n\
                 vm_memory_high_watermark.absolute = 1GB\n\
                 disk_free_limit.absolute = 50MB\n\
                 raft.wal_max_size_bytes = 16000000\n\
                 log.file = false\n\
                 log.console = true\n\
                 log.console.level = warning\n"
            ),
        )?;
        fs::write(path("enabled_plugins"), "[].\n")?;
        fs::write(path("rabbitmq-env.conf"), "")?;
        let environment: Vec<(String, String)> = [
            ("HOME", path("")),
            ("RABBITMQ_NODENAME", format!("pulp-test-{port}@localhost")),
            ("RABBITMQ_DIST_PORT", distribution_port.to_string()),
            ("RABBITMQ_MNESIA_BASE", path("data")),
            ("RABBITMQ_LOG_BASE", path("")),
            ("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf")),
            ("RABBITMQ_CONF_ENV_FILE", path("rabbitmq-env.conf")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins")),
            ("RABBITMQ_PID_FILE", path("pid")),
            (
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                // Small, and without busy waiting: tests share few cores.
                "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"
                    .to_owned(),
            ),
            ("ERL_EPMD_PORT", names_port.to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
            ("LANG", "C.UTF-8".to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        let lines: Vec<String> = environment.iter().map(|(k, v)| format!("{k}={v}\n")).collect();
        fs::write(path(ENVIRONMENT), lines.concat())?;
        let names = Server::start(
            "epmd",
            as_user(USER, program("epmd", &[], "erlang-base")?)
                .args(["-address", "127.0.0.1", "-port"])
                .arg(names_port.to_string())
                .current_dir(folder.path()),
            folder.path(),
        )?;
        let mut node = Self {
            base_url: format!("amqp://guest:guest@127.0.0.1:{port}"),
            environment,
            own: Some(Own {
                port,
                server: None,
                _names: names,
                folder,
            }),
        };
        node.start_again()?;
        Ok(node)
    }

    /// Uses the running node that `url` names. `folder` is its folder, if it was started by this crate;
    /// without it, virtual hosts can't be made.
    ///
    /// # Errors
    ///
    /// When the url or the folder can't be read.
    pub fn existing(url: &str, folder: Option<&Path>) -> Result<Self> {
        let mut url = url::Url::parse(url).context("the RabbitMQ url")?;
        url.set_path("");
        let mut environment = Vec::new();
        if let Some(folder) = folder {
            let file = folder.join(ENVIRONMENT);
            let text = fs::read_to_string(&file).with_context(|| format!("can't read {}", file.display()))?;
            environment.extend(
                text.lines()
                    .filter_map(|line| line.split_once('='))
                    .map(|(key, value)| (key.to_owned(), value.to_owned())),
            );
        }
        Ok(Self {
            base_url: url.to_string().trim_end_matches('/').to_owned(),
            environment,
            own: None,
        })
    }

    /// The url of the virtual host `/`.
    pub fn url(&self) -> String {
        format!("{}/%2f", self.base_url)
    }

    /// The node's folder, when the node is ours.
    pub fn folder(&self) -> Option<&Path> {
        self.own.as_ref().map(|own| own.folder.path())
    }

    /// Makes an empty virtual host and gives its url. The name gets a suffix that nobody else has.
    ///
    /// # Errors
    ///
    /// When the node refuses.
    pub fn create_vhost(&self, name: &str) -> Result<String> {
        let name = unique_prefix(name);
        self.eval(&format!(
            "ok = rabbit_vhost:add(<<\"{name}\">>, <<\"test\">>), \
             ok = rabbit_auth_backend_internal:set_permissions(<<\"guest\">>, <<\"{name}\">>, \
             <<\".*\">>, <<\".*\">>, <<\".*\">>, <<\"test\">>)."
        ))?;
        Ok(format!("{}/{name}", self.base_url))
    }

    /// Empties every queue of the virtual host that `url` names, of its ready messages.
    ///
    /// # Errors
    ///
    /// When the node refuses.
    pub fn purge_all_queues(&self, url: &str) -> Result<()> {
        self.for_all_queues(url, "rabbit_amqqueue:purge(Q)")
    }

    /// Deletes every queue of the virtual host that `url` names, with what is in it, under the feet of those
    /// who use it.
    ///
    /// # Errors
    ///
    /// When the node refuses.
    pub fn delete_all_queues(&self, url: &str) -> Result<()> {
        self.for_all_queues(url, "rabbit_amqqueue:delete(Q, false, false, <<\"test\">>)")
    }

    fn for_all_queues(&self, url: &str, action: &str) -> Result<()> {
        let vhost = match url::Url::parse(url)?.path() {
            "" | "/" | "/%2f" | "/%2F" => "/".to_owned(),
            path => path.trim_start_matches('/').to_owned(),
        };
        self.eval(&format!(
            "[{action} || Q <- rabbit_amqqueue:list(<<\"{vhost}\">>)], ok."
        ))?;
        Ok(())
    }

    /// Cuts every client connection, as an administrator can.
    ///
    /// # Errors
    ///
    /// When the node refuses.
    pub fn close_all_connections(&self) -> Result<()> {
        self.ctl(&["close_all_connections", "test"])?;
        Ok(())
    }

    /// Runs `rabbitmqctl`; gives what it prints.
    ///
    /// # Errors
    ///
    /// With its last words.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        if self.environment.is_empty() {
            bail!(
                "set {NODE_VARIABLE} to the node's folder: without, nobody can administer {}",
                self.base_url
            );
        }
        run(as_user(USER, script("rabbitmqctl")?)
            .envs(self.environment.iter().map(|(k, v)| (k, v)))
            .arg("--quiet")
            .args(arguments)
            .current_dir("/"))
    }

    fn eval(&self, expression: &str) -> Result<String> {
        self.ctl(&["eval", expression])
    }

    /// Stops it in order; what is durable survives.
    ///
    /// # Errors
    ///
    /// When it is not ours.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut server) = self.own()?.server.take() {
            server.signal("TERM")?;
            server.wait(Duration::from_secs(30))?;
            server.kill();
        }
        Ok(())
    }

    /// Kills it as a crash does; what was confirmed survives.
    ///
    /// RabbitMQ 3.10 keeps the directory of its quorum queues in a file that it flushes every few seconds only.
    /// A queue declared just before a crash comes back without a leader and takes nothing, for ever. Tests
    /// declare queues all the time and are not about that, so the directory is flushed first.
    ///
    /// # Errors
    ///
    /// When it is not ours.
    pub fn kill(&mut self) -> Result<()> {
        self.own()?;
        // A node that can't answer is killed all the same.
        let _ = self.eval("[dets:sync(T) || T <- dets:all()], ok.");
        if let Some(mut server) = self.own()?.server.take() {
            server.kill();
        }
        Ok(())
    }

    /// Starts it again, on the same port and data, after [`RabbitMq::stop`] or [`RabbitMq::kill`].
    ///
    /// # Errors
    ///
    /// When it doesn't start, or is not ours.
    pub fn start_again(&mut self) -> Result<()> {
        let environment = self.environment.clone();
        let own = self.own()?;
        let mut server = Server::start(
            "rabbitmq-server",
            as_user(USER, script("rabbitmq-server")?)
                .envs(environment)
                .current_dir(own.folder.path()),
            own.folder.path(),
        )?;
        let port = own.port;
        server.wait_until(Duration::from_secs(90), || answers(port))?;
        own.server = Some(server);
        Ok(())
    }

    /// Kills it and starts it again without anything it knew: no queues, no virtual hosts but `/`.
    ///
    /// # Errors
    ///
    /// When it doesn't start, or is not ours.
    pub fn wipe(&mut self) -> Result<()> {
        self.kill()?;
        let data = self.own()?.folder.path().join("data");
        fs::remove_dir_all(&data).with_context(|| format!("can't remove {}", data.display()))?;
        self.start_again()
    }

    fn own(&mut self) -> Result<&mut Own> {
        match &mut self.own {
            Some(own) => Ok(own),
            None => bail!(
                "the node at {} was not started here; faults need a private one",
                self.base_url
            ),
        }
    }
}

/// `name`, with a suffix that no other caller on this machine has now.
pub fn unique_prefix(name: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let name: String = name
        .chars()
        .take(40)
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '_'
            }
        })
        .collect();
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{name}-{}-{number}", std::process::id())
}

/// The node that all tests of this process use.
///
/// It is the one that `PULP_TEST_RABBITMQ_URL` names, when set (`pulp-testkit with-engines` sets it).
/// Otherwise one is started with the first call, and ends with the process.
///
/// # Errors
///
/// When it can't be started; each later call says the same.
pub fn shared_rabbitmq() -> Result<&'static RabbitMq> {
    static SHARED: OnceLock<Result<RabbitMq, String>> = OnceLock::new();
    SHARED
        .get_or_init(|| {
            match std::env::var(URL_VARIABLE) {
                Ok(url) => RabbitMq::existing(&url, std::env::var_os(NODE_VARIABLE).as_ref().map(Path::new)),
                Err(_) => RabbitMq::start(),
            }
            .map_err(|e| format!("{e:#}"))
        })
        .as_ref()
        .map_err(|e| anyhow::anyhow!("{e}"))
}

/// Whether an AMQP server greets on the loopback port.
fn answers(port: u16) -> bool {
    let greeting = || -> std::io::Result<u8> {
        let patience = Duration::from_secs(1);
        let mut stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(b"AMQP\x00\x00\x09\x01")?;
        let mut kind = [0; 1];
        stream.read_exact(&mut kind)?;
        Ok(kind[0])
    };
    // A method frame (1) is `connection.start`.
    greeting().is_ok_and(|kind| kind == 1)
}

/// One of RabbitMQ's own scripts; those in `/usr/sbin` are Debian's wrappers, which change user and folder.
fn script(name: &str) -> Result<PathBuf> {
    let real = Path::new("/usr/lib/rabbitmq/bin").join(name);
    if real.is_file() {
        Ok(real)
    } else {
        program(name, &[], "rabbitmq-server")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_node_starts_takes_a_vhost_survives_a_crash_and_forgets_when_wiped() {
        let mut node = RabbitMq::start().unwrap();
        let url = node.create_vhost("My test").unwrap();
        let vhost = url.rsplit('/').next().unwrap().to_owned();
        node.purge_all_queues(&url).unwrap();
        node.kill().unwrap();
        node.start_again().unwrap();
        assert!(node.ctl(&["list_vhosts"]).unwrap().contains(&vhost));
        node.stop().unwrap();
        assert!(!answers(node.own().unwrap().port));
        node.start_again().unwrap();
        node.wipe().unwrap();
        assert!(!node.ctl(&["list_vhosts"]).unwrap().contains(&vhost));
    }
}
