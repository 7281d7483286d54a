//! Uploads left from earlier runs: listed, gone on with, given up.

use serde_json::json;

use super::process::{Refused, Work, hold, process_all};
use crate::{
    cli::{CancelUploads, ChooseUploads},
    commands::{App, Stop},
    error::{AdminError, Exit},
    io::Ask,
    output::printable,
    upload::tracker::{Store, Tracker},
};

pub(super) fn list(app: &App, store: &Store) -> Result<(), Stop> {
    let (trackers, damaged) = store.all()?;
    app.screen.title("Upload Requests");
    if trackers.is_empty() {
        app.screen.line("No uploads are under way or paused.");
    }
    let mut results = Vec::new();
    for tracker in &trackers {
        let state = if store.is_held(&tracker.upload_id)? {
            "Running"
        } else {
            "Paused"
        };
        app.screen.line(&format!("[{state:7}] {}", describe(tracker)));
        results.push(json!({
            "upload_id": tracker.upload_id, "state": state, "repo_id": tracker.repo_id, "server": tracker.server,
            "file": tracker.source.as_ref().map(|source| source.path.display().to_string()),
            "offset": tracker.offset, "size": tracker.size(), "import_task_id": tracker.import_task_id,
        }));
    }
    for path in damaged {
        app.screen.warning(&format!(
            "{} is no tracker of an upload; delete it",
            path.display()
        ));
    }
    app.screen.result(&json!(results));
    Ok(())
}

fn describe(tracker: &Tracker) -> String {
    format!(
        "{} ({}/{} bytes, repository {}, upload {})",
        printable(&tracker.name()),
        tracker.offset,
        tracker.size(),
        tracker.repo_id,
        tracker.upload_id
    )
}

pub(super) async fn resume(app: &App, store: &Store, args: &ChooseUploads) -> Result<(), Stop> {
    app.screen.title("Upload Resume");
    let mut work = Vec::new();
    for tracker in choose(app, store, args)? {
        let held = hold(store, &tracker)?;
        work.push(Work {
            tracker,
            _held: held,
            resumed: true,
        });
    }
    process_all(app, store, work, false, Refused::default()).await
}

pub(super) async fn cancel(app: &App, store: &Store, args: &CancelUploads) -> Result<(), Stop> {
    app.screen.title("Upload Cancel");
    let (mut canceled, mut failed) = (Vec::new(), false);
    for tracker in choose(app, store, &args.choose)? {
        let held = store.hold(&tracker.upload_id)?;
        if held.is_none() && !args.force {
            app.screen.error(&format!(
                "{} is under way; stop it first, or use --force",
                describe(&tracker)
            ));
            failed = true;
            continue;
        }
        match app
            .client
            .delete(&["content", "uploads", &tracker.upload_id], &[])
            .await
        {
            Err(error) if error.status() != Some(404) && !args.force => {
                app.screen
                    .error(&format!("{} could not be deleted: {error}", describe(&tracker)));
                failed = true;
            }
            _ => {
                store.remove(&tracker.upload_id)?;
                app.screen
                    .success(&format!("Successfully canceled {}", describe(&tracker)));
                canceled.push(tracker.upload_id);
            }
        }
    }
    app.screen.result(&json!({"canceled": canceled}));
    if failed { Err(Stop::Told(Exit::Io)) } else { Ok(()) }
}

/// The uploads that the options or the person mean.
fn choose(app: &App, store: &Store, args: &ChooseUploads) -> Result<Vec<Tracker>, AdminError> {
    let (trackers, _) = store.all()?;
    let here = app.config.server.as_str();
    if !args.upload_id.is_empty() {
        let mut chosen = Vec::new();
        for id in &args.upload_id {
            let tracker = trackers
                .iter()
                .find(|tracker| &tracker.upload_id == id)
                .ok_or_else(|| {
                    AdminError::Data(format!(
                        "no upload {id:?} is known here; `uploads list` shows those that are"
                    ))
                })?;
            if tracker.server != here {
                return Err(AdminError::Data(format!(
                    "upload {id} is of the server {}, not of {here}; use --server",
                    tracker.server
                )));
            }
            chosen.push(tracker.clone());
        }
        return Ok(chosen);
    }
    let mut paused = Vec::new();
    for tracker in trackers {
        if tracker.server == here && !store.is_held(&tracker.upload_id)? {
            paused.push(tracker);
        }
    }
    if paused.is_empty() {
        return Err(AdminError::Data(
            "No paused uploads of this server were found".to_owned(),
        ));
    }
    if args.all {
        return Ok(paused);
    }
    if !app.io.interactive || app.screen.json {
        return Err(AdminError::Usage(format!(
            "say which: --all, or --upload-id with one of {}",
            paused
                .iter()
                .map(|tracker| tracker.upload_id.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        )));
    }
    for (number, tracker) in paused.iter().enumerate() {
        app.screen
            .line(&format!("{:3}) {}", number + 1, describe(tracker)));
    }
    let answer = app
        .io
        .ask(Ask::Line(
            "Which (numbers separated by spaces or commas, or all): ",
        ))
        .map_err(|_| AdminError::Usage("nothing was chosen".to_owned()))?;
    picks(&answer, paused)
}

fn picks(answer: &str, paused: Vec<Tracker>) -> Result<Vec<Tracker>, AdminError> {
    if answer.eq_ignore_ascii_case("all") {
        return Ok(paused);
    }
    let mut chosen = Vec::new();
    for word in answer.split([' ', ',']).filter(|word| !word.is_empty()) {
        let number: usize = word.parse().unwrap_or(0);
        let tracker = number.checked_sub(1).and_then(|position| paused.get(position));
        chosen.push(tracker.cloned().ok_or_else(|| {
            AdminError::Usage(format!("{word:?} is none of the numbers 1 to {}", paused.len()))
        })?);
    }
    if chosen.is_empty() {
        return Err(AdminError::Usage("nothing was chosen".to_owned()));
    }
    Ok(chosen)
}
