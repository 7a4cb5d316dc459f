//! WriteQueue: the writes that wait for one database, first come, first served. One caller, or a worker thread, leads; the
//! leader takes jobs out one by one.
//! It knows no SQL, and waits for no other thread.
//!
//! Apart from the queue there is the write lock: the right to have a transaction that writes. A thread that
//! waits for the lock already has its connection, so no two threads wait for each other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_listener::Event;
use parking_lot::Mutex;

use super::job::{Job, PendingJob};
use crate::observe::claim::Claim;
use crate::sync::semaphore::Semaphore;

pub(super) struct WriteQueue {
    state: Mutex<State>,
    pub(super) write_lock: Semaphore<Claim>,
    /// Notified when the leader of a closed queue steps down.
    idle: Event,
    /// SQLite's write lock could not be had, and has not been had since: another process, or a connection outside of this
    /// queue, holds it.
    lock_out: Mutex<Option<LockOut>>,
}

/// A time in which SQLite's write lock could not be had.
#[derive(Clone, Copy)]
struct LockOut {
    since: Instant,
    /// When a write last asked for the lock in vain.
    asked: Instant,
}

/// A lock-out in which no write has asked for so long is not known to go on.
const FORGOTTEN: Duration = Duration::from_secs(10);

struct State {
    jobs: VecDeque<Arc<dyn Job>>,
    /// There is a leader. Without one, no job queues.
    led: bool,
    closed: bool,
}

/// How a job entered a queue.
pub(super) enum Joined {
    /// There was no leader: the caller leads now, and begins with its own job.
    Leads(PendingJob),
    /// The job waits in the queue.
    Queued,
}

pub(super) enum Refused {
    Closed,
    /// This many jobs wait already.
    Full(usize),
}

impl WriteQueue {
    pub(super) fn new(overtaking: Duration) -> Self {
        WriteQueue {
            state: Mutex::new(State {
                jobs: VecDeque::new(),
                led: false,
                closed: false,
            }),
            write_lock: Semaphore::new(1, overtaking),
            idle: Event::new(),
            lock_out: Mutex::new(None),
        }
    }

    /// Adds a job to the queue. If there is no leader, the caller becomes it. At most `limit` jobs may wait.
    pub(super) fn join(&self, job: Arc<dyn Job>, limit: usize) -> Result<Joined, Refused> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        if !state.led {
            state.led = true;
            return Ok(Joined::Leads(PendingJob::new(job)));
        }
        if state.jobs.len() >= limit {
            return Err(Refused::Full(state.jobs.len()));
        }
        state.jobs.push_back(job);
        Ok(Joined::Queued)
    }

    /// Takes the next job out of the queue, for the leader.
    pub(super) fn next(&self) -> Option<PendingJob> {
        self.state.lock().jobs.pop_front().map(PendingJob::new)
    }

    /// Ends the leader's time, if no job waits. Returns whether it did.
    pub(super) fn step_down(&self) -> bool {
        let mut state = self.state.lock();
        state.led = !state.jobs.is_empty();
        let (led, closed) = (state.led, state.closed);
        drop(state);
        if !led && closed {
            self.idle.notify(usize::MAX);
        }
        !led
    }

    /// Takes out the jobs that `leaving` picks.
    pub(super) fn take_out(
        &self,
        mut leaving: impl FnMut(&Arc<dyn Job>) -> bool,
    ) -> Vec<PendingJob> {
        let mut state = self.state.lock();
        if !state.jobs.iter().any(&mut leaving) {
            return Vec::new();
        }
        let (out, stay): (Vec<_>, Vec<_>) = state.jobs.drain(..).partition(leaving);
        state.jobs.extend(stay);
        drop(state);
        out.into_iter().map(PendingJob::new).collect()
    }

    pub(super) fn waiting(&self) -> usize {
        self.state.lock().jobs.len()
    }

    /// Refuses every job that comes from now on.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
    }

    /// Waits until no job waits and there is no leader.
    pub(super) async fn idle(&self) {
        loop {
            let idle = self.idle.listen();
            if !self.state.lock().led {
                return;
            }
            idle.await;
        }
    }

    /// SQLite's write lock cannot be had now.
    pub(super) fn kept_out(&self, now: Instant) {
        let mut lock_out = self.lock_out.lock();
        let since = lock_out
            .filter(|before| now.saturating_duration_since(before.asked) < FORGOTTEN)
            .map_or(now, |before| before.since);
        *lock_out = Some(LockOut { since, asked: now });
    }

    /// A write has got SQLite's write lock.
    pub(super) fn let_in(&self) {
        *self.lock_out.lock() = None;
    }

    /// How long SQLite's write lock could not be had, if that is still so as far as is known.
    pub(super) fn locked_out_for(&self, now: Instant) -> Option<Duration> {
        let lock_out = (*self.lock_out.lock())?;
        let lately = now.saturating_duration_since(lock_out.asked) < FORGOTTEN;
        lately.then(|| now.saturating_duration_since(lock_out.since))
    }

    pub(super) fn is_locked_out(&self) -> bool {
        self.lock_out.lock().is_some()
    }
}
