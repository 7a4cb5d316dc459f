//! Pool: the handle that users hold, and the lease algorithm, one step after the other.
//! It moves no connection itself: `Shared` does.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::error::Error;
use crate::lease::Lease;
use crate::shared::{Options, Shared, Stuck};
use crate::sqlite::Sqlite;
use crate::stats::{Holder, Stats};

/// Longest id of an agent, in bytes.
const MAX_AGENT_LEN: usize = 1024;
/// Longest wait a caller may ask for. Longer ones are cut to it.
const MAX_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// A pool of connections that agents borrow. Cloning it gives another handle to the same pool.
///
/// `Pool` means `Pool<Sqlite>`; build one with [`Pool::builder`].
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
/// When the last handle is dropped, the pool closes as by [`Pool::close`], but without waiting: what
/// is still lent closes when it comes back.
pub struct Pool<B: Backend = Sqlite> {
    shared: Arc<Shared<B>>,
    /// Closes the pool when the last handle goes; leases keep `Shared` alive, but not the pool.
    _handle: Arc<Handle<B>>,
}

struct Handle<B: Backend>(Arc<Shared<B>>);

impl Pool<Sqlite> {
    /// Rebuilds the database file without its free pages, as `VACUUM` does. A lease cannot do this
    /// by itself, because VACUUM needs to attach a database.
    ///
    /// # Errors
    /// Those of [`Pool::lease`], and those of `VACUUM` as [`Error::Sqlite`].
    ///
    /// # Blocking
    /// Like [`Pool::lease`], and then for as long as SQLite takes to write the whole database again.
    #[track_caller]
    pub fn vacuum(&self) -> Result<(), Error> {
        const AGENT: &str = "leasepool: vacuum";
        let lease = self.lease(AGENT)?;
        let vacuumed = Sqlite::vacuum(&lease);
        drop(lease);
        self.release(AGENT);
        vacuumed
    }
}

impl<B: Backend> Pool<B> {
    /// A pool on any backend.
    pub(crate) fn new(backend: B, options: Options) -> Result<Self, Error> {
        let shared = Shared::start(backend, options)?;
        Ok(Pool {
            _handle: Arc::new(Handle(Arc::clone(&shared))),
            shared,
        })
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
    /// Waits its turn, first come, first served, for at most `lease_timeout`. Then returns within
    /// nanoseconds if the agent's connection is parked, within microseconds if another is open, and
    /// otherwise opens one.
    #[track_caller]
    pub fn lease(&self, agent: impl AsRef<str>) -> Result<Lease<B>, Error> {
        let wait = Some(self.shared.options.lease_timeout);
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
    pub fn try_lease(&self, agent: impl AsRef<str>) -> Result<Lease<B>, Error> {
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
    pub fn lease_timeout(
        &self,
        agent: impl AsRef<str>,
        timeout: Duration,
    ) -> Result<Lease<B>, Error> {
        let wait = Some(timeout.min(MAX_WAIT));
        self.lease_within(agent.as_ref(), wait, Location::caller())
    }

    /// Evicts an agent: gives its parked connection back for others to use, and lets the ones it has
    /// been lent go the same way when they come back. Returns whether a connection was parked.
    ///
    /// Call it when a session ends. Nothing breaks without it: a parked connection never keeps
    /// another agent waiting.
    pub fn release(&self, agent: impl AsRef<str>) -> bool {
        self.shared.cache.release(agent.as_ref())
    }

    /// What the pool is doing and has done.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Who holds a connection, the oldest lease first.
    pub fn holders(&self) -> Vec<Holder> {
        self.shared.cache.ledger.holders(Instant::now())
    }

    /// The largest number of descriptors that this pool can ever hold. Arithmetic, not a measurement:
    /// it is known before the first connection is opened.
    pub fn fd_ceiling(&self) -> usize {
        self.shared.fd_ceiling()
    }

    /// Closes the pool: refuses new leases, wakes those who wait with [`Error::Closed`], closes every
    /// idle connection, and waits until the lent ones have come back, for at most `lease_timeout`.
    /// May be called again, and from several threads; every call waits.
    ///
    /// The last connection to a file runs a checkpoint and removes the `-wal` file as it closes.
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
        self.close_timeout(self.shared.options.lease_timeout)
    }

    /// Like [`Pool::close`], but waits for lent connections for at most `timeout`.
    ///
    /// # Errors
    /// Those of [`Pool::close`].
    ///
    /// # Blocking
    /// Like [`Pool::close`].
    pub fn close_timeout(&self, timeout: Duration) -> Result<(), Error> {
        self.shared.close(timeout.min(MAX_WAIT))
    }

    /// The lease algorithm. The design of each step is told where the step is made.
    fn lease_within(
        &self,
        agent: &str,
        wait: Option<Duration>,
        at: &'static Location<'static>,
    ) -> Result<Lease<B>, Error> {
        check_agent(agent)?;
        let shared = &self.shared;
        let asked_at = Instant::now();
        let deadline = wait.map(|wait| asked_at + wait);
        loop {
            let (permit, now) = shared.permit(asked_at, deadline)?;
            shared.refresh(now);
            let (entry, slot, hit) = match shared.cache.take(agent, now, at) {
                Some((entry, slot)) => (entry, slot, true),
                None => {
                    let slot = shared.any_slot()?;
                    (shared.cache.admit(agent, slot.index, now, at), slot, false)
                }
            };
            permit.pass_on();
            let mut lease = Lease::unready(shared, entry, slot);
            let (agent, slot) = lease.parts();
            match shared.make_ready(agent, slot, now, hit)? {
                Ok(()) => return Ok(lease.ready()),
                Err(Stuck) => lease.strand(),
            }
        }
    }
}

impl<B: Backend> Drop for Handle<B> {
    fn drop(&mut self) {
        self.0.begin_close();
    }
}

impl<B: Backend> Clone for Pool<B> {
    fn clone(&self) -> Self {
        Pool {
            shared: Arc::clone(&self.shared),
            _handle: Arc::clone(&self._handle),
        }
    }
}

impl<B: Backend> fmt::Debug for Pool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

fn check_agent(agent: &str) -> Result<(), Error> {
    let reason = match agent.len() {
        0 => "it is empty",
        1..=MAX_AGENT_LEN => return Ok(()),
        _ => "it is longer than 1024 bytes",
    };
    Err(Error::InvalidAgent { reason })
}
