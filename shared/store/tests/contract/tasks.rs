//! Tasks as clients see them.

use pulp_model::{
    TaskId,
    task::{Newcomer, TaskKind, TaskState},
};
use pulp_store::{
    attempts::Outcome,
    grants::LiveTask,
    tasks::{CancelOutcome, TaskFilter},
};
use serde_json::{Map, json};

use crate::support::{Bed, LONG, claimed, contract, delete, finish, publish};

contract!(
    a_new_task_is_row_tags_resources_and_message_together,
    a_task_that_is_not_committed_leaves_nothing,
    tasks_are_searched_by_state_tag_id_and_group,
    tasks_are_paged_in_the_order_of_their_creation,
    canceling_a_waiting_task_ends_it_and_tells_the_resource_manager,
    canceling_an_accepted_task_frees_its_resources,
    canceling_a_running_task_asks_its_worker_once,
    canceling_an_ended_or_unknown_task_changes_nothing,
    purging_takes_only_ended_tasks_of_the_states_named,
    a_task_is_over_when_it_has_ended_or_is_gone_and_not_before,
    tasks_are_forgotten_by_the_time_of_their_end_a_few_at_once,
);

async fn a_new_task_is_row_tags_resources_and_message_together(bed: &Bed) {
    let kind = TaskKind::UpdateDistributor {
        repo_id: "r".parse().unwrap(),
        distributor_id: "d".parse().unwrap(),
        config: Map::new(),
        auto_publish: Some(true),
    };
    let id = bed.enqueue(&kind).await;
    let task = bed.task_of(id).await;
    assert_eq!(task.state, TaskState::Waiting);
    assert_eq!(task.task_type, kind.task_type());
    assert_eq!(task.tags, kind.tags());
    assert_eq!(task.attempt.0, 0);
    assert_eq!(
        (task.started, task.finished, task.cancel_requested),
        (None, None, None)
    );
    assert_eq!(
        (task.worker_name, task.result, task.error, task.group_id),
        (None, None, None, None)
    );
    assert_eq!(task.progress_report, json!({}));
    assert!(task.spawned_tasks.is_empty());

    let live = bed.live_tasks().await.unwrap();
    assert_eq!(live.len(), 1);
    assert_eq!(
        (live[0].id, live[0].state, live[0].class),
        (id, TaskState::Waiting, kind.class())
    );
    assert_eq!(live[0].claims, kind.claims());

    let batch = bed.outbox_batch(10).await.unwrap();
    assert_eq!(batch.rows.len(), 1);
    assert_eq!(batch.rows[0].queue, "intake");
    let mut body: serde_json::Value = serde_json::from_str(&batch.rows[0].body()).unwrap();
    // What the message says of the task is what its row says.
    let made: Newcomer = serde_json::from_value(body["made"].take()).unwrap();
    assert_eq!(LiveTask::from(made), live[0]);
    assert_eq!(
        body,
        json!({"v": 1, "type": "submitted", "task_id": id, "made": null})
    );
}

async fn a_task_that_is_not_committed_leaves_nothing(bed: &Bed) {
    let mut tx = bed.begin().await.unwrap();
    let id = tx.enqueue(&delete("r")).await.unwrap();
    drop(tx);
    assert!(bed.task(id).await.unwrap().is_none());
    for table in ["tasks", "task_tags", "task_resources", "outbox"] {
        assert_eq!(
            bed.number(&format!("SELECT COUNT(*) FROM {table}")).await,
            0,
            "{table}"
        );
    }
}

async fn tasks_are_searched_by_state_tag_id_and_group(bed: &Bed) {
    let a = bed.enqueue(&delete("a")).await;
    let b = bed.enqueue(&publish("b", "d")).await;
    let c = bed.enqueue(&publish("a", "d")).await;
    bed.cancel(c).await;
    bed.execute(&format!("UPDATE tasks SET group_id = 'g' WHERE task_id = '{b}'"))
        .await;
    let search = async |filter: TaskFilter| -> Vec<_> {
        bed.search_tasks(&filter)
            .await
            .unwrap()
            .iter()
            .map(|t| t.id)
            .collect()
    };
    let tags = |tags: &[&str]| TaskFilter {
        tags: tags.iter().map(ToString::to_string).collect(),
        ..TaskFilter::default()
    };
    assert_eq!(search(TaskFilter::default()).await, [a, b, c]);
    assert_eq!(search(tags(&["pulp:repository:a"])).await, [a, c]);
    assert_eq!(
        search(tags(&["pulp:repository:a", "pulp:action:publish"])).await,
        [c]
    );
    assert_eq!(
        search(tags(&["pulp:repository:a", "pulp:repository:b"])).await,
        []
    );
    assert_eq!(search(tags(&["pulp:repository:%"])).await, []);
    let states = |states: &[TaskState]| TaskFilter {
        states: states.to_vec(),
        ..TaskFilter::default()
    };
    assert_eq!(search(states(&[TaskState::Waiting])).await, [a, b]);
    assert_eq!(
        search(states(&[TaskState::Waiting, TaskState::Canceled])).await,
        [a, b, c]
    );
    assert_eq!(search(states(&[TaskState::Running])).await, []);
    let all_at_once = TaskFilter {
        states: vec![TaskState::Waiting, TaskState::Accepted],
        tags: vec!["pulp:action:publish".to_owned()],
        task_id: Some(b),
        ..TaskFilter::default()
    };
    assert_eq!(search(all_at_once.clone()).await, [b]);
    assert_eq!(
        search(TaskFilter {
            ungrouped: true,
            ..all_at_once
        })
        .await,
        []
    );
    assert_eq!(
        search(TaskFilter {
            ungrouped: true,
            ..TaskFilter::default()
        })
        .await,
        [a, c]
    );
}

async fn tasks_are_paged_in_the_order_of_their_creation(bed: &Bed) {
    let mut ids = Vec::new();
    for n in 0..7 {
        ids.push(bed.enqueue(&delete(&format!("r{n}"))).await);
    }
    let page = async |newest_first, skip, limit| -> Vec<_> {
        let filter = TaskFilter {
            newest_first,
            skip,
            limit,
            ..TaskFilter::default()
        };
        bed.search_tasks(&filter)
            .await
            .unwrap()
            .iter()
            .map(|t| t.id)
            .collect()
    };
    assert_eq!(page(false, 0, Some(3)).await, ids[..3]);
    assert_eq!(page(false, 3, Some(3)).await, ids[3..6]);
    assert_eq!(page(false, 6, None).await, ids[6..]);
    assert_eq!(page(false, 7, None).await, []);
    assert_eq!(page(false, 0, Some(0)).await, []);
    ids.reverse();
    assert_eq!(page(true, 2, Some(4)).await, ids[2..6]);
    assert_eq!(page(true, 0, Some(u32::MAX)).await, ids);
}

/// How often the resource manager is told that `id` has ended.
async fn told_ended(bed: &Bed, id: TaskId) -> i64 {
    bed.number(&format!(
        "SELECT COUNT(*) FROM outbox WHERE queue = 'intake' AND body LIKE '%\"ended\"%' AND body LIKE '%{id}%'"
    ))
    .await
}

async fn canceling_a_waiting_task_ends_it_and_tells_the_resource_manager(bed: &Bed) {
    let id = bed.enqueue(&delete("r")).await;
    assert_eq!(bed.cancel(id).await, CancelOutcome::Canceled);
    let task = bed.task_of(id).await;
    assert_eq!(task.state, TaskState::Canceled);
    assert!(task.finished.is_some());
    assert_eq!(told_ended(bed, id).await, 1);
    assert!(bed.live_tasks().await.unwrap().is_empty());
}

async fn canceling_an_accepted_task_frees_its_resources(bed: &Bed) {
    let epoch = bed.lead().await;
    let (first, second) = (bed.enqueue(&delete("r")).await, bed.enqueue(&delete("r")).await);
    let attempt = bed.grant(epoch, first, &delete("r")).await.unwrap();
    assert_eq!(bed.cancel(first).await, CancelOutcome::Canceled);
    assert!(bed.grant(epoch, second, &delete("r")).await.is_some());
    // The message of the canceled grant still comes to a worker.
    let worker = bed.worker(LONG).await;
    let late = bed.claim(first, attempt, &worker).await.unwrap();
    assert!(matches!(late, pulp_store::ClaimOutcome::Refused), "{late:?}");
    assert_eq!(bed.task_of(first).await.state, TaskState::Canceled);
}

async fn canceling_a_running_task_asks_its_worker_once(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let task = bed.running(epoch, &worker, &delete("r")).await;
    let id = task.lease.task_id();
    assert_eq!(bed.cancel(id).await, CancelOutcome::Requested);
    let asked = bed.task_of(id).await;
    assert_eq!(asked.state, TaskState::Running);
    assert!(asked.cancel_requested.is_some());
    crate::support::tick(bed).await;
    assert_eq!(bed.cancel(id).await, CancelOutcome::Requested);
    assert_eq!(bed.task_of(id).await, asked, "the first request counts");
    assert_eq!(told_ended(bed, id).await, 0);
}

async fn canceling_an_ended_or_unknown_task_changes_nothing(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let outcomes = [
        Outcome::Finished(json!(1)),
        Outcome::Skipped(json!(2)),
        Outcome::Failed(pulp_model::CodedError::new(pulp_model::ErrorCode::INTERNAL, "x")),
        Outcome::Canceled,
    ];
    for outcome in outcomes {
        let task = bed.running(epoch, &worker, &delete("r")).await;
        let tx = bed.begin_fenced(&task.lease).await.unwrap();
        tx.finish(&outcome, &json!({})).await.unwrap();
        let ended = bed.task_of(task.lease.task_id()).await;
        assert!(ended.state.is_terminal());
        assert_eq!(bed.cancel(ended.id).await, CancelOutcome::AlreadyEnded);
        assert_eq!(bed.task_of(ended.id).await, ended);
    }
    assert_eq!(bed.cancel(TaskId::new()).await, CancelOutcome::Unknown);
}

async fn purging_takes_only_ended_tasks_of_the_states_named(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let waiting = bed.enqueue(&delete("waiting")).await;
    let running = bed.running(epoch, &worker, &delete("running")).await;
    let canceled = bed.enqueue(&delete("canceled")).await;
    bed.cancel(canceled).await;
    let finished = bed.enqueue(&delete("finished")).await;
    let attempt = bed.grant(epoch, finished, &delete("finished")).await.unwrap();
    let lease = claimed(bed.claim(finished, attempt, &worker).await.unwrap()).lease;
    finish(bed.begin_fenced(&lease).await.unwrap()).await;

    let purge = async |states: &[TaskState]| {
        let mut tx = bed.begin().await.unwrap();
        let n = tx.purge_tasks(states).await.unwrap();
        tx.commit().await.unwrap();
        n
    };
    let live = [TaskState::Waiting, TaskState::Accepted, TaskState::Running];
    assert_eq!(purge(&[]).await, 0);
    assert_eq!(purge(&live).await, 0);
    assert_eq!(
        purge(&[TaskState::Finished, TaskState::Error, TaskState::Running]).await,
        1
    );
    assert!(bed.task(finished).await.unwrap().is_none());
    assert!(bed.task(canceled).await.unwrap().is_some());
    assert_eq!(purge(&TaskState::ALL).await, 1);
    let left: Vec<_> = bed
        .search_tasks(&TaskFilter::default())
        .await
        .unwrap()
        .iter()
        .map(|t| t.id)
        .collect();
    assert_eq!(left, [waiting, running.lease.task_id()]);
    assert_eq!(
        bed.number("SELECT COUNT(*) FROM task_tags").await,
        (delete("waiting").tags().len() * 2) as i64
    );
}

async fn a_task_is_over_when_it_has_ended_or_is_gone_and_not_before(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let waiting = bed.enqueue(&delete("waiting")).await;
    let accepted = bed.enqueue(&delete("accepted")).await;
    bed.grant(epoch, accepted, &delete("accepted")).await.unwrap();
    let running = bed.running(epoch, &worker, &delete("running")).await;
    let canceled = bed.enqueue(&delete("canceled")).await;
    bed.cancel(canceled).await;
    let unknown = TaskId::new();
    let all = [waiting, accepted, running.lease.task_id(), canceled, unknown];
    assert_eq!(bed.tasks_over(&all).await.unwrap(), [canceled, unknown].into());
    assert!(bed.tasks_over(&[]).await.unwrap().is_empty());
}

async fn tasks_are_forgotten_by_the_time_of_their_end_a_few_at_once(bed: &Bed) {
    let mut ids = Vec::new();
    for n in 0..5 {
        let id = bed.enqueue(&delete(&format!("r{n}"))).await;
        ids.push(id);
        if n < 4 {
            bed.cancel(id).await;
            bed.execute(&format!(
                "UPDATE tasks SET finished = {n}, created = 0 WHERE task_id = '{id}'"
            ))
            .await;
        }
    }
    let forget = async |before, limit| {
        let mut tx = bed.begin().await.unwrap();
        let n = tx
            .purge_ended_before(pulp_model::Timestamp(before), limit)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        let left = bed.search_tasks(&TaskFilter::default()).await.unwrap();
        (n, left.iter().map(|t| t.id).collect::<Vec<_>>())
    };
    assert_eq!(forget(3, 2).await, (2, ids[2..].to_vec()), "the oldest first");
    assert_eq!(forget(3, 2).await, (1, ids[3..].to_vec()));
    assert_eq!(
        forget(3, 2).await,
        (0, ids[3..].to_vec()),
        "not that very instant"
    );
    assert_eq!(
        forget(i64::MAX, 9).await,
        (1, ids[4..].to_vec()),
        "what waits is never touched"
    );
}
