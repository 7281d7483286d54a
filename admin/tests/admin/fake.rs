//! A stand-in for the REST API: records every request, answers what a test has laid out, keeps uploads.

use std::{
    collections::{HashMap, VecDeque},
    os::unix::fs::DirBuilderExt as _,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use pulp_admin::{Captured, Exit, Io};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What the paths of the API begin with.
pub(crate) const API: &str = "/pulp/api/v2";
pub(crate) const SEARCH: &str = "POST /pulp/api/v2/tasks/search/";
/// The line above and below a title.
pub(crate) const RULE: &str = "+----------------------------------------------------------------------+";

/// One request as it came in.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) line: String,
    pub(crate) authorization: Option<String>,
    pub(crate) body: Value,
}

type Answers = HashMap<String, VecDeque<(u16, Value)>>;
type Hook = Box<dyn FnMut(&str) -> Option<(u16, Value)> + Send>;

#[derive(Default)]
struct Inner {
    seen: Vec<Seen>,
    answers: Answers,
    uploads: HashMap<String, Vec<u8>>,
    hook: Option<Hook>,
}

/// The fake server and a client's home.
pub(crate) struct Fake {
    inner: Arc<Mutex<Inner>>,
    pub(crate) url: String,
    pub(crate) home: TempDir,
}

/// How a run ended.
pub(crate) struct Ended {
    pub(crate) exit: Exit,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    /// The one JSON document on stdout.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }
}

impl Fake {
    pub(crate) async fn start() -> Self {
        let inner: Arc<Mutex<Inner>> = Arc::default();
        let app = Router::new().fallback(answer).with_state(inner.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let home = tempfile::tempdir().unwrap();
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(home.path().join(".pulp"))
            .unwrap();
        // Short pauses: a test shouldn't wait a second for the next look at a task.
        let conf = "[output]\npoll_frequency_in_seconds = 0.005\n[server]\nupload_chunk_size = 1000\n";
        std::fs::write(home.path().join(".pulp/admin.conf"), conf).unwrap();
        Self { inner, url, home }
    }

    /// Answers this request so; several answers are given in turn, the last one again and again.
    pub(crate) fn on(&self, line: &str, status: u16, body: Value) -> &Self {
        let mut inner = self.inner.lock().unwrap();
        inner
            .answers
            .entry(line.to_owned())
            .or_default()
            .push_back((status, body));
        self
    }

    /// Looks at each request before anything else does.
    pub(crate) fn hook(&self, hook: impl FnMut(&str) -> Option<(u16, Value)> + Send + 'static) {
        self.inner.lock().unwrap().hook = Some(Box::new(hook));
    }

    /// A repository without anything special.
    pub(crate) fn with_repository(&self) -> &Self {
        let repository = json!({"id": "busybox", "display_name": "busybox", "description": null,
            "notes": {"_repo-type": "docker-repo"}, "scratchpad": {}, "content_unit_counts": {}});
        self.on("GET /pulp/api/v2/repositories/busybox/", 200, repository)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.inner.lock().unwrap().seen.clone()
    }

    /// Bodies of the requests that begin so.
    pub(crate) fn bodies(&self, line: &str) -> Vec<Value> {
        self.seen()
            .into_iter()
            .filter(|s| s.line.starts_with(line))
            .map(|s| s.body)
            .collect()
    }

    pub(crate) fn uploaded(&self, id: &str) -> Option<Vec<u8>> {
        self.inner.lock().unwrap().uploads.get(id).cloned()
    }

    pub(crate) fn set_upload(&self, id: &str, bytes: &[u8]) {
        self.inner
            .lock()
            .unwrap()
            .uploads
            .insert(id.to_owned(), bytes.to_vec());
    }

    pub(crate) fn drop_upload(&self, id: &str) {
        self.inner.lock().unwrap().uploads.remove(id);
    }

    pub(crate) fn io(&self) -> (Io, Captured) {
        let (io, captured) = Io::captured(self.home.path());
        let io = io.with_env("PULP_SERVER", &self.url);
        (
            io.with_env("PULP_USERNAME", "admin")
                .with_env("PULP_PASSWORD", "admin"),
            captured,
        )
    }

    /// Runs a command as admin.
    pub(crate) async fn run(&self, command: &[&str]) -> Ended {
        let (io, captured) = self.io();
        run(command, &io, &captured).await
    }
}

pub(crate) async fn run(command: &[&str], io: &Io, captured: &Captured) -> Ended {
    let args = std::iter::once(&"pulp-admin").chain(command).copied();
    let exit = pulp_admin::run(args, io).await;
    Ended {
        exit,
        out: captured.out(),
        err: captured.err(),
    }
}

async fn answer(
    State(inner): State<Arc<Mutex<Inner>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    bytes: Bytes,
) -> Response {
    let mut inner = inner.lock().unwrap();
    let line = format!("{method} {uri}");
    let authorization = headers
        .get(header::AUTHORIZATION)
        .map(|v| v.to_str().unwrap().to_owned());
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    inner.seen.push(Seen {
        line: line.clone(),
        authorization: authorization.clone(),
        body,
    });

    let hooked = inner.hook.as_mut().and_then(|hook| hook(&line));
    let (status, body) = hooked
        .or_else(|| refused(authorization.as_deref(), &line))
        .or_else(|| laid_out(&mut inner.answers, &line))
        .or_else(|| uploads(&mut inner.uploads, &method, uri.path(), &bytes))
        .unwrap_or_else(|| fault(404, "PLP0009", &format!("no such resource: {line}")));
    let mut response = body.to_string().into_response();
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

fn refused(authorization: Option<&str>, line: &str) -> Option<(u16, Value)> {
    // admin:admin, and the one session that `login` hands out.
    let fine = matches!(authorization, Some("Basic YWRtaW46YWRtaW4=" | "Bearer session-1"));
    (!fine && !line.ends_with("/status/")).then(|| fault(401, "PLP0030", "wrong login or password"))
}

fn laid_out(answers: &mut Answers, line: &str) -> Option<(u16, Value)> {
    let answers = answers.get_mut(line)?;
    if answers.len() > 1 {
        answers.pop_front()
    } else {
        answers.front().cloned()
    }
}

fn uploads(
    uploads: &mut HashMap<String, Vec<u8>>,
    method: &Method,
    path: &str,
    bytes: &[u8],
) -> Option<(u16, Value)> {
    let rest = path.strip_prefix("/pulp/api/v2/content/uploads/")?;
    let parts: Vec<&str> = rest.split('/').filter(|p| !p.is_empty()).collect();
    match (method.as_str(), &parts[..]) {
        ("POST", []) => {
            let id = format!("upload-{}", uploads.len() + 1);
            uploads.insert(id.clone(), Vec::new());
            Some((201, json!({"upload_id": id, "_href": format!("{path}{id}/")})))
        }
        ("GET", [id]) => uploads
            .get(*id)
            .map(|u| (200, json!({"upload_id": id, "size": u.len()}))),
        ("DELETE", [id]) => {
            uploads.remove(*id);
            Some((200, Value::Null))
        }
        ("PUT", [id, offset]) => {
            let upload = uploads.get_mut(*id)?;
            let offset: usize = offset.parse().unwrap();
            if offset > upload.len() {
                return Some(fault(400, "PLP2003", "the chunk begins beyond the end"));
            }
            upload.truncate(offset);
            upload.extend_from_slice(bytes);
            Some((200, Value::Null))
        }
        _ => None,
    }
}

/// Pulp's error body.
pub(crate) fn fault(status: u16, code: &str, text: &str) -> (u16, Value) {
    let error = json!({"code": code, "description": text, "data": {}, "sub_errors": []});
    (
        status,
        json!({"http_status": status, "error_message": text, "exception": null, "traceback": null, "error": error}),
    )
}

/// A 202's body.
pub(crate) fn call_report(tasks: &[&str]) -> Value {
    let tasks: Vec<Value> = tasks
        .iter()
        .map(|id| json!({"task_id": id, "_href": format!("/pulp/api/v2/tasks/{id}/")}))
        .collect();
    json!({"result": null, "error": null, "spawned_tasks": tasks})
}

/// A task report.
pub(crate) fn task(id: &str, state: &str, tags: &[&str], progress: &Value) -> Value {
    let started = if state == "waiting" {
        Value::Null
    } else {
        json!("2026-01-01T00:00:00Z")
    };
    json!({"task_id": id, "id": id, "state": state, "tags": tags, "progress_report": progress, "result": null,
        "error": null, "spawned_tasks": [], "start_time": started, "finish_time": null, "worker_name": null,
        "task_type": "t", "exception": null, "traceback": null, "_ns": "task_status"})
}

/// One step's report.
pub(crate) fn step(text: &str, state: &str, done: u64, total: u64) -> Value {
    json!({"step_id": text, "step_type": "s", "description": text, "state": state, "items_total": total,
        "num_processed": done, "num_success": done, "num_failures": 0, "error_details": [], "details": ""})
}
