//! Uploads: what a file is, the tracker that survives us, and sending its bytes.

pub(crate) mod detect;
pub(crate) mod tracker;
pub(crate) mod transfer;
