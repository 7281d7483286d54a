//! Why a task waits, in words and for programs.

use pulp_model::{
    TaskId,
    task::{LockMode, TaskState},
    wait::{Contender, Explanation, Line, Parked, Reason, Situation, explain},
};
use serde_json::{Value, json};

use crate::PREFIX;

/// Of those that come first on a resource, so many are listed; `position` counts them all.
const LISTED: usize = 20;

/// The answer to `wait_reason`.
pub(crate) fn wait_reason(s: &Situation) -> Value {
    let task = &s.task;
    let explanation = explain(s);
    let reasons: Vec<Value> = explanation
        .reasons
        .iter()
        .map(|r| reason(s, &explanation, r))
        .collect();
    let main = reasons.first();
    let message = main.map_or_else(|| not_waiting(s), |main| main["message"].clone());
    let position = (task.state == TaskState::Waiting).then(|| {
        json!({
            "resources": s.before_on_resources + 1,
            "class": s.service.before + 1,
            "owner": s.service.before_of_owner + 1,
        })
    });
    let waits = main.is_some();
    let service = waits.then(
        || json!({"slots": s.service.slots, "running": s.service.running, "granted": s.service.granted}),
    );
    json!({
        "_href": format!("{PREFIX}/tasks/{}/wait_reason/", task.id),
        "task_id": task.id,
        "kind": task.kind,
        "class": task.class,
        "owner": task.owner,
        "state": task.state,
        "since": task.since,
        "worker_name": task.worker,
        "waits": waits,
        "reason": main.map(|main| main["reason"].clone()),
        "message": message,
        "reasons": reasons,
        "position": position,
        "resources": explanation.lines.iter().map(line).collect::<Vec<_>>(),
        "service": service,
    })
}

fn line(line: &Line<'_>) -> Value {
    json!({
        "resource": line.claim.resource,
        "mode": line.claim.mode,
        "free": line.is_free,
        "held_by": line.held_by.iter().map(contender).collect::<Vec<_>>(),
        "before": line.before.iter().take(LISTED).map(contender).collect::<Vec<_>>(),
    })
}

fn contender((c, mode): &(&Contender, LockMode)) -> Value {
    json!({
        "task_id": c.id,
        "_href": href(c.id),
        "kind": c.kind,
        "state": c.state,
        "mode": mode,
        "owner": c.owner,
        "worker_name": c.worker,
        "since": c.granted.unwrap_or(c.created),
    })
}

fn href(id: TaskId) -> String {
    format!("{PREFIX}/tasks/{id}/")
}

/// A reason with what belongs to it.
fn reason(s: &Situation, explanation: &Explanation<'_>, reason: &Reason) -> Value {
    let task = &s.task;
    let class = task.class.as_str();
    let mut view = json!({"reason": reason.as_str()});
    let message = match reason {
        Reason::NoWorkerForClass => format!(
            "no live worker takes tasks of the class {class}; start one, or set its tasks.slots.{class} above 0"
        ),
        Reason::NoWorkerForKind(known) => {
            view["schema_version"] = json!(task.schema_version);
            view["known_version"] = json!(known);
            match known {
                Some(known) => format!(
                    "its arguments have schema version {} and live workers read {} up to {known}; it waits for a worker \
                     of a newer release",
                    task.schema_version, task.kind
                ),
                None => format!(
                    "no live worker knows the task kind {}; it waits for a worker of a newer release",
                    task.kind
                ),
            }
        }
        Reason::Parked(until, why) => {
            view["until"] = json!(until);
            let (cause, detail) = match why {
                Parked::Declined(detail) => ("declined", format!("a worker could not run it ({detail})")),
                Parked::PutOff(Some(detail)) => ("put_off", detail.clone()),
                _ => ("put_off", "it was put off".to_owned()),
            };
            view["cause"] = json!(cause);
            format!("not before {until}: {detail}")
        }
        Reason::Resources => resources(s, explanation),
        Reason::NoResourceManager => {
            "no resource manager leads; a standby takes over within seconds, else start one".to_owned()
        }
        Reason::Unsent => "the message about it has not reached the broker yet; is the broker up?".to_owned(),
        Reason::Slot if task.state == TaskState::Accepted => format!(
            "granted; the {} slot(s) of the class {class} are taken by {} running task(s) and {} granted before it",
            s.service.slots, s.service.running, s.service.granted_before
        ),
        Reason::Slot => format!(
            "the {} slot(s) of the class {class} are taken; {} task(s) came before it, {} of them of the same owner, and \
             owners take turns",
            s.service.slots, s.service.before, s.service.before_of_owner
        ),
        Reason::Imminent => "nothing holds it up; it begins within moments".to_owned(),
    };
    view["message"] = json!(message);
    view
}

/// The first that is in its way, and how many more there are.
fn resources(s: &Situation, explanation: &Explanation<'_>) -> String {
    let mut in_the_way = Vec::new();
    for line in &explanation.lines {
        let conflicts =
            |mode: LockMode| mode == LockMode::Exclusive || line.claim.mode == LockMode::Exclusive;
        let held = line.held_by.iter().filter(|(_, mode)| conflicts(*mode));
        in_the_way.extend(held.map(|(c, mode)| (line.claim, *c, *mode)));
    }
    for line in &explanation.lines {
        in_the_way.extend(line.before.iter().map(|(c, mode)| (line.claim, *c, *mode)));
    }
    let Some((claim, first, mode)) = in_the_way.first() else {
        return "others hold what it needs".to_owned();
    };
    let resource = &claim.resource;
    let how = match mode {
        LockMode::Shared => "together with others",
        LockMode::Exclusive => "alone",
    };
    let mut message = match (first.granted, &first.worker) {
        (Some(since), Some(worker)) => {
            format!(
                "{resource} is held {how} by {} {} since {since}, on {worker}",
                first.kind, first.id
            )
        }
        (Some(since), None) => format!(
            "{resource} is held {how} by {} {} since {since}, which waits for a worker",
            first.kind, first.id
        ),
        (None, _) => format!(
            "{} {} came before and goes first on {resource}",
            first.kind, first.id
        ),
    };
    let before = s.before_on_resources;
    if first.granted.is_some() && before > 0 {
        message.push_str(&format!(
            "; {before} task(s) that came before wait for the same resources"
        ));
    }
    message
}

fn not_waiting(s: &Situation) -> Value {
    let task = &s.task;
    let message = match (task.state, &task.worker) {
        (TaskState::Running, Some(worker)) => {
            let asked = task.cancel_requested;
            let asked = asked
                .map(|at| format!("; it was asked to stop at {at}"))
                .unwrap_or_default();
            format!("it runs since {} on {worker}{asked}", task.since)
        }
        (state, _) if state.is_terminal() => format!("it ended at {}: {}", task.since, state.as_str()),
        (state, _) => format!("it is {} since {}", state.as_str(), task.since),
    };
    json!(message)
}
