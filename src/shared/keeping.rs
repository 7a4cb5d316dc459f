//! The keeper's work: everything that must happen in time even if nobody calls.
//! It waits for nobody: what is busy now is looked at again the next time.

use std::sync::Arc;
use std::sync::atomic::Ordering::AcqRel;
use std::time::{Duration, Instant};

#[cfg(feature = "tokio")]
use super::Press;
use super::{Permit, Shared, Stuck};
use crate::backend::Backend;
use crate::events;
use crate::slot;
use crate::stats::count;

/// How often what is to be interrupted is.
const PRESSING: Duration = Duration::from_millis(1);

impl<B: Backend> Shared<B> {
    /// How often the keeper must call, so that every timeout is obeyed to within a second.
    pub(super) fn keeper_period(&self) -> Duration {
        let shortest = [self.options.idle_timeout, self.options.overdue_after]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(Duration::MAX);
        // Whoever awaits its turn to write has no clock of its own.
        let shortest = (shortest / 4).min(self.options.lease_timeout / 10);
        shortest.clamp(Duration::from_millis(10), Duration::from_millis(250))
    }

    /// The keeper's work: everything that must happen in time even if nobody calls. Returns when it
    /// is to be called again.
    pub(super) fn keep(self: &Arc<Self>) -> Duration {
        self.maintain();
        (self.hooks.keep)(self);
        #[cfg(feature = "metrics")]
        self.publish();
        let mut pressed = self.pressed.lock();
        pressed.retain(|press| press());
        match pressed.is_empty() {
            true => self.keeper_period(),
            false => PRESSING,
        }
    }

    /// Lets the keeper `press` again and again until there is nothing left to interrupt: SQLite
    /// forgets an interrupt as soon as the statement has ended, and there may be more of them.
    #[cfg(feature = "tokio")]
    pub(crate) fn press(&self, press: Press) {
        self.pressed.lock().push(press);
        self.keeper.call();
    }

    #[cfg(feature = "metrics")]
    fn publish(&self) {
        let now = Instant::now();
        if self.published.lock().is_due(now) {
            self.publish_now();
        }
    }

    #[cfg(feature = "metrics")]
    pub(super) fn publish_now(&self) {
        let mut published = self.published.lock();
        published.publish(&self.options.name, self.families(), Instant::now());
    }

    fn maintain(&self) {
        let now = Instant::now();
        if self.permits.is_closed() {
            return;
        }
        self.backend.refresh(now);
        if let Some(timeout) = self.options.idle_timeout {
            self.cache.evict_idle(now, timeout);
        }
        if let Some(limit) = self.options.overdue_after {
            for holder in self.cache.ledger.newly_overdue(now, limit) {
                count(&self.counters.overdue);
                events::overdue(&self.options.name, &holder);
            }
        }
        let generation = self.backend.generation();
        if self.swept_generation.swap(generation, AcqRel) != generation {
            self.close_unfit();
        }
        self.cache.maintain();
        if self.gates.is_some() {
            if self.has_idle() {
                self.close_idle();
            }
            if self.wants_room() {
                self.make_room();
            }
        }
    }

    /// Closes the idle connections that can serve nobody any more, after the file was replaced.
    fn close_unfit(&self) {
        // A slot in hand needs a permit, as it does everywhere: whoever holds one counts on finding
        // a slot. What is lent now is closed when it comes back.
        let permits: Vec<_> =
            std::iter::from_fn(|| self.permits.acquire_free().then(|| Permit(self)))
                .take(self.options.max_connections)
                .collect();
        let mut slots = self.cache.take_parked(permits.len(), |connection, agent| {
            !self.backend.fits(connection, Some(agent))
        });
        while slots.len() < permits.len()
            && let Some(slot) = slot::take(&self.slots)
        {
            slots.push(slot);
        }
        for (mut slot, permit) in slots.into_iter().zip(permits) {
            if let Some(occupant) = &slot.occupant
                && !self.backend.fits(&occupant.connection, None)
            {
                let ending = self.discard(&self.counters.discarded_by_file, "file replaced");
                if let Err(Stuck) = self.vacate(&mut slot, ending) {
                    std::mem::forget(permit);
                    self.strand_slot(slot);
                    continue;
                }
            }
            drop(slot);
            drop(permit);
        }
    }
}
