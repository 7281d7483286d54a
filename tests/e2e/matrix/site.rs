//! Servers of each set-up: plain HTTP, TLS, logins, client certificates.

use std::{
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use pulp_tests::{Pulp, Server, Standalone, wait_for};
use rcgen::{BasicConstraints, CertificateParams, CustomExtension, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use super::images::{self, Kind};
use crate::upstream::Upstream;

/// Names of the repositories: one for everybody, one that is protected.
pub(super) const OPEN: &str = "matrix/open";
pub(super) const SECRET: &str = "matrix/secret";
/// As which the clients log in.
pub(super) const ROBOT: &str = "robot+matrix";

/// A server with all kinds of images, published open and protected, and a Crane with TLS beside its own.
pub(super) struct Site {
    pub(super) server: Standalone,
    pub(super) kinds: Vec<Kind>,
    /// The robot's secret.
    pub(super) secret: String,
    /// Crane with TLS: on an address of this machine that isn't loopback, since docker checks no certificates there.
    pub(super) tls: SocketAddr,
    /// `ca.crt`, and `client.cert` and `client.key` beside it.
    pub(super) trusting: PathBuf,
    pub(super) entitled: PathBuf,
    _crane: Pulp,
    _upstream: Upstream,
}

impl Site {
    pub(super) fn start() -> Result<Self> {
        let (server, upstream) = (Standalone::start()?, Upstream::start()?);
        let kinds = images::make(&upstream, server.folder())?;
        for (repo, name, protected) in [("open", OPEN, false), ("secret", SECRET, true)] {
            fill(&server, &upstream, repo, name, protected)?;
        }
        let robot = server.admin(&["--json", "auth", "robot", "create", "--name=matrix"])?;
        let robot: Value = serde_json::from_str(&robot)?;
        server.admin(&["docker", "repo", "grant", "--repo-id=secret", "--robot=matrix"])?;
        let files = Files::write(server.folder(), own_address())?;
        let (crane, tls) = start_crane(&server, &files)?;
        let site = Self {
            server,
            kinds,
            secret: robot["secret"].as_str().context("no secret")?.to_owned(),
            tls,
            trusting: files.trusting,
            entitled: files.entitled,
            _crane: crane,
            _upstream: upstream,
        };
        Ok(site)
    }

    pub(super) fn plain(&self) -> SocketAddr {
        self.server.crane()
    }
}

/// Syncs everything from the upstream and publishes it.
fn fill(server: &Standalone, upstream: &Upstream, repo: &str, name: &str, protected: bool) -> Result<()> {
    let id = format!("--repo-id={repo}");
    server.admin(&[
        "docker",
        "repo",
        "create",
        &id,
        &format!("--repo-registry-id={name}"),
        &format!("--feed={}", upstream.url()),
        "--upstream-name=up/stream",
        "--auto-publish=false",
        &format!("--protected={protected}"),
    ])?;
    server.admin(&["docker", "repo", "sync", "run", &id])?;
    server.admin(&["docker", "repo", "publish", "run", &id])?;
    Ok(())
}

/// An address of this machine by which it reaches others; loopback if there is none. Nothing is sent.
fn own_address() -> IpAddr {
    let loopback = IpAddr::from([127, 0, 0, 1]);
    let found = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("198.51.100.1:9")?;
        socket.local_addr()
    });
    found.map_or(loopback, |address| address.ip())
}

struct Files {
    address: IpAddr,
    certificate: PathBuf,
    key: PathBuf,
    authority: PathBuf,
    trusting: PathBuf,
    entitled: PathBuf,
}

impl Files {
    fn write(folder: &Path, address: IpAddr) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let authority = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        let sign = |params: &CertificateParams| -> Result<(String, String)> {
            let key = KeyPair::generate()?;
            Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
        };
        let server = sign(&CertificateParams::new([address.to_string()])?)?;
        let mut entitled = CertificateParams::default();
        for (below, text) in [(&[4, 1][..], "order"), (&[2, 1, 1, 6], "/pulp/docker/v2/secret")] {
            let oid: Vec<u64> = [1, 3, 6, 1, 4, 1, 2312, 9].iter().chain(below).copied().collect();
            let der = [&[0x0c, u8::try_from(text.len())?], text.as_bytes()].concat();
            entitled
                .custom_extensions
                .push(CustomExtension::from_oid_content(&oid, der));
        }
        let client = sign(&entitled)?;
        let (trusting, with) = (folder.join("trusting"), folder.join("entitled"));
        for (dir, files) in [
            (&trusting, vec![("ca.crt", &authority)]),
            (
                &with,
                vec![
                    ("ca.crt", &authority),
                    ("client.cert", &client.0),
                    ("client.key", &client.1),
                ],
            ),
        ] {
            fs::create_dir(dir)?;
            for (name, text) in files {
                fs::write(dir.join(name), text)?;
            }
        }
        let file = |name: &str, text: &str| -> Result<PathBuf> {
            let path = folder.join(name);
            fs::write(&path, text)?;
            Ok(path)
        };
        Ok(Self {
            address,
            certificate: file("crane.pem", &server.0)?,
            key: file("crane.key", &server.1)?,
            authority: file("ca.pem", &authority)?,
            trusting,
            entitled: with,
        })
    }
}

/// A Crane over the same files, as one runs it on another machine: with the public key, and the API as its realm.
fn start_crane(server: &Standalone, files: &Files) -> Result<(Pulp, SocketAddr)> {
    let address = SocketAddr::new(files.address, pulp_testkit::free_port()?);
    let data = server.data_dir();
    let config = server.folder().join("tls.toml");
    fs::write(
        &config,
        format!(
            "[server]\ncrane_listen = \"{address}\"\n[crane]\ndata_dir = \"{}\"\n\
             [token]\nrealm = \"http://{}/token\"\npublic_keys = [\"{}\"]\n",
            data.join("published/docker").display(),
            server.api(),
            data.join("token.pub").display(),
        ),
    )?;
    let text = |path: &Path| path.display().to_string();
    let (certificate, key, authority) = (text(&files.certificate), text(&files.key), text(&files.authority));
    let env = [
        ("CRANE_TLS_CERTIFICATE", certificate.as_str()),
        ("CRANE_TLS_KEY", &key),
        ("CRANE_ENTITLEMENTS_CA", &authority),
    ];
    let mut process = Pulp::start(
        "tls",
        server.folder(),
        &["crane", "--config", &text(&config)],
        &env,
    )?;
    wait_for("Crane with TLS", || {
        ensure!(process.is_alive()?, "it ended: {}", process.log());
        Ok(std::net::TcpStream::connect(address).ok().map(drop))
    })?;
    Ok((process, address))
}

/// A directory in which docker's daemon looks for certificates of a registry; gone when dropped.
pub(super) struct DockerCertificates(PathBuf);

impl DockerCertificates {
    pub(super) fn install(registry: SocketAddr, from: &Path) -> Result<Self> {
        let dir = Path::new("/etc/docker/certs.d").join(registry.to_string());
        fs::create_dir_all(&dir)?;
        let installed = Self(dir);
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            fs::copy(entry.path(), installed.0.join(entry.file_name()))?;
        }
        Ok(installed)
    }
}

impl Drop for DockerCertificates {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What clients that pull by hand must see beside: who refers to an image.
pub(super) fn referrers(answer: &Value) -> Vec<Value> {
    let manifests = answer["manifests"].as_array().cloned().unwrap_or_default();
    manifests
        .iter()
        .map(|m| json!([m["digest"], m["artifactType"]]))
        .collect()
}
