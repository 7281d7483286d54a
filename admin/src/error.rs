//! What can go wrong, and the exit code that tells a script.

use std::{path::PathBuf, process::ExitCode};

use pulp_model::CodedError;
use serde_json::{Value, json};

/// How the program ends. Numbers are those of `sysexits.h`, as Pulp 2's client used them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Success = 0,
    /// A task that was followed failed or was canceled.
    TaskFailed = 1,
    /// The command line is wrong.
    Usage = 64,
    /// The server refused what was asked (400, 404, 409), or a local value or file is wrong.
    Data = 65,
    /// The question for a password was not answered.
    NoUser = 67,
    /// The server failed (5xx), isn't trusted, or answered what nobody understands.
    Software = 70,
    /// A local file, or a connection, broke.
    Io = 74,
    /// Not logged in, logged in no longer, or not allowed.
    NoPermission = 77,
    /// Wrong settings: unknown host, nobody listens there, a bad configuration file.
    Config = 78,
    /// ctrl-c: detached from a task that goes on, or paused an upload. Non-zero, so that `&&` stops.
    Interrupted = 130,
}

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a command didn't do what was asked; each variant by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    /// The options contradict each other or lack something.
    #[error("{0}")]
    Usage(String),
    /// A local value or file is not what it must be.
    #[error("{0}")]
    Data(String),
    /// A configuration file or the server's address is wrong.
    #[error("{0}")]
    Config(String),
    /// A local file can't be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A local file or folder named on the command line is not there.
    #[error("{0}")]
    Io(String),
    /// No password was given.
    #[error("no password was given")]
    NoPassword,
    /// The saved session can't be read.
    #[error("{0}")]
    Session(String),
    /// Nobody answers at the server's address.
    #[error(
        "can't reach the server at {url}: {reason}; check --server, PULP_SERVER or [server] in admin.conf"
    )]
    Unreachable {
        /// The server.
        url: String,
        /// The innermost cause.
        reason: String,
    },
    /// The server's certificate is not trusted, or is another host's.
    #[error(
        "the server at {url} is not trusted: {reason}; set [server] ca_path to its CA, or verify_ssl: false"
    )]
    Untrusted {
        /// The server.
        url: String,
        /// What the check said.
        reason: String,
        /// Trusted, but for another name.
        wrong_name: bool,
    },
    /// The connection broke.
    #[error("the connection to {url} broke: {reason}")]
    Connection {
        /// The server.
        url: String,
        /// The innermost cause.
        reason: String,
    },
    /// The server refused or failed.
    #[error("{}", .0.message())]
    Server(Box<ServerError>),
    /// The answer is no JSON, or not the document expected.
    #[error("the server at {url} answered what pulp-admin doesn't understand: {what}")]
    Answer {
        /// The request's address.
        url: String,
        /// What is wrong with it.
        what: String,
    },
    /// A task that was followed failed; it has been shown.
    #[error("task {task_id} {state}")]
    Task {
        /// Which.
        task_id: String,
        /// `error` or `canceled`.
        state: &'static str,
        /// The reports of all tasks followed so far.
        reports: Vec<Value>,
    },
    /// ctrl-c while a task was followed.
    #[error("detached; the task goes on. Follow it by: pulp-admin tasks details --task-id {task_id}")]
    Detached {
        /// Which.
        task_id: String,
    },
    /// ctrl-c while bytes were sent.
    #[error("Uploading paused. Continue by: pulp-admin docker repo uploads resume --upload-id {upload_id}")]
    Paused {
        /// Which.
        upload_id: String,
    },
}

impl AdminError {
    /// The exit code of this error.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Data(_) | Self::Untrusted { wrong_name: true, .. } => Exit::Data,
            Self::Config(_) | Self::Unreachable { .. } => Exit::Config,
            Self::File { .. } | Self::Io(_) | Self::Connection { .. } => Exit::Io,
            Self::NoPassword => Exit::NoUser,
            Self::Session(_) => Exit::NoPermission,
            Self::Untrusted { .. } | Self::Answer { .. } => Exit::Software,
            Self::Server(error) => error.exit(),
            Self::Task { .. } => Exit::TaskFailed,
            Self::Detached { .. } | Self::Paused { .. } => Exit::Interrupted,
        }
    }

    /// Whether the same request may succeed a little later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Connection { .. } => true,
            Self::Server(error) => error.status >= 500 && error.status != 501,
            _ => false,
        }
    }

    /// The status of the server's answer, if that is what this is.
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Server(error) => Some(error.status),
            _ => None,
        }
    }

    /// The stable code of the server's answer, for example `PLP2003`.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Server(error) => error.error.as_ref().map(|e| e.code.as_str()),
            _ => None,
        }
    }

    /// The document that `--json` prints.
    pub(crate) fn to_json(&self) -> Value {
        let mut document = json!({"message": self.to_string(), "exit_code": self.exit().code()});
        if let Some(map) = document.as_object_mut() {
            match self {
                Self::Server(error) => {
                    map.insert("http_status".to_owned(), json!(error.status));
                    map.insert("error".to_owned(), json!(error.error));
                }
                Self::Task { task_id, reports, .. } => {
                    map.insert("task_id".to_owned(), json!(task_id));
                    map.insert("tasks".to_owned(), json!(reports));
                }
                Self::Detached { task_id } => {
                    map.insert("task_id".to_owned(), json!(task_id));
                }
                Self::Paused { upload_id } => {
                    map.insert("upload_id".to_owned(), json!(upload_id));
                }
                _ => {}
            }
        }
        document
    }

    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}

/// An answer of 400 or above.
#[derive(Debug)]
pub(crate) struct ServerError {
    /// The status.
    pub(crate) status: u16,
    /// `GET https://host/pulp/api/v2/…`.
    pub(crate) request: String,
    /// `error_message` of the body, or the body itself if it is no Pulp error.
    pub(crate) text: String,
    /// The coded error, if Pulp itself answered.
    pub(crate) error: Option<CodedError>,
    /// Whose saved session the server doesn't take (any more).
    pub(crate) session_of: Option<String>,
}

impl ServerError {
    fn exit(&self) -> Exit {
        match self.status {
            401 | 403 => Exit::NoPermission,
            400..=499 => Exit::Data,
            _ => Exit::Software,
        }
    }

    fn message(&self) -> String {
        let mut text = match (&self.error, self.text.as_str()) {
            (Some(error), _) if !error.description.is_empty() => coded_lines(error).join("\n"),
            (_, "") => "the server gave no reason".to_owned(),
            (_, text) => text.to_owned(),
        };
        match self.status {
            401 => {
                let hint = match &self.session_of {
                    Some(login) => {
                        format!("\nYour session is over; log in again by: pulp-admin login -u {login}")
                    }
                    None => "\nLog in by: pulp-admin login -u USER".to_owned(),
                };
                text.push_str(&hint);
            }
            500.. => {
                use std::fmt::Write as _;
                let _ = write!(text, "\n({} answered {})", self.request, self.status);
            }
            _ => {}
        }
        text
    }
}

/// A coded error for people: its line, then those beneath it, indented.
pub(crate) fn coded_lines(error: &CodedError) -> Vec<String> {
    let mut lines = vec![error.to_string()];
    for sub in &error.sub_errors {
        lines.extend(coded_lines(sub).into_iter().map(|line| format!("  {line}")));
    }
    lines
}
