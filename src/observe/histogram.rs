//! Histograms of durations: a recorder that many threads write to, and the snapshot that users read.
//! It knows nothing of what is measured.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Durations are counted in units of 64 ns, which is less than reading a clock takes.
const UNIT_BITS: u32 = 6;
/// Each doubling is divided into 8 buckets, so each bucket is at most 12.5 % wide.
const STEPS_BITS: u32 = 3;
const STEPS: u64 = 1 << STEPS_BITS;
/// Enough for 24 hours, the longest possible wait. Longer durations count in the last bucket.
const BUCKETS: usize = 312;
/// Threads that record at the same time should not share a cache line. With this many shards they rarely do.
const MAX_SHARDS: usize = 16;

/// How long each run of something took: [`Stats`](crate::Stats).
///
/// Durations are counted in buckets that are at most 12.5 % wide (and 64 ns at least), up to 24 hours.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    sum: Duration,
    max: Duration,
}

impl Histogram {
    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The sum of all durations.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// The longest duration, exactly.
    pub fn max(&self) -> Duration {
        self.max
    }

    /// The mean duration; zero if there is none.
    pub fn mean(&self) -> Duration {
        match self.count {
            0 => Duration::ZERO,
            n => Duration::from_nanos(saturate(self.sum.as_nanos() / u128::from(n))),
        }
    }

    /// The duration that a share `q` of all durations (0.0 to 1.0; 0.99 for the 99th percentile) did not
    /// exceed, rounded up to the end of its bucket; zero if there is none.
    pub fn quantile(&self, q: f64) -> Duration {
        quantile(self.buckets(), self.count, q).unwrap_or(self.max)
    }

    /// The buckets that are not empty, in order: the longest duration that counts in each, and its count.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        self.buckets
            .iter()
            .enumerate()
            .filter(|(_, n)| **n > 0)
            .map(|(i, n)| (end_of(i).min(self.max), *n))
    }

    /// The longest duration that is counted together with `duration`.
    #[cfg(feature = "status")]
    pub(crate) fn end_of_bucket(duration: Duration) -> Duration {
        end_of(bucket_of(saturate(duration.as_nanos())))
    }

    /// How many durations were not longer than `end`, which is the end of a bucket. More recorded durations never make
    /// it less.
    #[cfg(feature = "status")]
    pub(crate) fn count_up_to(&self, end: Duration) -> u64 {
        let buckets = self.buckets.iter().enumerate();
        buckets
            .take_while(|(bucket, _)| end_of(*bucket) <= end)
            .map(|(_, n)| n)
            .sum()
    }

    /// Counts `n` more durations of zero.
    pub(crate) fn add_zeros(&mut self, n: u64) {
        if self.buckets.is_empty() {
            self.buckets = vec![0; BUCKETS];
        }
        if let Some(first) = self.buckets.first_mut() {
            *first += n;
            self.count += n;
        }
    }

    /// The counts added since `earlier`, a snapshot of the same recorder: ends of buckets, and counts.
    pub(crate) fn since(&self, earlier: &Histogram) -> impl Iterator<Item = (Duration, u64)> {
        self.buckets.iter().enumerate().filter_map(|(i, n)| {
            let before = earlier.buckets.get(i).copied().unwrap_or(0);
            let more = n.saturating_sub(before);
            (more > 0).then(|| (end_of(i).min(self.max), more))
        })
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.count)
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.max)
            .finish_non_exhaustive()
    }
}

/// The end of the bucket that a share `q` of all `count` durations did not exceed. The buckets are in order.
pub(super) fn quantile<T>(
    buckets: impl IntoIterator<Item = (T, u64)>,
    count: u64,
    q: f64,
) -> Option<T> {
    let rank = (q.clamp(0.0, 1.0) * count as f64).ceil().max(1.0) as u64;
    let mut seen = 0;
    let found = buckets.into_iter().find(|(_, n)| {
        seen += n;
        seen >= rank
    });
    found.map(|(end, _)| end)
}

/// Records durations; a [`Histogram`] is a snapshot of it.
pub(crate) struct Recorder(Box<[Shard]>);

struct Shard {
    buckets: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
    max_nanos: AtomicU64,
}

impl Shard {
    fn new() -> Self {
        Shard {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            nanos: AtomicU64::new(0),
            max_nanos: AtomicU64::new(0),
        }
    }

    #[inline]
    fn record(&self, took: Duration, add: impl Fn(&AtomicU64, u64), max: impl Fn(&AtomicU64, u64)) {
        let nanos = saturate(took.as_nanos());
        if let Some(bucket) = self.buckets.get(bucket_of(nanos)) {
            add(bucket, 1);
        }
        add(&self.nanos, nanos);
        if nanos > self.max_nanos.load(Relaxed) {
            max(&self.max_nanos, nanos);
        }
    }
}

impl Recorder {
    /// For up to `threads` threads at a time.
    pub(crate) fn new(threads: usize) -> Self {
        Self::of(threads.clamp(1, MAX_SHARDS))
    }

    /// With a shard for each slot. Only the permit holder that has the slot writes its shard.
    pub(crate) fn by_slot(slots: usize) -> Self {
        Self::of(slots)
    }

    fn of(shards: usize) -> Self {
        Recorder((0..shards).map(|_| Shard::new()).collect())
    }

    /// `whose` spreads threads that record at the same time.
    pub(crate) fn record(&self, whose: usize, took: Duration) {
        let Some(shard) = self.0.get(whose % self.0.len()) else {
            return;
        };
        let add = |to: &AtomicU64, n| _ = to.fetch_add(n, Relaxed);
        let max = |of: &AtomicU64, n| _ = of.fetch_max(n, Relaxed);
        shard.record(took, add, max);
    }

    /// Like `record`, but without read-modify-writes. For the permit holder that has the slot.
    pub(crate) fn record_of_slot(&self, slot: usize, took: Duration) {
        let Some(shard) = self.0.get(slot) else {
            return;
        };
        let add = |to: &AtomicU64, n| to.store(to.load(Relaxed).wrapping_add(n), Relaxed);
        let max = |of: &AtomicU64, n| of.store(n, Relaxed);
        shard.record(took, add, max);
    }

    pub(crate) fn snapshot(&self) -> Histogram {
        let mut buckets = vec![0; BUCKETS];
        let (mut sum, mut max) = (Duration::ZERO, 0);
        for shard in &self.0 {
            for (total, bucket) in buckets.iter_mut().zip(&shard.buckets) {
                *total += bucket.load(Relaxed);
            }
            sum += Duration::from_nanos(shard.nanos.load(Relaxed));
            max = max.max(shard.max_nanos.load(Relaxed));
        }
        Histogram {
            count: buckets.iter().sum(),
            buckets,
            sum,
            max: Duration::from_nanos(max),
        }
    }
}

fn saturate(nanos: u128) -> u64 {
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

fn bucket_of(nanos: u64) -> usize {
    let units = nanos >> UNIT_BITS;
    let index = if units < STEPS {
        units
    } else {
        let octave = u64::from(units.ilog2() - STEPS_BITS);
        (octave + 1) * STEPS + ((units >> octave) & (STEPS - 1))
    };
    (index as usize).min(BUCKETS - 1)
}

/// The longest duration that counts in a bucket.
fn end_of(bucket: usize) -> Duration {
    let next = bucket as u64 + 1;
    let units = if next <= STEPS {
        next
    } else {
        let octave = next / STEPS - 1;
        (STEPS + next % STEPS) << octave
    };
    Duration::from_nanos((units << UNIT_BITS) - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_duration_counts_in_a_bucket_that_is_narrow_and_holds_it(nanos in 0..86_400_000_000_000_u64) {
            let bucket = bucket_of(nanos);
            let end = end_of(bucket).as_nanos() as u64;
            prop_assert!(nanos <= end);
            prop_assert!(end - nanos <= (nanos / 8).max(64));
            prop_assert!(bucket == 0 || nanos > end_of(bucket - 1).as_nanos() as u64);
        }
    }

    #[cfg(feature = "status")]
    proptest! {
        /// However the durations come: each count is exact, and none ever falls.
        #[test]
        fn counts_up_to_an_end_are_exact_and_never_fall(
            batches in prop::collection::vec(prop::collection::vec(0..100_000_000_000_u64, 0..20), 1..8),
            bounds in prop::collection::vec(0..100_000_000_000_u64, 1..20),
        ) {
            let ends: Vec<_> =
                bounds.into_iter().map(|nanos| Histogram::end_of_bucket(Duration::from_nanos(nanos))).collect();
            let recorder = Recorder::new(2);
            let mut recorded = Vec::new();
            for batch in batches {
                for nanos in batch {
                    recorder.record(nanos as usize, Duration::from_nanos(nanos));
                    recorded.push(Duration::from_nanos(nanos));
                }
                let histogram = recorder.snapshot();
                for &end in &ends {
                    let exact = recorded.iter().filter(|took| **took <= end).count();
                    prop_assert_eq!(histogram.count_up_to(end), exact as u64);
                }
            }
        }
    }

    #[test]
    fn each_slot_is_counted_apart() {
        let recorder = Recorder::by_slot(40);
        std::thread::scope(|scope| {
            for slot in [0, 16, 32] {
                let recorder = &recorder;
                scope.spawn(move || {
                    for _ in 0..1_000_000 {
                        recorder.record_of_slot(slot, Duration::from_micros(1));
                    }
                });
            }
        });
        assert_eq!(recorder.snapshot().count(), 3_000_000);
    }

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        let recorder = Recorder::new(4);
        for i in 1..=1000 {
            recorder.record(i, Duration::from_micros(i as u64));
        }
        let mut histogram = recorder.snapshot();
        assert_eq!(histogram.count(), 1000);
        assert_eq!(histogram.max(), Duration::from_millis(1));
        assert_eq!(histogram.sum(), Duration::from_micros(500_500));
        assert_eq!(histogram.mean(), Duration::from_nanos(500_500));
        for (q, micros) in [(0.0, 1), (0.5, 500), (0.99, 990), (1.0, 1000)] {
            let found = histogram.quantile(q).as_nanos() as f64 / 1000.0;
            let least = micros as f64;
            assert!(
                found >= least && found <= least * 1.125 + 0.1,
                "{q} {found}"
            );
        }
        histogram.add_zeros(3000);
        assert_eq!(histogram.count(), 4000);
        assert!(histogram.quantile(0.5) < Duration::from_micros(1));
    }

    #[test]
    fn nothing_recorded_is_zero_and_nothing_is_too_long() {
        assert_eq!(Histogram::default().quantile(0.5), Duration::ZERO);
        assert_eq!(Histogram::default().mean(), Duration::ZERO);
        let recorder = Recorder::new(0);
        recorder.record(7, Duration::MAX);
        assert_eq!(recorder.snapshot().count(), 1);
        assert_eq!(recorder.snapshot().quantile(0.5), end_of(BUCKETS - 1));
    }
}
