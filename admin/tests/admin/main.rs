//! The whole client, in this process, against a stand-in for the REST API.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod auth;
mod commands;
mod fake;
mod schedules;
mod uploads;
