//! What the page and `/status.json` show: the pool's numbers as JSON.
//! It computes nothing that the pool does not know.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::panic::Location;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::error::Error;
use crate::observe::health::Health;
use crate::observe::histogram::Histogram;
use crate::observe::reserved::{is_of_pool, is_reserved};
use crate::observe::stats::Stats;
use crate::observe::windows::{Spread, Window, Windows};
use crate::pool::Pool;
use crate::pool::pooled::Backend;

/// Longer lists show only this many entries, the first.
const LISTED: usize = 100;

/// How agents' ids are shown on the status page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Agents {
    /// As they are.
    Show,
    /// As a hash with a secret of the router: the same agent has the same hash until the program ends, and ids
    /// cannot be guessed from it.
    Hash,
    /// Not at all.
    Hide,
}

/// Whether the status page shows where leases were taken: source lines, and the routes of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Places {
    /// It shows them.
    Show,
    /// It does not.
    Hide,
}

/// A source line, and the request that was served there.
type Place = (&'static Location<'static>, Option<&'static str>);

/// What is shown of agents and places.
pub(super) struct Privacy {
    agents: Agents,
    places: Places,
    secret: RandomState,
}

impl Privacy {
    pub(super) fn new(agents: Agents, places: Places) -> Self {
        Privacy {
            agents,
            places,
            secret: RandomState::new(),
        }
    }

    fn agent(&self, agent: String) -> String {
        match self.agents {
            // What the pool does itself is no secret.
            _ if is_reserved(&agent) => agent,
            Agents::Show => agent,
            Agents::Hash => format!("#{:016x}", self.secret.hash_one(agent)),
            Agents::Hide => "–".to_owned(),
        }
    }

    fn place(&self, (line, request): Place) -> (String, Option<&'static str>) {
        match self.places {
            Places::Show => (format!("{}:{}", line.file(), line.line()), request),
            Places::Hide => ("–".to_owned(), None),
        }
    }
}

/// The pool at this moment, with the history.
#[derive(Serialize)]
pub(super) struct Full {
    #[serde(flatten)]
    pub(super) now: Now,
    /// All pools of the page.
    pub(super) pools: Vec<Named>,
    pub(super) history: Vec<Sample>,
    /// What the SQLite of this program was compiled with.
    pub(super) sqlite_options: &'static [String],
}

#[derive(Serialize)]
pub(super) struct Named {
    pub(super) name: String,
    /// The verdict in a word.
    pub(super) state: &'static str,
}

/// The pool at this moment.
#[derive(Serialize)]
pub(super) struct Now {
    name: String,
    health: Verdict,
    windows: Lately,
    limits: Limits,
    /// When this router was made, in milliseconds since 1970. Another value means another server process.
    started_ms: u64,
    closed: bool,
    /// Why a caller would get no lease at this moment, in a word.
    not_ready: Option<&'static str>,
    max_connections: usize,
    open: usize,
    descriptor_ceiling: usize,
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
    stuck: usize,
    waiting: usize,
    writes_waiting: usize,
    wal_pages: usize,
    wal_bytes: u64,
    leases: u64,
    hits: u64,
    writes: u64,
    /// Calls that gave up, and writes and openings that failed, since the pool was built.
    failures: u64,
    state: &'static str,
    /// In seconds, over the ten seconds before.
    wait_p50: f64,
    wait_p99: f64,
    hold_p50: f64,
    hold_p99: f64,
    write_p50: f64,
    write_p99: f64,
}

#[derive(Serialize)]
struct Verdict {
    state: &'static str,
    reasons: Vec<Why>,
}

#[derive(Serialize)]
struct Why {
    code: &'static str,
    text: String,
    link: &'static str,
}

/// What the numbers are to be compared with.
#[derive(Serialize)]
struct Limits {
    lease_timeout_s: f64,
    /// `null` if the option is off.
    overdue_after_s: Option<f64>,
    max_hold_s: Option<f64>,
    idle_timeout_s: Option<f64>,
    leases_per_agent: Option<usize>,
    write_queue: usize,
    /// The pages from which on the log needs a checkpoint; `null` if there is no log, or the pool checkpoints none.
    wal_pages: Option<usize>,
    /// The same in bytes.
    wal_bytes: Option<u64>,
    cached_agents: usize,
    /// The version of SQLite; `null` for connections to a server.
    sqlite: Option<&'static str>,
}

#[derive(Serialize)]
struct Lately {
    #[serde(rename = "10s")]
    ten_seconds: Recent,
    #[serde(rename = "1m")]
    minute: Recent,
    #[serde(rename = "5m")]
    five_minutes: Recent,
}

/// A window. Rates are per second.
#[derive(Serialize)]
struct Recent {
    length_s: f64,
    leases: u64,
    lease_rate: f64,
    /// 0 to 1; `null` without leases.
    hit_rate: Option<f64>,
    /// How many connections were lent on average.
    lent: f64,
    timeouts: u64,
    writes: u64,
    write_rate: f64,
    write_failures: u64,
    /// `null` without writes.
    group_size: Option<f64>,
    opens: u64,
    open_failures: u64,
    checkpoints: u64,
    overdue: u64,
    wait: Durations,
    hold: Durations,
    write: Durations,
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
    interrupted: u64,
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
    /// Whether it is the pool itself.
    own: bool,
    seconds: f64,
    /// The source line.
    place: String,
    /// Method and route of the request that it serves.
    request: Option<&'static str>,
}

#[derive(Serialize)]
struct Slow {
    #[serde(flatten)]
    who: Person,
    ago_s: f64,
    served: bool,
}

impl Now {
    pub(super) fn of<B: Backend>(
        pool: &Pool<B>,
        privacy: &Privacy,
        started: SystemTime,
        uptime: Duration,
    ) -> Now {
        let stats = pool.stats();
        let windows = pool.windows();
        let signs = pool.signs();
        let health = signs.verdict();
        let started = started.duration_since(SystemTime::UNIX_EPOCH);
        let holders = pool.holders().into_iter().take(LISTED);
        let waiters = pool.waiting().into_iter().take(LISTED);
        let slowest = pool.slowest_waits().into_iter();
        let ready = pool.ready();
        let descriptors = pool.counted_descriptors();
        let person = |agent, time: Duration, place| Person::new(privacy, agent, time, place);
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        let (options, recent) = (pool.options(), &windows.ten_seconds);
        Now {
            name: pool.name().to_owned(),
            limits: Limits {
                lease_timeout_s: signs.lease_timeout.as_secs_f64(),
                overdue_after_s: seconds(signs.overdue_after),
                max_hold_s: seconds(options.max_hold),
                idle_timeout_s: seconds(options.idle_timeout),
                leases_per_agent: options.leases_per_agent,
                write_queue: signs.writes.queue,
                wal_pages: signs.writes.log_limit,
                wal_bytes: signs.writes.log_limit_bytes,
                cached_agents: options.cached_agents,
                sqlite: descriptors.map(|_| rusqlite::version()),
            },
            started_ms: started.map_or(0, |since| since.as_millis() as u64),
            closed: matches!(ready, Err(Error::Closed)),
            not_ready: ready.err().map(|error| match error {
                Error::Closed => "closed",
                Error::Exhausted { .. } => "exhausted",
                Error::FileReplaced { .. } => "no database file",
                Error::Sqlite(_) => "writes are locked out",
                _ => "failing",
            }),
            max_connections: stats.max_connections,
            open: stats.open,
            descriptor_ceiling: pool.fd_ceiling(),
            files: stats.files,
            sample: Sample {
                uptime_s: uptime.as_secs_f64(),
                descriptors,
                lent: stats.lent,
                parked: stats.parked,
                free: stats.free(),
                stuck: stats.stuck,
                waiting: stats.waiting,
                writes_waiting: stats.writes_waiting,
                wal_pages: stats.wal_pages,
                wal_bytes: stats.wal_bytes,
                leases: stats.leases,
                hits: stats.hits,
                writes: stats.writes,
                failures: stats.timeouts + stats.write_failures + stats.open_failures,
                state: health.name(),
                wait_p50: recent.wait.p50.as_secs_f64(),
                wait_p99: recent.wait.p99.as_secs_f64(),
                hold_p50: recent.hold.p50.as_secs_f64(),
                hold_p99: recent.hold.p99.as_secs_f64(),
                write_p50: recent.write.p50.as_secs_f64(),
                write_p99: recent.write.p99.as_secs_f64(),
            },
            holders: holders
                .map(|h| person(h.agent, h.age, (h.borrowed_at, h.request)))
                .collect(),
            waiters: waiters
                .map(|w| person(w.agent, w.age, (w.asked_at, w.request)))
                .collect(),
            slowest_waits: slowest
                .map(|wait| Slow {
                    who: person(wait.agent, wait.waited, (wait.asked_at, wait.request)),
                    ago_s: wait.ago.as_secs_f64(),
                    served: wait.served,
                })
                .collect(),
            wait: Durations::of(&stats.wait),
            hold: Durations::of(&stats.hold),
            write: Durations::of(&stats.write),
            counters: Counters::of(&stats),
            health: Verdict::of(&health),
            windows: Lately::of(&windows),
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
            interrupted: stats.interrupted,
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

impl From<&Spread> for Durations {
    fn from(spread: &Spread) -> Durations {
        Durations {
            count: spread.count,
            p50: spread.p50.as_secs_f64(),
            p90: spread.p90.as_secs_f64(),
            p99: spread.p99.as_secs_f64(),
            max: spread.max.as_secs_f64(),
        }
    }
}

impl Verdict {
    fn of(health: &Health) -> Verdict {
        let why = |reason: &crate::observe::health::Reason| Why {
            code: reason.code,
            text: reason.text.clone(),
            link: reason.link,
        };
        Verdict {
            state: health.name(),
            reasons: health.reasons().iter().map(why).collect(),
        }
    }
}

impl Lately {
    fn of(windows: &Windows) -> Lately {
        Lately {
            ten_seconds: Recent::of(&windows.ten_seconds),
            minute: Recent::of(&windows.minute),
            five_minutes: Recent::of(&windows.five_minutes),
        }
    }
}

impl Recent {
    fn of(window: &Window) -> Recent {
        Recent {
            length_s: window.length.as_secs_f64(),
            leases: window.leases,
            lease_rate: window.rate(window.leases),
            hit_rate: window.hit_rate(),
            lent: window.lent(),
            timeouts: window.timeouts,
            writes: window.writes,
            write_rate: window.rate(window.writes),
            write_failures: window.write_failures,
            group_size: window.group_size(),
            opens: window.opens,
            open_failures: window.open_failures,
            checkpoints: window.checkpoints,
            overdue: window.overdue,
            wait: Durations::from(&window.wait),
            hold: Durations::from(&window.hold),
            write: Durations::from(&window.write),
        }
    }
}

impl Person {
    fn new(privacy: &Privacy, agent: String, time: Duration, place: Place) -> Person {
        let (place, request) = privacy.place(place);
        Person {
            own: is_of_pool(&agent),
            agent: privacy.agent(agent),
            seconds: time.as_secs_f64(),
            place,
            request,
        }
    }
}
