//! AgentCache: the idle connections, each parked under its agent's id, and the ledger of who has
//! which slot. It moves slots; it never opens, cleans or closes what is in them.
//!
//! moka keeps the entries and picks what to evict; its listener gives the evicted entry's slot back
//! to r2d2. The listener runs on any thread, under moka's locks, so all it does is take the slot out
//! of the entry and drop it. The slot is *taken out* because moka frees evicted values later.
//!
//! The ledger has one cell for each slot, and so at most N entries to look through for the reclaim
//! victim, the holders, or idle connections; walking moka's segments would cost more than that.
//!
//! Locks, in the order they may be taken: moka's, the ledger's, an entry's. moka is never called
//! with one of the other two held.

use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use parking_lot::Mutex;

use crate::backend::Backend;
use crate::slot::TakenSlot;
use crate::stats::{Counters, Holder, count};

pub(crate) struct AgentCache<B: Backend> {
    moka: moka::sync::Cache<Arc<str>, Arc<Entry<B>>, RandomState>,
    ledger: Arc<Ledger<B>>,
    counters: Arc<Counters>,
    /// Entries kept at most. 0: none, connections go straight back to r2d2.
    cached_agents: usize,
    /// Fewer entries than slots: the only case in which moka ever evicts by size.
    evicts_by_size: bool,
    /// Counts the connections parked, and so orders them by when they were.
    turns: AtomicU64,
}

/// One agent's hold on one slot, from the lease that took the slot until the slot goes back to r2d2.
pub(crate) struct Entry<B: Backend> {
    pub(crate) agent: Arc<str>,
    body: Mutex<Body<B>>,
}

struct Body<B: Backend> {
    state: State<B>,
    /// Leases served by parking here. Moved to the ledger's total when the entry ends.
    hits: u64,
}

enum State<B: Backend> {
    Lent(Loan),
    Parked(Parked<B>),
    /// The slot went elsewhere; the entry serves nobody any more.
    Gone,
}

#[derive(Clone, Copy)]
struct Loan {
    since: Instant,
    borrowed_at: &'static Location<'static>,
    residence: Residence,
    reported: bool,
}

/// Whether moka knows the entry of a lent connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Residence {
    /// Not yet: it will be inserted when it is first parked.
    Newcomer,
    Resident,
    /// Evicted while lent: the connection goes to r2d2 when it comes back.
    Retired,
}

struct Parked<B: Backend> {
    slot: TakenSlot<B>,
    turn: u64,
    /// When the keeper first saw it parked.
    idle_since: Option<Instant>,
    /// Why it is about to be evicted, for the count; moka only knows "explicitly".
    leaving: Leaving,
}

#[derive(Clone, Copy)]
enum Leaving {
    Reclaimed,
    Idle,
    Released,
}

struct Ledger<B: Backend>(Mutex<Cells<B>>);

struct Cells<B: Backend> {
    by_slot: Vec<Option<Arc<Entry<B>>>>,
    /// Hits of entries that have ended.
    hits: u64,
}

/// How many slots are where, and how many leases were hits.
#[derive(Default)]
pub(crate) struct Levels {
    pub(crate) lent: usize,
    pub(crate) parked: usize,
    pub(crate) hits: u64,
}

impl<B: Backend> AgentCache<B> {
    pub(crate) fn new(slots: usize, cached_agents: usize, counters: Arc<Counters>) -> Self {
        let ledger = Arc::new(Ledger(Mutex::new(Cells {
            by_slot: (0..slots).map(|_| None).collect(),
            hits: 0,
        })));
        let listener = {
            let (ledger, counters) = (Arc::clone(&ledger), Arc::clone(&counters));
            move |_: Arc<Arc<str>>, entry: Arc<Entry<B>>, cause| {
                evicted(&ledger, &counters, &entry, cause);
            }
        };
        AgentCache {
            moka: moka::sync::Cache::builder()
                .max_capacity(cached_agents as u64)
                .eviction_policy(EvictionPolicy::lru())
                .eviction_listener(listener)
                .build_with_hasher(RandomState::default()),
            ledger,
            counters,
            cached_agents,
            evicts_by_size: cached_agents < slots,
            turns: AtomicU64::new(0),
        }
    }

    /// The agent's own parked connection, lent from now on: the hit.
    pub(crate) fn take(
        &self,
        agent: &str,
        since: Instant,
        borrowed_at: &'static Location<'static>,
    ) -> Option<(Arc<Entry<B>>, TakenSlot<B>)> {
        let entry = self.moka.get(agent)?;
        let slot = {
            let mut body = entry.body.lock();
            let slot = body.unpark(State::Lent(Loan {
                since,
                borrowed_at,
                residence: Residence::Resident,
                reported: false,
            }))?;
            body.hits += 1;
            slot
        };
        Some((entry, slot))
    }

    /// Notes that `agent` now has the slot of this index.
    pub(crate) fn admit(
        &self,
        agent: &str,
        index: usize,
        since: Instant,
        borrowed_at: &'static Location<'static>,
    ) -> Arc<Entry<B>> {
        count(&self.counters.misses);
        let entry = Arc::new(Entry {
            agent: Arc::from(agent),
            body: Mutex::new(Body {
                state: State::Lent(Loan {
                    since,
                    borrowed_at,
                    residence: Residence::Newcomer,
                    reported: false,
                }),
                hits: 0,
            }),
        });
        self.ledger.assign(index, &entry);
        entry
    }

    /// Parks the connection of a lease that ends, or gives it to r2d2 if the agent was evicted
    /// meanwhile. Returns the lease's record if it had been reported as overdue.
    pub(crate) fn park(&self, entry: &Arc<Entry<B>>, slot: TakenSlot<B>) -> Option<Holder> {
        let mut body = entry.body.lock();
        let State::Lent(loan) = body.state else {
            // Not reachable: only the end of the lease ends the state `Lent`.
            drop(body);
            return self.give_back(entry, slot);
        };
        if loan.residence == Residence::Retired || self.cached_agents == 0 {
            drop(body);
            return self.give_back(entry, slot);
        }
        body.state = State::Parked(Parked {
            slot,
            turn: self.turns.fetch_add(1, Relaxed),
            idle_since: None,
            leaving: Leaving::Released,
        });
        drop(body);
        let overdue = loan.overdue(&entry.agent);
        if loan.residence == Residence::Newcomer {
            // Parked first, inserted second: what moka can evict must already hold the slot.
            self.moka.insert(Arc::clone(&entry.agent), Arc::clone(entry));
            if self.evicts_by_size {
                self.moka.run_pending_tasks();
            }
        }
        overdue
    }

    /// Ends the entry of a lease and gives its slot to r2d2. Returns the lease's record if it had
    /// been reported as overdue.
    pub(crate) fn give_back(&self, entry: &Arc<Entry<B>>, slot: TakenSlot<B>) -> Option<Holder> {
        let overdue = self.end(entry, slot.index);
        drop(slot);
        overdue
    }

    /// Ends the entry of a lease whose slot goes elsewhere.
    pub(crate) fn end(&self, entry: &Arc<Entry<B>>, index: usize) -> Option<Holder> {
        let before = std::mem::replace(&mut entry.body.lock().state, State::Gone);
        self.ledger.clear(index);
        let State::Lent(loan) = before else {
            return None;
        };
        if loan.residence == Residence::Resident {
            self.moka.invalidate(&*entry.agent);
        }
        loan.overdue(&entry.agent)
    }

    /// Gives the least recently used parked connection back to r2d2, where the caller, or somebody
    /// as much in need, will find it.
    pub(crate) fn reclaim(&self) {
        if let Some(victim) = self.ledger.least_recently_parked() {
            self.evict(&victim, Leaving::Reclaimed);
        }
    }

    /// Evicts an agent: its parked connection goes to r2d2 (`true`), the ones it has been lent go
    /// there when they come back.
    pub(crate) fn release(&self, agent: &str) -> bool {
        let mut parked = false;
        for entry in self.ledger.entries() {
            if *entry.agent == *agent {
                parked |= self.evict(&entry, Leaving::Released);
            }
        }
        parked
    }

    /// Evicts what has been parked for `timeout`, as far as can be seen by calling this regularly.
    pub(crate) fn evict_idle(&self, now: Instant, timeout: Duration) {
        for entry in self.ledger.entries() {
            let idle = {
                let mut body = entry.body.lock();
                match &mut body.state {
                    State::Parked(parked) => {
                        let since = *parked.idle_since.get_or_insert(now);
                        now.saturating_duration_since(since) >= timeout
                    }
                    _ => false,
                }
            };
            if idle {
                self.evict(&entry, Leaving::Idle);
            }
        }
    }

    /// Lets moka do what it does only when it is called.
    pub(crate) fn maintain(&self) {
        self.moka.run_pending_tasks();
    }

    /// Takes at most `limit` of the parked slots whose connection and agent `wanted` picks. `wanted`
    /// runs under the entry's lock.
    pub(crate) fn take_parked(
        &self,
        limit: usize,
        wanted: impl Fn(&B::Connection, &str) -> bool,
    ) -> Vec<TakenSlot<B>> {
        let mut taken = Vec::new();
        for entry in self.ledger.entries() {
            if taken.len() == limit {
                break;
            }
            let slot = {
                let mut body = entry.body.lock();
                match &body.state {
                    State::Parked(parked)
                        if parked
                            .slot
                            .occupant
                            .as_ref()
                            .is_none_or(|o| wanted(&o.connection, &entry.agent)) =>
                    {
                        body.unpark(State::Gone)
                    }
                    _ => None,
                }
            };
            if let Some(slot) = slot {
                self.ledger.clear(slot.index);
                self.moka.invalidate(&*entry.agent);
                taken.push(slot);
            }
        }
        taken
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
        for entry in self.ledger.entries() {
            if let State::Lent(loan) = &mut entry.body.lock().state
                && wanted(loan)
            {
                holders.push(loan.holder(&entry.agent, now));
            }
        }
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.age));
        holders
    }

    pub(crate) fn levels(&self) -> Levels {
        let cells = self.ledger.0.lock();
        let mut levels = Levels {
            hits: cells.hits,
            ..Levels::default()
        };
        for entry in cells.by_slot.iter().flatten() {
            let body = entry.body.lock();
            levels.hits += body.hits;
            match body.state {
                State::Lent(_) => levels.lent += 1,
                State::Parked(_) => levels.parked += 1,
                State::Gone => {}
            }
        }
        levels
    }

    /// Evicts one entry, whatever its state. Returns whether it was parked.
    fn evict(&self, entry: &Arc<Entry<B>>, why: Leaving) -> bool {
        {
            let mut body = entry.body.lock();
            match &mut body.state {
                State::Parked(parked) => parked.leaving = why,
                State::Lent(loan) => {
                    // Nothing to take; a reclaim or an idle timeout that lost the race leaves it be.
                    if let Leaving::Released = why {
                        let resident = loan.residence == Residence::Resident;
                        loan.residence = Residence::Retired;
                        drop(body);
                        if resident {
                            self.moka.invalidate(&*entry.agent);
                        }
                    }
                    return false;
                }
                State::Gone => return false,
            }
        }
        self.moka.invalidate(&*entry.agent);
        true
    }
}

/// moka's eviction listener. It may not panic, run SQL or call moka.
fn evicted<B: Backend>(
    ledger: &Ledger<B>,
    counters: &Counters,
    entry: &Entry<B>,
    cause: RemovalCause,
) {
    let parked = {
        let mut body = entry.body.lock();
        match std::mem::replace(&mut body.state, State::Gone) {
            State::Parked(parked) => parked,
            State::Lent(mut loan) => {
                loan.residence = Residence::Retired;
                body.state = State::Lent(loan);
                return;
            }
            State::Gone => return,
        }
    };
    ledger.clear(parked.slot.index);
    count(match (cause, parked.leaving) {
        (RemovalCause::Size | RemovalCause::Expired, _) => &counters.evicted_by_size,
        (RemovalCause::Replaced, _) => &counters.replaced,
        (RemovalCause::Explicit, Leaving::Reclaimed) => &counters.reclaims,
        (RemovalCause::Explicit, Leaving::Idle) => &counters.evicted_by_idle,
        (RemovalCause::Explicit, Leaving::Released) => &counters.released,
    });
    // To r2d2. Last, so that whoever finds the slot there finds its cell empty.
    drop(parked);
}

impl<B: Backend> Body<B> {
    /// Takes the slot out if it is parked here, and moves on to `next`.
    fn unpark(&mut self, next: State<B>) -> Option<TakenSlot<B>> {
        match std::mem::replace(&mut self.state, next) {
            State::Parked(parked) => Some(parked.slot),
            other => {
                self.state = other;
                None
            }
        }
    }
}

impl Loan {
    fn holder(&self, agent: &str, now: Instant) -> Holder {
        Holder {
            agent: agent.to_owned(),
            borrowed_at: self.borrowed_at,
            age: now.saturating_duration_since(self.since),
        }
    }

    fn overdue(&self, agent: &str) -> Option<Holder> {
        self.reported.then(|| self.holder(agent, Instant::now()))
    }
}

impl<B: Backend> Ledger<B> {
    fn assign(&self, index: usize, entry: &Arc<Entry<B>>) {
        let mut cells = self.0.lock();
        if let Some(cell) = cells.by_slot.get_mut(index) {
            *cell = Some(Arc::clone(entry));
        }
    }

    fn clear(&self, index: usize) {
        let mut cells = self.0.lock();
        if let Some(entry) = cells.by_slot.get_mut(index).and_then(Option::take) {
            cells.hits += entry.body.lock().hits;
        }
    }

    fn entries(&self) -> Vec<Arc<Entry<B>>> {
        self.0.lock().by_slot.iter().flatten().cloned().collect()
    }

    fn least_recently_parked(&self) -> Option<Arc<Entry<B>>> {
        let cells = self.0.lock();
        let mut oldest: Option<(u64, &Arc<Entry<B>>)> = None;
        for entry in cells.by_slot.iter().flatten() {
            if let State::Parked(parked) = &entry.body.lock().state
                && oldest.is_none_or(|(turn, _)| parked.turn < turn)
            {
                oldest = Some((parked.turn, entry));
            }
        }
        oldest.map(|(_, entry)| Arc::clone(entry))
    }
}
