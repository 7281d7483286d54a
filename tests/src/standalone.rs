//! `pulp standalone`.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::{PASSWORD, Pulp, Server, process::words};

/// `pulp standalone`.
pub struct Standalone {
    /// The process.
    pub process: Pulp,
    api: SocketAddr,
    crane: SocketAddr,
    env: Vec<(String, String)>,
    folder: TempDir,
}

impl Standalone {
    /// Starts one and waits until it says that it is ready.
    pub fn start() -> Result<Self> {
        Self::with(&[])
    }

    /// As [`start`](Self::start), with more variables `PULP_<SECTION>_<KEY>` in its environment.
    pub fn with(env: &[(&str, &str)]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (process, api, crane) = Self::run(folder.path(), env)?;
        Ok(Self {
            process,
            api,
            crane,
            env: env
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            folder,
        })
    }

    /// Kills it as a crash does and starts it on the same data again. It listens on other ports then.
    pub fn crash_and_start_again(&mut self) -> Result<()> {
        self.process.kill()?;
        let env = self.env.clone();
        (self.process, self.api, self.crane) = Self::run(self.folder.path(), &words(&env))?;
        Ok(())
    }

    fn run(folder: &Path, env: &[(&str, &str)]) -> Result<(Pulp, SocketAddr, SocketAddr)> {
        let data = folder.join("data").display().to_string();
        let words = [
            "standalone",
            "--data-dir",
            &data,
            "--api",
            "127.0.0.1:0",
            "--crane",
            "127.0.0.1:0",
        ];
        let env = [&[("PULP_ADMIN_PASSWORD", PASSWORD)], env].concat();
        let mut process = Pulp::start("standalone", folder, &words, &env)?;
        let out = process.child.stdout.take().context("no stdout")?;
        let (mut api, mut crane) = (None, None);
        for line in BufReader::new(out).lines() {
            let line = line?;
            let address = |l: &str| l.split("http://").nth(1)?.split('/').next()?.parse().ok();
            if line.trim_start().starts_with("REST API") {
                api = address(&line);
            } else if line.trim_start().starts_with("Crane") {
                crane = address(&line);
            } else if line.starts_with("Next:") {
                break;
            }
        }
        match (api, crane) {
            (Some(api), Some(crane)) => Ok((process, api, crane)),
            _ => bail!("standalone did not say where it listens:\n{}", process.log()),
        }
    }
}

impl Server for Standalone {
    fn api(&self) -> SocketAddr {
        self.api
    }

    fn crane(&self) -> SocketAddr {
        self.crane
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }
}
