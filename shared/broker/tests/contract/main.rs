//! What every broker promises, checked on the in-process one and on RabbitMQ by the same cases; then what
//! only a broker behind a network can be asked.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod over_amqp;

use std::{collections::HashSet, future::Future, sync::Arc, time::Duration};

use pulp_broker::{
    Broker, BrokerError, ConnectOptions, Consumer, Control, Delivery, Message, Outgoing, Queue, ack_all,
    connect,
};
use pulp_model::{Attempt, Epoch, TaskId, task::TaskClass};
use pulp_testkit::{shared_rabbitmq, unique_prefix};
use pulp_trace::TraceContext;

const IMPORT: Queue = Queue::Class(TaskClass::Import);
/// Small, so that a test reaches it soon.
const DELIVERY_LIMIT: u32 = 3;

fn options() -> ConnectOptions {
    ConnectOptions {
        delivery_limit: DELIVERY_LIMIT,
        ..ConnectOptions::default()
    }
}

async fn in_process() -> Arc<dyn Broker> {
    connect("memory:", "test", options()).await.unwrap()
}

async fn rabbitmq() -> Arc<dyn Broker> {
    rabbitmq_at(&shared_rabbitmq().unwrap().url(), &unique_prefix("contract")).await
}

async fn rabbitmq_at(url: &str, prefix: &str) -> Arc<dyn Broker> {
    let broker = connect(url, prefix, options()).await.unwrap();
    connected(&*broker).await;
    broker
}

async fn connected(broker: &dyn Broker) {
    eventually("a connection", async || broker.is_connected().then_some(())).await;
}

/// Looks again and again until there is something, for a minute.
async fn eventually<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    in_time(what, async {
        loop {
            tick.tick().await;
            if let Some(found) = look().await {
                return found;
            }
        }
    })
    .await
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_mins(1), future)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within a minute"))
}

async fn depth_becomes(broker: &dyn Broker, queue: Queue, expected: u64) {
    let what = format!("{expected} messages in {queue}");
    eventually(&what, async || {
        (broker.depth(queue).await == Ok(expected)).then_some(())
    })
    .await;
}

fn grant() -> Message {
    Message::Grant {
        task_id: TaskId::new(),
        attempt: Attempt(1),
        class: TaskClass::Import,
        epoch: Epoch(1),
    }
}

fn grants(count: usize) -> Vec<Outgoing> {
    (0..count)
        .map(|n| Outgoing::new(grant(), format!("row-{n}")))
        .collect()
}

/// Sends them and sees to it that each is confirmed.
async fn publish(broker: &dyn Broker, batch: &[Outgoing]) {
    let confirmed = in_time("publishing", broker.publish(batch)).await.unwrap();
    assert_eq!(confirmed, vec![true; batch.len()]);
}

async fn next(consumer: &mut Box<dyn Consumer>) -> Delivery {
    in_time("a delivery", consumer.next())
        .await
        .unwrap()
        .expect("the consumer lives")
}

/// That no delivery comes. The only way to see nothing is to wait a while.
async fn nothing_comes(consumer: &mut Box<dyn Consumer>) {
    let quiet = tokio::time::timeout(Duration::from_millis(300), consumer.next()).await;
    assert!(quiet.is_err(), "unexpected: {quiet:?}");
}

macro_rules! contract {
    ($($case:ident),* $(,)?) => {
        mod in_process {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() { super::$case(super::in_process().await).await; })*
        }
        mod rabbitmq {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() { super::$case(super::rabbitmq().await).await; })*
        }
    };
}

contract![
    what_is_published_is_delivered_in_order_and_ends_with_the_ack,
    a_batch_takes_what_has_piled_up,
    a_batch_is_acked_as_a_whole_and_nothing_else_is,
    unacked_deliveries_come_again_when_their_consumer_is_gone,
    the_prefetch_bounds_what_is_unacked,
    competing_consumers_get_each_message_once,
    a_worker_that_cancels_before_it_acks_parks_nothing,
    a_cancel_gives_back_what_was_not_handed_out,
    a_waiting_next_may_be_dropped_without_loss,
    a_rejected_message_goes_to_the_dead_letters,
    a_message_returned_too_often_goes_to_the_dead_letters,
    the_dead_letters_have_no_consumer,
    a_queue_can_be_purged,
    queues_do_not_mix,
    a_message_keeps_its_trace,
    a_broadcast_reaches_every_subscriber,
    a_closed_broker_says_so,
];

async fn a_message_keeps_its_trace(broker: Arc<dyn Broker>) {
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let traces = [
        TraceContext::parse(parent, Some("vendor=x")),
        TraceContext::parse(parent, None),
        None,
    ];
    let batch = grants(traces.len()).into_iter().zip(traces.clone());
    let batch: Vec<Outgoing> = batch.map(|(o, trace)| o.within(trace)).collect();
    publish(&*broker, &batch).await;
    let mut consumer = broker.consume(IMPORT, 10).await.unwrap();
    for trace in traces {
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.trace(), trace.as_ref());
        delivery.ack().await.unwrap();
    }
}

async fn what_is_published_is_delivered_in_order_and_ends_with_the_ack(broker: Arc<dyn Broker>) {
    let batch = grants(20);
    publish(&*broker, &batch).await;
    let mut consumer = broker.consume(IMPORT, 100).await.unwrap();
    for outgoing in &batch {
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.message(), &outgoing.message);
        assert_eq!(delivery.message_id(), Some(outgoing.message_id.as_str()));
        assert!(!delivery.redelivered());
        delivery.ack().await.unwrap();
        assert_eq!(delivery.ack().await, Err(BrokerError::Stale), "a second ack");
    }
    drop(consumer);
    let mut consumer = broker.consume(IMPORT, 100).await.unwrap();
    nothing_comes(&mut consumer).await;
    depth_becomes(&*broker, IMPORT, 0).await;
    assert_eq!(broker.publish(&[]).await, Ok(Vec::new()));
}

async fn a_batch_takes_what_has_piled_up(broker: Arc<dyn Broker>) {
    let batch = grants(30);
    publish(&*broker, &batch).await;
    let mut consumer = broker.consume(IMPORT, 100).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < batch.len() {
        let got = in_time("a batch", consumer.next_batch(7)).await.unwrap();
        assert!((1..=7).contains(&got.len()), "{}", got.len());
        seen.extend(got.iter().map(|d| d.message().clone()));
        ack_all(&got).await.unwrap();
    }
    assert_eq!(seen, batch.iter().map(|o| o.message.clone()).collect::<Vec<_>>());
    drop(consumer);
    depth_becomes(&*broker, IMPORT, 0).await;
}

async fn a_batch_is_acked_as_a_whole_and_nothing_else_is(broker: Arc<dyn Broker>) {
    publish(&*broker, &grants(6)).await;
    let mut consumer = broker.consume(IMPORT, 100).await.unwrap();
    let mut held = Vec::new();
    while held.len() < 6 {
        held.push(next(&mut consumer).await);
    }
    // All but the third.
    let kept = held.remove(2);
    ack_all(&held).await.unwrap();
    assert_eq!(ack_all(&held).await, Err(BrokerError::Stale));
    drop(consumer);
    let mut consumer = broker.consume(IMPORT, 100).await.unwrap();
    let again = next(&mut consumer).await;
    assert_eq!(again.message_id(), kept.message_id());
    nothing_comes(&mut consumer).await;
}

async fn unacked_deliveries_come_again_when_their_consumer_is_gone(broker: Arc<dyn Broker>) {
    let batch = grants(3);
    publish(&*broker, &batch).await;
    let mut consumer = broker.consume(IMPORT, 10).await.unwrap();
    let first = next(&mut consumer).await;
    let second = next(&mut consumer).await;
    second.ack().await.unwrap();
    drop(consumer);
    assert_eq!(first.ack().await, Err(BrokerError::Stale));
    assert_eq!(first.reject().await, Err(BrokerError::Stale));

    let mut consumer = broker.consume(IMPORT, 10).await.unwrap();
    let mut again = Vec::new();
    for _ in 0..2 {
        let delivery = next(&mut consumer).await;
        delivery.ack().await.unwrap();
        again.push((delivery.message_id().unwrap().to_owned(), delivery.redelivered()));
    }
    again.sort();
    assert_eq!(again[0], ("row-0".to_owned(), true));
    // Whether the third had been fetched ahead before is the transport's affair.
    assert_eq!(again[1].0, "row-2");
}

async fn the_prefetch_bounds_what_is_unacked(broker: Arc<dyn Broker>) {
    publish(&*broker, &grants(5)).await;
    let mut consumer = broker.consume(IMPORT, 2).await.unwrap();
    let first = next(&mut consumer).await;
    let _second = next(&mut consumer).await;
    nothing_comes(&mut consumer).await;
    depth_becomes(&*broker, IMPORT, 3).await;
    first.ack().await.unwrap();
    assert_eq!(next(&mut consumer).await.message_id(), Some("row-2"));
    nothing_comes(&mut consumer).await;
}

async fn competing_consumers_get_each_message_once(broker: Arc<dyn Broker>) {
    let batch = grants(40);
    let mut workers = Vec::new();
    for _ in 0..3 {
        let mut consumer = broker.consume(IMPORT, 1).await.unwrap();
        workers.push(tokio::spawn(async move {
            let mut mine = Vec::new();
            while let Ok(got) = tokio::time::timeout(Duration::from_secs(2), consumer.next()).await {
                let delivery = got.unwrap().unwrap();
                delivery.ack().await.unwrap();
                mine.push(delivery.message_id().unwrap().to_owned());
            }
            mine
        }));
    }
    publish(&*broker, &batch).await;
    let mut all = Vec::new();
    for worker in workers {
        all.extend(worker.await.unwrap());
    }
    assert_eq!(all.len(), 40);
    assert_eq!(all.into_iter().collect::<HashSet<_>>().len(), 40);
}

async fn a_worker_that_cancels_before_it_acks_parks_nothing(broker: Arc<dyn Broker>) {
    publish(&*broker, &grants(4)).await;
    let mut busy = broker.consume(IMPORT, 1).await.unwrap();
    let taken = next(&mut busy).await;
    // Its last slot is filled: no more deliveries, then the ack.
    busy.cancel().await.unwrap();
    taken.ack().await.unwrap();
    assert!(busy.next().await.unwrap().is_none());
    assert!(busy.next_batch(5).await.unwrap().is_empty());
    busy.cancel().await.unwrap();
    depth_becomes(&*broker, IMPORT, 3).await;
    // Another worker gets all that is left, although the first still lives.
    let mut idle = broker.consume(IMPORT, 1).await.unwrap();
    for n in 1..4 {
        let delivery = next(&mut idle).await;
        assert_eq!(delivery.message_id(), Some(format!("row-{n}").as_str()));
        assert!(!delivery.redelivered());
        delivery.ack().await.unwrap();
    }
    drop(busy);
}

async fn a_cancel_gives_back_what_was_not_handed_out(broker: Arc<dyn Broker>) {
    publish(&*broker, &grants(10)).await;
    let mut consumer = broker.consume(IMPORT, 10).await.unwrap();
    let taken = next(&mut consumer).await;
    consumer.cancel().await.unwrap();
    depth_becomes(&*broker, IMPORT, 9).await;
    taken.ack().await.unwrap();
    drop(consumer);
    depth_becomes(&*broker, IMPORT, 9).await;
    let mut other = broker.consume(IMPORT, 10).await.unwrap();
    for n in 1..10 {
        assert_eq!(
            next(&mut other).await.message_id(),
            Some(format!("row-{n}").as_str())
        );
    }
}

async fn a_waiting_next_may_be_dropped_without_loss(broker: Arc<dyn Broker>) {
    let mut consumer = broker.consume(IMPORT, 5).await.unwrap();
    for n in 0..20 {
        {
            let waiting = consumer.next();
            tokio::pin!(waiting);
            assert!(futures::poll!(waiting.as_mut()).is_pending());
        }
        publish(&*broker, &[Outgoing::new(grant(), format!("row-{n}"))]).await;
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.message_id(), Some(format!("row-{n}").as_str()));
        delivery.ack().await.unwrap();
    }
}

async fn a_rejected_message_goes_to_the_dead_letters(broker: Arc<dyn Broker>) {
    let batch = grants(2);
    publish(&*broker, &batch).await;
    let mut consumer = broker.consume(IMPORT, 5).await.unwrap();
    let bad = next(&mut consumer).await;
    bad.reject().await.unwrap();
    assert_eq!(bad.ack().await, Err(BrokerError::Stale));
    next(&mut consumer).await.ack().await.unwrap();
    depth_becomes(&*broker, Queue::Dead, 1).await;
    let letters = broker.take_dead(10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].message_id.as_deref(), Some("row-0"));
    assert_eq!(letters[0].queue.as_deref(), Some("tasks.import"));
    assert_eq!(letters[0].reason.as_deref(), Some("rejected"));
    assert_eq!(Message::from_json(&letters[0].body).unwrap(), batch[0].message);
    depth_becomes(&*broker, Queue::Dead, 0).await;
}

async fn a_message_returned_too_often_goes_to_the_dead_letters(broker: Arc<dyn Broker>) {
    publish(&*broker, &grants(1)).await;
    for round in 0..=DELIVERY_LIMIT {
        let mut consumer = broker.consume(IMPORT, 1).await.unwrap();
        assert_eq!(next(&mut consumer).await.redelivered(), round > 0);
    }
    depth_becomes(&*broker, Queue::Dead, 1).await;
    depth_becomes(&*broker, IMPORT, 0).await;
    let letters = broker.take_dead(10).await.unwrap();
    assert_eq!(letters[0].reason.as_deref(), Some("delivery_limit"));
}

async fn the_dead_letters_have_no_consumer(broker: Arc<dyn Broker>) {
    assert!(matches!(
        broker.consume(Queue::Dead, 1).await.err(),
        Some(BrokerError::Refused { .. })
    ));
}

async fn a_queue_can_be_purged(broker: Arc<dyn Broker>) {
    publish(&*broker, &grants(5)).await;
    depth_becomes(&*broker, IMPORT, 5).await;
    assert_eq!(broker.purge(IMPORT).await, Ok(5));
    assert_eq!(broker.purge(IMPORT).await, Ok(0));
    publish(&*broker, &[Outgoing::new(grant(), "after")]).await;
    let mut consumer = broker.consume(IMPORT, 5).await.unwrap();
    assert_eq!(next(&mut consumer).await.message_id(), Some("after"));
}

async fn queues_do_not_mix(broker: Arc<dyn Broker>) {
    let mut consumers = Vec::new();
    let mut batch = Vec::new();
    for queue in Queue::all().filter(|q| *q != Queue::Dead) {
        let message = match queue {
            Queue::Class(class) => Message::Grant {
                task_id: TaskId::new(),
                attempt: Attempt(1),
                class,
                epoch: Epoch(1),
            },
            _ => Message::Submitted {
                task_id: TaskId::new(),
                made: None,
            },
        };
        assert_eq!(message.queue(), queue);
        batch.push(Outgoing::new(message, queue.key()));
        consumers.push((queue, broker.consume(queue, 10).await.unwrap()));
    }
    publish(&*broker, &batch).await;
    for (queue, consumer) in &mut consumers {
        let delivery = next(consumer).await;
        assert_eq!(delivery.message_id(), Some(queue.key()));
        delivery.ack().await.unwrap();
    }
}

async fn a_broadcast_reaches_every_subscriber(broker: Arc<dyn Broker>) {
    broker.broadcast(&Control::Wake).await.unwrap();
    let mut first = broker.subscribe().await.unwrap();
    let mut second = broker.subscribe().await.unwrap();
    let cancel = Control::Cancel {
        task_id: TaskId::new(),
    };
    broker.broadcast(&cancel).await.unwrap();
    for subscription in [&mut first, &mut second] {
        let got = in_time("a broadcast", subscription.next()).await;
        assert_eq!(got, Ok(Some(cancel)));
    }
    // One that goes away does not disturb the others.
    drop(first);
    broker.broadcast(&Control::Wake).await.unwrap();
    assert_eq!(
        in_time("a broadcast", second.next()).await,
        Ok(Some(Control::Wake))
    );
}

async fn a_closed_broker_says_so(broker: Arc<dyn Broker>) {
    publish(&*broker, &grants(1)).await;
    let mut consumer = broker.consume(IMPORT, 1).await.unwrap();
    let delivery = next(&mut consumer).await;
    let mut subscription = broker.subscribe().await.unwrap();
    broker.close().await;
    assert!(!broker.is_connected());
    let over = in_time("the end of the consumer", consumer.next()).await;
    assert!(!matches!(over, Ok(Some(_))), "{over:?}");
    let over = in_time("the end of the subscription", subscription.next()).await;
    assert!(!matches!(over, Ok(Some(_))), "{over:?}");
    assert_eq!(delivery.ack().await, Err(BrokerError::Stale));
    let closed = |error: Option<BrokerError>| matches!(error, Some(BrokerError::Disconnected { .. }));
    assert!(closed(broker.publish(&grants(1)).await.err()));
    assert!(closed(broker.broadcast(&Control::Wake).await.err()));
    assert!(closed(in_time("consume", broker.consume(IMPORT, 1)).await.err()));
    assert!(closed(in_time("subscribe", broker.subscribe()).await.err()));
    assert!(closed(broker.depth(IMPORT).await.err()));
}

#[tokio::test]
async fn a_url_of_no_known_scheme_is_refused_and_never_shown_with_its_password() {
    for url in ["redis://u:secret@h", "amqp://u:secret@h:port/", ""] {
        let error = connect(url, "test", options()).await.unwrap_err();
        assert!(matches!(error, BrokerError::Config { .. }), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    let broker = connect("amqp://u:secret@127.0.0.1:1/", "test", options())
        .await
        .unwrap();
    assert!(!format!("{broker:?}").contains("secret"));
}
