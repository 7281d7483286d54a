//! Lists of which a filter of platforms left members out: told for each repository and each version.

use pulp_model::{
    MediaType, RepositoryId, VersionNumber,
    image::Manifest,
    unit::{MadeFrom, ManifestListUnit, Selection, Unit, UnitType},
};
use pulp_store::Store;
use serde_json::json;

use crate::support::{Bed, contract, digest, finish, manifest};

contract!(
    a_list_may_lack_members_in_one_repository_and_be_whole_in_another,
    what_a_list_may_lack_is_told_for_each_version,
    what_a_list_was_made_of_is_no_change_of_content,
);

/// A list of two members that needs all but `absent`.
fn list(absent: &[&str]) -> Unit {
    let member = |seed| json!({"mediaType": MediaType::OCI_MANIFEST, "digest": digest(seed), "size": 500});
    let text = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX,
        "manifests": [member("amd64"), member("arm64")]});
    match Manifest::parse(text.to_string().as_bytes(), None).unwrap() {
        Manifest::List(list) => Unit::ManifestList(ManifestListUnit {
            selection: Selection {
                absent: absent.iter().map(digest).collect(),
                made_from: None,
            },
            ..list
        }),
        Manifest::Image(_) => unreachable!(),
    }
}

async fn selection(store: &Store, repo: &RepositoryId) -> Selection {
    let held = store
        .associations(repo, &[UnitType::DockerManifestList])
        .await
        .unwrap();
    match &held[..] {
        [one] => match &one.unit {
            Unit::ManifestList(list) => list.selection.clone(),
            _ => unreachable!(),
        },
        other => panic!("{other:?}"),
    }
}

async fn a_list_may_lack_members_in_one_repository_and_be_whole_in_another(bed: &Bed) {
    let (sparse, whole) = (
        bed.create_repository("sparse").await,
        bed.create_repository("whole").await,
    );
    bed.commit_units(&sparse, &[list(&["arm64"]), manifest("amd64", &[])])
        .await;
    bed.commit_units(
        &whole,
        &[list(&[]), manifest("amd64", &[]), manifest("arm64", &[])],
    )
    .await;
    assert_eq!(selection(bed, &sparse).await.absent, [digest("arm64")].into());
    assert_eq!(selection(bed, &whole).await, Selection::default());
    // By itself it has no members to lack.
    let alone = bed.units_of_type(UnitType::DockerManifestList).await.unwrap();
    assert_eq!(alone[0].unit, list(&[]));
}

async fn what_a_list_may_lack_is_told_for_each_version(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    bed.commit_units(&repo, &[list(&["arm64"]), manifest("amd64", &[])])
        .await;
    // Nothing new.
    assert_eq!(bed.commit_units(&repo, &[list(&["arm64"])]).await, (1, 0, 0));
    assert_eq!(
        bed.commit_units(&repo, &[list(&[]), manifest("arm64", &[])])
            .await,
        (2, 1, 0)
    );
    assert_eq!(bed.commit_units(&repo, &[list(&["amd64"])]).await, (3, 0, 0));
    for (number, absent) in [(1, &["arm64"][..]), (2, &[]), (3, &["amd64"])] {
        let units = bed.units_of_version(&repo, VersionNumber(number)).await.unwrap();
        assert!(units.contains(&list(absent)), "{number}: {units:?}");
    }
    let difference = async |earlier, later| {
        let found = bed
            .version_difference(&repo, VersionNumber(earlier), VersionNumber(later))
            .await;
        let found = found.unwrap();
        (found.added, found.removed)
    };
    assert_eq!(difference(2, 3).await, (vec![list(&["amd64"])], vec![]));
    let (added, removed) = difference(1, 2).await;
    assert!(
        added.len() == 2 && added.contains(&list(&[])) && removed.is_empty(),
        "{added:?}, {removed:?}"
    );
    // There and back again.
    bed.commit_units(&repo, &[list(&["arm64"])]).await;
    assert_eq!(difference(1, 4).await, (vec![manifest("arm64", &[])], vec![]));
}

async fn what_a_list_was_made_of_is_no_change_of_content(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    let made_from = |platforms: &str| {
        Some(MadeFrom {
            digest: digest("original"),
            platforms: platforms.to_owned(),
        })
    };
    let made = |platforms| match list(&[]) {
        Unit::ManifestList(mut list) => {
            list.selection.made_from = made_from(platforms);
            Unit::ManifestList(list)
        }
        _ => unreachable!(),
    };
    bed.commit_units(&repo, &[made("linux/arm64")]).await;
    assert_eq!(selection(bed, &repo).await.made_from, made_from("linux/arm64"));
    let mut tx = bed.fenced().await;
    let change = tx
        .commit_version(&repo, &[made("linux/amd64, linux/arm64")])
        .await
        .unwrap()
        .unwrap();
    finish(tx).await;
    assert_eq!((change.number.0, change.added, change.removed), (1, 0, 0));
    assert_eq!(
        selection(bed, &repo).await.made_from,
        made_from("linux/amd64, linux/arm64")
    );
}
