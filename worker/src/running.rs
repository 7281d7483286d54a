//! The tasks that run here, each with its stop signal.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use pulp_model::TaskId;

use crate::stop::{Stop, StopReason};

/// Shared list of running tasks.
#[derive(Debug, Clone, Default)]
pub struct Running(Arc<Mutex<HashMap<TaskId, Stop>>>);

impl Running {
    /// Lists a task until the guard is dropped.
    pub fn enter(&self, id: TaskId) -> (Stop, Entered) {
        let stop = Stop::default();
        self.lock().insert(id, stop.clone());
        (
            stop,
            Entered {
                list: self.clone(),
                id,
            },
        )
    }

    /// Tells one task to stop, if it runs here.
    pub fn stop(&self, id: TaskId, reason: StopReason) {
        if let Some(stop) = self.lock().get(&id) {
            stop.stop(reason);
        }
    }

    /// Tells every task to stop.
    pub fn stop_all(&self, reason: StopReason) {
        for stop in self.lock().values() {
            stop.stop(reason);
        }
    }

    /// How many run.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none runs.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TaskId, Stop>> {
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
        self.list.lock().remove(&self.id);
    }
}
