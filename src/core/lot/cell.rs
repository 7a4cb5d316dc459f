//! A cell: the place of one slot, with its own lock, so that hits on different slots do not contend.
//! It knows no other cell.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::known::Entry;
use super::{From, Loan};
use crate::sync::prim::{AtomicBool, Guard, Mutex};

/// On cache lines of its own, since several threads write here in turn.
#[repr(align(128))]
pub(super) struct Cell<S, L> {
    state: Mutex<State<S, L>>,
    /// Whether a slot is parked here. Read before the lock is taken, written under it.
    parked: AtomicBool,
}

/// The state of one slot.
pub(super) struct State<S, L> {
    pub(super) place: Place<S, L>,
    /// Its owner while it is parked or lent. Changed under both the lot's lock and this one.
    pub(super) owner: Option<Arc<Entry<L>>>,
    pub(super) parked_at: Instant,
    /// How often a search for a victim will pass it over: once for each hit, at most `CREDIT` times.
    credit: u8,
    /// How often another agent took it.
    pub(super) reclaims: u64,
}

pub(super) enum Place<S, L> {
    /// Free, or held by a permit holder that lends it to no agent.
    Elsewhere,
    Lent(Loan),
    /// Parked, together with the borrower's reference to the owner, so that a hit need not make a new one.
    Parked(S, Arc<Entry<L>>),
}

/// With more credit, agents that came back often would stay for long after they stopped; with less, the hit
/// rate falls.
pub(super) const CREDIT: u8 = 3;

impl<S, L> Cell<S, L> {
    /// The cell of a slot that is free.
    pub(super) fn new(now: Instant) -> Self {
        Cell {
            state: Mutex::new(State {
                place: Place::Elsewhere,
                owner: None,
                parked_at: now,
                credit: 0,
                reclaims: 0,
            }),
            parked: AtomicBool::new(false),
        }
    }

    #[inline]
    pub(super) fn lock(&self) -> Guard<'_, State<S, L>> {
        self.state.lock()
    }

    /// Whether a slot seems to be parked here. Certain only under the lock.
    #[inline]
    pub(super) fn looks_parked(&self) -> bool {
        self.parked.load(Relaxed)
    }

    /// Lends the slot that is parked here to its own agent, if `is_wanted` accepts that agent.
    #[inline]
    pub(super) fn lend_to_owner(
        &self,
        loan: Loan,
        is_wanted: impl FnOnce(&Entry<L>) -> bool,
    ) -> Option<(S, Arc<Entry<L>>)> {
        if !self.looks_parked() {
            return None;
        }
        let mut state = self.lock();
        if !matches!(&state.place, Place::Parked(_, owner) if is_wanted(owner)) {
            return None;
        }
        state.credit = CREDIT.min(state.credit + 1);
        self.unpark(&mut state, Place::Lent(loan))
    }

    /// Parks the slot for its owner, with the borrower's reference to the owner.
    #[inline]
    pub(super) fn park(
        &self,
        state: &mut State<S, L>,
        slot: S,
        owner: Arc<Entry<L>>,
        now: Instant,
    ) {
        state.parked_at = now;
        state.place = Place::Parked(slot, owner);
        self.parked.store(true, Relaxed);
    }

    /// Takes out the parked slot with its agent. The slot still belongs to that owner.
    #[inline]
    pub(super) fn unpark(
        &self,
        state: &mut State<S, L>,
        then: Place<S, L>,
    ) -> Option<(S, Arc<Entry<L>>)> {
        match std::mem::replace(&mut state.place, then) {
            Place::Parked(slot, entry) => {
                self.parked.store(false, Relaxed);
                Some((slot, entry))
            }
            other => {
                state.place = other;
                None
            }
        }
    }
}

impl<S, L> State<S, L> {
    /// Lends the slot to an agent for which it was not parked.
    pub(super) fn lend(&mut self, entry: &Arc<Entry<L>>, loan: Loan, from: &From<L>) {
        self.reclaims += u64::from(matches!(from, From::Other(_)));
        self.place = Place::Lent(loan);
        self.owner = Some(Arc::clone(entry));
        self.credit = 0;
    }

    /// Ends the loan, if there is one.
    #[inline]
    pub(super) fn end_loan(&mut self) -> Option<Loan> {
        match std::mem::replace(&mut self.place, Place::Elsewhere) {
            Place::Lent(loan) => Some(loan),
            other => {
                self.place = other;
                None
            }
        }
    }

    /// Whether the agent has come back to it lately.
    pub(super) fn has_credit(&self) -> bool {
        self.credit > 0
    }

    /// Whether a search for a victim passes it over. Uses up one credit.
    pub(super) fn spend_credit(&mut self) -> bool {
        let has_credit = self.has_credit();
        self.credit = self.credit.saturating_sub(1);
        has_credit
    }
}
