//! Check-in: the end of every lease, in this order: slot, permit, everything else.
//! It closes nothing, since it may run on an async thread: a connection that must be closed goes back doomed, and the next
//! permit holder that may block closes it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::backend::{Backend, CloseMode, Fate};
use super::guard::Verdict;
use super::lot::Loan;
use super::parking::Entry;
use super::slot::TakenSlot;
use super::{Core, Stuck};
use crate::observe::events;
use crate::observe::stats::{Holder, count};

/// How often slow holds are logged at most.
const SELDOM: Duration = Duration::from_secs(1);

impl<B: Backend> Core<B> {
    pub(super) fn check_in(&self, entry: Arc<Entry>, mut slot: TakenSlot<B>, verdict: Verdict) {
        let fate = match &mut slot.open {
            Some(open) if B::IS_REMOTE => {
                let settles = self.backend.is_to_settle(&mut open.connection);
                if settles || verdict.discards() {
                    self.settle_elsewhere(entry, slot, verdict);
                    return;
                }
                Fate::Reuse
            }
            _ => self.settle(&mut slot, verdict),
        };
        self.settled(entry, slot, verdict, fate);
    }

    /// What becomes of the connection. Blocks if the backend is remote.
    fn settle(&self, slot: &mut TakenSlot<B>, verdict: Verdict) -> Fate {
        match &mut slot.open {
            _ if verdict.discards() => Fate::Discard,
            Some(open) => self.backend.settle(&mut open.connection),
            None => Fate::Reuse,
        }
    }

    /// Lets a worker thread end the lease, because that may wait for a server.
    fn settle_elsewhere(&self, entry: Arc<Entry>, slot: TakenSlot<B>, verdict: Verdict) {
        self.parking.lot.borrower_left(slot.index);
        // From here until the slot is parked, a caller for the same agent waits for it instead of taking another.
        let id = self.settling.begin(Arc::clone(&entry.agent));
        let ending = Arc::new(Mutex::new(Some((entry, slot))));
        if let Some(core) = self.this.upgrade() {
            let theirs = Arc::clone(&ending);
            let task = move || {
                let taken = theirs.lock().take();
                if let Some((entry, slot)) = taken {
                    core.settle_here(entry, slot, verdict);
                    core.settling.end(id);
                }
            };
            if self.workers.submit(Box::new(task)).is_ok() {
                return;
            }
        }
        // No thread can be had: the next permit holder closes the connection.
        let taken = ending.lock().take();
        if let Some((entry, slot)) = taken {
            self.settled(entry, slot, verdict, Fate::Discard);
        }
        self.settling.end(id);
    }

    /// Ends a lease on this thread, which may block. A connection that cannot serve again is closed at once: until then it
    /// keeps its transaction and its locks.
    fn settle_here(&self, entry: Arc<Entry>, mut slot: TakenSlot<B>, verdict: Verdict) {
        match self.settle(&mut slot, verdict) {
            Fate::Discard => self.discard_now(entry, slot, verdict),
            fate => self.settled(entry, slot, verdict, fate),
        }
    }

    /// The rest of the end of a lease: its connection is parked, or goes back as free or doomed.
    fn settled(&self, entry: Arc<Entry>, mut slot: TakenSlot<B>, verdict: Verdict, fate: Fate) {
        let mut reason = None;
        let mut may_stay = true;
        if let Some(open) = &mut slot.open {
            may_stay = fate == Fate::Reuse;
            if fate == Fate::Discard {
                count(&self.counters.discarded_by_lease);
                reason = Some("fault");
            } else if !self.backend.is_current(&open.connection) {
                count(&self.counters.discarded_by_file);
                reason = Some("file replaced");
            }
            if reason.is_some() {
                open.doomed = Some(CloseMode::Abandon);
            }
        }
        let fit = verdict == Verdict::Park && reason.is_none() && may_stay && slot.open.is_some();
        self.give_back(entry, slot, fit, verdict != Verdict::Unready);
        if let Some(reason) = reason {
            events::discarded(&self.options.name, reason);
        }
        if reason.is_some() || (!fit && self.backend.is_per_agent()) {
            self.tidy_soon();
        }
    }

    /// Ends a lease and closes its connection on this thread.
    pub(super) fn discard_now(&self, entry: Arc<Entry>, mut slot: TakenSlot<B>, verdict: Verdict) {
        let mode = self.discard(
            &self.counters.discarded_by_lease,
            "fault",
            CloseMode::Abandon,
        );
        match self.vacate(&mut slot, mode) {
            Ok(()) => self.give_back(entry, slot, false, verdict != Verdict::Unready),
            Err(Stuck) => {
                self.parking.lot.forget(slot.index);
                self.retire_stuck(slot);
            }
        }
    }

    /// Returns the slot of a lease, or of a checkout that never became one, and then its permit.
    fn give_back(&self, entry: Arc<Entry>, slot: TakenSlot<B>, may_park: bool, lease: bool) {
        let now = Instant::now();
        let index = slot.index;
        // Borrowers that name no agent do not count among the cached agents.
        let may_park = may_park && (self.parking.parks() || entry.is_anonymous());
        let ended = |loan: &Loan| {
            let age = loan.age(now);
            if lease {
                self.counters.hold.record_of_slot(index, age);
            }
            loan.reported || (lease && self.is_slow_hold(loan, age))
        };
        let returned = self
            .parking
            .lot
            .give_back(slot, entry, may_park, now, ended);
        self.return_permit(now);
        if B::IS_REMOTE && self.backend.is_failing() {
            self.came_back.notify(1);
        }
        if let Some((loan, entry)) = &returned.noted {
            self.note(loan, &loan.holder(&entry.agent, now), now);
        }
        self.parking.note(&returned);
    }

    /// Whether a task may have kept a thread of its executor from others for too long. Over a server, tasks await.
    fn is_slow_hold(&self, loan: &Loan, age: Duration) -> bool {
        !B::IS_REMOTE && loan.awaited && self.options.slow_hold.is_some_and(|most| age > most)
    }

    /// Reports a loan that has ended and lasted too long.
    #[cold]
    fn note(&self, loan: &Loan, holder: &Holder, now: Instant) {
        if loan.reported {
            events::overdue_returned(&self.options.name, holder);
        }
        if self.is_slow_hold(loan, loan.age(now)) {
            count(&self.counters.slow_holds);
            let mut last = self.slow_hold_reported.lock();
            let is_due = last.is_none_or(|last| now.saturating_duration_since(last) >= SELDOM);
            if is_due {
                *last = Some(now);
                drop(last);
                events::slow_hold(&self.options.name, holder);
            }
        }
    }
}
