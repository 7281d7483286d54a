//! Figures of the whole installation for a monitoring system: how much waits, and for how long.

use std::time::Duration;

use pulp_model::{
    Timestamp,
    task::{TaskClass, TaskState},
};
use sqlx::Row as _;

use crate::{Store, StoreError, tasks::state};

/// Live tasks of one class and state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveFigures {
    /// The class.
    pub class: TaskClass,
    /// Waiting, accepted or running.
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

impl Store {
    /// Live tasks by class and state. The cost grows with what is live, not with history.
    pub async fn live_figures(&self) -> Result<Vec<LiveFigures>, StoreError> {
        let now = self.now().await?;
        let sql = "SELECT class, state, COUNT(*) AS n, MIN(created) AS oldest FROM tasks \
                   WHERE state IN ('waiting', 'accepted', 'running') GROUP BY class, state";
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

    /// What waits in the outbox.
    pub async fn outbox_figures(&self) -> Result<OutboxFigures, StoreError> {
        let now = self.now().await?;
        let sql = "SELECT COUNT(*) AS n, COALESCE(MIN(created), $1) AS oldest FROM outbox";
        let found = sqlx::query(sql).bind(now.micros()).fetch_one(&self.pool).await?;
        Ok(OutboxFigures {
            depth: found.try_get("n")?,
            lag: since(Timestamp(found.try_get("oldest")?), now),
        })
    }
}

fn since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::from_micros(u64::try_from(now.micros() - then.micros()).unwrap_or(0))
}
