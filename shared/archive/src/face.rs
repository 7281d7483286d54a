//! v1 images that come one by one, as from a registry of version 1: their layers taken in, and the manifest that stands
//! for a line of them, the same that an archive of these images would give.

use std::io::{Cursor, Read};

use pulp_model::image::Manifest;

use crate::{
    ArchiveError, BlobSink, Limits,
    docker::made_manifest,
    layer::{Budget, LayerContent, LayerFile, Taking, expand},
    legacy::made_config,
    upload::Compression,
};

/// Reads a layer to its end and stores it: verbatim if it is gzip, else compressed. `name` is for people. Blocks.
///
/// A gzip that is damaged or ends early is rejected, as is a layer that expands to more than the limits allow.
pub fn take_layer(
    name: &str,
    mut source: impl Read,
    limits: &Limits,
    threads: usize,
    sink: &dyn BlobSink,
) -> Result<LayerFile, ArchiveError> {
    let (magic, compression) = begin(name, &mut source)?;
    let taking = Taking {
        name,
        budget: &Budget::new(limits.expanded_bytes),
        sink,
        threads,
    };
    taking.take(Cursor::new(magic).chain(source), compression)
}

/// What is in a layer that is stored already. Blocks.
pub fn layer_content(
    name: &str,
    mut source: impl Read,
    limits: &Limits,
) -> Result<LayerContent, ArchiveError> {
    let (magic, compression) = begin(name, &mut source)?;
    let budget = Budget::new(limits.expanded_bytes);
    let source = Cursor::new(magic).chain(source);
    expand(name, source, compression, &budget)
}

/// The first bytes, and what they say.
fn begin(name: &str, source: &mut impl Read) -> Result<(Vec<u8>, Compression), ArchiveError> {
    let mut magic = Vec::with_capacity(4);
    source
        .take(4)
        .read_to_end(&mut magic)
        .map_err(|e| ArchiveError::decompressing(name, e))?;
    let compression = Compression::of(&magic);
    Ok((magic, compression))
}

/// A manifest of schema 2 and its config, made of v1 images.
#[derive(Debug, Clone)]
pub struct MadeManifest {
    /// The manifest.
    pub manifest: Manifest,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The config's bytes.
    pub config: Vec<u8>,
}

/// Makes the manifest of a line of v1 images, base first: of each its JSON, with a name for people, and its layer. All
/// layers must be tars. The JSONs are read one after the other.
pub fn manifest_of_line<B: AsRef<[u8]>>(
    jsons: impl Iterator<Item = Result<(String, B), ArchiveError>>,
    layers: &[LayerFile],
    limits: &Limits,
) -> Result<MadeManifest, ArchiveError> {
    let diff_ids = layers.iter().map(|l| &l.content.diff_id).collect();
    let config = made_config(jsons, diff_ids, limits)?;
    let (manifest, bytes) = made_manifest(&config, layers.iter().map(|l| (&l.digest, l.size)))?;
    Ok(MadeManifest {
        manifest,
        bytes,
        config,
    })
}
