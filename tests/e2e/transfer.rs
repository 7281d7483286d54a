//! Exports for closed networks: out of one server, carried as files, into another that has never seen the first.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use pulp_model::Digest;
use pulp_tests::{
    Cluster, Server, Standalone, binary, files_below, http, images,
    images::append,
    saved::{self, Parts},
    wait_for,
};
use serde_json::{Value, json};

use crate::settled::{attempt_of, settled, versions_of};

const EXPORT: &str = "docker_export_distributor_name_cli";

/// Makes the key of the exporting side and gives its public half to the other.
pub(crate) fn trust(from: &impl Server, to: &impl Server) -> Result<()> {
    let key = Command::new(binary("pulp"))
        .args(["signing-key", "--data-dir"])
        .arg(from.data_dir())
        .output()?;
    ensure!(key.status.success(), "{}", String::from_utf8_lossy(&key.stderr));
    let trusted = to.data_dir().join("trusted-keys");
    fs::create_dir_all(&trusted)?;
    fs::write(trusted.join("other-side.pem"), key.stdout)?;
    Ok(())
}

/// Takes a saved image in.
fn upload(server: &impl Server, repo: &str, tar: &[u8]) -> Result<()> {
    let upload = server.upload(tar)?;
    server.wait_until_finished(&server.import(repo, &upload, json!({}))?)?;
    Ok(())
}

/// Begins an export as an OCI layout; gives the task's id.
fn begin_export(server: &impl Server, repo: &str, options: &Value) -> Result<String> {
    let mut overrides = options.clone();
    overrides["export_format"] = json!("oci");
    let body = json!({"id": EXPORT, "override_config": overrides});
    let path = format!("/repositories/{repo}/actions/publish/");
    server.begin("POST", &path, &body)
}

/// Exports; gives what the task tells of it.
pub(crate) fn export(server: &impl Server, repo: &str, options: &Value) -> Result<Value> {
    let task = server.wait_until_finished(&begin_export(server, repo, options)?)?;
    Ok(task["result"]["export"].clone())
}

fn directory(export: &Value) -> Result<PathBuf> {
    Ok(export["directory"].as_str().context("no directory")?.into())
}

/// Carries an export to the other side's folder of imports.
pub(crate) fn carry(export: &Value, to: &impl Server, name: &str) -> Result<PathBuf> {
    let target = to.data_dir().join("import").join(name);
    let source = directory(export)?;
    for file in files_below(&source) {
        let target = target.join(file.strip_prefix(&source)?);
        fs::create_dir_all(target.parent().context("no parent")?)?;
        fs::copy(&file, target)?;
    }
    Ok(target)
}

fn begin_import(server: &impl Server, repo: &str, path: &str) -> Result<String> {
    let body = json!({"path": path, "create": true});
    let at = format!("/repositories/{repo}/actions/import_export/");
    server.begin("POST", &at, &body)
}

/// Imports; gives the task's result.
pub(crate) fn import(server: &impl Server, repo: &str, path: &str) -> Result<Value> {
    let task = server.wait_until_finished(&begin_import(server, repo, path)?)?;
    Ok(task["result"].clone())
}

/// Imports what must be refused; gives the error.
fn refused(server: &impl Server, repo: &str, path: &str) -> Result<Value> {
    let task = server.wait_for_task(&begin_import(server, repo, path)?)?;
    ensure!(task["state"] == "error", "{task}");
    Ok(task["error"].clone())
}

fn exists(server: &impl Server, repo: &str) -> Result<bool> {
    Ok(server.call("GET", &format!("/repositories/{repo}/"), None)?.0 == 200)
}

fn counts(server: &impl Server, repo: &str) -> Result<Value> {
    Ok(server.call("GET", &format!("/repositories/{repo}/"), None)?.1["content_unit_counts"].clone())
}

/// Waits for the publish that an import is followed by, and pulls.
fn pulls(server: &impl Server, name: &str, image: &images::SavedImage) -> Result<()> {
    let pulled = wait_for(&format!("{name} at Crane"), || Ok(server.pull(name).ok()))?;
    let expected: Vec<String> = image.diff_ids.iter().map(ToString::to_string).collect();
    assert_eq!(pulled.diff_ids, expected);
    Ok(())
}

fn standalone_pair() -> Result<(Standalone, Standalone)> {
    let (open, closed) = (Standalone::start()?, Standalone::start()?);
    trust(&open, &closed)?;
    Ok((open, closed))
}

#[test]
fn a_repository_crosses_to_a_closed_network_and_is_pulled_there() -> Result<()> {
    let (open, closed) = standalone_pair()?;
    open.create_repository("r", "ns/r")?;
    let image = images::docker_archive("r:1.0", 3, 900_000)?;
    upload(&open, "r", &image.tar)?;
    let out = open.admin(&[
        "docker",
        "repo",
        "export",
        "run",
        "--repo-id",
        "r",
        "--format",
        "oci",
        "--part-size",
        "1M",
    ])?;
    let made = directory(&json!({"directory": open.data_dir().join("published/docker/export/oci/r-1")}))?;
    ensure!(out.contains(&format!("lies in {}", made.display())), "{out}");
    ensure!(out.contains("signed by sha256:"), "{out}");
    let manifest: Value = serde_json::from_slice(&fs::read(made.join("pulp-export.json"))?)?;
    let parts = manifest["parts"].as_array().context("no parts")?;
    ensure!(parts.len() >= 3, "{manifest}");
    for part in parts {
        let bytes = fs::read(made.join(part["name"].as_str().unwrap()))?;
        assert_eq!(part["digest"], json!(Digest::sha256(bytes)));
    }

    carry(&json!({"directory": made}), &closed, "r-1")?;
    let import = [
        "docker",
        "repo",
        "import",
        "run",
        "--repo-id",
        "r",
        "--path",
        "r-1",
    ];
    let missing = closed.admin_output(&import)?;
    ensure!(
        !missing.status.success() && !exists(&closed, "r")?,
        "made without being asked"
    );
    let out = closed.admin(&[&import[..], &["--create"]].concat())?;
    ensure!(
        out.contains("Version 1 of r is version 1 here") && out.contains("signed by sha256:"),
        "{out}"
    );
    assert_eq!(counts(&closed, "r")?, counts(&open, "r")?);
    pulls(&closed, "ns/r:1.0", &image)?;
    closed.wait_until_clean()?;

    // The same again changes nothing and reads nothing.
    let again = self::import(&closed, "r", "r-1")?;
    assert_eq!((&again["added"], &again["blobs_read"]), (&json!(0), &json!(0)));
    assert_eq!(again["repository_version"], 1);
    Ok(())
}

#[test]
fn an_incremental_export_carries_what_is_new_and_refuses_a_wrong_base() -> Result<()> {
    let (open, closed) = standalone_pair()?;
    open.create_repository("r", "ns/r")?;
    let (first, second) = (
        images::docker_archive("r:1", 2, 700_000)?,
        images::docker_archive("r:2", 3, 600_000)?,
    );
    upload(&open, "r", &first.tar)?;
    let early = begin_export(&open, "r", &json!({"base": "last"}))?;
    assert_eq!(open.wait_for_task(&early)?["error"]["code"], "DKR1149");
    let whole = export(&open, "r", &json!({}))?;
    upload(&open, "r", &second.tar)?;
    let since = export(&open, "r", &json!({"base": "last", "export_layout": "directory"}))?;
    assert_eq!(since["base"]["state"], whole["state"]);
    assert!(since["blobs_of_base"].as_u64() > Some(0), "{since}");
    let bytes = |export: &Value| export["bytes"].as_u64().unwrap_or(0);
    assert!(bytes(&since) < 2_500_000, "{since}");
    let unknown = begin_export(&open, "r", &json!({"base": 77}))?;
    assert_eq!(open.wait_for_task(&unknown)?["error"]["code"], "DKR1149");

    carry(&whole, &closed, "whole")?;
    carry(&since, &closed, "since")?;
    let error = refused(&closed, "r", "since")?;
    assert_eq!(error["code"], "DKR1145", "{error}");
    assert_eq!(error["data"]["needed"], whole["state"]);
    assert!(!exists(&closed, "r")?);

    import(&closed, "r", "whole")?;
    let result = import(&closed, "r", "since")?;
    assert_eq!(result["blobs_read"], since["blobs"]);
    assert_eq!(result["repository_version"], 2);
    pulls(&closed, "ns/r:1", &first)?;
    pulls(&closed, "ns/r:2", &second)?;

    // A third one builds on what the second brought, and on nothing else.
    let third = images::docker_archive("r:3", 1, 100_000)?;
    upload(&open, "r", &third.tar)?;
    carry(&export(&open, "r", &json!({"base": 1}))?, &closed, "wrong")?;
    let error = refused(&closed, "r", "wrong")?;
    assert_eq!(error["code"], "DKR1145", "{error}");
    assert_eq!(error["data"]["present"], since["state"]);
    carry(&export(&open, "r", &json!({"base": 2}))?, &closed, "right")?;
    assert_eq!(import(&closed, "r", "right")?["repository_version"], 3);
    pulls(&closed, "ns/r:3", &third)
}

#[test]
fn what_is_missing_damaged_or_not_vouched_for_is_refused_and_nothing_shows() -> Result<()> {
    let (open, closed) = standalone_pair()?;
    open.create_repository("r", "ns/r")?;
    let image = images::docker_archive("r:1", 3, 1_500_000)?;
    upload(&open, "r", &image.tar)?;
    let made = export(&open, "r", &json!({"part_size": "1M"}))?;
    let place = carry(&made, &closed, "r-1")?;
    let code = |expected: &str| -> Result<Value> {
        let error = refused(&closed, "r", "r-1")?;
        ensure!(error["code"] == expected, "not {expected}: {error}");
        ensure!(!exists(&closed, "r")?, "something shows");
        Ok(error)
    };
    // What makes a thing wrong, and what makes it right again.
    let with = |file: &str, change: &dyn Fn(&Path) -> Result<()>, expected: &str| -> Result<Value> {
        let path = place.join(file);
        let before = fs::read(&path)?;
        change(&path)?;
        let error = code(expected)?;
        let _ = fs::remove_file(&path);
        fs::write(&path, before)?;
        Ok(error)
    };
    let remove = |path: &Path| Ok(fs::remove_file(path)?);
    with("pulp-export.json", &remove, "DKR1140")?;
    with("pulp-export.json.sig", &remove, "DKR1141")?;
    let other_name = |path: &Path| {
        let text = fs::read_to_string(path)?;
        Ok(fs::write(path, text.replace("ns/r", "ns/x"))?)
    };
    with("pulp-export.json", &other_name, "DKR1142")?;
    let cut = |path: &Path| Ok(fs::OpenOptions::new().write(true).open(path)?.set_len(1000)?);
    let error = with("r.tar.0003", &cut, "DKR1144")?;
    assert_eq!(
        (&error["data"]["part"], &error["data"]["size"]),
        (&json!("r.tar.0003"), &json!(1000))
    );
    // The blobs of the other parts are read and kept; those of this one are still wanted afterwards.
    let error = with("r.tar.0004", &remove, "DKR1143")?;
    assert_eq!(error["data"]["parts"], json!(["r.tar.0004"]));
    let flip = |path: &Path| {
        let mut bytes = fs::read(path)?;
        *bytes.get_mut(500_000).context("too short")? ^= 1;
        Ok(fs::write(path, bytes)?)
    };
    let error = with("r.tar.0004", &flip, "DKR1144")?;
    assert_eq!(error["data"]["part"], "r.tar.0004");
    assert_eq!(error["data"]["expected"], made["parts"][3]["digest"]);
    for path in ["../trusted-keys", "absent", "/etc"] {
        assert_eq!(refused(&closed, "r", path)?["code"], "DKR1151", "{path}");
    }

    // What was verified on the way is not read again.
    let result = import(&closed, "r", "r-1")?;
    assert!(result["blobs_reused"].as_u64() > Some(0), "{result}");
    pulls(&closed, "ns/r:1", &image)?;
    closed.wait_until_clean()
}

#[test]
fn parts_may_be_brought_one_after_the_other() -> Result<()> {
    let (open, closed) = standalone_pair()?;
    open.create_repository("r", "ns/r")?;
    let image = images::docker_archive("r:1", 6, 400_000)?;
    upload(&open, "r", &image.tar)?;
    let made = export(&open, "r", &json!({"part_size": "1M"}))?;
    let parts: Vec<String> = made["parts"]
        .as_array()
        .context("no parts")?
        .iter()
        .filter_map(|p| Some(p["name"].as_str()?.to_owned()))
        .collect();
    ensure!(parts.len() > 2, "{made}");
    let source = directory(&made)?;
    let place = closed.data_dir().join("import/r");
    fs::create_dir_all(&place)?;
    for file in ["pulp-export.json", "pulp-export.json.sig"] {
        fs::copy(source.join(file), place.join(file))?;
    }
    let mut missing = usize::MAX;
    for (n, part) in parts.iter().enumerate() {
        // A medium that has room for two parts: a blob may lie in both.
        if let Some(old) = n.checked_sub(2).and_then(|n| parts.get(n)) {
            fs::remove_file(place.join(old))?;
        }
        fs::copy(source.join(part), place.join(part))?;
        if n + 1 < parts.len() {
            let error = refused(&closed, "r", "r")?;
            assert_eq!(error["code"], "DKR1143", "{error}");
            let left = error["data"]["parts"].as_array().map_or(0, Vec::len);
            assert!(left <= missing, "{error}");
            missing = left;
        }
    }
    let result = import(&closed, "r", "r")?;
    assert!(result["blobs_reused"].as_u64() > Some(0), "{result}");
    pulls(&closed, "ns/r:1", &image)
}

#[test]
fn an_unsigned_export_is_taken_where_signatures_are_not_asked_for() -> Result<()> {
    let open = Standalone::start()?;
    let closed = Standalone::with(&[("PULP_TRANSFER_REQUIRE_SIGNATURE", "false")])?;
    open.create_repository("r", "ns/r")?;
    let image = images::docker_archive("r:1", 1, 10_000)?;
    upload(&open, "r", &image.tar)?;
    let made = export(&open, "r", &json!({"export_layout": "directory"}))?;
    assert_eq!(made["signed_by"], Value::Null);
    carry(&made, &closed, "r-1")?;
    assert_eq!(import(&closed, "r", "r-1")?["signed_by"], Value::Null);
    pulls(&closed, "ns/r:1", &image)
}

/// An OCI layout of an index for two platforms, tagged, and an SBOM that refers to it.
fn with_referrer() -> Result<(Vec<u8>, Digest, Digest)> {
    let one = Parts::of(&images::docker_archive("x:1", 2, 50_000)?.tar)?;
    let other = Parts::of(&images::docker_archive("x:2", 1, 60_000)?.tar)?.on("arm64");
    let plain = saved::oci_index_archive(&[("amd64", one), ("arm64", other)], "latest")?;
    let members = saved::members(&plain)?;
    let mut index: Value = serde_json::from_slice(&members["index.json"])?;
    let subject = index["manifests"][0].clone();
    let mut tar = tar::Builder::new(Vec::new());
    let mut blob = |media_type: &str, bytes: &[u8]| -> Result<Value> {
        let digest = Digest::sha256(bytes);
        append(&mut tar, &format!("blobs/sha256/{}", digest.hex()), bytes)?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}))
    };
    let config = blob("application/vnd.oci.empty.v1+json", b"{}")?;
    let sbom = blob("application/spdx+json", br#"{"spdxVersion":"SPDX-2.3"}"#)?;
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/spdx+json", "config": config, "layers": [sbom],
        "subject": {"mediaType": subject["mediaType"], "digest": subject["digest"], "size": subject["size"]}});
    let referrer = blob(
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    )?;
    index["manifests"]
        .as_array_mut()
        .context("no manifests")?
        .push(referrer.clone());
    for (name, bytes) in &members {
        if name != "index.json" {
            append(&mut tar, name, bytes)?;
        }
    }
    append(&mut tar, "index.json", index.to_string().as_bytes())?;
    let digest =
        |value: &Value| -> Result<Digest> { Ok(value["digest"].as_str().context("no digest")?.parse()?) };
    Ok((tar.into_inner()?, digest(&subject)?, digest(&referrer)?))
}

#[test]
fn an_index_its_platforms_and_its_referrers_come_along_and_other_tools_read_the_layout() -> Result<()> {
    let (open, closed) = standalone_pair()?;
    open.create_repository("r", "ns/r")?;
    let (tar, index, referrer) = with_referrer()?;
    let id = open.upload(&tar)?;
    let body =
        json!({"upload_id": id, "unit_type_id": "docker_manifest", "unit_key": {}, "unit_metadata": {}});
    open.wait_until_finished(&open.begin("POST", "/repositories/r/actions/import_upload/", &body)?)?;
    assert_eq!(counts(&open, "r")?["docker_manifest"], 3);

    let files = directory(&export(
        &open,
        "r",
        &json!({"export_layout": "directory", "export_dir": open.folder().join("files")}),
    )?)?;
    let cut = export(
        &open,
        "r",
        &json!({"part_size": "1M", "export_dir": open.folder().join("cut")}),
    )?;
    let whole = directory(&export(
        &open,
        "r",
        &json!({"export_dir": open.folder().join("whole")}),
    )?)?;

    // skopeo, from the files and from the tar.
    let layout = format!("oci:{}:latest", files.display());
    let raw = pulp_testkit::skopeo(&["inspect", "--raw", &layout])?;
    assert_eq!(Digest::sha256(&raw), index);
    let archive = format!("oci-archive:{}:latest", whole.join("r.tar").display());
    for source in [&layout, &archive] {
        let copy = open.folder().join("copy");
        pulp_testkit::skopeo(&["copy", "--all", source, &format!("dir:{}", copy.display())])?;
        assert_eq!(Digest::sha256(fs::read(copy.join("manifest.json"))?), index);
        fs::remove_dir_all(copy)?;
    }
    // podman, from the tar.
    let podman = pulp_testkit::Podman::new()?;
    let id = podman.pull(&archive)?;
    ensure!(id.len() >= 64, "{id}");
    // The parts make the same tar, and it can be uploaded as any saved image.
    let mut joined = Vec::new();
    for part in cut["parts"].as_array().context("no parts")? {
        joined.extend(fs::read(directory(&cut)?.join(part["name"].as_str().unwrap()))?);
    }
    ensure!(
        joined == fs::read(whole.join("r.tar"))?,
        "the parts make another tar"
    );
    closed.create_repository("uploaded", "ns/uploaded")?;
    let id = closed.upload(&joined)?;
    let body =
        json!({"upload_id": id, "unit_type_id": "docker_manifest", "unit_key": {}, "unit_metadata": {}});
    closed.wait_until_finished(&closed.begin(
        "POST",
        "/repositories/uploaded/actions/import_upload/",
        &body,
    )?)?;
    assert_eq!(counts(&closed, "uploaded")?, counts(&open, "r")?);

    // Our own import, from the files.
    carry(&json!({"directory": files}), &closed, "r")?;
    import(&closed, "r", "r")?;
    assert_eq!(counts(&closed, "r")?, counts(&open, "r")?);
    let url = format!("http://{}/v2/ns/r/referrers/{index}", closed.crane());
    wait_for("the referrer at Crane", || {
        let Ok(answer) = http::get(&url) else {
            return Ok(None);
        };
        let found: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let digest = found["manifests"][0]["digest"].clone();
        Ok((digest == json!(referrer)).then_some(()))
    })
}

#[test]
fn an_export_takes_the_place_of_an_earlier_one_and_of_nothing_else() -> Result<()> {
    let server = Standalone::start()?;
    server.create_repository("r", "ns/r")?;
    upload(&server, "r", &images::docker_archive("r:1", 1, 10_000)?.tar)?;
    let place = server.folder().join("place");
    let options = json!({"export_dir": place});
    export(&server, "r", &options)?;
    let first = fs::read(place.join("pulp-export.json"))?;
    upload(&server, "r", &images::docker_archive("r:2", 1, 20_000)?.tar)?;
    export(&server, "r", &options)?;
    assert_ne!(fs::read(place.join("pulp-export.json"))?, first);

    let mine = server.folder().join("mine");
    fs::create_dir(&mine)?;
    fs::write(mine.join("thesis.txt"), "years of work")?;
    let id = begin_export(&server, "r", &json!({"export_dir": mine}))?;
    assert_eq!(server.wait_for_task(&id)?["error"]["code"], "DKR1112");
    assert_eq!(fs::read_to_string(mine.join("thesis.txt"))?, "years of work");
    let hidden = fs::read_dir(server.folder())?
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(".place") || name.starts_with(".mine"));
    assert_eq!(hidden.collect::<Vec<_>>(), Vec::<String>::new());
    Ok(())
}

/// An image whose export and import take long enough to be met in their middle.
fn long_image() -> Result<images::SavedImage> {
    images::docker_archive("r:1", 8, 16_000_000)
}

/// Kills the worker that runs a task. All are frozen first, so that it can't end meanwhile.
fn kill_the_worker_of(
    cluster: &mut Cluster,
    id: &str,
    look: impl FnOnce(&Cluster) -> Result<()>,
) -> Result<()> {
    for worker in &cluster.workers {
        worker.signal("STOP")?;
    }
    let task = cluster.task(id)?;
    assert_eq!(task["state"], "running");
    look(cluster)?;
    let at = cluster.worker_of(&task)?;
    cluster.workers[at].kill()?;
    cluster.workers[1 - at].signal("CONT")
}

#[test]
fn a_worker_killed_in_mid_export_leaves_no_half_export() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.create_repository("r", "ns/r")?;
    let image = long_image()?;
    upload(&cluster, "r", &image.tar)?;
    let exports = cluster.data_dir().join("published/docker/export/oci");
    let id = begin_export(&cluster, "r", &json!({"part_size": "8M"}))?;
    wait_for("the export's first part", || {
        Ok((!files_below(&exports).is_empty()).then_some(()))
    })?;
    kill_the_worker_of(&mut cluster, &id, |_| {
        assert!(!exports.join("r-1").exists());
        Ok(())
    })?;

    let ended = cluster.wait_until_finished(&id)?;
    assert_eq!(attempt_of(&cluster, &ended)?, 2);
    let names: Vec<_> = fs::read_dir(&exports)?
        .map(|e| Ok(e?.file_name()))
        .collect::<Result<_>>()?;
    assert_eq!(names, ["r-1"]);
    settled(&cluster)?;

    let closed = Standalone::with(&[("PULP_TRANSFER_REQUIRE_SIGNATURE", "false")])?;
    carry(&ended["result"]["export"], &closed, "r-1")?;
    import(&closed, "r", "r-1")?;
    pulls(&closed, "ns/r:1", &image)
}

#[test]
fn a_worker_killed_in_mid_import_costs_an_attempt_and_what_was_read_stays_read() -> Result<()> {
    let open = Standalone::start()?;
    open.create_repository("r", "ns/r")?;
    let image = long_image()?;
    upload(&open, "r", &image.tar)?;
    let made = export(&open, "r", &json!({}))?;
    let mut closed = Cluster::start()?;
    trust(&open, &closed)?;
    export(&open, "r", &json!({})).and_then(|signed| carry(&signed, &closed, "r-1"))?;
    let id = begin_import(&closed, "r", "r-1")?;
    let blobs = closed.data_dir().join("content/sha256");
    wait_for("the import's first blob", || {
        Ok((!files_below(&blobs).is_empty()).then_some(()))
    })?;
    kill_the_worker_of(&mut closed, &id, |closed| {
        assert!(!exists(closed, "r")?, "something shows");
        Ok(())
    })?;

    let ended = closed.wait_until_finished(&id)?;
    assert_eq!(attempt_of(&closed, &ended)?, 2);
    let result = &ended["result"];
    assert!(result["blobs_reused"].as_u64() > Some(0), "{result}");
    assert_eq!(
        result["blobs_reused"].as_u64().unwrap_or(0) + result["blobs_read"].as_u64().unwrap_or(0),
        made["blobs"].as_u64().unwrap_or(0)
    );
    assert_eq!(versions_of(&closed, "r")?, 1);
    closed.wait_until_clean()?;
    pulls(&closed, "ns/r:1", &image)?;
    settled(&closed)
}
