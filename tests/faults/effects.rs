//! Publishes, looked at where they take effect: the link that names a repository's published tree is switched by a
//! rename whose old name tells which attempt of which task does it.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use notify::{
    EventKind, RecursiveMode, Watcher as _,
    event::{ModifyKind, RenameMode},
};
use pulp_testkit::psql;

use crate::run::Run;

/// The database's clock is read in microseconds, the file system's ticks with the kernel's.
const TICK: i64 = 20_000;

/// One switch of a repository's published tree.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Switch {
    repo: String,
    task: String,
    attempt: i64,
    /// Microseconds since 1970; not before it happened.
    at: i64,
}

/// Sees every switch of the tree for docker's second API, in order.
pub(crate) struct Switches {
    seen: Arc<Mutex<Vec<Switch>>>,
    _watcher: notify::RecommendedWatcher,
}

impl Switches {
    /// Looks at `<published>/v2/web`.
    pub(crate) fn watch(published: &Path) -> Result<Self> {
        let links = published.join("v2/web");
        std::fs::create_dir_all(&links)?;
        let seen: Arc<Mutex<Vec<Switch>>> = Arc::default();
        let into = Arc::clone(&seen);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if let Ok(event) = event
                && event.kind == EventKind::Modify(ModifyKind::Name(RenameMode::Both))
                && let [from, to] = event.paths.as_slice()
                && let Some(switch) = switch_of(from, to)
            {
                into.lock().unwrap().push(switch);
            }
        })?;
        watcher.watch(&links, RecursiveMode::NonRecursive)?;
        Ok(Self {
            seen,
            _watcher: watcher,
        })
    }

    /// No switch of an attempt that was over, and each within the time in which its task held the repository.
    pub(crate) fn look(&self, database: &str, run: &Run) -> Result<()> {
        let seen = self.seen.lock().unwrap().clone();
        let tasks = table(
            database,
            "SELECT task_id, attempt || ' ' || state || ' ' || COALESCE(finished, 0) FROM tasks",
        )?;
        let over = table(
            database,
            "SELECT task_id || '-' || attempt, min(at)::text FROM task_events \
             WHERE event IN ('revoked', 'handed_back') GROUP BY 1",
        )?;
        for switch in &seen {
            let Some(row) = tasks.get(&switch.task) else {
                run.violated(&format!("no such task: {switch:?}"));
                continue;
            };
            let [last, state, finished] = row.split(' ').collect::<Vec<_>>()[..] else {
                anyhow::bail!("row {row:?}");
            };
            let (last, finished): (i64, i64) = (last.parse()?, finished.parse()?);
            let revoked = over.get(&format!("{}-{}", switch.task, switch.attempt));
            let ended = match revoked {
                Some(at) => at.parse()?,
                None if switch.attempt == last => finished,
                None => {
                    run.violated(&format!("an attempt without an end: {switch:?}, its task: {row}"));
                    continue;
                }
            };
            run.count("published trees switched");
            if revoked.is_some() || state != "finished" {
                // It switched within its fence, and could not commit: another attempt did it again, or somebody
                // ended it. Nobody else can have been at it meanwhile.
                run.count("published trees switched by attempts that then could not commit");
            }
            if switch.at > ended + TICK {
                run.violated(&format!(
                    "a published tree was switched {} µs after its attempt was over: {switch:?}, its task: {row}",
                    switch.at - ended
                ));
            }
        }
        Ok(())
    }
}

/// `.tmp+<task>-<attempt>+<repo>` renamed to `<repo>`.
fn switch_of(from: &Path, to: &Path) -> Option<Switch> {
    let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
    let (from_name, repo) = (name(from)?, name(to)?);
    let (attempt, of) = from_name.strip_prefix(".tmp+")?.split_once('+')?;
    let (task, attempt) = attempt.rsplit_once('-')?;
    (of == repo).then_some(())?;
    Some(Switch {
        task: task.to_owned(),
        attempt: attempt.parse().ok()?,
        at: instant_of(to)?,
        repo,
    })
}

/// When a link got its name, by the file system; if it is another's already, by the clock.
fn instant_of(link: &Path) -> Option<i64> {
    use std::os::unix::fs::MetadataExt as _;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let now = i64::try_from(now.as_micros()).ok()?;
    let changed = std::fs::symlink_metadata(link)
        .ok()
        .map(|m| m.ctime() * 1_000_000 + m.ctime_nsec() / 1000);
    Some(changed.map_or(now, |at| at.min(now)))
}

fn table(database: &str, sql: &str) -> Result<HashMap<String, String>> {
    let rows = psql(database, sql)?;
    rows.lines()
        .map(|row| {
            let (key, value) = row.split_once('|').context("one column")?;
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}

#[test]
fn the_old_name_of_a_link_tells_whose_switch_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("lasting-1");
    std::fs::write(&link, "").unwrap();
    let from = folder
        .path()
        .join(".tmp+0194b9c8-0d6e-7000-8000-000000000000-2+lasting-1");
    let switch = switch_of(&from, &link).unwrap();
    assert_eq!(
        (switch.repo.as_str(), switch.task.as_str(), switch.attempt),
        ("lasting-1", "0194b9c8-0d6e-7000-8000-000000000000", 2)
    );
    assert_eq!(switch_of(&link, &from), None);
}
