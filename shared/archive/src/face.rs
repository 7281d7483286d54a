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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{self, Write};

    use pulp_model::Digest;

    use super::*;
    use crate::{BlobWriter, LayerContent, Rejection, SinkError};

    /// Keeps nothing; checks what it is told.
    struct Checked;

    struct CheckedWriter(Vec<u8>);

    impl BlobSink for Checked {
        fn contains(&self, _: &Digest) -> Result<Option<u64>, SinkError> {
            Ok(None)
        }

        fn create(&self) -> Result<Box<dyn BlobWriter>, SinkError> {
            Ok(Box::new(CheckedWriter(Vec::new())))
        }
    }

    impl Write for CheckedWriter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl BlobWriter for CheckedWriter {
        fn commit(self: Box<Self>, digest: &Digest) -> Result<(), SinkError> {
            assert_eq!(Digest::sha256(&self.0), *digest);
            Ok(())
        }
    }

    fn tar() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3000);
        tar.append_data(&mut header, "file", io::repeat(7).take(3000))
            .unwrap();
        tar.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        crate::gzip::compress(bytes, Vec::new(), 1).unwrap()
    }

    fn take(bytes: &[u8]) -> Result<LayerFile, ArchiveError> {
        take_layer("a layer", bytes, &Limits::default(), 2, &Checked)
    }

    #[test]
    fn a_gzip_is_kept_as_it_is_and_a_tar_is_packed() {
        let packed = gzip(&tar());
        let expected = LayerFile {
            digest: Digest::sha256(&packed),
            size: packed.len() as u64,
            verbatim: true,
            content: LayerContent {
                diff_id: Digest::sha256(tar()),
                is_tar: true,
            },
        };
        assert_eq!(take(&packed).unwrap(), expected);
        let of_tar = LayerFile {
            verbatim: false,
            ..expected.clone()
        };
        assert_eq!(take(&tar()).unwrap(), of_tar);
        let looked = layer_content("a layer", &packed[..], &Limits::default());
        assert_eq!(looked.unwrap(), expected.content);
    }

    #[test]
    fn wherever_a_gzip_is_cut_or_changed_it_is_refused() {
        let packed = gzip(&tar());
        for cut in 3..packed.len() {
            let error = take(&packed[..cut]).unwrap_err();
            assert!(
                matches!(&error, ArchiveError::Rejected(r) if matches!(**r, Rejection::Truncated { .. })),
                "{cut}: {error}"
            );
        }
        // In its check sum.
        let mut changed = packed.clone();
        let at = changed.len() - 6;
        changed[at] ^= 1;
        assert!(take(&changed).is_err());
    }

    #[test]
    fn other_bytes_are_told_from_a_tar_and_what_expands_too_far_is_refused() {
        assert!(!take(b"<html>").unwrap().content.is_tar);
        assert!(!take(b"").unwrap().content.is_tar);
        assert!(!take(&tar()[..1000]).unwrap().content.is_tar);
        let limits = Limits {
            expanded_bytes: 1000,
            ..Limits::default()
        };
        assert!(take_layer("a layer", &gzip(&tar())[..], &limits, 1, &Checked).is_err());
    }

    #[test]
    fn a_manifest_is_made_of_a_line_and_of_no_more_than_may_be() {
        let layers = [take(&gzip(&tar())).unwrap()];
        let json = |text: &str| std::iter::once(Ok(("x/json".to_owned(), text.to_owned())));
        let made = manifest_of_line(json(r#"{"id":"x","os":"linux"}"#), &layers, &Limits::default()).unwrap();
        assert_eq!(Digest::sha256(&made.bytes), *made.manifest.digest());
        let config: serde_json::Value = serde_json::from_slice(&made.config).unwrap();
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            layers[0].content.diff_id.to_string()
        );
        assert!(manifest_of_line(json("[]"), &layers, &Limits::default()).is_err());
        let small = Limits {
            config_bytes: 1,
            ..Limits::default()
        };
        assert!(manifest_of_line(json(r#"{"id":"x"}"#), &layers, &small).is_err());
        let none = std::iter::empty::<Result<(String, Vec<u8>), ArchiveError>>();
        assert!(manifest_of_line(none, &[], &Limits::default()).is_err());
    }
}
