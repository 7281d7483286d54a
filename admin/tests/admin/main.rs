//! The whole client, in this process, against a stand-in for the REST API.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod auth;
mod client;
mod fake;
mod following;
mod publishes;
mod repositories;
mod schedules;
mod tasks;
mod uploads;
