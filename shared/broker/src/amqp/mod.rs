//! The broker over AMQP 0-9-1: RabbitMQ, with durable quorum queues.
//!
//! A supervisor task owns the connection. What is made upon one connection is a *session*; when the
//! connection breaks, the session and everything that came from it is over, and the supervisor makes the next.
//! The client library's own recovery stays off: it would go on delivering under the old consumer, and a
//! handler that holds a delivery would not learn that the broker has given it to somebody else.

mod consume;
mod publish;
mod session;
mod supervisor;
mod topology;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use lapin::{
    protocol::{AMQPErrorKind, AMQPSoftError},
    uri::AMQPUri,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    Broker, BrokerError, ConnectOptions, Consumer, Control, DeadLetter, Outgoing, Queue, Subscription,
};

pub(crate) use consume::{Receipt, ack_all};
use session::Session;

/// What the supervisor and the callers share.
pub(crate) struct AmqpBroker {
    settings: Arc<Settings>,
    link: watch::Receiver<Link>,
    stop: CancellationToken,
    stopped: CancellationToken,
}

/// Everything needed to make a session.
struct Settings {
    uri: AMQPUri,
    prefix: String,
    options: ConnectOptions,
}

/// What there is of a connection.
#[derive(Clone)]
enum Link {
    /// None, for the moment.
    Down { reason: String },
    /// This one.
    Up(Arc<Session>),
    /// The broker answers, but its queues are not as we need them; tried again all the same.
    Refused(BrokerError),
    /// Ended by [`Broker::close`].
    Closed,
}

impl AmqpBroker {
    /// Begins to connect in the background.
    pub(crate) fn start(url: &str, prefix: &str, options: ConnectOptions) -> Result<Self, BrokerError> {
        let uri = read_url(url, &options)?;
        if prefix.is_empty() || prefix.len() > 64 || prefix.starts_with("amq.") {
            return Err(BrokerError::Config {
                reason: format!("prefix {prefix:?}: use 1 to 64 characters, not beginning with `amq.`"),
            });
        }
        let settings = Arc::new(Settings {
            uri,
            prefix: prefix.to_owned(),
            options,
        });
        let (sender, link) = watch::channel(Link::Down {
            reason: "not connected yet".to_owned(),
        });
        let stop = CancellationToken::new();
        let stopped = CancellationToken::new();
        let supervisor = supervisor::run(Arc::clone(&settings), sender, stop.clone());
        let done = stopped.clone().drop_guard();
        tokio::spawn(async move {
            supervisor.await;
            drop(done);
        });
        Ok(Self {
            settings,
            link,
            stop,
            stopped,
        })
    }

    /// The session of now.
    fn session(&self) -> Result<Arc<Session>, BrokerError> {
        match &*self.link.borrow() {
            Link::Up(session) if session.is_alive() => Ok(Arc::clone(session)),
            Link::Up(_) => Err(disconnected("the connection broke")),
            Link::Down { reason } => Err(disconnected(reason)),
            Link::Refused(error) => Err(error.clone()),
            Link::Closed => Err(disconnected("the broker was closed")),
        }
    }

    /// The first session with a generation above `after`.
    async fn wait_for_session(&self, after: u64) -> Result<Arc<Session>, BrokerError> {
        let mut link = self.link.clone();
        let found = link
            .wait_for(|link| match link {
                Link::Up(session) => session.generation() > after,
                Link::Down { .. } => false,
                Link::Refused(_) | Link::Closed => true,
            })
            .await;
        match found.as_deref() {
            Ok(Link::Up(session)) => Ok(Arc::clone(session)),
            Ok(Link::Refused(error)) => Err(error.clone()),
            _ => Err(disconnected("the broker was closed")),
        }
    }
}

impl Drop for AmqpBroker {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl fmt::Debug for AmqpBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the url: it holds a password.
        f.debug_struct("AmqpBroker")
            .field("host", &self.settings.uri.authority.host)
            .field("prefix", &self.settings.prefix)
            .field("connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Broker for AmqpBroker {
    async fn publish(&self, batch: &[Outgoing]) -> Result<Vec<bool>, BrokerError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        self.session()?.publish(batch).await
    }

    async fn consume(&self, queue: Queue, prefetch: u16) -> Result<Box<dyn Consumer>, BrokerError> {
        if queue == Queue::Dead {
            return Err(BrokerError::consume_dead());
        }
        let mut after = 0;
        loop {
            let session = self.wait_for_session(after).await?;
            let result = session.consume(queue, prefetch.max(1)).await;
            if result.is_ok() || session.is_alive() {
                return result;
            }
            after = session.generation();
        }
    }

    async fn broadcast(&self, control: &Control) -> Result<(), BrokerError> {
        self.session()?.broadcast(control).await
    }

    async fn subscribe(&self) -> Result<Box<dyn Subscription>, BrokerError> {
        let mut after = 0;
        loop {
            let session = self.wait_for_session(after).await?;
            let result = session.subscribe().await;
            if result.is_ok() || session.is_alive() {
                return result;
            }
            after = session.generation();
        }
    }

    fn is_connected(&self) -> bool {
        self.session().is_ok()
    }

    async fn purge(&self, queue: Queue) -> Result<u64, BrokerError> {
        self.session()?.purge(queue).await
    }

    async fn depth(&self, queue: Queue) -> Result<u64, BrokerError> {
        self.session()?.depth(queue).await
    }

    async fn take_dead(&self, max: usize) -> Result<Vec<DeadLetter>, BrokerError> {
        self.session()?.take_dead(max).await
    }

    async fn close(&self) {
        self.stop.cancel();
        self.stopped.cancelled().await;
    }
}

fn read_url(url: &str, options: &ConnectOptions) -> Result<AMQPUri, BrokerError> {
    let mut uri: AMQPUri = url.parse().map_err(|reason| BrokerError::Config {
        reason: format!("broker url: {reason}; expected amqp[s]://user:password@host:port/vhost"),
    })?;
    let seconds = u16::try_from(options.heartbeat.as_secs()).unwrap_or(u16::MAX);
    uri.query.heartbeat = Some(seconds.max(1));
    Ok(uri)
}

fn disconnected(reason: impl Into<String>) -> BrokerError {
    BrokerError::Disconnected {
        reason: reason.into(),
    }
}

/// Sorts the library's errors by what the caller can do.
fn error(what: &str, error: &lapin::Error) -> BrokerError {
    if let lapin::ErrorKind::ProtocolError(amqp) = error.kind()
        && let AMQPErrorKind::Soft(
            AMQPSoftError::PRECONDITIONFAILED
            | AMQPSoftError::ACCESSREFUSED
            | AMQPSoftError::RESOURCELOCKED
            | AMQPSoftError::CONTENTTOOLARGE,
        ) = amqp.kind()
    {
        return BrokerError::Refused {
            what: what.to_owned(),
            reason: amqp.get_message().to_string(),
        };
    }
    disconnected(format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_url_gives_host_vhost_and_our_heartbeat() {
        let uri = read_url("amqp://u:p@h:1/%2fx?heartbeat=600", &ConnectOptions::default()).unwrap();
        assert_eq!(
            (
                uri.authority.host.as_str(),
                uri.authority.port,
                uri.vhost.as_str()
            ),
            ("h", 1, "/x")
        );
        assert_eq!(uri.query.heartbeat, Some(10));
        assert!(matches!(
            read_url("amqp://h:x/", &ConnectOptions::default()),
            Err(BrokerError::Config { .. })
        ));
    }
}
