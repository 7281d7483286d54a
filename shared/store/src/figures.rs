//! Figures of the whole installation for a monitoring system: how much waits, and for how long.

use std::time::Duration;

use pulp_model::{
    Timestamp,
    task::{TaskClass, TaskState},
};
use sqlx::Row as _;

use crate::{Store, StoreError, tasks::state};

/// Tasks of one class and state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveFigures {
    /// The class.
    pub class: TaskClass,
    /// Accepted or running.
    pub state: TaskState,
    /// How many.
    pub count: i64,
    /// How long the one that was submitted first has been live.
    pub oldest: Duration,
}

/// Messages that wait for a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxFigures {
    /// How many.
    pub depth: i64,
    /// How long the oldest has waited; zero if there is none.
    pub lag: Duration,
}

/// The outbox is counted up to here.
const COUNTED: i64 = 100_000;

impl Store {
    /// Granted and running tasks by class and state. The cost grows with what workers hold, whatever waits (with
    /// SQLite, with all that is live).
    pub async fn live_figures(&self) -> Result<Vec<LiveFigures>, StoreError> {
        let now = self.now().await?;
        let sql = "SELECT class, state, COUNT(*) AS n, MIN(created) AS oldest FROM tasks \
                   WHERE state IN ('accepted', 'running') AND finished IS NULL GROUP BY class, state";
        let rows = sqlx::query(sql).fetch_all(&self.pool).await?;
        rows.iter()
            .map(|r| {
                let class: String = r.try_get("class")?;
                Ok(LiveFigures {
                    class: TaskClass::parse(&class).ok_or_else(|| {
                        StoreError::corrupt("tasks.class", format!("unknown class {class}"))
                    })?,
                    state: state(r)?,
                    count: r.try_get("n")?,
                    oldest: since(Timestamp(r.try_get("oldest")?), now),
                })
            })
            .collect()
    }

    /// How long the oldest waiting task has waited; zero if none waits. One look into an index.
    pub async fn oldest_waiting(&self) -> Result<Duration, StoreError> {
        let now = self.now().await?;
        let sql =
            "SELECT created FROM tasks WHERE state = 'waiting' AND finished IS NULL ORDER BY created LIMIT 1";
        let found = sqlx::query(sql).fetch_optional(&self.pool).await?;
        found.map_or(Ok(Duration::ZERO), |r| {
            Ok(since(Timestamp(r.try_get("created")?), now))
        })
    }

    /// What waits in the outbox, counted up to 100,000.
    pub async fn outbox_figures(&self) -> Result<OutboxFigures, StoreError> {
        let now = self.now().await?;
        let sql = "SELECT COUNT(*) AS n FROM (SELECT 1 AS one FROM outbox LIMIT $1) AS counted";
        let depth = sqlx::query(sql).bind(COUNTED).fetch_one(&self.pool).await?;
        // Ids grow with time.
        let sql = "SELECT created FROM outbox ORDER BY id LIMIT 1";
        let oldest = sqlx::query(sql).fetch_optional(&self.pool).await?;
        let lag = oldest.map_or(Ok(Duration::ZERO), |r| {
            Ok::<_, StoreError>(since(Timestamp(r.try_get("created")?), now))
        })?;
        Ok(OutboxFigures {
            depth: depth.try_get("n")?,
            lag,
        })
    }
}

fn since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::from_micros(u64::try_from(now.micros() - then.micros()).unwrap_or(0))
}
