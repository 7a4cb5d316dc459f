//! Parking: the agents that the pool knows, and the slots parked for them.
//! It moves slots; it never opens, resets or closes the connections in them.
//!
//! moka keeps the entries of agents and decides which agent to forget: by number (`cached_agents`), by idle
//! time, or when the pool says so. Its listener then moves the agent's parked slots to r2d2. An entry
//! outlives the connection that is parked in it: reclaiming takes the slot out and leaves the entry, parking
//! puts a slot back, and neither calls moka. moka is called when an agent is new, when an agent is evicted,
//! and once in a while for an agent in use, so that its order follows use.
//!
//! moka is never called with the lot's lock held. The listener runs under moka's locks, on any thread, so it
//! does nothing but take the lot's lock for an instant.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use foldhash::quality::RandomState;
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use parking_lot::Mutex;

use super::agent_lock::AgentLock;
use super::backend::Backend;
use super::lot::{self, Loan, Lot, Returned};
use super::slot::{FreeSlots, TakenSlot};
use crate::error::Error;
use crate::observe::events::{self, Eviction};
use crate::observe::stats::{Counters, Holder, add};
use crate::sync::keyed_map::KeyedEntry;

pub(crate) type Entry = lot::Entry<Arc<KeyedEntry<AgentLock>>>;
pub(crate) type SlotLot<B> = Lot<TakenSlot<B>, FreeSlots<B>, Arc<KeyedEntry<AgentLock>>>;

/// Counts evictions, and keeps them until they are reported. The listener may not report them itself, since a
/// subscriber to events could call moka.
struct Evictions {
    counters: Arc<Counters>,
    /// Which agents were evicted, and why.
    unreported: Mutex<Vec<(Arc<str>, Eviction)>>,
}

pub(crate) struct Parking<B: Backend> {
    pub(crate) lot: Arc<SlotLot<B>>,
    moka: moka::sync::Cache<Arc<str>, Arc<Entry>, RandomState>,
    /// The largest number of known agents. 0: none is known, and nothing is parked.
    cached_agents: usize,
    /// How many agents may become known before moka is told again that one is in use.
    touch_every: u64,
    /// How many agents have become known.
    insertions: AtomicU64,
    evictions: Arc<Evictions>,
    name: Arc<str>,
}

impl<B: Backend> Parking<B> {
    pub(crate) fn new(
        name: Arc<str>,
        slots: usize,
        cached_agents: usize,
        dear_misses: bool,
        counters: Arc<Counters>,
    ) -> Result<Self, Error> {
        let lot = Lot::new(slots, FreeSlots::new(slots)?);
        let lot = Arc::new(match dear_misses {
            true => lot.with_dear_misses(),
            false => lot,
        });
        let evictions = Arc::new(Evictions {
            counters,
            unreported: Mutex::default(),
        });
        let listener = {
            let (lot, evictions) = (Arc::clone(&lot), Arc::clone(&evictions));
            move |_: Arc<Arc<str>>, entry: Arc<Entry>, cause| {
                // moka itself evicts only by number of agents.
                let cause = match cause {
                    RemovalCause::Size => Eviction::Size,
                    _ if entry.leaving.load(Relaxed) == Eviction::Idle as u8 => Eviction::Idle,
                    _ => Eviction::Called,
                };
                evictions.note(&entry, lot.evict(&entry), cause);
            }
        };
        Ok(Parking {
            lot,
            moka: moka::sync::Cache::builder()
                .max_capacity(cached_agents as u64)
                .eviction_policy(EvictionPolicy::lru())
                .eviction_listener(listener)
                .build_with_hasher(RandomState::default()),
            cached_agents,
            // With few agents, the order must be exact, since users see which agent is evicted. With many,
            // moka hears of an agent in use long before it would forget it.
            touch_every: match cached_agents {
                0..=64 => 0,
                n => n as u64 / 8,
            },
            insertions: AtomicU64::new(0),
            evictions,
            name,
        })
    }

    /// Notes that the agent is in use. Usually this is one comparison.
    #[inline]
    pub(crate) fn touch(&self, entry: &Entry) {
        if entry.is_anonymous() {
            return;
        }
        let insertions = self.insertions.load(Relaxed);
        let since = insertions.saturating_sub(entry.touched.load(Relaxed));
        if since > self.touch_every || (self.touch_every == 0 && insertions > 0) {
            entry.touched.store(insertions, Relaxed);
            let _ = self.moka.get(&*entry.agent);
        }
    }

    /// Whether connections may be parked.
    pub(crate) fn parks(&self) -> bool {
        self.cached_agents > 0
    }

    /// Tells moka of an agent that has become known. Called after the slot and the permit were returned.
    pub(crate) fn note(&self, returned: &Returned<Arc<KeyedEntry<AgentLock>>>) {
        let Some(entry) = &returned.new else {
            return;
        };
        let insertions = self.insertions.fetch_add(1, Relaxed) + 1;
        entry.touched.store(insertions, Relaxed);
        self.moka
            .insert(Arc::clone(&entry.agent), Arc::clone(entry));
        if self.touch_every == 0 {
            self.moka.run_pending_tasks();
        }
        self.report();
    }

    /// Evicts an agent: its parked connections become free, and so does each lent one when it comes back.
    /// Returns whether a connection was parked.
    pub(crate) fn evict(&self, agent: &str) -> bool {
        let (entry, freed) = self.lot.evict_agent(agent);
        if let Some(entry) = entry {
            self.evictions.note(&entry, freed, Eviction::Called);
            self.moka.invalidate(agent);
        }
        self.report();
        freed > 0
    }

    /// Evicts the agents whose connections have all been parked since `cutoff` or longer, and frees
    /// connections of other agents that have been parked as long. Returns how many connections became free.
    pub(crate) fn evict_idle(&self, cutoff: Instant) -> usize {
        let (mut freed, idle) = self.lot.idle_since(cutoff);
        add(&self.evictions.counters.evicted_by_idle, freed as u64);
        for entry in idle {
            entry.leaving.store(Eviction::Idle as u8, Relaxed);
            self.moka.invalidate(&*entry.agent);
            // moka may not know the agent yet.
            let more = self.lot.evict(&entry);
            self.evictions.note(&entry, more, Eviction::Idle);
            freed += 1;
        }
        self.report();
        freed
    }

    /// Lets moka do its pending work, which it does only when it is called.
    pub(crate) fn maintain(&self) {
        self.moka.run_pending_tasks();
        self.report();
    }

    /// Reports what the listener saw. Called after moka was, with no lock held.
    fn report(&self) {
        let evictions = std::mem::take(&mut *self.evictions.unreported.lock());
        for (agent, cause) in evictions {
            events::evicted(&self.name, &agent, cause);
        }
    }
}

impl Evictions {
    /// Counts and keeps an eviction that freed `freed` parked connections of the agent.
    fn note(&self, entry: &Entry, freed: usize, cause: Eviction) {
        if freed == 0 {
            return;
        }
        let counter = match cause {
            Eviction::Size => &self.counters.evicted_by_size,
            Eviction::Idle => &self.counters.evicted_by_idle,
            Eviction::Called => &self.counters.evicted_by_call,
        };
        add(counter, freed as u64);
        let mut unreported = self.unreported.lock();
        unreported.push((Arc::clone(&entry.agent), cause));
    }
}

impl Loan {
    /// The record of a lease.
    pub(crate) fn holder(&self, agent: &str, now: Instant) -> Holder {
        Holder {
            agent: agent.to_owned(),
            borrowed_at: self.borrowed_at.line,
            request: self.borrowed_at.request(),
            age: self.age(now),
        }
    }
}
