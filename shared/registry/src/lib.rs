//! Registry client: pulls by tag and digest, verifies every byte.
