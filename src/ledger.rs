//! The ledger: who has which slot, lent or parked. One entry for each slot that somebody has, found by
//! slot or by agent. It moves no slot by itself: it says where one is, and hands out what is parked.
//!
//! There are at most N entries, so looking through all of them (for the reclaim victim, the holders,
//! idle connections) is cheap; finding one by its agent is what a warm lease does, and cheaper still.
//!
//! Locks, in the order they may be taken: cells, an entry. A shard of the index is locked alone.

use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;
use parking_lot::{Mutex, MutexGuard};

use crate::backend::Backend;
use crate::events::Eviction;
use crate::gate::Gate;
use crate::registry::Kept;
use crate::slot::TakenSlot;
use crate::stats::Holder;

/// One agent's hold on one slot, from the lease that took the slot until the slot goes back to r2d2.
pub(crate) struct Entry<B: Backend> {
    pub(crate) agent: Arc<str>,
    /// Where agents have connections of their own: the agent's.
    pub(crate) gate: Option<Arc<Kept<Gate>>>,
    body: Mutex<Body<B>>,
}

pub(crate) struct Body<B: Backend> {
    pub(crate) state: State<B>,
    /// Leases served by parking here. Moved to the ledger's total when the entry ends.
    hits: u64,
}

pub(crate) enum State<B: Backend> {
    Lent(Loan),
    Parked(Parked<B>),
    /// The slot went elsewhere; the entry serves nobody any more.
    Gone,
}

#[derive(Clone, Copy)]
pub(crate) struct Loan {
    pub(crate) since: Instant,
    pub(crate) borrowed_at: &'static Location<'static>,
    pub(crate) residence: Residence,
    /// Whether it was reported as overdue.
    pub(crate) reported: bool,
}

/// Whether moka knows the entry of a lent connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Residence {
    /// Not yet: it will be inserted when it is first parked.
    Newcomer,
    Resident,
    /// Evicted while lent: the connection goes to r2d2 when it comes back.
    Retired,
}

pub(crate) struct Parked<B: Backend> {
    pub(crate) slot: TakenSlot<B>,
    /// Orders parked connections by when they were parked.
    pub(crate) turn: u64,
    /// When the keeper first saw it parked.
    pub(crate) idle_since: Option<Instant>,
    /// Why it is about to be evicted, for the count; moka only knows "explicitly".
    pub(crate) leaving: Eviction,
}

pub(crate) struct Ledger<B: Backend> {
    cells: Mutex<Cells<B>>,
    /// Entries that were parked at least once, and are not gone, by agent: the latest for each.
    index: Box<[Shard<B>]>,
    hashes: RandomState,
}

struct Cells<B: Backend> {
    by_slot: Vec<Option<Arc<Entry<B>>>>,
    /// Hits of entries that have ended.
    hits: u64,
}

/// An entry, and when it was parked.
type Oldest<'a, B> = Option<(u64, &'a Arc<Entry<B>>)>;

/// A few entries, with the hashes of their agents. There are as many shards as slots, or a few more.
type Shard<B> = Mutex<Vec<(u64, Arc<Entry<B>>)>>;

/// How many slots are where, and how many leases were hits.
#[derive(Default)]
pub(crate) struct Levels {
    pub(crate) lent: usize,
    pub(crate) parked: usize,
    pub(crate) hits: u64,
}

impl<B: Backend> Entry<B> {
    pub(crate) fn new(agent: &str, gate: Option<&Arc<Kept<Gate>>>, loan: Loan) -> Arc<Self> {
        Arc::new(Entry {
            agent: Arc::from(agent),
            gate: gate.cloned(),
            body: Mutex::new(Body {
                state: State::Lent(loan),
                hits: 0,
            }),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Body<B>> {
        self.body.lock()
    }
}

impl<B: Backend> Body<B> {
    /// Takes the slot out if it is parked here, and moves on to `next`.
    pub(crate) fn unpark(&mut self, next: State<B>) -> Option<Parked<B>> {
        match std::mem::replace(&mut self.state, next) {
            State::Parked(parked) => Some(parked),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Lends what is parked here: a hit.
    pub(crate) fn lend(&mut self, loan: Loan) -> Option<TakenSlot<B>> {
        let parked = self.unpark(State::Lent(loan))?;
        self.hits += 1;
        Some(parked.slot)
    }
}

impl Loan {
    pub(crate) fn holder(&self, agent: &str, now: Instant) -> Holder {
        Holder {
            agent: agent.to_owned(),
            borrowed_at: self.borrowed_at,
            age: now.saturating_duration_since(self.since),
        }
    }

    /// The record of a lease that ends, if it had been reported as overdue.
    pub(crate) fn overdue(&self, agent: &str, now: Instant) -> Option<Holder> {
        self.reported.then(|| self.holder(agent, now))
    }
}

impl<B: Backend> Ledger<B> {
    pub(crate) fn new(slots: usize) -> Self {
        Ledger {
            cells: Mutex::new(Cells {
                by_slot: (0..slots).map(|_| None).collect(),
                hits: 0,
            }),
            index: (0..slots.next_power_of_two())
                .map(|_| Shard::default())
                .collect(),
            hashes: RandomState::default(),
        }
    }

    /// The entry whose connection is, or was last, parked for `agent`.
    pub(crate) fn find(&self, agent: &str) -> Option<Arc<Entry<B>>> {
        let (hash, shard) = self.shard(agent)?;
        let shard = shard.lock();
        let found = shard
            .iter()
            .find(|(other, entry)| *other == hash && *entry.agent == *agent)?;
        Some(Arc::clone(&found.1))
    }

    /// Lets `find` find this entry for its agent, instead of an earlier one.
    pub(crate) fn enlist(&self, entry: &Arc<Entry<B>>) {
        if let Some((hash, shard)) = self.shard(&entry.agent) {
            let mut shard = shard.lock();
            shard.retain(|(other, e)| *other != hash || e.agent != entry.agent);
            shard.push((hash, Arc::clone(entry)));
        }
    }

    /// Notes that the entry has the slot of this index.
    pub(crate) fn assign(&self, index: usize, entry: &Arc<Entry<B>>) {
        if let Some(cell) = self.cells.lock().by_slot.get_mut(index) {
            *cell = Some(Arc::clone(entry));
        }
    }

    /// Forgets the entry of a slot that is about to go elsewhere.
    pub(crate) fn clear(&self, index: usize) {
        let entry = {
            let mut cells = self.cells.lock();
            let Some(entry) = cells.by_slot.get_mut(index).and_then(Option::take) else {
                return;
            };
            cells.hits += entry.lock().hits;
            entry
        };
        if let Some((_, shard)) = self.shard(&entry.agent) {
            shard
                .lock()
                .retain(|(_, other)| !Arc::ptr_eq(other, &entry));
        }
    }

    fn shard(&self, agent: &str) -> Option<(u64, &Shard<B>)> {
        use std::hash::BuildHasher;
        let hash = self.hashes.hash_one(agent);
        // The length is a power of two.
        let shard = self.index.get(hash as usize & (self.index.len() - 1))?;
        Some((hash, shard))
    }

    pub(crate) fn entries(&self) -> Vec<Arc<Entry<B>>> {
        self.cells
            .lock()
            .by_slot
            .iter()
            .flatten()
            .cloned()
            .collect()
    }

    pub(crate) fn least_recently_parked(&self) -> Option<Arc<Entry<B>>> {
        let cells = self.cells.lock();
        let mut oldest: Option<(u64, &Arc<Entry<B>>)> = None;
        for entry in cells.by_slot.iter().flatten() {
            if let State::Parked(parked) = &entry.lock().state
                && oldest.is_none_or(|(turn, _)| parked.turn < turn)
            {
                oldest = Some((parked.turn, entry));
            }
        }
        oldest.map(|(_, entry)| Arc::clone(entry))
    }

    /// The parked entry that is missed least, as far as can be told: of those that were never leased again the
    /// least recently parked, unless most have been.
    pub(crate) fn least_missed(&self) -> Option<Arc<Entry<B>>> {
        let cells = self.cells.lock();
        let (mut once, mut again): (Oldest<'_, B>, Oldest<'_, B>) = (None, None);
        let mut again_too_many = cells.by_slot.len() * 3 / 4;
        for entry in cells.by_slot.iter().flatten() {
            let body = entry.lock();
            let State::Parked(parked) = &body.state else {
                continue;
            };
            let oldest = match body.hits {
                0 => &mut once,
                _ => {
                    again_too_many = again_too_many.saturating_sub(1);
                    &mut again
                }
            };
            if oldest.is_none_or(|(turn, _)| parked.turn < turn) {
                *oldest = Some((parked.turn, entry));
            }
        }
        let (first, second) = match again_too_many {
            0 => (again, once),
            _ => (once, again),
        };
        first.or(second).map(|(_, entry)| Arc::clone(entry))
    }

    /// Who holds what, the oldest lease first.
    pub(crate) fn holders(&self, now: Instant) -> Vec<Holder> {
        self.loans(now, |_| true)
    }

    /// Leases older than `limit` that no earlier call has returned.
    pub(crate) fn newly_overdue(&self, now: Instant, limit: Duration) -> Vec<Holder> {
        self.loans(now, |loan| {
            let newly = !loan.reported && now.saturating_duration_since(loan.since) >= limit;
            loan.reported |= newly;
            newly
        })
    }

    fn loans(&self, now: Instant, mut wanted: impl FnMut(&mut Loan) -> bool) -> Vec<Holder> {
        let mut holders = Vec::new();
        for entry in self.entries() {
            if let State::Lent(loan) = &mut entry.lock().state
                && wanted(loan)
            {
                holders.push(loan.holder(&entry.agent, now));
            }
        }
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.age));
        holders
    }

    pub(crate) fn levels(&self) -> Levels {
        let cells = self.cells.lock();
        let mut levels = Levels {
            hits: cells.hits,
            ..Levels::default()
        };
        for entry in cells.by_slot.iter().flatten() {
            let body = entry.lock();
            levels.hits += body.hits;
            match body.state {
                State::Lent(_) => levels.lent += 1,
                State::Parked(_) => levels.parked += 1,
                State::Gone => {}
            }
        }
        levels
    }
}
