//! The whole of both, compared.

use pulp_model::{TaskId, Timestamp, task::Claim};
use pulp_store::grants::{Gap, LiveTask};
use serde_json::Value;

use super::both::Both;
use crate::ledger::Queue;

impl Both {
    /// Who else waits up to the middle one of the live tasks, on each side by its own clock.
    async fn compare_lines(&self, live: &[LiveTask], story: &[String]) {
        let Some(middle) = live.get(live.len() / 2) else {
            return;
        };
        let gaps = |until: Timestamp| -> Vec<Gap> {
            let of = |claim: &Claim| Gap {
                resource: claim.resource.clone(),
                from: Timestamp(0),
                until,
            };
            middle.claims.iter().map(of).collect()
        };
        let theirs = self
            .store
            .waiting_in(&gaps(middle.created), &[middle.id])
            .await
            .unwrap();
        let mut theirs: Vec<usize> = theirs.iter().map(|id| self.theirs(*id)).collect();
        let here = self.tasks[self.theirs(middle.id)].0;
        let ours = self
            .ledger
            .waiting_in(&gaps(self.ledger.row(here).unwrap().created), &[here]);
        let mut ours: Vec<usize> = ours.iter().map(|id| self.ours(*id)).collect();
        ours.sort_unstable();
        theirs.sort_unstable();
        assert_eq!(
            ours,
            theirs,
            "who waits before {} after\n{}",
            middle.id,
            story.join("\n")
        );
    }

    /// All live tasks, who waits for whom, the reservations' health, and what is left for the relay.
    pub(super) async fn compare(&self, story: &[String]) {
        let told = || story.join("\n");
        let told_of = |t: &LiveTask, number: usize| {
            let request = (t.class, t.kind_name.clone(), t.schema_version, t.owner.clone());
            let waits = (t.not_before.is_some(), t.steps_aside);
            (number, t.state, t.attempt, request, waits, t.claims.clone())
        };
        let live = self.store.live_tasks().await.unwrap();
        let theirs: Vec<_> = live.iter().map(|t| told_of(t, self.theirs(t.id))).collect();
        let ours = self.ledger.live_tasks();
        let ours: Vec<_> = ours.iter().map(|t| told_of(t, self.ours(t.id))).collect();
        assert_eq!(ours, theirs, "live tasks after\n{}", told());
        self.compare_lines(&live, story).await;
        let violations = self.store.reservation_violations().await.unwrap();
        assert_eq!(self.ledger.reservation_violations(), violations, "{}", told());
        for (ours, theirs, _) in &self.tasks {
            let theirs = self.store.task(*theirs).await.unwrap().unwrap();
            let ours = self.ledger.row(*ours).unwrap();
            assert_eq!(
                (ours.state, ours.attempt),
                (theirs.state, theirs.attempt),
                "{}",
                told()
            );
        }
        let batch = self.store.outbox_batch(10_000).await.unwrap();
        let mut theirs: Vec<_> = batch
            .rows
            .iter()
            .map(|row| {
                let body: Value = serde_json::from_str(&row.body()).unwrap();
                let id: TaskId = body["task_id"].as_str().unwrap().parse().unwrap();
                (
                    row.queue.clone(),
                    self.theirs(id),
                    body["attempt"].as_i64().unwrap_or(0),
                )
            })
            .collect();
        batch.settle(&[]).await.unwrap();
        let mut ours: Vec<_> = self
            .ledger
            .outbox_batch(10_000, &|_| false)
            .iter()
            .map(|message| {
                let queue = match message.queue {
                    Queue::Intake => "intake".to_owned(),
                    Queue::Class(class) => class.as_str().to_owned(),
                };
                (queue, self.ours(message.task), message.attempt.0)
            })
            .collect();
        theirs.sort();
        ours.sort();
        assert_eq!(ours, theirs, "messages after\n{}", told());
    }
}
