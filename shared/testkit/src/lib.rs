//! Private PostgreSQL, RabbitMQ and registries for tests.
