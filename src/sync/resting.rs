//! Resting: the threads of a group that have nothing to do, and which of them is called first.
//! It starts no thread, and has no lock of its own: it belongs to what the group's lock protects.
//!
//! A condition variable that all share wakes the thread that has slept longest, so that all threads take turns, each with
//! the connection that it had last and what that has in its cache. Here the same few threads are called each time, and the
//! others end once nothing has called them for long.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, PoisonError};
use std::time::Duration;

use super::prim::Guard;

/// Which of the threads that rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Oldest,
    Youngest,
}

/// A thread that may rest.
pub(super) struct Seat {
    /// Threads that were started later have higher numbers.
    number: u64,
    called: Arc<Condvar>,
}

/// `C`: what a thread is called for.
pub(super) struct Resting<C> {
    /// The oldest first.
    threads: VecDeque<(u64, Arc<Condvar>)>,
    /// Those that were called and are not awake yet.
    called: Vec<(u64, C)>,
}

impl Seat {
    pub(super) fn new(number: u64) -> Self {
        let called = Arc::default();
        Seat { number, called }
    }
}

impl<C> Default for Resting<C> {
    fn default() -> Self {
        Resting {
            threads: VecDeque::new(),
            called: Vec::new(),
        }
    }
}

impl<C> Resting<C> {
    /// Calls a thread that rests. Returns its number, if there is one.
    pub(super) fn call(&mut self, which: Which, call: C) -> Option<u64> {
        let (number, called) = match which {
            Which::Oldest => self.threads.pop_front(),
            Which::Youngest => self.threads.pop_back(),
        }?;
        self.called.push((number, call));
        called.notify_one();
        Some(number)
    }

    fn sit_down(&mut self, seat: &Seat) {
        let at = self
            .threads
            .partition_point(|&(number, _)| number < seat.number);
        self.threads
            .insert(at, (seat.number, Arc::clone(&seat.called)));
    }

    /// For what the thread was called.
    fn take(&mut self, seat: &Seat) -> Option<C> {
        let at = self
            .called
            .iter()
            .position(|&(number, _)| number == seat.number)?;
        Some(self.called.swap_remove(at).1)
    }
}

/// Lets this thread rest until it is called. `None`: nothing has called it for so long.
pub(super) fn rest<'a, S, C>(
    mut state: Guard<'a, S>,
    resting: impl Fn(&mut S) -> &mut Resting<C>,
    seat: &Seat,
    idle: Duration,
) -> (Guard<'a, S>, Option<C>) {
    resting(&mut state).sit_down(seat);
    loop {
        let waited = seat.called.wait_timeout(state, idle);
        let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        state = woken;
        let here = resting(&mut state);
        if let Some(call) = here.take(seat) {
            return (state, Some(call));
        }
        if timeout.timed_out() {
            here.threads.retain(|&(number, _)| number != seat.number);
            return (state, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Instant;

    use super::super::prim::Mutex;
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_thread_is_called_by_its_age_and_ends_if_it_is_not() {
        let state = Mutex::new(Resting::default());
        let rest = |number, idle| rest(state.lock(), |state| state, &Seat::new(number), idle).1;
        thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|number| scope.spawn(move || rest(number, LONG)))
                .collect();
            let begun = Instant::now();
            while state.lock().threads.len() < 4 {
                assert!(begun.elapsed() < LONG, "they never rest");
                thread::yield_now();
            }
            let calls = [
                Which::Oldest,
                Which::Youngest,
                Which::Youngest,
                Which::Oldest,
            ];
            let called = calls.map(|which| state.lock().call(which, which));
            assert_eq!(called, [0, 3, 2, 1].map(Some));
            assert_eq!(state.lock().call(Which::Oldest, Which::Oldest), None);
            let calls = threads.into_iter().map(|thread| thread.join().unwrap());
            let (oldest, youngest) = (Some(Which::Oldest), Some(Which::Youngest));
            assert!(calls.eq([oldest, oldest, youngest, youngest]));
        });
        assert_eq!(rest(4, Duration::ZERO), None);
        assert!(state.lock().threads.is_empty());
    }
}
