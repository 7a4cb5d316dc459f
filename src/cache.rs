//! AgentCache: the idle connections, each parked under its agent's id.
//! It moves slots; it never opens, cleans or closes what is in them.
//!
//! moka keeps the entries and decides what to evict; its listener gives the evicted entry's slot back
//! to r2d2. The listener runs on any thread, under moka's locks, so all it does is take the slot out
//! of the entry and drop it. The slot is *taken out* because moka frees evicted values later.
//!
//! A warm lease finds its entry in the ledger. moka's `get` costs as much as all the rest of such a
//! lease, mostly to note who was used last, so it is called only where that can matter: where fewer
//! agents are cached than there are slots, and so moka evicts by size.
//!
//! moka is never called with a lock of the ledger's held.

use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use parking_lot::Mutex;

use crate::backend::Backend;
use crate::events::{self, Eviction};
use crate::gate::Gate;
use crate::ledger::{Entry, Ledger, Loan, Parked, Residence, State};
use crate::registry::Kept;
use crate::slot::TakenSlot;
use crate::stats::{Counters, Holder, count};

pub(crate) struct AgentCache<B: Backend> {
    moka: moka::sync::Cache<Arc<str>, Arc<Entry<B>>, RandomState>,
    pub(crate) ledger: Arc<Ledger<B>>,
    counters: Arc<Counters>,
    /// Entries kept at most. 0: none, connections go straight back to r2d2.
    cached_agents: usize,
    /// Fewer entries than slots: the only case in which moka ever evicts by size.
    evicts_by_size: bool,
    /// Connections are agents' own.
    is_exclusive: bool,
    /// What the listener saw and nobody was told yet: it may not tell by itself, since whoever
    /// listens to events could call moka.
    evictions: Arc<Evictions>,
    name: Arc<str>,
    /// Counts the connections parked, and so orders them by when they were.
    turns: AtomicU64,
}

type Evictions = Mutex<Vec<(Arc<str>, Eviction)>>;

impl<B: Backend> AgentCache<B> {
    pub(crate) fn new(
        name: Arc<str>,
        slots: usize,
        cached_agents: usize,
        is_exclusive: bool,
        counters: Arc<Counters>,
    ) -> Self {
        let ledger = Arc::new(Ledger::new(slots));
        let evictions = Arc::new(Evictions::default());
        let listener = {
            let (ledger, counters) = (Arc::clone(&ledger), Arc::clone(&counters));
            let evictions = Arc::clone(&evictions);
            move |_: Arc<Arc<str>>, entry: Arc<Entry<B>>, cause| {
                if let Some(eviction) = evicted(&ledger, &counters, &entry, cause) {
                    evictions.lock().push((Arc::clone(&entry.agent), eviction));
                }
            }
        };
        let evicts_by_size = cached_agents < slots;
        // moka hears of an insertion before it hears of the removal that made room for it, when two
        // threads are at it. With as many places as slots, it would then evict somebody for nothing.
        let places = match evicts_by_size {
            true => cached_agents,
            false => slots * 2,
        };
        AgentCache {
            moka: moka::sync::Cache::builder()
                .max_capacity(places as u64)
                .eviction_policy(EvictionPolicy::lru())
                .eviction_listener(listener)
                .build_with_hasher(RandomState::default()),
            ledger,
            counters,
            cached_agents,
            evicts_by_size,
            is_exclusive,
            evictions,
            name,
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
        let entry = self.ledger.find(agent)?;
        let slot = self.take_from(&entry, since, borrowed_at)?;
        Some((entry, slot))
    }

    /// What is parked in this entry, lent from now on, too.
    pub(crate) fn take_from(
        &self,
        entry: &Arc<Entry<B>>,
        since: Instant,
        borrowed_at: &'static Location<'static>,
    ) -> Option<TakenSlot<B>> {
        let slot = entry.lock().lend(Loan {
            since,
            borrowed_at,
            residence: Residence::Resident,
            reported: false,
        })?;
        if self.evicts_by_size {
            let _ = self.moka.get(&*entry.agent);
        }
        Some(slot)
    }

    /// Notes that `agent` now has the slot of this index.
    pub(crate) fn admit(
        &self,
        agent: &str,
        gate: Option<&Arc<Kept<Gate>>>,
        index: usize,
        since: Instant,
        borrowed_at: &'static Location<'static>,
    ) -> Arc<Entry<B>> {
        count(&self.counters.misses);
        let loan = Loan {
            since,
            borrowed_at,
            residence: Residence::Newcomer,
            reported: false,
        };
        let entry = Entry::new(agent, gate, loan);
        self.ledger.assign(index, &entry);
        entry
    }

    /// Parks the connection of a lease that ends, or gives it to r2d2 if the agent was evicted
    /// meanwhile. Returns the lease's record if it had been reported as overdue.
    pub(crate) fn park(&self, entry: &Arc<Entry<B>>, slot: TakenSlot<B>) -> Option<Holder> {
        let mut body = entry.lock();
        let State::Lent(loan) = body.state else {
            // Not reachable: only the end of the lease ends the state `Lent`.
            drop(body);
            return self.give_back(entry, slot);
        };
        if loan.residence == Residence::Retired || self.cached_agents == 0 {
            drop(body);
            return self.give_back(entry, slot);
        }
        let index = slot.index;
        body.state = State::Parked(Parked {
            slot,
            turn: self.turns.fetch_add(1, Relaxed),
            idle_since: None,
            leaving: Eviction::Released,
        });
        drop(body);
        let overdue = self.ended(entry, index, &loan);
        if loan.residence == Residence::Newcomer {
            // Parked first, inserted second: what moka can evict must already hold the slot.
            self.ledger.enlist(entry);
            self.moka
                .insert(Arc::clone(&entry.agent), Arc::clone(entry));
            if self.evicts_by_size {
                self.moka.run_pending_tasks();
            }
            self.tell();
        }
        overdue
    }

    /// Notes how long a lease was held. Returns its record if it had been reported as overdue.
    fn ended(&self, entry: &Entry<B>, index: usize, loan: &Loan) -> Option<Holder> {
        let now = Instant::now();
        let held = now.saturating_duration_since(loan.since);
        self.counters.hold.record(index, held);
        loan.overdue(&entry.agent, now)
    }

    /// Tells the log what the listener saw. Called where moka was, with no lock held.
    fn tell(&self) {
        let evictions = std::mem::take(&mut *self.evictions.lock());
        for (agent, cause) in evictions {
            events::evicted(&self.name, &agent, cause);
        }
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
        let before = std::mem::replace(&mut entry.lock().state, State::Gone);
        self.ledger.clear(index);
        let State::Lent(loan) = before else {
            return None;
        };
        if loan.residence == Residence::Resident {
            self.moka.invalidate(&*entry.agent);
            self.tell();
        }
        self.ended(entry, index, &loan)
    }

    /// Gives the least recently used parked connection back to r2d2, where the caller, or somebody
    /// as much in need, will find it.
    pub(crate) fn reclaim(&self) {
        // Where connections are agents' own, it is closed, and opening it again takes longer than looking.
        let victim = match self.is_exclusive {
            true => self.ledger.least_missed(),
            false => self.ledger.least_recently_parked(),
        };
        if let Some(victim) = victim {
            self.evict(&victim, Eviction::Reclaimed);
        }
    }

    /// Takes the parked slot that is missed least, for whoever makes room.
    pub(crate) fn take_least_missed(&self) -> Option<TakenSlot<B>> {
        let victim = self.ledger.least_missed()?;
        let slot = self.take_out(&victim, |_| true)?;
        count(&self.counters.reclaims);
        Some(slot)
    }

    /// Takes the slots that are parked behind a gate, whoever's they are.
    pub(crate) fn take_behind(&self, gate: &Arc<Kept<Gate>>) -> Vec<TakenSlot<B>> {
        let entries = self.ledger.entries().into_iter();
        let behind = entries.filter(|entry| {
            let theirs = entry.gate.as_ref();
            theirs.is_some_and(|theirs| Arc::ptr_eq(theirs, gate))
        });
        behind
            .filter_map(|entry| self.take_out(&entry, |_| true))
            .collect()
    }

    /// Takes the slot out of an entry, if it is parked there and `wanted`, which runs under the entry's lock.
    fn take_out(
        &self,
        entry: &Arc<Entry<B>>,
        wanted: impl Fn(&TakenSlot<B>) -> bool,
    ) -> Option<TakenSlot<B>> {
        let slot = {
            let mut body = entry.lock();
            match &body.state {
                State::Parked(parked) if wanted(&parked.slot) => {
                    body.unpark(State::Gone).map(|parked| parked.slot)
                }
                _ => None,
            }
        }?;
        self.ledger.clear(slot.index);
        self.moka.invalidate(&*entry.agent);
        Some(slot)
    }

    /// Evicts an agent: its parked connection goes to r2d2 (`true`), the ones it has been lent go
    /// there when they come back.
    pub(crate) fn release(&self, agent: &str) -> bool {
        let mut parked = false;
        for entry in self.ledger.entries() {
            if *entry.agent == *agent {
                parked |= self.evict(&entry, Eviction::Released);
            }
        }
        parked
    }

    /// Evicts the agent of one lease: its connection goes to r2d2 when it comes back.
    #[cfg(feature = "tokio")]
    pub(crate) fn retire(&self, entry: &Arc<Entry<B>>) {
        self.evict(entry, Eviction::Released);
    }

    /// Evicts what has been parked for `timeout`, as far as can be seen by calling this regularly.
    pub(crate) fn evict_idle(&self, now: Instant, timeout: Duration) {
        for entry in self.ledger.entries() {
            let idle = {
                let mut body = entry.lock();
                match &mut body.state {
                    State::Parked(parked) => {
                        let since = *parked.idle_since.get_or_insert(now);
                        now.saturating_duration_since(since) >= timeout
                    }
                    _ => false,
                }
            };
            if idle {
                self.evict(&entry, Eviction::Idle);
            }
        }
    }

    /// Lets moka do what it does only when it is called.
    pub(crate) fn maintain(&self) {
        self.moka.run_pending_tasks();
        self.tell();
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
            let slot = self.take_out(&entry, |slot| {
                let occupant = slot.occupant.as_ref();
                occupant.is_none_or(|occupant| wanted(&occupant.connection, &entry.agent))
            });
            taken.extend(slot);
        }
        taken
    }

    /// Evicts one entry, whatever its state. Returns whether it was parked.
    fn evict(&self, entry: &Arc<Entry<B>>, why: Eviction) -> bool {
        {
            let mut body = entry.lock();
            match &mut body.state {
                State::Parked(parked) => parked.leaving = why,
                State::Lent(loan) => {
                    // Nothing to take; a reclaim or an idle timeout that lost the race leaves it be.
                    if let Eviction::Released = why {
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
        self.tell();
        true
    }
}

/// moka's eviction listener. It may not panic, run SQL or call moka. Returns why the entry's connection
/// was given back, if that is what has happened.
fn evicted<B: Backend>(
    ledger: &Ledger<B>,
    counters: &Counters,
    entry: &Entry<B>,
    cause: RemovalCause,
) -> Option<Eviction> {
    let parked = {
        let mut body = entry.lock();
        match body.unpark(State::Gone) {
            Some(parked) => parked,
            None => {
                if let State::Lent(loan) = &mut body.state {
                    loan.residence = Residence::Retired;
                }
                return None;
            }
        }
    };
    ledger.clear(parked.slot.index);
    let eviction = match (cause, parked.leaving) {
        (RemovalCause::Size | RemovalCause::Expired, _) => Eviction::Size,
        (RemovalCause::Replaced, _) => Eviction::Replaced,
        (RemovalCause::Explicit, leaving) => leaving,
    };
    count(match eviction {
        Eviction::Size => &counters.evicted_by_size,
        Eviction::Idle => &counters.evicted_by_idle,
        Eviction::Released => &counters.released,
        Eviction::Replaced => &counters.replaced,
        Eviction::Reclaimed => &counters.reclaims,
    });
    // To r2d2. Last, so that whoever finds the slot there finds its cell empty.
    drop(parked);
    Some(eviction)
}
