//! What incremental exports build on.

use pulp_model::VersionNumber;
use pulp_store::transfers::Transfers;

use crate::support::{Bed, contract, digest, finish};

contract!(
    the_last_export_and_the_last_import_are_remembered_each_by_itself,
    what_was_exported_and_imported_goes_with_the_repository,
    an_import_makes_the_repository_that_it_notes_in_one_transaction,
);

async fn the_last_export_and_the_last_import_are_remembered_each_by_itself(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    let other = bed.create_repository("s").await;
    assert_eq!(bed.transfers(&repo).await.unwrap(), Transfers::default());
    for (version, state) in [(3, "a"), (4, "b")] {
        let mut tx = bed.fenced().await;
        tx.set_exported(&repo, VersionNumber(version)).await.unwrap();
        finish(tx).await;
        let mut tx = bed.fenced().await;
        tx.set_imported(&repo, &digest(state)).await.unwrap();
        finish(tx).await;
        let expected = Transfers {
            exported_version: Some(VersionNumber(version)),
            imported_state: Some(digest(state)),
        };
        assert_eq!(bed.transfers(&repo).await.unwrap(), expected);
    }
    assert_eq!(bed.transfers(&other).await.unwrap(), Transfers::default());
}

async fn what_was_exported_and_imported_goes_with_the_repository(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    let mut tx = bed.fenced().await;
    tx.set_imported(&repo, &digest("a")).await.unwrap();
    finish(tx).await;
    let mut tx = bed.fenced().await;
    assert!(tx.delete_repository(&repo).await.unwrap());
    finish(tx).await;
    bed.create_repository("r").await;
    assert_eq!(bed.transfers(&repo).await.unwrap(), Transfers::default());
}

async fn an_import_makes_the_repository_that_it_notes_in_one_transaction(bed: &Bed) {
    let new = crate::support::new_repository("new");
    let mut tx = bed.fenced().await;
    tx.create_repository(&new).await.unwrap();
    tx.set_imported(&new.id, &digest("a")).await.unwrap();
    drop(tx);
    assert!(!bed.repository_exists(&new.id).await.unwrap());
    let mut tx = bed.fenced().await;
    tx.create_repository(&new).await.unwrap();
    tx.set_imported(&new.id, &digest("a")).await.unwrap();
    finish(tx).await;
    assert_eq!(
        bed.transfers(&new.id).await.unwrap().imported_state,
        Some(digest("a"))
    );
}
