//! What an export holds: the same publication as files of a tar.

use std::path::PathBuf;

use crate::{Publication, PublicationError, Root, redirect, stage::references};

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
        let bytes =
            |made| Ok::<_, PublicationError>(EntrySource::Bytes(crate::stage::json(self.path(), made)?));

        let mut entries = vec![(format!("{repo}.json"), bytes(redirect::v1_file(publication))?)];
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
        entries.push((format!("v2/{repo}.json"), bytes(redirect::v4_file(publication))?));
        for blob in &contents.blobs {
            entries.push((format!("v2/{repo}/blobs/{}", blob.digest), file(&blob.path)?));
        }
        for folder in ["1", "2", "list"] {
            for (name, path) in references(publication, folder) {
                entries.push((format!("v2/{repo}/manifests/{folder}/{name}"), file(path)?));
            }
        }
        entries.push((
            format!("v2/{repo}/tags/list"),
            bytes(redirect::tags_list(publication))?,
        ));
        Ok(entries)
    }
}

fn file(path: &std::path::Path) -> Result<EntrySource, PublicationError> {
    let meta = std::fs::metadata(path).map_err(PublicationError::io("find", path))?;
    Ok(EntrySource::File {
        path: path.to_owned(),
        size: meta.len(),
    })
}
