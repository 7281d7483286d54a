//! pulp-admin: the command line client of `/pulp/api/v2`.
//!
//! Same commands, options, titles and exit codes as Pulp 2's `pulp-admin` with its docker extension.
//! What is better here: `--json`, a failed task exits 1, uploads survive a killed client, and
//! `--auto-publish` on an update does what it says.
//!
//! [`run`] is the whole program over an [`Io`]; so another program, or a test, can run a command in
//! its own process.

mod cli;
mod client;
mod commands;
mod config;
mod criteria;
mod error;
mod io;
mod output;
mod progress;
mod session;
mod task;
mod upload;

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, error::ErrorKind};

pub use error::Exit;
pub use io::{Ask, Captured, Interrupt, Io};

/// Runs one command. `args` begins with the program's name, as in a process.
///
/// What people or programs read goes to `io.out`, errors to `io.err`.
pub async fn run<I, T>(args: I, io: &Io) -> Exit
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let parsed = cli::Cli::command()
        .try_get_matches_from(args)
        .and_then(|matches| cli::Cli::from_arg_matches(&matches));
    match parsed {
        Ok(cli) => commands::run(cli, io).await,
        Err(error) => usage(&error, io),
    }
}

/// Help goes to stdout and is no error; anything else is a fault of the command line.
fn usage(error: &clap::Error, io: &Io) -> Exit {
    let text = if io.terminal {
        error.render().ansi().to_string()
    } else {
        error.render().to_string()
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            io.write_out(&text);
            Exit::Success
        }
        // A word in the right place with a value that can't be: sysexits has a code of its own for it.
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            io.write_err(&text);
            Exit::Data
        }
        _ => {
            io.write_err(&text);
            Exit::Usage
        }
    }
}
