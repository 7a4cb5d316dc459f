//! The FIFO permits: the right to hold a lease, N of them, first come, first served.
//! They know nothing of connections.
//!
//! One word says how many permits are free, and whether anybody queues. While nobody queues, taking
//! and returning a permit is one compare-exchange. While somebody does, a returned permit is handed
//! to the first in the queue under the lock, so that no newcomer can overtake.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicU8, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use std::time::Instant;

use event_listener::{Event, Listener};
use parking_lot::Mutex;

/// Somebody queues. While it is set, no permit is free, and only the queue's lock holder may change
/// the word.
const QUEUED: usize = 1 << (usize::BITS - 1);
/// No permit will be given any more.
const CLOSED: usize = 1 << (usize::BITS - 2);
const FREE: usize = CLOSED - 1;

/// N permits.
#[derive(Debug)]
pub(crate) struct Permits {
    word: AtomicUsize,
    queue: Mutex<VecDeque<Arc<Waiter>>>,
}

/// One caller in the queue. The answer is written under the queue's lock, by whoever takes the
/// waiter out of the queue.
#[derive(Debug, Default)]
struct Waiter {
    answer: AtomicU8,
    answered: Event,
}

const NO_ANSWER: u8 = 0;
const GRANTED: u8 = 1;
const REFUSED: u8 = 2;

/// Why there is no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The deadline passed; so many others were still waiting.
    TimedOut { waiting: usize },
    /// The permits are closed.
    Closed,
}

impl Permits {
    pub(crate) fn new(n: usize) -> Permits {
        Permits {
            word: AtomicUsize::new(n & FREE),
            queue: Mutex::default(),
        }
    }

    /// Takes a permit, waiting until `deadline` (`None`: not at all).
    ///
    /// Whoever gets `Ok` owes one [`release`](Permits::release).
    pub(crate) fn acquire(&self, deadline: Option<Instant>) -> Result<(), Refusal> {
        if self.acquire_free() {
            return Ok(());
        }
        let waiter = {
            let mut queue = self.queue.lock();
            loop {
                let word = self.word.load(Acquire);
                if word & CLOSED != 0 {
                    return Err(Refusal::Closed);
                }
                if word & QUEUED == 0 && word & FREE > 0 {
                    // A permit came back since; others may still take or return one without the lock.
                    if self.swap(word, word - 1) {
                        return Ok(());
                    }
                    continue;
                }
                if deadline.is_none() {
                    return Err(Refusal::TimedOut {
                        waiting: queue.len(),
                    });
                }
                if word & QUEUED != 0 || self.swap(word, word | QUEUED) {
                    break;
                }
            }
            let waiter = Arc::new(Waiter::default());
            queue.push_back(Arc::clone(&waiter));
            waiter
        };
        self.wait(&waiter, deadline)
    }

    fn wait(&self, waiter: &Arc<Waiter>, deadline: Option<Instant>) -> Result<(), Refusal> {
        loop {
            // Listening before looking: an answer given in between still wakes us.
            let listener = waiter.answered.listen();
            if let Some(answer) = waiter.answer() {
                return answer;
            }
            let in_time = match deadline {
                Some(deadline) => listener.wait_deadline(deadline).is_some(),
                None => false,
            };
            if !in_time {
                return self.leave(waiter);
            }
        }
    }

    /// The deadline has passed: leaves the queue, or takes the answer that came just before.
    fn leave(&self, waiter: &Arc<Waiter>) -> Result<(), Refusal> {
        let mut queue = self.queue.lock();
        if let Some(answer) = waiter.answer() {
            return answer;
        }
        queue.retain(|other| !Arc::ptr_eq(other, waiter));
        if queue.is_empty() {
            self.word.fetch_and(!QUEUED, Release);
        }
        Err(Refusal::TimedOut {
            waiting: queue.len(),
        })
    }

    /// Takes a permit if one is free and nobody waits. It fails, too, if the permits are closed.
    pub(crate) fn acquire_free(&self) -> bool {
        let mut word = self.word.load(Relaxed);
        while word & (QUEUED | CLOSED) == 0 && word & FREE > 0 {
            match self
                .word
                .compare_exchange_weak(word, word - 1, Acquire, Relaxed)
            {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    /// Returns a permit: to the first waiter, if there is one.
    pub(crate) fn release(&self) {
        let mut word = self.word.load(Relaxed);
        while word & QUEUED == 0 {
            match self
                .word
                .compare_exchange_weak(word, word + 1, Release, Relaxed)
            {
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
        let mut queue = self.queue.lock();
        match queue.pop_front() {
            Some(first) => {
                if queue.is_empty() {
                    self.word.fetch_and(!QUEUED, Release);
                }
                first.decide(GRANTED);
            }
            // The last waiter left, and cleared QUEUED, before we had the lock.
            None => {
                self.word.fetch_add(1, Release);
            }
        }
    }

    /// Refuses everybody who waits, and everybody who will ask. Permits held are still to be returned.
    pub(crate) fn close(&self) {
        let mut queue = self.queue.lock();
        self.word.fetch_or(CLOSED, AcqRel);
        for waiter in queue.drain(..) {
            waiter.decide(REFUSED);
        }
        self.word.fetch_and(!QUEUED, Release);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.word.load(Acquire) & CLOSED != 0
    }

    /// Takes one free permit out of circulation, also of closed permits.
    pub(crate) fn withdraw(&self) {
        let mut word = self.word.load(Relaxed);
        while word & FREE > 0 {
            match self
                .word
                .compare_exchange_weak(word, word - 1, AcqRel, Relaxed)
            {
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
    }

    /// How many permits are neither held nor withdrawn.
    pub(crate) fn free(&self) -> usize {
        self.word.load(Acquire) & FREE
    }

    /// How many callers wait.
    pub(crate) fn waiting(&self) -> usize {
        match self.word.load(Relaxed) & QUEUED {
            0 => 0,
            _ => self.queue.lock().len(),
        }
    }

    fn swap(&self, from: usize, to: usize) -> bool {
        self.word
            .compare_exchange(from, to, AcqRel, Relaxed)
            .is_ok()
    }
}

impl Waiter {
    fn answer(&self) -> Option<Result<(), Refusal>> {
        match self.answer.load(Acquire) {
            NO_ANSWER => None,
            GRANTED => Some(Ok(())),
            _ => Some(Err(Refusal::Closed)),
        }
    }

    fn decide(&self, answer: u8) {
        self.answer.store(answer, Release);
        self.answered.notify(usize::MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn soon() -> Option<Instant> {
        Some(Instant::now() + Duration::from_secs(20))
    }

    fn wait_until_waiting(permits: &Permits, n: usize) {
        while permits.waiting() != n {
            thread::yield_now();
        }
    }

    #[test]
    fn there_are_as_many_as_asked_for() {
        let permits = Permits::new(2);
        assert_eq!(permits.acquire(None), Ok(()));
        assert_eq!(permits.acquire(None), Ok(()));
        assert_eq!(permits.acquire(None), Err(Refusal::TimedOut { waiting: 0 }));
        permits.release();
        assert_eq!(permits.acquire(None), Ok(()));
    }

    #[test]
    fn waiters_are_served_in_the_order_they_came() {
        let permits = Permits::new(1);
        permits.acquire(None).unwrap();
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            for i in 0..16 {
                let (permits, tell) = (&permits, tell.clone());
                scope.spawn(move || {
                    permits.acquire(soon()).unwrap();
                    tell.send(i).unwrap();
                    permits.release();
                });
                wait_until_waiting(permits, i + 1);
            }
            permits.release();
        });
        drop(tell);
        assert_eq!(told.iter().collect::<Vec<_>>(), (0..16).collect::<Vec<_>>());
    }

    #[test]
    fn a_newcomer_does_not_overtake_a_waiter() {
        let permits = Permits::new(1);
        permits.acquire(None).unwrap();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| permits.acquire(soon()));
            wait_until_waiting(&permits, 1);
            permits.release();
            // The permit already belongs to the waiter, awake or not.
            assert!(permits.acquire(None).is_err());
            waiter.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_waiter_that_gives_up_leaves_nothing_behind() {
        let permits = Permits::new(1);
        permits.acquire(None).unwrap();
        let soon = Some(Instant::now() + Duration::from_millis(5));
        assert_eq!(permits.acquire(soon), Err(Refusal::TimedOut { waiting: 0 }));
        assert_eq!(permits.waiting(), 0);
        permits.release();
        assert_eq!(permits.acquire(None), Ok(()));
    }

    #[test]
    fn closing_wakes_and_refuses() {
        let permits = Permits::new(1);
        permits.acquire(None).unwrap();
        thread::scope(|scope| {
            let waiters: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| permits.acquire(soon())))
                .collect();
            wait_until_waiting(&permits, 4);
            permits.close();
            for waiter in waiters {
                assert_eq!(waiter.join().unwrap(), Err(Refusal::Closed));
            }
        });
        permits.release();
        assert_eq!(permits.acquire(None), Err(Refusal::Closed));
        assert_eq!(permits.waiting(), 0);
    }

    /// Threads come, go and give up at random; never may more than N be inside, and in the end all
    /// N permits must be there.
    #[test]
    fn none_is_lost_or_made_under_contention() {
        const N: usize = 3;
        let permits = Permits::new(N);
        let inside = AtomicUsize::new(0);
        thread::scope(|scope| {
            for seed in 0..8_u64 {
                let (permits, inside) = (&permits, &inside);
                scope.spawn(move || {
                    for i in 0..4_000 {
                        let wait = Duration::from_micros((seed * 31 + i * 17) % 40);
                        let deadline = (wait.as_micros() > 4).then(|| Instant::now() + wait);
                        if permits.acquire(deadline).is_ok() {
                            assert!(inside.fetch_add(1, AcqRel) < N);
                            inside.fetch_sub(1, AcqRel);
                            permits.release();
                        }
                    }
                });
            }
        });
        for _ in 0..N {
            assert_eq!(permits.acquire(None), Ok(()));
        }
        assert!(permits.acquire(None).is_err());
        assert_eq!(permits.waiting(), 0);
    }
}
