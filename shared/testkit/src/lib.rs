//! Private PostgreSQL, RabbitMQ and registries for tests.
//!
//! Everything is started from the distribution's packages, on free loopback ports, with its data in a
//! temporary folder, and ends when its value is dropped. Nothing here is used in production.

mod postgres;
mod process;
mod rabbitmq;

pub use postgres::{Postgres, shared_postgres};
pub use process::free_port;
pub use rabbitmq::{RabbitMq, shared_rabbitmq, unique_prefix};
