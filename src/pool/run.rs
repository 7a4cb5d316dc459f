//! SQL that may take long, off the async threads: the feature `tokio`.
//! It moves a lease to a blocking thread and back, and interrupts it; it decides nothing else.

use std::any::Any;
use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::Pool;
use super::agent::Agent;
use super::lease::Lease;
use super::pooled::{Backend, Pooled, Target};
use crate::core::agent_name::AgentName;
use crate::error::Error;
use crate::sync::alarm::Alarm;

type Done<B, R> = Result<(Lease<B>, R), Box<dyn Any + Send>>;

/// Work on its way. Dropping it calls the work off.
struct Running<B: Pooled, R> {
    task: JoinHandle<Done<B, R>>,
    call_off: Option<Box<dyn FnOnce() + Send>>,
}

impl Lease {
    /// Runs `work` on the lease's connection on one of tokio's blocking threads, and gives the lease
    /// back with what `work` returned.
    ///
    /// For SQL that may take long or wait for a lock. Short indexed reads are better done directly:
    /// the way to another thread and back costs more than they do.
    ///
    /// If the future is dropped, the statement that is running is interrupted
    /// (`sqlite3_interrupt`), and so is every later one, and a wait for a lock ends; the transaction is
    /// rolled back, and the lease ends, within 50 ms or as soon as `work` returns.
    ///
    /// While `work` runs, locks are waited for as long as `busy_timeout` of the builder says; afterwards the
    /// connection is back to that, whatever `work` or the lease had set.
    ///
    /// ```
    /// # use leasepool::{Database, Lease, Pool};
    /// # async fn report(pool: &Pool) -> Result<i64, Box<dyn std::error::Error>> {
    /// let lease = pool.lease_async("alice").await?;
    /// let (lease, words) = Lease::run(lease, |conn| {
    ///     conn.query_row("SELECT sum(length(body)) FROM note", [], |row| row.get(0))
    /// })
    /// .await?;
    /// drop(lease);
    /// # Ok(words?)
    /// # }
    /// ```
    ///
    /// # Errors
    /// - [`Error::Panicked`] if `work` panics. The lease has then ended, and the connection is reset before
    ///   any agent gets it, including the same one.
    /// - [`Error::NoRuntime`] outside of a tokio runtime, or if that is shutting down.
    pub fn run<F, R>(lease: Self, work: F) -> impl Future<Output = Result<(Self, R), Error>>
    where
        F: FnOnce(&mut Connection) -> R + Send + 'static,
        R: Send + 'static,
    {
        run_until(lease, None, work)
    }
}

impl Pool {
    /// Leases a connection as [`Pool::lease_async`] does, runs `work` on it on one of tokio's blocking threads, and ends
    /// the lease. For SQL that may take long or wait for a lock.
    ///
    /// ```
    /// # use leasepool::{Error, Pool};
    /// # async fn report(pool: &Pool) -> Result<i64, Error> {
    /// pool.run("alice", |conn| {
    ///     conn.query_row("SELECT sum(length(body)) FROM note", [], |row| row.get(0))
    /// })
    /// .await
    /// # }
    /// ```
    ///
    /// If `work` may fail in its own ways, see [`Agent::run_and_then`].
    ///
    /// # Cancel safety
    /// Dropping the future interrupts `work` as [`Lease::run`] does.
    ///
    /// # Errors
    /// What `work` returns, as [`Error::Sqlite`]; those of [`Pool::lease`] and of [`Lease::run`].
    #[track_caller]
    pub fn run<T, F>(
        &self,
        agent: impl Display,
        work: F,
    ) -> impl Future<Output = Result<T, Error>> + Send
    where
        F: FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        let (agent, place) = (AgentName::of(agent), Location::caller());
        async move {
            let run = self.run_at(agent?.as_str(), None, place, work).await;
            Ok(run??)
        }
    }
}

impl<B: Backend> Pool<B> {
    pub(super) async fn run_at<F, R>(
        &self,
        agent: &str,
        timeout: Option<Duration>,
        place: &'static Location<'static>,
        work: F,
    ) -> Result<R, Error>
    where
        F: FnOnce(&mut Target<B>) -> R + Send + 'static,
        R: Send + 'static,
    {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let wait = timeout.unwrap_or(self.lease_timeout());
        let lease = self.lease_async_within(agent, wait, place).await?;
        let (lease, result) = run_until(lease, deadline, work).await?;
        drop(lease);
        Ok(result)
    }
}

impl Agent {
    /// Runs `work` on a connection of the agent, outside the async threads: [`Pool::run`].
    ///
    /// After [`Agent::within`], the wait for a connection and `work` together take at most the time given there. When that
    /// has passed, `work` is interrupted as by dropping the future, and the call returns without waiting for its end.
    ///
    /// # Errors
    /// Those of [`Pool::run`]; [`Error::Interrupted`] if the time passed while `work` was running.
    #[track_caller]
    pub fn run<T, F>(&self, work: F) -> impl Future<Output = Result<T, Error>> + Send
    where
        F: FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        self.run_and_then(|conn| Ok(work(conn)?))
    }

    /// Like [`Agent::run`], for `work` that may fail in ways of its own: with any error that an [`Error`] converts to.
    ///
    /// # Errors
    /// What `work` returns; or those of [`Agent::run`], as its error type.
    #[track_caller]
    pub fn run_and_then<T, E, F>(&self, work: F) -> impl Future<Output = Result<T, E>> + Send
    where
        F: FnOnce(&mut Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.run_from(Location::caller(), work)
    }
}

impl<B: Backend> Agent<B> {
    /// [`Agent::run_and_then`], of every pool whose connections may block, called from this place.
    pub(super) async fn run_from<T, E, F>(
        &self,
        place: &'static Location<'static>,
        work: F,
    ) -> Result<T, E>
    where
        F: FnOnce(&mut Target<B>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (agent, within) = (self.borrower()?, self.asked_within());
        self.pool().run_at(agent, within, place, work).await?
    }
}

async fn run_until<B, F, R>(
    lease: Lease<B>,
    deadline: Option<Instant>,
    work: F,
) -> Result<(Lease<B>, R), Error>
where
    B: Backend,
    F: FnOnce(&mut Target<B>) -> R + Send + 'static,
    R: Send + 'static,
{
    let runtime = Handle::try_current().map_err(|_| Error::NoRuntime)?;
    let started = Instant::now();
    let cancel = B::Cancel::default();
    let call_off = B::call_off(&lease, cancel.clone());
    let mut running = Running {
        task: runtime.spawn_blocking(move || work_on(lease, &cancel, work)),
        call_off: Some(call_off),
    };
    let Some(done) = running.finished_by(deadline).await else {
        return Err(Error::Interrupted {
            after: started.elapsed(),
        });
    };
    running.call_off = None;
    match done {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(panic)) => Err(Error::panicked("the work given to run", panic)),
        // `work_on` does not panic: the runtime dropped the work before it began.
        Err(_) => Err(Error::NoRuntime),
    }
}

fn work_on<B, F, R>(mut lease: Lease<B>, cancel: &B::Cancel, work: F) -> Done<B, R>
where
    B: Backend,
    F: FnOnce(&mut Target<B>) -> R,
{
    // The lease ends with a panic, and no agent gets the connection without a reset.
    let lent = lease.checkout_mut();
    match catch_unwind(AssertUnwindSafe(|| B::cancellable(lent, cancel, work))) {
        Ok(result) => Ok((lease, result)),
        Err(panic) => {
            lease.checkout_mut().free_at_end();
            drop(lease);
            Err(panic)
        }
    }
}

impl<B: Pooled, R> Running<B, R> {
    /// What the task returned, or `None` if the deadline came first.
    async fn finished_by(
        &mut self,
        deadline: Option<Instant>,
    ) -> Option<Result<Done<B, R>, tokio::task::JoinError>> {
        let mut alarm = deadline.map(Alarm::at);
        poll_fn(|cx| {
            if let Poll::Ready(done) = Pin::new(&mut self.task).poll(cx) {
                return Poll::Ready(Some(done));
            }
            match &mut alarm {
                Some(alarm) => alarm.poll(cx).map(|()| None),
                None => Poll::Pending,
            }
        })
        .await
    }
}

impl<B: Pooled, R> Drop for Running<B, R> {
    fn drop(&mut self) {
        if let Some(call_off) = self.call_off.take() {
            // Work that has not begun never will; the runtime drops it, and so the lease.
            self.task.abort();
            call_off();
        }
    }
}
