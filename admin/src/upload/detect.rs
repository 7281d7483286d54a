//! Finds out what kind of unit a file is, from the headers of a tar, without reading its layers.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use flate2::read::MultiGzDecoder;
use serde_json::Value;
use tar::{Archive, Entry};

use crate::error::AdminError;

/// How far a compressed tar is read in search of its `manifest.json`, in bytes of the expanded tar. It
/// can't be skipped through, so there must be an end; what is not found till there is taken for an image.
const GZIP_BOUND: u64 = 1 << 30;
/// The largest manifest or manifest list that is read.
const JSON_BOUND: u64 = 4 << 20;

/// The type by which the server's importer takes a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnitType {
    /// `docker save`, an OCI layout: the server looks inside.
    Image,
    /// A tar of skopeo's `dir:` layout.
    Manifest,
    /// The JSON of a manifest list or an OCI index.
    ManifestList,
}

impl UnitType {
    /// The type id on the wire.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Image => "docker_image",
            Self::Manifest => "docker_manifest",
            Self::ManifestList => "docker_manifest_list",
        }
    }
}

/// Looks at the file.
pub(crate) fn detect(path: &Path) -> Result<UnitType, AdminError> {
    let fault = AdminError::file(path);
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(source) => return Err(fault(source)),
    };
    match inspect(&mut file) {
        Ok(Some(unit_type)) => Ok(unit_type),
        Ok(None) => Err(AdminError::Data(format!(
            "{} is neither a tar archive nor a manifest list",
            path.display()
        ))),
        Err(source) => Err(fault(source)),
    }
}

fn inspect(file: &mut File) -> io::Result<Option<UnitType>> {
    let mut magic = [0; 2];
    let got = file.read(&mut magic)?;
    file.seek(SeekFrom::Start(0))?;
    if got == 2 && magic == [0x1f, 0x8b] {
        let expanded = MultiGzDecoder::new(BufReader::new(file)).take(GZIP_BOUND);
        return Ok(in_tar(Archive::new(expanded).entries()?));
    }
    if let Some(unit_type) = in_tar(Archive::new(&mut *file).entries_with_seek()?) {
        return Ok(Some(unit_type));
    }
    file.seek(SeekFrom::Start(0))?;
    let mut text = Vec::new();
    file.take(JSON_BOUND).read_to_end(&mut text)?;
    let is_list = serde_json::from_slice::<Value>(&text)
        .is_ok_and(|json| json.get("manifests").is_some_and(Value::is_array));
    Ok(is_list.then_some(UnitType::ManifestList))
}

/// None if there is not even one member. A tar that is damaged further on is still a tar: the server says
/// what is wrong with it.
fn in_tar<'a, R: Read + 'a>(entries: impl Iterator<Item = io::Result<Entry<'a, R>>>) -> Option<UnitType> {
    let mut found = None;
    for entry in entries {
        let Ok(mut entry) = entry else { break };
        found = Some(UnitType::Image);
        let name = entry.path_bytes();
        if name.strip_prefix(b"./").unwrap_or(&name) == b"manifest.json" {
            let mut text = Vec::new();
            let read = entry.by_ref().take(JSON_BOUND).read_to_end(&mut text);
            // docker save writes a list there since 1.10, skopeo's dir the manifest itself.
            let is_manifest =
                read.is_ok() && serde_json::from_slice::<Value>(&text).is_ok_and(|json| json.is_object());
            return Some(if is_manifest {
                UnitType::Manifest
            } else {
                UnitType::Image
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = GzEncoder::new(Vec::new(), Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    fn of(bytes: &[u8]) -> Result<UnitType, AdminError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, bytes).unwrap();
        detect(&path)
    }

    #[test]
    fn a_manifest_that_is_an_object_makes_a_skopeo_dir_wherever_it_stands() {
        let layer = vec![7; 100_000];
        let dir = tar(&[("abc", &layer), ("./manifest.json", b"{\"schemaVersion\":2}")]);
        assert_eq!(of(&dir).unwrap(), UnitType::Manifest);
        assert_eq!(of(&gzip(&dir)).unwrap(), UnitType::Manifest);
    }

    #[test]
    fn every_other_tar_is_an_image() {
        let saved = tar(&[
            ("manifest.json", b"[{\"Config\":\"c.json\"}]"),
            ("repositories", b"{}"),
        ]);
        assert_eq!(of(&saved).unwrap(), UnitType::Image);
        assert_eq!(of(&gzip(&saved)).unwrap(), UnitType::Image);
        let legacy = tar(&[
            ("abc/json", b"{}"),
            ("abc/layer.tar", b""),
            ("repositories", b"{}"),
        ]);
        assert_eq!(of(&legacy).unwrap(), UnitType::Image);
        let layout = tar(&[("oci-layout", b"{}"), ("index.json", b"{\"manifests\":[]}")]);
        assert_eq!(of(&layout).unwrap(), UnitType::Image);
        let below = tar(&[("x/manifest.json", b"{}")]);
        assert_eq!(
            of(&below).unwrap(),
            UnitType::Image,
            "only a manifest.json at the top counts"
        );
        assert_eq!(
            of(&legacy[..600]).unwrap(),
            UnitType::Image,
            "the server says how it is damaged"
        );
    }

    #[test]
    fn json_with_manifests_is_a_list() {
        assert_eq!(
            of(b"{\"schemaVersion\":2,\"manifests\":[]}").unwrap(),
            UnitType::ManifestList
        );
    }

    #[test]
    fn anything_else_is_refused_before_a_byte_is_sent() {
        for bytes in [
            &b""[..],
            b"\x1f\x8b",
            b"{}",
            b"[1]",
            &[0; 2048],
            &[b'x'; 4096],
            &gzip(b"no tar"),
        ] {
            let error = of(bytes).unwrap_err();
            assert!(
                error
                    .to_string()
                    .ends_with("is neither a tar archive nor a manifest list"),
                "{error}"
            );
            assert_eq!(error.exit(), crate::Exit::Data);
        }
    }

    #[test]
    fn the_layers_of_a_large_tar_are_skipped_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large.tar");
        let mut file = File::create(&path).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_path("layer").unwrap();
        // A hole of 60 GiB takes no space, and would take minutes to read.
        let size = 60 << 30;
        header.set_size(size);
        header.set_cksum();
        file.write_all(header.as_bytes()).unwrap();
        file.seek(SeekFrom::Current(size as i64)).unwrap();
        file.write_all(&tar(&[("manifest.json", b"{}")])).unwrap();
        drop(file);
        let start = std::time::Instant::now();
        assert_eq!(detect(&path).unwrap(), UnitType::Manifest);
        assert!(start.elapsed().as_secs() < 5);
    }
}
