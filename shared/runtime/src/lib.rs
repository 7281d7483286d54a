//! Configuration, logging, shutdown: what every role's process needs.

pub mod backoff;
pub mod config;
pub mod shutdown;
pub mod telemetry;

pub use backoff::Backoff;
pub use config::Config;
pub use shutdown::Shutdown;
