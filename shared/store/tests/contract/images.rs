//! Images of version 1 of the registry API.

use std::collections::BTreeSet;

use pulp_model::unit::{ImageId, ImageUnit, Unit};

use crate::support::{Bed, contract, digest, finish};

contract!(
    images_are_found_by_their_ids_in_whatever_repository,
    images_of_a_sync_are_remembered_until_its_end,
);

fn ids(digits: &str) -> BTreeSet<ImageId> {
    let id = |d: char| d.to_string().repeat(64).parse().unwrap();
    digits.chars().map(id).collect()
}

fn image(digit: &str) -> ImageUnit {
    ImageUnit {
        image_id: digit.repeat(64).parse().unwrap(),
        parent_id: None,
        size: Some(5),
        json_digest: digest("json"),
        ancestry_digest: digest("ancestry"),
        layer_digest: digest("layer"),
        layer_size: 9,
    }
}

async fn images_are_found_by_their_ids_in_whatever_repository(bed: &Bed) {
    let repo = bed.create_repository("r").await;
    let mut tx = bed.fenced().await;
    tx.commit_version(&repo, &[Unit::Image(image("a"))])
        .await
        .unwrap();
    finish(tx).await;
    assert_eq!(bed.images(&ids("ab")).await.unwrap(), [image("a")]);
    assert!(bed.images(&ids("")).await.unwrap().is_empty());
}

async fn images_of_a_sync_are_remembered_until_its_end(bed: &Bed) {
    let remembered = async |upstream: &str, digits: &str| {
        let found = bed.remembered_images(upstream, &ids(digits)).await;
        found.unwrap()
    };
    bed.remember_image("u", &image("b")).await.unwrap();
    let newer = ImageUnit {
        layer_size: 10,
        ..image("b")
    };
    bed.remember_image("u", &newer).await.unwrap();
    assert_eq!(remembered("u", "ab").await, std::slice::from_ref(&newer));
    assert!(remembered("u", "a").await.is_empty());
    assert!(remembered("another", "b").await.is_empty());
    assert!(
        bed.images(&ids("b")).await.unwrap().is_empty(),
        "it is in no repository"
    );

    bed.create_repository("r").await;
    let mut tx = bed.fenced().await;
    tx.forget_images("u").await.unwrap();
    finish(tx).await;
    assert!(remembered("u", "b").await.is_empty());

    // Of a sync that is not tried again.
    bed.remember_image("old", &newer).await.unwrap();
    bed.execute("UPDATE v1_downloads SET at = at - 700000000000")
        .await;
    bed.remember_image("u", &newer).await.unwrap();
    assert!(remembered("old", "b").await.is_empty());
}
