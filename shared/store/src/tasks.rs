//! Tasks as clients see them: made, read, searched, canceled, purged.

use std::collections::{BTreeSet, HashSet};

use pulp_model::{
    Attempt, CodedError, TaskId, Timestamp, WorkerName,
    task::{Claim, Coalescing, LockMode, Newcomer, Owner, ResourceKey, TaskKind, TaskState},
};
use pulp_trace::{Span, SpanKind, TraceContext};
use serde::Serialize;
use serde_json::Value;
use sqlx::{Row as _, any::AnyRow};

use crate::{
    Engine, Store, StoreError, Tx,
    engine::{assembled, ids_of, keys, placeholders, records, records_of},
    outbox::{self, Message},
    row,
    together::all_or_each,
};

/// A task's row.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// The key.
    pub id: TaskId,
    /// The dotted name of its kind.
    pub task_type: String,
    /// How far it is.
    pub state: TaskState,
    /// The tags by which clients find it.
    pub tags: Vec<String>,
    /// The group it belongs to, if any.
    pub group_id: Option<String>,
    /// For whom it is done.
    pub owner: Owner,
    /// The attempt that holds it, 0 before the first grant.
    pub attempt: Attempt,
    /// Who runs or ran it.
    pub worker_name: Option<WorkerName>,
    /// When the API accepted it.
    pub created: Timestamp,
    /// When its last run began.
    pub started: Option<Timestamp>,
    /// When it reached its terminal state.
    pub finished: Option<Timestamp>,
    /// When a cancel was asked for, while it runs.
    pub cancel_requested: Option<Timestamp>,
    /// Steps by importer or distributor.
    pub progress_report: Value,
    /// What it gave.
    pub result: Option<Value>,
    /// Why it failed.
    pub error: Option<CodedError>,
    /// Tasks that it made.
    pub spawned_tasks: Vec<TaskId>,
}

/// Which tasks a search wants; all parts must hold.
#[derive(Debug, Clone, Default)]
pub struct TaskFilter {
    /// Any of these states; empty means all.
    pub states: Vec<TaskState>,
    /// All of these tags.
    pub tags: Vec<String>,
    /// Only this one.
    pub task_id: Option<TaskId>,
    /// Only tasks of this group.
    pub group_id: Option<String>,
    /// Only tasks of no group.
    pub ungrouped: bool,
    /// Newest first instead of oldest first.
    pub newest_first: bool,
    /// At most so many.
    pub limit: Option<u32>,
    /// After passing over so many.
    pub skip: u32,
}

/// What a cancel found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelOutcome {
    /// No such task.
    Unknown,
    /// It had ended already; nothing was changed.
    AlreadyEnded,
    /// It had not begun, and now never will.
    Canceled,
    /// It runs; its worker has been asked to stop.
    Requested,
}

/// A task that is to be made.
#[derive(Debug, Clone)]
pub struct Submission<'k> {
    /// What to do.
    pub kind: &'k TaskKind,
    /// For whom.
    pub owner: Owner,
    /// The group that it belongs to, if any.
    pub group_id: Option<String>,
    pub(crate) parent: Option<TaskId>,
    /// Without one it is that of whoever submits.
    pub(crate) trace: Option<TraceContext>,
}

/// A submission that stands by itself, with the trace of whoever asked.
pub(crate) struct Request {
    pub(crate) kind: TaskKind,
    owner: Owner,
    group_id: Option<String>,
    trace: Option<TraceContext>,
}

impl Request {
    pub(crate) fn submission(&self) -> Submission<'_> {
        Submission {
            kind: &self.kind,
            owner: self.owner.clone(),
            group_id: self.group_id.clone(),
            parent: None,
            trace: self.trace.clone(),
        }
    }
}

/// A task that is to be written.
pub(crate) struct Birth<'s> {
    pub(crate) id: TaskId,
    kind: &'s TaskKind,
    owner: &'s str,
    group_id: Option<&'s str>,
    parent: Option<TaskId>,
    trace: Option<TraceContext>,
}

/// All that is written of it.
pub(crate) struct Written<'b> {
    pub(crate) row: TaskRow<'b>,
    pub(crate) tags: Vec<TagRow>,
    pub(crate) claims: Vec<ClaimRow>,
    pub(crate) message: Message,
}

impl<'k> Submission<'k> {
    /// A task of no group.
    pub const fn new(kind: &'k TaskKind, owner: Owner) -> Self {
        Self {
            kind,
            owner,
            group_id: None,
            parent: None,
            trace: None,
        }
    }

    /// The same, in a group.
    #[must_use]
    pub fn in_group(mut self, group_id: impl Into<String>) -> Self {
        self.group_id = Some(group_id.into());
        self
    }
}

/// The task that this request may be answered with.
pub(crate) const LIKE_REQUEST: &str = "SELECT task_id FROM open_requests WHERE scope = $1 AND options = $2";

/// No later request of this repository is answered with one from before.
pub(crate) const CLOSE_REQUESTS: &str = "DELETE FROM open_requests WHERE repo_id = $1";

/// Later requests of this scope may be answered with this task.
pub(crate) const OPEN_REQUEST: &str = "INSERT INTO open_requests (scope, options, repo_id, task_id) VALUES ($1, $2, $3, $4) \
                                       ON CONFLICT (scope) DO UPDATE SET options = excluded.options, task_id = excluded.task_id";

const COLUMNS: &str = "task_id, task_type, state, tags, group_id, owner, attempt, worker_name, created, started, \
                       finished, cancel_requested, progress_report, result, error, spawned_tasks";

impl Store {
    /// Makes a task in a transaction of its own, shared with others that are asked for at the same time; see
    /// [`Tx::submit`].
    pub async fn submit(&self, submission: &Submission<'_>) -> Result<TaskId, StoreError> {
        let request = Request {
            kind: submission.kind.clone(),
            owner: submission.owner.clone(),
            group_id: submission.group_id.clone(),
            trace: submission.trace.clone().or_else(TraceContext::current),
        };
        if let Some(writer) = &self.writer {
            return writer.ask(move |writing| writing.submit(&request)).await;
        }
        let store = self.clone();
        let all = move |requests: Vec<Request>| {
            let store = store.clone();
            async move { all_or_each(&requests, |requests| store.submit_together(requests)).await }
        };
        let answer = self.requests.ask(request, all).await;
        answer.unwrap_or_else(|| Err(StoreError::NotTogether("the request was given up".to_owned())))
    }

    async fn submit_together(&self, requests: &[Request]) -> Result<Vec<TaskId>, StoreError> {
        let submissions: Vec<Submission<'_>> = requests.iter().map(Request::submission).collect();
        let mut tx = self.begin().await?;
        // Their ids are in the order in which they were asked for, and decide where the instant is the same.
        let now = tx.turns_for(requests.iter().map(|r| &r.kind)).await?;
        let (mut ids, mut births) = (Vec::with_capacity(requests.len()), Vec::new());
        for submission in &submissions {
            ids.push(tx.conceive(submission, &mut births).await?);
        }
        tx.bear(&births, now).await?;
        tx.commit().await?;
        Ok(ids)
    }

    /// One task.
    pub async fn task(&self, id: TaskId) -> Result<Option<Task>, StoreError> {
        let sql = assembled(format!("SELECT {COLUMNS} FROM tasks WHERE task_id = $1"));
        sqlx::query(sql)
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await?
            .map(|r| read(&r))
            .transpose()
    }

    /// Which of these tasks are over: ended, or deleted since. What they left behind may go.
    pub async fn tasks_over(&self, tasks: &[TaskId]) -> Result<HashSet<TaskId>, StoreError> {
        let sql = format!(
            "SELECT t.task_id FROM {} JOIN tasks t ON t.task_id = r.id WHERE t.state IN ('waiting', 'accepted', 'running')",
            keys(self.engine, &[("id", "text")])
        );
        let query = sqlx::query(assembled(sql)).bind(ids_of(tasks));
        let mut over: HashSet<TaskId> = tasks.iter().copied().collect();
        for live in query.fetch_all(&self.pool).await? {
            over.remove(&row::parsed(&live, "task_id")?);
        }
        Ok(over)
    }

    /// Tasks by filter, in the order of their creation.
    pub async fn search_tasks(&self, filter: &TaskFilter) -> Result<Vec<Task>, StoreError> {
        let mut conditions = vec!["1 = 1".to_owned()];
        let mut values: Vec<String> = Vec::new();
        if !filter.states.is_empty() {
            conditions.push(format!(
                "state IN ({})",
                placeholders(values.len() + 1, filter.states.len())
            ));
            values.extend(filter.states.iter().map(|s| s.as_str().to_owned()));
        }
        for tag in &filter.tags {
            values.push(tag.clone());
            conditions.push(format!(
                "task_id IN (SELECT task_id FROM task_tags WHERE tag = ${})",
                values.len()
            ));
        }
        if let Some(id) = filter.task_id {
            values.push(id.to_string());
            conditions.push(format!("task_id = ${}", values.len()));
        }
        if let Some(group) = &filter.group_id {
            values.push(group.clone());
            conditions.push(format!("group_id = ${}", values.len()));
        }
        if filter.ungrouped {
            conditions.push("group_id IS NULL".to_owned());
        }
        let direction = if filter.newest_first { "DESC" } else { "ASC" };
        let limit = filter.limit.map_or_else(|| i64::from(i32::MAX), i64::from);
        let sql = format!(
            "SELECT {COLUMNS} FROM tasks WHERE {} ORDER BY created {direction}, task_id {direction} LIMIT {limit} OFFSET {}",
            conditions.join(" AND "),
            filter.skip
        );
        let mut query = sqlx::query(assembled(sql));
        for value in &values {
            query = query.bind(value);
        }
        query.fetch_all(&self.pool).await?.iter().map(read).collect()
    }
}

/// A task that is made, as a row of parameters.
#[derive(Serialize)]
pub(crate) struct TaskRow<'a> {
    pub(crate) id: TaskId,
    pub(crate) kind: String,
    pub(crate) name: &'a str,
    pub(crate) r#type: &'a str,
    pub(crate) version: i64,
    pub(crate) owner: &'a str,
    pub(crate) class: &'a str,
    pub(crate) tags: String,
    pub(crate) grp: Option<&'a str>,
    pub(crate) parent: Option<TaskId>,
    pub(crate) restartable: i64,
    pub(crate) traceparent: String,
    pub(crate) tracestate: Option<String>,
}

/// One of its tags.
#[derive(Serialize)]
pub(crate) struct TagRow {
    id: TaskId,
    pub(crate) tag: String,
}

/// What it needs.
#[derive(Serialize)]
pub(crate) struct ClaimRow {
    id: TaskId,
    pub(crate) resource: ResourceKey,
    pub(crate) exclusive: i64,
}

impl<'s> Birth<'s> {
    /// Of a task that is to be made for this submission.
    pub(crate) fn of(submission: &'s Submission<'_>) -> Self {
        Self {
            id: TaskId::new(),
            kind: submission.kind,
            owner: submission.owner.as_str(),
            group_id: submission.group_id.as_deref(),
            parent: submission.parent,
            trace: submission.trace.clone().or_else(TraceContext::current),
        }
    }

    /// What is written of it at this instant.
    pub(crate) fn at(&self, now: Timestamp) -> Written<'s> {
        let kind = self.kind;
        let span = Span::below(self.trace.as_ref(), "task.enqueue", SpanKind::Producer);
        span.set("task.id", &self.id);
        span.set("task.kind", kind.name());
        let trace = span.place();
        let (tags, claims) = (kind.tags(), kind.claims());
        let row = TaskRow {
            id: self.id,
            kind: row::to_json(kind),
            name: kind.name(),
            r#type: kind.task_type(),
            version: kind.schema_version(),
            owner: self.owner,
            class: kind.class().as_str(),
            tags: row::to_json(&tags),
            grp: self.group_id,
            parent: self.parent,
            restartable: kind.is_restartable().into(),
            traceparent: trace.traceparent(),
            tracestate: trace.tracestate(),
        };
        let distinct: BTreeSet<String> = tags.into_iter().collect();
        let tag_of = |tag| TagRow { id: self.id, tag };
        let claim_of = |claim: &Claim| ClaimRow {
            id: self.id,
            exclusive: (claim.mode == LockMode::Exclusive).into(),
            resource: claim.resource.clone(),
        };
        let claim_rows = claims.iter().map(claim_of).collect();
        let newcomer = Newcomer {
            task_id: self.id,
            class: kind.class(),
            owner: Owner::from_stored(self.owner),
            kind_name: kind.name().to_owned(),
            schema_version: kind.schema_version(),
            claims,
            created: now,
        };
        Written {
            row,
            tags: distinct.into_iter().map(tag_of).collect(),
            claims: claim_rows,
            message: Message::made(newcomer).within(Some(trace)),
        }
    }
}

/// The columns of a task's row that are written when it is made.
pub(crate) const BORN_WITH: &str = "task_id, kind, kind_name, task_type, schema_version, owner, class, tags, group_id, parent_id, \
                                    restartable, traceparent, tracestate, created, state, attempt, lost, declined, \
                                    progress_report, spawned_tasks";

/// What all of them have in the last six.
pub(crate) const AT_BIRTH: &str = "'waiting', 0, 0, 0, '{}', '[]'";

impl Tx {
    /// Makes a task that nobody in particular asked for; see [`Tx::submit`].
    pub async fn enqueue(&mut self, kind: &TaskKind) -> Result<TaskId, StoreError> {
        self.submit(&Submission::new(kind, Owner::system())).await
    }

    /// Makes a task: its row, tags, resources and the message that tells the resource manager.
    ///
    /// A request that is the same as one that waits already is answered with that one's task, if what it asks for
    /// comes to the same: nothing that could make a difference was asked for in between, and the waiting task is
    /// not granted before this transaction ends.
    pub async fn submit(&mut self, submission: &Submission<'_>) -> Result<TaskId, StoreError> {
        let now = self.turns_for([submission.kind]).await?;
        let mut births = Vec::new();
        let id = self.conceive(submission, &mut births).await?;
        self.bear(&births, now).await?;
        Ok(id)
    }

    /// Decides which task this request is answered with; one that is to be made is added to `births`.
    async fn conceive<'s>(
        &mut self,
        submission: &'s Submission<'_>,
        births: &mut Vec<Birth<'s>>,
    ) -> Result<TaskId, StoreError> {
        let kind = submission.kind;
        let coalescing = kind.coalescing();
        if let Some(wanted) = &coalescing
            && let Some(waiting) = self.waiting_like(wanted).await?
        {
            return Ok(waiting);
        }
        let birth = Birth::of(submission);
        let id = birth.id;
        let repo = kind.repo_id().as_str();
        if kind.changes_repository() {
            sqlx::query(CLOSE_REQUESTS).bind(repo).execute(self.on()).await?;
        }
        if let Some(Coalescing { scope, options }) = &coalescing {
            sqlx::query(OPEN_REQUEST)
                .bind(scope)
                .bind(options)
                .bind(repo)
                .bind(id.to_string())
                .execute(self.on())
                .await?;
        }
        births.push(birth);
        Ok(id)
    }

    /// The waiting task that this request may be answered with. It can't be granted until this transaction ends:
    /// a grant closes the request, whose row is locked here.
    async fn waiting_like(&mut self, wanted: &Coalescing) -> Result<Option<TaskId>, StoreError> {
        let lock = match self.engine {
            Engine::Postgres => "FOR SHARE",
            Engine::Sqlite => "",
        };
        let found = sqlx::query(assembled(format!("{LIKE_REQUEST} {lock}")))
            .bind(&wanted.scope)
            .bind(&wanted.options)
            .fetch_optional(self.on())
            .await?;
        found.map(|r| row::parsed(&r, "task_id")).transpose()
    }

    /// These tasks stand for no later request any more.
    pub(crate) async fn close_requests(&mut self, tasks: &[TaskId]) -> Result<(), StoreError> {
        if tasks.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "DELETE FROM open_requests WHERE task_id IN (SELECT r.id FROM {})",
            keys(self.engine, &[("id", "text")])
        );
        sqlx::query(assembled(sql))
            .bind(ids_of(tasks))
            .execute(self.on())
            .await?;
        Ok(())
    }

    /// Writes tasks with all that belongs to each, and the messages that tell the resource manager.
    async fn bear(&mut self, births: &[Birth<'_>], now: Timestamp) -> Result<(), StoreError> {
        if births.is_empty() {
            return Ok(());
        }
        let (mut rows, mut tags, mut claims) = (Vec::new(), Vec::new(), Vec::new());
        let mut messages = Vec::with_capacity(births.len());
        for birth in births {
            let written = birth.at(now);
            rows.push(written.row);
            tags.extend(written.tags);
            claims.extend(written.claims);
            messages.push(written.message);
        }
        let fields = [
            ("id", "text"),
            ("kind", "text"),
            ("name", "text"),
            ("type", "text"),
            ("version", "bigint"),
            ("owner", "text"),
            ("class", "text"),
            ("tags", "text"),
            ("grp", "text"),
            ("parent", "text"),
            ("restartable", "bigint"),
            ("traceparent", "text"),
            ("tracestate", "text"),
        ];
        let engine = self.engine;
        let insert_tasks = format!(
            "INSERT INTO tasks ({BORN_WITH}) \
             SELECT r.id, r.kind, r.name, r.type, r.version, r.owner, r.class, r.tags, r.grp, r.parent, r.restartable, \
             r.traceparent, r.tracestate, CAST($2 AS BIGINT), {AT_BIRTH} FROM {}",
            records(engine, &fields)
        );
        let insert_tags = |parameter| {
            format!(
                "INSERT INTO task_tags (task_id, tag) SELECT r.id, r.tag FROM {}",
                records_of(engine, parameter, &[("id", "text"), ("tag", "text")])
            )
        };
        let insert_claims = |parameter| {
            let fields = [("id", "text"), ("resource", "text"), ("exclusive", "bigint")];
            format!(
                "INSERT INTO task_resources (task_id, resource, exclusive, created) \
                 SELECT r.id, r.resource, r.exclusive, CAST($2 AS BIGINT) FROM {}",
                records_of(engine, parameter, &fields)
            )
        };
        let (rows, tags, claims) = (row::to_json(&rows), row::to_json(&tags), row::to_json(&claims));
        let messages = self.leave_rows(messages);
        let sql = match engine {
            // One statement for all four: each is a round trip.
            Engine::Postgres => format!(
                "WITH born AS ({insert_tasks}), tagged AS ({}), claimed AS ({}) {}",
                insert_tags(3),
                insert_claims(4),
                outbox::insertion(engine, 5)
            ),
            Engine::Sqlite => {
                let tell = messages.as_ref().map(|_| outbox::insertion(engine, 5));
                let statements = [
                    Some(insert_tasks),
                    Some(insert_tags(3)),
                    Some(insert_claims(4)),
                    tell,
                ];
                statements.into_iter().flatten().collect::<Vec<_>>().join("; ")
            }
        };
        sqlx::query(assembled(sql))
            .bind(rows)
            .bind(now.micros())
            .bind(tags)
            .bind(claims)
            .bind(messages)
            .execute(self.on())
            .await?;
        Ok(())
    }

    /// Cancels a task that has not begun, or asks its worker to stop. Terminal states never change.
    pub async fn cancel_task(&mut self, id: TaskId) -> Result<CancelOutcome, StoreError> {
        let select = self.locking("SELECT state FROM tasks WHERE task_id = $1 FOR UPDATE");
        let Some(found) = sqlx::query(select)
            .bind(id.to_string())
            .fetch_optional(self.on())
            .await?
        else {
            return Ok(CancelOutcome::Unknown);
        };
        let now = self.now().await?;
        match state(&found)? {
            s if s.is_terminal() => Ok(CancelOutcome::AlreadyEnded),
            TaskState::Running => {
                let ask =
                    "UPDATE tasks SET cancel_requested = COALESCE(cancel_requested, $2) WHERE task_id = $1";
                sqlx::query(ask)
                    .bind(id.to_string())
                    .bind(now.micros())
                    .execute(self.on())
                    .await?;
                Ok(CancelOutcome::Requested)
            }
            _ => {
                let cancel = "UPDATE tasks SET state = 'canceled', finished = $2, cancel_requested = $2 WHERE task_id = $1";
                sqlx::query(cancel)
                    .bind(id.to_string())
                    .bind(now.micros())
                    .execute(self.on())
                    .await?;
                self.release_reservations(&[id]).await?;
                self.close_requests(&[id]).await?;
                self.tell(now, vec![Message::ended(id)]).await?;
                Ok(CancelOutcome::Canceled)
            }
        }
    }

    /// Deletes ended tasks of these states; answers how many.
    pub async fn purge_tasks(&mut self, states: &[TaskState]) -> Result<u64, StoreError> {
        let ended: Vec<_> = states.iter().filter(|s| s.is_terminal()).collect();
        if ended.is_empty() {
            return Ok(0);
        }
        let sql = format!(
            "DELETE FROM tasks WHERE state IN ({})",
            placeholders(1, ended.len())
        );
        let mut query = sqlx::query(assembled(sql));
        for state in ended {
            query = query.bind(state.as_str());
        }
        Ok(query.execute(self.on()).await?.rows_affected())
    }

    /// Deletes tasks that ended before `before`, at most `limit`; answers how many. What has not ended is never
    /// touched, however old it is, nor is what it belongs to: the task that made it, and its group.
    pub async fn purge_ended_before(&mut self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        let sql = "DELETE FROM tasks WHERE task_id IN (SELECT t.task_id FROM tasks t WHERE t.finished < $1 \
                   AND t.state IN ('finished', 'error', 'canceled', 'skipped') \
                   AND NOT EXISTS (SELECT 1 FROM tasks c WHERE c.parent_id = t.task_id \
                   AND c.state IN ('waiting', 'accepted', 'running')) \
                   AND NOT EXISTS (SELECT 1 FROM tasks g WHERE g.group_id = t.group_id \
                   AND g.state IN ('waiting', 'accepted', 'running')) \
                   ORDER BY t.finished LIMIT $2)";
        let done = sqlx::query(sql)
            .bind(before.micros())
            .bind(i64::from(limit))
            .execute(self.on())
            .await?;
        Ok(done.rows_affected())
    }

    /// Frees what these hold.
    pub(crate) async fn release_reservations(&mut self, tasks: &[TaskId]) -> Result<(), StoreError> {
        let sql = format!(
            "DELETE FROM reservations WHERE task_id IN (SELECT r.id FROM {})",
            keys(self.engine, &[("id", "text")])
        );
        sqlx::query(assembled(sql))
            .bind(ids_of(tasks))
            .execute(self.on())
            .await?;
        Ok(())
    }
}

pub(crate) fn state(found: &AnyRow) -> Result<TaskState, StoreError> {
    let text: String = found.try_get("state")?;
    TaskState::parse(&text).ok_or_else(|| StoreError::corrupt("tasks.state", format!("unknown state {text}")))
}

fn read(found: &AnyRow) -> Result<Task, StoreError> {
    Ok(Task {
        id: row::parsed(found, "task_id")?,
        task_type: found.try_get("task_type")?,
        state: state(found)?,
        tags: row::json(found, "tags")?,
        group_id: found.try_get("group_id")?,
        owner: Owner::from_stored(found.try_get::<String, _>("owner")?),
        attempt: Attempt(found.try_get("attempt")?),
        worker_name: found.try_get::<Option<String>, _>("worker_name")?.map(WorkerName),
        created: row::instant(found, "created")?,
        started: row::optional_instant(found, "started")?,
        finished: row::optional_instant(found, "finished")?,
        cancel_requested: row::optional_instant(found, "cancel_requested")?,
        progress_report: row::json(found, "progress_report")?,
        result: row::optional_json(found, "result")?,
        error: row::optional_json(found, "error")?,
        spawned_tasks: row::json(found, "spawned_tasks")?,
    })
}
