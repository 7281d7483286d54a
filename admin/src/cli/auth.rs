//! `auth …` and the rights of repositories.

use clap::{Args, Subcommand};
use pulp_model::{Login, Puller, RepositoryId, RobotName};

#[derive(Debug, Subcommand)]
pub(crate) enum Auth {
    /// manage users
    #[command(subcommand)]
    User(User),
    /// manage robots: credentials of programs, which pull and do nothing else
    #[command(subcommand)]
    Robot(Robot),
}

#[derive(Debug, Subcommand)]
pub(crate) enum User {
    /// create a user
    Create(CreateUser),
    /// list the users
    List,
    /// change a user's password, which ends the user's sessions
    Update(UpdateUser),
    /// delete a user with its rights
    Delete(WhichUser),
}

#[derive(Debug, Args)]
pub(crate) struct CreateUser {
    /// login of the user
    #[arg(long)]
    pub(crate) login: Login,
    /// name for people
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// the user's password; asked for if not given
    #[arg(long, value_name = "PASS")]
    pub(crate) user_password: Option<String>,
    /// may do everything
    #[arg(long)]
    pub(crate) super_user: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateUser {
    /// login of the user
    #[arg(long)]
    pub(crate) login: Login,
    /// the new password; asked for if not given
    #[arg(long, value_name = "PASS")]
    pub(crate) user_password: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct WhichUser {
    /// login of the user
    #[arg(long)]
    pub(crate) login: Login,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Robot {
    /// create a robot; its secret is shown this once
    Create(CreateRobot),
    /// list the robots, or show one with the repositories that it may pull from
    List(ListRobots),
    /// give a robot another secret, shown this once; the one before counts for nothing from now on
    Renew(WhichRobot),
    /// delete a robot with its rights
    Delete(WhichRobot),
}

#[derive(Debug, Args)]
pub(crate) struct CreateRobot {
    /// name of the robot; it logs in as robot+NAME
    #[arg(long)]
    pub(crate) name: RobotName,
    /// what it is for
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,
    /// from when on it counts for nothing, for example 2030-01-31T00:00:00Z
    #[arg(long, value_name = "INSTANT")]
    pub(crate) expires: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ListRobots {
    /// only this robot
    #[arg(long)]
    pub(crate) name: Option<RobotName>,
}

#[derive(Debug, Args)]
pub(crate) struct WhichRobot {
    /// name of the robot
    #[arg(long)]
    pub(crate) name: RobotName,
}

/// Whose right on which repository.
#[derive(Debug, Args)]
pub(crate) struct Right {
    /// id of the repository
    #[arg(long)]
    pub(crate) repo_id: RepositoryId,
    #[command(flatten)]
    pub(crate) whose: Whose,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Whose {
    /// login of a user
    #[arg(long, value_name = "LOGIN")]
    user: Option<Login>,
    /// name of a robot
    #[arg(long, value_name = "NAME")]
    robot: Option<RobotName>,
}

impl Whose {
    /// The user or the robot; clap sees to it that there is one.
    pub(crate) fn puller(&self) -> Option<Puller> {
        let user = self.user.clone().map(Puller::User);
        user.or_else(|| self.robot.clone().map(Puller::Robot))
    }
}

#[derive(Debug, Args)]
pub(crate) struct Rights {
    /// id of the repository
    #[arg(long)]
    pub(crate) repo_id: RepositoryId,
}
