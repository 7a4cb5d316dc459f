//! The core: which borrower has which connection.
//! It knows no SQL: it works on a connection only through its [`Backend`].
//!
//! # The cycle
//! ```text
//!                    take (permit holder)                  end of the lease
//!        ┌──────────────────────────────────► LENT ──────────────────────────────┐
//!        │                                  in a Checkout                         │
//!        │                                                                        ▼
//!   ┌─────────┐   evicted: number of agents, idle time, `evict`            ┌────────────┐
//!   │  FREE   │ ◄───────────────────────────────────────────────────────── │   PARKED   │
//!   │ in r2d2 │                  moka's listener, one step                 │ in an Entry│
//!   └─────────┘                                                            └────────────┘
//!        ▲                                                                    │     │
//!        │   given back                                          own agent: a hit   │ another agent:
//!        │                                                        back to LENT      │ reset, then LENT
//!     IN HAND  (being closed, by a permit holder) ◄─────────────────────────────────┘
//!        └──► STUCK, if it cannot be closed; its permit stays with it
//! ```
//! A slot is the right to have one connection open. There are N slots, and each is in exactly one of these
//! places.
//!
//! # The rule
//! **A slot is lent or in hand only together with a permit.** There are N permits. So a permit holder always
//! finds a slot that is free or parked, without waiting: a slot is in neither place only while another permit
//! holder has it, and the [`lot`] can look at all slots while none of them moves. A slot is returned first,
//! its permit second. There is no exception: [`maintenance`] takes a permit before it closes anything, and
//! [`close`] is done when it holds all N permits.
//!
//! # What a call may wait for
//! A call waits only for a permit, for an agent's lock, or for a worker thread's answer, and always with a
//! deadline: [`checkout`]. Work that may block (opening, closing) runs on the core's own [`WorkerPool`]; no
//! worker thread waits for a permit.
//!
//! | module | what |
//! |---|---|
//! | [`lot`] | free and parked slots |
//! | [`slot`] | r2d2 as the list of free slots |
//! | [`parking`] | moka: which agents are known |
//! | [`agent_name`], [`request`], [`checkout`], [`prepare`], [`guard`], [`checkin`] | a lease, from the request to its end |
//! | [`settling`] | leases over servers that are being ended |
//! | [`room`] | slots for connections that are not lent |
//! | [`agent_lock`] | one borrower at a time, where agents have databases of their own |
//! | [`backend`] | what the core asks of SQLite, or of a server |
//! | [`reentrancy`], [`max_hold`] | which calls a thread is in; leases that take too long |
//! | [`maintenance`], [`close`] | work that no call starts; the end |
//! | [`health`] | what is told for a verdict |

pub(crate) mod agent_lock;
pub(crate) mod agent_name;
pub(crate) mod backend;
mod checkin;
mod checkout;
mod close;
#[cfg(test)]
mod fake;
pub(crate) mod guard;
mod health;
pub(crate) mod lot;
mod maintenance;
pub(crate) mod max_hold;
mod parking;
mod prepare;
pub(crate) mod reentrancy;
pub(crate) mod request;
mod room;
mod settling;
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
use crate::sync::keyed_map::KeyedEntry;
use crate::sync::origin::Origin;
use crate::sync::semaphore::Semaphore;
use crate::sync::workers::WorkerPool;
use agent_lock::{AgentLock, AgentLocks};
use backend::{Backend, CloseMode, NotClosed};
use max_hold::MaxHold;
use parking::Parking;
use settling::Settling;
use slot::{OpenConnection, TakenSlot};

/// The options that do not depend on the kind of connection, already validated.
#[derive(Debug)]
pub(crate) struct Options {
    /// The pool's name in logs and metrics.
    pub(crate) name: Arc<str>,
    pub(crate) max_connections: usize,
    pub(crate) cached_agents: usize,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) lease_timeout: Duration,
    pub(crate) overtaking: Duration,
    pub(crate) max_lifetime: Option<Duration>,
    pub(crate) overdue_after: Option<Duration>,
    pub(crate) slow_hold: Option<Duration>,
    pub(crate) max_hold: Option<Duration>,
    pub(crate) leases_per_agent: Option<usize>,
    /// Publish OpenTelemetry's names, too.
    #[cfg(feature = "metrics")]
    pub(crate) opentelemetry: bool,
}

/// The state that all handles and leases of a pool share.
pub struct Core<B: Backend> {
    pub(crate) backend: B,
    pub(crate) options: Options,
    pub(crate) counters: Arc<Counters>,
    /// Detects a fork: in a fork of this process, no code may touch the pool's state.
    origin: Origin,
    permits: Semaphore<Claim>,
    /// Where each agent has its own database, or a quota: the locks in use.
    locks: Option<AgentLocks>,
    /// Limits how many connections are opened at once, where each agent has its own database.
    opening: Semaphore<Claim>,
    /// Held by a caller that takes several permits one after the other. Two such callers could otherwise wait
    /// for each other.
    several: Semaphore<Claim>,
    parking: Parking<B>,
    slow_waits: SlowWaits,
    /// Where the hold of a borrower is limited.
    max_hold: Option<MaxHold>,
    /// Slots that are out of circulation, together with their permits.
    out: Mutex<Out<B>>,
    /// Notified each time a slot goes out of circulation.
    emptied: Event,
    /// The backend's generation when idle connections were last compared with it.
    swept_generation: AtomicU64,
    /// Whether the log was told that the last connection is closed.
    told_closed: AtomicBool,
    /// Of a remote backend: leases that are being ended.
    settling: Settling,
    /// Of a remote backend: notified each time a slot came back, for requests that wait until they may open a connection.
    came_back: Event,
    /// Whether a worker is tidying, or is about to.
    tidying: AtomicBool,
    workers: Arc<WorkerPool>,
    /// Whether the current deadlock has been logged.
    deadlock_reported: AtomicBool,
    /// When a slow hold was last logged.
    slow_hold_reported: Mutex<Option<Instant>>,
    this: Weak<Core<B>>,
}

/// Where each agent has its own database, one slot in this many is kept vacant.
const SPARE: usize = 8;

/// What others wait for, in the hands of one caller.
struct Held {
    holder: Holder,
    /// The thread that took it.
    thread: Option<u64>,
    /// Whether it is a connection, and not just the agent's turn.
    has_connection: bool,
    /// The agent's lock, if it has one.
    lock: Option<Arc<KeyedEntry<AgentLock>>>,
}

/// The slots that are out of circulation.
struct Out<B: Backend> {
    /// Slots whose connection cannot be closed. It stays in the count of open connections as long as the pool
    /// lives.
    stuck: Vec<TakenSlot<B>>,
    /// Vacant slots of a closed pool.
    retired: Vec<TakenSlot<B>>,
}

/// A permit. Dropping it returns it.
pub(crate) struct Permit<'a, B: Backend>(&'a Core<B>);

/// The connection in the slot cannot be closed. The slot must go out of circulation, together with its
/// holder's permit.
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
            backend.is_per_agent(),
            Arc::clone(&counters),
        )?;
        let borrowers = match backend.is_per_agent() {
            true => Some(1),
            false => options.leases_per_agent,
        };
        Ok(Arc::new_cyclic(|this| Core {
            origin: Origin::here(),
            permits: Semaphore::new(options.max_connections, overtaking),
            locks: borrowers.map(|n| AgentLocks::new(n, overtaking)),
            opening: Semaphore::new(2 * cores, Duration::ZERO),
            several: Semaphore::new(1, Duration::ZERO),
            parking,
            counters,
            slow_waits: SlowWaits::new(),
            max_hold: options
                .max_hold
                .map(|limit| MaxHold::new(limit, options.max_connections)),
            out: Mutex::new(Out {
                stuck: Vec::new(),
                retired: Vec::new(),
            }),
            emptied: Event::new(),
            swept_generation: AtomicU64::new(backend.generation()),
            told_closed: AtomicBool::new(false),
            settling: Settling::default(),
            came_back: Event::new(),
            tidying: AtomicBool::new(false),
            // Each task has a permit, except one that tidies or winds up.
            workers: WorkerPool::new("leasepool-work", options.max_connections + 1),
            deadlock_reported: AtomicBool::new(false),
            slow_hold_reported: Mutex::new(None),
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
    /// [`Error::Forked`] in a fork of the process that built the pool.
    #[inline]
    pub(crate) fn check_origin(&self) -> Result<(), Error> {
        match self.is_forked() {
            true => Err(Error::Forked),
            false => Ok(()),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.permits.is_closed()
    }

    /// Whether this process is a fork of the one that built the pool. Another thread may have held any lock
    /// at the fork.
    #[inline]
    pub(crate) fn is_forked(&self) -> bool {
        self.origin.is_elsewhere()
    }

    /// Whether a lease could be had without waiting.
    pub(crate) fn ready(&self) -> Result<(), Error> {
        self.check_origin()?;
        if self.permits.is_closed() {
            return Err(Error::Closed);
        }
        if self.permits.free() == 0 {
            return Err(self.exhausted(Wanted::Connection, Instant::now(), self.permits.waiting()));
        }
        // A connection that is open serves, whether another could be opened or not.
        if B::IS_REMOTE && self.counters.open.load(Acquire) > self.parking.lot.levels().lent {
            return Ok(());
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
        for lock in self.locks.iter().flat_map(AgentLocks::all) {
            claims.extend(lock.semaphore().waiters());
        }
        claims
    }

    /// Whether a connection is parked for the agent.
    pub(crate) fn is_parked(&self, agent: &str) -> bool {
        self.parking.lot.is_parked(agent)
    }

    /// The holders of connections, the oldest first. A caller that was granted a connection, or its agent's turn, and has
    /// not taken it yet counts as a holder.
    pub(crate) fn holders(&self) -> Vec<Holder> {
        if self.is_forked() {
            return Vec::new();
        }
        let held = self.held(Instant::now());
        held.into_iter().map(|held| held.holder).collect()
    }

    /// The holders that have a connection.
    pub(crate) fn borrowers(&self) -> Vec<Holder> {
        let held = self.held(Instant::now()).into_iter();
        let held = held.filter(|held| held.has_connection);
        held.map(|held| held.holder).collect()
    }

    /// All that is held, the oldest first.
    fn held(&self, now: Instant) -> Vec<Held> {
        let mut found = Vec::new();
        self.parking.lot.loans(|_, entry, loan| {
            found.push(Held {
                holder: loan.holder(&entry.agent, now),
                thread: Some(loan.thread),
                has_connection: true,
                lock: entry.lock.clone(),
            });
        });
        let granted = |claim: Claim, lock: Option<Arc<KeyedEntry<AgentLock>>>| Held {
            holder: claim.holder(now),
            // Its thread is about to wake.
            thread: None,
            has_connection: lock.is_none(),
            lock,
        };
        for claim in self.permits.granted(now) {
            found.push(granted(claim, None));
        }
        for lock in self.locks.iter().flat_map(AgentLocks::all) {
            for claim in lock.semaphore().granted(now) {
                found.push(granted(claim, Some(Arc::clone(&lock))));
            }
        }
        found.sort_by_key(|held| std::cmp::Reverse(held.holder.age));
        found
    }

    pub(crate) fn exhausted(&self, wanted: Wanted, asked_at: Instant, waiting: usize) -> Error {
        self.exhausted_for(None, None, wanted, asked_at, waiting)
    }

    /// `lock`: the agent's lock that the call waited for, if it waited for one; `thread`: the thread that was
    /// blocked.
    pub(crate) fn exhausted_for(
        &self,
        lock: Option<&Arc<KeyedEntry<AgentLock>>>,
        thread: Option<u64>,
        wanted: Wanted,
        asked_at: Instant,
        waiting: usize,
    ) -> Error {
        let now = Instant::now();
        let held = self.held(now);
        let mut waiting_threads = self.waiting_threads();
        waiting_threads.extend(thread);
        let waits = |held: &Held| held.thread.is_some_and(|t| waiting_threads.contains(&t));
        // The queue at one agent's lock concerns only those who use the same lock.
        let is_in_the_way = |held: &&Held| match (lock, &held.lock) {
            (None, _) => held.has_connection,
            (Some(wanted), Some(lock)) => Arc::ptr_eq(wanted, lock),
            (Some(_), None) => false,
        };
        let mut in_the_way = held.iter().filter(is_in_the_way).peekable();
        let all_holders_wait = in_the_way.peek().is_some() && in_the_way.all(waits);
        Error::Exhausted {
            wanted,
            waited: now.saturating_duration_since(asked_at),
            max_connections: self.options.max_connections,
            lent: held.iter().filter(|held| held.has_connection).count(),
            waiting,
            stuck: self.counters.stuck.load(Relaxed),
            all_holders_wait,
            holders: held.into_iter().map(|held| held.holder).collect(),
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

    /// Closes the connection in a slot, in place. The caller holds a permit and may block.
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
        if let Some(max_hold) = &self.max_hold {
            max_hold.set_connection(slot.index, None);
        }
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

    /// Takes a slot whose connection cannot be closed out of circulation. Its permit is never returned.
    fn retire_stuck(&self, slot: TakenSlot<B>) {
        self.counters.stuck.fetch_add(1, AcqRel);
        self.out.lock().stuck.push(slot);
        self.emptied.notify(usize::MAX);
    }

    /// Returns a permit. If the pool is closed, a worker then closes the connection that came back with it.
    fn return_permit(&self, now: Instant) {
        self.permits.release(now);
        // Either this thread sees that the pool is closed, or the closing thread sees the permit: both change
        // one word.
        if self.permits.is_closed() {
            self.wind_up_soon();
        }
    }

    /// All numbers, under their public names.
    #[cfg(any(feature = "metrics", feature = "status"))]
    pub(crate) fn families(
        &self,
        stats: &Stats,
        signs: &crate::observe::health::Signs,
    ) -> Vec<crate::observe::families::Family> {
        crate::observe::families::families(crate::observe::families::Known {
            stats,
            signs,
            descriptors: self.backend.counted_descriptors(),
            ceiling: self.fd_ceiling(),
        })
    }

    pub(crate) fn stats(&self) -> Stats {
        let levels = self.parking.lot.levels();
        let mut stats = self.counters.snapshot();
        stats.max_connections = self.options.max_connections;
        stats.lent = levels.lent;
        stats.parked = levels.parked;
        stats.reclaims += levels.reclaims;
        let locks = self.locks.iter().flat_map(AgentLocks::all);
        let at_locks: usize = locks.map(|lock| lock.semaphore().waiting()).sum();
        stats.waiting = self.permits.waiting() + at_locks;
        stats.wait = self.slow_waits.snapshot(self.counters.unwaited());
        self.backend.observe(&mut stats);
        stats
    }

    /// Whether fewer slots are vacant than a worker keeps vacant.
    fn lacks_room(&self) -> bool {
        self.is_vacant_below(self.options.max_connections / SPARE)
    }

    /// Whether so few slots are vacant that a worker must close some. Only half as many as it keeps vacant: so it
    /// closes several at a time.
    fn runs_out_of_room(&self) -> bool {
        self.is_vacant_below((self.options.max_connections / SPARE).div_ceil(2))
    }

    fn is_vacant_below(&self, wanted: usize) -> bool {
        let max = self.options.max_connections;
        self.backend.is_per_agent() && max - self.counters.open.load(Acquire).min(max) < wanted
    }
}

impl<B: Backend> Permit<'_, B> {
    /// Leaves the permit with the current holder of the slot, who returns it in the end.
    fn pass_on(self) {
        std::mem::forget(self);
    }
}

impl<B: Backend> Drop for Permit<'_, B> {
    fn drop(&mut self) {
        self.0.return_permit(Instant::now());
    }
}
