//! What is read to say why a task waits.

use std::collections::BTreeMap;

use pulp_model::{
    TaskId,
    task::{Owner, TaskClass, TaskState},
    wait::{Parked, Reason, explain},
};
use pulp_store::{ClaimOutcome, tasks::Submission, workers::Serving};

use crate::support::{Bed, LONG, contract, delete, finish, publish};

contract!(
    a_waiting_task_is_told_who_holds_and_who_comes_first,
    shared_holders_are_told_and_are_in_nobodys_way,
    a_granted_task_waits_for_a_slot,
    a_kind_that_no_live_worker_reads_says_so,
    a_declined_grant_is_parked_with_its_reason,
    what_was_put_off_says_until_when_and_why,
    who_runs_or_has_ended_waits_for_nothing,
    an_unknown_task_has_no_situation,
);

async fn reasons(bed: &Bed, id: TaskId) -> Vec<&'static str> {
    let situation = bed.situation(id).await.unwrap().unwrap();
    explain(&situation).reasons.iter().map(Reason::as_str).collect()
}

async fn serve(bed: &Bed, class: TaskClass, slots: u32) -> pulp_store::workers::Incarnation {
    let serving = Serving::of_this_release(BTreeMap::from([(class, slots)]));
    bed.register_serving("worker", "s", "h", true, LONG, &serving)
        .await
        .unwrap()
}

/// All messages have left.
async fn relayed(bed: &Bed) {
    bed.execute("DELETE FROM outbox").await;
}

async fn a_waiting_task_is_told_who_holds_and_who_comes_first(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = serve(bed, TaskClass::Interactive, 4).await;
    serve(bed, TaskClass::Publish, 2).await;
    let holder = bed.running(epoch, &worker, &delete("r")).await.lease.task_id();
    let before = bed.enqueue(&delete("r")).await;
    bed.enqueue(&publish("elsewhere", "d")).await;
    let kind = publish("r", "d");
    let ann = Owner::user(&"ann".parse().unwrap());
    let mut tx = bed.begin().await.unwrap();
    let asked = tx.submit(&Submission::new(&kind, ann.clone())).await.unwrap();
    tx.commit().await.unwrap();
    let after = bed.enqueue(&delete("r")).await;

    assert_eq!(reasons(bed, asked).await, ["resources", "unsent"]);
    relayed(bed).await;
    let situation = bed.situation(asked).await.unwrap().unwrap();
    assert_eq!(situation.task.owner, ann);
    assert_eq!(situation.task.since, situation.task.created);
    assert_eq!(situation.before_on_resources, 1);
    assert_eq!((situation.service.slots, situation.service.reads), (2, Some(1)));
    assert_eq!(
        (situation.service.before, situation.service.before_of_owner),
        (1, 0)
    );
    let explanation = explain(&situation);
    assert_eq!(explanation.reasons, [Reason::Resources]);
    let [distributor, repository] = &explanation.lines[..] else {
        panic!("{explanation:?}")
    };
    assert!(distributor.is_free && distributor.held_by.is_empty() && distributor.before.is_empty());
    assert_eq!(repository.claim.resource.as_str(), "repository:r");
    let ids = |list: &[(&pulp_model::wait::Contender, _)]| list.iter().map(|(c, _)| c.id).collect::<Vec<_>>();
    assert_eq!(ids(&repository.held_by), [holder]);
    assert_eq!(ids(&repository.before), [before]);
    let told = repository.held_by[0].0;
    assert_eq!(
        (told.kind.as_str(), told.state),
        ("delete_repository", TaskState::Running)
    );
    assert_eq!(told.worker.as_ref(), Some(&worker.name));
    assert!(told.granted.is_some());
    // The last in the line has two before it.
    let situation = bed.situation(after).await.unwrap().unwrap();
    assert_eq!(situation.before_on_resources, 2);
    assert_eq!(ids(&explain(&situation).lines[0].before), [before, asked]);
    // Without a leader nobody decides.
    bed.execute("DELETE FROM leases").await;
    assert_eq!(reasons(bed, asked).await, ["resources", "no_resource_manager"]);
}

async fn shared_holders_are_told_and_are_in_nobodys_way(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = serve(bed, TaskClass::Publish, 4).await;
    let reader = bed
        .running(epoch, &worker, &publish("r", "a"))
        .await
        .lease
        .task_id();
    let asked = bed.enqueue(&publish("r", "b")).await;
    relayed(bed).await;
    let situation = bed.situation(asked).await.unwrap().unwrap();
    let explanation = explain(&situation);
    assert_eq!(explanation.reasons, [Reason::Imminent]);
    assert_eq!(explanation.lines[1].held_by[0].0.id, reader);
    assert!(explanation.lines[1].is_free);
}

async fn a_granted_task_waits_for_a_slot(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = serve(bed, TaskClass::Interactive, 1).await;
    bed.running(epoch, &worker, &delete("a")).await;
    let waits = bed.enqueue(&delete("b")).await;
    relayed(bed).await;
    assert_eq!(reasons(bed, waits).await, ["slot"]);
    bed.grant(epoch, waits, &delete("b")).await.unwrap();
    assert_eq!(reasons(bed, waits).await, ["unsent"]);
    relayed(bed).await;
    assert_eq!(reasons(bed, waits).await, ["slot"]);
    let second = bed.enqueue(&delete("c")).await;
    bed.grant(epoch, second, &delete("c")).await.unwrap();
    let situation = bed.situation(second).await.unwrap().unwrap();
    assert_eq!(situation.service.granted_before, 1);
    bed.unregister_worker(&worker).await.unwrap();
    relayed(bed).await;
    assert_eq!(reasons(bed, waits).await, ["no_worker_for_class"]);
}

async fn a_kind_that_no_live_worker_reads_says_so(bed: &Bed) {
    bed.lead().await;
    let id = bed.enqueue(&delete("r")).await;
    relayed(bed).await;
    // Workers of another class don't help.
    serve(bed, TaskClass::Sync, 4).await;
    assert_eq!(reasons(bed, id).await, ["no_worker_for_class"]);
    serve(bed, TaskClass::Interactive, 4).await;
    assert_eq!(reasons(bed, id).await, ["imminent"]);
    bed.execute("UPDATE tasks SET schema_version = 7").await;
    let situation = bed.situation(id).await.unwrap().unwrap();
    assert_eq!(explain(&situation).reasons, [Reason::NoWorkerForKind(Some(1))]);
    bed.execute("UPDATE tasks SET kind_name = 'of_the_next_release'")
        .await;
    let situation = bed.situation(id).await.unwrap().unwrap();
    assert_eq!(explain(&situation).reasons, [Reason::NoWorkerForKind(None)]);
}

async fn a_declined_grant_is_parked_with_its_reason(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = serve(bed, TaskClass::Interactive, 4).await;
    let kind = delete("r");
    let id = bed.enqueue(&kind).await;
    bed.execute("UPDATE tasks SET schema_version = 7").await;
    let attempt = bed.grant(epoch, id, &kind).await.unwrap();
    let declined = bed.claim(id, attempt, &worker).await.unwrap();
    assert!(matches!(declined, ClaimOutcome::Unreadable(_)), "{declined:?}");
    bed.execute("UPDATE tasks SET schema_version = 1, not_before = not_before + 3600000000")
        .await;
    relayed(bed).await;
    let situation = bed.situation(id).await.unwrap().unwrap();
    assert!(situation.task.since > situation.task.created);
    match &explain(&situation).reasons[..] {
        [Reason::Parked(until, Parked::Declined(why))] => {
            assert!(*until > situation.now);
            assert!(why.contains("schema version 7"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

async fn what_was_put_off_says_until_when_and_why(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = serve(bed, TaskClass::Interactive, 4).await;
    let task = bed.running(epoch, &worker, &delete("r")).await;
    bed.park(&task.lease, LONG, "the registry wants a pause")
        .await
        .unwrap();
    relayed(bed).await;
    let situation = bed.situation(task.lease.task_id()).await.unwrap().unwrap();
    match &explain(&situation).reasons[..] {
        [Reason::Parked(until, Parked::PutOff(Some(why)))] => {
            assert!(*until > situation.now);
            assert_eq!(why, "the registry wants a pause");
        }
        other => panic!("{other:?}"),
    }
}

async fn who_runs_or_has_ended_waits_for_nothing(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let task = bed.running(epoch, &worker, &delete("r")).await;
    let id = task.lease.task_id();
    let situation = bed.situation(id).await.unwrap().unwrap();
    assert_eq!(situation.task.worker, Some(worker.name));
    assert!(explain(&situation).reasons.is_empty());
    finish(bed.begin_fenced(&task.lease).await.unwrap()).await;
    let ended = bed.situation(id).await.unwrap().unwrap();
    assert_eq!(ended.task.state, TaskState::Finished);
    assert_eq!(Some(ended.task.since), bed.task_of(id).await.finished);
    assert!(explain(&ended).reasons.is_empty());
}

async fn an_unknown_task_has_no_situation(bed: &Bed) {
    assert_eq!(bed.situation(TaskId::new()).await.unwrap(), None);
}
