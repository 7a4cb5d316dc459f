//! Waits for a permit: how long all of them were, and the slowest ones of late.
//! It is not on the fast path.

use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::claim::Claim;
use super::histogram::{Histogram, Recorder};

/// How many slow waits are remembered, and for how long.
const SLOWEST: usize = 10;
const REMEMBERED: Duration = Duration::from_secs(10 * 60);

/// A long wait that is over: [`Pool::slowest_waits`](crate::Pool::slowest_waits).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlowWait {
    /// The agent.
    pub agent: String,
    /// Where the lease was asked for.
    pub asked_at: &'static Location<'static>,
    /// Method and route of the request that waited: see [`Holder::request`](crate::Holder::request).
    pub request: Option<&'static str>,
    /// How long it waited.
    pub waited: Duration,
    /// How long ago the wait ended.
    pub ago: Duration,
    /// Whether it got a connection, or gave up.
    pub served: bool,
}

pub(crate) struct SlowWaits {
    histogram: Recorder,
    /// The most leases without a wait that a snapshot has seen.
    unwaited: AtomicU64,
    /// The slowest first.
    slowest: Mutex<Vec<Wait>>,
    /// Waits of at most this many nanoseconds are not among the slowest. Zero while fewer are remembered, or
    /// may be: remembered waits expire.
    bar: AtomicU64,
}

struct Wait {
    claim: Claim,
    waited: Duration,
    ended: Instant,
    served: bool,
}

impl SlowWaits {
    pub(crate) fn new() -> Self {
        SlowWaits {
            // A caller that waited has lost more time than a shared cache line costs.
            histogram: Recorder::new(1),
            unwaited: AtomicU64::new(0),
            slowest: Mutex::default(),
            bar: AtomicU64::new(0),
        }
    }

    pub(crate) fn record(&self, waited: Duration, served: bool, claim: impl FnOnce() -> Claim) {
        let ended = Instant::now();
        self.histogram.record(0, waited);
        let nanos = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        if nanos <= self.bar.load(Relaxed) {
            return;
        }
        let claim = claim();
        let mut slowest = self.slowest.lock();
        slowest.retain(|wait| ended.saturating_duration_since(wait.ended) < REMEMBERED);
        let place = slowest.partition_point(|wait| wait.waited >= waited);
        if place < SLOWEST {
            slowest.truncate(SLOWEST - 1);
            slowest.insert(
                place,
                Wait {
                    claim,
                    waited,
                    ended,
                    served,
                },
            );
        }
        self.set_bar(&slowest);
    }

    /// Forgets expired waits. Called regularly.
    pub(crate) fn forget(&self, now: Instant) {
        let mut slowest = self.slowest.lock();
        slowest.retain(|wait| now.saturating_duration_since(wait.ended) < REMEMBERED);
        self.set_bar(&slowest);
    }

    fn set_bar(&self, slowest: &[Wait]) {
        let last = slowest
            .get(SLOWEST - 1)
            .map_or(Duration::ZERO, |wait| wait.waited);
        let nanos = u64::try_from(last.as_nanos()).unwrap_or(u64::MAX);
        self.bar.store(nanos, Relaxed);
    }

    pub(crate) fn slowest(&self, now: Instant) -> Vec<SlowWait> {
        let slowest = self.slowest.lock();
        slowest
            .iter()
            .map(|wait| SlowWait {
                agent: wait.claim.agent.as_ref().to_owned(),
                asked_at: wait.claim.place.line,
                request: wait.claim.place.request(),
                waited: wait.waited,
                ago: now.saturating_duration_since(wait.ended),
                served: wait.served,
            })
            .filter(|wait| wait.ago < REMEMBERED)
            .collect()
    }

    /// The waits of all calls. The `unwaited` leases count as zero: a number that may be too small while leases are
    /// counted. No bucket of a later snapshot has less.
    pub(crate) fn snapshot(&self, unwaited: u64) -> Histogram {
        let mut histogram = self.histogram.snapshot();
        let before = self.unwaited.fetch_max(unwaited, Relaxed);
        histogram.add_zeros(unwaited.max(before));
        histogram
    }
}
