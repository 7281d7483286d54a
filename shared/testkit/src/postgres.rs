//! A private PostgreSQL cluster.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::process::{Server, as_user, folder, free_port, program, run};

/// Names a running server to use instead of starting one; see [`shared_postgres`].
pub(crate) const URL_VARIABLE: &str = "PULP_TEST_POSTGRES_URL";

/// A PostgreSQL server with databases that nobody else sees. It forgets everything when dropped.
#[derive(Debug)]
pub struct Postgres {
    /// `postgres://postgres@127.0.0.1:5432`, without database.
    base_url: String,
    /// `None` when the server is somebody else's.
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    port: u16,
    program: PathBuf,
    server: Option<Server>,
    /// Last, so that the server is gone before its files.
    folder: TempDir,
}

impl Postgres {
    /// Starts a new cluster on a free loopback port. Takes about two seconds.
    ///
    /// # Errors
    ///
    /// When PostgreSQL is not installed or doesn't start; the text says why.
    pub fn start() -> Result<Self> {
        let program = find("postgres")?;
        let folder = folder("pulp-test-pg-", Some("postgres"))?;
        let data = folder.path().join("data");
        run(as_user(Some("postgres"), find("initdb")?)
            .args([
                "--no-sync",
                "--no-instructions",
                "--auth=trust",
                "--username=postgres",
            ])
            .args(["--encoding=UTF8", "--locale=C.UTF-8", "-D"])
            .arg(&data)
            .current_dir(folder.path()))?;
        let port = free_port()?;
        // Without fsync a crash of the machine loses data, a kill of the server does not. `synchronous_commit` stays on:
        // it would lose the last half second of commits with the server.
        let settings = format!(
            "port = {port}\n\
             listen_addresses = '127.0.0.1'\n\
             unix_socket_directories = ''\n\
             max_connections = 300\n\
             shared_buffers = 64MB\n\
             fsync = off\n\
             full_page_writes = off\n\
             log_min_messages = warning\n"
        );
        let file = data.join("postgresql.auto.conf");
        fs::write(&file, settings).with_context(|| format!("can't write {}", file.display()))?;
        let mut postgres = Self {
            base_url: format!("postgres://postgres@127.0.0.1:{port}"),
            own: Some(Own {
                port,
                program,
                server: None,
                folder,
            }),
        };
        postgres.start_again()?;
        Ok(postgres)
    }

    /// Uses the running server that `url` names, instead of a private one.
    pub fn existing(url: &str) -> Result<Self> {
        let mut url = url::Url::parse(url).context("the PostgreSQL url")?;
        url.set_path("");
        Ok(Self {
            base_url: url.to_string().trim_end_matches('/').to_owned(),
            own: None,
        })
    }

    /// The url of the maintenance database; tests make their own by [`Postgres::create_database`].
    pub fn url(&self) -> String {
        format!("{}/postgres", self.base_url)
    }

    /// Makes an empty database and gives its url. The name gets a suffix that nobody else has.
    ///
    /// # Errors
    ///
    /// When the server refuses.
    pub fn create_database(&self, name: &str) -> Result<String> {
        static COUNTER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
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
        let name = format!("{name}_{}_{number}", std::process::id());
        self.psql(&format!(r#"CREATE DATABASE "{name}" TEMPLATE template0"#))?;
        Ok(format!("{}/{name}", self.base_url))
    }

    /// Runs one statement in the maintenance database; gives the rows, unaligned, without header.
    ///
    /// # Errors
    ///
    /// With the server's message.
    pub fn psql(&self, statement: &str) -> Result<String> {
        psql(&self.url(), statement)
    }

    /// Stops it the way an administrator does (connections are cut, data is kept) and starts it again.
    ///
    /// # Errors
    ///
    /// When it doesn't start, or is not ours.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start_again()
    }

    /// Stops it in order, cutting the connections.
    ///
    /// # Errors
    ///
    /// When it is not ours.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut server) = self.own()?.server.take() {
            server.signal("INT")?;
            server.wait(Duration::from_secs(20))?;
        }
        Ok(())
    }

    /// Kills it as a crash does; what was committed survives.
    ///
    /// # Errors
    ///
    /// When it is not ours.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut server) = self.own()?.server.take() {
            server.kill();
        }
        Ok(())
    }

    /// Starts it again, on the same port and data, after [`Postgres::stop`] or [`Postgres::kill`].
    ///
    /// # Errors
    ///
    /// When it doesn't start, or is not ours.
    pub fn start_again(&mut self) -> Result<()> {
        // The sessions of a killed server notice its end by themselves; until then they keep its memory in use, and it
        // refuses to start. What it says of that may be drowned in what they say of their end.
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match self.try_start() {
                Err(_) if Instant::now() < deadline => {}
                done => return done,
            }
        }
    }

    fn try_start(&mut self) -> Result<()> {
        let own = self.own()?;
        let data = own.folder.path().join("data");
        // A killed server leaves its lock file behind; its process number may be somebody else's by now.
        let _ = fs::remove_file(data.join("postmaster.pid"));
        let mut server = Server::start(
            "postgres",
            as_user(Some("postgres"), &own.program)
                .arg("-D")
                .arg(&data)
                .current_dir(own.folder.path()),
            own.folder.path(),
        )?;
        let port = own.port.to_string();
        let pg_isready = find("pg_isready")?;
        server.wait_until(Duration::from_mins(1), || {
            run(Command::new(&pg_isready).args(["-q", "-h", "127.0.0.1", "-p", &port])).is_ok()
        })?;
        own.server = Some(server);
        Ok(())
    }

    fn own(&mut self) -> Result<&mut Own> {
        match &mut self.own {
            Some(own) => Ok(own),
            None => bail!(
                "the server at {} was not started here; faults need a private one",
                self.base_url
            ),
        }
    }
}

/// The server that all tests of this process use, each with a database of its own.
///
/// It is the one that `PULP_TEST_POSTGRES_URL` names, when set (`pulp-testkit with-engines` sets it).
/// Otherwise one is started with the first call, and ends with the process.
///
/// # Errors
///
/// When it can't be started; each later call says the same.
pub fn shared_postgres() -> Result<&'static Postgres> {
    static SHARED: OnceLock<Result<Postgres, String>> = OnceLock::new();
    SHARED
        .get_or_init(|| {
            match std::env::var(URL_VARIABLE) {
                Ok(url) => Postgres::existing(&url),
                Err(_) => Postgres::start(),
            }
            .map_err(|e| format!("{e:#}"))
        })
        .as_ref()
        .map_err(|e| anyhow::anyhow!("{e}"))
}

/// Runs one statement in the database that `url` names; gives the rows, unaligned, without header.
///
/// # Errors
///
/// With the server's message.
pub fn psql(url: &str, statement: &str) -> Result<String> {
    run(Command::new(find("psql")?)
        .args(["--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-qAt", "-d"])
        .arg(url)
        .args(["-c", statement]))
}

/// A program of the newest PostgreSQL that Debian's packages installed.
fn find(name: &str) -> Result<PathBuf> {
    let mut folders: Vec<(u32, String)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, format!("{}/bin", entry.path().display())))
        })
        .collect();
    folders.sort_unstable_by(|a, b| b.cmp(a));
    let folders: Vec<&str> = folders.iter().map(|(_, folder)| folder.as_str()).collect();
    program(name, &folders, "postgresql")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_cluster_starts_takes_a_database_and_keeps_it_over_a_crash() {
        let mut postgres = Postgres::start().unwrap();
        let url = postgres.create_database("My test").unwrap();
        assert!(url.contains("/my_test_"), "{url}");
        postgres.kill().unwrap();
        postgres.psql("select 1").unwrap_err();
        postgres.start_again().unwrap();
        postgres.restart().unwrap();
        let name = url.rsplit('/').next().unwrap();
        let found = postgres
            .psql(&format!(
                "select count(*) from pg_database where datname = '{name}'"
            ))
            .unwrap();
        assert_eq!(found.trim(), "1");
        let pid = postgres.own().unwrap().server.as_ref().unwrap().pid();
        let folder = postgres.own().unwrap().folder.path().to_owned();
        drop(postgres);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
        assert!(!folder.exists());
    }
}
