//! The client against upstreams within the process that follow a script.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod faults;
mod upstream;
mod v1;
