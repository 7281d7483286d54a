//! Showing a process on the status page: roles that hold no tasks have no lease to lose, only a name to show.

use std::time::Duration;

use pulp_store::{
    Store,
    workers::{Heartbeat, Incarnation},
};
use tokio_util::sync::CancellationToken;

/// Shows the process under `<prefix>@<host>` until `stop` fires; failures are tried again, never fatal.
pub async fn show(
    store: Store,
    role: &'static str,
    prefix: &'static str,
    host: String,
    ttl: Duration,
    stop: CancellationToken,
) {
    let mut shown: Option<Incarnation> = None;
    while !stop.is_cancelled() {
        shown = match shown {
            None => store.register_worker(role, prefix, &host, false, ttl).await.ok(),
            Some(incarnation) => match store.heartbeat(&incarnation, ttl).await {
                Ok(Heartbeat::Lost) => None,
                Ok(Heartbeat::Alive { .. }) | Err(_) => Some(incarnation),
            },
        };
        let pause = if shown.is_some() {
            ttl / 3
        } else {
            Duration::from_secs(1)
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {}
        }
    }
    if let Some(incarnation) = shown
        && let Err(e) = store.unregister_worker(&incarnation).await
    {
        tracing::debug!(error = %e, "the name stays on the list until its time is up");
    }
}

/// This machine's name, for worker names.
pub fn host_name() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = kernel.map(|n| n.trim().to_owned()).filter(|n| !n.is_empty());
    name.or_else(|| std::env::var("HOSTNAME").ok())
        .unwrap_or_else(|| "localhost".to_owned())
}
