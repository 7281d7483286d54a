//! The user guide's tutorial of pulp_docker 1.0, command by command: upload, list, mask, publish, export, and what
//! Crane then answers to clients of its time.
//!
//! It runs on an archive made here, and on the archive that the original's own examples were made with if that is at
//! hand. Both have layers that are no tars, so there is nothing in them for today's clients.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use pulp_tests::{
    PASSWORD, Server, Standalone, binary, http,
    images::{LegacyImages, legacy_archive},
    saved::members,
    shared_fixtures,
};
use serde_json::{Value, json};

#[test]
fn the_tutorial_runs_as_documented() -> Result<()> {
    tutorial(&legacy_archive("busybox")?)
}

#[test]
fn the_tutorial_runs_as_documented_on_its_own_archive() -> Result<()> {
    let Some(fixtures) = shared_fixtures() else {
        return Ok(());
    };
    tutorial(&LegacyImages {
        tar: std::fs::read(fixtures.join("busyboxlight.tar"))?,
        ids: [
            "769b9341d937a3dba9e460f664b4f183a6cecdd62b337220a28b3deb50ee0a02",
            "48e5f45168b97799ad0aafb7e2fef9fac57b5f16f6db7f67ba2000eb947637eb",
            "bf747efa0e2fa9f7c691588ce3938944c75607a7bb5e757f7369f86904d97c78",
            "511136ea3c5a64f264b78b5433614aec563103b4d4702f3ba7d4d2698e22c158",
        ]
        .map(ToOwned::to_owned)
        .to_vec(),
    })
}

fn tutorial(images: &LegacyImages) -> Result<()> {
    let server = Standalone::start()?;
    let file = server.folder().join("busybox.tar");
    std::fs::write(&file, &images.tar)?;
    upload(&server, &file, images)?;
    masks(&server, &file, images)?;
    publish(&server)?;
    redirect_file(&server, images)?;
    export(&server, images)?;
    crane(&server, images)?;
    session(&server)
}

/// Lines that say something, as they are compared here.
fn lines(text: &str) -> Vec<&str> {
    text.lines()
        .map(str::trim_end)
        .filter(|l| !l.is_empty())
        .collect()
}

fn upload(server: &Standalone, file: &Path, images: &LegacyImages) -> Result<()> {
    let out = server.admin(&["docker", "repo", "create", "--repo-id=busybox"])?;
    assert_eq!(lines(&out), ["Repository [busybox] successfully created"]);

    let path = file.display().to_string();
    let output = server.admin_output(&[
        "docker",
        "repo",
        "uploads",
        "upload",
        "--repo-id=busybox",
        "-f",
        &path,
    ])?;
    let (out, notes) = (
        String::from_utf8(output.stdout)?,
        String::from_utf8(output.stderr)?,
    );
    ensure!(output.status.success(), "{out}{notes}");
    let size = format!("{0}/{0} bytes", images.tar.len());
    let documented = [
        "+----------------------------------------------------------------------+",
        "                              Unit Upload",
        "+----------------------------------------------------------------------+",
        "Extracting necessary metadata for each request...",
        "[==================================================] 100%",
        "Analyzing: busybox.tar",
        "... completed",
        "Creating upload requests on the server...",
        "[==================================================] 100%",
        "Initializing: busybox.tar",
        "... completed",
        "Starting upload of selected units. If this process is stopped through ctrl+c,",
        "the uploads will be paused and may be resumed later using the resume command or",
        "canceled entirely using the cancel command.",
        "Uploading: busybox.tar",
        "[==================================================] 100%",
        &size,
        "... completed",
        "Importing into the repository...",
        "This command may be exited via ctrl+c without affecting the request.",
        "[-]",
        "Running...",
        "Task Succeeded",
        "Deleting the upload request...",
        "... completed",
    ];
    assert_eq!(lines(&out), documented);
    assert!(
        notes.starts_with("Note: image ") && notes.contains("gets no manifest"),
        "{notes}"
    );

    let out = server.admin(&["docker", "repo", "list"])?;
    let documented = [
        "+----------------------------------------------------------------------+",
        "                          Docker Repositories",
        "+----------------------------------------------------------------------+",
        "Id:                  busybox",
        "Display Name:        busybox",
        "Description:         None",
        "Content Unit Counts:",
        "  Docker Image: 4",
    ];
    assert_eq!(lines(&out), documented);

    assert_eq!(parents(server, "busybox")?, expected_parents(&images.ids, 4));
    let (_, repository) = server.call("GET", "/repositories/busybox/", None)?;
    assert_eq!(
        repository["scratchpad"]["tags"],
        json!([{"tag": "latest", "image_id": images.ids[0]}])
    );
    for words in [&["images"][..], &["search", "image"]] {
        let words = [&["docker", "repo"], words, &["--repo-id=busybox"]].concat();
        let out = server.admin(&words)?;
        for id in &images.ids {
            assert!(out.contains(id), "{words:?}: no {id}\n{out}");
        }
        assert_eq!(out.matches("latest").count(), 1, "{out}");
    }
    import_task(server, images)
}

/// The task that imported: it succeeded, and tells that there is nothing for today's clients, and why.
fn import_task(server: &Standalone, images: &LegacyImages) -> Result<()> {
    let tasks: Value = serde_json::from_str(&server.admin(&["--json", "tasks", "list", "--all"])?)?;
    let import = tasks.as_array().into_iter().flatten();
    let import = import
        .filter(|t| {
            t["tags"]
                .as_array()
                .unwrap()
                .contains(&json!("pulp:action:import_upload"))
        })
        .find_map(|t| t["task_id"].as_str())
        .context("no import among the tasks")?;
    let task = server.task(import)?;
    assert_eq!(task["state"], "finished");
    assert_eq!(task["result"]["success_flag"], true);
    assert_eq!(task["result"]["details"]["added"], 4);
    let notice = task["result"]["details"]["notices"][0]
        .as_str()
        .context("no notice")?;
    assert!(
        notice.contains(&images.ids[0])
            && notice.contains("gets no manifest")
            && notice.contains("not a tar"),
        "{notice}"
    );
    let listed = server.admin(&["tasks", "list", "--all"])?;
    assert!(
        listed.contains(import) && listed.contains("import_upload"),
        "{listed}"
    );
    let details = server.admin(&["tasks", "details", "--task-id", import])?;
    assert!(
        details.contains("Successful") && details.contains(notice),
        "{details}"
    );
    Ok(())
}

/// Images of a repository, each with its parent.
fn parents(server: &Standalone, repo: &str) -> Result<BTreeMap<String, Value>> {
    let path = format!("/repositories/{repo}/search/units/");
    let criteria = json!({"criteria": {"type_ids": ["docker_image"]}});
    let (status, units) = server.call("POST", &path, Some(&criteria))?;
    ensure!(status == 200, "{status} {units}");
    let units = units.as_array().context("no list")?.iter();
    Ok(units
        .map(|u| {
            let image = &u["metadata"];
            (
                image["image_id"].as_str().unwrap().to_owned(),
                image["parent_id"].clone(),
            )
        })
        .collect())
}

fn expected_parents(ids: &[String], count: usize) -> BTreeMap<String, Value> {
    (0..count)
        .map(|n| (ids[n].clone(), ids.get(n + 1).map_or(Value::Null, |id| json!(id))))
        .collect()
}

/// A masked image stays out, and so do its ancestors.
fn masks(server: &Standalone, file: &Path, images: &LegacyImages) -> Result<()> {
    let file = file.display().to_string();
    for left in [1, 2] {
        let repo = format!("masked-{left}");
        let id = format!("--repo-id={repo}");
        server.admin(&["docker", "repo", "create", &id])?;
        let mask = &images.ids[left];
        server.admin(&[
            "docker",
            "repo",
            "uploads",
            "upload",
            &id,
            "-f",
            &file,
            "--mask-id",
            mask,
        ])?;
        let out = server.admin(&["docker", "repo", "list", &id])?;
        assert!(
            out.contains(&format!("  Docker Image: {left}\n")),
            "mask {mask}\n{out}"
        );
        assert_eq!(
            parents(server, &repo)?,
            expected_parents(&images.ids, left),
            "mask {mask}"
        );
    }
    Ok(())
}

fn publish(server: &Standalone) -> Result<()> {
    let update = [
        "docker",
        "repo",
        "update",
        "--repo-id=busybox",
        "--repo-registry-id=pulpdemo/busybox",
    ];
    let out = server.admin(&update)?;
    for distributor in [
        "docker_web_distributor_name_cli",
        "docker_export_distributor_name_cli",
    ] {
        assert!(
            out.contains(&format!(
                "Running...\nUpdating distributor: {distributor}\n\nTask Succeeded\n"
            )),
            "{out}"
        );
    }
    let out = server.admin(&["docker", "repo", "publish", "run", "--repo-id=busybox"])?;
    let documented = [
        "+----------------------------------------------------------------------+",
        "                    Publishing Repository [busybox]",
        "+----------------------------------------------------------------------+",
        "This command may be exited via ctrl+c without affecting the request.",
        "Publishing Image Files.",
        "[==================================================] 100%",
        "4 of 4 items",
        "... completed",
        "Making files available via web.",
        "[-]",
        "... completed",
        "Task Succeeded",
    ];
    assert_eq!(lines(&out), documented);
    idle(server, "publish")
}

fn idle(server: &Standalone, what: &str) -> Result<()> {
    let out = server.admin(&["docker", "repo", what, "status", "--repo-id=busybox"])?;
    let documented = [
        "+----------------------------------------------------------------------+",
        "                      Repository Status [busybox]",
        "+----------------------------------------------------------------------+",
        "The repository is not performing any operations",
    ];
    assert_eq!(lines(&out), documented, "{what}");
    Ok(())
}

/// `app/busybox.json` is the documented redirect file, key by key, and leads to the published images.
fn redirect_file(server: &Standalone, images: &LegacyImages) -> Result<()> {
    let published = server.data_dir().join("published/docker");
    let file = std::fs::read(published.join("app/busybox.json"))?;
    assert_eq!(documented_redirect(&file)?, expected_redirect(server, images));

    let original = members(&images.tar)?;
    for (n, id) in images.ids.iter().enumerate() {
        let folder = published.join("web/busybox").join(id);
        let files: BTreeMap<String, Vec<u8>> = ["ancestry", "json", "layer"]
            .into_iter()
            .map(|name| Ok((name.to_owned(), std::fs::read(folder.join(name))?)))
            .collect::<Result<_>>()?;
        image_files(&original, &images.ids, n, &files)?;
    }
    Ok(())
}

/// The redirect file with its images sorted, since their order means nothing.
fn documented_redirect(bytes: &[u8]) -> Result<Value> {
    let mut file: Value = serde_json::from_slice(bytes)?;
    let images = file["images"].as_array_mut().context("no images")?;
    images.sort_by_key(ToString::to_string);
    Ok(file)
}

fn expected_redirect(server: &Standalone, images: &LegacyImages) -> Value {
    let ids: BTreeSet<&String> = images.ids.iter().collect();
    json!({
        "type": "pulp-docker-redirect",
        "version": 1,
        "repository": "busybox",
        "repo-registry-id": "pulpdemo/busybox",
        "url": format!("http://{}/pulp/docker/v1/busybox/", server.crane()),
        "protected": false,
        "images": ids.iter().map(|id| json!({"id": id})).collect::<Vec<_>>(),
        "tags": {"latest": images.ids[0]},
    })
}

/// The three files of image `n` are what went in: its description unchanged, its layer compressed, its ancestry.
fn image_files(
    original: &BTreeMap<String, Vec<u8>>,
    ids: &[String],
    n: usize,
    files: &BTreeMap<String, Vec<u8>>,
) -> Result<()> {
    let id = &ids[n];
    let ancestry: Vec<String> = serde_json::from_slice(&files["ancestry"])?;
    assert_eq!(ancestry, &ids[n..]);
    assert_eq!(files["json"], original[&format!("{id}/json")]);
    let mut layer = Vec::new();
    flate2::read::MultiGzDecoder::new(files["layer"].as_slice()).read_to_end(&mut layer)?;
    assert_eq!(layer, original[&format!("{id}/layer.tar")]);
    Ok(())
}

fn export(server: &Standalone, images: &LegacyImages) -> Result<()> {
    let out = server.admin(&["docker", "repo", "export", "run", "--repo-id=busybox"])?;
    let documented = [
        "+----------------------------------------------------------------------+",
        "                    Publishing Repository [busybox]",
        "+----------------------------------------------------------------------+",
        "This command may be exited via ctrl+c without affecting the request.",
        "Publishing Image Files.",
        "[==================================================] 100%",
        "4 of 4 items",
        "... completed",
        "Saving tar file.",
        "[-]",
        "... completed",
        "Task Succeeded",
    ];
    assert_eq!(lines(&out), documented);
    idle(server, "export")?;

    let documented = server.data_dir().join("published/docker/export/repo/busybox.tar");
    check_export(server, images, &std::fs::read(&documented)?)?;
    let chosen = server.folder().join("chosen.tar");
    let option = format!("--export-file={}", chosen.display());
    server.admin(&["docker", "repo", "export", "run", "--repo-id=busybox", &option])?;
    assert_eq!(
        std::fs::read(&chosen)?,
        std::fs::read(&documented)?,
        "an export is reproducible"
    );
    Ok(())
}

/// `<repo>.json` and `<repo>/<image>/…` as documented; the registry API v2's files in a folder of their own.
fn check_export(server: &Standalone, images: &LegacyImages, tar: &[u8]) -> Result<()> {
    let (original, exported) = (members(&images.tar)?, members(tar)?);
    let mut expected: BTreeSet<String> = ["busybox.json", "v2/busybox.json", "v2/busybox/tags/list"]
        .map(ToOwned::to_owned)
        .into();
    for (n, id) in images.ids.iter().enumerate() {
        let mut files = BTreeMap::new();
        for name in ["ancestry", "json", "layer"] {
            let path = format!("busybox/{id}/{name}");
            files.insert(
                name.to_owned(),
                exported.get(&path).cloned().context(path.clone())?,
            );
            expected.insert(path);
        }
        image_files(&original, &images.ids, n, &files)?;
    }
    assert_eq!(exported.keys().cloned().collect::<BTreeSet<_>>(), expected);
    assert_eq!(
        documented_redirect(&exported["busybox.json"])?,
        expected_redirect(server, images)
    );
    let tags: Value = serde_json::from_slice(&exported["v2/busybox/tags/list"])?;
    assert_eq!(tags, json!({"name": "pulpdemo/busybox", "tags": []}));
    Ok(())
}

/// The registry API of docker before 1.6 has it all; today's API knows the repository and that it is empty.
fn crane(server: &Standalone, images: &LegacyImages) -> Result<()> {
    let base = format!("http://{}", server.crane());
    let get = |path: &str| http::get(&format!("{base}{path}"));
    assert_eq!(get("/v1/_ping")?.status, 200);

    let listed = get("/v1/repositories/pulpdemo/busybox/images")?;
    let ids: BTreeSet<&String> = images.ids.iter().collect();
    assert_eq!(
        listed.json()?,
        json!(ids.iter().map(|id| json!({"id": id})).collect::<Vec<_>>())
    );
    assert_eq!(listed.headers["x-docker-endpoints"], server.crane().to_string());
    let tags = get("/v1/repositories/pulpdemo/busybox/tags")?;
    assert_eq!(tags.json()?, json!({"latest": images.ids[0]}));
    let latest = get("/v1/repositories/pulpdemo/busybox/tags/latest")?;
    assert_eq!(latest.json()?, json!(images.ids[0]));

    let original = members(&images.tar)?;
    for (n, id) in images.ids.iter().enumerate() {
        let mut files = BTreeMap::new();
        for name in ["ancestry", "json", "layer"] {
            let answer = get(&format!("/v1/images/{id}/{name}"))?;
            assert_eq!(answer.status, 200, "{name} of {id}");
            files.insert(name.to_owned(), answer.body);
        }
        image_files(&original, &images.ids, n, &files)?;
    }
    assert_eq!(get(&format!("/v1/images/{}/json", "0".repeat(64)))?.status, 404);

    assert_eq!(
        get("/v2/pulpdemo/busybox/tags/list")?.json()?,
        json!({"name": "pulpdemo/busybox", "tags": []})
    );
    let manifest = get("/v2/pulpdemo/busybox/manifests/latest")?;
    assert_eq!(
        (manifest.status, manifest.error_code().as_str()),
        (404, "MANIFEST_UNKNOWN")
    );
    Ok(())
}

/// `login` keeps a session, so that commands need no password, until `logout`.
fn session(server: &Standalone) -> Result<()> {
    let home = server.folder().join("home");
    std::fs::create_dir(&home)?;
    let admin = |words: &[&str]| {
        Command::new(binary("pulp-admin"))
            .args(words)
            .env("HOME", &home)
            .env("PULP_SERVER", format!("http://{}", server.api()))
            .env_remove("PULP_USERNAME")
            .env_remove("PULP_PASSWORD")
            .stdin(std::process::Stdio::null())
            .output()
    };
    let list = ["docker", "repo", "list", "--summary"];
    assert!(!admin(&list)?.status.success(), "without a login");
    assert!(!admin(&["login", "-u", "admin", "-p", "wrong"])?.status.success());
    assert!(!admin(&list)?.status.success(), "after a login that failed");
    let login = admin(&["login", "-u", "admin", "-p", PASSWORD])?;
    assert!(
        login.status.success(),
        "{}",
        String::from_utf8_lossy(&login.stderr)
    );
    assert!(String::from_utf8_lossy(&login.stdout).starts_with("Successfully logged in."));
    let listed = admin(&list)?;
    assert!(
        listed.status.success(),
        "{}",
        String::from_utf8_lossy(&listed.stderr)
    );
    assert!(String::from_utf8_lossy(&listed.stdout).contains("busybox"));
    let status = admin(&["status"])?;
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    for role in ["resource_manager", "reserved_resource_worker", "scheduler"] {
        assert!(status.contains(role), "{status}");
    }
    assert!(admin(&["logout"])?.status.success());
    assert!(!admin(&list)?.status.success(), "after a logout");
    Ok(())
}
