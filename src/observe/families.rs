//! The public names of a pool's numbers: one list for the `metrics` facade and for Prometheus.
//! It measures nothing.

use super::health::Signs;
use super::histogram::Histogram;
use super::stats::Stats;

/// The numbers under one name.
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    /// What the label with the pool's name is called.
    pub(crate) pool_label: &'static str,
    pub(crate) numbers: Numbers,
}

pub(crate) enum Numbers {
    /// They only grow.
    Counter(Vec<Sample<u64>>),
    Gauge(Vec<Sample<f64>>),
    /// In seconds.
    Histogram(Histogram),
}

/// A number, with the labels that it has beside the pool's name.
pub(crate) struct Sample<T> {
    pub(crate) labels: Vec<(&'static str, &'static str)>,
    pub(crate) value: T,
}

/// What is known of a pool.
pub(crate) struct Known<'a> {
    pub(crate) stats: &'a Stats,
    pub(crate) signs: &'a Signs,
    /// By the pool's books; `None`: it keeps none.
    pub(crate) descriptors: Option<usize>,
    /// The most descriptors that it can have.
    pub(crate) ceiling: usize,
}

/// All numbers of a pool.
pub(crate) fn families(known: Known<'_>) -> Vec<Family> {
    let Known {
        stats,
        signs,
        descriptors,
        ceiling,
    } = known;
    let mut families = vec![
        family(
            "leasepool_info",
            "Versions, as labels. Always 1.",
            Numbers::Gauge(vec![Sample {
                labels: vec![
                    ("version", env!("CARGO_PKG_VERSION")),
                    ("sqlite_version", rusqlite::version()),
                ],
                value: 1.0,
            }]),
        ),
        gauge(
            "leasepool_health",
            "The verdict: 0 healthy, 1 degraded, 2 down.",
            signs.verdict().level(),
        ),
        counter(
            "leasepool_leases_total",
            "Leases asked for, by outcome.",
            "outcome",
            vec![
                ("hit", stats.hits),
                ("miss", stats.misses),
                ("exhausted", stats.timeouts),
            ],
        ),
        histogram(
            "leasepool_wait_seconds",
            "How long calls waited for their turn.",
            &stats.wait,
        ),
        histogram(
            "leasepool_hold_seconds",
            "How long leases were held.",
            &stats.hold,
        ),
        gauge(
            "leasepool_waiting",
            "Callers that wait for a connection.",
            stats.waiting,
        ),
        counter(
            "leasepool_writes_total",
            "Writes, by outcome.",
            "outcome",
            vec![
                ("committed", stats.writes),
                ("failed", stats.write_failures),
            ],
        ),
        plain_counter(
            "leasepool_write_groups_total",
            "Transactions that contained writes.",
            stats.write_groups,
        ),
        histogram(
            "leasepool_write_seconds",
            "How long writes took, from the call to the answer.",
            &stats.write,
        ),
        gauge(
            "leasepool_writes_waiting",
            "Writes that wait for their turn.",
            stats.writes_waiting,
        ),
        gauge(
            "leasepool_wal_pages",
            "Pages in the write-ahead log after the last commit.",
            stats.wal_pages,
        ),
        measure(
            "leasepool_wal_bytes",
            "The write-ahead log after the last commit, in bytes.",
            stats.wal_bytes as f64,
        ),
        plain_counter(
            "leasepool_checkpoints_total",
            "Checkpoints that the pool ran.",
            stats.checkpoints,
        ),
        plain_counter(
            "leasepool_emergency_checkpoints_total",
            "Checkpoints that the pool ran because the process that should run them did not.",
            stats.emergency_checkpoints,
        ),
        plain_counter(
            "leasepool_checkpoints_pinned_total",
            "Times that checkpoints were blocked by an open read transaction.",
            stats.checkpoints_pinned,
        ),
        levels(
            "leasepool_connections",
            "Open connections, by state.",
            "state",
            &[
                ("lent", stats.lent),
                ("parked", stats.parked),
                ("free", stats.free()),
                ("stuck", stats.stuck),
            ],
        ),
        gauge(
            "leasepool_files",
            "Database files that have an open connection.",
            stats.files,
        ),
        gauge(
            "leasepool_max_connections",
            "The size of the pool.",
            stats.max_connections,
        ),
        gauge(
            "leasepool_descriptor_ceiling",
            "The largest number of descriptors the pool can hold.",
            ceiling,
        ),
        measure(
            "leasepool_lease_timeout_seconds",
            "How long a call waits for its turn at most.",
            signs.lease_timeout.as_secs_f64(),
        ),
        gauge(
            "leasepool_write_queue_limit",
            "The largest number of writes that may wait for their turn.",
            signs.writes.queue,
        ),
        counter(
            "leasepool_evictions_total",
            "Parked connections that became free or went to another agent, by cause.",
            "cause",
            vec![
                ("reclaim", stats.reclaims),
                ("size", stats.evicted_by_size),
                ("idle", stats.evicted_by_idle),
                ("call", stats.evicted_by_call),
            ],
        ),
        counter(
            "leasepool_discards_total",
            "Connections closed before their time, by cause.",
            "cause",
            vec![
                ("reset", stats.discarded_by_reset),
                ("file", stats.discarded_by_file),
                ("age", stats.discarded_by_age),
                ("lease", stats.discarded_by_lease),
                ("probe", stats.discarded_by_probe),
            ],
        ),
        plain_counter(
            "leasepool_probes_total",
            "Questions to a server whether a connection is sound.",
            stats.probes,
        ),
        counter(
            "leasepool_opens_total",
            "Attempts to open a connection, by outcome.",
            "outcome",
            vec![("opened", stats.opens), ("failed", stats.open_failures)],
        ),
        histogram(
            "leasepool_open_seconds",
            "How long it took to open connections.",
            &stats.open_time,
        ),
        counter(
            "leasepool_closes_total",
            "Connections closed, and those that reported an error when they were closed.",
            "outcome",
            vec![("closed", stats.closes), ("failed", stats.close_failures)],
        ),
        plain_counter(
            "leasepool_resets_total",
            "Connections reset before another agent got them.",
            stats.resets,
        ),
        plain_counter(
            "leasepool_overdue_total",
            "Leases held longer than overdue_after.",
            stats.overdue,
        ),
        plain_counter(
            "leasepool_interrupted_total",
            "Leases held longer than max_hold, whose statements were interrupted.",
            stats.interrupted,
        ),
        plain_counter(
            "leasepool_slow_holds_total",
            "Leases of async tasks held longer than slow_hold.",
            stats.slow_holds,
        ),
    ];
    if let Some(limit) = signs.writes.log_limit_bytes {
        families.push(measure(
            "leasepool_wal_limit_bytes",
            "The length of the write-ahead log from which on the pool runs a checkpoint, in bytes.",
            limit as f64,
        ));
    }
    if let Some(descriptors) = descriptors {
        families.push(gauge(
            "leasepool_descriptors",
            "Descriptors open on the database.",
            descriptors,
        ));
    }
    families
}

/// A pool's numbers by the names of OpenTelemetry's semantic conventions (1.36) for database connection pools.
#[cfg(feature = "metrics")]
pub(crate) fn of_opentelemetry(stats: &Stats) -> impl Iterator<Item = Family> {
    let families = [
        levels(
            "db.client.connection.count",
            "The number of connections in each state.",
            "db.client.connection.state",
            &[
                ("idle", stats.parked + stats.free()),
                ("used", stats.lent + stats.stuck),
            ],
        ),
        gauge(
            "db.client.connection.max",
            "The most connections that may be open.",
            stats.max_connections,
        ),
        gauge(
            "db.client.connection.pending_requests",
            "Callers that wait for a connection.",
            stats.waiting,
        ),
        plain_counter(
            "db.client.connection.timeouts",
            "Calls that gave up waiting for a connection.",
            stats.timeouts,
        ),
        histogram(
            "db.client.connection.create_time",
            "How long it took to open connections.",
            &stats.open_time,
        ),
        histogram(
            "db.client.connection.wait_time",
            "How long calls waited for a connection.",
            &stats.wait,
        ),
        histogram(
            "db.client.connection.use_time",
            "How long connections were lent.",
            &stats.hold,
        ),
    ];
    families.into_iter().map(|family| Family {
        pool_label: "db.client.connection.pool.name",
        ..family
    })
}

fn family(name: &'static str, help: &'static str, numbers: Numbers) -> Family {
    Family {
        name,
        help,
        pool_label: "pool",
        numbers,
    }
}

fn counter(
    name: &'static str,
    help: &'static str,
    label: &'static str,
    values: Vec<(&'static str, u64)>,
) -> Family {
    let sample = |(of, value)| Sample {
        labels: vec![(label, of)],
        value,
    };
    family(
        name,
        help,
        Numbers::Counter(values.into_iter().map(sample).collect()),
    )
}

fn plain_counter(name: &'static str, help: &'static str, value: u64) -> Family {
    let sample = Sample {
        labels: Vec::new(),
        value,
    };
    family(name, help, Numbers::Counter(vec![sample]))
}

fn levels(
    name: &'static str,
    help: &'static str,
    label: &'static str,
    values: &[(&'static str, usize)],
) -> Family {
    let sample = |(of, value): &(&'static str, usize)| Sample {
        labels: vec![(label, *of)],
        value: *value as f64,
    };
    family(
        name,
        help,
        Numbers::Gauge(values.iter().map(sample).collect()),
    )
}

fn gauge(name: &'static str, help: &'static str, value: usize) -> Family {
    measure(name, help, value as f64)
}

fn measure(name: &'static str, help: &'static str, value: f64) -> Family {
    let sample = Sample {
        labels: Vec::new(),
        value,
    };
    family(name, help, Numbers::Gauge(vec![sample]))
}

fn histogram(name: &'static str, help: &'static str, histogram: &Histogram) -> Family {
    family(name, help, Numbers::Histogram(histogram.clone()))
}
