//! Who we are: the command line, the environment, `[auth]`, or the token that `login` saved.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    config::Config,
    error::AdminError,
    io::{Ask, Io},
};

/// What goes into the `Authorization` header.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// Nothing.
    Anonymous,
    /// Login and password.
    Basic(String, String),
    /// The token of a session, and whose it is.
    Bearer {
        /// The secret.
        token: String,
        /// Who logged in.
        login: String,
    },
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic(..) => "Basic",
            Self::Bearer { .. } => "Bearer",
        })
    }
}

/// `~/.pulp/user-session.json`.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Session {
    /// Who logged in.
    pub(crate) login: String,
    /// The secret.
    pub(crate) token: String,
    /// When it ends, ISO 8601.
    #[serde(default)]
    pub(crate) expires: Option<String>,
    /// The server it is for; it is sent to no other.
    #[serde(default)]
    pub(crate) server: String,
}

impl Session {
    /// Where it is kept.
    pub(crate) fn path(home: &Path) -> PathBuf {
        home.join("user-session.json")
    }

    /// Reads the saved one, if there is one.
    pub(crate) fn load(home: &Path) -> Result<Option<Self>, AdminError> {
        let path = Self::path(home);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| {
                AdminError::Session(format!(
                    "{} is damaged ({e}); log in again by: pulp-admin login -u USER",
                    path.display()
                ))
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(AdminError::File { path, source }),
        }
    }

    /// Saves it for the user alone.
    pub(crate) fn save(&self, home: &Path) -> Result<(), AdminError> {
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|e| AdminError::Data(format!("the session can't be saved: {e}")))?;
        write_private(&Self::path(home), &bytes, true)
    }

    /// Removes the saved one; whether there was one.
    pub(crate) fn remove(home: &Path) -> Result<bool, AdminError> {
        let path = Self::path(home);
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(AdminError::File { path, source }),
        }
    }
}

/// Chooses the credentials; asks for a password that is missing.
pub(crate) fn credentials(
    io: &Io,
    config: &Config,
    user: Option<&str>,
    password: Option<&str>,
) -> Result<Credentials, AdminError> {
    if let Some((user, password)) = given(io, user, password)? {
        return Ok(Credentials::Basic(user, password));
    }
    if let Some((user, password)) = &config.auth {
        return Ok(Credentials::Basic(user.clone(), password.clone()));
    }
    match Session::load(&config.home)? {
        // Whether it is over, the server says: our clock may be wrong.
        Some(session) if session.server == config.server.as_str() => Ok(Credentials::Bearer {
            token: session.token,
            login: session.login,
        }),
        _ => Ok(Credentials::Anonymous),
    }
}

/// Login and password of the command line or the environment.
pub(crate) fn given(
    io: &Io,
    user: Option<&str>,
    password: Option<&str>,
) -> Result<Option<(String, String)>, AdminError> {
    let env_user = io.var("PULP_USERNAME");
    let Some(name) = user.or(env_user) else {
        return match password {
            Some(_) => Err(AdminError::Usage("-p/--password needs -u/--username".to_owned())),
            None => Ok(None),
        };
    };
    // A password in the environment is that of the login beside it, not of another one.
    let env_password = io
        .var("PULP_PASSWORD")
        .filter(|_| env_user.is_none_or(|env_user| env_user == name));
    let password = match password.or(env_password) {
        Some(password) => password.to_owned(),
        None => io
            .ask(Ask::Password("Enter password: "))
            .map_err(|_| AdminError::NoPassword)?,
    };
    Ok(Some((name.to_owned(), password)))
}

/// Replaces a file as a whole, mode 0600. `durable`: it is on the disk when this returns.
pub(crate) fn write_private(path: &Path, bytes: &[u8], durable: bool) -> Result<(), AdminError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = folder.join(format!(".{name}.{}.tmp", std::process::id()));
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            if durable { file.sync_all() } else { Ok(()) }
        })
        .and_then(|()| std::fs::rename(&aside, path));
    written.map_err(|source| {
        let _ = std::fs::remove_file(&aside);
        AdminError::File {
            path: path.to_owned(),
            source,
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_environments_password_is_only_for_the_environments_login() {
        let (io, _) = Io::captured("/nonexistent");
        let io = io
            .with_env("PULP_USERNAME", "ci")
            .with_env("PULP_PASSWORD", "secret");
        let pair = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(given(&io, None, None).unwrap(), pair("ci", "secret"));
        assert_eq!(given(&io, None, Some("other")).unwrap(), pair("ci", "other"));
        assert!(matches!(
            given(&io, Some("admin"), None),
            Err(AdminError::NoPassword)
        ));
    }

    #[test]
    fn a_missing_password_is_asked_for() {
        let (io, _) = Io::captured("/nonexistent");
        let io = io.with_answers(|ask| {
            assert!(matches!(ask, Ask::Password("Enter password: ")));
            Ok("typed".to_owned())
        });
        assert_eq!(given(&io, Some("admin"), None).unwrap().unwrap().1, "typed");
    }

    #[test]
    fn a_saved_session_is_private_and_comes_back() {
        use std::os::unix::fs::PermissionsExt as _;
        let home = tempfile::tempdir().unwrap();
        let session = Session {
            login: "admin".to_owned(),
            token: "t".to_owned(),
            expires: Some("2030-01-01T00:00:00Z".to_owned()),
            server: "http://h/".to_owned(),
        };
        std::fs::write(
            Session::path(home.path()),
            "an older, longer file, readable by all".repeat(99),
        )
        .unwrap();
        session.save(home.path()).unwrap();
        let mode = std::fs::metadata(Session::path(home.path()))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(Session::load(home.path()).unwrap().unwrap().token, "t");
        assert!(Session::remove(home.path()).unwrap() && !Session::remove(home.path()).unwrap());
    }
}
