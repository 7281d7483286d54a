//! What the store promises, over a directory and over an object store alike.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::memory::InMemory;
use proptest::prelude::*;
use pulp_content::{ContentError, ContentOptions, ContentStore};
use pulp_model::{Algorithm, Digest, ErrorCode};

/// A store and the directory it may be in.
struct Place {
    store: ContentStore,
    directory: Option<tempfile::TempDir>,
}

fn local() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let store = ContentStore::open(
        &format!("file:{}", directory.path().display()),
        &ContentOptions::default(),
    );
    Place {
        store: store.unwrap(),
        directory: Some(directory),
    }
}

fn objects() -> Place {
    Place {
        store: ContentStore::over(Arc::new(InMemory::new()), Some("a/prefix")),
        directory: None,
    }
}

fn both() -> [Place; 2] {
    [local(), objects()]
}

/// All regular files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

async fn put(store: &ContentStore, pieces: &[Bytes], digest: &Digest) -> Result<u64, ContentError> {
    let mut writer = store.writer_with("attempt-1", digest.algorithm()).await?;
    for piece in pieces {
        writer.write(piece.clone()).await?;
    }
    writer.commit(digest).await
}

async fn get(store: &ContentStore, digest: &Digest, range: Option<std::ops::Range<u64>>) -> Vec<u8> {
    let reader = store.read(digest, range).await.unwrap();
    let chunks: Vec<Bytes> = reader.stream.try_collect().await.unwrap();
    chunks.concat()
}

/// Bytes that compress badly and differ everywhere.
fn noise(length: usize) -> Bytes {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

#[tokio::test]
async fn what_was_committed_is_read_back_and_verified() {
    // One byte, one part and a bit, several parts.
    for length in [0, 1, 8 * 1024 * 1024 + 1, 20_000_000] {
        let bytes = noise(length);
        let digest = Digest::sha256(&bytes);
        for place in both() {
            let pieces: Vec<_> = bytes.chunks(300_001).map(Bytes::copy_from_slice).collect();
            assert_eq!(place.store.size(&digest).await.unwrap(), None);
            assert_eq!(put(&place.store, &pieces, &digest).await.unwrap(), length as u64);
            assert_eq!(place.store.size(&digest).await.unwrap(), Some(length as u64));
            assert!(get(&place.store, &digest, None).await == bytes, "{length}");
            place.store.verify(&digest).await.unwrap();
            assert_eq!(
                place.store.sweep_tmp("attempt-1").await.unwrap(),
                0,
                "temporary files are left"
            );
        }
    }
}

#[tokio::test]
async fn a_wrong_digest_is_told_and_leaves_nothing() {
    for length in [5, 9_000_000] {
        let bytes = noise(length);
        let (expected, got) = (Digest::sha256(b"something else"), Digest::sha256(&bytes));
        for place in both() {
            let error = put(&place.store, std::slice::from_ref(&bytes), &expected)
                .await
                .unwrap_err();
            let ContentError::Mismatch {
                expected: e,
                got: g,
                size,
            } = &error
            else {
                panic!("{error}")
            };
            assert_eq!((e, g, *size), (&expected, &got, length as u64));
            let coded = error.coded();
            assert_eq!(coded.code, ErrorCode::DIGEST_MISMATCH);
            assert_eq!(coded.data["got"], got.to_string());
            for digest in [&expected, &got] {
                assert_eq!(place.store.size(digest).await.unwrap(), None);
            }
            if let Some(directory) = &place.directory {
                assert_eq!(files(directory.path()), [] as [PathBuf; 0]);
            }
        }
    }
}

#[tokio::test]
async fn a_writer_that_is_dropped_leaves_nothing() {
    let place = local();
    let root = place.directory.as_ref().unwrap().path();
    let mut writer = place.store.writer("attempt-1").await.unwrap();
    writer.write(noise(3_000_000)).await.unwrap();
    drop(writer);
    // The write under way ends by itself on its own thread.
    tokio::time::timeout(Duration::from_secs(20), async {
        while !files(root).is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the temporary file goes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_commits_of_one_digest_at_once_all_succeed() {
    let bytes = noise(400_000);
    let digest = Digest::sha256(&bytes);
    for place in both() {
        let commits = (0..16).map(|n| {
            let (store, bytes, digest) = (place.store.clone(), bytes.clone(), digest.clone());
            tokio::spawn(async move {
                let mut writer = store.writer(&format!("attempt-{n}")).await?;
                writer.write(bytes).await?;
                writer.commit(&digest).await
            })
        });
        for done in futures::future::join_all(commits).await {
            assert_eq!(done.unwrap().unwrap(), 400_000);
        }
        assert!(get(&place.store, &digest, None).await == bytes);
        if let Some(directory) = &place.directory {
            assert_eq!(files(directory.path()).len(), 1);
        }
    }
}

#[tokio::test]
async fn a_blob_that_is_there_is_not_written_again() {
    let place = local();
    let bytes = noise(1000);
    let digest = Digest::sha256(&bytes);
    put(&place.store, std::slice::from_ref(&bytes), &digest)
        .await
        .unwrap();
    let path = place.store.local_path(&digest).unwrap();
    let before = std::fs::metadata(&path).unwrap().ino();
    assert_eq!(put(&place.store, &[bytes], &digest).await.unwrap(), 1000);
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), before);
}

#[tokio::test]
async fn a_file_of_the_wrong_size_is_replaced() {
    let place = local();
    let bytes = noise(1000);
    let digest = Digest::sha256(&bytes);
    let path = place.store.local_path(&digest).unwrap();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, &bytes[..500]).unwrap();
    put(&place.store, std::slice::from_ref(&bytes), &digest)
        .await
        .unwrap();
    assert!(get(&place.store, &digest, None).await == bytes);
}

#[tokio::test]
async fn damage_is_found_by_verifying() {
    let place = local();
    let digest = Digest::sha256(b"good");
    place
        .store
        .put_bytes("attempt-1", &digest, Bytes::from_static(b"good"))
        .await
        .unwrap();
    std::fs::write(place.store.local_path(&digest).unwrap(), b"evil").unwrap();
    let error = place.store.verify(&digest).await.unwrap_err();
    assert!(
        matches!(&error, ContentError::Mismatch { got, .. } if *got == Digest::sha256(b"evil")),
        "{error}"
    );
}

#[tokio::test]
async fn what_a_dead_attempt_left_is_swept_and_nobody_elses() {
    let place = local();
    let root = place.directory.as_ref().unwrap().path().to_owned();
    let mut alive = place.store.writer("alive").await.unwrap();
    alive.write(Bytes::from_static(b"x")).await.unwrap();
    // A process that was killed drops nothing.
    let dead = root.join("tmp/dead");
    std::fs::create_dir_all(&dead).unwrap();
    std::fs::write(dead.join("1"), b"half a lay").unwrap();
    std::fs::write(dead.join("2"), b"er").unwrap();
    let mut owners = place.store.tmp_owners().await.unwrap();
    owners.sort();
    assert_eq!(owners, ["alive", "dead"]);
    assert_eq!(place.store.sweep_tmp("dead").await.unwrap(), 2);
    assert!(!dead.exists());
    assert_eq!(place.store.tmp_owners().await.unwrap(), ["alive"]);
    assert_eq!(place.store.sweep_tmp("dead").await.unwrap(), 0);
    assert_eq!(
        place
            .store
            .sweep_tmp_older_than(Duration::from_hours(1))
            .await
            .unwrap(),
        0
    );
    alive.commit(&Digest::sha256(b"x")).await.unwrap();
    assert!(matches!(
        place.store.sweep_tmp("../sha256").await,
        Err(ContentError::Owner(_))
    ));
}

#[tokio::test]
async fn old_leftovers_of_any_owner_are_swept() {
    let memory = Arc::new(InMemory::new());
    let store = ContentStore::over(memory.clone(), Some("p"));
    assert!(store.tmp_owners().await.unwrap().is_empty());
    let left = object_store::path::Path::from("p/tmp/dead/1");
    object_store::ObjectStoreExt::put(memory.as_ref(), &left, "x".into())
        .await
        .unwrap();
    assert_eq!(store.tmp_owners().await.unwrap(), ["dead"]);
    assert_eq!(
        store.sweep_tmp_older_than(Duration::from_hours(1)).await.unwrap(),
        0
    );
    assert_eq!(store.sweep_tmp_older_than(Duration::ZERO).await.unwrap(), 1);
}

#[tokio::test]
async fn a_range_gives_exactly_its_bytes() {
    let bytes = noise(700_000);
    let digest = Digest::sha256(&bytes);
    for place in both() {
        place
            .store
            .put_bytes("attempt-1", &digest, bytes.clone())
            .await
            .unwrap();
        for (asked, want) in [
            (0..1, 0..1),
            (262_143..262_146, 262_143..262_146),
            (5..600_000, 5..600_000),
            (699_999..700_000, 699_999..700_000),
            (699_990..u64::MAX, 699_990..700_000),
            (7..7, 7..7),
        ] {
            let reader = place.store.read(&digest, Some(asked.clone())).await.unwrap();
            assert_eq!((reader.size, reader.range), (700_000, want.clone()));
            let got = get(&place.store, &digest, Some(asked)).await;
            assert!(got == bytes[want.start as usize..want.end as usize], "{want:?}");
        }
        let beyond = place
            .store
            .read(&digest, Some(700_000..700_001))
            .await
            .unwrap_err();
        assert!(
            matches!(
                beyond,
                ContentError::Range {
                    size: 700_000,
                    start: 700_000,
                    ..
                }
            ),
            "{beyond}"
        );
    }
}

#[tokio::test]
async fn a_file_that_shrank_under_a_reader_is_an_error_and_no_short_read() {
    let place = local();
    let bytes = noise(600_000);
    let digest = Digest::sha256(&bytes);
    place.store.put_bytes("attempt-1", &digest, bytes).await.unwrap();
    let mut reader = place.store.read(&digest, None).await.unwrap();
    assert!(reader.stream.next().await.unwrap().is_ok());
    let path = place.store.local_path(&digest).unwrap();
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(300_000)
        .unwrap();
    assert!(reader.stream.next().await.unwrap().is_err());
}

#[tokio::test]
async fn an_absent_blob_is_told_as_such() {
    let digest = Digest::sha256(b"nowhere");
    for place in both() {
        assert!(matches!(
            place.store.read(&digest, None).await,
            Err(ContentError::NotFound(_))
        ));
        assert!(matches!(
            place.store.verify(&digest).await,
            Err(ContentError::NotFound(_))
        ));
        assert!(!place.store.delete(&digest).await.unwrap());
        place
            .store
            .put_bytes("attempt-1", &digest, Bytes::from_static(b"nowhere"))
            .await
            .unwrap();
        assert!(place.store.delete(&digest).await.unwrap());
        assert_eq!(place.store.size(&digest).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_small_blob_is_read_whole_up_to_a_limit() {
    for place in both() {
        let digest = Digest::sha256(b"12345");
        place
            .store
            .put_bytes("attempt-1", &digest, Bytes::from_static(b"12345"))
            .await
            .unwrap();
        assert_eq!(place.store.read_bytes(&digest, 5).await.unwrap(), "12345");
        assert!(place.store.read_bytes(&digest, 4).await.is_err());
    }
}

#[tokio::test]
async fn sha512_blobs_have_a_tree_of_their_own() {
    let mut hasher = Algorithm::Sha512.hasher();
    hasher.update(b"x");
    let digest = hasher.finish();
    for place in both() {
        put(&place.store, &[Bytes::from_static(b"x")], &digest)
            .await
            .unwrap();
        place.store.verify(&digest).await.unwrap();
        if let Some(path) = place.store.local_path(&digest) {
            assert!(path.to_str().unwrap().contains("/sha512/"));
        }
        let writer = place.store.writer("a").await.unwrap();
        assert!(matches!(
            writer.commit(&digest).await,
            Err(ContentError::Algorithm { .. })
        ));
    }
}

#[tokio::test]
async fn blobs_are_readable_by_a_web_server_of_another_user() {
    let place = local();
    let digest = Digest::sha256(b"x");
    place
        .store
        .put_bytes("attempt-1", &digest, Bytes::from_static(b"x"))
        .await
        .unwrap();
    let mode = std::fs::metadata(place.store.local_path(&digest).unwrap())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o644);
}

#[tokio::test(flavor = "multi_thread")]
async fn blocking_code_writes_to_either_store() {
    // Enough that a file is synced while it grows.
    let bytes = noise(40_000_000);
    let digest = Digest::sha256(&bytes);
    for place in both() {
        let (store, input) = (place.store.clone(), bytes.clone());
        let done = tokio::task::spawn_blocking(move || {
            let mut writer = store.blocking_writer("attempt-1")?;
            for piece in input.chunks(100_000) {
                writer.write_all(piece).map_err(ContentError::from_io)?;
            }
            writer.commit_computed()
        });
        assert_eq!(done.await.unwrap().unwrap(), (digest.clone(), 40_000_000));
        assert!(get(&place.store, &digest, None).await == bytes);
        let (store, digest) = (place.store.clone(), digest.clone());
        let wrong = tokio::task::spawn_blocking(move || {
            let mut writer = store.blocking_writer("attempt-1")?;
            writer.write_all(b"other").map_err(ContentError::from_io)?;
            writer.commit(&digest)
        });
        assert!(matches!(wrong.await.unwrap(), Err(ContentError::Mismatch { .. })));
    }
}

#[test]
fn a_url_of_another_kind_is_refused() {
    for bad in ["ftp://x", "/plain/path", "file:relative", ""] {
        let error = ContentStore::open(bad, &ContentOptions::default()).unwrap_err();
        assert!(matches!(error, ContentError::Config { .. }), "{bad}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// However the bytes are cut into pieces, what is read is what was written, and any range is its slice.
    #[test]
    fn any_bytes_in_any_pieces_come_back(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5000), 0..30),
        start in 0_u64..100_000,
        length in 0_u64..100_000,
    ) {
        let whole: Vec<u8> = pieces.concat();
        let digest = Digest::sha256(&whole);
        let pieces: Vec<Bytes> = pieces.into_iter().map(Bytes::from).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            for place in both() {
                prop_assert_eq!(put(&place.store, &pieces, &digest).await.unwrap(), whole.len() as u64);
                prop_assert!(get(&place.store, &digest, None).await == whole);
                let size = whole.len() as u64;
                match place.store.read(&digest, Some(start..start + length)).await {
                    Ok(_) => {
                        let end = (start + length).min(size) as usize;
                        let got = get(&place.store, &digest, Some(start..start + length)).await;
                        prop_assert!(got == whole[start as usize..end.max(start as usize)]);
                    }
                    Err(ContentError::Range { .. }) => prop_assert!(start >= size),
                    Err(other) => prop_assert!(false, "{}", other),
                }
            }
            Ok(())
        })?;
    }
}
