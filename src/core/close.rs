//! Closing a pool: it is done when all N permits, and with them all N slots, are out of circulation. So it misses no
//! connection: each one that is lent or in hand has a permit.
//! It never takes a connection from a lease.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::time::{Duration, Instant};

use super::backend::{Backend, CloseMode, NotClosed};
use super::slot::OpenConnection;
use super::{Core, Stuck, reentrancy};
use crate::error::{Error, Wanted};
use crate::observe::events;
use crate::observe::stats::count;
use crate::sync::wait::await_until;

/// How long a caller at least waits for idle connections to be closed.
const OWN_CLOSING: Duration = Duration::from_millis(40);

impl<B: Backend> Core<B> {
    /// # Errors
    /// [`Error::Forked`] in a fork. [`Error::Reentrant`] on a thread that is in a call of this core, since
    /// closing would wait for that call.
    pub(crate) fn check_reentrancy(&self) -> Result<(), Error> {
        self.check_origin()?;
        reentrancy::check(self.address()).map_err(|within| Error::Reentrant { within })
    }

    /// The same for closing the writes alone.
    pub(crate) fn check_reentrancy_of_writes(&self) -> Result<(), Error> {
        self.check_origin()?;
        reentrancy::check_for_writes(self.address()).map_err(|within| Error::Reentrant { within })
    }

    /// Refuses new leases and all callers that wait.
    pub(crate) fn refuse(&self) {
        if self.permits.close() {
            self.opening.close();
            self.several.close();
            self.close_locks();
            self.came_back.notify(usize::MAX);
            self.backend.closing();
            events::closing(&self.options.name, self.parking.lot.levels().lent);
        }
    }

    /// Closes the pool and waits until that is done, but no longer than until `deadline`.
    pub(crate) async fn close(
        self: &Arc<Self>,
        asked_at: Instant,
        deadline: Instant,
    ) -> Result<(), Error> {
        self.refuse();
        self.wind_up_soon();
        let mut emptied = pin!(self.emptied());
        let mut done = await_until(deadline, emptied.as_mut()).await;
        if done.is_none() && self.parking.lot.levels().lent == 0 {
            // A worker has everything that is left.
            done = await_until(asked_at + OWN_CLOSING, emptied).await;
        }
        match done {
            Some(()) => self.close_stuck(),
            None => Err(self.exhausted(Wanted::Close, asked_at, 0)),
        }
    }

    /// Waits until all slots are out of circulation.
    async fn emptied(&self) {
        loop {
            let emptied = self.emptied.listen();
            if self.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    /// Closes the idle connections of a closed pool whose last handle is gone: on this thread, unless the connections are
    /// remote.
    pub(crate) fn wind_up_at_end(&self) {
        match B::IS_REMOTE {
            true => self.wind_up_soon(),
            false => self.wind_up(),
        }
    }

    /// Closes the idle connections of a closed pool. A worker closes each connection that is returned later.
    pub(crate) fn wind_up(&self) {
        self.backend.winding_up();
        while self.permits.try_acquire_spare(0) {
            // From here on the permit is never returned. A permit holder finds a slot.
            let Some(mut slot) = self.parking.lot.take_any() else {
                break;
            };
            match self.vacate(&mut slot, CloseMode::Retire) {
                Ok(()) => {
                    self.out.lock().retired.push(slot);
                    self.emptied.notify(usize::MAX);
                }
                Err(Stuck) => self.retire_stuck(slot),
            }
        }
        if self.is_empty() && self.counters.open.load(Acquire) == 0 {
            self.all_closed();
        }
        self.emptied.notify(usize::MAX);
    }

    pub(super) fn wind_up_soon(&self) {
        if let Some(core) = self.this.upgrade() {
            self.workers.submit_or_run(move || core.wind_up());
        }
    }

    /// Whether all slots are out of circulation, and nothing is open besides them.
    fn is_empty(&self) -> bool {
        let out = {
            let out = self.out.lock();
            out.retired.len() + out.stuck.len()
        };
        out >= self.options.max_connections && self.backend.is_wound_up()
    }

    /// Tries once more to close connections that could not be closed.
    fn close_stuck(&self) -> Result<(), Error> {
        let stuck = std::mem::take(&mut self.out.lock().stuck);
        let mut result = Ok(());
        for mut slot in stuck {
            let Some(open) = slot.open.take() else {
                continue;
            };
            match self.backend.close(open.connection, CloseMode::Retire) {
                Err(NotClosed {
                    connection: Some(connection),
                    error,
                }) => {
                    slot.open = Some(Box::new(OpenConnection {
                        connection,
                        ..*open
                    }));
                    self.out.lock().stuck.push(slot);
                    result = Err(error);
                }
                _ => {
                    count(&self.counters.closes);
                    self.counters.stuck.fetch_sub(1, AcqRel);
                    self.counters.open.fetch_sub(1, AcqRel);
                    self.out.lock().retired.push(slot);
                }
            }
        }
        if self.counters.open.load(Acquire) == 0 && self.backend.is_wound_up() {
            self.all_closed();
        }
        // Another caller may have looked while this thread held them.
        self.emptied.notify(usize::MAX);
        result
    }

    fn all_closed(&self) {
        // The backend is told first: a caller that returns from `close` may build the next pool at once.
        self.backend.closed();
        if !self.told_closed.swap(true, AcqRel) {
            events::closed(&self.options.name);
        }
    }

    /// The number that identifies this core within the process, while it lives.
    pub(crate) fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}
