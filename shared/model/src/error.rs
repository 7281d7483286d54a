//! Coded errors: what a client sees when something is refused or fails.
//!
//! Codes are three letters of the component and four digits. `PLP` and `DKR` codes that Pulp 2 knew keep
//! their number and meaning (upstream: `common/pulp/common/error_codes.py`, `pulp_docker/common/error_codes.py`);
//! those from `DKR1101` and `PLP2001` on are ours.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A stable code on the wire, for example `PLP0009`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ErrorCode(std::borrow::Cow<'static, str>);

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        impl ErrorCode {
            $($(#[$doc])* pub const $name: Self = Self(std::borrow::Cow::Borrowed($text));)*

            /// Every code that this release knows.
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

codes! {
    /// Free text.
    GENERAL = "PLP0000";
    /// Something named doesn't exist; data `resources`.
    NOT_FOUND = "PLP0009";
    /// The task took too long; data `task_id`, `timeout` in seconds.
    TIMED_OUT = "PLP0011";
    /// An operation of Pulp 2 that is not there; data `operation_name`.
    NOT_IMPLEMENTED = "PLP0014";
    /// Values that are not valid; data `property_names`.
    INVALID_VALUE = "PLP0015";
    /// Values that are required and absent; data `property_names`.
    MISSING_VALUE = "PLP0016";
    /// Names that are not known here; data `property_names`.
    UNSUPPORTED_VALUE = "PLP0017";
    /// The id is taken; data `resource_id`.
    DUPLICATE = "PLP0018";
    /// Text that is not UTF-8; data `value`.
    NOT_UTF8 = "PLP0019";
    /// No credentials were sent.
    AUTHENTICATION_FAILED = "PLP0025";
    /// The user may not do this; data `user`, `operation`.
    PERMISSION_DENIED = "PLP0026";
    /// Wrong login or password; data `user`.
    INVALID_PASSWORD = "PLP0030";
    /// The distributor reported a failure; data `distributor_id`, `repo_id`.
    PUBLISH_FAILED = "PLP0034";
    /// The importer rejected the upload; data `importer_id`, `unit_type`, `repo_id`, `summary`, `details`.
    UPLOAD_REJECTED = "PLP0047";
    /// The worker died while it ran the task; data `task_id`.
    WORKER_LOST = "PLP0049";
    /// Umbrella over validation errors.
    VALIDATION = "PLP1000";
    /// No importer of this type; data `importer_type_id`.
    UNKNOWN_IMPORTER_TYPE = "PLP1008";
    /// A body that is not JSON.
    BAD_JSON = "PLP1009";
    /// A value of another type than expected; data `value`, `field`, `field_type`.
    WRONG_TYPE = "PLP1010";
    /// A state of which tasks can't be purged; data `state`.
    PURGE_STATE = "PLP1011";
    /// A purge that names no state.
    PURGE_WITHOUT_STATE = "PLP1012";
    /// A JSON document of another type than expected; data `data_type`.
    WRONG_JSON_TYPE = "PLP1015";
    /// The effect of the task was refused because another attempt owns the task now.
    FENCED = "PLP2001";
    /// A storage, database or file system fault; trying again may help.
    INTERNAL = "PLP2002";
    /// An upload chunk that begins beyond the end of what was received; data `offset`, `size`.
    CHUNK_BEYOND_END = "PLP2003";
    /// No upload of this id; data `upload_id`.
    UNKNOWN_UPLOAD = "PLP2004";
    /// A request's body is larger than allowed; data `limit`, in bytes.
    BODY_TOO_LARGE = "PLP2005";
    /// The task showed no progress for too long; data `task_id`, `timeout` in seconds.
    STALLED = "PLP2006";

    /// The redirect url has no scheme; data `field`, `url`.
    REDIRECT_URL_SCHEME = "DKR1001";
    /// The redirect url has no host name; data `field`, `url`.
    REDIRECT_URL_HOST = "DKR1002";
    /// The redirect url has no path; data `field`, `url`.
    REDIRECT_URL_PATH = "DKR1003";
    /// Not a boolean; data `field`, `value`.
    NOT_BOOLEAN = "DKR1004";
    /// Not a repo-registry-id; data `field`, `value`.
    INVALID_REGISTRY_ID = "DKR1005";
    /// The repository id can't serve as registry id, and none was given; data `field`, `value`.
    REPOSITORY_ID_AS_REGISTRY_ID = "DKR1006";
    /// The upstream repository can't be read; data `repo`, `registry`, `reason`.
    UPSTREAM_UNREADABLE = "DKR1007";
    /// There is no registry of a known API at the feed's address; data `registry`.
    UPSTREAM_NO_API = "DKR1008";
    /// The manifest is not in the repository; data `digest`, `repo_id`.
    MANIFEST_NOT_IN_REPOSITORY = "DKR1010";
    /// A file of the upload is not valid JSON; data `file`.
    UPLOAD_BAD_JSON = "DKR1011";
    /// A manifest list's media type is none of a list; data `media_type`.
    LIST_MEDIA_TYPE = "DKR1012";
    /// A manifest list refers to manifests that the repository lacks; data `digests`.
    LIST_MEMBERS_MISSING = "DKR1013";
    /// A manifest list's member has a media type that is none of a manifest; data `media_type`.
    LIST_MEMBER_MEDIA_TYPE = "DKR1014";
    /// A file of the upload lacks a field; data `field`, `file`.
    UPLOAD_FIELD_MISSING = "DKR1015";
    /// A manifest list's member lacks a field; data `field`.
    LIST_MEMBER_FIELD_MISSING = "DKR1016";
    /// Bytes that don't match their digest; data `expected`, `got`, `file`.
    DIGEST_MISMATCH = "DKR1017";
    /// A layer is missing from the tar; data `layer`.
    LAYER_MISSING = "DKR1018";
    /// A tag upload lacks a field; data `field`.
    TAG_FIELD_MISSING = "DKR1019";
    /// Content can't be downloaded from the upstream; data `failed_urls`, with commas between them.
    DOWNLOAD_FAILED = "DKR1020";

    /// The upload is no tar archive, nor any other layout known.
    NOT_AN_ARCHIVE = "DKR1101";
    /// The archive ends too early or is damaged; data `file`.
    ARCHIVE_TRUNCATED = "DKR1102";
    /// A member of the archive has a path or link that leaves it, or a loop; data `file`.
    UNSAFE_MEMBER = "DKR1103";
    /// The archive holds another number of repositories than one; data `repositories`.
    NOT_ONE_REPOSITORY = "DKR1104";
    /// A member, or the archive expanded, is larger than allowed; data `file`, `size`, `limit`.
    ARCHIVE_TOO_LARGE = "DKR1105";
    /// An image's parent is not in the archive; data `image_id`, `parent_id`.
    PARENT_MISSING = "DKR1106";
    /// No image is in the archive.
    NO_IMAGES = "DKR1107";
    /// An image's id differs from the directory it lies in, or its ancestry loops; data `image_id`, `file`.
    IMAGE_INCONSISTENT = "DKR1108";
    /// Not a valid tag name; data `value`.
    INVALID_TAG = "DKR1109";
    /// What is to be published is not complete; data `missing`.
    CLOSURE_INCOMPLETE = "DKR1110";
    /// Another repository publishes this registry id; data `value`, `repo_id`.
    REGISTRY_ID_TAKEN = "DKR1111";
    /// Not a path where an export may be written; data `field`, `value`.
    INVALID_EXPORT_FILE = "DKR1112";
    /// A kind of member that no image tool writes (sparse file, device, …); data `file`, `kind`.
    UNSUPPORTED_MEMBER = "DKR1113";
    /// The upstream registry lets us in with no credentials that we have; data `registry`, `reason`.
    UPSTREAM_DENIED = "DKR1114";
    /// The upstream registry wants fewer requests than we need; data `registry`, `retry_after` in seconds.
    UPSTREAM_RATE_LIMITED = "DKR1115";
    /// A manifest or index of the upstream repository can't be taken in; data `digest`, `reason`.
    UPSTREAM_MANIFEST = "DKR1116";
    /// Tags or digests that the settings name have no image for the platforms set; data `tags`, `platforms`.
    NO_SUCH_PLATFORM = "DKR1117";

    /// A directory that is no export for closed networks, or one of a later format.
    NOT_AN_EXPORT = "DKR1140";
    /// An export without the signature that is asked for.
    EXPORT_UNSIGNED = "DKR1141";
    /// No trusted key made the export's signature; data `trusted_keys_dir`.
    EXPORT_SIGNATURE_WRONG = "DKR1142";
    /// Files of the export are not there; data `parts`.
    EXPORT_PART_MISSING = "DKR1143";
    /// A file of the export is cut off or damaged; data `part`, `expected`, and `size` or `got`.
    EXPORT_PART_DAMAGED = "DKR1144";
    /// The export builds on another state than the repository has; data `needed`, `present`, `repo_id`.
    EXPORT_WRONG_BASE = "DKR1145";
    /// Blobs that an incremental export builds on are not there; data `digests`, `repo_id`.
    EXPORT_BASE_INCOMPLETE = "DKR1146";
    /// An export contradicts itself, or is not complete; data `digest` or `missing`.
    EXPORT_INCONSISTENT = "DKR1147";
    /// The disk is full; data `path`.
    NO_SPACE = "DKR1148";
    /// The version that an incremental export should build on is not there; data `base`, `repo_id`.
    EXPORT_BASE_UNKNOWN = "DKR1149";
    /// A key to sign or to trust can't be used; data `path`.
    EXPORT_KEY_UNUSABLE = "DKR1150";
    /// Not a path that can be imported from; data `path`.
    INVALID_IMPORT_PATH = "DKR1151";
}

impl ErrorCode {
    /// The text, for example `DKR1017`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The error object of Pulp's REST API and of failed tasks.
///
/// `description` says what is wrong, where, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {description}")]
pub struct CodedError {
    /// The stable code.
    pub code: ErrorCode,
    /// For people.
    pub description: String,
    /// For programs; keys are documented at each code.
    #[serde(default)]
    pub data: Map<String, Value>,
    /// Several faults found at once stand here, under an umbrella code.
    #[serde(default)]
    pub sub_errors: Vec<CodedError>,
}

impl CodedError {
    /// An error without data.
    pub fn new(code: ErrorCode, description: impl Into<String>) -> Self {
        Self {
            code,
            description: description.into(),
            data: Map::new(),
            sub_errors: Vec::new(),
        }
    }

    /// Adds a datum.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Serialize) -> Self {
        self.data.insert(key.to_owned(), json!(value));
        self
    }

    /// Puts several errors under the validation umbrella; one alone stays as it is.
    pub fn all(mut errors: Vec<Self>) -> Option<Self> {
        match errors.len() {
            0 => None,
            1 => errors.pop(),
            _ => {
                let description = errors
                    .iter()
                    .map(|e| e.description.as_str())
                    .collect::<Vec<_>>()
                    .join("; ");
                Some(Self {
                    sub_errors: errors,
                    ..Self::new(ErrorCode::VALIDATION, description)
                })
            }
        }
    }
}
