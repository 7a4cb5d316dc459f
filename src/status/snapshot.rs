//! What the page and `/status.json` show: the pool's numbers as JSON.
//! It computes nothing that the pool does not know.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::error::Error;
use crate::observe::histogram::Histogram;
use crate::observe::stats::Stats;
use crate::pool::Pool;
use crate::pool::pooled::Backend;

/// Longer lists show only this many entries, the first.
const LISTED: usize = 100;

/// The pool at this moment, with the history.
#[derive(Serialize)]
pub(super) struct Full {
    #[serde(flatten)]
    pub(super) now: Now,
    pub(super) history: Vec<Sample>,
}

/// The pool at this moment.
#[derive(Serialize)]
pub(super) struct Now {
    name: String,
    /// When this router was made, in milliseconds since 1970. Another value means another server process.
    started_ms: u64,
    closed: bool,
    /// Why a caller would get no lease at this moment, in a word.
    not_ready: Option<&'static str>,
    max_connections: usize,
    open: usize,
    stuck: usize,
    descriptor_ceiling: usize,
    writes_waiting: usize,
    wal_pages: usize,
    files: usize,
    #[serde(flatten)]
    pub(super) sample: Sample,
    counters: Counters,
    wait: Durations,
    hold: Durations,
    write: Durations,
    /// The leases that are held: the oldest first.
    holders: Vec<Person>,
    /// The callers that wait: the next to be served first.
    waiters: Vec<Person>,
    slowest_waits: Vec<Slow>,
}

/// The numbers that the page draws over time.
#[derive(Serialize, Clone)]
pub(super) struct Sample {
    uptime_s: f64,
    /// `null` where the operating system does not say.
    descriptors: Option<usize>,
    lent: usize,
    parked: usize,
    free: usize,
    waiting: usize,
    leases: u64,
    hits: u64,
    writes: u64,
}

#[derive(Serialize)]
struct Counters {
    misses: u64,
    timeouts: u64,
    reclaims: u64,
    evictions: u64,
    resets: u64,
    opens: u64,
    open_failures: u64,
    closes: u64,
    close_failures: u64,
    discarded_by_reset: u64,
    discarded_by_file: u64,
    discarded_by_age: u64,
    discarded_by_lease: u64,
    discarded_by_probe: u64,
    probes: u64,
    overdue: u64,
    slow_holds: u64,
    write_failures: u64,
    write_groups: u64,
    checkpoints: u64,
    emergency_checkpoints: u64,
    checkpoints_pinned: u64,
}

/// In seconds.
#[derive(Serialize)]
struct Durations {
    count: u64,
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

#[derive(Serialize)]
struct Person {
    agent: String,
    seconds: f64,
    /// The source line.
    place: String,
}

#[derive(Serialize)]
struct Slow {
    #[serde(flatten)]
    who: Person,
    ago_s: f64,
    served: bool,
}

impl Now {
    pub(super) fn of<B: Backend>(pool: &Pool<B>, started: SystemTime, uptime: Duration) -> Now {
        let stats = pool.stats();
        let started = started.duration_since(SystemTime::UNIX_EPOCH);
        let holders = pool.holders().into_iter().take(LISTED);
        let waiters = pool.waiting().into_iter().take(LISTED);
        let slowest = pool.slowest_waits().into_iter();
        let ready = pool.ready();
        Now {
            name: pool.name().to_owned(),
            started_ms: started.map_or(0, |since| since.as_millis() as u64),
            closed: matches!(ready, Err(Error::Closed)),
            not_ready: ready.err().map(|error| match error {
                Error::Closed => "closed",
                Error::Exhausted { .. } => "exhausted",
                Error::FileReplaced { .. } => "no database file",
                _ => "failing",
            }),
            max_connections: stats.max_connections,
            open: stats.open,
            stuck: stats.stuck,
            descriptor_ceiling: pool.fd_ceiling(),
            writes_waiting: stats.writes_waiting,
            wal_pages: stats.wal_pages,
            files: stats.files,
            sample: Sample {
                uptime_s: uptime.as_secs_f64(),
                descriptors: pool.descriptors(),
                lent: stats.lent,
                parked: stats.parked,
                free: stats.free(),
                waiting: stats.waiting,
                leases: stats.leases,
                hits: stats.hits,
                writes: stats.writes,
            },
            holders: holders
                .map(|h| Person::new(h.agent, h.age, h.borrowed_at))
                .collect(),
            waiters: waiters
                .map(|w| Person::new(w.agent, w.age, w.asked_at))
                .collect(),
            slowest_waits: slowest
                .map(|wait| Slow {
                    who: Person::new(wait.agent, wait.waited, wait.asked_at),
                    ago_s: wait.ago.as_secs_f64(),
                    served: wait.served,
                })
                .collect(),
            wait: Durations::of(&stats.wait),
            hold: Durations::of(&stats.hold),
            write: Durations::of(&stats.write),
            counters: Counters::of(&stats),
        }
    }
}

impl Counters {
    fn of(stats: &Stats) -> Counters {
        Counters {
            misses: stats.misses,
            timeouts: stats.timeouts,
            reclaims: stats.reclaims,
            evictions: stats.evictions(),
            resets: stats.resets,
            opens: stats.opens,
            open_failures: stats.open_failures,
            closes: stats.closes,
            close_failures: stats.close_failures,
            discarded_by_reset: stats.discarded_by_reset,
            discarded_by_file: stats.discarded_by_file,
            discarded_by_age: stats.discarded_by_age,
            discarded_by_lease: stats.discarded_by_lease,
            discarded_by_probe: stats.discarded_by_probe,
            probes: stats.probes,
            overdue: stats.overdue,
            slow_holds: stats.slow_holds,
            write_failures: stats.write_failures,
            write_groups: stats.write_groups,
            checkpoints: stats.checkpoints,
            emergency_checkpoints: stats.emergency_checkpoints,
            checkpoints_pinned: stats.checkpoints_pinned,
        }
    }
}

impl Durations {
    fn of(histogram: &Histogram) -> Durations {
        let quantile = |q| histogram.quantile(q).as_secs_f64();
        Durations {
            count: histogram.count(),
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            max: histogram.max().as_secs_f64(),
        }
    }
}

impl Person {
    fn new(agent: String, time: Duration, place: &std::panic::Location<'_>) -> Person {
        Person {
            agent,
            seconds: time.as_secs_f64(),
            place: format!("{}:{}", place.file(), place.line()),
        }
    }
}
