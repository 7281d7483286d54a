//! End to end, in one test binary: the servers are the real binaries, the clients are real clients.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bad_input;
mod bounded;
mod budgets;
mod clients;
mod exclusion;
mod faults;
mod main_job;
mod matrix;
mod observability;
mod otlp;
mod publish_faults;
mod pulls;
mod recovery;
mod roles;
mod schedules;
mod settled;
mod sync;
mod sync_at_length;
mod sync_v1;
mod transfer;
mod tutorial;
mod upstream;
mod upstream_v1;
mod waiting;
