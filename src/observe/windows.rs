//! Windows: what a pool did in the last 10 seconds, the last minute and the last 5 minutes.
//! They are made of snapshots that the maintenance thread takes once a second; no lease does any work for them.
//!
//! The last 20 seconds are kept by the second, and what is older in parts of 10 seconds, with coarser histograms. A
//! histogram keeps only the buckets that are not empty, so that all of it takes some ten kilobytes, and at most about
//! 300.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::histogram::{Histogram, quantile};
use super::stats::Stats;

/// How often a snapshot is taken.
const EVERY: Duration = Duration::from_secs(1);
/// Parts of a second each, of which the older half becomes one coarse part when there are so many.
const FINE: usize = 20;
/// Coarse parts. With the fine ones they reach back more than five minutes.
const COARSE: usize = 31;

/// What a pool did lately: [`Pool::windows`](crate::Pool::windows).
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Windows {
    /// The last 10 seconds.
    pub ten_seconds: Window,
    /// The last minute.
    pub minute: Window,
    /// The last 5 minutes.
    pub five_minutes: Window,
}

/// What a pool did in a stretch of time that ended at most a second ago.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Window {
    /// How much time it covers: up to 10 seconds more than its name says, and less in a pool that is younger.
    pub length: Duration,
    /// Leases given.
    pub leases: u64,
    /// Leases served with the agent's own parked connection.
    pub hits: u64,
    /// Calls that gave up waiting.
    pub timeouts: u64,
    /// Writes whose transaction committed.
    pub writes: u64,
    /// Writes that failed.
    pub write_failures: u64,
    /// Transactions that contained writes.
    pub write_groups: u64,
    /// Connections opened.
    pub opens: u64,
    /// Attempts to open a connection that failed.
    pub open_failures: u64,
    /// Checkpoints that the pool ran.
    pub checkpoints: u64,
    /// Leases that became overdue.
    pub overdue: u64,
    /// How long calls waited for a connection. Calls that did not wait count as zero.
    pub wait: Spread,
    /// How long the leases that ended were held.
    pub hold: Spread,
    /// How long writes took.
    pub write: Spread,
}

/// How durations are spread: those that half of them, 90 % and 99 % did not exceed, and the longest. Each is rounded up,
/// by 12.5 % at most; by 40 % where it is more than 20 seconds ago.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Spread {
    /// How many durations there were.
    pub count: u64,
    /// Their sum.
    pub sum: Duration,
    /// The median.
    pub p50: Duration,
    /// The 90th percentile.
    pub p90: Duration,
    /// The 99th percentile.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

impl Window {
    /// How many of `n` there were a second; zero in a pool that is younger than a second.
    pub fn rate(&self, n: u64) -> f64 {
        match self.length.is_zero() {
            true => 0.0,
            false => n as f64 / self.length.as_secs_f64(),
        }
    }

    /// The share of leases that found the agent's own connection, 0.0 to 1.0. `None` without a lease.
    pub fn hit_rate(&self) -> Option<f64> {
        (self.leases > 0).then(|| self.hits as f64 / self.leases as f64)
    }

    /// How many writes a transaction held on average. `None` without a write.
    pub fn group_size(&self) -> Option<f64> {
        (self.write_groups > 0).then(|| self.writes as f64 / self.write_groups as f64)
    }

    /// How many connections were lent on average: the time that leases were held, divided by the length.
    pub fn lent(&self) -> f64 {
        match self.length.is_zero() {
            true => 0.0,
            false => self.hold.sum.as_secs_f64() / self.length.as_secs_f64(),
        }
    }
}

/// Keeps what the windows are made of.
pub(crate) struct Recent(Mutex<State>);

struct State {
    /// When the last snapshot was taken.
    at: Instant,
    last: Stats,
    /// The newest last.
    fine: VecDeque<Part>,
    coarse: VecDeque<Part>,
}

/// What happened between two snapshots.
#[derive(Clone, Default)]
struct Part {
    length: Duration,
    counts: Counts,
    wait: Sparse,
    hold: Sparse,
    write: Sparse,
}

/// In the order of [`counts`].
type Counts = [u64; 10];

/// A histogram without its empty buckets.
#[derive(Clone, Default)]
struct Sparse {
    /// The end of each bucket in nanoseconds, and its count, in order.
    buckets: Vec<(u64, u64)>,
    sum: Duration,
}

impl Recent {
    pub(crate) fn new(now: Instant) -> Self {
        Recent(Mutex::new(State {
            at: now,
            last: Stats::default(),
            fine: VecDeque::new(),
            coarse: VecDeque::new(),
        }))
    }

    /// Takes a snapshot if the last one is a second old. Called regularly.
    pub(crate) fn tick(&self, now: Instant, stats: impl FnOnce() -> Stats) {
        if !self.0.lock().is_due(now) {
            return;
        }
        // Taken without the lock: it looks at the whole pool.
        let stats = stats();
        let mut state = self.0.lock();
        if state.is_due(now) {
            state.add(now, stats);
        }
    }

    pub(crate) fn windows(&self) -> Windows {
        let state = self.0.lock();
        Windows {
            ten_seconds: state.window(Duration::from_secs(10)),
            minute: state.window(Duration::from_secs(60)),
            five_minutes: state.window(Duration::from_secs(300)),
        }
    }

    pub(crate) fn ten_seconds(&self) -> Window {
        self.0.lock().window(Duration::from_secs(10))
    }
}

impl State {
    fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) >= EVERY
    }

    fn add(&mut self, now: Instant, stats: Stats) {
        let (before, after) = (counts(&self.last), counts(&stats));
        let mut part = Part {
            length: now.saturating_duration_since(self.at),
            counts: Counts::default(),
            wait: Sparse::between(&self.last.wait, &stats.wait),
            hold: Sparse::between(&self.last.hold, &stats.hold),
            write: Sparse::between(&self.last.write, &stats.write),
        };
        for (count, (before, after)) in part.counts.iter_mut().zip(before.iter().zip(after)) {
            *count = after.saturating_sub(*before);
        }
        self.at = now;
        self.last = stats;
        self.fine.push_back(part);
        if self.fine.len() < FINE {
            return;
        }
        let mut coarse = Part::default();
        for part in self.fine.drain(..FINE / 2) {
            coarse.add(&part);
        }
        coarse.coarsen();
        if self.coarse.len() >= COARSE {
            self.coarse.pop_front();
        }
        self.coarse.push_back(coarse);
    }

    /// The newest parts that together cover at least `length`.
    fn window(&self, length: Duration) -> Window {
        let mut whole = Part::default();
        // Snapshots come somewhat later than once a second.
        let enough = length.saturating_sub(EVERY / 2);
        for part in self.fine.iter().rev().chain(self.coarse.iter().rev()) {
            if whole.length >= enough {
                break;
            }
            whole.add(part);
        }
        whole.window()
    }
}

fn counts(stats: &Stats) -> Counts {
    [
        stats.leases,
        stats.hits,
        stats.timeouts,
        stats.writes,
        stats.write_failures,
        stats.write_groups,
        stats.opens,
        stats.open_failures,
        stats.checkpoints,
        stats.overdue,
    ]
}

impl Part {
    fn add(&mut self, other: &Part) {
        self.length += other.length;
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.wait.add(&other.wait);
        self.hold.add(&other.hold);
        self.write.add(&other.write);
    }

    fn coarsen(&mut self) {
        for sparse in [&mut self.wait, &mut self.hold, &mut self.write] {
            sparse.coarsen();
        }
    }

    fn window(&self) -> Window {
        let [
            leases,
            hits,
            timeouts,
            writes,
            write_failures,
            write_groups,
            opens,
            open_failures,
            checkpoints,
            overdue,
        ] = self.counts;
        Window {
            length: self.length,
            leases,
            hits,
            timeouts,
            writes,
            write_failures,
            write_groups,
            opens,
            open_failures,
            checkpoints,
            overdue,
            wait: self.wait.spread(),
            hold: self.hold.spread(),
            write: self.write.spread(),
        }
    }
}

impl Sparse {
    /// What was added between two snapshots of the same histogram.
    fn between(earlier: &Histogram, later: &Histogram) -> Sparse {
        let added = later.since(earlier);
        let buckets = added.map(|(end, n)| (nanos(end), n)).collect();
        Sparse {
            buckets,
            sum: later.sum().saturating_sub(earlier.sum()),
        }
    }

    fn add(&mut self, other: &Sparse) {
        self.sum += other.sum;
        if self.buckets.is_empty() {
            self.buckets.clone_from(&other.buckets);
            return;
        }
        self.buckets.extend_from_slice(&other.buckets);
        self.buckets.sort_unstable_by_key(|(end, _)| *end);
        self.join();
    }

    /// Makes one bucket of neighbours that end alike.
    fn join(&mut self) {
        self.buckets.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            kept.1 += if same { next.1 } else { 0 };
            same
        });
    }

    /// Rounds the ends of the buckets up, so that there are four to a doubling.
    fn coarsen(&mut self) {
        for (end, _) in &mut self.buckets {
            let shift = end.checked_ilog2().unwrap_or(0).saturating_sub(2);
            let low = (1_u64 << shift) - 1;
            *end = end.saturating_add(low) & !low;
        }
        self.join();
    }

    fn spread(&self) -> Spread {
        let count = self.buckets.iter().map(|(_, n)| n).sum();
        let quantile = |q| {
            let end = quantile(self.buckets.iter().copied(), count, q);
            Duration::from_nanos(end.unwrap_or(0))
        };
        Spread {
            count,
            sum: self.sum,
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            max: Duration::from_nanos(self.buckets.last().map_or(0, |(end, _)| *end)),
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::histogram::Recorder;

    /// A pool whose calls each wait `wait`, `n` a second, for so many seconds.
    struct Told {
        recent: Recent,
        waits: Recorder,
        stats: Stats,
        now: Instant,
    }

    impl Told {
        fn new() -> Self {
            let now = Instant::now();
            Told {
                recent: Recent::new(now),
                waits: Recorder::new(1),
                stats: Stats::default(),
                now,
            }
        }

        fn seconds(&mut self, seconds: usize, n: u64, wait: Duration) {
            for _ in 0..seconds {
                for _ in 0..n {
                    self.waits.record(0, wait);
                }
                self.stats.leases += n;
                self.stats.hits += n / 2;
                self.stats.wait = self.waits.snapshot();
                self.now += EVERY;
                self.recent.tick(self.now, || self.stats.clone());
                // A second call within the same second changes nothing.
                self.recent.tick(self.now, || unreachable!());
            }
        }
    }

    #[test]
    fn each_window_has_its_own_past() {
        let mut told = Told::new();
        told.seconds(400, 10, Duration::from_secs(2));
        told.seconds(40, 100, Duration::from_millis(30));
        told.seconds(11, 1_000, Duration::from_micros(50));
        let Windows {
            ten_seconds,
            minute,
            five_minutes,
        } = told.recent.windows();
        let near = |found: Duration, wanted: Duration| {
            assert!(
                found >= wanted && found <= wanted.mul_f64(1.4),
                "{found:?} {wanted:?}"
            );
        };
        assert_eq!(ten_seconds.length, Duration::from_secs(10));
        assert_eq!(ten_seconds.leases, 10_000);
        assert_eq!(ten_seconds.rate(ten_seconds.leases), 1_000.0);
        assert_eq!(ten_seconds.hit_rate(), Some(0.5));
        near(ten_seconds.wait.p99, Duration::from_micros(50));
        near(ten_seconds.wait.max, Duration::from_micros(50));
        let length = minute.length.as_secs();
        assert!((60..=70).contains(&length), "{length}");
        assert_eq!(minute.leases, 11_000 + 4_000 + 10 * (length - 51));
        assert_eq!(minute.wait.count, minute.leases);
        near(minute.wait.p50, Duration::from_micros(50));
        near(minute.wait.p90, Duration::from_millis(30));
        near(minute.wait.max, Duration::from_secs(2));
        let length = five_minutes.length.as_secs();
        assert!((300..=310).contains(&length), "{length}");
        near(five_minutes.wait.p99, Duration::from_secs(2));
    }

    #[test]
    fn an_hour_takes_no_more_room_than_five_minutes() {
        let mut told = Told::new();
        let size = |told: &Told| {
            let state = told.recent.0.lock();
            let parts = state.fine.iter().chain(&state.coarse);
            let buckets = parts.map(|part| 3 + part.wait.buckets.len());
            (
                state.fine.len() + state.coarse.len(),
                buckets.sum::<usize>(),
            )
        };
        for second in 0..3_600 {
            let wait = Duration::from_nanos(1 << (second % 40));
            told.seconds(1, 2, wait);
        }
        let (parts, buckets) = size(&told);
        assert!(
            parts <= FINE + COARSE && buckets < 60 * FINE,
            "{parts} {buckets}"
        );
    }

    #[test]
    fn nothing_is_zero() {
        let window = Recent::new(Instant::now()).ten_seconds();
        assert_eq!((window.rate(5), window.lent()), (0.0, 0.0));
        assert_eq!((window.hit_rate(), window.group_size()), (None, None));
        assert_eq!(window.wait, Spread::default());
    }
}
