#![allow(clippy::unwrap_used)]
use pulp_content::{ContentOptions, ContentStore};
use pulp_model::importer::importer_settings;
use pulp_registry::Reference;

use super::*;
use crate::kinds::sync::plan::Held;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

/// A content store in a directory of its own, and manifests that came into it.
struct Bed {
    content: ContentStore,
    came: Vec<Came>,
    _directory: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let content = ContentStore::open_directory(directory.path(), &ContentOptions::default()).unwrap();
        Self {
            content,
            came: Vec::new(),
            _directory: directory,
        }
    }

    /// Brings a manifest; gives a descriptor of it.
    async fn bring(&mut self, document: &Value, tag: Option<&str>) -> Value {
        let bytes = document.to_string().into_bytes();
        let manifest = Manifest::parse(&bytes, None).unwrap();
        let (digest, size) = (manifest.digest().clone(), bytes.len());
        self.content
            .put_bytes("test", &digest, bytes.into())
            .await
            .unwrap();
        let reference = match tag {
            Some(tag) => Reference::Tag(tag.parse().unwrap()),
            None => Reference::Digest(digest.clone()),
        };
        self.came.push(Came {
            reference,
            manifest,
            known_as: digest.clone(),
            fetched: true,
        });
        json!({"mediaType": document["mediaType"], "digest": digest, "size": size})
    }

    async fn image(&mut self, architecture: &str) -> Value {
        let document = json!({"schemaVersion": 2, "mediaType": IMAGE, "layers": [],
            "config": {"mediaType": "x", "digest": Digest::sha256(architecture), "size": 1}});
        let mut member = self.bring(&document, None).await;
        member["platform"] = json!({"os": "linux", "architecture": architecture});
        member
    }

    async fn index(&mut self, members: &[&Value], tag: Option<&str>) -> Value {
        let document = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": members,
            "annotations": {"kept": "as it is"}, "x-unknown": {"b": 1, "a": 2}});
        self.bring(&document, tag).await
    }

    /// Chooses for tags that name all that came by tag.
    async fn choose(&mut self, config: &Value, held: &Before) -> (Result<Choice, TaskError>, TagPlan) {
        let settings = importer_settings(config.as_object().unwrap()).unwrap();
        let mut tags = TagPlan::default();
        for one in &self.came {
            if let Reference::Tag(name) = &one.reference {
                tags.added.insert(name.clone(), None);
            }
        }
        let came = std::mem::take(&mut self.came);
        let chosen = choose(&self.content, "test", &settings, held, &mut tags, came).await;
        (chosen, tags)
    }
}

fn nothing() -> Before {
    Before {
        plan: Held::default(),
        known: HashMap::new(),
        lists: HashMap::new(),
    }
}

fn lists(choice: &Choice) -> Vec<&ManifestListUnit> {
    choice.came.iter().filter_map(|c| as_list(&c.manifest)).collect()
}

fn members(list: &ManifestListUnit) -> Vec<String> {
    list.manifests.iter().map(|m| m.digest.to_string()).collect()
}

#[tokio::test]
async fn a_rewritten_index_differs_in_its_members_and_one_annotation() {
    let mut bed = Bed::new();
    let (amd64, arm64) = (bed.image("amd64").await, bed.image("arm64").await);
    let original = bed.index(&[&arm64, &amd64], Some("t")).await;
    let config = json!({"platforms": ["linux/amd64"], "platforms_mode": "rewrite"});
    let (chosen, _) = bed.choose(&config, &nothing()).await;
    let choice = chosen.unwrap();
    let [list] = lists(&choice)[..] else {
        unreachable!()
    };
    assert_eq!(json!(members(list)), json!([amd64["digest"]]));
    assert_eq!(choice.left_out, 1);
    let from = list.selection.made_from.as_ref().unwrap();
    assert_eq!(json!(from.digest), original["digest"]);
    assert_eq!(from.platforms, "linux/amd64");
    let bytes = bed
        .content
        .read_bytes(&list.digest, MAX_MANIFEST_BYTES)
        .await
        .unwrap();
    let document: Value = serde_json::from_slice(&bytes).unwrap();
    let expected = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [amd64],
        "annotations": {"kept": "as it is", ORIGINAL_DIGEST: original["digest"]},
        "x-unknown": {"b": 1, "a": 2}});
    assert_eq!(document, expected);
    // The image that nobody wants was not asked for by a sync; here it came, and is not taken.
    assert_eq!(choice.came.len(), 2);
}

#[tokio::test]
async fn an_index_of_which_all_is_taken_stays_what_it_is() {
    let mut bed = Bed::new();
    let (amd64, arm64) = (bed.image("amd64").await, bed.image("arm64").await);
    let original = bed.index(&[&arm64, &amd64], Some("t")).await;
    let config = json!({"platforms": ["linux/amd64", "linux/arm64"], "platforms_mode": "rewrite"});
    let choice = bed.choose(&config, &nothing()).await.0.unwrap();
    let [list] = lists(&choice)[..] else {
        unreachable!()
    };
    assert_eq!(json!(list.digest), original["digest"]);
    assert_eq!(list.selection, pulp_model::unit::Selection::default());
}

#[tokio::test]
async fn nested_indexes_are_rewritten_with_what_refers_to_them() {
    let mut bed = Bed::new();
    let (amd64, arm64) = (bed.image("amd64").await, bed.image("arm64").await);
    let mixed = bed.index(&[&arm64, &amd64], None).await;
    let foreign = bed.index(&[&arm64], None).await;
    let mut with_data = mixed.clone();
    with_data["data"] = json!("the old one's bytes");
    let outer = bed.index(&[&with_data, &foreign], Some("t")).await;
    let config = json!({"platforms": ["linux/amd64"], "platforms_mode": "rewrite"});
    let (chosen, _) = bed.choose(&config, &nothing()).await;
    let choice = chosen.unwrap();
    let made_of = |digest: &Value| {
        let mut lists = lists(&choice).into_iter();
        let from = |l: &ManifestListUnit| json!(l.selection.made_from.as_ref().map(|f| f.digest.clone()));
        lists.find(|l| from(l) == *digest).unwrap()
    };
    let (outer, inner) = (made_of(&outer["digest"]), made_of(&mixed["digest"]));
    assert_eq!(members(outer), [inner.digest.to_string()]);
    assert_eq!(json!(members(inner)), json!([amd64["digest"]]));
    assert_eq!(outer.manifests[0].size, inner.size);
    let bytes = bed
        .content
        .read_bytes(&outer.digest, MAX_MANIFEST_BYTES)
        .await
        .unwrap();
    assert!(!String::from_utf8_lossy(&bytes).contains("old one's"));
    assert!(bed.content.size(&inner.digest).await.unwrap().is_some());
    assert!(
        choice
            .came
            .iter()
            .all(|c| json!(c.manifest.digest()) != foreign["digest"]),
        "an index of which nothing is left is left out itself"
    );
}

#[tokio::test]
async fn a_tag_without_an_image_is_skipped_with_all_that_it_brought() {
    for mode in ["sparse", "rewrite"] {
        let mut bed = Bed::new();
        let (amd64, arm64) = (bed.image("amd64").await, bed.image("arm64").await);
        let inner = bed.index(&[&arm64], None).await;
        bed.index(&[&inner], Some("arm64-only")).await;
        bed.index(&[&amd64, &arm64], Some("both")).await;
        let config = json!({"platforms": ["linux/amd64"], "platforms_mode": mode, "tags": ["*"]});
        let (chosen, tags) = bed.choose(&config, &nothing()).await;
        let choice = chosen.unwrap();
        assert_eq!(tags.skipped, ["arm64-only".parse().unwrap()].into());
        assert_eq!(tags.added.len(), 1);
        assert_eq!(lists(&choice).len(), 1);
        assert_eq!(choice.left_out, 1);
    }
}

#[tokio::test]
async fn a_tag_asked_for_by_name_without_an_image_is_an_error_that_says_what_there_is() {
    let mut bed = Bed::new();
    let arm64 = bed.image("arm64").await;
    bed.index(&[&arm64], Some("t")).await;
    let config = json!({"platforms": ["linux/amd64"], "tags": ["t"]});
    let error = bed.choose(&config, &nothing()).await.0.err().unwrap().to_string();
    assert!(
        error.contains("t has upstream no image for linux/amd64; t has: linux/arm64;"),
        "{error}"
    );
}

#[tokio::test]
async fn a_digest_that_the_settings_name_is_there_afterwards_or_it_is_an_error() {
    for (mode, wants, expected) in [
        ("sparse", "amd64", None),
        ("sparse", "s390x", Some("DKR1117")),
        ("rewrite", "amd64", Some("PLP0015")),
        ("rewrite", "s390x", Some("DKR1117")),
    ] {
        let mut bed = Bed::new();
        let (amd64, arm64) = (bed.image("amd64").await, bed.image("arm64").await);
        let index = bed.index(&[&amd64, &arm64], None).await;
        let digest = index["digest"].as_str().unwrap();
        let platform = format!("linux/{wants}");
        let config = json!({"platforms": [platform], "platforms_mode": mode, "tags": [digest]});
        let settings = importer_settings(config.as_object().unwrap()).unwrap();
        let mut tags = TagPlan {
            by_digest: settings.tags.digests(),
            ..TagPlan::default()
        };
        let came = std::mem::take(&mut bed.came);
        let chosen = choose(&bed.content, "test", &settings, &nothing(), &mut tags, came).await;
        match (chosen, expected) {
            (Ok(choice), None) => assert_eq!(json!(lists(&choice)[0].digest), index["digest"]),
            (Err(error), Some(code)) => assert_eq!(error.coded().code.as_str(), code, "{error}"),
            (Ok(_), Some(code)) => panic!("{mode}, {wants}: no {code}"),
            (Err(error), None) => panic!("{mode}, {wants}: {error}"),
        }
    }
}

#[tokio::test]
async fn a_sparse_index_keeps_its_digest_and_says_what_it_lacks() {
    let mut bed = Bed::new();
    let (amd64, arm64) = (bed.image("amd64").await, bed.image("arm64").await);
    let original = bed.index(&[&arm64, &amd64], Some("t")).await;
    let choice = bed
        .choose(&json!({"platforms": ["linux/amd64"]}), &nothing())
        .await
        .0
        .unwrap();
    let [list] = lists(&choice)[..] else {
        unreachable!()
    };
    assert_eq!(json!(list.digest), original["digest"]);
    assert_eq!(json!(list.selection.absent), json!([arm64["digest"]]));
    assert_eq!(list.selection.made_from, None);
    assert_eq!(choice.left_out, 1);
}
