//! Calls that arrive together are done together: one transaction, and one wait for the disk, serves all of them.
//!
//! Whoever comes when nothing is under way begins at once; whoever comes meanwhile is in the next batch. So a lone call
//! waits for nothing, and the busier it is, the less one costs.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, oneshot};

use crate::StoreError;

/// Does all of these together; if that fails for a fault that may be one's alone, each by itself.
pub(crate) async fn all_or_each<'q, Q, A, R>(
    questions: &'q [Q],
    together: impl Fn(&'q [Q]) -> R,
) -> Vec<Result<A, StoreError>>
where
    R: Future<Output = Result<Vec<A>, StoreError>>,
{
    match together(questions).await {
        Ok(answers) => answers.into_iter().map(Ok).collect(),
        Err(e) if questions.len() == 1 => vec![Err(e)],
        Err(e) if e.is_transient() => questions.iter().map(|_| Err(e.for_another())).collect(),
        Err(_) => {
            let mut answers = Vec::with_capacity(questions.len());
            for question in questions {
                let alone = together(std::slice::from_ref(question)).await;
                let left_out = || {
                    Err(StoreError::NotTogether(
                        "it was left without an answer".to_owned(),
                    ))
                };
                answers.push(alone.and_then(|one| one.into_iter().next().map_or_else(left_out, Ok)));
            }
            answers
        }
    }
}

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
    /// A batch once begun is brought to its end, also when this future is dropped. A question whose future was dropped
    /// before is asked no more: nobody wants it done at some later time.
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
            if self.lock().is_empty() {
                drop(turn);
                return answered.await.ok();
            }
            let batch: Vec<_> = {
                let mut calls = self.lock();
                calls.retain(|call| !call.answer.is_closed());
                let many = calls.len().min(MOST);
                calls.drain(..many).collect()
            };
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
    async fn a_call_given_up_before_its_batch_is_not_made_later() {
        let together: Together<usize, usize> = Together::default();
        let gate = Arc::new(Notify::new());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let all = |questions: Vec<usize>| {
            let (asked, gate) = (Arc::clone(&asked), Arc::clone(&gate));
            async move {
                asked.lock().unwrap().extend(questions.iter().copied());
                if questions == [1] {
                    gate.notified().await;
                }
                questions
            }
        };
        let mut first = Box::pin(together.ask(1, &all));
        assert!(futures::poll!(&mut first).is_pending());
        let mut given_up = Box::pin(together.ask(2, &all));
        assert!(futures::poll!(&mut given_up).is_pending());
        drop(given_up);
        gate.notify_one();
        assert_eq!(first.await, Some(1));
        assert_eq!(together.ask(3, &all).await, Some(3));
        assert_eq!(*asked.lock().unwrap(), [1, 3]);
    }

    #[tokio::test]
    async fn what_one_does_wrong_is_told_to_it_alone() {
        let together = |questions: &'static [usize]| async {
            if questions.contains(&2) {
                return Err(StoreError::Duplicate("two".to_owned()));
            }
            Ok(questions.to_vec())
        };
        let answers = all_or_each(&[1, 2, 3], together).await;
        assert!(
            matches!(answers.as_slice(), [Ok(1), Err(StoreError::Duplicate(_)), Ok(3)]),
            "{answers:?}"
        );
    }

    #[tokio::test]
    async fn a_call_without_an_answer_is_told_so_and_those_after_it_go_on() {
        let together: Together<(), ()> = Together::default();
        assert_eq!(together.ask((), |_| async { Vec::new() }).await, None);
        assert_eq!(together.ask((), |_| async { vec![()] }).await, Some(()));
    }
}
