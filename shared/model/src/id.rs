//! Identifiers and counters, each its own type so that one can't stand for another.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new one; values made later in one process sort later.
            #[allow(clippy::new_without_default)]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// The 24 hexadecimal digits that Pulp 2 clients know as the row's object id.
            pub fn oid(&self) -> String {
                self.0.simple().to_string()[..24].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Ok(Self(Uuid::try_parse(text)?))
            }
        }
    };
}

uuid_id! {
    /// One task, from acceptance to its terminal state.
    TaskId
}
uuid_id! {
    /// One upload request: a file that grows by chunks until it is imported or deleted.
    UploadId
}

impl TaskId {
    /// The task of `<task>-<attempt>`, as what an attempt has for itself on disk is named.
    pub fn of_attempt(name: &str) -> Option<Self> {
        name.rsplit_once('-')?.0.parse().ok()
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub i64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

counter! {
    /// Which try of a task a grant is for; 1 for the first. Only the current attempt may commit an effect.
    Attempt
}
counter! {
    /// Generation of a leadership; grows by one at each take-over, never falls.
    Epoch
}
counter! {
    /// Number of a repository version; 0 is the empty repository just created.
    VersionNumber
}

/// A process's name as Pulp 2 has it: `reserved_resource_worker-0@host`, `resource_manager@host`, `scheduler@host`.
///
/// A process that restarts is another incarnation of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerName(pub String);

impl fmt::Display for WorkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
