//! Archives from elsewhere, where they lie beside the checkout (`PULP_SHARED`, or `../shared`).

use std::path::PathBuf;

use pulp_archive::{NoProgress, UploadKind, import};
use pulp_model::Digest;

use crate::support::*;

fn fixture(name: &str) -> Option<PathBuf> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let shared = std::env::var_os("PULP_SHARED").map_or_else(beside, PathBuf::from);
    let path = shared.join("fixtures").join(name);
    if path.exists() {
        Some(path)
    } else {
        println!("{} is absent; nothing tested", path.display());
        None
    }
}

#[test]
fn the_documentations_busybox_gives_four_images_and_no_manifest() {
    let Some(path) = fixture("busyboxlight.tar") else {
        return;
    };
    let store = Store::default();
    let imported = import(&path, &options(UploadKind::DockerImage), &store, &NoProgress).unwrap();
    check(&imported, &store);
    let line = ["511136ea3c5a", "bf747efa0e2f", "48e5f45168b9", "769b9341d937"];
    let images = images(&imported);
    assert_eq!(images.len(), 4);
    for (image, id) in images.iter().zip(line) {
        assert!(image.image_id.as_str().starts_with(id));
    }
    assert_eq!(
        images.iter().map(|i| i.size).collect::<Vec<_>>(),
        [None, Some(0), Some(2_489_301), Some(0)]
    );
    assert_eq!(imported.v1_tags.len(), 1);
    assert_eq!(imported.v1_tags[0].tag.as_str(), "latest");
    assert_eq!(imported.v1_tags[0].image_id, images[3].image_id);
    assert!(manifests(&imported).is_empty());
    assert!(
        imported.notices.iter().any(|n| n.contains("is not a tar")),
        "{:?}",
        imported.notices
    );
}

#[test]
fn skopeos_dir_of_before_version_1_1_gives_its_manifest() {
    let Some(path) = fixture("skopeo-dir.tar") else {
        return;
    };
    let store = Store::default();
    let imported = import(&path, &options(UploadKind::DockerManifest), &store, &NoProgress).unwrap();
    check(&imported, &store);
    let manifest = manifests(&imported)[0];
    let config = "sha256:efe10ee6727fe52d2db2eb5045518fe98d8e31fdad1cbdd5e1f737018c349ebb";
    assert_eq!(
        manifest.config_layer.as_ref().map(Digest::to_string).as_deref(),
        Some(config)
    );
    assert_eq!(imported.units.len(), 3);
}
