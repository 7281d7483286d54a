//! Claims a grant, runs the task kind, commits its effect.
//!
//! A worker has slots for each class of tasks. It takes a grant from the class's queue only when a slot is free,
//! claims it in the database, acks, and runs it: the broker never holds a delivery for longer than a claim takes.
//! Its lease is what protects the run; when that can't be renewed, everything stops.

mod attempt;
mod class;
pub mod decisions;
mod error;
mod kinds;
mod metrics;
mod progress;
pub mod running;
pub mod slots;
pub mod stop;
pub mod watch;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use pulp_broker::{Broker, Control};
use pulp_content::ContentStore;
use pulp_liveness::{Database, Keeper, keep_worker, presence};
use pulp_model::{
    deadline::Deadlines,
    task::{TaskClass, TaskKind},
};
use pulp_publication::Root;
use pulp_runtime::{backoff::Backoff, shutdown::Shutdown};
use pulp_store::{
    Store,
    workers::{Incarnation, Serving},
};
use serde_json::{Map, Value};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use error::WorkerError;

use crate::{running::Running, stop::StopReason, watch::Limits};

/// How a worker works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Tasks of each class that run at once; a class that is absent is not served.
    pub slots: BTreeMap<TaskClass, usize>,
    /// How long its lease lives without a renewal.
    pub lease_ttl: Duration,
    /// How long a task may take to stop by itself after a cancel, or at its deadline.
    pub cancel_grace: Duration,
    /// How long a run may take, by its kind.
    pub deadlines: Deadlines,
    /// How long a run may show no progress before that is told.
    pub stalled_after: Duration,
    /// How long a run may show no progress before it is stopped; none means for ever.
    pub end_stalled_after: Option<Duration>,
    /// How long running tasks may go on after a first signal to end.
    pub drain_timeout: Duration,
    /// Where uploads lie.
    pub uploads_dir: PathBuf,
    /// For files of a task's own, on a disk with room for an unpacked archive.
    pub working_dir: PathBuf,
    /// Base url of published files: `<base>/v1/<repo>/` and `<base>/v2/<repo>/`.
    pub redirect_base: String,
    /// Settings of each distributor type that a repository's own override.
    pub plugin_defaults: BTreeMap<String, Map<String, Value>>,
    /// Most bytes that an upload may expand to.
    pub max_expanded_bytes: u64,
    /// Downloads from one host at a time, over all workers; none means as many as the syncs want.
    pub downloads_per_host: Option<u32>,
    /// Exports for closed networks.
    pub transfer: TransferSettings,
}

/// Where exports for closed networks come from, and who vouches for them.
#[derive(Debug, Clone)]
pub struct TransferSettings {
    /// Below it lie the exports that can be imported.
    pub import_dir: PathBuf,
    /// The private key that signs exports; if there is no such file, they are not signed.
    pub signing_key: PathBuf,
    /// The password of a key that cosign encrypted; none means an empty one.
    pub signing_key_password_file: Option<PathBuf>,
    /// Public keys whose exports are taken; there need be no such directory.
    pub trusted_keys_dir: PathBuf,
    /// Whether an export must be signed by one of them.
    pub require_signature: bool,
}

/// What a worker works with.
#[derive(Clone)]
pub struct Resources {
    /// The database.
    pub database: Database,
    /// The broker.
    pub broker: Arc<dyn Broker>,
    /// The blobs.
    pub content: ContentStore,
    /// The published files.
    pub published: Root,
}

/// Everything that a run of this worker shares.
pub(crate) struct Worker {
    pub(crate) settings: Settings,
    pub(crate) store: Store,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) content: ContentStore,
    pub(crate) published: Root,
    pub(crate) incarnation: Incarnation,
    pub(crate) running: Running,
}

impl Worker {
    /// What a run of this kind is allowed.
    pub(crate) fn limits(&self, kind: &TaskKind) -> Limits {
        Limits {
            deadline: self.settings.deadlines.of(kind.name()).soft,
            quiet: self.settings.stalled_after,
            standstill: self.settings.end_stalled_after,
        }
    }
}

/// The role in the list of processes.
const ROLE: &str = "worker";
/// The name's prefix, as Pulp 2 clients know it.
const NAME_PREFIX: &str = "reserved_resource_worker";

/// Works until the shutdown's soft token fires, then drains. A lost lease ends all work; the worker then begins
/// anew as another incarnation, since nothing of the old one is left.
pub async fn run(settings: Settings, resources: Resources, shutdown: &Shutdown) -> Result<(), WorkerError> {
    tokio::fs::create_dir_all(&settings.working_dir)
        .await
        .map_err(WorkerError::WorkingDirectory)?;
    let serving = Serving::of_this_release(
        settings
            .slots
            .iter()
            .map(|(class, slots)| (*class, u32::try_from(*slots).unwrap_or(u32::MAX)))
            .collect(),
    );
    let mut backoff = Backoff::for_connections();
    while !shutdown.soft().is_cancelled() {
        let host = presence::host_name();
        let taken = Instant::now();
        let registered = resources
            .database
            .store
            .register_serving(ROLE, NAME_PREFIX, &host, true, settings.lease_ttl, &serving)
            .await;
        match registered {
            Ok(incarnation) => {
                backoff.reset();
                tracing::info!(name = %incarnation.name, "working");
                work(&settings, &resources, incarnation, taken, shutdown).await?;
            }
            Err(e) => {
                tracing::warn!(error = %e, "can't register; is the database up?");
                tokio::select! {
                    () = backoff.sleep() => {}
                    () = shutdown.soft().cancelled() => {}
                }
            }
        }
    }
    Ok(())
}

/// One incarnation, from its registration to its end.
async fn work(
    settings: &Settings,
    resources: &Resources,
    incarnation: Incarnation,
    taken: Instant,
    shutdown: &Shutdown,
) -> Result<(), WorkerError> {
    let worker = Arc::new(Worker {
        settings: settings.clone(),
        store: resources.database.store.clone(),
        broker: Arc::clone(&resources.broker),
        content: resources.content.clone(),
        published: resources.published.clone(),
        incarnation: incarnation.clone(),
        running: Running::default(),
    });
    let running = worker.running.clone();
    let keeper = keep_worker(
        &resources.database,
        &incarnation,
        settings.lease_ttl,
        taken,
        move |task| {
            running.stop(task, StopReason::Canceled);
        },
    )?;
    // Grants are taken until the worker drains or its lease is lost.
    let intake = CancellationToken::new();
    let tasks = TaskTracker::new();
    for (class, slots) in worker.settings.slots.clone() {
        if slots > 0 {
            tasks.spawn(class::serve(
                Arc::clone(&worker),
                class,
                slots,
                intake.clone(),
                tasks.clone(),
            ));
        }
    }
    let control = tokio::spawn(listen(Arc::clone(&worker), intake.clone()));

    tokio::select! {
        () = keeper.lost().cancelled() => lease_lost(&worker, &intake, &tasks).await,
        () = shutdown.soft().cancelled() => drain(&worker, &intake, &tasks, &keeper, shutdown).await,
    }
    control.abort();
    drop(keeper);
    if let Err(e) = worker.store.unregister_worker(&incarnation).await {
        tracing::debug!(error = %e, "the name stays on the list until its time is up");
    }
    Ok(())
}

async fn lease_lost(worker: &Worker, intake: &CancellationToken, tasks: &TaskTracker) {
    tracing::error!(name = %worker.incarnation.name, "the lease is lost; all work stops");
    intake.cancel();
    worker.running.stop_all(StopReason::LeaseLost);
    tasks.close();
    tasks.wait().await;
}

/// Lets running tasks end for a while, then gives back what still runs.
async fn drain(
    worker: &Worker,
    intake: &CancellationToken,
    tasks: &TaskTracker,
    keeper: &Keeper,
    shutdown: &Shutdown,
) {
    intake.cancel();
    tasks.close();
    tracing::info!(running = worker.running.len(), "draining");
    let end = |reason| worker.running.stop_all(reason);
    tokio::select! {
        () = tasks.wait() => return,
        () = tokio::time::sleep(worker.settings.drain_timeout) => end(StopReason::Draining),
        () = shutdown.hard().cancelled() => end(StopReason::Draining),
        () = keeper.lost().cancelled() => end(StopReason::LeaseLost),
    }
    // A canceled task may still have its grace; the lease must last as long.
    tokio::select! {
        () = tasks.wait() => return,
        () = keeper.lost().cancelled() => end(StopReason::LeaseLost),
    }
    tasks.wait().await;
}

/// Hears cancels at once that the next heartbeat would tell anyway.
async fn listen(worker: Arc<Worker>, end: CancellationToken) {
    while !end.is_cancelled() {
        if let Ok(mut subscription) = worker.broker.subscribe().await {
            while let Ok(Some(control)) = subscription.next().await {
                if let Control::Cancel { task_id } = control
                    && let Ok(Some(task)) = worker.store.task(task_id).await
                    && task.cancel_requested.is_some()
                {
                    worker.running.stop(task_id, StopReason::Canceled);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
