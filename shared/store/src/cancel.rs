//! Cancels of many tasks at once: a task with all that it made, and a group.
//!
//! What waits ends in a few statements, however much it is; what runs is asked to stop. Terminal states never change.
//!
//! A running task may be about to commit, in a fence that is open already, and make further tasks with that commit. Its
//! row is locked then: the cancel waits for it, and only afterwards asks what it has made. A task that was asked to stop
//! and commits all the same withdraws what it made; see [`Tx::withdraw_children`].

use pulp_model::{TaskId, Timestamp, task::TaskState};
use sqlx::any::AnyRow;

use crate::{
    StoreError, Tx,
    engine::{CHUNK, assembled, bulk, ids_of, records},
    outbox::Message,
    row,
    tasks::state,
};

/// What a cancel of several tasks came to. Those that had ended are in neither list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Canceled {
    /// They had not begun, and now never will.
    pub ended: Vec<TaskId>,
    /// They run; their workers have been asked to stop.
    pub asked: Vec<TaskId>,
}

/// What group members a cancel still has to do with.
const LEFT_OF_GROUP: &str =
    "group_id = $1 AND state IN ('waiting', 'accepted', 'running') AND cancel_requested IS NULL";

impl Tx {
    /// Cancels a task and all that it made, and that these made in turn, as far as they have not ended. None if there
    /// is no such task.
    ///
    /// A request that was answered with a task that waited already made nothing: that task is not among them.
    pub async fn cancel_tree(&mut self, root: TaskId) -> Result<Option<Canceled>, StoreError> {
        let mut canceled = Canceled::default();
        let mut level = vec![root];
        let mut is_known = false;
        while !level.is_empty() {
            let given = records(self.engine, &[("id", "text")]);
            let sql = format!(
                "SELECT task_id, state FROM tasks WHERE task_id IN (SELECT r.id FROM {given}) ORDER BY task_id"
            );
            let sql = assembled(self.updating(sql));
            let rows = sqlx::query(sql).bind(ids_of(&level)).fetch_all(self.on()).await?;
            is_known |= !rows.is_empty();
            self.stop(&rows, &mut canceled).await?;
            // With the rows locked: whatever they made by now is seen, and they make no more unasked.
            let sql = format!("SELECT c.task_id FROM {given} JOIN tasks c ON c.parent_id = r.id");
            let query = sqlx::query(assembled(sql)).bind(ids_of(&level));
            let rows = query.fetch_all(self.on()).await?;
            level = rows
                .iter()
                .map(|r| row::parsed(r, "task_id"))
                .collect::<Result<_, _>>()?;
        }
        Ok(is_known.then_some(canceled))
    }

    /// Cancels all tasks of a group that have not ended. None if no task is of this group.
    pub async fn cancel_group(&mut self, group_id: &str) -> Result<Option<Canceled>, StoreError> {
        let known = "SELECT task_id FROM tasks WHERE group_id = $1 LIMIT 1";
        let known = sqlx::query(known)
            .bind(group_id)
            .fetch_optional(self.on())
            .await?;
        if known.is_none() {
            return Ok(None);
        }
        let mut canceled = Canceled::default();
        // The lock may have been waited for while its holder ended and made another task of the group: only a look
        // without locks tells that nothing is left.
        while self.is_left(group_id).await? {
            let sql = format!(
                "SELECT task_id, state FROM tasks WHERE {LEFT_OF_GROUP} ORDER BY task_id LIMIT {CHUNK}"
            );
            let sql = self.updating(sql);
            let rows = bulk(sql, 1).bind(group_id).fetch_all(self.on()).await?;
            self.stop(&rows, &mut canceled).await?;
        }
        Ok(Some(canceled))
    }

    async fn is_left(&mut self, group_id: &str) -> Result<bool, StoreError> {
        let sql = format!("SELECT task_id FROM tasks WHERE {LEFT_OF_GROUP} LIMIT 1");
        let found = bulk(sql, 1).bind(group_id).fetch_optional(self.on()).await?;
        Ok(found.is_some())
    }

    /// Cancels what a task made in this transaction, if a cancel had been asked of it: who stops a sync doesn't want
    /// its publishes. Called by the fence that holds the task's row.
    pub(crate) async fn withdraw_children(&mut self, parent: TaskId) -> Result<(), StoreError> {
        let sql = "SELECT c.task_id, c.state FROM tasks c JOIN tasks p ON p.task_id = c.parent_id \
                   WHERE p.task_id = $1 AND p.cancel_requested IS NOT NULL";
        let rows = sqlx::query(sql)
            .bind(parent.to_string())
            .fetch_all(self.on())
            .await?;
        self.stop(&rows, &mut Canceled::default()).await
    }

    /// Ends those of these locked rows that have not begun, and asks those that run.
    async fn stop(&mut self, rows: &[AnyRow], canceled: &mut Canceled) -> Result<(), StoreError> {
        let (mut idle, mut running) = (Vec::new(), Vec::new());
        for r in rows {
            match state(r)? {
                s if s.is_terminal() => {}
                TaskState::Running => running.push(row::parsed(r, "task_id")?),
                _ => idle.push(row::parsed(r, "task_id")?),
            }
        }
        if idle.is_empty() && running.is_empty() {
            return Ok(());
        }
        let now = self.now().await?;
        if !idle.is_empty() {
            self.end_idle(&idle, now).await?;
        }
        if !running.is_empty() {
            self.ask_to_stop(&running, now).await?;
        }
        canceled.ended.extend(idle);
        canceled.asked.extend(running);
        Ok(())
    }

    async fn ask_to_stop(&mut self, ids: &[TaskId], now: Timestamp) -> Result<(), StoreError> {
        let sql = format!(
            "UPDATE tasks SET cancel_requested = $2 WHERE cancel_requested IS NULL AND task_id IN (SELECT r.id FROM {})",
            records(self.engine, &[("id", "text")])
        );
        sqlx::query(assembled(sql))
            .bind(ids_of(ids))
            .bind(now.micros())
            .execute(self.on())
            .await?;
        Ok(())
    }

    /// Ends tasks that have not begun: their state, what they hold, what they stand for, and the word to the resource
    /// manager.
    async fn end_idle(&mut self, ids: &[TaskId], now: Timestamp) -> Result<(), StoreError> {
        let sql = format!(
            "UPDATE tasks SET state = 'canceled', finished = $2, cancel_requested = $2 WHERE task_id IN (SELECT r.id FROM {})",
            records(self.engine, &[("id", "text")])
        );
        sqlx::query(assembled(sql))
            .bind(ids_of(ids))
            .bind(now.micros())
            .execute(self.on())
            .await?;
        self.release_reservations(ids).await?;
        self.close_requests(ids).await?;
        let messages: Vec<_> = ids.iter().map(|id| Message::ended(*id)).collect();
        self.tell(now, messages).await
    }
}
