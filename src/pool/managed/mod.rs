//! Pools of other pools' managers: how they are built, and what they have beside what every pool has.
//! They only translate: the folder `managed` does the work.

#[cfg(feature = "bb8")]
mod awaited;
#[cfg(feature = "managed")]
mod blocking;

use std::ops::RangeInclusive;
use std::time::Duration;

use super::builder::Builder;
use super::common::{Common, DEFAULT_CONNECTIONS, MAX_CONNECTIONS, TIMEOUTS, check_budget, within};
use super::lease::Lease;
use super::pooled::{Lent, Pooled};
use super::{Pool, Shared};
use crate::core::Core;
use crate::error::Error;
use crate::managed::{Hooks, Remote, Server, Timing, reported, says_broken};

const DESCRIPTORS: RangeInclusive<usize> = 0..=1_000;

/// The options that only a pool of a server's connections has.
pub struct RemoteOptions<R: Remote> {
    parts: R::Parts,
    hooks: Hooks<R::Callback, R::ManagerError>,
    timing: Timing,
}

impl<R: Remote> Pooled for R {
    type Beside = ();
    type Options = RemoteOptions<R>;
    type Cancel = ();
    type Interrupt = ();

    fn interrupt_of(_: &Lent<Self>, (): &()) {}

    /// What a panic interrupted is reset before any agent gets it.
    fn end(mut lent: Lent<Self>) {
        if lent.connection().is_used() && std::thread::panicking() {
            lent.free_at_end();
        }
    }
}

impl<R: Remote> Builder<R> {
    fn over(parts: R::Parts) -> Self {
        Builder {
            common: Common::default(),
            own: RemoteOptions {
                parts,
                hooks: Hooks::default(),
                timing: Timing::default(),
            },
        }
    }
}

/// Options of every pool of a server's connections.
impl<R: Remote> Builder<R> {
    /// How long a connection may have been idle and still be lent without a question to the server; at most a year. After
    /// a longer time, the manager's own check (`is_valid`) asks. A connection that an
    /// [incident](crate::guide::servers#health-without-a-tax) has made suspect is always asked.
    ///
    /// Defaults to 1 second.
    pub fn probe_after(mut self, idle: Duration) -> Self {
        self.own.timing.probe_after = idle;
        self
    }

    /// How long a caller waits for the answer to such a question, and for a reset; 1 ms to a year. Without one, the caller
    /// gets another connection, and this one counts until the question returns.
    ///
    /// Defaults to 500 milliseconds.
    pub fn probe_timeout(mut self, timeout: Duration) -> Self {
        self.own.timing.probe_timeout = timeout;
        self
    }

    /// How long a caller that needs a new connection waits for it, within its `lease_timeout`; 1 ms to a year. Then it gets
    /// an [`Error::Open`]. An opening that its caller has given up goes on, counts as open, and the connection is parked.
    ///
    /// An opening that fails sooner is tried again within that time: after 20 ms at most, and then after twice as long each
    /// time, up to 400 ms. Meanwhile the caller holds no place among the `max_connections`.
    ///
    /// Defaults to 5 seconds.
    pub fn open_timeout(mut self, timeout: Duration) -> Self {
        self.own.timing.open_timeout = timeout;
        self
    }

    /// How many descriptors one connection holds; 0 to 1,000. It makes [`Pool::fd_ceiling`]. There is no default, since
    /// only the driver knows: the blocking client of PostgreSQL holds 5, the async one 1; count them in `/proc/self/fd`.
    pub fn fds_per_connection(mut self, descriptors: usize) -> Self {
        self.own.timing.fds_per_connection = Some(descriptors);
        self
    }

    /// Which errors, given to [`Lease::report`], say that the connection is broken.
    ///
    /// Defaults to all of them.
    pub fn broken(
        mut self,
        broken: impl Fn(&R::ManagerError) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.own.hooks.is_broken = Some(Box::new(broken));
        self
    }

    /// Checks the options and starts the pool's threads. It opens no connection: a program may start before its server.
    ///
    /// # Errors
    /// - [`Error::Config`] if an option is out of its range, or `fds_per_connection` is missing.
    /// - [`Error::Budget`] if the pool could need more descriptors than it may use.
    /// - [`Error::NoThread`] if the pool's threads cannot be started.
    pub fn build(mut self) -> Result<Pool<R>, Error> {
        let budget = self.common.check()?;
        let RemoteOptions {
            parts,
            hooks,
            timing,
        } = self.own;
        within(
            "probe_after",
            timing.probe_after,
            &(Duration::ZERO..=*TIMEOUTS.end()),
        )?;
        within("probe_timeout", timing.probe_timeout, &TIMEOUTS)?;
        within("open_timeout", timing.open_timeout, &TIMEOUTS)?;
        let Some(descriptors) = timing.fds_per_connection else {
            return Err(Error::Config {
                option: "fds_per_connection",
                value: "nothing".to_owned(),
                expected: "the number of descriptors that one connection holds".to_owned(),
            });
        };
        within("fds_per_connection", descriptors, &DESCRIPTORS)?;
        let affordable = budget
            .as_ref()
            .map(|budget| budget.available / descriptors.max(1));
        let max_connections = self
            .common
            .max_connections
            .or(affordable.filter(|_| descriptors > 0))
            .unwrap_or(DEFAULT_CONNECTIONS)
            .clamp(*MAX_CONNECTIONS.start(), *MAX_CONNECTIONS.end());
        check_budget(budget, max_connections, descriptors * max_connections)?;
        let name = self.common.name.take();
        let name = name.unwrap_or_else(|| "server".to_owned());
        let backend = R::new(Server::new(name.clone(), timing), parts, hooks);
        let core = Core::new(backend, self.common.options(name, max_connections))?;
        Ok(Pool::new(Shared::start(core, ())?))
    }
}

impl<R: Remote> Lease<R> {
    /// Tells the pool of an error that a statement on this lease returned. If it says that the connection is broken
    /// (`Builder::broken`; without that, every error does), the connection is closed at the end of the lease, and all
    /// older connections are asked before they are lent.
    ///
    /// Most drivers notice by themselves that a connection is closed. This is for what they cannot see: a server that
    /// answers, but has become read-only or is about to end.
    pub fn report(lease: &Self, error: &R::ManagerError) {
        let backend = &lease.shared().core.backend;
        if says_broken(backend, error) {
            reported(backend, lease.checkout().connection());
        }
    }
}
