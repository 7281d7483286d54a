//! Receiving.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use lapin::{
    BasicProperties, Channel,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
        BasicRejectOptions, QueueBindOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use pulp_trace::{TRACEPARENT, TRACESTATE, TraceContext};

use super::{
    error,
    session::{Session, lost},
    topology,
};
use crate::{BrokerError, Consumer, Control, Delivery, Message, Queue, Subscription};

impl Session {
    pub(super) async fn consume(
        &self,
        queue: Queue,
        prefetch: u16,
    ) -> Result<Box<dyn Consumer>, BrokerError> {
        let name = queue.name(&self.settings.prefix);
        let what = format!("consuming {name}");
        let channel = self.channel().await?;
        // Somebody may have deleted it since the session began.
        topology::declare_queue(&channel, &self.settings, queue).await?;
        channel
            .basic_qos(prefetch, BasicQosOptions::default())
            .await
            .map_err(|e| error(&what, &e))?;
        let stream = channel
            .basic_consume(
                name.as_str().into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await
            .map_err(|e| error(&what, &e))?;
        Ok(Box::new(AmqpConsumer {
            name,
            stream: Some(stream),
            desk: Arc::new(Desk {
                channel,
                unacked: Mutex::default(),
            }),
        }))
    }

    pub(super) async fn subscribe(&self) -> Result<Box<dyn Subscription>, BrokerError> {
        let exchange = topology::control_exchange(&self.settings.prefix);
        let what = format!("subscribing to {exchange}");
        let channel = self.channel().await?;
        let queue = channel
            .queue_declare(
                "".into(),
                QueueDeclareOptions {
                    exclusive: true,
                    auto_delete: true,
                    ..QueueDeclareOptions::default()
                },
                FieldTable::default(),
            )
            .await
            .map_err(|e| error(&what, &e))?;
        channel
            .queue_bind(
                queue.name().clone(),
                exchange.as_str().into(),
                "".into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .map_err(|e| error(&what, &e))?;
        let stream = channel
            .basic_consume(
                queue.name().clone(),
                "".into(),
                BasicConsumeOptions {
                    no_ack: true,
                    ..BasicConsumeOptions::default()
                },
                FieldTable::default(),
            )
            .await
            .map_err(|e| error(&what, &e))?;
        Ok(Box::new(AmqpSubscription {
            stream,
            _channel: channel,
        }))
    }
}

struct AmqpConsumer {
    name: String,
    /// `None` after a cancel.
    stream: Option<lapin::Consumer>,
    desk: Arc<Desk>,
}

/// Where deliveries of one consumer are settled. It goes, and its channel with it, when the consumer does;
/// the receipts hold it weakly.
struct Desk {
    channel: Channel,
    /// Delivery tags handed out and not settled. The channel numbers them upwards from 1.
    unacked: Mutex<BTreeSet<u64>>,
}

impl Desk {
    fn unacked(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.unacked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ack(&self, tags: &[u64]) -> Result<(), BrokerError> {
        let plan = plan_acks(&mut self.unacked(), tags);
        for (tag, multiple) in plan.frames {
            self.channel
                .basic_ack(tag, BasicAckOptions { multiple })
                .await
                .map_err(|_| BrokerError::Stale)?;
        }
        if plan.stale {
            Err(BrokerError::Stale)
        } else {
            Ok(())
        }
    }

    async fn reject(&self, tag: u64) -> Result<(), BrokerError> {
        if !self.unacked().remove(&tag) {
            return Err(BrokerError::Stale);
        }
        self.send_reject(tag).await.map_err(|_| BrokerError::Stale)
    }

    async fn send_reject(&self, tag: u64) -> lapin::Result<()> {
        self.channel
            .basic_reject(tag, BasicRejectOptions { requeue: false })
            .await
    }
}

#[derive(Debug, PartialEq, Eq)]
struct AckPlan {
    /// Tag, and whether the frame stands for all lower tags too.
    frames: Vec<(u64, bool)>,
    /// Some tag was settled before.
    stale: bool,
}

/// Takes `tags` out of `unacked`: one frame for all that lie below what stays un-acked, one each for the rest.
fn plan_acks(unacked: &mut BTreeSet<u64>, tags: &[u64]) -> AckPlan {
    let mine: BTreeSet<u64> = tags.iter().copied().filter(|tag| unacked.remove(tag)).collect();
    let stale = mine.len() < tags.len();
    let lowest_left = unacked.first().copied().unwrap_or(u64::MAX);
    let (low, high): (Vec<u64>, Vec<u64>) = mine.into_iter().partition(|tag| *tag < lowest_left);
    let multiple = low.len() > 1;
    let frames = low
        .last()
        .map(|tag| (*tag, multiple))
        .into_iter()
        .chain(high.into_iter().map(|tag| (tag, false)))
        .collect();
    AckPlan { frames, stale }
}

pub(crate) struct Receipt {
    desk: Weak<Desk>,
    tag: u64,
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt")
            .field("tag", &self.tag)
            .finish_non_exhaustive()
    }
}

impl Receipt {
    pub(crate) async fn ack(&self) -> Result<(), BrokerError> {
        self.desk()?.ack(&[self.tag]).await
    }

    pub(crate) async fn reject(&self) -> Result<(), BrokerError> {
        self.desk()?.reject(self.tag).await
    }

    fn desk(&self) -> Result<Arc<Desk>, BrokerError> {
        self.desk.upgrade().ok_or(BrokerError::Stale)
    }
}

/// Acks each at its desk.
pub(crate) async fn ack_all(receipts: Vec<&Receipt>) -> Result<(), BrokerError> {
    let mut result = Ok(());
    let mut desks: Vec<(Arc<Desk>, Vec<u64>)> = Vec::new();
    for receipt in receipts {
        match receipt.desk() {
            Ok(desk) => match desks.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &desk)) {
                Some((_, tags)) => tags.push(receipt.tag),
                None => desks.push((desk, vec![receipt.tag])),
            },
            Err(stale) => result = Err(stale),
        }
    }
    for (desk, tags) in desks {
        result = result.and(desk.ack(&tags).await);
    }
    result
}

/// The trace in the headers; none if there is none that can be read.
fn trace_of(properties: &BasicProperties) -> Option<TraceContext> {
    let headers = properties.headers().as_ref()?;
    let text = |name: &str| match headers.inner().get(name)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    };
    TraceContext::from_row(text(TRACEPARENT), text(TRACESTATE))
}

impl AmqpConsumer {
    /// Reads what the library handed over; what can't be read goes to the dead letters.
    async fn accept(&self, raw: lapin::message::Delivery) -> Option<Delivery> {
        let message_id = raw.properties.message_id().as_ref().map(ToString::to_string);
        match Message::from_json(&raw.data) {
            Ok(message) => {
                self.desk.unacked().insert(raw.delivery_tag);
                Some(Delivery {
                    message,
                    message_id,
                    trace: trace_of(&raw.properties),
                    redelivered: raw.redelivered,
                    receipt: crate::Receipt::Amqp(Receipt {
                        desk: Arc::downgrade(&self.desk),
                        tag: raw.delivery_tag,
                    }),
                })
            }
            Err(error) => {
                tracing::error!(
                    queue = self.name,
                    message_id,
                    "{error}; it goes to the dead letters"
                );
                if let Err(error) = self.desk.send_reject(raw.delivery_tag).await {
                    tracing::debug!("the reject failed, so it comes again: {error}");
                }
                None
            }
        }
    }

    fn over(&self, cause: &lapin::Error) -> BrokerError {
        lost(&format!("the consumer of {} is over", self.name), Some(cause))
    }
}

#[async_trait]
impl Consumer for AmqpConsumer {
    async fn next(&mut self) -> Result<Option<Delivery>, BrokerError> {
        loop {
            let Some(stream) = &mut self.stream else {
                return Ok(None);
            };
            match stream.next().await {
                Some(Ok(raw)) => {
                    if let Some(delivery) = self.accept(raw).await {
                        return Ok(Some(delivery));
                    }
                }
                Some(Err(cause)) => return Err(self.over(&cause)),
                None => return Ok(None),
            }
        }
    }

    async fn next_batch(&mut self, max: usize) -> Result<Vec<Delivery>, BrokerError> {
        let mut batch: Vec<Delivery> = self.next().await?.into_iter().collect();
        while !batch.is_empty()
            && batch.len() < max
            && let Some(stream) = &mut self.stream
            && let Some(Some(Ok(raw))) = stream.next().now_or_never()
        {
            // An error or an end taken here shows again at the next call: the channel is closed then.
            if let Some(delivery) = self.accept(raw).await {
                batch.push(delivery);
            }
        }
        Ok(batch)
    }

    async fn cancel(&mut self) -> Result<(), BrokerError> {
        let Some(mut stream) = self.stream.take() else {
            return Ok(());
        };
        self.desk
            .channel
            .basic_cancel(stream.tag(), BasicCancelOptions::default())
            .await
            .map_err(|e| self.over(&e))?;
        // The broker sends no more, and counts what we had fetched ahead as ours: back with it.
        while let Some(Ok(raw)) = stream.next().await {
            self.desk
                .channel
                .basic_nack(
                    raw.delivery_tag,
                    BasicNackOptions {
                        multiple: false,
                        requeue: true,
                    },
                )
                .await
                .map_err(|e| self.over(&e))?;
        }
        Ok(())
    }
}

struct AmqpSubscription {
    stream: lapin::Consumer,
    /// Its queue lives as long as its consumer.
    _channel: Channel,
}

#[async_trait]
impl Subscription for AmqpSubscription {
    async fn next(&mut self) -> Result<Option<Control>, BrokerError> {
        loop {
            match self.stream.next().await {
                Some(Ok(raw)) => match Control::from_json(&raw.data) {
                    Ok(control) => return Ok(Some(control)),
                    // A newer release says something we don't know: a hint that is lost.
                    Err(error) => tracing::debug!("a broadcast is passed over: {error}"),
                },
                Some(Err(cause)) => return Err(lost("the subscription is over", Some(&cause))),
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acks(unacked: &[u64], tags: &[u64]) -> (Vec<(u64, bool)>, bool, Vec<u64>) {
        let mut unacked = unacked.iter().copied().collect();
        let plan = plan_acks(&mut unacked, tags);
        (plan.frames, plan.stale, unacked.into_iter().collect())
    }

    #[test]
    fn a_whole_batch_is_one_frame() {
        assert_eq!(acks(&[1, 2, 4], &[4, 1, 2]), (vec![(4, true)], false, vec![]));
    }

    #[test]
    fn a_batch_never_acks_what_is_not_in_it() {
        assert_eq!(
            acks(&[1, 2, 3, 4, 5], &[1, 2, 4]),
            (vec![(2, true), (4, false)], false, vec![3, 5])
        );
        assert_eq!(acks(&[1, 2], &[2]), (vec![(2, false)], false, vec![1]));
    }

    #[test]
    fn a_settled_delivery_is_stale_and_sends_nothing() {
        assert_eq!(acks(&[2], &[1]), (vec![], true, vec![2]));
        assert_eq!(acks(&[2], &[2, 2]), (vec![(2, false)], true, vec![]));
    }
}
