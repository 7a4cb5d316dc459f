//! Maintenance: work that must happen in time even if no call is made. The ticker calls [`Core::maintain`] regularly.
//! It closes nothing itself. A worker does, with a permit, and only while other permits stay free.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use std::time::{Duration, Instant};

use super::agent_lock::AgentLocks;
use super::backend::{Backend, CloseMode, MakeRoom, Patience};
use super::max_hold::MaxHold;
use super::request::Request;
use super::slot::TakenSlot;
use super::{Core, Permit, Stuck};
use crate::observe::claim::Claim;
use crate::observe::events;
use crate::observe::stats::{Holder, count};

/// How long holders must have been waiting themselves before the pool reports a deadlock.
const DEADLOCK: Duration = Duration::from_secs(1);

impl<B: Backend> Core<B> {
    /// How often [`maintain`](Core::maintain) must be called, so that every timeout is obeyed to within a
    /// second.
    pub(crate) fn maintenance_period(&self) -> Duration {
        let options = &self.options;
        let shortest = [
            options.idle_timeout,
            options.overdue_after,
            options.max_hold,
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(Duration::MAX);
        (shortest / 4).clamp(Duration::from_millis(10), Duration::from_millis(250))
    }

    pub(crate) fn maintain(&self) {
        let now = Instant::now();
        if self.permits.is_closed() {
            return;
        }
        self.backend.refresh(now);
        if let Some(cutoff) = self.options.idle_timeout.and_then(|t| now.checked_sub(t))
            && self.parking.evict_idle(cutoff) > 0
        {
            self.after_eviction();
        }
        self.parking.maintain();
        self.slow_waits.forget(now);
        if let Some(limit) = self.options.overdue_after {
            self.report_overdue(now, limit);
        }
        if let Some(max_hold) = &self.max_hold {
            self.interrupt_long_holds(max_hold, now);
        }
        self.report_deadlock(now);
        let generation = self.backend.generation();
        let replaced = self.swept_generation.swap(generation, AcqRel) != generation;
        if replaced || self.has_idle() || self.lacks_room() {
            self.tidy_soon();
        }
    }

    /// Where each agent has its own database, the connection of an evicted agent is closed.
    pub(super) fn after_eviction(&self) {
        if self.backend.is_per_agent() {
            self.tidy_soon();
        }
    }

    fn report_overdue(&self, now: Instant, limit: Duration) {
        let mut overdue = Vec::new();
        self.parking.lot.loans(|_, entry, loan| {
            if !loan.reported && loan.age(now) >= limit {
                loan.reported = true;
                overdue.push(loan.holder(&entry.agent, now));
            }
        });
        for holder in overdue {
            count(&self.counters.overdue);
            events::overdue(&self.options.name, &holder);
        }
    }

    /// Interrupts, again and again, what runs on leases that are held for too long: SQLite forgets an interrupt with the
    /// statement.
    fn interrupt_long_holds(&self, max_hold: &MaxHold, now: Instant) {
        let slots = 0..self.options.max_connections;
        // Before the loans: a lease that begins in between has another number.
        let leases: Vec<_> = slots.map(|slot| max_hold.lease(slot)).collect();
        let mut long = Vec::new();
        self.parking.lot.loans(|slot, entry, loan| {
            if let Some(lease) = leases.get(slot).copied().flatten()
                && loan.age(now) >= max_hold.limit
            {
                long.push((slot, lease, loan.holder(&entry.agent, now)));
            }
        });
        for (slot, lease, holder) in long {
            // Counted before the borrower has its error.
            let first = || count(&self.counters.interrupted);
            if max_hold.interrupt(slot, lease, first) {
                events::interrupted(&self.options.name, &holder);
            }
        }
    }

    /// Reports, once, that every holder that others wait for is waiting, too: most likely a deadlock.
    fn report_deadlock(&self, now: Instant) {
        let deadlocked = self.deadlocked(now);
        let news = !deadlocked.is_empty();
        if news && !self.deadlock_reported.swap(true, Relaxed) {
            events::deadlock(&self.options.name, &deadlocked);
        }
        if !news {
            self.deadlock_reported.store(false, Relaxed);
        }
    }

    /// Each holder that others wait for, with the claim that its thread waits with. Empty unless all such
    /// holders wait.
    fn deadlocked(&self, now: Instant) -> Vec<(Holder, Claim)> {
        let claims = self.waiting_claims();
        let waiting: HashMap<u64, Claim> = claims
            .into_iter()
            .filter(|claim| now.saturating_duration_since(claim.asked_at) >= DEADLOCK)
            .filter_map(|claim| Some((claim.thread?, claim)))
            .collect();
        if waiting.is_empty() {
            return Vec::new();
        }
        let mut found = Vec::new();
        let mut all = true;
        let contended = self.permits.waiting() > 0;
        self.parking.lot.loans(|_, entry, loan| {
            let lock = entry.lock.as_ref();
            let wanted = contended || lock.is_some_and(|lock| lock.semaphore().waiting() > 0);
            if !wanted {
                return;
            }
            match waiting.get(&loan.thread) {
                Some(claim) => found.push((loan.holder(&entry.agent, now), claim.clone())),
                // The queue at one agent's lock concerns only that agent. Of a quota, another holder may return its lease.
                None => all &= !contended && self.options.leases_per_agent.is_none(),
            }
        });
        if all { found } else { Vec::new() }
    }

    /// Lets a worker close the connections that must be closed and are not lent.
    pub(super) fn tidy_soon(&self) {
        let Some(core) = self.this.upgrade() else {
            return;
        };
        if self.tidying.swap(true, AcqRel) {
            return;
        }
        let submitted = self.workers.submit(Box::new(move || core.tidy()));
        if submitted.is_err() {
            // The next borrower of the slot closes it.
            self.tidying.store(false, Relaxed);
        }
    }

    fn tidy(&self) {
        self.tidying.store(false, Relaxed);
        // With one connection, no permit can stay free. And a call that waits for room is served first.
        let spare = || usize::from(self.options.max_connections > 1 && !self.backend.wants_room());
        while !self.permits.is_closed() && self.permits.try_acquire_spare(spare()) {
            let permit = Permit(self);
            let found = self
                .parking
                .lot
                .take_matching(|slot, is_parked| self.must_close(slot, is_parked));
            let is_victim = found.is_none();
            let victim = || self.lacks_room().then(|| self.parking.lot.take_victim());
            let Some(mut slot) = found.or_else(|| victim().flatten()) else {
                return;
            };
            if is_victim {
                count(&self.counters.made_room);
            }
            let mode = match &slot.open {
                Some(open)
                    if open.doomed.is_none() && !self.backend.is_current(&open.connection) =>
                {
                    let counter = &self.counters.discarded_by_file;
                    self.discard(counter, "file replaced", CloseMode::Abandon)
                }
                _ => CloseMode::Evict,
            };
            match self.vacate(&mut slot, mode) {
                Ok(()) => {
                    self.parking.lot.put_back(slot);
                    drop(permit);
                }
                Err(Stuck) => {
                    permit.pass_on();
                    self.retire_stuck(slot);
                }
            }
        }
    }

    /// For a caller whose request may need room.
    pub(crate) fn patience(&self, request: &Request<'_>) -> Patience<'_> {
        Patience {
            deadline: request.deadline(),
            make_room: self,
        }
    }

    /// Called under the lot's lock.
    fn must_close(&self, slot: &TakenSlot<B>, is_parked: bool) -> bool {
        slot.open.as_ref().is_some_and(|open| {
            open.doomed.is_some()
                || !self.backend.is_current(&open.connection)
                || (!is_parked && self.backend.is_per_agent())
                || (self.backend.wants_room() && self.backend.keeps_others_open(&open.connection))
        })
    }

    /// Where each agent has its own database: whether connections are open that belong to no agent.
    fn has_idle(&self) -> bool {
        use std::sync::atomic::Ordering::Acquire;
        if !self.backend.is_per_agent() {
            return false;
        }
        let levels = self.parking.lot.levels();
        let used = levels.lent + levels.parked + self.counters.stuck.load(Acquire);
        self.counters.open.load(Acquire) > used
    }

    /// Refuses all callers that wait at agents' locks.
    pub(super) fn close_locks(&self) {
        let locks: Vec<Arc<_>> = self.locks.iter().flat_map(AgentLocks::all).collect();
        for lock in locks {
            lock.semaphore().close();
        }
    }
}

impl<B: Backend> MakeRoom for Core<B> {
    fn make_room(&self) {
        self.tidy_soon();
    }
}
