//! What one repository holds: manifests, blobs, tags, and where the file of each is.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
};

use pulp_model::{Digest, MediaType, image::Manifest, unit::ManifestKind};
use serde_json::Value;
use tokio::sync::OnceCell;

use super::{
    digests::{DigestTable, Key},
    gather::{self, Gathered},
    tags::Tags,
};

/// Folder below `manifests/`: what kind of manifest it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Folder {
    Schema1,
    /// Schema 2 or OCI.
    Image,
    List,
}

impl Folder {
    pub(super) const fn of(kind: ManifestKind, schema_version: u8) -> Self {
        match (kind, schema_version) {
            (ManifestKind::List, _) => Self::List,
            (ManifestKind::Image, 1) => Self::Schema1,
            (ManifestKind::Image, _) => Self::Image,
        }
    }

    /// The place in a tag's targets.
    pub(super) const fn number(self) -> usize {
        self as usize
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Schema1 => "1",
            Self::Image => "2",
            Self::List => "list",
        }
    }
}

/// What is kept of each manifest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) size: u32,
    /// Place in the list of media types.
    pub(super) media_type: u16,
    /// One more than the place in the list of artifact types; 0 is none.
    pub(super) artifact_type: u16,
    pub(super) folder: Folder,
    pub(super) has_extra: bool,
}

/// What few manifests have.
#[derive(Debug)]
pub(super) struct Extra {
    pub(super) amd64: Option<Key>,
    pub(super) subject: Option<Key>,
    pub(super) annotations: Option<BTreeMap<String, String>>,
    /// Below the repository's directory, if it is not where its folder and digest say.
    pub(super) file: Option<Box<str>>,
    /// If it is not in the list of media types.
    pub(super) media_type: Option<MediaType>,
    /// If it is not in the list of artifact types.
    pub(super) artifact_type: Option<Box<str>>,
}

impl Extra {
    pub(super) const fn is_empty(&self) -> bool {
        self.amd64.is_none()
            && self.subject.is_none()
            && self.file.is_none()
            && self.media_type.is_none()
            && self.artifact_type.is_none()
    }
}

/// All tables of a repository.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) manifests: DigestTable<Row>,
    /// Sizes.
    pub(super) blobs: DigestTable<u64>,
    pub(super) tags: Tags,
    /// By the row of the manifest, sorted.
    pub(super) extras: Box<[(u32, Extra)]>,
    /// Subject and row of what is attached to it, sorted.
    pub(super) referrers: Box<[(Key, u32)]>,
    pub(super) media_types: Box<[MediaType]>,
    pub(super) artifact_types: Box<[Box<str>]>,
}

/// A manifest or list held.
#[derive(Debug, Clone)]
pub(crate) struct Held<'a> {
    /// Digest of its bytes.
    pub(crate) digest: Digest,
    table: &'a Table,
    row: Row,
    extra: Option<&'a Extra>,
}

impl<'a> Held<'a> {
    pub(crate) fn media_type(&self) -> &'a MediaType {
        let rare = self.extra.and_then(|extra| extra.media_type.as_ref());
        let known = || self.table.media_types.get(usize::from(self.row.media_type));
        rare.or_else(known).unwrap_or(&MediaType::OCI_MANIFEST)
    }

    pub(crate) fn artifact_type(&self) -> Option<&'a str> {
        if let Some(rare) = self.extra.and_then(|extra| extra.artifact_type.as_deref()) {
            return Some(rare);
        }
        let place = usize::from(self.row.artifact_type).checked_sub(1)?;
        self.table.artifact_types.get(place).map(|text| &**text)
    }

    /// Number of its bytes.
    pub(crate) fn size(&self) -> u64 {
        self.row.size.into()
    }

    pub(crate) const fn folder(&self) -> Folder {
        self.row.folder
    }

    pub(crate) fn annotations(&self) -> Option<&'a BTreeMap<String, String>> {
        self.extra?.annotations.as_ref()
    }
}

/// What a tag names, at most one of each.
#[derive(Debug, Default, Clone)]
pub(crate) struct TagTargets<'a> {
    pub(crate) schema1: Option<Held<'a>>,
    /// Schema 2 or OCI.
    pub(crate) image: Option<Held<'a>>,
    pub(crate) list: Option<Held<'a>>,
}

impl<'a> TagTargets<'a> {
    /// What lies in one of the folders below `manifests/`.
    pub(crate) fn in_folder(self, folder: &str) -> Option<Held<'a>> {
        match folder {
            "1" => self.schema1,
            "2" => self.image,
            "list" => self.list,
            _ => None,
        }
    }
}

/// What one repository holds.
#[derive(Debug)]
pub(crate) struct Holdings {
    /// The publication's own directory, all links resolved: it never becomes another publication's.
    dir: PathBuf,
    table: Table,
    /// Labels of the image that stands for the repository, read when first asked for.
    labels: OnceCell<BTreeMap<String, String>>,
}

/// Larger than any manifest; a file beyond is none.
const MANIFEST_LIMIT: u64 = 16 << 20;

impl Holdings {
    /// What was gathered of the files in `dir`.
    pub(super) fn new(gathered: Gathered, dir: PathBuf) -> Self {
        Self {
            dir,
            table: gathered.into_tables(),
            labels: OnceCell::new(),
        }
    }

    /// From the files that an old Pulp published below `dir`, which tell neither the digests of tags nor media
    /// types. Reads every manifest.
    pub(crate) fn read_tree(dir: &Path) -> io::Result<Self> {
        let mut gathered = Gathered::default();
        let mut held: HashMap<Key, Folder> = HashMap::new();
        let mut tags: BTreeMap<String, Vec<(Folder, Key)>> = BTreeMap::new();
        // Before pulp_docker 2.4 manifests lay in `manifests` itself.
        for folder in ["manifests/1", "manifests/2", "manifests/list", "manifests"] {
            let names = file_names(&dir.join(folder))?;
            let (digests, tag_names): (Vec<_>, Vec<_>) =
                names.into_iter().partition(|name| Key::parse(name).is_some());
            // Tags are links to the files that digests link to.
            let mut by_content = HashMap::new();
            for name in digests.into_iter().chain(tag_names) {
                let file = format!("{folder}/{name}");
                let path = dir.join(&file);
                let content = path.canonicalize()?;
                let key = if let Some(known) = by_content.get(&content) {
                    Key::clone(known)
                } else if let Some(manifest) = read_manifest(&path, folder, name.parse().ok())? {
                    let key = manifest.digest.clone();
                    by_content.insert(content, key.clone());
                    if !held.contains_key(&key) {
                        let kind = Folder::of(manifest.kind, manifest.schema_version);
                        held.insert(key.clone(), kind);
                        let elsewhere = Some(file).filter(|f| *f != file_of(kind, &key));
                        let taken = gathered.manifest(manifest, elsewhere.map(String::into_boxed_str));
                        taken.map_err(io::Error::other)?;
                    }
                    key
                } else {
                    tracing::warn!(file = %path.display(), "not the manifest that it should be, left out");
                    continue;
                };
                if let (None, Some(kind)) = (Key::parse(&name), held.get(&key)) {
                    tags.entry(name).or_default().push((*kind, key));
                }
            }
        }
        for (name, targets) in tags {
            gathered.tag(&name, targets).map_err(io::Error::other)?;
        }
        for name in file_names(&dir.join("blobs"))? {
            if let Some(key) = Key::parse(&name) {
                gathered.blob(key, fs::metadata(dir.join("blobs").join(&name))?.len());
            }
        }
        Ok(Self::new(gathered, dir.to_owned()))
    }

    fn held(&self, row: u32) -> Option<Held<'_>> {
        let (key, _) = self.table.manifests.row(row)?;
        self.held_as(row, key.digest())
    }

    fn held_as(&self, number: u32, digest: Digest) -> Option<Held<'_>> {
        let (_, row) = self.table.manifests.row(number)?;
        let extras = &self.table.extras;
        let extra = || extras.get(extras.binary_search_by_key(&number, |(row, _)| *row).ok()?);
        Some(Held {
            digest,
            table: &self.table,
            row: *row,
            extra: row.has_extra.then(extra).flatten().map(|(_, extra)| extra),
        })
    }

    /// A manifest or list.
    pub(crate) fn manifest(&self, digest: &Digest) -> Option<Held<'_>> {
        let row = self.table.manifests.find(&Key::of(digest)?)?;
        self.held_as(row, digest.clone())
    }

    /// Of a list: its first member for linux on amd64.
    pub(crate) fn amd64(&self, list: &Held<'_>) -> Option<Held<'_>> {
        let member = list.extra?.amd64.as_ref()?;
        self.held(self.table.manifests.find(member)?)
    }

    /// The names of all tags, in order.
    pub(crate) fn tag_names(&self) -> impl Iterator<Item = &str> {
        self.table.tags.names()
    }

    /// What a tag names; none if there is no such tag.
    pub(crate) fn tag(&self, name: &str) -> Option<TagTargets<'_>> {
        let [schema1, image, list] = self.table.tags.find(name)?;
        Some(TagTargets {
            schema1: self.held(schema1),
            image: self.held(image),
            list: self.held(list),
        })
    }

    /// Where a manifest's file is.
    pub(crate) fn manifest_file(&self, held: &Held<'_>) -> PathBuf {
        match held.extra.and_then(|extra| extra.file.as_deref()) {
            Some(file) => self.dir.join(file),
            None => self.dir.join(file_of(held.row.folder, &held.digest)),
        }
    }

    /// A blob's size; none if it isn't there.
    pub(crate) fn blob(&self, digest: &Digest) -> Option<u64> {
        self.table.blobs.get(&Key::of(digest)?).copied()
    }

    /// Where a blob's file is.
    pub(crate) fn blob_file(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs").join(digest.to_string())
    }

    /// Labels of the image tagged `latest`, else of the last tag's: one image, so that a search costs two small
    /// reads a repository, once. What can't be read has none.
    pub(crate) async fn labels(&self) -> &BTreeMap<String, String> {
        let read = || async {
            let last = || self.tag(self.table.tags.last()?);
            let Some(tag) = self.tag("latest").or_else(last) else {
                return BTreeMap::new();
            };
            let amd64 = tag.list.as_ref().and_then(|list| self.amd64(list));
            let Some(held) = amd64.or(tag.image) else {
                return BTreeMap::new();
            };
            let (manifest, blobs) = (self.manifest_file(&held), self.dir.join("blobs"));
            let read = tokio::task::spawn_blocking(move || labels_of(&manifest, &blobs)).await;
            read.ok().flatten().unwrap_or_default()
        };
        self.labels.get_or_init(read).await
    }

    /// What is attached to a manifest, sorted by digest.
    pub(crate) fn referrers(&self, subject: &Digest) -> impl Iterator<Item = Held<'_>> {
        let referrers = &self.table.referrers;
        let subject = Key::of(subject);
        let first = referrers.partition_point(|(s, _)| Some(s) < subject.as_ref());
        let attached = referrers.iter().skip(first);
        attached
            .take_while(move |(s, _)| Some(s) == subject.as_ref())
            .filter_map(|(_, row)| self.held(*row))
    }
}

/// Where a manifest lies below the repository's directory.
fn file_of(folder: Folder, digest: &impl std::fmt::Display) -> String {
    format!("manifests/{}/{digest}", folder.name())
}

/// Labels in the config of an image manifest.
fn labels_of(manifest: &Path, blobs: &Path) -> Option<BTreeMap<String, String>> {
    let json = |path: &Path| -> Option<Value> {
        let small = fs::metadata(path).ok()?.len() <= MANIFEST_LIMIT;
        serde_json::from_slice(&small.then(|| fs::read(path).ok())??).ok()
    };
    let manifest = json(manifest)?;
    let config: Digest = manifest.get("config")?.get("digest")?.as_str()?.parse().ok()?;
    let config = json(&blobs.join(config.to_string()))?;
    let labels = config.get("config")?.get("Labels")?.as_object()?;
    let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    Some(labels.iter().filter_map(text).collect())
}

/// Names of the files in a directory, links followed; none if there is no such directory. Other encodings than
/// UTF-8 can be no tag and no digest.
fn file_names(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if let (Ok(name), true) = (entry.file_name().into_string(), entry.path().is_file()) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Reads a manifest of an old tree; none if it isn't one, or not the one that its name says.
fn read_manifest(path: &Path, folder: &str, named: Option<Digest>) -> io::Result<Option<gather::Manifest>> {
    if fs::metadata(path)?.len() > MANIFEST_LIMIT {
        return Ok(None);
    }
    let bytes = fs::read(path)?;
    let declared = match folder {
        "manifests/1" => Some(MediaType::DOCKER_SCHEMA1_SIGNED),
        "manifests/2" => Some(MediaType::DOCKER_MANIFEST),
        "manifests/list" => Some(MediaType::DOCKER_LIST),
        _ => None,
    };
    let key = |digest: &Option<Digest>| digest.as_ref().and_then(Key::of);
    let (digest, mut manifest) = match Manifest::parse(&bytes, declared.as_ref()) {
        Ok(Manifest::Image(m)) => {
            let Some(digest) = Key::of(&m.digest) else {
                return Ok(None);
            };
            let manifest = gather::Manifest {
                digest,
                kind: ManifestKind::Image,
                schema_version: m.schema_version,
                media_type: m.media_type,
                size: m.size,
                amd64: None,
                subject: key(&m.subject),
                artifact_type: m.artifact_type,
                annotations: m.annotations,
            };
            (m.digest, manifest)
        }
        Ok(Manifest::List(l)) => {
            let Some(digest) = Key::of(&l.digest) else {
                return Ok(None);
            };
            let manifest = gather::Manifest {
                digest,
                kind: ManifestKind::List,
                schema_version: l.schema_version,
                media_type: l.media_type,
                size: l.size,
                amd64: key(&l.amd64_digest),
                subject: key(&l.subject),
                artifact_type: l.artifact_type,
                annotations: l.annotations,
            };
            (l.digest, manifest)
        }
        Err(_) => return Ok(None),
    };
    let digest = match named {
        // A signed schema 1 manifest is named by the digest of what was signed, not of the file.
        Some(named) if manifest.schema_version == 1 => named,
        Some(named) if named.matches(&bytes) => named,
        Some(_) => return Ok(None),
        None => digest,
    };
    let Some(digest) = Key::of(&digest) else {
        return Ok(None);
    };
    manifest.digest = digest;
    Ok(Some(manifest))
}
