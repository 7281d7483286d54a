//! What is on the wire between roles; AMQP and in-process.
//!
//! A message is a hint: the truth is the row in the database that it names. So bodies carry identifiers
//! only, every receiver reads the row again, and every sender keeps its intent in an outbox until the broker
//! has *confirmed* that the message lies durably in its queue. Messages may be lost, doubled, late or out of
//! order and the system still converges.
//!
//! [`connect`] gives one [`Broker`] for either transport: `memory:` for a single process,
//! `amqp://…` / `amqps://…` for RabbitMQ 3.10 or later. Both keep the same contract, and the same test suite
//! (`tests/contract.rs`) runs on both.
//!
//! ```text
//! <prefix>.intake           to the resource manager: tasks submitted, tasks ended
//! <prefix>.tasks.<class>    to any worker of the class: grants
//! <prefix>.dead             what nobody could read, or what was returned too often
//! <prefix>.control          fanout to every subscriber; nothing durable
//! ```

mod amqp;
mod error;
mod memory;
mod message;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use pulp_trace::TraceContext;

pub use error::BrokerError;
pub use message::{Control, DeadLetter, Message, Outgoing, Queue, Undecodable};

/// How a broker is used; the defaults are right for production.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// The name under which RabbitMQ's management shows this connection.
    pub name: String,
    /// How often a delivery may be returned un-acked before it goes to [`Queue::Dead`]. Part of the queues'
    /// arguments: every process of one installation must use the same number.
    pub delivery_limit: u32,
    /// How long to wait for the broker's confirms of one batch.
    pub confirm_timeout: Duration,
    /// AMQP heartbeat; a peer silent for about twice as long is given up. Whole seconds.
    pub heartbeat: Duration,
    /// Certificates (PEM) trusted for `amqps:`, in addition to the system's.
    pub ca_pem: Option<String>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            name: "pulp".to_owned(),
            delivery_limit: 20,
            confirm_timeout: Duration::from_secs(5),
            heartbeat: Duration::from_secs(10),
            ca_pem: None,
        }
    }
}

/// Opens the broker at `url`: `memory:`, `amqp://user:password@host:port/vhost` or `amqps://…`.
///
/// `prefix` begins the name of every queue, so that installations can share a virtual host.
///
/// A broker that is down is no error: the connection is made, and made again, in the background.
/// `memory:` gives a new, empty broker at each call; the roles of one process share it by cloning the `Arc`.
///
/// # Errors
///
/// [`BrokerError::Config`] when the url or the certificates can't be read.
#[allow(clippy::unused_async)] // It must run inside the runtime that shall drive the connection.
pub async fn connect(
    url: &str,
    prefix: &str,
    options: ConnectOptions,
) -> Result<Arc<dyn Broker>, BrokerError> {
    match url.split(':').next() {
        Some("memory") => Ok(Arc::new(memory::MemoryBroker::new(options.delivery_limit))),
        Some("amqp" | "amqps") => Ok(Arc::new(amqp::AmqpBroker::start(url, prefix, options)?)),
        scheme => Err(BrokerError::Config {
            reason: format!(
                "broker url has the scheme {:?}; use memory:, amqp:// or amqps://",
                scheme.unwrap_or_default()
            ),
        }),
    }
}

/// Queues and the broadcast channel, whatever carries them.
#[async_trait]
pub trait Broker: Send + Sync + fmt::Debug {
    /// Sends a batch: persistent, all in flight at once.
    ///
    /// Gives for each message, in order, whether it is *confirmed*: it lies durably in its queue. A message
    /// that is not confirmed may or may not arrive; send it again later.
    ///
    /// # Errors
    ///
    /// Fails at once with [`BrokerError::Disconnected`] while there is no connection.
    async fn publish(&self, batch: &[Outgoing]) -> Result<Vec<bool>, BrokerError>;

    /// Begins to take messages, at most `prefetch` (at least 1) un-acked at a time.
    ///
    /// Waits until there is a connection; dropping the future is safe.
    ///
    /// # Errors
    ///
    /// [`BrokerError::Refused`] when the queue exists with other arguments, or for [`Queue::Dead`], which is
    /// read by [`Broker::take_dead`].
    async fn consume(&self, queue: Queue, prefetch: u16) -> Result<Box<dyn Consumer>, BrokerError>;

    /// Tells every subscriber; a hint that may be lost.
    async fn broadcast(&self, control: &Control) -> Result<(), BrokerError>;

    /// Receives what is broadcast from now on. Waits until there is a connection; dropping the future is safe.
    async fn subscribe(&self) -> Result<Box<dyn Subscription>, BrokerError>;

    /// Whether there is a session with the broker now.
    fn is_connected(&self) -> bool;

    /// Removes the ready messages of a queue; gives how many there were.
    async fn purge(&self, queue: Queue) -> Result<u64, BrokerError>;

    /// How many messages are ready, those delivered and un-acked not counted.
    async fn depth(&self, queue: Queue) -> Result<u64, BrokerError>;

    /// Removes and gives at most `max` of the oldest dead letters, for an operator to read.
    async fn take_dead(&self, max: usize) -> Result<Vec<DeadLetter>, BrokerError>;

    /// Ends the session for good. Un-acked deliveries go back to their queues.
    async fn close(&self);
}

/// One consumer of one queue in one session.
///
/// Dropping it gives back every delivery that is still un-acked.
#[async_trait]
pub trait Consumer: Send {
    /// The next delivery. Dropping the future loses nothing.
    ///
    /// `None`, or an error, means that this consumer is over: consume again.
    async fn next(&mut self) -> Result<Option<Delivery>, BrokerError>;

    /// Everything that has piled up, at least one and at most `max`; empty means what `None` means above.
    async fn next_batch(&mut self, max: usize) -> Result<Vec<Delivery>, BrokerError>;

    /// Takes no more deliveries: what was not handed out goes back to the queue, and `next` gives `None`.
    /// Deliveries handed out stay here and can be acked as long as this consumer lives.
    async fn cancel(&mut self) -> Result<(), BrokerError>;
}

/// Receives broadcasts.
#[async_trait]
pub trait Subscription: Send {
    /// The next one. `None`, or an error, means that this subscription is over: subscribe again, and look
    /// at the rows, because some may have been missed.
    async fn next(&mut self) -> Result<Option<Control>, BrokerError>;
}

/// A message handed out and not yet settled.
#[derive(Debug)]
pub struct Delivery {
    message: Message,
    message_id: Option<String>,
    trace: Option<TraceContext>,
    redelivered: bool,
    receipt: Receipt,
}

#[derive(Debug)]
enum Receipt {
    Memory(memory::Receipt),
    Amqp(amqp::Receipt),
}

impl Delivery {
    /// What it says.
    pub const fn message(&self) -> &Message {
        &self.message
    }

    /// The sender's id of it, which is its outbox row's.
    pub fn message_id(&self) -> Option<&str> {
        self.message_id.as_deref()
    }

    /// The trace that it belongs to, as its sender says.
    pub const fn trace(&self) -> Option<&TraceContext> {
        self.trace.as_ref()
    }

    /// Whether it was handed out before, to anyone.
    pub const fn redelivered(&self) -> bool {
        self.redelivered
    }

    /// Settles it: it never comes again.
    ///
    /// # Errors
    ///
    /// [`BrokerError::Stale`] when its session is over, or it is settled already: harmless, it may come again.
    pub async fn ack(&self) -> Result<(), BrokerError> {
        match &self.receipt {
            Receipt::Memory(receipt) => receipt.ack(),
            Receipt::Amqp(receipt) => receipt.ack().await,
        }
    }

    /// Settles it as unusable: it goes to [`Queue::Dead`].
    ///
    /// # Errors
    ///
    /// As [`Delivery::ack`].
    pub async fn reject(&self) -> Result<(), BrokerError> {
        match &self.receipt {
            Receipt::Memory(receipt) => receipt.reject(),
            Receipt::Amqp(receipt) => receipt.reject().await,
        }
    }
}

/// Acks a batch with as few frames as the protocol allows.
///
/// # Errors
///
/// The first error; the others are acked all the same.
pub async fn ack_all(deliveries: &[Delivery]) -> Result<(), BrokerError> {
    let mut result = Ok(());
    let mut amqp = Vec::new();
    for delivery in deliveries {
        match &delivery.receipt {
            Receipt::Memory(receipt) => result = result.and(receipt.ack()),
            Receipt::Amqp(receipt) => amqp.push(receipt),
        }
    }
    result.and(amqp::ack_all(amqp).await)
}
