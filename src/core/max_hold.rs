//! MaxHold: interrupts the statements of leases that are held for longer than the option of that name allows.
//! It ends no lease.
//!
//! An interrupt may reach only the lease that it is meant for, and not what the pool or the next borrower does on the same
//! connection. So each lease has a number, and its end waits for an interrupt that is under way. That takes no time: an
//! interrupt sets a flag. The two sides meet without a lock: each writes its own word, and then reads the other's, with a
//! fence between. So at least one of them sees the other.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::time::Duration;

use crate::sync::prim::{AtomicBool, AtomicU64, Mutex, fence};

/// Interrupts a statement, from any thread and at once. It may be called when the connection is closed, and does nothing then.
pub(crate) type Interrupter = Arc<dyn Fn() + Send + Sync>;

pub(crate) struct MaxHold {
    pub(crate) limit: Duration,
    slots: Box<[Held]>,
}

/// On a cache line of its own: each lease writes here.
#[repr(align(128))]
struct Held {
    /// The number of the lease that has the slot, which is odd, or an even number. Only the slot's permit holder writes it.
    lease: AtomicU64,
    /// An interrupt may be under way. Written under the lock.
    interrupting: AtomicBool,
    interrupts: Mutex<Interrupts>,
}

struct Interrupts {
    /// Of the open connection.
    interrupter: Option<Interrupter>,
    /// The last lease that was interrupted.
    last: u64,
}

impl MaxHold {
    pub(crate) fn new(limit: Duration, slots: usize) -> Self {
        let held = || Held {
            lease: AtomicU64::new(0),
            interrupting: AtomicBool::new(false),
            interrupts: Mutex::new(Interrupts {
                interrupter: None,
                last: 0,
            }),
        };
        MaxHold {
            limit,
            slots: (0..slots).map(|_| held()).collect(),
        }
    }

    /// The slot's connection is another one, or none.
    pub(crate) fn set_connection(&self, slot: usize, interrupter: Option<Interrupter>) {
        if let Some(held) = self.slots.get(slot) {
            let before = std::mem::replace(&mut held.interrupts.lock().interrupter, interrupter);
            drop(before);
        }
    }

    /// A lease of a borrower begins.
    #[inline]
    pub(crate) fn begin(&self, slot: usize) {
        if let Some(held) = self.slots.get(slot) {
            let lease = held.lease.load(Relaxed) | 1;
            held.lease.store(lease, Release);
        }
    }

    /// It ends: from now on, nothing interrupts its connection.
    #[inline]
    pub(crate) fn end(&self, slot: usize) {
        let Some(held) = self.slots.get(slot) else {
            return;
        };
        let lease = held.lease.load(Relaxed);
        held.lease.store(lease + (lease & 1), Relaxed);
        fence(SeqCst);
        if held.interrupting.load(Acquire) {
            drop(held.interrupts.lock());
        }
    }

    /// The lease that has the slot, if it is one of a borrower.
    pub(crate) fn lease(&self, slot: usize) -> Option<u64> {
        let lease = self.slots.get(slot)?.lease.load(Acquire);
        (lease & 1 == 1).then_some(lease)
    }

    /// Interrupts this lease, if it still has the slot. Returns whether it did so for the first time, and calls `first`
    /// before that.
    pub(crate) fn interrupt(&self, slot: usize, lease: u64, first: impl FnOnce()) -> bool {
        let Some(held) = self.slots.get(slot) else {
            return false;
        };
        let mut interrupts = held.interrupts.lock();
        held.interrupting.store(true, Relaxed);
        fence(SeqCst);
        let is_it = held.lease.load(Acquire) == lease;
        let is_first = is_it && std::mem::replace(&mut interrupts.last, lease) != lease;
        if is_first {
            first();
        }
        if is_it && let Some(interrupter) = &interrupts.interrupter {
            interrupter();
        }
        held.interrupting.store(false, Release);
        is_first
    }
}
