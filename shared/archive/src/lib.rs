//! Image archives: what `docker save`, `podman save` and `skopeo copy` write, read into units and blobs; and the
//! tar writer of exports.
//!
//! [`import()`] takes an uploaded file, plain or compressed, and recognises its layout by content: the v1 layout of
//! the first Docker versions, `manifest.json` archives, OCI layouts, skopeo's `dir:`. Bytes go to a [`BlobSink`];
//! what they make comes back as [`Imported`]. An upload of images gives both faces: v1 images for the v1 API, and
//! a manifest with its blobs for the clients of today.
//!
//! Nothing of an archive is trusted. It is never unpacked by its members' paths: one pass over the headers makes an
//! index, links are resolved in that index, and content is streamed from its offset. Every byte is checked against
//! the digest that the archive claims for it. Memory does not grow with the image.

mod closure;
mod docker;
mod error;
mod export;
mod face;
pub mod gzip;
mod header;
mod import;
mod index;
mod json;
mod layer;
mod layout;
mod legacy;
mod list;
mod names;
mod options;
mod output;
mod sink;
mod tarcheck;
mod upload;
mod v1;

pub use error::{ArchiveError, Rejection, SinkError};
pub use export::TarWriter;
pub use face::{MadeManifest, layer_content, manifest_of_line, take_layer};
pub use import::import;
pub use layer::{LayerContent, LayerFile};
pub use options::{ImportOptions, Imported, Limits, UploadKind};
pub use sink::{BlobSink, BlobWriter, NoProgress, Phase, Progress};
