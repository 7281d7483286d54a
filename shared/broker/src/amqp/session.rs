//! One connection and what was made upon it.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use lapin::{
    Channel, Connection, ConnectionProperties, Event,
    options::{BasicAckOptions, BasicGetOptions, QueuePurgeOptions},
    tcp::OwnedTLSConfig,
    types::AMQPValue,
};
use tokio::sync::Mutex;

use super::{Settings, disconnected, error, topology};
use crate::{BrokerError, DeadLetter, Queue};

/// A connection with its queues declared.
pub(super) struct Session {
    pub(super) settings: Arc<Settings>,
    generation: u64,
    connection: Connection,
    /// The channel in confirm mode; made anew after it failed.
    pub(super) publisher: Mutex<Option<Channel>>,
}

impl Session {
    /// Connects and declares.
    pub(super) async fn open(settings: Arc<Settings>, generation: u64) -> Result<Self, BrokerError> {
        let properties =
            ConnectionProperties::default().with_connection_name(settings.options.name.as_str().into());
        let tls = OwnedTLSConfig {
            identity: None,
            cert_chain: settings.options.ca_pem.clone(),
        };
        let what = format!(
            "connecting to {}:{}",
            settings.uri.authority.host, settings.uri.authority.port
        );
        let runtime = lapin::runtime::default_runtime().map_err(|e| error(&what, &e))?;
        let connection = Connection::connect_uri_with_config(settings.uri.clone(), properties, tls, runtime)
            .await
            .map_err(|e| error(&what, &e))?;
        let session = Self {
            settings,
            generation,
            connection,
            publisher: Mutex::default(),
        };
        session.declare().await?;
        Ok(session)
    }

    /// Which session of this process it is, from 1.
    pub(super) const fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether the connection still stands, as far as this side knows.
    pub(super) fn is_alive(&self) -> bool {
        self.connection.status().connected()
    }

    /// Whether the broker takes no messages for want of memory or disk.
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Waits for the end of the connection; gives the reason.
    pub(super) async fn ended(&self) -> String {
        let mut events = Box::pin(self.connection.events_listener());
        // The events tell at once; the tick is for an end that went before we listened.
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let mut reason = None;
        while self.is_alive() {
            tokio::select! {
                event = events.next() => match event {
                    Some(Event::Error(error)) => reason = Some(error.to_string()),
                    Some(Event::ConnectionBlocked(why)) => {
                        tracing::warn!(why, "the broker takes no messages for the time being");
                    }
                    Some(Event::ConnectionUnblocked) => tracing::info!("the broker takes messages again"),
                    Some(_) => {}
                    None => break,
                },
                _ = tick.tick() => {}
            }
        }
        reason.unwrap_or_else(|| "the connection was closed".to_owned())
    }

    /// Ends it in order. Un-acked deliveries go back to their queues.
    pub(super) async fn close(&self) {
        let patience = Duration::from_secs(2);
        if let Ok(Err(error)) =
            tokio::time::timeout(patience, self.connection.close(200, "closed by its owner".into())).await
        {
            tracing::debug!("closing the connection to the broker: {error}");
        }
    }

    /// A new channel.
    pub(super) async fn channel(&self) -> Result<Channel, BrokerError> {
        self.connection
            .create_channel()
            .await
            .map_err(|e| error("opening a channel", &e))
    }

    /// Declares everything.
    pub(super) async fn declare(&self) -> Result<(), BrokerError> {
        topology::declare(&self.channel().await?, &self.settings).await
    }

    pub(super) async fn purge(&self, queue: Queue) -> Result<u64, BrokerError> {
        let channel = self.channel().await?;
        topology::declare_queue(&channel, &self.settings, queue).await?;
        let name = queue.name(&self.settings.prefix);
        let count = channel
            .queue_purge(name.as_str().into(), QueuePurgeOptions::default())
            .await
            .map_err(|e| error(&format!("purging {name}"), &e))?;
        Ok(count.into())
    }

    pub(super) async fn depth(&self, queue: Queue) -> Result<u64, BrokerError> {
        topology::declare_queue(&self.channel().await?, &self.settings, queue).await
    }

    pub(super) async fn take_dead(&self, max: usize) -> Result<Vec<DeadLetter>, BrokerError> {
        let channel = self.channel().await?;
        let name = Queue::Dead.name(&self.settings.prefix);
        let what = format!("reading {name}");
        let mut letters = Vec::new();
        while letters.len() < max {
            let got = channel
                .basic_get(name.as_str().into(), BasicGetOptions::default())
                .await
                .map_err(|e| error(&what, &e))?;
            let Some(got) = got else { break };
            letters.push(dead_letter(&got.delivery, &self.settings.prefix));
            got.delivery
                .ack(BasicAckOptions::default())
                .await
                .map_err(|e| error(&what, &e))?;
        }
        Ok(letters)
    }
}

fn dead_letter(delivery: &lapin::message::Delivery, prefix: &str) -> DeadLetter {
    let header = |name: &str| {
        let headers = delivery.properties.headers().as_ref()?;
        match headers.inner().get(name)? {
            AMQPValue::LongString(text) => Some(text.to_string()),
            AMQPValue::ShortString(text) => Some(text.to_string()),
            _ => None,
        }
    };
    DeadLetter {
        queue: header("x-first-death-queue").map(|queue| {
            queue
                .strip_prefix(prefix)
                .and_then(|rest| rest.strip_prefix('.'))
                .unwrap_or(&queue)
                .to_owned()
        }),
        reason: header("x-first-death-reason"),
        message_id: delivery.properties.message_id().as_ref().map(ToString::to_string),
        body: delivery.data.clone(),
    }
}

/// A failed call whose cause may be the end of the session.
pub(super) fn lost(what: &str, cause: Option<&lapin::Error>) -> BrokerError {
    cause.map_or_else(|| disconnected(what), |e| disconnected(format!("{what}: {e}")))
}
