//! Remote: the backend over a server, whatever kind of manager reaches it. What differs between the managers of r2d2 and
//! those of bb8 is in [`Remote`].
//! It does not decide when a connection is settled, probed, reset or closed: the core does.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::health::Health;
use super::session::Session;
use super::{Fault, Hooks, NoAnswer, Timing, quietly};
use crate::core::backend::{Backend, CheckNeeded, CloseMode, Fate, NotClosed, Patience};
use crate::error::Error;
use crate::observe::stats::Stats;
use crate::sync::jitter::fraction;

/// A kind of pool whose connections lead to a server: [`Managed`](crate::Managed) or [`Awaited`](crate::Awaited). It is
/// sealed.
pub trait Remote: Send + Sync + Sized + 'static {
    /// The error of its manager.
    type ManagerError: 'static;

    /// The connection of the manager.
    #[doc(hidden)]
    type Inner: Send + 'static;
    #[doc(hidden)]
    type Callback: 'static;
    /// What the user gave, apart from callbacks.
    #[doc(hidden)]
    type Parts;
    /// Whether the manager's `has_broken` may ask the server.
    #[doc(hidden)]
    const HAS_BROKEN_MAY_WAIT: bool;

    #[doc(hidden)]
    fn new(
        server: Server,
        parts: Self::Parts,
        hooks: Hooks<Self::Callback, Self::ManagerError>,
    ) -> Self;

    #[doc(hidden)]
    fn server(&self) -> &Server;

    #[doc(hidden)]
    fn hooks(&self) -> &Hooks<Self::Callback, Self::ManagerError>;

    /// Connects, and runs `on_open`.
    #[doc(hidden)]
    fn connect(&self) -> Result<Self::Inner, Fault>;

    /// The manager's `has_broken`.
    #[doc(hidden)]
    fn has_broken(&self, inner: &mut Self::Inner) -> bool;

    /// The manager's `is_valid`. Returns the answer.
    #[doc(hidden)]
    fn is_valid(&self, session: &mut Session<Self::Inner>) -> bool;

    /// Runs a callback. Returns whether it succeeded.
    #[doc(hidden)]
    fn run(&self, callback: &Self::Callback, session: &mut Session<Self::Inner>) -> bool;

    #[doc(hidden)]
    fn close(&self, inner: Option<Self::Inner>) -> Result<(), Error>;
}

/// What the pool knows of a server.
pub struct Server {
    name: String,
    timing: Timing,
    health: Health,
    probes: AtomicU64,
}

impl Server {
    pub(crate) fn new(name: String, timing: Timing) -> Self {
        Server {
            name,
            timing,
            health: Health::default(),
            probes: AtomicU64::new(0),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    #[cfg(feature = "bb8")]
    pub(super) fn open_timeout(&self) -> Duration {
        self.timing.open_timeout
    }

    fn failed(&self, fault: Fault) -> Error {
        self.health.failed(&self.name, fault)
    }

    /// Whether the server must be asked if this connection is sound.
    fn must_ask<C>(&self, session: &Session<C>, now: Instant) -> bool {
        let idle = now.saturating_duration_since(session.idle_since());
        session.is_suspect(&self.health) || idle >= self.timing.probe_after
    }
}

/// Asks the manager whether the connection is broken.
fn has_broken<R: Remote>(remote: &R, session: &mut Session<R::Inner>) -> bool {
    let broken = match session.inner_mut() {
        Some(inner) => quietly(|| remote.has_broken(inner)).unwrap_or(true),
        None => true,
    };
    session.checked();
    if broken {
        session.broke(&remote.server().health);
    }
    broken
}

/// Runs a callback on a connection. Returns whether the connection can still serve.
fn call<R: Remote>(remote: &R, callback: &R::Callback, session: &mut Session<R::Inner>) -> Fate {
    if !remote.run(callback, session) {
        session.broke(&remote.server().health);
        return Fate::Discard;
    }
    match has_broken(remote, session) {
        true => Fate::Discard,
        false => Fate::Reuse,
    }
}

/// Whether the error says that its connection is broken.
pub(crate) fn says_broken<R: Remote>(remote: &R, error: &R::ManagerError) -> bool {
    let is_broken = remote.hooks().is_broken.as_ref();
    is_broken.is_none_or(|is_broken| quietly(|| is_broken(error)).unwrap_or(true))
}

/// A borrower has reported an error that says that its connection is broken.
pub(crate) fn reported<R: Remote>(remote: &R, session: &Session<R::Inner>) {
    session.report();
    session.broke(&remote.server().health);
}

impl<R: Remote> Backend for R {
    type Connection = Session<R::Inner>;

    const IS_REMOTE: bool = true;

    fn open(&self, _: &str, _: &Patience<'_>) -> Result<Self::Connection, Error> {
        let server = self.server();
        let incidents = server.health.incidents();
        match self.connect() {
            Ok(inner) => {
                server.health.opened();
                Ok(Session::new(inner, incidents))
            }
            Err(fault) => Err(server.failed(fault)),
        }
    }

    fn refresh(&self, _: Instant) {}

    fn generation(&self) -> u64 {
        0
    }

    fn is_current(&self, _: &Self::Connection) -> bool {
        true
    }

    fn is_to_settle(&self, session: &mut Self::Connection) -> bool {
        session.end_use() && self.hooks().settle.is_some() || session.is_reported()
    }

    fn settle(&self, session: &mut Self::Connection) -> Fate {
        match &self.hooks().settle {
            _ if session.is_reported() => Fate::Discard,
            Some(settle) => call(self, settle, session),
            None => Fate::Reuse,
        }
    }

    #[inline]
    fn needs(&self, session: &mut Self::Connection, now: Instant) -> CheckNeeded {
        let mut asks = self.server().must_ask(session, now);
        if session.is_unchecked() {
            if R::HAS_BROKEN_MAY_WAIT {
                asks = true;
            } else if has_broken(self, session) {
                return CheckNeeded::Close;
            }
        }
        match asks {
            true => CheckNeeded::Probe,
            false => CheckNeeded::None,
        }
    }

    fn probe(&self, session: &mut Self::Connection) -> Fate {
        let server = self.server();
        let incidents = server.health.incidents();
        let asks = server.must_ask(session, Instant::now());
        if has_broken(self, session) {
            return Fate::Discard;
        }
        if !asks {
            return Fate::Reuse;
        }
        server.probes.fetch_add(1, Relaxed);
        if !self.is_valid(session) {
            session.broke(&server.health);
            return Fate::Discard;
        }
        session.is_sound_as_of(incidents);
        Fate::Reuse
    }

    fn is_to_reset(&self, session: &Self::Connection) -> bool {
        session.is_dirty()
    }

    fn reset(&self, session: &mut Self::Connection) -> Fate {
        // Only the user can know what an agent has left.
        let Some(reset) = &self.hooks().reset else {
            return Fate::Discard;
        };
        let fate = call(self, reset, session);
        if fate == Fate::Reuse {
            session.was_reset();
        }
        fate
    }

    fn probe_timeout(&self) -> Option<Duration> {
        Some(self.server().timing.probe_timeout)
    }

    fn probe_timed_out(&self) {
        self.server().health.incident();
    }

    fn open_timeout(&self) -> Option<Duration> {
        Some(self.server().timing.open_timeout)
    }

    fn open_timed_out(&self) -> Error {
        let server = self.server();
        let within = server.timing.open_timeout;
        server.failed(Box::new(NoAnswer { within }))
    }

    fn is_failing(&self) -> bool {
        self.server().health.is_failing()
    }

    fn can_reset(&self, session: &Self::Connection) -> bool {
        self.hooks().reset.is_some() || !session.is_dirty()
    }

    fn back_off(&self, now: Instant) -> Option<(Instant, Error)> {
        let server = self.server();
        server.health.back_off(&server.name, now)
    }

    fn age_when_opened(&self, max_lifetime: Duration) -> Duration {
        max_lifetime.mul_f64(fraction() / 10.0)
    }

    fn close(
        &self,
        mut session: Self::Connection,
        _: CloseMode,
    ) -> Result<(), NotClosed<Self::Connection>> {
        Remote::close(self, session.take()).map_err(|error| NotClosed {
            connection: None,
            error,
        })
    }

    fn fd_ceiling(&self, max_connections: usize) -> usize {
        self.server().timing.fds_per_connection.unwrap_or(0) * max_connections
    }

    fn observe(&self, stats: &mut Stats) {
        stats.probes = self.server().probes.load(Relaxed);
    }

    fn check(&self) -> Result<(), Error> {
        let server = self.server();
        match server.health.last_failure(&server.name) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}
