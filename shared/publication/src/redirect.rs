//! Redirect files, versions 1 to 4: what Pulp writes for Crane, one a repository and API.
//!
//! Version 1 is for v1 content; 2 came with v2 content, 3 added what has a schema 2 manifest, 4 what is a manifest
//! list. Versions 1 and 4 are written; all are read, since an old Pulp may have published them.

use std::collections::{BTreeMap, BTreeSet};

use pulp_model::unit::ManifestKind;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::Publication;

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

impl Redirect {
    /// Reads a redirect file of any version.
    pub fn parse(bytes: &[u8]) -> Result<Self, RedirectError> {
        let Value::Object(file) = serde_json::from_slice(bytes)? else {
            return Err(RedirectError::NotAnObject);
        };
        let version = version(&file)?;
        let mut url = text(&file, "url")?;
        if !url.ends_with('/') {
            url.push('/');
        }
        Ok(Self {
            repository: text(&file, "repository")?,
            registry_id: text(&file, "repo-registry-id")?,
            url,
            protected: file.get("protected").is_some_and(is_truthy),
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
    schema2_data: BTreeSet<String>,
    manifest_list_data: BTreeSet<String>,
    manifest_list_amd64_tags: BTreeMap<&'a str, (String, u8)>,
}

fn common<'a>(publication: &'a Publication, version: u8, url: &'a str) -> Common<'a> {
    let contents = publication.contents();
    Common {
        r#type: TYPE,
        version,
        repository: contents.repository.as_str(),
        registry_id: contents.registry_id.as_str(),
        url,
        protected: contents.protected,
    }
}

/// The redirect file of the v1 content, version 1.
pub fn v1_file(publication: &Publication) -> Result<Vec<u8>, serde_json::Error> {
    let contents = publication.contents();
    serde_json::to_vec(&V1File {
        common: common(publication, 1, &contents.v1_url),
        images: contents
            .images
            .iter()
            .map(|i| V1ImageEntry {
                id: i.image_id.as_str(),
            })
            .collect(),
        tags: contents
            .v1_tags
            .iter()
            .map(|t| (t.tag.as_str(), t.image_id.as_str()))
            .collect(),
    })
}

/// The redirect file of the v2 content, version 4.
pub fn v4_file(publication: &Publication) -> Result<Vec<u8>, serde_json::Error> {
    let contents = publication.contents();
    let names = |kind: ManifestKind, min_schema: u8| {
        let tags = contents.tags.iter();
        tags.filter(move |t| t.manifest_type == kind && t.schema_version >= min_schema)
            .map(|t| t.name.to_string())
    };
    let schema2 = contents.manifests.iter().filter(|m| m.unit.schema_version >= 2);
    let schema2 = schema2.map(|m| m.unit.digest.to_string());
    let lists: BTreeMap<_, _> = contents.lists.iter().map(|l| (&l.unit.digest, &l.unit)).collect();
    let amd64 = contents
        .tags
        .iter()
        .filter(|t| t.manifest_type == ManifestKind::List)
        .filter_map(|tag| {
            let list = lists.get(&tag.manifest_digest)?;
            let member = list.amd64_digest.as_ref()?;
            Some((
                tag.name.as_str(),
                (member.to_string(), list.amd64_schema_version.unwrap_or(2)),
            ))
        });
    serde_json::to_vec(&V4File {
        common: common(publication, 4, &contents.v2_url),
        schema2_data: schema2.chain(names(ManifestKind::Image, 2)).collect(),
        manifest_list_data: lists
            .keys()
            .map(ToString::to_string)
            .chain(names(ManifestKind::List, 0))
            .collect(),
        manifest_list_amd64_tags: amd64.collect(),
    })
}

/// The file `tags/list`: the registry id and the sorted names of the v2 tags.
pub fn tags_list(publication: &Publication) -> Result<Vec<u8>, serde_json::Error> {
    #[derive(Serialize)]
    struct TagsList<'a> {
        name: &'a str,
        tags: BTreeSet<&'a str>,
    }
    let contents = publication.contents();
    serde_json::to_vec(&TagsList {
        name: contents.registry_id.as_str(),
        tags: contents.tags.iter().map(|t| t.name.as_str()).collect(),
    })
}
