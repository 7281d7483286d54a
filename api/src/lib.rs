//! REST API under /pulp/api/v2.
