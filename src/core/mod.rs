//! The core: who has which connection. It knows no SQL: all it does to a connection, it does through its
//! [`Backend`].
//!
//! # The cycle
//! ```text
//!                    take (permit holder)                  end of the lease
//!        ┌──────────────────────────────────► LENT ──────────────────────────────┐
//!        │                                  in a Checkout                         │
//!        │                                                                        ▼
//!   ┌─────────┐   evicted: number of agents, idle time, `release`          ┌────────────┐
//!   │  FREE   │ ◄───────────────────────────────────────────────────────── │   PARKED   │
//!   │ in r2d2 │                  moka's listener, one step                 │ in an Entry│
//!   └─────────┘                                                            └────────────┘
//!        ▲                                                                    │     │
//!        │   given back                                          own agent: a hit   │ another agent:
//!        │                                                        back to LENT      │ reset, then LENT
//!     IN HAND  (being closed, by a permit holder) ◄─────────────────────────────────┘
//!        └──► STUCK, if it cannot be closed; its permit went with it
//! ```
//! A slot is the right to have one connection open. There are N, and each is in one of these places.
//!
//! # The rule
//! **Whoever has a slot lent or in hand holds a permit.** There are N permits. So a permit holder always finds a
//! slot that is free or parked, at once: no slot is ever in neither place without a permit holder having it, and the
//! [`lot`] looks at all of them while none can move. A slot is given back first, its permit second. No exception:
//! [`maintenance`] takes a permit before it closes anything, and [`close`] is over when it holds all N.
//!
//! # Who may wait for what
//! Waiting is always for a permit, for an agent's lock, or for a worker thread's answer, each with a deadline:
//! [`checkout`]. What may block (opening, closing) is done on the core's own [`WorkerPool`]; its tasks wait
//! for nobody.
//!
//! | module | what |
//! |---|---|
//! | [`lot`] | free and parked slots |
//! | [`slot`] | r2d2 as the list of free slots |
//! | [`parking`] | moka: which agents are known |
//! | [`agent_name`], [`request`], [`checkout`], [`prepare`], [`guard`], [`checkin`] | a lease, from the request to the end |
//! | [`room`] | slots for connections that are not lent |
//! | [`agent_lock`] | one borrower at a time, where agents have databases of their own |
//! | [`maintenance`], [`close`] | what happens when nobody calls; the end |

pub(crate) mod agent_lock;
pub(crate) mod agent_name;
pub(crate) mod backend;
mod checkin;
mod checkout;
mod close;
#[cfg(test)]
mod fake;
pub(crate) mod guard;
pub(crate) mod lot;
mod maintenance;
mod parking;
mod prepare;
pub(crate) mod reentrancy;
pub(crate) mod request;
mod room;
mod slot;

use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use event_listener::Event;
use parking_lot::Mutex;

use crate::error::{Error, Wanted};
use crate::observe::claim::Claim;
use crate::observe::events;
use crate::observe::slow_waits::{SlowWait, SlowWaits};
use crate::observe::stats::{Counters, Holder, Stats, Waiting, count};
use crate::sync::keyed_map::KeyedMap;
use crate::sync::origin::Origin;
use crate::sync::semaphore::Semaphore;
use crate::sync::workers::WorkerPool;
use agent_lock::AgentLock;
use backend::{Backend, CloseMode, NotClosed};
use parking::Parking;
use slot::{OpenConnection, TakenSlot};

/// The options that do not depend on the kind of connection. Valid.
#[derive(Debug)]
pub(crate) struct Options {
    /// What the pool is called in the log and in metrics.
    pub(crate) name: Arc<str>,
    pub(crate) max_connections: usize,
    pub(crate) cached_agents: usize,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) lease_timeout: Duration,
    pub(crate) overtaking: Duration,
    pub(crate) max_lifetime: Option<Duration>,
    pub(crate) overdue_after: Option<Duration>,
}

/// What all handles and leases of a pool have in common.
pub(crate) struct Core<B: Backend> {
    pub(crate) backend: B,
    pub(crate) options: Options,
    pub(crate) counters: Arc<Counters>,
    /// In a fork of this process, nothing of the pool may be touched.
    origin: Origin,
    permits: Semaphore<Claim>,
    /// Where agents have connections of their own, the locks of those in use.
    locks: Option<KeyedMap<AgentLock>>,
    /// A limit around opening, where that happens all the time.
    opening: Semaphore<Claim>,
    /// Held by whoever takes several permits, one after the other: no two of them may wait for each other.
    several: Semaphore<Claim>,
    parking: Parking<B>,
    slow_waits: SlowWaits,
    /// Slots that were taken out of circulation with their permits.
    out: Mutex<Out<B>>,
    /// Told whenever a slot was taken out of circulation.
    emptied: Event,
    /// The backend's generation that idle connections were last compared with.
    swept_generation: AtomicU64,
    /// Whether [`Backend::closed`] was called.
    told_closed: AtomicBool,
    /// A worker is tidying, or is about to.
    tidying: AtomicBool,
    workers: Arc<WorkerPool>,
    /// Whether the log knows of the deadlock that there is.
    deadlock_reported: AtomicBool,
    this: Weak<Core<B>>,
}

/// What is out of circulation.
struct Out<B: Backend> {
    /// Their connection cannot be closed. It stays in the count of open connections for as long as the pool lives.
    stuck: Vec<TakenSlot<B>>,
    /// Vacant, of a closed pool.
    retired: Vec<TakenSlot<B>>,
}

/// A permit, which goes back when it is dropped.
pub(crate) struct Permit<'a, B: Backend>(&'a Core<B>);

/// The connection in the slot cannot be closed. The slot must go out of circulation, and the permit of whoever has
/// it with it.
pub(crate) struct Stuck;

impl<B: Backend> Core<B> {
    pub(crate) fn new(backend: B, options: Options) -> Result<Arc<Self>, Error> {
        let counters = Arc::new(Counters::new(options.max_connections));
        let overtaking = options.overtaking;
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let parking = Parking::new(
            Arc::clone(&options.name),
            options.max_connections,
            options.cached_agents,
            Arc::clone(&counters),
        )?;
        Ok(Arc::new_cyclic(|this| Core {
            origin: Origin::here(),
            permits: Semaphore::new(options.max_connections, overtaking),
            locks: backend.is_per_agent().then(KeyedMap::new),
            opening: Semaphore::new(2 * cores, Duration::ZERO),
            several: Semaphore::new(1, Duration::ZERO),
            parking,
            counters,
            slow_waits: SlowWaits::new(),
            out: Mutex::new(Out {
                stuck: Vec::new(),
                retired: Vec::new(),
            }),
            emptied: Event::new(),
            swept_generation: AtomicU64::new(backend.generation()),
            told_closed: AtomicBool::new(false),
            tidying: AtomicBool::new(false),
            // Each task has a permit, but for one that tidies or winds up.
            workers: WorkerPool::new("leasepool-work", options.max_connections + 1),
            deadlock_reported: AtomicBool::new(false),
            this: Weak::clone(this),
            backend,
            options,
        }))
    }

    pub(crate) fn fd_ceiling(&self) -> usize {
        self.backend.fd_ceiling(self.options.max_connections)
    }

    pub(crate) fn workers(&self) -> &Arc<WorkerPool> {
        &self.workers
    }

    /// Evicts an agent. Returns whether a connection was parked for it.
    pub(crate) fn evict(&self, agent: &str) -> bool {
        if self.is_forked() {
            return false;
        }
        let was_parked = self.parking.evict(agent);
        if was_parked {
            self.after_eviction();
        }
        was_parked
    }

    pub(crate) fn slowest_waits(&self) -> Vec<SlowWait> {
        if self.is_forked() {
            return Vec::new();
        }
        self.slow_waits.slowest(Instant::now())
    }

    /// # Errors
    /// In a fork of the process that has built the pool.
    #[inline]
    pub(crate) fn check_origin(&self) -> Result<(), Error> {
        match self.is_forked() {
            true => Err(Error::Forked),
            false => Ok(()),
        }
    }

    /// Whether this is a fork of the process that has built the pool: another thread of that may have had any lock.
    #[inline]
    pub(crate) fn is_forked(&self) -> bool {
        self.origin.is_elsewhere()
    }

    /// Whether a lease could be had at once.
    pub(crate) fn ready(&self) -> Result<(), Error> {
        self.check_origin()?;
        if self.permits.is_closed() {
            return Err(Error::Closed);
        }
        if self.permits.free() == 0 {
            return Err(self.exhausted(Wanted::Connection, Instant::now(), self.permits.waiting()));
        }
        self.backend.check()
    }

    pub(crate) fn waiting(&self) -> Vec<Waiting> {
        if self.is_forked() {
            return Vec::new();
        }
        let now = Instant::now();
        let claims = self.waiting_claims();
        claims.iter().map(|claim| claim.waiting(now)).collect()
    }

    fn waiting_claims(&self) -> Vec<Claim> {
        let mut claims = self.permits.waiters();
        for lock in self.locks.iter().flat_map(KeyedMap::all) {
            claims.extend(lock.semaphore().waiters());
        }
        claims
    }

    /// Who has a connection, or was granted one and has not taken it; the oldest first.
    pub(crate) fn holders(&self) -> Vec<Holder> {
        if self.is_forked() {
            return Vec::new();
        }
        self.holders_and_threads(Instant::now()).0
    }

    /// The holders, and the threads that took their leases.
    fn holders_and_threads(&self, now: Instant) -> (Vec<Holder>, Vec<Option<u64>>) {
        let mut found = Vec::new();
        self.parking.lot.loans(|entry, loan| {
            found.push((loan.holder(&entry.agent, now), Some(loan.thread)));
        });
        for claim in self.permits.granted(now) {
            found.push((claim.holder(now), claim.thread));
        }
        found.sort_by_key(|(holder, _)| std::cmp::Reverse(holder.age));
        found.into_iter().unzip()
    }

    pub(crate) fn exhausted(&self, wanted: Wanted, asked_at: Instant, waiting: usize) -> Error {
        self.exhausted_for(None, None, wanted, asked_at, waiting)
    }

    /// `agent`: whose lease was waited for, if not any; `thread`: which thread was blocked.
    pub(crate) fn exhausted_for(
        &self,
        agent: Option<&str>,
        thread: Option<u64>,
        wanted: Wanted,
        asked_at: Instant,
        waiting: usize,
    ) -> Error {
        let now = Instant::now();
        let (holders, threads) = self.holders_and_threads(now);
        let mut waiting_threads = self.waiting_threads();
        waiting_threads.extend(thread);
        let waits = |thread: &Option<u64>| thread.is_some_and(|t| waiting_threads.contains(&t));
        let relevant = holders
            .iter()
            .zip(&threads)
            .filter(|(holder, _)| agent.is_none_or(|agent| holder.agent == agent));
        let mut relevant = relevant.map(|(_, thread)| thread).peekable();
        let all_holders_wait = relevant.peek().is_some() && relevant.all(waits);
        Error::Exhausted {
            wanted,
            waited: now.saturating_duration_since(asked_at),
            max_connections: self.options.max_connections,
            waiting,
            stuck: self.counters.stuck.load(Relaxed),
            all_holders_wait,
            holders,
        }
    }

    /// The threads that block until they get a connection.
    fn waiting_threads(&self) -> Vec<u64> {
        let claims = self.waiting_claims();
        claims.iter().filter_map(|claim| claim.thread).collect()
    }

    fn discard(
        &self,
        counter: &std::sync::atomic::AtomicU64,
        reason: &'static str,
        mode: CloseMode,
    ) -> CloseMode {
        count(counter);
        events::discarded(&self.options.name, reason);
        mode
    }

    /// Closes the connection in a slot, in place. For a permit holder that may block.
    fn vacate(&self, slot: &mut TakenSlot<B>, mode: CloseMode) -> Result<(), Stuck> {
        let Some(open) = slot.open.take() else {
            return Ok(());
        };
        let OpenConnection {
            connection,
            opened_at,
            used,
            doomed,
        } = *open;
        let mode = doomed.unwrap_or(mode);
        if let Err(NotClosed { connection, error }) = self.backend.close(connection, mode) {
            count(&self.counters.close_failures);
            events::close_failed(&error, connection.is_some());
            if let Some(connection) = connection {
                slot.open = Some(Box::new(OpenConnection {
                    connection,
                    opened_at,
                    used,
                    doomed,
                }));
                return Err(Stuck);
            }
        }
        count(&self.counters.closes);
        self.counters.open.fetch_sub(1, AcqRel);
        Ok(())
    }

    /// Takes a slot out of circulation that cannot be vacated. Its permit is never returned.
    fn retire_stuck(&self, slot: TakenSlot<B>) {
        self.counters.stuck.fetch_add(1, AcqRel);
        self.out.lock().stuck.push(slot);
        self.emptied.notify(usize::MAX);
    }

    /// Returns a permit. In a closed pool, what came back with it is then closed, by a worker.
    fn return_permit(&self, now: Instant) {
        self.permits.release(now);
        // Either we see here that the pool is closed, or whoever closes it sees the permit: both change one word.
        if self.permits.is_closed() {
            self.wind_up_soon();
        }
    }

    /// All numbers, as they are called outside.
    #[cfg(any(feature = "metrics", feature = "status"))]
    pub(crate) fn families(&self, stats: &Stats) -> Vec<crate::observe::families::Family> {
        let descriptors = self.backend.descriptors();
        crate::observe::families::families(stats, descriptors, self.fd_ceiling())
    }

    pub(crate) fn stats(&self) -> Stats {
        let levels = self.parking.lot.levels();
        let mut stats = self.counters.snapshot();
        stats.max_connections = self.options.max_connections;
        stats.lent = levels.lent;
        stats.parked = levels.parked;
        stats.reclaims += levels.reclaims;
        let locks = self.locks.iter().flat_map(KeyedMap::all);
        let at_locks: usize = locks.map(|lock| lock.semaphore().waiting()).sum();
        stats.waiting = self.permits.waiting() + at_locks;
        stats.wait = self.slow_waits.snapshot(stats.leases);
        self.backend.observe(&mut stats);
        stats
    }

    /// Whether fewer slots are vacant than should be.
    fn lacks_room(&self) -> bool {
        /// One slot in so many is kept vacant.
        const SPARE: usize = 8;
        let max = self.options.max_connections;
        self.backend.is_per_agent() && max - self.counters.open.load(Acquire).min(max) < max / SPARE
    }
}

impl<B: Backend> Permit<'_, B> {
    /// Leaves the permit to whatever has the slot now, whose end returns it.
    fn pass_on(self) {
        std::mem::forget(self);
    }
}

impl<B: Backend> Drop for Permit<'_, B> {
    fn drop(&mut self) {
        self.0.return_permit(Instant::now());
    }
}
