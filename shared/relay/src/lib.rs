//! Moves messages from the outbox to the broker, and deletes those that it confirmed.
//!
//! Every process that commits state changes runs one. Relays need no leader: a message sent twice is claimed
//! once. The bell of the store wakes a relay at once; the tick finds what another process left behind when it died.

use std::{sync::Arc, time::Duration};

use pulp_broker::{Broker, BrokerError, Message, Outgoing, Queue};
use pulp_runtime::backoff::Backoff;
use pulp_store::{Store, StoreError, outbox::OutboxRow};
use pulp_trace::{Span, SpanKind};
use tokio_util::sync::CancellationToken;

/// How often a relay looks without having been woken.
const TICK: Duration = Duration::from_secs(1);

/// Runs until `stop` fires, then once more, so that the last commits of this process are not left behind.
pub async fn run(store: Store, broker: Arc<dyn Broker>, batch: u32, stop: CancellationToken) {
    let mut backoff = Backoff::for_connections();
    loop {
        match drain(&store, broker.as_ref(), batch).await {
            Ok(()) => {
                backoff.reset();
                tokio::select! {
                    () = store.outbox_rung() => {}
                    () = tokio::time::sleep(TICK) => {}
                    () = stop.cancelled() => break,
                }
            }
            Err(fault) => {
                tracing::warn!(error = %fault, "the outbox waits: {}", fault.advice());
                tokio::select! {
                    () = backoff.sleep() => {}
                    () = stop.cancelled() => break,
                }
            }
        }
    }
    if let Err(fault) = drain(&store, broker.as_ref(), batch).await {
        tracing::warn!(error = %fault, "messages stay in the outbox for the next relay");
    }
}

enum Fault {
    Store(StoreError),
    Broker(BrokerError),
    NotConnected,
    Unconfirmed(usize),
}

impl Fault {
    const fn advice(&self) -> &'static str {
        match self {
            Self::Store(_) => "is the database up?",
            Self::Broker(_) | Self::NotConnected => "is the broker up?",
            Self::Unconfirmed(_) => "the broker took messages without confirming them",
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Store(e) => e.fmt(f),
            Self::Broker(e) => e.fmt(f),
            Self::NotConnected => f.write_str("no connection to the broker"),
            Self::Unconfirmed(n) => write!(f, "{n} messages unconfirmed"),
        }
    }
}

/// Sends batches until the outbox is empty.
async fn drain(store: &Store, broker: &dyn Broker, batch: u32) -> Result<(), Fault> {
    loop {
        if !broker.is_connected() {
            return if store.outbox_depth().await.map_err(Fault::Store)? == 0 {
                Ok(())
            } else {
                Err(Fault::NotConnected)
            };
        }
        let taken = store.outbox_batch(batch).await.map_err(Fault::Store)?;
        if taken.rows.is_empty() {
            return Ok(());
        }
        let full = taken.rows.len() as u32 == batch;
        let (parcels, mut settled) = parcels(&taken.rows);
        let outgoing: Vec<Outgoing> = parcels.iter().map(|parcel| parcel.message.clone()).collect();
        let spans = spans_of(&outgoing);
        let confirmed = broker.publish(&outgoing).await.map_err(Fault::Broker);
        if let Err(fault) = &confirmed {
            for span in &spans {
                span.fail(fault);
            }
        }
        drop(spans);
        let confirmed = confirmed?;
        let mut unconfirmed = 0;
        for (parcel, is_confirmed) in parcels.into_iter().zip(confirmed) {
            if is_confirmed {
                settled.extend(parcel.rows);
            } else {
                unconfirmed += 1;
            }
        }
        taken.settle(&settled).await.map_err(Fault::Store)?;
        if unconfirmed > 0 {
            return Err(Fault::Unconfirmed(unconfirmed));
        }
        if !full {
            return Ok(());
        }
    }
}

/// A message, and the outbox rows that it stands for.
struct Parcel {
    message: Outgoing,
    rows: Vec<String>,
}

/// News of so many tasks make one message at most.
const NEWS: usize = 100;

/// What is to be sent for these rows, and those of them for which there is nothing to be sent. News for the resource
/// manager that lie here together are sent as one message: each costs the broker as much as a whole batch of rows costs
/// the database. Where traces are recorded, each goes by itself, as a part of its own.
fn parcels(rows: &[OutboxRow]) -> (Vec<Parcel>, Vec<String>) {
    let (mut parcels, mut nothing): (Vec<Parcel>, Vec<String>) = (Vec::new(), Vec::new());
    // Where the news that are being gathered are.
    let mut news: Option<usize> = None;
    for row in rows {
        let message = match Message::from_json(row.body.as_bytes()) {
            Ok(message) => message,
            // Nothing we wrote; the sweep will tell again whatever it was about.
            Err(e) => {
                tracing::error!(id = row.id, error = %e, "an outbox row can't be read and is dropped");
                nothing.push(row.id.clone());
                continue;
            }
        };
        let is_news = message.queue() == Queue::Intake && !pulp_trace::is_exporting();
        if is_news && let Some(gathered) = news.and_then(|at| parcels.get_mut(at)) {
            let mut task_ids = gathered.message.message.task_ids().to_vec();
            task_ids.extend(message.task_ids());
            if task_ids.len() <= NEWS {
                gathered.message.message = Message::Changed { task_ids };
                gathered.message.trace = None;
                gathered.rows.push(row.id.clone());
                continue;
            }
        }
        if is_news {
            news = Some(parcels.len());
        }
        parcels.push(Parcel {
            message: Outgoing::new(message, row.id.clone()).within(row.trace.clone()),
            rows: vec![row.id.clone()],
        });
    }
    (parcels, nothing)
}

/// One for each message of a trace that somebody records: from here to the broker's confirm. A batch
/// has messages of many traces, so it has no span of its own.
fn spans_of(batch: &[Outgoing]) -> Vec<Span> {
    if !pulp_trace::is_exporting() {
        return Vec::new();
    }
    let sampled = |o: &&Outgoing| o.trace.as_ref().is_some_and(pulp_trace::TraceContext::is_sampled);
    batch
        .iter()
        .filter(sampled)
        .map(|outgoing| {
            let span = Span::below(outgoing.trace.as_ref(), "outbox.publish", SpanKind::Producer);
            span.set("messaging.destination.name", outgoing.queue.key());
            span.set("messaging.message.id", &outgoing.message_id);
            if let [task] = outgoing.message.task_ids() {
                span.set("task.id", task);
            }
            span.count("messaging.batch.message_count", batch.len() as u64);
            span
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use pulp_broker::ConnectOptions;
    use pulp_model::task::TaskKind;

    use super::*;

    #[tokio::test]
    async fn a_committed_task_reaches_the_broker_and_leaves_the_outbox() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("pulp.db").display());
        let store = Store::connect(&url, 4).await.unwrap();
        store.migrate().await.unwrap();
        let broker = pulp_broker::connect("memory:", "t", ConnectOptions::default())
            .await
            .unwrap();
        let stop = CancellationToken::new();
        let relay = tokio::spawn(run(store.clone(), Arc::clone(&broker), 2, stop.clone()));
        let mut consumer = broker.consume(Queue::Intake, 10).await.unwrap();

        let mut sent = Vec::new();
        for _ in 0..5 {
            let mut tx = store.begin().await.unwrap();
            sent.push(
                tx.enqueue(&TaskKind::DeleteRepository {
                    repo_id: "r".parse().unwrap(),
                })
                .await
                .unwrap(),
            );
            tx.commit().await.unwrap();
        }
        let mut got = Vec::new();
        while got.len() < sent.len() {
            let next = tokio::time::timeout(Duration::from_secs(20), consumer.next());
            let delivery = next.await.expect("a message in time").unwrap().unwrap();
            got.extend_from_slice(delivery.message().task_ids());
            delivery.ack().await.unwrap();
        }
        assert_eq!(got, sent);
        stop.cancel();
        relay.await.unwrap();
        assert_eq!(store.outbox_depth().await.unwrap(), 0);
    }
}
