//! The commands, one module a section of the tree.

mod auth;
mod history;
mod login;
mod publish;
mod repo;
mod runs;
mod schedules;
mod search;
mod status;
mod sync;
mod tag;
mod tasks;
mod transfer;
mod uploads;

use std::fmt::Display;

use clap::CommandFactory;
use pulp_model::RepositoryId;
use serde_json::{Value, json};

use crate::{
    cli::{Cli, Command, Docker, DockerRepo, Export, History, Import, Publish, Repo, Sync},
    client::Client,
    config::{self, Config},
    error::{AdminError, Exit},
    io::Io,
    output::Screen,
    session::{self, Credentials},
    task::Follower,
};

/// Instance ids of the distributors that this client creates.
pub(crate) const WEB_DISTRIBUTOR: &str = "docker_web_distributor_name_cli";
pub(crate) const EXPORT_DISTRIBUTOR: &str = "docker_export_distributor_name_cli";

/// What every command works with.
pub(crate) struct App {
    pub(crate) io: Io,
    pub(crate) screen: Screen,
    pub(crate) config: Config,
    pub(crate) client: Client,
}

impl App {
    /// Follows tasks on this screen.
    pub(crate) fn follower(&self) -> Follower<'_> {
        Follower {
            client: &self.client,
            screen: &self.screen,
            interrupt: &self.io.interrupt,
            poll: self.config.poll,
        }
    }

    /// Tells of tasks that were queued and are not followed.
    pub(crate) fn queued(&self, tasks: &[String]) {
        for task in tasks {
            self.screen.line(&format!(
                "Request accepted. Follow it by: pulp-admin tasks details --task-id {task}"
            ));
        }
        let tasks: Vec<Value> = tasks.iter().map(|id| json!({"task_id": id})).collect();
        self.screen.result(&json!({"spawned_tasks": tasks}));
    }

    /// One repository; a missing one is told by Pulp's own sentence.
    pub(crate) async fn repository(
        &self,
        id: &RepositoryId,
        query: &[(&str, &str)],
    ) -> Result<Value, AdminError> {
        let found = self.client.get(&["repositories", id.as_str()], query).await;
        found.map_err(|e| missing(e, id))
    }
}

/// Turns a 404 into the sentence that scripts know, of a repository.
pub(crate) fn missing(error: AdminError, id: &RepositoryId) -> AdminError {
    not_there(error, "Repository", id)
}

/// Turns a 404 into the sentence that scripts know.
pub(crate) fn not_there(error: AdminError, what: &str, id: impl Display) -> AdminError {
    match error.status() {
        Some(404) => AdminError::Data(format!("{what} [{id}] does not exist on the server")),
        _ => error,
    }
}

/// Runs the command and tells how it ended.
pub(crate) async fn run(cli: Cli, io: &Io) -> Exit {
    if cli.global.map {
        io.write_out(&format!("{}\n", map(&Cli::command(), 0).join("\n")));
        return Exit::Success;
    }
    let screen = Screen {
        io: io.clone(),
        json: cli.global.json,
        color: io.var("NO_COLOR").is_none(),
    };
    match execute(cli, io, screen.clone()).await {
        Ok(exit) => exit,
        Err(error) => {
            screen.result(&error.to_json());
            // A failed task has told its reasons where its progress was.
            if screen.json || !matches!(error, AdminError::Task { .. }) {
                screen.error(&crate::output::printable(&error.to_string()));
            }
            error.exit()
        }
    }
}

async fn execute(cli: Cli, io: &Io, mut screen: Screen) -> Result<Exit, AdminError> {
    let global = &cli.global;
    let Some(command) = cli.command else {
        return Err(AdminError::Usage(
            "a command is missing; pulp-admin --help lists them".to_owned(),
        ));
    };
    let config = config::load(io, global.config.as_deref(), global.server.as_deref())?;
    screen.color &= config.color;
    let (user, password) = (global.username.as_deref(), global.password.as_deref());
    let credentials = match &command {
        Command::Login => login::credentials(io, &config, user, password)?,
        Command::Logout => Credentials::Anonymous,
        // The server answers anyone, so a session that has ended is no obstacle.
        Command::Status => match session::credentials(io, &config, user, password) {
            Err(AdminError::Session(_)) => Credentials::Anonymous,
            other => other?,
        },
        _ => session::credentials(io, &config, user, password)?,
    };
    let client = Client::new(&config, credentials, global.verbose, io)?;
    let app = App {
        io: io.clone(),
        screen,
        config,
        client,
    };
    let ended = match command {
        Command::Login => login::login(&app).await,
        Command::Logout => login::logout(&app),
        Command::Status => status::status(&app).await,
        Command::Docker(Docker::Repo(command)) => docker(&app, command).await,
        Command::Repo(Repo::List(args)) => repo::list(&app, &args, repo::Scope::Every).await,
        Command::Repo(Repo::History(History::Publish(args))) => history::publish(&app, &args).await,
        Command::Repo(Repo::History(History::Sync(args))) => history::sync(&app, &args).await,
        Command::Tasks(command) => tasks::run(&app, command).await,
        Command::Auth(command) => auth::run(&app, command).await,
    };
    match ended {
        Ok(()) => Ok(Exit::Success),
        // Several files, several ends: all of them have been told.
        Err(Stop::Told(exit)) => Ok(exit),
        Err(Stop::Failed(error)) => Err(error),
    }
}

async fn docker(app: &App, command: DockerRepo) -> Result<(), Stop> {
    match command {
        DockerRepo::Create(args) => repo::create(app, &args).await,
        DockerRepo::Update(args) => repo::update(app, &args).await,
        DockerRepo::Delete(args) => repo::delete(app, &args).await,
        DockerRepo::List(args) => repo::list(app, &args, repo::Scope::Docker).await,
        DockerRepo::Tag(args) => tag::run(app, &args).await,
        DockerRepo::Grant(args) => auth::right(app, &args, true).await,
        DockerRepo::Revoke(args) => auth::right(app, &args, false).await,
        DockerRepo::Rights(args) => auth::rights(app, &args).await,
        DockerRepo::Images(args) => search::images(app, &args).await,
        DockerRepo::Search(command) => search::run(app, command).await,
        DockerRepo::Uploads(command) => uploads::run(app, command).await,
        DockerRepo::Sync(Sync::Run(args)) => sync::run(app, &args).await,
        DockerRepo::Sync(Sync::Status(args)) => sync::status(app, &args).await,
        DockerRepo::Sync(Sync::Schedules(command)) => {
            schedules::run(app, schedules::Kind::Sync, command).await
        }
        DockerRepo::Publish(Publish::Run(args)) => publish::publish(app, &args).await,
        DockerRepo::Publish(Publish::Status(args)) => publish::status(app, &args, WEB_DISTRIBUTOR).await,
        DockerRepo::Publish(Publish::Schedules(command)) => {
            schedules::run(app, schedules::Kind::Publish, command).await
        }
        DockerRepo::Export(Export::Run(args)) => publish::export(app, &args).await,
        DockerRepo::Export(Export::Status(args)) => publish::status(app, &args, EXPORT_DISTRIBUTOR).await,
        DockerRepo::Import(Import::Run(args)) => transfer::run(app, &args).await,
        DockerRepo::Import(Import::Status(args)) => transfer::status(app, &args).await,
    }
}

/// Why a command ends without success.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Still to be told.
    Failed(AdminError),
    /// Told already.
    Told(Exit),
}

impl From<AdminError> for Stop {
    fn from(error: AdminError) -> Self {
        Self::Failed(error)
    }
}

/// The tree of commands, a line each.
fn map(command: &clap::Command, depth: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for sub in command.get_subcommands() {
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        lines.push(format!(
            "{:indent$}{}: {about}",
            "",
            sub.get_name(),
            indent = depth * 2
        ));
        lines.extend(map(sub, depth + 1));
    }
    lines
}
