//! The outbox: messages that must reach the broker because the state they speak of was committed.
//!
//! A row is deleted only after the broker has confirmed its message. Bodies are those of the broker's wire
//! format; this crate treats them as text but for the few that its own state changes cause.

use pulp_model::{Attempt, Epoch, TaskId, Timestamp, task::TaskClass};
use pulp_trace::TraceContext;
use serde_json::{Value, json};
use sqlx::Row as _;
use uuid::Uuid;

use crate::{
    Store, StoreError, Tx,
    engine::{CHUNK, Engine, bulk, placeholders, rows_of},
};

/// A message that waits for the relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow {
    /// Its key, and the message's id on the wire.
    pub id: String,
    /// The queue: `intake`, or the name of a task class.
    pub queue: String,
    /// The body as JSON.
    pub body: String,
    /// The trace that it belongs to.
    pub trace: Option<TraceContext>,
}

/// The queue of the resource manager.
pub const INTAKE: &str = "intake";

/// A batch that the relay holds: nobody else takes these rows until it is settled or dropped.
pub struct OutboxBatch {
    /// The messages, oldest first.
    pub rows: Vec<OutboxRow>,
    tx: Option<Tx>,
    store: Store,
}

impl Store {
    /// Takes up to `limit` waiting messages, passing over those that another relay holds.
    pub async fn outbox_batch(&self, limit: u32) -> Result<OutboxBatch, StoreError> {
        // On SQLite the writer's place must not be held while the broker is waited for. Two relays may then
        // take the same row; consumers are idempotent.
        let tx = match self.engine {
            // A message that was sent and not deleted is sent again.
            Engine::Postgres => Some(self.begin_repeatable().await?),
            Engine::Sqlite => None,
        };
        let mut batch = OutboxBatch {
            rows: Vec::new(),
            tx,
            store: self.clone(),
        };
        let found = if let Some(tx) = &mut batch.tx {
            let sql = "SELECT id, queue, body, traceparent, tracestate FROM outbox ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED";
            sqlx::query(sql).bind(i64::from(limit)).fetch_all(tx.on()).await?
        } else {
            let sql = "SELECT id, queue, body, traceparent, tracestate FROM outbox ORDER BY id LIMIT $1";
            sqlx::query(sql)
                .bind(i64::from(limit))
                .fetch_all(&self.pool)
                .await?
        };
        for row in found {
            batch.rows.push(OutboxRow {
                id: row.try_get("id")?,
                queue: row.try_get("queue")?,
                body: row.try_get("body")?,
                trace: crate::row::trace(&row)?,
            });
        }
        Ok(batch)
    }

    /// How many messages wait.
    pub async fn outbox_depth(&self) -> Result<i64, StoreError> {
        Ok(sqlx::query("SELECT COUNT(*) AS n FROM outbox")
            .fetch_one(&self.pool)
            .await?
            .try_get("n")?)
    }
}

impl OutboxBatch {
    /// Deletes the messages that the broker confirmed; the others wait for the next relay.
    pub async fn settle(self, confirmed: &[String]) -> Result<(), StoreError> {
        if confirmed.is_empty() {
            return Ok(());
        }
        let mut tx = match self.tx {
            Some(tx) => tx,
            None => self.store.begin().await?,
        };
        for chunk in confirmed.chunks(CHUNK) {
            let mut query = bulk(
                format!(
                    "DELETE FROM outbox WHERE id IN ({})",
                    placeholders(1, chunk.len())
                ),
                chunk.len(),
            );
            for id in chunk {
                query = query.bind(id);
            }
            query.execute(tx.on()).await?;
        }
        tx.commit().await
    }
}

impl Tx {
    /// Leaves messages for the relay, in their order; committing rings it.
    pub(crate) async fn tell(&mut self, now: Timestamp, messages: &[Message]) -> Result<(), StoreError> {
        for chunk in messages.chunks(CHUNK) {
            let sql = format!(
                "INSERT INTO outbox (id, queue, body, traceparent, tracestate, created) VALUES {}",
                rows_of(6, chunk.len())
            );
            let mut query = bulk(sql, chunk.len());
            for message in chunk {
                let trace = message.trace.clone().or_else(TraceContext::current);
                query = query
                    .bind(Uuid::now_v7().to_string())
                    .bind(message.queue)
                    .bind(message.body.to_string())
                    .bind(trace.as_ref().map(TraceContext::traceparent))
                    .bind(trace.as_ref().and_then(TraceContext::tracestate))
                    .bind(now.micros());
            }
            query.execute(self.on()).await?;
            self.rings_relay = true;
        }
        Ok(())
    }
}

/// A message not yet in the outbox.
pub(crate) struct Message {
    queue: &'static str,
    body: Value,
    /// None means that of whoever tells it.
    trace: Option<TraceContext>,
}

impl Message {
    /// To the resource manager: a task waits.
    pub(crate) fn submitted(id: TaskId) -> Self {
        Self {
            queue: INTAKE,
            body: json!({"v": 1, "type": "submitted", "task_id": id}),
            trace: None,
        }
    }

    /// To the resource manager: a task holds its resources no more.
    pub(crate) fn ended(id: TaskId) -> Self {
        Self {
            queue: INTAKE,
            body: json!({"v": 1, "type": "ended", "task_id": id}),
            trace: None,
        }
    }

    /// To the workers of a class: a task may be claimed.
    pub(crate) fn granted(id: TaskId, attempt: Attempt, class: TaskClass, epoch: Epoch) -> Self {
        Self {
            queue: class.as_str(),
            body: json!({"v": 1, "type": "grant", "task_id": id, "attempt": attempt, "class": class, "epoch": epoch}),
            trace: None,
        }
    }

    /// The same as a part of this trace.
    pub(crate) fn within(self, trace: Option<TraceContext>) -> Self {
        Self { trace, ..self }
    }
}
