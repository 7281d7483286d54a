//! Leadership leases: one row a role, with an epoch that only grows, judged by the database's clock.

use std::time::Duration;

use pulp_model::{Epoch, Timestamp};
use sqlx::Row as _;

use crate::{Engine, Store, StoreError, Tx, engine::assembled};

impl Store {
    /// Takes the lease of `role` if nobody holds a live one; `None` if somebody does.
    ///
    /// The caller trusts it until (the instant before this call + `ttl` − a margin) on its own monotonic clock.
    pub async fn acquire_lease(
        &self,
        role: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<Option<Epoch>, StoreError> {
        let mut tx = self.begin().await?;
        let now = tx.now().await?;
        let sql = "INSERT INTO leases (role, holder, epoch, acquired, expires) VALUES ($1, $2, 1, $3, $4) \
                   ON CONFLICT (role) DO UPDATE SET holder = excluded.holder, epoch = leases.epoch + 1, \
                   acquired = excluded.acquired, expires = excluded.expires WHERE leases.expires < excluded.acquired \
                   RETURNING epoch";
        let found = sqlx::query(sql)
            .bind(role)
            .bind(holder)
            .bind(now.micros())
            .bind(now.plus_micros(micros(ttl)).micros())
            .fetch_optional(tx.on())
            .await?;
        let epoch = found.map(|r| r.try_get("epoch").map(Epoch)).transpose()?;
        tx.commit().await?;
        Ok(epoch)
    }

    /// Prolongs the lease; false if it is not ours any more.
    pub async fn renew_lease(
        &self,
        role: &str,
        holder: &str,
        epoch: Epoch,
        ttl: Duration,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let now = tx.now().await?;
        let sql =
            "UPDATE leases SET expires = $4 WHERE role = $1 AND holder = $2 AND epoch = $3 AND expires >= $5";
        let done = sqlx::query(sql)
            .bind(role)
            .bind(holder)
            .bind(epoch.0)
            .bind(now.plus_micros(micros(ttl)).micros())
            .bind(now.micros())
            .execute(tx.on())
            .await?;
        tx.commit().await?;
        Ok(done.rows_affected() > 0)
    }

    /// Lets the lease go at once, so that a standby need not wait for its end.
    pub async fn resign_lease(&self, role: &str, holder: &str, epoch: Epoch) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let sql = "UPDATE leases SET expires = 0 WHERE role = $1 AND holder = $2 AND epoch = $3";
        sqlx::query(sql)
            .bind(role)
            .bind(holder)
            .bind(epoch.0)
            .execute(tx.on())
            .await?;
        tx.commit().await
    }

    /// Ends every lease, of leaders and of workers, and lets grants that nobody claimed be sent again at once. For a process that
    /// knows to be the only one at this database: whoever held them, or was to hear of them, is gone.
    pub async fn release_what_the_dead_held(&self) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        for sql in [
            "UPDATE leases SET expires = 0",
            "UPDATE workers SET expires = 0",
            "UPDATE tasks SET resent = 0 WHERE state = 'accepted' AND finished IS NULL",
        ] {
            sqlx::query(sql).execute(tx.on()).await?;
        }
        tx.commit().await
    }
}

impl Tx {
    /// Refuses to go on unless `epoch` is the current one of `role`. The row lock makes a take-over wait until
    /// this transaction ends: a check that only reads lets stale commits through. PostgreSQL ends the transaction if
    /// nothing comes for two seconds, so that a leader that was cut off in its middle doesn't hold up its successor.
    /// Tells the time, by the database's clock.
    pub(crate) async fn require_epoch(&mut self, role: &str, epoch: Epoch) -> Result<Timestamp, StoreError> {
        let clock = self.engine.clock();
        let sql = match self.engine {
            Engine::Postgres => format!(
                "SELECT epoch, set_config('idle_in_transaction_session_timeout', '2000', true) AS idle, {clock} AS now \
                 FROM leases WHERE role = $1 FOR SHARE"
            ),
            Engine::Sqlite => format!("SELECT epoch, {clock} AS now FROM leases WHERE role = $1"),
        };
        let found = sqlx::query(assembled(sql))
            .bind(role)
            .fetch_optional(self.on())
            .await?;
        match found {
            Some(found) if found.try_get::<i64, _>("epoch")? == epoch.0 => {
                Ok(Timestamp(found.try_get("now")?))
            }
            _ => Err(StoreError::LeadershipLost),
        }
    }
}

pub(crate) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_leader_that_falls_silent_in_mid_transaction_holds_up_its_successor_for_seconds_only() {
        let url = pulp_testkit::shared_postgres()
            .unwrap()
            .create_database("silent_leader")
            .unwrap();
        let store = Store::connect(&url, 4).await.unwrap();
        store.migrate().await.unwrap();
        let lease = Duration::from_millis(10);
        let epoch = store.acquire_lease("r", "one", lease).await.unwrap().unwrap();
        let mut silent = store.begin().await.unwrap();
        silent.require_epoch("r", epoch).await.unwrap();
        let take_over = async {
            loop {
                if let Ok(Some(next)) = store.acquire_lease("r", "two", lease).await {
                    return next;
                }
            }
        };
        let next = tokio::time::timeout(Duration::from_secs(8), take_over)
            .await
            .unwrap();
        assert!(next > epoch);
        silent.commit().await.unwrap_err();
    }
}
