//! Domain types, no I/O: what an image, a repository and a task are.
//!
//! Everything here is parsed once, at the edge; a value of one of these types is valid.
//! Pure rules that several roles need (which resources a task locks, in which class it runs) live
//! beside the types they speak of. Nothing here reads a clock, a file or a socket.

pub mod budget;
pub mod config;
pub mod deadline;
pub mod digest;
pub mod error;
pub mod export;
pub mod history;
pub mod id;
pub mod image;
pub mod importer;
pub mod media_type;
pub mod name;
pub mod platform;
pub mod progress;
pub mod puller;
pub mod schedule;
pub mod tag_filter;
pub mod task;
pub mod time;
pub mod unit;
pub mod wait;

pub use digest::{Algorithm, Digest};
pub use error::{CodedError, ErrorCode};
pub use id::{Attempt, Epoch, TaskId, UploadId, VersionNumber, WorkerName};
pub use media_type::MediaType;
pub use name::{DistributorId, Login, RegistryId, RepositoryId, RobotName, TagName};
pub use puller::Puller;
pub use schedule::ScheduleId;
pub use time::Timestamp;
