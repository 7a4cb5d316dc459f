//! Awaited: connections of a bb8 manager. Every call of the manager and of a callback is a task on the user's runtime, and a
//! thread of the core waits for it: so no future of a caller's holds a connection halfway.
//! It does not decide when: the core does.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bb8::ManageConnection;
use tokio::runtime::Handle;

use super::remote::{Remote, Server};
use super::session::Session;
use super::{Fault, Hooks, NoAnswer, dropped};
use crate::error::Error;
use crate::sync::wait::{await_until, block_on};

/// The kind of pool that lends the connections of a bb8 manager: [`Pool::awaited`](crate::Pool::awaited).
pub struct Awaited<M: ManageConnection> {
    server: Server,
    manager: Arc<M>,
    runtime: Handle,
    hooks: Hooks<Callback<M::Connection>, M::Error>,
}

/// What a callback returns.
pub(crate) type Work<'a, E = Fault> = Pin<Box<dyn Future<Output = Result<(), E>> + Send + 'a>>;

/// A callback that works on a connection.
pub(crate) type Callback<C> = Arc<dyn for<'a> Fn(&'a mut C) -> Work<'a> + Send + Sync>;

impl<M: ManageConnection> std::fmt::Debug for Awaited<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Awaited")
            .field("name", &self.server.name())
            .finish_non_exhaustive()
    }
}

impl<M: ManageConnection> Awaited<M> {
    /// Waits for a task of the runtime. It fails if the runtime has ended, or if the task panics.
    fn task<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Error> {
        block_on(self.runtime.spawn(work)).map_err(|error| match error.try_into_panic() {
            Ok(panic) => Error::panicked("the manager or a callback", panic),
            Err(_) => Error::NoRuntime,
        })
    }

    /// Lends the connection to a task. If its work panics, the connection comes back all the same, to be closed on a thread
    /// of the pool; if the runtime ends, it is lost. The task may take as long as the server does: a client that is dropped
    /// with a question unanswered keeps its place at the server, so its place in the pool stays taken, too.
    fn with<W>(&self, session: &mut Session<M::Connection>, work: W) -> bool
    where
        W: TaskWork<M::Connection>,
    {
        let Some(mut inner) = session.take() else {
            return false;
        };
        let done = self.task(async move {
            let sound = caught("a callback", work.on(&mut inner)).await;
            (inner, matches!(sound, Ok(true)))
        });
        done.is_ok_and(|(inner, sound)| {
            session.put_back(inner);
            sound
        })
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
            Err(panic) => Poll::Ready(Err(Error::panicked(what, panic))),
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

impl<M> Remote for Awaited<M>
where
    M: ManageConnection<Error: std::error::Error + Sync>,
{
    type ManagerError = M::Error;
    type Inner = M::Connection;
    type Callback = Callback<M::Connection>;
    type Parts = (M, Handle);

    const HAS_BROKEN_MAY_WAIT: bool = false;

    fn new(
        server: Server,
        (manager, runtime): Self::Parts,
        hooks: Hooks<Self::Callback, M::Error>,
    ) -> Self {
        Awaited {
            server,
            manager: Arc::new(manager),
            runtime,
            hooks,
        }
    }

    fn server(&self) -> &Server {
        &self.server
    }

    fn hooks(&self) -> &Hooks<Self::Callback, M::Error> {
        &self.hooks
    }

    fn connect(&self) -> Result<M::Connection, Fault> {
        let on_open = self.hooks.on_open.clone();
        let within = self.server.open_timeout();
        let opened = Self::opened(Arc::clone(&self.manager), on_open, within);
        self.task(opened)?.map_err(|(fault, connection)| {
            // Its drop may be what closes it, and may wait for that.
            let _ = self.close(connection);
            fault
        })
    }

    fn has_broken(&self, connection: &mut M::Connection) -> bool {
        self.manager.has_broken(connection)
    }

    fn is_valid(&self, session: &mut Session<M::Connection>) -> bool {
        self.with(session, Ask(Arc::clone(&self.manager)))
    }

    fn run(&self, callback: &Self::Callback, session: &mut Session<M::Connection>) -> bool {
        self.with(session, Call(Arc::clone(callback)))
    }

    fn close(&self, connection: Option<M::Connection>) -> Result<(), Error> {
        let _runtime = self.runtime.enter();
        dropped(connection)
    }
}
