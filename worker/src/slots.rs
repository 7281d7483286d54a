//! The slots of a class, and how many grants the broker may hand out for them, as pure code.
//!
//! What is handed out and not acked is bounded by the consumer's prefetch; what is acked is not. So a consumer's
//! prefetch and the runs that it doesn't count never exceed the slots together: whatever the broker hands out can be run
//! at once. The grant of a quick run stays un-acked until its end, so that many of them go through one consumer. When
//! one turns out not to be quick, all are acked and the consumer is given up for one with a smaller prefetch.

use std::collections::{HashSet, VecDeque};

use pulp_model::TaskId;
use tokio::time::Instant;

/// What runs in the slots of a class.
#[derive(Debug)]
pub struct Slots {
    in_all: usize,
    /// Runs that the present consumer counts.
    counted: HashSet<TaskId>,
    /// Runs that it doesn't count.
    others: HashSet<TaskId>,
    /// When the counted ones are no longer quick, oldest first; those that ended may still be here.
    settle: VecDeque<(Instant, TaskId)>,
    /// Of the present consumer; none means that there is none.
    prefetch: Option<usize>,
}

impl Slots {
    /// So many, all free.
    pub fn new(slots: usize) -> Self {
        Self {
            in_all: slots,
            counted: HashSet::new(),
            others: HashSet::new(),
            settle: VecDeque::new(),
            prefetch: None,
        }
    }

    /// How many are free.
    pub fn free(&self) -> usize {
        self.in_all
            .saturating_sub(self.counted.len())
            .saturating_sub(self.others.len())
    }

    /// The prefetch of a new consumer that is to take the place of the present one; none if that one may go on.
    pub fn renew_prefetch(&mut self) -> Option<usize> {
        let possible = self.in_all.saturating_sub(self.others.len());
        let too_small = match self.prefetch {
            None => true,
            Some(present) => {
                // Not for every slot that becomes free: to change costs some answers of the broker.
                let idle = self.counted.is_empty() && self.others.is_empty();
                present * 2 <= possible || (idle && present < possible)
            }
        };
        let free = self.free();
        if !too_small || free == 0 || self.prefetch.is_some_and(|present| free <= present) {
            return None;
        }
        // The new one counts none of what runs.
        self.others.extend(self.counted.drain());
        self.prefetch = Some(free);
        self.prefetch
    }

    /// A run begins that the present consumer counts, and is quick until `quick_until`.
    pub fn begin(&mut self, task: TaskId, quick_until: Instant) {
        self.counted.insert(task);
        self.settle.push_back((quick_until, task));
    }

    /// A run is over.
    pub fn end(&mut self, task: TaskId) {
        self.counted.remove(&task);
        self.others.remove(&task);
        while let Some((_, oldest)) = self.settle.front()
            && !self.counted.contains(oldest)
            && !self.others.contains(oldest)
        {
            self.settle.pop_front();
        }
    }

    /// When the grants of what runs must be acked; none if they are.
    pub fn settle_at(&self) -> Option<Instant> {
        self.settle.front().map(|(at, _)| *at)
    }

    /// All grants were acked and the consumer given up, or it is lost with its session: it counts none of the runs.
    pub fn without_consumer(&mut self) {
        self.others.extend(self.counted.drain());
        self.settle.clear();
        self.prefetch = None;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Event {
        Deliver(usize),
        End(usize),
        Settle,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            4 => (1..8_usize).prop_map(Event::Deliver),
            4 => (0..8_usize).prop_map(Event::End),
            1 => Just(Event::Settle),
        ];
        prop::collection::vec(event, 0..120)
    }

    proptest! {
        /// The broker hands out as much as it may: as many as the prefetch allows beside what is un-acked.
        #[test]
        fn nothing_is_handed_out_that_can_not_be_run_at_once(slots in 1..9_usize, events in events()) {
            let mut model = Slots::new(slots);
            let now = Instant::now();
            // Runs that the present consumer handed out and that are not acked; all others.
            let (mut unacked, mut acked): (Vec<TaskId>, Vec<TaskId>) = (Vec::new(), Vec::new());
            let mut prefetch = 0;
            for event in events {
                if let Some(next) = model.renew_prefetch() {
                    prefetch = next;
                    acked.append(&mut unacked);
                }
                prop_assert!(prefetch + acked.len() <= slots);
                match event {
                    Event::Deliver(many) => {
                        for _ in 0..many.min(prefetch - unacked.len()) {
                            let id = TaskId::new();
                            unacked.push(id);
                            model.begin(id, now + Duration::from_millis(1));
                        }
                    }
                    Event::End(n) => {
                        let list = if n % 2 == 0 { &mut unacked } else { &mut acked };
                        if !list.is_empty() {
                            model.end(list.remove(n % list.len()));
                        }
                    }
                    Event::Settle => {
                        acked.append(&mut unacked);
                        prefetch = 0;
                        model.without_consumer();
                    }
                }
                prop_assert_eq!(model.free(), slots - unacked.len() - acked.len());
            }
            // When all has ended, every slot can be used.
            for id in unacked.drain(..).chain(acked.drain(..)) {
                model.end(id);
            }
            let last = model.renew_prefetch().unwrap_or(prefetch);
            prop_assert_eq!(last, slots);
            prop_assert!(model.settle_at().is_none());
        }
    }

    #[test]
    fn quick_runs_go_through_one_consumer() {
        let mut slots = Slots::new(2);
        assert_eq!(slots.renew_prefetch(), Some(2));
        for _ in 0..100 {
            let id = TaskId::new();
            slots.begin(id, Instant::now());
            assert_eq!(slots.renew_prefetch(), None);
            slots.end(id);
            assert_eq!(slots.settle_at(), None);
        }
    }

    #[test]
    fn a_long_run_takes_one_slot_and_leaves_the_others() {
        let mut slots = Slots::new(4);
        assert_eq!(slots.renew_prefetch(), Some(4));
        slots.begin(TaskId::new(), Instant::now());
        slots.without_consumer();
        assert_eq!((slots.renew_prefetch(), slots.free()), (Some(3), 3));
        for _ in 0..3 {
            slots.begin(TaskId::new(), Instant::now());
        }
        slots.without_consumer();
        assert_eq!((slots.renew_prefetch(), slots.free()), (None, 0));
    }
}
