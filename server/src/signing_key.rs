//! `pulp signing-key`: the key that signs exports for closed networks.

use std::{path::PathBuf, process::ExitCode};

use pulp_runtime::config::{Config, Sources};
use pulp_transfer::SigningKey;

/// Options of `pulp signing-key`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Configuration file (TOML); variables PULP_SECTION_KEY win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data directory of `pulp standalone`
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    data_dir: Option<PathBuf>,
}

/// Makes an Ed25519 key if there is none, and prints the public key, for the trusted keys of the other side.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let config = match &options.data_dir {
        Some(data_dir) => Sources::new()
            .standalone(data_dir)
            .environment(std::env::vars_os())
            .build()?,
        None => Config::load(options.config.as_deref())?,
    };
    let path = config.export_signing_key();
    let key = if path.exists() {
        SigningKey::read(&path, config.transfer.signing_key_password_file.as_deref())?
    } else {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let key = pulp_transfer::generate_key(&path)?;
        eprintln!("made {}; its public key:", path.display());
        key
    };
    print!("{}", key.public_pem());
    Ok(ExitCode::SUCCESS)
}
