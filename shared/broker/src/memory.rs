//! The broker inside one process: the same contract as over AMQP, for `pulp standalone` and for tests.
//!
//! Its messages die with the process, as the process that would have received them does; the outbox and the
//! sweep bring them back.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use async_trait::async_trait;
use pulp_trace::TraceContext;
use tokio::sync::{Notify, broadcast};

use crate::{
    Broker, BrokerError, Consumer, Control, DeadLetter, Delivery, Message, Outgoing, Queue, Subscription,
};

/// How many broadcasts a slow subscriber may lag behind before it is told to look for itself.
const CONTROL_BACKLOG: usize = 1024;

#[derive(Debug)]
pub(crate) struct MemoryBroker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    delivery_limit: u32,
    state: Mutex<State>,
    /// Each rung whenever something of its queue may have become deliverable, or the broker was closed.
    bells: HashMap<Queue, Arc<Notify>>,
}

#[derive(Debug)]
struct State {
    queues: HashMap<Queue, VecDeque<Stored>>,
    consumers: HashMap<u64, ConsumerState>,
    next_number: u64,
    /// `None` once the broker is closed.
    control: Option<broadcast::Sender<Control>>,
}

#[derive(Debug)]
struct ConsumerState {
    queue: Queue,
    prefetch: usize,
    canceled: bool,
    unacked: BTreeMap<u64, Stored>,
}

#[derive(Debug)]
struct Stored {
    message: Message,
    message_id: Option<String>,
    trace: Option<TraceContext>,
    /// How often it was handed out and came back.
    returns: u32,
    /// From where and why, in the dead queue.
    death: Option<(Queue, &'static str)>,
}

#[derive(Debug)]
pub(crate) struct Receipt {
    shared: Weak<Shared>,
    consumer: u64,
    tag: u64,
}

impl MemoryBroker {
    pub(crate) fn new(delivery_limit: u32) -> Self {
        Self {
            shared: Arc::new(Shared {
                delivery_limit,
                state: Mutex::new(State {
                    queues: HashMap::new(),
                    consumers: HashMap::new(),
                    next_number: 0,
                    control: Some(broadcast::Sender::new(CONTROL_BACKLOG)),
                }),
                bells: Queue::all().map(|queue| (queue, Arc::default())).collect(),
            }),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that runs under the lock can stop half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bell(&self, queue: Queue) -> Arc<Notify> {
        self.bells.get(&queue).map_or_else(Arc::default, Arc::clone)
    }

    fn open(&self) -> Result<MutexGuard<'_, State>, BrokerError> {
        let state = self.lock();
        if state.control.is_some() {
            Ok(state)
        } else {
            Err(closed())
        }
    }
}

fn closed() -> BrokerError {
    BrokerError::Disconnected {
        reason: "the broker was closed".to_owned(),
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn bury(&mut self, stored: Stored, queue: Queue, reason: &'static str) {
        self.queues.entry(Queue::Dead).or_default().push_back(Stored {
            death: Some((queue, reason)),
            ..stored
        });
    }

    /// Gives back the un-acked deliveries of a consumer, to the head of their queue and in their order.
    fn give_back(&mut self, consumer: u64, delivery_limit: u32) {
        let Some(consumer) = self.consumers.remove(&consumer) else {
            return;
        };
        for mut stored in consumer.unacked.into_values().rev() {
            stored.returns += 1;
            if stored.returns > delivery_limit {
                self.bury(stored, consumer.queue, "delivery_limit");
            } else {
                self.queues.entry(consumer.queue).or_default().push_front(stored);
            }
        }
    }

    /// The next message for a consumer that has room.
    fn hand_out(&mut self, number: u64, shared: &Arc<Shared>) -> Option<Delivery> {
        let consumer = self.consumers.get_mut(&number)?;
        if consumer.unacked.len() >= consumer.prefetch {
            return None;
        }
        let stored = self.queues.get_mut(&consumer.queue)?.pop_front()?;
        self.next_number += 1;
        let delivery = Delivery {
            message: stored.message.clone(),
            message_id: stored.message_id.clone(),
            trace: stored.trace.clone(),
            redelivered: stored.returns > 0,
            receipt: crate::Receipt::Memory(Receipt {
                shared: Arc::downgrade(shared),
                consumer: number,
                tag: self.next_number,
            }),
        };
        consumer.unacked.insert(self.next_number, stored);
        Some(delivery)
    }
}

impl Receipt {
    pub(crate) fn ack(&self) -> Result<(), BrokerError> {
        self.settle(|_, _, _| {})
    }

    pub(crate) fn reject(&self) -> Result<(), BrokerError> {
        self.settle(|state, stored, queue| state.bury(stored, queue, "rejected"))
    }

    fn settle(&self, end: impl FnOnce(&mut State, Stored, Queue)) -> Result<(), BrokerError> {
        let shared = self.shared.upgrade().ok_or(BrokerError::Stale)?;
        let mut state = shared.lock();
        let consumer = state
            .consumers
            .get_mut(&self.consumer)
            .ok_or(BrokerError::Stale)?;
        let queue = consumer.queue;
        let stored = consumer.unacked.remove(&self.tag).ok_or(BrokerError::Stale)?;
        end(&mut state, stored, queue);
        drop(state);
        shared.bell(queue).notify_waiters();
        Ok(())
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    async fn publish(&self, batch: &[Outgoing]) -> Result<Vec<bool>, BrokerError> {
        let mut state = self.shared.open()?;
        for outgoing in batch {
            state.queues.entry(outgoing.queue).or_default().push_back(Stored {
                message: outgoing.message.clone(),
                message_id: Some(outgoing.message_id.clone()),
                trace: outgoing.trace.clone(),
                returns: 0,
                death: None,
            });
        }
        drop(state);
        let queues: HashSet<Queue> = batch.iter().map(|outgoing| outgoing.queue).collect();
        for queue in queues {
            self.shared.bell(queue).notify_waiters();
        }
        Ok(vec![true; batch.len()])
    }

    async fn consume(&self, queue: Queue, prefetch: u16) -> Result<Box<dyn Consumer>, BrokerError> {
        if queue == Queue::Dead {
            return Err(BrokerError::consume_dead());
        }
        let mut state = self.shared.open()?;
        let number = state.number();
        state.consumers.insert(
            number,
            ConsumerState {
                queue,
                prefetch: usize::from(prefetch.max(1)),
                canceled: false,
                unacked: BTreeMap::new(),
            },
        );
        Ok(Box::new(MemoryConsumer {
            shared: Arc::clone(&self.shared),
            bell: self.shared.bell(queue),
            number,
        }))
    }

    async fn broadcast(&self, control: &Control) -> Result<(), BrokerError> {
        let state = self.shared.open()?;
        if let Some(sender) = &state.control {
            // An error means that nobody listens.
            let _ = sender.send(*control);
        }
        Ok(())
    }

    async fn subscribe(&self) -> Result<Box<dyn Subscription>, BrokerError> {
        let state = self.shared.open()?;
        let receiver = state.control.as_ref().map(broadcast::Sender::subscribe);
        drop(state);
        Ok(Box::new(MemorySubscription(receiver.ok_or_else(closed)?)))
    }

    fn is_connected(&self) -> bool {
        self.shared.open().is_ok()
    }

    async fn purge(&self, queue: Queue) -> Result<u64, BrokerError> {
        let mut state = self.shared.open()?;
        Ok(state.queues.remove(&queue).map_or(0, |q| q.len() as u64))
    }

    async fn depth(&self, queue: Queue) -> Result<u64, BrokerError> {
        let state = self.shared.open()?;
        Ok(state.queues.get(&queue).map_or(0, |q| q.len() as u64))
    }

    async fn take_dead(&self, max: usize) -> Result<Vec<DeadLetter>, BrokerError> {
        let mut state = self.shared.open()?;
        let dead = state.queues.entry(Queue::Dead).or_default();
        let count = max.min(dead.len());
        Ok(dead
            .drain(..count)
            .map(|stored| DeadLetter {
                queue: stored.death.map(|(queue, _)| queue.key().to_owned()),
                reason: stored.death.map(|(_, reason)| reason.to_owned()),
                message_id: stored.message_id,
                body: stored.message.to_json().into_bytes(),
            })
            .collect())
    }

    async fn close(&self) {
        let mut state = self.shared.lock();
        state.control = None;
        let consumers: Vec<u64> = state.consumers.keys().copied().collect();
        for consumer in consumers {
            state.give_back(consumer, self.shared.delivery_limit);
        }
        drop(state);
        for bell in self.shared.bells.values() {
            bell.notify_waiters();
        }
    }
}

struct MemoryConsumer {
    shared: Arc<Shared>,
    bell: Arc<Notify>,
    number: u64,
}

#[async_trait]
impl Consumer for MemoryConsumer {
    async fn next(&mut self) -> Result<Option<Delivery>, BrokerError> {
        Ok(self.next_batch(1).await?.pop())
    }

    async fn next_batch(&mut self, max: usize) -> Result<Vec<Delivery>, BrokerError> {
        loop {
            // Listening begins before looking, so that no ring is missed in between.
            let rung = self.bell.notified();
            tokio::pin!(rung);
            rung.as_mut().enable();
            {
                let mut state = self.shared.open()?;
                if state.consumers.get(&self.number).is_none_or(|c| c.canceled) {
                    return Ok(Vec::new());
                }
                let mut batch = Vec::new();
                while batch.len() < max.max(1)
                    && let Some(delivery) = state.hand_out(self.number, &self.shared)
                {
                    batch.push(delivery);
                }
                if !batch.is_empty() {
                    return Ok(batch);
                }
            }
            rung.await;
        }
    }

    async fn cancel(&mut self) -> Result<(), BrokerError> {
        let mut state = self.shared.open()?;
        if let Some(consumer) = state.consumers.get_mut(&self.number) {
            consumer.canceled = true;
        }
        Ok(())
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        self.shared
            .lock()
            .give_back(self.number, self.shared.delivery_limit);
        self.bell.notify_waiters();
    }
}

struct MemorySubscription(broadcast::Receiver<Control>);

#[async_trait]
impl Subscription for MemorySubscription {
    async fn next(&mut self) -> Result<Option<Control>, BrokerError> {
        match self.0.recv().await {
            Ok(control) => Ok(Some(control)),
            Err(broadcast::error::RecvError::Closed) => Ok(None),
            // Some were missed; which is what a wake says.
            Err(broadcast::error::RecvError::Lagged(_)) => Ok(Some(Control::Wake)),
        }
    }
}
