//! Connections, and whose turn it is to use them.
//!
//! The library's pool asks a connection that comes back whether it still lives, in a call of its own, since it can't know
//! what was done with it. We do: one whose last statement was answered to its end is kept aside for a moment, and the next
//! caller takes it from there. A busy system thereby makes a call for each statement, and not two or three. Whatever was
//! given up in its middle, failed, or lies idle goes back to the library's pool, which looks at it; and with one that failed all
//! that are kept aside, since what ended it may have ended them.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::{
    FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture, stream, stream::BoxStream,
};
use sqlx::{Any, AnyPool, Either, Error, Execute, Executor, SqlStr, any::AnyRow, pool::PoolConnection};
use tokio::{
    runtime::Handle,
    sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore},
};

use crate::patience::{LONGEST_SIGN_OF_LIFE, Patience, Patient};

/// So long a connection that nobody used is taken to be alive.
const FRESH: Duration = Duration::from_millis(50);

/// How long a connection is waited for.
pub(crate) const LONGEST_QUEUE: Duration = Duration::from_secs(5);

/// The pool, whose statements are waited for with patience.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    pub(crate) inner: AnyPool,
    pub(crate) patience: Patience,
    /// One for each connection: with a place there is one kept aside, or room in `inner`.
    places: Arc<Semaphore>,
    kept: Arc<Mutex<Vec<Kept>>>,
}

/// A connection that was used a moment ago.
#[derive(Debug)]
struct Kept {
    connection: PoolConnection<Any>,
    since: Instant,
}

impl Pool {
    /// Over a pool of the library.
    pub(crate) fn new(inner: AnyPool, patience: Patience) -> Self {
        let places = inner.options().get_max_connections() as usize;
        Self {
            inner,
            patience,
            places: Arc::new(Semaphore::new(places)),
            kept: Arc::default(),
        }
    }

    /// A connection for a statement, or several.
    pub(crate) async fn acquire(&self) -> Result<Lease, Error> {
        let place = Arc::clone(&self.places).acquire_owned();
        let place = match tokio::time::timeout(LONGEST_QUEUE, place).await {
            Ok(Ok(place)) => place,
            Ok(Err(_)) => return Err(Error::PoolClosed),
            Err(_) => return Err(Error::PoolTimedOut),
        };
        let kept = self.take_fresh();
        let connection = match kept {
            Some(connection) => connection,
            None => self.inner.acquire().await?,
        };
        Ok(Lease {
            connection: Some(connection),
            stage: Stage::Clean,
            turn: None,
            pool: self.clone(),
            _place: place,
        })
    }

    /// Begins a transaction by a statement of one's own; on SQLite one that writes has the writer's turn.
    pub(crate) async fn begin_with(
        &self,
        statement: &'static str,
        turn: Option<OwnedMutexGuard<()>>,
    ) -> Result<Lease, Error> {
        let mut lease = self.acquire().await?;
        lease.turn = turn;
        // Before it is begun: a begin that is given up half-way may have been one.
        lease.stage = Stage::InTransaction;
        lease.patient().execute(statement).await?;
        Ok(lease)
    }

    /// Closes all connections, once those that are in use have come back.
    pub(crate) async fn close(&self) {
        self.places.close();
        self.lock().clear();
        self.inner.close().await;
    }

    /// The connection used last; those that nobody used for long go back.
    fn take_fresh(&self) -> Option<PoolConnection<Any>> {
        let stale: Vec<Kept>;
        let taken;
        {
            let mut kept = self.lock();
            let fresh = kept.partition_point(|k| k.since.elapsed() >= FRESH);
            stale = kept.drain(..fresh).collect();
            taken = kept.pop();
        }
        drop(stale);
        taken.map(|kept| kept.connection)
    }

    fn keep(&self, connection: PoolConnection<Any>) {
        let mut kept = self.lock();
        // Looked at under the lock, so that closing misses none.
        if !self.places.is_closed() {
            kept.push(Kept {
                connection,
                since: Instant::now(),
            });
        }
    }

    /// Where one may have failed because the server went away, the others are to be looked at, too.
    fn distrust(&self) {
        let kept = std::mem::take(&mut *self.lock());
        drop(kept);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection in use.
#[derive(Debug)]
pub(crate) struct Lease {
    /// None once it is dropped.
    connection: Option<PoolConnection<Any>>,
    stage: Stage,
    /// The turn of SQLite's only writer, kept until a transaction that was given up is rolled back.
    turn: Option<OwnedMutexGuard<()>>,
    pool: Pool,
    _place: OwnedSemaphorePermit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing is under way.
    Clean,
    /// A statement is under way, or has failed.
    Busy,
    /// A transaction was begun.
    InTransaction,
}

impl Lease {
    /// The connection within a transaction, waited for with patience.
    pub(crate) fn patient(&mut self) -> Patient<'_> {
        Patient {
            patience: self.pool.patience,
            inner: self.connection.as_deref_mut(),
        }
    }

    /// Makes the transaction so.
    pub(crate) async fn commit(mut self) -> Result<(), Error> {
        self.patient().execute("COMMIT").await?;
        self.stage = Stage::Clean;
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        if self.stage != Stage::Clean {
            self.pool.distrust();
        }
        match self.stage {
            Stage::Clean => self.pool.keep(connection),
            // The library looks whether it can be used again.
            Stage::Busy => drop(connection),
            Stage::InTransaction => {
                let turn = self.turn.take();
                let roll_back = async move {
                    let answer = tokio::time::timeout(LONGEST_SIGN_OF_LIFE, connection.execute("ROLLBACK"));
                    if !matches!(answer.await, Ok(Ok(_))) {
                        // To close it is to roll back.
                        drop(connection.detach());
                    }
                    drop(turn);
                };
                match Handle::try_current() {
                    Ok(runtime) => drop(runtime.spawn(roll_back)),
                    Err(_) => drop(roll_back),
                }
            }
        }
    }
}

impl<'c> Executor<'c> for &'c Pool {
    type Database = Any;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<sqlx::any::AnyQueryResult, AnyRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Any>,
    {
        let all = async move {
            let mut lease = self.acquire().await?;
            lease.stage = Stage::Busy;
            let answers: Vec<_> = lease.patient().fetch_many(query).try_collect().await?;
            lease.stage = Stage::Clean;
            Ok::<_, Error>(stream::iter(answers.into_iter().map(Ok)))
        };
        stream::once(all).try_flatten().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<AnyRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Any>,
    {
        async move {
            let mut lease = self.acquire().await?;
            lease.stage = Stage::Busy;
            let row = lease.patient().fetch_optional(query).await?;
            lease.stage = Stage::Clean;
            Ok(row)
        }
        .boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [sqlx::any::AnyTypeInfo],
    ) -> BoxFuture<'e, Result<sqlx::any::AnyStatement, Error>>
    where
        'c: 'e,
    {
        self.inner.prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<Any>, Error>>
    where
        'c: 'e,
    {
        self.inner.describe(sql)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use sqlx::Row as _;

    use super::*;
    use crate::Store;

    async fn both(name: &str, connections: u32) -> (tempfile::TempDir, [Store; 2]) {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("x").display());
        let postgres = pulp_testkit::shared_postgres()
            .unwrap()
            .create_database(name)
            .unwrap();
        let stores = [
            Store::connect(&url, connections).await.unwrap(),
            Store::connect(&postgres, connections).await.unwrap(),
        ];
        for store in &stores {
            let mut tx = store.begin().await.unwrap();
            tx.on()
                .execute("CREATE TABLE t (n BIGINT NOT NULL PRIMARY KEY)")
                .await
                .unwrap();
            tx.commit().await.unwrap();
        }
        (folder, stores)
    }

    async fn count(store: &Store) -> i64 {
        let row = sqlx::query("SELECT COUNT(*) AS n FROM t")
            .fetch_one(&store.pool)
            .await;
        row.unwrap().get("n")
    }

    #[tokio::test]
    async fn a_transaction_that_was_given_up_leaves_nothing_and_its_connection_goes_on() {
        let (_folder, stores) = both("given_up", 2).await;
        for store in &stores {
            for n in 0..20_i64 {
                let mut tx = store.begin().await.unwrap();
                let insert = sqlx::query("INSERT INTO t (n) VALUES ($1)").bind(n);
                insert.execute(tx.on()).await.unwrap();
                drop(tx);
                assert_eq!(count(store).await, 0);
            }
        }
    }

    #[tokio::test]
    async fn a_statement_that_failed_spoils_nothing_for_the_next() {
        let (_folder, stores) = both("failed_statement", 2).await;
        for store in &stores {
            for _ in 0..20 {
                sqlx::query("INSERT INTO t (n) VALUES (NULL), (1)")
                    .execute(&store.pool)
                    .await
                    .unwrap_err();
                let mut tx = store.begin().await.unwrap();
                tx.on().execute("SELECT * FROM no_such_table").await.unwrap_err();
                drop(tx);
                let mut tx = store.begin().await.unwrap();
                tx.on()
                    .execute("INSERT INTO t (n) VALUES (1); DELETE FROM t")
                    .await
                    .unwrap();
                tx.commit().await.unwrap();
            }
            assert_eq!(count(store).await, 0);
        }
    }

    #[tokio::test]
    async fn a_statement_given_up_in_its_middle_is_not_answered_to_another() {
        let (_folder, [_, store]) = both("in_the_middle", 3).await;
        for n in 0..10_i64 {
            let mut holder = store.begin().await.unwrap();
            holder
                .on()
                .execute("SELECT pg_advisory_xact_lock(1)")
                .await
                .unwrap();
            let blocked =
                sqlx::query("SELECT CAST(7 AS BIGINT) AS n FROM (SELECT pg_advisory_xact_lock(1)) AS s");
            let mut given_up = Box::pin(blocked.fetch_all(&store.pool));
            // Sent, and not answered.
            let waits = "SELECT COUNT(*) AS n FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
            let deadline = Instant::now() + Duration::from_secs(20);
            loop {
                assert!(futures::poll!(&mut given_up).is_pending());
                let waiting = sqlx::query(waits).fetch_one(&store.pool).await.unwrap();
                if waiting.get::<i64, _>("n") > 0 {
                    break;
                }
                assert!(Instant::now() < deadline);
            }
            drop(given_up);
            assert!(store.pool.lock().is_empty(), "all are to be looked at");
            holder.commit().await.unwrap();
            let row = sqlx::query("SELECT $1 AS n").bind(n).fetch_one(&store.pool).await;
            assert_eq!(row.unwrap().get::<i64, _>("n"), n);
        }
    }

    /// Sends a statement, and gives it up before it is answered; where the answer was there at once, what came of it.
    async fn give_up<T>(store: &Store, call: impl Future<Output = T>) {
        let mut call = Box::pin(call);
        let is_answered = futures::poll!(&mut call).is_ready();
        drop(call);
        assert!(is_answered || store.pool.lock().is_empty());
    }

    #[tokio::test]
    async fn a_begin_or_a_commit_given_up_in_its_middle_leaves_no_transaction_behind() {
        let (_folder, stores) = both("given_up_half_way", 2).await;
        for store in &stores {
            let mut least = 0;
            for n in 0..20_i64 {
                give_up(store, store.begin()).await;

                let mut tx = store.begin().await.unwrap();
                let insert = sqlx::query("INSERT INTO t (n) VALUES ($1)").bind(n);
                insert.execute(tx.on()).await.unwrap();
                give_up(store, tx.commit()).await;
                // It was committed, or it was not; whoever comes next begins a transaction of its own.
                let tx = store.begin().await.unwrap();
                let now = count(store).await;
                assert!(now == least || now == least + 1, "{now} after {least}");
                least = now;
                tx.commit().await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_begin_given_up_keeps_the_writers_turn_until_it_is_rolled_back() {
        let (folder, [store, _]) = both("given_up_turn", 2).await;
        let url = format!("sqlite:{}", folder.path().join("x").display());
        let another_process = Store::connect(&url, 2).await.unwrap();
        let held = another_process.begin().await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        let next = loop {
            assert!(Instant::now() < deadline);
            // With a connection at hand, so that the first poll sends the statement; if it lay too long, once more.
            count(&store).await;
            let mut begun = Box::pin(store.begin());
            assert!(futures::poll!(&mut begun).is_pending());
            drop(begun);
            let mut next = Box::pin(store.writer_turn());
            if futures::poll!(&mut next).is_pending() {
                break next;
            }
        };
        held.commit().await.unwrap();
        tokio::time::timeout(Duration::from_secs(20), next).await.unwrap();
    }

    #[tokio::test]
    async fn calls_one_after_the_other_share_a_connection_and_many_at_once_as_many_as_there_may_be() {
        let (_folder, [_, store]) = both("shared_connections", 3).await;
        let backend = || async {
            let row = sqlx::query("SELECT CAST(pg_backend_pid() AS BIGINT) AS n")
                .fetch_one(&store.pool)
                .await;
            row.unwrap().get::<i64, _>("n")
        };
        let alone = [backend().await, backend().await];
        assert_eq!(alone[0], alone[1]);
        let at_once = futures::future::join_all((0..30).map(|_| backend())).await;
        let connections: std::collections::BTreeSet<i64> = at_once.into_iter().collect();
        assert!(connections.len() <= 3, "{connections:?}");
        // All that there may be are in use: the next waits for one of them.
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(store.begin().await.unwrap());
        }
        let mut next = Box::pin(backend());
        assert!(futures::poll!(&mut next).is_pending());
        assert_eq!(store.pool.places.available_permits(), 0);
        held.pop().unwrap().commit().await.unwrap();
        next.await;
        drop(held);
        store.close().await;
        let told = sqlx::query("SELECT 1").execute(&store.pool).await.unwrap_err();
        assert!(matches!(told, Error::PoolClosed), "{told:?}");
    }
}
