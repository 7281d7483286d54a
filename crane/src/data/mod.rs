//! What Crane knows: tables made from redirect and index files.

mod digests;
mod gather;
mod holdings;
mod load;
mod scan;
mod tables;
mod tags;
mod v1_images;

pub(crate) use holdings::{Folder, Held, Holdings, TagTargets};
pub(crate) use load::Loader;
pub(crate) use scan::FileState;
pub(crate) use tables::{Tables, V1Repo, V2Content, V2Repo};
