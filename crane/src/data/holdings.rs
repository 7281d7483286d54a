//! What one repository holds: manifests, blobs, tags, and where the file of each is.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
};

use pulp_model::{Digest, MediaType, image::Manifest, unit::ManifestKind};
use pulp_publication::index::{Index, IndexManifest};
use serde_json::Value;
use tokio::sync::OnceCell;

/// A manifest or list held.
#[derive(Debug)]
pub(crate) struct Held {
    /// What it is.
    pub(crate) manifest: IndexManifest,
    /// Its file below the repository's directory.
    file: PathBuf,
}

/// What a tag names, at most one of each.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct TagTargets {
    pub(crate) schema1: Option<Digest>,
    /// Schema 2 or OCI.
    pub(crate) image: Option<Digest>,
    pub(crate) list: Option<Digest>,
}

impl TagTargets {
    fn set(&mut self, kind: ManifestKind, schema_version: u8, digest: Digest) {
        let slot = match (kind, schema_version) {
            (ManifestKind::List, _) => &mut self.list,
            (ManifestKind::Image, 1) => &mut self.schema1,
            (ManifestKind::Image, _) => &mut self.image,
        };
        *slot = Some(digest);
    }

    /// What lies in one of the folders below `manifests/`.
    pub(crate) fn in_folder(&self, folder: &str) -> Option<&Digest> {
        match folder {
            "1" => self.schema1.as_ref(),
            "2" => self.image.as_ref(),
            "list" => self.list.as_ref(),
            _ => None,
        }
    }
}

/// What one repository holds.
#[derive(Debug)]
pub(crate) struct Holdings {
    /// The publication's own directory, all links resolved: it never becomes another publication's.
    dir: PathBuf,
    manifests: HashMap<Digest, Held>,
    /// Sizes.
    blobs: HashMap<Digest, u64>,
    pub(crate) tags: BTreeMap<String, TagTargets>,
    /// Subject to what is attached to it, sorted.
    referrers: HashMap<Digest, Vec<Digest>>,
    /// Labels of the image that stands for the repository, read when first asked for.
    labels: OnceCell<BTreeMap<String, String>>,
}

/// Larger than any manifest; a file beyond is none.
const MANIFEST_LIMIT: u64 = 16 << 20;

impl Holdings {
    /// From our index file, which lies in `dir`.
    pub(crate) fn of_index(index: Index, dir: PathBuf) -> Self {
        let mut tags: BTreeMap<String, TagTargets> = BTreeMap::new();
        for (name, variants) in index.tags {
            let targets = tags.entry(name.to_string()).or_default();
            for variant in variants {
                targets.set(variant.kind, variant.schema_version, variant.digest);
            }
        }
        let held = |manifest: IndexManifest| {
            let file = ["manifests", manifest.folder(), &manifest.digest.to_string()]
                .iter()
                .collect();
            (manifest.digest.clone(), Held { manifest, file })
        };
        let blobs = index.blobs.into_iter().map(|b| (b.digest, b.size)).collect();
        Self::new(dir, index.manifests.into_iter().map(held).collect(), blobs, tags)
    }

    fn new(
        dir: PathBuf,
        manifests: HashMap<Digest, Held>,
        blobs: HashMap<Digest, u64>,
        tags: BTreeMap<String, TagTargets>,
    ) -> Self {
        let mut referrers: HashMap<Digest, Vec<Digest>> = HashMap::new();
        for held in manifests.values() {
            if let Some(subject) = &held.manifest.subject {
                referrers
                    .entry(subject.clone())
                    .or_default()
                    .push(held.manifest.digest.clone());
            }
        }
        for attached in referrers.values_mut() {
            attached.sort();
        }
        Self {
            dir,
            manifests,
            blobs,
            tags,
            referrers,
            labels: OnceCell::new(),
        }
    }

    /// From the files that an old Pulp published below `dir`, which tell neither the digests of tags nor media
    /// types. Reads every manifest.
    pub(crate) fn read_tree(dir: &Path) -> io::Result<Self> {
        let mut manifests = HashMap::new();
        let mut tags: BTreeMap<String, TagTargets> = BTreeMap::new();
        // Before pulp_docker 2.4 manifests lay in `manifests` itself.
        for folder in ["manifests/1", "manifests/2", "manifests/list", "manifests"] {
            let names = file_names(&dir.join(folder))?;
            let (digests, tag_names): (Vec<_>, Vec<_>) =
                names.into_iter().partition(|name| name.parse::<Digest>().is_ok());
            // Tags are links to the files that digests link to.
            let mut by_content = HashMap::new();
            for name in digests.into_iter().chain(tag_names) {
                let file = Path::new(folder).join(&name);
                let path = dir.join(&file);
                let content = path.canonicalize()?;
                let digest = if let Some(known) = by_content.get(&content) {
                    Digest::clone(known)
                } else if let Some(manifest) = read_manifest(&path, folder, name.parse().ok())? {
                    let digest = manifest.digest.clone();
                    by_content.insert(content, digest.clone());
                    manifests.entry(digest.clone()).or_insert(Held { manifest, file });
                    digest
                } else {
                    tracing::warn!(file = %path.display(), "not the manifest that it should be, left out");
                    continue;
                };
                if let (Err(_), Some(held)) = (name.parse::<Digest>(), manifests.get(&digest)) {
                    let targets = tags.entry(name).or_default();
                    targets.set(held.manifest.kind, held.manifest.schema_version, digest);
                }
            }
        }
        let mut blobs = HashMap::new();
        for name in file_names(&dir.join("blobs"))? {
            if let Ok(digest) = name.parse::<Digest>() {
                blobs.insert(digest, fs::metadata(dir.join("blobs").join(&name))?.len());
            }
        }
        Ok(Self::new(dir.to_owned(), manifests, blobs, tags))
    }

    /// A manifest or list.
    pub(crate) fn manifest(&self, digest: &Digest) -> Option<&Held> {
        self.manifests.get(digest)
    }

    /// Where a manifest's file is.
    pub(crate) fn manifest_file(&self, held: &Held) -> PathBuf {
        self.dir.join(&held.file)
    }

    /// A blob's size and file.
    pub(crate) fn blob(&self, digest: &Digest) -> Option<(u64, PathBuf)> {
        let size = *self.blobs.get(digest)?;
        Some((size, self.dir.join("blobs").join(digest.to_string())))
    }

    /// Labels of the image tagged `latest`, else of the last tag's: one image, so that a search costs two small
    /// reads a repository, once. What can't be read has none.
    pub(crate) async fn labels(&self) -> &BTreeMap<String, String> {
        let read = || async {
            let tag = self.tags.get("latest").or_else(|| self.tags.values().next_back());
            let list = tag.and_then(|t| self.manifest(t.list.as_ref()?));
            let amd64 = list.and_then(|l| l.manifest.amd64.as_ref());
            let image = amd64.or_else(|| tag.and_then(|t| t.image.as_ref()));
            let Some(held) = image.and_then(|digest| self.manifest(digest)) else {
                return BTreeMap::new();
            };
            let (manifest, blobs) = (self.manifest_file(held), self.dir.join("blobs"));
            let read = tokio::task::spawn_blocking(move || labels_of(&manifest, &blobs)).await;
            read.ok().flatten().unwrap_or_default()
        };
        self.labels.get_or_init(read).await
    }

    /// What is attached to a manifest, sorted by digest.
    pub(crate) fn referrers(&self, subject: &Digest) -> impl Iterator<Item = &IndexManifest> {
        let attached = self.referrers.get(subject).into_iter().flatten();
        attached
            .filter_map(|d| self.manifests.get(d))
            .map(|held| &held.manifest)
    }
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
fn read_manifest(path: &Path, folder: &str, named: Option<Digest>) -> io::Result<Option<IndexManifest>> {
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
    let mut manifest = match Manifest::parse(&bytes, declared.as_ref()) {
        Ok(Manifest::Image(m)) => IndexManifest {
            digest: m.digest,
            kind: ManifestKind::Image,
            schema_version: m.schema_version,
            media_type: m.media_type,
            size: m.size,
            amd64: None,
            subject: m.subject,
            artifact_type: m.artifact_type,
            annotations: m.annotations,
        },
        Ok(Manifest::List(l)) => IndexManifest {
            digest: l.digest,
            kind: ManifestKind::List,
            schema_version: l.schema_version,
            media_type: l.media_type,
            size: l.size,
            amd64: l.amd64_digest,
            subject: l.subject,
            artifact_type: l.artifact_type,
            annotations: l.annotations,
        },
        Err(_) => return Ok(None),
    };
    manifest.digest = match named {
        // A signed schema 1 manifest is named by the digest of what was signed, not of the file.
        Some(named) if manifest.schema_version == 1 => named,
        Some(named) if named.matches(&bytes) => named,
        Some(_) => return Ok(None),
        None => manifest.digest,
    };
    Ok(Some(manifest))
}
