//! Registry client: pulls by tag and digest, verifies every byte.
//!
//! Speaks the pull part of the OCI distribution specification and of Docker's registry protocols before it.
//! Nothing that came over the wire is handed on as whole before its digest was checked; of version 1, which has none,
//! what can be.

mod answer;
mod auth;
mod blobs;
mod client;
mod counters;
mod error;
mod manifests;
mod options;
mod pull;
mod quota;
mod referrers;
mod request;
mod scope;
mod v1;

pub use auth::{Challenge, Credentials};
pub use blobs::BlobReader;
pub use client::Client;
pub use counters::Requests;
pub use error::RegistryError;
pub use manifests::{FetchedManifest, InvalidReference, ManifestHead, Reference, signed_digest};
pub use options::{ClientOptions, ProxyOptions, Retries, Tls};
pub use pull::{BlobRef, BlobSink, Discard, PullReport, PullVisitor, VisitError};
pub use referrers::Referrer;
pub use v1::{V1Checksums, V1Json, V1Layer, V1Repository};

type Result<T, E = RegistryError> = std::result::Result<T, E>;
