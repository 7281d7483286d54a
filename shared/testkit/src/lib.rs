//! Private PostgreSQL, RabbitMQ, registries and container clients for tests.
//!
//! Everything is started from the distribution's packages, on free loopback ports, with its data in a
//! temporary folder, and ends when its value is dropped or its process dies. Nothing here is used in
//! production.
//!
//! Most tests want [`shared_postgres`] with a database of their own and [`shared_rabbitmq`] with a prefix of
//! their own. Tests of faults start a private one, and stop, kill and wipe it as they please.

mod clients;
mod postgres;
mod process;
mod rabbitmq;
mod registry;

pub use clients::{Containerd, Dockerd, Podman, skopeo, skopeo_output};
pub use postgres::{Postgres, psql, shared_postgres};
pub use process::free_port;
pub use rabbitmq::{RabbitMq, shared_rabbitmq, unique_prefix};
pub use registry::{Guard, Registry};
