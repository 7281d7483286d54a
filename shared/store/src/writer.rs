//! SQLite's writer: a thread that does what every task goes through, all that waits in one transaction.
//!
//! SQLite has one writer at a time, and each commit has its price. So whoever wants one of these [steps](crate::steps) leaves
//! it here, and the thread takes all that are there, whatever they are, once it has the writer's turn. If one fails, all are
//! undone, and each is done by itself. What must outlive a crash of the machine is answered by a second thread, which waits for the
//! disk while the next transaction goes on; see [`crate::wal`].
//!
//! Everything else goes through [transactions](crate::Tx) of the library, on SQLite as on PostgreSQL.

use std::{
    iter,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
};

use pulp_model::Timestamp;
use rusqlite::{CachedStatement, Connection, Params};
use tokio::sync::{Mutex as AsyncMutex, oneshot};

use crate::{
    StoreError,
    engine::{SQLITE_SETTINGS, sqlite_now},
    outbox::{Fresh, Message, OutboxRow},
    wal::Wal,
};

/// Calls of one transaction at most.
const MOST: usize = 256;

/// Statements that are kept compiled: more than there are.
const STATEMENTS: usize = 64;

/// Keeps 16 MiB of pages: what tasks touch again and again is more than SQLite's 2. And looks up no task before it writes what
/// belongs to it: each step has made or found it in the same transaction, and deletes none.
const OF_ITS_OWN: &str = "PRAGMA cache_size = -16384; PRAGMA foreign_keys = OFF";

/// The way to the thread, which begins with the first call.
pub(crate) struct Writer {
    place: Place,
    state: Mutex<State>,
}

/// What the thread works on.
#[derive(Clone)]
pub(crate) struct Place {
    /// The database.
    pub(crate) path: PathBuf,
    /// The writer's turn.
    pub(crate) turn: Arc<AsyncMutex<()>>,
    /// Where messages are left for the relay.
    pub(crate) fresh: Arc<Fresh>,
    /// Whether they have rows until they are sent.
    pub(crate) has_outbox: bool,
    /// When a commit outlives a crash of the machine.
    pub(crate) wal: Wal,
}

enum State {
    Idle,
    Working(mpsc::Sender<Box<dyn Call>>, JoinHandle<()>),
    Closed,
}

/// A step that somebody waits for.
trait Call: Send {
    /// Does it. May be asked for again, when what was done was undone.
    fn run(&mut self, writing: &mut Writing<'_>) -> Result<(), StoreError>;

    /// Tells what it came to, or why it came to nothing.
    fn answer(self: Box<Self>, fault: Option<StoreError>);

    /// Whether its answer waits for the disk.
    fn is_durable(&self) -> bool;

    /// Whether somebody still waits for it.
    fn is_wanted(&self) -> bool;
}

struct Asked<A, F> {
    step: F,
    is_durable: bool,
    done: Option<A>,
    to: oneshot::Sender<Result<A, StoreError>>,
}

impl<A, F> Call for Asked<A, F>
where
    A: Send,
    F: FnMut(&mut Writing<'_>) -> Result<A, StoreError> + Send,
{
    fn run(&mut self, writing: &mut Writing<'_>) -> Result<(), StoreError> {
        self.done = Some((self.step)(writing)?);
        Ok(())
    }

    fn answer(self: Box<Self>, fault: Option<StoreError>) {
        let answer = match (fault, self.done) {
            (None, Some(done)) => Ok(done),
            (Some(fault), _) => Err(fault),
            (None, None) => Err(ended()),
        };
        // Whoever asked may have gone.
        let _ = self.to.send(answer);
    }

    fn is_durable(&self) -> bool {
        self.is_durable
    }

    fn is_wanted(&self) -> bool {
        !self.to.is_closed()
    }
}

impl Writer {
    pub(crate) fn new(place: Place) -> Self {
        Self {
            place,
            state: Mutex::new(State::Idle),
        }
    }

    /// The same, whose messages have rows, or have not.
    pub(crate) fn with_outbox(&self, has_outbox: bool) -> Self {
        Self::new(Place {
            has_outbox,
            ..self.place.clone()
        })
    }

    /// Does this step in a transaction shared with others; what it answers is on the disk. Once begun it is brought to its end,
    /// also when this future is dropped; before, it is left out then.
    pub(crate) async fn ask<A: Send + 'static>(
        &self,
        step: impl FnMut(&mut Writing<'_>) -> Result<A, StoreError> + Send + 'static,
    ) -> Result<A, StoreError> {
        self.answer_to(step, true).await
    }

    /// The same of what need not outlive a crash of the machine; see [`crate::Store::begin_repeatable`].
    pub(crate) async fn ask_repeatable<A: Send + 'static>(
        &self,
        step: impl FnMut(&mut Writing<'_>) -> Result<A, StoreError> + Send + 'static,
    ) -> Result<A, StoreError> {
        self.answer_to(step, false).await
    }

    async fn answer_to<A: Send + 'static>(
        &self,
        step: impl FnMut(&mut Writing<'_>) -> Result<A, StoreError> + Send + 'static,
        is_durable: bool,
    ) -> Result<A, StoreError> {
        let (to, answer) = oneshot::channel();
        self.leave(Box::new(Asked {
            step,
            is_durable,
            done: None,
            to,
        }))?;
        answer.await.map_err(|_| ended())?
    }

    /// Gives the call to the thread; to another one, should it have come to an end that it should not have.
    fn leave(&self, call: Box<dyn Call>) -> Result<(), StoreError> {
        let mut state = self.lock();
        let call = match &*state {
            State::Closed => return Err(ended()),
            State::Idle => call,
            State::Working(calls, _) => match calls.send(call) {
                Ok(()) => return Ok(()),
                Err(mpsc::SendError(call)) => call,
            },
        };
        let (calls, left) = mpsc::channel();
        let place = self.place.clone();
        let thread = thread::Builder::new()
            .name("sqlite-writer".to_owned())
            .spawn(move || Thread::new(place).serve(&left))
            .map_err(sqlx::Error::Io)?;
        let is_left = calls.send(call).map_err(|_| ended());
        *state = State::Working(calls, thread);
        is_left
    }

    /// Takes no more, and returns once all that was left is done and the connection closed.
    pub(crate) async fn close(&self) {
        let state = std::mem::replace(&mut *self.lock(), State::Closed);
        if let State::Working(calls, thread) = state {
            drop(calls);
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ended() -> StoreError {
    StoreError::NotTogether("its writer has ended".to_owned())
}

/// The transaction that is under way, as a step sees it.
pub(crate) struct Writing<'c> {
    connection: &'c Connection,
    now: Timestamp,
    told: Vec<OutboxRow>,
    has_outbox: bool,
}

impl<'c> Writing<'c> {
    /// The database's clock, as it was when the transaction had the only writer's place.
    pub(crate) const fn now(&self) -> Timestamp {
        self.now
    }

    /// A statement, compiled once.
    pub(crate) fn statement(&self, sql: &str) -> Result<CachedStatement<'c>, StoreError> {
        Ok(self.connection.prepare_cached(sql)?)
    }

    /// Runs one that gives nothing.
    pub(crate) fn execute(&self, sql: &str, parameters: impl Params) -> Result<(), StoreError> {
        self.statement(sql)?.execute(parameters)?;
        Ok(())
    }

    /// Leaves a message for the relay, which has it once this is committed.
    pub(crate) fn tell(&mut self, message: Message) -> Result<(), StoreError> {
        let row = message.row();
        if self.has_outbox {
            let sql = "INSERT INTO outbox (id, queue, body, traceparent, tracestate, created) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            let (parent, state) = (row.traceparent(), row.tracestate());
            let now = self.now.micros();
            self.execute(sql, (&row.id, &row.queue, row.body(), parent, state, now))?;
        }
        self.told.push(row);
        Ok(())
    }
}

struct Thread {
    place: Place,
    /// None before the first transaction, and after one that left it in doubt.
    connection: Option<Connection>,
}

impl Thread {
    const fn new(place: Place) -> Self {
        Self {
            place,
            connection: None,
        }
    }

    /// Does what is left here, until nobody can leave anything more.
    fn serve(mut self, left: &mpsc::Receiver<Box<dyn Call>>) {
        let (committed, waiting) = mpsc::channel();
        let wal = self.place.wal.clone();
        let disk = thread::Builder::new()
            .name("sqlite-disk".to_owned())
            .spawn(move || answer_once_on_disk(&wal, &waiting));
        let Ok(disk) = disk else {
            // Whoever asks is told that nobody is here.
            return;
        };
        while let Ok(first) = left.recv() {
            let turn = Arc::clone(&self.place.turn).blocking_lock_owned();
            let calls = iter::once(first).chain(left.try_iter()).take(MOST);
            let wanted: Vec<_> = calls.filter(|call| call.is_wanted()).collect();
            if !wanted.is_empty() {
                self.do_together(wanted, &committed);
            }
            drop(turn);
        }
        drop(committed);
        let _ = disk.join();
    }

    fn do_together(&mut self, mut calls: Vec<Box<dyn Call>>, committed: &mpsc::Sender<Vec<Box<dyn Call>>>) {
        match self.transaction(&mut calls) {
            Ok(told) => {
                self.place.fresh.committed(told, self.place.has_outbox);
                let (durable, others): (Vec<_>, Vec<_>) =
                    calls.into_iter().partition(|call| call.is_durable());
                for call in others {
                    call.answer(None);
                }
                // The receiver lives as long as this sender.
                let _ = committed.send(durable);
            }
            Err(e) if e.is_transient() || calls.len() == 1 => {
                let mut calls = calls.into_iter();
                let last = calls.next_back();
                calls.for_each(|call| call.answer(Some(e.for_another())));
                if let Some(last) = last {
                    last.answer(Some(e));
                }
            }
            Err(_) => {
                for call in calls {
                    self.do_together(vec![call], committed);
                }
            }
        }
    }

    /// All of them, or none; what they tell the relay.
    fn transaction(&mut self, calls: &mut [Box<dyn Call>]) -> Result<Vec<OutboxRow>, StoreError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let mut writing = Writing {
            connection: &connection,
            now: sqlite_now(),
            told: Vec::new(),
            has_outbox: self.place.has_outbox,
        };
        let done = calls.iter_mut().try_for_each(|call| call.run(&mut writing));
        let done = done.and_then(|()| writing.execute("COMMIT", []));
        let told = writing.told;
        if done.is_err() {
            // Some faults have rolled it back already. To close a connection is to roll back, too.
            let _ = connection.execute_batch("ROLLBACK");
        }
        if connection.is_autocommit() {
            self.connection = Some(connection);
        }
        done.map(|()| told)
    }

    fn connect(&self) -> Result<Connection, StoreError> {
        let connection = Connection::open(&self.place.path)?;
        connection.execute_batch(SQLITE_SETTINGS)?;
        connection.execute_batch(OF_ITS_OWN)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        Ok(connection)
    }
}

/// Answers those whose transaction was committed, once the disk has it.
fn answer_once_on_disk(wal: &Wal, committed: &mpsc::Receiver<Vec<Box<dyn Call>>>) {
    while let Ok(first) = committed.recv() {
        let calls: Vec<_> = iter::once(first).chain(committed.try_iter()).flatten().collect();
        if calls.is_empty() {
            continue;
        }
        let fault = wal.sync_here().err().map(|e| e.to_string());
        for call in calls {
            call.answer(fault.clone().map(StoreError::NotOnDisk));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use futures::future::join_all;
    use pulp_model::TaskId;

    use super::*;
    use crate::Store;

    async fn store(folder: &tempfile::TempDir) -> Store {
        let url = format!("sqlite:{}", folder.path().join("x").display());
        let store = Store::connect(&url, 2).await.unwrap();
        store.migrate().await.unwrap();
        store
    }

    fn writer(store: &Store) -> &Writer {
        store.writer.as_ref().unwrap()
    }

    /// Leaves a row of this name; gives when.
    fn note(name: &'static str) -> impl FnMut(&mut Writing<'_>) -> Result<Timestamp, StoreError> {
        move |writing| {
            let sql = "INSERT INTO leases (role, holder, epoch, acquired, expires) VALUES (?1, 'x', 1, 1, 1)";
            writing.execute(sql, [name])?;
            writing.tell(Message::ended(TaskId::new()))?;
            Ok(writing.now())
        }
    }

    async fn notes(store: &Store) -> Vec<String> {
        let rows = sqlx::query("SELECT role FROM leases ORDER BY role").fetch_all(&store.pool);
        let rows = rows.await.unwrap();
        rows.iter().map(|row| sqlx::Row::get(row, "role")).collect()
    }

    #[tokio::test]
    async fn calls_that_wait_for_the_turn_share_a_transaction() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let held = store.begin().await.unwrap();
        let calls = ["a", "b", "c"].map(|name| writer(&store).ask(note(name)));
        let release = async {
            // Later than any of them was asked for, by more than the clock's grain.
            tokio::time::sleep(Duration::from_millis(20)).await;
            held.commit().await.unwrap();
        };
        let (at, ()) = tokio::join!(join_all(calls), release);
        let at: Vec<Timestamp> = at.into_iter().map(Result::unwrap).collect();
        assert!(at.iter().all(|instant| *instant == at[0]), "{at:?}");
        assert_eq!(store.outbox_fresh(10).len(), 3);
    }

    #[tokio::test]
    async fn what_one_does_wrong_undoes_nothing_of_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let held = store.begin().await.unwrap();
        // The second one's key is that of the first.
        let calls = ["a", "a", "b"].map(|name| writer(&store).ask(note(name)));
        let (answers, held) = tokio::join!(join_all(calls), held.commit());
        held.unwrap();
        assert!(
            matches!(answers.as_slice(), [Ok(_), Err(StoreError::Database(_)), Ok(_)]),
            "{answers:?}"
        );
        assert_eq!(notes(&store).await, ["a", "b"]);
        assert_eq!(
            store.outbox_fresh(10).len(),
            2,
            "nothing is told of what was undone"
        );
        assert_eq!(store.outbox_depth().await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_call_that_was_given_up_before_it_began_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let held = store.begin().await.unwrap();
        let mut given_up = Box::pin(writer(&store).ask(note("a")));
        assert!(futures::poll!(&mut given_up).is_pending());
        drop(given_up);
        held.commit().await.unwrap();
        writer(&store).ask(note("b")).await.unwrap();
        assert_eq!(notes(&store).await, ["b"]);
    }

    #[tokio::test]
    async fn an_answer_waits_for_the_disk_unless_what_was_done_need_not_outlive_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        store.wal.as_ref().unwrap().refuse();
        writer(&store).ask_repeatable(note("a")).await.unwrap();
        let told = writer(&store).ask(note("b")).await;
        assert!(matches!(told, Err(StoreError::NotOnDisk(_))), "{told:?}");
        // It was committed all the same, and so were its messages.
        assert_eq!(notes(&store).await, ["a", "b"]);
        assert_eq!(store.outbox_fresh(10).len(), 2);
    }

    #[tokio::test]
    async fn what_was_left_is_done_before_it_closes_and_nothing_after() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let (answer, ()) = tokio::join!(writer(&store).ask(note("a")), writer(&store).close());
        answer.unwrap();
        let told = writer(&store).ask(note("b")).await;
        assert!(told.unwrap_err().is_transient());
        assert_eq!(notes(&store).await, ["a"]);
    }

    #[tokio::test]
    async fn a_step_that_panics_costs_those_who_shared_its_transaction_and_nobody_after() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let panics = |_: &mut Writing<'_>| -> Result<(), StoreError> { panic!("on purpose") };
        let told = writer(&store).ask(panics).await;
        assert!(told.unwrap_err().is_transient());
        writer(&store).ask(note("a")).await.unwrap();
        assert_eq!(notes(&store).await, ["a"]);
    }

    #[tokio::test]
    async fn messages_have_no_rows_where_nobody_would_look_for_them() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await.with_messages_in_memory();
        writer(&store).ask(note("a")).await.unwrap();
        assert_eq!(store.outbox_depth().await.unwrap(), 0);
        assert_eq!(store.outbox_fresh(10).len(), 1);
    }
}
