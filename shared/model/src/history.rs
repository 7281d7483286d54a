//! Entries of a repository's publish and sync histories.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{DistributorId, RepositoryId, Timestamp};

/// How a publish or sync ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HistoryResult {
    /// It did what was asked.
    Success,
    /// The plugin reported a failure.
    Failed,
    /// An error stopped it.
    Error,
    /// A cancel stopped it.
    Canceled,
    /// Nothing had changed.
    Skipped,
}

/// One publish, as `…/history/publish/<distributor>/` lists it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PublishHistory {
    /// Unique; the task's id.
    pub id: String,
    /// The repository.
    pub repo_id: RepositoryId,
    /// The distributor.
    pub distributor_id: DistributorId,
    /// The distributor's type.
    pub distributor_type_id: String,
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub completed: Timestamp,
    /// How it ended.
    pub result: HistoryResult,
    /// State of each step by its id.
    pub summary: Value,
    /// The steps' reports.
    pub details: Value,
    /// What went wrong, for people.
    pub error_message: Option<String>,
    /// Always null; Pulp 2 put Python's in it.
    pub exception: Option<String>,
    /// Always null; Pulp 2 put Python's in it.
    pub traceback: Option<String>,
}

/// One sync, as `…/history/sync/` lists it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SyncHistory {
    /// Unique; the task's id.
    pub id: String,
    /// The repository.
    pub repo_id: RepositoryId,
    /// The importer, which has its type's name.
    pub importer_id: String,
    /// The importer's type.
    pub importer_type_id: String,
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub completed: Timestamp,
    /// How it ended.
    pub result: HistoryResult,
    /// Units that came into the repository.
    pub added_count: i64,
    /// Tags that name another manifest than before.
    pub updated_count: i64,
    /// Units that went from the repository.
    pub removed_count: i64,
    /// State of each step by its id.
    pub summary: Value,
    /// The steps' reports.
    pub details: Value,
    /// What was planned and what it cost; null where it didn't come to that.
    pub report: Value,
    /// What went wrong, for people.
    pub error_message: Option<String>,
    /// Always null; Pulp 2 put Python's in it.
    pub exception: Option<String>,
    /// Always null; Pulp 2 put Python's in it.
    pub traceback: Option<String>,
}
