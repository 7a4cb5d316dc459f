//! Private counters, and the public snapshot made of them.
//! It counts what it is told and decides nothing.

use std::fmt;
use std::panic::Location;
use std::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use std::time::Duration;

use super::call_site::Shown;
use super::histogram::{Histogram, Recorder};
use super::reserved::is_of_pool;

/// What a pool is doing, and what it has done since it was built: [`Pool::stats`](crate::Pool::stats).
///
/// The first group are levels at the moment of the call. They are read one after the other while other
/// threads work, so they fit together exactly only in a quiet pool. The other numbers only grow, except where
/// a field says that it is a level.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// The size of the pool: connections that may be open at once.
    pub max_connections: usize,
    /// Connections that are open, or being opened or closed, at this moment. They include `lent`, `parked`,
    /// `stuck` and free ones.
    pub open: usize,
    /// Database files that have an open connection.
    pub files: usize,
    /// Connections lent.
    pub lent: usize,
    /// Idle connections kept for their agents.
    pub parked: usize,
    /// Connections that could not be closed because something still uses them, most likely a statement given
    /// to [`std::mem::forget`]. Each keeps its slot and is never lent again.
    pub stuck: usize,
    /// Callers that wait for a connection, or for their agent's only one.
    pub waiting: usize,

    /// Leases given.
    pub leases: u64,
    /// Leases served with the agent's own parked connection.
    pub hits: u64,
    /// Leases that took a free connection, reclaimed one or opened one.
    pub misses: u64,
    /// Calls that ended in [`Error::Exhausted`](crate::Error::Exhausted).
    pub timeouts: u64,
    /// Parked connections that another agent took.
    pub reclaims: u64,
    /// Parked connections freed because there were more agents than `cached_agents`.
    pub evicted_by_size: u64,
    /// Parked connections freed because `idle_timeout` had passed.
    pub evicted_by_idle: u64,
    /// Parked connections freed by [`Pool::evict`](crate::Pool::evict).
    pub evicted_by_call: u64,
    /// Connections reset before another agent got them.
    pub resets: u64,
    /// Connections opened.
    pub opens: u64,
    /// Attempts to open a connection that failed.
    pub open_failures: u64,
    /// Connections closed.
    pub closes: u64,
    /// Connections that reported an error when they were closed.
    pub close_failures: u64,
    /// Connections closed because a reset could not clean them.
    pub discarded_by_reset: u64,
    /// Connections closed because their file had been replaced.
    pub discarded_by_file: u64,
    /// Connections closed because they were older than `max_lifetime`.
    pub discarded_by_age: u64,
    /// Connections closed because their lease ended in a fault, or in
    /// [`Lease::discard`](crate::Lease::discard).
    pub discarded_by_lease: u64,
    /// Questions to a server whether a connection is sound. None for SQLite.
    pub probes: u64,
    /// Connections closed because the server, or their manager, said that they are not sound.
    pub discarded_by_probe: u64,
    /// Leases held longer than `overdue_after`.
    pub overdue: u64,
    /// Leases held longer than `max_hold`. From then on, the pool interrupted what they ran, if they ran anything.
    pub interrupted: u64,
    /// Leases of async tasks held longer than `slow_hold`.
    pub slow_holds: u64,

    /// Writes that wait for their turn. A level.
    pub writes_waiting: usize,
    /// Pages in the write-ahead log after the last commit; 0 if there is none. A level.
    pub wal_pages: usize,
    /// The same in bytes, as the log is in its file. A level.
    pub wal_bytes: u64,
    /// Writes whose transaction committed: calls of [`Pool::write`](crate::Pool::write),
    /// [`Lease::write`](crate::Lease::write) and the like. For `Pool::write`, this includes work that
    /// returned an error, so that its own savepoint was rolled back.
    pub writes: u64,
    /// Writes that were refused, waited too long, or whose transaction did not commit.
    pub write_failures: u64,
    /// Transactions that contained writes. `writes / write_groups` is the mean size of a group.
    pub write_groups: u64,
    /// Checkpoints that the pool ran.
    pub checkpoints: u64,
    /// Checkpoints that the pool ran although another process should run them, because the log had become too
    /// long: [`Builder::external_checkpoints`](crate::Builder::external_checkpoints).
    pub emergency_checkpoints: u64,
    /// Times that checkpoints were blocked by an open read transaction.
    pub checkpoints_pinned: u64,

    /// How long calls waited for their turn, whether they then got a connection or gave up. Calls that did
    /// not wait count as zero.
    pub wait: Histogram,
    /// How long the leases that have ended were held.
    pub hold: Histogram,
    /// How long it took to open each connection that was opened, `setup` and callbacks included.
    pub open_time: Histogram,
    /// How long calls of [`Pool::write`](crate::Pool::write) and the like took, from the call to the answer.
    pub write: Histogram,
}

impl Stats {
    /// Connections that are open and free: neither lent nor parked nor stuck.
    pub fn free(&self) -> usize {
        self.open
            .saturating_sub(self.lent + self.parked + self.stuck)
    }

    /// Parked connections that were freed for any reason except a reclaim.
    pub fn evictions(&self) -> u64 {
        self.evicted_by_size + self.evicted_by_idle + self.evicted_by_call
    }
}

/// A lease that is held: [`Pool::holders`](crate::Pool::holders), [`Error::Exhausted`](crate::Error::Exhausted).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// The agent.
    pub agent: String,
    /// Where the lease was taken. For a lease that an extractor of a web framework took: where the layer, or the
    /// application data, was made.
    pub borrowed_at: &'static Location<'static>,
    /// Method and route of the request that the lease serves (`GET /notes/{id}`), if an extractor gave the lease or its
    /// [`Agent`](crate::Agent), and the framework knows the route.
    pub request: Option<&'static str>,
    /// How long it has been held.
    pub age: Duration,
}

impl Holder {
    /// Whether the pool itself holds the connection, to write a group, run a checkpoint, back up or vacuum. `agent` then
    /// says what for.
    pub fn is_pool(&self) -> bool {
        is_of_pool(&self.agent)
    }
}

/// A caller that waits for a connection: [`Pool::waiting`](crate::Pool::waiting).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waiting {
    /// The agent.
    pub agent: String,
    /// Where the lease was asked for.
    pub asked_at: &'static Location<'static>,
    /// Method and route of the request that waits: see [`Holder::request`].
    pub request: Option<&'static str>,
    /// How long it has been waiting.
    pub age: Duration,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, request) = (self.borrowed_at, self.request);
        let place = Shown { line, request };
        write!(f, "{:?} since {:?} at {place}", self.agent, self.age)
    }
}

/// The counters behind [`Stats`]. All are statistics; no decision depends on them, except that
/// [`Pool::close`](crate::Pool::close) waits on `open`.
pub(crate) struct Counters {
    /// By slot.
    leases: Box<[Leases]>,
    /// How long leases were held.
    pub(crate) hold: Recorder,
    /// How long openings took.
    pub(crate) open_time: Recorder,
    /// How long writes took.
    pub(crate) write: Recorder,
    pub(crate) open: AtomicUsize,
    pub(crate) stuck: AtomicUsize,
    pub(crate) timeouts: AtomicU64,
    /// Reclaims that made room for later agents.
    pub(crate) made_room: AtomicU64,
    pub(crate) evicted_by_size: AtomicU64,
    pub(crate) evicted_by_idle: AtomicU64,
    pub(crate) evicted_by_call: AtomicU64,
    pub(crate) resets: Sharded,
    pub(crate) opens: AtomicU64,
    pub(crate) open_failures: AtomicU64,
    pub(crate) closes: AtomicU64,
    pub(crate) close_failures: AtomicU64,
    pub(crate) discarded_by_reset: AtomicU64,
    pub(crate) discarded_by_file: AtomicU64,
    pub(crate) discarded_by_age: AtomicU64,
    pub(crate) discarded_by_lease: AtomicU64,
    pub(crate) discarded_by_probe: AtomicU64,
    pub(crate) overdue: AtomicU64,
    pub(crate) interrupted: AtomicU64,
    pub(crate) slow_holds: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) write_failures: AtomicU64,
    pub(crate) write_groups: AtomicU64,
    pub(crate) checkpoints: AtomicU64,
    pub(crate) emergency_checkpoints: AtomicU64,
    pub(crate) checkpoints_pinned: AtomicU64,
}

/// The leases of one slot. Only the permit holder that has the slot writes them.
#[derive(Default)]
#[repr(align(128))]
struct Leases {
    hits: AtomicU64,
    misses: AtomicU64,
    /// Those of them whose callers waited. Never behind `hits` and `misses`.
    waited: AtomicU64,
}

/// A counter that many threads add to at once, each on its own cache line.
#[derive(Default)]
pub(crate) struct Sharded([Padded; 16]);

/// Aligned to the lines that processors fetch at once.
#[derive(Default)]
#[repr(align(128))]
struct Padded(AtomicU64);

impl Sharded {
    /// `whose` spreads threads that count at the same time.
    pub(crate) fn count(&self, whose: usize) {
        if let Some(shard) = self.0.get(whose % 16) {
            count(&shard.0);
        }
    }

    fn sum(&self) -> u64 {
        self.0.iter().map(|shard| shard.0.load(Relaxed)).sum()
    }
}

/// Adds one to a counter. No synchronisation relies on it.
pub(crate) fn count(counter: &AtomicU64) {
    add(counter, 1);
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}

impl Counters {
    /// For a pool of `slots` slots.
    pub(crate) fn new(slots: usize) -> Self {
        Counters {
            leases: (0..slots).map(|_| Leases::default()).collect(),
            hold: Recorder::by_slot(slots),
            // An opening takes far longer than a shared cache line costs.
            open_time: Recorder::new(1),
            write: Recorder::new(slots),
            open: AtomicUsize::default(),
            stuck: AtomicUsize::default(),
            timeouts: AtomicU64::default(),
            made_room: AtomicU64::default(),
            evicted_by_size: AtomicU64::default(),
            evicted_by_idle: AtomicU64::default(),
            evicted_by_call: AtomicU64::default(),
            resets: Sharded::default(),
            opens: AtomicU64::default(),
            open_failures: AtomicU64::default(),
            closes: AtomicU64::default(),
            close_failures: AtomicU64::default(),
            discarded_by_reset: AtomicU64::default(),
            discarded_by_file: AtomicU64::default(),
            discarded_by_age: AtomicU64::default(),
            discarded_by_lease: AtomicU64::default(),
            discarded_by_probe: AtomicU64::default(),
            overdue: AtomicU64::default(),
            interrupted: AtomicU64::default(),
            slow_holds: AtomicU64::default(),
            writes: AtomicU64::default(),
            write_failures: AtomicU64::default(),
            write_groups: AtomicU64::default(),
            checkpoints: AtomicU64::default(),
            emergency_checkpoints: AtomicU64::default(),
            checkpoints_pinned: AtomicU64::default(),
        }
    }

    /// Counts a lease of this slot, whose caller has waited or not. For the permit holder that has the slot.
    #[inline]
    pub(crate) fn count_lease(&self, slot: usize, hit: bool, waited: bool) {
        let Some(leases) = self.leases.get(slot) else {
            return;
        };
        let add_one = |counter: &AtomicU64, ordering| {
            counter.store(counter.load(Relaxed).wrapping_add(1), ordering);
        };
        if waited {
            add_one(&leases.waited, Relaxed);
        }
        let counter = if hit { &leases.hits } else { &leases.misses };
        // A snapshot that sees this lease sees its wait, too.
        add_one(counter, Release);
    }

    /// Leases without a wait: never more than there are, and fewer only while others are counted.
    pub(crate) fn unwaited(&self) -> u64 {
        let of_slot = |slot: &Leases| {
            let leases = slot.hits.load(Acquire) + slot.misses.load(Acquire);
            leases.saturating_sub(slot.waited.load(Relaxed))
        };
        self.leases.iter().map(of_slot).sum()
    }

    /// How many leases were taken so far.
    pub(crate) fn leases(&self) -> u64 {
        let of_slot = |slot: &Leases| slot.hits.load(Relaxed) + slot.misses.load(Relaxed);
        self.leases.iter().map(of_slot).sum()
    }

    /// The counters' part of a snapshot; the pool adds what it can see itself.
    pub(crate) fn snapshot(&self) -> Stats {
        let sum = |of: fn(&Leases) -> &AtomicU64| -> u64 {
            self.leases.iter().map(|l| of(l).load(Relaxed)).sum()
        };
        let (hits, misses) = (sum(|l| &l.hits), sum(|l| &l.misses));
        Stats {
            hits,
            misses,
            leases: hits + misses,
            open: self.open.load(Relaxed),
            stuck: self.stuck.load(Relaxed),
            timeouts: self.timeouts.load(Relaxed),
            reclaims: self.made_room.load(Relaxed),
            evicted_by_size: self.evicted_by_size.load(Relaxed),
            evicted_by_idle: self.evicted_by_idle.load(Relaxed),
            evicted_by_call: self.evicted_by_call.load(Relaxed),
            resets: self.resets.sum(),
            opens: self.opens.load(Relaxed),
            open_failures: self.open_failures.load(Relaxed),
            closes: self.closes.load(Relaxed),
            close_failures: self.close_failures.load(Relaxed),
            discarded_by_reset: self.discarded_by_reset.load(Relaxed),
            discarded_by_file: self.discarded_by_file.load(Relaxed),
            discarded_by_age: self.discarded_by_age.load(Relaxed),
            discarded_by_lease: self.discarded_by_lease.load(Relaxed),
            probes: 0,
            discarded_by_probe: self.discarded_by_probe.load(Relaxed),
            overdue: self.overdue.load(Relaxed),
            interrupted: self.interrupted.load(Relaxed),
            slow_holds: self.slow_holds.load(Relaxed),
            writes: self.writes.load(Relaxed),
            write_failures: self.write_failures.load(Relaxed),
            write_groups: self.write_groups.load(Relaxed),
            checkpoints: self.checkpoints.load(Relaxed),
            emergency_checkpoints: self.emergency_checkpoints.load(Relaxed),
            checkpoints_pinned: self.checkpoints_pinned.load(Relaxed),
            hold: self.hold.snapshot(),
            open_time: self.open_time.snapshot(),
            write: self.write.snapshot(),
            ..Stats::default()
        }
    }
}
