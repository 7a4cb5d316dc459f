//! Agent: one agent of a pool, as a handle: what is done for an agent, in the time that its caller has.
//! Reads, writes and runs are in the files of these names; here is what concerns the agent itself.

use std::fmt::Display;
use std::future::Future;
use std::panic::Location;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::lease::Lease;
use super::{Pool, at_most};
use crate::core::agent_name::AgentName;
use crate::core::backend::Backend;
use crate::core::lot::ANONYMOUS;
use crate::core::request::Request;
use crate::error::Error;
use crate::sqlite::{Backup, Sqlite};

/// One agent of a pool: a handle for everything that is done for it. [`Pool::agent`] makes one, and the web extractors
/// give one.
///
/// ```
/// use std::time::Duration;
/// use leasepool::{Database, Pool};
///
/// # fn main() -> Result<(), leasepool::Error> {
/// let pool = Pool::builder(Database::memory())
///     .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS note (agent, body)"))
///     .build()?;
/// let alice = pool.agent("alice").within(Duration::from_millis(500));
/// alice.execute("INSERT INTO note VALUES ('alice', ?1)", ["hello"])?;
/// let notes: i64 = alice.read(|tx| tx.query_row("SELECT count(*) FROM note", [], |row| row.get(0)))?;
/// # assert_eq!(notes, 1);
/// # Ok(())
/// # }
/// ```
///
/// A handle has no connection and keeps none: each call borrows one. It is `Send` and `Sync`; a clone costs three
/// reference counts. It keeps the pool alive, as a clone of the pool does.
///
/// Its futures are `Send` and borrow the handle: to spawn one, move a clone of the handle into the task.
///
/// # Errors
/// Every call may return [`Error::InvalidAgent`]: making a handle never fails, so that an invalid id shows in the calls.
#[derive(Debug, Clone)]
pub struct Agent {
    pool: Pool,
    id: Id,
    /// For how long its calls wait, if that is not as long as the pool's options say.
    within: Option<Duration>,
    /// Where the handle was made, or the source of agents was given.
    #[cfg_attr(not(any(feature = "axum", feature = "actix")), allow(dead_code))]
    place: &'static Location<'static>,
}

#[derive(Debug, Clone)]
enum Id {
    Named(Arc<str>),
    /// Why the id that was given is none.
    Invalid(&'static str),
    /// The handle of borrowers that belong to no agent.
    Anonymous,
}

impl Agent {
    pub(crate) fn named(pool: &Pool, id: impl Display, place: &'static Location<'static>) -> Self {
        let id = match AgentName::of(id) {
            Ok(id) => Id::Named(id.as_str().into()),
            Err(Error::InvalidAgent { reason }) => Id::Invalid(reason),
            Err(_) => Id::Invalid("it cannot be used"),
        };
        Agent::of(pool, id, place)
    }

    /// Of a request that names none.
    #[cfg(any(feature = "tower", feature = "actix"))]
    pub(crate) fn unnamed(
        pool: &Pool,
        reason: &'static str,
        place: &'static Location<'static>,
    ) -> Self {
        Agent::of(pool, Id::Invalid(reason), place)
    }

    pub(crate) fn anonymous(pool: &Pool, place: &'static Location<'static>) -> Self {
        Agent::of(pool, Id::Anonymous, place)
    }

    fn of(pool: &Pool, id: Id, place: &'static Location<'static>) -> Self {
        Agent {
            pool: pool.clone(),
            id,
            within: None,
            place,
        }
    }

    /// The agent's id. Of [`Pool::anonymous`], what such borrowers are called in [`Holder`](crate::Holder) and the log.
    ///
    /// # Errors
    /// [`Error::InvalidAgent`] if it is invalid, or if the request names no agent.
    pub fn id(&self) -> Result<&str, Error> {
        match &self.id {
            Id::Named(id) => Ok(id),
            Id::Invalid(reason) => Err(Error::InvalidAgent { reason }),
            Id::Anonymous => Ok(ANONYMOUS),
        }
    }

    /// The pool that it borrows from.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// A handle whose calls wait for at most `timeout`, instead of the pool's `lease_timeout`. More than 24 hours count as
    /// 24 hours.
    ///
    /// For a lease, that is the time until it is lent. For reads and writes, the work begins within that time or not at
    /// all, and may then take longer. For `run`, work included: it is interrupted when the time has passed.
    #[must_use = "it changes nothing of this handle"]
    pub fn within(&self, timeout: Duration) -> Agent {
        Agent {
            within: Some(at_most(timeout)),
            ..self.clone()
        }
    }

    /// Lends the agent a connection: [`Pool::lease`], or [`Pool::get`] for the handle of [`Pool::anonymous`].
    ///
    /// # Errors
    /// Those of [`Pool::lease`].
    ///
    /// # Blocking
    /// Like [`Pool::lease`].
    #[track_caller]
    pub fn lease(&self) -> Result<Lease, Error> {
        let wait = Some(self.wait());
        self.pool
            .lease_within(self.borrower()?, wait, Location::caller())
    }

    /// Lends the agent a connection without waiting: [`Pool::try_lease`].
    ///
    /// # Errors
    /// Those of [`Pool::lease`].
    ///
    /// # Blocking
    /// Never waits for another lease; may open a connection.
    #[track_caller]
    pub fn try_lease(&self) -> Result<Lease, Error> {
        self.pool
            .lease_within(self.borrower()?, None, Location::caller())
    }

    /// Lends the agent a connection, for async code: [`Pool::lease_async`].
    ///
    /// # Errors
    /// Those of [`Pool::lease`].
    #[track_caller]
    pub fn lease_async(&self) -> impl Future<Output = Result<Lease, Error>> + Send {
        self.lease_async_at(Location::caller())
    }

    async fn lease_async_at(&self, place: &'static Location<'static>) -> Result<Lease, Error> {
        let (agent, wait) = (self.borrower()?, self.wait());
        self.pool.lease_async_within(agent, wait, place).await
    }

    /// The same; the place that it shows is where the source of agents was given.
    #[cfg(any(feature = "axum", feature = "actix"))]
    pub(crate) async fn lease_extracted(&self) -> Result<Lease, Error> {
        self.lease_async_at(self.place).await
    }

    /// Evicts the agent: [`Pool::evict`]. Of the handle of [`Pool::anonymous`], it gives back what is parked now.
    pub fn evict(&self) -> bool {
        match self.id() {
            Ok(agent) => self.pool.shared.core.evict(agent),
            Err(_) => false,
        }
    }

    /// Whether the agent has a file. (A lease would make one.)
    ///
    /// # Errors
    /// [`Error::Unsupported`] if agents have no files of their own.
    ///
    /// # Blocking
    /// For as long as the file system takes to look.
    pub fn exists(&self) -> Result<bool, Error> {
        let agent = self.borrower()?;
        self.pool.shared.core.backend.has_file(agent)
    }

    /// Removes the agent's database: closes its connection and deletes its files. The next lease of the agent makes a new
    /// database. Returns whether there was one.
    ///
    /// The pool first waits until the agent's connection is returned, earlier callers have had it, and no other process
    /// has the file open. With `within(Duration::ZERO)` it does not wait.
    ///
    /// # Errors
    /// - [`Error::Exhausted`] if the connection was still lent at the end of the wait.
    /// - [`Error::Open`] with `SQLITE_BUSY` inside if another process still had the file open then.
    /// - [`Error::AlreadyPooled`] if another pool of this process has it open.
    /// - [`Error::ReadOnly`] if the pool only reads.
    /// - [`Error::Unsupported`] if agents have no files of their own; [`Error::Open`] if a file cannot be deleted.
    /// - [`Error::Closed`], [`Error::InvalidAgent`] as for [`Pool::lease`].
    ///
    /// # Blocking
    /// Like [`Pool::lease`], and for the disk.
    #[track_caller]
    pub fn remove(&self) -> Result<bool, Error> {
        let core = &self.pool.shared.core;
        core.backend.check_writable()?;
        let request = Request::new(self.borrower()?, Some(self.wait()), Location::caller());
        core.backend.check_per_agent()?;
        // Before the files go, all that the pool has open on them must. The place is for a connection that shuts out
        // other processes.
        let _aside = core.set_aside(&request, 1, true)?;
        core.backend
            .remove_file(request.agent(), &core.patience(&request))
    }

    /// Copies the database that the agent uses, as one commit left it, to the file `to`, as [`Pool::backup`] does.
    ///
    /// If agents have files of their own, the agent may be in use meanwhile: its connection reads and writes on. (With
    /// [`Builder::exclusive_locking`](crate::Builder::exclusive_locking), the copy waits for the agent's connection.) If
    /// the agent's `setup` is at work, the copy is made after it. It takes two of the pool's connections, or the only
    /// one.
    ///
    /// # Errors
    /// Those of [`Pool::backup`]; [`Error::Open`] if the agent has no file.
    ///
    /// # Blocking
    /// Like [`Pool::backup`]. In async code, call it on a blocking thread.
    #[track_caller]
    pub fn backup(&self, to: impl AsRef<Path>) -> Result<(), Error> {
        self.backup_with(to, Backup::new())
    }

    /// Like [`Agent::backup`]; `how` says whether to compact the copy, and is told the progress.
    ///
    /// # Errors
    /// Those of [`Agent::backup`]; [`Error::Backup`] if `how` ends it.
    ///
    /// # Blocking
    /// Like [`Agent::backup`].
    #[track_caller]
    pub fn backup_with(&self, to: impl AsRef<Path>, mut how: Backup<'_>) -> Result<(), Error> {
        let agent = self.borrower()?;
        let core = &self.pool.shared.core;
        if !core.backend.is_per_agent() {
            return self.pool.backup_with(to, how);
        }
        let request = Request::new(agent, Some(self.wait()), Location::caller());
        // Where no other connection may open a file that is open, the agent's must be closed first.
        let exclusively = core.backend.locks_exclusively();
        let places = core.options.max_connections.min(2);
        let _aside = core.set_aside(&request, places, exclusively)?;
        let patience = core.patience(&request);
        core.backend
            .backup_agent(agent, to.as_ref(), &mut how, &patience)
    }

    /// Rebuilds the database that the agent uses without its free pages, on the agent's connection: [`Pool::vacuum`].
    ///
    /// # Errors
    /// Those of [`Pool::vacuum`].
    ///
    /// # Blocking
    /// Like [`Pool::vacuum`].
    #[track_caller]
    pub fn vacuum(&self) -> Result<(), Error> {
        let backend = &self.pool.shared.core.backend;
        backend.check_vacuum()?;
        backend.check_writable()?;
        let lease = self.lease()?;
        Sqlite::vacuum(&lease)
    }

    /// As whom it borrows.
    pub(super) fn borrower(&self) -> Result<&str, Error> {
        match self.id {
            Id::Anonymous => self.pool.no_agent(),
            _ => self.id(),
        }
    }

    /// For how long a call waits.
    pub(super) fn wait(&self) -> Duration {
        self.within.unwrap_or(self.pool.lease_timeout())
    }

    /// What was asked for by [`Agent::within`].
    #[cfg(feature = "tokio")]
    pub(super) fn asked_within(&self) -> Option<Duration> {
        self.within
    }
}

impl Pool {
    /// As whom a borrower borrows that belongs to no agent.
    pub(super) fn no_agent(&self) -> Result<&'static str, Error> {
        let backend = &self.shared.core.backend;
        backend.check_shared(
            "a connection without an agent",
            "each agent has a file of its own",
        )?;
        Ok(ANONYMOUS)
    }
}
