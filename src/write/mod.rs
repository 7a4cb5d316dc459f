//! Writes: one queue for all writers of the process, and many writes in one transaction.
//! Only the calls that users make are here; `call` waits for the answer, `lead` does the work.
//!
//! # Who does the work
//! A caller that blocks and finds nobody at work does its own write, on its own thread: no other thread is
//! woken, and nothing is waited for. That is the difference between a client that blocks and one that awaits
//! in `cargo bench --bench write -- --clients 1`: about 16 µs and 60 µs for a write. Everybody else queues,
//! and is served by one thread, which commits what has come in the meantime as one group. It is already
//! running when the next group is there; a caller that led the next group would first have to be woken, when
//! all those whose writes were just committed want to run, too. Callers that await always queue: their
//! threads are not to be blocked.

mod call;
mod checkpoint;
mod lead;
mod nesting;

use std::future::Future;
use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Savepoint, Transaction};

use crate::error::Error;
use crate::lease::Lease;
use crate::pool::{Pool, at_most};
use crate::shared::{Hooks, Shared};
use crate::sqlite::Sqlite;

pub(crate) use call::write_async;
use call::{told, write, write_leased};
use checkpoint::noted;
use lead::Post;

/// What the pool calls, of this.
pub(crate) const HOOKS: Hooks<Sqlite> = Hooks {
    missed,
    returned: noted,
    keep,
    drain,
    refuse,
};

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
    /// done, each of them wholly or not at all. `last_insert_rowid()`, `changes()` and `total_changes()`
    /// may be a neighbour's until `work` has changed something itself. Neighbours that come later see what
    /// `work` did; if the group's commit fails, all of them fail.
    ///
    /// If `work` returns an error or panics, what it did is rolled back, and only that. It may use
    /// savepoints, but not BEGIN, COMMIT, ROLLBACK, ATTACH, temporary tables, or pragmas that last: these
    /// fail, and the write with them, with [`Error::NotInWrite`], whatever `work` returns. A conflict clause
    /// `OR ROLLBACK` ends the whole group, as a disk that is full does: all of its members get
    /// [`Error::RolledBack`]. A deferred foreign key that is violated when the group commits fails all of
    /// it.
    ///
    /// `work` should be short: those who came before it in its group wait for the commit, and those after
    /// it for their turn. A group ends after [`Builder::write_group`](crate::Builder::write_group).
    ///
    /// # Errors
    /// What `work` returns; or, as its error type:
    /// - [`Error::Exhausted`] if its turn did not come within `lease_timeout`, or if
    ///   [`Builder::write_queue`](crate::Builder::write_queue) others are waiting.
    /// - [`Error::Closed`] if the pool is closed.
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
        let wait = self.shared().options.lease_timeout;
        write(
            self.shared(),
            agent.as_ref(),
            wait,
            Location::caller(),
            work,
        )
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
        let wait = at_most(timeout);
        write(
            self.shared(),
            agent.as_ref(),
            wait,
            Location::caller(),
            work,
        )
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
        let (wait, place) = (self.shared().options.lease_timeout, Location::caller());
        async move { write_async(self.shared(), agent.as_ref(), wait, place, work).await }
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
        async move { write_async(self.shared(), agent.as_ref(), wait, place, work).await }
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
    /// `lease_timeout`, [`Error::NestedWrite`] within another write of the same pool, [`Error::Sqlite`] if
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
        let shared = Arc::clone(lease.shared());
        let asked_at = Instant::now();
        let answer = write_leased(lease, asked_at, Location::caller(), work);
        noted(&shared);
        told(&shared, asked_at, answer)
    }
}

/// The keeper's part.
fn keep(shared: &Arc<Shared<Sqlite>>) {
    let now = Instant::now();
    for post in Post::all(shared) {
        post.expire(now);
    }
    checkpoint::retry(shared);
}

/// Where agents have connections of their own, slots are vacated by a thread of the pool's before they are
/// needed.
fn missed(shared: &Arc<Shared<Sqlite>>) {
    if shared.wants_room() {
        let theirs = Arc::clone(shared);
        let hands = &shared.backend.writes.hands;
        hands.take(Box::new(move || theirs.make_room()));
    }
}

/// Refuses new writes, and waits until those that are queued are done, until `deadline` at most.
fn drain(shared: &Arc<Shared<Sqlite>>, deadline: Instant) {
    let writes = &shared.backend.writes;
    writes.close();
    for lane in writes.lanes() {
        lane.close();
        lane.wait_for_rest(deadline);
    }
}

/// Refuses new writes, and those that are queued.
fn refuse(shared: &Shared<Sqlite>) {
    let writes = &shared.backend.writes;
    writes.close();
    for lane in writes.lanes() {
        lane.close();
        for job in lane.take_out(|_| true) {
            lead::conclude(&job, Err(Error::Closed));
        }
    }
}
