//! `login` and `logout`.

use serde_json::{Value, json};

use super::{App, Stop};
use crate::{
    config::Config,
    error::AdminError,
    io::Io,
    session::{self, Credentials, Session},
};

/// Logging in takes a login and a password, never the session that it is to replace.
pub(super) fn credentials(
    io: &Io,
    config: &Config,
    user: Option<&str>,
    password: Option<&str>,
) -> Result<Credentials, AdminError> {
    session::given(io, user, password)?
        .or_else(|| config.auth.clone())
        .map(|(user, password)| Credentials::Basic(user, password))
        .ok_or_else(|| AdminError::Usage("login needs -u/--username".to_owned()))
}

pub(super) async fn login(app: &App) -> Result<(), Stop> {
    let reply = app.client.post(&["actions", "login"], &json!({})).await?;
    let text = |key: &str| reply.body.get(key).and_then(Value::as_str).map(ToOwned::to_owned);
    let Some(token) = text("token") else {
        return Err(AdminError::Answer {
            url: app.client.server(),
            what: "no session token; is it a server of Pulp 2?".to_owned(),
        }
        .into());
    };
    let session = Session {
        login: text("login").unwrap_or_default(),
        token,
        expires: text("expires"),
        server: app.config.server.to_string(),
    };
    session.save(&app.config.home)?;
    let until = session
        .expires
        .as_deref()
        .map(|end| format!(" The session will expire at {end}."))
        .unwrap_or_default();
    app.screen.success(&format!("Successfully logged in.{until}"));
    app.screen
        .result(&json!({"login": session.login, "expires": session.expires, "server": session.server}));
    Ok(())
}

pub(super) fn logout(app: &App) -> Result<(), Stop> {
    let removed = Session::remove(&app.config.home)?;
    app.screen.success(if removed {
        "Session successfully removed."
    } else {
        "There is no session to remove."
    });
    app.screen.result(&json!({"removed": removed}));
    Ok(())
}
