//! What only a file can do.

use pulp_store::{Store, StoreError};

use crate::support::{Bed, blob, delete};

#[tokio::test]
async fn a_url_of_no_known_engine_is_refused_without_telling_its_password() {
    let refused = Store::connect("mysql://root:secret@h/d", 2).await.unwrap_err();
    assert!(matches!(&refused, StoreError::UnknownEngine(scheme) if scheme == "mysql"));
    assert!(!format!("{refused} {refused:?}").contains("secret"));
}

#[tokio::test]
async fn a_file_in_a_folder_that_is_not_there_is_unavailable() {
    let told = Store::connect("sqlite:/nowhere/at/all.sqlite", 2)
        .await
        .unwrap_err();
    assert!(told.is_transient(), "{told:?}");
    assert!(format!("{told:?}").contains("unable to open"), "{told:?}");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_told_and_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.sqlite");
    let text = "this is no database at all, but some text of a hundred bytes or more, so that it is read as a header, and refused";
    std::fs::write(&path, text).unwrap();
    let told = Store::connect(&format!("sqlite:{}", path.display()), 2)
        .await
        .unwrap_err();
    assert!(!told.is_transient(), "{told:?}");
    assert!(format!("{told:?}").contains("not a database"), "{told:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

/// Data outlives the process, also one that never closed its pool.
#[tokio::test]
async fn what_was_committed_is_there_for_the_next_process() {
    let bed = Bed::sqlite().await;
    let repo = bed.create_repository("r").await;
    bed.commit_units(&repo, &[blob("1")]).await;
    let open = bed.begin().await.unwrap();
    let next = bed.another_process().await;
    assert_eq!(next.associations(&repo, &[]).await.unwrap().len(), 1);
    drop(open);
    bed.store.close().await;
    let next = bed.another_process().await;
    next.check_schema().await.unwrap();
    assert_eq!(next.associations(&repo, &[]).await.unwrap().len(), 1);
}

/// A reader never waits for the writer, nor sees half of its change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_go_on_while_somebody_writes() {
    let bed = Bed::sqlite().await;
    let mut tx = bed.begin().await.unwrap();
    for n in 0..10 {
        tx.enqueue(&delete(&format!("r{n}"))).await.unwrap();
    }
    assert!(bed.live_tasks().await.unwrap().is_empty());
    assert_eq!(bed.outbox_depth().await.unwrap(), 0);
    assert!(bed.is_connected().await);
    tx.commit().await.unwrap();
    assert_eq!(bed.live_tasks().await.unwrap().len(), 10);
}
