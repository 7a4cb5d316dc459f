//! A lane: those who want to write to one database, first come, first served. One of them, or a thread
//! that works for them, leads; the leader takes them out one by one.
//! It knows no SQL, and waits for nobody.
//!
//! Apart from the queue there is the pen: the right to have a transaction that writes. Whoever waits for
//! the pen has a connection already, so that no two ever wait for each other.

use std::collections::VecDeque;
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release},
};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::permits::Permits;

pub(crate) struct Lane<J> {
    state: Mutex<State<J>>,
    pub(crate) pen: Permits,
    /// Told when the leader of a closed lane steps down.
    rested: Condvar,
    /// The leader waits for a lock that somebody outside of the pool holds.
    locked_out: AtomicBool,
}

struct State<J> {
    queue: VecDeque<J>,
    /// Somebody leads. While nobody does, nobody queues.
    led: bool,
    closed: bool,
}

/// How somebody came into a lane.
pub(crate) enum Joined<J> {
    /// The lane was empty: who came leads now, and begins with what it brought.
    Leads(J),
    /// It waits in the queue.
    Queued,
}

pub(crate) enum Refused {
    Closed,
    /// So many wait already.
    Full(usize),
}

impl<J> Lane<J> {
    pub(crate) fn new() -> Self {
        Lane {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                led: false,
                closed: false,
            }),
            pen: Permits::new(1),
            rested: Condvar::new(),
            locked_out: AtomicBool::new(false),
        }
    }

    /// Joins the lane; as the leader, if nobody leads. At most `limit` may wait.
    pub(crate) fn join(&self, job: J, limit: usize) -> Result<Joined<J>, Refused> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        if !state.led {
            state.led = true;
            return Ok(Joined::Leads(job));
        }
        if state.queue.len() >= limit {
            return Err(Refused::Full(state.queue.len()));
        }
        state.queue.push_back(job);
        Ok(Joined::Queued)
    }

    /// The next in the queue, for the leader.
    pub(crate) fn next(&self) -> Option<J> {
        self.state.lock().queue.pop_front()
    }

    /// Ends the leader's time, if nobody waits. Returns whether it did.
    pub(crate) fn step_down(&self) -> bool {
        let mut state = self.state.lock();
        state.led = !state.queue.is_empty();
        if !state.led && state.closed {
            self.rested.notify_all();
        }
        !state.led
    }

    /// Takes those out of the queue whom `leaving` picks.
    pub(crate) fn take_out(&self, mut leaving: impl FnMut(&J) -> bool) -> Vec<J> {
        let mut state = self.state.lock();
        if !state.queue.iter().any(&mut leaving) {
            return Vec::new();
        }
        let (out, stay): (Vec<_>, Vec<_>) = state.queue.drain(..).partition(leaving);
        state.queue.extend(stay);
        out
    }

    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().queue.len()
    }

    /// Refuses whoever comes from now on.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
    }

    /// Blocks until nobody waits and nobody leads, until `deadline` at most.
    pub(crate) fn wait_for_rest(&self, deadline: Instant) {
        let mut state = self.state.lock();
        while state.led {
            if self.rested.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }

    pub(crate) fn set_locked_out(&self, locked_out: bool) {
        self.locked_out.store(locked_out, Release);
    }

    pub(crate) fn is_locked_out(&self) -> bool {
        self.locked_out.load(Acquire)
    }
}
