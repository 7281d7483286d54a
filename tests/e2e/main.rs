//! End to end, in one test binary: the servers are the real binaries, the clients are real clients.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod faults;
mod main_job;
mod settled;
mod tutorial;
