//! SQL that may take long, off the async threads: the calls that users make. `work` does it.
//! Nothing is begun here.

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::Pool;
use super::agent::Agent;
use super::lease::Lease;
use super::pooled::{Backend, Pooled, Target};
use super::work::Order;
use crate::core::agent_name::AgentName;
use crate::error::Error;
use crate::observe::call_site::CallSite;
use crate::observe::spans::Span;
use crate::sqlite::Sqlite;

const RUN: &str = "the work given to run";

impl Lease {
    /// Runs `work` on the lease's connection on a thread of the pool, and gives the lease
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
    /// - [`Error::NoThread`] if no thread can be started.
    #[track_caller]
    pub fn run<F, R>(lease: Self, work: F) -> impl Future<Output = Result<(Self, R), Error>>
    where
        F: FnOnce(&mut Connection) -> R + Send + 'static,
        R: Send + 'static,
    {
        lease.hand_over(RUN, CallSite::here(), |lent, begun| {
            Sqlite::interruptible(lent, begun.cancel, work)
        })
    }
}

impl Pool {
    /// Leases a connection, runs `work` on it, and ends the lease, all on a thread of the pool; for SQL that may take long
    /// or wait for a lock. It awaits on any executor.
    ///
    /// The wait for a thread and for a connection takes at most `lease_timeout`. As many calls run at the same time as there
    /// are processors, and more where work takes long: at most as many as there are connections.
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
        let (agent, place) = (AgentName::of(agent), CallSite::here());
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
        place: CallSite,
        work: F,
    ) -> Result<R, Error>
    where
        F: FnOnce(&mut Target<B>) -> R + Send + 'static,
        R: Send + 'static,
    {
        let order = Order {
            call: RUN,
            agent: Arc::from(agent),
            place,
            asked_at: Instant::now(),
            wait: Some(timeout.unwrap_or(self.lease_timeout())),
            within: timeout,
            span: Span::run(self.name(), agent, place),
        };
        self.hand_over(order, |lent, begun| {
            B::interruptible(lent, begun.cancel, work)
        })
        .await
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
        self.run_from(self.here(), work)
    }
}

impl<B: Backend> Agent<B> {
    /// [`Agent::run_and_then`], of every pool whose connections may block, called from this place.
    pub(super) async fn run_from<T, E, F>(&self, place: CallSite, work: F) -> Result<T, E>
    where
        F: FnOnce(&mut Target<B>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (agent, within) = (self.borrower()?, self.asked_within());
        self.pool().run_at(agent, within, place, work).await?
    }
}
