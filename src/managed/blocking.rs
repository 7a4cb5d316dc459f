//! Blocking: connections of an r2d2 manager. Every call of the manager, of a callback and of a connection's drop may block,
//! so each runs on a thread of the core.
//! It does not decide when: the core does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use r2d2::ManageConnection;

use super::health::{Health, fraction};
use super::off_thread::OffThread;
use super::remote::Remote;
use super::{Fault, IsBroken, NoAnswer, Timing, dropped, forget, panicked};
use crate::core::backend::{Backend, CheckNeeded, CloseMode, Fate, NotClosed, Patience};
use crate::error::Error;
use crate::observe::stats::Stats;

/// The kind of pool that lends the connections of an r2d2 manager: [`Pool::managed`](crate::Pool::managed).
pub struct Managed<M: ManageConnection> {
    name: String,
    owned: OffThread<Owned<M>>,
    timing: Timing,
    health: Health,
    probes: AtomicU64,
}

impl<M: ManageConnection> std::fmt::Debug for Managed<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Managed")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What may do anything when it is dropped.
struct Owned<M: ManageConnection> {
    manager: M,
    hooks: Hooks<M>,
}

/// A callback that works on a connection.
type Callback<C> = Box<dyn Fn(&mut C) -> Result<(), Fault> + Send + Sync>;

/// The callbacks given to the builder.
pub(crate) struct Hooks<M: ManageConnection> {
    pub(crate) on_open: Option<Callback<M::Connection>>,
    pub(crate) settle: Option<Callback<M::Connection>>,
    pub(crate) reset: Option<Callback<M::Connection>>,
    pub(crate) is_broken: Option<IsBroken<M::Error>>,
}

impl<M: ManageConnection> Default for Hooks<M> {
    fn default() -> Self {
        Hooks {
            on_open: None,
            settle: None,
            reset: None,
            is_broken: None,
        }
    }
}

impl<M: ManageConnection> Managed<M> {
    pub(crate) fn new(name: String, manager: M, hooks: Hooks<M>, timing: Timing) -> Self {
        Managed {
            name,
            owned: OffThread::new(Owned { manager, hooks }),
            timing,
            health: Health::default(),
            probes: AtomicU64::new(0),
        }
    }

    /// Whether the error says that its connection is broken.
    pub(crate) fn is_broken(&self, error: &M::Error) -> bool {
        let is_broken = self.owned.hooks.is_broken.as_ref();
        is_broken.is_none_or(|is_broken| quietly(|| is_broken(error)).unwrap_or(true))
    }

    /// A borrower has reported an error that says that its connection is broken.
    pub(crate) fn reported(&self, connection: &Remote<M::Connection>) {
        connection.report();
        connection.broke(&self.health);
    }

    fn has_broken(&self, connection: &mut M::Connection) -> bool {
        quietly(|| self.owned.manager.has_broken(connection)).unwrap_or(true)
    }

    /// Runs a callback on a connection. Returns whether the connection can still serve.
    fn call(
        &self,
        callback: Option<&Callback<M::Connection>>,
        connection: &mut Remote<M::Connection>,
    ) -> bool {
        let Some(inner) = connection.inner_mut() else {
            return false;
        };
        let done =
            callback.is_none_or(|callback| quietly(|| callback(inner).is_ok()) == Some(true));
        let sound = done && !self.has_broken(inner);
        connection.checked();
        if !sound {
            connection.broke(&self.health);
        }
        sound
    }
}

/// Runs code of the user's. `None`: it panicked.
fn quietly<T>(work: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => Some(done),
        Err(panic) => {
            forget(panic);
            None
        }
    }
}

/// Runs code of the user's that opens a connection.
fn attempt<T>(what: &'static str, work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done,
        Err(panic) => Err(Box::new(panicked(what, panic))),
    }
}

impl<M> Backend for Managed<M>
where
    M: ManageConnection<Error: Send + Sync>,
{
    type Connection = Remote<M::Connection>;

    const IS_REMOTE: bool = true;

    fn open(&self, _: &str, _: &Patience<'_>) -> Result<Self::Connection, Error> {
        let incidents = self.health.incidents();
        let Owned { manager, hooks } = &*self.owned;
        let opened = attempt("the manager's connect", || Ok(manager.connect()?));
        let opened = opened.and_then(|mut connection| {
            if let Some(on_open) = &hooks.on_open
                && let Err(fault) = attempt("on_open", || on_open(&mut connection))
            {
                quietly(|| drop(connection));
                return Err(fault);
            }
            Ok(connection)
        });
        match opened {
            Ok(connection) => {
                self.health.opened();
                Ok(Remote::new(connection, incidents))
            }
            Err(fault) => Err(self.health.failed(&self.name, fault)),
        }
    }

    fn refresh(&self, _: Instant) {}

    fn generation(&self) -> u64 {
        0
    }

    fn is_current(&self, _: &Self::Connection) -> bool {
        true
    }

    fn is_to_settle(&self, connection: &mut Self::Connection) -> bool {
        connection.end_use() && self.owned.hooks.settle.is_some() || connection.is_reported()
    }

    fn settle(&self, connection: &mut Self::Connection) -> Fate {
        if connection.is_reported() {
            return Fate::Discard;
        }
        match self.call(self.owned.hooks.settle.as_ref(), connection) {
            true => Fate::Reuse,
            false => Fate::Discard,
        }
    }

    #[inline]
    fn needs(&self, connection: &mut Self::Connection, now: Instant) -> CheckNeeded {
        let idle = now.saturating_duration_since(connection.idle_since());
        // Not even `has_broken` is called here: there are managers that ask the server there.
        let asks = connection.is_suspect(&self.health) || idle >= self.timing.probe_after;
        match asks || connection.is_unchecked() {
            true => CheckNeeded::Probe,
            false => CheckNeeded::None,
        }
    }

    fn probe(&self, connection: &mut Self::Connection) -> Fate {
        let incidents = self.health.incidents();
        let idle = connection.idle_since().elapsed();
        let asks = connection.is_suspect(&self.health) || idle >= self.timing.probe_after;
        if !self.call(None, connection) {
            return Fate::Discard;
        }
        let Some(inner) = connection.inner_mut() else {
            return Fate::Discard;
        };
        if !asks {
            return Fate::Reuse;
        }
        self.probes.fetch_add(1, Relaxed);
        match quietly(|| self.owned.manager.is_valid(inner).is_ok()) {
            Some(true) => {
                connection.is_sound_as_of(incidents);
                Fate::Reuse
            }
            _ => {
                connection.broke(&self.health);
                Fate::Discard
            }
        }
    }

    fn is_to_reset(&self, connection: &Self::Connection) -> bool {
        connection.is_dirty()
    }

    fn reset(&self, connection: &mut Self::Connection) -> Fate {
        // Nobody else can know what an agent has left.
        let Some(reset) = &self.owned.hooks.reset else {
            return Fate::Discard;
        };
        match self.call(Some(reset), connection) {
            true => {
                connection.was_reset();
                Fate::Reuse
            }
            false => Fate::Discard,
        }
    }

    fn probe_timeout(&self) -> Option<Duration> {
        Some(self.timing.probe_timeout)
    }

    fn probe_timed_out(&self) {
        self.health.incident();
    }

    fn open_timeout(&self) -> Option<Duration> {
        Some(self.timing.open_timeout)
    }

    fn open_timed_out(&self) -> Error {
        let within = self.timing.open_timeout;
        self.health
            .failed(&self.name, Box::new(NoAnswer { within }))
    }

    fn is_failing(&self) -> bool {
        self.health.is_failing()
    }

    fn can_reset(&self, connection: &Self::Connection) -> bool {
        self.owned.hooks.reset.is_some() || !connection.is_dirty()
    }

    fn back_off(&self, now: Instant) -> Option<(Instant, Error)> {
        self.health.back_off(&self.name, now)
    }

    fn age_when_opened(&self, max_lifetime: Duration) -> Duration {
        max_lifetime.mul_f64(fraction() / 10.0)
    }

    fn close(
        &self,
        mut connection: Self::Connection,
        _: CloseMode,
    ) -> Result<(), NotClosed<Self::Connection>> {
        let inner = connection.take();
        dropped(inner).map_err(|error| NotClosed {
            connection: None,
            error,
        })
    }

    fn fd_ceiling(&self, max_connections: usize) -> usize {
        self.timing.fds_per_connection.unwrap_or(0) * max_connections
    }

    fn observe(&self, stats: &mut Stats) {
        stats.probes = self.probes.load(Relaxed);
    }

    fn check(&self) -> Result<(), Error> {
        match self.health.last_failure(&self.name) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}
