//! What is needed to say why a task waits, read at one instant.

use std::collections::BTreeMap;

use pulp_model::{
    TaskId, Timestamp, WorkerName,
    task::{Owner, TaskState},
    wait::{Contender, Parked, Service, Situation, Subject},
};
use sqlx::{
    Any, Row as _,
    any::{AnyArguments, AnyRow},
    query::Query,
};

use crate::{
    Store, StoreError, Tx,
    engine::{assembled, placeholders},
    grants::{ROLE, claim, class},
    row,
    tasks::state,
    timeline::EventKind,
    workers::Serving,
};

/// Of a long line, so many tasks are read.
const LONGEST_LINE: i64 = 1000;

impl Store {
    /// A task and all that may hold it up; none if there is no such task. The cost grows with what is live on its
    /// resources and in its class.
    pub async fn situation(&self, id: TaskId) -> Result<Option<Situation>, StoreError> {
        let now = self.now().await?;
        // One snapshot for all statements: nobody is told that it waits for somebody who waits for it.
        let mut tx = self.begin_snapshot().await?;
        let Some((task, accepted)) = subject(&mut tx, id).await? else {
            return Ok(None);
        };
        let mut situation = Situation {
            now,
            contenders: Vec::new(),
            before_on_resources: 0,
            service: Service::default(),
            is_led: false,
            is_unsent: false,
            task,
        };
        let task = &situation.task;
        if task.state == TaskState::Waiting && !task.claims.is_empty() {
            situation.contenders = holders(&mut tx, task).await?;
            let (before, count) = line(&mut tx, task, now).await?;
            situation.contenders.extend(before);
            situation.before_on_resources = count;
        }
        if matches!(task.state, TaskState::Waiting | TaskState::Accepted) {
            situation.service = service(&mut tx, task, accepted, now.micros()).await?;
            let led = "SELECT COUNT(*) AS n FROM leases WHERE role = $1 AND expires >= $2";
            let led = sqlx::query(led).bind(ROLE).bind(now.micros());
            situation.is_led = count(&led.fetch_one(tx.on()).await?)? > 0;
            let unsent = "SELECT COUNT(*) AS n FROM outbox WHERE body LIKE $1";
            let unsent = sqlx::query(unsent).bind(format!("%{id}%"));
            situation.is_unsent = count(&unsent.fetch_one(tx.on()).await?)? > 0;
        }
        Ok(Some(situation))
    }
}

/// The task itself, and when it was granted.
async fn subject(tx: &mut Tx, id: TaskId) -> Result<Option<(Subject, Option<i64>)>, StoreError> {
    let sql = "SELECT state, kind_name, schema_version, class, owner, created, accepted, started, finished, not_before, \
               worker_name, cancel_requested FROM tasks WHERE task_id = $1";
    let found = sqlx::query(sql).bind(id.to_string());
    let Some(found) = found.fetch_optional(tx.on()).await? else {
        return Ok(None);
    };
    let sql = "SELECT resource, exclusive FROM task_resources WHERE task_id = $1 ORDER BY resource";
    let rows = sqlx::query(sql).bind(id.to_string()).fetch_all(tx.on()).await?;
    let claims = rows.iter().map(claim).collect::<Result<_, _>>()?;
    // Why it waits again, if it does: what ended its last attempt.
    let sql = "SELECT at, event, detail FROM task_events WHERE task_id = $1 AND event NOT IN ('granted', 'claimed') \
               ORDER BY at DESC LIMIT 1";
    let event = sqlx::query(sql)
        .bind(id.to_string())
        .fetch_optional(tx.on())
        .await?;
    let state = state(&found)?;
    let created = row::instant(&found, "created")?;
    let accepted: Option<i64> = found.try_get("accepted")?;
    let mut since = match state {
        TaskState::Accepted => row::optional_instant(&found, "accepted")?,
        TaskState::Running => row::optional_instant(&found, "started")?,
        _ if state.is_terminal() => row::optional_instant(&found, "finished")?,
        _ => None,
    };
    let mut parked = Parked::PutOff(None);
    if let Some(event) = &event {
        if state == TaskState::Waiting {
            since = row::optional_instant(event, "at")?;
        }
        let detail: Option<String> = event.try_get("detail")?;
        parked = if event.try_get::<String, _>("event")? == EventKind::Declined.as_str() {
            Parked::Declined(detail.unwrap_or_default())
        } else {
            Parked::PutOff(detail)
        };
    }
    let task = Subject {
        id,
        state,
        kind: found.try_get("kind_name")?,
        schema_version: found.try_get("schema_version")?,
        class: class(&found)?,
        owner: Owner::from_stored(found.try_get::<String, _>("owner")?),
        created,
        since: since.unwrap_or(created),
        parked: row::optional_instant(&found, "not_before")?.map(|until| (until, parked)),
        worker: found.try_get::<Option<String>, _>("worker_name")?.map(WorkerName),
        cancel_requested: row::optional_instant(&found, "cancel_requested")?,
        claims,
    };
    Ok(Some((task, accepted)))
}

/// Who holds any of its resources.
async fn holders(tx: &mut Tx, task: &Subject) -> Result<Vec<Contender>, StoreError> {
    let sql = assembled(format!(
        "SELECT t.task_id, t.kind_name, t.state, t.owner, t.worker_name, t.created, v.granted, v.resource, v.exclusive \
         FROM reservations v JOIN tasks t ON t.task_id = v.task_id \
         WHERE v.task_id <> $1 AND v.resource IN ({}) ORDER BY v.granted, t.created, t.task_id",
        placeholders(2, task.claims.len())
    ));
    let query = with_resources(sqlx::query(sql).bind(task.id.to_string()), task);
    contenders(&query.fetch_all(tx.on()).await?)
}

/// Binds the resources that a task claims.
fn with_resources<'q>(
    query: Query<'q, Any, AnyArguments>,
    task: &'q Subject,
) -> Query<'q, Any, AnyArguments> {
    let resources = task.claims.iter().map(|claim| claim.resource.as_str());
    resources.fold(query, Query::bind)
}

/// Who came before it and waits for any of its resources: the first of them, and how many in all.
async fn line(tx: &mut Tx, task: &Subject, now: Timestamp) -> Result<(Vec<Contender>, u64), StoreError> {
    let before = format!(
        "FROM task_resources r JOIN tasks t ON t.task_id = r.task_id \
         WHERE t.state = 'waiting' AND (t.created < $1 OR (t.created = $1 AND t.task_id < $2)) \
         AND (t.steps_aside = 0 OR t.not_before <= $3) AND r.resource IN ({})",
        placeholders(4, task.claims.len())
    );
    let bound = |sql: String| {
        let query = sqlx::query(assembled(sql))
            .bind(task.created.micros())
            .bind(task.id.to_string())
            .bind(now.micros());
        with_resources(query, task)
    };
    let query = bound(format!("SELECT COUNT(DISTINCT t.task_id) AS n {before}"));
    let in_all = count(&query.fetch_one(tx.on()).await?)?;
    let query = bound(format!(
        "SELECT t.task_id, t.kind_name, t.state, t.owner, t.worker_name, t.created, t.accepted AS granted, r.resource, r.exclusive \
         {before} ORDER BY t.created, t.task_id LIMIT {LONGEST_LINE}"
    ));
    Ok((contenders(&query.fetch_all(tx.on()).await?)?, in_all))
}

/// One row a claim, those of one task beside each other, to one contender a task.
fn contenders(rows: &[AnyRow]) -> Result<Vec<Contender>, StoreError> {
    let mut found: Vec<Contender> = Vec::new();
    let mut places: BTreeMap<TaskId, usize> = BTreeMap::new();
    for r in rows {
        let id: TaskId = row::parsed(r, "task_id")?;
        if let Some(known) = places.get(&id).and_then(|at| found.get_mut(*at)) {
            known.claims.push(claim(r)?);
            continue;
        }
        places.insert(id, found.len());
        found.push(Contender {
            id,
            kind: r.try_get("kind_name")?,
            state: state(r)?,
            owner: Owner::from_stored(r.try_get::<String, _>("owner")?),
            worker: r.try_get::<Option<String>, _>("worker_name")?.map(WorkerName),
            created: row::instant(r, "created")?,
            granted: row::optional_instant(r, "granted")?,
            claims: vec![claim(r)?],
        });
    }
    Ok(found)
}

/// How its class is served, and what is in it.
async fn service(
    tx: &mut Tx,
    task: &Subject,
    accepted: Option<i64>,
    now: i64,
) -> Result<Service, StoreError> {
    let mut service = Service::default();
    let sql = "SELECT slots, supports FROM workers WHERE expires >= $1 AND slots <> '{}'";
    for r in sqlx::query(sql).bind(now).fetch_all(tx.on()).await? {
        let worker = Serving {
            slots: row::json(&r, "slots")?,
            supports: row::json(&r, "supports")?,
        };
        let slots = worker.slots.get(&task.class).copied().unwrap_or(0);
        if slots > 0 {
            service.slots += u64::from(slots);
            service.reads = service.reads.max(worker.supports.get(&task.kind).copied());
        }
    }
    let sql = "SELECT state, COUNT(*) AS n FROM tasks WHERE class = $1 AND state IN ('accepted', 'running') AND finished IS NULL GROUP BY state";
    let rows = sqlx::query(sql).bind(task.class.as_str());
    for r in rows.fetch_all(tx.on()).await? {
        match state(&r)? {
            TaskState::Running => service.running = count(&r)?,
            _ => service.granted = count(&r)?,
        }
    }
    if let Some(accepted) = accepted {
        let sql = "SELECT COUNT(*) AS n FROM tasks WHERE class = $1 AND state = 'accepted' AND finished IS NULL AND task_id <> $2 \
                   AND (accepted < $3 OR (accepted = $3 AND task_id < $2))";
        let query = sqlx::query(sql)
            .bind(task.class.as_str())
            .bind(task.id.to_string())
            .bind(accepted);
        service.granted_before = count(&query.fetch_one(tx.on()).await?)?;
    }
    let sql = "SELECT COUNT(*) AS n, COUNT(CASE WHEN owner = $4 THEN 1 END) AS of_owner FROM tasks WHERE class = $1 \
               AND state = 'waiting' AND finished IS NULL AND (created < $2 OR (created = $2 AND task_id < $3))";
    let query = sqlx::query(sql)
        .bind(task.class.as_str())
        .bind(task.created.micros())
        .bind(task.id.to_string())
        .bind(task.owner.as_str());
    let before = query.fetch_one(tx.on()).await?;
    service.before = count(&before)?;
    service.before_of_owner = u64::try_from(before.try_get::<i64, _>("of_owner")?).unwrap_or(0);
    Ok(service)
}

fn count(found: &AnyRow) -> Result<u64, StoreError> {
    Ok(u64::try_from(found.try_get::<i64, _>("n")?).unwrap_or(0))
}
