//! Publishes that are broken off: by the death of their worker, at any point, and by a full volume. What clients read
//! meanwhile is the old or the new publication, whole.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use notify::{EventKind, RecursiveMode, Watcher as _};
use pulp_tests::{Cluster, ClusterOptions, Server, Standalone, volume::Volume, wait_for};
use serde_json::json;

use crate::{
    exclusion::{read_whole, upload_of},
    settled::{attempt_of, settled},
};

/// All are published at once, so that each kill meets several publishes, each at a point of its own.
const REPOS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

fn registry_id(repo: &str) -> String {
    format!("ns/{repo}")
}

/// Gives the tags of these repositories to images of so many layers.
fn import(server: &impl Server, repos: &[&str], layers: usize) -> Result<()> {
    let begin = |repo: &&str| {
        let upload = upload_of(server, &format!("{repo}-{layers}"), layers, 2000)?;
        server.import(repo, &upload, json!({}))
    };
    let tasks: Vec<String> = repos.iter().map(begin).collect::<Result<_>>()?;
    tasks
        .iter()
        .try_for_each(|task| server.wait_until_finished(task).map(drop))
}

/// What changes below a directory, one message each.
struct Changes {
    changes: Receiver<()>,
    _watcher: notify::RecommendedWatcher,
}

impl Changes {
    fn below(directory: &Path) -> Result<Self> {
        let (told, changes) = mpsc::channel();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| !matches!(event.kind, EventKind::Access(_))) {
                let _ = told.send(());
            }
        })?;
        watcher.watch(directory, RecursiveMode::Recursive)?;
        Ok(Self {
            changes,
            _watcher: watcher,
        })
    }

    /// How many there were since this was asked last.
    fn count(&self) -> usize {
        self.changes.try_iter().count()
    }

    /// Waits for so many. When they do not come, all is over.
    fn wait_for(&self, count: usize) {
        for _ in 0..count {
            if self.changes.recv_timeout(Duration::from_secs(2)).is_err() {
                return;
            }
        }
    }
}

/// All entries below a directory, links as such.
fn entries_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                left.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// What has the private name of an attempt.
fn staged(published: &Path) -> Result<Vec<PathBuf>> {
    let mut found = entries_below(published)?;
    found.retain(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'))
    });
    Ok(found)
}

fn dangling(published: &Path) -> Result<Vec<PathBuf>> {
    let mut found = entries_below(published)?;
    found.retain(|path| !path.exists());
    Ok(found)
}

/// Reads all repositories again and again until `done`, and gives how many layers each had, one after the other.
fn read_all_the_time(crane: SocketAddr, done: &AtomicBool) -> Result<[Vec<usize>; REPOS.len()]> {
    let mut seen: [Vec<usize>; REPOS.len()] = Default::default();
    while !done.load(Ordering::SeqCst) {
        for (seen, repo) in seen.iter_mut().zip(REPOS) {
            let layers = read_whole(crane, &registry_id(repo)).with_context(|| format!("of {repo}"))?;
            if seen.last() != Some(&layers) {
                seen.push(layers);
            }
        }
    }
    Ok(seen)
}

/// Publishes all repositories at once; gives the tasks.
fn publish_all(cluster: &Cluster) -> Result<Vec<String>> {
    REPOS.iter().map(|repo| cluster.publish(repo)).collect()
}

#[test]
fn a_worker_killed_at_any_point_of_its_publishes_leaves_the_old_or_the_new_ones_and_nothing_else()
-> Result<()> {
    /// Publishes to break off.
    const POINTS: usize = 20;
    /// Kills that must be enough for that.
    const KILLS: usize = 20;
    let mut cluster = Cluster::with(ClusterOptions {
        name: "killed-publish",
        managers: 1,
        workers: 1,
        tasks: "worker_ttl_seconds = 4\nsweep_seconds = 1\nmax_attempts = 5\nslots.publish = 8",
        ..ClusterOptions::default()
    })?;
    let published = cluster.data_dir().join("published/docker");
    for repo in REPOS {
        cluster.create_repository(repo, &registry_id(repo))?;
    }
    // Whole ones, then changes, as all that follow are.
    let publish = |layers| -> Result<()> {
        import(&cluster, &REPOS, layers)?;
        let tasks = publish_all(&cluster)?;
        tasks
            .iter()
            .try_for_each(|task| cluster.wait_until_finished(task).map(drop))
    };
    publish(1)?;
    let changes = Changes::below(&published)?;
    publish(2)?;
    let of_all = changes.count();
    for repo in REPOS {
        wait_for("the publications in Crane", || {
            let read = read_whole(cluster.crane(), &registry_id(repo));
            Ok(read.ok().filter(|layers| *layers == 2))
        })?;
    }

    let (crane, done) = (cluster.crane(), AtomicBool::new(false));
    let (killed, seen) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_all_the_time(crane, &done));
        let killed = kill_until(&mut cluster, POINTS, KILLS, &changes, of_all);
        done.store(true, Ordering::SeqCst);
        (killed, reader.join().unwrap())
    });
    let layers = killed?;
    for seen in seen? {
        // The nth image has n layers: never back to an older one.
        assert!(seen.is_sorted(), "{seen:?}");
    }

    // A publish that was killed after its end is tidied up behind by the next one.
    import(&cluster, &REPOS, layers + 1)?;
    for task in publish_all(&cluster)? {
        cluster.wait_until_finished(&task)?;
    }
    wait_for("the end of what was staged", || {
        Ok(staged(&published)?.is_empty().then_some(()))
    })
    .with_context(|| format!("{:?}", staged(&published)))?;
    assert_eq!(dangling(&published)?, Vec::<PathBuf>::new());
    for repo in REPOS {
        wait_for("the last publication in Crane", || {
            let read = read_whole(cluster.crane(), &registry_id(repo))?;
            Ok((read == layers + 1).then_some(()))
        })?;
    }
    cluster.wait_until_clean()?;
    settled(&cluster)
}

/// Publishes a new image in all repositories, kills the worker meanwhile, starts another, and waits for the ends, until
/// so many publishes were broken off. Gives the number of layers of the last images.
fn kill_until(
    cluster: &mut Cluster,
    points: usize,
    kills: usize,
    changes: &Changes,
    of_all: usize,
) -> Result<usize> {
    let published = cluster.data_dir().join("published/docker");
    let mut broken_off = 0;
    for kill in 0..kills {
        let layers = 3 + kill;
        import(&*cluster, &REPOS, layers)?;
        changes.count();
        // Asked for while it stands still, they are all begun at once.
        cluster.workers[0].signal("STOP")?;
        let tasks = publish_all(cluster)?;
        cluster.workers[0].signal("CONT")?;
        // All parts of a run have their turn, and each time another point in it.
        let part = (kill * 2) % 5;
        let within = std::process::id() as usize + kill * 31;
        changes.wait_for(1 + of_all * part / 5 + within % (of_all / 5 + 1));
        cluster.workers[0].kill()?;
        cluster.workers[0] = cluster.start_role(&format!("worker-{}", 1 + kill), "worker")?;
        for task in &tasks {
            let ended = cluster.wait_until_finished(task)?;
            if attempt_of(cluster, &ended)? > 1 {
                broken_off += 1;
            }
        }
        assert_eq!(dangling(&published)?, Vec::<PathBuf>::new(), "after kill {kill}");
        for repo in REPOS {
            wait_for("the new publication in Crane", || {
                let read = read_whole(cluster.crane(), &registry_id(repo))?;
                Ok((read == layers).then_some(()))
            })?;
        }
        eprintln!("kill {kill}: {broken_off} of {points} publishes broken off");
        if broken_off >= points {
            return Ok(layers);
        }
    }
    ensure!(
        broken_off >= points,
        "only {broken_off} publishes were broken off"
    );
    Ok(2 + kills)
}

#[test]
fn a_publish_on_a_full_volume_says_so_and_leaves_the_old_one_and_the_next_one_works() -> Result<()> {
    let volume = Volume::of(64)?;
    if !volume.can_fail() {
        eprintln!("skipped: only root can mount the volume that is to be full");
        return Ok(());
    }
    let dir = volume.path().display().to_string();
    let server = Standalone::with(&[("PULP_STORAGE_PUBLISHED_DIR", &dir)])?;
    server.create_repository("r", "ns/r")?;
    let layers = || read_whole(server.crane(), "ns/r");
    let shows = |count: usize| {
        wait_for("the publication in Crane", || {
            Ok((layers()? == count).then_some(()))
        })
    };
    import(&server, &["r"], 1)?;
    server.wait_until_finished(&server.publish("r")?)?;
    wait_for("the first publication in Crane", || Ok(layers().ok()))?;

    for count in [2, 3] {
        import(&server, &["r"], count)?;
        volume.fill()?;
        let ended = server.wait_for_task(&server.publish("r")?)?;
        assert_eq!(ended["state"], "error", "{ended}");
        assert_eq!(ended["error"]["code"], "DKR1148", "{ended}");
        assert_eq!(layers()?, count - 1);
        assert_eq!(staged(volume.path())?, Vec::<PathBuf>::new());

        volume.empty()?;
        server.wait_until_finished(&server.publish("r")?)?;
        shows(count)?;
    }
    assert_eq!(dangling(volume.path())?, Vec::<PathBuf>::new());
    Ok(())
}
