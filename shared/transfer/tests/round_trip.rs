//! Exports written and read back, whole and broken.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs,
    io::{self, Read, Write as _},
    path::{Path, PathBuf},
};

use pulp_model::{
    CodedError, Digest, VersionNumber,
    export::ExportLayout,
    unit::{BlobUnit, Unit},
};
use pulp_transfer::{
    Base, BlobSource, Contents, Export, ExportManifest, ExportProgress, ExportedRepository, MANIFEST_FILE,
    SIGNATURE_FILE, SigningKey, Target, TransferError, TrustedKeys, Wanted, generate_key, write,
};
use tempfile::TempDir;

/// Blobs in memory.
#[derive(Default)]
struct Blobs(BTreeMap<Digest, Vec<u8>>);

impl Blobs {
    fn some(sizes: &[usize]) -> Self {
        let mut blobs = Self::default();
        for (n, size) in sizes.iter().enumerate() {
            let bytes: Vec<u8> = (0..*size).map(|i| (i * 31 / 7 + n) as u8).collect();
            blobs.0.insert(Digest::sha256(&bytes), bytes);
        }
        blobs
    }

    fn contents(&self) -> Contents {
        let units: Vec<Unit> = self
            .0
            .iter()
            .map(|(digest, bytes)| {
                Unit::Blob(BlobUnit {
                    digest: digest.clone(),
                    size: bytes.len() as u64,
                })
            })
            .collect();
        Contents::of(&units, &[])
    }
}

impl BlobSource for Blobs {
    fn open(&self, digest: &Digest) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(
            self.0.get(digest).ok_or(io::ErrorKind::NotFound)?.as_slice(),
        ))
    }
}

#[derive(Default)]
struct Watch {
    bytes: Cell<u64>,
    stop_after: Option<u64>,
}

impl ExportProgress for Watch {
    fn is_stopped(&self) -> bool {
        self.stop_after.is_some_and(|most| self.bytes.get() > most)
    }

    fn advanced(&self, bytes: u64) {
        self.bytes.set(self.bytes.get() + bytes);
    }

    fn stored(&self) {}
}

fn wanted(blobs: &Blobs, without: &[Digest]) -> Wanted {
    let contents = blobs.contents();
    let repository = ExportedRepository {
        id: "r".parse().unwrap(),
        display_name: "R".to_owned(),
        description: None,
        registry_id: "ns/r".parse().unwrap(),
    };
    let base = (!without.is_empty()).then(|| Base {
        state: Digest::sha256("earlier"),
        repository_version: VersionNumber(1),
    });
    Wanted {
        repository,
        repository_version: VersionNumber(2),
        base,
        index: contents.index(&[]),
        files: contents
            .files()
            .into_iter()
            .filter(|(digest, _)| !without.contains(digest))
            .map(|(digest, size)| (digest, size.unwrap()))
            .collect(),
        contents,
    }
}

struct Bed {
    folder: TempDir,
    blobs: Blobs,
}

impl Bed {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            blobs: Blobs::some(&[0, 1, 511, 512, 513, 1_500_000, 700_001]),
        }
    }

    fn directory(&self) -> PathBuf {
        self.folder.path().join("export")
    }

    fn try_write(
        &self,
        layout: ExportLayout,
        part_size: Option<u64>,
        key: Option<&SigningKey>,
        watch: &Watch,
    ) -> Result<(ExportManifest, Digest), TransferError> {
        let target = Target {
            directory: self.directory(),
            layout,
            part_size,
        };
        write(wanted(&self.blobs, &[]), &target, key, &self.blobs, watch)
    }

    fn write(&self, layout: ExportLayout, part_size: Option<u64>) -> ExportManifest {
        self.try_write(layout, part_size, None, &Watch::default())
            .unwrap()
            .0
    }

    fn keys(&self) -> TrustedKeys {
        TrustedKeys::read(&self.folder.path().join("trusted")).unwrap()
    }

    fn open(&self) -> Result<Export, TransferError> {
        Export::open(&self.directory(), &self.keys(), false)
    }

    fn read_all(&self) {
        let export = self.open().unwrap();
        let all = export.manifest.carried.clone();
        let (present, missing) = export.present(all).unwrap();
        assert_eq!(missing, Vec::<String>::new());
        assert_eq!(present.len(), self.blobs.0.len());
        for blob in present {
            let mut bytes = Vec::new();
            export.open_blob(&blob).unwrap().read_to_end(&mut bytes).unwrap();
            assert!(bytes == self.blobs.0[&blob.digest], "{}", blob.digest);
        }
    }
}

fn code(error: &TransferError) -> String {
    let coded: CodedError = error.coded();
    assert!(coded.description.len() > 10);
    coded.code.to_string()
}

fn sha256_of(path: &Path) -> Digest {
    Digest::sha256(fs::read(path).unwrap())
}

#[test]
fn what_was_written_is_read_back_from_every_layout() {
    for (layout, part_size, parts) in [
        (ExportLayout::Tar, None, 1),
        (ExportLayout::Tar, Some(1000), 2212),
        (ExportLayout::Tar, Some(1 << 20), 3),
        (ExportLayout::Directory, None, 0),
    ] {
        let bed = Bed::new();
        let manifest = bed.write(layout, part_size);
        assert_eq!(manifest.parts.len(), parts, "{layout:?} {part_size:?}");
        for part in &manifest.parts {
            assert_eq!(sha256_of(&bed.directory().join(&part.name)), part.digest);
        }
        bed.read_all();
    }
}

#[test]
fn the_same_content_gives_the_same_export_and_the_parts_make_the_tar() {
    let (one, other, cut) = (Bed::new(), Bed::new(), Bed::new());
    one.write(ExportLayout::Tar, None);
    other.write(ExportLayout::Tar, None);
    let manifest = cut.write(ExportLayout::Tar, Some(300_000));
    for file in [MANIFEST_FILE, "r.tar"] {
        assert_eq!(
            sha256_of(&one.directory().join(file)),
            sha256_of(&other.directory().join(file))
        );
    }
    let joined: Vec<u8> = manifest
        .parts
        .iter()
        .flat_map(|part| fs::read(cut.directory().join(&part.name)).unwrap())
        .collect();
    assert!(joined == fs::read(one.directory().join("r.tar")).unwrap());
    let mut archive = tar::Archive::new(&joined[..]);
    let names: Vec<String> = archive
        .entries()
        .unwrap()
        .map(|e| e.unwrap().path().unwrap().display().to_string())
        .collect();
    assert_eq!(names[..2], ["oci-layout", "index.json"]);
    assert_eq!(names.len(), 2 + one.blobs.0.len());
}

#[test]
fn an_incremental_export_carries_what_its_base_lacks() {
    let bed = Bed::new();
    let old: Vec<Digest> = bed.blobs.0.keys().skip(1).cloned().collect();
    let new = bed.blobs.0.keys().next().unwrap().clone();
    let target = Target {
        directory: bed.directory(),
        layout: ExportLayout::Tar,
        part_size: None,
    };
    write(
        wanted(&bed.blobs, &old),
        &target,
        None,
        &bed.blobs,
        &Watch::default(),
    )
    .unwrap();
    let export = bed.open().unwrap();
    let carried: Vec<&Digest> = export.manifest.carried.iter().map(|c| &c.digest).collect();
    assert_eq!(carried, [&new]);
    assert_eq!(export.manifest.contents.blobs.len(), bed.blobs.0.len());
    assert_eq!(export.manifest.base.unwrap().state, Digest::sha256("earlier"));
}

#[test]
fn missing_parts_are_named_and_what_lies_in_the_others_is_found() {
    let bed = Bed::new();
    let manifest = bed.write(ExportLayout::Tar, Some(300_000));
    for n in [2, 5] {
        fs::remove_file(bed.directory().join(&manifest.parts[n].name)).unwrap();
    }
    let export = bed.open().unwrap();
    let all = export.manifest.carried.clone();
    let (present, missing) = export.present(all.clone()).unwrap();
    assert_eq!(missing, ["r.tar.0003", "r.tar.0006"]);
    assert!(!present.is_empty() && present.len() < all.len());
    assert_eq!(code(&TransferError::PartMissing(missing)), "DKR1143");
}

#[test]
fn a_truncated_part_is_told_before_anything_is_read() {
    let bed = Bed::new();
    let manifest = bed.write(ExportLayout::Tar, Some(300_000));
    let part = bed.directory().join(&manifest.parts[1].name);
    fs::OpenOptions::new()
        .write(true)
        .open(&part)
        .unwrap()
        .set_len(299_999)
        .unwrap();
    let export = bed.open().unwrap();
    let all = export.manifest.carried.clone();
    let error = export.present(all).unwrap_err();
    assert_eq!(code(&error), "DKR1144");
    assert!(
        error
            .to_string()
            .contains("r.tar.0002 has 299999 bytes and should have 300000"),
        "{error}"
    );
}

#[test]
fn a_damaged_byte_is_blamed_on_its_part() {
    let bed = Bed::new();
    let manifest = bed.write(ExportLayout::Tar, Some(300_000));
    let big = manifest.carried.iter().max_by_key(|c| c.size).unwrap().clone();
    // In the middle of the largest blob.
    let at = big.offset.unwrap() + 700_000;
    let (part, within) = ((at / 300_000) as usize, at % 300_000);
    let path = bed.directory().join(&manifest.parts[part].name);
    let mut bytes = fs::read(&path).unwrap();
    bytes[within as usize] ^= 1;
    fs::write(&path, bytes).unwrap();
    let export = bed.open().unwrap();
    let mut read = Vec::new();
    export.open_blob(&big).unwrap().read_to_end(&mut read).unwrap();
    assert_ne!(Digest::sha256(&read), big.digest);
    match export.blame(&big) {
        TransferError::PartDamaged { name, expected, got } => {
            assert_eq!(name, manifest.parts[part].name);
            assert_eq!(expected, manifest.parts[part].digest);
            assert_eq!(got, sha256_of(&path));
        }
        other => panic!("{other}"),
    }
}

#[test]
fn only_an_export_signed_by_a_trusted_key_is_opened_when_one_is_asked_for() {
    let bed = Bed::new();
    let key = generate_key(&bed.folder.path().join("key.pem")).unwrap();
    let other = generate_key(&bed.folder.path().join("other.pem")).unwrap();
    let open = || Export::open(&bed.directory(), &bed.keys(), true);
    bed.write(ExportLayout::Tar, None);
    assert_eq!(code(&open().unwrap_err()), "DKR1141");

    bed.try_write(ExportLayout::Tar, None, Some(&key), &Watch::default())
        .unwrap();
    assert_eq!(code(&open().unwrap_err()), "DKR1142");
    let trusted = bed.folder.path().join("trusted");
    fs::create_dir(&trusted).unwrap();
    fs::write(trusted.join("a.pub"), other.public_pem()).unwrap();
    assert_eq!(code(&open().unwrap_err()), "DKR1142");
    // Nor is one taken that claims to be signed, where signatures are optional.
    assert_eq!(code(&bed.open().unwrap_err()), "DKR1142");
    fs::write(trusted.join("b.pub"), key.public_pem()).unwrap();
    assert_eq!(open().unwrap().signed_by, Some(key.id()));

    let manifest = bed.directory().join(MANIFEST_FILE);
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("ns/r", "ns/x")).unwrap();
    assert_eq!(code(&open().unwrap_err()), "DKR1142");
    fs::remove_file(bed.directory().join(SIGNATURE_FILE)).unwrap();
    assert_eq!(code(&open().unwrap_err()), "DKR1141");
}

#[test]
fn a_directory_that_is_no_export_is_told_so() {
    let bed = Bed::new();
    fs::create_dir(bed.directory()).unwrap();
    assert_eq!(code(&bed.open().unwrap_err()), "DKR1140");
    fs::write(bed.directory().join(MANIFEST_FILE), "{").unwrap();
    assert_eq!(code(&bed.open().unwrap_err()), "DKR1140");
    fs::write(bed.directory().join(MANIFEST_FILE), "{}").unwrap();
    assert_eq!(code(&bed.open().unwrap_err()), "DKR1140");
}

#[test]
fn a_link_is_never_followed() {
    let bed = Bed::new();
    bed.write(ExportLayout::Tar, None);
    let (tar, elsewhere) = (bed.directory().join("r.tar"), bed.folder.path().join("elsewhere"));
    fs::rename(&tar, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &tar).unwrap();
    let export = bed.open().unwrap();
    let blob = export.manifest.carried[0].clone();
    assert_eq!(code(&export.present(vec![blob]).unwrap_err()), "DKR1140");
    let manifest = bed.directory().join(MANIFEST_FILE);
    fs::rename(&manifest, bed.folder.path().join("manifest")).unwrap();
    std::os::unix::fs::symlink(bed.folder.path().join("manifest"), &manifest).unwrap();
    assert_eq!(code(&bed.open().unwrap_err()), "DKR1140");
}

#[test]
fn a_blob_that_rotted_in_the_store_is_not_exported() {
    for layout in [ExportLayout::Tar, ExportLayout::Directory] {
        let mut bed = Bed::new();
        let big = bed.blobs.0.values_mut().max_by_key(|b| b.len()).unwrap();
        big[1_000_000] ^= 1;
        let error = bed.try_write(layout, None, None, &Watch::default()).unwrap_err();
        assert_eq!(code(&error), "DKR1017", "{error}");
        assert!(!bed.directory().join(MANIFEST_FILE).exists());
    }
}

#[test]
fn a_blob_that_became_shorter_is_not_exported() {
    let mut bed = Bed::new();
    let target = Target {
        directory: bed.directory(),
        layout: ExportLayout::Tar,
        part_size: None,
    };
    let wanted = wanted(&bed.blobs, &[]);
    bed.blobs
        .0
        .values_mut()
        .max_by_key(|b| b.len())
        .unwrap()
        .truncate(1_000_000);
    let error = write(wanted, &target, None, &bed.blobs, &Watch::default()).unwrap_err();
    assert_eq!(code(&error), "DKR1017", "{error}");
}

#[test]
fn an_export_that_is_told_to_stop_stops_within_a_chunk() {
    let bed = Bed::new();
    let watch = Watch {
        stop_after: Some(100_000),
        ..Watch::default()
    };
    let error = bed.try_write(ExportLayout::Tar, None, None, &watch).unwrap_err();
    assert!(matches!(error, TransferError::Stopped), "{error}");
    assert!(watch.bytes.get() < 2_000_000);
}

#[test]
fn a_full_disk_and_a_bad_path_are_told_by_codes_of_their_own() {
    let told = |kind: io::ErrorKind| code(&TransferError::writing(Path::new("/x"))(kind.into()));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let refused = (&full).write_all(b"x").unwrap_err();
    assert_eq!(code(&TransferError::writing(Path::new("/x"))(refused)), "DKR1148");
    assert_eq!(told(io::ErrorKind::StorageFull), "DKR1148");
    assert_eq!(told(io::ErrorKind::QuotaExceeded), "DKR1148");
    assert_eq!(told(io::ErrorKind::PermissionDenied), "DKR1112");
    assert_eq!(told(io::ErrorKind::Interrupted), "PLP2002");
    let bed = Bed::new();
    fs::write(bed.directory(), "a file").unwrap();
    let error = bed
        .try_write(ExportLayout::Tar, None, None, &Watch::default())
        .unwrap_err();
    assert_eq!(code(&error), "DKR1112", "{error}");
}
