//! Repositories and their descriptions.

use pulp_model::unit::V1Tag;
use pulp_store::{
    StoreError,
    repositories::{NewRepository, RepositoryDelta},
};
use serde_json::{Map, Value, json};

use crate::support::{Bed, blob, contract, finish, new_repository};

contract!(
    a_new_repository_is_empty_and_reads_back_as_it_was_made,
    creating_a_repository_twice_is_a_duplicate,
    a_delta_sets_and_clears_and_leaves_the_rest,
    changing_a_repository_that_is_not_there_is_told,
    texts_survive_whatever_characters_they_have,
    repositories_are_listed_by_id_with_their_counts,
    deleting_a_repository_leaves_units_that_others_use,
    deleting_a_repository_takes_its_settings_and_history_along,
    v1_tags_of_another_shape_are_passed_over,
);

pub(crate) fn map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("{other} is no object"),
    }
}

async fn a_new_repository_is_empty_and_reads_back_as_it_was_made(bed: &Bed) {
    let new = NewRepository {
        description: Some("what it is for".to_owned()),
        notes: map(json!({"_repo-type": "docker-repo"})),
        ..new_repository("busybox")
    };
    let mut tx = bed.begin().await.unwrap();
    tx.create_repository(&new).await.unwrap();
    tx.commit().await.unwrap();

    let found = bed.repository(&new.id).await.unwrap().unwrap();
    assert_eq!(found.display_name, "Repository busybox");
    assert_eq!(found.description.as_deref(), Some("what it is for"));
    assert_eq!(found.notes, new.notes);
    assert_eq!(found.scratchpad, Map::new());
    assert_eq!(found.version.0, 0);
    assert_eq!((found.last_unit_added, found.last_unit_removed), (None, None));
    assert!(found.content_unit_counts.is_empty());
    let versions = bed.repository_versions(&new.id).await.unwrap();
    assert_eq!(versions.len(), 1);
    assert_eq!(
        (versions[0].number.0, versions[0].added, versions[0].removed),
        (0, 0, 0)
    );
    assert!(bed.repository_exists(&new.id).await.unwrap());
    let other = "other".parse().unwrap();
    assert!(!bed.repository_exists(&other).await.unwrap());
    assert!(bed.repository(&other).await.unwrap().is_none());
    assert!(bed.repository_versions(&other).await.unwrap().is_empty());
}

async fn creating_a_repository_twice_is_a_duplicate(bed: &Bed) {
    bed.create_repository("r").await;
    let mut tx = bed.begin().await.unwrap();
    let again = tx.create_repository(&new_repository("r")).await;
    assert!(matches!(again, Err(StoreError::Duplicate(_))), "{again:?}");
    drop(tx);
    // Ids that differ in their case alone are two.
    bed.create_repository("R").await;
    assert_eq!(bed.repositories().await.unwrap().len(), 2);
}

async fn a_delta_sets_and_clears_and_leaves_the_rest(bed: &Bed) {
    let id = bed.create_repository("r").await;
    let change = async |delta: RepositoryDelta| {
        let mut tx = bed.begin().await.unwrap();
        assert!(tx.update_repository(&id, &delta).await.unwrap());
        tx.commit().await.unwrap();
        bed.repository(&id).await.unwrap().unwrap()
    };
    let after = change(RepositoryDelta {
        description: Some(Some("d".to_owned())),
        notes: Some(map(json!({"a": 1, "b": [true]}))),
        scratchpad: Some(map(json!({"kept": 1, "dropped": 2}))),
        ..RepositoryDelta::default()
    })
    .await;
    assert_eq!(after.display_name, "Repository r");
    assert_eq!(after.description.as_deref(), Some("d"));
    assert_eq!(Value::Object(after.notes), json!({"a": 1, "b": [true]}));

    let after = change(RepositoryDelta {
        display_name: Some("new".to_owned()),
        description: Some(None),
        notes: Some(map(json!({"a": null}))),
        scratchpad: Some(map(json!({"dropped": null}))),
    })
    .await;
    assert_eq!((after.display_name.as_str(), after.description), ("new", None));
    assert_eq!(Value::Object(after.notes), json!({"b": [true]}));
    assert_eq!(Value::Object(after.scratchpad), json!({"kept": 1}));

    let before = bed.repository(&id).await.unwrap();
    change(RepositoryDelta::default()).await;
    assert_eq!(bed.repository(&id).await.unwrap(), before);
}

async fn changing_a_repository_that_is_not_there_is_told(bed: &Bed) {
    let absent = "absent".parse().unwrap();
    let mut tx = bed.fenced().await;
    assert!(
        !tx.update_repository(&absent, &RepositoryDelta::default())
            .await
            .unwrap()
    );
    assert!(!tx.merge_v1_tags(&absent, &[]).await.unwrap());
    assert!(!tx.delete_repository(&absent).await.unwrap());
    assert_eq!(tx.commit_version(&absent, &[blob("b")]).await.unwrap(), None);
    finish(tx).await;
}

async fn texts_survive_whatever_characters_they_have(bed: &Bed) {
    let odd = "';DROP TABLE tasks;-- \" % _ \\ $1 \u{1f433} ü\u{301} \u{202e} \t\r\n";
    let new = NewRepository {
        display_name: odd.to_owned(),
        description: Some(odd.to_owned()),
        notes: map(json!({odd: odd, "nul": "\u{0}", "big": i64::MAX, "float": 0.1})),
        ..new_repository("a.-_Z9")
    };
    let mut tx = bed.begin().await.unwrap();
    tx.create_repository(&new).await.unwrap();
    tx.commit().await.unwrap();
    let found = bed.repository(&new.id).await.unwrap().unwrap();
    assert_eq!(found.display_name, odd);
    assert_eq!(found.description.as_deref(), Some(odd));
    assert_eq!(found.notes, new.notes);
}

async fn repositories_are_listed_by_id_with_their_counts(bed: &Bed) {
    let b = bed.create_repository("b").await;
    bed.create_repository("a").await;
    bed.commit_units(&b, &[blob("1"), blob("2"), crate::support::manifest("m", &[])])
        .await;
    let all = bed.repositories().await.unwrap();
    let ids: Vec<_> = all.iter().map(|r| r.id.as_str()).collect();
    assert_eq!(ids, ["a", "b"]);
    assert!(all[0].content_unit_counts.is_empty());
    let counts: Vec<_> = all[1]
        .content_unit_counts
        .iter()
        .map(|(t, n)| (t.as_str(), *n))
        .collect();
    assert_eq!(counts, [("docker_blob", 2), ("docker_manifest", 1)]);
    assert_eq!(bed.repository(&b).await.unwrap().as_ref(), Some(&all[1]));
}

async fn deleting_a_repository_leaves_units_that_others_use(bed: &Bed) {
    let (a, b) = (bed.create_repository("a").await, bed.create_repository("b").await);
    bed.commit_units(&a, &[blob("shared"), blob("only a")]).await;
    bed.commit_units(&b, &[blob("shared")]).await;
    let mut tx = bed.fenced().await;
    assert!(tx.delete_repository(&a).await.unwrap());
    finish(tx).await;
    assert!(bed.repository(&a).await.unwrap().is_none());
    assert!(bed.associations(&a, &[]).await.unwrap().is_empty());
    let left: Vec<_> = bed
        .associations(&b, &[])
        .await
        .unwrap()
        .into_iter()
        .map(|a| a.unit)
        .collect();
    assert_eq!(left, [blob("shared")]);
    // A repository made anew under the name begins empty and may take the old units.
    bed.create_repository("a").await;
    assert!(bed.associations(&a, &[]).await.unwrap().is_empty());
    assert_eq!(
        bed.commit_units(&a, &[blob("only a"), blob("shared")]).await,
        (1, 2, 0)
    );
}

async fn deleting_a_repository_takes_its_settings_and_history_along(bed: &Bed) {
    let id = bed.create_repository("r").await;
    let distributor = crate::publishing::new_distributor("d");
    let mut tx = bed.fenced().await;
    tx.put_importer(&id, "docker_importer", &Map::new())
        .await
        .unwrap();
    tx.put_distributor(&id, &distributor).await.unwrap();
    tx.add_publish_history(&crate::publishing::entry("h", "r", "d", 5))
        .await
        .unwrap();
    tx.delete_repository(&id).await.unwrap();
    finish(tx).await;
    assert!(bed.importer(&id).await.unwrap().is_none());
    assert!(bed.distributors_of(&id).await.unwrap().is_empty());
    let history = bed
        .publish_history(
            &id,
            &distributor.id,
            &pulp_store::history::HistoryFilter::default(),
        )
        .await
        .unwrap();
    assert!(history.is_empty());
    assert_eq!(bed.number("SELECT COUNT(*) FROM repository_versions").await, 0);
}

async fn v1_tags_of_another_shape_are_passed_over(bed: &Bed) {
    let id = bed.create_repository("r").await;
    let image_id = "a".repeat(64);
    let tags = json!([{"tag": "latest", "image_id": image_id}, {"tag": 5}, "x", {"tag": "no/tag", "image_id": image_id}]);
    let mut tx = bed.begin().await.unwrap();
    let delta = RepositoryDelta {
        scratchpad: Some(map(json!({"tags": tags}))),
        ..RepositoryDelta::default()
    };
    tx.update_repository(&id, &delta).await.unwrap();
    tx.commit().await.unwrap();
    let expected = V1Tag {
        tag: "latest".parse().unwrap(),
        image_id: image_id.parse().unwrap(),
    };
    assert_eq!(bed.repository(&id).await.unwrap().unwrap().v1_tags(), [expected]);
}
