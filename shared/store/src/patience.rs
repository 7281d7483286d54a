//! No call to the database waits for ever.
//!
//! PostgreSQL ends a statement that takes too long and says so. A server that is gone says nothing: behind a network
//! that drops what it is given, or after a power cut, a client that waits for an answer would wait until the kernel
//! gives up its connection, a quarter of an hour later or never. So each wait has an end of its own, later than the
//! server's; a connection that was waited for in vain is closed, not used again.

use std::{io, time::Duration};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream, stream::BoxStream};
use sqlx::{Any, AnyConnection, Connection as _, Either, Error, Execute, Executor, SqlStr, any::AnyRow};

use crate::Engine;

/// How long PostgreSQL may take for the next piece of an answer: more than its own `statement_timeout`, so that whoever
/// can be reached tells by itself.
const LONGEST_ANSWER: Duration = Duration::from_secs(35);

/// How long a connection that comes back to the pool may take to show that it lives.
pub(crate) const LONGEST_SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// How long an engine is waited for; none for SQLite, which is in this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience(Option<Duration>);

impl Patience {
    pub(crate) const fn with(engine: Engine) -> Self {
        match engine {
            Engine::Postgres => Self(Some(LONGEST_ANSWER)),
            Engine::Sqlite => Self(None),
        }
    }

    /// Waits for one answer.
    pub(crate) async fn wait<T>(self, answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        match self.0 {
            None => answer.await,
            Some(patience) => match tokio::time::timeout(patience, answer).await {
                Ok(answer) => answer,
                Err(_) => Err(late()),
            },
        }
    }

    /// Waits for each of several.
    fn wait_for_each<'e, T: Send + 'e>(
        self,
        answers: BoxStream<'e, Result<T, Error>>,
    ) -> BoxStream<'e, Result<T, Error>> {
        let Some(patience) = self.0 else { return answers };
        stream::unfold(Some(answers), move |answers| async move {
            let mut answers = answers?;
            match tokio::time::timeout(patience, answers.next()).await {
                Ok(None) => None,
                Ok(Some(answer)) => Some((answer, Some(answers))),
                Err(_) => Some((Err(late()), None)),
            }
        })
        .boxed()
    }
}

fn late() -> Error {
    Error::Io(io::Error::new(
        io::ErrorKind::TimedOut,
        "the database did not answer in time",
    ))
}

/// Whether a connection that comes back to the pool is to be kept. Without this the pool itself would wait for ever for
/// one that is dead, and count it as in use.
pub(crate) async fn lives(connection: &mut AnyConnection, engine: Engine) -> Result<bool, Error> {
    if engine == Engine::Postgres {
        let sign = tokio::time::timeout(LONGEST_SIGN_OF_LIFE, connection.ping()).await;
        sign.unwrap_or_else(|_| Err(late()))?;
    }
    Ok(true)
}

/// A transaction's connection, waited for with patience.
#[derive(Debug)]
pub(crate) struct Patient<'c> {
    /// None answers every statement as a closed pool does.
    pub(crate) inner: Option<&'c mut AnyConnection>,
    pub(crate) patience: Patience,
}

impl<'c> Executor<'c> for Patient<'c> {
    type Database = Any;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<sqlx::any::AnyQueryResult, AnyRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Any>,
    {
        match self.inner {
            Some(connection) => self.patience.wait_for_each(connection.fetch_many(query)),
            None => stream::once(std::future::ready(Err(Error::PoolClosed))).boxed(),
        }
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<AnyRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Any>,
    {
        match self.inner {
            Some(connection) => self.patience.wait(connection.fetch_optional(query)).boxed(),
            None => std::future::ready(Err(Error::PoolClosed)).boxed(),
        }
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [sqlx::any::AnyTypeInfo],
    ) -> BoxFuture<'e, Result<sqlx::any::AnyStatement, Error>>
    where
        'c: 'e,
    {
        match self.inner {
            Some(connection) => self
                .patience
                .wait(connection.prepare_with(sql, parameters))
                .boxed(),
            None => std::future::ready(Err(Error::PoolClosed)).boxed(),
        }
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<Any>, Error>>
    where
        'c: 'e,
    {
        match self.inner {
            Some(connection) => self.patience.wait(connection.describe(sql)).boxed(),
            None => std::future::ready(Err(Error::PoolClosed)).boxed(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{StoreError, pool::Pool};

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_never_comes_is_not_waited_for_for_ever() {
        let patience = Patience::with(Engine::Postgres);
        let told = patience.wait(std::future::pending::<Result<(), Error>>()).await;
        assert!(StoreError::from(told.unwrap_err()).is_transient());
        let rows = stream::iter([Ok(1), Ok(2)]).chain(stream::pending()).boxed();
        let read: Vec<Result<i32, Error>> = patience.wait_for_each(rows).collect().await;
        assert!(
            matches!(read.as_slice(), [Ok(1), Ok(2), Err(Error::Io(_))]),
            "{read:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_answer_is_no_late_one() {
        let patience = Patience::with(Engine::Postgres);
        let slow = |n: i32| async move {
            tokio::time::sleep(LONGEST_ANSWER / 2).await;
            Ok(n)
        };
        let rows = stream::iter(0..9).then(slow).boxed();
        let read: Vec<i32> = patience
            .wait_for_each(rows)
            .map(|row: Result<i32, Error>| row.unwrap())
            .collect()
            .await;
        assert_eq!(read.len(), 9);
    }

    /// Takes connections and answers nothing, as behind a network that drops what it is given.
    #[tokio::test]
    async fn a_connection_that_went_silent_leaves_the_pool() {
        let url = pulp_testkit::shared_postgres()
            .unwrap()
            .create_database("silent")
            .unwrap();
        let pool = Pool::new(
            sqlx::any::AnyPoolOptions::new()
                .max_connections(1)
                .after_release(|connection, _| {
                    Box::pin(async move { lives(connection, Engine::Postgres).await })
                })
                .connect_lazy(&{
                    sqlx::any::install_default_drivers();
                    url
                })
                .unwrap(),
            Patience(Some(Duration::from_millis(200))),
        );
        // The server is busy with this for longer than anybody waits, which is as good as silent.
        let told = pool.execute("SELECT pg_sleep(60)").await.unwrap_err();
        assert!(matches!(told, Error::Io(_)), "{told:?}");
        // The only place of the pool is free again once the dead connection was given up.
        let next = pool.acquire();
        let next = tokio::time::timeout(LONGEST_SIGN_OF_LIFE * 3, next)
            .await
            .unwrap();
        next.unwrap().patient().execute("SELECT 1").await.unwrap();
    }
}
