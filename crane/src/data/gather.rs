//! Gathering what a repository holds, item by item, so that reading an index costs no more memory than its tables.

use std::{collections::BTreeMap, fmt, io::Read};

use pulp_model::{MediaType, RepositoryId, unit::ManifestKind};
use pulp_publication::index::{FORMAT, IndexError};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{
    digests::{DigestTable, Key},
    holdings::{Extra, Folder, Row, Table},
    tags::{NONE, Tags, Targets},
};

/// What has been gathered.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    names: String,
    /// Where each name ends, and how many of `targets` are its and its forerunners'.
    tags: Vec<(u32, u32)>,
    targets: Vec<(Folder, Key)>,
    manifests: Vec<(Key, Row)>,
    extras: Vec<(Key, Extra)>,
    blobs: Vec<(Key, u64)>,
    media_types: Vec<MediaType>,
    artifact_types: Vec<Box<str>>,
}

/// A manifest as the index file has it, or as a manifest file was read.
#[derive(Debug, Deserialize)]
pub(super) struct Manifest {
    pub(super) digest: Key,
    pub(super) kind: ManifestKind,
    pub(super) schema_version: u8,
    pub(super) media_type: MediaType,
    pub(super) size: u64,
    #[serde(default)]
    pub(super) amd64: Option<Key>,
    #[serde(default)]
    pub(super) subject: Option<Key>,
    #[serde(default)]
    pub(super) artifact_type: Option<String>,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
}

impl Gathered {
    /// A tag and what it names. Tags come in order of their names, each once.
    pub(super) fn tag(
        &mut self,
        name: &str,
        targets: impl IntoIterator<Item = (Folder, Key)>,
    ) -> Result<(), String> {
        if self.tags.last().is_some() && self.last_name() >= name {
            return Err(format!("tag {name:?} is not in the order of the names"));
        }
        self.targets.extend(targets);
        self.names.push_str(name);
        let end = u32::try_from(self.names.len()).map_err(|e| e.to_string())?;
        let targets = u32::try_from(self.targets.len()).map_err(|e| e.to_string())?;
        self.tags.push((end, targets));
        Ok(())
    }

    fn last_name(&self) -> &str {
        let before = self.tags.len().checked_sub(2).and_then(|n| self.tags.get(n));
        let begin = before.map_or(0, |(end, _)| *end);
        usize::try_from(begin)
            .ok()
            .and_then(|begin| self.names.get(begin..))
            .unwrap_or_default()
    }

    /// A manifest or list; `file` if it is another than its kind and digest say.
    pub(super) fn manifest(&mut self, manifest: Manifest, file: Option<Box<str>>) -> Result<(), String> {
        let media_type = interned(
            &mut self.media_types,
            |known| *known == manifest.media_type,
            || manifest.media_type.clone(),
        );
        let artifact_type = manifest.artifact_type.as_deref().map(|text| {
            let known = interned(&mut self.artifact_types, |known| **known == *text, || text.into());
            known.ok_or_else(|| text.into())
        });
        let extra = Extra {
            // Annotations are told of what is attached to something.
            annotations: manifest.subject.is_some().then_some(manifest.annotations),
            amd64: manifest.amd64,
            subject: manifest.subject,
            file,
            media_type: media_type.is_none().then_some(manifest.media_type),
            artifact_type: artifact_type.clone().and_then(Result::err),
        };
        let has_extra = !extra.is_empty();
        let row = Row {
            size: u32::try_from(manifest.size)
                .map_err(|_| format!("manifest {} is too large", manifest.digest))?,
            media_type: media_type.unwrap_or(0),
            artifact_type: artifact_type.and_then(Result::ok).map_or(0, |place| place + 1),
            folder: Folder::of(manifest.kind, manifest.schema_version),
            has_extra,
        };
        if has_extra {
            self.extras.push((manifest.digest.clone(), extra));
        }
        self.manifests.push((manifest.digest, row));
        Ok(())
    }

    pub(super) fn blob(&mut self, digest: Key, size: u64) {
        self.blobs.push((digest, size));
    }

    /// The tables. A tag of a manifest that is not held names nothing.
    pub(super) fn into_tables(self) -> Table {
        let manifests = DigestTable::new(self.manifests);
        let (mut begin, mut first) = (0, 0);
        let at = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        let tags = Tags::new(self.tags.iter().map(|(end, last)| {
            let name = self.names.get(begin..at(*end)).unwrap_or_default();
            let mut targets: Targets = [NONE; 3];
            for (folder, key) in self.targets.get(first..at(*last)).unwrap_or_default() {
                if let Some(target) = targets.get_mut(folder.number()) {
                    *target = manifests.find(key).unwrap_or(NONE);
                }
            }
            (begin, first) = (at(*end), at(*last));
            (name, targets)
        }));
        let mut extras: Vec<(u32, Extra)> = self
            .extras
            .into_iter()
            .filter_map(|(key, extra)| Some((manifests.find(&key)?, extra)))
            .collect();
        extras.sort_unstable_by_key(|(row, _)| *row);
        let referrers = extras
            .iter()
            .filter_map(|(row, extra)| Some((extra.subject.clone()?, *row)));
        let mut referrers: Vec<(Key, u32)> = referrers.collect();
        referrers.sort_unstable();
        Table {
            manifests,
            blobs: DigestTable::new(self.blobs),
            tags,
            extras: extras.into_boxed_slice(),
            referrers: referrers.into_boxed_slice(),
            media_types: self.media_types.into_boxed_slice(),
            artifact_types: self.artifact_types.into_boxed_slice(),
        }
    }
}

/// The place of a value in a list of the few that nearly all have; none if it is not one of the few.
fn interned<T>(known: &mut Vec<T>, is_it: impl FnMut(&T) -> bool, own: impl FnOnce() -> T) -> Option<u16> {
    const FEW: usize = 256;
    let place = known.iter().position(is_it).or_else(|| {
        (known.len() < FEW).then(|| {
            known.push(own());
            known.len() - 1
        })
    });
    u16::try_from(place?).ok()
}

/// What is read of an index file.
#[derive(Debug, Default)]
pub(super) struct IndexFile {
    format: Option<u64>,
    pub(super) repository: Option<RepositoryId>,
    pub(super) gathered: Gathered,
}

impl IndexFile {
    /// Reads an index file as it comes.
    pub(super) fn read(reader: impl Read) -> Result<Self, IndexError> {
        checked(serde_json::from_reader(reader)?)
    }

    /// Reads an index file that is in memory, which is quicker.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, IndexError> {
        checked(serde_json::from_slice(bytes)?)
    }
}

fn checked(file: IndexFile) -> Result<IndexFile, IndexError> {
    match file.format {
        Some(format) if format != u64::from(FORMAT) => Err(IndexError::Format(format)),
        Some(_) if file.repository.is_some() => Ok(file),
        _ => Err(serde_json::Error::custom("it has no format or no repository").into()),
    }
}

impl<'de> Deserialize<'de> for IndexFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct File;
        impl<'de> Visitor<'de> for File {
            type Value = IndexFile;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an index file")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<IndexFile, A::Error> {
                let mut file = IndexFile::default();
                while let Some(key) = map.next_key::<String>()? {
                    // Of a later format nothing but the number is known.
                    let known = file.format.is_none_or(|format| format == u64::from(FORMAT));
                    match key.as_str() {
                        "format" => file.format = Some(map.next_value()?),
                        "repository" if known => file.repository = Some(map.next_value()?),
                        "tags" if known => map.next_value_seed(TagsOf(&mut file.gathered))?,
                        "manifests" if known => map.next_value_seed(ManifestsOf(&mut file.gathered))?,
                        "blobs" if known => map.next_value_seed(BlobsOf(&mut file.gathered))?,
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(file)
            }
        }
        deserializer.deserialize_map(File)
    }
}

/// Implements reading into what is gathered, item by item.
macro_rules! reads_into {
    ($name:ident, $method:ident, $visit:ident, $access:ident, $what:literal, $read:expr) => {
        struct $name<'a>(&'a mut Gathered);

        impl<'de> DeserializeSeed<'de> for $name<'_> {
            type Value = ();

            fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
                deserializer.$method(self)
            }
        }

        impl<'de> Visitor<'de> for $name<'_> {
            type Value = ();

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($what)
            }

            fn $visit<A: $access<'de>>(self, access: A) -> Result<(), A::Error> {
                $read(self.0, access)
            }
        }
    };
}

reads_into!(TagsOf, deserialize_map, visit_map, MapAccess, "tags", read_tags);
reads_into!(
    ManifestsOf,
    deserialize_seq,
    visit_seq,
    SeqAccess,
    "manifests",
    read_manifests
);
reads_into!(
    BlobsOf,
    deserialize_seq,
    visit_seq,
    SeqAccess,
    "blobs",
    read_blobs
);

fn read_tags<'de, A: MapAccess<'de>>(into: &mut Gathered, mut tags: A) -> Result<(), A::Error> {
    #[derive(Deserialize)]
    struct Variant {
        kind: ManifestKind,
        schema_version: u8,
        digest: Key,
    }
    while let Some((name, variants)) = tags.next_entry::<String, Vec<Variant>>()? {
        let targets = variants
            .into_iter()
            .map(|v| (Folder::of(v.kind, v.schema_version), v.digest));
        into.tag(&name, targets).map_err(A::Error::custom)?;
    }
    Ok(())
}

fn read_manifests<'de, A: SeqAccess<'de>>(into: &mut Gathered, mut manifests: A) -> Result<(), A::Error> {
    while let Some(manifest) = manifests.next_element()? {
        into.manifest(manifest, None).map_err(A::Error::custom)?;
    }
    Ok(())
}

fn read_blobs<'de, A: SeqAccess<'de>>(into: &mut Gathered, mut blobs: A) -> Result<(), A::Error> {
    #[derive(Deserialize)]
    struct Blob {
        digest: Key,
        size: u64,
    }
    while let Some(Blob { digest, size }) = blobs.next_element()? {
        into.blob(digest, size);
    }
    Ok(())
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a digest")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Key, E> {
                Key::parse(text).ok_or_else(|| E::custom(format!("{text:?} is not a digest")))
            }
        }
        deserializer.deserialize_str(Text)
    }
}
