//! What a registry wants to see before it answers, remembered for each scope and shared by all requests of it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::sync::{Mutex as AsyncMutex, MutexGuard};

use crate::auth::{Authorization, Challenge};

/// What is known of one scope (a repository's name; empty for the registry itself).
#[derive(Default)]
pub(crate) struct Known {
    /// Whether any answer has come yet.
    pub(crate) asked: bool,
    /// What was good, or is about to be tried.
    pub(crate) authorization: Option<Authorization>,
    /// What was wanted, so that a token that ends can be replaced before a request is refused for it.
    pub(crate) challenges: Vec<Challenge>,
}

impl Known {
    /// What to send now; none if a token must be fetched first, or nothing is wanted.
    pub(crate) fn good(&self) -> Option<Authorization> {
        let good = self.authorization.as_ref();
        good.filter(|a| a.is_good(Instant::now())).cloned()
    }

    /// Whether the next request would be refused for an authorization that has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.authorization.is_some() && self.good().is_none()
    }
}

/// One scope. Whoever holds its lock asks the token server, and all others wait for what comes of it.
#[derive(Default)]
pub(crate) struct Scope(AsyncMutex<Known>);

impl Scope {
    pub(crate) async fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().await
    }
}

/// All scopes of a registry.
#[derive(Default)]
pub(crate) struct Scopes(Mutex<HashMap<String, Arc<Scope>>>);

impl Scopes {
    pub(crate) fn of(&self, name: &str) -> Arc<Scope> {
        let mut scopes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(scopes.entry(name.to_owned()).or_default())
    }
}
