//! The outbox: messages that must reach the broker because the state they speak of was committed.
//!
//! A row is deleted only after the broker has confirmed its message. Bodies are those of the broker's wire
//! format; this crate treats them as text but for the few that its own state changes cause.

use std::{
    borrow::Cow,
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pulp_model::{
    Attempt, Epoch, TaskId, Timestamp,
    task::{Newcomer, TaskClass},
};
use pulp_trace::TraceContext;
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::Row as _;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::{
    Store, StoreError, Tx,
    engine::{Engine, assembled, keys, records_of},
    leases::micros,
    row,
};

/// A message that waits for the relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow {
    /// Its key, and the message's id on the wire.
    pub id: String,
    /// The queue: `intake`, or the name of a task class.
    pub queue: String,
    /// What it says.
    pub content: Content,
    /// The trace that it belongs to.
    pub trace: Option<TraceContext>,
}

/// What a message says: of this process as it was said, else as the text of its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Not read from a row.
    Said(Said),
    /// The body of a row, as JSON.
    Text(String),
}

/// What a change of state makes known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// To the resource manager: a task was made.
    Made(Arc<Newcomer>),
    /// To the resource manager: a task waits again.
    Waits(TaskId),
    /// To the resource manager: a task is in a terminal state.
    Ended(TaskId),
    /// To the workers of a class: a task may be claimed.
    Granted {
        /// Which.
        task_id: TaskId,
        /// Which attempt of it.
        attempt: Attempt,
        /// In which class.
        class: TaskClass,
        /// The leadership that granted it.
        epoch: Epoch,
    },
}

impl Said {
    const fn queue(&self) -> &'static str {
        match self {
            Self::Made(_) | Self::Waits(_) | Self::Ended(_) => INTAKE,
            Self::Granted { class, .. } => class.as_str(),
        }
    }

    /// As it is on the wire.
    fn to_json(&self) -> String {
        let body = match self {
            Self::Made(made) => Body {
                made: Some(made),
                ..Body::of("submitted", made.task_id)
            },
            Self::Waits(task_id) => Body::of("submitted", *task_id),
            Self::Ended(task_id) => Body {
                terminal: Some(true),
                ..Body::of("ended", *task_id)
            },
            Self::Granted {
                task_id,
                attempt,
                class,
                epoch,
            } => Body {
                attempt: Some(*attempt),
                class: Some(*class),
                epoch: Some(*epoch),
                ..Body::of("grant", *task_id)
            },
        };
        row::to_json(&body)
    }
}

/// A body of the broker's wire format.
#[derive(Serialize)]
struct Body<'a> {
    v: u8,
    r#type: &'static str,
    task_id: TaskId,
    #[serde(skip_serializing_if = "Option::is_none")]
    made: Option<&'a Newcomer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    terminal: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<Attempt>,
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<TaskClass>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<Epoch>,
}

impl Body<'_> {
    const fn of(r#type: &'static str, task_id: TaskId) -> Self {
        Self {
            v: 1,
            r#type,
            task_id,
            made: None,
            terminal: None,
            attempt: None,
            class: None,
            epoch: None,
        }
    }
}

impl OutboxRow {
    /// The body as JSON.
    pub fn body(&self) -> Cow<'_, str> {
        match &self.content {
            Content::Said(said) => Cow::Owned(said.to_json()),
            Content::Text(text) => Cow::Borrowed(text),
        }
    }

    pub(crate) fn traceparent(&self) -> Option<String> {
        self.trace.as_ref().map(TraceContext::traceparent)
    }

    pub(crate) fn tracestate(&self) -> Option<String> {
        self.trace.as_ref().and_then(TraceContext::tracestate)
    }
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

/// What this process has committed and not sent yet, for its relay to send at once; the rows are there for when it can't.
#[derive(Default)]
pub(crate) struct Fresh {
    rows: Mutex<VecDeque<OutboxRow>>,
    bell: Notify,
}

/// So many messages are kept for the relay at most. Those beyond wait in their rows alone.
const FRESH_AT_MOST: usize = 10_000;

impl Fresh {
    /// Messages of a transaction that was committed. Those that have no rows in the outbox are all kept.
    pub(crate) fn committed(&self, messages: Vec<OutboxRow>, have_rows: bool) {
        if messages.is_empty() {
            return;
        }
        {
            let mut fresh = self.lock();
            let most = if have_rows { FRESH_AT_MOST } else { usize::MAX };
            let room = most.saturating_sub(fresh.len());
            fresh.extend(messages.into_iter().take(room));
        }
        self.bell.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<OutboxRow>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Waits until a commit of this process left rows in the outbox.
    pub async fn outbox_rung(&self) {
        self.fresh.bell.notified().await;
    }

    /// Messages that this process has committed a moment ago, at most `limit`, in the order of the commits; each is given
    /// once. Sent without being looked up, they are to be [forgotten](Self::forget_sent) once they are confirmed.
    /// One that is not is found by [`Store::outbox_batch`] like those of other processes.
    pub fn outbox_fresh(&self, limit: u32) -> Vec<OutboxRow> {
        let mut fresh = self.fresh.lock();
        let many = fresh.len().min(limit as usize);
        fresh.drain(..many).collect()
    }

    /// Whether messages have rows until they are sent; see [`Store::with_messages_in_memory`].
    pub const fn has_outbox(&self) -> bool {
        self.has_outbox
    }

    /// These were given by [`Store::outbox_fresh`] and not sent. Those that have rows are found by them; the others are given
    /// again, before all that came since.
    pub fn outbox_unsent(&self, rows: Vec<OutboxRow>) {
        if !self.has_outbox {
            let mut fresh = self.fresh.lock();
            for row in rows.into_iter().rev() {
                fresh.push_front(row);
            }
        }
    }

    /// These were found by their rows; [`Store::outbox_fresh`] need not give them.
    pub fn outbox_not_fresh(&self, rows: &[OutboxRow]) {
        let mut fresh = self.fresh.lock();
        if !fresh.is_empty() {
            let found: HashSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
            fresh.retain(|row| !found.contains(row.id.as_str()));
        }
    }

    /// Takes up to `limit` waiting messages, passing over those that another relay holds.
    pub async fn outbox_batch(&self, limit: u32) -> Result<OutboxBatch, StoreError> {
        self.outbox_left_for(Duration::ZERO, limit).await
    }

    /// Takes up to `limit` messages that have waited for `age`: long enough for whoever committed them to have
    /// sent them. Passes over those that another relay holds.
    pub async fn outbox_left_for(&self, age: Duration, limit: u32) -> Result<OutboxBatch, StoreError> {
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
        let sql = format!(
            "SELECT id, queue, body, traceparent, tracestate FROM outbox WHERE created <= {} - $1 ORDER BY id LIMIT $2",
            self.engine.clock()
        );
        let (age, limit) = (micros(age), i64::from(limit));
        let found = if let Some(tx) = &mut batch.tx {
            let sql = assembled(sql + " FOR UPDATE SKIP LOCKED");
            sqlx::query(sql).bind(age).bind(limit).fetch_all(tx.on()).await?
        } else {
            let query = sqlx::query(assembled(sql)).bind(age).bind(limit);
            query.fetch_all(&self.pool).await?
        };
        for row in found {
            batch.rows.push(OutboxRow {
                id: row.try_get("id")?,
                queue: row.try_get("queue")?,
                content: Content::Text(row.try_get("body")?),
                trace: row::trace(&row)?,
            });
        }
        Ok(batch)
    }

    /// Deletes messages that the broker confirmed.
    pub async fn forget_sent(&self, confirmed: &[String]) -> Result<(), StoreError> {
        if confirmed.is_empty() || !self.has_outbox {
            return Ok(());
        }
        let mut tx = self.begin_repeatable().await?;
        tx.forget_sent(confirmed).await?;
        tx.commit().await
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
        tx.forget_sent(confirmed).await?;
        tx.commit().await
    }
}

impl Tx {
    /// Leaves messages for the relay, in their order; committing rings it.
    pub(crate) async fn tell(&mut self, now: Timestamp, messages: Vec<Message>) -> Result<(), StoreError> {
        if let Some(rows) = self.leave_rows(messages) {
            sqlx::query(assembled(insertion(self.engine, 1)))
                .bind(rows)
                .bind(now.micros())
                .execute(self.on())
                .await?;
        }
        Ok(())
    }

    /// [Leaves](Self::leave) these; none if there is nothing to write.
    pub(crate) fn leave_rows(&mut self, messages: Vec<Message>) -> Option<String> {
        if messages.is_empty() {
            return None;
        }
        if !self.has_outbox {
            self.told.extend(messages.into_iter().map(Message::row));
            return None;
        }
        Some(self.leave(messages))
    }

    /// Hands these to the relay with the commit, and gives the rows that an [`insertion`] takes. If that fails, so
    /// does the commit.
    pub(crate) fn leave(&mut self, messages: Vec<Message>) -> String {
        let told: Vec<OutboxRow> = messages.into_iter().map(Message::row).collect();
        let rows = told.iter().map(|row| {
            json!({
                "id": row.id, "queue": row.queue, "body": row.body(),
                "traceparent": row.traceparent(), "tracestate": row.tracestate(),
            })
        });
        let rows = Value::Array(rows.collect()).to_string();
        self.told.extend(told);
        rows
    }

    async fn forget_sent(&mut self, confirmed: &[String]) -> Result<(), StoreError> {
        let sql = format!(
            "DELETE FROM outbox WHERE id IN (SELECT r.id FROM {})",
            keys(self.engine, &[("id", "text")])
        );
        let rows = confirmed.iter().map(|id| json!({ "id": id })).collect();
        sqlx::query(assembled(sql))
            .bind(Value::Array(rows).to_string())
            .execute(self.on())
            .await?;
        Ok(())
    }
}

/// The statement that puts messages into the outbox: their rows are the parameter of this number, and the second
/// tells the time.
pub(crate) fn insertion(engine: Engine, parameter: usize) -> String {
    let fields = ["id", "queue", "body", "traceparent", "tracestate"].map(|field| (field, "text"));
    format!(
        "INSERT INTO outbox (id, queue, body, traceparent, tracestate, created) \
         SELECT r.id, r.queue, r.body, r.traceparent, r.tracestate, CAST($2 AS BIGINT) FROM {}",
        records_of(engine, parameter, &fields)
    )
}

/// A message not yet in the outbox.
pub(crate) struct Message {
    said: Said,
    /// None means that of whoever tells it.
    trace: Option<TraceContext>,
}

impl From<Said> for Message {
    fn from(said: Said) -> Self {
        Self { said, trace: None }
    }
}

impl Message {
    /// To the resource manager: a task was made.
    pub(crate) fn made(task: Newcomer) -> Self {
        Said::Made(Arc::new(task)).into()
    }

    /// To the resource manager: a task waits again.
    pub(crate) fn submitted(id: TaskId) -> Self {
        Said::Waits(id).into()
    }

    /// To the resource manager: a task is in a terminal state.
    pub(crate) fn ended(id: TaskId) -> Self {
        Said::Ended(id).into()
    }

    /// To the workers of a class: a task may be claimed.
    pub(crate) fn granted(task_id: TaskId, attempt: Attempt, class: TaskClass, epoch: Epoch) -> Self {
        let said = Said::Granted {
            task_id,
            attempt,
            class,
            epoch,
        };
        said.into()
    }

    /// As it stands in the outbox.
    pub(crate) fn row(self) -> OutboxRow {
        OutboxRow {
            id: Uuid::now_v7().to_string(),
            queue: self.said.queue().to_owned(),
            content: Content::Said(self.said),
            trace: self.trace.or_else(TraceContext::current),
        }
    }

    /// The same as a part of this trace.
    pub(crate) fn within(self, trace: Option<TraceContext>) -> Self {
        Self { trace, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_nothing_can_be_sent_no_more_than_so_many_messages_are_kept_beside_their_rows() {
        let fresh = Fresh::default();
        for _ in 0..FRESH_AT_MOST / 100 + 10 {
            let rows = (0..100).map(|_| Message::ended(TaskId::new()).row());
            fresh.committed(rows.collect(), true);
        }
        assert_eq!(fresh.lock().len(), FRESH_AT_MOST);
        // Those that have no rows have no other place.
        fresh.committed(vec![Message::ended(TaskId::new()).row()], false);
        assert_eq!(fresh.lock().len(), FRESH_AT_MOST + 1);
    }
}
