//! The lot: where every slot is that is not in somebody's hand, under one lock.
//! It closes nothing, calls no moka and no user code, and knows no connections.
//!
//! A slot is a token that moves by value. Here it is *free* (in the free list) or *parked* (in its agent's
//! stack). Every move between the two is one step under the lock. There are N slots and N permits, and a slot
//! leaves only with a permit holder; so a permit holder always finds one.

use std::collections::HashMap;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;

use crate::sync::prim::Mutex;
use crate::sync::thread;

/// What moves: a slot.
pub(crate) trait Token {
    /// Which of the N slots it is.
    fn index(&self) -> usize;
}

/// Where free slots are. Called under the lot's lock.
pub(crate) trait FreeList<S> {
    fn pop(&self) -> Option<S>;
    fn push(&self, slot: S);
}

/// One agent. It outlives the connections that are parked for it.
pub(crate) struct Entry<L> {
    pub(crate) agent: Arc<str>,
    /// Where agents have connections of their own: the agent's lock.
    pub(crate) lock: Option<L>,
    /// The slot that was parked for it last, or `NONE`. Written under the lot's lock.
    top: AtomicUsize,
    /// Whether a lease was ever served with what was parked here. Written under the lot's lock.
    came_back: AtomicBool,
    /// Written under the lot's lock.
    standing: AtomicU8,
    /// When moka was last told that the agent is in use, in insertions. The parking's.
    pub(super) touched: AtomicU64,
    /// Why it is being evicted, for the count; moka only knows "explicitly". The parking's.
    pub(super) leaving: AtomicU8,
}

/// No lease of the agent has ended yet: nobody finds the entry.
const NEW: u8 = 0;
/// The lot finds it by its agent.
const KNOWN: u8 = 1;
/// What comes back for it becomes free.
const EVICTED: u8 = 2;

/// Who has a slot, since when, and from where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loan {
    pub(crate) since: Instant,
    pub(crate) borrowed_at: &'static Location<'static>,
    /// The thread that took it.
    pub(crate) thread: u64,
    /// Whether it was reported as overdue.
    pub(crate) reported: bool,
}

pub(crate) struct Lot<S, F, L> {
    cells: Line<Mutex<Cells<S, L>>>,
    free: F,
    known: Known<L>,
}

/// What many threads write, apart from what they read.
#[repr(align(128))]
struct Line<T>(T);

/// The entries of agents whose connections are, or were, parked; found without the lot's lock. Its own locks are
/// taken alone, or within the lot's.
struct Known<L> {
    shards: Box<[Mutex<Shard<L>>]>,
}

type Shard<L> = HashMap<Arc<str>, Arc<Entry<L>>, RandomState>;

const SHARDS: usize = 64;

struct Cells<S, L> {
    by_slot: Vec<Cell<S, L>>,
    /// Parked slots in the order in which they were parked: of agents that never came back, and of the others.
    orders: [Order; 2],
    /// Whether agents that never came back are told from the others, and reclaimed first.
    keeps_regulars: bool,
    /// How many slots are in the free list: as a rule none, and then it need not be asked.
    free: usize,
}

/// What is known of one slot.
struct Cell<S, L> {
    place: Place<S>,
    /// Whose it is, while it is parked or lent.
    owner: Option<Arc<Entry<L>>>,
    parked_at: Instant,
    in_order: Links,
    order: usize,
    in_stack: Links,
    counts: Counts,
}

/// How leases found this slot.
#[derive(Clone, Copy, Default)]
struct Counts {
    hits: u64,
    misses: u64,
    reclaims: u64,
}

enum Place<S> {
    /// Free, or in the hand of a permit holder that lends it to nobody.
    Elsewhere,
    Lent(Loan),
    Parked(S),
}

/// A place in a doubly linked list of slots.
#[derive(Clone, Copy)]
struct Links {
    before: usize,
    after: usize,
}

/// A doubly linked list of slots, the longest parked first.
#[derive(Clone, Copy)]
struct Order {
    first: usize,
    last: usize,
    len: usize,
}

const NONE: usize = usize::MAX;
const ALONE: Links = Links {
    before: NONE,
    after: NONE,
};
const FIRST_TIME: usize = 0;
const REGULARS: usize = 1;

/// What [`Lot::take`] found.
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

/// What became of a slot that came back.
pub(crate) struct Returned<L> {
    /// How it had been lent.
    pub(crate) loan: Option<Loan>,
    /// The agent is known from now on: moka is to be told.
    pub(crate) new: Option<Arc<Entry<L>>>,
}

/// How many slots are where, and how many leases were hits.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Levels {
    pub(crate) lent: usize,
    pub(crate) parked: usize,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) reclaims: u64,
}

impl<L> Entry<L> {
    pub(crate) fn new(agent: Arc<str>, lock: Option<L>) -> Arc<Self> {
        Arc::new(Entry {
            agent,
            lock,
            top: AtomicUsize::new(NONE),
            came_back: AtomicBool::new(false),
            standing: AtomicU8::new(NEW),
            touched: AtomicU64::new(0),
            leaving: AtomicU8::new(0),
        })
    }

    /// Whether a slot is parked for it, at this moment.
    pub(crate) fn is_parked(&self) -> bool {
        self.top.load(Relaxed) != NONE
    }

    fn is(&self, standing: u8) -> bool {
        self.standing.load(Relaxed) == standing
    }
}

impl<S: Token, F: FreeList<S>, L> Lot<S, F, L> {
    /// A lot of `slots` slots, all of them free.
    pub(crate) fn new(slots: usize, free: F, keeps_regulars: bool) -> Self {
        let now = Instant::now();
        let cell = || Cell {
            place: Place::Elsewhere,
            owner: None,
            parked_at: now,
            in_order: ALONE,
            order: FIRST_TIME,
            in_stack: ALONE,
            counts: Counts::default(),
        };
        let empty = Order {
            first: NONE,
            last: NONE,
            len: 0,
        };
        Lot {
            cells: Line(Mutex::new(Cells {
                by_slot: (0..slots).map(|_| cell()).collect(),
                orders: [empty; 2],
                keeps_regulars,
                free: slots,
            })),
            free,
            known: Known {
                shards: (0..SHARDS)
                    .map(|_| Mutex::new(HashMap::default()))
                    .collect(),
            },
        }
    }

    /// The agent's entry, if it is known.
    #[inline]
    pub(crate) fn find(&self, agent: &str) -> Option<Arc<Entry<L>>> {
        self.known.shard(agent)?.lock().get(agent).cloned()
    }

    /// For a permit holder: the slot parked for the agent last, or a free one, or the one parked longest.
    #[inline]
    pub(crate) fn take(&self, entry: Arc<Entry<L>>, loan: Loan) -> Option<Taken<S, L>> {
        let mut cells = self.cells.0.lock();
        if let Some((slot, owner)) = cells.unpark(entry.top.load(Relaxed)) {
            if let Some(cell) = cells.by_slot.get_mut(slot.index()) {
                cell.counts.hits += 1;
                cell.place = Place::Lent(loan);
                cell.owner = Some(owner);
            }
            entry.came_back.store(true, Relaxed);
            let from = From::Agent;
            return Some(Taken { slot, entry, from });
        }
        self.take_other(cells, entry, loan)
    }

    fn take_other(
        &self,
        mut cells: impl std::ops::DerefMut<Target = Cells<S, L>>,
        entry: Arc<Entry<L>>,
        loan: Loan,
    ) -> Option<Taken<S, L>> {
        if let Some(slot) = self.pop_free(&mut cells) {
            return Some(cells.lend(slot, entry, loan, From::Free));
        }
        let (slot, loser) = cells.unpark_victim()?;
        Some(cells.lend(slot, entry, loan, From::Other(loser)))
    }

    /// For a permit holder: the slot that `wanted` picks, free or (`true`) parked, lent to the agent of `entry`. It looks at
    /// all of them.
    pub(crate) fn take_matching_for(
        &self,
        entry: &Arc<Entry<L>>,
        loan: Loan,
        wanted: impl Fn(&S, bool) -> bool,
    ) -> Option<Taken<S, L>> {
        let mut cells = self.cells.0.lock();
        let slot = self.pick(&mut cells, wanted)?;
        Some(cells.lend(slot, Arc::clone(entry), loan, From::Free))
    }

    /// For a permit holder that lends it to nobody: any slot.
    pub(crate) fn take_any(&self) -> Option<S> {
        let mut cells = self.cells.0.lock();
        let free = self.pop_free(&mut cells);
        free.or_else(|| Some(cells.unpark_victim()?.0))
    }

    /// For a permit holder that lends it to nobody: the slot that `wanted` picks, free or (`true`) parked. It looks at all
    /// of them.
    pub(crate) fn take_matching(&self, wanted: impl Fn(&S, bool) -> bool) -> Option<S> {
        self.pick(&mut self.cells.0.lock(), wanted)
    }

    /// For a permit holder that lends it to nobody: the parked slot that is missed least.
    pub(crate) fn take_victim(&self) -> Option<S> {
        Some(self.cells.0.lock().unpark_victim()?.0)
    }

    fn pick(&self, cells: &mut Cells<S, L>, wanted: impl Fn(&S, bool) -> bool) -> Option<S> {
        let mut passed = Vec::new();
        let mut found = None;
        while let Some(slot) = self.pop_free(cells) {
            if wanted(&slot, false) {
                found = Some(slot);
                break;
            }
            passed.push(slot);
        }
        for slot in passed {
            self.push_free(cells, slot);
        }
        if found.is_some() {
            return found;
        }
        let parked = cells.by_slot.iter().position(|cell| match &cell.place {
            Place::Parked(slot) => wanted(slot, true),
            _ => false,
        })?;
        Some(cells.unpark(parked)?.0)
    }

    fn pop_free(&self, cells: &mut Cells<S, L>) -> Option<S> {
        if cells.free == 0 {
            return None;
        }
        let slot = self.free.pop()?;
        cells.free -= 1;
        Some(slot)
    }

    fn push_free(&self, cells: &mut Cells<S, L>, slot: S) {
        cells.free += 1;
        self.free.push(slot);
    }

    /// A slot comes back: parked for its agent if it may be, and free otherwise. Its permit is returned
    /// afterwards.
    pub(crate) fn give_back(&self, slot: S, may_park: bool, now: Instant) -> Option<Returned<L>> {
        let mut cells = self.cells.0.lock();
        let index = slot.index();
        let cell = cells.by_slot.get_mut(index)?;
        let loan = match std::mem::replace(&mut cell.place, Place::Elsewhere) {
            Place::Lent(loan) => Some(loan),
            _ => None,
        };
        let Some(mut owner) = cell.owner.take() else {
            self.push_free(&mut cells, slot);
            return None;
        };
        let mut new = None;
        let parked = may_park && !owner.is(EVICTED);
        if parked && owner.is(NEW) {
            let found = self.known.insert(&owner);
            if Arc::ptr_eq(&found, &owner) {
                owner.standing.store(KNOWN, Relaxed);
                new = Some(Arc::clone(&owner));
            } else {
                // Another first lease of the agent has ended before.
                owner = found;
            }
        }
        if parked {
            cells.park(slot, owner, now);
        } else {
            self.push_free(&mut cells, slot);
        }
        Some(Returned { loan, new })
    }

    /// The slot of a permit holder leaves for good.
    pub(crate) fn forget(&self, index: usize) {
        if let Some(cell) = self.cells.0.lock().by_slot.get_mut(index) {
            cell.owner = None;
            cell.place = Place::Elsewhere;
        }
    }

    /// Forgets an agent: what is parked for it becomes free, and so will what comes back. Returns how many slots
    /// were parked.
    pub(crate) fn evict(&self, entry: &Arc<Entry<L>>) -> usize {
        let mut cells = self.cells.0.lock();
        entry.standing.store(EVICTED, Relaxed);
        self.known.remove(entry);
        let mut freed = 0;
        while let Some((slot, _)) = cells.unpark(entry.top.load(Relaxed)) {
            self.push_free(&mut cells, slot);
            freed += 1;
        }
        freed
    }

    /// Evicts the agents that leases have now, without their being known, too. Returns how many slots were parked.
    pub(crate) fn evict_agent(&self, agent: &str) -> (Option<Arc<Entry<L>>>, usize) {
        let known = {
            let cells = self.cells.0.lock();
            for owner in cells.by_slot.iter().filter_map(|cell| cell.owner.as_ref()) {
                if *owner.agent == *agent {
                    owner.standing.store(EVICTED, Relaxed);
                }
            }
            self.find(agent)
        };
        let freed = known.as_ref().map_or(0, |entry| self.evict(entry));
        (known, freed)
    }

    /// What has been parked since `cutoff` or longer: makes slots free whose agent has a younger one, and returns
    /// how many, and the agents all of whose slots are as old.
    pub(crate) fn idle_since(&self, cutoff: Instant) -> (usize, Vec<Arc<Entry<L>>>) {
        let mut cells = self.cells.0.lock();
        let (mut freed, mut idle) = (0, Vec::new());
        for order in [FIRST_TIME, REGULARS] {
            let mut next = cells.orders.get(order).map_or(NONE, |order| order.first);
            while let Some(cell) = cells.by_slot.get(next)
                && cell.parked_at <= cutoff
            {
                let index = std::mem::replace(&mut next, cell.in_order.after);
                let Some(owner) = cell.owner.clone() else {
                    continue;
                };
                let top = cells.by_slot.get(owner.top.load(Relaxed));
                if top.is_some_and(|top| top.parked_at <= cutoff) {
                    if owner.top.load(Relaxed) == index {
                        idle.push(owner);
                    }
                } else if let Some((slot, _)) = cells.unpark(index) {
                    self.push_free(&mut cells, slot);
                    freed += 1;
                }
            }
        }
        (freed, idle)
    }

    /// Calls `look` with every loan.
    pub(crate) fn loans(&self, mut look: impl FnMut(&Arc<Entry<L>>, &mut Loan)) {
        let mut cells = self.cells.0.lock();
        for cell in &mut cells.by_slot {
            if let (Place::Lent(loan), Some(owner)) = (&mut cell.place, &cell.owner) {
                look(owner, loan);
            }
        }
    }

    pub(crate) fn levels(&self) -> Levels {
        let cells = self.cells.0.lock();
        let mut levels = Levels::default();
        for cell in &cells.by_slot {
            levels.hits += cell.counts.hits;
            levels.misses += cell.counts.misses;
            levels.reclaims += cell.counts.reclaims;
            match cell.place {
                Place::Lent(_) => levels.lent += 1,
                Place::Parked(_) => levels.parked += 1,
                Place::Elsewhere => {}
            }
        }
        levels
    }
}

impl<L> Known<L> {
    #[inline]
    fn shard(&self, agent: &str) -> Option<&Mutex<Shard<L>>> {
        // The map within hashes the whole id; here it is enough that neighbours rarely meet.
        let last = agent.as_bytes().last().copied().unwrap_or(0);
        self.shards
            .get((usize::from(last) + agent.len() * 16) % SHARDS)
    }

    /// The entry that is found for the agent from now on: this one, unless there is another.
    fn insert(&self, entry: &Arc<Entry<L>>) -> Arc<Entry<L>> {
        let Some(shard) = self.shard(&entry.agent) else {
            return Arc::clone(entry);
        };
        let mut shard = shard.lock();
        let found = shard.entry(Arc::clone(&entry.agent));
        Arc::clone(found.or_insert_with(|| Arc::clone(entry)))
    }

    fn remove(&self, entry: &Arc<Entry<L>>) {
        let Some(shard) = self.shard(&entry.agent) else {
            return;
        };
        let mut shard = shard.lock();
        let found = shard.get(&entry.agent);
        if found.is_some_and(|found| Arc::ptr_eq(found, entry)) {
            shard.remove(&entry.agent);
        }
    }
}

impl<S: Token, L> Cells<S, L> {
    /// Lends a slot that was not parked for the agent.
    fn lend(&mut self, slot: S, entry: Arc<Entry<L>>, loan: Loan, from: From<L>) -> Taken<S, L> {
        if let Some(cell) = self.by_slot.get_mut(slot.index()) {
            cell.counts.misses += 1;
            cell.counts.reclaims += u64::from(matches!(from, From::Other(_)));
            cell.place = Place::Lent(loan);
            cell.owner = Some(Arc::clone(&entry));
        }
        Taken { slot, entry, from }
    }

    fn park(&mut self, slot: S, owner: Arc<Entry<L>>, now: Instant) {
        let index = slot.index();
        let top = owner.top.swap(index, Relaxed);
        if let Some(below) = self.by_slot.get_mut(top) {
            below.in_stack.after = index;
        }
        let order = if self.keeps_regulars && !owner.came_back.load(Relaxed) {
            FIRST_TIME
        } else {
            REGULARS
        };
        let last = self.orders.get(order).map_or(NONE, |order| order.last);
        if let Some(cell) = self.by_slot.get_mut(index) {
            cell.in_stack = Links {
                before: top,
                after: NONE,
            };
            cell.in_order = Links {
                before: last,
                after: NONE,
            };
            cell.order = order;
            cell.parked_at = now;
            cell.owner = Some(owner);
            cell.place = Place::Parked(slot);
        }
        if let Some(before) = self.by_slot.get_mut(last) {
            before.in_order.after = index;
        }
        if let Some(order) = self.orders.get_mut(order) {
            if order.first == NONE {
                order.first = index;
            }
            order.last = index;
            order.len += 1;
        }
    }

    /// Takes out what is parked in this cell, with its agent.
    fn unpark(&mut self, index: usize) -> Option<(S, Arc<Entry<L>>)> {
        let cell = self.by_slot.get_mut(index)?;
        let slot = match std::mem::replace(&mut cell.place, Place::Elsewhere) {
            Place::Parked(slot) => slot,
            other => {
                cell.place = other;
                return None;
            }
        };
        let owner = cell.owner.take()?;
        let stack = std::mem::replace(&mut cell.in_stack, ALONE);
        let place = std::mem::replace(&mut cell.in_order, ALONE);
        let order = cell.order;
        if let Some(below) = self.by_slot.get_mut(stack.before) {
            below.in_stack.after = stack.after;
        }
        match self.by_slot.get_mut(stack.after) {
            Some(above) => above.in_stack.before = stack.before,
            None => owner.top.store(stack.before, Relaxed),
        }
        if let Some(before) = self.by_slot.get_mut(place.before) {
            before.in_order.after = place.after;
        }
        if let Some(after) = self.by_slot.get_mut(place.after) {
            after.in_order.before = place.before;
        }
        if let Some(order) = self.orders.get_mut(order) {
            if order.first == index {
                order.first = place.after;
            }
            if order.last == index {
                order.last = place.before;
            }
            order.len -= 1;
        }
        Some((slot, owner))
    }

    fn unpark_victim(&mut self) -> Option<(S, Arc<Entry<L>>)> {
        self.unpark(self.victim()?)
    }

    /// The parked slot that is missed least, as far as can be told: the one parked longest; where that matters more,
    /// of agents that never came back, unless most have.
    fn victim(&self) -> Option<usize> {
        let [first_time, regulars] = self.orders;
        let oldest = |order: Order| (order.first != NONE).then_some(order.first);
        if regulars.len >= self.by_slot.len() * 3 / 4 {
            oldest(regulars).or_else(|| oldest(first_time))
        } else {
            oldest(first_time).or_else(|| oldest(regulars))
        }
    }
}

impl Loan {
    pub(crate) fn new(since: Instant, borrowed_at: &'static Location<'static>) -> Self {
        Loan {
            since,
            borrowed_at,
            thread: thread::number(),
            reported: false,
        }
    }

    pub(crate) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }
}
