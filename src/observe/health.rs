//! Health: one verdict about a pool, with its reasons, from what the pool told of itself.
//! It looks at nothing itself and changes nothing: [`Signs`] is all that it knows.

use std::time::Duration;

use super::windows::Window;

/// How a pool is: [`Pool::health`](crate::Pool::health).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// Nothing to report.
    Healthy,
    /// The pool works, but some calls fail or are slow, or soon will be.
    Degraded(Vec<Reason>),
    /// The pool can lend no connection.
    Down(Vec<Reason>),
}

/// Why a pool is not healthy.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reason {
    /// A short name for programs, which stays the same from version to version.
    pub code: &'static str,
    /// One sentence: what is the matter, and what to do. It names no agent, no path and no source line, so that it may be
    /// shown to anybody.
    pub text: String,
    /// The section of the guide about it.
    pub link: &'static str,
}

impl Health {
    /// The reasons, the gravest first; none if it is healthy.
    pub fn reasons(&self) -> &[Reason] {
        match self {
            Health::Healthy => &[],
            Health::Degraded(reasons) | Health::Down(reasons) => reasons,
        }
    }

    /// Whether the pool can lend no connection.
    pub fn is_down(&self) -> bool {
        matches!(self, Health::Down(_))
    }

    /// The worse, the higher.
    #[cfg(any(feature = "metrics", feature = "status"))]
    pub(crate) fn level(&self) -> usize {
        match self {
            Health::Healthy => 0,
            Health::Degraded(_) => 1,
            Health::Down(_) => 2,
        }
    }

    /// `healthy`, `degraded` or `down`.
    pub fn name(&self) -> &'static str {
        match self {
            Health::Healthy => "healthy",
            Health::Degraded(_) => "degraded",
            Health::Down(_) => "down",
        }
    }
}

/// What a verdict is made of.
#[derive(Debug, Clone, Default)]
pub struct Signs {
    pub(crate) closed: bool,
    pub(crate) forked: bool,
    /// Why no connection could be opened now, if that is known.
    pub(crate) cannot_open: Option<String>,
    pub(crate) max_connections: usize,
    pub(crate) open: usize,
    pub(crate) stuck: usize,
    pub(crate) lease_timeout: Duration,
    /// How many callers wait for a connection, and how long the first of them has.
    pub(crate) waiting: usize,
    pub(crate) longest_wait: Duration,
    pub(crate) overdue_after: Option<Duration>,
    /// Holders of leases that are overdue.
    pub(crate) overdue: usize,
    /// All holders that others wait for wait themselves.
    pub(crate) deadlock: bool,
    pub(crate) short_of_descriptors: bool,
    /// Tasks that wait for a worker thread, if all of the threads are at work.
    pub(crate) backlog: usize,
    pub(crate) writes: WriteSigns,
    /// The last ten seconds.
    pub(crate) recent: Window,
}

/// What concerns writes.
#[derive(Debug, Clone, Default)]
pub(crate) struct WriteSigns {
    /// How long writes have been kept out by another process, or by a connection that writes without the queue.
    pub(crate) locked_out: Option<Duration>,
    pub(crate) waiting: usize,
    /// The largest number that may wait.
    pub(crate) queue: usize,
    /// Pages in the log, and the number from which on it needs a checkpoint.
    pub(crate) log: usize,
    pub(crate) log_limit: Option<usize>,
    /// The same in bytes.
    pub(crate) log_limit_bytes: Option<u64>,
    /// The last checkpoint was blocked by an open read transaction.
    pub(crate) pinned: bool,
}

/// How long writes must have been kept out: a commit elsewhere keeps them out for a moment, too.
pub(crate) const LOCKED_OUT: Duration = Duration::from_secs(1);
/// From this many times its limit on, the log is long.
const LONG_LOG: usize = 3;

macro_rules! guide {
    ($anchor:literal) => {
        concat!(
            "https://docs.rs/leasepool/latest/leasepool/guide/operating/#",
            $anchor
        )
    };
}

const NO_CONNECTION: &str = guide!("no-connection-comes-free");
const WRITES_WAIT: &str = guide!("writes-wait");
const LONG: &str = guide!("the-write-ahead-log-stays-long");
const NOT_OPENED: &str = guide!("no-connection-can-be-opened");

impl Signs {
    pub(crate) fn verdict(&self) -> Health {
        let mut reasons = Vec::new();
        self.what_ends_all(&mut reasons);
        if !reasons.is_empty() {
            return Health::Down(reasons);
        }
        self.writes_fail(&mut reasons);
        self.leases_fail(&mut reasons);
        self.slow(&mut reasons);
        match reasons.is_empty() {
            true => Health::Healthy,
            false => Health::Degraded(reasons),
        }
    }

    fn what_ends_all(&self, reasons: &mut Vec<Reason>) {
        let recent = &self.recent;
        if self.forked {
            reasons.push(Reason {
                code: "forked",
                text: "this process is a fork of the one that built the pool: build a pool here"
                    .to_owned(),
                link: guide!("readiness"),
            });
        } else if self.closed {
            reasons.push(Reason {
                code: "closed",
                text: "the pool is closed: start the program again, or build a new pool".to_owned(),
                link: guide!("readiness"),
            });
        } else if let Some(why) = &self.cannot_open {
            reasons.push(Reason {
                code: "no-database",
                text: format!("{why}: put the database back at its path, or start its server"),
                link: NOT_OPENED,
            });
        } else if recent.open_failures > 0 && recent.opens == 0 && self.open <= self.stuck {
            reasons.push(self.failed_opens());
        }
        if self.stuck > 0 && self.stuck >= self.max_connections {
            reasons.push(self.stuck_connections());
        }
    }

    fn writes_fail(&self, reasons: &mut Vec<Reason>) {
        let (recent, writes) = (&self.recent, &self.writes);
        if let Some(time) = writes.locked_out.filter(|time| *time >= LOCKED_OUT) {
            reasons.push(Reason {
                code: "writes-locked-out",
                text: format!(
                    "another process, or a transaction on a plain lease, has kept the write lock for {}, and {} of \
                     {} failed in the last 10 seconds: end that transaction",
                    seconds(time),
                    recent.write_failures,
                    plural(recent.writes + recent.write_failures, "write", "writes"),
                ),
                link: WRITES_WAIT,
            });
        } else if recent.write_failures * 10 > recent.writes {
            reasons.push(Reason {
                code: "writes-fail",
                text: format!(
                    "{} of {} failed in the last 10 seconds: the callers have the errors",
                    recent.write_failures,
                    plural(recent.writes + recent.write_failures, "write", "writes"),
                ),
                link: WRITES_WAIT,
            });
        }
        if writes.queue > 0 && writes.waiting >= writes.queue.div_ceil(2) {
            reasons.push(Reason {
                code: "write-queue",
                text: format!(
                    "{} of at most {} wait: make the work of each write shorter",
                    plural(writes.waiting as u64, "write", "writes"),
                    writes.queue
                ),
                link: WRITES_WAIT,
            });
        } else if self.is_slow(recent.write.p99) {
            reasons.push(Reason {
                code: "writes-slow",
                text: format!(
                    "one write in a hundred took {} or longer in the last 10 seconds, and the time-out is {}: make \
                     the work of each write shorter",
                    seconds(recent.write.p99),
                    seconds(self.lease_timeout)
                ),
                link: WRITES_WAIT,
            });
        }
    }

    fn leases_fail(&self, reasons: &mut Vec<Reason>) {
        let recent = &self.recent;
        if recent.open_failures > 0 {
            reasons.push(self.failed_opens());
        }
        if self.deadlock {
            reasons.push(Reason {
                code: "deadlock",
                text: "every holder of a connection waits for another one: take at most one lease at a time"
                    .to_owned(),
                link: NO_CONNECTION,
            });
        }
        if recent.timeouts > 0 {
            reasons.push(Reason {
                code: "timeouts",
                text: format!(
                    "{} gave up waiting in the last 10 seconds: see who holds the connections",
                    plural(recent.timeouts, "call", "calls")
                ),
                link: NO_CONNECTION,
            });
        } else if self.is_slow(self.longest_wait) || self.is_slow(recent.wait.p99) {
            let longest = self.longest_wait.max(recent.wait.p99);
            reasons.push(Reason {
                code: "waits",
                text: format!(
                    "calls wait {} for a connection, the time-out is {}, and {} now: see who holds the connections",
                    seconds(longest),
                    seconds(self.lease_timeout),
                    plural(self.waiting as u64, "call waits", "calls wait"),
                ),
                link: NO_CONNECTION,
            });
        }
        if self.stuck > 0 {
            reasons.push(self.stuck_connections());
        }
        if self.short_of_descriptors {
            reasons.push(Reason {
                code: "descriptors",
                text: "connections to a file that was replaced keep nearly all descriptors of the pool: end the \
                       leases that are still on it"
                    .to_owned(),
                link: guide!("replacing-the-database-file"),
            });
        }
    }

    fn slow(&self, reasons: &mut Vec<Reason>) {
        let writes = &self.writes;
        if let Some(limit) = writes.log_limit.filter(|limit| *limit > 0) {
            let long = writes.log >= limit.saturating_mul(LONG_LOG);
            let times = writes.log as f64 / limit as f64;
            if writes.pinned && writes.log >= limit.saturating_mul(2) {
                reasons.push(Reason {
                    code: "log-pinned",
                    text: format!(
                        "an open read transaction keeps the write-ahead log, which is {times:.1} times as long as \
                         wal_size: end that transaction"
                    ),
                    link: LONG,
                });
            } else if long && self.recent.writes > 0 {
                reasons.push(Reason {
                    code: "log-long",
                    text: format!(
                        "the write-ahead log is {times:.1} times as long as wal_size: the disk, or the process that \
                         runs the checkpoints, is slower than the writers"
                    ),
                    link: LONG,
                });
            }
        }
        if let (1.., Some(after)) = (self.overdue, self.overdue_after) {
            reasons.push(Reason {
                code: "overdue",
                text: format!(
                    "{} for longer than {}: look at the source lines of the oldest holders",
                    plural(self.overdue as u64, "lease is held", "leases are held"),
                    seconds(after)
                ),
                link: NO_CONNECTION,
            });
        }
        if self.backlog >= self.max_connections.max(8) {
            reasons.push(Reason {
                code: "workers",
                text: format!(
                    "all threads of the pool are at work, and {}: opening and closing connections is slow, look at \
                     the disk",
                    plural(self.backlog as u64, "task waits", "tasks wait")
                ),
                link: NOT_OPENED,
            });
        }
    }

    fn failed_opens(&self) -> Reason {
        Reason {
            code: "opens-fail",
            text: format!(
                "{} to open a connection failed in the last 10 seconds: the callers have the errors, with the cause",
                plural(self.recent.open_failures, "attempt", "attempts")
            ),
            link: NOT_OPENED,
        }
    }

    fn stuck_connections(&self) -> Reason {
        Reason {
            code: "stuck",
            text: format!(
                "{} cannot be closed: find the statement that was given to mem::forget, and start the program again",
                plural(self.stuck as u64, "connection", "connections")
            ),
            link: guide!("a-connection-is-stuck"),
        }
    }

    /// Whether a time has come near the time-out.
    fn is_slow(&self, time: Duration) -> bool {
        time >= Duration::from_millis(1) && time >= self.lease_timeout / 2
    }
}

fn plural(n: u64, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

fn seconds(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s < 1.0 => format!("{:.0} ms", s * 1_000.0),
        s if s < 10.0 => format!("{s:.1} s"),
        s => format!("{s:.0} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn calm() -> Signs {
        Signs {
            max_connections: 4,
            open: 2,
            lease_timeout: 5 * SECOND,
            overdue_after: Some(60 * SECOND),
            writes: WriteSigns {
                queue: 100,
                log_limit: Some(1_000),
                ..WriteSigns::default()
            },
            recent: Window {
                writes: 1_000,
                ..Window::default()
            },
            ..Signs::default()
        }
    }

    fn codes(change: impl FnOnce(&mut Signs)) -> (&'static str, Vec<&'static str>) {
        let mut signs = calm();
        change(&mut signs);
        let verdict = signs.verdict();
        for reason in verdict.reasons() {
            assert!(reason.link.contains("/guide/operating/#"), "{reason:?}");
            assert!(reason.text.contains([':', ',']), "{reason:?}");
        }
        let codes = verdict.reasons().iter().map(|reason| reason.code);
        (verdict.name(), codes.collect())
    }

    /// Each sign makes its own reason, and no other.
    #[test]
    fn each_fault_has_its_reason() {
        let down = |code| ("down", vec![code]);
        let degraded = |code| ("degraded", vec![code]);
        assert_eq!(codes(|_| ()), ("healthy", vec![]));
        assert_eq!(codes(|s| s.closed = true), down("closed"));
        assert_eq!(codes(|s| s.forked = true), down("forked"));
        assert_eq!(
            codes(|s| s.cannot_open = Some("it was deleted".to_owned())),
            down("no-database")
        );
        assert_eq!(codes(|s| s.stuck = 1), degraded("stuck"));
        assert_eq!(codes(|s| (s.stuck, s.open) = (4, 4)), down("stuck"));
        assert_eq!(
            codes(|s| s.recent.open_failures = 1),
            degraded("opens-fail")
        );
        assert_eq!(
            codes(|s| (s.recent.open_failures, s.open) = (1, 0)),
            down("opens-fail")
        );
        assert_eq!(
            codes(|s| s.writes.locked_out = Some(2 * SECOND)),
            degraded("writes-locked-out")
        );
        assert_eq!(
            codes(|s| s.writes.locked_out = Some(SECOND / 2)),
            ("healthy", vec![])
        );
        assert_eq!(
            codes(|s| s.recent.write_failures = 200),
            degraded("writes-fail")
        );
        assert_eq!(codes(|s| s.recent.write_failures = 1), ("healthy", vec![]));
        assert_eq!(codes(|s| s.writes.waiting = 50), degraded("write-queue"));
        assert_eq!(
            codes(|s| s.recent.write.p99 = 3 * SECOND),
            degraded("writes-slow")
        );
        assert_eq!(codes(|s| s.recent.timeouts = 1), degraded("timeouts"));
        assert_eq!(codes(|s| s.recent.wait.p99 = 3 * SECOND), degraded("waits"));
        assert_eq!(codes(|s| s.longest_wait = 3 * SECOND), degraded("waits"));
        assert_eq!(codes(|s| s.deadlock = true), degraded("deadlock"));
        assert_eq!(
            codes(|s| s.short_of_descriptors = true),
            degraded("descriptors")
        );
        assert_eq!(
            codes(|s| (s.writes.pinned, s.writes.log) = (true, 2_000)),
            degraded("log-pinned")
        );
        assert_eq!(
            codes(|s| (s.writes.pinned, s.writes.log) = (true, 1_000)),
            ("healthy", vec![])
        );
        assert_eq!(codes(|s| s.writes.log = 3_000), degraded("log-long"));
        // Nothing is written: the next write begins the log anew.
        assert_eq!(
            codes(|s| (s.writes.log, s.recent.writes) = (3_000, 0)),
            ("healthy", vec![])
        );
        assert_eq!(codes(|s| s.overdue = 2), degraded("overdue"));
        assert_eq!(codes(|s| s.backlog = 8), degraded("workers"));
        assert_eq!(codes(|s| s.backlog = 7), ("healthy", vec![]));
        // Without a time to wait, nothing that took time is slow by itself.
        let impatient = |s: &mut Signs| s.lease_timeout = Duration::ZERO;
        assert_eq!(codes(impatient), ("healthy", vec![]));
    }

    #[test]
    fn all_reasons_are_told() {
        let both = codes(|s| {
            s.recent.timeouts = 1;
            s.writes.locked_out = Some(9 * SECOND);
            s.recent.write_failures = 9;
        });
        assert_eq!(both, ("degraded", vec!["writes-locked-out", "timeouts"]));
    }
}
