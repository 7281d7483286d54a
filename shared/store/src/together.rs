//! Calls that arrive together are done together: one transaction, and one wait for the disk, serves all of them.
//!
//! Whoever comes when nothing is under way begins at once; whoever comes meanwhile is in the next batch. So a lone call
//! waits for nothing, and the busier it is, the less one costs.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, oneshot};

/// Calls of one kind. Clones are handles of the same.
pub(crate) struct Together<Q, A>(Arc<Waiting<Q, A>>);

struct Waiting<Q, A> {
    calls: Mutex<Vec<Call<Q, A>>>,
    /// Held while a batch is under way.
    turn: Arc<AsyncMutex<()>>,
}

struct Call<Q, A> {
    question: Q,
    answer: oneshot::Sender<A>,
}

/// Calls of one batch at most.
const MOST: usize = 256;

impl<Q, A> Clone for Together<Q, A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<Q, A> Default for Together<Q, A> {
    fn default() -> Self {
        Self(Arc::new(Waiting {
            calls: Mutex::default(),
            turn: Arc::default(),
        }))
    }
}

impl<Q: Send + 'static, A: Send + 'static> Together<Q, A> {
    /// Asks; `all` answers a batch of questions, one each and in their order. None if it left this one without.
    ///
    /// A batch once begun is brought to its end, also when this future is dropped.
    pub(crate) async fn ask<F, R>(&self, question: Q, all: F) -> Option<A>
    where
        F: Fn(Vec<Q>) -> R,
        R: Future<Output = Vec<A>> + Send + 'static,
    {
        let (answer, mut answered) = oneshot::channel();
        self.lock().push(Call { question, answer });
        loop {
            let turn = tokio::select! {
                biased;
                answer = &mut answered => return answer.ok(),
                turn = Arc::clone(&self.0.turn).lock_owned() => turn,
            };
            let batch: Vec<_> = {
                let mut calls = self.lock();
                let many = calls.len().min(MOST);
                calls.drain(..many).collect()
            };
            if batch.is_empty() {
                drop(turn);
                return answered.await.ok();
            }
            let (questions, answers): (Vec<Q>, Vec<_>) =
                batch.into_iter().map(|call| (call.question, call.answer)).unzip();
            let done = all(questions);
            tokio::spawn(async move {
                for (answer, to) in done.await.into_iter().zip(answers) {
                    // Whoever asked may have gone.
                    let _ = to.send(answer);
                }
                drop(turn);
            });
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Call<Q, A>>> {
        self.0.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn calls_that_come_while_a_batch_is_under_way_are_the_next_one() {
        let together: Together<usize, usize> = Together::default();
        let (batches, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let all = |questions: Vec<usize>| {
            let (batches, gate) = (Arc::clone(&batches), Arc::clone(&gate));
            async move {
                if batches.fetch_add(1, Ordering::SeqCst) == 0 {
                    gate.notified().await;
                }
                questions.into_iter().map(|n| n * 2).collect()
            }
        };
        let calls = (0..100).map(|n| together.ask(n, &all));
        let calls = futures_of(calls);
        tokio::pin!(calls);
        // All of them have been polled once: the first batch holds the first call alone.
        assert!(futures::poll!(&mut calls).is_pending());
        gate.notify_one();
        let answers = calls.await;
        assert_eq!(answers, (0..100).map(|n| Some(n * 2)).collect::<Vec<_>>());
        assert_eq!(batches.load(Ordering::SeqCst), 2);
    }

    fn futures_of<F: Future>(calls: impl Iterator<Item = F>) -> futures::future::JoinAll<F> {
        futures::future::join_all(calls)
    }

    #[tokio::test]
    async fn more_calls_than_a_batch_holds_are_all_answered() {
        let together: Together<usize, usize> = Together::default();
        let all = |questions: Vec<usize>| async move {
            assert!(questions.len() <= MOST);
            tokio::task::yield_now().await;
            questions
        };
        let answers = futures::future::join_all((0..1000).map(|n| together.ask(n, &all))).await;
        assert_eq!(answers, (0..1000).map(Some).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_call_without_an_answer_is_told_so_and_those_after_it_go_on() {
        let together: Together<(), ()> = Together::default();
        assert_eq!(together.ask((), |_| async { Vec::new() }).await, None);
        assert_eq!(together.ask((), |_| async { vec![()] }).await, Some(()));
    }
}
