//! What an export holds: the same publication as files of a tar.

use std::{collections::BTreeMap, path::PathBuf};

use pulp_model::Digest;
use serde::Serialize;

use crate::{
    Publication, PublicationError, PublicationId, Root,
    catalog::{Catalog, Entry, NewFiles},
    redirect,
};

/// Where an export entry's bytes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntrySource {
    /// Made here.
    Bytes(Vec<u8>),
    /// A content file.
    File {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        size: u64,
    },
}

impl EntrySource {
    /// Number of bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { size, .. } => *size,
        }
    }
}

impl Root {
    /// Members of the tar export, in the order in which they are written; the same publication gives the same list.
    ///
    /// First what the 1.0 documentation has (`<repo>.json`, then `<repo>/<image id>/{ancestry,json,layer}`), then
    /// the v2 side below `v2/`.
    pub fn export_entries(
        &self,
        publication: &Publication,
    ) -> Result<Vec<(String, EntrySource)>, PublicationError> {
        let contents = publication.contents();
        let repo = &contents.repository;
        // Which publication it is stands in the index alone, which an export has not.
        let catalog = Catalog::of(publication, &PublicationId::new());
        let files = NewFiles::of(contents.clone());

        let mut entries = vec![(format!("{repo}.json"), json(&redirect::v1_file(&catalog))?)];
        for image in &contents.images {
            let files = [
                ("ancestry", &image.ancestry),
                ("json", &image.json),
                ("layer", &image.layer),
            ];
            for (name, path) in files {
                entries.push((format!("{repo}/{}/{name}", image.image_id), file(path)?));
            }
        }
        entries.push((format!("v2/{repo}.json"), json(&redirect::v4_file(&catalog))?));
        let named: BTreeMap<String, &Digest> = catalog
            .v2_content()
            .into_iter()
            .chain(catalog.v2_tags())
            .filter_map(|entry| match entry {
                Entry::Image(_) => None,
                Entry::Blob(digest) => Some((format!("blobs/{digest}"), digest)),
                Entry::Manifest(digest, folder) => Some((format!("manifests/{folder}/{digest}"), digest)),
                Entry::Tag(tag, folder, digest) => Some((format!("manifests/{folder}/{tag}"), digest)),
            })
            .collect();
        for (name, digest) in named {
            if let Some(path) = files.by_digest.get(digest) {
                entries.push((format!("v2/{repo}/{name}"), file(path)?));
            }
        }
        entries.push((
            format!("v2/{repo}/tags/list"),
            json(&redirect::tags_list(&catalog))?,
        ));
        Ok(entries)
    }
}

fn json(value: &impl Serialize) -> Result<EntrySource, PublicationError> {
    let made = serde_json::to_vec(value);
    let bytes = made.map_err(|e| PublicationError::io("make a file of", "the export")(e.into()))?;
    Ok(EntrySource::Bytes(bytes))
}

fn file(path: &std::path::Path) -> Result<EntrySource, PublicationError> {
    let meta = std::fs::metadata(path).map_err(PublicationError::io("find", path))?;
    Ok(EntrySource::File {
        path: path.to_owned(),
        size: meta.len(),
    })
}
