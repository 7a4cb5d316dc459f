//! Reading one snapshot: the calls that users make. `sqlite::read` does the work.
//! Nothing is begun here.

use std::future::Future;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rusqlite::Transaction;

use super::lease::Lease;
use super::{Pool, at_most};
use crate::core::reentrancy::{self, Within};
use crate::error::Error;
use crate::sqlite::until;

impl Pool {
    /// Leases a connection, runs `work` in one read transaction on it, and returns what `work` returned. All of `work`'s
    /// statements see one snapshot: the database as the last commit before `work` left it, whatever others commit
    /// meanwhile. In WAL mode it keeps nobody from writing, but the log cannot begin anew while it lasts.
    ///
    /// ```
    /// use leasepool::{Database, Error, Pool};
    ///
    /// # fn main() -> Result<(), Error> {
    /// # let pool = Pool::builder(Database::memory())
    /// #     .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS note (agent, body)"))
    /// #     .build()?;
    /// let (notes, agents): (i64, i64) = pool.read("alice", |tx| {
    ///     let notes = tx.query_row("SELECT count(*) FROM note", [], |row| row.get(0))?;
    ///     let agents = tx.query_row("SELECT count(DISTINCT agent) FROM note", [], |row| row.get(0))?;
    ///     Ok::<_, Error>((notes, agents)) // of the same moment
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// `work` runs on the caller's thread, so it may borrow what it uses. Its error type is any that an [`Error`] can
    /// become, so that `?` works on both.
    ///
    /// # What `work` may not do
    /// It can change nothing: `PRAGMA query_only` is on until it ends, so that a statement that would write fails with
    /// SQLite's error for a read-only database (`SQLITE_READONLY`), temporary tables included. It may use savepoints, but
    /// BEGIN, COMMIT, ROLLBACK and the pragmas `query_only`, `journal_mode` and `locking_mode` are refused. Whatever `work`
    /// does, also if it panics, its transaction ends with it, and the connection is as writable as it was before; if that
    /// cannot be told, the connection is reset or closed before anybody gets it.
    ///
    /// # Errors
    /// What `work` returns; or, as its error type:
    /// - those of [`Pool::lease`];
    /// - [`Error::Sqlite`] if the snapshot cannot be taken: `SQLITE_BUSY` if another process keeps the file locked until
    ///   `lease_timeout` has passed;
    /// - [`Error::Panicked`] if `work` panics, [`Error::SnapshotLost`] if it got rid of its transaction.
    ///
    /// # Blocking
    /// Like [`Pool::lease`], and then for as long as `work` takes.
    #[track_caller]
    pub fn read<T, E, F>(&self, agent: impl AsRef<str>, work: F) -> Result<T, E>
    where
        F: FnOnce(&Transaction<'_>) -> Result<T, E>,
        E: From<Error>,
    {
        let wait = self.shared().core.options.lease_timeout;
        self.read_within(agent.as_ref(), wait, Location::caller(), work)?
    }

    /// Like [`Pool::read`], but `work` begins within `timeout` or not at all. More than 24 hours count as 24 hours.
    ///
    /// # Errors
    /// Those of [`Pool::read`].
    ///
    /// # Blocking
    /// Like [`Pool::read`].
    #[track_caller]
    pub fn read_timeout<T, E, F>(
        &self,
        agent: impl AsRef<str>,
        timeout: Duration,
        work: F,
    ) -> Result<T, E>
    where
        F: FnOnce(&Transaction<'_>) -> Result<T, E>,
        E: From<Error>,
    {
        let wait = at_most(timeout);
        self.read_within(agent.as_ref(), wait, Location::caller(), work)?
    }

    /// Like [`Pool::read`], for async code, on any executor: `work` runs on a thread of the pool's.
    ///
    /// If the future is dropped before `work` has begun, it never will. Once it has begun, it goes on, and keeps its
    /// connection until it ends.
    ///
    /// ```
    /// # use leasepool::{Error, Pool};
    /// # async fn report(pool: &Pool) -> Result<i64, Error> {
    /// pool.read_async("alice", |tx| {
    ///     Ok(tx.query_row("SELECT sum(length(body)) FROM note", [], |row| row.get(0))?)
    /// })
    /// .await
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Pool::read`], and [`Error::NoThread`] if no thread can be started.
    #[track_caller]
    pub fn read_async<T, E, F>(
        &self,
        agent: impl AsRef<str>,
        work: F,
    ) -> impl Future<Output = Result<T, E>>
    where
        F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (wait, place) = (self.shared().core.options.lease_timeout, Location::caller());
        async move {
            self.read_async_within(agent.as_ref(), wait, place, work)
                .await?
        }
    }

    /// Like [`Pool::read_async`], but `work` begins within `timeout` or not at all. More than 24 hours count as 24 hours.
    ///
    /// # Errors
    /// Those of [`Pool::read_async`].
    #[track_caller]
    pub fn read_timeout_async<T, E, F>(
        &self,
        agent: impl AsRef<str>,
        timeout: Duration,
        work: F,
    ) -> impl Future<Output = Result<T, E>>
    where
        F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (wait, place) = (at_most(timeout), Location::caller());
        async move {
            self.read_async_within(agent.as_ref(), wait, place, work)
                .await?
        }
    }

    fn read_within<T, E>(
        &self,
        agent: &str,
        wait: Duration,
        place: &'static Location<'static>,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<Result<T, E>, Error> {
        let deadline = Instant::now() + wait;
        let mut lease = self.lease_within(agent, Some(wait), place)?;
        lease.read(deadline, work)
    }

    /// The errors are two, so that the user's `From` runs on the caller's thread.
    pub(crate) async fn read_async_within<T, E, F>(
        &self,
        agent: &str,
        wait: Duration,
        place: &'static Location<'static>,
        work: F,
    ) -> Result<Result<T, E>, Error>
    where
        F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        let deadline = Instant::now() + wait;
        let mut lease = self.lease_async_within(agent, wait, place).await?;
        let wanted = Wanted(Arc::new(AtomicBool::new(true)));
        let still_wanted = Arc::clone(&wanted.0);
        let answer = self.shared().readers.hand_over(move || {
            // Nobody sees this error.
            if !still_wanted.load(Relaxed) {
                return Err(Error::Closed);
            }
            lease.read(deadline, work)
        });
        let answer = answer.map_err(Error::no_thread)?;
        let outcome = answer.await;
        outcome.unwrap_or_else(|panic| Err(Error::panicked(READ, &*panic)))
    }
}

const READ: &str = "the work given to read";

/// A caller that awaits the answer. Work that has not begun when it is dropped never will.
struct Wanted(Arc<AtomicBool>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}

impl Lease {
    fn read<T, E>(
        &mut self,
        deadline: Instant,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<Result<T, E>, Error> {
        let _within = Within::enter(self.shared().core.address(), reentrancy::READ);
        let checkout = self.checkout_mut();
        let read = checkout.connection_mut().read(until(deadline), work)?;
        if !read.clean || read.result.is_err() {
            checkout.free_at_end();
        }
        match read.result {
            // Its own error says more: SQLite itself ends the transaction when the disk fails.
            Ok(result) if read.whole || result.is_err() => Ok(result),
            Ok(_) => Err(Error::SnapshotLost),
            Err(panic) => Err(Error::panicked(READ, &*panic)),
        }
    }
}
