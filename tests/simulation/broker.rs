//! The broker: durable queues, sessions that break, deliveries that come twice and out of order.

use std::{
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use pulp_model::task::TaskClass;
use tokio::sync::{mpsc, oneshot};

use crate::{
    ledger::{Change, Message, Mutation, Queue},
    sim::{Ctx, Pid, Sim},
};

#[derive(Debug)]
struct Session {
    pid: Pid,
    queue: Queue,
    prefetch: usize,
    accepts: bool,
    unacked: BTreeMap<u64, Message>,
    inbox: mpsc::UnboundedSender<Delivery>,
}

/// A message handed out and not yet acked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delivery {
    pub(crate) message: Message,
    session: u64,
    tag: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Broker {
    down: bool,
    queues: BTreeMap<Queue, VecDeque<Message>>,
    sessions: BTreeMap<u64, Session>,
    numbers: u64,
}

impl Broker {
    /// Breaks sessions of some processes; what they held un-acked is ready again.
    pub(crate) fn close_sessions(&mut self, of: impl Fn(Pid) -> bool) {
        let broken: Vec<u64> = self
            .sessions
            .iter()
            .filter(|(_, s)| of(s.pid))
            .map(|(n, _)| *n)
            .collect();
        for number in broken {
            self.close(number);
        }
    }

    fn close(&mut self, number: u64) {
        if let Some(session) = self.sessions.remove(&number) {
            let queue = self.queues.entry(session.queue).or_default();
            for message in session.unacked.into_values().rev() {
                queue.push_front(message);
            }
        }
    }

    pub(crate) fn stop(&mut self) {
        self.down = true;
        self.close_sessions(|_| true);
    }

    pub(crate) fn start(&mut self) {
        self.down = false;
    }

    /// All its data is gone.
    pub(crate) fn wipe(&mut self) {
        self.close_sessions(|_| true);
        self.queues.clear();
    }

    fn ready(&self, queue: Queue) -> usize {
        self.queues.get(&queue).map_or(0, VecDeque::len)
    }
}

/// Hands out what can be handed out.
pub(crate) fn pump(sim: &Rc<Sim>) {
    let queues: Vec<Queue> = sim.broker.borrow().queues.keys().copied().collect();
    for queue in queues {
        loop {
            let mut broker = sim.broker.borrow_mut();
            if broker.ready(queue) == 0 {
                break;
            }
            let free: Vec<u64> = broker
                .sessions
                .iter()
                .filter(|(_, s)| s.queue == queue && s.accepts && s.unacked.len() < s.prefetch)
                .map(|(n, _)| *n)
                .collect();
            if free.is_empty() {
                break;
            }
            let session = free[sim.between(0, free.len() as u64 - 1) as usize];
            let waiting = broker.ready(queue);
            let at = if sim.chance(sim.noise.get().reordered) {
                sim.between(0, waiting as u64 - 1) as usize
            } else {
                0
            };
            let Some(message) = broker.queues.get_mut(&queue).and_then(|q| q.remove(at)) else {
                break;
            };
            broker.numbers += 1;
            let tag = broker.numbers;
            let Some(to) = broker.sessions.get_mut(&session) else {
                break;
            };
            to.unacked.insert(tag, message);
            let latency = Ctx {
                sim: Rc::clone(sim),
                pid: to.pid,
                life: 0,
            }
            .latency();
            let cut = to.pid;
            sim.after(latency, move |sim| {
                // Lost with its session, which will be found broken.
                if sim.processes.borrow()[cut].cut_from_broker {
                    return;
                }
                if let Some(to) = sim.broker.borrow().sessions.get(&session) {
                    // A session whose process has let go of it is closed at once.
                    let _ = to.inbox.send(Delivery {
                        message,
                        session,
                        tag,
                    });
                }
            });
        }
    }
}

/// Messages that a transaction left to its caller, because the outbox was taken out.
pub(crate) fn owed_outside_outbox(sim: &Sim) -> Vec<Message> {
    let ledger = sim.ledger.borrow();
    if ledger.mutation != Mutation::NoOutbox {
        return Vec::new();
    }
    let owed = ledger.changes.iter().filter_map(|c| match c {
        Change::Owes(message) => Some(*message),
        _ => None,
    });
    owed.collect()
}

impl Ctx {
    /// Sends a batch; tells which are confirmed. What is not may have arrived all the same.
    pub(crate) async fn publish(&self, batch: Vec<Message>) -> Vec<u64> {
        let mut answers = Vec::new();
        for message in batch {
            let (confirm, confirmed) = oneshot::channel();
            answers.push((message.number, confirmed));
            if !self.reaches_broker() || self.sim.chance(self.sim.noise.get().lost) {
                continue;
            }
            let ctx = self.clone();
            self.sim.after(self.latency(), move |sim| {
                if sim.broker.borrow().down || !ctx.reaches_broker() {
                    return;
                }
                let copies = if sim.chance(sim.noise.get().doubled) { 2 } else { 1 };
                for _ in 0..copies {
                    sim.broker
                        .borrow_mut()
                        .queues
                        .entry(message.queue)
                        .or_default()
                        .push_back(message);
                }
                sim.monitor.borrow_mut().paid(message);
                pump(sim);
                if !sim.chance(sim.noise.get().lost) {
                    let back = ctx.latency();
                    sim.after(back, move |_| {
                        let _ = confirm.send(());
                    });
                }
            });
        }
        let deadline = self.sim.now() + 5 * crate::sim::SECOND;
        let mut confirmed = Vec::new();
        for (number, answer) in answers {
            let left = std::time::Duration::from_micros(deadline.saturating_sub(self.sim.now()));
            tokio::select! {
                biased;
                Ok(()) = answer => confirmed.push(number),
                () = self.sleep(left) => {}
            }
        }
        confirmed
    }

    /// Begins to consume; waits until there is a connection.
    pub(crate) async fn consume(&self, queue: Queue, prefetch: usize) -> Consumer {
        loop {
            self.sleep(std::time::Duration::from_micros(self.latency())).await;
            if self.reaches_broker() && !self.sim.broker.borrow().down {
                break;
            }
            self.sleep(std::time::Duration::from_millis(200)).await;
        }
        let (inbox, deliveries) = mpsc::unbounded_channel();
        let number = {
            let mut broker = self.sim.broker.borrow_mut();
            broker.numbers += 1;
            let number = broker.numbers;
            let session = Session {
                pid: self.pid,
                queue,
                prefetch,
                accepts: true,
                unacked: BTreeMap::new(),
                inbox,
            };
            broker.sessions.insert(number, session);
            number
        };
        pump(&self.sim);
        Consumer {
            ctx: self.clone(),
            number,
            deliveries,
        }
    }

    /// Whether no class queue has a message ready; unknown counts as no.
    pub(crate) async fn class_queues_are_empty(&self) -> bool {
        self.sleep(std::time::Duration::from_micros(self.latency())).await;
        let broker = self.sim.broker.borrow();
        let empty = TaskClass::ALL.iter().all(|c| broker.ready(Queue::Class(*c)) == 0);
        self.reaches_broker() && !broker.down && empty
    }

    pub(crate) fn ack(&self, delivery: Delivery) {
        if !self.reaches_broker() {
            return;
        }
        self.sim.after(self.latency(), move |sim| {
            if let Some(session) = sim.broker.borrow_mut().sessions.get_mut(&delivery.session) {
                session.unacked.remove(&delivery.tag);
            }
            pump(sim);
        });
    }
}

/// One consumer. Dropped, it gives back what is un-acked.
pub(crate) struct Consumer {
    ctx: Ctx,
    number: u64,
    deliveries: mpsc::UnboundedReceiver<Delivery>,
}

impl Consumer {
    /// What has piled up, at most `max`; empty means that the session is over.
    pub(crate) async fn next_batch(&mut self, max: usize) -> Vec<Delivery> {
        let mut batch: Vec<Delivery> = self.deliveries.recv().await.into_iter().collect();
        while batch.len() < max
            && let Ok(more) = self.deliveries.try_recv()
        {
            batch.push(more);
        }
        batch
    }

    /// Takes no more; what was handed out can still be acked.
    pub(crate) fn cancel(&mut self) {
        if let Some(session) = self.ctx.sim.broker.borrow_mut().sessions.get_mut(&self.number) {
            session.accepts = false;
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let number = self.number;
        // Behind the acks of the same channel.
        self.ctx.sim.after(10 * crate::sim::MILLI, move |sim| {
            sim.broker.borrow_mut().close(number);
            pump(sim);
        });
    }
}
