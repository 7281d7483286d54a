//! What only a broker behind a network can be asked.

use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable, LongString},
};
use pulp_testkit::RabbitMq;

use super::*;

async fn raw(url: &str) -> (Connection, lapin::Channel) {
    let connection = Connection::connect(url, ConnectionProperties::default())
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

async fn delete(channel: &lapin::Channel, queue: &str) {
    channel
        .queue_delete(queue.into(), QueueDeleteOptions::default())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreadable_body_goes_to_the_dead_letters_and_the_next_is_delivered() {
    let url = shared_rabbitmq().unwrap().url();
    let prefix = unique_prefix("unreadable");
    let broker = rabbitmq_at(&url, &prefix).await;
    let (_connection, channel) = raw(&url).await;
    let bodies = ["{", r#"{"v":2,"type":"grant"}"#, r#"{"v":1,"type":"unheard-of"}"#];
    for body in bodies {
        channel
            .basic_publish(
                "".into(),
                IMPORT.name(&prefix).as_str().into(),
                BasicPublishOptions::default(),
                body.as_bytes(),
                BasicProperties::default(),
            )
            .await
            .unwrap();
    }
    depth_becomes(&*broker, IMPORT, 3).await;
    publish(&*broker, &grants(1)).await;
    let mut consumer = broker.consume(IMPORT, 1).await.unwrap();
    assert_eq!(next(&mut consumer).await.message_id(), Some("row-0"));
    depth_becomes(&*broker, Queue::Dead, 3).await;
    let letters = broker.take_dead(10).await.unwrap();
    let found: Vec<_> = letters.iter().map(|l| String::from_utf8_lossy(&l.body)).collect();
    assert_eq!(found, bodies);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unroutable_message_is_not_confirmed_and_its_queue_is_made_again() {
    let url = shared_rabbitmq().unwrap().url();
    let prefix = unique_prefix("unroutable");
    let broker = rabbitmq_at(&url, &prefix).await;
    let (_connection, channel) = raw(&url).await;
    delete(&channel, &IMPORT.name(&prefix)).await;
    let to_intake = Outgoing::new(
        Message::Ended {
            task_id: TaskId::new(),
            terminal: true,
        },
        "there",
    );
    let batch = [grants(1).remove(0), to_intake, grants(1).remove(0)];
    assert_eq!(broker.publish(&batch).await, Ok(vec![false, true, false]));
    publish(&*broker, &batch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_whose_queue_is_deleted_ends_and_the_next_one_works() {
    let url = shared_rabbitmq().unwrap().url();
    let prefix = unique_prefix("deleted");
    let broker = rabbitmq_at(&url, &prefix).await;
    let mut consumer = broker.consume(IMPORT, 1).await.unwrap();
    let (_connection, channel) = raw(&url).await;
    delete(&channel, &IMPORT.name(&prefix)).await;
    let over = in_time("the end of the consumer", consumer.next()).await;
    assert!(!matches!(over, Ok(Some(_))), "{over:?}");
    let mut consumer = broker.consume(IMPORT, 1).await.unwrap();
    publish(&*broker, &grants(1)).await;
    next(&mut consumer).await.ack().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_prefixes_do_not_see_each_other_and_two_processes_of_one_do() {
    let url = shared_rabbitmq().unwrap().url();
    let (here, there) = (unique_prefix("here"), unique_prefix("there"));
    let ours = rabbitmq_at(&url, &here).await;
    let also_ours = rabbitmq_at(&url, &here).await;
    let theirs = rabbitmq_at(&url, &there).await;
    let mut our_consumer = also_ours.consume(IMPORT, 1).await.unwrap();
    let mut their_consumer = theirs.consume(IMPORT, 1).await.unwrap();
    let mut our_control = also_ours.subscribe().await.unwrap();
    let mut their_control = theirs.subscribe().await.unwrap();
    publish(&*ours, &grants(1)).await;
    ours.broadcast(&Control::Wake).await.unwrap();
    next(&mut our_consumer).await.ack().await.unwrap();
    assert_eq!(
        in_time("a broadcast", our_control.next()).await,
        Ok(Some(Control::Wake))
    );
    nothing_comes(&mut their_consumer).await;
    let quiet = tokio::time::timeout(Duration::from_millis(100), their_control.next()).await;
    assert!(quiet.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_with_other_arguments_is_a_clear_error_and_is_left_alone() {
    let url = shared_rabbitmq().unwrap().url();
    let prefix = unique_prefix("mismatch");
    let name = IMPORT.name(&prefix);
    let (_connection, channel) = raw(&url).await;
    let mut arguments = FieldTable::default();
    arguments.insert(
        "x-queue-type".into(),
        AMQPValue::LongString(LongString::from("quorum")),
    );
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare(name.as_str().into(), durable, arguments.clone())
        .await
        .unwrap();
    let broker = connect(&url, &prefix, options()).await.unwrap();
    let error = in_time("an answer", broker.consume(IMPORT, 1))
        .await
        .err()
        .unwrap();
    let BrokerError::Refused { what, reason } = error else {
        panic!("{error}");
    };
    assert!(what.contains(&name), "{what}");
    assert!(reason.contains("other arguments"), "{reason}");
    assert!(matches!(
        broker.publish(&grants(1)).await,
        Err(BrokerError::Refused { .. })
    ));
    // Still there, as it was; and when the operator deletes it, everything works without a restart.
    channel
        .queue_declare(name.as_str().into(), durable, arguments)
        .await
        .unwrap();
    delete(&channel, &name).await;
    connected(&*broker).await;
    publish(&*broker, &grants(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_broker_goes_on_whatever_happens_to_rabbitmq() {
    let mut node = RabbitMq::start().unwrap();
    let broker = rabbitmq_at(&node.url(), "fault").await;
    let batch = grants(5);
    publish(&*broker, &batch).await;
    let mut consumer = broker.consume(IMPORT, 2).await.unwrap();
    let held = next(&mut consumer).await;
    let mut subscription = broker.subscribe().await.unwrap();

    node.kill().unwrap();
    let over = in_time("the end of the consumer", async {
        loop {
            match consumer.next().await {
                Ok(Some(_)) => {}
                over => break over,
            }
        }
    })
    .await;
    assert!(!matches!(over, Ok(Some(_))), "{over:?}");
    in_time("the end of the subscription", subscription.next())
        .await
        .ok();
    assert_eq!(held.ack().await, Err(BrokerError::Stale));
    let refused = in_time("publishing", broker.publish(&batch)).await;
    assert!(
        matches!(refused, Err(BrokerError::Disconnected { .. })),
        "{refused:?}"
    );
    assert!(!broker.is_connected());
    // It waits for the broker, and may be given up.
    let waiting = tokio::time::timeout(Duration::from_millis(100), broker.consume(IMPORT, 1)).await;
    assert!(waiting.is_err());

    node.start_again().unwrap();
    // What was confirmed has survived the crash, the one that was held comes again.
    let mut consumer = in_time("a consumer", broker.consume(IMPORT, 10)).await.unwrap();
    let mut ids = HashSet::new();
    while ids.len() < 5 {
        let delivery = next(&mut consumer).await;
        delivery.ack().await.unwrap();
        ids.insert(delivery.message_id().unwrap().to_owned());
    }
    publish(&*broker, &grants(1)).await;
    next(&mut consumer).await.ack().await.unwrap();

    // An operator purges, deletes, and cuts connections under our feet.
    let url = node.url();
    drop(consumer);
    publish(&*broker, &grants(2)).await;
    depth_becomes(&*broker, IMPORT, 2).await;
    node.purge_all_queues(&url).unwrap();
    depth_becomes(&*broker, IMPORT, 0).await;
    node.delete_all_queues(&url).unwrap();
    assert_eq!(broker.publish(&grants(1)).await, Ok(vec![false]));
    publish(&*broker, &grants(1)).await;
    let mut consumer = broker.consume(IMPORT, 1).await.unwrap();
    let held = next(&mut consumer).await;
    node.close_all_connections().unwrap();
    let over = in_time("the end of the consumer", consumer.next()).await;
    assert!(!matches!(over, Ok(Some(_))), "{over:?}");
    assert_eq!(held.ack().await, Err(BrokerError::Stale));
    let mut consumer = in_time("a consumer", broker.consume(IMPORT, 10)).await.unwrap();
    let again = next(&mut consumer).await;
    assert!(again.redelivered());
    again.ack().await.unwrap();

    node.wipe().unwrap();
    let mut consumer = in_time("a consumer", broker.consume(IMPORT, 10)).await.unwrap();
    publish(&*broker, &grants(1)).await;
    next(&mut consumer).await.ack().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_down_at_the_start_is_no_error() {
    let port = pulp_testkit::free_port().unwrap();
    let url = format!("amqp://guest:guest@127.0.0.1:{port}/%2f");
    let broker = connect(&url, "down", options()).await.unwrap();
    assert!(!broker.is_connected());
    let refused = in_time("publishing", broker.publish(&grants(1))).await;
    assert!(
        matches!(refused, Err(BrokerError::Disconnected { .. })),
        "{refused:?}"
    );
    in_time("closing", broker.close()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_refused_and_not_told_on() {
    let url = shared_rabbitmq()
        .unwrap()
        .url()
        .replace("guest:guest", "guest:hunter2");
    let broker = connect(&url, "wrong", options()).await.unwrap();
    let error = in_time("an answer", broker.consume(IMPORT, 1))
        .await
        .err()
        .unwrap();
    assert!(matches!(error, BrokerError::Refused { .. }), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_virtual_host_is_a_world_of_its_own() {
    let node = shared_rabbitmq().unwrap();
    let prefix = unique_prefix("vhost");
    let here = rabbitmq_at(&node.create_vhost("broker").unwrap(), &prefix).await;
    let there = rabbitmq_at(&node.url(), &prefix).await;
    publish(&*here, &grants(1)).await;
    depth_becomes(&*here, IMPORT, 1).await;
    assert_eq!(there.depth(IMPORT).await, Ok(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_broker_gives_back_what_it_held() {
    let url = shared_rabbitmq().unwrap().url();
    let prefix = unique_prefix("dropped");
    let first = rabbitmq_at(&url, &prefix).await;
    publish(&*first, &grants(1)).await;
    let mut consumer = first.consume(IMPORT, 1).await.unwrap();
    let _held = next(&mut consumer).await;
    drop(first);
    let second = rabbitmq_at(&url, &prefix).await;
    let mut other = second.consume(IMPORT, 1).await.unwrap();
    let again = next(&mut other).await;
    assert!(again.redelivered());
}
