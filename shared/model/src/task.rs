//! Tasks: kinds with their arguments, states, the resources each kind locks and the class it runs in.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{DistributorId, Login, RepositoryId, TaskId, Timestamp, UploadId};

/// A task's state as Pulp 2 clients see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Accepted by the API; waits for its resources.
    Waiting,
    /// Holds its resources; waits for a worker.
    Accepted,
    /// A worker runs it.
    Running,
    /// Kept for the grammar of old clients; never set.
    Suspended,
    /// Ended: there was nothing to do.
    Skipped,
    /// Ended well.
    Finished,
    /// Ended badly; the row's `error` says why.
    Error,
    /// Ended by a cancel.
    Canceled,
}

impl TaskState {
    /// All states.
    pub const ALL: [Self; 8] = [
        Self::Waiting,
        Self::Accepted,
        Self::Running,
        Self::Suspended,
        Self::Skipped,
        Self::Finished,
        Self::Error,
        Self::Canceled,
    ];

    /// The name on the wire and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Accepted => "accepted",
            Self::Running => "running",
            Self::Suspended => "suspended",
            Self::Skipped => "skipped",
            Self::Finished => "finished",
            Self::Error => "error",
            Self::Canceled => "canceled",
        }
    }

    /// Reads the name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }

    /// Whether it never changes again.
    pub const fn is_terminal(self) -> bool {
        matches!(
            self,
            Self::Skipped | Self::Finished | Self::Error | Self::Canceled
        )
    }
}

/// Which queue a task's grant goes to. Short work never waits behind long work of another class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskClass {
    /// Somebody waits for it: tags, updates, deletions.
    Interactive,
    /// Imports of uploads.
    Import,
    /// Publishes and exports.
    Publish,
    /// Syncs.
    Sync,
    /// Garbage collection and the like.
    Maintenance,
}

impl TaskClass {
    /// All classes.
    pub const ALL: [Self; 5] = [
        Self::Interactive,
        Self::Import,
        Self::Publish,
        Self::Sync,
        Self::Maintenance,
    ];

    /// The name in queue names, configuration and the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Import => "import",
            Self::Publish => "publish",
            Self::Sync => "sync",
            Self::Maintenance => "maintenance",
        }
    }

    /// Reads the name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.as_str() == text)
    }
}

/// How a task holds a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockMode {
    /// Together with other shared holders.
    Shared,
    /// Alone.
    Exclusive,
}

/// Something that tasks lock, for example `repository:busybox`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ResourceKey(String);

impl From<&Self> for ResourceKey {
    /// A copy, for maps that look by reference and copy what they lack.
    fn from(key: &Self) -> Self {
        key.clone()
    }
}

impl ResourceKey {
    /// The repository as a whole.
    pub fn repository(repo: &RepositoryId) -> Self {
        Self(format!("repository:{repo}"))
    }

    /// One distributor of a repository.
    pub fn distributor(repo: &RepositoryId, distributor: &DistributorId) -> Self {
        Self(format!("distributor:{repo}/{distributor}"))
    }

    /// A key read back from the database or made by a test.
    pub fn from_stored(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One resource that a task needs, and how.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Claim {
    /// What.
    pub resource: ResourceKey,
    /// How.
    pub mode: LockMode,
}

impl Claim {
    /// A shared claim.
    pub const fn shared(resource: ResourceKey) -> Self {
        Self {
            resource,
            mode: LockMode::Shared,
        }
    }

    /// An exclusive claim.
    pub const fn exclusive(resource: ResourceKey) -> Self {
        Self {
            resource,
            mode: LockMode::Exclusive,
        }
    }
}

/// A task as it was made: what never changes of it, and decides when and where it may run.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Newcomer {
    /// The key.
    pub task_id: TaskId,
    /// Its class.
    pub class: TaskClass,
    /// For whom it is done.
    pub owner: Owner,
    /// The name of its kind.
    pub kind_name: String,
    /// The schema version of its arguments.
    pub schema_version: i64,
    /// What it needs.
    pub claims: Vec<Claim>,
    /// Its place in the order of arrival, with the id as tie-break. To the microsecond, which [`Timestamp`] is not on the wire.
    #[serde(with = "micros")]
    pub created: Timestamp,
}

/// An instant in microseconds since 1970.
mod micros {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::Timestamp;

    #[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
    pub(super) fn serialize<S: Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_i64(at.micros())
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Timestamp, D::Error> {
        i64::deserialize(from).map(Timestamp)
    }
}

/// For whom a task is done. Grants go round between owners, so that much work of one doesn't hold up another's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Owner(String);

impl Owner {
    /// A user who asked.
    pub fn user(login: &Login) -> Self {
        Self(format!("user:{login}"))
    }

    /// Work that a schedule asked for.
    pub fn scheduler() -> Self {
        Self("scheduler".to_owned())
    }

    /// Work that nobody asked for.
    pub fn system() -> Self {
        Self("system".to_owned())
    }

    /// An owner read back from the database, or made by a test.
    pub fn from_stored(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text: `user:<login>`, `scheduler` or `system`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// By what a request is known to be the same as one that waits already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coalescing {
    /// What it is about, for example `publish:busybox/web`. Of one scope, only the last request can stand for
    /// the next: with other options between the two, the last word would be lost.
    pub scope: String,
    /// The options, in one spelling.
    pub options: String,
}

/// What a task does, with its arguments. Stored as JSON; `kind` names the variant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TaskKind {
    /// Reads an upload into a repository.
    ImportUpload {
        /// The repository that takes it.
        repo_id: RepositoryId,
        /// The upload.
        upload_id: UploadId,
        /// Type given by the client: `docker_image`, `docker_manifest`, `docker_manifest_list` or `docker_tag`.
        unit_type_id: String,
        /// Key given by the client.
        unit_key: Map<String, Value>,
        /// Metadata given by the client; a tag's name and digest.
        unit_metadata: Map<String, Value>,
        /// Importer settings for this call alone, for example `mask_id`.
        override_config: Map<String, Value>,
    },
    /// Fetches what the importer names from another registry.
    Sync {
        /// The repository.
        repo_id: RepositoryId,
        /// Importer settings for this call alone; `dry_run` true tells what would be done and does nothing.
        override_config: Map<String, Value>,
    },
    /// Reads an export for closed networks into a repository.
    ImportExport {
        /// The repository.
        repo_id: RepositoryId,
        /// The export's directory, below the folder of imports.
        path: String,
        /// Make the repository if it isn't there.
        create: bool,
        /// Take away what the repository has and the export has not.
        remove_missing: bool,
    },
    /// Runs a distributor: web publish or tar export.
    Publish {
        /// The repository.
        repo_id: RepositoryId,
        /// The distributor.
        distributor_id: DistributorId,
        /// Distributor settings for this call alone.
        override_config: Map<String, Value>,
    },
    /// Deletes a repository and what it published.
    DeleteRepository {
        /// The repository.
        repo_id: RepositoryId,
    },
    /// Sets, changes or (null) removes the importer.
    UpdateImporter {
        /// The repository.
        repo_id: RepositoryId,
        /// The importer's type, when it is set anew.
        importer_type_id: Option<String>,
        /// Keys to set; null removes one.
        config: Map<String, Value>,
    },
    /// Removes the importer.
    DeleteImporter {
        /// The repository.
        repo_id: RepositoryId,
    },
    /// Changes a distributor's settings.
    UpdateDistributor {
        /// The repository.
        repo_id: RepositoryId,
        /// The distributor.
        distributor_id: DistributorId,
        /// Keys to set; null removes one.
        config: Map<String, Value>,
        /// New value of `auto_publish`, if it changes.
        auto_publish: Option<bool>,
    },
    /// Removes a distributor and what it published.
    DeleteDistributor {
        /// The repository.
        repo_id: RepositoryId,
        /// The distributor.
        distributor_id: DistributorId,
    },
    /// Takes its turn on a repository, alone, and does nothing: its end tells that all that was asked of the
    /// repository before is over, and how long a turn takes.
    Probe {
        /// The repository.
        repo_id: RepositoryId,
    },
}

/// The kinds that this release can run: name, the largest schema version of its arguments that is read (every
/// version from 1 on is), and how many seconds a run may take unless configured otherwise.
///
/// A release that adds a kind, or an argument that an older one must not overlook, says so here; tasks of it are
/// granted once a worker lives that can run them.
pub const KINDS: &[KindInfo] = &[
    KindInfo::new("import_upload", 1, 12 * 3600),
    KindInfo::new("sync", 1, 24 * 3600),
    KindInfo::new("import_export", 1, 24 * 3600),
    KindInfo::new("publish", 1, 4 * 3600),
    KindInfo::new("delete_repository", 1, 3600),
    KindInfo::new("update_importer", 1, 600),
    KindInfo::new("delete_importer", 1, 600),
    KindInfo::new("update_distributor", 1, 3600),
    KindInfo::new("delete_distributor", 1, 3600),
    KindInfo::new("probe", 1, 600),
];

/// What this release knows of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KindInfo {
    /// The `kind` in stored arguments.
    pub name: &'static str,
    /// The largest schema version that it reads, and the one that it writes.
    pub schema_version: i64,
    /// How many seconds a run may take.
    pub deadline_seconds: u64,
}

impl KindInfo {
    const fn new(name: &'static str, schema_version: i64, deadline_seconds: u64) -> Self {
        Self {
            name,
            schema_version,
            deadline_seconds,
        }
    }

    /// The kind of this name.
    pub fn of(name: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.name == name)
    }
}

impl TaskKind {
    /// The `kind` in stored arguments.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ImportUpload { .. } => "import_upload",
            Self::Sync { .. } => "sync",
            Self::ImportExport { .. } => "import_export",
            Self::Publish { .. } => "publish",
            Self::DeleteRepository { .. } => "delete_repository",
            Self::UpdateImporter { .. } => "update_importer",
            Self::DeleteImporter { .. } => "delete_importer",
            Self::UpdateDistributor { .. } => "update_distributor",
            Self::DeleteDistributor { .. } => "delete_distributor",
            Self::Probe { .. } => "probe",
        }
    }

    /// The schema version of its arguments, as this release writes them.
    pub fn schema_version(&self) -> i64 {
        KindInfo::of(self.name()).map_or(1, |kind| kind.schema_version)
    }

    /// By what it is known to be the same as a request that waits; none if each is done by itself.
    pub fn coalescing(&self) -> Option<Coalescing> {
        match self {
            Self::Publish {
                repo_id,
                distributor_id,
                override_config,
            } => Some(Coalescing {
                scope: format!("publish:{repo_id}/{distributor_id}"),
                options: Value::Object(override_config.clone()).to_string(),
            }),
            Self::Sync {
                repo_id,
                override_config,
            } => Some(Coalescing {
                scope: format!("sync:{repo_id}"),
                options: Value::Object(override_config.clone()).to_string(),
            }),
            _ => None,
        }
    }

    /// Whether a request after it may need to see what it does, so that none from before it can stand for it. A
    /// publish only reads, and a probe not even that: whatever else of the repository waits comes to the same with it
    /// or without.
    pub const fn changes_repository(&self) -> bool {
        !matches!(self, Self::Publish { .. } | Self::Probe { .. })
    }

    /// The repository it works on.
    pub const fn repo_id(&self) -> &RepositoryId {
        match self {
            Self::ImportUpload { repo_id, .. }
            | Self::Sync { repo_id, .. }
            | Self::ImportExport { repo_id, .. }
            | Self::Publish { repo_id, .. }
            | Self::DeleteRepository { repo_id }
            | Self::UpdateImporter { repo_id, .. }
            | Self::DeleteImporter { repo_id }
            | Self::UpdateDistributor { repo_id, .. }
            | Self::DeleteDistributor { repo_id, .. }
            | Self::Probe { repo_id } => repo_id,
        }
    }

    /// The dotted name that Pulp 2 clients see as `task_type`.
    pub const fn task_type(&self) -> &'static str {
        match self {
            Self::ImportUpload { .. } => "pulp.server.managers.content.upload.import_uploaded_unit",
            Self::Sync { .. } => "pulp.server.managers.repo.sync.sync",
            Self::ImportExport { .. } => "pulp.server.tasks.repository.import_export",
            Self::Publish { .. } => "pulp.server.managers.repo.publish.publish",
            Self::DeleteRepository { .. } => "pulp.server.tasks.repository.delete",
            Self::UpdateImporter { .. } => "pulp.server.controllers.importer.update_importer_config",
            Self::DeleteImporter { .. } => "pulp.server.controllers.importer.remove_importer",
            Self::UpdateDistributor { .. } => "pulp.server.controllers.distributor.update",
            Self::DeleteDistributor { .. } => "pulp.server.controllers.distributor.delete",
            Self::Probe { .. } => "pulp.server.tasks.repository.probe",
        }
    }

    /// The class of queue its grant goes to.
    pub const fn class(&self) -> TaskClass {
        match self {
            // A tag is an upload without a file: a person waits for it, and it reads no bytes.
            Self::ImportUpload { unit_type_id, .. } => {
                if matches!(unit_type_id.as_bytes(), b"docker_tag") {
                    TaskClass::Interactive
                } else {
                    TaskClass::Import
                }
            }
            Self::ImportExport { .. } => TaskClass::Import,
            Self::Publish { .. } => TaskClass::Publish,
            Self::Sync { .. } => TaskClass::Sync,
            _ => TaskClass::Interactive,
        }
    }

    /// The resources it needs all at once, sorted, each once.
    ///
    /// Changes of a repository are exclusive on it. A publish reads the repository, together with others,
    /// and is alone on its distributor. Deleting or changing a distributor is alone on it too.
    pub fn claims(&self) -> Vec<Claim> {
        let repo = ResourceKey::repository(self.repo_id());
        let mut claims = match self {
            Self::ImportUpload { .. }
            | Self::Sync { .. }
            | Self::ImportExport { .. }
            | Self::DeleteRepository { .. }
            | Self::UpdateImporter { .. }
            | Self::DeleteImporter { .. }
            | Self::Probe { .. } => vec![Claim::exclusive(repo)],
            Self::Publish {
                repo_id,
                distributor_id,
                ..
            }
            | Self::UpdateDistributor {
                repo_id,
                distributor_id,
                ..
            }
            | Self::DeleteDistributor {
                repo_id,
                distributor_id,
            } => vec![
                Claim::shared(repo),
                Claim::exclusive(ResourceKey::distributor(repo_id, distributor_id)),
            ],
        };
        claims.sort_by(|a, b| a.resource.cmp(&b.resource));
        claims
    }

    /// The tags by which clients find it.
    pub fn tags(&self) -> Vec<String> {
        let action = match self {
            Self::ImportUpload { .. } => "import_upload",
            Self::Sync { .. } => "sync",
            Self::ImportExport { .. } => "import_export",
            Self::Publish { .. } => "publish",
            Self::DeleteRepository { .. } => "delete",
            Self::UpdateImporter {
                importer_type_id: Some(_),
                ..
            } => "add_importer",
            Self::UpdateImporter { .. } => "update_importer",
            Self::DeleteImporter { .. } => "delete_importer",
            Self::UpdateDistributor { .. } => "update_distributor",
            Self::DeleteDistributor { .. } => "remove_distributor",
            Self::Probe { .. } => "probe",
        };
        let mut tags = vec![format!("pulp:repository:{}", self.repo_id())];
        match self {
            Self::Publish { distributor_id, .. }
            | Self::UpdateDistributor { distributor_id, .. }
            | Self::DeleteDistributor { distributor_id, .. } => {
                tags.push(format!("pulp:repository_distributor:{distributor_id}"));
            }
            _ => {}
        }
        tags.push(format!("pulp:action:{action}"));
        tags
    }

    /// Whether a run that was lost half-way may be begun again. All of today's kinds may: each commits its
    /// effect in one fenced transaction, or not at all.
    pub const fn is_restartable(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publish_shares_the_repository_and_is_alone_on_its_distributor() {
        let kind = TaskKind::Publish {
            repo_id: "r".parse().unwrap(),
            distributor_id: "d".parse().unwrap(),
            override_config: Map::new(),
        };
        let claims: Vec<_> = kind
            .claims()
            .into_iter()
            .map(|c| (c.resource.to_string(), c.mode))
            .collect();
        assert_eq!(
            claims,
            [
                ("distributor:r/d".to_owned(), LockMode::Exclusive),
                ("repository:r".to_owned(), LockMode::Shared)
            ]
        );
    }

    #[test]
    fn every_kind_is_known_by_the_name_in_its_arguments() {
        let repo_id: RepositoryId = "r".parse().unwrap();
        let distributor_id: DistributorId = "d".parse().unwrap();
        let config = Map::new();
        let kinds = [
            TaskKind::ImportUpload {
                repo_id: repo_id.clone(),
                upload_id: UploadId::new(),
                unit_type_id: String::new(),
                unit_key: config.clone(),
                unit_metadata: config.clone(),
                override_config: config.clone(),
            },
            TaskKind::Sync {
                repo_id: repo_id.clone(),
                override_config: config.clone(),
            },
            TaskKind::Publish {
                repo_id: repo_id.clone(),
                distributor_id: distributor_id.clone(),
                override_config: config.clone(),
            },
            TaskKind::DeleteRepository {
                repo_id: repo_id.clone(),
            },
            TaskKind::UpdateImporter {
                repo_id: repo_id.clone(),
                importer_type_id: None,
                config: config.clone(),
            },
            TaskKind::DeleteImporter {
                repo_id: repo_id.clone(),
            },
            TaskKind::UpdateDistributor {
                repo_id: repo_id.clone(),
                distributor_id: distributor_id.clone(),
                config,
                auto_publish: None,
            },
            TaskKind::DeleteDistributor {
                repo_id: repo_id.clone(),
                distributor_id,
            },
            TaskKind::Probe { repo_id },
        ];
        for kind in &kinds {
            assert_eq!(serde_json::to_value(kind).unwrap()["kind"], kind.name());
            assert!(KindInfo::of(kind.name()).is_some(), "{}", kind.name());
        }
    }

    #[test]
    fn a_kind_survives_its_journey_through_json() {
        let kind = TaskKind::DeleteRepository {
            repo_id: "r".parse().unwrap(),
        };
        let text = serde_json::to_string(&kind).unwrap();
        assert_eq!(text, r#"{"kind":"delete_repository","repo_id":"r"}"#);
        assert_eq!(serde_json::from_str::<TaskKind>(&text).unwrap(), kind);
    }
}
