//! What must hold at every instant, and what must hold at the end. Looked at in the database's tables, at the effects
//! (versions of repositories), and from outside (Crane).

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::atomic::Ordering,
};

use anyhow::{Context as _, Result, ensure};
use pulp_testkit::psql;
use serde_json::Value;

use crate::{load::Client, run::Run};

/// Rows that must not be there, each statement one snapshot.
const NEVER: &[(&str, &str)] = &[
    (
        "two tasks hold what one of them must hold alone",
        "SELECT a.task_id, b.task_id, a.resource FROM reservations a JOIN reservations b \
         ON a.resource = b.resource AND a.task_id < b.task_id WHERE a.exclusive = 1 OR b.exclusive = 1",
    ),
    (
        "a reservation without a task that is granted or runs",
        "SELECT r.task_id, r.resource, t.state FROM reservations r LEFT JOIN tasks t ON t.task_id = r.task_id \
         WHERE t.state IS NULL OR t.state NOT IN ('accepted', 'running')",
    ),
    (
        "a task runs without what it must hold",
        "SELECT t.task_id, x.resource FROM tasks t JOIN task_resources x ON x.task_id = t.task_id \
         WHERE t.state = 'running' AND NOT EXISTS (SELECT 1 FROM reservations r \
         WHERE r.task_id = t.task_id AND r.resource = x.resource)",
    ),
    (
        "a task made two versions",
        "SELECT task_id, count(*) FROM repository_versions WHERE number > 0 AND task_id IS NOT NULL \
         GROUP BY task_id HAVING count(*) > 1",
    ),
    (
        "a version of a task that is not finished: its attempt was fenced, and committed",
        "SELECT v.repo_id, v.number, t.task_id, t.state FROM repository_versions v \
         JOIN tasks t ON t.task_id = v.task_id WHERE v.number > 0 AND t.state <> 'finished'",
    ),
    (
        "versions with gaps, or another newest one than the repository says",
        "SELECT v.repo_id, min(v.number), max(v.number), count(*), max(r.version) FROM repository_versions v \
         JOIN repositories r ON r.repo_id = v.repo_id GROUP BY v.repo_id \
         HAVING max(v.number) - min(v.number) + 1 <> count(*) OR max(v.number) <> max(r.version)",
    ),
];

/// The same for what is over; these look at everything there ever was.
const NEVER_AT_THE_END: &[(&str, &str)] = &[
    (
        "a finished change of a lasting repository without the version that it says it made",
        "SELECT t.task_id, g.tag, t.result FROM tasks t JOIN task_tags g ON g.task_id = t.task_id \
         WHERE g.tag LIKE 'pulp:repository:lasting-%' AND t.state = 'finished' \
         AND (t.result::json #>> '{details,added}')::bigint > 0 AND NOT EXISTS (SELECT 1 FROM repository_versions v \
         WHERE v.repo_id = substr(g.tag, 17) AND v.task_id = t.task_id \
         AND v.number = (t.result::json #>> '{details,repository_version}')::bigint)",
    ),
    (
        "two finished tasks held a resource at the same time though one of them had to hold it alone",
        "SELECT a.task_id, b.task_id, x.resource FROM tasks a JOIN task_resources x ON x.task_id = a.task_id \
         JOIN task_resources y ON y.resource = x.resource AND y.task_id > x.task_id \
         JOIN tasks b ON b.task_id = y.task_id WHERE (x.exclusive = 1 OR y.exclusive = 1) \
         AND a.state = 'finished' AND b.state = 'finished' \
         AND a.accepted < b.finished AND b.accepted < a.finished",
    ),
    (
        "a slot of a schedule that is none, or was fired too early",
        "SELECT f.schedule_id, f.slot, f.fired FROM schedule_fires f JOIN schedules s ON s.schedule_id = f.schedule_id \
         WHERE f.slot < s.first_run OR f.slot > f.fired",
    ),
    (
        "an error without a code",
        "SELECT task_id, error FROM tasks WHERE state = 'error' AND COALESCE(error::json ->> 'code', '') = ''",
    ),
    (
        "a version made while its task did not hold the repository",
        "SELECT v.repo_id, v.number, t.task_id FROM repository_versions v JOIN tasks t ON t.task_id = v.task_id \
         WHERE v.number > 0 AND (v.created < t.accepted OR v.created > t.finished)",
    ),
    (
        "a reservation is left",
        "SELECT task_id, resource FROM reservations",
    ),
];

const ENDS: &str = "('finished', 'error', 'canceled', 'skipped')";

/// Looks at the tables again and again.
pub(crate) struct Tables {
    url: String,
    /// Every task that has ended, by how.
    ended: HashMap<String, String>,
}

impl Tables {
    pub(crate) fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            ended: HashMap::new(),
        }
    }

    /// Looks until `over` says so. A database that is away can't be looked at; that is no violation.
    pub(crate) fn watch(&mut self, run: &Run, over: &dyn Fn() -> bool) {
        while !over() {
            match self.look(run) {
                Ok(()) => {
                    run.count("looks at the tables");
                    run.looks.fetch_add(1, Ordering::SeqCst);
                }
                Err(_) => run.count("looks at the tables in vain: the database was away"),
            }
            crate::run::pause(std::time::Duration::from_millis(200));
        }
    }

    /// One look.
    pub(crate) fn look(&mut self, run: &Run) -> Result<()> {
        self.never(NEVER, run)?;
        let rows = psql(
            &self.url,
            &format!(
                "SELECT task_id || ' ' || state || ' ' || attempt || ' ' || finished || ' ' \
                 || md5(COALESCE(result, '') || COALESCE(error, '')) FROM tasks WHERE state IN {ENDS}"
            ),
        )?;
        let now: HashMap<&str, &str> = rows.lines().filter_map(|l| l.split_once(' ')).collect();
        for (id, how) in &self.ended {
            match now.get(id.as_str()) {
                Some(same) if same == how => {}
                other => run.violated(&format!("task {id} had ended as {how}, now it is {other:?}")),
            }
        }
        self.ended = now
            .iter()
            .map(|(id, how)| ((*id).to_owned(), (*how).to_owned()))
            .collect();
        let open = psql(
            &self.url,
            &format!("SELECT count(*) FROM tasks WHERE state NOT IN {ENDS}"),
        )?;
        run.open.store(open.trim().parse()?, Ordering::Relaxed);
        Ok(())
    }

    /// Asks for all of it at once, as starting `psql` is what takes time.
    fn never(&self, checks: &[(&str, &str)], run: &Run) -> Result<()> {
        let numbered =
            |(n, (_, sql)): (usize, &(&str, &str))| format!("SELECT {n}, x::text FROM ({sql} LIMIT 20) x");
        let all: Vec<String> = checks.iter().enumerate().map(numbered).collect();
        let rows = psql(&self.url, &all.join(" UNION ALL "))?;
        for row in rows.lines() {
            let (n, row) = row.split_once('|').with_context(|| format!("row {row:?}"))?;
            let (what, _) = checks.get(n.parse::<usize>()?).context("no such check")?;
            run.violated(&format!("{what}: {row}"));
        }
        Ok(())
    }

    /// What must hold when everything has ended.
    pub(crate) fn look_at_the_end(&mut self, run: &Run) -> Result<()> {
        self.look(run)?;
        self.never(NEVER_AT_THE_END, run)?;
        for id in run.accepted.lock().unwrap().keys() {
            if !self.ended.contains_key(id) {
                run.violated(&format!("task {id} was accepted and has no end"));
            }
        }
        self.order(run)
    }

    /// First come, first served, a resource. Of two tasks that could not run at the same time, the one whose promise
    /// had reached its client before the other one was created was granted first; looked at where neither has lost
    /// an attempt.
    fn order(&self, run: &Run) -> Result<()> {
        let rows = psql(
            &self.url,
            "SELECT x.resource || ' ' || t.task_id || ' ' || x.exclusive || ' ' || t.created || ' ' || t.accepted \
             FROM tasks t JOIN task_resources x ON x.task_id = t.task_id \
             WHERE t.state = 'finished' AND t.attempt = 1 ORDER BY x.resource, t.created",
        )?;
        let promises = run.accepted.lock().unwrap();
        let mut by_resource: HashMap<&str, Vec<(&str, bool, i64, i64)>> = HashMap::new();
        for row in rows.lines() {
            let words: Vec<&str> = row.split(' ').collect();
            let [resource, id, exclusive, created, accepted] = words.as_slice() else {
                anyhow::bail!("row {row:?}");
            };
            let claim = (*id, *exclusive == "1", created.parse()?, accepted.parse()?);
            by_resource.entry(resource).or_default().push(claim);
        }
        let mut pairs = 0;
        for (resource, claims) in by_resource {
            for (n, (first, alone, _, first_granted)) in claims.iter().enumerate() {
                let Some(promised) = promises.get(*first) else {
                    continue;
                };
                for (second, second_alone, created, granted) in &claims[n + 1..] {
                    if (*alone || *second_alone) && promised < created {
                        pairs += 1;
                        if first_granted > granted {
                            let what = format!(
                                "{second} overtook {first} on {resource} by {} µs, created {} µs after its promise",
                                first_granted - granted,
                                created - promised
                            );
                            run.violated(&what);
                        }
                    }
                }
            }
        }
        run.note(&format!(
            "{pairs} pairs of tasks that had to take turns looked at"
        ));
        Ok(())
    }
}

const MANIFESTS: &str =
    "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json";

/// Reads what Crane serves, as a client that pulls does.
pub(crate) struct Reader {
    client: Client,
    crane: SocketAddr,
    /// Tags seen of each repository. Nothing in the load removes one.
    seen: HashMap<String, BTreeSet<String>>,
}

impl Reader {
    pub(crate) fn new(crane: SocketAddr) -> Result<Self> {
        Ok(Self {
            client: Client::new()?,
            crane,
            seen: HashMap::new(),
        })
    }

    /// Reads until `over` says so.
    pub(crate) fn watch(&mut self, run: &Run, repos: &[String], over: &dyn Fn() -> bool) {
        while !over() {
            for repo in repos {
                match self.read(repo) {
                    Ok(None) => {}
                    Ok(Some(images)) => (0..images).for_each(|_| run.count("images read from Crane whole")),
                    // A Crane that is away serves nothing, which is neither old nor new.
                    Err(error) if error.downcast_ref::<reqwest::Error>().is_some() => {
                        run.count("reads from Crane in vain: it was away");
                    }
                    Err(error) => run.violated(&format!("Crane, {repo}: {error:#}")),
                }
            }
            crate::run::pause(std::time::Duration::from_millis(50));
        }
    }

    /// Reads every tag of a repository to the last blob; gives how many. None before its first publish.
    pub(crate) fn read(&mut self, repo: &str) -> Result<Option<usize>> {
        let base = format!("http://{}/v2/ns/{repo}", self.crane);
        let (status, list) = self.client.get(&format!("{base}/tags/list"), "*/*")?;
        let before = self.seen.entry(repo.to_owned()).or_default();
        if status == 404 && before.is_empty() {
            return Ok(None);
        }
        ensure!(status == 200, "tags: {status} {}", String::from_utf8_lossy(&list));
        let list: Value = serde_json::from_slice(&list)?;
        let tags = list["tags"].as_array().into_iter().flatten();
        let tags: BTreeSet<String> = tags.filter_map(|t| Some(t.as_str()?.to_owned())).collect();
        ensure!(
            tags.is_superset(before),
            "back to an older publish: {before:?}, then {tags:?}"
        );
        before.clone_from(&tags);
        for tag in &tags {
            let (status, manifest) = self.client.get(&format!("{base}/manifests/{tag}"), MANIFESTS)?;
            ensure!(
                status == 200,
                "tag {tag}: {status} {}",
                String::from_utf8_lossy(&manifest)
            );
            let manifest: Value = serde_json::from_slice(&manifest)?;
            let layers = manifest["layers"].as_array().context("no layers")?;
            for blob in layers.iter().chain([&manifest["config"]]) {
                let digest = blob["digest"].as_str().context("no digest")?;
                let (status, bytes) = self.client.get(&format!("{base}/blobs/{digest}"), "*/*")?;
                ensure!(status == 200, "tag {tag}: blob {digest}: {status}");
                let got = pulp_model::Digest::sha256(&bytes).to_string();
                ensure!(got == digest, "tag {tag}: blob {digest} has digest {got}");
            }
        }
        Ok(Some(tags.len()))
    }
}
