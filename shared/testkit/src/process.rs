//! Child processes that never outlive their owner, and how to find the programs.

// A server has no event for "ready" or "gone" that one could wait for without unsafe code: they are polled.
#![allow(clippy::disallowed_methods)]

use std::{
    ffi::OsStr,
    fs,
    io::{Read, Seek, SeekFrom},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// A port of 127.0.0.1 that was free a moment ago.
///
/// # Errors
///
/// When the system has none.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free loopback port")?;
    Ok(listener.local_addr()?.port())
}

/// Finds a program in the usual places; says which Debian package has it when it isn't there.
pub(crate) fn program(name: &str, more: &[&str], package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(
            more.iter()
                .copied()
                .chain(["/usr/sbin", "/sbin"])
                .map(PathBuf::from),
        )
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .with_context(|| {
            format!("`{name}` is not installed; on Debian: apt-get install --no-install-recommends {package}")
        })
}

/// A command that runs as `user` when we are root (servers refuse to run as root), else as ourselves.
pub(crate) fn as_user(user: Option<&str>, program: impl AsRef<OsStr>) -> Command {
    match user {
        Some(user) if is_root() => {
            let mut command = Command::new("setpriv");
            command
                .args(["--reuid", user, "--regid", user, "--clear-groups", "--"])
                .arg(program);
            command
        }
        _ => Command::new(program),
    }
}

/// Whether this process may become another user.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

/// A temporary folder that `user` owns. Under `/tmp` whatever `TMPDIR` says: socket paths must stay short,
/// and another user must be able to come here.
pub(crate) fn folder(prefix: &str, user: Option<&str>) -> Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new().prefix(prefix).tempdir_in("/tmp")?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700))?;
    if let Some(user) = user
        && is_root()
    {
        run(Command::new("chown")
            .arg("-R")
            .arg(format!("{user}:"))
            .arg(folder.path()))?;
    }
    Ok(folder)
}

/// Runs to the end; gives what it printed, or an error with its last words.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("can't run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A server in a process group of its own, killed as a whole when dropped.
///
/// It also ends, and its folder goes, when this process ends without dropping anything (a static, an abort,
/// `kill -9`): a watchdog holds the other end of a pipe and acts when that closes.
#[derive(Debug)]
pub(crate) struct Server {
    name: &'static str,
    child: Child,
    watchdog: Child,
    log: PathBuf,
}

/// Waits for the end of its input; then kills the group `$1` and removes the folder `$2`.
const WATCHDOG: &str =
    r#"trap '' INT TERM HUP; read -r _; kill -s KILL -- "-$1" 2>/dev/null; sleep 0.2; rm -rf -- "$2""#;

impl Server {
    /// Starts it with its data in `folder`; what it prints goes to `log` in there.
    pub(crate) fn start(name: &'static str, command: &mut Command, folder: &Path) -> Result<Self> {
        let log = folder.join("log");
        let file = fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("can't start {name}: {command:?}"))?;
        let watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog", &child.id().to_string()])
            .arg(folder)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("can't start sh")?;
        Ok(Self {
            name,
            child,
            watchdog,
            log,
        })
    }

    /// The process, which leads its group.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `ready` says so; an error when the server ends before, or takes too long.
    pub(crate) fn wait_until(&mut self, patience: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + patience;
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "{} ended while starting: {status}\n{}",
                    self.name,
                    self.last_words()
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "{} is not ready after {patience:?}\n{}",
                    self.name,
                    self.last_words()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Sends a signal (`TERM`, `KILL`, `STOP`, `CONT`, `QUIT`) to the process alone.
    pub(crate) fn signal(&self, signal: &str) -> Result<()> {
        run(Command::new("kill")
            .arg(format!("-{signal}"))
            .arg(self.pid().to_string()))?;
        Ok(())
    }

    /// Waits for its end after a signal; kills the whole group when it takes longer than `patience`.
    pub(crate) fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                self.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends the whole group at once, as a power cut would.
    pub(crate) fn kill(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let pid = self.pid();
        // Its children may have groups of their own, as PostgreSQL's sessions have, which would go on for a moment.
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let _ = Command::new("kill")
            .args(["-KILL", "--", &format!("-{pid}")])
            .args(children.split_whitespace())
            .stderr(Stdio::null())
            .status();
        let _ = self.child.wait();
    }

    fn last_words(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = fs::File::open(&self.log) {
            let length = file.metadata().map_or(0, |m| m.len());
            let _ = file.seek(SeekFrom::Start(length.saturating_sub(4000)));
            let mut bytes = Vec::new();
            let _ = file.read_to_end(&mut bytes);
            text = String::from_utf8_lossy(&bytes).into_owned();
        }
        text
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // First the watchdog, which must not kill a group whose number is somebody else's by then.
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
        self.kill();
    }
}

/// Whether something listens on the loopback port.
pub(crate) fn listens(port: u16) -> bool {
    TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), Duration::from_millis(500)).is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sleeper(folder: &Path) -> Server {
        // The shell and its child are the group.
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000; true"]);
        Server::start("sleeper", &mut command, folder).unwrap()
    }

    /// Whether a process of the group still runs. Those that nobody has reaped yet don't count.
    fn lives(group: u32) -> bool {
        let mine = |stat: &str| {
            let fields: Vec<&str> = stat
                .rsplit_once(") ")
                .map(|(_, rest)| rest.split(' ').collect())
                .unwrap_or_default();
            fields.first() != Some(&"Z") && fields.get(2) == Some(&group.to_string().as_str())
        };
        fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok())
            .any(|stat| mine(&stat))
    }

    fn until(what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_dropped_server_takes_its_children_with_it() {
        let folder = folder("pulp-test-process-", None).unwrap();
        let server = sleeper(folder.path());
        let group = server.pid();
        assert!(lives(group));
        drop(server);
        until("the group is gone", || !lives(group));
        assert!(folder.path().exists());
    }

    #[test]
    fn a_server_ends_and_its_folder_goes_when_its_owner_dies_without_a_word() {
        let folder = folder("pulp-test-process-", None).unwrap();
        let mut server = sleeper(folder.path());
        let group = server.pid();
        // What the system does to the pipe of a process that was killed.
        drop(server.watchdog.stdin.take());
        until("the group is gone", || !lives(group));
        until("the folder is gone", || !folder.path().exists());
    }

    #[test]
    fn a_program_that_is_missing_names_its_package() {
        let error = program("no-such-program", &[], "some-package").unwrap_err();
        assert!(error.to_string().contains("apt-get install"), "{error}");
        assert!(error.to_string().contains("some-package"), "{error}");
    }
}
