//! Moves messages from the outbox to the broker, and deletes those that it confirmed.
//!
//! Every process that commits state changes runs one. Relays need no leader: a message sent twice is claimed
//! once. What a process commits its own relay is handed at once, so that it has nothing to look up; the rows are for what
//! could not be sent that way, and each second a relay looks for what has lain there for too long, whoever left it.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use pulp_broker::{Broker, BrokerError, Message, Outgoing, Queue, Undecodable};
use pulp_runtime::backoff::Backoff;
use pulp_store::{
    Store, StoreError,
    outbox::{Content, OutboxRow, Said},
};
use pulp_trace::{Span, SpanKind};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often a relay looks for what was left behind.
const TICK: Duration = Duration::from_secs(1);

/// What has waited for so long is not about to be sent by the relay of whoever committed it.
const LEFT_BEHIND: Duration = Duration::from_secs(2);

/// Rows of what was sent are deleted together, so long after the first of them was confirmed, …
const FORGET_AFTER: Duration = Duration::from_millis(100);

/// … or when there are so many.
const FORGET_AT: usize = 1000;

/// Batches that may be with the broker at once.
const AT_ONCE: usize = 2;

/// Runs until `stop` fires, then once more, so that the last commits of this process are not left behind.
pub async fn run(store: Store, broker: Arc<dyn Broker>, batch: u32, stop: CancellationToken) {
    let mut relay = Relay {
        store,
        broker,
        batch,
        sent: Vec::new(),
        forget_at: None,
    };
    let mut backoff = Backoff::for_connections();
    while let Err(fault) = relay.run(&stop, &mut backoff).await {
        tracing::warn!(error = %fault, "the outbox waits: {}", fault.advice());
        tokio::select! {
            () = backoff.sleep() => {}
            () = stop.cancelled() => break,
        }
    }
    if let Err(fault) = relay.send_all().await {
        tracing::warn!(error = %fault, "messages stay in the outbox for the next relay");
    }
}

struct Relay {
    store: Store,
    broker: Arc<dyn Broker>,
    batch: u32,
    /// Rows whose messages are confirmed, and which are still to be deleted.
    sent: Vec<String>,
    forget_at: Option<Instant>,
}

/// What became of a batch.
struct Published {
    rows: Vec<OutboxRow>,
    parcels: Vec<Parcel>,
    confirmed: Result<Vec<bool>, BrokerError>,
}

impl Relay {
    /// Until `stop` fires, or something fails.
    async fn run(&mut self, stop: &CancellationToken, backoff: &mut Backoff) -> Result<(), Fault> {
        self.send_all().await?;
        backoff.reset();
        let mut under_way: FuturesUnordered<BoxFuture<'static, Published>> = FuturesUnordered::new();
        let mut done = self.relay(stop, &mut under_way).await;
        // Those that are with the broker are brought to their end.
        while let Some(published) = under_way.next().await {
            done = done.and(self.published(published));
        }
        done
    }

    async fn relay(
        &mut self,
        stop: &CancellationToken,
        under_way: &mut FuturesUnordered<BoxFuture<'static, Published>>,
    ) -> Result<(), Fault> {
        let mut tick = tokio::time::interval_at(Instant::now() + TICK, TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut more = true;
        loop {
            while more && under_way.len() < AT_ONCE {
                let rows = self.store.outbox_fresh(self.batch);
                more = rows.len() as u32 == self.batch;
                if !rows.is_empty() {
                    under_way.push(self.publish(rows)?);
                }
            }
            let forget_at = self.forget_at;
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(published) = under_way.next() => self.published(published)?,
                () = self.store.outbox_rung(), if !more => more = true,
                () = at(forget_at) => self.forget().await?,
                _ = tick.tick() => self.send_left(LEFT_BEHIND).await?,
            }
        }
    }

    /// Sends these, by a future that needs nothing of this one.
    fn publish(&mut self, rows: Vec<OutboxRow>) -> Result<BoxFuture<'static, Published>, Fault> {
        if !self.broker.is_connected() {
            self.store.outbox_unsent(rows);
            return Err(Fault::NotConnected);
        }
        let (parcels, nothing) = parcels(&rows);
        self.is_sent(nothing);
        let broker = Arc::clone(&self.broker);
        Ok(async move {
            let confirmed = publish(broker.as_ref(), &parcels).await;
            Published {
                rows,
                parcels,
                confirmed,
            }
        }
        .boxed())
    }

    fn published(&mut self, published: Published) -> Result<(), Fault> {
        let Published {
            rows,
            parcels,
            confirmed,
        } = published;
        let confirmed = match confirmed {
            Ok(confirmed) => confirmed,
            Err(e) => {
                self.store.outbox_unsent(rows);
                return Err(Fault::Broker(e));
            }
        };
        let (settled, unconfirmed) = settled(parcels, confirmed);
        if unconfirmed > 0 {
            let unsent = rows.into_iter().filter(|row| !settled.contains(&row.id));
            self.store.outbox_unsent(unsent.collect());
        }
        self.is_sent(settled);
        if unconfirmed > 0 {
            return Err(Fault::Unconfirmed(unconfirmed));
        }
        Ok(())
    }

    fn is_sent(&mut self, rows: Vec<String>) {
        if rows.is_empty() {
            return;
        }
        self.sent.extend(rows);
        let now = Instant::now();
        let due = self.forget_at.unwrap_or(now + FORGET_AFTER);
        self.forget_at = Some(if self.sent.len() < FORGET_AT { due } else { now });
    }

    async fn forget(&mut self) -> Result<(), Fault> {
        self.store.forget_sent(&self.sent).await.map_err(Fault::Store)?;
        self.sent.clear();
        self.forget_at = None;
        Ok(())
    }

    /// Sends whatever there is, by its rows alone.
    async fn send_all(&mut self) -> Result<(), Fault> {
        // What was sent already is not sent again, and what is in the rows not by hand.
        self.forget().await?;
        loop {
            let fresh = self.store.outbox_fresh(self.batch);
            if fresh.is_empty() {
                break;
            }
            if !self.store.has_outbox() {
                let published = self.publish(fresh)?.await;
                self.published(published)?;
            }
        }
        self.send_left(Duration::ZERO).await
    }

    /// Sends batches of what has waited for `age` until there is no more.
    async fn send_left(&self, age: Duration) -> Result<(), Fault> {
        loop {
            if !self.broker.is_connected() {
                return if self.store.outbox_depth().await.map_err(Fault::Store)? == 0 {
                    Ok(())
                } else {
                    Err(Fault::NotConnected)
                };
            }
            let taken = self.store.outbox_left_for(age, self.batch);
            let taken = taken.await.map_err(Fault::Store)?;
            if taken.rows.is_empty() {
                return Ok(());
            }
            // Of those that were committed while this looked.
            self.store.outbox_not_fresh(&taken.rows);
            let full = taken.rows.len() as u32 == self.batch;
            let (parcels, nothing) = parcels(&taken.rows);
            let confirmed = publish(self.broker.as_ref(), &parcels).await;
            let (mut settled, unconfirmed) = settled(parcels, confirmed.map_err(Fault::Broker)?);
            settled.extend(nothing);
            taken.settle(&settled).await.map_err(Fault::Store)?;
            if unconfirmed > 0 {
                return Err(Fault::Unconfirmed(unconfirmed));
            }
            if !full {
                return Ok(());
            }
        }
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Sends a batch, within the traces of its messages.
async fn publish(broker: &dyn Broker, parcels: &[Parcel]) -> Result<Vec<bool>, BrokerError> {
    let outgoing: Vec<Outgoing> = parcels.iter().map(|parcel| parcel.message.clone()).collect();
    let spans = spans_of(&outgoing);
    let confirmed = broker.publish(&outgoing).await;
    if let Err(fault) = &confirmed {
        for span in &spans {
            span.fail(fault);
        }
    }
    confirmed
}

/// The rows of what was confirmed, and how many messages were not.
fn settled(parcels: Vec<Parcel>, confirmed: Vec<bool>) -> (Vec<String>, usize) {
    let (mut settled, mut unconfirmed) = (Vec::new(), 0);
    for (parcel, is_confirmed) in parcels.into_iter().zip(confirmed) {
        if is_confirmed {
            settled.extend(parcel.rows);
        } else {
            unconfirmed += 1;
        }
    }
    (settled, unconfirmed)
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
        let message = match message_of(&row.content) {
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
            let told = &mut gathered.message.message;
            if told.task_ids().len() < NEWS {
                told.tell_also(&message);
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

/// As the broker has it.
fn message_of(content: &Content) -> Result<Message, Undecodable> {
    let said = match content {
        Content::Said(said) => said,
        Content::Text(body) => return Message::from_json(body.as_bytes()),
    };
    Ok(match said {
        Said::Made(made) => Message::Submitted {
            task_id: made.task_id,
            made: Some(Arc::clone(made)),
        },
        Said::Waits(task_id) => Message::Submitted {
            task_id: *task_id,
            made: None,
        },
        Said::Ended(task_id) => Message::Ended {
            task_id: *task_id,
            terminal: true,
        },
        Said::Granted {
            task_id,
            attempt,
            class,
            epoch,
        } => Message::Grant {
            task_id: *task_id,
            attempt: *attempt,
            class: *class,
            epoch: *epoch,
        },
    })
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
    use pulp_model::{TaskId, task::TaskKind};

    use super::*;

    struct Bed {
        store: Store,
        url: String,
        broker: Arc<dyn Broker>,
        _folder: tempfile::TempDir,
    }

    async fn bed() -> Bed {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("pulp.db").display());
        let store = Store::connect(&url, 4).await.unwrap();
        store.migrate().await.unwrap();
        let broker = pulp_broker::connect("memory:", "t", ConnectOptions::default())
            .await
            .unwrap();
        Bed {
            store,
            url,
            broker,
            _folder: folder,
        }
    }

    async fn commit_a_task(store: &Store) -> TaskId {
        let mut tx = store.begin().await.unwrap();
        let kind = TaskKind::DeleteRepository {
            repo_id: "r".parse().unwrap(),
        };
        let id = tx.enqueue(&kind).await.unwrap();
        tx.commit().await.unwrap();
        id
    }

    /// Reads news of tasks until each of these was told of; gives all that was told.
    async fn told_of(consumer: &mut Box<dyn pulp_broker::Consumer>, tasks: &[TaskId]) -> Vec<TaskId> {
        let mut got = Vec::new();
        while tasks.iter().any(|id| !got.contains(id)) {
            let next = tokio::time::timeout(Duration::from_secs(20), consumer.next());
            let delivery = next.await.expect("a message in time").unwrap().unwrap();
            got.extend_from_slice(delivery.message().task_ids());
            delivery.ack().await.unwrap();
        }
        got
    }

    #[tokio::test]
    async fn a_committed_task_reaches_the_broker_and_leaves_the_outbox() {
        let bed = bed().await;
        let stop = CancellationToken::new();
        let relay = tokio::spawn(run(bed.store.clone(), Arc::clone(&bed.broker), 2, stop.clone()));
        let mut consumer = bed.broker.consume(Queue::Intake, 10).await.unwrap();

        let mut sent = Vec::new();
        for _ in 0..5 {
            sent.push(commit_a_task(&bed.store).await);
        }
        let got = told_of(&mut consumer, &sent).await;
        // The first may come twice: found by its row while its commit hands it over.
        assert!(got.len() < 2 * sent.len(), "{got:?}");
        stop.cancel();
        relay.await.unwrap();
        assert_eq!(bed.store.outbox_depth().await.unwrap(), 0);
    }

    #[tokio::test]
    async fn messages_without_rows_are_sent_also_when_whoever_committed_them_went_away() {
        let bed = bed().await;
        let store = bed.store.clone().with_messages_in_memory();
        let mut consumer = bed.broker.consume(Queue::Intake, 10).await.unwrap();
        let mut sent = Vec::new();
        for _ in 0..5 {
            sent.push(commit_a_task(&store).await);
        }
        let mut tx = store.begin().await.unwrap();
        let kind = TaskKind::DeleteRepository {
            repo_id: "r".parse().unwrap(),
        };
        sent.push(tx.enqueue(&kind).await.unwrap());
        let mut given_up = Box::pin(tx.commit());
        assert!(futures::poll!(&mut given_up).is_pending());
        drop(given_up);
        assert_eq!(bed.store.outbox_depth().await.unwrap(), 0);

        let stop = CancellationToken::new();
        let relay = tokio::spawn(run(store, Arc::clone(&bed.broker), 2, stop.clone()));
        told_of(&mut consumer, &sent).await;
        stop.cancel();
        relay.await.unwrap();
    }

    #[tokio::test]
    async fn what_a_process_left_behind_that_died_after_its_commit_is_found_and_sent() {
        let bed = bed().await;
        let stop = CancellationToken::new();
        let relay = tokio::spawn(run(bed.store.clone(), Arc::clone(&bed.broker), 2, stop.clone()));
        let mut consumer = bed.broker.consume(Queue::Intake, 10).await.unwrap();
        // Of this process, so that the relay is known to be past its first look at the rows.
        told_of(&mut consumer, &[commit_a_task(&bed.store).await]).await;
        let died = Store::connect(&bed.url, 2).await.unwrap();
        let mut left = Vec::new();
        for _ in 0..5 {
            left.push(commit_a_task(&died).await);
        }
        died.close().await;
        told_of(&mut consumer, &left).await;
        stop.cancel();
        relay.await.unwrap();
        assert_eq!(bed.store.outbox_depth().await.unwrap(), 0);
    }
}
