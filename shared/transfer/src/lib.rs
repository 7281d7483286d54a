//! Exports for closed networks: what is written on one side and read, verified, on the other.
//!
//! An export is a directory. In it lies an OCI layout, as files or as one tar cut into parts; a manifest of our own,
//! [`MANIFEST_FILE`], that lists what the repository holds, what of it came along and where; and the manifest's
//! signature. The manifest vouches for everything: every blob by its digest, every part by its checksum, and by
//! [`ExportManifest::base`] what the other side must have already.
//!
//! Nothing of an export is trusted. Members of the tar are read where the manifest says that their bytes are, never
//! unpacked by a path; and bytes count only once they hash to their digest.
//!
//! Source of the layout: OCI image specification, `image-layout.md`.

mod contents;
mod cosign;
mod error;
mod manifest;
mod place;
mod signing;
mod source;
mod tarball;
mod writer;

pub use contents::Contents;
pub use error::TransferError;
pub use manifest::{
    Base, Carried, Entry, ExportManifest, ExportedRepository, MANIFEST_FILE, ManifestEntry, Part,
    SIGNATURE_FILE, SparseEntry, TagEntry,
};
pub use place::import_path;
pub use signing::{SigningKey, TrustedKeys, generate_key};
pub use source::{BlobRead, Export};
pub use writer::{BlobSource, ExportProgress, Target, Wanted, write};
