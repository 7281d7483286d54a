//! What an import is told, and what it gives back.

use std::path::PathBuf;

use pulp_model::{
    Digest, RepositoryId,
    unit::{ImageId, Unit, UnitType, V1Tag},
};

/// The unit types that are uploaded as a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UploadKind {
    /// An archive of any layout; gives v1 images and manifests.
    DockerImage,
    /// An archive of any layout; gives manifests only.
    DockerManifest,
    /// The JSON of a manifest list or OCI index.
    DockerManifestList,
}

impl UploadKind {
    /// The kind of upload that makes units of this type; tags and blobs have none.
    pub const fn of(unit_type: UnitType) -> Option<Self> {
        match unit_type {
            UnitType::DockerImage => Some(Self::DockerImage),
            UnitType::DockerManifest => Some(Self::DockerManifest),
            UnitType::DockerManifestList => Some(Self::DockerManifestList),
            UnitType::DockerBlob | UnitType::DockerTag => None,
        }
    }
}

/// How much an archive may ask of us. The defaults let through what image tools write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Members of the archive, of every kind.
    pub members: u64,
    /// Bytes of a member's path.
    pub path_bytes: u64,
    /// Bytes of a JSON file that is held in memory, except configs.
    pub metadata_bytes: u64,
    /// Bytes of an image config.
    pub config_bytes: u64,
    /// Bytes that decompression may give in sum: the archive's own and that of its layers.
    pub expanded_bytes: u64,
    /// Images in one archive.
    pub images: u64,
    /// Layers of one image.
    pub layers: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            members: 32_768,
            path_bytes: 1024,
            metadata_bytes: 4 * 1024 * 1024,
            config_bytes: 8 * 1024 * 1024,
            expanded_bytes: 64 * 1024 * 1024 * 1024,
            images: 4096,
            layers: 1024,
        }
    }
}

/// What an import is told.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// The repository that tags will belong to.
    pub repo_id: RepositoryId,
    /// What the client says it uploads.
    pub unit_type: UploadKind,
    /// This v1 image and its ancestors are left out (`mask_id` of the upload's override configuration).
    pub mask_id: Option<ImageId>,
    /// Limits.
    pub limits: Limits,
    /// Where a compressed archive is unpacked to, for the time of the import; on a disk with room for it.
    pub spool_dir: PathBuf,
    /// Threads that compress; the bytes made do not depend on it. 1 at least.
    pub threads: usize,
}

impl ImportOptions {
    /// Options with the defaults: nothing masked, the temporary directory, a thread a core (8 at most).
    pub fn new(repo_id: RepositoryId, unit_type: UploadKind) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            repo_id,
            unit_type,
            mask_id: None,
            limits: Limits::default(),
            spool_dir: std::env::temp_dir(),
            threads: cores.min(8),
        }
    }
}

/// What an archive held.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Imported {
    /// Blobs first, then v1 images (parents first), manifests, lists, tags. No unit stands here twice.
    pub units: Vec<Unit>,
    /// Tags of the v1 API.
    pub v1_tags: Vec<V1Tag>,
    /// What a person should know, for example why an image has no manifest.
    pub notices: Vec<String>,
    /// The unit to report to the client: the uploaded manifest or list; of images, the only head.
    pub primary: Option<Unit>,
    /// Manifests that a list in `units` refers to and that were not uploaded. The caller must check that
    /// the repository has them.
    pub references: Vec<Digest>,
}
