//! Groups of tasks: what clients want to count and cancel as one.

use std::collections::BTreeMap;

use pulp_model::task::TaskState;
use sqlx::Row as _;

use crate::{Store, StoreError, tasks::state};

impl Store {
    /// How many tasks of a group are in which state, by the state's name; none if no task is of this group.
    pub async fn group_states(
        &self,
        group_id: &str,
    ) -> Result<Option<BTreeMap<&'static str, i64>>, StoreError> {
        let sql = "SELECT state, COUNT(*) AS n FROM tasks WHERE group_id = $1 GROUP BY state";
        let rows = sqlx::query(sql).bind(group_id).fetch_all(&self.pool).await?;
        let mut states: BTreeMap<&'static str, i64> =
            TaskState::ALL.iter().map(|s| (s.as_str(), 0)).collect();
        for r in &rows {
            states.insert(state(r)?.as_str(), r.try_get("n")?);
        }
        Ok((!rows.is_empty()).then_some(states))
    }
}
