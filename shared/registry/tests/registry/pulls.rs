//! Pulls: every part once, checked, and told what becomes of it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, atomic::Ordering},
};

use bytes::Bytes;
use pulp_model::{Digest, ErrorCode, MediaType};
use pulp_registry::{BlobRef, BlobSink, Discard, FetchedManifest, PullVisitor, RegistryError, VisitError};

use crate::server::{Answer, Registry, blob_path, image, index, name, reference, two_images};

/// Keeps what comes in memory.
#[derive(Default)]
struct Keep {
    manifests: Mutex<Vec<Digest>>,
    blobs: Arc<Mutex<BTreeMap<Digest, Vec<u8>>>>,
    held: Option<Digest>,
}

struct KeepOne {
    digest: Digest,
    bytes: Vec<u8>,
    into: Arc<Mutex<BTreeMap<Digest, Vec<u8>>>>,
}

#[async_trait::async_trait]
impl PullVisitor for Keep {
    async fn manifest(&self, manifest: &FetchedManifest) -> Result<(), VisitError> {
        self.manifests.lock().unwrap().push(manifest.digest.clone());
        Ok(())
    }

    async fn blob(&self, blob: &BlobRef) -> Result<Option<Box<dyn BlobSink>>, VisitError> {
        if self.held.as_ref() == Some(&blob.digest) {
            return Ok(None);
        }
        let (digest, into) = (blob.digest.clone(), self.blobs.clone());
        Ok(Some(Box::new(KeepOne {
            digest,
            bytes: Vec::new(),
            into,
        })))
    }
}

#[async_trait::async_trait]
impl BlobSink for KeepOne {
    async fn write(&mut self, bytes: Bytes) -> Result<(), VisitError> {
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<(), VisitError> {
        self.into.lock().unwrap().insert(self.digest, self.bytes);
        Ok(())
    }
}

#[tokio::test]
async fn an_image_of_several_platforms_is_pulled_whole_and_each_part_once() {
    let (registry, client) = Registry::start().await;
    let (blobs, root) = two_images(&registry);
    let keep = Keep {
        held: Some(blobs[1].clone()),
        ..Keep::default()
    };
    let report = client.pull(&name(), &reference("latest"), &keep).await.unwrap();
    assert_eq!(report.root, root);
    assert_eq!(
        (report.manifests.len(), report.blobs.len(), report.skipped.len()),
        (3, 4, 1)
    );
    assert_eq!(keep.manifests.lock().unwrap()[0], root);
    let kept = keep.blobs.lock().unwrap();
    assert_eq!(kept[&blobs[0]], b"shared layer");
    assert_eq!(kept.len(), 4);
    assert_eq!(registry.requests(&blob_path(&blobs[0])), 1);
    assert_eq!(registry.requests(&blob_path(&blobs[1])), 0);
    let sizes: u64 = report.manifests.values().sum::<u64>() + 12 + 12 + 2 + 2;
    assert_eq!(report.bytes(), sizes);
    assert!(registry.busiest.load(Ordering::SeqCst) <= 3);
}

#[tokio::test]
async fn a_corrupt_blob_is_told_with_its_url_and_both_digests_and_is_not_finished() {
    let (registry, client) = Registry::start().await;
    let (blobs, _) = two_images(&registry);
    registry.set(&blob_path(&blobs[2]), Answer::ok("LAYER of two"));
    let keep = Keep::default();
    let error = client
        .pull(&name(), &reference("latest"), &keep)
        .await
        .unwrap_err();
    let RegistryError::Mismatch { url, expected, got } = &error else {
        panic!("{error}")
    };
    assert!(
        url.starts_with("http://127.0.0.1:") && url.ends_with(&blob_path(&blobs[2])),
        "{url}"
    );
    assert_eq!((expected, got), (&blobs[2], &Digest::sha256("LAYER of two")));
    assert_eq!(error.coded().code, ErrorCode::DIGEST_MISMATCH);
    assert!(!error.is_retryable());
    assert!(!keep.blobs.lock().unwrap().contains_key(&blobs[2]));
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error_that_may_pass() {
    let (registry, client) = Registry::start().await;
    let digest = registry.blob(&vec![7; 100_000]);
    let whole = Answer::ok(vec![7; 100_000]);
    registry.set(
        &blob_path(&digest),
        Answer {
            cut: Some(60_000),
            ..whole.clone()
        },
    );
    let error = client
        .blob(&name(), &digest)
        .await
        .unwrap()
        .drain()
        .await
        .unwrap_err();
    let RegistryError::Interrupted {
        received, expected, ..
    } = &error
    else {
        panic!("{error}")
    };
    assert!(*received <= 60_000 && *expected == Some(100_000), "{error}");
    assert!(error.is_retryable());
    // Without a length only the digest can tell.
    registry.set(
        &blob_path(&digest),
        Answer {
            cut: Some(60_000),
            chunked: true,
            ..whole
        },
    );
    let error = client
        .blob(&name(), &digest)
        .await
        .unwrap()
        .drain()
        .await
        .unwrap_err();
    assert!(matches!(error, RegistryError::Mismatch { .. }), "{error}");
}

#[tokio::test]
async fn a_blob_larger_than_its_descriptor_is_noticed_before_it_is_read() {
    let (registry, client) = Registry::start().await;
    let (blobs, _) = two_images(&registry);
    for chunked in [false, true] {
        registry.set(
            &blob_path(&blobs[0]),
            Answer {
                chunked,
                ..Answer::ok(vec![0; 1_000_000])
            },
        );
        let error = client
            .pull(&name(), &reference("latest"), &Discard)
            .await
            .unwrap_err();
        assert!(
            matches!(error, RegistryError::Size { expected: 12, .. }),
            "{error}"
        );
    }
}

#[tokio::test]
async fn members_named_many_times_are_fetched_once() {
    let (registry, client) = Registry::start().await;
    let leaf = registry.manifest("leaf", &MediaType::OCI_INDEX, &index(&[]));
    let size = index(&[]).len();
    let middle_text = index(&[(&leaf, size), (&leaf, size)]);
    let middle = registry.manifest("middle", &MediaType::OCI_INDEX, &middle_text);
    let root_text = index(&[
        (&middle, middle_text.len()),
        (&leaf, size),
        (&middle, middle_text.len()),
    ]);
    registry.manifest("latest", &MediaType::OCI_INDEX, &root_text);
    let report = client
        .pull(&name(), &reference("latest"), &Discard)
        .await
        .unwrap();
    assert_eq!(report.manifests.len(), 3);
    assert_eq!(registry.requests(&leaf.to_string()), 1);
}

#[tokio::test]
async fn layers_that_no_registry_hands_out_are_named_and_not_fetched() {
    let (registry, client) = Registry::start().await;
    let config = registry.blob(b"{}");
    let foreign = Digest::sha256("windows");
    let text =
        image(&config, &[(&foreign, 7)]).replace("layer.v1.tar+gzip", "layer.nondistributable.v1.tar+gzip");
    registry.manifest("latest", &MediaType::OCI_MANIFEST, &text);
    let report = client
        .pull(&name(), &reference("latest"), &Discard)
        .await
        .unwrap();
    assert!(report.foreign.contains(&foreign));
    assert_eq!(registry.requests(&foreign.to_string()), 0);
}

#[tokio::test]
async fn a_fault_of_the_visitor_names_the_content() {
    struct Full;
    #[async_trait::async_trait]
    impl PullVisitor for Full {
        async fn manifest(&self, _: &FetchedManifest) -> Result<(), VisitError> {
            Err("the disk is full".into())
        }
        async fn blob(&self, _: &BlobRef) -> Result<Option<Box<dyn BlobSink>>, VisitError> {
            Ok(None)
        }
    }
    let (registry, client) = Registry::start().await;
    let (_, root) = two_images(&registry);
    let error = client
        .pull(&name(), &reference("latest"), &Full)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&root.to_string()) && error.contains("the disk is full"),
        "{error}"
    );
}
