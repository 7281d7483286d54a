//! Tasks that the server runs for us: reading their reports, and following them to their end.

use std::time::Duration;

use pulp_model::{CodedError, task::TaskState};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    client::{Client, Reply},
    error::{AdminError, coded_lines},
    io::Interrupt,
    output::{Screen, printable},
    progress::{Spinner, StepReport, Steps},
};

/// How many polls in a row may fail before we give up; the server may be restarting.
const POLL_FAILURES: u32 = 6;

/// A task report, as far as it decides something here.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct TaskReport {
    pub(crate) state: TaskState,
    #[serde(default)]
    pub(crate) tags: Vec<String>,
    #[serde(default)]
    start_time: Option<String>,
    #[serde(default)]
    progress_report: Value,
    #[serde(default)]
    error: Option<Value>,
    #[serde(default)]
    spawned_tasks: Vec<TaskLink>,
}

#[derive(Debug, Clone, Deserialize)]
struct TaskLink {
    task_id: String,
}

impl TaskReport {
    /// Whether it publishes with this distributor; none if the report doesn't tell.
    pub(crate) fn is_of_distributor(&self, distributor: &str) -> Option<bool> {
        let tag = self
            .tags
            .iter()
            .find_map(|tag| tag.strip_prefix("pulp:repository_distributor:"));
        let key = self.progress_report.as_object().and_then(|map| map.keys().next());
        tag.or(key.map(String::as_str)).map(|id| id == distributor)
    }
}

/// The tasks of a 202's call report.
pub(crate) fn spawned(reply: &Reply) -> Result<Vec<String>, AdminError> {
    let links = reply.body.get("spawned_tasks").cloned().unwrap_or_default();
    let links: Option<Vec<TaskLink>> = serde_json::from_value(links).ok();
    match links {
        Some(links) => Ok(links.into_iter().map(|link| link.task_id).collect()),
        None if reply.status == 202 => Err(AdminError::Answer {
            url: "the request".to_owned(),
            what: "a call report without spawned_tasks".to_owned(),
        }),
        None => Ok(Vec::new()),
    }
}

/// How a task is shown while it is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Its steps, each with its bar.
    Steps,
    /// A spinner: the task is short, or a part of something larger.
    Running,
}

/// Follows tasks and those they spawn, to their ends.
#[derive(Debug)]
pub(crate) struct Follower<'a> {
    pub(crate) client: &'a Client,
    pub(crate) screen: &'a Screen,
    pub(crate) interrupt: &'a Interrupt,
    /// Longest time between two looks at a task.
    pub(crate) poll: Duration,
}

impl Follower<'_> {
    /// Follows the tasks in order; stops at the first that fails. Returns all reports.
    pub(crate) async fn follow(&self, tasks: Vec<String>, style: Style) -> Result<Vec<Value>, AdminError> {
        self.screen
            .line("This command may be exited via ctrl+c without affecting the request.\n\n");
        let mut waiting: std::collections::VecDeque<String> = tasks.into();
        let mut reports = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some(task_id) = waiting.pop_front() {
            if !seen.insert(task_id.clone()) {
                continue;
            }
            if !reports.is_empty() {
                self.screen.blank();
            }
            let (report, document) = self.one(&task_id, style).await?;
            reports.push(document);
            self.end(&report);
            let state = match report.state {
                TaskState::Error => "failed",
                TaskState::Canceled => "was canceled",
                _ => {
                    for link in report.spawned_tasks.into_iter().rev() {
                        waiting.push_front(link.task_id);
                    }
                    continue;
                }
            };
            return Err(AdminError::Task {
                task_id,
                state,
                reports,
            });
        }
        Ok(reports)
    }

    /// Looks at one task until it has ended.
    async fn one(&self, task_id: &str, style: Style) -> Result<(TaskReport, Value), AdminError> {
        let mut shown = Shown::new(self.screen, style);
        // Short tasks end at once; long ones are looked at more and more seldom.
        let mut pause = Duration::from_millis(50).min(self.poll);
        let mut failures = 0;
        loop {
            let step = async {
                match self.look(task_id).await {
                    Ok(found) => Ok(Some(found)),
                    Err(error) if error.is_transient() && failures < POLL_FAILURES => {
                        failures += 1;
                        tokio::time::sleep(self.poll * failures).await;
                        Ok(None)
                    }
                    Err(error) => Err(error),
                }
            };
            let found = tokio::select! {
                biased;
                () = self.interrupt.raised() => Err(AdminError::Detached { task_id: task_id.to_owned() }),
                found = step => found,
            };
            match found {
                Ok(Some((report, document))) => {
                    failures = 0;
                    shown.update(&report);
                    if report.state.is_terminal() {
                        shown.end(Some(&report));
                        return Ok((report, document));
                    }
                }
                Ok(None) => {
                    shown.say("The server doesn't answer; trying again...");
                    continue;
                }
                Err(error) => {
                    shown.end(None);
                    return Err(error);
                }
            }
            tokio::select! {
                biased;
                () = self.interrupt.raised() => {
                    shown.end(None);
                    return Err(AdminError::Detached { task_id: task_id.to_owned() });
                }
                () = tokio::time::sleep(pause) => {}
            }
            // By a tenth, so that the end is seen late by a tenth of what the task took at most.
            pause = (pause * 11 / 10).min(self.poll);
        }
    }

    async fn look(&self, task_id: &str) -> Result<(TaskReport, Value), AdminError> {
        let document = self.client.get(&["tasks", task_id], &[]).await?;
        let report = serde_json::from_value(document.clone()).map_err(|e| AdminError::Answer {
            url: format!("{}/…/tasks/{task_id}/", self.client.server()),
            what: format!("no task report ({e})"),
        })?;
        Ok((report, document))
    }

    fn end(&self, report: &TaskReport) {
        self.screen.blank();
        match report.state {
            TaskState::Error => {
                self.screen.failure("Task Failed");
                self.screen.blank();
                for line in fault_lines(report.error.as_ref()) {
                    self.screen.failure(&printable(&line));
                }
            }
            TaskState::Canceled => self.screen.failure("Task Canceled"),
            TaskState::Skipped => self.screen.success("Task Skipped"),
            _ => self.screen.success("Task Succeeded"),
        }
        self.screen.line("\n");
    }
}

/// Why a task failed, for people.
fn fault_lines(error: Option<&Value>) -> Vec<String> {
    match error {
        None | Some(Value::Null) => vec!["The server gave no reason.".to_owned()],
        Some(value) => match serde_json::from_value::<CodedError>(value.clone()) {
            Ok(error) => coded_lines(&error),
            Err(_) => vec![value.to_string()],
        },
    }
}

/// What is on the screen for one task.
enum Shown<'a> {
    Steps {
        spinner: Option<Spinner>,
        steps: Steps<'a>,
    },
    Running {
        screen: &'a Screen,
        spinner: Spinner,
    },
}

impl<'a> Shown<'a> {
    fn new(screen: &'a Screen, style: Style) -> Self {
        let spinner = Spinner::new(screen);
        spinner.say("Waiting to begin...");
        match style {
            Style::Steps => Self::Steps {
                spinner: Some(spinner),
                steps: Steps::new(screen),
            },
            Style::Running => Self::Running { screen, spinner },
        }
    }

    fn say(&self, text: &str) {
        match self {
            Self::Steps {
                spinner: Some(spinner),
                ..
            }
            | Self::Running { spinner, .. } => spinner.say(text),
            Self::Steps { .. } => {}
        }
    }

    fn update(&mut self, report: &TaskReport) {
        let found = StepReport::all(&report.progress_report);
        let text = match report.state {
            TaskState::Waiting => "Waiting to begin...".to_owned(),
            TaskState::Accepted => "Accepted...".to_owned(),
            _ => StepReport::summary(&found)
                .map_or_else(|| "Running...".to_owned(), |s| format!("Running... {s}")),
        };
        self.say(&text);
        if let Self::Steps { spinner, steps, .. } = self {
            if found.iter().any(StepReport::has_begun)
                && let Some(spinner) = spinner.take()
            {
                spinner.clear();
            }
            steps.update(&found);
        }
    }

    /// Leaves plain lines behind.
    fn end(self, report: Option<&TaskReport>) {
        match self {
            Self::Steps { spinner, steps } => {
                if let Some(spinner) = spinner {
                    spinner.clear();
                }
                steps.end();
            }
            Self::Running { screen, spinner } => {
                spinner.clear();
                if report.is_some_and(|r| r.start_time.is_some() || r.state == TaskState::Finished) {
                    screen.line("[-]\nRunning...");
                }
                if let Some(distributor) = report.and_then(updated_distributor) {
                    screen.line(&format!("Updating distributor: {distributor}"));
                }
            }
        }
    }
}

/// The distributor whose settings the task changes.
fn updated_distributor(report: &TaskReport) -> Option<&str> {
    report
        .tags
        .iter()
        .find(|tag| *tag == "pulp:action:update_distributor")?;
    report
        .tags
        .iter()
        .find_map(|tag| tag.strip_prefix("pulp:repository_distributor:"))
}

/// What `--json` prints for tasks that were followed or queued.
pub(crate) fn tasks_document(reports: &[Value]) -> Value {
    json!({"tasks": reports})
}
