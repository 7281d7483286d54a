//! What befell a task: its straight way is told by its own columns, detours by events.

use pulp_model::{Attempt, TaskId, Timestamp, WorkerName};
use sqlx::Row as _;

use crate::{Store, StoreError, Tx, row};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// The API accepted it, or another task made it.
    Created,
    /// It got its resources; a worker may claim it.
    Granted,
    /// Its grant was sent to the workers again.
    Resent,
    /// A worker began to run it.
    Claimed,
    /// It was taken from a worker that is gone.
    Revoked,
    /// Its worker gave it back to end in order.
    HandedBack,
    /// A worker could not read it.
    Declined,
    /// Its worker gave it back to wait for what is not to be had yet.
    Parked,
    /// Somebody asked to cancel it.
    CancelRequested,
    /// It was ended over its worker's head.
    Expired,
    /// It reached its terminal state.
    Ended,
}

impl EventKind {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Created,
        Self::Granted,
        Self::Resent,
        Self::Claimed,
        Self::Revoked,
        Self::HandedBack,
        Self::Declined,
        Self::Parked,
        Self::CancelRequested,
        Self::Expired,
        Self::Ended,
    ];

    /// The name on the wire and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Granted => "granted",
            Self::Resent => "resent",
            Self::Claimed => "claimed",
            Self::Revoked => "revoked",
            Self::HandedBack => "handed_back",
            Self::Declined => "declined",
            Self::Parked => "parked",
            Self::CancelRequested => "cancel_requested",
            Self::Expired => "expired",
            Self::Ended => "ended",
        }
    }

    fn parse(text: &str) -> Result<Self, StoreError> {
        let found = Self::ALL.into_iter().find(|e| e.as_str() == text);
        found.ok_or_else(|| StoreError::corrupt("task_events.event", format!("unknown event {text}")))
    }
}

/// One line of a task's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// What.
    pub kind: EventKind,
    /// In which attempt; 0 before the first grant.
    pub attempt: Attempt,
    /// By whom, where a worker did it.
    pub worker: Option<WorkerName>,
    /// Why, in words; the state, of an end.
    pub detail: Option<String>,
}

impl Store {
    /// All that befell a task, oldest first; empty if there is no such task.
    pub async fn timeline(&self, id: TaskId) -> Result<Vec<Event>, StoreError> {
        let sql = "SELECT state, attempt, worker_name, created, accepted, resent, started, cancel_requested, finished \
                   FROM tasks WHERE task_id = $1";
        let found = sqlx::query(sql)
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await?;
        let Some(task) = found else {
            return Ok(Vec::new());
        };
        let attempt = Attempt(task.try_get("attempt")?);
        let worker = task.try_get::<Option<String>, _>("worker_name")?.map(WorkerName);
        let mut events = Vec::new();
        let sql =
            "SELECT at, event, attempt, worker_name, detail FROM task_events WHERE task_id = $1 ORDER BY at";
        let rows = sqlx::query(sql)
            .bind(id.to_string())
            .fetch_all(&self.pool)
            .await?;
        for r in &rows {
            events.push(Event {
                at: row::instant(r, "at")?,
                kind: EventKind::parse(&r.try_get::<String, _>("event")?)?,
                attempt: Attempt(r.try_get("attempt")?),
                worker: r.try_get::<Option<String>, _>("worker_name")?.map(WorkerName),
                detail: r.try_get("detail")?,
            });
        }
        for (column, kind) in [
            ("created", EventKind::Created),
            ("accepted", EventKind::Granted),
            ("resent", EventKind::Resent),
            ("started", EventKind::Claimed),
            ("cancel_requested", EventKind::CancelRequested),
            ("finished", EventKind::Ended),
        ] {
            if let Some(at) = row::optional_instant(&task, column)? {
                let ended = kind == EventKind::Ended;
                events.push(Event {
                    at,
                    kind,
                    attempt: if kind == EventKind::Created {
                        Attempt(0)
                    } else {
                        attempt
                    },
                    worker: worker.clone().filter(|_| kind == EventKind::Claimed),
                    detail: if ended { Some(task.try_get("state")?) } else { None },
                });
            }
        }
        // By attempt where instants are the same: clocks have steps.
        events.sort_by_key(|e| (e.at, e.kind == EventKind::Ended, e.attempt));
        Ok(events)
    }
}

impl Tx {
    /// Puts the present attempt on record, and that it came to nothing: its own columns are about to be cleared.
    pub(crate) async fn record_attempt(
        &mut self,
        id: TaskId,
        end: EventKind,
        why: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO task_events (task_id, at, event, attempt, worker_name, detail) \
                   SELECT task_id, accepted, 'granted', attempt, NULL, NULL FROM tasks WHERE task_id = $1 AND accepted IS NOT NULL \
                   UNION ALL SELECT task_id, started, 'claimed', attempt, worker_name, NULL FROM tasks \
                   WHERE task_id = $1 AND started IS NOT NULL \
                   UNION ALL SELECT task_id, CAST($2 AS BIGINT), CAST($3 AS TEXT), attempt, worker_name, CAST($4 AS TEXT) FROM tasks \
                   WHERE task_id = $1";
        sqlx::query(sql)
            .bind(id.to_string())
            .bind(now.micros())
            .bind(end.as_str())
            .bind(why)
            .execute(self.on())
            .await?;
        Ok(())
    }

    /// Puts one event of the present attempt on record.
    pub(crate) async fn record_event(
        &mut self,
        id: TaskId,
        event: EventKind,
        why: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO task_events (task_id, at, event, attempt, worker_name, detail) \
                   SELECT task_id, CAST($2 AS BIGINT), CAST($3 AS TEXT), attempt, worker_name, CAST($4 AS TEXT) FROM tasks \
                   WHERE task_id = $1";
        sqlx::query(sql)
            .bind(id.to_string())
            .bind(now.micros())
            .bind(event.as_str())
            .bind(why)
            .execute(self.on())
            .await?;
        Ok(())
    }
}
