//! Pool: the handle that users hold, and what it hands out.
//! It only translates: leases are made in `core`, writes in `write`.

mod agent_files;
pub(crate) mod builder;
pub(crate) mod lease;
mod reads;
#[cfg(feature = "tokio")]
mod run;
mod shared;
mod writes;

use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use crate::core::backend::Backend;
use crate::core::request::{Request, check_agent};
use crate::error::Error;
use crate::observe::slow_waits::SlowWait;
use crate::observe::stats::{Holder, Stats, Waiting};
use crate::sqlite::Sqlite;
use builder::Builder;
use lease::Lease;
pub(crate) use shared::Shared;

/// Longest wait a caller may ask for. Longer ones are cut to it.
const MAX_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// A pool of connections that agents borrow. Cloning it gives another handle to the same pool.
///
/// Build one with [`Pool::builder`].
///
/// ```
/// use leasepool::{Database, Pool};
///
/// # fn main() -> Result<(), leasepool::Error> {
/// let pool = Pool::builder(Database::memory())
///     .max_connections(4)
///     .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS note (agent, body)"))
///     .build()?;
/// let lease = pool.lease("alice")?;
/// lease.execute("INSERT INTO note VALUES (?1, ?2)", ("alice", "hello"))?;
/// # Ok(())
/// # }
/// ```
///
/// A pool does not follow a fork: in the child, every call fails with [`Error::Forked`], and dropping the pool and its
/// leases leaves all to the parent. Use no lease there. Build a pool in the child instead, for other files or after the
/// parent has ended.
///
/// When the last handle is dropped, the pool closes as by [`Pool::close`], but without waiting: what
/// is still lent closes when it comes back.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
    /// Closes the pool when the last handle goes; leases keep `Shared` alive, but not the pool.
    _handle: Arc<Handle>,
}

struct Handle(Arc<Shared>);

impl Pool {
    /// Rebuilds the database file without its free pages, as `VACUUM` does. A lease cannot do this
    /// by itself, because VACUUM needs to attach a database. Where agents have files of their own, see
    /// [`Pool::vacuum_agent`].
    ///
    /// # Errors
    /// Those of [`Pool::lease`], and those of `VACUUM` as [`Error::Sqlite`]; [`Error::Config`] if agents have
    /// files of their own, or if another process runs the checkpoints
    /// ([`Builder::external_checkpoints`](crate::Builder::external_checkpoints)); [`Error::ReadOnly`] if the pool
    /// only reads.
    ///
    /// # Blocking
    /// Like [`Pool::lease`], and then for as long as SQLite takes to write the whole database again.
    #[track_caller]
    pub fn vacuum(&self) -> Result<(), Error> {
        const AGENT: &str = "leasepool: vacuum";
        self.shared.core.backend.check_vacuum()?;
        if self.shared.core.backend.is_per_agent() {
            return Err(Error::Config {
                option: "database",
                value: "a file for each agent".to_owned(),
                expected: "one database, or Pool::vacuum_agent".to_owned(),
            });
        }
        self.shared.core.backend.check_writable()?;
        let wait = Some(self.shared.core.options.lease_timeout);
        let request = Request::new(AGENT, wait, Location::caller());
        let vacuumed = self
            .shared
            .lease(&request)
            .and_then(|lease| Sqlite::vacuum(&lease));
        self.shared.core.evict(AGENT);
        vacuumed
    }

    /// Like [`Pool::vacuum`], on the connection of `agent`, and so on its file if it has its own.
    ///
    /// # Errors
    /// Those of [`Pool::vacuum`].
    ///
    /// # Blocking
    /// Like [`Pool::vacuum`].
    #[track_caller]
    pub fn vacuum_agent(&self, agent: impl AsRef<str>) -> Result<(), Error> {
        self.shared.core.backend.check_vacuum()?;
        self.shared.core.backend.check_writable()?;
        let lease = self.lease(agent)?;
        Sqlite::vacuum(&lease)
    }
}

impl Pool {
    /// Starts to build a pool on `database`. Every option has a default.
    pub fn builder(database: crate::Database) -> Builder {
        Builder::new(database)
    }

    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Pool {
            _handle: Arc::new(Handle(Arc::clone(&shared))),
            shared,
        }
    }

    /// Lends `agent` a connection: the one parked for it, or another.
    ///
    /// # Errors
    /// - [`Error::Exhausted`] if every connection stays lent for `lease_timeout`.
    /// - [`Error::Closed`] if the pool is closed, also while waiting.
    /// - [`Error::InvalidAgent`] if the id is empty or longer than 1024 bytes.
    /// - [`Error::Open`], [`Error::FileReplaced`] and others, at once, if no connection can be opened.
    ///
    /// # Blocking
    /// Waits its turn for at most `lease_timeout`; [`Builder::overtaking`] says in which order. Then returns within
    /// nanoseconds if the agent's connection is parked, within microseconds if another is open, and
    /// otherwise opens one.
    #[track_caller]
    pub fn lease(&self, agent: impl AsRef<str>) -> Result<Lease, Error> {
        let wait = Some(self.shared.core.options.lease_timeout);
        self.lease_within(agent.as_ref(), wait, Location::caller())
    }

    /// Like [`Pool::lease`], but fails at once with [`Error::Exhausted`] when it would have to wait.
    ///
    /// # Errors
    /// Those of [`Pool::lease`].
    ///
    /// # Blocking
    /// Never waits for another lease; may open a connection.
    #[track_caller]
    pub fn try_lease(&self, agent: impl AsRef<str>) -> Result<Lease, Error> {
        self.lease_within(agent.as_ref(), None, Location::caller())
    }

    /// Like [`Pool::lease`], but waits for at most `timeout`, instead of the pool's `lease_timeout`.
    /// More than 24 hours count as 24 hours.
    ///
    /// # Errors
    /// Those of [`Pool::lease`].
    ///
    /// # Blocking
    /// Like [`Pool::lease`].
    #[track_caller]
    pub fn lease_timeout(&self, agent: impl AsRef<str>, timeout: Duration) -> Result<Lease, Error> {
        let wait = Some(at_most(timeout));
        self.lease_within(agent.as_ref(), wait, Location::caller())
    }

    /// Like [`Pool::lease`], for async code: the wait is awaited, on any executor, in one queue with
    /// those who block. A connection that must be opened is opened on another thread.
    ///
    /// Dropping the future at any moment leaves nothing behind: no place in the queue, no permit, no
    /// connection. The wait is timed from the first poll.
    ///
    /// ```
    /// # use leasepool::{Database, Pool};
    /// # async fn serve(pool: &Pool) -> Result<(), Box<dyn std::error::Error>> {
    /// let lease = pool.lease_async("alice").await?;
    /// let notes: i64 = lease.query_row("SELECT count(*) FROM note", [], |row| row.get(0))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The future and the lease are `Send`; `&Lease` is not, as a SQLite connection is for one thread
    /// at a time: do not keep a reference to it across an `.await`.
    ///
    /// # Errors
    /// Those of [`Pool::lease`].
    ///
    /// # Blocking
    /// Never waits for other leases nor for a disk. The SQL that you run on the lease does block: what
    /// may take long belongs off the async threads, see the feature `tokio`.
    #[track_caller]
    pub fn lease_async(
        &self,
        agent: impl AsRef<str>,
    ) -> impl Future<Output = Result<Lease, Error>> {
        let place = Location::caller();
        let wait = self.shared.core.options.lease_timeout;
        async move { self.lease_async_within(agent.as_ref(), wait, place).await }
    }

    /// Like [`Pool::lease_async`], but waits for at most `timeout`, instead of the pool's
    /// `lease_timeout`. More than 24 hours count as 24 hours.
    ///
    /// # Errors
    /// Those of [`Pool::lease`].
    #[track_caller]
    pub fn lease_timeout_async(
        &self,
        agent: impl AsRef<str>,
        timeout: Duration,
    ) -> impl Future<Output = Result<Lease, Error>> {
        let (wait, place) = (at_most(timeout), Location::caller());
        async move { self.lease_async_within(agent.as_ref(), wait, place).await }
    }

    #[inline]
    fn lease_within(
        &self,
        agent: &str,
        wait: Option<Duration>,
        place: &'static Location<'static>,
    ) -> Result<Lease, Error> {
        check_agent(agent)?;
        self.shared.lease(&Request::new(agent, wait, place))
    }

    pub(crate) async fn lease_async_within(
        &self,
        agent: &str,
        wait: Duration,
        place: &'static Location<'static>,
    ) -> Result<Lease, Error> {
        check_agent(agent)?;
        let request = Request::new(agent, Some(wait), place).awaiting();
        self.shared.lease_async(request).await
    }

    /// Evicts an agent: gives its parked connection back for others to use, and lets the ones it has
    /// been lent go the same way when they come back. Returns whether a connection was parked.
    ///
    /// Call it when a session ends. Nothing breaks without it: a parked connection never keeps
    /// another agent waiting.
    pub fn release(&self, agent: impl AsRef<str>) -> bool {
        self.shared.core.evict(agent.as_ref())
    }

    /// What the pool is doing and has done.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Who holds a connection, the oldest lease first.
    pub fn holders(&self) -> Vec<Holder> {
        self.shared.core.holders()
    }

    /// Who waits for a connection, in the order in which they will be served.
    pub fn waiting(&self) -> Vec<Waiting> {
        self.shared.core.waiting()
    }

    /// The slowest waits of the last ten minutes that are over, at most ten, the slowest first.
    pub fn slowest_waits(&self) -> Vec<SlowWait> {
        self.shared.core.slowest_waits()
    }

    /// Answers a readiness probe: whether a lease could be had at this moment without waiting. It takes
    /// no connection, waits for none and runs no SQL; it looks at the file, so one that was deleted is
    /// noticed, and a disk that fails is not.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the pool is closed.
    /// - [`Error::Exhausted`] if every connection is lent.
    /// - [`Error::FileReplaced`] if there is no database at the path any more.
    pub fn ready(&self) -> Result<(), Error> {
        self.shared.core.ready()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    #[cfg(feature = "status")]
    pub(crate) fn families(&self) -> Vec<crate::observe::families::Family> {
        self.shared.families()
    }

    /// What the pool is called in the log and in metrics: [`Builder::name`](crate::Builder::name).
    pub fn name(&self) -> &str {
        &self.shared.core.options.name
    }

    /// How many descriptors this process has on the pool's database now, as the kernel tells; `None`
    /// where it does not (there must be a `/proc`). It is never more than
    /// [`fd_ceiling`](Pool::fd_ceiling). For a probe, not for every request: it reads one link for each
    /// descriptor of the process, twice or more, and opens one itself for as long as that takes.
    pub fn descriptors(&self) -> Option<usize> {
        self.shared.core.backend.descriptors()
    }

    /// The largest number of descriptors that this pool can ever hold. Arithmetic, not a measurement:
    /// it is known before the first connection is opened.
    pub fn fd_ceiling(&self) -> usize {
        self.shared.core.fd_ceiling()
    }

    /// Closes the pool: refuses new leases, wakes those who wait with [`Error::Closed`], closes every
    /// idle connection, and waits until the lent ones have come back, for at most `lease_timeout`.
    /// May be called again, and from several threads; every call waits.
    ///
    /// The last connection to a file runs a checkpoint and removes the `-wal` file as it closes, unless another process
    /// runs the checkpoints ([`Builder::external_checkpoints`](crate::Builder::external_checkpoints)).
    ///
    /// # Errors
    /// - [`Error::Exhausted`] if a connection was still lent at the end of the wait. The pool is
    ///   closed all the same, and that connection will be when it comes back.
    /// - [`Error::NotClosed`] if a connection cannot be closed.
    ///
    /// # Blocking
    /// For as long as leases take to come back, at most `lease_timeout`, and SQLite to close
    /// connections.
    pub fn close(&self) -> Result<(), Error> {
        self.close_timeout(self.shared.core.options.lease_timeout)
    }

    /// Like [`Pool::close`], but waits for lent connections for at most `timeout`.
    ///
    /// # Errors
    /// Those of [`Pool::close`].
    ///
    /// # Blocking
    /// Like [`Pool::close`].
    pub fn close_timeout(&self, timeout: Duration) -> Result<(), Error> {
        self.shared.close(at_most(timeout))
    }

    /// Like [`Pool::close`], for async code: the closing is done on another thread. It starts when
    /// the future is first polled, and goes on if the future is dropped.
    ///
    /// # Errors
    /// Those of [`Pool::close`].
    pub async fn close_async(&self) -> Result<(), Error> {
        let timeout = self.shared.core.options.lease_timeout;
        self.shared.close_async(timeout).await
    }
}

impl Pool {
    /// Refuses writes from now on ([`Pool::write`] and its kin, [`Lease::write`]) with [`Error::WritesClosed`], and waits
    /// until those that were asked for before are done, for at most `lease_timeout`. Leases and reads go on, until
    /// [`Pool::close`]: for those who must read after the writer has closed. What a borrower writes on a lease by itself,
    /// without [`Lease::write`], is not seen and not refused.
    ///
    /// May be called again, and from several threads; every call waits. There is no way back.
    ///
    /// ```
    /// use leasepool::{Database, Error, Pool};
    ///
    /// # fn main() -> Result<(), Error> {
    /// let pool = Pool::builder(Database::memory())
    ///     .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS note (agent, body)"))
    ///     .build()?;
    /// pool.close_writes()?;
    /// let refused = pool.write("alice", |tx| Ok::<_, Error>(tx.execute_batch("DELETE FROM note")?));
    /// assert!(matches!(refused, Err(Error::WritesClosed)));
    /// let lease = pool.lease("alice")?;
    /// let notes: i64 = lease.query_row("SELECT count(*) FROM note", [], |row| row.get(0))?;
    /// # drop(lease);
    /// pool.close()
    /// # }
    /// ```
    ///
    /// # Errors
    /// - [`Error::Exhausted`] if a write was not done at the end of the wait. Those that had not begun are refused; one that
    ///   had goes on.
    /// - [`Error::Reentrant`] within a write of the same pool, or a callback of the builder's.
    ///
    /// # Blocking
    /// For as long as writes take, at most `lease_timeout`.
    pub fn close_writes(&self) -> Result<(), Error> {
        self.close_writes_timeout(self.shared.core.options.lease_timeout)
    }

    /// Like [`Pool::close_writes`], but waits for at most `timeout`.
    ///
    /// # Errors
    /// Those of [`Pool::close_writes`].
    ///
    /// # Blocking
    /// Like [`Pool::close_writes`].
    pub fn close_writes_timeout(&self, timeout: Duration) -> Result<(), Error> {
        self.shared.close_writes(at_most(timeout))
    }

    /// Like [`Pool::close_writes`], for async code. Writes are refused from when the future is first polled, also if it
    /// is dropped.
    ///
    /// # Errors
    /// Those of [`Pool::close_writes`].
    pub async fn close_writes_async(&self) -> Result<(), Error> {
        let timeout = self.shared.core.options.lease_timeout;
        self.shared.close_writes_async(timeout).await
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.0.core.is_forked() {
            // To close a connection here would remove the log under the process that uses it.
            std::mem::forget(Arc::clone(&self.0));
            return;
        }
        self.0.close_now();
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// The longest wait that is allowed, or this one.
pub(crate) fn at_most(timeout: Duration) -> Duration {
    timeout.min(MAX_WAIT)
}
