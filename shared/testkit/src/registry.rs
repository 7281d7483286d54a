//! A private registry: the reference implementation, from Debian's `docker-registry`.

use std::{fs, process::Command, time::Duration};

use anyhow::Result;
use tempfile::TempDir;

use crate::process::{Server, folder, free_port, listens, program};

/// A registry on a free loopback port, with deletion allowed and no authentication.
#[derive(Debug)]
pub struct Registry {
    port: u16,
    _server: Server,
    _folder: TempDir,
}

impl Registry {
    /// Starts an empty one.
    ///
    /// # Errors
    ///
    /// When it is not installed or doesn't start; the text says why.
    pub fn start() -> Result<Self> {
        let program = program("docker-registry", &[], "docker-registry")?;
        let folder = folder("pulp-test-registry-", None)?;
        let port = free_port()?;
        let configuration = folder.path().join("config.yml");
        fs::write(
            &configuration,
            format!(
                "version: 0.1\n\
                 log: {{level: warn, accesslog: {{disabled: true}}}}\n\
                 storage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\n\
                 http: {{addr: '127.0.0.1:{port}'}}\n",
                folder.path().join("data").display()
            ),
        )?;
        let mut server = Server::start(
            "docker-registry",
            Command::new(program)
                .arg("serve")
                .arg(&configuration)
                .env("OTEL_TRACES_EXPORTER", "none"),
            folder.path(),
        )?;
        server.wait_until(Duration::from_secs(20), || listens(port))?;
        Ok(Self {
            port,
            _server: server,
            _folder: folder,
        })
    }

    /// `http://127.0.0.1:5000`.
    pub fn url(&self) -> String {
        format!("http://{}", self.host())
    }

    /// `127.0.0.1:5000`, as it begins an image's name.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_registry_starts_and_listens() {
        let registry = Registry::start().unwrap();
        assert!(listens(registry.port));
        assert_eq!(registry.url(), format!("http://127.0.0.1:{}", registry.port));
    }
}
