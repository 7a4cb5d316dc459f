//! Checkout: a lent slot with its permit. Dropping the checkout is the only way to end it.
//! It does not decide where the connection goes: `checkin` does.

use std::sync::Arc;
use std::time::Instant;

use super::Core;
use super::agent_lock::AgentLockGuard;
use super::backend::Backend;
use super::parking::Entry;
use super::prepare::Preparation;
use super::slot::{OpenConnection, TakenSlot};

/// Keeps the core alive while a connection is lent. It is the core's own handle or that of a layer above, so
/// that a lease counts one reference and not two.
pub trait Handle<B: Backend>: Clone + Send + Sync + 'static {
    fn core(&self) -> &Core<B>;
}

impl<B: Backend> Handle<B> for Arc<Core<B>> {
    fn core(&self) -> &Core<B> {
        self
    }
}

/// A connection that is lent, or is being prepared for it.
pub struct Checkout<B: Backend, H: Handle<B> = Arc<Core<B>>> {
    handle: H,
    /// `None` only at the end.
    lent: Option<Lent<B>>,
    verdict: Verdict,
    terms: Terms,
    /// Where each agent has its own database, or a quota: its lock. It is released after the slot and the permit.
    lock: Option<AgentLockGuard>,
}

/// A slot, and the agent it is lent to.
struct Lent<B: Backend> {
    slot: TakenSlot<B>,
    entry: Arc<Entry>,
}

/// What its request says of a checkout.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Terms {
    /// Its borrower may hold it for `max_hold` only.
    pub(super) is_limited: bool,
    /// The caller has waited for other borrowers, or for a thread.
    pub(super) has_waited: bool,
}

/// What happens to the connection at the end of its checkout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It never became ready to be lent: the connection in the slot, if there is one, is closed.
    Unready,
    /// It is parked for its agent.
    Park,
    /// It is reset before any agent gets it, including the same one.
    Free,
    /// It is closed.
    Discard,
}

impl Verdict {
    pub(super) fn discards(self) -> bool {
        matches!(self, Verdict::Unready | Verdict::Discard)
    }
}

impl<B: Backend, H: Handle<B>> Checkout<B, H> {
    /// Takes over the caller's permit as well.
    pub(super) fn new(
        handle: &H,
        entry: Arc<Entry>,
        slot: TakenSlot<B>,
        lock: Option<AgentLockGuard>,
        terms: Terms,
    ) -> Self {
        Checkout {
            handle: handle.clone(),
            lent: Some(Lent { slot, entry }),
            verdict: Verdict::Unready,
            terms,
            lock,
        }
    }

    /// From here on, the checkout counts as a lease.
    #[inline]
    pub(super) fn ready(mut self, hit: bool) -> Self {
        self.verdict = Verdict::Park;
        self.begin_hold();
        let (index, waited) = (self.index(), self.terms.has_waited);
        self.core().counters.count_lease(index, hit, waited);
        self
    }

    /// From here on, the checkout counts as a lease, on a connection that was checked.
    pub(super) fn used(mut self, hit: bool) -> Self {
        if let Some(open) = self.slot_mut().and_then(|slot| slot.open.as_deref_mut()) {
            open.used = true;
        }
        self.ready(hit)
    }

    #[inline]
    fn begin_hold(&self) {
        if self.terms.is_limited
            && let Some(max_hold) = &self.core().max_hold
        {
            max_hold.begin(self.index());
        }
    }

    /// From here on, nothing interrupts what runs on the connection.
    #[inline]
    fn end_hold(&self) {
        if self.terms.is_limited
            && let (Some(max_hold), Some(lent)) = (&self.core().max_hold, &self.lent)
        {
            max_hold.end(lent.slot.index);
        }
    }

    /// Which of the N slots it has.
    pub(super) fn index(&self) -> usize {
        self.lent().slot.index
    }

    pub(crate) fn handle(&self) -> &H {
        &self.handle
    }

    fn core(&self) -> &Core<B> {
        self.handle.core()
    }

    pub(crate) fn agent(&self) -> &str {
        &self.lent().entry.agent
    }

    fn lent(&self) -> &Lent<B> {
        match &self.lent {
            Some(lent) => lent,
            None => unreachable!("only the end of a checkout takes its slot"),
        }
    }

    /// Notes that the agent is in use.
    pub(super) fn touch(&self) {
        self.core().parking.touch(&self.lent().entry);
    }

    pub(super) fn slot_mut(&mut self) -> Option<&mut TakenSlot<B>> {
        self.lent.as_mut().map(|lent| &mut lent.slot)
    }

    /// Its borrower has handed it to one of the pool's threads.
    pub(crate) fn is_handed_over(&self) {
        self.core().parking.lot.is_handed_over(self.index());
    }

    /// When the checkout ends, the connection is reset before any agent gets it, including the same one.
    pub(crate) fn free_at_end(&mut self) {
        self.verdict = Verdict::Free;
    }

    /// Ends the lease and closes its connection on this thread.
    pub(crate) fn discard(mut self) {
        self.end_hold();
        if let Some(Lent { slot, entry }) = self.lent.take() {
            match B::IS_REMOTE {
                true => self.core().check_in(entry, slot, Verdict::Discard),
                false => self.core().discard_now(entry, slot, Verdict::Discard),
            }
        }
    }

    /// What the connection needs before it can be lent.
    #[inline]
    pub(super) fn inspect(&mut self, now: Instant, hit: bool) -> Preparation {
        let core = self.handle.core();
        match &mut self.lent {
            Some(lent) => {
                let key = core.database_of(self.lock.as_ref());
                core.inspect(&mut lent.slot, now, hit, key)
            }
            None => Preparation::Open(None),
        }
    }

    /// Ends a checkout whose connection cannot be closed. The agent's entry and lock live on.
    pub(super) fn retire_stuck(mut self) -> (Arc<Entry>, Option<AgentLockGuard>) {
        let Some(Lent { slot, entry }) = self.lent.take() else {
            unreachable!("only the end of a checkout takes its slot");
        };
        self.core().parking.lot.forget(slot.index);
        self.core().retire_stuck(slot);
        (entry, self.lock.take())
    }

    fn open(&self) -> Option<&OpenConnection<B>> {
        self.lent.as_ref()?.slot.open.as_deref()
    }

    pub(crate) fn connection(&self) -> &B::Connection {
        match self.open() {
            Some(open) => &open.connection,
            // A checkout is handed out with its slot occupied, and only its end takes the slot out.
            None => unreachable!("a checkout always has a connection"),
        }
    }

    pub(crate) fn connection_mut(&mut self) -> &mut B::Connection {
        match self.slot_mut().and_then(|slot| slot.open.as_deref_mut()) {
            Some(open) => &mut open.connection,
            None => unreachable!("a checkout always has a connection"),
        }
    }
}

impl<B: Backend, H: Handle<B>> Drop for Checkout<B, H> {
    fn drop(&mut self) {
        if self.core().is_forked() {
            // The connection belongs to the other process, and so does everything that its end would notify.
            std::mem::forget((self.lent.take(), self.lock.take(), self.handle.clone()));
            return;
        }
        self.end_hold();
        if let Some(Lent { slot, entry }) = self.lent.take() {
            self.core().check_in(entry, slot, self.verdict);
        }
    }
}
