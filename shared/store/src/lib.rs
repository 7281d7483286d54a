//! SQL: migrations and one module an aggregate; PostgreSQL and SQLite.
