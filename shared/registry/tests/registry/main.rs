//! The client against a registry within the process that can be made to misbehave.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod documents;
mod login;
mod pulls;
mod server;
