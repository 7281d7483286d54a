//! What Crane knows: tables made from redirect and index files.

mod holdings;
mod load;
mod scan;
mod tables;

pub(crate) use holdings::{Held, Holdings, TagTargets};
pub(crate) use load::Loader;
pub(crate) use scan::FileState;
pub(crate) use tables::{Tables, V1Repo, V2Content, V2Repo};
