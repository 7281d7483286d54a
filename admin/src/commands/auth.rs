//! `auth user …`, `auth robot …`, and who may pull from a protected repository.

use pulp_model::Puller;
use serde_json::{Value, json};

use super::{App, Stop, missing, not_there};
use crate::{
    cli::{Auth, Right, Rights, Robot, User},
    error::AdminError,
    io::Ask,
    output::{Hidden, picked},
};

/// What is shown of a user and of a robot.
const USER: [&str; 3] = ["login", "name", "roles"];
const ROBOT: [&str; 6] = [
    "name",
    "login",
    "description",
    "created",
    "expires",
    "repositories",
];

pub(super) async fn run(app: &App, command: Auth) -> Result<(), Stop> {
    match command {
        Auth::User(command) => user(app, command).await,
        Auth::Robot(command) => robot(app, command).await,
    }
}

async fn user(app: &App, command: User) -> Result<(), Stop> {
    match command {
        User::Create(args) => {
            let mut body = json!({
                "login": args.login,
                "password": password(app, args.user_password)?,
            });
            if let Some(name) = args.name {
                body["name"] = json!(name);
            }
            if args.super_user {
                body["roles"] = json!(["super-users"]);
            }
            let made = app.client.post(&["users"], &body).await?.body;
            app.screen
                .success(&format!("User [{}] successfully created", args.login));
            app.screen.result(&made);
        }
        User::List => {
            let users = app.client.get(&["users"], &[]).await?;
            app.screen.title("Users");
            show(app, &users, &USER);
            app.screen.result(&users);
        }
        User::Update(args) => {
            let body = json!({"delta": {"password": password(app, args.user_password)?}});
            let reply = app.client.put(&["users", args.login.as_str()], &body).await;
            let changed = reply.map_err(|e| not_there(e, "User", &args.login))?;
            app.screen
                .success(&format!("User [{}] successfully updated", args.login));
            app.screen.result(&changed.body);
        }
        User::Delete(args) => {
            let reply = app.client.delete(&["users", args.login.as_str()], &[]).await;
            reply.map_err(|e| not_there(e, "User", &args.login))?;
            app.screen
                .success(&format!("User [{}] successfully deleted", args.login));
            app.screen.result(&Value::Null);
        }
    }
    Ok(())
}

async fn robot(app: &App, command: Robot) -> Result<(), Stop> {
    match command {
        Robot::Create(args) => {
            let mut body = json!({ "name": args.name });
            for (key, value) in [("description", args.description), ("expires", args.expires)] {
                if let Some(value) = value {
                    body[key] = json!(value);
                }
            }
            let made = app.client.post(&["robots"], &body).await?.body;
            app.screen
                .success(&format!("Robot [{}] successfully created", args.name));
            secret(app, &made);
        }
        Robot::List(args) => {
            let found = match &args.name {
                Some(name) => {
                    let one = app.client.get(&["robots", name.as_str()], &[]).await;
                    json!([one.map_err(|e| not_there(e, "Robot", name))?])
                }
                None => app.client.get(&["robots"], &[]).await?,
            };
            app.screen.title("Robots");
            show(app, &found, &ROBOT);
            app.screen.result(&found);
        }
        Robot::Renew(args) => {
            let path = ["robots", args.name.as_str(), "actions", "renew_secret"];
            let reply = app.client.post(&path, &json!({})).await;
            let renewed = reply.map_err(|e| not_there(e, "Robot", &args.name))?.body;
            app.screen
                .success(&format!("Secret of robot [{}] successfully renewed", args.name));
            secret(app, &renewed);
        }
        Robot::Delete(args) => {
            let reply = app.client.delete(&["robots", args.name.as_str()], &[]).await;
            reply.map_err(|e| not_there(e, "Robot", &args.name))?;
            app.screen
                .success(&format!("Robot [{}] successfully deleted", args.name));
            app.screen.result(&Value::Null);
        }
    }
    Ok(())
}

/// `docker repo grant` and `revoke`.
pub(super) async fn right(app: &App, args: &Right, granted: bool) -> Result<(), Stop> {
    let body = match args.whose.puller() {
        Some(Puller::User(login)) => json!({ "login": login }),
        Some(Puller::Robot(name)) => json!({ "robot": name }),
        None => return Err(AdminError::Usage("give --user or --robot".to_owned()).into()),
    };
    let action = if granted { "grant_pull" } else { "revoke_pull" };
    let path = ["repositories", args.repo_id.as_str(), "actions", action];
    let reply = app.client.post(&path, &body).await;
    reply.map_err(|e| missing(e, &args.repo_id))?;
    app.screen.success(if granted {
        "Right to pull successfully granted"
    } else {
        "Right to pull successfully revoked; tokens that are out hold for some minutes more"
    });
    app.screen.result(&Value::Null);
    Ok(())
}

/// `docker repo rights`.
pub(super) async fn rights(app: &App, args: &Rights) -> Result<(), Stop> {
    let path = ["repositories", args.repo_id.as_str(), "pull_rights"];
    let found = app.client.get(&path, &[]).await;
    let found = found.map_err(|e| missing(e, &args.repo_id))?;
    app.screen.title("Rights to pull");
    show(app, &found, &["login", "robot"]);
    app.screen.result(&found);
    Ok(())
}

fn show(app: &App, documents: &Value, keys: &[&str]) {
    let documents = documents.as_array().map(Vec::as_slice).unwrap_or_default();
    if documents.is_empty() {
        app.screen.line("There are none.");
    }
    for document in documents {
        app.screen.document(&picked(document, keys), keys, Hidden::Omit);
    }
}

fn secret(app: &App, robot: &Value) {
    let text = |key: &str| robot[key].as_str().unwrap_or_default();
    app.screen.line(&format!("Login:  {}", text("login")));
    app.screen.line(&format!(
        "Secret: {}   (shown this once; keep it)",
        text("secret")
    ));
    app.screen.result(robot);
}

fn password(app: &App, given: Option<String>) -> Result<String, AdminError> {
    match given {
        Some(password) => Ok(password),
        None => app
            .io
            .ask(Ask::Password("Enter the user's password: "))
            .map_err(|_| AdminError::NoPassword),
    }
}
