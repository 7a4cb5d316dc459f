//! A gate: where agents may not share connections, the right to be lent the one of an agent. One borrower at
//! a time passes, first come, first served; whoever waits here holds no permit that others could use.
//! It knows no connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::permits::{Claim, Permits, Refusal};
use crate::registry::Kept;
use crate::stats::Waiting;

pub(crate) struct Gate {
    permits: Permits,
    /// The thread that leased, or has used the lease last; 0 if nobody knows.
    thread: AtomicU64,
}

/// The right to be lent the agent's connection. Dropping it lets the next one pass.
pub(crate) struct Pass(Arc<Kept<Gate>>);

/// Why somebody does not pass.
pub(crate) enum Shut {
    Refused(Refusal),
    /// This very thread has the connection, and waits for itself.
    Own,
}

/// For how long a thread waits for a lease of its own, which it may just have given to another thread.
const GRACE: Duration = Duration::from_millis(20);

impl Gate {
    pub(crate) fn new() -> Self {
        Gate {
            permits: Permits::new(1),
            thread: AtomicU64::new(0),
        }
    }

    /// How many wait, and who.
    pub(crate) fn waiting(&self) -> usize {
        self.permits.waiting()
    }

    pub(crate) fn waiters(&self, now: Instant) -> Vec<Waiting> {
        self.permits.waiters(now)
    }

    pub(crate) fn close(&self) {
        self.permits.close();
    }
}

/// Passes if nobody is before us.
pub(crate) fn try_pass(gate: &Arc<Kept<Gate>>) -> Option<Pass> {
    let passed = gate.permits.acquire_free();
    passed.then(|| Pass(Arc::clone(gate)))
}

/// Passes, blocking until `deadline` at most (`None`: not at all).
pub(crate) fn pass(
    gate: &Arc<Kept<Gate>>,
    claim: &Claim,
    deadline: Option<Instant>,
) -> Result<Pass, Shut> {
    let Some(deadline) = deadline else {
        return match gate.permits.try_acquire() {
            Ok(()) => Ok(Pass(Arc::clone(gate))),
            Err(refusal) => Err(Shut::Refused(refusal)),
        };
    };
    let is_own = || gate.thread.load(Relaxed) == this_thread();
    if is_own() {
        let grace = deadline.min(Instant::now() + GRACE);
        match gate.permits.acquire(claim.clone(), grace) {
            Ok(()) => return Ok(Pass(Arc::clone(gate))),
            Err(Refusal::TimedOut { .. }) if is_own() => return Err(Shut::Own),
            Err(Refusal::TimedOut { .. }) if grace < deadline => {}
            Err(refusal) => return Err(Shut::Refused(refusal)),
        }
    }
    match gate.permits.acquire(claim.clone(), deadline) {
        Ok(()) => Ok(Pass(Arc::clone(gate))),
        Err(refusal) => Err(Shut::Refused(refusal)),
    }
}

/// The same, awaited.
pub(crate) async fn pass_async(
    gate: &Arc<Kept<Gate>>,
    claim: &Claim,
    deadline: Instant,
) -> Result<Pass, Refusal> {
    gate.permits
        .acquire_async(claim.clone(), deadline)
        .await
        .map(|()| Pass(Arc::clone(gate)))
}

impl Pass {
    pub(crate) fn gate(&self) -> &Arc<Kept<Gate>> {
        &self.0
    }

    /// Notes that the lease is on this thread.
    pub(crate) fn note_thread(&self) {
        self.0.thread.store(this_thread(), Relaxed);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.thread.store(0, Relaxed);
        self.0.permits.release();
    }
}

/// A number for each thread.
fn this_thread() -> u64 {
    static NUMBERS: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static NUMBER: u64 = NUMBERS.fetch_add(1, Relaxed);
    }
    NUMBER.with(|number| *number)
}
