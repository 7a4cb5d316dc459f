//! Semaphore: N permits, one queue for blocking, timed and async callers, bounded overtaking.
//! It never runs foreign code (wakers, drops of tags) under its lock, and reads no clock under it.
//!
//! # Who gets a returned permit
//! A returned permit becomes free. A caller that is running may take it at once, even while others queue:
//! that costs no context switch. The first in the queue is woken, and takes a free permit when it runs. Once
//! the first has waited for longer than `overtaking`, newcomers may no longer take permits: the next permit
//! is *granted* to the first, whether it runs or not. With `overtaking` zero, every permit is granted this
//! way, and the order is strict.
//!
//! # The word
//! One word holds the number of free permits and three flags. Without a queue, taking and returning a permit
//! is one compare-exchange. The same is true with a queue, while its first is awake (`WOKEN`) and has not
//! waited too long. The first cannot miss the free permit, because it gives up `WOKEN` in a compare-exchange
//! of the same word.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering::{self, AcqRel, Relaxed, Release};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::prim::{AtomicU64, AtomicUsize, Mutex};
use super::unwind::wake;

/// At least one caller queues. Set and cleared under the lock.
const QUEUED: usize = 1 << (usize::BITS - 1);
/// The semaphore is closed: no caller gets a permit any more.
const CLOSED: usize = 1 << (usize::BITS - 2);
/// The first in the queue has been woken and has not polled since.
const WOKEN: usize = 1 << (usize::BITS - 3);
const FREE: usize = WOKEN - 1;

/// N permits. Each caller brings a tag that says who it is. Aligned to the lines that processors fetch at
/// once, so that neighbours in memory are not disturbed.
#[repr(align(128))]
pub(crate) struct Semaphore<T> {
    word: AtomicUsize,
    /// From this time on, no caller may overtake the first in the queue; in nanoseconds since `born`.
    strict_from: AtomicU64,
    queue: Mutex<Queue<T>>,
    overtaking: Duration,
    born: Instant,
}

struct Queue<T> {
    next_ticket: u64,
    /// The waiting callers by ticket: in the order of arrival.
    waiting: BTreeMap<u64, Waiter<T>>,
    /// The callers that were granted a permit and have not taken it yet.
    granted: BTreeMap<u64, Waiter<T>>,
}

struct Waiter<T> {
    tag: T,
    since: Instant,
    /// `None` from the moment its owner is woken until the owner polls again.
    waker: Option<Waker>,
}

/// Why a caller gets no permit now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No permit is free for a newcomer.
    Busy,
    Closed,
}

/// The semaphore is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed;

/// A place in the queue, once it has been polled. Dropping it leaves the queue; a permit that was granted
/// meanwhile goes to the next caller.
#[must_use = "nothing waits until it is polled"]
pub(crate) struct Acquire<'a, T> {
    semaphore: &'a Semaphore<T>,
    state: State<T>,
}

/// A permit. Dropping it returns it.
#[must_use = "the permit goes back at once"]
pub(crate) struct Held<'a, T>(&'a Semaphore<T>);

enum State<T> {
    Outside(T),
    Queued(u64),
    Over,
}

/// Wakers to call once the lock is released.
#[derive(Default)]
struct Wakes {
    one: Option<Waker>,
    more: Vec<Waker>,
}

impl<T> Semaphore<T> {
    pub(crate) fn new(permits: usize, overtaking: Duration) -> Self {
        Semaphore {
            word: AtomicUsize::new(permits & FREE),
            strict_from: AtomicU64::new(u64::MAX),
            queue: Mutex::new(Queue {
                next_ticket: 0,
                waiting: BTreeMap::new(),
                granted: BTreeMap::new(),
            }),
            overtaking,
            born: Instant::now(),
        }
    }

    /// Takes a permit without waiting. After `Ok`, the caller owes one [`release`](Semaphore::release).
    #[inline]
    pub(crate) fn try_acquire(&self, now: Instant) -> Result<(), Refusal> {
        let mut word = self.word.load(Relaxed);
        loop {
            if word & CLOSED != 0 {
                return Err(Refusal::Closed);
            }
            if word & FREE == 0 {
                return Err(Refusal::Busy);
            }
            if word & QUEUED != 0 && self.is_strict(now) {
                self.grant_overdue(now);
                return Err(Refusal::Busy);
            }
            match self
                .word
                .compare_exchange_weak(word, word - 1, Ordering::Acquire, Relaxed)
            {
                Ok(_) => return Ok(()),
                Err(found) => word = found,
            }
        }
    }

    /// Takes a permit if no caller queues and at least `spare` permits stay free. Works on a closed
    /// semaphore, too.
    pub(crate) fn try_acquire_spare(&self, spare: usize) -> bool {
        let mut word = self.word.load(Relaxed);
        while word & QUEUED == 0 && word & FREE > spare {
            match self
                .word
                .compare_exchange_weak(word, word - 1, Ordering::Acquire, Relaxed)
            {
                Ok(_) => return true,
                Err(found) => word = found,
            }
        }
        false
    }

    /// Waits for a permit. After `Ok`, the caller owes one [`release`](Semaphore::release).
    pub(crate) fn acquire(&self, tag: T) -> Acquire<'_, T> {
        Acquire {
            semaphore: self,
            state: State::Outside(tag),
        }
    }

    /// Takes a permit without waiting.
    pub(crate) fn try_hold(&self, now: Instant) -> Result<Held<'_, T>, Refusal> {
        self.try_acquire(now)?;
        Ok(Held(self))
    }

    /// Takes a permit at once if one is free for a newcomer, and waits for one otherwise.
    pub(crate) async fn hold(&self, tag: impl FnOnce() -> T) -> Result<Held<'_, T>, Closed> {
        match self.try_acquire(Instant::now()) {
            Ok(()) => {}
            Err(Refusal::Closed) => return Err(Closed),
            Err(Refusal::Busy) => self.acquire(tag()).await?,
        }
        Ok(Held(self))
    }

    /// Returns a permit.
    #[inline]
    pub(crate) fn release(&self, now: Instant) {
        let mut word = self.word.load(Relaxed);
        // While the first in the queue is awake and may still be overtaken, it needs no wake-up. Nor does the
        // second, as long as the first finds no more than one permit.
        while word & QUEUED == 0 || (word & WOKEN != 0 && word & FREE == 0 && !self.is_strict(now))
        {
            match self
                .word
                .compare_exchange_weak(word, word + 1, Release, Relaxed)
            {
                Ok(_) => return,
                Err(found) => word = found,
            }
        }
        self.release_to_queue(now);
    }

    #[cold]
    fn release_to_queue(&self, now: Instant) {
        let mut wakes = Wakes::default();
        {
            let mut queue = self.queue.lock();
            self.word.fetch_add(1, AcqRel);
            self.settle(&mut queue, now, &mut wakes);
        }
        wakes.wake();
    }

    /// Refuses all waiting callers, all that were granted a permit and have not taken it, and all later ones.
    /// Permits that were taken must still be released. Returns whether the semaphore was open before.
    pub(crate) fn close(&self) -> bool {
        let (before, waiting, granted) = {
            let mut queue = self.queue.lock();
            let before = self.word.fetch_or(CLOSED, AcqRel);
            let waiting = std::mem::take(&mut queue.waiting);
            let granted = std::mem::take(&mut queue.granted);
            self.word.fetch_add(granted.len(), AcqRel);
            self.word.fetch_and(!(QUEUED | WOKEN), AcqRel);
            (before, waiting, granted)
        };
        for waiter in waiting.into_values().chain(granted.into_values()) {
            if let Some(waker) = waiter.waker {
                wake(waker);
            }
        }
        before & CLOSED == 0
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.word.load(Ordering::Acquire) & CLOSED != 0
    }

    /// How many permits are free.
    pub(crate) fn free(&self) -> usize {
        self.word.load(Ordering::Acquire) & FREE
    }

    /// How many callers wait.
    pub(crate) fn waiting(&self) -> usize {
        match self.word.load(Relaxed) & QUEUED {
            0 => 0,
            _ => self.queue.lock().waiting.len(),
        }
    }

    fn is_strict(&self, now: Instant) -> bool {
        self.nanos(now) >= self.strict_from.load(Relaxed)
    }

    fn nanos(&self, at: Instant) -> u64 {
        nanos_of(at.saturating_duration_since(self.born))
    }

    /// The first in the queue must not be overtaken any more: grants it a free permit.
    #[cold]
    fn grant_overdue(&self, now: Instant) {
        let mut wakes = Wakes::default();
        self.settle(&mut self.queue.lock(), now, &mut wakes);
        wakes.wake();
    }

    /// Brings queue and word into agreement: grants free permits to callers that must not be overtaken, and
    /// wakes the first of the others if a permit is free.
    fn settle(&self, queue: &mut Queue<T>, now: Instant, wakes: &mut Wakes) {
        let limit = nanos_of(self.overtaking);
        loop {
            let word = self.word.load(Ordering::Acquire);
            let Some(mut first) = queue.waiting.first_entry() else {
                self.word.fetch_and(!(QUEUED | WOKEN), AcqRel);
                self.strict_from.store(u64::MAX, Relaxed);
                return;
            };
            let strict_from = self.nanos(first.get().since).saturating_add(limit);
            self.strict_from.store(strict_from, Relaxed);
            if word & FREE == 0 {
                return;
            }
            // With two free permits, the second caller must not wait until the first has run: it is woken as
            // well.
            if self.nanos(now) >= strict_from || (word & WOKEN != 0 && word & FREE >= 2) {
                let granted = (word - 1) & !WOKEN;
                if self.swap(word, granted) {
                    let (ticket, mut waiter) = first.remove_entry();
                    wakes.push(waiter.waker.take());
                    queue.granted.insert(ticket, waiter);
                }
            } else if word & WOKEN != 0 {
                return;
            } else if self.swap(word, word | WOKEN) {
                wakes.push(first.get_mut().waker.take());
                return;
            }
        }
    }

    fn swap(&self, from: usize, to: usize) -> bool {
        self.word
            .compare_exchange(from, to, AcqRel, Relaxed)
            .is_ok()
    }
}

impl<T: Clone> Semaphore<T> {
    /// The tags of waiting callers, in order.
    pub(crate) fn waiters(&self) -> Vec<T> {
        let queue = self.queue.lock();
        queue.waiting.values().map(|w| w.tag.clone()).collect()
    }

    /// The tags of callers that were granted a permit and have not taken it yet. The first in the queue
    /// counts among them while a free permit waits for it: by `now`, others may no longer be allowed to take
    /// that permit.
    pub(crate) fn granted(&self, now: Instant) -> Vec<T> {
        self.grant_overdue(now);
        let queue = self.queue.lock();
        let free = self.word.load(Ordering::Acquire) & FREE;
        let awake = queue.waiting.values().take(free);
        queue
            .granted
            .values()
            .chain(awake)
            .map(|w| w.tag.clone())
            .collect()
    }
}

impl<T> Future for Acquire<'_, T> {
    type Output = Result<(), Closed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let (polled, wakes, old) = this.poll_locked(cx.waker().clone());
        // Foreign code runs here: the lock is released.
        drop(old);
        wakes.wake();
        if polled.is_ready() {
            this.state = State::Over;
        }
        polled
    }
}

// The tag is never pinned.
impl<T> Unpin for Acquire<'_, T> {}

impl<T> Acquire<'_, T> {
    /// Returns the answer, the wakers to call, and a waker to drop; both are foreign code, for after the
    /// lock.
    fn poll_locked(&mut self, waker: Waker) -> (Poll<Result<(), Closed>>, Wakes, Option<Waker>) {
        let semaphore = self.semaphore;
        let now = Instant::now();
        let mut wakes = Wakes::default();
        let mut queue = semaphore.queue.lock();
        if semaphore.word.load(Ordering::Acquire) & CLOSED != 0 {
            // `close` has emptied the queue and taken back granted permits.
            return (Poll::Ready(Err(Closed)), wakes, Some(waker));
        }
        let ticket = match std::mem::replace(&mut self.state, State::Over) {
            State::Over => return (Poll::Pending, wakes, Some(waker)),
            State::Queued(ticket) => ticket,
            State::Outside(tag) => {
                semaphore.settle(&mut queue, now, &mut wakes);
                let ticket = queue.next_ticket;
                queue.next_ticket += 1;
                let waiter = Waiter {
                    tag,
                    since: now,
                    waker: None,
                };
                queue.waiting.insert(ticket, waiter);
                // From here on, a caller that returns a permit looks at the queue under the lock. If a permit
                // came back just before, the first in the queue sees it below.
                semaphore.word.fetch_or(QUEUED, AcqRel);
                ticket
            }
        };
        self.state = State::Queued(ticket);
        if queue.granted.remove(&ticket).is_some() {
            return (Poll::Ready(Ok(())), wakes, Some(waker));
        }
        if queue
            .waiting
            .first_key_value()
            .is_some_and(|(first, _)| *first == ticket)
        {
            loop {
                let word = semaphore.word.load(Ordering::Acquire);
                if word & FREE == 0 {
                    // A caller that returns a permit from now on wakes us.
                    if semaphore.swap(word, word & !WOKEN) {
                        break;
                    }
                } else if semaphore.swap(word, (word - 1) & !WOKEN) {
                    let waiter = queue.waiting.remove(&ticket);
                    semaphore.settle(&mut queue, now, &mut wakes);
                    drop(queue);
                    let old = waiter.and_then(|waiter| waiter.waker);
                    drop(waker);
                    return (Poll::Ready(Ok(())), wakes, old);
                }
            }
            semaphore.settle(&mut queue, now, &mut wakes);
            if queue.granted.remove(&ticket).is_some() {
                return (Poll::Ready(Ok(())), wakes, Some(waker));
            }
        }
        let old = match queue.waiting.get_mut(&ticket) {
            Some(waiter) => waiter.waker.replace(waker),
            None => Some(waker),
        };
        (Poll::Pending, wakes, old)
    }
}

impl<T> Drop for Acquire<'_, T> {
    fn drop(&mut self) {
        let State::Queued(ticket) = self.state else {
            return;
        };
        let semaphore = self.semaphore;
        let now = Instant::now();
        let mut wakes = Wakes::default();
        let left = {
            let mut queue = semaphore.queue.lock();
            if let Some(waiter) = queue.granted.remove(&ticket) {
                semaphore.word.fetch_add(1, AcqRel);
                semaphore.settle(&mut queue, now, &mut wakes);
                Some(waiter)
            } else {
                let first = queue.waiting.first_key_value().map(|(first, _)| *first);
                let waiter = queue.waiting.remove(&ticket);
                if first == Some(ticket) {
                    // This caller may have been woken, and now no caller would look at the free permit.
                    semaphore.word.fetch_and(!WOKEN, AcqRel);
                    semaphore.settle(&mut queue, now, &mut wakes);
                }
                waiter
            }
        };
        drop(left);
        wakes.wake();
    }
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        self.0.release(Instant::now());
    }
}

impl Wakes {
    fn push(&mut self, waker: Option<Waker>) {
        match &self.one {
            None => self.one = waker,
            Some(_) => self.more.extend(waker),
        }
    }

    fn wake(self) {
        for waker in self.one.into_iter().chain(self.more) {
            wake(waker);
        }
    }
}

fn nanos_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX - 1)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::sync::atomic::AtomicUsize;
    use std::sync::{Arc, mpsc};
    use std::task::Wake;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::sync::wait::{await_until, block_on, block_until};

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    type Names = Semaphore<&'static str>;

    fn strict(permits: usize) -> Names {
        Semaphore::new(permits, Duration::ZERO)
    }

    fn now() -> Instant {
        Instant::now()
    }

    /// Blocks until there is a permit, or until `deadline`.
    fn acquire(names: &Names, deadline: Instant) -> Option<Result<(), Closed>> {
        block_until(deadline, pin!(names.acquire("a")))
    }

    async fn acquire_async(names: &Names, deadline: Instant) -> Option<Result<(), Closed>> {
        await_until(deadline, pin!(names.acquire("a"))).await
    }

    fn wait_until_waiting(permits: &Semaphore<&'static str>, n: usize) {
        while permits.waiting() != n {
            thread::yield_now();
        }
    }

    #[test]
    fn there_are_as_many_as_asked_for() {
        let permits = strict(2);
        assert_eq!(permits.try_acquire(now()), Ok(()));
        assert_eq!(permits.try_acquire(now()), Ok(()));
        assert_eq!(permits.try_acquire(now()), Err(Refusal::Busy));
        permits.release(now());
        assert_eq!(permits.try_acquire(now()), Ok(()));
    }

    #[test]
    fn waiters_are_served_in_the_order_they_came() {
        let permits = strict(1);
        permits.try_acquire(now()).unwrap();
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            for i in 0..16 {
                let (permits, tell) = (&permits, tell.clone());
                scope.spawn(move || {
                    acquire(permits, soon()).unwrap().unwrap();
                    tell.send(i).unwrap();
                    permits.release(now());
                });
                wait_until_waiting(permits, i + 1);
            }
            permits.release(now());
        });
        drop(tell);
        assert_eq!(told.iter().collect::<Vec<_>>(), (0..16).collect::<Vec<_>>());
    }

    #[test]
    fn a_newcomer_does_not_overtake_a_waiter() {
        let permits = strict(1);
        permits.try_acquire(now()).unwrap();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| acquire(&permits, soon()));
            wait_until_waiting(&permits, 1);
            permits.release(now());
            // The permit already belongs to the waiter, awake or not.
            assert!(permits.try_acquire(now()).is_err());
            waiter.join().unwrap().unwrap().unwrap();
        });
    }

    #[test]
    fn a_waiter_that_gives_up_leaves_nothing_behind() {
        let permits = strict(1);
        permits.try_acquire(now()).unwrap();
        let soon = Instant::now() + Duration::from_millis(5);
        assert_eq!(acquire(&permits, soon), None);
        assert_eq!(permits.waiting(), 0);
        permits.release(now());
        assert_eq!(permits.try_acquire(now()), Ok(()));
    }

    #[test]
    fn blocking_and_async_waiters_stand_in_one_queue() {
        let permits = strict(1);
        permits.try_acquire(now()).unwrap();
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            for i in 0..16 {
                let (permits, tell) = (&permits, tell.clone());
                scope.spawn(move || {
                    match i % 2 {
                        0 => acquire(permits, soon()).unwrap().unwrap(),
                        _ => smol::block_on(acquire_async(permits, soon()))
                            .unwrap()
                            .unwrap(),
                    }
                    tell.send(i).unwrap();
                    permits.release(now());
                });
                wait_until_waiting(permits, i + 1);
            }
            permits.release(now());
        });
        drop(tell);
        assert_eq!(told.iter().collect::<Vec<_>>(), (0..16).collect::<Vec<_>>());
    }

    #[test]
    fn a_dropped_future_passes_its_permit_on() {
        let permits = strict(1);
        permits.try_acquire(now()).unwrap();
        let mut first = Box::pin(acquire_async(&permits, soon()));
        let mut second = Box::pin(acquire_async(&permits, soon()));
        assert!(smol::block_on(smol::future::poll_once(&mut first)).is_none());
        assert!(smol::block_on(smol::future::poll_once(&mut second)).is_none());
        assert_eq!(permits.waiters().len(), 2);
        permits.release(now());
        // The first has been granted the permit, and does not know it yet.
        drop(first);
        assert_eq!(smol::block_on(second), Some(Ok(())));
        permits.release(now());
        assert_eq!((permits.free(), permits.waiting()), (1, 0));
    }

    #[test]
    fn an_async_waiter_gives_up_in_time() {
        let permits = strict(0);
        let soon = Instant::now() + Duration::from_millis(5);
        let refused = smol::block_on(acquire_async(&permits, soon));
        assert_eq!(refused, None);
        assert!(Instant::now() >= soon);
        assert_eq!(permits.waiting(), 0);
    }

    #[test]
    fn closing_wakes_and_refuses() {
        let permits = strict(1);
        permits.try_acquire(now()).unwrap();
        thread::scope(|scope| {
            let waiters: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| acquire(&permits, soon())))
                .collect();
            wait_until_waiting(&permits, 4);
            permits.close();
            for waiter in waiters {
                assert_eq!(waiter.join().unwrap(), Some(Err(Closed)));
            }
        });
        permits.release(now());
        assert_eq!(permits.try_acquire(now()), Err(Refusal::Closed));
        assert_eq!(permits.waiting(), 0);
    }

    /// Threads come, go and give up at random. Never may more than N be inside, and in the end all N permits
    /// must be there.
    #[test]
    fn none_is_lost_or_made_under_contention() {
        for overtaking in [0, 20, 1_000_000] {
            none_is_lost_or_made(Duration::from_micros(overtaking));
        }
    }

    fn none_is_lost_or_made(overtaking: Duration) {
        const N: usize = 3;
        let permits: Names = Semaphore::new(N, overtaking);
        let inside = AtomicUsize::new(0);
        thread::scope(|scope| {
            for seed in 0..8_u64 {
                let (permits, inside) = (&permits, &inside);
                scope.spawn(move || {
                    for i in 0..4_000 {
                        let wait = Duration::from_micros((seed * 31 + i * 17) % 40);
                        let deadline = Instant::now() + wait;
                        let taken = match i % 4 {
                            0 => permits.try_acquire(now()).is_ok(),
                            1 => acquire(permits, deadline).is_some(),
                            2 => smol::block_on(acquire_async(permits, deadline)).is_some(),
                            _ => {
                                // Dropped at its first wait, perhaps with the answer on its way.
                                let mut asked = pin!(acquire_async(permits, deadline));
                                match smol::block_on(smol::future::poll_once(&mut asked)) {
                                    Some(taken) => taken.is_some(),
                                    None => continue,
                                }
                            }
                        };
                        if taken {
                            assert!(inside.fetch_add(1, AcqRel) < N);
                            inside.fetch_sub(1, AcqRel);
                            permits.release(now());
                        }
                    }
                });
            }
        });
        for _ in 0..N {
            assert_eq!(permits.try_acquire(now()), Ok(()));
        }
        assert!(permits.try_acquire(now()).is_err());
        assert_eq!(permits.waiting(), 0);
    }

    #[test]
    fn a_newcomer_may_overtake_for_a_while_and_not_for_longer() {
        let bound = Duration::from_millis(50);
        let permits: Names = Semaphore::new(1, bound);
        permits.try_acquire(now()).unwrap();
        let mut first = Box::pin(permits.acquire("first"));
        let poll = |future: &mut Pin<Box<Acquire<'_, &'static str>>>| {
            smol::block_on(smol::future::poll_once(future))
        };
        assert_eq!(poll(&mut first), None);
        let asked = now();
        permits.release(asked);
        // The first was woken, and has not run.
        assert_eq!(permits.try_acquire(asked), Ok(()));
        assert_eq!(poll(&mut first), None);
        permits.release(asked);
        let later = asked + bound * 2;
        assert_eq!(permits.try_acquire(later), Err(Refusal::Busy));
        assert_eq!(permits.granted(later), ["first"]);
        assert_eq!(poll(&mut first), Some(Ok(())));
        permits.release(later);
        assert_eq!((permits.free(), permits.waiting()), (1, 0));
    }

    #[test]
    fn one_that_is_woken_and_leaves_wakes_the_next() {
        let permits: Names = Semaphore::new(1, Duration::from_secs(60));
        permits.try_acquire(now()).unwrap();
        let mut first = Box::pin(permits.acquire("first"));
        assert!(smol::block_on(smol::future::poll_once(&mut first)).is_none());
        thread::scope(|scope| {
            let second = scope.spawn(|| acquire(&permits, soon()));
            wait_until_waiting(&permits, 2);
            permits.release(now());
            drop(first);
            assert_eq!(second.join().unwrap(), Some(Ok(())));
        });
    }

    /// A waker that drops the future it belongs to, like an executor that has ended.
    #[test]
    fn a_waker_may_do_anything() {
        type Slot<'a> =
            Mutex<Option<Pin<Box<dyn Future<Output = Result<(), Closed>> + Send + 'a>>>>;
        struct Drops(Arc<Slot<'static>>);
        impl Wake for Drops {
            fn wake(self: Arc<Self>) {
                let future = self.0.lock().take();
                drop(future);
                panic!("on purpose");
            }
        }
        let permits: &'static Names = Box::leak(Box::new(strict(1)));
        permits.try_acquire(now()).unwrap();
        let slot: Arc<Slot<'static>> = Arc::new(Mutex::new(Some(Box::pin(permits.acquire("a")))));
        let waker = Waker::from(Arc::new(Drops(Arc::clone(&slot))));
        if let Some(future) = &mut *slot.lock() {
            let mut cx = Context::from_waker(&waker);
            assert!(future.as_mut().poll(&mut cx).is_pending());
        }
        permits.release(now());
        assert!(slot.lock().is_none());
        assert_eq!((permits.free(), permits.waiting()), (1, 0));
        assert_eq!(permits.try_acquire(now()), Ok(()));
    }

    #[test]
    fn closing_takes_back_what_was_granted_and_not_taken() {
        let permits = strict(1);
        permits.try_acquire(now()).unwrap();
        let mut asked = Box::pin(permits.acquire("a"));
        assert!(smol::block_on(smol::future::poll_once(&mut asked)).is_none());
        permits.release(now());
        assert_eq!((permits.free(), permits.granted(now())), (0, vec!["a"]));
        permits.close();
        assert_eq!(permits.free(), 1);
        assert_eq!(block_on(poll_fn(|cx| asked.as_mut().poll(cx))), Err(Closed));
        drop(asked);
        assert_eq!(permits.free(), 1);
    }

    #[test]
    fn leaving_is_cheap() {
        const N: usize = 20_000;
        let permits = strict(0);
        let mut waiting: Vec<_> = (0..N).map(|_| Box::pin(permits.acquire("a"))).collect();
        for one in &mut waiting {
            assert!(smol::block_on(smol::future::poll_once(one)).is_none());
        }
        assert_eq!(permits.waiting(), N);
        let begun = now();
        drop(waiting);
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "{:?}",
            begun.elapsed()
        );
        assert_eq!(permits.waiting(), 0);
    }
}
