//! Writing: the calls that users make. `write` does the work.
//! Nothing is queued or begun here.

use std::future::Future;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Savepoint, Transaction};

use super::lease::Lease;
use super::{Pool, at_most};
use crate::core::request::check_agent;
use crate::error::Error;

impl Pool {
    /// Runs `work` in a transaction that writes, and returns what it returned once that is committed.
    ///
    /// All writes of a pool stand in one queue, first come, first served. What is queued is committed
    /// together, as a *group*: one transaction, in which each `work` has a savepoint. So writers neither
    /// fight for SQLite's lock nor pay for a commit each. A write that finds nobody at work is committed at
    /// once, and waits for no company. Where agents have files of their own
    /// ([`Database::per_agent`](crate::Database::per_agent)), each file has its queue, and different agents commit
    /// beside each other.
    ///
    /// ```
    /// use leasepool::{Database, Error, Pool};
    ///
    /// # fn main() -> Result<(), Error> {
    /// # let pool = Pool::builder(Database::memory())
    /// #     .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS note (agent, body)"))
    /// #     .build()?;
    /// let id = pool.write("alice", |tx| {
    ///     tx.execute("INSERT INTO note VALUES (?1, ?2)", ("alice", "hello"))?;
    ///     Ok::<_, Error>(tx.last_insert_rowid())
    /// })?; // committed: as durable as `Builder::synchronous` says
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// `work` runs on a thread of the pool's or on the caller's, and once: it must own what it uses. Its
    /// error type is any that an [`Error`] can become, so that `?` works on both.
    ///
    /// # What `work` sees, and what it may not do
    /// The database as the last commit left it, and what the members of its group that came before have
    /// done, each of them wholly or not at all. `changes()` and `total_changes()` may be a neighbour's until `work` has
    /// changed something itself. Limits, switches, functions, hooks and `last_insert_rowid()` of another agent's
    /// are taken off before. Neighbours that come later see what `work` did; if the group's commit fails, all of them fail.
    ///
    /// If `work` returns an error or panics, what it did is rolled back, and only that. It may use
    /// savepoints, but not BEGIN, COMMIT, ROLLBACK, ATTACH, temporary tables, or pragmas that last: these
    /// fail, and the write with them, with [`Error::NotInWrite`], whatever `work` returns. A conflict clause
    /// `OR ROLLBACK` ends the whole group, as a disk that is full does, an interrupted statement, or work that takes
    /// the connection's authorizer off: all of its members get [`Error::RolledBack`], and nothing of theirs is
    /// kept. After `work` has set a commit or rollback hook, it can prepare no more statements; the hook ends with it.
    /// A deferred foreign key that is violated when the group commits fails all of it.
    ///
    /// `work` should be short: those who came before it in its group wait for the commit, and those after
    /// it for their turn. A group ends after [`Builder::write_group`](crate::Builder::write_group).
    ///
    /// # Errors
    /// What `work` returns; or, as its error type:
    /// - [`Error::Exhausted`] if its turn did not come within `lease_timeout`, or if
    ///   [`Builder::write_queue`](crate::Builder::write_queue) others are waiting.
    /// - [`Error::Closed`] if the pool is closed, [`Error::WritesClosed`] after [`Pool::close_writes`],
    ///   [`Error::ReadOnly`] if the pool only reads.
    /// - [`Error::NestedWrite`] within another write of the same pool.
    /// - [`Error::NotInWrite`], [`Error::RolledBack`]: see above. [`Error::Panicked`] if `work` panics.
    /// - [`Error::Sqlite`] if the commit fails, or if another process holds the lock until the deadline;
    ///   [`Error::Open`] and others if there is no connection to be had.
    ///
    /// Whatever the error: nothing that `work` did is kept.
    ///
    /// # Blocking
    /// Until the commit. `work` begins within `lease_timeout` or not at all; then it takes as long as `work`,
    /// its group and the disk do. Do not call it while you hold a lease, if others may do the same: the
    /// writer needs a connection, too. Use [`Lease::write`] then.
    #[track_caller]
    pub fn write<T, E, F>(&self, agent: impl AsRef<str>, work: F) -> Result<T, E>
    where
        F: FnOnce(&mut Savepoint<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let wait = self.shared().core.options.lease_timeout;
        let (agent, place) = (agent.as_ref(), Location::caller());
        check_agent(agent)?;
        self.shared().writer.write(agent, wait, place, work)
    }

    /// Like [`Pool::write`], but `work` begins within `timeout` or not at all. More than 24 hours count as 24
    /// hours.
    ///
    /// # Errors
    /// Those of [`Pool::write`].
    ///
    /// # Blocking
    /// Like [`Pool::write`].
    #[track_caller]
    pub fn write_timeout<T, E, F>(
        &self,
        agent: impl AsRef<str>,
        timeout: Duration,
        work: F,
    ) -> Result<T, E>
    where
        F: FnOnce(&mut Savepoint<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (agent, place) = (agent.as_ref(), Location::caller());
        check_agent(agent)?;
        let writer = &self.shared().writer;
        writer.write(agent, at_most(timeout), place, work)
    }

    /// Like [`Pool::write`], for async code, on any executor: `work` runs on a thread of the pool's, in one
    /// queue with those who block.
    ///
    /// If the future is dropped before `work` has begun, it never will. Once it has begun, it goes on, and is
    /// committed or not, as if the future had been awaited.
    ///
    /// ```
    /// # use leasepool::{Error, Pool};
    /// # async fn say(pool: &Pool, text: String) -> Result<(), Error> {
    /// pool.write_async("alice", move |tx| {
    ///     tx.prepare_cached("INSERT INTO note VALUES ('alice', ?1)")?.execute([&text])?;
    ///     Ok(())
    /// })
    /// .await
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Pool::write`].
    #[track_caller]
    pub fn write_async<T, E, F>(
        &self,
        agent: impl AsRef<str>,
        work: F,
    ) -> impl Future<Output = Result<T, E>>
    where
        F: FnOnce(&mut Savepoint<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (wait, place) = (self.shared().core.options.lease_timeout, Location::caller());
        async move {
            self.write_async_within(agent.as_ref(), wait, place, work)
                .await
        }
    }

    /// Like [`Pool::write_async`], but `work` begins within `timeout` or not at all. More than 24 hours count
    /// as 24 hours.
    ///
    /// # Errors
    /// Those of [`Pool::write`].
    #[track_caller]
    pub fn write_timeout_async<T, E, F>(
        &self,
        agent: impl AsRef<str>,
        timeout: Duration,
        work: F,
    ) -> impl Future<Output = Result<T, E>>
    where
        F: FnOnce(&mut Savepoint<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (wait, place) = (at_most(timeout), Location::caller());
        async move {
            self.write_async_within(agent.as_ref(), wait, place, work)
                .await
        }
    }

    pub(crate) async fn write_async_within<T, E, F>(
        &self,
        agent: &str,
        wait: Duration,
        place: &'static Location<'static>,
        work: F,
    ) -> Result<T, E>
    where
        F: FnOnce(&mut Savepoint<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        check_agent(agent)?;
        self.shared()
            .writer
            .write_async(agent, wait, place, work)
            .await
    }
}

impl Lease {
    /// Runs `work` on this lease's connection, in a transaction that writes: after those who wrote before, and
    /// alone, instead of fighting with the writes of [`Pool::write`] for SQLite's lock. It is committed when
    /// `work` returns `Ok`, and rolled back otherwise.
    ///
    /// `work` may borrow what it uses, and sees the connection's temporary tables, pragmas and prepared
    /// statements. It shares its commit with nobody: prefer [`Pool::write`] for speed.
    ///
    /// `work` cannot end the transaction: BEGIN, COMMIT and ROLLBACK fail. If SQLite rolls it back (the disk is full, a
    /// statement is interrupted or uses `OR ROLLBACK`), nothing that `work` does then is kept, and the error is
    /// [`Error::RolledBack`]. Commit and rollback hooks that are set on the connection are replaced by the pool's, and
    /// `work` that sets one is rolled back.
    ///
    /// ```
    /// # use leasepool::{Database, Error, Lease, Pool};
    /// # fn main() -> Result<(), Error> {
    /// # let pool = Pool::builder(Database::memory())
    /// #     .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS note (agent, body)"))
    /// #     .build()?;
    /// let mut lease = pool.lease("alice")?;
    /// let body = String::from("hello");
    /// Lease::write(&mut lease, |tx| {
    ///     tx.execute("INSERT INTO note VALUES ('alice', ?1)", [&body])?;
    ///     Ok::<_, Error>(())
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// What `work` returns; or, as its error type: [`Error::Exhausted`] if its turn did not come within
    /// `lease_timeout`, [`Error::WritesClosed`] and [`Error::ReadOnly`] as for [`Pool::write`], [`Error::NestedWrite`] within another write of the same pool, [`Error::RolledBack`],
    /// [`Error::Sqlite`] if
    /// the transaction cannot begin (another process holds the lock, or one is open on this lease) or the
    /// commit fails.
    ///
    /// # Blocking
    /// Until its turn comes, `work` returns, and the commit is done.
    #[track_caller]
    pub fn write<T, E, F>(lease: &mut Self, work: F) -> Result<T, E>
    where
        F: FnOnce(&mut Transaction<'_>) -> Result<T, E>,
        E: From<Error>,
    {
        let place = Location::caller();
        let shared = Arc::clone(lease.shared());
        let result = shared.writer.write_on(lease.checkout_mut(), place, work);
        lease.note_commits();
        result
    }
}
