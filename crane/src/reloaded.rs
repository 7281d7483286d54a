//! Things made from files, and made anew when the files change.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::data::FileState;

type Load<T> = Box<dyn Fn() -> Result<T, String> + Send + Sync>;

/// The last good thing made from the files.
pub(crate) struct Reloaded<T> {
    files: Vec<PathBuf>,
    load: Load<T>,
    held: RwLock<Held<T>>,
}

struct Held<T> {
    states: Vec<Option<FileState>>,
    thing: Option<Arc<T>>,
}

impl<T> Reloaded<T> {
    /// Makes it. Blocks. What can't be made is logged, and tried again when a file changes.
    pub(crate) fn open(
        files: Vec<PathBuf>,
        load: impl Fn() -> Result<T, String> + Send + Sync + 'static,
    ) -> Self {
        let opened = Self {
            held: RwLock::new(Held {
                states: Vec::new(),
                thing: None,
            }),
            files,
            load: Box::new(load),
        };
        opened.refresh();
        opened
    }

    /// The thing of now; none if it could never be made.
    pub(crate) fn current(&self) -> Option<Arc<T>> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.thing.clone()
    }

    /// Makes it anew if a file is another than before. Blocks. If it can't be made, the one before stays: a
    /// certificate and its key are never replaced at the same moment.
    pub(crate) fn refresh(&self) {
        let states: Vec<_> = self.files.iter().map(|file| FileState::of(file).ok()).collect();
        let unchanged = {
            let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
            held.states == states
        };
        if unchanged {
            return;
        }
        let made = (self.load)();
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        held.states = states;
        match made {
            Ok(thing) => {
                if held.thing.is_some() {
                    tracing::info!(files = ?self.files, "read again");
                }
                held.thing = Some(Arc::new(thing));
            }
            Err(error) => {
                let kept = if held.thing.is_some() {
                    "; the one before stays"
                } else {
                    ""
                };
                tracing::error!("{error}{kept}");
            }
        }
    }
}

/// Looks after it until `shutdown`.
pub(crate) async fn follow<T: Send + Sync + 'static>(
    reloaded: Arc<Reloaded<T>>,
    interval: Duration,
    shutdown: CancellationToken,
) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        let reloaded = Arc::clone(&reloaded);
        if tokio::task::spawn_blocking(move || reloaded.refresh())
            .await
            .is_err()
        {
            tracing::error!("reading certificates again panicked");
        }
    }
}
