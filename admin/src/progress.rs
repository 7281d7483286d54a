//! Bars and steps: moving on a terminal, plain finished lines elsewhere.
//!
//! What stays on the screen is the same in both: on a terminal a moving bar is taken away when its step
//! ends, and the finished lines are printed in its place.

use std::{collections::HashMap, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Deserialize;
use serde_json::Value;

use crate::output::{Screen, printable};

/// Characters between the brackets of a bar.
const WIDTH: usize = 50;

/// A bar over a known number of things.
pub(crate) struct Bar<'a> {
    screen: &'a Screen,
    live: Option<ProgressBar>,
    total: u64,
    done: u64,
    text: String,
}

impl<'a> Bar<'a> {
    /// Shows an empty bar.
    pub(crate) fn new(screen: &'a Screen, total: u64) -> Self {
        let live = screen.animated().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stdout());
            bar.set_style(bar_style());
            bar
        });
        Self {
            screen,
            live,
            total,
            done: 0,
            text: String::new(),
        }
    }

    /// Moves it.
    pub(crate) fn set(&mut self, done: u64, text: impl Into<String>) {
        self.done = done;
        self.text = text.into();
        if let Some(live) = &self.live {
            live.set_position(done);
            live.set_message(self.text.clone());
        }
    }

    /// Leaves it as it is now, as plain lines.
    pub(crate) fn stop(self) {
        if let Some(live) = &self.live {
            live.finish_and_clear();
        }
        self.screen.line(&bar_line(self.done, self.total));
        if !self.text.is_empty() {
            self.screen.line(&self.text);
        }
    }

    /// Leaves it full, with the line that says so.
    pub(crate) fn complete(self) {
        let screen = self.screen;
        self.stop();
        screen.line("... completed");
        screen.blank();
    }
}

/// A spinner for what has no known end.
pub(crate) struct Spinner {
    live: Option<ProgressBar>,
}

impl Spinner {
    /// Shows it on a terminal.
    pub(crate) fn new(screen: &Screen) -> Self {
        let live = screen.animated().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
            bar.set_style(spinner_style());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { live }
    }

    /// The line beneath it.
    pub(crate) fn say(&self, text: impl Into<String>) {
        if let Some(live) = &self.live {
            live.set_message(text.into());
        }
    }

    /// Takes it away.
    pub(crate) fn clear(self) {
        if let Some(live) = self.live {
            live.finish_and_clear();
        }
    }
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("[{bar:50}] {percent}%\n{msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("== ")
}

fn spinner_style() -> ProgressStyle {
    ProgressStyle::with_template("[{spinner}]\n{msg}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
        .tick_strings(&["-", "\\", "|", "/", "-"])
}

fn bar_line(done: u64, total: u64) -> String {
    let percent = if total == 0 {
        100
    } else {
        (u128::from(done.min(total)) * 100 / u128::from(total)) as usize
    };
    let filled = WIDTH * percent / 100;
    format!(
        "[{}{}] {percent}%",
        "=".repeat(filled),
        " ".repeat(WIDTH - filled)
    )
}

/// A step's report, as far as it is shown. Lenient, since plugins of other ages leave fields out.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StepReport {
    step_id: String,
    step_type: String,
    description: Option<String>,
    state: String,
    items_total: u64,
    num_processed: u64,
    details: Value,
    error_details: Vec<StepFault>,
    sub_steps: Vec<StepReport>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct StepFault {
    error: Option<String>,
}

impl StepReport {
    /// The steps of a task's `progress_report` that are worth showing, in order. A step without a
    /// description stands for the steps below it.
    pub(crate) fn all(progress_report: &Value) -> Vec<Self> {
        let mut steps = Vec::new();
        for reports in progress_report
            .as_object()
            .into_iter()
            .flat_map(|map| map.values())
        {
            for report in reports.as_array().into_iter().flatten() {
                if let Ok(step) = serde_json::from_value::<Self>(report.clone()) {
                    step.flatten(&mut steps);
                }
            }
        }
        steps
    }

    fn flatten(self, out: &mut Vec<Self>) {
        if self.description().is_empty() {
            for step in self.sub_steps {
                step.flatten(out);
            }
        } else {
            out.push(self);
        }
    }

    /// Whether there is anything to show of it.
    pub(crate) fn has_begun(&self) -> bool {
        !self.state.is_empty() && self.state != "NOT_STARTED"
    }

    fn description(&self) -> &str {
        self.description.as_deref().unwrap_or_default()
    }

    fn items(&self, total: u64) -> String {
        let mut text = format!("{} of {total} items", self.num_processed.min(total));
        if let Some(details) = self.details.as_str().filter(|d| !d.is_empty()) {
            text.push_str(": ");
            text.push_str(&printable(details));
        }
        text
    }

    /// `Publishing Image Files. 3 of 4 items`, for the line beneath a spinner.
    pub(crate) fn summary(steps: &[Self]) -> Option<String> {
        let step = steps.iter().find(|step| step.state == "IN_PROGRESS")?;
        let text = printable(step.description());
        Some(if step.items_total > 1 {
            format!("{text} {}", step.items(step.items_total))
        } else {
            text
        })
    }
}

/// Shows the steps of one task as they go on.
pub(crate) struct Steps<'a> {
    screen: &'a Screen,
    /// Total of each step when it was first seen, by its id; none once it is done.
    seen: HashMap<String, Option<u64>>,
    live: Option<Live<'a>>,
}

enum Live<'a> {
    Bar(Bar<'a>),
    Spinner(Spinner),
}

impl<'a> Steps<'a> {
    pub(crate) fn new(screen: &'a Screen) -> Self {
        Self {
            screen,
            seen: HashMap::new(),
            live: None,
        }
    }

    /// Shows what is new. Steps run one after the other, so one bar moves at a time.
    pub(crate) fn update(&mut self, steps: &[StepReport]) {
        for (position, step) in steps.iter().enumerate() {
            let id = if step.step_id.is_empty() {
                format!("{position} {}", step.step_type)
            } else {
                step.step_id.clone()
            };
            let total = match self.seen.get(&id) {
                Some(None) => continue,
                Some(Some(total)) => *total,
                None if !step.has_begun() => continue,
                None => {
                    self.screen.line(&printable(step.description()));
                    self.live = Some(if step.items_total > 1 {
                        Live::Bar(Bar::new(self.screen, step.items_total))
                    } else {
                        Live::Spinner(Spinner::new(self.screen))
                    });
                    self.seen.insert(id.clone(), Some(step.items_total));
                    step.items_total
                }
            };
            if step.state == "IN_PROGRESS" {
                match &mut self.live {
                    Some(Live::Bar(bar)) => bar.set(step.num_processed, step.items(total)),
                    Some(Live::Spinner(spinner)) => {
                        spinner.say(printable(step.details.as_str().unwrap_or_default()));
                    }
                    None => {}
                }
                // What comes after it hasn't begun, or is shown when this one is done.
                return;
            }
            self.finish(step, total);
            self.seen.insert(id, None);
        }
    }

    fn finish(&mut self, step: &StepReport, total: u64) {
        match self.live.take() {
            Some(Live::Bar(mut bar)) => {
                bar.set(step.num_processed, step.items(total));
                bar.stop();
            }
            Some(Live::Spinner(spinner)) => {
                spinner.clear();
                self.screen.line("[-]");
            }
            None => {}
        }
        match step.state.as_str() {
            "FINISHED" => self.screen.line("... completed"),
            "SKIPPED" => self.screen.line("... skipped"),
            "CANCELLED" => self.screen.failure("Operation canceled."),
            _ => {
                self.screen.failure("... failed");
                for fault in step
                    .error_details
                    .iter()
                    .filter_map(|fault| fault.error.as_deref())
                {
                    self.screen.failure(&printable(fault));
                }
            }
        }
        self.screen.blank();
    }

    /// Takes a bar away that still moves: its task has ended, or we detach.
    pub(crate) fn end(mut self) {
        match self.live.take() {
            Some(Live::Bar(bar)) => {
                bar.stop();
                self.screen.blank();
            }
            Some(Live::Spinner(spinner)) => {
                spinner.clear();
                self.screen.line("[-]");
                self.screen.blank();
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::io::Io;

    fn shown(reports: &[Value]) -> String {
        let (io, captured) = Io::captured("/nonexistent");
        let screen = Screen {
            io,
            json: false,
            color: true,
        };
        let mut steps = Steps::new(&screen);
        for report in reports {
            steps.update(&StepReport::all(report));
        }
        steps.end();
        captured.out()
    }

    fn step(id: &str, text: &str, state: &str, done: u64, total: u64) -> Value {
        json!({"step_id": id, "step_type": id, "description": text, "state": state, "items_total": total,
            "num_processed": done, "num_success": done, "num_failures": 0, "error_details": []})
    }

    fn report(steps: &[Value]) -> Value {
        json!({"docker_web_distributor_name_cli": steps})
    }

    #[test]
    fn a_bar_is_as_full_as_its_percentage() {
        assert_eq!(bar_line(4, 4), format!("[{}] 100%", "=".repeat(50)));
        assert_eq!(
            bar_line(1, 3),
            format!("[{}{}] 33%", "=".repeat(16), " ".repeat(34))
        );
        assert_eq!(bar_line(9, 3), bar_line(3, 3));
        assert_eq!(bar_line(0, 0), bar_line(1, 1));
    }

    #[test]
    fn each_step_is_printed_once_however_often_it_is_reported() {
        let full = "=".repeat(50);
        let begun = report(&[
            step("a", "Publishing Image Files.", "IN_PROGRESS", 1, 4),
            step("b", "Web.", "NOT_STARTED", 0, 1),
        ]);
        let ended = report(&[
            step("a", "Publishing Image Files.", "FINISHED", 4, 4),
            step("b", "Web.", "FINISHED", 1, 1),
        ]);
        let expected = format!(
            "Publishing Image Files.\n[{full}] 100%\n4 of 4 items\n... completed\n\nWeb.\n[-]\n... completed\n\n"
        );
        assert_eq!(
            shown(&[begun.clone(), begun, ended.clone(), ended.clone()]),
            expected
        );
        assert_eq!(shown(&[ended]), expected, "also when only the end is seen");
    }

    #[test]
    fn a_failed_step_tells_its_errors_and_a_cancelled_one_says_so() {
        let mut failed = step("a", "Saving tar file.", "FAILED", 0, 1);
        failed["error_details"] = json!([{"error": "disk full", "traceback": null}, {"error": null}]);
        assert_eq!(
            shown(&[report(&[failed])]),
            "Saving tar file.\n[-]\n... failed\ndisk full\n\n"
        );
        let cancelled = step("a", "Saving tar file.", "CANCELLED", 0, 1);
        assert_eq!(
            shown(&[report(&[cancelled])]),
            "Saving tar file.\n[-]\nOperation canceled.\n\n"
        );
        let skipped = step("a", "Saving tar file.", "SKIPPED", 0, 1);
        assert_eq!(
            shown(&[report(&[skipped])]),
            "Saving tar file.\n[-]\n... skipped\n\n"
        );
    }

    #[test]
    fn a_step_without_a_description_stands_for_the_steps_below_it() {
        let outer = json!({"step_id": "o", "description": "", "state": "FINISHED", "items_total": 1,
            "sub_steps": [step("i", "Publishing Blobs.", "FINISHED", 2, 2), step("j", "", "FINISHED", 1, 1)]});
        assert_eq!(
            shown(&[report(&[outer])]),
            format!(
                "Publishing Blobs.\n[{}] 100%\n2 of 2 items\n... completed\n\n",
                "=".repeat(50)
            )
        );
    }

    #[test]
    fn details_stand_behind_the_items() {
        let mut one = step("a", "Downloading.", "FINISHED", 2, 2);
        one["details"] = json!("sha256:ab\u{1b}[0m");
        assert!(shown(&[report(&[one])]).contains("\n2 of 2 items: sha256:ab[0m\n"));
    }

    #[test]
    fn a_report_of_another_shape_shows_nothing() {
        for other in [
            json!(null),
            json!({}),
            json!({"x": 1}),
            json!({"x": [1, {"description": 5}]}),
        ] {
            assert_eq!(shown(&[other]), "");
        }
    }
}
