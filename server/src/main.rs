//! `pulp`: every role of the server, all of them in one process, and the demo.

mod demo;
mod manage_db;
mod metrics;
mod plugins;
mod roles;
mod services;
mod signing_key;
mod sole;
mod standalone;
mod tokens;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use pulp_runtime::config::Config;

/// Syncs, imports, versions, publishes, exports and serves container images.
#[derive(Debug, Parser)]
#[command(name = "pulp", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run every role in one process: SQLite, an in-process broker, a local directory
    Standalone(standalone::Options),
    /// Show the whole way of an image, from a saved tar to a pull, in a temporary folder
    Demo(demo::Options),
    /// Bring the database to this release's schema, and make the first user
    ManageDb(manage_db::Options),
    /// Make the key that signs exports, if there is none, and print its public key
    SigningKey(signing_key::Options),
    /// Serve the REST API
    Api(RoleOptions),
    /// Lock repositories and grant tasks; one of these leads, the others stand by
    ResourceManager(RoleOptions),
    /// Run tasks
    Worker(RoleOptions),
    /// Fire schedules and do the periodic duties
    Scheduler(RoleOptions),
    /// Serve what was published to docker, podman and the like
    Crane(RoleOptions),
}

/// Options of every role.
#[derive(Debug, Args)]
struct RoleOptions {
    /// Configuration file (TOML); variables PULP_SECTION_KEY win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // One TLS provider for everything in the process. A second call fails, and there is none.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("pulp: can't start: {e}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(run(cli.command));
    runtime.block_on(pulp_runtime::export::end());
    // A blocking call that hangs must not hold up the exit.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(e) => {
            eprintln!("pulp: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Standalone(options) => standalone::run(options).await,
        Command::Demo(options) => demo::run(options).await,
        Command::ManageDb(options) => manage_db::run(options).await,
        Command::SigningKey(options) => signing_key::run(&options),
        Command::Api(options) => role(roles::Role::Api, &options).await,
        Command::ResourceManager(options) => role(roles::Role::ResourceManager, &options).await,
        Command::Worker(options) => role(roles::Role::Worker, &options).await,
        Command::Scheduler(options) => role(roles::Role::Scheduler, &options).await,
        Command::Crane(options) => crane(&options).await,
    }
}

/// A machine that has the original Crane's file and no file of ours goes on with that.
async fn crane(options: &RoleOptions) -> anyhow::Result<ExitCode> {
    let mut config = Config::load(options.config.as_deref())?;
    let read = match options.config {
        None => pulp_crane::CraneConfig::from_crane_conf(std::env::vars_os()),
        Some(_) => Ok(None),
    };
    if read.as_ref().is_ok_and(|c| c.as_ref().is_some_and(|c| c.debug)) {
        config.log.level = "debug".into();
    }
    pulp_runtime::telemetry::init(&config.log)?;
    pulp_runtime::export::start(&config.tracing, roles::Role::Crane.service())?;
    roles::run_crane(config, read?).await
}

async fn role(role: roles::Role, options: &RoleOptions) -> anyhow::Result<ExitCode> {
    let config = Config::load(options.config.as_deref())?;
    pulp_runtime::telemetry::init(&config.log)?;
    pulp_runtime::export::start(&config.tracing, role.service())?;
    roles::run(role, config).await
}
