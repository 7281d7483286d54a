//! A process with signals and a service manager: the test runs itself again as the role.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{
    os::unix::net::UnixDatagram,
    process::{Child, Command, Stdio},
    time::Duration,
};

use pulp_runtime::{
    Shutdown,
    shutdown::{Drained, notify_ready, notify_status},
};

const LIMIT: Duration = Duration::from_secs(30);

/// What runs in the other process; `PULP_TEST_WORK` says how its work behaves.
#[tokio::test]
#[ignore = "run by the tests below, in a process of its own"]
async fn role() {
    let shutdown = Shutdown::new();
    shutdown.listen().unwrap();
    let stubborn = std::env::var_os("PULP_TEST_WORK").is_some();
    let (soft, hard) = (shutdown.soft().clone(), shutdown.hard().clone());
    shutdown.spawn(async move {
        soft.cancelled().await;
        if stubborn {
            notify_status("soft");
            hard.cancelled().await;
        }
    });
    notify_ready();
    let drained = tokio::time::timeout(LIMIT, shutdown.drain(LIMIT)).await.unwrap();
    assert_eq!(drained, if stubborn { Drained::Forced } else { Drained::Clean });
}

struct Role {
    child: Child,
    manager: UnixDatagram,
    _directory: tempfile::TempDir,
}

impl Role {
    fn start(stubborn: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("notify");
        let manager = UnixDatagram::bind(&socket).unwrap();
        manager.set_read_timeout(Some(LIMIT)).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "role", "--ignored"])
            .env("NOTIFY_SOCKET", &socket);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        if stubborn {
            command.env("PULP_TEST_WORK", "stubborn");
        }
        Self {
            child: command.spawn().unwrap(),
            manager,
            _directory: directory,
        }
    }

    /// Waits until the service manager is told so.
    fn told(&self, what: &str) {
        let mut buffer = [0; 256];
        loop {
            let length = self
                .manager
                .recv(&mut buffer)
                .unwrap_or_else(|e| panic!("never told {what}: {e}"));
            if String::from_utf8_lossy(&buffer[..length])
                .lines()
                .any(|line| line == what)
            {
                return;
            }
        }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([name, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_role_tells_that_it_is_ready_and_ends_in_order_on_sigterm() {
    let mut role = Role::start(false);
    role.told("READY=1");
    role.signal("-TERM");
    role.told("STOPPING=1");
    assert!(role.child.wait().unwrap().success());
}

#[test]
fn a_second_signal_stops_what_runs() {
    let mut role = Role::start(true);
    role.told("READY=1");
    role.signal("-INT");
    role.told("STATUS=soft");
    role.signal("-TERM");
    assert!(role.child.wait().unwrap().success());
}
