//! The published tree and the redirect file: one definition for the worker, which writes them, and Crane, which
//! reads them.
//!
//! ```text
//! root/                        /var/lib/pulp/published/docker
//! app/<repo>.json       -> ../master/<repo>/<publication>/<repo>.json    redirect file, version 1
//! web/<repo>            -> ../master/<repo>/<publication>/web            <image id>/{ancestry,json,layer}
//! export/repo/<repo>.tar
//! v2/app/<repo>.json    -> ../master/<repo>/<publication>/<repo>.json    redirect file, version 4
//! v2/web/<repo>         -> ../master/<repo>/<publication>                blobs/ manifests/{1,2,list}/ tags/list
//! v2/master/<repo>/<publication>/index.pulp                              what our Crane answers from
//! ```
//!
//! A publication goes through [`Contents`] (what the worker found), [`Publication`] (its closure is complete),
//! [`Staged`] (built aside, durable) and the switch, which is one rename per link. All code here blocks; call it
//! from a thread that may.

mod catalog;
mod closure;
mod each;
mod error;
mod export;
mod fs;
pub mod index;
pub mod redirect;
mod root;
mod stage;
mod tree;

#[cfg(test)]
mod change_tests;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;

pub use catalog::{Change, Changed, Published};
pub use closure::{
    BlobFile, ClosureError, Contents, ImageFiles, ListFile, ManifestFile, Missing, Publication,
};
pub use error::PublicationError;
pub use export::EntrySource;
pub use index::{INDEX_FILE, Index, PublicationId};
pub use redirect::{Redirect, RedirectError};
pub use root::{Pruned, Root};
pub use stage::Staged;
