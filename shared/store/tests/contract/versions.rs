//! Content of repositories, by version.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use futures::future::join_all;
use pulp_model::{
    MediaType, RepositoryId, VersionNumber,
    unit::{
        BlobUnit, ImageUnit, ListMember, MadeFrom, ManifestKind, ManifestListUnit, Selection, TagUnit, Unit,
        UnitType, V1Tag,
    },
};
use pulp_store::{Store, units::unit_id};
use sqlx::AnyConnection;
use tokio::sync::Barrier;

use crate::support::{
    Bed, PATIENCE, blob, contract, delete, digest, eventually, finish, manifest, tag, tick,
};

contract!(
    a_commit_adds_a_version_and_the_same_content_again_adds_none,
    a_commit_brings_in_what_is_new_and_keeps_what_was_there,
    a_commit_may_take_away_in_the_same_version,
    two_versions_differ_by_what_one_has_and_the_other_has_not,
    what_is_referred_to_in_the_newest_version_is_told,
    a_moved_tag_replaces_the_old_one_and_the_old_version_still_reads_as_it_was,
    a_tag_that_changes_its_kind_replaces_all_its_variants,
    a_tag_may_name_an_image_and_a_list_when_both_come_together,
    a_tag_that_moves_back_is_one_version_more,
    v1_tags_merge_and_are_kept_by_version,
    every_type_of_unit_reads_back_as_it_was,
    what_a_unit_is_made_of_is_kept_once,
    associations_are_filtered_by_type_and_in_order,
    a_unit_brought_in_again_is_updated_not_created,
    a_commit_that_is_not_finished_leaves_nothing,
    sizes_have_sixty_four_bits,
    two_thousand_units_are_one_commit,
    imports_that_share_layers_commit_at_once,
    a_unit_is_found_by_itself_and_with_the_repositories_that_hold_it,
);

async fn units_at(store: &Store, repo: &RepositoryId, number: i64) -> BTreeSet<String> {
    let units = store.units_of_version(repo, VersionNumber(number)).await.unwrap();
    units.iter().map(Unit::identity).collect()
}

fn identities(units: &[Unit]) -> BTreeSet<String> {
    units.iter().map(Unit::identity).collect()
}

async fn a_commit_adds_a_version_and_the_same_content_again_adds_none(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    let units = [blob("1"), manifest("m", &["1"]), blob("1")];
    assert_eq!(bed.commit_units(&repo, &units).await, (1, 2, 0));
    let first = bed.repository(&repo).await.unwrap().unwrap();
    assert_eq!(first.version.0, 1);
    assert!(first.last_unit_added.is_some());
    assert_eq!(first.last_unit_removed, None);

    assert_eq!(bed.commit_units(&repo, &units).await, (1, 0, 0));
    assert_eq!(bed.commit_units(&repo, &[]).await, (1, 0, 0));
    assert_eq!(bed.repository(&repo).await.unwrap().unwrap(), first);
    assert_eq!(bed.repository_versions(&repo).await.unwrap().len(), 2);
}

async fn a_commit_brings_in_what_is_new_and_keeps_what_was_there(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    bed.commit_units(&repo, &[blob("1")]).await;
    assert_eq!(
        bed.commit_units(&repo, &[blob("2"), blob("1"), blob("3")]).await,
        (2, 2, 0)
    );
    assert_eq!(units_at(bed, &repo, 0).await, BTreeSet::new());
    assert_eq!(units_at(bed, &repo, 1).await, identities(&[blob("1")]));
    assert_eq!(
        units_at(bed, &repo, 2).await,
        identities(&[blob("1"), blob("2"), blob("3")])
    );
    let versions = bed.repository_versions(&repo).await.unwrap();
    let told: Vec<_> = versions
        .iter()
        .map(|v| (v.number.0, v.added, v.removed))
        .collect();
    assert_eq!(told, [(0, 0, 0), (1, 1, 0), (2, 2, 0)]);
}

async fn a_commit_may_take_away_in_the_same_version(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    bed.commit_units(&repo, &[blob("1"), blob("2"), blob("3")]).await;
    let mut tx = bed.fenced().await;
    // What is both brought and taken away stays; what is not there can't go.
    let removed = [blob("1"), blob("3"), blob("4"), blob("9")];
    let change = tx.commit_change(&repo, &[blob("3"), blob("4")], &removed).await;
    let change = change.unwrap().unwrap();
    assert_eq!((change.number.0, change.added, change.removed), (2, 1, 1));
    finish(tx).await;
    assert_eq!(
        units_at(bed, &repo, 2).await,
        identities(&[blob("2"), blob("3"), blob("4")])
    );
    assert_eq!(
        units_at(bed, &repo, 1).await,
        identities(&[blob("1"), blob("2"), blob("3")])
    );
}

async fn two_versions_differ_by_what_one_has_and_the_other_has_not(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    let other = bed.create_repository("other").await;
    let change = async |added: &[&str], removed: &[&str]| {
        let blobs = |names: &[&str]| names.iter().map(|n| blob(n)).collect::<Vec<_>>();
        let mut tx = bed.fenced().await;
        let done = tx.commit_change(&repo, &blobs(added), &blobs(removed)).await;
        finish(tx).await;
        done.unwrap().unwrap().number.0
    };
    bed.commit_units(&other, &[blob("1"), blob("9")]).await;
    assert_eq!(change(&["1", "2"], &[]).await, 1);
    assert_eq!(change(&["3"], &["1"]).await, 2);
    assert_eq!(change(&["1", "4"], &["2"]).await, 3);
    assert_eq!(change(&["2"], &["4"]).await, 4);
    for earlier in 0..=4 {
        for later in earlier..=4 {
            let (before, after) = (
                units_at(bed, &repo, earlier).await,
                units_at(bed, &repo, later).await,
            );
            let found = bed
                .version_difference(&repo, VersionNumber(earlier), VersionNumber(later))
                .await
                .unwrap();
            let case = format!("{earlier} to {later}");
            assert_eq!(identities(&found.added), &after - &before, "{case}");
            assert_eq!(identities(&found.removed), &before - &after, "{case}");
        }
    }
}

async fn what_is_referred_to_in_the_newest_version_is_told(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    let other = bed.create_repository("other").await;
    let kept = manifest("kept", &["1"]);
    bed.commit_units(&other, &[manifest("elsewhere", &["3"])]).await;
    bed.commit_units(
        &repo,
        &[kept, manifest("gone", &["2"]), blob("1"), blob("2"), blob("3")],
    )
    .await;
    let mut tx = bed.fenced().await;
    tx.commit_change(&repo, &[], &[manifest("gone", &["2"])])
        .await
        .unwrap();
    finish(tx).await;
    for (units, referred_to) in [
        (vec![], false),
        (vec![blob("1")], true),
        (vec![blob("2"), blob("3")], false),
        (vec![blob("3"), blob("2"), blob("1")], true),
    ] {
        let found = bed.any_is_referred_to(&repo, &units).await.unwrap();
        assert_eq!(found, referred_to, "{units:?}");
    }
}

async fn a_moved_tag_replaces_the_old_one_and_the_old_version_still_reads_as_it_was(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    let old = tag(&repo, "latest", "old", ManifestKind::Image);
    let new = tag(&repo, "latest", "new", ManifestKind::Image);
    let other = tag(&repo, "1.0", "old", ManifestKind::Image);
    bed.commit_units(&repo, &[old.clone(), other.clone()]).await;
    assert_eq!(
        bed.commit_units(&repo, std::slice::from_ref(&new)).await,
        (2, 1, 1)
    );
    assert_eq!(units_at(bed, &repo, 1).await, identities(&[old, other.clone()]));
    assert_eq!(units_at(bed, &repo, 2).await, identities(&[new, other]));
    let found = bed.repository(&repo).await.unwrap().unwrap();
    assert_eq!(found.content_unit_counts["docker_tag"], 2);
    assert!(found.last_unit_removed.is_some());
}

async fn a_tag_that_changes_its_kind_replaces_all_its_variants(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    let both = [
        tag(&repo, "t", "image", ManifestKind::Image),
        tag(&repo, "t", "list", ManifestKind::List),
    ];
    bed.commit_units(&repo, &both).await;
    let schema1 = Unit::Tag(TagUnit {
        name: "t".parse().unwrap(),
        repo_id: repo.clone(),
        manifest_digest: digest("image"),
        schema_version: 1,
        manifest_type: ManifestKind::Image,
    });
    assert_eq!(
        bed.commit_units(&repo, std::slice::from_ref(&schema1)).await,
        (2, 1, 2)
    );
    assert_eq!(units_at(bed, &repo, 2).await, identities(&[schema1]));
    assert_eq!(units_at(bed, &repo, 1).await, identities(&both));
}

async fn a_tag_may_name_an_image_and_a_list_when_both_come_together(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    let both = [
        tag(&repo, "t", "image", ManifestKind::Image),
        tag(&repo, "t", "list", ManifestKind::List),
    ];
    assert_eq!(bed.commit_units(&repo, &both).await, (1, 2, 0));
    // One of the two again: it is there already, the other one goes.
    assert_eq!(bed.commit_units(&repo, &both[1..]).await, (2, 0, 1));
    assert_eq!(units_at(bed, &repo, 2).await, identities(&both[1..]));
}

async fn a_tag_that_moves_back_is_one_version_more(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    let (a, b) = (
        tag(&repo, "t", "a", ManifestKind::Image),
        tag(&repo, "t", "b", ManifestKind::Image),
    );
    for (n, unit) in [&a, &b, &a, &b].into_iter().enumerate() {
        bed.commit_units(&repo, std::slice::from_ref(unit)).await;
        assert_eq!(bed.associations(&repo, &[]).await.unwrap()[0].unit, *unit);
        assert_eq!(bed.repository_versions(&repo).await.unwrap().len(), n + 2);
    }
    assert_eq!(
        units_at(bed, &repo, 1).await,
        identities(std::slice::from_ref(&a))
    );
    assert_eq!(
        units_at(bed, &repo, 3).await,
        identities(std::slice::from_ref(&a))
    );
    assert_eq!(units_at(bed, &repo, 4).await, identities(&[b]));
}

fn v1(tag: &str, image: char) -> V1Tag {
    V1Tag {
        tag: tag.parse().unwrap(),
        image_id: image.to_string().repeat(64).parse().unwrap(),
    }
}

async fn v1_tags_merge_and_are_kept_by_version(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    let commit = async |tags: &[V1Tag]| {
        let mut tx = bed.fenced().await;
        assert!(tx.merge_v1_tags(&repo, tags).await.unwrap());
        let change = tx.commit_version(&repo, &[]).await.unwrap().unwrap();
        finish(tx).await;
        change.number.0
    };
    assert_eq!(commit(&[v1("1", 'a'), v1("latest", 'a')]).await, 1);
    assert_eq!(commit(&[v1("latest", 'b')]).await, 2);
    assert_eq!(commit(&[v1("latest", 'b')]).await, 2, "nothing is new");
    let at = async |n| bed.v1_tags_of_version(&repo, VersionNumber(n)).await.unwrap();
    assert_eq!(at(0).await, []);
    assert_eq!(at(1).await, [v1("1", 'a'), v1("latest", 'a')]);
    assert_eq!(at(2).await, [v1("1", 'a'), v1("latest", 'b')]);
    assert_eq!(at(3).await, []);
    assert_eq!(
        bed.repository(&repo).await.unwrap().unwrap().v1_tags(),
        at(2).await
    );
    let mut tx = bed.fenced().await;
    let gone = BTreeSet::from(["latest".parse().unwrap(), "never-there".parse().unwrap()]);
    assert!(tx.change_v1_tags(&repo, &[v1("2", 'c')], &gone).await.unwrap());
    tx.commit_version(&repo, &[]).await.unwrap();
    finish(tx).await;
    assert_eq!(at(3).await, [v1("1", 'a'), v1("2", 'c')]);
}

fn one_of_each(repo: &RepositoryId) -> Vec<Unit> {
    let id = |c: char| c.to_string().repeat(64).parse().unwrap();
    let mut units = vec![
        Unit::Image(ImageUnit {
            image_id: id('a'),
            parent_id: Some(id('b')),
            size: Some(5),
            json_digest: digest("json"),
            ancestry_digest: digest("ancestry"),
            layer_digest: digest("layer"),
            layer_size: 9,
        }),
        manifest("m", &["l1", "l2", "l1"]),
        Unit::ManifestList(ManifestListUnit {
            digest: digest("list"),
            media_type: MediaType::OCI_INDEX,
            schema_version: 2,
            size: 3,
            manifests: vec![ListMember {
                digest: digest("m"),
                media_type: MediaType::OCI_MANIFEST,
                size: 500,
                os: Some("linux".to_owned()),
                arch: Some("arm".to_owned()),
                variant: Some("v7".to_owned()),
                attests: Some(digest("l")),
            }],
            amd64_digest: None,
            amd64_schema_version: None,
            subject: Some(digest("subject")),
            artifact_type: Some("application/x".to_owned()),
            annotations: [("k".to_owned(), "v 'ü'".to_owned())].into(),
            selection: Selection {
                absent: [digest("absent"), digest("m")].into(),
                made_from: Some(MadeFrom {
                    digest: digest("upstream's"),
                    platforms: "linux/arm".to_owned(),
                }),
            },
        }),
        blob("l1"),
        tag(repo, "latest", "list", ManifestKind::List),
    ];
    units.sort_by_key(|u| (u.unit_type().as_str(), u.identity()));
    units
}

async fn every_type_of_unit_reads_back_as_it_was(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    let units = one_of_each(&repo);
    bed.commit_units(&repo, &units).await;
    assert_eq!(
        bed.units_of_version(&repo, VersionNumber(1)).await.unwrap(),
        units
    );
    let counts = bed.repository(&repo).await.unwrap().unwrap().content_unit_counts;
    assert_eq!(counts.len(), 5);
    assert!(counts.values().all(|n| *n == 1));
}

async fn what_a_unit_is_made_of_is_kept_once(bed: &Bed) {
    let (a, b) = (bed.create_repository("a").await, bed.create_repository("b").await);
    bed.commit_units(&a, &one_of_each(&a)).await;
    let edges = "SELECT COUNT(*) FROM unit_edges WHERE role = ";
    let count = async |role: &str| bed.number(&format!("{edges}'{role}'")).await;
    // The manifest names a layer twice.
    for (role, n) in [
        ("parent", 1),
        ("config", 1),
        ("layer", 2),
        ("member", 1),
        ("subject", 1),
        ("manifest", 1),
    ] {
        assert_eq!(count(role).await, n, "{role}");
    }
    bed.commit_units(&b, &one_of_each(&a)).await;
    assert_eq!(bed.number("SELECT COUNT(*) FROM unit_edges").await, 7);
    assert_eq!(bed.number("SELECT COUNT(*) FROM units").await, 5);
}

async fn associations_are_filtered_by_type_and_in_order(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    bed.commit_units(&repo, &one_of_each(&repo)).await;
    let types = async |wanted: &[UnitType]| -> Vec<UnitType> {
        let found = bed.associations(&repo, wanted).await.unwrap();
        found.iter().map(|a| a.unit.unit_type()).collect()
    };
    assert_eq!(types(&[]).await, UnitType::ALL);
    assert_eq!(types(&[UnitType::DockerTag]).await, [UnitType::DockerTag]);
    assert_eq!(
        types(&[UnitType::DockerTag, UnitType::DockerBlob]).await,
        [UnitType::DockerBlob, UnitType::DockerTag]
    );
    for found in bed.associations(&repo, &[]).await.unwrap() {
        assert_eq!(found.repo_id, repo);
        assert_eq!(found.unit_id, unit_id(&found.unit));
    }
}

async fn a_unit_brought_in_again_is_updated_not_created(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    bed.commit_units(&repo, &[blob("1")]).await;
    let before = bed.associations(&repo, &[]).await.unwrap().remove(0);
    tick(bed).await;
    bed.commit_units(&repo, &[blob("1")]).await;
    let after = bed.associations(&repo, &[]).await.unwrap().remove(0);
    assert_eq!(after.created, before.created);
    assert!(after.updated > before.updated);
}

async fn a_commit_that_is_not_finished_leaves_nothing(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    let mut tx = bed.fenced().await;
    tx.commit_version(&repo, &[blob("1")]).await.unwrap().unwrap();
    drop(tx);
    assert_eq!(bed.repository(&repo).await.unwrap().unwrap().version.0, 0);
    assert_eq!(bed.commit_units(&repo, &[blob("1")]).await, (1, 1, 0));
}

async fn sizes_have_sixty_four_bits(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    let large = Unit::Blob(BlobUnit {
        digest: digest("large"),
        size: u64::MAX,
    });
    bed.commit_units(&repo, std::slice::from_ref(&large)).await;
    assert_eq!(bed.associations(&repo, &[]).await.unwrap()[0].unit, large);
}

async fn two_thousand_units_are_one_commit(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    let mut units: Vec<_> = (0..1200).map(|n| blob(&n.to_string())).collect();
    for n in 0..400 {
        let layers: Vec<_> = (0..10).map(|l| (n * 3 + l).to_string()).collect();
        let layers: Vec<_> = layers.iter().map(String::as_str).collect();
        units.push(manifest(&format!("m{n}"), &layers));
        units.push(tag(
            &repo,
            &format!("t{n}"),
            &format!("m{n}"),
            ManifestKind::Image,
        ));
    }
    let mut tx = bed.fenced().await;
    let begun = Instant::now();
    let change = tx.commit_version(&repo, &units).await.unwrap().unwrap();
    finish(tx).await;
    let took = begun.elapsed();
    println!("{:?}: 2,000 units with 4,800 edges in {took:?}", bed.engine());
    assert_eq!((change.added, change.removed), (2000, 0));
    assert!(took.as_secs() < 10, "{took:?}");

    // All tags move: as many leave as come.
    let moved: Vec<_> = (0..400)
        .map(|n| {
            tag(
                &repo,
                &format!("t{n}"),
                &format!("m{}", n + 1),
                ManifestKind::Image,
            )
        })
        .collect();
    assert_eq!(bed.commit_units(&repo, &moved).await, (2, 400, 400));
    assert_eq!(bed.commit_units(&repo, &units[..1600]).await.0, 3);
    assert_eq!(units_at(bed, &repo, 1).await, identities(&units));
}

/// Units come to the store in any order; two transactions that wait for each other's rows crosswise would be
/// ended by the database.
async fn imports_that_share_layers_commit_at_once(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(crate::support::LONG).await;
    let layers: Vec<_> = (0..300).map(|n| blob(&format!("layer {n}"))).collect();
    let mut imports = Vec::new();
    for n in 0..6 {
        let repo = bed.create_repository(&format!("r{n}")).await;
        let task = bed.running(epoch, &worker, &delete(repo.as_str())).await;
        let mut units = layers.clone();
        if n % 2 == 1 {
            units.reverse();
        }
        units.rotate_left(n * 40);
        imports.push((repo, task, units));
    }
    let start = Arc::new(Barrier::new(imports.len()));
    let runs = imports.into_iter().map(|(repo, task, units)| {
        let (store, start) = (bed.store.clone(), Arc::clone(&start));
        tokio::spawn(async move {
            start.wait().await;
            let mut tx = store.begin_fenced(&task.lease).await.unwrap();
            tx.commit_version(&repo, &units).await.unwrap().unwrap();
            finish(tx).await;
            repo
        })
    });
    for repo in join_all(runs).await {
        let repo = repo.unwrap();
        assert_eq!(bed.associations(&repo, &[]).await.unwrap().len(), 300, "{repo}");
    }
}

/// Another import holds the unit of the lowest id and goes on to that of the highest. Ours, given the highest
/// first, must not have taken that one while it waits for the lowest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn units_are_taken_in_the_order_of_their_ids_whatever_order_they_come_in() {
    let bed = Bed::postgres("order").await;
    let repo = bed.create_repository("r").await;
    let mut units: Vec<_> = (0..10).map(|n| blob(&n.to_string())).collect();
    units.sort_by_key(unit_id);
    let take = async |other: &mut AnyConnection, unit: &Unit| {
        sqlx::query("INSERT INTO units (unit_id, unit_type_id, identity, fields, created) VALUES ($1, 'docker_blob', $2, '{}', 0)")
            .bind(unit_id(unit))
            .bind(unit.identity())
            .execute(other)
            .await
            .unwrap();
    };
    let raw = bed.raw().await;
    let mut other = raw.begin().await.unwrap();
    take(&mut other, &units[0]).await;
    let mut ours = bed.fenced().await;
    let reversed: Vec<_> = units.iter().rev().cloned().collect();
    let import = tokio::spawn(async move {
        let change = ours.commit_version(&repo, &reversed).await;
        finish(ours).await;
        change
    });
    eventually("our import waits", || async {
        bed.number("SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
            .await
            == 1
    })
    .await;
    take(&mut other, &units[9]).await;
    other.commit().await.unwrap();
    let change = tokio::time::timeout(PATIENCE, import)
        .await
        .unwrap()
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!((change.number.0, change.added), (1, 10));
}

async fn a_unit_is_found_by_itself_and_with_the_repositories_that_hold_it(bed: &Bed) {
    let (a, b) = (bed.create_repository("a").await, bed.create_repository("b").await);
    let old = tag(&a, "t", "old", ManifestKind::Image);
    let new = tag(&a, "t", "new", ManifestKind::Image);
    bed.commit_units(&a, &[blob("1"), old.clone()]).await;
    tick(bed).await;
    bed.commit_units(&b, &[blob("2"), blob("1")]).await;
    bed.commit_units(&a, std::slice::from_ref(&new)).await;

    let blobs = bed.units_of_type(UnitType::DockerBlob).await.unwrap();
    let found: Vec<_> = blobs.iter().map(|u| u.unit.clone()).collect();
    assert_eq!(found, [blob("1"), blob("2")], "oldest first");
    assert!(bed.units_of_type(UnitType::DockerImage).await.unwrap().is_empty());
    // A tag that moved away is in no repository any more, but in its versions.
    assert_eq!(bed.units_of_type(UnitType::DockerTag).await.unwrap().len(), 2);

    let id = unit_id(&blob("1"));
    let one = bed.unit_by_id(UnitType::DockerBlob, &id).await.unwrap();
    assert_eq!(one.as_ref(), Some(&blobs[0]));
    assert_eq!(bed.unit_by_id(UnitType::DockerTag, &id).await.unwrap(), None);
    assert_eq!(bed.unit_by_id(UnitType::DockerBlob, "no id").await.unwrap(), None);

    let mut expected = vec![(id.clone(), a.clone()), (id, b.clone()), (unit_id(&blob("2")), b)];
    expected.sort();
    assert_eq!(bed.memberships(UnitType::DockerBlob).await.unwrap(), expected);
    let tags = bed.memberships(UnitType::DockerTag).await.unwrap();
    assert_eq!(tags, [(unit_id(&new), a)]);
}
