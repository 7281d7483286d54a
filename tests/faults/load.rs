//! Clients: they ask for tasks of all kinds on a few repositories, and take a refusal or a broken connection as it
//! comes.

use std::{
    net::SocketAddr,
    sync::atomic::Ordering,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use pulp_tests::{PASSWORD, images::SavedImage};
use serde_json::{Value, json};

use crate::{random::Random, run::Run, upstream::Upstream};

pub(crate) const WEB: &str = "docker_web_distributor_name_cli";
const EXPORT: &str = "docker_export_distributor_name_cli";

/// Tasks without an end that are enough: more would only make the run longer.
const ENOUGH: usize = 40;

/// HTTP that gives up after a time: who it talks to may be frozen.
pub(crate) struct Client {
    runtime: tokio::runtime::Runtime,
    http: reqwest::Client,
}

impl Client {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
            http: reqwest::Client::builder()
                .timeout(Duration::from_secs(30))
                .build()?,
        })
    }

    fn send(&self, request: reqwest::RequestBuilder) -> Result<(u16, Vec<u8>)> {
        self.runtime.block_on(async {
            let answer = request.send().await?;
            Ok((answer.status().as_u16(), answer.bytes().await?.to_vec()))
        })
    }

    /// Anything of Crane's.
    pub(crate) fn get(&self, url: &str, accept: &str) -> Result<(u16, Vec<u8>)> {
        self.send(self.http.get(url).header("accept", accept))
    }

    /// A REST call as the user `admin`.
    pub(crate) fn call(&self, api: SocketAddr, method: &str, path: &str, body: Body) -> Result<(u16, Value)> {
        let url = format!("http://{api}/pulp/api/v2{path}");
        let request = self
            .http
            .request(method.parse()?, url)
            .basic_auth("admin", Some(PASSWORD));
        let (status, answer) = self.send(match body {
            Body::None => request,
            Body::Json(json) => request.json(&json),
            Body::Bytes(bytes) => request.body(bytes),
        })?;
        Ok((status, serde_json::from_slice(&answer).unwrap_or(Value::Null)))
    }
}

pub(crate) enum Body {
    None,
    Json(Value),
    Bytes(Vec<u8>),
}

/// One client.
pub(crate) struct Load<'a> {
    pub(crate) run: &'a Run,
    /// The API's processes; each request goes to one of them.
    pub(crate) apis: [SocketAddr; 2],
    pub(crate) client: Client,
    pub(crate) random: Random,
    pub(crate) images: &'a [SavedImage],
    /// Repositories that stay.
    pub(crate) lasting: &'a [String],
    /// Repositories that are deleted and made again.
    pub(crate) passing: &'a [String],
    /// Repositories that are copies of others'.
    pub(crate) upstream: &'a Upstream,
    /// Its own tasks, to cancel some.
    pub(crate) own: Vec<String>,
}

impl Load<'_> {
    /// Asks until the run is over.
    pub(crate) fn drive(mut self) {
        while !self.run.is_over() {
            if self.run.open.load(Ordering::Relaxed) > ENOUGH {
                self.run.pause(100);
                continue;
            }
            if self.one_request().is_err() {
                // The API is away or refuses: a client comes back later.
                self.run.count("requests refused or broken");
                self.run.pause(200);
            }
            let think = self.random.millis(1, 60);
            self.run.pause(think);
        }
    }

    fn one_request(&mut self) -> Result<()> {
        let passing = self.random.below(5) == 0;
        let repo = self
            .random
            .of(if passing { self.passing } else { self.lasting })
            .clone();
        let at = format!("/repositories/{repo}");
        match self.random.below(24) {
            20..22 => self.sync(),
            22 => {
                let mirror = self.random.of(&self.upstream.mirrors).clone();
                let path = format!("/repositories/{mirror}/actions/publish/");
                self.ask("POST", &path, json!({"id": WEB}))
            }
            0..7 => self.import(&at),
            7..10 => self.tag(&at),
            10..14 => self.ask("POST", &format!("{at}/actions/publish/"), json!({"id": WEB})),
            14 => self.ask("POST", &format!("{at}/actions/publish/"), json!({"id": EXPORT})),
            15..17 => {
                let settings = json!({"distributor_config": {"protected": false}});
                self.ask("PUT", &format!("{at}/distributors/{WEB}/"), settings)
            }
            17 if passing => self.delete_and_make_again(&repo),
            _ => self.cancel(),
        }
    }

    /// Asks either of them: who is away for one request may be there for the next.
    fn call(&mut self, method: &str, path: &str, body: Body) -> Result<(u16, Value)> {
        let api = *self.random.of(&self.apis);
        self.client.call(api, method, path, body)
    }

    fn make(&mut self, repo: &str) -> Result<()> {
        let api = *self.random.of(&self.apis);
        create_repository(&self.client, api, repo)
    }

    /// Copies what the upstream has, which now and then has more.
    fn sync(&mut self) -> Result<()> {
        if self.random.below(4) == 0 {
            self.upstream.grow()?;
        }
        let mirror = self.random.of(&self.upstream.mirrors).clone();
        let path = format!("/repositories/{mirror}/actions/sync/");
        self.ask("POST", &path, json!({"override_config": {}}))
    }

    /// Asks for a task and remembers that it was promised.
    fn ask(&mut self, method: &str, path: &str, body: Value) -> Result<()> {
        let (status, report) = self.call(method, path, Body::Json(body))?;
        ensure!(status == 202, "{status} {report}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let now = i64::try_from(now.as_micros())?;
        for task in report["spawned_tasks"].as_array().context("no tasks")? {
            let id = task["task_id"].as_str().context("no task_id")?.to_owned();
            self.run.accepted.lock().unwrap().entry(id.clone()).or_insert(now);
            self.own.push(id);
        }
        Ok(())
    }

    fn import(&mut self, at: &str) -> Result<()> {
        // Large ones are rare: they are there to be met in their middle.
        let last = self.images.len() - 1;
        let image = if self.random.below(12) == 0 {
            last
        } else {
            self.random.below(last)
        };
        // An upload's files are the API host's: one host here, so any of its processes takes the pieces.
        let (status, made) = self.call("POST", "/content/uploads/", Body::None)?;
        ensure!(status == 201, "{status} {made}");
        let upload = made["upload_id"].as_str().context("no upload_id")?.to_owned();
        let tar = &self.images[image].tar;
        for (n, piece) in tar.chunks(2_000_000).enumerate() {
            let path = format!("/content/uploads/{upload}/{}/", n * 2_000_000);
            let (status, answer) = self.call("PUT", &path, Body::Bytes(piece.to_vec()))?;
            ensure!(status == 200, "{status} {answer}");
        }
        let body = json!({
            "upload_id": upload, "unit_type_id": "docker_image", "unit_key": {}, "unit_metadata": {},
            "override_config": {},
        });
        self.ask("POST", &format!("{at}/actions/import_upload/"), body)
    }

    fn tag(&mut self, at: &str) -> Result<()> {
        let criteria = json!({"criteria": {"type_ids": ["docker_manifest"]}});
        let path = format!("{at}/search/units/");
        let (status, found) = self.call("POST", &path, Body::Json(criteria))?;
        ensure!(status == 200, "{status} {found}");
        let found = found.as_array().context("no list")?;
        if found.is_empty() {
            bail!("nothing to tag yet");
        }
        let digest = self.random.of(found)["metadata"]["digest"].clone();
        let name = format!("t{}", self.random.below(6));
        let body = json!({
            "unit_type_id": "docker_tag", "unit_key": {"name": name},
            "unit_metadata": {"name": name, "manifest_digest": digest}, "override_config": {},
        });
        self.ask("POST", &format!("{at}/actions/import_upload/"), body)
    }

    fn cancel(&mut self) -> Result<()> {
        let Some(id) = self.own.pop() else { return Ok(()) };
        let (status, answer) = self.call("DELETE", &format!("/tasks/{id}/"), Body::None)?;
        ensure!(status == 200, "{status} {answer}");
        self.run.count("cancels asked for");
        Ok(())
    }

    fn delete_and_make_again(&mut self, repo: &str) -> Result<()> {
        self.ask("DELETE", &format!("/repositories/{repo}/"), json!({}))?;
        // While it isn't gone it can't be made; whoever comes when it is makes it.
        for _ in 0..50 {
            if self.run.is_over() || self.make(repo).is_ok() {
                break;
            }
            self.run.pause(200);
        }
        Ok(())
    }
}

/// Makes a repository with both distributors.
pub(crate) fn create_repository(client: &Client, api: SocketAddr, repo: &str) -> Result<()> {
    create_with_importer(client, api, repo, &json!({}))
}

/// The same, with settings of its importer.
pub(crate) fn create_with_importer(
    client: &Client,
    api: SocketAddr,
    repo: &str,
    importer: &Value,
) -> Result<()> {
    let settings = json!({"repo-registry-id": format!("ns/{repo}")});
    let body = json!({
        "id": repo, "importer_type_id": "docker_importer", "importer_config": importer,
        "distributors": [
            {"distributor_type_id": "docker_distributor_web", "distributor_config": settings,
             "distributor_id": WEB, "auto_publish": false},
            {"distributor_type_id": "docker_distributor_export", "distributor_config": settings,
             "distributor_id": EXPORT, "auto_publish": false},
        ],
    });
    let (status, made) = client.call(api, "POST", "/repositories/", Body::Json(body))?;
    ensure!(status == 201, "{status} {made}");
    Ok(())
}
