//! Writing: the calls that users make. `write` does the work.
//! Nothing is queued or begun here.

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Params, Savepoint, Transaction};

use super::Pool;
use super::agent::Agent;
use super::beside;
use super::lease::Lease;
use crate::core::agent_name::AgentName;
use crate::error::Error;
use crate::observe::call_site::CallSite;

impl Pool {
    /// Runs `work` in a transaction that writes, and returns what it returned, once the transaction has committed.
    ///
    /// All writes of a pool wait in one queue, first come, first served. What is queued is committed together, as a
    /// *group*: one transaction, in which each `work` has a savepoint. So writers neither fight for SQLite's lock nor pay
    /// for a commit each. If no write is in progress, yours commits immediately: the pool never delays a commit to
    /// collect more writes. If agents have files of their own ([`Database::per_agent`](crate::Database::per_agent)), each
    /// file has its queue, and the writes of different agents commit at the same time.
    ///
    /// ```
    /// use leasepool::{Database, Pool};
    ///
    /// # fn main() -> Result<(), leasepool::Error> {
    /// # let pool = Pool::builder(Database::memory())
    /// #     .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS note (agent, body)"))
    /// #     .build()?;
    /// let id = pool.write("alice", |tx| {
    ///     tx.execute("INSERT INTO note VALUES (?1, ?2)", ("alice", "hello"))?;
    ///     Ok(tx.last_insert_rowid())
    /// })?; // committed, with the durability that `Builder::synchronous` sets
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// `work` runs once, on a thread of the pool or on the caller's: it must own what it uses. If `work` may fail in its
    /// own ways, see [`Agent::write_and_then`]; for one statement, see [`Pool::execute`].
    ///
    /// # What `work` sees, and what it may not do
    /// `work` sees the database as the last commit left it, and what earlier members of its group have done, each of them
    /// wholly or not at all. `changes()` and `total_changes()` may be a neighbour's until `work` has changed something
    /// itself. The pool takes off another agent's limits, switches, functions, hooks and `last_insert_rowid()` before.
    /// Later members see what `work` did; if the group's commit fails, all of them fail.
    ///
    /// If `work` returns an error or panics, what it did is rolled back, and nothing else. It may use savepoints. BEGIN,
    /// COMMIT, ROLLBACK, ATTACH, temporary tables and pragmas that last fail, and the write with them, with
    /// [`Error::NotInWrite`], whatever `work` returns. A conflict clause `OR ROLLBACK`, a full disk, an interrupted
    /// statement, and work that takes off the connection's authorizer end the whole group: each of its members gets
    /// [`Error::RolledBack`], and nothing of theirs is kept. After `work` has set a commit or rollback hook, it can
    /// prepare no more statements; the hook ends with it. A deferred foreign key that is violated when the group commits
    /// fails all of it.
    ///
    /// Keep `work` short: earlier members of its group wait for the commit, and later ones for their turn. A group ends
    /// after [`Builder::write_group`](crate::Builder::write_group).
    ///
    /// # Errors
    /// Whatever the error, nothing that `work` did is kept.
    /// - What `work` returns, as [`Error::Sqlite`].
    /// - [`Error::Exhausted`] if its turn did not come within `lease_timeout`, or if
    ///   [`Builder::write_queue`](crate::Builder::write_queue) others are waiting.
    /// - [`Error::Closed`] if the pool is closed, [`Error::WritesClosed`] after [`Pool::close_writes`],
    ///   [`Error::ReadOnly`] if the pool only reads.
    /// - [`Error::NestedWrite`] within another write of the same pool.
    /// - [`Error::NotInWrite`], [`Error::RolledBack`]: see above. [`Error::Panicked`] if `work` panics.
    /// - [`Error::Sqlite`] if the commit fails, or if another process holds the lock until the deadline;
    ///   [`Error::Open`] and others if there is no connection to be had.
    ///
    /// # Blocking
    /// Until the commit. `work` begins within `lease_timeout` or not at all; then the call takes as long as `work`, its
    /// group and the disk do. The writer needs a connection, too: do not write through the pool while you hold a lease if
    /// others may do the same. Use [`Lease::write`] then.
    #[track_caller]
    pub fn write<T, F>(&self, agent: impl Display, work: F) -> Result<T, Error>
    where
        F: FnOnce(&mut Savepoint<'_>) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        let (agent, place) = (AgentName::of(agent)?, CallSite::here());
        let wait = self.lease_timeout();
        let work = |tx: &mut Savepoint<'_>| Ok(work(tx)?);
        let writer = &self.shared().beside.writer;
        writer.write(agent.as_str(), wait, place, work)
    }

    /// Like [`Pool::write`], for async code, on any executor: `work` runs on a thread of the pool, in one queue with
    /// writes that block.
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
    /// # Cancel safety
    /// If the future is dropped before `work` has begun, `work` never begins. Once it has begun, it goes on, and is
    /// committed or not, as if the future had been awaited.
    ///
    /// # Errors
    /// Those of [`Pool::write`].
    #[track_caller]
    pub fn write_async<T, F>(
        &self,
        agent: impl Display,
        work: F,
    ) -> impl Future<Output = Result<T, Error>> + Send
    where
        F: FnOnce(&mut Savepoint<'_>) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        let (agent, place) = (AgentName::of(agent), CallSite::here());
        async move {
            let (agent, wait) = (agent?, self.lease_timeout());
            let work = |tx: &mut Savepoint<'_>| Ok(work(tx)?);
            self.write_async_within(agent.as_str(), wait, place, work)
                .await
        }
    }

    /// Runs one statement that writes, as [`Pool::write`] runs `work`, and returns how many rows it changed. The statement
    /// is prepared once for each connection and then cached.
    ///
    /// ```
    /// # use leasepool::{Database, Pool};
    /// # fn main() -> Result<(), leasepool::Error> {
    /// # let pool = Pool::builder(Database::memory())
    /// #     .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS note (agent, body)"))
    /// #     .build()?;
    /// let body = String::from("hello");
    /// pool.execute("alice", "INSERT INTO note VALUES (?1, ?2)", ("alice", body))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// It owns its parameters, because it may run on another thread: give a tuple of owned values, or
    /// [`rusqlite::params_from_iter`] of a `Vec`.
    ///
    /// # Errors
    /// Those of [`Pool::write`].
    ///
    /// # Blocking
    /// Like [`Pool::write`].
    #[track_caller]
    pub fn execute<P>(&self, agent: impl Display, sql: &str, params: P) -> Result<usize, Error>
    where
        P: Params + Send + 'static,
    {
        self.write(agent, statement(sql, params))
    }

    /// Like [`Pool::execute`], for async code; see [`Pool::write_async`].
    ///
    /// # Errors
    /// Those of [`Pool::write`].
    #[track_caller]
    pub fn execute_async<P>(
        &self,
        agent: impl Display,
        sql: &str,
        params: P,
    ) -> impl Future<Output = Result<usize, Error>> + Send
    where
        P: Params + Send + 'static,
    {
        self.write_async(agent, statement(sql, params))
    }

    async fn write_async_within<T, E, F>(
        &self,
        agent: &str,
        wait: Duration,
        place: CallSite,
        work: F,
    ) -> Result<T, E>
    where
        F: FnOnce(&mut Savepoint<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let shared = self.shared();
        let write = shared.beside.writer.write_async(agent, wait, place, work);
        shared.in_time(write).await
    }
}

/// The work that is one statement.
fn statement<P: Params>(
    sql: &str,
    params: P,
) -> impl FnOnce(&mut Savepoint<'_>) -> rusqlite::Result<usize> + use<P> {
    let sql = sql.to_owned();
    move |tx| tx.prepare_cached(&sql)?.execute(params)
}

impl Agent {
    /// Runs `work` in a transaction that writes: [`Pool::write`].
    ///
    /// # Errors
    /// Those of [`Pool::write`].
    ///
    /// # Blocking
    /// Like [`Pool::write`].
    #[track_caller]
    pub fn write<T, F>(&self, work: F) -> Result<T, Error>
    where
        F: FnOnce(&mut Savepoint<'_>) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        self.write_and_then(|tx| Ok(work(tx)?))
    }

    /// Runs `work` in a transaction that writes, for async code: [`Pool::write_async`].
    ///
    /// ```
    /// use leasepool::{Agent, Error};
    ///
    /// async fn mark_read(agent: Agent) -> Result<(), Error> {
    ///     let id = agent.id()?.to_owned();
    ///     agent
    ///         .write_async(move |tx| {
    ///             tx.execute("UPDATE message SET read = 1 WHERE agent = ?1", [id])?;
    ///             Ok(())
    ///         })
    ///         .await
    /// }
    /// ```
    ///
    /// # Errors
    /// Those of [`Pool::write`].
    #[track_caller]
    pub fn write_async<T, F>(&self, work: F) -> impl Future<Output = Result<T, Error>> + Send
    where
        F: FnOnce(&mut Savepoint<'_>) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        self.write_and_then_async(|tx| Ok(work(tx)?))
    }

    /// Like [`Agent::write`], for `work` that may fail in ways of its own: with any error that an [`Error`] converts to.
    /// Such an error rolls the work back, as one of SQLite does.
    ///
    /// ```
    /// use leasepool::{Agent, rusqlite};
    ///
    /// enum TransferError {
    ///     NotEnough,
    ///     Database(leasepool::Error),
    /// }
    ///
    /// impl From<leasepool::Error> for TransferError {
    ///     fn from(error: leasepool::Error) -> Self {
    ///         TransferError::Database(error)
    ///     }
    /// }
    ///
    /// impl From<rusqlite::Error> for TransferError {
    ///     fn from(error: rusqlite::Error) -> Self {
    ///         TransferError::Database(error.into())
    ///     }
    /// }
    ///
    /// fn withdraw(agent: &Agent, amount: i64) -> Result<(), TransferError> {
    ///     agent.write_and_then(move |tx| {
    ///         let sql = "UPDATE account SET balance = balance - ?1 WHERE balance >= ?1";
    ///         match tx.execute(sql, [amount])? {
    ///             1 => Ok(()),
    ///             _ => Err(TransferError::NotEnough),
    ///         }
    ///     })
    /// }
    /// ```
    ///
    /// # Errors
    /// What `work` returns; or those of [`Pool::write`], as its error type.
    ///
    /// # Blocking
    /// Like [`Pool::write`].
    #[track_caller]
    pub fn write_and_then<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&mut Savepoint<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (agent, wait) = (self.borrower()?, self.wait());
        let writer = &self.pool().shared().beside.writer;
        writer.write(agent, wait, self.here(), work)
    }

    /// Like [`Agent::write_async`], for `work` that may fail in ways of its own; see [`Agent::write_and_then`].
    ///
    /// # Errors
    /// What `work` returns; or those of [`Pool::write`], as its error type.
    #[track_caller]
    pub fn write_and_then_async<T, E, F>(
        &self,
        work: F,
    ) -> impl Future<Output = Result<T, E>> + Send
    where
        F: FnOnce(&mut Savepoint<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let place = self.here();
        async move {
            let (agent, wait) = (self.borrower()?, self.wait());
            self.pool()
                .write_async_within(agent, wait, place, work)
                .await
        }
    }

    /// Runs one statement that writes: [`Pool::execute`].
    ///
    /// # Errors
    /// Those of [`Pool::write`].
    ///
    /// # Blocking
    /// Like [`Pool::write`].
    #[track_caller]
    pub fn execute<P>(&self, sql: &str, params: P) -> Result<usize, Error>
    where
        P: Params + Send + 'static,
    {
        self.write(statement(sql, params))
    }

    /// Runs one statement that writes, for async code: [`Pool::execute_async`].
    ///
    /// # Errors
    /// Those of [`Pool::write`].
    #[track_caller]
    pub fn execute_async<P>(
        &self,
        sql: &str,
        params: P,
    ) -> impl Future<Output = Result<usize, Error>> + Send
    where
        P: Params + Send + 'static,
    {
        self.write_async(statement(sql, params))
    }
}

impl Lease {
    /// Runs `work` on this lease's connection, in a transaction that writes. It waits for its turn in the queue of
    /// [`Pool::write`], instead of fighting for SQLite's lock, and then writes alone. The transaction commits when `work`
    /// returns `Ok`, and is rolled back otherwise.
    ///
    /// `work` may borrow what it uses, and sees the connection's temporary tables, pragmas and prepared statements. It
    /// shares its commit with no other write: [`Pool::write`] is faster.
    ///
    /// `work` cannot end the transaction: BEGIN, COMMIT and ROLLBACK fail. If SQLite rolls it back (the disk is full, a
    /// statement is interrupted or uses `OR ROLLBACK`), nothing that `work` does then is kept, and the error is
    /// [`Error::RolledBack`]. The pool replaces commit and rollback hooks that are set on the connection, and rolls back
    /// `work` that sets one.
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
    ///     Ok(())
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// - What `work` returns, as [`Error::Sqlite`].
    /// - [`Error::Exhausted`] if its turn did not come within `lease_timeout`.
    /// - [`Error::WritesClosed`] and [`Error::ReadOnly`] as for [`Pool::write`]; [`Error::NestedWrite`] within another
    ///   write of the same pool; [`Error::RolledBack`].
    /// - [`Error::Sqlite`] if the transaction cannot begin (another process holds the lock, or a transaction is open on
    ///   this lease) or the commit fails.
    ///
    /// # Blocking
    /// Until its turn comes, `work` returns, and the commit is done.
    #[track_caller]
    pub fn write<T, F>(lease: &mut Self, work: F) -> Result<T, Error>
    where
        F: FnOnce(&mut Transaction<'_>) -> rusqlite::Result<T>,
    {
        Lease::write_and_then(lease, |tx| Ok(work(tx)?))
    }

    /// Like [`Lease::write`], for `work` that may fail in ways of its own; see [`Agent::write_and_then`].
    ///
    /// # Errors
    /// What `work` returns; or those of [`Lease::write`], as its error type.
    ///
    /// # Blocking
    /// Like [`Lease::write`].
    #[track_caller]
    pub fn write_and_then<T, E, F>(lease: &mut Self, work: F) -> Result<T, E>
    where
        F: FnOnce(&mut Transaction<'_>) -> Result<T, E>,
        E: From<Error>,
    {
        let place = CallSite::here();
        let shared = Arc::clone(lease.shared());
        let result = shared
            .beside
            .writer
            .write_on(lease.checkout_mut(), place, work);
        beside::note_commits(lease.checkout_mut());
        result
    }
}
