//! Importers, distributors, publish history.

use pulp_model::{
    Timestamp, VersionNumber,
    history::{HistoryResult, PublishHistory, SyncHistory},
};
use pulp_store::{
    distributors::{Distributor, NewDistributor, PublishedAs},
    history::HistoryFilter,
};
use serde_json::{Map, Value, json};

use crate::{
    repositories::map,
    support::{Bed, contract, finish, tick},
};

contract!(
    a_repository_has_at_most_one_importer,
    an_importers_settings_change_by_delta,
    distributors_are_kept_by_repository_and_id,
    a_distributors_settings_are_set_as_a_whole,
    a_distributor_remembers_what_it_published,
    a_registry_id_that_another_repository_published_is_found,
    history_is_filtered_by_time_and_limited,
    a_second_entry_of_the_same_id_is_passed_over,
    a_sync_is_noted_in_the_history_and_at_the_importer,
);

pub(crate) fn new_distributor(id: &str) -> NewDistributor {
    NewDistributor {
        id: id.parse().unwrap(),
        distributor_type_id: "docker_distributor_web".to_owned(),
        config: map(json!({"protected": false})),
        auto_publish: false,
    }
}

pub(crate) fn entry(id: &str, repo: &str, distributor: &str, started: i64) -> PublishHistory {
    PublishHistory {
        id: id.to_owned(),
        repo_id: repo.parse().unwrap(),
        distributor_id: distributor.parse().unwrap(),
        distributor_type_id: "docker_distributor_web".to_owned(),
        started: Timestamp(started),
        completed: Timestamp(started + 1),
        result: HistoryResult::Success,
        summary: json!({"publish_images": "FINISHED"}),
        details: json!([]),
        error_message: None,
        exception: None,
        traceback: None,
    }
}

async fn a_repository_has_at_most_one_importer(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    assert!(bed.importer(&repo).await.unwrap().is_none());
    for (type_id, config) in [("first", json!({"a": 1})), ("second", json!({"b": 2}))] {
        let mut tx = bed.begin().await.unwrap();
        tx.put_importer(&repo, type_id, &map(config.clone()))
            .await
            .unwrap();
        tx.commit().await.unwrap();
        let found = bed.importer(&repo).await.unwrap().unwrap();
        assert_eq!(found.importer_type_id, type_id);
        assert_eq!(Value::Object(found.config.clone()), config);
        assert_eq!(found.last_sync, None);
        assert_eq!(bed.importers().await.unwrap(), [found]);
    }
    let mut tx = bed.fenced().await;
    assert!(tx.delete_importer(&repo).await.unwrap());
    assert!(!tx.delete_importer(&repo).await.unwrap());
    finish(tx).await;
    assert!(bed.importers().await.unwrap().is_empty());
}

async fn an_importers_settings_change_by_delta(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    let mut tx = bed.begin().await.unwrap();
    tx.put_importer(&repo, "t", &map(json!({"a": 1, "b": 2})))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let before = bed.importer(&repo).await.unwrap().unwrap();
    tick(bed).await;
    let mut tx = bed.fenced().await;
    let delta = map(json!({"a": null, "c": [3]}));
    assert!(tx.update_importer(&repo, &delta).await.unwrap());
    assert!(
        !tx.update_importer(&"absent".parse().unwrap(), &delta)
            .await
            .unwrap()
    );
    finish(tx).await;
    let after = bed.importer(&repo).await.unwrap().unwrap();
    assert_eq!(Value::Object(after.config), json!({"b": 2, "c": [3]}));
    assert!(after.last_updated > before.last_updated);
}

async fn put(bed: &Bed, repo: &pulp_model::RepositoryId, new: &NewDistributor) -> Distributor {
    let mut tx = bed.begin().await.unwrap();
    tx.put_distributor(repo, new).await.unwrap();
    tx.commit().await.unwrap();
    bed.distributor(repo, &new.id).await.unwrap().unwrap()
}

async fn distributors_are_kept_by_repository_and_id(bed: &Bed) {
    let (a, b) = (bed.create_repository("a").await, bed.create_repository("b").await);
    let mut all = Vec::new();
    for (repo, id) in [(&a, "x"), (&a, "y"), (&b, "x")] {
        all.push(put(bed, repo, &new_distributor(id)).await);
    }
    assert_eq!(all[0].config, new_distributor("x").config);
    assert!(!all[0].auto_publish);
    assert_eq!(
        (all[0].last_publish, &all[0].published_fingerprint),
        (None, &None)
    );
    assert_eq!(bed.distributors_of(&a).await.unwrap(), all[..2]);
    assert_eq!(bed.distributors().await.unwrap(), all);
    let mut tx = bed.fenced().await;
    assert!(tx.delete_distributor(&a, &all[0].id).await.unwrap());
    assert!(!tx.delete_distributor(&a, &all[0].id).await.unwrap());
    finish(tx).await;
    assert_eq!(bed.distributors().await.unwrap(), all[1..]);
}

async fn a_distributors_settings_are_set_as_a_whole(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    let new = new_distributor("d");
    put(bed, &repo, &new).await;
    let set = async |config: Value, auto_publish| {
        let mut tx = bed.fenced().await;
        let done = tx
            .update_distributor(&repo, &new.id, &map(config), auto_publish)
            .await
            .unwrap();
        finish(tx).await;
        assert!(done);
        bed.distributor(&repo, &new.id).await.unwrap().unwrap()
    };
    let after = set(json!({"a": 1}), Some(true)).await;
    assert_eq!(Value::Object(after.config), json!({"a": 1}));
    assert!(after.auto_publish);
    let after = set(json!({}), None).await;
    assert_eq!(after.config, Map::new());
    assert!(after.auto_publish, "stays as it was");
    let mut tx = bed.fenced().await;
    let absent = "absent".parse().unwrap();
    assert!(
        !tx.update_distributor(&repo, &absent, &Map::new(), None)
            .await
            .unwrap()
    );
    finish(tx).await;
}

async fn a_distributor_remembers_what_it_published(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    let new = new_distributor("d");
    put(bed, &repo, &new).await;
    let mut tx = bed.fenced().await;
    let published = PublishedAs {
        fingerprint: "fingerprint",
        registry_id: None,
        version: VersionNumber(7),
        id: Some("publication"),
    };
    tx.set_published(&repo, &new.id, &published).await.unwrap();
    finish(tx).await;
    let after = bed.distributor(&repo, &new.id).await.unwrap().unwrap();
    assert!(after.last_publish.is_some());
    assert_eq!(after.published_fingerprint.as_deref(), Some("fingerprint"));
    assert_eq!(after.published_version, Some(VersionNumber(7)));
    assert_eq!(after.published_id.as_deref(), Some("publication"));
    // Made anew under the same id, it has published nothing.
    let anew = put(bed, &repo, &new).await;
    assert_eq!((anew.last_publish, anew.published_fingerprint), (None, None));
    assert_eq!((anew.published_version, anew.published_id), (None, None));
}

async fn a_registry_id_that_another_repository_published_is_found(bed: &Bed) {
    let (a, b) = (bed.create_repository("a").await, bed.create_repository("b").await);
    let registry_id = "demo/busybox".parse().unwrap();
    let new = new_distributor("d");
    put(bed, &a, &new).await;
    put(bed, &b, &new).await;
    assert_eq!(bed.registry_id_holder(&registry_id, &b).await.unwrap(), None);
    let mut tx = bed.fenced().await;
    let published = PublishedAs {
        fingerprint: "f",
        registry_id: Some(&registry_id),
        version: VersionNumber(0),
        id: None,
    };
    tx.set_published(&a, &new.id, &published).await.unwrap();
    finish(tx).await;
    assert_eq!(
        bed.registry_id_holder(&registry_id, &b).await.unwrap().as_deref(),
        Some("a")
    );
    assert_eq!(bed.registry_id_holder(&registry_id, &a).await.unwrap(), None);
    let mut tx = bed.fenced().await;
    tx.delete_distributor(&a, &new.id).await.unwrap();
    finish(tx).await;
    assert_eq!(bed.registry_id_holder(&registry_id, &b).await.unwrap(), None);
}

async fn history_is_filtered_by_time_and_limited(bed: &Bed) {
    let mut entries: Vec<_> = (1..=5)
        .map(|n| entry(&format!("e{n}"), "r", "d", n * 10))
        .collect();
    entries[1].result = HistoryResult::Canceled;
    entries[2].result = HistoryResult::Error;
    entries[2].error_message = Some("ü'".to_owned());
    let mut tx = bed.fenced().await;
    for entry in &entries {
        tx.add_publish_history(entry).await.unwrap();
    }
    tx.add_publish_history(&entry("other", "r", "other", 30))
        .await
        .unwrap();
    tx.add_publish_history(&entry("other repo", "s", "d", 30))
        .await
        .unwrap();
    finish(tx).await;
    let (repo, distributor) = ("r".parse().unwrap(), "d".parse().unwrap());
    let list = async |filter: HistoryFilter| -> Vec<i64> {
        let found = bed.publish_history(&repo, &distributor, &filter).await.unwrap();
        for entry in &found {
            assert!(entries.contains(entry), "{entry:?}");
        }
        found.iter().map(|e| e.started.micros()).collect()
    };
    assert_eq!(list(HistoryFilter::default()).await, [50, 40, 30, 20, 10]);
    let ascending = HistoryFilter {
        ascending: true,
        ..HistoryFilter::default()
    };
    assert_eq!(list(ascending.clone()).await, [10, 20, 30, 40, 50]);
    let limited = HistoryFilter {
        limit: Some(2),
        ..HistoryFilter::default()
    };
    assert_eq!(list(limited).await, [50, 40]);
    let between = HistoryFilter {
        start: Some(Timestamp(20)),
        end: Some(Timestamp(40)),
        ..ascending
    };
    assert_eq!(list(between).await, [20, 30, 40], "both ends belong to it");
}

async fn a_second_entry_of_the_same_id_is_passed_over(bed: &Bed) {
    let mut tx = bed.fenced().await;
    tx.add_publish_history(&entry("e", "r", "d", 1)).await.unwrap();
    tx.add_publish_history(&entry("e", "r", "d", 2)).await.unwrap();
    finish(tx).await;
    assert_eq!(bed.number("SELECT started FROM publish_history").await, 1);
}

async fn a_sync_is_noted_in_the_history_and_at_the_importer(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    let mut tx = bed.begin().await.unwrap();
    tx.put_importer(&repo, "t", &Map::new()).await.unwrap();
    tx.commit().await.unwrap();
    let entry = |id: &str, started: i64| SyncHistory {
        id: id.to_owned(),
        repo_id: repo.clone(),
        importer_id: "t".to_owned(),
        importer_type_id: "t".to_owned(),
        started: Timestamp(started),
        completed: Timestamp(started + 1),
        result: HistoryResult::Success,
        added_count: 3,
        updated_count: 2,
        removed_count: 1,
        summary: json!({"sync_step_metadata": "FINISHED"}),
        details: json!([]),
        report: json!({"requests": 7}),
        error_message: None,
        exception: None,
        traceback: None,
    };
    let mut tx = bed.fenced().await;
    tx.add_sync_history(&entry("a", 10)).await.unwrap();
    tx.add_sync_history(&entry("b", 20)).await.unwrap();
    tx.add_sync_history(&entry("b", 30)).await.unwrap();
    tx.set_synced(&repo).await.unwrap();
    finish(tx).await;
    let all = bed.sync_history(&repo, &HistoryFilter::default()).await.unwrap();
    assert_eq!(all, [entry("b", 20), entry("a", 10)]);
    let filter = HistoryFilter {
        end: Some(Timestamp(15)),
        ..HistoryFilter::default()
    };
    assert_eq!(bed.sync_history(&repo, &filter).await.unwrap(), [entry("a", 10)]);
    assert!(bed.importer(&repo).await.unwrap().unwrap().last_sync.is_some());
}
