//! Manifests and lists of tags.

use pulp_model::{Digest, MediaType};
use pulp_registry::{Reference, RegistryError};

use crate::server::{Answer, Registry, name, reference};

#[tokio::test]
async fn a_manifest_asked_for_by_digest_must_hash_to_it() {
    let (registry, client) = Registry::start().await;
    let digest = Digest::sha256("what was promised");
    registry.set(
        &format!("/v2/a/b/manifests/{digest}"),
        Answer::ok(r#"{"schemaVersion":2}"#),
    );
    let error = client
        .manifest(&name(), &Reference::Digest(digest.clone()))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, RegistryError::Mismatch { expected, .. } if *expected == digest),
        "{error}"
    );
}

#[tokio::test]
async fn a_declared_digest_must_be_right() {
    let (registry, client) = Registry::start().await;
    let lie = Digest::sha256("another");
    let answer = Answer::ok(r#"{"schemaVersion":2}"#).header("docker-content-digest", &lie.to_string());
    registry.set("/v2/a/b/manifests/latest", answer);
    let error = client.manifest(&name(), &reference("latest")).await.unwrap_err();
    assert!(
        matches!(&error, RegistryError::Mismatch { expected, .. } if *expected == lie),
        "{error}"
    );
}

#[tokio::test]
async fn a_manifest_keeps_its_bytes_and_its_declared_type() {
    let (registry, client) = Registry::start().await;
    let text = "{ \"schemaVersion\": 2,\n\n \"layers\": [] }";
    let digest = registry.manifest("latest", &MediaType::DOCKER_MANIFEST, text);
    let manifest = client.manifest(&name(), &reference("latest")).await.unwrap();
    assert_eq!(
        (manifest.bytes.as_ref(), &manifest.digest),
        (text.as_bytes(), &digest)
    );
    assert_eq!(manifest.media_type, Some(MediaType::DOCKER_MANIFEST));
    let head = client
        .head_manifest(&name(), &reference("latest"), None)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (head.digest, head.size),
        (Some(digest.clone()), Some(text.len() as u64))
    );
    assert_eq!(
        client
            .head_manifest(&name(), &reference("gone"), None)
            .await
            .unwrap(),
        None
    );
    let told = |known| {
        let client = &client;
        async move {
            let head = client
                .head_manifest(&name(), &reference("latest"), Some(&known))
                .await;
            let head = head.unwrap().unwrap();
            (head.digest, head.size)
        }
    };
    assert_eq!(
        told(digest.clone()).await,
        (Some(digest.clone()), None),
        "the registry need not read it"
    );
    assert_eq!(
        told(Digest::sha256("older")).await,
        (Some(digest), Some(text.len() as u64))
    );
    let error = client.manifest(&name(), &reference("gone")).await.unwrap_err();
    assert!(
        matches!(&error, RegistryError::NotFound { .. }) && error.to_string().contains("not here"),
        "{error}"
    );
}

#[tokio::test]
async fn a_manifest_that_is_too_large_is_not_read() {
    let (registry, client) = Registry::start().await;
    for chunked in [false, true] {
        registry.set(
            "/v2/a/b/manifests/latest",
            Answer {
                chunked,
                ..Answer::ok(vec![b' '; 5 << 20])
            },
        );
        let error = client.manifest(&name(), &reference("latest")).await.unwrap_err();
        assert!(matches!(error, RegistryError::Protocol { .. }), "{error}");
    }
}

#[tokio::test]
async fn tags_come_from_all_pages() {
    let (registry, client) = Registry::start().await;
    let first = Answer::ok(r#"{"name":"a/b","tags":["1","2"]}"#);
    registry.set(
        "/v2/a/b/tags/list?n=1000",
        first.header("link", r#"</v2/a/b/tags/list?last=2>; rel="next""#),
    );
    registry.set(
        "/v2/a/b/tags/list?last=2",
        Answer::ok(r#"{"name":"a/b","tags":["-no-tag","3"]}"#),
    );
    let tags: Vec<_> = client
        .tags(&name())
        .await
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(tags, ["1", "2", "3"]);
    registry.set(
        "/v2/a/b/tags/list?n=1000",
        Answer::ok(r#"{"name":"a/b","tags":null}"#),
    );
    assert!(client.tags(&name()).await.unwrap().is_empty());
}

#[tokio::test]
async fn pages_of_tags_in_a_circle_or_elsewhere_end_in_an_error() {
    let (registry, client) = Registry::start().await;
    for link in [
        "</v2/a/b/tags/list?n=1000>; rel=next",
        "<http://evil.example/v2/a/b/tags/list>; rel=next",
    ] {
        registry.set(
            "/v2/a/b/tags/list?n=1000",
            Answer::ok(r#"{"tags":["1"]}"#).header("link", link),
        );
        let error = client.tags(&name()).await.unwrap_err();
        assert!(matches!(error, RegistryError::Protocol { .. }), "{error}");
    }
}
