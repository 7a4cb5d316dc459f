//! Shared: what all handles and leases of a pool have in common, and every move a connection makes.
//! It knows no SQLite: all it does to a connection, it does through its `Backend`.
//!
//! A connection is in one of four places, and moves by value: free in r2d2, parked in the cache,
//! lent in a `Lease`, or, if it cannot be closed, stuck. Of N slots, whoever has a permit finds one
//! that is neither lent nor stuck: there are as many permits as such slots, and a permit is returned
//! only after the slot is.

mod closing;
mod keeping;
mod passing;
mod room;

pub(crate) use passing::Passed;

use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{AcqRel, Relaxed},
};
use std::time::{Duration, Instant};

use event_listener::Event;
use parking_lot::Mutex;

use crate::backend::{Backend, Ending, Fate, NotClosed};
use crate::cache::AgentCache;
use crate::error::{Error, Wanted};
use crate::events;
use crate::gate::Gate;
use crate::keeper::Keeper;
use crate::ledger::Entry;
use crate::permits::{Claim, Permits, Refusal};
#[cfg(feature = "metrics")]
use crate::publish::Published;
use crate::registry::Registry;
use crate::slot::{self, Occupant, Slots, TakenSlot};
use crate::stats::{Counters, Stats, Waiting, count};
use crate::waits::{SlowWait, Waits};

/// The options that do not depend on the kind of connection. Valid.
#[derive(Debug)]
pub(crate) struct Options {
    /// What the pool is called in the log and in metrics.
    pub(crate) name: Arc<str>,
    pub(crate) max_connections: usize,
    pub(crate) cached_agents: usize,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) lease_timeout: Duration,
    pub(crate) max_lifetime: Option<Duration>,
    pub(crate) overdue_after: Option<Duration>,
}

/// What all handles and leases of a pool have in common.
pub(crate) struct Shared<B: Backend> {
    pub(crate) backend: B,
    pub(crate) options: Options,
    permits: Permits,
    /// Where agents have connections of their own, the gates of those in use.
    gates: Option<Registry<Gate>>,
    /// The right to open a connection, where that happens all the time.
    doors: Permits,
    slots: r2d2::Pool<Slots<B>>,
    pub(crate) cache: AgentCache<B>,
    pub(crate) counters: Arc<Counters>,
    waits: Waits,
    /// Slots whose connection cannot be closed. They keep their place in the count of open
    /// connections for as long as the pool lives.
    stuck: Mutex<Vec<TakenSlot<B>>>,
    /// Told whenever a connection of a closing pool has been closed.
    emptied: Event,
    /// The backend's generation that idle connections were last compared with.
    swept_generation: AtomicU64,
    /// Whether the log knows that the pool is closed.
    told_closed: AtomicBool,
    #[cfg(feature = "metrics")]
    published: Mutex<Published>,
    /// What must be interrupted until it ends.
    pressed: Mutex<Vec<Press>>,
    keeper: Keeper,
    pub(crate) hooks: Hooks<B>,
    /// Somebody is making room, or is about to.
    making_room: AtomicBool,
}

/// What stands above the core and has to be told: writes, where the backend knows such.
pub(crate) struct Hooks<B: Backend> {
    /// A lease took a vacant slot, or one that had to be vacated, where agents have connections of their own.
    pub(crate) missed: fn(&Arc<Shared<B>>),
    /// A lease has ended, on this thread.
    pub(crate) returned: fn(&Arc<Shared<B>>),
    /// Called by the keeper, each time.
    pub(crate) keep: fn(&Arc<Shared<B>>),
    /// The pool is to be closed, and may wait until the deadline.
    pub(crate) drain: fn(&Arc<Shared<B>>, Instant),
    /// The pool is being closed.
    pub(crate) refuse: fn(&Shared<B>),
}

/// Interrupts something; returns whether that is still there.
pub(crate) type Press = Box<dyn Fn() -> bool + Send>;

/// A permit, which goes back when it is dropped.
pub(crate) struct Permit<'a, B: Backend>(&'a Shared<B>);

/// The connection in the slot cannot be closed. The slot must go out of circulation, and the permit
/// of whoever holds it with it.
pub(crate) struct Stuck;

/// What a slot needs before it can serve.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Need {
    Nothing,
    /// A new connection; the one that is there must be closed, and how.
    Connection(Option<Ending>),
}

impl<B: Backend> Shared<B> {
    /// The pool's shared part, with its keeper at work.
    pub(crate) fn start(backend: B, options: Options, hooks: Hooks<B>) -> Result<Arc<Self>, Error> {
        let counters = Arc::new(Counters::new(options.max_connections));
        let shared = Arc::new(Shared {
            permits: Permits::new(options.max_connections),
            gates: backend.is_exclusive().then(Registry::new),
            doors: Permits::new(passing::doors()),
            slots: slot::pool(options.max_connections)?,
            cache: AgentCache::new(
                Arc::clone(&options.name),
                options.max_connections,
                options.cached_agents,
                backend.is_exclusive(),
                Arc::clone(&counters),
            ),
            counters,
            waits: Waits::new(),
            stuck: Mutex::default(),
            emptied: Event::new(),
            swept_generation: AtomicU64::new(backend.generation()),
            told_closed: AtomicBool::new(false),
            #[cfg(feature = "metrics")]
            published: Mutex::default(),
            pressed: Mutex::default(),
            keeper: Keeper::default(),
            hooks,
            making_room: AtomicBool::new(false),
            backend,
            options,
        });
        let weak = Arc::downgrade(&shared);
        shared.keeper.start(shared.keeper_period(), move || {
            weak.upgrade().map(|shared| shared.keep())
        });
        Ok(shared)
    }

    pub(crate) fn refresh(&self, now: Instant) {
        self.backend.refresh(now);
    }

    pub(crate) fn fd_ceiling(&self) -> usize {
        self.backend.fd_ceiling(self.options.max_connections)
    }

    /// A permit that is free, and that nobody waits for.
    pub(crate) fn free_permit(&self) -> Option<Permit<'_, B>> {
        self.permits.acquire_free().then(|| Permit(self))
    }

    /// A permit, waiting for it until `deadline` (`None`: not at all).
    pub(crate) fn permit(
        &self,
        claim: Claim,
        deadline: Option<Instant>,
    ) -> Result<Permit<'_, B>, Error> {
        let Some(deadline) = deadline else {
            return self.granted(self.permits.try_acquire(), claim.asked_at);
        };
        let acquire = || self.permits.acquire(claim.clone(), deadline);
        let answer = events::wait(&self.options.name, &claim.agent, acquire);
        self.waited(answer, claim)
    }

    /// A permit, waiting for it until `deadline`.
    pub(crate) async fn permit_async(
        &self,
        claim: Claim,
        deadline: Instant,
    ) -> Result<Permit<'_, B>, Error> {
        let acquire = self.permits.acquire_async(claim.clone(), deadline);
        let answer = events::wait_async(&self.options.name, &claim.agent, acquire).await;
        self.waited(answer, claim)
    }

    fn waited(&self, answer: Result<(), Refusal>, claim: Claim) -> Result<Permit<'_, B>, Error> {
        let result = self.granted(answer, claim.asked_at);
        self.waits.record(claim, result.is_ok());
        result
    }

    fn granted(
        &self,
        answer: Result<(), Refusal>,
        asked_at: Instant,
    ) -> Result<Permit<'_, B>, Error> {
        match answer {
            Ok(()) => Ok(Permit(self)),
            Err(Refusal::Closed) => Err(Error::Closed),
            Err(Refusal::TimedOut { waiting }) => {
                let error = self.exhausted(Wanted::Connection, asked_at, waiting);
                count(&self.counters.timeouts);
                Err(error)
            }
        }
    }

    pub(crate) fn slowest_waits(&self) -> Vec<SlowWait> {
        self.waits.slowest(Instant::now())
    }

    /// Whether a lease could be had at once.
    pub(crate) fn ready(&self) -> Result<(), Error> {
        if self.permits.is_closed() {
            return Err(Error::Closed);
        }
        if self.permits.free() == 0 {
            return Err(self.exhausted(Wanted::Connection, Instant::now(), self.permits.waiting()));
        }
        self.backend.check()
    }

    pub(crate) fn waiting(&self) -> Vec<Waiting> {
        let now = Instant::now();
        let mut waiting = self.permits.waiters(now);
        for gate in self.gates.iter().flat_map(Registry::all) {
            waiting.extend(gate.waiters(now));
        }
        waiting
    }

    pub(crate) fn exhausted(&self, wanted: Wanted, asked_at: Instant, waiting: usize) -> Error {
        let now = Instant::now();
        Error::Exhausted {
            wanted,
            waited: now.saturating_duration_since(asked_at),
            max_connections: self.options.max_connections,
            waiting,
            stuck: self.counters.stuck.load(Relaxed),
            holders: self.cache.ledger.holders(now),
        }
    }

    /// A slot for the holder of a permit: a free one, or one reclaimed from another agent.
    pub(crate) fn any_slot(&self) -> Result<TakenSlot<B>, Error> {
        loop {
            if let Some(slot) = slot::take(&self.slots) {
                return Ok(slot);
            }
            self.cache.reclaim();
            if let Some(slot) = slot::take(&self.slots) {
                return Ok(slot);
            }
            // Another thread has our slot in hand, on its way to r2d2 or into the cache, or took the
            // one that we reclaimed and left us its own.
            if self.permits.is_closed() {
                return Err(Error::Closed);
            }
            std::thread::yield_now();
        }
    }

    /// What the slot needs before `agent` can be served from it. Resets the connection in it, if that
    /// is all it needs: this takes microseconds, never I/O.
    pub(crate) fn inspect(
        &self,
        agent: &str,
        slot: &mut TakenSlot<B>,
        now: Instant,
        hit: bool,
    ) -> Need {
        let Some(occupant) = &mut slot.occupant else {
            return Need::Connection(None);
        };
        self.backend.revisit(&mut occupant.connection, now);
        match self.unfit(agent, occupant, now, hit) {
            Some(ending) => Need::Connection(Some(ending)),
            None => {
                occupant.used = true;
                Need::Nothing
            }
        }
    }

    /// Closes the connection in the slot, if there is one, and opens another. Blocks for as long as
    /// SQLite and `on_open` do.
    pub(crate) fn renew(
        &self,
        agent: &str,
        slot: &mut TakenSlot<B>,
        now: Instant,
        ending: Option<Ending>,
    ) -> Result<Result<(), Stuck>, Error> {
        if let Some(ending) = ending
            && let Err(stuck) = self.vacate(slot, ending)
        {
            return Ok(Err(stuck));
        }
        self.wait_for_release(agent);
        self.occupy(agent, slot, now)?;
        Ok(Ok(()))
    }

    /// Whether, and how, the connection must be closed before `agent` can be served.
    fn unfit(
        &self,
        agent: &str,
        occupant: &mut Occupant<B>,
        now: Instant,
        hit: bool,
    ) -> Option<Ending> {
        if !hit && !self.backend.belongs(&occupant.connection, agent) {
            return Some(Ending::Evicted);
        }
        if !self.backend.fits(&occupant.connection, Some(agent)) {
            return Some(self.discard(&self.counters.discarded_by_file, "file replaced"));
        }
        if let Some(limit) = self.options.max_lifetime
            && now.saturating_duration_since(occupant.opened_at) >= limit
        {
            self.discard(&self.counters.discarded_by_age, "max_lifetime");
            return Some(Ending::Retired);
        }
        if hit || !occupant.used {
            return None;
        }
        match self.backend.reset(&mut occupant.connection) {
            Fate::Reuse => {
                occupant.used = false;
                count(&self.counters.resets);
                None
            }
            Fate::Discard => {
                self.discard(&self.counters.discarded_by_reset, "reset");
                Some(Ending::Retired)
            }
        }
    }

    fn discard(&self, counter: &std::sync::atomic::AtomicU64, reason: &'static str) -> Ending {
        count(counter);
        events::discarded(&self.options.name, reason);
        Ending::Faulty
    }

    /// Opens a connection in a vacant slot.
    fn occupy(&self, agent: &str, slot: &mut TakenSlot<B>, now: Instant) -> Result<(), Error> {
        // Counted before it is opened, and not counted any more only after it is closed, so that the
        // count is never below the truth.
        let opening = Opening::new(&self.counters);
        let connection = self.backend.open(agent)?;
        opening.succeeded();
        slot.occupant = Some(Box::new(Occupant {
            connection,
            opened_at: now,
            used: true,
        }));
        Ok(())
    }

    /// Closes the connection in a slot, in place.
    fn vacate(&self, slot: &mut TakenSlot<B>, ending: Ending) -> Result<(), Stuck> {
        let Some(occupant) = slot.occupant.take() else {
            return Ok(());
        };
        let Occupant {
            connection,
            opened_at,
            used,
        } = *occupant;
        if let Err(NotClosed { connection, error }) = self.backend.close(connection, ending) {
            count(&self.counters.close_failures);
            events::close_failed(&error, connection.is_some());
            if let Some(connection) = connection {
                slot.occupant = Some(Box::new(Occupant {
                    connection,
                    opened_at,
                    used,
                }));
                return Err(Stuck);
            }
        }
        count(&self.counters.closes);
        self.counters.open.fetch_sub(1, AcqRel);
        Ok(())
    }

    /// Takes the slot of a lease out of circulation, with the lease's permit.
    pub(crate) fn strand(&self, entry: &Arc<Entry<B>>, slot: TakenSlot<B>) {
        self.cache.end(entry, slot.index);
        self.strand_slot(slot);
    }

    fn strand_slot(&self, slot: TakenSlot<B>) {
        self.counters.stuck.fetch_add(1, AcqRel);
        self.stuck.lock().push(slot);
        self.emptied.notify(usize::MAX);
    }

    /// The end of every lease.
    pub(crate) fn end_lease(&self, entry: &Arc<Entry<B>>, mut slot: TakenSlot<B>, fate: Fate) {
        if let Some(occupant) = &mut slot.occupant {
            let fate = match fate {
                Fate::Reuse => self.backend.settle(&mut occupant.connection),
                Fate::Discard => fate,
            };
            let ending = if fate == Fate::Discard {
                Some(self.discard(&self.counters.discarded_by_lease, "fault"))
            } else if !self.backend.fits(&occupant.connection, Some(&entry.agent)) {
                Some(self.discard(&self.counters.discarded_by_file, "file replaced"))
            } else {
                None
            };
            if let Some(ending) = ending
                && let Err(Stuck) = self.vacate(&mut slot, ending)
            {
                return self.strand(entry, slot);
            }
        }
        let overdue = if slot.occupant.is_some() {
            self.cache.park(entry, slot)
        } else {
            self.cache.give_back(entry, slot)
        };
        // Last: whoever gets the permit must find the slot.
        self.return_permit();
        if let Some(holder) = overdue {
            events::overdue_returned(&self.options.name, &holder);
        }
    }

    /// Returns a permit. In a closed pool, what came back with it is closed: either we see here that
    /// the pool is closed, or `close` sees what was returned, since both change the permits' word.
    fn return_permit(&self) {
        self.permits.release();
        if self.permits.is_closed() {
            self.wind_up();
        }
    }

    /// All numbers, as they are called outside.
    #[cfg(any(feature = "metrics", feature = "status"))]
    pub(crate) fn families(&self) -> Vec<crate::meters::Family> {
        let descriptors = self.backend.descriptors();
        crate::meters::families(&self.stats(), descriptors, self.fd_ceiling())
    }

    pub(crate) fn stats(&self) -> Stats {
        let levels = self.cache.ledger.levels();
        let mut stats = self.counters.snapshot();
        stats.max_connections = self.options.max_connections;
        stats.lent = levels.lent;
        stats.parked = levels.parked;
        stats.hits = levels.hits;
        stats.leases += levels.hits;
        let gates = self.gates.iter().flat_map(Registry::all);
        stats.waiting = self.permits.waiting() + gates.map(|gate| gate.waiting()).sum::<usize>();
        stats.wait = self.waits.snapshot(stats.leases);
        self.backend.observe(&mut stats);
        stats
    }
}

/// Counts a connection as open while it is being opened, and afterwards if that succeeded.
struct Opening<'a>(&'a Counters);

impl<'a> Opening<'a> {
    fn new(counters: &'a Counters) -> Self {
        counters.open.fetch_add(1, AcqRel);
        Opening(counters)
    }

    fn succeeded(self) {
        count(&self.0.opens);
        std::mem::forget(self);
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        count(&self.0.open_failures);
        self.0.open.fetch_sub(1, AcqRel);
    }
}

impl<B: Backend> Permit<'_, B> {
    /// Leaves the permit to the lease that is made of it, whose end returns it.
    pub(crate) fn pass_on(self) {
        std::mem::forget(self);
    }
}

impl<B: Backend> Drop for Permit<'_, B> {
    fn drop(&mut self) {
        self.0.return_permit();
    }
}
