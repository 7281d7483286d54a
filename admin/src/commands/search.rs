//! `docker repo search …` and `docker repo images`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{App, Stop, missing};
use crate::{
    cli::{Search, SearchArgs},
    error::AdminError,
    output::Hidden,
};

pub(super) async fn run(app: &App, command: Search) -> Result<(), Stop> {
    match command {
        Search::Image(args) => images(app, &args).await,
        Search::Manifest(args) => show(app, &args, "docker_manifest").await,
        Search::ManifestList(args) => show(app, &args, "docker_manifest_list").await,
        Search::Tag(args) => show(app, &args, "docker_tag").await,
        Search::Blob(args) => show(app, &args, "docker_blob").await,
    }
}

/// v1 images with the tags that point to them, which the repository keeps apart from the units.
pub(super) async fn images(app: &App, args: &SearchArgs) -> Result<(), Stop> {
    let mut units = units(app, args, "docker_image", &["image_id"]).await?;
    let repository = app.repository(&args.repo_id, &[]).await?;
    let tags = tags_by_image(&repository);
    for unit in &mut units {
        let Some(metadata) = unit.get_mut("metadata").and_then(Value::as_object_mut) else {
            continue;
        };
        let names = metadata
            .get("image_id")
            .and_then(Value::as_str)
            .and_then(|id| tags.get(id))
            .cloned()
            .unwrap_or_default();
        metadata.insert("tags".to_owned(), json!(names));
    }
    display(app, args, &units);
    Ok(())
}

async fn show(app: &App, args: &SearchArgs, type_id: &str) -> Result<(), Stop> {
    let units = units(app, args, type_id, &[]).await?;
    display(app, args, &units);
    Ok(())
}

async fn units(
    app: &App,
    args: &SearchArgs,
    type_id: &str,
    needed: &[&str],
) -> Result<Vec<Value>, AdminError> {
    let path = ["repositories", args.repo_id.as_str(), "search", "units"];
    let body = json!({"criteria": args.criteria.associations(type_id, needed)});
    let reply = app
        .client
        .post(&path, &body)
        .await
        .map_err(|e| missing(e, &args.repo_id))?;
    Ok(reply.body.as_array().cloned().unwrap_or_default())
}

fn display(app: &App, args: &SearchArgs, units: &[Value]) {
    let hidden = if args.details { Hidden::Show } else { Hidden::Omit };
    for unit in units {
        let mut unit = unit.clone();
        // `id` repeats `_id`, the association's own.
        if let (Hidden::Omit, Some(map)) = (hidden, unit.as_object_mut()) {
            map.remove("id");
        }
        app.screen.document(&unit, &["created", "metadata"], hidden);
    }
    app.screen.result(&json!(units));
}

fn tags_by_image(repository: &Value) -> BTreeMap<&str, Vec<&str>> {
    let mut tags: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let entries = repository.pointer("/scratchpad/tags").and_then(Value::as_array);
    for entry in entries.into_iter().flatten() {
        let text = |key: &str| entry.get(key).and_then(Value::as_str);
        if let (Some(tag), Some(image)) = (text("tag"), text("image_id")) {
            tags.entry(image).or_default().push(tag);
        }
    }
    tags
}
