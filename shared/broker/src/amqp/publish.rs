//! Sending: *published* means persistent, routed and confirmed.

use std::collections::BTreeSet;

use lapin::{
    BasicProperties, Channel, Confirmation, PublisherConfirm,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable},
};
use pulp_trace::{TRACEPARENT, TRACESTATE, TraceContext};
use tokio::time::{Instant, timeout_at};

use super::{disconnected, error, session::Session, topology};
use crate::{BrokerError, Control, Outgoing};

/// What became of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// In its queue, durably.
    Confirmed,
    /// Acknowledged, and sent back because there is no such queue.
    Returned,
    /// The broker took it not, for now.
    Refused,
    /// It broke, or took too long.
    Unknown,
}

impl From<Confirmation> for Fate {
    fn from(confirmation: Confirmation) -> Self {
        match confirmation {
            Confirmation::Ack(None) => Self::Confirmed,
            // The broker acks what it has sent back, too. `is_ack()` is true for it; published it is not.
            Confirmation::Ack(Some(_)) => Self::Returned,
            Confirmation::Nack(_) => Self::Refused,
            Confirmation::NotRequested => Self::Unknown,
        }
    }
}

impl Session {
    pub(super) async fn publish(&self, batch: &[Outgoing]) -> Result<Vec<bool>, BrokerError> {
        if self.is_blocked() {
            return Err(disconnected(
                "the broker takes no messages: it is short of memory or disk",
            ));
        }
        let deadline = Instant::now() + self.settings.options.confirm_timeout;
        let channel = timeout_at(deadline, self.publisher_channel())
            .await
            .map_err(|_| disconnected("no publisher channel in time"))??;
        let fates = self.send(&channel, batch, deadline).await;
        if fates.contains(&Fate::Unknown) {
            self.discard(&channel).await;
            if !self.is_alive() && !fates.contains(&Fate::Confirmed) {
                return Err(disconnected("the connection broke while publishing"));
            }
            if self.is_alive() {
                self.tell_unconfirmed(batch, &fates);
            }
        }
        if fates.contains(&Fate::Returned) {
            // Somebody deleted a queue. Made again now, it is there when the sender tries again.
            tracing::warn!("messages came back because their queue is gone; declaring the queues again");
            self.declare().await?;
        }
        Ok(fates.into_iter().map(|fate| fate == Fate::Confirmed).collect())
    }

    pub(super) async fn broadcast(&self, control: &Control) -> Result<(), BrokerError> {
        if self.is_blocked() {
            return Err(disconnected(
                "the broker takes no messages: it is short of memory or disk",
            ));
        }
        let deadline = Instant::now() + self.settings.options.confirm_timeout;
        let send = async {
            let channel = self.publisher_channel().await?;
            let confirm = channel
                .basic_publish(
                    topology::control_exchange(&self.settings.prefix).as_str().into(),
                    "".into(),
                    // Not mandatory: nobody need listen.
                    BasicPublishOptions::default(),
                    control.to_json().as_bytes(),
                    properties(),
                )
                .await
                .map_err(|e| error("broadcasting", &e))?;
            confirm.await.map_err(|e| error("broadcasting", &e))?;
            Ok(())
        };
        timeout_at(deadline, send)
            .await
            .unwrap_or_else(|_| Err(disconnected("the broadcast was not confirmed in time")))
    }

    /// Puts all of them on the wire, then waits for the confirms, both until the deadline.
    async fn send(&self, channel: &Channel, batch: &[Outgoing], deadline: Instant) -> Vec<Fate> {
        let mut pending = Vec::with_capacity(batch.len());
        for outgoing in batch {
            let sent = timeout_at(deadline, self.send_one(channel, outgoing)).await;
            if let Ok(Ok(confirm)) = sent {
                pending.push(confirm);
            } else {
                break;
            }
        }
        let mut fates = Vec::with_capacity(batch.len());
        for confirm in pending {
            fates.push(match timeout_at(deadline, confirm).await {
                Ok(Ok(confirmation)) => confirmation.into(),
                _ => Fate::Unknown,
            });
        }
        fates.resize(batch.len(), Fate::Unknown);
        fates
    }

    async fn send_one(&self, channel: &Channel, outgoing: &Outgoing) -> lapin::Result<PublisherConfirm> {
        channel
            .basic_publish(
                // The default exchange routes by the queue's name.
                "".into(),
                outgoing.queue.name(&self.settings.prefix).as_str().into(),
                BasicPublishOptions {
                    mandatory: true,
                    immediate: false,
                },
                outgoing.message.to_json().as_bytes(),
                traced(outgoing.trace.as_ref())
                    .with_delivery_mode(2)
                    .with_message_id(outgoing.message_id.as_str().into())
                    .with_type(outgoing.message.type_name().into()),
            )
            .await
    }

    /// While the connection stands, silence is the queue's: overloaded, or without a leader (a majority of its
    /// nodes is away, or, seen with RabbitMQ 3.10, a node crashed right after the queue was declared).
    fn tell_unconfirmed(&self, batch: &[Outgoing], fates: &[Fate]) {
        let silent: BTreeSet<String> = batch
            .iter()
            .zip(fates)
            .filter(|(_, fate)| **fate == Fate::Unknown)
            .map(|(outgoing, _)| outgoing.queue.name(&self.settings.prefix))
            .collect();
        tracing::warn!(
            queues = ?silent,
            "no confirm within {:?}; if it stays so, look at these queues' leaders (rabbitmq-queues quorum_status)",
            self.settings.options.confirm_timeout
        );
    }

    /// The channel in confirm mode.
    async fn publisher_channel(&self) -> Result<Channel, BrokerError> {
        let mut slot = self.publisher.lock().await;
        if let Some(channel) = slot.as_ref()
            && channel.status().connected()
        {
            return Ok(channel.clone());
        }
        let channel = self.channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .map_err(|e| error("asking for confirms", &e))?;
        *slot = Some(channel.clone());
        Ok(channel)
    }

    /// Gives up a channel that owes confirms, and with it what the library keeps for them.
    async fn discard(&self, channel: &Channel) {
        let mut slot = self.publisher.lock().await;
        if slot.as_ref() == Some(channel) {
            *slot = None;
        }
    }
}

/// With the trace as headers, by the names that they have in HTTP.
fn traced(trace: Option<&TraceContext>) -> BasicProperties {
    let Some(trace) = trace else {
        return properties();
    };
    let mut headers = FieldTable::default();
    let mut put = |name: &str, text: String| {
        headers.insert(name.into(), AMQPValue::LongString(text.into()));
    };
    put(TRACEPARENT, trace.traceparent());
    if let Some(state) = trace.tracestate() {
        put(TRACESTATE, state);
    }
    properties().with_headers(headers)
}

fn properties() -> BasicProperties {
    BasicProperties::default()
        .with_content_type("application/json".into())
        .with_app_id("pulp".into())
}
