//! Whatever is sent in, it is refused with its code and in words, and leaves nothing behind.

mod archives;
mod requests;

use std::{
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use pulp_model::Digest;
use pulp_tests::{PASSWORD, Server, Standalone, binary, files_below, http, images, wait_for};
use serde_json::{Value, json};
use tar::EntryType;

use archives::{bad_archives, docker, gzip, layer};
use requests::bad_requests;

/// What the server under test expands at most.
const LIMIT: usize = 8_000_000;

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
        let task =
            server.wait_for_task(&server.begin("POST", "/repositories/r/actions/publish/", &body)?)?;
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
