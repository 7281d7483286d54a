//! The published tree and the redirect file: one definition for worker and crane.
