//! Redirect files, versions 1 to 4: what Pulp writes for Crane, one a repository and API.
//!
//! Version 1 is for v1 content; 2 came with v2 content, 3 added what has a schema 2 manifest, 4 what is a manifest
//! list. Versions 1 and 4 are written; all are read, since an old Pulp may have published them.

use std::collections::{BTreeMap, BTreeSet};

use pulp_model::{Digest, TagName, unit::ManifestKind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::catalog::Catalog;

/// Value of `type` in every redirect file.
pub const TYPE: &str = "pulp-docker-redirect";

/// A redirect file as read. Ids are plain text: old files may have ones that today's grammar refuses.
#[derive(Debug, Clone, PartialEq)]
pub struct Redirect {
    /// Pulp's repository id; names the published files.
    pub repository: String,
    /// The name by which clients pull.
    pub registry_id: String,
    /// Base url of the files, ends with `/`.
    pub url: String,
    /// Whether an entitlement is asked for.
    pub protected: bool,
    /// What is particular to the version.
    pub content: Content,
}

/// What is particular to a version of the redirect file.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Version 1.
    V1 {
        /// The images as listed; each has `id`, other keys are kept.
        images: Vec<Map<String, Value>>,
        /// Tag to image id; an image need not be among `images`, a null means no such tag.
        tags: BTreeMap<String, Option<String>>,
    },
    /// Version 2: manifests lie directly below `manifests/`.
    V2,
    /// Versions 3 and 4: manifests lie below `manifests/1`, `2` or `list`. Version 3 has the lists empty.
    V4(Variants),
}

/// Which references have which kind of manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variants {
    /// Tags and digests that have a schema 2 manifest.
    pub schema2: BTreeSet<String>,
    /// Tags and digests that are manifest lists.
    pub lists: BTreeSet<String>,
    /// Tag of a list to its amd64 member: digest and schema version.
    pub amd64: BTreeMap<String, (String, u8)>,
}

/// Why a redirect file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// Not JSON.
    #[error("not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// JSON, but no object.
    #[error("not a JSON object")]
    NotAnObject,
    /// A key is required and absent.
    #[error("key {0:?} is missing")]
    MissingKey(&'static str),
    /// A value of another type than expected.
    #[error("key {key:?} is not {expected}")]
    WrongType {
        /// The key.
        key: &'static str,
        /// What it should be, in words.
        expected: &'static str,
    },
    /// A version that is not known.
    #[error("metadata version {0} is not supported, 1 to 4 are")]
    Version(String),
}

/// What all versions have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Pulp's repository id; names the published files.
    pub repository: String,
    /// The name by which clients pull.
    pub registry_id: String,
    /// Base url of the files, ends with `/`.
    pub url: String,
    /// Whether an entitlement is asked for.
    pub protected: bool,
}

impl Redirect {
    /// Reads no more of a redirect file than an index file doesn't tell; none if it is of version 1, which has none.
    pub fn parse_head_of_v2(bytes: &[u8]) -> Result<Option<Head>, RedirectError> {
        #[derive(Deserialize)]
        struct Raw {
            version: Option<Value>,
            repository: Option<Value>,
            #[serde(rename = "repo-registry-id")]
            registry_id: Option<Value>,
            url: Option<Value>,
            protected: Option<Value>,
        }
        let raw: Raw = serde_json::from_slice(bytes)?;
        let pairs = [
            ("version", raw.version),
            ("repository", raw.repository),
            ("repo-registry-id", raw.registry_id),
            ("url", raw.url),
            ("protected", raw.protected),
        ];
        let given = pairs
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value?)));
        let file: Map<String, Value> = given.collect();
        if version(&file)? == 1 {
            return Ok(None);
        }
        head(&file).map(Some)
    }

    /// Reads a redirect file of any version.
    pub fn parse(bytes: &[u8]) -> Result<Self, RedirectError> {
        let Value::Object(file) = serde_json::from_slice(bytes)? else {
            return Err(RedirectError::NotAnObject);
        };
        let version = version(&file)?;
        let head = head(&file)?;
        Ok(Self {
            repository: head.repository,
            registry_id: head.registry_id,
            url: head.url,
            protected: head.protected,
            content: match version {
                1 => Content::V1 {
                    images: images(&file)?,
                    tags: v1_tags(&file)?,
                },
                2 => Content::V2,
                3 => Content::V4(Variants {
                    schema2: texts(&file, "schema2_data")?,
                    ..Variants::default()
                }),
                _ => Content::V4(Variants {
                    schema2: texts(&file, "schema2_data")?,
                    lists: texts(&file, "manifest_list_data")?,
                    amd64: amd64(&file)?,
                }),
            },
        })
    }
}

fn head(file: &Map<String, Value>) -> Result<Head, RedirectError> {
    let mut url = text(file, "url")?;
    if !url.ends_with('/') {
        url.push('/');
    }
    Ok(Head {
        repository: text(file, "repository")?,
        registry_id: text(file, "repo-registry-id")?,
        url,
        protected: file.get("protected").is_some_and(is_truthy),
    })
}

fn get<'a>(file: &'a Map<String, Value>, key: &'static str) -> Result<&'a Value, RedirectError> {
    file.get(key).ok_or(RedirectError::MissingKey(key))
}

/// The original compares with `in (1, 2, 3, 4)` in Python, where `2.0` is 2 and `true` is 1.
fn version(file: &Map<String, Value>) -> Result<u8, RedirectError> {
    let value = get(file, "version")?;
    let known = match value {
        Value::Bool(true) => Some(1),
        _ => [1_u8, 2, 3, 4].into_iter().find(|v| {
            value
                .as_f64()
                .is_some_and(|f| (f - f64::from(*v)).abs() < f64::EPSILON)
        }),
    };
    known.ok_or_else(|| RedirectError::Version(value.to_string().chars().take(40).collect()))
}

fn text(file: &Map<String, Value>, key: &'static str) -> Result<String, RedirectError> {
    let wrong = RedirectError::WrongType {
        key,
        expected: "a text",
    };
    get(file, key)?.as_str().map(str::to_owned).ok_or(wrong)
}

/// As Python judges it: a text such as `"false"` protects too. When in doubt, a repository is protected.
fn is_truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

fn images(file: &Map<String, Value>) -> Result<Vec<Map<String, Value>>, RedirectError> {
    const WRONG: RedirectError = RedirectError::WrongType {
        key: "images",
        expected: "a list of objects that have a text \"id\"",
    };
    let list = get(file, "images")?.as_array().ok_or(WRONG)?;
    let image = |value: &Value| {
        let image = value
            .as_object()
            .filter(|o| o.get("id").is_some_and(Value::is_string));
        image.cloned().ok_or(WRONG)
    };
    list.iter().map(image).collect()
}

fn v1_tags(file: &Map<String, Value>) -> Result<BTreeMap<String, Option<String>>, RedirectError> {
    const WRONG: RedirectError = RedirectError::WrongType {
        key: "tags",
        expected: "an object of tags and image ids",
    };
    let tags = get(file, "tags")?.as_object().ok_or(WRONG)?;
    let tag = |(name, image): (&String, &Value)| match image {
        Value::Null => Ok((name.clone(), None)),
        Value::String(id) => Ok((name.clone(), Some(id.clone()))),
        _ => Err(WRONG),
    };
    tags.iter().map(tag).collect()
}

fn texts(file: &Map<String, Value>, key: &'static str) -> Result<BTreeSet<String>, RedirectError> {
    let wrong = || RedirectError::WrongType {
        key,
        expected: "a list of tags and digests",
    };
    let list = get(file, key)?.as_array().ok_or_else(wrong)?;
    list.iter()
        .map(|v| v.as_str().map(str::to_owned).ok_or_else(wrong))
        .collect()
}

fn amd64(file: &Map<String, Value>) -> Result<BTreeMap<String, (String, u8)>, RedirectError> {
    const WRONG: RedirectError = RedirectError::WrongType {
        key: "manifest_list_amd64_tags",
        expected: "an object of tags and [digest, schema version]",
    };
    let tags = get(file, "manifest_list_amd64_tags")?.as_object().ok_or(WRONG)?;
    let tag = |(name, member): (&String, &Value)| match member.as_array().map(Vec::as_slice) {
        Some([Value::String(digest), version]) => match version.as_u64() {
            Some(1) => Ok((name.clone(), (digest.clone(), 1))),
            Some(2) => Ok((name.clone(), (digest.clone(), 2))),
            _ => Err(WRONG),
        },
        _ => Err(WRONG),
    };
    tags.iter().map(tag).collect()
}

#[derive(Serialize)]
struct Common<'a> {
    r#type: &'static str,
    version: u8,
    repository: &'a str,
    #[serde(rename = "repo-registry-id")]
    registry_id: &'a str,
    url: &'a str,
    protected: bool,
}

#[derive(Serialize)]
struct V1File<'a> {
    #[serde(flatten)]
    common: Common<'a>,
    images: Vec<V1ImageEntry<'a>>,
    tags: BTreeMap<&'a str, &'a str>,
}

#[derive(Serialize)]
struct V1ImageEntry<'a> {
    id: &'a str,
}

#[derive(Serialize)]
struct V4File<'a> {
    #[serde(flatten)]
    common: Common<'a>,
    schema2_data: Vec<Name<'a>>,
    manifest_list_data: Vec<Name<'a>>,
    manifest_list_amd64_tags: BTreeMap<&'a str, (String, u8)>,
}

/// What a manifest is asked for by. No tag has a colon, and each digest has.
#[derive(Serialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(untagged)]
enum Name<'a> {
    Tag(&'a str),
    Digest(&'a Digest),
}

fn common<'a>(catalog: &'a Catalog, version: u8, url: &'a str) -> Common<'a> {
    Common {
        r#type: TYPE,
        version,
        repository: catalog.index.repository.as_str(),
        registry_id: catalog.index.registry_id.as_str(),
        url,
        protected: catalog.index.protected,
    }
}

/// The redirect file of the v1 content, version 1.
pub(crate) fn v1_file(catalog: &Catalog) -> impl Serialize {
    V1File {
        common: common(catalog, 1, &catalog.v1_url),
        images: catalog
            .images
            .iter()
            .map(|id| V1ImageEntry { id: id.as_str() })
            .collect(),
        tags: catalog
            .v1_tags
            .iter()
            .map(|(tag, id)| (tag.as_str(), id.as_str()))
            .collect(),
    }
}

/// The redirect file of the v2 content, version 4.
pub(crate) fn v4_file(catalog: &Catalog) -> impl Serialize {
    let index = &catalog.index;
    let tags = || {
        index
            .tags
            .iter()
            .flat_map(|(name, variants)| variants.iter().map(move |variant| (name.as_str(), variant)))
    };
    let of_kind = |kind: ManifestKind| {
        let manifests = index.manifests.iter().filter(move |m| m.kind == kind);
        let digests = manifests
            .filter(|m| m.schema_version >= 2)
            .map(|m| Name::Digest(&m.digest));
        let tags = tags()
            .filter(move |(_, v)| v.kind == kind && (kind == ManifestKind::List || v.schema_version >= 2));
        let mut names: Vec<Name<'_>> = tags.map(|(name, _)| Name::Tag(name)).chain(digests).collect();
        names.sort_unstable();
        names.dedup();
        names
    };
    let amd64 = tags().filter_map(|(name, variant)| {
        let list = index
            .manifest(&variant.digest)
            .filter(|m| m.kind == ManifestKind::List)?;
        let member = list.amd64.as_ref()?;
        let schema_version = index.manifest(member).map_or(2, |m| m.schema_version);
        Some((name, (member.to_string(), schema_version)))
    });
    V4File {
        common: common(catalog, 4, &index.url),
        schema2_data: of_kind(ManifestKind::Image),
        manifest_list_data: of_kind(ManifestKind::List),
        manifest_list_amd64_tags: amd64.collect(),
    }
}

/// The file `tags/list`: the registry id and the sorted names of the v2 tags.
pub(crate) fn tags_list(catalog: &Catalog) -> impl Serialize {
    #[derive(Serialize)]
    struct TagsList<'a> {
        name: &'a str,
        tags: Vec<&'a str>,
    }
    TagsList {
        name: catalog.index.registry_id.as_str(),
        tags: catalog.index.tags.keys().map(TagName::as_str).collect(),
    }
}
