//! The public names of a pool's numbers: one list for the `metrics` facade and for Prometheus.
//! It measures nothing.

use super::health::Health;
use super::histogram::Histogram;
use super::stats::Stats;

/// The numbers under one name.
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) numbers: Numbers,
}

pub(crate) enum Numbers {
    /// They only grow.
    Counter(Labelled),
    Gauge(Labelled),
    /// In seconds.
    Histogram(Histogram),
}

/// One number for each value of a label; or one number without a label.
pub(crate) struct Labelled {
    pub(crate) label: Option<&'static str>,
    pub(crate) values: Vec<(&'static str, u64)>,
}

/// All numbers of a pool that holds `descriptors` (`None`: unknown) of at most `ceiling` descriptors.
pub(crate) fn families(stats: &Stats, descriptors: Option<usize>, ceiling: usize) -> Vec<Family> {
    let mut families = vec![
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
        Family {
            name: "leasepool_connections",
            help: "Open connections, by state.",
            numbers: Numbers::Gauge(Labelled {
                label: Some("state"),
                values: vec![
                    ("lent", stats.lent as u64),
                    ("parked", stats.parked as u64),
                    ("free", stats.free() as u64),
                    ("stuck", stats.stuck as u64),
                ],
            }),
        },
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
    if let Some(descriptors) = descriptors {
        families.push(gauge(
            "leasepool_descriptors",
            "Descriptors open on the database.",
            descriptors,
        ));
    }
    families
}

/// The verdict as a number, for alerts.
pub(crate) fn verdict(health: &Health) -> Family {
    gauge(
        "leasepool_health",
        "The verdict: 0 healthy, 1 degraded, 2 down.",
        health.level(),
    )
}

fn counter(
    name: &'static str,
    help: &'static str,
    label: &'static str,
    values: Vec<(&'static str, u64)>,
) -> Family {
    Family {
        name,
        help,
        numbers: Numbers::Counter(Labelled {
            label: Some(label),
            values,
        }),
    }
}

fn plain_counter(name: &'static str, help: &'static str, value: u64) -> Family {
    Family {
        name,
        help,
        numbers: Numbers::Counter(Labelled {
            label: None,
            values: vec![("", value)],
        }),
    }
}

fn gauge(name: &'static str, help: &'static str, value: usize) -> Family {
    Family {
        name,
        help,
        numbers: Numbers::Gauge(Labelled {
            label: None,
            values: vec![("", value as u64)],
        }),
    }
}

fn histogram(name: &'static str, help: &'static str, histogram: &Histogram) -> Family {
    Family {
        name,
        help,
        numbers: Numbers::Histogram(histogram.clone()),
    }
}
