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
        message = format!("{message}; {before} task(s) that came before wait for the same resources");
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{collections::BTreeMap, time::Duration};

    use http::StatusCode;
    use pulp_model::{TaskId, task::TaskClass};
    use pulp_store::workers::Serving;
    use serde_json::{Value, json};

    use crate::testing::Api;

    async fn why(api: &Api, id: TaskId) -> Value {
        let reply = api.get(&format!("/tasks/{id}/wait_reason/")).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
        reply.body
    }

    async fn serve(api: &Api) {
        let slots = BTreeMap::from([(TaskClass::Publish, 2), (TaskClass::Interactive, 1)]);
        let serving = Serving::of_this_release(slots);
        let ttl = Duration::from_mins(10);
        api.store
            .register_serving("worker", "w", "node1", true, ttl, &serving)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_task_is_told_why_it_waits_until_it_has_ended() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        let publish = json!({"id": "web"});
        let holder = api
            .post("/repositories/r/actions/publish/", &publish)
            .await
            .task();
        let alone = why(&api, holder).await;
        assert_eq!(alone["reason"], "no_worker_for_class");
        let reasons: Vec<&Value> = alone["reasons"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| &r["reason"])
            .collect();
        assert_eq!(reasons, ["no_worker_for_class", "no_resource_manager", "unsent"]);
        assert_eq!(alone["position"], json!({"resources": 1, "class": 1, "owner": 1}));

        serve(&api).await;
        api.claimed(holder).await;
        let running = why(&api, holder).await;
        assert_eq!(
            (&running["waits"], &running["reason"]),
            (&json!(false), &Value::Null)
        );
        assert!(
            running["message"]
                .as_str()
                .unwrap()
                .contains("reserved_resource_worker-0@node1")
        );

        let blocked = api.delete("/repositories/r/").await.task();
        let told = why(&api, blocked).await;
        assert_eq!(
            (&told["reason"], &told["waits"]),
            (&json!("resources"), &json!(true))
        );
        assert_eq!(
            (&told["owner"], &told["kind"]),
            (&json!("user:admin"), &json!("delete_repository"))
        );
        let line = &told["resources"][0];
        assert_eq!(
            (&line["resource"], &line["mode"], &line["free"]),
            (&json!("repository:r"), &json!("exclusive"), &json!(false))
        );
        let by = &line["held_by"][0];
        assert_eq!(
            (&by["task_id"], &by["mode"], &by["state"], &by["worker_name"]),
            (
                &json!(holder),
                &json!("shared"),
                &json!("running"),
                &json!("reserved_resource_worker-0@node1")
            )
        );
        assert!(by["since"].as_str().unwrap().ends_with('Z'));
        let message = told["message"].as_str().unwrap();
        assert!(
            message.contains(&holder.to_string()) && message.contains("repository:r is held"),
            "{message}"
        );

        let behind = api
            .post("/repositories/r/actions/publish/", &json!({"id": "web"}))
            .await
            .task();
        let told = why(&api, behind).await;
        assert_eq!(told["position"]["resources"], 2);
        let repository = &told["resources"][1];
        assert_eq!(repository["before"][0]["task_id"], json!(blocked));

        api.delete(&format!("/tasks/{blocked}/")).await;
        let ended = why(&api, blocked).await;
        assert!(
            ended["message"].as_str().unwrap().ends_with(": canceled"),
            "{ended}"
        );
        assert_eq!(ended["position"], Value::Null);
        for unknown in [TaskId::new().to_string(), "nope".to_owned()] {
            for what in ["wait_reason", "timeline"] {
                let reply = api.get(&format!("/tasks/{unknown}/{what}/")).await;
                assert_eq!(reply.status, StatusCode::NOT_FOUND);
            }
        }
    }

    #[tokio::test]
    async fn a_timeline_tells_what_befell_a_task() {
        let api = Api::new().await;
        api.docker_repository("r").await;
        let id = api.delete("/repositories/r/").await.task();
        let lease = api.claimed(id).await;
        api.store.hand_back(&lease).await.unwrap();
        api.delete(&format!("/tasks/{id}/")).await;
        let events = api.get(&format!("/tasks/{id}/timeline/")).await.body;
        let events = events.as_array().unwrap();
        let told: Vec<&str> = events.iter().map(|e| e["event"].as_str().unwrap()).collect();
        assert_eq!(
            told,
            [
                "created",
                "granted",
                "claimed",
                "handed_back",
                "cancel_requested",
                "ended"
            ]
        );
        assert_eq!(events[2]["worker_name"], "reserved_resource_worker-0@node1");
        assert_eq!(
            (&events[3]["attempt"], &events[5]["detail"]),
            (&json!(1), &json!("canceled"))
        );
        // With milliseconds.
        assert_eq!(
            events[0]["at"].as_str().unwrap().len(),
            "2026-01-01T00:00:00.000Z".len()
        );
    }
}
