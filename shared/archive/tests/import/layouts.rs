//! What each layout gives.

use pulp_archive::UploadKind;
use pulp_model::{
    Digest, MediaType,
    unit::{ManifestKind, Unit},
};
use serde_json::json;

use crate::support::*;

#[test]
fn a_docker_archive_gives_a_schema_2_manifest_with_its_config_verbatim() {
    let (base, top) = (layer("base"), layer("top"));
    let config = config(&[&base, &top]);
    let (imported, store) = run(&docker(&[&base, &top], &["busybox:latest", "busybox:1.35"]).done());
    let [manifest] = manifests(&imported)[..] else {
        panic!("{imported:?}")
    };
    assert_eq!(manifest.media_type, MediaType::DOCKER_MANIFEST);
    assert_eq!(store.bytes(manifest.config_layer.as_ref().unwrap()), config);
    let layers: Vec<_> = manifest
        .fs_layers
        .iter()
        .map(|l| store.unzipped(&l.blob_sum))
        .collect();
    assert_eq!(layers, [base, top]);
    assert!(
        manifest
            .fs_layers
            .iter()
            .all(|l| l.layer_type == Some(MediaType::DOCKER_LAYER_GZIP))
    );
    let both = ["1.35", "latest"].map(|tag| (tag.to_owned(), manifest.digest.clone(), ManifestKind::Image));
    assert_eq!(tags(&imported), both);
    assert!(imported.notices.is_empty(), "{:?}", imported.notices);
}

#[test]
fn v1_images_are_made_for_an_archive_that_has_none() {
    let (base, top) = (layer("base"), layer("top"));
    let (imported, store) = run(&docker(&[&base, &top], &["busybox:latest"]).done());
    let [first, second] = images(&imported)[..] else {
        panic!("{imported:?}")
    };
    assert_eq!(second.parent_id.as_ref(), Some(&first.image_id));
    assert_eq!(imported.v1_tags[0].image_id, second.image_id);
    assert_eq!(store.unzipped(&first.layer_digest), base);
    assert_eq!(
        store.json(&second.json_digest)["config"],
        json!({"Cmd": ["sh"], "Env": ["PATH=/bin"]})
    );
    assert_eq!(store.json(&second.json_digest)["created"], "2024-01-02T03:04:05Z");
    assert_eq!(store.json(&first.json_digest)["created"], "1970-01-01T00:00:00Z");
    assert_eq!(imported.primary, Some(Unit::Image(second.clone())));
}

#[test]
fn the_same_archive_gives_the_same_units_for_any_number_of_threads() {
    let big: Vec<u8> = (0..3_000_000_u32)
        .map(|n| (n.wrapping_mul(n) >> 11) as u8 % 23)
        .collect();
    let big = Tar::new().file("big", big).done();
    let archive = docker(&[&layer("base"), &big], &["busybox:latest"]).done();
    let (first, _) = run(&archive);
    for threads in [1, 3, 4] {
        let mut options = options(UploadKind::DockerImage);
        options.threads = threads;
        assert_eq!(run_with(&archive, &options, &Store::default()).unwrap(), first);
    }
    assert_eq!(run(&gzip(&archive)).0, first, "compressed as a whole");
    let halves = archive.split_at(archive.len() / 2);
    assert_eq!(
        run(&[gzip(halves.0), gzip(halves.1)].concat()).0,
        first,
        "of several members"
    );
    assert_eq!(
        run(&zstd::encode_all(&archive[..], 3).unwrap()).0,
        first,
        "by zstd"
    );
}

#[test]
fn the_archives_own_v1_images_are_kept_beside_its_manifest() {
    let layers = [layer("base"), layer("top")];
    let config = config(&[&layers[0], &layers[1]]);
    let tar = v1(v1(Tar::new(), 1, None, &layers[0]), 2, Some(1), &layers[1])
        .file("c.json", &config)
        .json("repositories", &json!({"busybox": {"latest": id(2)}}))
        .json(
            "manifest.json",
            &json!([{"Config": "c.json", "RepoTags": ["busybox:latest"],
            "Layers": [format!("{}/layer.tar", id(1)), format!("{}/layer.tar", id(2))]}]),
        );
    let (imported, store) = run(&tar.done());
    let ids: Vec<_> = images(&imported).iter().map(|i| i.image_id.clone()).collect();
    assert_eq!(ids, [image_id(1), image_id(2)]);
    assert_eq!(images(&imported)[1].size, Some(7));
    assert_eq!(imported.v1_tags[0].image_id, image_id(2));
    let [manifest] = manifests(&imported)[..] else {
        panic!("{imported:?}")
    };
    assert_eq!(
        manifest.fs_layers[0].blob_sum,
        images(&imported)[0].layer_digest,
        "one blob for both faces"
    );
    let layer = manifest.fs_layers[1].blob_sum.to_string();
    assert_eq!(
        store
            .commits
            .lock()
            .unwrap()
            .iter()
            .filter(|d| **d == layer)
            .count(),
        1,
        "compressed once"
    );
}

#[test]
fn skopeos_links_to_layers_are_followed_and_a_linked_layer_is_compressed_once() {
    let base = layer("base");
    let config = config(&[&base, &base, &base]);
    let hex = Digest::sha256(&base).hex().to_owned();
    let tar = Tar::new()
        .file(&format!("./{hex}.tar"), &base)
        .symlink("./one/layer.tar", &format!("../{hex}.tar"))
        .hardlink("two.tar", "one/layer.tar")
        .file("again.tar", &base)
        .file("c.json", &config)
        .json(
            "./manifest.json",
            &json!([{"Config": "c.json", "RepoTags": null,
            "Layers": ["one/layer.tar", "./two.tar", "again.tar"]}]),
        );
    let (imported, store) = run(&tar.done());
    let [manifest] = manifests(&imported)[..] else {
        panic!("{imported:?}")
    };
    assert_eq!(manifest.fs_layers.len(), 3);
    let layer = manifest.fs_layers[0].blob_sum.to_string();
    assert_eq!(
        store
            .commits
            .lock()
            .unwrap()
            .iter()
            .filter(|d| **d == layer)
            .count(),
        1
    );
    assert!(tags(&imported).is_empty());
    assert!(
        imported.notices[0].contains("without a tag"),
        "{:?}",
        imported.notices
    );
}

#[test]
fn layers_that_are_gzip_already_keep_their_bytes() {
    let base = layer("base");
    let zipped = gzip(&base);
    let config = config(&[&base]);
    let tar = Tar::new().file("c.json", &config).file("l", &zipped);
    let tar = tar.json(
        "manifest.json",
        &json!([{"Config": "c.json", "RepoTags": ["a:b"], "Layers": ["l"]}]),
    );
    let (imported, _) = run(&tar.done());
    assert_eq!(
        manifests(&imported)[0].fs_layers[0].blob_sum,
        Digest::sha256(&zipped)
    );
    assert_eq!(images(&imported)[0].layer_digest, Digest::sha256(&zipped));
}

#[test]
fn old_archives_get_a_config_made_of_their_v1_images() {
    let layers = [layer("base"), layer("top")];
    let tar = v1(v1(Tar::new(), 1, None, &layers[0]), 2, Some(1), &layers[1]).json(
        "repositories",
        &json!({"registry.example/x": {"latest": id(2), "base": id(1)}}),
    );
    let (imported, store) = run(&tar.done());
    assert_eq!(images(&imported).len(), 2);
    let found: Vec<_> = tags(&imported)
        .into_iter()
        .map(|(tag, digest, _)| (tag, digest))
        .collect();
    assert_eq!(
        found.len(),
        2,
        "a tagged image amid the line has a manifest too: {found:?}"
    );
    let top = manifests(&imported)
        .into_iter()
        .find(|m| m.digest == found[1].1)
        .unwrap();
    let config = store.json(top.config_layer.as_ref().unwrap());
    assert_eq!(
        config["rootfs"]["diff_ids"],
        json!([Digest::sha256(&layers[0]), Digest::sha256(&layers[1])])
    );
    assert_eq!(config["history"][1]["created_by"], "/bin/sh -c step 2");
    assert_eq!(
        (&config["os"], &config["architecture"]),
        (&json!("linux"), &json!("amd64"))
    );
    assert_eq!(config["config"], json!({"Cmd": ["sh"]}));
}

#[test]
fn an_old_archive_whose_layer_is_not_a_tar_gets_v1_images_only() {
    for placeholder in ["", "not a real tarball"] {
        let tar = v1(Tar::new(), 1, None, placeholder.as_bytes());
        let (imported, _) = run(&tar.json("repositories", &json!({"x": {"latest": id(1)}})).done());
        assert_eq!((images(&imported).len(), manifests(&imported).len()), (1, 0));
        assert_eq!(imported.v1_tags.len(), 1);
        assert!(
            imported.notices[0].contains("is not a tar"),
            "{:?}",
            imported.notices
        );
    }
}

#[test]
fn several_leaves_have_each_their_own_ancestry() {
    let tar = [(1, None), (2, Some(1)), (3, Some(1)), (4, Some(3))]
        .into_iter()
        .fold(Tar::new(), |tar, (n, parent)| {
            v1(tar, n, parent, &layer(&n.to_string()))
        });
    let (imported, store) = run(&tar.done());
    let ancestry = |n| {
        let image = images(&imported)
            .into_iter()
            .find(|i| i.image_id == image_id(n))
            .unwrap();
        store.json(&image.ancestry_digest)
    };
    assert_eq!(ancestry(4), json!([id(4), id(3), id(1)]));
    assert_eq!(ancestry(2), json!([id(2), id(1)]));
    assert_eq!(manifests(&imported).len(), 2, "one a leaf");
    assert_eq!(imported.primary, None, "no single image is meant");
}

#[test]
fn the_capitals_of_the_first_docker_versions_are_read() {
    let tar = v1(Tar::new(), 1, None, &layer("a"))
        .json(&format!("{}/json", id(2)), &json!({"Id": id(2), "Parent": id(1)}))
        .file(&format!("{}/layer.tar", id(2)), layer("b"));
    let store = Store::default();
    let imported = run_with(&tar.done(), &options(UploadKind::DockerImage), &store).unwrap();
    assert_eq!(images(&imported)[1].parent_id, Some(image_id(1)));
    assert_eq!(images(&imported)[1].size, None);
}

#[test]
fn an_oci_layout_is_taken_verbatim() {
    let base = layer("base");
    let zipped = gzip(&base);
    let config = config(&[&base]);
    let manifest = oci_manifest(&config, &[("tar+gzip", &zipped)]);
    let named = [
        (
            json!({"org.opencontainers.image.ref.name": "latest"}),
            vec!["latest"],
        ),
        (
            json!({"org.opencontainers.image.ref.name": "localhost/multi5:1.0"}),
            vec!["1.0"],
        ),
        (
            json!({"io.containerd.image.name": "docker.io/library/x:y", "org.opencontainers.image.ref.name": "y"}),
            vec!["y"],
        ),
        (json!({}), vec![]),
    ];
    for (annotations, expected) in named {
        let root = descriptor("manifest", &manifest, &annotations);
        let (imported, store) = run(&oci(&[&zipped, &config, &manifest], &[root]).done());
        let digest = Digest::sha256(&manifest);
        assert_eq!(store.bytes(&digest), manifest);
        assert_eq!(manifests(&imported)[0].media_type, MediaType::OCI_MANIFEST);
        let found: Vec<_> = tags(&imported).into_iter().map(|(tag, ..)| tag).collect();
        assert_eq!(found, expected);
        let image = images(&imported)[0];
        assert_eq!(
            image.layer_digest,
            Digest::sha256(&zipped),
            "the blob serves as v1 layer"
        );
        assert_eq!(imported.v1_tags.len(), expected.len());
        assert_eq!(
            imported.notices.is_empty(),
            !expected.is_empty(),
            "{:?}",
            imported.notices
        );
    }
}

#[test]
fn plain_and_zstd_layers_of_an_oci_layout_are_compressed_for_the_v1_api_only() {
    let (plain, other) = (layer("plain"), layer("zstd"));
    let packed = zstd::encode_all(&other[..], 3).unwrap();
    let config = config(&[&plain, &other]);
    let manifest = oci_manifest(&config, &[("tar", &plain), ("tar+zstd", &packed)]);
    let root = descriptor(
        "manifest",
        &manifest,
        &json!({"org.opencontainers.image.ref.name": "t"}),
    );
    let (imported, store) = run(&oci(&[&plain, &packed, &config, &manifest], &[root]).done());
    let [first, second] = images(&imported)[..] else {
        panic!("{imported:?}")
    };
    assert_eq!(store.unzipped(&first.layer_digest), plain);
    assert_eq!(store.unzipped(&second.layer_digest), other);
    assert_eq!(
        manifests(&imported)[0].fs_layers[0].blob_sum,
        Digest::sha256(&plain)
    );
    // The same layers from a docker archive are the same v1 images' layers.
    let (docker, _) = run(&docker(&[&plain, &other], &["a:t"]).done());
    assert_eq!(images(&docker)[0].layer_digest, first.layer_digest);
    assert_eq!(images(&docker)[0].image_id, first.image_id);
}

/// Three platforms: blobs and the index over them.
fn multiarch() -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut blobs = Vec::new();
    let mut members = Vec::new();
    for arch in ["arm64", "amd64", "s390x"] {
        let plain = layer(arch);
        let zipped = gzip(&plain);
        let config = config(&[&plain]);
        let manifest = oci_manifest(&config, &[("tar+gzip", &zipped)]);
        members.push(member(&manifest, "linux", arch));
        blobs.extend([zipped, config, manifest]);
    }
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": members});
    (blobs, index.to_string().into_bytes())
}

#[test]
fn an_index_brings_all_its_platforms_and_v1_images_of_linux_on_amd64() {
    let (mut blobs, index) = multiarch();
    blobs.push(index.clone());
    let blobs: Vec<&[u8]> = blobs.iter().map(Vec::as_slice).collect();
    let root = descriptor(
        "index",
        &index,
        &json!({"org.opencontainers.image.ref.name": "latest"}),
    );
    let (imported, store) = run(&oci(&blobs, &[root]).done());
    assert_eq!(manifests(&imported).len(), 3);
    assert_eq!(
        tags(&imported),
        [("latest".to_owned(), Digest::sha256(&index), ManifestKind::List)]
    );
    assert_eq!(store.bytes(&Digest::sha256(&index)), index);
    assert_eq!(store.unzipped(&images(&imported)[0].layer_digest), layer("amd64"));
    assert_eq!(images(&imported).len(), 1);
}

#[test]
fn an_index_without_a_member_is_refused_unless_the_store_has_it() {
    let (mut blobs, index) = multiarch();
    blobs.push(index.clone());
    let absent = blobs.remove(2);
    let refs: Vec<&[u8]> = blobs.iter().map(Vec::as_slice).collect();
    let root = descriptor("index", &index, &json!({}));
    let archive = oci(&refs, &[root]).done();
    let expected = pulp_archive::Rejection::LayerMissing {
        layer: Digest::sha256(&absent).to_string(),
    };
    assert_eq!(rejected(&archive), expected);

    let store = Store::default();
    store.put(&absent);
    let imported = run_with(&archive, &options(UploadKind::DockerImage), &store).unwrap();
    check(&imported, &store);
    assert_eq!(
        imported.references,
        [Digest::sha256(&absent)],
        "for the caller to check"
    );
    assert_eq!(manifests(&imported).len(), 2);
}

#[test]
fn todays_docker_save_may_lack_platforms_of_the_index_it_keeps() {
    let (blobs, index) = multiarch();
    // arm64's manifest is there but not its blobs; s390x is absent; amd64 is whole.
    let kept: Vec<&[u8]> = vec![&blobs[2], &blobs[3], &blobs[4], &blobs[5], &index];
    let names = json!({"io.containerd.image.name": "docker.io/library/busybox:latest",
        "org.opencontainers.image.ref.name": "latest"});
    let saved = json!([{"Config": format!("blobs/sha256/{}", Digest::sha256(&blobs[4]).hex()),
        "RepoTags": ["busybox:latest"], "Layers": [format!("blobs/sha256/{}", Digest::sha256(&blobs[3]).hex())]}]);
    let tar = oci(&kept, &[descriptor("index", &index, &names)]).json("manifest.json", &saved);
    let (imported, _) = run(&tar.done());
    let amd64 = Digest::sha256(&blobs[5]);
    assert_eq!(
        tags(&imported),
        [("latest".to_owned(), amd64.clone(), ManifestKind::Image)]
    );
    assert_eq!(manifests(&imported).len(), 1);
    assert_eq!(imported.v1_tags.len(), 1);
    assert!(
        imported.notices[0].contains("without all of its platforms"),
        "{:?}",
        imported.notices
    );
}

#[test]
fn docker_25_archives_are_taken_by_their_oci_side_with_all_tags() {
    let plain = layer("plain");
    let config = config(&[&plain]);
    let manifest = oci_manifest(&config, &[("tar", &plain)]);
    let path = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::sha256(bytes).hex());
    let names = json!({"io.containerd.image.name": "docker.io/library/busybox:latest",
        "org.opencontainers.image.ref.name": "latest"});
    let tar = oci(
        &[&plain, &config, &manifest],
        &[descriptor("manifest", &manifest, &names)],
    )
    .json(
        "manifest.json",
        &json!([{"Config": path(&config), "RepoTags": ["busybox:latest", "busybox:1"],
            "Layers": [path(&plain)], "LayerSources": {}}]),
    )
    .json(
        "repositories",
        &json!({"busybox": {"latest": Digest::sha256(&plain).hex()}}),
    );
    let (imported, _) = run(&tar.done());
    let digest = Digest::sha256(&manifest);
    let expected = ["1", "latest"].map(|tag| (tag.to_owned(), digest.clone(), ManifestKind::Image));
    assert_eq!(tags(&imported), expected);
    assert_eq!(imported.v1_tags.len(), 2);
}

#[test]
fn artifacts_and_foreign_layers_pass_without_v1_images() {
    let config = b"{}".to_vec();
    let text = b"hello".to_vec();
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/x", "config": {"mediaType": "application/vnd.oci.empty.v1+json",
        "digest": Digest::sha256(&config), "size": 2}, "layers": [
            {"mediaType": "text/plain", "digest": Digest::sha256(&text), "size": 5},
            {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                "digest": Digest::sha256("elsewhere"), "size": 9, "urls": ["https://example.org/"]}]});
    let manifest = manifest.to_string().into_bytes();
    let root = descriptor(
        "manifest",
        &manifest,
        &json!({"org.opencontainers.image.ref.name": "x"}),
    );
    let (imported, _) = run(&oci(&[&config, &text, &manifest], &[root]).done());
    assert_eq!((images(&imported).len(), manifests(&imported).len()), (0, 1));
    assert!(
        imported.notices[0].contains("no v1 images"),
        "{:?}",
        imported.notices
    );
}

#[test]
fn skopeos_dir_is_taken_with_either_kind_of_file_name() {
    let base = layer("base");
    let zipped = gzip(&base);
    let config = config(&[&base]);
    let manifest = oci_manifest(&config, &[("tar+gzip", &zipped)]);
    let hex = |bytes: &[u8]| Digest::sha256(bytes).hex().to_owned();
    for (suffix, version) in [("", true), (".tar", false)] {
        let mut tar = Tar::new()
            .file_anyhow(&format!("./{}{suffix}", hex(&zipped)), &zipped)
            .file_anyhow(&format!("./{}{suffix}", hex(&config)), &config)
            .file("./manifest.json", &manifest);
        if version {
            tar = tar.file("./version", "Directory Transport Version: 1.1\n");
        }
        let store = Store::default();
        let imported = run_with(&tar.done(), &options(UploadKind::DockerManifest), &store).unwrap();
        check(&imported, &store);
        assert_eq!(
            imported.units.len(),
            3,
            "two blobs, one manifest, no tags, no v1 images"
        );
        assert_eq!(
            imported.primary,
            Some(Unit::Manifest(manifests(&imported)[0].clone()))
        );
        assert_eq!(store.bytes(&Digest::sha256(&manifest)), manifest);
    }
}

#[test]
fn skopeos_dir_of_all_platforms_brings_the_list() {
    let (blobs, index) = multiarch();
    let mut tar = Tar::new();
    for (n, blob) in blobs.iter().enumerate() {
        let suffix = if n % 3 == 2 { ".manifest.json" } else { "" };
        tar = tar.file_anyhow(&format!("{}{suffix}", Digest::sha256(blob).hex()), blob);
    }
    let store = Store::default();
    let archive = tar.file("manifest.json", &index).done();
    let imported = run_with(&archive, &options(UploadKind::DockerManifest), &store).unwrap();
    check(&imported, &store);
    assert_eq!(manifests(&imported).len(), 3);
    assert!(
        matches!(&imported.primary, Some(Unit::ManifestList(list)) if list.digest == Digest::sha256(&index))
    );
}

#[test]
fn blobs_that_the_store_holds_need_not_be_in_the_archive() {
    let base = layer("base");
    let zipped = gzip(&base);
    let config = config(&[&base]);
    let manifest = oci_manifest(&config, &[("tar+gzip", &zipped)]);
    let archive = Tar::new()
        .file("manifest.json", &manifest)
        .file_anyhow(Digest::sha256(&config).hex(), &config)
        .done();
    let store = Store::default();
    store.put(&zipped);
    let imported = run_with(&archive, &options(UploadKind::DockerManifest), &store).unwrap();
    check(&imported, &store);
    assert_eq!(imported.units.len(), 3);
}

#[test]
fn an_archive_packed_with_its_directory_is_read_too() {
    let base = layer("base");
    let config = config(&[&base]);
    let tar = Tar::new()
        .member(tar::EntryType::Directory, "image/", "", &[])
        .file("image/c.json", &config)
        .symlink("image/x/layer.tar", "../l.tar")
        .file("image/l.tar", &base)
        .json(
            "image/manifest.json",
            &json!([{"Config": "c.json", "RepoTags": ["a:b"], "Layers": ["x/layer.tar"]}]),
        );
    assert_eq!(manifests(&run(&tar.done()).0).len(), 1);
}

#[test]
fn a_platform_tagged_beside_its_index_keeps_its_own_tag() {
    let (mut blobs, index) = multiarch();
    blobs.push(index.clone());
    let refs: Vec<&[u8]> = blobs.iter().map(Vec::as_slice).collect();
    let named = |kind, bytes: &[u8], name: &str| {
        descriptor(
            kind,
            bytes,
            &json!({"io.containerd.image.name": format!("docker.io/library/x:{name}")}),
        )
    };
    let roots = [
        named("index", &index, "latest"),
        named("manifest", &blobs[5], "amd64"),
    ];
    let saved = json!([{"Config": format!("blobs/sha256/{}", Digest::sha256(&blobs[4]).hex()),
        "RepoTags": ["x:latest", "x:amd64", "x:more"], "Layers": []}]);
    let tar = oci(&refs, &roots[..1]).json("manifest.json", &saved);
    let found: Vec<_> = tags(&run(&tar.done()).0)
        .into_iter()
        .map(|(tag, ..)| tag)
        .collect();
    assert_eq!(found, ["amd64", "latest", "more"], "no annotation has the others");
    let saved = json!([{"Config": format!("blobs/sha256/{}", Digest::sha256(&blobs[4]).hex()),
        "RepoTags": ["x:latest", "x:amd64"], "Layers": []}]);
    let (imported, _) = run(&oci(&refs, &roots).json("manifest.json", &saved).done());
    let expected = [
        ("amd64".to_owned(), Digest::sha256(&blobs[5]), ManifestKind::Image),
        ("latest".to_owned(), Digest::sha256(&index), ManifestKind::List),
    ];
    assert_eq!(tags(&imported), expected);
}
