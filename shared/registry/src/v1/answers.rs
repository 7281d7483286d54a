//! What answers of a registry of version 1 must look like. Pure: nothing here asks anybody.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use pulp_model::{Algorithm, Digest, TagName, digest::Hasher, unit::ImageId};
use reqwest::header::HeaderMap;
use serde::Deserialize;

/// Largest list of images or tags, in bytes.
pub(super) const MAX_LIST: u64 = 32 * 1024 * 1024;
/// Largest ancestry, in bytes: that of [`MOST_ANCESTORS`].
pub(super) const MAX_ANCESTRY: u64 = 128 * 1024;
/// Largest JSON of an image, in bytes; as archives may have it.
pub(super) const MAX_JSON: u64 = 4 * 1024 * 1024;
/// Images in a line; as archives may have it.
const MOST_ANCESTORS: usize = 1024;

/// An image's JSON with what was said of it.
#[derive(Debug, Clone)]
pub struct V1Json {
    /// The bytes as they came.
    pub bytes: Bytes,
    /// The image it is built on; none for a base.
    pub parent: Option<ImageId>,
    /// `Size`: bytes of the unpacked layer.
    pub size: Option<i64>,
    /// Bytes of the layer as it will come, where the registry tells. For people: it is not held to it.
    pub layer_bytes: Option<u64>,
    /// What its layer is held to.
    pub checksums: V1Checksums,
}

/// What a registry tells of a layer in `X-Docker-Checksum-Payload`: digests, of which one must be that of the image's
/// JSON, a line feed and the layer as it comes. Most tell none that can be computed.
#[derive(Clone, Default)]
pub struct V1Checksums {
    pub(super) told: Vec<Digest>,
    /// With the JSON and the line feed in it; none if nothing was told.
    pub(super) hasher: Option<Hasher>,
}

impl std::fmt::Debug for V1Checksums {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.told).finish()
    }
}

impl V1Checksums {
    fn new(told: Vec<Digest>, json: &[u8]) -> Self {
        let hasher = (!told.is_empty()).then(|| {
            let mut hasher = Algorithm::Sha256.hasher();
            hasher.update(json);
            hasher.update(b"\n");
            hasher
        });
        Self { told, hasher }
    }
}

impl V1Json {
    /// Reads the JSON of the image `id`.
    pub(super) fn read(headers: &HeaderMap, body: &Bytes, id: &ImageId) -> Result<Self, String> {
        // Old versions of docker wrote other capitals.
        #[derive(Deserialize)]
        struct Fields {
            id: Option<String>,
            #[serde(rename = "Id")]
            id_capital: Option<String>,
            parent: Option<String>,
            #[serde(rename = "Parent")]
            parent_capital: Option<String>,
            #[serde(rename = "Size")]
            size: Option<serde_json::Value>,
        }
        let fields: Fields = parse(body, "no JSON of an image")?;
        match fields.id.or(fields.id_capital) {
            Some(found) if found == id.as_str() => {}
            Some(found) => {
                return Err(format!(
                    "asked for image {id}, the registry sent {:?}",
                    cut(&found)
                ));
            }
            None => return Err("the JSON has no id".to_owned()),
        }
        let parent = fields.parent.or(fields.parent_capital);
        let parent = parent.filter(|p| !p.is_empty()).map(|p| p.parse());
        let parent = parent
            .transpose()
            .map_err(|e| format!("the image's parent: {e}"))?;
        let text = |name| headers.get(name)?.to_str().ok();
        Ok(Self {
            bytes: body.clone(),
            parent,
            size: fields.size.as_ref().and_then(serde_json::Value::as_i64),
            layer_bytes: text("x-docker-size").and_then(|n| n.trim().parse().ok()),
            checksums: V1Checksums::new(
                text("x-docker-checksum-payload").map(payload).unwrap_or_default(),
                body,
            ),
        })
    }
}

/// One checksum, or a JSON list of several; tarsums are left out.
fn payload(text: &str) -> Vec<Digest> {
    let list: Vec<String> = serde_json::from_str(text).unwrap_or_else(|_| vec![text.trim().to_owned()]);
    let sha256 = list.iter().filter(|sum| sum.starts_with("sha256:"));
    sha256.filter_map(|sum| sum.parse().ok()).collect()
}

/// Ids of an index's list of images. What is no id can't be asked for either, and must not hide the others.
pub(super) fn images(body: &[u8]) -> Result<BTreeSet<ImageId>, String> {
    #[derive(Deserialize)]
    struct Entry {
        id: Option<String>,
    }
    let list: Option<Vec<Entry>> = parse(body, "no list of images")?;
    let ids = list.into_iter().flatten().filter_map(|entry| entry.id);
    Ok(ids
        .filter_map(|id| match id.parse() {
            Ok(id) => Some(id),
            Err(e) => {
                tracing::warn!("passed over: {e}");
                None
            }
        })
        .collect())
}

/// Tags with the texts that they name: `{tag: id}`, or `[{"name": tag, "layer": id}]`.
pub(super) fn tags(body: &[u8]) -> Result<BTreeMap<TagName, String>, String> {
    #[derive(Deserialize)]
    struct Entry {
        name: String,
        layer: String,
    }
    let what = "no list of tags";
    let first = body.iter().find(|b| !b.is_ascii_whitespace());
    let named: Vec<(String, String)> = if first == Some(&b'[') {
        let list: Vec<Entry> = parse(body, what)?;
        list.into_iter().map(|e| (e.name, e.layer)).collect()
    } else {
        let map: Option<BTreeMap<String, String>> = parse(body, what)?;
        map.into_iter().flatten().collect()
    };
    let mut tags = BTreeMap::new();
    for (name, id) in named {
        match name.parse() {
            Ok(tag) => drop(tags.insert(tag, id)),
            Err(e) => tracing::warn!("passed over: {e}"),
        }
    }
    Ok(tags)
}

/// The id that a tag's text stands for: itself, or the only one of `images` that it is the beginning of.
pub(super) fn resolve(text: &str, images: &BTreeSet<ImageId>) -> Result<ImageId, String> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let is_hex = !text.is_empty() && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let mut found = images.iter().filter(|id| is_hex && id.as_str().starts_with(text));
    match (found.next(), found.next()) {
        (Some(id), None) => Ok(id.clone()),
        (Some(_), Some(_)) => Err(format!("{:?} is the beginning of several image ids", cut(text))),
        (None, _) => Err(format!("{:?} is no image of the index's list", cut(text))),
    }
}

/// The line of `id`, child first, which goes round in no circle.
pub(super) fn ancestry(body: &[u8], id: &ImageId) -> Result<Vec<ImageId>, String> {
    let texts: Vec<String> = parse(body, "no ancestry")?;
    if texts.len() > MOST_ANCESTORS {
        return Err(format!("the ancestry has more than {MOST_ANCESTORS} images"));
    }
    let mut seen = BTreeSet::new();
    let mut line: Vec<ImageId> = Vec::with_capacity(texts.len());
    for text in texts {
        let one: ImageId = text.parse().map_err(|e| format!("the ancestry: {e}"))?;
        if !seen.insert(one.clone()) {
            return Err(format!("image {one} is its own ancestor"));
        }
        line.push(one);
    }
    match line.first() {
        Some(first) if first == id => Ok(line),
        Some(other) => Err(format!(
            "asked for the ancestry of image {id}, the registry sent that of {other}"
        )),
        None => Err("the ancestry is empty".to_owned()),
    }
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8], what: &str) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|e| format!("{what}: {e}"))
}

fn cut(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn id(digit: char) -> ImageId {
        digit.to_string().repeat(64).parse().unwrap()
    }

    fn bytes(value: &serde_json::Value) -> Bytes {
        value.to_string().into()
    }

    #[test]
    fn tags_come_as_a_map_or_as_a_list() {
        let map = tags(br#"{"latest": "aa", "-bad": "bb"}"#).unwrap();
        let list = tags(br#" [{"name": "latest", "layer": "aa"}]"#).unwrap();
        assert_eq!(map, list);
        assert!(tags(b"null").unwrap().is_empty() && tags(b"{}").unwrap().is_empty());
        for bad in ["", "<html>", "7", r#"{"a": 1}"#, r#"["a"]"#] {
            assert!(tags(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_abbreviated_id_is_the_only_one_that_begins_so() {
        let near: ImageId = format!("a{}", "b".repeat(63)).parse().unwrap();
        let all = BTreeSet::from([id('a'), near.clone(), id('c')]);
        assert_eq!(resolve("ccc", &all), Ok(id('c')));
        assert_eq!(resolve("ab", &all), Ok(near));
        assert_eq!(
            resolve(id('d').as_str(), &all),
            Ok(id('d')),
            "a whole one is one, listed or not"
        );
        for bad in ["a", "", "d", "../c", "C"] {
            assert!(resolve(bad, &all).is_err(), "{bad}");
        }
    }

    #[test]
    fn images_without_a_good_id_are_passed_over() {
        let list = json!([{"id": id('a'), "checksum": "x"}, {"id": "../../etc/passwd"}, {"other": 1}]);
        assert_eq!(images(&bytes(&list)).unwrap(), BTreeSet::from([id('a')]));
        assert!(images(b"null").unwrap().is_empty());
        assert!(images(b"{}").is_err());
    }

    #[test]
    fn an_ancestry_is_a_line_that_begins_with_its_image() {
        let line = json!([id('a'), id('b')]);
        assert_eq!(ancestry(&bytes(&line), &id('a')).unwrap(), [id('a'), id('b')]);
        let long: Vec<String> = (0..=MOST_ANCESTORS).map(|n| format!("{n:064x}")).collect();
        for bad in [
            json!([]),
            json!([id('b'), id('a')]),
            json!([id('a'), id('b'), id('a')]),
            json!([id('a'), "../../x"]),
            json!([id('a'), "short"]),
            json!({"a": 1}),
            json!(long),
        ] {
            assert!(ancestry(&bytes(&bad), &id('a')).is_err());
        }
    }

    #[test]
    fn an_image_says_to_be_the_one_that_was_asked_for() {
        let read = |value: &serde_json::Value| V1Json::read(&HeaderMap::new(), &bytes(value), &id('a'));
        let json = read(&json!({"Id": id('a'), "Parent": id('b'), "Size": 12})).unwrap();
        assert_eq!((json.parent, json.size), (Some(id('b')), Some(12)));
        assert_eq!(read(&json!({"id": id('a'), "parent": ""})).unwrap().parent, None);
        for bad in [
            json!({"id": id('b')}),
            json!({}),
            json!([]),
            json!({"id": id('a'), "parent": "../x"}),
        ] {
            assert!(read(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn checksums_that_can_be_computed_are_kept() {
        let digest = Digest::sha256("x");
        assert_eq!(payload(&digest.to_string()), std::slice::from_ref(&digest));
        let several = json!(["tarsum+sha256:00", digest, "md5:1"]).to_string();
        assert_eq!(payload(&several), [digest]);
        assert!(payload("tarsum+sha256:00").is_empty());
    }

    proptest! {
        #[test]
        fn nonsense_is_refused_and_nothing_worse(text in ".{0,80}") {
            let body = Bytes::from(text.clone());
            let _ = (images(&body), tags(&body), resolve(&text, &BTreeSet::from([id('a')])), payload(&text));
            prop_assert!(ancestry(&body, &id('a')).is_err());
            prop_assert!(V1Json::read(&HeaderMap::new(), &body, &id('a')).is_err());
        }
    }
}
