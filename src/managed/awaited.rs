//! Awaited: connections of a bb8 manager. Every call of the manager and of a callback is a task on the user's runtime, and a
//! thread of the core waits for it: so no future of a caller's holds a connection halfway.
//! It does not decide when: the core does.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bb8::ManageConnection;
use tokio::runtime::Handle;

use super::health::{Health, fraction};
use super::remote::Remote;
use super::{Fault, IsBroken, NoAnswer, Timing, dropped, panicked};
use crate::core::backend::{Backend, CheckNeeded, CloseMode, Fate, NotClosed, Patience};
use crate::error::Error;
use crate::observe::stats::Stats;
use crate::sync::wait::{await_until, block_on};

/// The kind of pool that lends the connections of a bb8 manager: [`Pool::awaited`](crate::Pool::awaited).
pub struct Awaited<M: ManageConnection> {
    name: String,
    manager: Arc<M>,
    hooks: AwaitedHooks<M>,
    runtime: Handle,
    timing: Timing,
    health: Health,
    probes: AtomicU64,
}

/// What a callback returns.
type Work<'a> = Pin<Box<dyn Future<Output = Result<(), Fault>> + Send + 'a>>;

/// A callback that works on a connection.
type Callback<C> = Arc<dyn for<'a> Fn(&'a mut C) -> Work<'a> + Send + Sync>;

/// The callbacks given to the builder.
pub(crate) struct AwaitedHooks<M: ManageConnection> {
    pub(crate) on_open: Option<Callback<M::Connection>>,
    pub(crate) settle: Option<Callback<M::Connection>>,
    pub(crate) reset: Option<Callback<M::Connection>>,
    pub(crate) is_broken: Option<IsBroken<M::Error>>,
}

impl<M: ManageConnection> Default for AwaitedHooks<M> {
    fn default() -> Self {
        AwaitedHooks {
            on_open: None,
            settle: None,
            reset: None,
            is_broken: None,
        }
    }
}

impl<M: ManageConnection> Awaited<M> {
    pub(crate) fn new(
        name: String,
        manager: M,
        hooks: AwaitedHooks<M>,
        runtime: Handle,
        timing: Timing,
    ) -> Self {
        Awaited {
            name,
            manager: Arc::new(manager),
            hooks,
            runtime,
            timing,
            health: Health::default(),
            probes: AtomicU64::new(0),
        }
    }

    /// Whether the error says that its connection is broken.
    pub(crate) fn is_broken(&self, error: &M::Error) -> bool {
        let is_broken = self.hooks.is_broken.as_ref();
        is_broken.is_none_or(|is_broken| {
            catch_unwind(AssertUnwindSafe(|| is_broken(error))).unwrap_or(true)
        })
    }

    /// Waits for a task of the runtime. It fails if the runtime has ended, or if the task panics.
    fn task<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Error> {
        block_on(self.runtime.spawn(work)).map_err(|error| match error.try_into_panic() {
            Ok(panic) => panicked("the manager or a callback", panic),
            Err(_) => Error::NoRuntime,
        })
    }

    /// A borrower has reported an error that says that its connection is broken.
    pub(crate) fn reported(&self, connection: &Remote<M::Connection>) {
        connection.report();
        connection.broke(&self.health);
    }

    fn has_broken(&self, connection: &mut Remote<M::Connection>) -> bool {
        let Some(inner) = connection.inner_mut() else {
            return true;
        };
        let manager = &self.manager;
        let broken = catch_unwind(AssertUnwindSafe(|| manager.has_broken(inner))).unwrap_or(true);
        connection.checked();
        if broken {
            connection.broke(&self.health);
        }
        broken
    }

    /// Runs a callback on a connection. Returns whether the connection can still serve.
    fn call(
        &self,
        callback: &Callback<M::Connection>,
        connection: &mut Remote<M::Connection>,
    ) -> bool {
        let done = self.with(connection, Call(Arc::clone(callback)));
        done && !self.has_broken(connection)
    }

    /// Lends the connection to a task. If the task panics, or its runtime ends, the connection is lost, and so closed. It
    /// may take as long as the server does: a client that is dropped with a question unanswered keeps its place at the
    /// server, so its place in the pool stays taken, too.
    fn with<W>(&self, connection: &mut Remote<M::Connection>, work: W) -> bool
    where
        W: TaskWork<M::Connection>,
    {
        let Some(mut inner) = connection.take() else {
            return false;
        };
        let done = self.task(async move {
            let sound = work.on(&mut inner).await;
            (inner, sound)
        });
        match done {
            Ok((inner, sound)) => {
                connection.put_back(inner);
                if !sound {
                    connection.broke(&self.health);
                }
                sound
            }
            Err(_) => {
                connection.broke(&self.health);
                false
            }
        }
    }
}

/// Work on a connection, in a task.
trait TaskWork<C>: Send + 'static {
    fn on(self, connection: &mut C) -> impl Future<Output = bool> + Send;
}

/// A callback.
struct Call<C>(Callback<C>);

impl<C: Send + 'static> TaskWork<C> for Call<C> {
    async fn on(self, connection: &mut C) -> bool {
        (self.0)(connection).await.is_ok()
    }
}

/// The manager's own question.
struct Ask<M>(Arc<M>);

impl<M: ManageConnection> TaskWork<M::Connection> for Ask<M> {
    async fn on(self, connection: &mut M::Connection) -> bool {
        self.0.is_valid(connection).await.is_ok()
    }
}

impl<M> Backend for Awaited<M>
where
    M: ManageConnection<Error: std::error::Error + Sync>,
{
    type Connection = Remote<M::Connection>;

    const IS_REMOTE: bool = true;

    fn open(&self, _: &str, _: &Patience<'_>) -> Result<Self::Connection, Error> {
        let incidents = self.health.incidents();
        let (manager, on_open) = (Arc::clone(&self.manager), self.hooks.on_open.clone());
        let within = self.timing.open_timeout;
        let opened = self.task(async move {
            let opening = pin!(async {
                let mut connection = manager.connect().await?;
                if let Some(on_open) = on_open {
                    on_open(&mut connection).await?;
                }
                Ok::<_, Fault>(connection)
            });
            match await_until(Instant::now() + within, opening).await {
                Some(opened) => opened,
                None => Err(Box::new(NoAnswer { within }) as Fault),
            }
        });
        match opened {
            Ok(Ok(connection)) => {
                self.health.opened();
                Ok(Remote::new(connection, incidents))
            }
            Ok(Err(fault)) => Err(self.health.failed(&self.name, fault)),
            Err(error) => Err(self.health.failed(&self.name, Box::new(error))),
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
        connection.end_use() && self.hooks.settle.is_some() || connection.is_reported()
    }

    fn settle(&self, connection: &mut Self::Connection) -> Fate {
        if connection.is_reported() {
            return Fate::Discard;
        }
        match &self.hooks.settle {
            Some(settle) if !self.call(settle, connection) => Fate::Discard,
            _ => Fate::Reuse,
        }
    }

    #[inline]
    fn needs(&self, connection: &mut Self::Connection, now: Instant, _: bool) -> CheckNeeded {
        if connection.is_unchecked() && self.has_broken(connection) {
            return CheckNeeded::Close;
        }
        let idle = now.saturating_duration_since(connection.idle_since());
        match connection.is_suspect(&self.health) || idle >= self.timing.probe_after {
            true => CheckNeeded::Probe,
            false => CheckNeeded::None,
        }
    }

    fn probe(&self, connection: &mut Self::Connection) -> Fate {
        self.probes.fetch_add(1, Relaxed);
        let incidents = self.health.incidents();
        if self.has_broken(connection) || !self.with(connection, Ask(Arc::clone(&self.manager))) {
            return Fate::Discard;
        }
        connection.is_sound_as_of(incidents);
        Fate::Reuse
    }

    fn is_to_reset(&self, connection: &Self::Connection) -> bool {
        connection.is_dirty()
    }

    fn reset(&self, connection: &mut Self::Connection) -> Fate {
        // Nobody else can know what an agent has left.
        match &self.hooks.reset {
            Some(reset) if self.call(reset, connection) => {
                connection.was_reset();
                Fate::Reuse
            }
            _ => Fate::Discard,
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
        self.hooks.reset.is_some() || !connection.is_dirty()
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
        let _runtime = self.runtime.enter();
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
