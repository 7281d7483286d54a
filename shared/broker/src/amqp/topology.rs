//! Which queues there are, with which arguments. Declared whole by every session, before anything else.
//!
//! Declaring what exists already, with the same arguments, changes nothing. With other arguments the broker
//! refuses; then an operator decides, because deleting a queue loses what is in it.

use lapin::{
    Channel, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, LongString},
};

use super::{Settings, error};
use crate::{BrokerError, Queue};

/// The fanout exchange of the broadcasts.
pub(super) fn control_exchange(prefix: &str) -> String {
    format!("{prefix}.control")
}

/// Declares everything that outlives a session.
pub(super) async fn declare(channel: &Channel, settings: &Settings) -> Result<(), BrokerError> {
    for queue in Queue::all() {
        declare_queue(channel, settings, queue).await?;
    }
    let exchange = control_exchange(&settings.prefix);
    channel
        .exchange_declare(
            exchange.as_str().into(),
            ExchangeKind::Fanout,
            ExchangeDeclareOptions {
                durable: true,
                ..ExchangeDeclareOptions::default()
            },
            FieldTable::default(),
        )
        .await
        .map_err(|e| mismatch(&format!("the exchange {exchange}"), &e))
}

/// Declares one queue; gives how many messages are ready in it.
pub(super) async fn declare_queue(
    channel: &Channel,
    settings: &Settings,
    queue: Queue,
) -> Result<u64, BrokerError> {
    let name = queue.name(&settings.prefix);
    let options = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let declared = channel
        .queue_declare(name.as_str().into(), options, arguments(queue, settings))
        .await
        .map_err(|e| mismatch(&format!("the queue {name}"), &e))?;
    Ok(u64::from(declared.message_count()))
}

/// Replicated where there are several nodes; what is rejected or returned too often is moved to the dead
/// letters, and not lost on the way there (`at-least-once`, which demands `reject-publish`).
fn arguments(queue: Queue, settings: &Settings) -> FieldTable {
    let text = |text: &str| AMQPValue::LongString(LongString::from(text));
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    if queue != Queue::Dead {
        // RabbitMQ before 4.0 has no limit unless told, and then one poisonous message goes round for ever.
        arguments.insert(
            "x-delivery-limit".into(),
            AMQPValue::LongLongInt(settings.options.delivery_limit.into()),
        );
        arguments.insert("x-dead-letter-exchange".into(), text(""));
        arguments.insert(
            "x-dead-letter-routing-key".into(),
            text(&Queue::Dead.name(&settings.prefix)),
        );
        arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
        arguments.insert("x-overflow".into(), text("reject-publish"));
    }
    arguments
}

fn mismatch(what: &str, cause: &lapin::Error) -> BrokerError {
    match error(what, cause) {
        BrokerError::Refused { what, reason } => BrokerError::Refused {
            reason: format!(
                "{reason}. If it exists with other arguments, drain and delete it, or choose another prefix; it is never deleted by itself"
            ),
            what,
        },
        other => other,
    }
}
