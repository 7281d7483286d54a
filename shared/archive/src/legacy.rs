//! `docker save` archives from before Docker 1.10: v1 images and `repositories`, nothing else.
//!
//! Each head gives, beside the v1 images, a schema 2 manifest whose config is made from the JSON of its line. Nothing
//! vouches for the layers there, so each must be readable as a tar for the manifest to be made.

use std::collections::BTreeSet;

use pulp_model::{Digest, unit::ImageId};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    ArchiveError, Limits, Rejection, UploadKind,
    docker::{REPOSITORIES, read_repositories, store_manifest, tag_v1},
    index::too_large,
    json,
    layer::{GzipLayer, Session},
    names::Repositories,
    output::Output,
    v1,
};

/// Imports an archive that has v1 images and nothing else.
pub(crate) fn import(session: &mut Session<'_>, out: &mut Output) -> Result<(), ArchiveError> {
    let mut repositories = Repositories::default();
    let tags = read_repositories(session, &mut repositories)?;
    repositories.check()?;
    let images = v1::read(session, out)?;
    session.announce(&images.places(session)?);
    if session.options.unit_type == UploadKind::DockerImage {
        images.store(session, out)?;
        for (tag, id) in &tags {
            tag_v1(tag, id, &images, out)?;
        }
    }
    if tags.is_empty() {
        out.notice("the archive was saved without a tag; its images are imported without one");
    }

    let named = tags.iter().filter_map(|(_, id)| id.parse::<ImageId>().ok());
    let heads: BTreeSet<ImageId> = images.leaves().into_iter().cloned().chain(named).collect();
    for head in heads {
        let line = images.line(&head);
        if line.iter().any(|id| images.masked.contains(*id)) {
            out.notice(format!("image {head} has masked layers and gets no manifest"));
            continue;
        }
        let mut layers = Vec::with_capacity(line.len());
        for id in line.iter().rev() {
            let file = v1::layer_file(id);
            layers.push((
                file.clone(),
                session.gzip_layer(&file, session.index.require(&file)?)?,
            ));
        }
        if let Some((file, _)) = layers.iter().find(|(_, layer)| !layer.is_tar) {
            out.notice(format!("image {head} gets no manifest: {file} is not a tar"));
            continue;
        }
        let layers: Vec<GzipLayer> = layers.into_iter().map(|(_, layer)| layer).collect();
        let config = config_of(session, &line, &layers)?;
        let manifest = store_manifest(session, out, &config, &layers)?;
        for (tag, _) in tags.iter().filter(|(_, id)| *id == head.as_str()) {
            out.tag(tag, &session.options.repo_id, &manifest, REPOSITORIES)?;
        }
    }
    Ok(())
}

/// The JSONs of one image's line may be so many times as large as a config.
const MOST_JSONS: u64 = 8;

/// What of a v1 image's JSON goes into a config.
#[derive(Deserialize)]
struct V1Fields<'a> {
    #[serde(borrow)]
    created: Option<&'a RawValue>,
    author: Option<String>,
    comment: Option<String>,
    #[serde(borrow)]
    container: Option<&'a RawValue>,
    #[serde(borrow)]
    container_config: Option<&'a RawValue>,
    #[serde(borrow)]
    docker_version: Option<&'a RawValue>,
    #[serde(borrow)]
    config: Option<&'a RawValue>,
    architecture: Option<String>,
    os: Option<String>,
}

#[derive(Serialize)]
struct MadeConfig<'a> {
    architecture: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    author: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_config: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    docker_version: Option<&'a RawValue>,
    history: Vec<History>,
    os: &'a str,
    rootfs: MadeRootFs<'a>,
}

#[derive(Serialize)]
struct MadeRootFs<'a> {
    r#type: &'static str,
    diff_ids: Vec<&'a Digest>,
}

#[derive(Serialize)]
struct History {
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    author: Option<String>,
    created_by: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
}

/// Makes the config of the v1 images in `line`, child first; `layers` are theirs, base first.
fn config_of(
    session: &Session<'_>,
    line: &[&ImageId],
    layers: &[GzipLayer],
) -> Result<Vec<u8>, ArchiveError> {
    let limits = &session.options.limits;
    let jsons = line.iter().rev().map(|id| {
        let file = v1::json_file(id);
        let place = session.index.require(&file)?;
        let bytes = session.index.bytes(&file, place, limits.metadata_bytes)?;
        Ok((file, bytes))
    });
    let diff_ids = layers.iter().filter_map(|layer| layer.diff_id.as_ref()).collect();
    made_config(jsons, diff_ids, limits)
}

/// Makes the config of a line of v1 images: their JSONs, each with its name, and the digests of their layers, base
/// first. One JSON is held at a time.
pub(crate) fn made_config<B: AsRef<[u8]>>(
    jsons: impl Iterator<Item = Result<(String, B), ArchiveError>>,
    diff_ids: Vec<&Digest>,
    limits: &Limits,
) -> Result<Vec<u8>, ArchiveError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Command {
        #[serde(default)]
        cmd: Option<Vec<String>>,
    }
    let (mut history, mut last, mut total) = (Vec::new(), None, 0);
    for json in jsons {
        let (file, bytes) = json?;
        let fields: V1Fields<'_> = json::parse(&file, bytes.as_ref())?;
        // What of it is kept is no more than all of it.
        total += bytes.as_ref().len() as u64;
        if total > MOST_JSONS * limits.config_bytes {
            return Err(too_large(
                &file,
                total,
                MOST_JSONS * limits.config_bytes,
                "bytes of JSON of one image",
            ));
        }
        let command = fields
            .container_config
            .and_then(|c| serde_json::from_str::<Command>(c.get()).ok());
        history.push(History {
            created: fields.created.map(ToOwned::to_owned),
            author: fields.author.filter(|text| !text.is_empty()),
            created_by: command.and_then(|c| c.cmd).unwrap_or_default().join(" "),
            comment: fields.comment.filter(|text| !text.is_empty()),
        });
        last = Some((file, bytes));
    }
    let (file, bytes) = last.ok_or_else(|| Rejection::NoImages {
        reason: "it has no layer".to_owned(),
    })?;
    let top: V1Fields<'_> = json::parse(&file, bytes.as_ref())?;
    json::bytes(
        "config",
        &MadeConfig {
            architecture: architecture(top.architecture.as_deref().unwrap_or_default()),
            author: top.author.as_deref(),
            comment: top.comment.as_deref(),
            config: top.config,
            container: top.container,
            container_config: top.container_config,
            created: top.created,
            docker_version: top.docker_version,
            history,
            os: top.os.as_deref().filter(|os| !os.is_empty()).unwrap_or("linux"),
            rootfs: MadeRootFs {
                r#type: "layers",
                diff_ids,
            },
        },
    )
}

/// Go's name of an architecture; the first versions of Docker wrote the kernel's.
fn architecture(name: &str) -> &str {
    match name {
        "" | "x86_64" => "amd64",
        "i386" | "i686" => "386",
        "aarch64" => "arm64",
        other => other,
    }
}
