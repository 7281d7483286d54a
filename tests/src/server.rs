//! What tests ask of a server, whatever it is made of.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{PASSWORD, binary, files_below, on_own_runtime, wait_for};

/// Bytes of one piece of an upload.
const CHUNK: usize = 4 * 1024 * 1024;
/// Where a server answers, whatever it is made of.
pub trait Server {
    /// The REST API.
    fn api(&self) -> SocketAddr;
    /// Crane.
    fn crane(&self) -> SocketAddr;
    /// Files of this test; goes with the server.
    fn folder(&self) -> &Path;
    /// The data directory: `content`, `uploads`, `working`, `published/docker` are below it.
    fn data_dir(&self) -> PathBuf {
        self.folder().join("data")
    }

    /// Runs `pulp-admin <words…>` as the user `admin`.
    fn admin_output(&self, words: &[&str]) -> Result<Output> {
        let output = Command::new(binary("pulp-admin"))
            .args(words)
            .env("HOME", self.folder())
            .env("PULP_SERVER", format!("http://{}", self.api()))
            .env("PULP_USERNAME", "admin")
            .env("PULP_PASSWORD", PASSWORD)
            .stdin(Stdio::null())
            .output()?;
        Ok(output)
    }

    /// Runs `pulp-admin <words…>`, which must succeed; gives what it printed.
    fn admin(&self, words: &[&str]) -> Result<String> {
        let output = self.admin_output(words)?;
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "pulp-admin {} exited {:?}\n{out}{}",
            words.join(" "),
            output.status.code(),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(out)
    }

    /// A REST call as the user `admin`: status and JSON body. `path` follows `/pulp/api/v2`.
    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let url = format!("http://{}/pulp/api/v2{path}", self.api());
        let body = body.cloned();
        let method: reqwest::Method = method.parse()?;
        on_own_runtime(async move {
            let request = reqwest::Client::new()
                .request(method, url)
                .basic_auth("admin", Some(PASSWORD));
            let request = match &body {
                Some(body) => request.json(body),
                None => request,
            };
            let response = request.send().await?;
            let status = response.status().as_u16();
            let text = response.text().await?;
            Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
        })
    }

    /// A REST call that a task answers; gives the task's id.
    fn begin(&self, method: &str, path: &str, body: &Value) -> Result<String> {
        let (status, report) = self.call(method, path, Some(body))?;
        ensure!(status == 202, "{method} {path}: {status} {report}");
        spawned(&report)
    }

    /// The task's row.
    fn task(&self, id: &str) -> Result<Value> {
        let (status, task) = self.call("GET", &format!("/tasks/{id}/"), None)?;
        ensure!(status == 200, "task {id}: {status} {task}");
        Ok(task)
    }

    /// Waits until a task has ended; gives its row.
    fn wait_for_task(&self, id: &str) -> Result<Value> {
        wait_for(&format!("the end of task {id}"), || {
            // The API itself may be in the middle of a restart.
            let Ok(task) = self.task(id) else { return Ok(None) };
            let ended = matches!(
                task["state"].as_str(),
                Some("finished" | "error" | "canceled" | "skipped")
            );
            Ok(ended.then_some(task))
        })
    }

    /// Uploads a file's bytes; gives the upload's id.
    fn upload(&self, bytes: &[u8]) -> Result<String> {
        let (status, made) = self.call("POST", "/content/uploads/", None)?;
        ensure!(status == 201, "create upload: {status} {made}");
        let id = made["upload_id"].as_str().context("no upload_id")?.to_owned();
        for (n, chunk) in bytes.chunks(CHUNK).enumerate() {
            let url = format!(
                "http://{}/pulp/api/v2/content/uploads/{id}/{}/",
                self.api(),
                n * CHUNK
            );
            let chunk = chunk.to_vec();
            on_own_runtime(async move {
                let put = reqwest::Client::new()
                    .put(url)
                    .basic_auth("admin", Some(PASSWORD))
                    .body(chunk);
                let response = put.send().await?;
                ensure!(
                    response.status().is_success(),
                    "chunk: {}",
                    response.text().await?
                );
                Ok(())
            })?;
        }
        Ok(id)
    }

    /// Asks for the import of an upload; gives the task's id.
    fn import(&self, repo: &str, upload: &str, overrides: Value) -> Result<String> {
        let body = serde_json::json!({
            "upload_id": upload, "unit_type_id": "docker_image", "unit_key": {}, "unit_metadata": {},
            "override_config": overrides,
        });
        self.begin(
            "POST",
            &format!("/repositories/{repo}/actions/import_upload/"),
            &body,
        )
    }

    /// Makes a repository with an importer and both distributors, as `pulp-admin docker repo create` does.
    fn create_repository(&self, repo: &str, registry_id: &str) -> Result<()> {
        let settings = serde_json::json!({"repo-registry-id": registry_id});
        let body = serde_json::json!({
            "id": repo, "importer_type_id": "docker_importer", "importer_config": {},
            "distributors": [
                {"distributor_type_id": "docker_distributor_web", "distributor_config": settings,
                 "distributor_id": "docker_web_distributor_name_cli", "auto_publish": false},
                {"distributor_type_id": "docker_distributor_export", "distributor_config": settings,
                 "distributor_id": "docker_export_distributor_name_cli", "auto_publish": false},
            ],
        });
        let (status, made) = self.call("POST", "/repositories/", Some(&body))?;
        ensure!(status == 201, "create repository {repo}: {status} {made}");
        Ok(())
    }

    /// Waits until a task has ended and is `finished`; gives its row.
    fn wait_until_finished(&self, id: &str) -> Result<Value> {
        let task = self.wait_for_task(id)?;
        ensure!(
            task["state"] == "finished",
            "task {id} is {}: {}",
            task["state"],
            task["error"]
        );
        Ok(task)
    }

    /// Waits until a worker runs a task; gives its row. Fails if it has ended by then.
    fn wait_until_running(&self, id: &str) -> Result<Value> {
        wait_for(&format!("the start of task {id}"), || {
            let task = self.task(id)?;
            match task["state"].as_str() {
                Some("waiting" | "accepted") => Ok(None),
                Some("running") => Ok(Some(task)),
                _ => bail!("task {id} ended before it could be met while it ran: {task}"),
            }
        })
    }

    /// Pulls an image from Crane with skopeo, which checks every digest.
    fn pull(&self, name: &str) -> Result<Pulled> {
        let target = tempfile::tempdir_in(self.folder())?;
        let target = target.path().join("pulled");
        pulp_testkit::skopeo(&[
            "copy",
            "--src-tls-verify=false",
            &format!("docker://{}/{name}", self.crane()),
            &format!("dir:{}", target.display()),
        ])?;
        let manifest: Value = serde_json::from_slice(&std::fs::read(target.join("manifest.json"))?)?;
        let digest = manifest["config"]["digest"].as_str().context("no config")?;
        let file = target.join(digest.trim_start_matches("sha256:"));
        let config: Value = serde_json::from_slice(&std::fs::read(file)?)?;
        let diff_ids = config["rootfs"]["diff_ids"].as_array().context("no diff_ids")?;
        Ok(Pulled {
            diff_ids: diff_ids
                .iter()
                .filter_map(|d| Some(d.as_str()?.to_owned()))
                .collect(),
            config: digest.to_owned(),
        })
    }

    /// Files that a task may leave behind: temporary blobs, and whatever is in the working directory.
    fn leftovers(&self) -> Vec<PathBuf> {
        let mut found = files_below(&self.data_dir().join("content/tmp"));
        found.extend(files_below(&self.data_dir().join("working")));
        found
    }

    /// Waits until nothing temporary is left; a task cleans up just after its end.
    fn wait_until_clean(&self) -> Result<()> {
        let clean = wait_for("the end of temporary files", || {
            Ok(self.leftovers().is_empty().then_some(()))
        });
        clean.with_context(|| format!("left behind: {:?}", self.leftovers()))
    }

    /// Asks for a publish by the web distributor; gives the task's id.
    fn publish(&self, repo: &str) -> Result<String> {
        let body = serde_json::json!({"id": "docker_web_distributor_name_cli"});
        self.begin("POST", &format!("/repositories/{repo}/actions/publish/"), &body)
    }
}

/// What a pull brought.
pub struct Pulled {
    /// Digests of the uncompressed layers, base first, as the config tells them.
    pub diff_ids: Vec<String>,
    /// Digest of the config.
    pub config: String,
}

/// The task of a call report.
pub fn spawned(report: &Value) -> Result<String> {
    let id = report["spawned_tasks"][0]["task_id"].as_str();
    Ok(id.with_context(|| format!("no task in {report}"))?.to_owned())
}
