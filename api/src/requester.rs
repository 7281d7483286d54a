//! For whom a request's tasks are made, and in which group.

use axum::extract::FromRequestParts;
use http::request::Parts;
use pulp_model::task::{Owner, TaskKind};
use pulp_store::tasks::Submission;
use uuid::Uuid;

use crate::{ApiError, auth::Caller, query::Query};

/// The owner of what a request makes (the user who asks), and the group that the client chose for it.
///
/// Every request that makes tasks takes `task_group=<uuid>`: what one client asks for in many requests can then be
/// counted and canceled as one. The uuid is the client's own.
pub(crate) struct Requester {
    owner: Owner,
    group_id: Option<String>,
}

impl Requester {
    /// The task of this kind that the request asks for.
    pub(crate) fn submission<'k>(&self, kind: &'k TaskKind) -> Submission<'k> {
        let submission = Submission::new(kind, self.owner.clone());
        match &self.group_id {
            Some(group) => submission.in_group(group),
            None => submission,
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Requester {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let owner = match parts.extensions.get::<Caller>() {
            Some(caller) => Owner::user(&caller.login),
            None => return Err(ApiError::Internal("no caller behind the guard".to_owned())),
        };
        let Ok(query) = Query::from_request_parts(parts, state).await;
        let group_id = query.first("task_group").map(group).transpose()?;
        Ok(Self { owner, group_id })
    }
}

/// A group's id in its one spelling.
fn group(text: &str) -> Result<String, ApiError> {
    text.parse::<Uuid>().map(|id| id.to_string()).map_err(|_| {
        let reason = format!("task_group is {text:?}; give a UUID of your own making");
        ApiError::invalid("task_group", reason)
    })
}
