//! Faults of an upstream, and what whoever runs the sync can do about each.

use pulp_model::{CodedError, Digest, ErrorCode};
use pulp_registry::RegistryError;
use serde_json::json;

use super::{LONGEST_PAUSE, UpstreamRepository};
use crate::{error::TaskError, kinds::sync::allowance::LONGEST_PARK};

impl UpstreamRepository {
    pub(super) fn unfit(&self, digest: &Digest, reason: &str) -> TaskError {
        let text = format!(
            "manifest {digest} of {} at {} can't be taken in: {reason}",
            self.name,
            self.client.base_url()
        );
        CodedError::new(ErrorCode::UPSTREAM_MANIFEST, text)
            .with("digest", digest)
            .with("reason", reason)
            .into()
    }

    /// A fault on the way to tags and manifests.
    pub(in super::super) fn unreadable(&self, error: &RegistryError) -> TaskError {
        let registry = self.client.base_url();
        self.common(error).unwrap_or_else(|| {
            let text = format!("{} can't be read from {registry}: {error}", self.name);
            CodedError::new(ErrorCode::UPSTREAM_UNREADABLE, text)
                .with("repo", &self.name)
                .with("registry", registry)
                .with("reason", error.to_string())
                .into()
        })
    }

    /// A fault on the way to a blob.
    pub(in super::super) fn not_downloaded(&self, error: &RegistryError) -> TaskError {
        self.common(error).unwrap_or_else(|| {
            let text = format!("{error}; nothing was changed, and what came whole is kept for the next sync");
            let coded = CodedError::new(ErrorCode::DOWNLOAD_FAILED, text);
            coded.with("failed_urls", error.url()).into()
        })
    }

    fn common(&self, error: &RegistryError) -> Option<TaskError> {
        let registry = self.client.base_url();
        let coded = match error {
            RegistryError::Mismatch { .. } => error.coded(),
            RegistryError::Unauthorized { reason, .. } => {
                let text = format!(
                    "{error}; the repository may not exist there, or basic_auth_username and basic_auth_password are wrong"
                );
                CodedError::new(ErrorCode::UPSTREAM_DENIED, text)
                    .with("registry", registry)
                    .with("reason", reason)
            }
            RegistryError::RateLimited {
                retry_after: Some(pause),
                ..
            } if *pause > LONGEST_PAUSE && *pause <= LONGEST_PARK => {
                return Some(TaskError::NotYet {
                    pause: *pause,
                    why: error.to_string(),
                });
            }
            RegistryError::RateLimited { retry_after, .. } => {
                let text = format!("{error}; sync again later, or with credentials that have a higher limit");
                CodedError::new(ErrorCode::UPSTREAM_RATE_LIMITED, text)
                    .with("registry", registry)
                    .with("retry_after", json!(retry_after.map(|d| d.as_secs())))
            }
            _ => return None,
        };
        Some(coded.into())
    }
}
