//! `pulp manage-db`: the schema and the first user.

use std::{path::PathBuf, process::ExitCode};

use pulp_api::FirstUser;
use pulp_runtime::config::Config;

use crate::services;

/// Login of the first user.
pub(crate) const ADMIN: &str = "admin";

/// Options of `pulp manage-db`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Configuration file (TOML); variables PULP_SECTION_KEY win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Change nothing; exit 1 if there is work to do
    #[arg(long)]
    dry_run: bool,
    /// Password of the first user, if there is none yet; generated and shown once if not given
    #[arg(
        long,
        env = "PULP_ADMIN_PASSWORD",
        hide_env_values = true,
        value_name = "PASSWORD"
    )]
    admin_password: Option<String>,
}

pub(crate) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let config = Config::load(options.config.as_deref())?;
    pulp_runtime::telemetry::init(&config.log)?;
    if options.dry_run
        && let Some(path) = config.database_url().expose().strip_prefix("sqlite:")
        && !std::path::Path::new(path).exists()
    {
        // Opening it would make it.
        println!("the database {path} doesn't exist yet; pulp manage-db makes it");
        return Ok(ExitCode::FAILURE);
    }
    let store = services::open_database(&config).await?.store;
    let pending = store.pending_migrations().await?;
    if options.dry_run {
        if pending.is_empty() {
            println!("the database is up to date");
            return Ok(ExitCode::SUCCESS);
        }
        println!("to be migrated: {}", pending.join(", "));
        return Ok(ExitCode::FAILURE);
    }
    if !pending.is_empty() {
        store.migrate().await?;
        println!("migrated: {}", pending.join(", "));
    }
    let given = options.admin_password.is_some();
    match pulp_api::ensure_first_user(&store, ADMIN, options.admin_password).await? {
        FirstUser::Existing => println!("the database is up to date; users are as they were"),
        FirstUser::Created { .. } if given => println!("user {ADMIN} was made with the password given"),
        FirstUser::Created { password } => {
            println!("user {ADMIN} was made with the password {password}\nIt is shown this once; keep it.");
        }
    }
    store.close().await;
    Ok(ExitCode::SUCCESS)
}
