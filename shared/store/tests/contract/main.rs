//! The store's contract: every sentence holds on SQLite and on a real PostgreSQL.
//!
//! Each `async fn(&Bed)` that [`contract!`] names becomes the tests `sqlite::<name>` and `postgres::<name>`. What only
//! one engine has (a server that goes away, a file with one writer) stands in `server` and `file`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

mod attempts;
mod cancel;
mod concurrency;
mod expiry;
mod figures;
mod file;
mod grants;
mod images;
mod journals;
mod leases;
mod migrations;
mod outbox;
mod publishing;
mod pull_rights;
mod repositories;
mod requests;
mod schedules;
mod selections;
mod server;
mod tasks;
mod timeline;
mod trace;
mod transfers;
mod upstreams;
mod users_and_uploads;
mod versions;
mod waits;
mod workers;
