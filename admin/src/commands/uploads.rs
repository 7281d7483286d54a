//! `docker repo uploads upload|list|resume|cancel`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{App, Stop};
use crate::{
    cli::{CancelUploads, ChooseUploads, UploadArgs, Uploads},
    error::{AdminError, Exit},
    io::Ask,
    output::printable,
    progress::Bar,
    task::{Style, spawned},
    upload::{
        detect::detect,
        tracker::{Held, Source, Store, Tracker},
        transfer::Transfer,
    },
};

pub(super) async fn run(app: &App, command: Uploads) -> Result<(), Stop> {
    let store = Store::open(&app.config.upload_dir)?;
    match command {
        Uploads::Upload(args) => upload(app, &store, &args).await,
        Uploads::List => list(app, &store),
        Uploads::Resume(args) => resume(app, &store, &args).await,
        Uploads::Cancel(args) => cancel(app, &store, &args).await,
    }
}

/// What is to be uploaded, before the server knows of it.
pub(super) struct Draft {
    pub(super) source: Option<Source>,
    pub(super) unit_type_id: &'static str,
    pub(super) unit_key: Map<String, Value>,
    pub(super) unit_metadata: Map<String, Value>,
    pub(super) override_config: Map<String, Value>,
}

/// An upload that this process works on.
pub(super) struct Work {
    tracker: Tracker,
    _held: Held,
    /// Begun by an earlier run.
    resumed: bool,
}

async fn upload(app: &App, store: &Store, args: &UploadArgs) -> Result<(), Stop> {
    app.screen.title("Unit Upload");
    app.repository(&args.repo_id, &[]).await?;
    let files = files(args)?;
    let mut override_config = Map::new();
    if let Some(mask) = args.mask_id.as_deref().filter(|mask| !mask.is_empty()) {
        override_config.insert("mask_id".to_owned(), json!(mask));
    }

    app.screen
        .line("Extracting necessary metadata for each request...");
    let (mut drafts, mut refused) = (Vec::new(), Vec::new());
    let mut bar = Bar::new(&app.screen, files.len() as u64);
    for (done, (file, origin)) in files.iter().enumerate() {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        bar.set(done as u64 + 1, format!("Analyzing: {}", printable(&name)));
        match detect(file).and_then(|unit_type| Ok((unit_type, Source::of(file)?))) {
            Ok((unit_type, source)) => drafts.push(Draft {
                source: Some(source),
                unit_type_id: unit_type.as_str(),
                unit_key: Map::new(),
                unit_metadata: Map::new(),
                override_config: override_config.clone(),
            }),
            Err(error) => refused.push((file, *origin, error)),
        }
    }
    bar.complete();
    let (mut told, mut first) = (Vec::new(), None);
    for (file, origin, error) in refused {
        // A folder may hold other things beside the images.
        if origin == Origin::Folder && matches!(error, AdminError::Data(_)) {
            app.screen.warning(&format!("Skipped: {error}"));
            continue;
        }
        if !drafts.is_empty() {
            app.screen.error(&printable(&error.to_string()));
        }
        told.push(json!({"file": file.display().to_string(), "error": error.to_json()}));
        first.get_or_insert(error);
    }
    if drafts.is_empty() {
        let error = first.unwrap_or_else(|| AdminError::Data("No files eligible for upload".to_owned()));
        return Err(error.into());
    }

    app.screen.line("Creating upload requests on the server...");
    let work = create(app, store, args.repo_id.as_str(), drafts).await?;
    let refused = Refused {
        results: told,
        exit: first.map(|error| error.exit()),
    };
    process_all(app, store, work, args.bg, refused).await
}

/// Files that were told to be no images before anything was sent.
#[derive(Debug, Default)]
pub(super) struct Refused {
    results: Vec<Value>,
    exit: Option<Exit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Named,
    Folder,
}

fn files(args: &UploadArgs) -> Result<Vec<(PathBuf, Origin)>, AdminError> {
    let mut files: Vec<_> = args
        .file
        .iter()
        .map(|file| (file.clone(), Origin::Named))
        .collect();
    for folder in &args.dir {
        if !folder.is_dir() {
            return Err(AdminError::File {
                path: folder.clone(),
                source: std::io::Error::new(
                    std::io::ErrorKind::NotFound,
                    format!("Directory {} does not exist", folder.display()),
                ),
            });
        }
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(AdminError::file(folder))? {
            let path = entry.map_err(AdminError::file(folder))?.path();
            if path.is_file() {
                found.push((path, Origin::Folder));
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        files.extend(found);
    }
    if files.is_empty() {
        return Err(AdminError::Data("No files selected for upload".to_owned()));
    }
    if let Some((file, _)) = files
        .iter()
        .find(|(file, origin)| *origin == Origin::Named && !is_readable(file))
    {
        return Err(AdminError::File {
            path: file.clone(),
            source: std::io::Error::other(format!(
                "File {} does not exist or could not be read",
                file.display()
            )),
        });
    }
    Ok(files)
}

fn is_readable(file: &Path) -> bool {
    file.is_file() && std::fs::File::open(file).is_ok()
}

/// Creates an upload request and a tracker for each draft.
pub(super) async fn create(
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

fn hold(store: &Store, tracker: &Tracker) -> Result<Held, AdminError> {
    store.hold(&tracker.upload_id)?.ok_or_else(|| {
        AdminError::Data(format!(
            "upload {} is under way in another process",
            tracker.upload_id
        ))
    })
}

/// Sends, imports and cleans up, one upload after the other. One that fails doesn't stop the others,
/// unless the server is gone or the person wants to.
pub(super) async fn process_all(
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

fn list(app: &App, store: &Store) -> Result<(), Stop> {
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

async fn resume(app: &App, store: &Store, args: &ChooseUploads) -> Result<(), Stop> {
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

async fn cancel(app: &App, store: &Store, args: &CancelUploads) -> Result<(), Stop> {
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
