//! What a command touches besides the network: streams, environment, prompts, ctrl-c.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _, Write},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
};

type Sink = Arc<Mutex<dyn Write + Send>>;
type Asker = Arc<dyn Fn(Ask<'_>) -> io::Result<String> + Send + Sync>;

/// A question to the person at the terminal.
#[derive(Debug, Clone, Copy)]
pub enum Ask<'a> {
    /// Asks without echo.
    Password(&'a str),
    /// Asks for one line.
    Line(&'a str),
}

/// Where ctrl-c comes from.
#[derive(Debug, Clone)]
pub enum Interrupt {
    /// SIGINT of this process. The handler is installed at the first wait, so that ctrl-c ends the
    /// program as usual while there is nothing to detach from; from then on no signal is lost between waits.
    Signal(Arc<tokio::sync::Mutex<Option<Signal>>>),
    /// Raised by another part of this process.
    Notified(Arc<Notify>),
}

impl Interrupt {
    /// Returns at the next ctrl-c.
    pub async fn raised(&self) {
        match self {
            Self::Signal(listener) => {
                let mut listener = listener.lock().await;
                if listener.is_none() {
                    *listener = signal(SignalKind::interrupt()).ok();
                }
                match listener.as_mut() {
                    Some(listener) => {
                        listener.recv().await;
                    }
                    // No handler could be installed: then the signal ends the program by itself.
                    None => std::future::pending().await,
                }
            }
            Self::Notified(notify) => notify.notified().await,
        }
    }
}

/// The surroundings of one run.
#[derive(Clone)]
pub struct Io {
    out: Sink,
    err: Sink,
    ask: Asker,
    /// Whether stdout is a terminal: progress bars move, lines are coloured.
    pub terminal: bool,
    /// Whether somebody can answer a question.
    pub interactive: bool,
    /// Environment variables; `HOME`, `PULP_SERVER`, `PULP_USERNAME`, `PULP_PASSWORD` and `NO_COLOR` are read.
    pub env: BTreeMap<String, String>,
    /// Folder of the machine's settings, `/etc/pulp/admin`.
    pub system_config: PathBuf,
    /// Where ctrl-c comes from.
    pub interrupt: Interrupt,
}

impl std::fmt::Debug for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The environment may hold a password.
        f.debug_struct("Io")
            .field("terminal", &self.terminal)
            .field("interactive", &self.interactive)
            .finish_non_exhaustive()
    }
}

impl Io {
    /// The process's own streams, environment and signals.
    pub fn process() -> Self {
        Self {
            out: Arc::new(Mutex::new(io::stdout())),
            err: Arc::new(Mutex::new(io::stderr())),
            ask: Arc::new(|question| match question {
                Ask::Password(text) => rpassword::prompt_password(text),
                Ask::Line(text) => {
                    let mut err = io::stderr();
                    write!(err, "{text}")?;
                    err.flush()?;
                    let mut line = String::new();
                    if io::stdin().read_line(&mut line)? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    Ok(line.trim().to_owned())
                }
            }),
            terminal: io::stdout().is_terminal(),
            interactive: io::stdin().is_terminal(),
            env: std::env::vars_os()
                .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
                .collect(),
            system_config: PathBuf::from("/etc/pulp/admin"),
            interrupt: Interrupt::Signal(Arc::default()),
        }
    }

    /// Streams kept in memory, an environment of nothing but `HOME`, nobody to ask.
    pub fn captured(home: impl Into<PathBuf>) -> (Self, Captured) {
        let captured = Captured::default();
        let home = home.into();
        let io = Self {
            out: captured.out.clone(),
            err: captured.err.clone(),
            ask: Arc::new(|_| Err(io::ErrorKind::UnexpectedEof.into())),
            terminal: false,
            interactive: false,
            env: BTreeMap::from([("HOME".to_owned(), home.to_string_lossy().into_owned())]),
            system_config: home.join("etc/pulp/admin"),
            interrupt: Interrupt::Notified(Arc::default()),
        };
        (io, captured)
    }

    /// Sets an environment variable for this run alone.
    #[must_use]
    pub fn with_env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// Answers questions by `ask`, as somebody at the terminal would.
    #[must_use]
    pub fn with_answers(
        mut self,
        ask: impl Fn(Ask<'_>) -> io::Result<String> + Send + Sync + 'static,
    ) -> Self {
        self.ask = Arc::new(ask);
        self.interactive = true;
        self
    }

    /// A variable that is set and not empty.
    pub(crate) fn var(&self, name: &str) -> Option<&str> {
        self.env.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }

    pub(crate) fn ask(&self, question: Ask<'_>) -> io::Result<String> {
        (self.ask)(question)
    }

    /// Writes to stdout. A reader that went away (`| head`) is no error of ours.
    pub(crate) fn write_out(&self, text: &str) {
        write(&self.out, text);
    }

    /// Writes to stderr.
    pub(crate) fn write_err(&self, text: &str) {
        write(&self.err, text);
    }
}

fn write(sink: &Sink, text: &str) {
    let mut sink = sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let _ = sink.write_all(text.as_bytes()).and_then(|()| sink.flush());
}

/// What a run with [`Io::captured`] wrote.
#[derive(Debug, Clone, Default)]
pub struct Captured {
    out: Arc<Mutex<Vec<u8>>>,
    err: Arc<Mutex<Vec<u8>>>,
}

impl Captured {
    /// Everything written to stdout so far.
    pub fn out(&self) -> String {
        text(&self.out)
    }

    /// Everything written to stderr so far.
    pub fn err(&self) -> String {
        text(&self.err)
    }
}

fn text(bytes: &Mutex<Vec<u8>>) -> String {
    let bytes = bytes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    String::from_utf8_lossy(&bytes).into_owned()
}
