//! The FIFO permits: the right to hold a lease, N of them, first come, first served.
//! They know nothing of connections.
//!
//! One word says how many permits are free, and whether anybody queues. While nobody queues, taking
//! and returning a permit is one compare-exchange. While somebody does, a returned permit is handed
//! to the first in the queue under the lock, so that no newcomer can overtake.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::panic::Location;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicU8, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use std::task::Poll;
use std::time::Instant;

use event_listener::{Event, Listener};
use futures_timer::Delay;
use parking_lot::Mutex;

use crate::stats::Waiting;

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
#[derive(Debug)]
struct Waiter {
    claim: Claim,
    answer: AtomicU8,
    answered: Event,
}

/// Who asks for a permit, since when, and from which line.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) agent: Arc<str>,
    pub(crate) asked_at: Instant,
    pub(crate) place: &'static Location<'static>,
}

/// A place in the queue. Dropping it leaves the queue, and passes on a permit that came meanwhile.
struct Queued<'a> {
    permits: &'a Permits,
    waiter: Arc<Waiter>,
    /// The caller has the answer: nothing is left to give back.
    settled: bool,
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

    /// Takes a permit if one is to be had without waiting: to wait for one is to [`queue`](Permits::queue).
    ///
    /// Whoever gets `Ok` owes one [`release`](Permits::release).
    pub(crate) fn try_acquire(&self) -> Result<(), Refusal> {
        if self.acquire_free() {
            return Ok(());
        }
        let word = self.word.load(Acquire);
        if word & CLOSED != 0 {
            return Err(Refusal::Closed);
        }
        Err(Refusal::TimedOut {
            waiting: self.waiting(),
        })
    }

    /// Takes a permit, blocking until `deadline` at most.
    ///
    /// Whoever gets `Ok` owes one [`release`](Permits::release).
    pub(crate) fn acquire(&self, claim: Claim, deadline: Instant) -> Result<(), Refusal> {
        match self.queue(claim)? {
            Some(queued) => queued.wait(deadline),
            None => Ok(()),
        }
    }

    /// Takes a permit, waiting until `deadline` at most. Dropping the future takes none, and leaves
    /// the queue.
    ///
    /// Whoever gets `Ok` owes one [`release`](Permits::release).
    pub(crate) async fn acquire_async(
        &self,
        claim: Claim,
        deadline: Instant,
    ) -> Result<(), Refusal> {
        match self.queue(claim)? {
            Some(queued) => queued.wait_async(deadline).await,
            None => Ok(()),
        }
    }

    /// A place in the queue, or (`None`) a permit that came free meanwhile.
    fn queue(&self, claim: Claim) -> Result<Option<Queued<'_>>, Refusal> {
        let mut queue = self.queue.lock();
        loop {
            let word = self.word.load(Acquire);
            if word & CLOSED != 0 {
                return Err(Refusal::Closed);
            }
            if word & QUEUED == 0 && word & FREE > 0 {
                // A permit came back since; others may still take or return one without the lock.
                if self.swap(word, word - 1) {
                    return Ok(None);
                }
                continue;
            }
            if word & QUEUED != 0 || self.swap(word, word | QUEUED) {
                break;
            }
        }
        let waiter = Arc::new(Waiter {
            claim,
            answer: AtomicU8::new(NO_ANSWER),
            answered: Event::new(),
        });
        queue.push_back(Arc::clone(&waiter));
        Ok(Some(Queued {
            permits: self,
            waiter,
            settled: false,
        }))
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
    /// Returns whether that is new.
    pub(crate) fn close(&self) -> bool {
        let mut queue = self.queue.lock();
        let before = self.word.fetch_or(CLOSED, AcqRel);
        for waiter in queue.drain(..) {
            waiter.decide(REFUSED);
        }
        self.word.fetch_and(!QUEUED, Release);
        before & CLOSED == 0
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

    /// Who waits, in the order in which they will be served.
    pub(crate) fn waiters(&self, now: Instant) -> Vec<Waiting> {
        let queue = self.queue.lock();
        queue
            .iter()
            .map(|waiter| waiter.claim.waiting(now))
            .collect()
    }

    fn swap(&self, from: usize, to: usize) -> bool {
        self.word
            .compare_exchange(from, to, AcqRel, Relaxed)
            .is_ok()
    }
}

impl Queued<'_> {
    fn wait(mut self, deadline: Instant) -> Result<(), Refusal> {
        loop {
            // Listening before looking: an answer given in between still wakes us.
            let listener = self.waiter.answered.listen();
            if let Some(answer) = self.waiter.answer() {
                return self.take(answer);
            }
            if listener.wait_deadline(deadline).is_none() {
                return self.leave();
            }
        }
    }

    async fn wait_async(mut self, deadline: Instant) -> Result<(), Refusal> {
        let mut alarm = Delay::new(deadline.saturating_duration_since(Instant::now()));
        loop {
            let mut listener = pin!(self.waiter.answered.listen());
            if let Some(answer) = self.waiter.answer() {
                return self.take(answer);
            }
            let mut alarm = pin!(&mut alarm);
            let in_time = poll_fn(|cx| {
                if listener.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(true);
                }
                alarm.as_mut().poll(cx).map(|()| false)
            });
            if !in_time.await {
                return self.leave();
            }
        }
    }

    fn take(&mut self, answer: Result<(), Refusal>) -> Result<(), Refusal> {
        self.settled = true;
        answer
    }

    /// The deadline has passed: leaves the queue, or takes the answer that came just before.
    fn leave(&mut self) -> Result<(), Refusal> {
        let answer = self.step_out();
        self.take(answer)
    }

    fn step_out(&self) -> Result<(), Refusal> {
        let mut queue = self.permits.queue.lock();
        if let Some(answer) = self.waiter.answer() {
            return answer;
        }
        queue.retain(|other| !Arc::ptr_eq(other, &self.waiter));
        if queue.is_empty() {
            self.permits.word.fetch_and(!QUEUED, Release);
        }
        Err(Refusal::TimedOut {
            waiting: queue.len(),
        })
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        if !self.settled && self.step_out().is_ok() {
            self.permits.release();
        }
    }
}

impl Claim {
    pub(crate) fn new(agent: &str, asked_at: Instant, place: &'static Location<'static>) -> Self {
        Claim {
            agent: Arc::from(agent),
            asked_at,
            place,
        }
    }

    fn waiting(&self, now: Instant) -> Waiting {
        Waiting {
            agent: self.agent.as_ref().to_owned(),
            asked_at: self.place,
            age: now.saturating_duration_since(self.asked_at),
        }
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

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn claim() -> Claim {
        Claim {
            agent: Arc::from("agent"),
            asked_at: Instant::now(),
            place: Location::caller(),
        }
    }

    fn wait_until_waiting(permits: &Permits, n: usize) {
        while permits.waiting() != n {
            thread::yield_now();
        }
    }

    #[test]
    fn there_are_as_many_as_asked_for() {
        let permits = Permits::new(2);
        assert_eq!(permits.try_acquire(), Ok(()));
        assert_eq!(permits.try_acquire(), Ok(()));
        assert_eq!(permits.try_acquire(), Err(Refusal::TimedOut { waiting: 0 }));
        permits.release();
        assert_eq!(permits.try_acquire(), Ok(()));
    }

    #[test]
    fn waiters_are_served_in_the_order_they_came() {
        let permits = Permits::new(1);
        permits.try_acquire().unwrap();
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            for i in 0..16 {
                let (permits, tell) = (&permits, tell.clone());
                scope.spawn(move || {
                    permits.acquire(claim(), soon()).unwrap();
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
        permits.try_acquire().unwrap();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| permits.acquire(claim(), soon()));
            wait_until_waiting(&permits, 1);
            permits.release();
            // The permit already belongs to the waiter, awake or not.
            assert!(permits.try_acquire().is_err());
            waiter.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_waiter_that_gives_up_leaves_nothing_behind() {
        let permits = Permits::new(1);
        permits.try_acquire().unwrap();
        let soon = Instant::now() + Duration::from_millis(5);
        assert_eq!(
            permits.acquire(claim(), soon),
            Err(Refusal::TimedOut { waiting: 0 })
        );
        assert_eq!(permits.waiting(), 0);
        permits.release();
        assert_eq!(permits.try_acquire(), Ok(()));
    }

    #[test]
    fn blocking_and_async_waiters_stand_in_one_queue() {
        let permits = Permits::new(1);
        permits.try_acquire().unwrap();
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            for i in 0..16 {
                let (permits, tell) = (&permits, tell.clone());
                scope.spawn(move || {
                    match i % 2 {
                        0 => permits.acquire(claim(), soon()).unwrap(),
                        _ => smol::block_on(permits.acquire_async(claim(), soon())).unwrap(),
                    }
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
    fn a_dropped_future_passes_its_permit_on() {
        let permits = Permits::new(1);
        permits.try_acquire().unwrap();
        let mut first = Box::pin(permits.acquire_async(claim(), soon()));
        let mut second = Box::pin(permits.acquire_async(claim(), soon()));
        assert!(smol::block_on(smol::future::poll_once(&mut first)).is_none());
        assert!(smol::block_on(smol::future::poll_once(&mut second)).is_none());
        assert_eq!(permits.waiters(Instant::now()).len(), 2);
        permits.release();
        // It has been granted the permit, and does not know it yet.
        drop(first);
        assert_eq!(smol::block_on(second), Ok(()));
        permits.release();
        assert_eq!((permits.free(), permits.waiting()), (1, 0));
    }

    #[test]
    fn an_async_waiter_gives_up_in_time() {
        let permits = Permits::new(0);
        let soon = Instant::now() + Duration::from_millis(5);
        let refused = smol::block_on(permits.acquire_async(claim(), soon));
        assert_eq!(refused, Err(Refusal::TimedOut { waiting: 0 }));
        assert!(Instant::now() >= soon);
        assert_eq!(permits.waiting(), 0);
    }

    #[test]
    fn closing_wakes_and_refuses() {
        let permits = Permits::new(1);
        permits.try_acquire().unwrap();
        thread::scope(|scope| {
            let waiters: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| permits.acquire(claim(), soon())))
                .collect();
            wait_until_waiting(&permits, 4);
            permits.close();
            for waiter in waiters {
                assert_eq!(waiter.join().unwrap(), Err(Refusal::Closed));
            }
        });
        permits.release();
        assert_eq!(permits.try_acquire(), Err(Refusal::Closed));
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
                        let deadline = Instant::now() + wait;
                        let taken = match i % 4 {
                            0 => permits.try_acquire(),
                            1 => permits.acquire(claim(), deadline),
                            2 => smol::block_on(permits.acquire_async(claim(), deadline)),
                            _ => {
                                // Dropped at its first wait, and perhaps with the answer on its way.
                                let mut asked = pin!(permits.acquire_async(claim(), deadline));
                                match smol::block_on(smol::future::poll_once(&mut asked)) {
                                    Some(taken) => taken,
                                    None => continue,
                                }
                            }
                        };
                        if taken.is_ok() {
                            assert!(inside.fetch_add(1, AcqRel) < N);
                            inside.fetch_sub(1, AcqRel);
                            permits.release();
                        }
                    }
                });
            }
        });
        for _ in 0..N {
            assert_eq!(permits.try_acquire(), Ok(()));
        }
        assert!(permits.try_acquire().is_err());
        assert_eq!(permits.waiting(), 0);
    }
}
