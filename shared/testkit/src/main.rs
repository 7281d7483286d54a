//! `pulp-testkit with-engines -- <command…>`: runs a command, for instance all tests, with one PostgreSQL and
//! one RabbitMQ for the whole run, and exits with its code.

use std::{
    process::{Command, ExitCode},
    thread,
};

use anyhow::{Context, Result, anyhow};
use pulp_testkit::{Postgres, RabbitMq};

const USAGE: &str = "usage: pulp-testkit with-engines -- <command> [argument…]\n\n\
    Starts a private PostgreSQL and a private RabbitMQ, sets PULP_TEST_POSTGRES_URL,\n\
    PULP_TEST_RABBITMQ_URL and PULP_TEST_RABBITMQ_NODE, runs the command, and exits with its code.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["with-engines", "--", program, rest @ ..] => match with_engines(program, rest) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("pulp-testkit: {error:#}");
                ExitCode::from(125)
            }
        },
        ["--help" | "-h"] => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn with_engines(program: &str, arguments: &[&str]) -> Result<ExitCode> {
    let rabbitmq = thread::spawn(RabbitMq::start);
    let postgres = Postgres::start()?;
    let rabbitmq = rabbitmq
        .join()
        .map_err(|_| anyhow!("starting RabbitMQ panicked"))??;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("PULP_TEST_POSTGRES_URL", postgres.url())
        .env("PULP_TEST_RABBITMQ_URL", rabbitmq.url());
    if let Some(folder) = rabbitmq.folder() {
        command.env("PULP_TEST_RABBITMQ_NODE", folder);
    }
    let status = command.status().with_context(|| format!("can't run {program}"))?;
    // Killed by a signal: what a shell would say.
    let code = status
        .code()
        .unwrap_or_else(|| 128 + std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or_default());
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
