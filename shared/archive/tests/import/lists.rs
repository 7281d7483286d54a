//! Manifest lists uploaded by themselves.

use pulp_archive::{ArchiveError, Rejection, UploadKind};
use pulp_model::{Digest, unit::Unit};
use serde_json::{Value, json};

use crate::support::*;

const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

fn list() -> Value {
    json!({"schemaVersion": 2, "mediaType": LIST, "manifests": [
        {"mediaType": MANIFEST, "size": 1, "digest": Digest::sha256("a"),
            "platform": {"architecture": "amd64", "os": "linux"}},
        {"mediaType": MANIFEST, "size": 1, "digest": Digest::sha256("b"),
            "platform": {"architecture": "arm", "os": "linux"}}]})
}

fn code(bytes: &[u8]) -> String {
    match run_with(bytes, &options(UploadKind::DockerManifestList), &Store::default()) {
        Err(error) => error.coded().code.to_string(),
        Ok(imported) => panic!("{imported:?}"),
    }
}

fn without(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut list = list();
    change(&mut list);
    list.to_string().into_bytes()
}

#[test]
fn a_list_is_stored_verbatim_and_its_members_are_left_to_check() {
    let bytes = serde_json::to_vec_pretty(&list()).unwrap();
    let store = Store::default();
    let imported = run_with(&bytes, &options(UploadKind::DockerManifestList), &store).unwrap();
    let [Unit::ManifestList(unit)] = &imported.units[..] else {
        panic!("{imported:?}")
    };
    assert_eq!(unit.digest, Digest::sha256(&bytes));
    assert_eq!(unit.amd64_digest, Some(Digest::sha256("a")));
    assert_eq!(store.bytes(&unit.digest), bytes);
    let mut members = [Digest::sha256("a"), Digest::sha256("b")];
    members.sort();
    assert_eq!(imported.references, members);
    assert_eq!(imported.primary, Some(imported.units[0].clone()));
}

#[test]
fn what_the_plugin_refused_is_refused_with_its_codes() {
    assert_eq!(code(b"{"), "DKR1011");
    assert_eq!(code(b"[]"), "DKR1011");
    for field in ["schemaVersion", "mediaType", "manifests"] {
        let bytes = without(|list| drop(list.as_object_mut().unwrap().remove(field)));
        assert_eq!(code(&bytes), "DKR1015", "{field}");
    }
    assert_eq!(
        code(&without(|list| list["mediaType"] = json!(MANIFEST))),
        "DKR1012"
    );
    assert_eq!(
        code(&without(|list| list["manifests"][1]["mediaType"] = json!(LIST))),
        "DKR1014"
    );
    for field in ["mediaType", "digest", "platform"] {
        let bytes = without(|list| drop(list["manifests"][0].as_object_mut().unwrap().remove(field)));
        assert_eq!(code(&bytes), "DKR1016", "{field}");
    }
    let bytes = without(|list| {
        drop(
            list["manifests"][0]["platform"]
                .as_object_mut()
                .unwrap()
                .remove("os"),
        );
    });
    match run_with(
        &bytes,
        &options(UploadKind::DockerManifestList),
        &Store::default(),
    ) {
        Err(ArchiveError::Rejected(rejection)) => {
            assert_eq!(
                *rejection,
                Rejection::ListMemberFieldMissing {
                    field: "platform.os".to_owned()
                }
            );
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(code(&vec![b' '; 5 * 1024 * 1024]), "DKR1105");
}

#[test]
fn an_oci_index_needs_neither_media_type_nor_platforms() {
    let index = json!({"schemaVersion": 2, "manifests": [descriptor("manifest", b"x", &json!({}))]});
    let bytes = index.to_string().into_bytes();
    let imported = run_with(
        &bytes,
        &options(UploadKind::DockerManifestList),
        &Store::default(),
    )
    .unwrap();
    assert!(matches!(&imported.units[..], [Unit::ManifestList(_)]));
}
