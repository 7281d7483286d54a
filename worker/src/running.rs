//! The tasks that run here, each with its stop signal.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use pulp_model::TaskId;

use crate::stop::{Stop, StopReason};

/// Shared list of running tasks.
#[derive(Debug, Clone, Default)]
pub struct Running(Arc<Mutex<List>>);

#[derive(Debug, Default)]
struct List {
    /// Ordered, so that all are stopped in the same order in every run of a simulation.
    tasks: BTreeMap<TaskId, Stop>,
    /// Why all were stopped; it holds for those that come after, too.
    all: Option<StopReason>,
}

impl Running {
    /// Lists a task until the guard is dropped.
    ///
    /// A claim may be answered when all tasks were stopped already. Its run finds itself stopped from the beginning:
    /// nobody keeps its lease any more.
    pub fn enter(&self, id: TaskId) -> (Stop, Entered) {
        let stop = Stop::default();
        let mut list = self.lock();
        if let Some(reason) = list.all {
            stop.stop(reason);
        }
        list.tasks.insert(id, stop.clone());
        drop(list);
        (
            stop,
            Entered {
                list: self.clone(),
                id,
            },
        )
    }

    /// Whether the task runs here.
    pub fn contains(&self, id: TaskId) -> bool {
        self.lock().tasks.contains_key(&id)
    }

    /// Tells one task to stop, if it runs here.
    pub fn stop(&self, id: TaskId, reason: StopReason) {
        if let Some(stop) = self.lock().tasks.get(&id) {
            stop.stop(reason);
        }
    }

    /// Tells every task to stop, also those that come after.
    pub fn stop_all(&self, reason: StopReason) {
        let mut list = self.lock();
        if list.all.is_none() || reason == StopReason::LeaseLost {
            list.all = Some(reason);
        }
        for stop in list.tasks.values() {
            stop.stop(reason);
        }
    }

    /// How many run.
    pub fn len(&self) -> usize {
        self.lock().tasks.len()
    }

    /// Whether none runs.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the task off the list when dropped.
#[derive(Debug)]
pub struct Entered {
    list: Running,
    id: TaskId,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.list.lock().tasks.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_begins_after_all_were_stopped_is_stopped() {
        let running = Running::default();
        let (early, _listed) = running.enter(TaskId::new());
        assert!(!early.is_stopped());
        running.stop_all(StopReason::LeaseLost);
        let (late, _listed) = running.enter(TaskId::new());
        assert_eq!(early.reason(), Some(StopReason::LeaseLost));
        assert_eq!(late.reason(), Some(StopReason::LeaseLost));
        assert_eq!(running.len(), 2);
    }

    #[test]
    fn a_task_is_listed_until_its_run_is_over() {
        let running = Running::default();
        let id = TaskId::new();
        let listed = running.enter(id);
        assert!(running.contains(id));
        drop(listed);
        assert!(running.is_empty());
    }
}
