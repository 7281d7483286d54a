//! Uploads against a stand-in for the REST API, and how they go on after an interruption.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use crate::fake::{Ended, Fake, call_report, fault, run, task};
use pulp_admin::{Exit, Interrupt};
use serde_json::{Value, json};

const IMPORT: &str = "POST /pulp/api/v2/repositories/busybox/actions/import_upload/";
const RULE: &str = "+----------------------------------------------------------------------+";

/// A tar of one member, some chunks long.
fn tar(folder: &Path, name: &str, member: &str, bytes: &[u8]) -> PathBuf {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    builder.append_data(&mut header, member, bytes).unwrap();
    let path = folder.join(name);
    std::fs::write(&path, builder.into_inner().unwrap()).unwrap();
    path
}

async fn start() -> Fake {
    let fake = Fake::start().await;
    fake.with_repository().on(IMPORT, 202, call_report(&["t1"])).on(
        "GET /pulp/api/v2/tasks/t1/",
        200,
        task("t1", "finished", &[], &json!({})),
    );
    fake
}

fn trackers(fake: &Fake) -> Vec<Value> {
    let folder = fake.home.path().join(".pulp/uploads/default");
    let mut trackers: Vec<Value> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.file_name().unwrap().to_str().unwrap().starts_with('.'))
        .map(|path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
        .collect();
    trackers.sort_by_key(|t| t["upload_id"].to_string());
    trackers
}

fn puts(fake: &Fake) -> Vec<String> {
    let lines = fake.seen().into_iter().map(|s| s.line);
    lines
        .filter_map(|l| {
            l.strip_prefix("PUT /pulp/api/v2/content/uploads/")
                .map(ToOwned::to_owned)
        })
        .collect()
}

/// Uploads a file and is interrupted by ctrl-c at the chunk that begins at 2000.
async fn interrupted(fake: &Fake, file: &Path) -> Ended {
    let (mut io, captured) = fake.io();
    let ctrl_c = Arc::new(tokio::sync::Notify::new());
    io.interrupt = Interrupt::Notified(ctrl_c.clone());
    let mut raised = false;
    fake.hook(move |line| {
        if line.ends_with("/2000/") && !raised {
            raised = true;
            ctrl_c.notify_one();
        }
        None
    });
    let file = file.to_str().unwrap();
    run(
        &[
            "docker",
            "repo",
            "uploads",
            "upload",
            "--repo-id=busybox",
            "-f",
            file,
        ],
        &io,
        &captured,
    )
    .await
}

#[tokio::test]
async fn an_upload_reads_as_documented_and_leaves_nothing_behind() {
    let fake = start().await;
    let file = tar(fake.home.path(), "busybox.tar", "repositories", b"{}");
    let size = std::fs::metadata(&file).unwrap().len();
    let command = [
        "docker",
        "repo",
        "uploads",
        "upload",
        "--repo-id=busybox",
        "-f",
        file.to_str().unwrap(),
        "--mask-id=ab",
    ];
    let ended = fake.run(&command).await;
    assert_eq!(ended.exit, Exit::Success, "{}", ended.err);
    let full = format!("[{}] 100%", "=".repeat(50));
    assert_eq!(
        ended.out,
        format!(
            "{RULE}\n                              Unit Upload\n{RULE}\n\n\
             Extracting necessary metadata for each request...\n{full}\nAnalyzing: busybox.tar\n... completed\n\n\
             Creating upload requests on the server...\n{full}\nInitializing: busybox.tar\n... completed\n\n\
             Starting upload of selected units. If this process is stopped through ctrl+c,\n\
             the uploads will be paused and may be resumed later using the resume command or\n\
             canceled entirely using the cancel command.\n\n\
             Uploading: busybox.tar\n{full}\n{size}/{size} bytes\n... completed\n\n\
             Importing into the repository...\n\
             This command may be exited via ctrl+c without affecting the request.\n\n\n\
             [-]\nRunning...\n\nTask Succeeded\n\n\n\
             Deleting the upload request...\n... completed\n\n"
        )
    );
    assert_eq!(
        fake.bodies(IMPORT),
        [
            json!({"upload_id": "upload-1", "unit_type_id": "docker_image", "unit_key": {}, "unit_metadata": {},
            "override_config": {"mask_id": "ab"}})
        ]
    );
    assert_eq!(puts(&fake), ["upload-1/0/", "upload-1/1000/", "upload-1/2000/"]);
    assert_eq!(fake.uploaded("upload-1"), None, "deleted on the server");
    assert!(trackers(&fake).is_empty());
    let left = std::fs::read_dir(fake.home.path().join(".pulp/uploads/default"))
        .unwrap()
        .count();
    assert_eq!(left, 0, "no lock file either");
}

#[tokio::test]
async fn the_bytes_that_arrive_are_the_files() {
    let fake = start().await;
    let bytes: Vec<u8> = (0..10_123_u32).map(|i| (i % 251) as u8).collect();
    let file = tar(fake.home.path(), "skopeo.tar", "layer", &bytes);
    // The import fails to be queued for a reason that may pass, so that the upload stays to be looked at.
    fake.hook(|line| {
        line.starts_with(IMPORT)
            .then(|| fault(503, "PLP0024", "no workers"))
    });
    let ended = fake
        .run(&[
            "docker",
            "repo",
            "uploads",
            "upload",
            "--repo-id=busybox",
            "-f",
            file.to_str().unwrap(),
        ])
        .await;
    assert_eq!(ended.exit, Exit::Software);
    assert_eq!(fake.uploaded("upload-1").unwrap(), std::fs::read(&file).unwrap());
    assert_eq!(trackers(&fake)[0]["is_finished_uploading"], true);
}

#[tokio::test]
async fn ctrl_c_pauses_an_upload_and_resume_goes_on_where_it_stopped() {
    let fake = start().await;
    let file = tar(fake.home.path(), "busybox.tar", "repositories", &[7; 4000]);
    let ended = interrupted(&fake, &file).await;
    assert_eq!(ended.exit.code(), 130);
    assert!(
        ended.err.contains("Uploading paused") && ended.err.contains("upload-1"),
        "{}",
        ended.err
    );
    assert_eq!(trackers(&fake)[0]["offset"], 2000);

    let list = fake.run(&["docker", "repo", "uploads", "list"]).await;
    assert!(list.out.contains("[Paused ] busybox.tar (2000/"), "{}", list.out);

    let before = puts(&fake).len();
    let ended = fake.run(&["docker", "repo", "uploads", "resume", "--all"]).await;
    assert_eq!(ended.exit, Exit::Success, "{}", ended.err);
    let again = &puts(&fake)[before..];
    // The server may or may not have taken the chunk that was interrupted; it alone knows.
    assert!(
        matches!(again[0].as_str(), "upload-1/2000/" | "upload-1/3000/"),
        "{again:?}"
    );
    assert_eq!(fake.bodies(IMPORT).len(), 1);
    assert!(trackers(&fake).is_empty());
}

#[tokio::test]
async fn resume_trusts_the_servers_size_not_its_own() {
    let fake = start().await;
    let file = tar(fake.home.path(), "busybox.tar", "repositories", &[7; 4000]);
    interrupted(&fake, &file).await;
    let whole = std::fs::read(&file).unwrap();
    // As after a kill in the middle of a chunk: the tracker says 2000, the server has less.
    fake.set_upload("upload-1", &whole[..1234]);
    // The import is refused for now, so that the bytes can be compared.
    fake.hook(|line| {
        line.starts_with(IMPORT)
            .then(|| fault(503, "PLP0024", "no workers"))
    });
    let before = puts(&fake).len();
    fake.run(&["docker", "repo", "uploads", "resume", "--upload-id=upload-1"])
        .await;
    assert_eq!(puts(&fake)[before], "upload-1/1234/");
    assert_eq!(fake.uploaded("upload-1").unwrap(), whole);
}

#[tokio::test]
async fn a_server_that_lost_bytes_in_mid_upload_gets_them_again() {
    let fake = start().await;
    let file = tar(fake.home.path(), "busybox.tar", "repositories", &[7; 4000]);
    let mut lost = false;
    fake.hook(move |line| {
        let now = line.ends_with("/2000/") && !lost;
        lost |= now;
        now.then(|| fault(400, "PLP2003", "the chunk begins beyond the end"))
    });
    let ended = fake
        .run(&[
            "docker",
            "repo",
            "uploads",
            "upload",
            "--repo-id=busybox",
            "-f",
            file.to_str().unwrap(),
        ])
        .await;
    assert_eq!(ended.exit, Exit::Success, "{}", ended.err);
    assert_eq!(puts(&fake).iter().filter(|l| l.ends_with("/2000/")).count(), 2);
}

#[tokio::test]
async fn a_chunk_that_a_failing_server_refused_is_sent_again() {
    let fake = start().await;
    let file = tar(fake.home.path(), "busybox.tar", "repositories", b"{}");
    let mut failures = 2;
    fake.hook(move |line| {
        (line.ends_with("/1000/") && failures > 0).then(|| {
            failures -= 1;
            (502, json!("bad gateway"))
        })
    });
    let ended = fake
        .run(&[
            "docker",
            "repo",
            "uploads",
            "upload",
            "--repo-id=busybox",
            "-f",
            file.to_str().unwrap(),
        ])
        .await;
    assert_eq!(ended.exit, Exit::Success, "{}", ended.err);
}

#[tokio::test]
async fn an_upload_that_the_server_no_longer_has_is_told_and_can_be_forgotten() {
    let fake = start().await;
    let file = tar(fake.home.path(), "busybox.tar", "repositories", &[7; 4000]);
    interrupted(&fake, &file).await;
    fake.drop_upload("upload-1");
    let ended = fake.run(&["docker", "repo", "uploads", "resume", "--all"]).await;
    assert_eq!(ended.exit, Exit::Data);
    assert!(
        ended.err.contains("is not on the server any more"),
        "{}",
        ended.err
    );
    let ended = fake.run(&["docker", "repo", "uploads", "cancel", "--all"]).await;
    assert_eq!(ended.exit, Exit::Success, "{}", ended.err);
    assert!(trackers(&fake).is_empty());
}

#[tokio::test]
async fn a_file_that_changed_since_is_not_mixed_into_its_upload() {
    let fake = start().await;
    let file = tar(fake.home.path(), "busybox.tar", "repositories", &[7; 4000]);
    interrupted(&fake, &file).await;
    tar(fake.home.path(), "busybox.tar", "repositories", &[8; 9000]);
    let before = puts(&fake).len();
    let ended = fake.run(&["docker", "repo", "uploads", "resume", "--all"]).await;
    assert_eq!(ended.exit, Exit::Data);
    assert!(
        ended.err.contains("has changed since its upload began"),
        "{}",
        ended.err
    );
    assert_eq!(puts(&fake).len(), before);
}

#[tokio::test]
async fn detaching_from_an_import_keeps_the_upload_and_resume_follows_the_same_task() {
    let fake = Fake::start().await;
    fake.with_repository().on(IMPORT, 202, call_report(&["t1"])).on(
        "GET /pulp/api/v2/tasks/t1/",
        200,
        task("t1", "running", &[], &json!({})),
    );
    let file = tar(fake.home.path(), "busybox.tar", "repositories", b"{}");
    let (mut io, captured) = fake.io();
    let ctrl_c = Arc::new(tokio::sync::Notify::new());
    io.interrupt = Interrupt::Notified(ctrl_c.clone());
    fake.hook(move |line| {
        if line.contains("/tasks/") {
            ctrl_c.notify_one();
        }
        None
    });
    let command = [
        "docker",
        "repo",
        "uploads",
        "upload",
        "--repo-id=busybox",
        "-f",
        file.to_str().unwrap(),
    ];
    let ended = run(&command, &io, &captured).await;
    assert_eq!(ended.exit.code(), 130);
    assert!(
        fake.uploaded("upload-1").is_some(),
        "the import may still read it"
    );

    fake.hook(|_| None);
    fake.on(
        "GET /pulp/api/v2/tasks/t1/",
        200,
        task("t1", "finished", &[], &json!({})),
    );
    let ended = fake.run(&["docker", "repo", "uploads", "resume", "--all"]).await;
    assert_eq!(ended.exit, Exit::Success, "{}", ended.err);
    assert_eq!(fake.bodies(IMPORT).len(), 1, "not imported twice");
    assert!(fake.uploaded("upload-1").is_none() && trackers(&fake).is_empty());
}

#[tokio::test]
async fn a_refused_import_deletes_the_upload_and_the_other_files_go_on() {
    let fake = Fake::start().await;
    let mut failed = task("t1", "error", &[], &json!({}));
    failed["error"] = json!({"code": "DKR1102", "description": "damaged", "data": {}, "sub_errors": []});
    fake.with_repository()
        .on(IMPORT, 202, call_report(&["t1"]))
        .on(IMPORT, 202, call_report(&["t2"]))
        .on("GET /pulp/api/v2/tasks/t1/", 200, failed)
        .on(
            "GET /pulp/api/v2/tasks/t2/",
            200,
            task("t2", "finished", &[], &json!({})),
        );
    let folder = fake.home.path().join("images");
    std::fs::create_dir(&folder).unwrap();
    tar(&folder, "a.tar", "repositories", b"{}");
    tar(&folder, "b.tar", "manifest.json", b"{\"schemaVersion\":2}");
    std::fs::write(folder.join("readme.txt"), "text").unwrap();
    std::fs::write(folder.join("list.json"), "{\"manifests\":[]}").unwrap();
    let command = [
        "--json",
        "docker",
        "repo",
        "uploads",
        "upload",
        "--repo-id=busybox",
        "-d",
        folder.to_str().unwrap(),
    ];
    let ended = fake.run(&command).await;
    assert_eq!(ended.exit, Exit::TaskFailed);
    assert!(
        ended
            .err
            .contains("readme.txt is neither a tar archive nor a manifest list"),
        "{}",
        ended.err
    );
    let json = ended.json();
    let types: Vec<&str> = json["uploads"]
        .as_array()
        .unwrap()
        .iter()
        .map(|u| u["unit_type_id"].as_str().unwrap())
        .collect();
    assert_eq!(types, ["docker_image", "docker_manifest", "docker_manifest_list"]);
    assert_eq!(
        json["uploads"][0]["error"]["tasks"][0]["error"]["code"],
        "DKR1102"
    );
    assert_eq!(json["uploads"][1]["tasks"][0]["state"], "finished");
    assert!(trackers(&fake).is_empty());
}

#[tokio::test]
async fn what_can_not_be_uploaded_is_told_before_anything_is_sent() {
    let fake = start().await;
    let text = fake.home.path().join("text");
    std::fs::write(&text, "hello").unwrap();
    let upload = async |args: &[&str]| {
        fake.run(
            &[
                &["docker", "repo", "uploads", "upload", "--repo-id=busybox"],
                args,
            ]
            .concat(),
        )
        .await
    };
    let ended = upload(&["-f", text.to_str().unwrap()]).await;
    assert_eq!(ended.exit, Exit::Data);
    assert!(
        ended
            .err
            .contains("text is neither a tar archive nor a manifest list"),
        "{}",
        ended.err
    );
    assert_eq!(upload(&[]).await.exit, Exit::Data, "no files");
    assert_eq!(upload(&["-f", "/nope"]).await.exit, Exit::Io);
    assert_eq!(upload(&["-d", "/nope"]).await.exit, Exit::Io);
    assert_eq!(fake.bodies("POST").len(), 0);
    let ended = fake
        .run(&[
            "docker",
            "repo",
            "uploads",
            "upload",
            "--repo-id=nope",
            "-f",
            "/nope",
        ])
        .await;
    assert_eq!(ended.err, "Repository [nope] does not exist on the server\n");
}

#[tokio::test]
async fn a_tag_is_an_upload_without_a_file() {
    let fake = start().await;
    let digest = format!("sha256:{}", "ab".repeat(32));
    let command = [
        "docker",
        "repo",
        "tag",
        "--repo-id=busybox",
        "--tag-name=latest",
        "--digest",
        &digest,
    ];
    let ended = fake.run(&command).await;
    assert_eq!(ended.exit, Exit::Success, "{}", ended.err);
    assert_eq!(
        fake.bodies(IMPORT),
        [json!({"upload_id": "upload-1", "unit_type_id": "docker_tag",
            "unit_key": {"name": "latest", "repo_id": "busybox"},
            "unit_metadata": {"name": "latest", "manifest_digest": digest, "digest": digest}, "override_config": {}})]
    );
    assert!(puts(&fake).is_empty() && trackers(&fake).is_empty());
    assert!(
        ended.out.contains("\nInitializing upload\n... completed\n"),
        "{}",
        ended.out
    );
}

#[tokio::test]
async fn uploads_to_continue_are_chosen_by_number_at_a_terminal() {
    let fake = start().await;
    let file = tar(fake.home.path(), "busybox.tar", "repositories", &[7; 4000]);
    interrupted(&fake, &file).await;
    let ended = fake.run(&["docker", "repo", "uploads", "resume"]).await;
    assert_eq!(ended.exit, Exit::Usage, "nobody to ask");
    let (io, captured) = fake.io();
    let ended = run(
        &["docker", "repo", "uploads", "resume"],
        &io.with_answers(|_| Ok("1".to_owned())),
        &captured,
    )
    .await;
    assert_eq!(ended.exit, Exit::Success, "{}", ended.err);
    assert!(ended.out.contains("  1) busybox.tar (2000/"), "{}", ended.out);
}

/// Starts the real program on an upload that the server holds up at the chunk that begins at 2000, and
/// returns it once it is there.
async fn held_up(fake: &Fake, file: &Path) -> tokio::process::Child {
    let (seen, mut at_2000) = tokio::sync::mpsc::unbounded_channel();
    fake.hook(move |line| {
        line.ends_with("/2000/").then(|| {
            let _ = seen.send(());
            fault(503, "PLP2002", "not now")
        })
    });
    let child = tokio::process::Command::new(env!("CARGO_BIN_EXE_pulp-admin"))
        .args(["--server", &fake.url, "-u", "admin", "-p", "admin"])
        .args(["docker", "repo", "uploads", "upload", "--repo-id=busybox", "-f"])
        .arg(file)
        .env("HOME", fake.home.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    tokio::time::timeout(Duration::from_secs(20), at_2000.recv())
        .await
        .unwrap()
        .unwrap();
    child
}

#[tokio::test]
async fn an_upload_that_was_killed_is_a_paused_one() {
    let fake = start().await;
    let file = tar(fake.home.path(), "busybox.tar", "repositories", &[7; 4000]);
    let mut child = held_up(&fake, &file).await;
    let list = fake.run(&["docker", "repo", "uploads", "list"]).await;
    assert!(list.out.contains("[Running] busybox.tar"), "{}", list.out);
    let ended = fake
        .run(&["docker", "repo", "uploads", "resume", "--upload-id=upload-1"])
        .await;
    assert!(
        ended.err.contains("under way in another process"),
        "{}",
        ended.err
    );

    child.kill().await.unwrap();
    fake.hook(|_| None);
    let list = fake.run(&["docker", "repo", "uploads", "list"]).await;
    assert!(list.out.contains("[Paused ] busybox.tar"), "{}", list.out);
    let before = puts(&fake).len();
    let ended = fake.run(&["docker", "repo", "uploads", "resume", "--all"]).await;
    assert_eq!(ended.exit, Exit::Success, "{}", ended.err);
    assert_eq!(puts(&fake)[before], "upload-1/2000/");
    assert!(trackers(&fake).is_empty());
}

#[tokio::test]
async fn the_programs_own_ctrl_c_pauses_its_upload() {
    let fake = start().await;
    let file = tar(fake.home.path(), "busybox.tar", "repositories", &[7; 4000]);
    let mut child = held_up(&fake, &file).await;
    let pid = child.id().unwrap().to_string();
    assert!(
        tokio::process::Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .await
            .unwrap()
            .success()
    );
    let status = tokio::time::timeout(Duration::from_secs(20), child.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(status.code(), Some(130));
    assert_eq!(trackers(&fake)[0]["offset"], 2000);
}

#[tokio::test]
async fn a_file_that_is_no_image_does_not_stop_the_others() {
    let fake = start().await;
    let file = tar(fake.home.path(), "busybox.tar", "repositories", b"{}");
    let text = fake.home.path().join("text");
    std::fs::write(&text, "hello").unwrap();
    let command = [
        "--json",
        "docker",
        "repo",
        "uploads",
        "upload",
        "--repo-id=busybox",
        "-f",
        text.to_str().unwrap(),
        "-f",
        file.to_str().unwrap(),
    ];
    let ended = fake.run(&command).await;
    assert_eq!(ended.exit, Exit::Data);
    let json = ended.json();
    assert_eq!(json["uploads"][0]["error"]["exit_code"], 65);
    assert_eq!(json["uploads"][1]["tasks"][0]["state"], "finished");
}
