//! The lot: holds every slot that no permit holder has.
//! It closes nothing, never calls moka or user code, and knows no connections.
//!
//! A slot is a token that moves by value. Here it is *free* (in the free list) or *parked* (in its [`Cell`],
//! for its owner). There are N slots and N permits, and only a permit holder takes a slot out. So at every
//! moment the lot holds one slot for each permit holder that has none yet.
//!
//! # Locks
//! Each cell has its own lock, under which its slot is parked and lent to its owner again. So hits on
//! different slots do not contend. Every other change, which gives a slot to another agent or to none,
//! happens under the lot's lock, and then under the cell's: `moves`. So a permit holder that has the lot's
//! lock sees all slots stand still, except those that their own agents take and return. A search can miss one
//! of those; it then takes the locks of all cells, in their order, and finds one. No other code holds two
//! cells' locks.

mod cell;
mod known;
mod moves;
#[cfg(test)]
mod tests;
mod uses;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::observe::call_site::CallSite;
use crate::observe::reserved::ANONYMOUS;
use crate::sync::prim::{Guard, Mutex};
use crate::sync::thread;
use cell::{CREDIT, Cell, Place, State};
pub(crate) use known::Entry;
use known::{Hints, Known, Mark, Recent, Standing};
use moves::Moves;
use uses::{PERIOD, SAMPLE};

/// A slot, as the lot sees it.
pub(crate) trait Token {
    /// Which of the N slots it is.
    fn index(&self) -> usize;
}

/// The list of free slots. Called under the lot's lock.
pub(crate) trait FreeList<S> {
    fn pop(&self) -> Option<S>;
    fn push(&self, slot: S);
}

/// Which thread has a slot, since when, and from which line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loan {
    pub(crate) since: Instant,
    pub(crate) borrowed_at: CallSite,
    /// The thread that took it; 0, which is no thread's number, once it is not in its hands.
    pub(crate) thread: u64,
    /// Whether it was reported as overdue.
    pub(crate) reported: bool,
    /// Whether an async task has it, which may keep a thread of its executor from other tasks.
    pub(crate) awaited: bool,
}

pub(crate) struct Lot<S, F, L> {
    cells: Box<[Cell<S, L>]>,
    /// The lot's lock.
    moves: Line<Mutex<Moves>>,
    free: F,
    known: Known<L>,
    hints: Hints,
    recent: Recent,
    /// Where a miss costs much: the present period, see [`uses`]. Written under the lot's lock.
    period: Option<AtomicU64>,
}

/// Keeps data that many threads write on cache lines of its own, apart from data that they only read.
#[repr(align(128))]
struct Line<T>(T);

/// The slot that [`Lot::take`] found.
pub(crate) struct Taken<S, L> {
    pub(crate) slot: S,
    pub(crate) entry: Arc<Entry<L>>,
    pub(crate) from: From<L>,
}

/// Where a slot was.
pub(crate) enum From<L> {
    /// Parked for the agent: a hit.
    Agent,
    Free,
    /// Parked for another agent: this one.
    Other(Arc<Entry<L>>),
}

/// What happened to a slot that came back.
pub(crate) struct Returned<L> {
    /// The loan and its agent, if the caller wants to report it.
    pub(crate) noted: Option<(Loan, Arc<Entry<L>>)>,
    /// The agent has just become known: moka must be told.
    pub(crate) new: Option<Arc<Entry<L>>>,
}

/// How many slots are in which place, and how many were reclaimed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Levels {
    pub(crate) lent: usize,
    pub(crate) parked: usize,
    pub(crate) reclaims: u64,
}

impl<S: Token, F: FreeList<S>, L> Lot<S, F, L> {
    /// A lot of `slots` slots, all of them free.
    pub(crate) fn new(slots: usize, free: F) -> Self {
        let now = Instant::now();
        let known = Known::new();
        let anonymous = Entry::new(Arc::from(ANONYMOUS), None);
        anonymous.set(Standing::Known);
        known.insert(&anonymous);
        Lot {
            cells: (0..slots).map(|_| Cell::new(now)).collect(),
            moves: Line(Mutex::new(Moves::new(slots))),
            free,
            known,
            hints: Hints::new(slots),
            recent: Recent::default(),
            period: None,
        }
    }

    /// The same, for slots that are much dearer to change than to keep.
    pub(crate) fn with_dear_misses(mut self) -> Self {
        self.period = Some(AtomicU64::new(0));
        self
    }

    /// The agent's entry, if it is known.
    #[inline]
    pub(crate) fn find(&self, agent: &str) -> Option<Arc<Entry<L>>> {
        self.known.find(agent)
    }

    /// For a permit holder: the slot that was parked last for the agent, if the hint still leads to it. No
    /// search is needed. Most hits are found here.
    #[inline]
    pub(crate) fn take_hinted(&self, agent: &str, loan: Loan) -> Option<(S, Arc<Entry<L>>)> {
        if *agent == *ANONYMOUS {
            return self.take_anonymous(loan);
        }
        let cell = self.cells.get(self.hints.get(Mark::of(agent))?)?;
        cell.lend_to_owner(loan, |owner| *owner.agent == *agent)
    }

    /// The same for a borrower that names no agent: the slot that this thread had last, or a slot that was
    /// parked just now.
    fn take_anonymous(&self, loan: Loan) -> Option<(S, Arc<Entry<L>>)> {
        let hinted = self.hints.get(Mark::of_thread(loan.thread));
        let mut slots = hinted.into_iter().chain(self.recent.slots());
        slots.find_map(|index| {
            let cell = self.cells.get(index)?;
            cell.lend_to_owner(loan, Entry::is_anonymous)
        })
    }

    /// For a permit holder: a slot parked for the agent, or a free one, or one whose agent is the least
    /// likely to miss it. `busy`: other slots are lent at the same time.
    pub(crate) fn take(&self, entry: Arc<Entry<L>>, loan: Loan, busy: bool) -> Option<Taken<S, L>> {
        let mut moves = self.moves.0.lock();
        if let Some(taken) = self.own(&moves, &entry, loan) {
            return Some(taken);
        }
        let (slot, from) = match self.pop_free(&mut moves) {
            Some(slot) => (slot, From::Free),
            None => match self.unpark_victim(&mut moves, busy)? {
                // Its owner returned it just now, while this search went on.
                (slot, loser) if Arc::ptr_eq(&loser, &entry) => (slot, From::Agent),
                (slot, loser) => (slot, From::Other(loser)),
            },
        };
        Some(self.lend(&mut moves, slot, entry, loan, from))
    }

    /// Whether a slot is parked for the agent.
    pub(crate) fn is_parked(&self, agent: &str) -> bool {
        let Some(entry) = self.find(agent) else {
            return false;
        };
        let moves = self.moves.0.lock();
        self.cells_of(&moves, &entry)
            .any(|cell| matches!(&cell.lock().place, Place::Parked(_, owner) if Arc::ptr_eq(owner, &entry)))
    }

    /// For a permit holder: a slot parked for the agent.
    pub(crate) fn take_own(&self, entry: &Entry<L>, loan: Loan) -> Option<Taken<S, L>> {
        self.own(&self.moves.0.lock(), entry, loan)
    }

    fn own(&self, moves: &Moves, entry: &Entry<L>, loan: Loan) -> Option<Taken<S, L>> {
        let (slot, entry) = self
            .cells_of(moves, entry)
            .find_map(|cell| cell.lend_to_owner(loan, |owner| std::ptr::eq(owner, entry)))?;
        let from = From::Agent;
        Some(Taken { slot, entry, from })
    }

    /// The cells of the slots that are parked for the agent or lent to it.
    fn cells_of(&self, moves: &Moves, entry: &Entry<L>) -> impl Iterator<Item = &Cell<S, L>> {
        let mut next = entry.first.load(Relaxed);
        std::iter::from_fn(move || {
            let cell = self.cells.get(next)?;
            next = moves.after(next);
            Some(cell)
        })
    }

    /// For a permit holder: the slot that `wanted` picks, free or (`true`) parked, lent to the agent of
    /// `entry`. It looks at all slots.
    pub(crate) fn take_matching_for(
        &self,
        entry: &Arc<Entry<L>>,
        loan: Loan,
        wanted: impl Fn(&S, bool) -> bool,
    ) -> Option<Taken<S, L>> {
        let mut moves = self.moves.0.lock();
        let slot = self.pick(&mut moves, wanted)?;
        Some(self.lend(&mut moves, slot, Arc::clone(entry), loan, From::Free))
    }

    /// For a permit holder that lends the slot to no agent: any slot.
    pub(crate) fn take_any(&self) -> Option<S> {
        let mut moves = self.moves.0.lock();
        let free = self.pop_free(&mut moves);
        free.or_else(|| Some(self.unpark_victim(&mut moves, false)?.0))
    }

    /// For a permit holder that lends the slot to no agent: the slot that `wanted` picks, free or (`true`)
    /// parked. It looks at all slots, one after the other.
    pub(crate) fn take_matching(&self, wanted: impl Fn(&S, bool) -> bool) -> Option<S> {
        self.pick(&mut self.moves.0.lock(), wanted)
    }

    /// For a permit holder that lends the slot to no agent: the parked slot whose agent is the least likely
    /// to miss it.
    pub(crate) fn take_victim(&self) -> Option<S> {
        Some(self.unpark_victim(&mut self.moves.0.lock(), false)?.0)
    }

    fn lend(
        &self,
        moves: &mut Moves,
        slot: S,
        entry: Arc<Entry<L>>,
        loan: Loan,
        from: From<L>,
    ) -> Taken<S, L> {
        let index = slot.index();
        if let Some(cell) = self.cells.get(index) {
            cell.lock().lend(&entry, loan, &from);
            moves.link(index, &entry);
        }
        Taken { slot, entry, from }
    }

    fn pick(&self, moves: &mut Moves, wanted: impl Fn(&S, bool) -> bool) -> Option<S> {
        let mut passed = Vec::new();
        let mut found = None;
        while let Some(slot) = self.pop_free(moves) {
            if wanted(&slot, false) {
                found = Some(slot);
                break;
            }
            passed.push(slot);
        }
        for slot in passed {
            self.push_free(moves, slot);
        }
        let mut cells = self.cells.iter().enumerate();
        found.or_else(|| {
            cells.find_map(|(index, cell)| {
                let state = cell.lock();
                let is_wanted =
                    matches!(&state.place, Place::Parked(slot, _) if wanted(slot, true));
                if !is_wanted {
                    return None;
                }
                Some(self.unpark(moves, index, state)?.0)
            })
        })
    }

    /// Takes the slot that is parked in a cell. It has no owner any more.
    fn unpark(
        &self,
        moves: &mut Moves,
        index: usize,
        mut state: Guard<'_, State<S, L>>,
    ) -> Option<(S, Arc<Entry<L>>)> {
        let cell = self.cells.get(index)?;
        let (slot, owner) = cell.unpark(&mut state, Place::Elsewhere)?;
        state.owner = None;
        moves.unlink(index, &owner);
        self.hints.clear(&owner, index);
        Some((slot, owner))
    }

    /// For a permit holder that found no free slot: a parked slot whose agent is the least likely to miss it. Where a
    /// miss costs much, that is the one served least of late.
    /// The hand goes round the cells and takes the first slot whose agent has not come back to it since the
    /// hand was last there (the clock algorithm, with a count).
    fn unpark_victim(&self, moves: &mut Moves, busy: bool) -> Option<(S, Arc<Entry<L>>)> {
        if let Some(period) = &self.period
            && let Some(victim) = self.unpark_least_used(moves, period)
        {
            return Some(victim);
        }
        let warm = busy && moves.prefers_warm();
        if warm && let Some(victim) = self.unpark_warm(moves) {
            return Some(victim);
        }
        // After this many rounds, even the slot with the most credit has none left.
        for _ in 0..=CREDIT {
            let mut passed = 0;
            for _ in 0..self.cells.len() {
                let index = moves.turn();
                let Some(cell) = self.cells.get(index).filter(|cell| cell.looks_parked()) else {
                    continue;
                };
                let mut state = cell.lock();
                if state.spend_credit() {
                    passed += 1;
                } else if let Some(victim) = self.unpark(moves, index, state) {
                    return Some(victim);
                }
            }
            if passed == 0 {
                break;
            }
        }
        self.unpark_any(moves)
    }

    /// Of a few parked slots, that of the agent that was served least of late. `None` if its agent took it just now.
    fn unpark_least_used(
        &self,
        moves: &mut Moves,
        period: &AtomicU64,
    ) -> Option<(S, Arc<Entry<L>>)> {
        let slots = u32::try_from(self.cells.len()).unwrap_or(u32::MAX);
        if moves.search().is_multiple_of(slots.saturating_mul(PERIOD)) {
            period.fetch_add(1, Relaxed);
        }
        let now = period.load(Relaxed);
        let mut compared = 0;
        let mut least: Option<(u64, usize)> = None;
        for _ in 0..self.cells.len() {
            let index = moves.turn();
            let Some(cell) = self.cells.get(index).filter(|cell| cell.looks_parked()) else {
                continue;
            };
            let Place::Parked(_, owner) = &cell.lock().place else {
                continue;
            };
            let uses = owner.uses.of_late(now);
            if least.is_none_or(|(fewest, _)| uses < fewest) {
                least = Some((uses, index));
            }
            compared += 1;
            if compared == SAMPLE {
                break;
            }
        }
        let (_, index) = least?;
        self.unpark(moves, index, self.cells.get(index)?.lock())
    }

    /// A slot that was parked just now and to which its agent has not come back: its pages are still in the
    /// processor's caches.
    fn unpark_warm(&self, moves: &mut Moves) -> Option<(S, Arc<Entry<L>>)> {
        self.recent.slots().find_map(|index| {
            let cell = self.cells.get(index)?;
            let state = Some(cell).filter(|cell| cell.looks_parked())?.lock();
            match state.has_credit() {
                true => None,
                false => self.unpark(moves, index, state),
            }
        })
    }

    /// Hits move slots while the hand goes round. So each cell can be empty when the hand looks at it,
    /// although a slot is parked at every moment. Here all cells are locked, so that nothing moves.
    #[cold]
    fn unpark_any(&self, moves: &mut Moves) -> Option<(S, Arc<Entry<L>>)> {
        let states: Vec<_> = self.cells.iter().map(Cell::lock).collect();
        let is_parked = |state: &Guard<'_, State<S, L>>| matches!(state.place, Place::Parked(..));
        let mut parked = states.into_iter().enumerate().filter(|(_, s)| is_parked(s));
        let (index, state) = parked.next()?;
        self.unpark(moves, index, state)
    }

    fn pop_free(&self, moves: &mut Moves) -> Option<S> {
        if moves.free == 0 {
            return None;
        }
        let slot = self.free.pop()?;
        moves.free -= 1;
        Some(slot)
    }

    fn push_free(&self, moves: &mut Moves, slot: S) {
        moves.free += 1;
        self.free.push(slot);
    }

    /// A lent slot comes back from its borrower: it is parked if it may be, and becomes free otherwise. The
    /// caller returns its permit afterwards. `ended` is called with the loan, under the slot's lock: never
    /// twice at once for one slot. It says whether the loan is noted.
    #[inline]
    pub(crate) fn give_back(
        &self,
        slot: S,
        borrower: Arc<Entry<L>>,
        may_park: bool,
        now: Instant,
        ended: impl FnOnce(&Loan) -> bool,
    ) -> Returned<L> {
        let index = slot.index();
        let Some(cell) = self.cells.get(index) else {
            return Returned::default();
        };
        if let Some(period) = &self.period {
            borrower.uses.count(period.load(Relaxed));
        }
        let mut state = cell.lock();
        // An eviction first marks the agent as evicted and then looks here: one of the two threads sees the
        // other's change.
        if !may_park || !borrower.is(Standing::Known) {
            drop(state);
            return self.give_back_slowly(slot, borrower, may_park, now, ended);
        }
        let noted = state.end_loan().filter(ended);
        let returned = Returned {
            noted: noted.map(|loan| (loan, Arc::clone(&borrower))),
            new: None,
        };
        self.park(cell, &mut state, slot, borrower, now);
        returned
    }

    fn give_back_slowly(
        &self,
        slot: S,
        mut borrower: Arc<Entry<L>>,
        may_park: bool,
        now: Instant,
        ended: impl FnOnce(&Loan) -> bool,
    ) -> Returned<L> {
        let mut returned = Returned::default();
        let index = slot.index();
        let mut moves = self.moves.0.lock();
        let Some(cell) = self.cells.get(index) else {
            return returned;
        };
        let mut state = cell.lock();
        let noted = state.end_loan().filter(ended);
        returned.noted = noted.map(|loan| (loan, Arc::clone(&borrower)));
        if !may_park || borrower.is(Standing::Evicted) {
            state.owner = None;
            moves.unlink(index, &borrower);
            self.push_free(&mut moves, slot);
            return returned;
        }
        if borrower.is(Standing::New) {
            let found = self.known.insert(&borrower);
            if Arc::ptr_eq(&found, &borrower) {
                borrower.set(Standing::Known);
                returned.new = Some(found);
            } else {
                // Another first lease of the agent ended earlier.
                moves.unlink(index, &borrower);
                moves.link(index, &found);
                state.owner = Some(Arc::clone(&found));
                borrower = found;
            }
        }
        self.park(cell, &mut state, slot, borrower, now);
        returned
    }

    /// Parks a slot for its owner, and notes where to look for it.
    #[inline]
    fn park(
        &self,
        cell: &Cell<S, L>,
        state: &mut State<S, L>,
        slot: S,
        owner: Arc<Entry<L>>,
        now: Instant,
    ) {
        let index = slot.index();
        let is_elsewhere = self.hints.set(&owner, index);
        if !state.has_credit() || (is_elsewhere && owner.is_anonymous()) {
            self.recent.note(index);
        }
        cell.park(state, slot, owner, now);
    }

    /// A permit holder that lent the slot to no agent puts it back. It returns its permit afterwards.
    pub(crate) fn put_back(&self, slot: S) {
        self.push_free(&mut self.moves.0.lock(), slot);
    }

    /// A permit holder's slot leaves the lot for good.
    pub(crate) fn forget(&self, index: usize) {
        let mut moves = self.moves.0.lock();
        let Some(cell) = self.cells.get(index) else {
            return;
        };
        let mut state = cell.lock();
        state.place = Place::Elsewhere;
        if let Some(owner) = state.owner.take() {
            moves.unlink(index, &owner);
        }
    }

    /// Forgets an agent: its parked slots become free, and so does each lent slot when it comes back. Returns
    /// how many slots were parked. The anonymous borrowers are never forgotten.
    pub(crate) fn evict(&self, entry: &Arc<Entry<L>>) -> usize {
        let mut moves = self.moves.0.lock();
        entry.evict();
        self.known.remove(entry);
        let mut freed = 0;
        let mut next = entry.first.load(Relaxed);
        while let Some(cell) = self.cells.get(next) {
            let index = next;
            next = moves.after(index);
            if let Some((slot, _)) = self.unpark(&mut moves, index, cell.lock()) {
                self.push_free(&mut moves, slot);
                freed += 1;
            }
        }
        freed
    }

    /// Evicts an agent, including entries that only leases hold and that are not known. Returns the known
    /// entry, and how many slots were parked.
    pub(crate) fn evict_agent(&self, agent: &str) -> (Option<Arc<Entry<L>>>, usize) {
        let known = {
            let _moves = self.moves.0.lock();
            for cell in &self.cells {
                if let Some(owner) = &cell.lock().owner
                    && *owner.agent == *agent
                {
                    owner.evict();
                }
            }
            self.find(agent)
        };
        let freed = known.as_ref().map_or(0, |entry| self.evict(entry));
        (known, freed)
    }

    /// Finds slots that have been parked since `cutoff` or longer. Frees those whose agent also has a younger
    /// one, and returns how many it freed, and the agents all of whose parked slots are that old.
    pub(crate) fn idle_since(&self, cutoff: Instant) -> (usize, Vec<Arc<Entry<L>>>) {
        let mut moves = self.moves.0.lock();
        let (mut freed, mut idle) = (0, Vec::<Arc<Entry<L>>>::new());
        let (mut old, mut young) = (Vec::new(), HashSet::new());
        for (index, cell) in self.cells.iter().enumerate() {
            let state = cell.lock();
            match &state.place {
                Place::Parked(_, owner) if state.parked_at <= cutoff => {
                    old.push((index, Arc::clone(owner)));
                }
                Place::Parked(_, owner) => _ = young.insert(Arc::as_ptr(owner)),
                _ => {}
            }
        }
        for (index, owner) in old {
            if !young.contains(&Arc::as_ptr(&owner)) {
                if !idle.iter().any(|known| Arc::ptr_eq(known, &owner)) {
                    idle.push(owner);
                }
                continue;
            }
            let Some(cell) = self.cells.get(index) else {
                continue;
            };
            let state = cell.lock();
            if state.parked_at <= cutoff
                && let Some((slot, _)) = self.unpark(&mut moves, index, state)
            {
                self.push_free(&mut moves, slot);
                freed += 1;
            }
        }
        (freed, idle)
    }

    /// Calls `look` with every loan, and the index of its slot.
    pub(crate) fn loans(&self, mut look: impl FnMut(usize, &Arc<Entry<L>>, &mut Loan)) {
        for (index, cell) in self.cells.iter().enumerate() {
            let state = &mut *cell.lock();
            if let (Place::Lent(loan), Some(owner)) = (&mut state.place, &state.owner) {
                look(index, owner, loan);
            }
        }
    }

    /// The slot's connection has been opened, and its loan begins now.
    pub(crate) fn begin_loan(&self, index: usize, now: Instant) {
        self.change_loan(index, |loan| loan.since = now);
    }

    /// The borrower has handed the connection to one of the pool's threads.
    pub(crate) fn is_handed_over(&self, index: usize) {
        self.change_loan(index, |loan| loan.awaited = false);
    }

    /// The slot is lent still, but not in the hands of its borrower's thread, which is returned: the borrower is done with
    /// the connection, or a worker prepares it.
    pub(crate) fn borrower_left(&self, index: usize) -> u64 {
        let mut thread = 0;
        self.change_loan(index, |loan| thread = std::mem::take(&mut loan.thread));
        thread
    }

    pub(crate) fn borrower_returned(&self, index: usize, thread: u64) {
        self.change_loan(index, |loan| loan.thread = thread);
    }

    fn change_loan(&self, index: usize, change: impl FnOnce(&mut Loan)) {
        if let Some(cell) = self.cells.get(index)
            && let Place::Lent(loan) = &mut cell.lock().place
        {
            change(loan);
        }
    }

    pub(crate) fn levels(&self) -> Levels {
        let mut levels = Levels::default();
        for cell in &self.cells {
            let state = cell.lock();
            levels.reclaims += state.reclaims;
            match state.place {
                Place::Lent(_) => levels.lent += 1,
                Place::Parked(..) => levels.parked += 1,
                Place::Elsewhere => {}
            }
        }
        levels
    }
}

impl<L> Default for Returned<L> {
    fn default() -> Self {
        Returned {
            noted: None,
            new: None,
        }
    }
}

impl Loan {
    pub(crate) fn new(since: Instant, borrowed_at: CallSite) -> Self {
        Loan {
            since,
            borrowed_at,
            thread: thread::number(),
            reported: false,
            awaited: false,
        }
    }

    pub(crate) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }
}
