//! Whatever is sent in, it is refused with its code and in words, and leaves nothing behind.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use pulp_model::Digest;
use pulp_tests::{PASSWORD, Server, Standalone, binary, files_below, http, images, spawned, wait_for};
use serde_json::{Value, json};
use tar::{EntryType, Header};

/// What the server under test expands at most.
const LIMIT: usize = 8_000_000;
const GIB_10: u64 = 10 << 30;

/// A tar of which every byte may be wrong.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    /// A header with a name that nobody checks, `size` as told, then the bytes.
    fn raw(mut self, kind: EntryType, name: &str, link: &str, size: u64, bytes: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(size);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.data(bytes)
    }

    fn data(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        self.raw(EntryType::Regular, name, "", bytes.len() as u64, bytes)
    }

    fn link(self, kind: EntryType, name: &str, target: &str) -> Self {
        self.raw(kind, name, target, 0, &[])
    }

    /// GNU's old form of a file with holes: 10 GiB of nothing.
    fn gnu_sparse(mut self, name: &str) -> Self {
        let mut header = Header::new_gnu();
        header.set_path(name).unwrap();
        header.set_entry_type(EntryType::GNUSparse);
        header.set_size(0);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.realsize.copy_from_slice(format!("{GIB_10:012o}").as_bytes());
        gnu.sparse[0]
            .offset
            .copy_from_slice(format!("{GIB_10:012o}").as_bytes());
        gnu.sparse[0].numbytes.copy_from_slice(b"00000000000\0");
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self
    }

    /// The form of POSIX archives: the map before the data, the name and size in records.
    fn pax_sparse(self, name: &str) -> Self {
        let records: String = [
            ("GNU.sparse.major", "1".to_owned()),
            ("GNU.sparse.minor", "0".to_owned()),
            ("GNU.sparse.name", name.to_owned()),
            ("GNU.sparse.realsize", GIB_10.to_string()),
        ]
        .iter()
        .map(|(key, value)| record(key, value))
        .collect();
        self.raw(
            EntryType::XHeader,
            "pax",
            "",
            records.len() as u64,
            records.as_bytes(),
        )
        .file(name, format!("1\n{GIB_10}\n0\n"))
    }

    fn done(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// A PAX record, which tells its own length.
fn record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len() + 1;
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    format!("{length}{rest}")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A layer: a tar of one file.
fn layer(name: &str, bytes: usize) -> Vec<u8> {
    Tar::default().file(name, vec![b'x'; bytes]).done()
}

/// `docker save`'s metadata of one image with these layers, without the layers themselves.
fn docker(tags: &[&str], layers: &[(&str, &[u8])]) -> Tar {
    let diff_ids: Vec<Digest> = layers.iter().map(|(_, bytes)| Digest::sha256(bytes)).collect();
    let config = json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    .to_string();
    let name = format!("{}.json", Digest::sha256(&config).hex());
    let names: Vec<&str> = layers.iter().map(|(name, _)| *name).collect();
    let manifest = json!([{"Config": name, "RepoTags": tags, "Layers": names}]);
    Tar::default()
        .file(&name, config)
        .file("manifest.json", manifest.to_string())
}

/// An OCI layout of one image, with a layer that is stored as `stored`.
fn oci(layer: &[u8], stored: &[u8]) -> Vec<u8> {
    let describe = |kind: &str, bytes: &[u8]| {
        let media_type = format!("application/vnd.oci.image.{kind}");
        json!({"mediaType": media_type, "digest": Digest::sha256(bytes), "size": bytes.len()})
    };
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::sha256(bytes).hex());
    let config = json!({"architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [Digest::sha256(layer)]}})
    .to_string();
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": describe("config.v1+json", config.as_bytes()),
        "layers": [describe("layer.v1.tar", layer)]})
    .to_string();
    let index = json!({"schemaVersion": 2,
        "manifests": [describe("manifest.v1+json", manifest.as_bytes())]});
    Tar::default()
        .file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", index.to_string())
        .file(&blob(manifest.as_bytes()), &manifest)
        .file(&blob(config.as_bytes()), &config)
        .file(&blob(layer), stored)
        .done()
}

/// A bad upload: what it is, its bytes, the code, and a word that the description must have to say where.
type Bad = (&'static str, Vec<u8>, &'static str, &'static str);

fn good() -> Tar {
    let bytes = layer("good", 100);
    docker(&["demo:latest"], &[("l/layer.tar", &bytes)]).file("l/layer.tar", bytes)
}

fn bad_archives() -> Vec<Bad> {
    let small = layer("small", 100);
    let other = layer("other", 100);
    let large = layer("large", 2 * LIMIT);
    let zeros = vec![0; 2 * LIMIT];
    let whole = good().done();
    let docker_of = |bytes: &[u8]| docker(&["demo:latest"], &[("l/layer.tar", bytes)]);
    vec![
        ("text", b"this is no tar".repeat(100), "DKR1101", "docker save"),
        ("nearly nothing", b"x".to_vec(), "DKR1101", "1 bytes"),
        (
            "a tar of something else",
            layer("etc/passwd", 10),
            "DKR1107",
            "no image",
        ),
        (
            "a truncated archive",
            whole[..whole.len() - 1600].to_vec(),
            "DKR1102",
            "l/layer.tar",
        ),
        (
            "a missing layer",
            docker_of(&small).done(),
            "DKR1018",
            "l/layer.tar",
        ),
        (
            "a layer that is not what the config says",
            docker_of(&small).file("l/layer.tar", &other).done(),
            "DKR1017",
            "l/layer.tar",
        ),
        (
            "a blob that is not what its name says",
            oci(&small, &other),
            "DKR1017",
            "blobs/sha256/",
        ),
        (
            "a path that climbs",
            good().file("a/../../../etc/x", "x").done(),
            "DKR1103",
            "a/../../../etc/x",
        ),
        (
            "an absolute path",
            good().file("/etc/x", "x").done(),
            "DKR1103",
            "/etc/x",
        ),
        (
            "a symbolic link out",
            good()
                .link(EntryType::Symlink, "a/out", "../../etc/passwd")
                .done(),
            "DKR1103",
            "a/out",
        ),
        (
            "a layer that is a link out",
            docker_of(&small)
                .link(EntryType::Symlink, "l/layer.tar", "/etc/passwd")
                .done(),
            "DKR1103",
            "l/layer.tar",
        ),
        (
            "links in a circle",
            good()
                .link(EntryType::Symlink, "one", "two")
                .link(EntryType::Symlink, "two", "one")
                .done(),
            "DKR1103",
            "circle",
        ),
        (
            "a hard link out",
            good().link(EntryType::Link, "hard", "../etc/shadow").done(),
            "DKR1103",
            "hard",
        ),
        (
            "two repositories in one archive",
            docker(&["one:latest", "two:latest"], &[("l/layer.tar", &small)])
                .file("l/layer.tar", &small)
                .done(),
            "DKR1104",
            "one, two",
        ),
        (
            "two repositories in `repositories`",
            two_repositories(),
            "DKR1104",
            "one, two",
        ),
        (
            "10 GiB of holes, as GNU wrote them",
            good().gnu_sparse("holes").done(),
            "DKR1113",
            "holes",
        ),
        (
            "10 GiB of holes, as POSIX has them",
            good().pax_sparse("holes").done(),
            "DKR1113",
            "sparse",
        ),
        (
            "a member that says 10 GiB and has none",
            good()
                .raw(EntryType::Regular, "huge", "", GIB_10, b"little")
                .done(),
            "DKR1102",
            "huge",
        ),
        (
            "a layer that expands beyond the limit",
            docker_of(&large).file("l/layer.tar", gzip(&large)).done(),
            "DKR1105",
            "l/layer.tar",
        ),
        (
            "an archive that expands beyond the limit",
            gzip(&good().file("zeros", &zeros).done()),
            "DKR1105",
            "8000000",
        ),
        (
            "an archive of garbage in gzip",
            gzip(b"no tar at all"),
            "DKR1101",
            "docker save",
        ),
        (
            "a manifest.json that is none",
            Tar::default().file("manifest.json", "[{").done(),
            "DKR1011",
            "manifest.json",
        ),
        (
            "a config that is none",
            Tar::default()
                .file(
                    "manifest.json",
                    r#"[{"Config":"c.json","RepoTags":["demo:latest"],"Layers":[]}]"#,
                )
                .file("c.json", "nothing")
                .done(),
            "DKR1011",
            "c.json",
        ),
    ]
}

/// The oldest layout, with a second name beside the first.
fn two_repositories() -> Vec<u8> {
    let id = "a".repeat(64);
    Tar::default()
        .file(
            "repositories",
            json!({"one": {"latest": id}, "two": {"latest": id}}).to_string(),
        )
        .file(
            &format!("{id}/json"),
            json!({"id": id, "os": "linux"}).to_string(),
        )
        .file(&format!("{id}/VERSION"), "1.0")
        .file(&format!("{id}/layer.tar"), layer("x", 10))
        .done()
}

/// Everything of a server that a refused request must not change.
#[derive(Debug, PartialEq)]
struct State {
    files: Vec<PathBuf>,
    repositories: Value,
    units: Value,
}

fn state(server: &impl Server) -> Result<State> {
    let mut files = files_below(&server.data_dir().join("content"));
    files.extend(files_below(&server.data_dir().join("working")));
    files.extend(files_below(&server.data_dir().join("published")));
    let (_, repositories) = server.call("GET", "/repositories/?details=true", None)?;
    let criteria = json!({"criteria": {}});
    let (status, units) = server.call("POST", "/repositories/r/search/units/", Some(&criteria))?;
    ensure!(status == 200, "{units}");
    Ok(State {
        files,
        repositories,
        units,
    })
}

/// Waits until the state is this one again: a task cleans up just after its end.
fn assert_unchanged(server: &impl Server, before: &State, what: &str) -> Result<()> {
    let same = wait_for(what, || Ok((state(server)?.files == before.files).then_some(())));
    let now = state(server)?;
    assert_eq!(&now, before, "after {what}");
    same
}

/// A server with a repository `r` that has been filled and published.
fn server() -> Result<Standalone> {
    let server = Standalone::with(&[("PULP_TASKS_MAX_EXPANDED_BYTES", &LIMIT.to_string())])?;
    server.create_repository("r", "ns/r")?;
    import(&server, &images::docker_archive("first:latest", 1, 1000)?.tar)?;
    let publish = server.publish("r")?;
    server.wait_until_finished(&publish)?;
    server.wait_until_clean()?;
    Ok(server)
}

/// Imports what is good; gives the task's row.
fn import(server: &impl Server, archive: &[u8]) -> Result<Value> {
    let upload = server.upload(archive)?;
    let task = server.import("r", &upload, json!({}))?;
    server.wait_until_finished(&task)
}

#[test]
fn a_bad_archive_is_refused_with_its_code_and_leaves_nothing() -> Result<()> {
    let server = server()?;
    let before = state(&server)?;
    for (what, archive, code, word) in bad_archives() {
        let upload = server.upload(&archive)?;
        let task = server.wait_for_task(&server.import("r", &upload, json!({}))?)?;
        assert_eq!(task["state"], "error", "{what}: {task}");
        let error = &task["error"];
        assert_eq!(error["code"], code, "{what}: {error}");
        let description = error["description"].as_str().unwrap_or_default();
        assert!(description.contains(word), "{what}: {description}");
        assert!(
            !description.contains("/tmp/"),
            "{what} tells of our files: {description}"
        );
        let steps = task["progress_report"]["docker_importer"].as_array();
        let failed = steps.into_iter().flatten().filter(|s| s["state"] == "FAILED");
        assert_eq!(failed.count(), 1, "{what}: {}", task["progress_report"]);
        assert_unchanged(&server, &before, what)?;
    }
    // None of them took a version number.
    let next = import(&server, &images::docker_archive("second:latest", 1, 1000)?.tar)?;
    assert_eq!(next["result"]["details"]["repository_version"], 2);
    Ok(())
}

#[test]
fn links_within_an_archive_are_ordinary() -> Result<()> {
    let server = server()?;
    let (one, two) = (layer("one", 100), layer("two", 100));
    let layers: [(&str, &[u8]); 4] = [
        ("a/layer.tar", &one),
        ("b/layer.tar", &two),
        ("c/layer.tar", &one),
        ("d/layer.tar", &two),
    ];
    let archive = docker(&["demo:latest"], &layers)
        .file("a/layer.tar", &one)
        .file("b/layer.tar", &two)
        .link(EntryType::Symlink, "c/layer.tar", "../a/layer.tar")
        .link(EntryType::Link, "d/layer.tar", "b/layer.tar")
        .done();
    // As it is, and compressed, which is spooled first.
    for archive in [gzip(&archive), archive] {
        import(&server, &archive)?;
        let publish = server.publish("r")?;
        server.wait_until_finished(&publish)?;
        let expected = layers.map(|(_, bytes)| Digest::sha256(bytes).to_string());
        assert_eq!(server.pull("ns/r:latest")?.diff_ids, expected);
    }
    server.wait_until_clean()
}

/// A bad request: verb, path, body, status, code, and a word of the description.
type Request<'a> = (&'a str, String, Vec<u8>, u16, &'a str, &'a str);

fn bad_requests(upload: &str) -> Vec<Request<'static>> {
    let json = |value: Value| value.to_string().into_bytes();
    let repositories = || "/repositories/".to_owned();
    let import = |repo: &str| format!("/repositories/{repo}/actions/import_upload/");
    let publish = || "/repositories/r/actions/publish/".to_owned();
    let image = |upload: &str| {
        json(
            json!({"upload_id": upload, "unit_type_id": "docker_image", "unit_key": {}, "unit_metadata": {}}),
        )
    };
    let chunk = |offset: &str| format!("/content/uploads/{upload}/{offset}/");
    let unknown = "0197a000-0000-7000-8000-000000000000";
    let with_registry_id = json!({"id": "new", "distributors": [{
        "distributor_type_id": "docker_distributor_web", "distributor_id": "web",
        "distributor_config": {"repo-registry-id": "Not/Valid"}}]});
    let tag = |name: &str| {
        json!({"unit_type_id": "docker_tag", "unit_key": {"name": name, "repo_id": "r"},
            "unit_metadata": {"name": name, "digest": Digest::sha256("x")}})
    };
    let web = "docker_web_distributor_name_cli";
    let export = "docker_export_distributor_name_cli";
    vec![
        ("POST", import("r"), image(unknown), 404, "PLP2004", unknown),
        ("PUT", chunk("10"), b"x".to_vec(), 400, "PLP2003", "10"),
        ("PUT", chunk("first"), b"x".to_vec(), 400, "PLP0015", "first"),
        ("PUT", chunk("0"), vec![0; 6 << 20], 413, "PLP2005", "5242880"),
        (
            "PUT",
            format!("/content/uploads/{unknown}/0/"),
            b"x".to_vec(),
            404,
            "PLP2004",
            unknown,
        ),
        (
            "POST",
            repositories(),
            json(json!({"id": "no spaces"})),
            400,
            "PLP0015",
            "no spaces",
        ),
        (
            "POST",
            repositories(),
            json(json!({"id": "../up"})),
            400,
            "PLP0015",
            "../up",
        ),
        ("POST", repositories(), json(json!({})), 400, "PLP0016", "id"),
        (
            "POST",
            repositories(),
            json(json!({"id": "r"})),
            409,
            "PLP0018",
            "\"r\"",
        ),
        (
            "POST",
            repositories(),
            json(with_registry_id),
            400,
            "DKR1005",
            "Not/Valid",
        ),
        (
            "POST",
            repositories(),
            b"{\"id\": ".to_vec(),
            400,
            "PLP1009",
            "JSON",
        ),
        ("POST", repositories(), b"[1]".to_vec(), 400, "PLP1015", "array"),
        (
            "POST",
            repositories(),
            b"{\"id\": \"\xff\"}".to_vec(),
            400,
            "PLP0019",
            "UTF-8",
        ),
        ("POST", import("r"), json(tag("-x")), 400, "DKR1109", "-x"),
        ("POST", import("nope"), image(upload), 404, "PLP0009", "nope"),
        (
            "POST",
            publish(),
            json(json!({"id": "nope"})),
            404,
            "PLP0009",
            "nope",
        ),
        (
            "POST",
            publish(),
            json(json!({"id": web, "override_config": {"protected": "perhaps"}})),
            400,
            "DKR1004",
            "perhaps",
        ),
        (
            "POST",
            publish(),
            json(json!({"id": export, "override_config": {"export_file": "relative.tar"}})),
            400,
            "DKR1112",
            "relative.tar",
        ),
        (
            "DELETE",
            format!("/tasks/{unknown}/"),
            Vec::new(),
            404,
            "PLP0009",
            unknown,
        ),
        (
            "DELETE",
            "/tasks/no-id/".to_owned(),
            Vec::new(),
            404,
            "PLP0009",
            "no-id",
        ),
        (
            "GET",
            "/repositories/nope/".to_owned(),
            Vec::new(),
            404,
            "PLP0009",
            "nope",
        ),
    ]
}

#[test]
fn a_bad_request_is_refused_with_its_code_and_leaves_nothing() -> Result<()> {
    let server = server()?;
    let upload = server.upload(b"four")?;
    let before = state(&server)?;
    let tasks = |server: &Standalone| -> Result<usize> {
        let (_, tasks) = server.call("GET", "/tasks/", None)?;
        Ok(tasks.as_array().context("no tasks")?.len())
    };
    let tasks_before = tasks(&server)?;
    for (method, path, body, status, code, word) in bad_requests(&upload) {
        let url = format!("http://{}/pulp/api/v2{path}", server.api());
        let answer = http::send(method, &url, PASSWORD, &body)?;
        let what = format!(
            "{method} {path} {}",
            String::from_utf8_lossy(&body[..body.len().min(200)])
        );
        let told = answer.json().with_context(|| what.clone())?;
        assert_eq!(answer.status, status, "{what}: {told}");
        assert_eq!(told["error"]["code"], code, "{what}: {told}");
        let description = told["error"]["description"].as_str().unwrap_or_default();
        assert!(description.contains(word), "{what}: {description}");
        assert_eq!(told["http_status"], status, "{what}");
    }
    let url = format!("http://{}/pulp/api/v2/repositories/", server.api());
    let stranger = http::send("GET", &url, "a guess", &[])?;
    assert_eq!(
        (stranger.status, &stranger.json()?["error"]["code"]),
        (401, &json!("PLP0030"))
    );

    assert_eq!(tasks(&server)?, tasks_before, "something was accepted");
    assert_unchanged(&server, &before, "the bad requests")?;
    let (_, kept) = server.call("GET", &format!("/content/uploads/{upload}/"), None)?;
    assert_eq!(kept["size"], 4, "{kept}");
    Ok(())
}

#[test]
fn an_export_that_can_not_be_written_says_where_and_leaves_nothing() -> Result<()> {
    let server = server()?;
    let file = server.folder().join("a-file");
    std::fs::write(&file, "kept")?;
    let folder = server.folder().join("a-folder");
    std::fs::create_dir(&folder)?;
    let before = state(&server)?;
    // Below a file, in place of a directory, and where nobody can make one.
    let targets = [
        file.join("x.tar"),
        folder.clone(),
        PathBuf::from("/proc/pulp/x.tar"),
    ];
    for target in targets {
        let body = json!({"id": "docker_export_distributor_name_cli",
            "override_config": {"export_file": target}});
        let (status, report) = server.call("POST", "/repositories/r/actions/publish/", Some(&body))?;
        ensure!(status == 202, "{report}");
        let task = server.wait_for_task(&spawned(&report)?)?;
        assert_eq!(task["state"], "error", "{task}");
        assert_eq!(task["error"]["code"], "DKR1112", "{target:?}: {}", task["error"]);
        let description = task["error"]["description"].as_str().unwrap_or_default();
        assert!(description.contains(target.to_str().unwrap()), "{description}");
        assert_unchanged(&server, &before, "the export")?;
    }
    assert_eq!(std::fs::read(&file)?, b"kept");
    let mut names: Vec<_> = std::fs::read_dir(server.folder())?
        .map(|e| e.map(|e| e.file_name().display().to_string()))
        .collect::<Result<_, _>>()?;
    names.retain(|n| n.contains("part"));
    assert_eq!(names, Vec::<String>::new(), "parts of the tar stay behind");
    Ok(())
}

/// Runs `pulp-admin` with a password and a server of the test's choice; `None` leaves the variable out.
fn admin(server: &Standalone, words: &[&str], password: Option<&str>, url: &str) -> Result<Output> {
    let mut command = Command::new(binary("pulp-admin"));
    command
        .args(words)
        .env("HOME", server.folder())
        .env("PULP_SERVER", url)
        .env("PULP_USERNAME", "admin")
        .env_remove("PULP_PASSWORD")
        .stdin(Stdio::null());
    if let Some(password) = password {
        command.env("PULP_PASSWORD", password);
    }
    Ok(command.output()?)
}

/// A call of `pulp-admin`: its words, password and server; its exit code, and what it says.
type AdminCase<'a> = (&'a [&'a str], Option<&'a str>, &'a str, i32, &'a str);

#[test]
fn pulp_admin_tells_a_script_by_its_exit_code_and_a_person_in_words() -> Result<()> {
    let server = server()?;
    let here = format!("http://{}", server.api());
    let nowhere = format!("http://127.0.0.1:{}", pulp_testkit::free_port()?);
    let file = |name: &str, bytes: &[u8]| -> Result<String> {
        let path = server.folder().join(name);
        std::fs::write(&path, bytes)?;
        Ok(path.display().to_string())
    };
    let no_tar = file("no-tar", b"text ".repeat(1000).as_slice())?;
    let no_image = file("no-image.tar", &layer("etc/passwd", 10))?;
    let create = ["docker", "repo", "create", "--repo-id=r"];
    let upload = ["docker", "repo", "uploads", "upload", "--repo-id=r", "-f"];
    let no_tar = [&upload[..], &[&no_tar]].concat();
    let no_image = [&upload[..], &[&no_image]].concat();
    let publish = ["docker", "repo", "publish", "run", "--repo-id=nope"];
    let cases: [AdminCase; 9] = [
        (&create, Some(PASSWORD), &here, 65, "PLP0018"),
        (&publish, Some(PASSWORD), &here, 65, "nope"),
        (
            &["tasks", "cancel", "--task-id=none"],
            Some(PASSWORD),
            &here,
            65,
            "none",
        ),
        (&create, Some("a guess"), &here, 77, "PLP0030"),
        (&create, Some(PASSWORD), &nowhere, 78, "can't reach the server"),
        (&["login", "-u", "admin"], None, &here, 67, "password"),
        (&no_tar, Some(PASSWORD), &here, 65, "neither a tar archive"),
        (&no_image, Some(PASSWORD), &here, 1, "DKR1107"),
        (
            &["docker", "repo", "create"],
            Some(PASSWORD),
            &here,
            64,
            "--repo-id",
        ),
    ];
    for (words, password, url, code, said) in cases {
        let output = admin(&server, words, password, url)?;
        let all = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.status.code(), Some(code), "{words:?}: {all}");
        assert!(all.contains(said), "{words:?}: {all}");
        for noise in ["panicked", "Some(", "Err(", "{\""] {
            assert!(!all.contains(noise), "{words:?}: {all}");
        }
    }
    Ok(())
}
