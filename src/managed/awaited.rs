//! Awaited: connections of a bb8 manager. Every call of the manager and of a callback is a task on the user's runtime, and a
//! thread of the core waits for it: so no future of a caller's holds a connection halfway.
//! It does not decide when: the core does.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Poll;
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

impl<M: ManageConnection> std::fmt::Debug for Awaited<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Awaited")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
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

    /// Lends the connection to a task. If its work panics, the connection comes back all the same, to be closed on a thread
    /// of the pool; if the runtime ends, it is lost. The task may take as long as the server does: a client that is dropped
    /// with a question unanswered keeps its place at the server, so its place in the pool stays taken, too.
    fn with<W>(&self, connection: &mut Remote<M::Connection>, work: W) -> bool
    where
        W: TaskWork<M::Connection>,
    {
        let Some(mut inner) = connection.take() else {
            return false;
        };
        let done = self.task(async move {
            let sound = caught("a callback", work.on(&mut inner)).await;
            (inner, matches!(sound, Ok(true)))
        });
        let sound = done.is_ok_and(|(inner, sound)| {
            connection.put_back(inner);
            sound
        });
        if !sound {
            connection.broke(&self.health);
        }
        sound
    }

    /// Connects, and runs `on_open`. What was connected comes back also if that fails.
    async fn opened(
        manager: Arc<M>,
        on_open: Option<Callback<M::Connection>>,
        within: Duration,
    ) -> Result<M::Connection, (Fault, Option<M::Connection>)>
    where
        M::Error: std::error::Error + Sync,
    {
        let until = Instant::now() + within;
        let no_answer = || Box::new(NoAnswer { within }) as Fault;
        let connecting = pin!(caught("the manager's connect", manager.connect()));
        let mut connection = match await_until(until, connecting).await {
            Some(Ok(Ok(connection))) => connection,
            Some(Ok(Err(error))) => return Err((Box::new(error), None)),
            Some(Err(panicked)) => return Err((Box::new(panicked), None)),
            None => return Err((no_answer(), None)),
        };
        let Some(on_open) = on_open else {
            return Ok(connection);
        };
        let done = {
            let opening = pin!(caught("on_open", async { on_open(&mut connection).await }));
            await_until(until, opening).await
        };
        let done = match done {
            Some(Ok(done)) => done,
            Some(Err(panicked)) => Err(Box::new(panicked) as Fault),
            None => Err(no_answer()),
        };
        match done {
            Ok(()) => Ok(connection),
            Err(fault) => Err((fault, Some(connection))),
        }
    }
}

/// Work of the user's. A panic in it is an error.
async fn caught<T>(what: &'static str, work: impl Future<Output = T>) -> Result<T, Error> {
    let mut work = pin!(work);
    poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx)));
        match polled {
            Ok(polled) => polled.map(Ok),
            Err(panic) => Poll::Ready(Err(super::panicked(what, panic))),
        }
    })
    .await
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
        match self.task(Self::opened(manager, on_open, within)) {
            Ok(Ok(connection)) => {
                self.health.opened();
                Ok(Remote::new(connection, incidents))
            }
            Ok(Err((fault, connection))) => {
                // Its drop may be what closes it, and may wait for that.
                let _runtime = self.runtime.enter();
                let _ = dropped(connection);
                Err(self.health.failed(&self.name, fault))
            }
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
    fn needs(&self, connection: &mut Self::Connection, now: Instant) -> CheckNeeded {
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
