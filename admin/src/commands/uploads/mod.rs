//! `docker repo uploads upload|list|resume|cancel`.

mod manage;
mod process;

use std::path::{Path, PathBuf};

use serde_json::{Map, json};

use super::{App, Stop};
use crate::{
    cli::{UploadArgs, Uploads},
    error::AdminError,
    output::printable,
    progress::Bar,
    upload::{
        detect::detect,
        tracker::{Source, Store},
    },
};

pub(super) use process::{Draft, Refused, create, process_all};

pub(super) async fn run(app: &App, command: Uploads) -> Result<(), Stop> {
    let store = Store::open(&app.config.upload_dir)?;
    match command {
        Uploads::Upload(args) => upload(app, &store, &args).await,
        Uploads::List => manage::list(app, &store),
        Uploads::Resume(args) => manage::resume(app, &store, &args).await,
        Uploads::Cancel(args) => manage::cancel(app, &store, &args).await,
    }
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
            app.screen.warning(&printable(&format!("Skipped: {error}")));
            continue;
        }
        // The first is told at the end, if it is what the command ends with.
        if !drafts.is_empty() || first.is_some() {
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
            return Err(AdminError::Io(format!(
                "Directory {} does not exist",
                folder.display()
            )));
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
        return Err(AdminError::Io(format!(
            "File {} does not exist or could not be read",
            file.display()
        )));
    }
    Ok(files)
}

fn is_readable(file: &Path) -> bool {
    file.is_file() && std::fs::File::open(file).is_ok()
}
