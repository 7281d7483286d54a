//! The clients that people pull with: docker and containerd (with daemons of their own), podman and skopeo.

use std::{
    fs,
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::process::{Server, folder, is_root, program, run};

/// A Docker daemon that nobody else sees: own images, own socket, no network for containers.
/// It needs root, and it pulls over plain HTTP from loopback addresses.
#[derive(Debug)]
pub struct Dockerd {
    host: String,
    server: Option<Server>,
    folder: TempDir,
}

impl Dockerd {
    /// Starts one. `insecure_registries` (`host:port`) may be pulled from without TLS, besides 127.0.0.0/8,
    /// which always may.
    ///
    /// # Errors
    ///
    /// When it is not installed, we are not root, or it doesn't start; the text says why.
    pub fn start(insecure_registries: &[&str]) -> Result<Self> {
        let daemon = program("dockerd", &[], "docker.io")?;
        program("docker", &[], "docker.io")?;
        anyhow::ensure!(
            is_root(),
            "dockerd needs root: run this test as root, or use podman instead"
        );
        let folder = folder("pulp-test-docker-", None)?;
        let host = format!("unix://{}", folder.path().join("docker.sock").display());
        let mut failures = String::new();
        // overlay2 doesn't work on top of every file system (inside many containers, for one); vfs does.
        for driver in ["overlay2", "vfs"] {
            let path = |name: &str| folder.path().join(name);
            fs::write(path("daemon.json"), "{}")?;
            let mut command = Command::new(&daemon);
            command
                .arg("--config-file")
                .arg(path("daemon.json"))
                .arg("--data-root")
                .arg(path(driver))
                .arg("--exec-root")
                .arg(path("exec"))
                .arg("--pidfile")
                .arg(path("pid"))
                .args(["--host", &host, "--bridge=none", "--iptables=false"])
                .args(["--storage-driver", driver, "--log-level", "warn"]);
            for registry in insecure_registries {
                command.args(["--insecure-registry", registry]);
            }
            let mut docker = Self {
                host: host.clone(),
                server: Some(Server::start("dockerd", &mut command, folder.path())?),
                folder: tempfile::Builder::new()
                    .prefix("pulp-test-docker-cli-")
                    .tempdir_in("/tmp")?,
            };
            let started = docker.wait();
            match started {
                Ok(()) => {
                    docker.folder = folder;
                    return Ok(docker);
                }
                Err(error) => failures = format!("{failures}\nwith {driver}: {error:#}"),
            }
        }
        anyhow::bail!("dockerd doesn't start{failures}")
    }

    fn wait(&mut self) -> Result<()> {
        let host = self.host.clone();
        let server = self.server.as_mut().context("no daemon")?;
        server.wait_until(Duration::from_mins(1), || {
            run(Command::new("docker").args(["--host", &host, "version"])).is_ok()
        })
    }

    /// A `docker` command line that talks to this daemon, with a configuration of its own.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command
            .arg("--config")
            .arg(self.folder.path().join("client"))
            .args(["--host", &self.host])
            .args(arguments);
        command
    }

    /// Runs `docker`; gives what it printed.
    ///
    /// # Errors
    ///
    /// With its last words, when it fails.
    pub fn docker(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.command(arguments))
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // In order, so that it takes down its containerd and its mounts.
            if server.signal("TERM").is_ok() {
                let _ = server.wait(Duration::from_secs(20));
            }
        }
        // A mount that outlived a killed daemon keeps the folder from being removed.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let ours = self.folder.path().display().to_string();
        for target in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
            if target.starts_with(&ours) {
                let _ = Command::new("umount").args(["--lazy", target]).status();
            }
        }
    }
}

/// A containerd that nobody else sees. It needs root.
#[derive(Debug)]
pub struct Containerd {
    socket: String,
    // Before its folder, which must not go while it runs.
    _server: Server,
    _folder: TempDir,
}

impl Containerd {
    /// Starts one.
    ///
    /// # Errors
    ///
    /// When it is not installed, we are not root, or it doesn't start; the text says why.
    pub fn start() -> Result<Self> {
        let daemon = program("containerd", &[], "containerd")?;
        program("ctr", &[], "containerd")?;
        anyhow::ensure!(
            is_root(),
            "containerd needs root: run this test as root, or use podman instead"
        );
        let folder = folder("pulp-test-containerd-", None)?;
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (socket, config) = (path("socket"), path("config.toml"));
        fs::write(
            &config,
            format!(
                "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
                 [grpc]\naddress = {socket:?}\n",
                path("root"),
                path("state")
            ),
        )?;
        let mut command = Command::new(daemon);
        command.args(["--config", &config, "--log-level", "warn"]);
        let mut server = Server::start("containerd", &mut command, folder.path())?;
        server.wait_until(Duration::from_mins(1), || {
            run(Command::new("ctr").args(["--address", &socket, "version"])).is_ok()
        })?;
        Ok(Self {
            socket,
            _server: server,
            _folder: folder,
        })
    }

    /// Runs `ctr`; gives what it printed.
    ///
    /// # Errors
    ///
    /// With its last words, when it fails.
    pub fn ctr(&self, arguments: &[&str]) -> Result<String> {
        run(Command::new("ctr")
            .args(["--address", &self.socket, "--namespace", "test"])
            .args(arguments))
    }

    /// Pulls over plain HTTP and unpacks, for this machine's platform.
    ///
    /// # Errors
    ///
    /// With its last words, when it fails.
    pub fn pull(&self, image: &str) -> Result<String> {
        self.pull_with(&["--plain-http"], image)
    }

    /// Pulls with options of `ctr images pull` and unpacks, for this machine's platform.
    ///
    /// # Errors
    ///
    /// With its last words, when it fails.
    pub fn pull_with(&self, options: &[&str], image: &str) -> Result<String> {
        // overlayfs doesn't work on top of every file system; plain copies do.
        let fixed = ["images", "pull", "--snapshotter", "native", "--print-chainid"];
        self.ctr(&[&fixed[..], options, &[image]].concat())
    }
}

/// Podman with a storage of its own.
#[derive(Debug)]
pub struct Podman {
    folder: TempDir,
}

impl Podman {
    /// Prepares an empty storage.
    ///
    /// # Errors
    ///
    /// When podman is not installed.
    pub fn new() -> Result<Self> {
        program("podman", &[], "podman")?;
        let folder = folder("pulp-test-podman-", None)?;
        fs::write(
            folder.path().join("policy.json"),
            r#"{"default":[{"type":"insecureAcceptAnything"}]}"#,
        )?;
        fs::write(folder.path().join("registries.conf"), "")?;
        Ok(Self { folder })
    }

    /// A `podman` command line. For pulls and pushes over plain HTTP add `--tls-verify=false` after the verb.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let path = |name: &str| self.folder.path().join(name);
        let mut command = Command::new("podman");
        command
            .env("CONTAINERS_REGISTRIES_CONF", path("registries.conf"))
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .arg("--root")
            .arg(path("storage"))
            .arg("--runroot")
            .arg(path("run"))
            // Else all podmans share one, and the end of one takes it from the others.
            .arg("--tmpdir")
            .arg(path("tmp"))
            .args([
                "--storage-driver",
                "vfs",
                "--cgroup-manager",
                "cgroupfs",
                "--events-backend",
                "none",
            ])
            .args(arguments);
        command
    }

    /// Runs `podman`; gives what it printed.
    ///
    /// # Errors
    ///
    /// With its last words, when it fails.
    pub fn podman(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.command(arguments))
    }

    /// Pulls over plain HTTP; gives the image's id.
    ///
    /// # Errors
    ///
    /// With podman's last words, when it fails.
    pub fn pull(&self, image: &str) -> Result<String> {
        self.pull_with(&["--tls-verify=false"], image)
    }

    /// Pulls with options of `podman pull`; gives the image's id.
    ///
    /// # Errors
    ///
    /// With podman's last words, when it fails.
    pub fn pull_with(&self, options: &[&str], image: &str) -> Result<String> {
        let policy = self.folder.path().join("policy.json");
        let policy = policy.display().to_string();
        let arguments = [
            &["pull", "--quiet", "--signature-policy", &policy],
            options,
            &[image],
        ];
        Ok(self.podman(&arguments.concat())?.trim().to_owned())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Rootless storage holds files of mapped users, which only podman can remove.
        let _ = self.command(&["system", "reset", "--force"]).output();
    }
}

/// Runs `skopeo`; gives what it printed. For plain HTTP add `--tls-verify=false` (or `--src-tls-verify`,
/// `--dest-tls-verify`) after the verb.
///
/// # Errors
///
/// When it is not installed, or with its last words when it fails.
pub fn skopeo(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program("skopeo", &[], "skopeo")?);
    run(command.arg("--insecure-policy").args(arguments))
}

/// As [`skopeo`], for those who want the failure.
///
/// # Errors
///
/// When it is not installed.
pub fn skopeo_output(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(program("skopeo", &[], "skopeo")?);
    Ok(command.arg("--insecure-policy").args(arguments).output()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Registry;

    /// An OCI layout of one empty layer-less image, made by hand: the smallest thing that can be pushed.
    fn image(folder: &std::path::Path) {
        let tar = folder.join("rootfs.tar");
        fs::create_dir(folder.join("rootfs")).unwrap();
        fs::write(folder.join("rootfs/hello"), "hello\n").unwrap();
        run(Command::new("tar")
            .arg("-cf")
            .arg(&tar)
            .arg("-C")
            .arg(folder.join("rootfs"))
            .arg("hello"))
        .unwrap();
    }

    #[test]
    fn an_image_goes_from_docker_through_a_registry_to_containerd_podman_and_skopeo() {
        if !is_root() {
            println!("skipped: dockerd needs root");
            return;
        }
        let registry = Registry::start().unwrap();
        let docker = Dockerd::start(&[]).unwrap();
        let scratch = folder("pulp-test-image-", None).unwrap();
        image(scratch.path());
        let name = format!("{}/hello:1", registry.host());
        let tar = scratch.path().join("rootfs.tar").display().to_string();
        docker.docker(&["import", &tar, &name]).unwrap();
        docker.docker(&["push", &name]).unwrap();
        let inspected = skopeo(&["inspect", "--tls-verify=false", &format!("docker://{name}")]).unwrap();
        assert!(inspected.contains("\"Layers\""), "{inspected}");
        let containerd = Containerd::start().unwrap();
        containerd.pull(&name).unwrap();
        assert!(
            containerd
                .ctr(&["images", "ls", "--quiet"])
                .unwrap()
                .contains(&name)
        );
        let podman = Podman::new().unwrap();
        let id = podman.pull(&name).unwrap();
        assert!(docker.docker(&["inspect", &name]).unwrap().contains(&id), "{id}");
        assert!(
            !skopeo_output(&["inspect", "docker://127.0.0.1:1/nothing"])
                .unwrap()
                .status
                .success()
        );
    }
}
