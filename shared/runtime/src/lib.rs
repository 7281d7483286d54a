//! Configuration, logging, shutdown: what every role's process needs.
