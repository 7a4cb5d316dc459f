//! Reading one snapshot: the calls that users make. `sqlite::read` does the work.
//! Nothing is begun here.

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Transaction;

use super::Pool;
use super::agent::Agent;
use super::pooled::Lent;
use super::work::{Begun, Order};
use crate::core::agent_name::AgentName;
use crate::core::reentrancy::{self, Within};
use crate::error::Error;
use crate::observe::call_site::CallSite;
use crate::observe::spans::Span;
use crate::sqlite::{Sqlite, until};

impl Pool {
    /// Leases a connection, runs `work` in one read transaction on it, and returns what `work` returned. All statements of
    /// `work` see one snapshot: the database as the last commit before `work` left it, whatever others commit meanwhile.
    /// In WAL mode it keeps no writer from writing, but the log cannot begin anew while it lasts.
    ///
    /// ```
    /// use leasepool::{Database, Pool};
    ///
    /// # fn main() -> Result<(), leasepool::Error> {
    /// # let pool = Pool::builder(Database::memory())
    /// #     .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS note (agent, body)"))
    /// #     .build()?;
    /// let (notes, agents): (i64, i64) = pool.read("alice", |tx| {
    ///     let notes = tx.query_row("SELECT count(*) FROM note", [], |row| row.get(0))?;
    ///     let agents = tx.query_row("SELECT count(DISTINCT agent) FROM note", [], |row| row.get(0))?;
    ///     Ok((notes, agents)) // of the same moment
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// `work` runs on the caller's thread, so it may borrow what it uses. If `work` may fail in its own ways, see
    /// [`Agent::read_and_then`].
    ///
    /// # What `work` may not do
    /// It can change nothing: `PRAGMA query_only` is on until it ends. A statement that would write, also to a temporary
    /// table, fails with SQLite's error for a read-only database (`SQLITE_READONLY`). `work` may use savepoints; BEGIN,
    /// COMMIT, ROLLBACK and the pragmas `query_only`, `journal_mode` and `locking_mode` are refused. Whatever `work` does,
    /// also if it panics, its transaction ends with it, and the connection is as writable as before. If the pool cannot
    /// tell that, it resets or closes the connection before another borrower gets it.
    ///
    /// # Errors
    /// - What `work` returns, as [`Error::Sqlite`].
    /// - Those of [`Pool::lease`].
    /// - [`Error::Sqlite`] if the snapshot cannot be taken: `SQLITE_BUSY` if another process keeps the file locked until
    ///   `lease_timeout` has passed.
    /// - [`Error::Panicked`] if `work` panics, [`Error::SnapshotLost`] if it ends its transaction.
    ///
    /// # Blocking
    /// Like [`Pool::lease`], and then for as long as `work` takes.
    #[track_caller]
    pub fn read<T, F>(&self, agent: impl Display, work: F) -> Result<T, Error>
    where
        F: FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    {
        let agent = AgentName::of(agent)?;
        let wait = self.lease_timeout();
        let read = self.read_within(agent.as_str(), wait, CallSite::here(), work);
        Ok(read??)
    }

    /// Like [`Pool::read`], for async code, on any executor: `work` runs on a thread of the pool.
    ///
    /// ```
    /// # use leasepool::{Error, Pool};
    /// # async fn report(pool: &Pool) -> Result<i64, Error> {
    /// pool.read_async("alice", |tx| {
    ///     tx.query_row("SELECT sum(length(body)) FROM note", [], |row| row.get(0))
    /// })
    /// .await
    /// # }
    /// ```
    ///
    /// # Cancel safety
    /// If the future is dropped before `work` has begun, `work` never begins. Once it has begun, dropping the future
    /// interrupts its statements, as [`Lease::run`](crate::Lease::run) does.
    ///
    /// # Errors
    /// Those of [`Pool::read`], and [`Error::NoThread`] if no thread can be started.
    #[track_caller]
    pub fn read_async<T, F>(
        &self,
        agent: impl Display,
        work: F,
    ) -> impl Future<Output = Result<T, Error>> + Send
    where
        F: FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        let (agent, place) = (AgentName::of(agent), CallSite::here());
        async move {
            let (agent, wait) = (agent?, self.lease_timeout());
            let read = self.read_async_within(agent.as_str(), wait, place, work);
            Ok(read.await??)
        }
    }

    fn read_within<T, E>(
        &self,
        agent: &str,
        wait: Duration,
        place: CallSite,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<Result<T, E>, Error> {
        let deadline = Instant::now() + wait;
        let mut lease = self.lease_within(agent, Some(wait), place)?;
        read(lease.checkout_mut(), until(deadline), work)
    }

    /// The errors are two, so that the user's `From` runs on the caller's thread.
    pub(crate) async fn read_async_within<T, E, F>(
        &self,
        agent: &str,
        wait: Duration,
        place: CallSite,
        work: F,
    ) -> Result<Result<T, E>, Error>
    where
        F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        let asked_at = Instant::now();
        let order = Order {
            call: READ,
            agent: Arc::from(agent),
            place,
            asked_at,
            wait: Some(wait),
            within: None,
            span: Span::read(self.name(), agent, place),
        };
        let work = move |lent: &mut Lent<Sqlite>, begun: &Begun<'_, Sqlite>| {
            let mut in_time = until(asked_at + wait);
            let patience = || !begun.cancel.is_cancelled() && in_time();
            read(lent, patience, |tx| {
                // What the pool itself does afterwards must not be interrupted.
                let _over = Over(begun);
                work(tx)
            })
        };
        self.hand_over(order, work).await?
    }
}

impl Agent {
    /// Runs `work` in one read transaction: [`Pool::read`].
    ///
    /// # Errors
    /// Those of [`Pool::read`].
    ///
    /// # Blocking
    /// Like [`Pool::read`].
    #[track_caller]
    pub fn read<T, F>(&self, work: F) -> Result<T, Error>
    where
        F: FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    {
        self.read_and_then(|tx| Ok(work(tx)?))
    }

    /// Runs `work` in one read transaction on a thread of the pool: [`Pool::read_async`].
    ///
    /// # Errors
    /// Those of [`Pool::read_async`].
    #[track_caller]
    pub fn read_async<T, F>(&self, work: F) -> impl Future<Output = Result<T, Error>> + Send
    where
        F: FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        self.read_and_then_async(|tx| Ok(work(tx)?))
    }

    /// Like [`Agent::read`], for `work` that may fail in ways of its own: with any error that an [`Error`] converts to.
    ///
    /// # Errors
    /// What `work` returns; or those of [`Pool::read`], as its error type.
    ///
    /// # Blocking
    /// Like [`Pool::read`].
    #[track_caller]
    pub fn read_and_then<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&Transaction<'_>) -> Result<T, E>,
        E: From<Error>,
    {
        let (agent, wait) = (self.borrower()?, self.wait());
        self.pool().read_within(agent, wait, self.here(), work)?
    }

    /// Like [`Agent::read_async`], for `work` that may fail in ways of its own: with any error that an [`Error`] converts
    /// to.
    ///
    /// # Errors
    /// What `work` returns; or those of [`Pool::read_async`], as its error type.
    #[track_caller]
    pub fn read_and_then_async<T, E, F>(&self, work: F) -> impl Future<Output = Result<T, E>> + Send
    where
        F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let place = self.here();
        async move {
            let (agent, wait) = (self.borrower()?, self.wait());
            let read = self.pool().read_async_within(agent, wait, place, work);
            read.await?
        }
    }
}

const READ: &str = "the work given to read";

/// The user's part of a read is over when this is dropped.
struct Over<'a>(&'a Begun<'a, Sqlite>);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.is_over();
    }
}

fn read<T, E>(
    lent: &mut Lent<Sqlite>,
    patience: impl FnMut() -> bool,
    work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
) -> Result<Result<T, E>, Error> {
    let _within = Within::enter(lent.handle().core.address(), reentrancy::READ);
    let read = lent.connection_mut().read(patience, work)?;
    if !read.clean || read.result.is_err() {
        lent.free_at_end();
    }
    match read.result {
        // Its own error says more: SQLite itself ends the transaction when the disk fails.
        Ok(result) if read.whole || result.is_err() => Ok(result),
        Ok(_) => Err(Error::SnapshotLost),
        Err(panic) => Err(Error::panicked(READ, panic)),
    }
}
