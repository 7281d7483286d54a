//! Schedules: made, changed, and fired slot by slot.
//!
//! Any number of schedulers fire at once. A slot's row in `schedule_fires`, its task and the message that announces
//! the task are one transaction, decided by the database's clock: no slot is fired twice, none is lost.

use pulp_model::{
    DistributorId, RepositoryId, ScheduleId, TaskId, Timestamp,
    schedule::{Recurrence, Slots},
    task::{Owner, TaskKind},
};
use serde_json::{Map, Value};
use sqlx::{Row as _, any::AnyRow};

use crate::{
    Store, StoreError, Tx,
    engine::{assembled, ids_of, records},
    row,
    tasks::Submission,
};

/// What a schedule runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A repository's importer.
    Sync(RepositoryId),
    /// One of its distributors.
    Publish(RepositoryId, DistributorId),
}

impl Target {
    /// The repository.
    pub const fn repo_id(&self) -> &RepositoryId {
        match self {
            Self::Sync(repo) | Self::Publish(repo, _) => repo,
        }
    }

    fn distributor(&self) -> Option<&str> {
        match self {
            Self::Sync(_) => None,
            Self::Publish(_, distributor) => Some(distributor.as_str()),
        }
    }

    fn task(&self, override_config: Map<String, Value>) -> TaskKind {
        match self.clone() {
            Self::Sync(repo_id) => TaskKind::Sync {
                repo_id,
                override_config,
            },
            Self::Publish(repo_id, distributor_id) => TaskKind::Publish {
                repo_id,
                distributor_id,
                override_config,
            },
        }
    }
}

/// A schedule's row.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// The key.
    pub id: ScheduleId,
    /// What it runs.
    pub target: Target,
    /// Its text, as the client gave it.
    pub schedule: String,
    /// Settings for its runs alone.
    pub override_config: Map<String, Value>,
    /// Whether it fires.
    pub enabled: bool,
    /// After how many failed runs in a row it is disabled; none means never.
    pub failure_threshold: Option<i64>,
    /// Failed runs since the last good one.
    pub consecutive_failures: i64,
    /// Its first slot.
    pub first_run: Timestamp,
    /// When a slot was last fired.
    pub last_run_at: Option<Timestamp>,
    /// Its first slot that was not fired.
    pub next_slot: Option<Timestamp>,
    /// How many runs are left; none means no end.
    pub remaining_runs: Option<i64>,
    /// How many slots were fired.
    pub total_run_count: i64,
    /// When a client last changed it.
    pub last_updated: Timestamp,
}

impl Schedule {
    /// Its slots.
    pub fn slots(&self) -> Result<Slots, StoreError> {
        let read: Recurrence = self
            .schedule
            .parse()
            .map_err(|e| StoreError::corrupt("schedules.schedule", e))?;
        Ok(Slots {
            first: self.first_run,
            period: read.period,
        })
    }

    /// Its first slot after `now`; none if no run is left.
    pub fn next_run(&self, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        if self.remaining_runs.is_some_and(|left| left <= 0) {
            return Ok(None);
        }
        Ok(self.slots()?.after(now))
    }
}

/// A schedule that is to be made.
#[derive(Debug, Clone)]
pub struct NewSchedule {
    /// What it runs.
    pub target: Target,
    /// Its text, and the same read.
    pub schedule: (String, Recurrence),
    /// Settings for its runs alone.
    pub override_config: Map<String, Value>,
    /// Whether it fires.
    pub enabled: bool,
    /// After how many failed runs in a row it is disabled.
    pub failure_threshold: Option<i64>,
}

/// A change of a schedule; what is none stays.
#[derive(Debug, Clone, Default)]
pub struct ScheduleChange {
    /// Another text. First and next run and the runs left are counted anew; `total_run_count` goes on.
    pub schedule: Option<(String, Recurrence)>,
    /// Settings for its runs alone, in place of those it had.
    pub override_config: Option<Map<String, Value>>,
    /// Whether it fires. One that is enabled again begins without failures.
    pub enabled: Option<bool>,
    /// The threshold; none within means never.
    pub failure_threshold: Option<Option<i64>>,
}

/// A schedule that has a slot to fire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueSchedule {
    /// Which.
    pub id: ScheduleId,
    /// Of which repository.
    pub repo_id: RepositoryId,
}

/// A slot that was fired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fired {
    /// The slot.
    pub slot: Timestamp,
    /// Its task: a new one, or one like it that still waited.
    pub task_id: TaskId,
}

const COLUMNS: &str = "schedule_id, repo_id, distributor_id, schedule, override_config, enabled, failure_threshold, \
                       consecutive_failures, first_run, last_run_at, next_slot, remaining_runs, total_run_count, last_updated";

/// Whether a row is one of a target: of an importer for want of a distributor.
const OF_TARGET: &str = "repo_id = $1 AND COALESCE(distributor_id, '') = $2";

impl Store {
    /// The schedules of an importer or distributor, in the order of their making.
    pub async fn schedules_of(&self, target: &Target) -> Result<Vec<Schedule>, StoreError> {
        let sql = assembled(format!(
            "SELECT {COLUMNS} FROM schedules WHERE {OF_TARGET} ORDER BY created, schedule_id"
        ));
        sqlx::query(sql)
            .bind(target.repo_id().as_str())
            .bind(target.distributor().unwrap_or_default())
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(read)
            .collect()
    }

    /// One schedule of an importer or distributor.
    pub async fn schedule(&self, target: &Target, id: &ScheduleId) -> Result<Option<Schedule>, StoreError> {
        let sql = assembled(format!(
            "SELECT {COLUMNS} FROM schedules WHERE {OF_TARGET} AND schedule_id = $3"
        ));
        sqlx::query(sql)
            .bind(target.repo_id().as_str())
            .bind(target.distributor().unwrap_or_default())
            .bind(id.as_str())
            .fetch_optional(&self.pool)
            .await?
            .map(|r| read(&r))
            .transpose()
    }

    /// Schedules that have a slot to fire, those that wait longest first, at most `limit`.
    pub async fn due_schedules(&self, limit: u32) -> Result<Vec<DueSchedule>, StoreError> {
        let now = self.now().await?;
        let sql = "SELECT schedule_id, repo_id FROM schedules WHERE enabled = 1 AND next_slot <= $1 \
                   ORDER BY next_slot LIMIT $2";
        let rows = sqlx::query(sql)
            .bind(now.micros())
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await?;
        rows.iter()
            .map(|r| {
                Ok(DueSchedule {
                    id: row::parsed(r, "schedule_id")?,
                    repo_id: row::parsed(r, "repo_id")?,
                })
            })
            .collect()
    }

    /// Fires the latest slot of a schedule, if it still is to be fired: slots missed before it collapse into it.
    /// None if another scheduler was first, or the schedule was changed or deleted meanwhile.
    pub async fn fire(&self, due: &DueSchedule) -> Result<Option<Fired>, StoreError> {
        let mut tx = self.begin().await?;
        // The repository's turn before the schedule's row: a task that ends may have the turn and want the row.
        let now = tx.turn_of(due.repo_id.as_str()).await?;
        let Some(schedule) = tx.lock_schedule(&due.id).await? else {
            return Ok(None);
        };
        if !schedule.enabled || schedule.next_slot.is_none_or(|next| next > now) {
            return Ok(None);
        }
        let slots = schedule.slots()?;
        let Some(slot) = slots.latest(now) else {
            return Ok(None);
        };
        let kind = schedule.target.task(schedule.override_config.clone());
        let task_id = tx.submit(&Submission::new(&kind, Owner::scheduler())).await?;
        let insert = "INSERT INTO schedule_fires (schedule_id, slot, fired, task_id) VALUES ($1, $2, $3, $4) \
                      ON CONFLICT (schedule_id, slot) DO NOTHING";
        let fired = sqlx::query(insert)
            .bind(due.id.as_str())
            .bind(slot.micros())
            .bind(now.micros())
            .bind(task_id.to_string())
            .execute(tx.on())
            .await?;
        let next = slots.after(now);
        if fired.rows_affected() == 0 {
            // The slot has its task. Another is dropped with this transaction; only the next slot is set right.
            drop(tx);
            let mut tx = self.begin().await?;
            tx.set_next_slot(&due.id, schedule.next_slot, next).await?;
            tx.commit().await?;
            return Ok(None);
        }
        let left = schedule.remaining_runs.map(|left| left - 1);
        let update = "UPDATE schedules SET last_run_at = $2, next_slot = $3, total_run_count = total_run_count + 1, \
                      remaining_runs = $4, enabled = $5 WHERE schedule_id = $1";
        sqlx::query(update)
            .bind(due.id.as_str())
            .bind(now.micros())
            .bind(next.map(Timestamp::micros))
            .bind(left)
            .bind(i64::from(left.is_none_or(|left| left > 0)))
            .execute(tx.on())
            .await?;
        tx.commit().await?;
        Ok(Some(Fired { slot, task_id }))
    }
}

impl Tx {
    /// Makes a schedule; none if what it is to run is gone. Without a start, its first slot is now.
    pub async fn create_schedule(&mut self, new: &NewSchedule) -> Result<Option<Schedule>, StoreError> {
        if !self.holds_target(&new.target).await? {
            return Ok(None);
        }
        let now = self.now().await?;
        let id = ScheduleId::new();
        let (text, recurrence) = &new.schedule;
        let first = recurrence.start.unwrap_or(now);
        let (repo, distributor) = (new.target.repo_id().as_str(), new.target.distributor());
        let sql = "INSERT INTO schedules (schedule_id, repo_id, importer_repo_id, distributor_id, schedule, override_config, \
                   enabled, failure_threshold, consecutive_failures, first_run, next_slot, remaining_runs, total_run_count, \
                   created, last_updated) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, $9, $9, $10, 0, $11, $11)";
        sqlx::query(sql)
            .bind(id.as_str())
            .bind(repo)
            .bind(distributor.is_none().then_some(repo))
            .bind(distributor)
            .bind(text)
            .bind(row::to_json(&new.override_config))
            .bind(i64::from(new.enabled))
            .bind(new.failure_threshold)
            .bind(first.micros())
            .bind(recurrence.runs)
            .bind(now.micros())
            .execute(self.on())
            .await?;
        self.lock_schedule(&id).await
    }

    /// Changes a schedule; none if there is none of this target.
    pub async fn update_schedule(
        &mut self,
        target: &Target,
        id: &ScheduleId,
        change: &ScheduleChange,
    ) -> Result<Option<Schedule>, StoreError> {
        let Some(mut schedule) = self.lock_schedule(id).await? else {
            return Ok(None);
        };
        if schedule.target != *target {
            return Ok(None);
        }
        let now = self.now().await?;
        if let Some((text, recurrence)) = &change.schedule {
            schedule.schedule.clone_from(text);
            schedule.first_run = recurrence.start.unwrap_or(now);
            schedule.remaining_runs = recurrence.runs;
            // What was fired before the change stays fired.
            schedule.next_slot = match schedule.last_run_at {
                Some(last) => schedule.slots()?.after(last),
                None => Some(schedule.first_run),
            };
        }
        if let Some(config) = &change.override_config {
            schedule.override_config.clone_from(config);
        }
        if let Some(threshold) = change.failure_threshold {
            schedule.failure_threshold = threshold;
        }
        if let Some(enabled) = change.enabled {
            if enabled && !schedule.enabled {
                schedule.consecutive_failures = 0;
            }
            schedule.enabled = enabled;
        }
        // One without runs would be due for ever.
        schedule.enabled &= schedule.remaining_runs.is_none_or(|left| left > 0);
        schedule.last_updated = now;
        let sql = "UPDATE schedules SET schedule = $2, first_run = $3, remaining_runs = $4, next_slot = $5, \
                   override_config = $6, failure_threshold = $7, enabled = $8, consecutive_failures = $9, last_updated = $10 \
                   WHERE schedule_id = $1";
        sqlx::query(sql)
            .bind(id.as_str())
            .bind(&schedule.schedule)
            .bind(schedule.first_run.micros())
            .bind(schedule.remaining_runs)
            .bind(schedule.next_slot.map(Timestamp::micros))
            .bind(row::to_json(&schedule.override_config))
            .bind(schedule.failure_threshold)
            .bind(i64::from(schedule.enabled))
            .bind(schedule.consecutive_failures)
            .bind(now.micros())
            .execute(self.on())
            .await?;
        Ok(Some(schedule))
    }

    /// Deletes a schedule; false if there is none of this target. Its task, if one waits or runs, goes on.
    pub async fn delete_schedule(&mut self, target: &Target, id: &ScheduleId) -> Result<bool, StoreError> {
        let sql = assembled(format!(
            "DELETE FROM schedules WHERE {OF_TARGET} AND schedule_id = $3"
        ));
        let done = sqlx::query(sql)
            .bind(target.repo_id().as_str())
            .bind(target.distributor().unwrap_or_default())
            .bind(id.as_str())
            .execute(self.on())
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Forgets fired slots whose task was purged; that they were fired stands in their schedule.
    pub async fn prune_fires(&mut self) -> Result<u64, StoreError> {
        let sql = "DELETE FROM schedule_fires WHERE NOT EXISTS \
                   (SELECT 1 FROM tasks WHERE tasks.task_id = schedule_fires.task_id)";
        Ok(sqlx::query(sql).execute(self.on()).await?.rows_affected())
    }

    /// Counts a task's bad end for the schedules that asked for it, or for the task that made it, such as the sync
    /// before an automatic publish.
    pub(crate) async fn count_bad_run(&mut self, task: TaskId) -> Result<(), StoreError> {
        let sql = "UPDATE schedules SET consecutive_failures = consecutive_failures + 1, \
                   enabled = CASE WHEN consecutive_failures + 1 >= failure_threshold THEN 0 ELSE enabled END \
                   WHERE schedule_id IN (SELECT schedule_id FROM schedule_fires \
                   WHERE task_id = $1 OR task_id = (SELECT parent_id FROM tasks WHERE task_id = $1))";
        sqlx::query(sql).bind(task.to_string()).execute(self.on()).await?;
        Ok(())
    }

    /// Counts the good ends of tasks for the same schedules.
    pub(crate) async fn count_good_runs(&mut self, tasks: &[TaskId]) -> Result<(), StoreError> {
        let ended = records(self.engine, &[("id", "text")]);
        let sql = format!(
            "UPDATE schedules SET consecutive_failures = 0 WHERE schedule_id IN (\
             SELECT f.schedule_id FROM {ended} JOIN schedule_fires f ON f.task_id = r.id UNION \
             SELECT f.schedule_id FROM {ended} JOIN tasks t ON t.task_id = r.id JOIN schedule_fires f ON f.task_id = t.parent_id)"
        );
        sqlx::query(assembled(sql))
            .bind(ids_of(tasks))
            .execute(self.on())
            .await?;
        Ok(())
    }

    /// Whether what a schedule is to run is there; it stays there until the transaction ends.
    async fn holds_target(&mut self, target: &Target) -> Result<bool, StoreError> {
        let (sql, distributor) = match target.distributor() {
            None => (
                "SELECT repo_id FROM importers WHERE repo_id = $1 FOR KEY SHARE",
                None,
            ),
            Some(id) => (
                "SELECT repo_id FROM distributors WHERE repo_id = $1 AND distributor_id = $2 FOR KEY SHARE",
                Some(id),
            ),
        };
        let sql = self.locking(sql);
        let mut query = sqlx::query(sql).bind(target.repo_id().as_str());
        if let Some(id) = distributor {
            query = query.bind(id);
        }
        Ok(query.fetch_optional(self.on()).await?.is_some())
    }

    async fn lock_schedule(&mut self, id: &ScheduleId) -> Result<Option<Schedule>, StoreError> {
        // `locking` takes texts that are known when this is built, hence the star.
        let sql = self.locking("SELECT * FROM schedules WHERE schedule_id = $1 FOR UPDATE");
        sqlx::query(sql)
            .bind(id.as_str())
            .fetch_optional(self.on())
            .await?
            .map(|r| read(&r))
            .transpose()
    }

    async fn set_next_slot(
        &mut self,
        id: &ScheduleId,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        sqlx::query("UPDATE schedules SET next_slot = $3 WHERE schedule_id = $1 AND next_slot = $2")
            .bind(id.as_str())
            .bind(from.map(Timestamp::micros))
            .bind(to.map(Timestamp::micros))
            .execute(self.on())
            .await?;
        Ok(())
    }
}

fn read(found: &AnyRow) -> Result<Schedule, StoreError> {
    let repo: RepositoryId = row::parsed(found, "repo_id")?;
    let distributor: Option<String> = found.try_get("distributor_id")?;
    let target = match distributor {
        None => Target::Sync(repo),
        Some(_) => Target::Publish(repo, row::parsed(found, "distributor_id")?),
    };
    Ok(Schedule {
        id: row::parsed(found, "schedule_id")?,
        target,
        schedule: found.try_get("schedule")?,
        override_config: row::json(found, "override_config")?,
        enabled: found.try_get::<i64, _>("enabled")? != 0,
        failure_threshold: found.try_get("failure_threshold")?,
        consecutive_failures: found.try_get("consecutive_failures")?,
        first_run: row::instant(found, "first_run")?,
        last_run_at: row::optional_instant(found, "last_run_at")?,
        next_slot: row::optional_instant(found, "next_slot")?,
        remaining_runs: found.try_get("remaining_runs")?,
        total_run_count: found.try_get("total_run_count")?,
        last_updated: row::instant(found, "last_updated")?,
    })
}
