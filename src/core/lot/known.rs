//! The agents that the lot knows, and where to look first for an agent's slot.
//! It moves no slots.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};

use foldhash::quality::{FixedState, RandomState};

use super::uses::Uses;
use crate::observe::reserved::ANONYMOUS;
use crate::sync::prim::{self, Mutex};
use crate::sync::thread;

/// One agent. Its entry outlives the connections that are parked for it.
pub(crate) struct Entry<L> {
    pub(crate) agent: Arc<str>,
    /// Where each agent has its own database: the agent's lock.
    pub(crate) lock: Option<L>,
    mark: Mark,
    /// The first in the list of its slots, parked and lent, or `NONE`. Written under the lot's lock.
    pub(super) first: AtomicUsize,
    /// Written under the lot's lock.
    standing: prim::AtomicU8,
    /// Counted only where each agent has its own database.
    pub(super) uses: Uses,
    /// When moka was last told that the agent is in use, counted in insertions. Used by the parking.
    pub(in crate::core) touched: AtomicU64,
    /// Why the agent is being evicted, for the count; moka itself only reports "explicitly". Used by the
    /// parking.
    pub(in crate::core) leaving: AtomicU8,
}

/// How the pool treats an agent.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Standing {
    /// No lease of the agent has ended yet: a search does not find the entry.
    New,
    /// The lot finds it by its agent.
    Known,
    /// Each slot that comes back for it becomes free.
    Evicted,
}

/// No slot.
pub(super) const NONE: usize = usize::MAX;

/// The entries of agents whose connections are, or were, parked. Found without the lot's lock. Its own locks
/// are taken alone, or within the lot's.
pub(super) struct Known<L> {
    shards: Box<[Mutex<Shard<L>>]>,
}

type Shard<L> = HashMap<Arc<str>, Arc<Entry<L>>, RandomState>;

const SHARDS: usize = 64;

/// Where to look first for an agent's slot: a guess, read without a lock and checked under the cell's lock.
/// It saves a hit the lookup of the agent's entry. Agents whose ids share a place overwrite each other's
/// hints; the loser then takes the longer way.
pub(super) struct Hints(Box<[AtomicU64]>);

/// The slots that were parked last and whose agents had not come back to them, the latest first: a guess,
/// like a hint.
#[derive(Default)]
pub(super) struct Recent(AtomicU64);

/// A hash of an agent's id. It says where the agent's hint is, and the hint repeats part of it.
#[derive(Clone, Copy)]
pub(super) struct Mark(u64);

/// The bits of a hint that hold the slot; the others repeat the mark.
const SLOT_BITS: u64 = 0xFFFF;

impl<L> Entry<L> {
    pub(crate) fn new(agent: Arc<str>, lock: Option<L>) -> Arc<Self> {
        Arc::new(Entry {
            mark: Mark::of(&agent),
            agent,
            lock,
            first: AtomicUsize::new(NONE),
            standing: prim::AtomicU8::new(Standing::New as u8),
            uses: Uses::default(),
            touched: AtomicU64::new(0),
            leaving: AtomicU8::new(0),
        })
    }

    /// Whether a slot is parked for it or lent to it at this moment.
    pub(crate) fn has_slot(&self) -> bool {
        self.first.load(Relaxed) != NONE
    }

    /// Whether this is the entry of the borrowers that name no agent.
    pub(crate) fn is_anonymous(&self) -> bool {
        *self.agent == *ANONYMOUS
    }

    /// Where its hint is. Each thread has its own hint for anonymous borrowers, so that threads do not
    /// contend.
    fn mark(&self) -> Mark {
        if self.is_anonymous() {
            Mark::of_thread(thread::number())
        } else {
            self.mark
        }
    }

    pub(super) fn is(&self, standing: Standing) -> bool {
        self.standing.load(Relaxed) == standing as u8
    }

    pub(super) fn set(&self, standing: Standing) {
        self.standing.store(standing as u8, Relaxed);
    }

    /// Marks the agent as evicted. The anonymous borrowers are always known.
    pub(super) fn evict(&self) {
        if !self.is_anonymous() {
            self.set(Standing::Evicted);
        }
    }
}

impl<L> Known<L> {
    pub(super) fn new() -> Self {
        Known {
            shards: (0..SHARDS)
                .map(|_| Mutex::new(HashMap::default()))
                .collect(),
        }
    }

    fn shard(&self, agent: &str) -> Option<&Mutex<Shard<L>>> {
        // The map hashes the whole id; here it is enough that similar ids rarely share a shard.
        let last = agent.as_bytes().last().copied().unwrap_or(0);
        self.shards
            .get((usize::from(last) + agent.len() * 16) % SHARDS)
    }

    #[inline]
    pub(super) fn find(&self, agent: &str) -> Option<Arc<Entry<L>>> {
        self.shard(agent)?.lock().get(agent).cloned()
    }

    /// Returns the entry that is found for the agent from now on: this one, unless another is already known.
    pub(super) fn insert(&self, entry: &Arc<Entry<L>>) -> Arc<Entry<L>> {
        let Some(shard) = self.shard(&entry.agent) else {
            return Arc::clone(entry);
        };
        let mut shard = shard.lock();
        let found = shard.entry(Arc::clone(&entry.agent));
        Arc::clone(found.or_insert_with(|| Arc::clone(entry)))
    }

    /// The entry is not found any more, if its agent was evicted.
    pub(super) fn remove(&self, entry: &Arc<Entry<L>>) {
        let Some(shard) = self.shard(&entry.agent) else {
            return;
        };
        let mut shard = shard.lock();
        let found = shard.get(&entry.agent);
        if found.is_some_and(|found| Arc::ptr_eq(found, entry)) && entry.is(Standing::Evicted) {
            shard.remove(&entry.agent);
        }
    }
}

impl Mark {
    #[inline]
    pub(super) fn of(agent: &str) -> Self {
        // An attacker who makes ids collide gains nothing: their hits only take the longer way.
        Mark(FixedState::default().hash_one(agent))
    }

    #[inline]
    pub(super) fn of_thread(number: u64) -> Self {
        Mark(FixedState::default().hash_one(number))
    }
}

impl Hints {
    /// For this many slots.
    pub(super) fn new(slots: usize) -> Self {
        let hints = slots.saturating_mul(4).clamp(64, 4096).next_power_of_two();
        Hints((0..hints).map(|_| AtomicU64::new(0)).collect())
    }

    fn of(&self, mark: Mark) -> Option<&AtomicU64> {
        self.0.get(mark.0 as usize & (self.0.len() - 1))
    }

    /// The slot that was parked last for an agent with this mark, as far as the hint says.
    #[inline]
    pub(super) fn get(&self, mark: Mark) -> Option<usize> {
        let hint = self.of(mark)?.load(Relaxed);
        let is_its = (hint ^ mark.0) & !SLOT_BITS == 0 && hint & SLOT_BITS != 0;
        is_its.then(|| (hint & SLOT_BITS) as usize - 1)
    }

    /// Notes the slot that was parked last for the agent. Called under its cell's lock. Returns whether the
    /// hint was different.
    #[inline]
    pub(super) fn set<L>(&self, owner: &Entry<L>, slot: usize) -> bool {
        let slot = slot as u64 + 1;
        if slot > SLOT_BITS {
            return true;
        }
        let mark = owner.mark();
        let found = mark.0 & !SLOT_BITS | slot;
        // Usually the hint is already right. Then it is not written, so that its cache line stays shared.
        match self.of(mark) {
            Some(hint) if hint.load(Relaxed) != found => {
                hint.store(found, Relaxed);
                true
            }
            _ => false,
        }
    }

    /// The slot no longer belongs to the agent.
    pub(super) fn clear<L>(&self, owner: &Entry<L>, slot: usize) {
        let mark = owner.mark();
        let found = mark.0 & !SLOT_BITS | (slot as u64 + 1);
        if let Some(hint) = self.of(mark)
            && hint.load(Relaxed) == found
        {
            hint.store(0, Relaxed);
        }
    }
}

impl Recent {
    #[inline]
    pub(super) fn note(&self, slot: usize) {
        // If two threads note at once, one note is lost.
        let slots = self.0.load(Relaxed) << 16 | (slot as u64 + 1) & SLOT_BITS;
        self.0.store(slots, Relaxed);
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = usize> + use<> {
        let slots = self.0.load(Relaxed);
        (0..4).filter_map(move |at| ((slots >> (16 * at) & SLOT_BITS) as usize).checked_sub(1))
    }
}
