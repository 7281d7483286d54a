//! What a run notes for those after it.

use pulp_model::TaskId;
use pulp_store::journals::Journal;

use crate::support::{Bed, LONG, contract, delete};

contract!(
    the_next_attempt_finds_what_the_one_before_it_noted_last,
    an_attempt_that_is_over_notes_nothing,
    what_was_noted_goes_when_the_task_is_over_and_not_before,
);

async fn noted(bed: &Bed, task: TaskId) -> Option<String> {
    bed.journal(task).await.unwrap().map(|Journal { note, .. }| note)
}

async fn the_next_attempt_finds_what_the_one_before_it_noted_last(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let run = bed.running(epoch, &worker, &delete("r")).await;
    let task = run.lease.task_id();
    assert_eq!(noted(bed, task).await, None);
    for note in ["first", "last"].map(str::to_owned) {
        assert!(bed.write_journal(&run.lease, note.clone()).await.unwrap());
        assert_eq!(noted(bed, task).await, Some(note));
    }
    bed.execute(&format!(
        "UPDATE task_journals SET written = written - 90000000 WHERE task_id = '{task}'"
    ))
    .await;
    bed.hand_back(&run.lease).await.unwrap();
    let found = bed.journal(task).await.unwrap().unwrap();
    assert_eq!(found.note, "last");
    assert!((90..100).contains(&found.age.as_secs()), "{:?}", found.age);
}

async fn an_attempt_that_is_over_notes_nothing(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let run = bed.running(epoch, &worker, &delete("r")).await;
    assert!(bed.write_journal(&run.lease, "mine".to_owned()).await.unwrap());
    bed.hand_back(&run.lease).await.unwrap();
    assert!(!bed.write_journal(&run.lease, "late".to_owned()).await.unwrap());
    assert_eq!(noted(bed, run.lease.task_id()).await, Some("mine".to_owned()));
}

async fn what_was_noted_goes_when_the_task_is_over_and_not_before(bed: &Bed) {
    let epoch = bed.lead().await;
    let worker = bed.worker(LONG).await;
    let run = bed.running(epoch, &worker, &delete("r")).await;
    bed.write_journal(&run.lease, "1".to_owned()).await.unwrap();
    assert_eq!(bed.forget_journals().await.unwrap(), 0);
    bed.hand_back(&run.lease).await.unwrap();
    assert_eq!(bed.forget_journals().await.unwrap(), 0);
    bed.cancel(run.lease.task_id()).await;
    assert_eq!(bed.forget_journals().await.unwrap(), 1);
    assert_eq!(noted(bed, run.lease.task_id()).await, None);
}
