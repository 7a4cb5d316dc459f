//! Private counters, and the public snapshot made of them.
//! It counts what it is told and decides nothing.

use std::fmt;
use std::panic::Location;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use super::histogram::{Histogram, Recorder};

/// What a pool is doing, and has done since it was built: [`Pool::stats`](crate::Pool::stats).
///
/// The first group are levels at the moment of the call, read one after the other while others work,
/// so that they fit together exactly only in a quiet pool. The rest only ever grow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// The size of the pool: connections that may be open at once.
    pub max_connections: usize,
    /// Connections open, or being opened or closed, at this moment. `lent`, `parked`, `stuck` and
    /// those free in r2d2 are all among them.
    pub open: usize,
    /// Database files that connections are open to.
    pub files: usize,
    /// Connections lent.
    pub lent: usize,
    /// Idle connections kept for their agents.
    pub parked: usize,
    /// Connections that could not be closed: something still uses them, most likely a statement
    /// given to [`std::mem::forget`]. Each keeps its slot, and is never lent again.
    pub stuck: usize,
    /// Callers waiting for a connection, or for an agent's own.
    pub waiting: usize,

    /// Leases given.
    pub leases: u64,
    /// Leases served with the agent's own parked connection.
    pub hits: u64,
    /// Leases that took a free connection, reclaimed one or opened one.
    pub misses: u64,
    /// Calls that ended in [`Error::Exhausted`](crate::Error::Exhausted).
    pub timeouts: u64,
    /// Parked connections given up because another agent needed one.
    pub reclaims: u64,
    /// Parked connections given back because more agents were cached than `cached_agents`.
    pub evicted_by_size: u64,
    /// Parked connections given back because `idle_timeout` had passed.
    pub evicted_by_idle: u64,
    /// Parked connections given back by [`Pool::evict`](crate::Pool::evict).
    pub evicted_by_call: u64,
    /// Connections cleaned before another agent got them.
    pub resets: u64,
    /// Connections opened.
    pub opens: u64,
    /// Attempts to open a connection that failed.
    pub open_failures: u64,
    /// Connections closed.
    pub closes: u64,
    /// Connections whose closing reported an error.
    pub close_failures: u64,
    /// Closed because a reset could not clean them.
    pub discarded_by_reset: u64,
    /// Closed because the file under them had been replaced.
    pub discarded_by_file: u64,
    /// Closed because they were older than `max_lifetime`.
    pub discarded_by_age: u64,
    /// Closed because their lease ended in a fault, or in [`Lease::discard`](crate::Lease::discard).
    pub discarded_by_lease: u64,
    /// Leases held longer than `overdue_after`.
    pub overdue: u64,

    /// Writes that wait for their turn. A level.
    pub writes_waiting: usize,
    /// Pages in the write-ahead log after the last commit; 0 if there is none. A level.
    pub wal_pages: usize,
    /// Calls of [`Pool::write`](crate::Pool::write), [`Lease::write`](crate::Lease::write) and their like whose
    /// transaction was committed; with `Pool::write`, those included whose work returned an error.
    pub writes: u64,
    /// Calls that were refused, waited too long, or whose transaction was not committed.
    pub write_failures: u64,
    /// Transactions of which writes were part: `writes` by `write_groups` is the mean size of a group.
    pub write_groups: u64,
    /// Checkpoints that the pool has run.
    pub checkpoints: u64,
    /// Checkpoints that the pool has run though another process is to run them, since the log had become too long:
    /// [`Builder::external_checkpoints`](crate::Builder::external_checkpoints).
    pub emergency_checkpoints: u64,
    /// Times that the log was found to be held by somebody who reads from it.
    pub checkpoints_pinned: u64,

    /// How long calls waited for their turn, whether they got a connection then or gave up. Those that
    /// need not wait count as zero.
    pub wait: Histogram,
    /// How long leases were held that have ended.
    pub hold: Histogram,
    /// How long calls of [`Pool::write`](crate::Pool::write) and its like took, from the call to the answer.
    pub write: Histogram,
}

impl Stats {
    /// Connections that are open and nobody's, free for the next.
    pub fn free(&self) -> usize {
        self.open
            .saturating_sub(self.lent + self.parked + self.stuck)
    }

    /// Parked connections given back for any reason but a reclaim.
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
    /// Where the lease was taken.
    pub borrowed_at: &'static Location<'static>,
    /// For how long it has been held.
    pub age: Duration,
}

/// A caller that waits for a connection: [`Pool::waiting`](crate::Pool::waiting).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waiting {
    /// The agent.
    pub agent: String,
    /// Where the lease was asked for.
    pub asked_at: &'static Location<'static>,
    /// For how long it has been waiting.
    pub age: Duration,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} since {:?} at {}",
            self.agent, self.age, self.borrowed_at
        )
    }
}

/// The counters behind [`Stats`]. All are statistics: nothing is decided on their values but by
/// `open`, which only [`Pool::close`](crate::Pool::close) waits on.
pub(crate) struct Counters {
    /// By slot.
    leases: Box<[Leases]>,
    /// How long leases were held.
    pub(crate) hold: Recorder,
    /// How long writes took.
    pub(crate) write: Recorder,
    pub(crate) open: AtomicUsize,
    pub(crate) stuck: AtomicUsize,
    pub(crate) timeouts: AtomicU64,
    /// Reclaims that made room for agents to come.
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
    pub(crate) overdue: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) write_failures: AtomicU64,
    pub(crate) write_groups: AtomicU64,
    pub(crate) checkpoints: AtomicU64,
    pub(crate) emergency_checkpoints: AtomicU64,
    pub(crate) checkpoints_pinned: AtomicU64,
}

/// The leases that were given of one slot. Written by whoever has the slot in hand, and nobody else.
#[derive(Default)]
#[repr(align(128))]
struct Leases {
    hits: AtomicU64,
    misses: AtomicU64,
}

/// A counter that many threads add to at once, each where it disturbs no other.
#[derive(Default)]
pub(crate) struct Sharded([Padded; 16]);

/// As long as what processors fetch at once.
#[derive(Default)]
#[repr(align(128))]
struct Padded(AtomicU64);

impl Sharded {
    /// `whose` spreads those who count at the same time.
    pub(crate) fn count(&self, whose: usize) {
        if let Some(shard) = self.0.get(whose % 16) {
            count(&shard.0);
        }
    }

    fn sum(&self) -> u64 {
        self.0.iter().map(|shard| shard.0.load(Relaxed)).sum()
    }
}

/// Adds one to a counter that nothing is synchronised by.
pub(crate) fn count(counter: &AtomicU64) {
    add(counter, 1);
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}

impl Counters {
    /// For a pool of so many slots.
    pub(crate) fn new(slots: usize) -> Self {
        Counters {
            leases: (0..slots).map(|_| Leases::default()).collect(),
            hold: Recorder::by_slot(slots),
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
            overdue: AtomicU64::default(),
            writes: AtomicU64::default(),
            write_failures: AtomicU64::default(),
            write_groups: AtomicU64::default(),
            checkpoints: AtomicU64::default(),
            emergency_checkpoints: AtomicU64::default(),
            checkpoints_pinned: AtomicU64::default(),
        }
    }

    /// A lease of this slot was given. For whoever has the slot in hand.
    #[inline]
    pub(crate) fn count_lease(&self, slot: usize, hit: bool) {
        let Some(leases) = self.leases.get(slot) else {
            return;
        };
        let counter = if hit { &leases.hits } else { &leases.misses };
        counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// The counters' part of a snapshot; the pool fills in what it can see itself.
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
            overdue: self.overdue.load(Relaxed),
            writes: self.writes.load(Relaxed),
            write_failures: self.write_failures.load(Relaxed),
            write_groups: self.write_groups.load(Relaxed),
            checkpoints: self.checkpoints.load(Relaxed),
            emergency_checkpoints: self.emergency_checkpoints.load(Relaxed),
            checkpoints_pinned: self.checkpoints_pinned.load(Relaxed),
            hold: self.hold.snapshot(),
            write: self.write.snapshot(),
            ..Stats::default()
        }
    }
}
