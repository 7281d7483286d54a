//! Uploads under way: created on the server, sent, imported, cleaned up.

use serde_json::{Map, Value, json};

use crate::{
    commands::{App, Stop},
    error::{AdminError, Exit},
    output::printable,
    progress::Bar,
    task::{Style, spawned},
    upload::{
        tracker::{Held, Source, Store, Tracker},
        transfer::Transfer,
    },
};

/// What is to be uploaded, before the server knows of it.
pub(in crate::commands) struct Draft {
    pub(in crate::commands) source: Option<Source>,
    pub(in crate::commands) unit_type_id: &'static str,
    pub(in crate::commands) unit_key: Map<String, Value>,
    pub(in crate::commands) unit_metadata: Map<String, Value>,
    pub(in crate::commands) override_config: Map<String, Value>,
}

/// An upload that this process works on.
pub(in crate::commands) struct Work {
    pub(super) tracker: Tracker,
    pub(super) _held: Held,
    /// Begun by an earlier run.
    pub(super) resumed: bool,
}

/// Files that were told to be no images before anything was sent.
#[derive(Debug, Default)]
pub(in crate::commands) struct Refused {
    pub(super) results: Vec<Value>,
    pub(super) exit: Option<Exit>,
}

/// Creates an upload request and a tracker for each draft.
pub(in crate::commands) async fn create(
    app: &App,
    store: &Store,
    repo_id: &str,
    drafts: Vec<Draft>,
) -> Result<Vec<Work>, AdminError> {
    let mut bar = Bar::new(&app.screen, drafts.len() as u64);
    let mut work = Vec::new();
    for (done, draft) in drafts.into_iter().enumerate() {
        let reply = app.client.post(&["content", "uploads"], &json!({})).await?;
        let text = |key: &str| reply.body.get(key).and_then(Value::as_str).map(ToOwned::to_owned);
        let upload_id = text("upload_id").ok_or_else(|| AdminError::Answer {
            url: app.client.server(),
            what: "an upload request without an id".to_owned(),
        })?;
        let name = draft.source.as_ref().map(Source::name);
        let tracker = Tracker {
            upload_id,
            location: text("_href"),
            server: app.config.server.to_string(),
            repo_id: repo_id.to_owned(),
            is_finished_uploading: draft.source.is_none(),
            source: draft.source,
            offset: 0,
            import_task_id: None,
            unit_type_id: draft.unit_type_id.to_owned(),
            unit_key: draft.unit_key,
            unit_metadata: draft.unit_metadata,
            override_config: draft.override_config,
        };
        let held = hold(store, &tracker)?;
        store.save(&tracker, true)?;
        work.push(Work {
            tracker,
            _held: held,
            resumed: false,
        });
        let text = name.map_or_else(
            || "Initializing upload".to_owned(),
            |name| format!("Initializing: {}", printable(&name)),
        );
        bar.set(done as u64 + 1, text);
    }
    bar.complete();
    Ok(work)
}

pub(super) fn hold(store: &Store, tracker: &Tracker) -> Result<Held, AdminError> {
    store.hold(&tracker.upload_id)?.ok_or_else(|| {
        AdminError::Data(format!(
            "upload {} is under way in another process",
            tracker.upload_id
        ))
    })
}

/// Sends, imports and cleans up, one upload after the other. One that fails doesn't stop the others,
/// unless the server is gone or the person wants to.
pub(in crate::commands) async fn process_all(
    app: &App,
    store: &Store,
    work: Vec<Work>,
    bg: bool,
    refused: Refused,
) -> Result<(), Stop> {
    if work.iter().any(|work| !work.tracker.is_finished_uploading) {
        app.screen.line(
            "Starting upload of selected units. If this process is stopped through ctrl+c,\n\
             the uploads will be paused and may be resumed later using the resume command or\n\
             canceled entirely using the cancel command.\n",
        );
    }
    let Refused {
        mut results,
        exit: mut first,
    } = refused;
    for mut work in work {
        let ended = process(app, store, &mut work, bg).await;
        let tracker = &work.tracker;
        let mut result = json!({
            "file": tracker.source.as_ref().map(|source| source.path.display().to_string()),
            "upload_id": tracker.upload_id,
            "unit_type_id": tracker.unit_type_id,
            "import_task_id": tracker.import_task_id,
        });
        let stop = match ended {
            Ok(tasks) => {
                result["tasks"] = json!(tasks);
                false
            }
            Err(error) => {
                result["error"] = error.to_json();
                if !matches!(error, AdminError::Task { .. }) {
                    app.screen.error(&printable(&error.to_string()));
                }
                first.get_or_insert(error.exit());
                error.is_transient() || matches!(error.exit(), Exit::Interrupted | Exit::NoPermission)
            }
        };
        results.push(result);
        if stop {
            break;
        }
    }
    app.screen.result(&json!({"uploads": results}));
    first.map_or(Ok(()), |exit| Err(Stop::Told(exit)))
}

/// One upload, from wherever it stands to its end. Returns the reports of its tasks.
async fn process(app: &App, store: &Store, work: &mut Work, bg: bool) -> Result<Vec<Value>, AdminError> {
    let tracker = &mut work.tracker;
    if !tracker.is_finished_uploading {
        let transfer = Transfer {
            client: &app.client,
            screen: &app.screen,
            interrupt: &app.io.interrupt,
            store,
            chunk_size: app.config.chunk_size,
        };
        transfer.run(tracker, work.resumed).await?;
    }
    app.screen.line("Importing into the repository...");
    let task = match &tracker.import_task_id {
        Some(task) => task.clone(),
        None => import(app, store, tracker).await?,
    };
    if bg {
        app.screen.line(&format!(
            "Request accepted. Follow it by: pulp-admin tasks details --task-id {task}"
        ));
        app.screen.line(&clean_up_hint(tracker));
        return Ok(Vec::new());
    }
    let followed = app.follower().follow(vec![task], Style::Running).await;
    match followed {
        Ok(reports) => {
            tell_notices(app, &reports);
            remove(app, store, tracker).await?;
            Ok(reports)
        }
        // The bytes are of no further use: the importer has refused them.
        Err(error @ AdminError::Task { .. }) => {
            remove(app, store, tracker).await?;
            Err(error)
        }
        // The task's record was purged: whether it did its work can't be known, so it is done again.
        Err(error) if error.status() == Some(404) && work.resumed => {
            tracker.import_task_id = None;
            let task = import(app, store, tracker).await?;
            let followed = app.follower().follow(vec![task], Style::Running).await;
            if matches!(followed, Ok(_) | Err(AdminError::Task { .. })) {
                remove(app, store, tracker).await?;
            }
            drop(error);
            followed
        }
        Err(error) => {
            if matches!(error, AdminError::Detached { .. }) {
                app.screen.line(&format!("\n{}", clean_up_hint(tracker)));
            }
            Err(error)
        }
    }
}

/// What the importer wants a person to know though it succeeded, such as an image without a v2 side.
fn tell_notices(app: &App, reports: &[Value]) {
    for report in reports {
        let notices = report["result"]["details"]["notices"].as_array();
        for notice in notices.into_iter().flatten().filter_map(Value::as_str) {
            app.screen.warning(&format!("Note: {}", printable(notice)));
        }
    }
}

fn clean_up_hint(tracker: &Tracker) -> String {
    format!(
        "Remove the upload afterwards by: pulp-admin docker repo uploads resume --upload-id {}\n",
        tracker.upload_id
    )
}

async fn import(app: &App, store: &Store, tracker: &mut Tracker) -> Result<String, AdminError> {
    let path = ["repositories", &tracker.repo_id, "actions", "import_upload"];
    let body = json!({
        "upload_id": tracker.upload_id,
        "unit_type_id": tracker.unit_type_id,
        "unit_key": tracker.unit_key,
        "unit_metadata": tracker.unit_metadata,
        "override_config": tracker.override_config,
    });
    let sent = match app.client.post(&path, &body).await {
        Ok(reply) => spawned(&reply)?,
        Err(error) => {
            // It will be refused the next time as well.
            if matches!(error.status(), Some(400 | 404 | 409)) {
                remove(app, store, tracker).await?;
            }
            return Err(error);
        }
    };
    let task = sent.into_iter().next().ok_or_else(|| AdminError::Answer {
        url: app.client.server(),
        what: "an import without a task".to_owned(),
    })?;
    tracker.import_task_id = Some(task.clone());
    store.save(tracker, true)?;
    Ok(task)
}

/// Deletes the upload request, and then its tracker.
async fn remove(app: &App, store: &Store, tracker: &Tracker) -> Result<(), AdminError> {
    app.screen.line("Deleting the upload request...");
    match app
        .client
        .delete(&["content", "uploads", &tracker.upload_id], &[])
        .await
    {
        Err(error) if error.status() != Some(404) => {
            app.screen.warning(&format!(
                "The upload request could not be deleted ({error}); do it later by: \
                 pulp-admin docker repo uploads cancel --upload-id {}",
                tracker.upload_id
            ));
        }
        _ => {
            store.remove(&tracker.upload_id)?;
            app.screen.line("... completed\n");
        }
    }
    Ok(())
}
