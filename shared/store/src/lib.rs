//! SQL: migrations and one module an aggregate; PostgreSQL and SQLite.
//!
//! SQL stands in this crate alone. Calls that read take the [`Store`]; calls that write take a [`Tx`], so that
//! the caller decides what is one change. Whatever a task does to content goes through a [`FencedTx`], which
//! only the task's current attempt can begin: the compiler enforces the fence.

mod engine;
mod error;
mod fused;
mod lookups;
mod migrate;
mod patience;
mod pool;
mod reader;
mod row;
mod steps;
mod together;
mod wal;
mod writer;

pub mod attempts;
pub mod cancel;
pub mod distributors;
pub mod expiry;
pub mod figures;
pub mod grants;
pub mod groups;
pub mod history;
pub mod images;
pub mod importers;
pub mod journals;
pub mod leases;
pub mod outbox;
pub mod pull_rights;
pub mod repositories;
pub mod robots;
pub mod schedules;
pub mod tasks;
pub mod timeline;
pub mod transfers;
pub mod units;
pub mod uploads;
pub mod upstreams;
pub mod users;
pub mod versions;
pub mod waits;
pub mod workers;

pub use attempts::{ClaimOutcome, ClaimedTask, FencedTx, TaskLease};
pub use engine::{Engine, Store, Tx};
pub use error::StoreError;
