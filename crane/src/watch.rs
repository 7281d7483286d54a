//! Following the data directory: at once where the kernel tells, and each polling interval anyhow.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use notify::{EventKind, RecursiveMode, Watcher as _};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{data::Loader, http_api::App};

/// A scan takes at most about this part of the time, however fast things change.
const SCAN_SHARE: u32 = 4;

/// Reloads until `shutdown`.
pub(crate) async fn follow(
    app: Arc<App>,
    mut loader: Loader,
    interval: Duration,
    shutdown: CancellationToken,
) {
    let changed = Arc::new(Notify::new());
    let mut watcher = watcher(&changed);
    // What changed between the first load and the first watch is found by a scan right after.
    changed.notify_one();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = changed.notified() => {}
            () = app.reload_wanted() => {}
            () = tokio::time::sleep(interval.max(Duration::from_millis(1))) => {}
        }
        let begun = Instant::now();
        let scan = tokio::task::spawn_blocking(move || {
            if let Some(watcher) = &mut watcher {
                watch(watcher, || loader.watched());
            }
            let tables = loader.load();
            (watcher, loader, tables)
        });
        let Ok((watcher_back, loader_back, tables)) = scan.await else {
            tracing::error!("loading panicked; the data loaded stay as they are until restart");
            shutdown.cancelled().await;
            return;
        };
        (watcher, loader) = (watcher_back, loader_back);
        if let Some(tables) = tables {
            tracing::debug!(v1 = tables.v1.len(), v2 = tables.v2.len(), "metadata changed");
            app.replace(tables);
        }
        let pause = begun.elapsed() * SCAN_SHARE;
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause.min(Duration::from_secs(1))) => {}
        }
    }
}

fn watcher(changed: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let changed = Arc::clone(changed);
    let on_event = move |event: notify::Result<notify::Event>| {
        // Our own reading makes access events.
        if !event.is_ok_and(|e| matches!(e.kind, EventKind::Access(_))) {
            changed.notify_one();
        }
    };
    match notify::recommended_watcher(on_event) {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!(%error, "can't watch files; changes are noticed at each polling interval only");
            None
        }
    }
}

/// Watches what isn't watched yet. Directories come and go, so this is done at each scan, and until what is to be
/// watched stays the same while it is done; watching one twice is one watch. What can't be watched is polled.
fn watch(watcher: &mut notify::RecommendedWatcher, wanted: impl Fn() -> BTreeSet<PathBuf>) {
    let mut dirs = wanted();
    for _ in 0..10 {
        for dir in &dirs {
            if let Err(error) = watcher.watch(dir, RecursiveMode::NonRecursive) {
                tracing::debug!(dir = %dir.display(), %error, "not watched");
            }
        }
        let now = wanted();
        if now == dirs {
            return;
        }
        dirs = now;
    }
}
