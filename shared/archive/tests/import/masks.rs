//! `mask_id`: the masked image and its ancestors stay out.

use pulp_archive::{Imported, UploadKind};
use pulp_model::unit::ImageId;
use serde_json::json;

use crate::support::*;

fn masked(archive: &[u8], mask: &ImageId) -> (Imported, Store) {
    let store = Store::default();
    let mut options = options(UploadKind::DockerImage);
    options.mask_id = Some(mask.clone());
    let imported = run_with(archive, &options, &store).unwrap();
    check(&imported, &store);
    (imported, store)
}

fn ids(imported: &Imported) -> Vec<ImageId> {
    let mut ids: Vec<_> = images(imported)
        .iter()
        .map(|image| image.image_id.clone())
        .collect();
    ids.sort();
    ids
}

/// Lines 1→2→3→5 and 4→2, child first, as in the plugin's own tests.
fn branches() -> Vec<u8> {
    [(5, None), (3, Some(5)), (2, Some(3)), (1, Some(2)), (4, Some(2))]
        .into_iter()
        .fold(Tar::new(), |tar, (n, parent)| {
            v1(tar, n, parent, &layer(&n.to_string()))
        })
        .json("repositories", &json!({"x": {"top": id(1), "base": id(3)}}))
        .done()
}

#[test]
fn the_masked_image_and_its_ancestors_are_left_out_and_still_listed_as_ancestry() {
    let (imported, store) = masked(&branches(), &image_id(3));
    assert_eq!(ids(&imported), [image_id(1), image_id(2), image_id(4)]);
    let top = images(&imported)
        .into_iter()
        .find(|i| i.image_id == image_id(1))
        .unwrap();
    assert_eq!(
        store.json(&top.ancestry_digest),
        json!([id(1), id(2), id(3), id(5)])
    );
    assert!(
        manifests(&imported).is_empty(),
        "a manifest has all its layers or is none"
    );
    let tags: Vec<_> = imported.v1_tags.iter().map(|tag| tag.tag.as_str()).collect();
    assert_eq!(tags, ["top"]);
    assert!(
        imported
            .notices
            .iter()
            .any(|n| n.contains("tag base names a masked image"))
    );
}

#[test]
fn a_masked_leaf_takes_its_whole_branch() {
    let (imported, _) = masked(&branches(), &image_id(1));
    assert_eq!(ids(&imported), [image_id(4)]);
}

#[test]
fn an_unknown_mask_masks_nothing_and_is_told() {
    let (imported, _) = masked(&branches(), &image_id(9));
    assert_eq!(ids(&imported).len(), 5);
    assert!(imported.notices[0].contains("nothing is masked"));
    assert!(!manifests(&imported).is_empty());
}

#[test]
fn a_mask_reaches_images_made_from_a_config() {
    let archive = docker(&[&layer("a"), &layer("b"), &layer("c")], &["x:latest"]).done();
    let (all, _) = run(&archive);
    let line: Vec<_> = images(&all).iter().map(|i| i.image_id.clone()).collect();
    let (imported, _) = masked(&archive, &line[1]);
    assert_eq!(ids(&imported), [line[2].clone()]);
    assert!(manifests(&imported).is_empty());
    assert_eq!(imported.v1_tags.len(), 1);
    let (none, _) = masked(&archive, &line[2]);
    assert!(none.units.is_empty());
}
