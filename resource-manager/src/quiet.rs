//! Running tasks that show no progress: told once each in the log, and counted.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use pulp_model::{TaskId, task::TaskClass};
use pulp_store::{Store, StoreError, expiry::Quiet};

use crate::metrics;

/// What was told of already.
#[derive(Debug, Default)]
pub(crate) struct Told(HashSet<TaskId>);

impl Told {
    /// Looks for tasks whose progress last changed longer ago than `after`, counts them, and tells of the new ones.
    pub(crate) async fn look(&mut self, store: &Store, after: Duration) -> Result<(), StoreError> {
        let quiet = store.quiet_tasks(after).await?;
        metrics::quiet(&by_class(&quiet));
        for task in self.news(&quiet) {
            let worker = task.worker.as_ref().map_or("", |name| &name.0);
            tracing::warn!(task = %task.id, kind = task.kind_name, worker, silent = ?task.silent, "shows no progress");
        }
        Ok(())
    }

    /// Those not told of yet. One that moves again is forgotten.
    fn news<'q>(&mut self, quiet: &'q [Quiet]) -> Vec<&'q Quiet> {
        let known = std::mem::replace(&mut self.0, quiet.iter().map(|q| q.id).collect());
        quiet.iter().filter(|q| !known.contains(&q.id)).collect()
    }
}

impl Drop for Told {
    /// Leading no more, nothing is known.
    fn drop(&mut self) {
        metrics::quiet(&by_class(&[]));
    }
}

fn by_class(quiet: &[Quiet]) -> BTreeMap<TaskClass, i64> {
    let mut counts: BTreeMap<_, _> = TaskClass::ALL.into_iter().map(|class| (class, 0)).collect();
    for task in quiet {
        *counts.entry(task.class).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quiet(id: TaskId) -> Quiet {
        Quiet {
            id,
            kind_name: "sync".to_owned(),
            class: TaskClass::Sync,
            worker: None,
            silent: Duration::from_secs(1000),
        }
    }

    #[test]
    fn a_quiet_task_is_told_once_and_again_after_it_has_moved() {
        let (a, b) = (quiet(TaskId::new()), quiet(TaskId::new()));
        let mut told = Told::default();
        assert_eq!(told.news(std::slice::from_ref(&a)), [&a]);
        assert_eq!(told.news(&[a.clone(), b.clone()]), [&b]);
        assert_eq!(told.news(std::slice::from_ref(&b)), Vec::<&Quiet>::new());
        assert_eq!(told.news(&[a.clone(), b.clone()]), [&a]);
        assert_eq!(by_class(&[a, b])[&TaskClass::Sync], 2);
        assert_eq!(by_class(&[])[&TaskClass::Sync], 0);
    }
}
