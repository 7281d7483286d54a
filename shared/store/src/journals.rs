//! What a task's run notes for the attempts after it, should it be lost.

use std::time::Duration;

use pulp_model::TaskId;
use sqlx::{Row as _, any::AnyRow};

use crate::{Store, StoreError, TaskLease, engine::assembled};

/// What an earlier attempt noted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journal {
    /// How long ago, by the database's clock.
    pub age: Duration,
    /// What, in words that only the kind of task knows.
    pub note: String,
}

impl Store {
    /// Notes something for the attempts after this one, instead of what was noted before; false if the attempt is over.
    pub async fn write_journal(&self, lease: &TaskLease, note: String) -> Result<bool, StoreError> {
        let sql = format!(
            "INSERT INTO task_journals (task_id, written, note) SELECT task_id, {}, CAST($3 AS TEXT) FROM tasks \
             WHERE task_id = $1 AND attempt = $2 AND state = 'running' \
             ON CONFLICT (task_id) DO UPDATE SET written = excluded.written, note = excluded.note",
            self.engine.clock()
        );
        let mut tx = self.begin().await?;
        let done = sqlx::query(assembled(sql))
            .bind(lease.task_id().to_string())
            .bind(lease.attempt().0)
            .bind(note)
            .execute(tx.on())
            .await?;
        tx.commit().await?;
        Ok(done.rows_affected() > 0)
    }

    /// What an earlier attempt of this task noted last.
    pub async fn journal(&self, task: TaskId) -> Result<Option<Journal>, StoreError> {
        let sql = format!(
            "SELECT note, {} - written AS age FROM task_journals WHERE task_id = $1",
            self.engine.clock()
        );
        let found = sqlx::query(assembled(sql))
            .bind(task.to_string())
            .fetch_optional(&self.pool)
            .await?;
        let read = |r: AnyRow| {
            let age: i64 = r.try_get("age")?;
            Ok(Journal {
                // Clocks have steps.
                age: Duration::from_micros(u64::try_from(age).unwrap_or_default()),
                note: r.try_get("note")?,
            })
        };
        found.map(read).transpose()
    }

    /// Removes the notes of tasks that are over; answers how many.
    pub async fn forget_journals(&self) -> Result<u64, StoreError> {
        let sql = "DELETE FROM task_journals WHERE EXISTS (SELECT 1 FROM tasks \
                   WHERE tasks.task_id = task_journals.task_id AND tasks.finished IS NOT NULL)";
        let mut tx = self.begin().await?;
        let done = sqlx::query(sql).execute(tx.on()).await?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }
}
