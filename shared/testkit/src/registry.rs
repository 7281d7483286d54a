//! Private registries: the reference implementation, from Debian's `docker-registry`.

use std::{fmt::Write as _, fs, path::Path, process::Command, time::Duration};

use anyhow::Result;
use tempfile::TempDir;

use crate::process::{Server, folder, free_port, listens, program};

/// A registry on a free loopback port, with deletion allowed, and no authentication unless asked for.
#[derive(Debug)]
pub struct Registry {
    port: u16,
    scheme: &'static str,
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
        Self::guarded(&Guard::default())
    }

    /// Starts an empty one that wants to see more than a request.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn guarded(guard: &Guard<'_>) -> Result<Self> {
        let program = program("docker-registry", &[], "docker-registry")?;
        let folder = folder("pulp-test-registry-", None)?;
        let port = free_port()?;
        let configuration = folder.path().join("config.yml");
        let (mut tls, mut auth) = (String::new(), String::new());
        if let Some((certificate, key)) = guard.certificate {
            let certificate = written(folder.path(), "certificate.pem", certificate)?;
            let key = written(folder.path(), "key.pem", key)?;
            tls = format!(", tls: {{certificate: {certificate}, key: {key}");
            if let Some(authority) = guard.clients_of {
                let authority = written(folder.path(), "clients.pem", authority)?;
                let _ = write!(tls, ", clientcas: [{authority}]");
            }
            tls.push('}');
        }
        if let Some(line) = guard.htpasswd {
            let file = written(folder.path(), "htpasswd", line)?;
            auth = format!("auth: {{htpasswd: {{realm: test, path: {file}}}}}\n");
        }
        fs::write(
            &configuration,
            format!(
                "version: 0.1\n\
                 log: {{level: warn, accesslog: {{disabled: true}}}}\n\
                 storage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\n\
                 http: {{addr: '127.0.0.1:{port}'{tls}}}\n{auth}",
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
            scheme: if guard.certificate.is_some() {
                "https"
            } else {
                "http"
            },
            _server: server,
            _folder: folder,
        })
    }

    /// `http://127.0.0.1:5000`.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.host())
    }

    /// `127.0.0.1:5000`, as it begins an image's name.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

/// What a registry wants to see.
#[derive(Debug, Clone, Copy, Default)]
pub struct Guard<'a> {
    /// PEM texts of its certificate and key; with them it speaks TLS only.
    pub certificate: Option<(&'a str, &'a str)>,
    /// PEM text of the authority that must have signed its clients' certificates.
    pub clients_of: Option<&'a str>,
    /// `login:bcrypt hash` of the one account.
    pub htpasswd: Option<&'a str>,
}

/// Writes a file for the registry and gives its path.
fn written(folder: &Path, name: &str, text: &str) -> Result<String> {
    let path = folder.join(name);
    fs::write(&path, format!("{text}\n"))?;
    Ok(path.display().to_string())
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
