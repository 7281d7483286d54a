//! The way of an import: open, index, recognise the layout, take in.

use std::{collections::HashMap, path::Path};

use serde_json::value::RawValue;

use crate::{
    ArchiveError, BlobSink, ImportOptions, Imported, Phase, Progress, Rejection, UploadKind, docker,
    index::Index,
    json,
    layer::{Budget, Session},
    layout::{self, LayoutIndex},
    legacy, list,
    output::Output,
    upload, v1,
};

/// Reads the archive (or, for [`UploadKind::DockerManifestList`], the JSON) in the file `upload`, stores all
/// blobs of it in `sink`, and gives the units they make.
///
/// The layout is recognised by the archive's content. Blocks for as long as it takes: not to be called on an
/// async executor's thread. After an error, blobs may have been stored that nothing refers to.
pub fn import(
    upload: &Path,
    options: &ImportOptions,
    sink: &dyn BlobSink,
    progress: &dyn Progress,
) -> Result<Imported, ArchiveError> {
    if options.unit_type == UploadKind::DockerManifestList {
        return list::import(upload, sink);
    }
    let budget = Budget::new(options.limits.expanded_bytes);
    let (file, len) = upload::open(upload, options, &budget, progress)?;
    progress.phase(Phase::Reading);
    let index = Index::read(file, len, &options.limits, progress)?;
    let mut session = Session {
        index: &index,
        options,
        sink,
        progress,
        budget: &budget,
        layers: HashMap::new(),
    };
    let layout = recognise(&session)?;
    progress.phase(Phase::Storing);
    let mut out = Output::default();
    match layout {
        Layout::Oci(index, saved) => layout::import_oci(&mut session, &index, &saved, &mut out)?,
        Layout::Docker(saved) => docker::import(&mut session, &saved, &mut out)?,
        Layout::Dir => layout::import_dir(&session, &mut out)?,
        Layout::V1 => legacy::import(&mut session, &mut out)?,
    }
    if out.is_empty() && options.mask_id.is_none() {
        return Err(Rejection::NoImages {
            reason: "it holds nothing that could be imported".to_owned(),
        }
        .into());
    }
    Ok(out.finish(options.unit_type))
}

/// How an archive is laid out.
enum Layout {
    /// `index.json`; since Docker 25 `docker save` adds its own `manifest.json`.
    Oci(LayoutIndex, Vec<docker::Saved>),
    /// `manifest.json`, a list of images.
    Docker(Vec<docker::Saved>),
    /// `manifest.json`, a manifest.
    Dir,
    /// `<id>/json` and nothing newer.
    V1,
}

fn recognise(session: &Session<'_>) -> Result<Layout, ArchiveError> {
    let manifest = match session.index.find(docker::MANIFEST)? {
        Some(place) => Some(session.index.bytes(
            docker::MANIFEST,
            place,
            session.options.limits.metadata_bytes,
        )?),
        None => None,
    };
    let saved = match &manifest {
        Some(bytes) => {
            let raw: &RawValue = json::parse(docker::MANIFEST, bytes)?;
            let is_list = raw.get().starts_with('[');
            is_list
                .then(|| json::parse::<Vec<docker::Saved>>(docker::MANIFEST, bytes))
                .transpose()?
        }
        None => None,
    };
    if let Some(index) = layout::read_index(session)? {
        return Ok(Layout::Oci(index, saved.unwrap_or_default()));
    }
    match (manifest, saved) {
        (_, Some(saved)) => Ok(Layout::Docker(saved)),
        (Some(_), None) => Ok(Layout::Dir),
        (None, None) if v1::present(session) => Ok(Layout::V1),
        (None, None) => Err(Rejection::NoImages {
            reason: "manifest.json, index.json and <id>/json are all absent".to_owned(),
        }
        .into()),
    }
}
