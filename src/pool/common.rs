//! Common: the options that every kind of connection has, with the default and range of each.
//! It opens nothing.

use std::fmt::Debug;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::builder::Builder;
use super::pooled::Backend;
use crate::core::Options;
use crate::error::Error;
use crate::sqlite::Budget;

/// Chosen from the table of `cargo bench -p leasepool-benches --bench lease -- misses`.
const OVERTAKING: Duration = Duration::from_millis(1);
pub(super) const MAX_CONNECTIONS: RangeInclusive<usize> = 1..=10_000;
/// How many connections a pool may open, if the user does not say.
pub(super) const DEFAULT_CONNECTIONS: usize = 8;
/// How many agents the pool remembers by default.
const CACHED_AGENTS: usize = 10_000;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
pub(super) const WAITS: RangeInclusive<Duration> = Duration::ZERO..=DAY;
pub(super) const TIMEOUTS: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(365 * 24 * 60 * 60);

/// The options that do not depend on the kind of connection.
pub(super) struct Common {
    pub(super) name: Option<String>,
    pub(super) max_connections: Option<usize>,
    pub(super) fd_budget: Option<usize>,
    cached_agents: Option<usize>,
    idle_timeout: Option<Duration>,
    lease_timeout: Duration,
    overtaking: Duration,
    max_lifetime: Option<Duration>,
    overdue_after: Option<Duration>,
    slow_hold: Option<Duration>,
    pub(super) max_hold: Option<Duration>,
    leases_per_agent: Option<usize>,
    #[cfg(feature = "metrics")]
    opentelemetry: bool,
}

impl Default for Common {
    fn default() -> Self {
        Common {
            name: None,
            max_connections: None,
            fd_budget: None,
            cached_agents: None,
            idle_timeout: Some(Duration::from_secs(300)),
            lease_timeout: Duration::from_secs(5),
            overtaking: OVERTAKING,
            max_lifetime: None,
            overdue_after: Some(Duration::from_secs(60)),
            slow_hold: Some(Duration::from_millis(10)),
            max_hold: None,
            leases_per_agent: None,
            #[cfg(feature = "metrics")]
            opentelemetry: false,
        }
    }
}

impl Common {
    /// Checks every range. Returns the budget that the user has set.
    pub(super) fn check(&self) -> Result<Option<Budget>, Error> {
        if let Some(n) = self.max_connections {
            within("max_connections", n, &MAX_CONNECTIONS)?;
        }
        for (option, timeout) in [
            ("idle_timeout", self.idle_timeout),
            ("max_lifetime", self.max_lifetime),
            ("overdue_after", self.overdue_after),
            ("slow_hold", self.slow_hold),
            ("max_hold", self.max_hold),
        ] {
            if let Some(timeout) = timeout {
                within(option, timeout, &TIMEOUTS)?;
            }
        }
        if let Some(n) = self.leases_per_agent {
            within("leases_per_agent", n, &MAX_CONNECTIONS)?;
        }
        within("lease_timeout", self.lease_timeout, &WAITS)?;
        within("overtaking", self.overtaking, &WAITS)?;
        Ok(self.fd_budget.map(|available| Budget {
            available,
            limited_by: "fd_budget",
        }))
    }

    /// As the core wants them.
    pub(super) fn options(self, name: String, max_connections: usize) -> Options {
        Options {
            name: name.into(),
            max_connections,
            cached_agents: self.cached_agents.unwrap_or(CACHED_AGENTS),
            idle_timeout: self.idle_timeout,
            lease_timeout: self.lease_timeout,
            overtaking: self.overtaking,
            max_lifetime: self.max_lifetime,
            overdue_after: self.overdue_after,
            slow_hold: self.slow_hold,
            max_hold: self.max_hold,
            leases_per_agent: self.leases_per_agent,
            #[cfg(feature = "metrics")]
            opentelemetry: self.opentelemetry,
        }
    }
}

/// Whether the pool may use that many descriptors: by the budget that the user has set, and by what the process's limit
/// leaves.
pub(super) fn check_budget(
    budget: Option<Budget>,
    max_connections: usize,
    ceiling: usize,
) -> Result<(), Error> {
    for budget in [budget, Budget::of_process()].into_iter().flatten() {
        budget.check(max_connections, ceiling)?;
    }
    Ok(())
}

/// # Errors
/// [`Error::Config`] if the value is out of its range.
pub(super) fn within<T: PartialOrd + Debug>(
    option: &'static str,
    value: T,
    range: &RangeInclusive<T>,
) -> Result<(), Error> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(Error::Config {
        option,
        value: format!("{value:?}"),
        expected: format!("{:?} to {:?}", range.start(), range.end()),
    })
}

/// Options of every kind of pool.
impl<B: Backend> Builder<B> {
    /// The pool's name in logs and metrics.
    ///
    /// Defaults to the name of the database file, to `memory`, or, over a server, to `server`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.common.name = Some(name.into());
        self
    }

    /// How many connections may be open at once; 1 to 10,000. This caps connections, and by
    /// [`Pool::fd_ceiling`](crate::Pool::fd_ceiling) descriptors. It limits how many agents are *served* at the same moment, not how
    /// many agents there are.
    ///
    /// Defaults to 8, or to what `fd_budget` allows.
    pub fn max_connections(mut self, n: usize) -> Self {
        self.common.max_connections = Some(n);
        self
    }

    /// How many descriptors the pool may use. Without `max_connections`, the pool gets as many connections as
    /// this allows. With it, `build` fails if they could need more.
    ///
    /// `build` also checks what the process's limit (`RLIMIT_NOFILE`) leaves. It never changes that limit.
    ///
    /// Defaults to what the process's limit leaves.
    pub fn fd_budget(mut self, descriptors: usize) -> Self {
        self.common.fd_budget = Some(descriptors);
        self
    }

    /// How many agents the pool remembers. Each may have parked connections. When there are more, the pool
    /// forgets the agent that was used least recently and frees its parked connections. A remembered agent
    /// costs some hundred bytes, and its leases allocate nothing. 0 remembers no agent and parks no
    /// connection.
    ///
    /// It may be far above `max_connections`.
    ///
    /// Defaults to 10,000.
    pub fn cached_agents(mut self, n: usize) -> Self {
        self.common.cached_agents = Some(n);
        self
    }

    /// How long a connection stays parked for an agent that does not come back; 1 ms to a year, or `None`:
    /// until another agent needs it. The pool obeys it to within a second, even if the process makes no
    /// calls.
    ///
    /// Defaults to 5 minutes.
    pub fn idle_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.common.idle_timeout = timeout.into();
        self
    }

    /// How long a call waits for its turn ([`Pool::lease`](crate::Pool::lease), [`Pool::write`](crate::Pool::write) and the like); 0 to 24 hours.
    ///
    /// Defaults to 5 seconds.
    pub fn lease_timeout(mut self, timeout: Duration) -> Self {
        self.common.lease_timeout = timeout;
        self
    }

    /// How long later callers may overtake a waiting caller; 0 to 24 hours. A returned connection goes to the
    /// caller that runs at that moment, which saves a switch of threads. But if the first in the queue has
    /// waited for longer than this, the connection goes to the first. Zero serves callers strictly in the
    /// order in which they came. This applies to connections, to agents' own connections and to the turn to
    /// write.
    ///
    /// Higher values raise the throughput under contention, and also the slowest waits; see
    /// `cargo bench -p leasepool-benches --bench lease`.
    ///
    /// Defaults to 1 millisecond.
    pub fn overtaking(mut self, time: Duration) -> Self {
        self.common.overtaking = time;
        self
    }

    /// How old a connection may be when it is lent; 1 ms to a year, or `None`: any age. The pool closes an
    /// older connection and opens a new one first.
    ///
    /// Defaults to `None`.
    pub fn max_lifetime(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.common.max_lifetime = age.into();
        self
    }

    /// How long a borrower may hold a lease before the pool reports it; 1 ms to a year, or `None`: never. The
    /// report is a `tracing` event (with the feature of that name) that names agent and source line. A second
    /// event reports that the lease has come back.
    ///
    /// Defaults to 60 seconds.
    pub fn overdue_after(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.common.overdue_after = age.into();
        self
    }

    /// How long an async task may hold a lease of its own before the pool reports it; 1 ms to a year, or `None`: any time.
    /// It applies to [`lease_async`](crate::Pool::lease_async) and [`get_async`](crate::Pool::get_async): SQL on such a lease
    /// runs on a thread of the executor, where all other tasks of that thread wait for it. What takes longer belongs in `run`,
    /// and a lease should not be held across an `.await` of something else.
    ///
    /// The time in which the connection was opened does not count, nor does a lease given to
    /// [`Lease::run`](crate::Lease::run). Over a server it does nothing: there, tasks await their statements.
    ///
    /// [`Stats::slow_holds`](crate::Stats::slow_holds) counts all such leases. At most once a second, a `tracing` event (with
    /// the feature of that name) names agent and source line.
    ///
    /// Defaults to 10 milliseconds.
    pub fn slow_hold(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.common.slow_hold = time.into();
        self
    }

    /// How many leases one agent may have at a time, so that a flood of one agent's requests leaves connections for
    /// others; 1 to 10,000. A further lease of the agent waits, without keeping other agents waiting, until one of its
    /// leases is returned, and fails with [`Error::Exhausted`](crate::Error::Exhausted), which names the holders, when its
    /// time has passed. [`Pool::get`](crate::Pool::get) and [`Pool::anonymous`](crate::Pool::anonymous) have no agent and no
    /// quota, and `write` needs no lease of its own.
    ///
    /// Where each agent has a file of its own, an agent has one lease at a time in any case.
    ///
    /// Defaults to `None`: as many as there are connections.
    pub fn leases_per_agent(mut self, n: impl Into<Option<usize>>) -> Self {
        self.common.leases_per_agent = n.into();
        self
    }

    /// Whether the pool publishes, beside its own names, those of OpenTelemetry's
    /// [semantic conventions](https://opentelemetry.io/docs/specs/semconv/database/database-metrics/#connection-pools) for
    /// connection pools: `db.client.connection.count` (by `db.client.connection.state`: `idle`, `used`), `.max`,
    /// `.pending_requests`, `.timeouts`, and, as histograms in seconds, `.create_time`, `.wait_time` and `.use_time`. The
    /// pool's name is `db.client.connection.pool.name`. A connection that is stuck counts as used. Exporters for Prometheus
    /// write underscores for the dots.
    ///
    /// They go to the facade `metrics`, and not to the page of the feature `status`.
    ///
    /// Defaults to `false`.
    #[cfg(feature = "metrics")]
    #[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
    pub fn opentelemetry(mut self, publish: bool) -> Self {
        self.common.opentelemetry = publish;
        self
    }
}
