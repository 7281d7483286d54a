//! What the upstream lets this sync ask: taken from the budget that all workers share.

use std::time::Duration;

use pulp_model::{CodedError, ErrorCode};
use pulp_registry::Client;
use pulp_store::{
    Store, StoreError,
    upstreams::{Account, Allowance},
};
use serde_json::json;

use crate::error::TaskError;

/// A sync doesn't wait longer for its upstream than this.
pub(super) const LONGEST_PARK: Duration = Duration::from_hours(24);

/// This sync's account at the upstream.
pub(super) struct UpstreamAccount {
    store: Store,
    account: Account,
}

impl UpstreamAccount {
    pub(super) fn new(store: Store, host: String, login: Option<String>) -> Self {
        let login = login.unwrap_or_default();
        Self {
            store,
            account: Account { host, login },
        }
    }

    /// Takes leave to fetch up to `wanted` manifests; registries count nothing else.
    pub(super) async fn take(&self, wanted: u64) -> Result<Allowance, StoreError> {
        self.store.take_allowance(&self.account, wanted).await
    }

    /// Tells all workers what the registry has said about its limit.
    pub(super) async fn note(&self, client: &Client) -> Result<(), StoreError> {
        match client.take_quota() {
            Some(quota) => self.store.note_quota(&self.account, &quota).await,
            None => Ok(()),
        }
    }

    /// The end of this attempt: the rest is fetched once it may be, unless that is too far away.
    pub(super) fn parked(&self, allowance: Allowance, missing: usize) -> TaskError {
        let Account { host, login } = &self.account;
        let who = if login.is_empty() {
            "anonymous users"
        } else {
            login
        };
        let why = format!("{host} lets {who} fetch no more manifests for now; {missing} are still to come");
        let pause = allowance.rest_in;
        if pause > LONGEST_PARK {
            let hours = pause.as_secs() / 3600;
            let text = format!(
                "{why}, in {hours} hours; sync again then, or with an account that has a higher limit"
            );
            let error = CodedError::new(ErrorCode::UPSTREAM_RATE_LIMITED, text).with("registry", host);
            return error.with("retry_after", json!(pause.as_secs())).into();
        }
        TaskError::NotYet { pause, why }
    }
}
