//! Real servers for tests that cross crates: the `pulp` binary as its users start it, on free ports and in a
//! temporary folder, either standalone or as separate processes over PostgreSQL and RabbitMQ.
//!
//! Everything here waits for events, never for a time, and gives up after [`PATIENCE`].
#![allow(clippy::missing_panics_doc)]

mod cluster;
pub mod http;
pub mod images;
pub mod network;
mod process;
pub mod saved;
mod server;
mod standalone;
pub mod volume;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

pub use self::{
    cluster::{Cluster, ClusterOptions},
    process::{Pulp, binary},
    server::{Pulled, Server, spawned},
    standalone::Standalone,
};

/// How long anything may take on a busy machine before a test gives up.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The password of the user `admin` in every test.
pub const PASSWORD: &str = "a password for tests";
/// Every file below a directory, sorted.
pub fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // What vanishes while it is listed is not there.
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files_below(&entry.path())),
            Ok(_) => found.push(entry.path()),
            Err(_) => {}
        }
    }
    found.sort();
    found
}
/// Asks again and again until there is an answer.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        ensure!(Instant::now() < end, "{what} did not come within {PATIENCE:?}");
        // The only way to wait for another process that tells nothing: ask again.
        #[allow(clippy::disallowed_methods)]
        std::thread::sleep(Duration::from_millis(50));
    }
}
/// Runs a future to its end from code that blocks.
pub fn on_own_runtime<T: Send + 'static>(run: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let thread = std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(run)
    });
    thread.join().map_err(|_| anyhow::anyhow!("the call panicked"))?
}

/// Where the shared fixtures of the project's developers lie, if they are here.
pub fn shared_fixtures() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures");
    if path.is_dir() {
        return Some(path);
    }
    println!("../shared/fixtures is absent: what runs on it as well is passed over");
    None
}
