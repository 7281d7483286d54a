//! What all workers share about registries elsewhere: what these let us ask, and who downloads what.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use pulp_model::{
    Digest, Timestamp, WorkerName,
    budget::{Bucket, Budget, Quota, Refill},
};
use serde_json::{Value, json};
use sqlx::{Row as _, any::AnyRow};

use crate::{
    Store, StoreError, Tx,
    engine::{assembled, records},
    row,
    workers::Incarnation,
};

/// Who is known to a registry by what it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its host, with the port if that is not the scheme's own.
    pub host: String,
    /// The login; empty for nobody.
    pub login: String,
}

/// What was given of what was wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Requests that may be made now.
    pub granted: u64,
    /// How long until those that were not granted can be made, or as many of them as the registry ever allows at once.
    pub rest_in: Duration,
}

/// What came of asking for a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It is ours, until it is [given back](Store::end_downloads) or we are dead.
    Ours,
    /// Somebody else downloads it.
    Taken,
    /// As many are under way from this host as may be.
    HostIsBusy,
}

impl Store {
    /// Takes up to `wanted` requests from what an upstream lets this account ask. All of them where no limit is known.
    pub async fn take_allowance(&self, account: &Account, wanted: u64) -> Result<Allowance, StoreError> {
        let mut tx = self.begin().await?;
        let (mut budget, now) = tx.budget(account).await?;
        let before = budget;
        let granted = budget.take(wanted, now);
        let rest = budget
            .when(wanted - granted, now)
            .micros()
            .saturating_sub(now.micros());
        let rest_in = Duration::from_micros(u64::try_from(rest).unwrap_or(0));
        if budget != before {
            tx.set_budget(account, &budget).await?;
        }
        tx.commit().await?;
        Ok(Allowance { granted, rest_in })
    }

    /// Notes what an upstream has said about its limit just now.
    pub async fn note_quota(&self, account: &Account, quota: &Quota) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let (before, now) = tx.budget(account).await?;
        let budget = before.observed(quota, now);
        if budget != before {
            tx.set_budget(account, &budget).await?;
        }
        tx.commit().await
    }

    /// What an upstream lets this account ask, as far as it is known, and the instant of the answer.
    pub async fn upstream_budget(&self, account: &Account) -> Result<(Budget, Timestamp), StoreError> {
        self.begin().await?.budget(account).await
    }

    /// Asks for the download of each of these blobs, of which no two workers have one; those that are ours already stay
    /// ours. With `at_once` no more than so many are under way from one host, over all workers. The answers are in the
    /// order of the digests.
    pub async fn begin_downloads(
        &self,
        worker: &Incarnation,
        host: &str,
        digests: &[Digest],
        at_once: Option<u32>,
    ) -> Result<Vec<Turn>, StoreError> {
        let mut tx = self.begin().await?;
        let now = tx.now().await?;
        tx.forget_dead_downloads(now).await?;
        let mut wanted: BTreeSet<&Digest> = digests.iter().collect();
        let mut taken = BTreeSet::new();
        if let Some(most) = at_once {
            let free = u64::from(most).saturating_sub(tx.downloads_of(host).await?);
            let holders = tx.holders_of(&wanted).await?;
            let mut free = usize::try_from(free).unwrap_or(usize::MAX);
            wanted.retain(|digest| match holders.get(*digest) {
                Some(holder) if holder == worker => true,
                Some(_) => {
                    taken.insert(*digest);
                    false
                }
                None => free.checked_sub(1).is_some_and(|left| {
                    free = left;
                    true
                }),
            });
        }
        let ours = tx.take_downloads(worker, host, &wanted, now).await?;
        tx.commit().await?;
        let turn = |digest| {
            if ours.contains(digest) {
                Turn::Ours
            } else if wanted.contains(digest) || taken.contains(digest) {
                Turn::Taken
            } else {
                Turn::HostIsBusy
            }
        };
        Ok(digests.iter().map(turn).collect())
    }

    /// Ends downloads of ours, whatever became of them.
    pub async fn end_downloads(&self, worker: &Incarnation, digests: &[Digest]) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        // In the order in which they are taken, so that no two transactions wait for each other.
        let held = format!(
            "SELECT digest FROM downloads WHERE digest IN (SELECT r.digest FROM {}) AND worker_name = $2 \
             AND incarnation = $3 ORDER BY digest",
            records(tx.engine, &DIGEST)
        );
        let sql = format!("DELETE FROM downloads WHERE digest IN ({})", tx.updating(held));
        sqlx::query(assembled(sql))
            .bind(list_of(digests))
            .bind(&worker.name.0)
            .bind(worker.id.to_string())
            .execute(tx.on())
            .await?;
        tx.commit().await
    }
}

/// The field of [`list_of`].
const DIGEST: [(&str, &str); 1] = [("digest", "text")];

/// Digests as [`records`].
fn list_of<'d>(digests: impl IntoIterator<Item = &'d Digest>) -> String {
    let rows = digests.into_iter().map(|digest| json!({ "digest": digest }));
    Value::Array(rows.collect()).to_string()
}

impl Tx {
    /// A budget, which nobody else changes until this transaction ends.
    async fn budget(&mut self, account: &Account) -> Result<(Budget, Timestamp), StoreError> {
        let sql = "INSERT INTO upstream_budgets (host, account) VALUES ($1, $2) ON CONFLICT (host, account) DO NOTHING";
        sqlx::query(sql)
            .bind(&account.host)
            .bind(&account.login)
            .execute(self.on())
            .await?;
        let sql = self.locking(
            "SELECT capacity, level, as_of, refill_window, resets_at, blocked_until FROM upstream_budgets \
             WHERE host = $1 AND account = $2 FOR UPDATE",
        );
        let found = sqlx::query(sql)
            .bind(&account.host)
            .bind(&account.login)
            .fetch_one(self.on())
            .await?;
        Ok((budget(&found)?, self.now().await?))
    }

    async fn set_budget(&mut self, account: &Account, budget: &Budget) -> Result<(), StoreError> {
        let sql = "UPDATE upstream_budgets SET capacity = $3, level = $4, as_of = $5, refill_window = $6, resets_at = $7, \
                   blocked_until = $8 WHERE host = $1 AND account = $2";
        let bucket = budget.bucket.as_ref();
        let (window, reset) = match bucket.map(|b| b.refill) {
            Some(Refill::Even(window)) => (Some(window), None),
            Some(Refill::At(at)) => (None, Some(at.micros())),
            None => (None, None),
        };
        sqlx::query(sql)
            .bind(&account.host)
            .bind(&account.login)
            .bind(bucket.map(|b| i64::try_from(b.capacity).unwrap_or(i64::MAX)))
            .bind(bucket.map(|b| b.level))
            .bind(bucket.map(|b| b.as_of.micros()))
            .bind(window)
            .bind(reset)
            .bind(budget.blocked_until.map(Timestamp::micros))
            .execute(self.on())
            .await?;
        Ok(())
    }

    /// The table holds what is under way and no more, so this looks at few rows.
    async fn forget_dead_downloads(&mut self, now: Timestamp) -> Result<(), StoreError> {
        let sql = "DELETE FROM downloads WHERE NOT EXISTS (SELECT 1 FROM workers WHERE workers.name = downloads.worker_name \
                   AND workers.incarnation = downloads.incarnation AND workers.expires >= $1)";
        sqlx::query(sql).bind(now.micros()).execute(self.on()).await?;
        Ok(())
    }

    /// Who downloads these now.
    async fn holders_of(
        &mut self,
        digests: &BTreeSet<&Digest>,
    ) -> Result<BTreeMap<Digest, Incarnation>, StoreError> {
        let sql = format!(
            "SELECT digest, worker_name, incarnation FROM downloads WHERE digest IN (SELECT r.digest FROM {})",
            records(self.engine, &DIGEST)
        );
        let query = sqlx::query(assembled(sql)).bind(list_of(digests.iter().copied()));
        let rows = query.fetch_all(self.on()).await?;
        rows.iter()
            .map(|r| {
                let name = WorkerName(r.try_get("worker_name")?);
                let id = row::parsed(r, "incarnation")?;
                Ok((row::parsed(r, "digest")?, Incarnation { name, id }))
            })
            .collect()
    }

    /// Takes those that nobody else has; gives them, and those that were ours already.
    async fn take_downloads(
        &mut self,
        worker: &Incarnation,
        host: &str,
        digests: &BTreeSet<&Digest>,
        now: Timestamp,
    ) -> Result<BTreeSet<Digest>, StoreError> {
        // In one order everywhere, so that no two transactions wait for each other.
        let sql = format!(
            "INSERT INTO downloads (digest, host, worker_name, incarnation, begun) \
             SELECT r.digest, $2, $3, $4, CAST($5 AS BIGINT) FROM {} WHERE true ORDER BY r.digest \
             ON CONFLICT (digest) DO UPDATE SET begun = excluded.begun \
             WHERE downloads.worker_name = excluded.worker_name AND downloads.incarnation = excluded.incarnation \
             RETURNING digest",
            records(self.engine, &DIGEST)
        );
        let rows = sqlx::query(assembled(sql))
            .bind(list_of(digests.iter().copied()))
            .bind(host)
            .bind(&worker.name.0)
            .bind(worker.id.to_string())
            .bind(now.micros())
            .fetch_all(self.on())
            .await?;
        rows.iter().map(|r| row::parsed(r, "digest")).collect()
    }

    /// How many downloads from a host are under way; none begins until this transaction ends.
    async fn downloads_of(&mut self, host: &str) -> Result<u64, StoreError> {
        sqlx::query("INSERT INTO upstream_hosts (host) VALUES ($1) ON CONFLICT (host) DO NOTHING")
            .bind(host)
            .execute(self.on())
            .await?;
        let sql = self.locking("SELECT host FROM upstream_hosts WHERE host = $1 FOR UPDATE");
        sqlx::query(sql).bind(host).fetch_one(self.on()).await?;
        let found = sqlx::query("SELECT COUNT(*) AS n FROM downloads WHERE host = $1")
            .bind(host)
            .fetch_one(self.on())
            .await?;
        Ok(u64::try_from(found.try_get::<i64, _>("n")?).unwrap_or(0))
    }
}

fn budget(found: &AnyRow) -> Result<Budget, StoreError> {
    let number = |column| found.try_get::<Option<i64>, _>(column);
    let window = number("refill_window")?.map(Refill::Even);
    let reset = row::optional_instant(found, "resets_at")?.map(Refill::At);
    let bucket = match (
        number("capacity")?,
        number("level")?,
        row::optional_instant(found, "as_of")?,
    ) {
        (Some(capacity), Some(level), Some(as_of)) => window.or(reset).map(|refill| Bucket {
            capacity: u64::try_from(capacity).unwrap_or(0),
            level,
            as_of,
            refill,
        }),
        _ => None,
    };
    Ok(Budget {
        bucket,
        blocked_until: row::optional_instant(found, "blocked_until")?,
    })
}
