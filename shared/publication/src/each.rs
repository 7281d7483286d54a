//! Many small file operations: one after the other where each takes microseconds, many at once where each waits for
//! a network.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

/// What an operation takes on a network volume at least. On a local disk it is a hundredth of this.
const SLOW: Duration = Duration::from_micros(500);

/// Operations that are timed before it is decided.
const TRIED: usize = 8;

/// Operations at once on a slow volume.
const AT_ONCE: usize = 32;

/// Does `run` to each item; results in the order of the items.
pub(crate) fn each<T: Sync, R: Send>(items: &[T], run: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let begun = Instant::now();
    let (tried, left) = items.split_at(items.len().min(TRIED));
    let mut results: Vec<R> = tried.iter().map(&run).collect();
    let slow = begun.elapsed() >= SLOW.saturating_mul(u32::try_from(tried.len()).unwrap_or(1));
    if slow && left.len() > 1 {
        results.extend(at_once(left, &run));
    } else {
        results.extend(left.iter().map(run));
    }
    results
}

/// Does `run` to each item, many at once; results in the order of the items.
pub(crate) fn at_once<T: Sync, R: Send>(items: &[T], run: &(impl Fn(&T) -> R + Sync)) -> Vec<R> {
    if items.len() < 2 {
        return items.iter().map(run).collect();
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            match items.get(n) {
                Some(item) => done.push((n, run(item))),
                None => return done,
            }
        }
    };
    let mut results: Vec<(usize, R)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE.min(items.len())).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .flat_map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    results.sort_unstable_by_key(|(n, _)| *n);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_or_quick_the_results_are_in_the_order_of_the_items() {
        let items: Vec<usize> = (0..300).collect();
        let expected: Vec<usize> = items.iter().map(|n| n * 2).collect();
        assert_eq!(each(&items, |n| n * 2), expected);
        assert_eq!(at_once(&items, &|n: &usize| n * 2), expected);
    }
}
