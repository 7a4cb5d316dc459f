//! Closing a pool: every idle connection at once, what is lent when it comes back.
//! It never takes a connection from a lease.

use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::time::{Duration, Instant};

use event_listener::Listener;

use super::{Shared, Stuck};
use crate::backend::{Backend, Ending, NotClosed};
use crate::error::{Error, Wanted};
use crate::events;
use crate::slot::{self, Occupant};
use crate::stats::count;

impl<B: Backend> Shared<B> {
    /// Refuses new leases and closes every idle connection.
    pub(crate) fn begin_close(&self) {
        (self.hooks.refuse)(self);
        if self.permits.close() {
            self.close_gates();
            events::closing(&self.options.name, self.cache.ledger.levels().lent);
        }
        self.wind_up();
    }

    pub(crate) fn close(self: &Arc<Self>, timeout: Duration) -> Result<(), Error> {
        let asked_at = Instant::now();
        (self.hooks.drain)(self, asked_at + timeout);
        self.begin_close();
        loop {
            let emptied = self.emptied.listen();
            if self.is_empty() {
                break;
            }
            if emptied.wait_deadline(asked_at + timeout).is_none() && !self.is_empty() {
                return Err(self.exhausted(Wanted::Connection, asked_at, 0));
            }
        }
        self.close_stuck()
    }

    /// Closes every idle connection of a closed pool.
    pub(super) fn wind_up(&self) {
        let mut idle = self.cache.take_parked(usize::MAX, |_, _| true);
        idle.extend(std::iter::from_fn(|| slot::take(&self.slots)));
        for mut slot in idle {
            if let Err(Stuck) = self.vacate(&mut slot, Ending::Retired) {
                self.permits.withdraw();
                self.strand_slot(slot);
            }
        }
        if self.is_empty() {
            if self.counters.open.load(Acquire) == 0 {
                self.all_closed();
            }
            self.emptied.notify(usize::MAX);
        }
    }

    /// Nothing is lent, being lent, or idle: all that may be left is stuck.
    fn is_empty(&self) -> bool {
        let stuck = self.counters.stuck.load(Acquire);
        self.permits.free() + stuck >= self.options.max_connections
            && self.counters.open.load(Acquire) <= stuck
    }

    fn close_stuck(&self) -> Result<(), Error> {
        let stuck = std::mem::take(&mut *self.stuck.lock());
        let mut result = Ok(());
        for mut slot in stuck {
            let Some(occupant) = slot.occupant.take() else {
                continue;
            };
            match self.backend.close(occupant.connection, Ending::Retired) {
                Err(NotClosed {
                    connection: Some(connection),
                    error,
                }) => {
                    slot.occupant = Some(Box::new(Occupant {
                        connection,
                        ..*occupant
                    }));
                    self.stuck.lock().push(slot);
                    result = Err(error);
                }
                _ => {
                    count(&self.counters.closes);
                    self.counters.stuck.fetch_sub(1, AcqRel);
                    self.counters.open.fetch_sub(1, AcqRel);
                }
            }
        }
        if self.counters.open.load(Acquire) == 0 {
            self.all_closed();
        }
        result
    }

    fn all_closed(&self) {
        self.backend.closed();
        if !self.told_closed.swap(true, AcqRel) {
            events::closed(&self.options.name);
            // The keeper may have no other occasion.
            #[cfg(feature = "metrics")]
            self.publish_now();
        }
    }
}
