//! What can go wrong, by what the caller can do about it.

use std::io;

use pulp_model::{CodedError, Digest, ErrorCode, unit::ImageId};

/// Why an import ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The upload can't be taken in; only another upload helps.
    #[error(transparent)]
    Rejected(#[from] Box<Rejection>),
    /// [`Progress::is_canceled`](crate::Progress::is_canceled) said so.
    #[error("the import was canceled")]
    Canceled,
    /// The content store failed; trying again may help.
    #[error("the content store failed: {0}")]
    Store(#[from] SinkError),
    /// The upload's file or the spool could not be read or written; trying again may help.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's own words.
        source: io::Error,
    },
}

/// A fault of the content store, passed through.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SinkError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl SinkError {
    /// Wraps what the store said.
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(source.into())
    }

    /// What a store's writer said, without the wrapper that [`std::io::Write`] asks for.
    pub(crate) fn writing(error: io::Error) -> Self {
        if error.get_ref().is_none() {
            return Self::new(error);
        }
        let kind = error.kind();
        error
            .into_inner()
            .map_or_else(|| Self::new(io::Error::from(kind)), Self)
    }

    /// What the store said.
    pub fn into_inner(self) -> Box<dyn std::error::Error + Send + Sync> {
        self.0
    }
}

/// What is wrong with an upload. Files are named as the archive's members are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Not a tar, or a tar of something else.
    #[error(
        "the upload is not an image archive: {reason}; upload what docker save, podman save or skopeo copy wrote"
    )]
    NotAnArchive {
        /// What was found instead.
        reason: String,
    },
    /// The archive ends too early, or its bytes are damaged.
    #[error("the archive is truncated or damaged at {file:?}: {reason}; save it again and compare the sizes")]
    Truncated {
        /// The member concerned.
        file: String,
        /// What was found.
        reason: String,
    },
    /// A path or link that leaves the archive, or a loop of links.
    #[error("member {file:?} of the archive is not safe to read: {reason}")]
    UnsafeMember {
        /// The member concerned.
        file: String,
        /// What makes it unsafe.
        reason: String,
    },
    /// A kind of member that no image tool writes.
    #[error("member {file:?} of the archive is a {kind}, which no image tool writes")]
    UnsupportedMember {
        /// The member concerned.
        file: String,
        /// What it is.
        kind: String,
    },
    /// A limit was met.
    #[error(
        "{file:?} has {size} {unit}, more than the {limit} allowed; raise the limit or make the image smaller"
    )]
    TooLarge {
        /// The member concerned, or what of the archive.
        file: String,
        /// What was counted until then.
        size: u64,
        /// What is allowed.
        limit: u64,
        /// What is counted, in the plural.
        unit: &'static str,
    },
    /// More repositories than one.
    #[error(
        "the archive holds images of {} repositories ({}); save each to an archive of its own",
        repositories.len(), repositories.join(", ")
    )]
    NotOneRepository {
        /// The names found.
        repositories: Vec<String>,
    },
    /// A file that should be JSON of some shape.
    #[error("{file:?} is not valid: {reason}")]
    BadJson {
        /// The member concerned.
        file: String,
        /// What the parser said.
        reason: String,
    },
    /// A file that lacks a field.
    #[error("{file:?} lacks the field {field:?}")]
    FieldMissing {
        /// The member concerned.
        file: String,
        /// Path of the field.
        field: String,
    },
    /// A layer, config or manifest is referred to and absent.
    #[error(
        "{layer:?} is referred to but missing from the archive; save the image again, with all of its layers"
    )]
    LayerMissing {
        /// Name of the file, or the digest.
        layer: String,
    },
    /// Bytes are not what their digest says.
    #[error("{file:?} has digest {got} instead of {expected}; the archive is damaged, save it again")]
    DigestMismatch {
        /// What it should be.
        expected: Digest,
        /// What it is.
        got: Digest,
        /// The member concerned.
        file: String,
    },
    /// An image's parent is absent.
    #[error("image {image_id} is built on {parent_id}, which is missing from the archive")]
    ParentMissing {
        /// The child.
        image_id: ImageId,
        /// The absent parent.
        parent_id: ImageId,
    },
    /// Nothing to import.
    #[error("no image is in the archive: {reason}")]
    NoImages {
        /// What was looked for.
        reason: String,
    },
    /// Files of the archive contradict each other.
    #[error("{file:?} contradicts the rest of the archive: {reason}")]
    Inconsistent {
        /// The image concerned, as far as it is known.
        image_id: String,
        /// The member concerned.
        file: String,
        /// The contradiction.
        reason: String,
    },
    /// Not a tag name.
    #[error(
        "{value:?} is not a valid tag: a letter, digit or '_', then up to 127 letters, digits, '.', '-' and '_'"
    )]
    InvalidTag {
        /// What was found.
        value: String,
    },
    /// A manifest list of a media type that is none of a list.
    #[error(
        "{media_type:?} is not the media type of a manifest list; upload a manifest list or an OCI index"
    )]
    ListMediaType {
        /// What was found.
        media_type: String,
    },
    /// A manifest list's member of a media type that is none of a manifest.
    #[error("a member of the manifest list has media type {media_type:?}, which is not a manifest's")]
    ListMemberMediaType {
        /// What was found.
        media_type: String,
    },
    /// A manifest list's member that lacks a field.
    #[error("a member of the manifest list lacks the field {field:?}")]
    ListMemberFieldMissing {
        /// Path of the field within the member.
        field: String,
    },
}

impl From<Rejection> for ArchiveError {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(Box::new(rejection))
    }
}

impl ArchiveError {
    /// Wraps a system error with what was being done.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::from_io(what, source)
    }

    /// As [`ArchiveError::io`]; an error of ours that travelled through a reader comes out unchanged.
    fn from_io(what: String, source: io::Error) -> Self {
        match source.downcast::<Self>() {
            Ok(ours) => ours,
            Err(source) => Self::Io { what, source },
        }
    }

    /// An error out of a decompressor over `file`: what the system did not cause is damage of the data.
    pub(crate) fn decompressing(file: &str, source: io::Error) -> Self {
        match source.downcast::<Self>() {
            Ok(ours) => ours,
            Err(source) if source.raw_os_error().is_some() => Self::Io {
                what: format!("reading {file:?}"),
                source,
            },
            Err(source) => Rejection::Truncated {
                file: file.to_owned(),
                reason: source.to_string(),
            }
            .into(),
        }
    }

    /// The error as it travels through a reader.
    pub(crate) fn into_io(self) -> io::Error {
        io::Error::other(self)
    }

    /// The error on the wire.
    pub fn coded(&self) -> CodedError {
        match self {
            Self::Rejected(rejection) => rejection.coded(),
            Self::Canceled => CodedError::new(ErrorCode::GENERAL, self.to_string()),
            Self::Store(_) | Self::Io { .. } => CodedError::new(ErrorCode::INTERNAL, self.to_string()),
        }
    }
}

impl Rejection {
    /// The error on the wire.
    pub fn coded(&self) -> CodedError {
        let error = |code| CodedError::new(code, self.to_string());
        match self {
            Self::NotAnArchive { .. } => error(ErrorCode::NOT_AN_ARCHIVE),
            Self::Truncated { file, .. } => error(ErrorCode::ARCHIVE_TRUNCATED).with("file", file),
            Self::UnsafeMember { file, .. } => error(ErrorCode::UNSAFE_MEMBER).with("file", file),
            Self::UnsupportedMember { file, kind } => error(ErrorCode::UNSUPPORTED_MEMBER)
                .with("file", file)
                .with("kind", kind),
            Self::TooLarge {
                file, size, limit, ..
            } => error(ErrorCode::ARCHIVE_TOO_LARGE)
                .with("file", file)
                .with("size", size)
                .with("limit", limit),
            Self::NotOneRepository { repositories } => {
                error(ErrorCode::NOT_ONE_REPOSITORY).with("repositories", repositories)
            }
            Self::BadJson { file, .. } => error(ErrorCode::UPLOAD_BAD_JSON).with("file", file),
            Self::FieldMissing { file, field } => error(ErrorCode::UPLOAD_FIELD_MISSING)
                .with("field", field)
                .with("file", file),
            Self::LayerMissing { layer } => error(ErrorCode::LAYER_MISSING).with("layer", layer),
            Self::DigestMismatch { expected, got, file } => error(ErrorCode::DIGEST_MISMATCH)
                .with("expected", expected)
                .with("got", got)
                .with("file", file),
            Self::ParentMissing { image_id, parent_id } => error(ErrorCode::PARENT_MISSING)
                .with("image_id", image_id)
                .with("parent_id", parent_id),
            Self::NoImages { .. } => error(ErrorCode::NO_IMAGES),
            Self::Inconsistent { image_id, file, .. } => error(ErrorCode::IMAGE_INCONSISTENT)
                .with("image_id", image_id)
                .with("file", file),
            Self::InvalidTag { value } => error(ErrorCode::INVALID_TAG).with("value", value),
            Self::ListMediaType { media_type } => {
                error(ErrorCode::LIST_MEDIA_TYPE).with("media_type", media_type)
            }
            Self::ListMemberMediaType { media_type } => {
                error(ErrorCode::LIST_MEMBER_MEDIA_TYPE).with("media_type", media_type)
            }
            Self::ListMemberFieldMissing { field } => {
                error(ErrorCode::LIST_MEMBER_FIELD_MISSING).with("field", field)
            }
        }
    }
}
