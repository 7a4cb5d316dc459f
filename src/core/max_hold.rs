//! MaxHold: interrupts the statements of leases that are held for longer than the option of that name allows.
//! It ends no lease.
//!
//! An interrupt may reach only the lease that it is meant for, and not what the pool or the next borrower does on the same
//! connection. So the end of a lease takes its interrupter away first, and waits for an interrupt that is under way. That
//! takes no time: an interrupt sets a flag.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::backend::Interrupter;

pub(super) struct MaxHold {
    pub(super) limit: Duration,
    /// By slot: the lease that has it, if it is a borrower's.
    held: Box<[Mutex<Option<Held>>]>,
}

struct Held {
    since: Instant,
    interrupter: Interrupter,
    reported: bool,
}

impl MaxHold {
    pub(super) fn new(limit: Duration, slots: usize) -> Self {
        MaxHold {
            limit,
            held: (0..slots).map(|_| Mutex::new(None)).collect(),
        }
    }

    /// A lease begins.
    pub(super) fn begin(&self, slot: usize, interrupter: Interrupter) {
        if let Some(held) = self.held.get(slot) {
            *held.lock() = Some(Held {
                since: Instant::now(),
                interrupter,
                reported: false,
            });
        }
    }

    /// A lease ends: from now on, nothing interrupts its connection.
    pub(super) fn end(&self, slot: usize) {
        let ended = self.held.get(slot).and_then(|held| held.lock().take());
        drop(ended);
    }

    /// Interrupts the lease that has the slot, if it is too old. Returns whether it is so for the first time.
    pub(super) fn interrupt(&self, slot: usize, now: Instant) -> bool {
        let Some(held) = self.held.get(slot) else {
            return false;
        };
        match &mut *held.lock() {
            Some(held) if now.saturating_duration_since(held.since) >= self.limit => {
                (held.interrupter)();
                !std::mem::replace(&mut held.reported, true)
            }
            _ => false,
        }
    }
}
