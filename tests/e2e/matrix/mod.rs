//! Every client against every media type in every set-up: plain HTTP, TLS, logins, client certificates.
//!
//! One test a set-up. A client that knows nothing of a media type must fail by itself, and not for want of an answer;
//! what each of them takes stands in [`images`].

mod images;
mod site;

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use images::Kind;
use pulp_model::Digest;
use pulp_testkit::{Containerd, Dockerd, Podman, skopeo};
use pulp_tests::{Server as _, http};
use serde_json::{Value, json};
use site::{DockerCertificates, OPEN, ROBOT, SECRET, Site};

/// How clients of a set-up come to the registry.
struct SetUp {
    host: std::net::SocketAddr,
    name: &'static str,
    tls: bool,
    /// Holds `ca.crt`, and perhaps a client's certificate.
    certificates: Option<std::path::PathBuf>,
    secret: Option<String>,
}

impl SetUp {
    fn image(&self, kind: &Kind) -> String {
        format!("{}/{}:{}", self.host, self.name, kind.tag)
    }

    /// Options of podman and skopeo.
    fn options(&self, prefix: &str, auth_file: &Path) -> Vec<String> {
        let mut options = Vec::new();
        if !self.tls {
            options.push(format!("--{prefix}tls-verify=false"));
        }
        if let Some(dir) = &self.certificates {
            options.push(format!("--{prefix}cert-dir={}", dir.display()));
        }
        if self.secret.is_some() {
            options.push(format!(
                "--{}={}",
                if prefix.is_empty() {
                    "authfile"
                } else {
                    "src-authfile"
                },
                auth_file.display()
            ));
        }
        options
    }
}

fn strs(options: &[String]) -> Vec<&str> {
    options.iter().map(String::as_str).collect()
}

struct Clients {
    docker: Option<Dockerd>,
    containerd: Option<Containerd>,
    podman: Podman,
    scratch: tempfile::TempDir,
}

impl Clients {
    fn start() -> Result<Self> {
        Ok(Self {
            docker: crate::clients::unless_root_is_needed(Dockerd::start(&[]))?,
            containerd: crate::clients::unless_root_is_needed(Containerd::start())?,
            podman: Podman::new()?,
            scratch: tempfile::tempdir()?,
        })
    }

    fn auth_file(&self) -> std::path::PathBuf {
        self.scratch.path().join("auth.json")
    }

    /// Every client logs in by its own command; containerd has none.
    fn log_in(&self, setup: &SetUp) -> Result<()> {
        let Some(secret) = &setup.secret else {
            return Ok(());
        };
        let host = setup.host.to_string();
        let credentials = ["-u", ROBOT, "-p", secret.as_str()];
        if let Some(docker) = &self.docker {
            docker.docker(&[&["login"], &credentials[..], &[&host]].concat())?;
            let wrong = docker.docker(&["login", "-u", ROBOT, "-p", "wrong", &host]);
            let told = format!("{:#}", wrong.err().context("a wrong secret logs in")?);
            ensure!(told.contains("incorrect username or password"), "{told}");
            docker.docker(&[&["login"], &credentials[..], &[&host]].concat())?;
        }
        let mut options = vec![format!("--authfile={}", self.auth_file().display())];
        if !setup.tls {
            options.push("--tls-verify=false".to_owned());
        }
        if let Some(dir) = &setup.certificates {
            options.push(format!("--cert-dir={}", dir.display()));
        }
        for login in [true, false] {
            let words = [&["login"], &credentials[..], &strs(&options), &[&host]].concat();
            if login {
                self.podman.podman(&words)?;
            } else {
                skopeo_plain(&words)?;
            }
        }
        Ok(())
    }

    /// Pulls all kinds by all clients; gives what went wrong.
    fn pull_all(&self, setup: &SetUp, kinds: &[Kind]) -> Vec<String> {
        let mut failures = Vec::new();
        for kind in kinds {
            for (client, takes, pulled) in [
                ("docker", kind.takers.docker, self.docker(setup, kind)),
                ("podman", kind.takers.podman, Some(self.podman(setup, kind))),
                ("skopeo", kind.takers.skopeo, Some(self.skopeo(setup, kind))),
                ("containerd", kind.takers.containerd, self.containerd(setup, kind)),
            ] {
                match (pulled, takes) {
                    (Some(Err(error)), true) => failures.push(format!("{client} {}: {error:#}", kind.tag)),
                    (Some(Err(error)), false) if told_no(&format!("{error:#}")) => {
                        failures.push(format!("{client} {} was refused: {error:#}", kind.tag));
                    }
                    _ => {}
                }
            }
        }
        failures
    }

    fn docker(&self, setup: &SetUp, kind: &Kind) -> Option<Result<()>> {
        let docker = self.docker.as_ref()?;
        let image = setup.image(kind);
        let pull = || {
            docker.docker(&["pull", "--quiet", &image])?;
            let inspected: Value = serde_json::from_str(&docker.docker(&["image", "inspect", &image])?)?;
            let id = inspected[0]["Id"].as_str().context("no Id")?.to_owned();
            // The next pull must fetch every layer again.
            docker.docker(&["image", "rm", "--force", &id])?;
            let digests = inspected[0]["RepoDigests"].to_string();
            ensure!(
                digests.contains(&kind.root.to_string()),
                "{digests}, not {}",
                kind.root
            );
            same_config(kind, &id)
        };
        Some(pull())
    }

    fn podman(&self, setup: &SetUp, kind: &Kind) -> Result<()> {
        let image = setup.image(kind);
        let options = setup.options("", &self.auth_file());
        let id = self.podman.pull_with(&strs(&options), &image)?;
        self.podman.podman(&["image", "rm", "--force", &id])?;
        same_config(kind, &format!("sha256:{id}"))
    }

    /// Copies everything verbatim.
    fn skopeo(&self, setup: &SetUp, kind: &Kind) -> Result<()> {
        let dir = tempfile::tempdir_in(self.scratch.path())?;
        let (from, to) = (
            format!("docker://{}", setup.image(kind)),
            format!("dir:{}", dir.path().display()),
        );
        let options = setup.options("src-", &self.auth_file());
        let words = ["copy", "--quiet", "--all", "--preserve-digests"];
        skopeo(&[&words[..], &strs(&options), &[&from, &to]].concat())?;
        let manifest = dir.path().join("manifest.json").display().to_string();
        let digest = skopeo_plain(&["manifest-digest", &manifest])?;
        ensure!(
            digest.trim() == kind.root.to_string(),
            "{digest}, not {}",
            kind.root
        );
        for entry in std::fs::read_dir(dir.path())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.len() == 64 {
                let bytes = std::fs::read(entry.path())?;
                ensure!(Digest::sha256(bytes).hex() == name, "{name} has another digest");
            }
        }
        Ok(())
    }

    fn containerd(&self, setup: &SetUp, kind: &Kind) -> Option<Result<()>> {
        let containerd = self.containerd.as_ref()?;
        let image = setup.image(kind);
        let mut options = Vec::new();
        if !setup.tls {
            options.push("--plain-http".to_owned());
        }
        if let Some(dir) = &setup.certificates {
            let file = |name: &str| dir.join(name).display().to_string();
            options.push(format!("--tlscacert={}", file("ca.crt")));
            if dir.join("client.cert").exists() {
                options.push(format!("--tlscert={}", file("client.cert")));
                options.push(format!("--tlskey={}", file("client.key")));
            }
        }
        if let Some(secret) = &setup.secret {
            options.push(format!("--user={ROBOT}:{secret}"));
        }
        let pull = || {
            containerd.pull_with(&strs(&options), &image)?;
            let images = containerd.ctr(&["images", "ls"])?;
            containerd.ctr(&["images", "rm", "--sync", &image])?;
            let line = images.lines().find(|l| l.starts_with(&format!("{image} ")));
            // Of schema 1 containerd makes another manifest.
            let same = kind.config.is_none() || line.is_some_and(|l| l.contains(&kind.root.to_string()));
            ensure!(line.is_some() && same, "not {}\n{images}", kind.root);
            Ok(())
        };
        Some(pull())
    }
}

/// skopeo without a policy, for commands that take none.
fn skopeo_plain(arguments: &[&str]) -> Result<String> {
    let output = std::process::Command::new("skopeo").args(arguments).output()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.success(),
        "skopeo {}: {told}",
        arguments.first().copied().unwrap_or_default()
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn same_config(kind: &Kind, id: &str) -> Result<()> {
    if let Some(config) = &kind.config {
        ensure!(config.to_string() == id, "got image {id}, not {config}");
    }
    Ok(())
}

/// Whether a client failed because the registry refused it. The port and digests in its words may hold any number.
fn told_no(error: &str) -> bool {
    [
        "denied",
        "unauthorized",
        "authentication required",
        " 401",
        "certificate",
        "connection refused",
    ]
    .iter()
    .any(|word| error.to_lowercase().contains(word))
}

/// Runs a set-up: log in, pull everything.
fn run(site: &Site, clients: &Clients, setup: &SetUp) -> Result<()> {
    let _certificates = match (&setup.certificates, &clients.docker) {
        (Some(dir), Some(_)) => Some(DockerCertificates::install(setup.host, dir)?),
        _ => None,
    };
    clients.log_in(setup)?;
    let failures = clients.pull_all(setup, &site.kinds);
    ensure!(failures.is_empty(), "{}", failures.join("\n\n"));
    Ok(())
}

#[test]
fn every_media_type_is_pulled_by_every_client_over_plain_http() -> Result<()> {
    let (site, clients) = (Site::start()?, Clients::start()?);
    let setup = SetUp {
        host: site.plain(),
        name: OPEN,
        tls: false,
        certificates: None,
        secret: None,
    };
    run(&site, &clients, &setup)?;
    // What refers to an image is found by its digest.
    let oci = site.kinds.iter().find(|k| k.tag == "oci").unwrap();
    let artifact = site.kinds.iter().find(|k| k.tag == "artifact").unwrap();
    let found = http::get(&format!(
        "http://{}/v2/{OPEN}/referrers/{}",
        site.plain(),
        oci.root
    ))?;
    assert_eq!(
        site::referrers(&found.json()?),
        [json!([artifact.root, "application/vnd.example.sbom"])]
    );
    // Beside it lies a repository that these clients don't get, nor hear of.
    let secret = SetUp {
        name: SECRET,
        ..setup
    };
    for kind in site.kinds.iter().filter(|k| k.tag == "s2") {
        for pulled in [
            clients.docker(&secret, kind),
            Some(clients.podman(&secret, kind)),
            Some(clients.skopeo(&secret, kind)),
            clients.containerd(&secret, kind),
        ] {
            let told = pulled.map(|p| format!("{:#}", p.unwrap_err()).to_lowercase());
            assert!(
                told.as_deref().is_none_or(|t| t.contains("denied")
                    || t.contains("authoriz")
                    || t.contains("insufficient_scope")),
                "{told:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn every_media_type_is_pulled_by_every_client_over_tls() -> Result<()> {
    let (site, clients) = (Site::start()?, Clients::start()?);
    let setup = SetUp {
        host: site.tls,
        name: OPEN,
        tls: true,
        certificates: Some(site.trusting.clone()),
        secret: None,
    };
    run(&site, &clients, &setup)
}

#[test]
fn every_media_type_is_pulled_by_every_client_that_has_logged_in() -> Result<()> {
    let (site, clients) = (Site::start()?, Clients::start()?);
    // Where Crane gives tokens out itself, and where the API does.
    for (host, tls) in [(site.plain(), false), (site.tls, true)] {
        let setup = SetUp {
            host,
            name: SECRET,
            tls,
            certificates: tls.then(|| site.trusting.clone()),
            secret: Some(site.secret.clone()),
        };
        run(&site, &clients, &setup).with_context(|| format!("tls: {tls}"))?;
    }
    // A right that is taken away ends with the next token.
    site.server
        .admin(&["docker", "repo", "revoke", "--repo-id=secret", "--robot=matrix"])?;
    let setup = SetUp {
        host: site.plain(),
        name: SECRET,
        tls: false,
        certificates: None,
        secret: Some(site.secret.clone()),
    };
    let kind = site.kinds.iter().find(|k| k.tag == "s2").unwrap();
    for pulled in [clients.docker(&setup, kind), Some(clients.podman(&setup, kind))] {
        assert!(pulled.is_none_or(|p| p.is_err()));
    }
    Ok(())
}

#[test]
fn every_media_type_is_pulled_by_every_client_with_a_certificate_that_entitles() -> Result<()> {
    let (site, clients) = (Site::start()?, Clients::start()?);
    let setup = SetUp {
        host: site.tls,
        name: SECRET,
        tls: true,
        certificates: Some(site.entitled.clone()),
        secret: None,
    };
    run(&site, &clients, &setup)
}
