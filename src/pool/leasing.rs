//! Leasing: the calls that lend a connection.
//! They only translate: `core` does the work.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use super::Pool;
use super::agent::Agent;
use super::builder::Builder;
use super::lease::Lease;
use super::pooled::Backend;
use crate::core::agent_name::AgentName;
use crate::core::request::Request;
use crate::error::Error;
use crate::observe::call_site::CallSite;

impl Pool {
    /// Starts to build a pool on `database`. Every option has a default.
    pub fn builder(database: crate::Database) -> Builder {
        Builder::new(database)
    }
}

impl<B: Backend> Pool<B> {
    /// Lends any connection, to a borrower that belongs to no agent: for programs that have no agents, and for work that
    /// concerns all of them.
    ///
    /// The pool rolls back what the borrower leaves open in a transaction. It resets nothing else between two such
    /// borrowers: like users of r2d2, they see each other's pragmas, temporary tables and prepared statements. Between
    /// such a borrower and an agent, in either order, the pool resets the connection.
    ///
    /// ```
    /// # use leasepool::{Database, Pool};
    /// # fn main() -> Result<(), leasepool::Error> {
    /// # let pool = Pool::builder(Database::memory())
    /// #     .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS note (agent, body)"))
    /// #     .build()?;
    /// let conn = pool.get()?;
    /// let notes: i64 = conn.query_row("SELECT count(*) FROM note", [], |row| row.get(0))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// For another deadline than the pool's, for writes and for snapshots without an agent, see [`Pool::anonymous`].
    ///
    /// # Errors
    /// Those of [`Pool::lease`], except [`Error::InvalidAgent`]; [`Error::Unsupported`] if each agent has a file of its own.
    ///
    /// # Blocking
    /// Like [`Pool::lease`].
    #[track_caller]
    pub fn get(&self) -> Result<Lease<B>, Error> {
        let wait = Some(self.lease_timeout());
        self.lease_within(self.no_agent()?, wait, CallSite::here())
    }

    /// Like [`Pool::get`], but fails at once with [`Error::Exhausted`] instead of waiting.
    ///
    /// # Errors
    /// Those of [`Pool::get`].
    ///
    /// # Blocking
    /// Never waits for another lease; may open a connection.
    #[track_caller]
    pub fn try_get(&self) -> Result<Lease<B>, Error> {
        self.lease_within(self.no_agent()?, None, CallSite::here())
    }

    /// Like [`Pool::get`], for async code; see [`Pool::lease_async`].
    ///
    /// # Errors
    /// Those of [`Pool::get`].
    #[track_caller]
    pub fn get_async(&self) -> impl Future<Output = Result<Lease<B>, Error>> + Send {
        let place = CallSite::here();
        async move {
            let wait = self.lease_timeout();
            self.lease_async_within(self.no_agent()?, wait, place).await
        }
    }

    /// Lends `agent` a connection: the one parked for the agent if there is one, and otherwise any other.
    ///
    /// # Errors
    /// - [`Error::Exhausted`] if every connection stays lent for `lease_timeout`.
    /// - [`Error::Closed`] if the pool is closed, also while the call waits.
    /// - [`Error::InvalidAgent`] if the id is empty, longer than 1,024 bytes or reserved.
    /// - [`Error::Open`], [`Error::FileReplaced`] and others, at once, if no connection can be opened.
    ///
    /// # Blocking
    /// Waits for its turn for at most `lease_timeout`; [`Builder::overtaking`] sets the order. Then it returns within
    /// nanoseconds if the agent's connection is parked and within microseconds if another connection is open.
    /// Otherwise it opens one.
    #[track_caller]
    pub fn lease(&self, agent: impl Display) -> Result<Lease<B>, Error> {
        let agent = AgentName::of(agent)?;
        let wait = Some(self.lease_timeout());
        self.lease_within(agent.as_str(), wait, CallSite::here())
    }

    /// Like [`Pool::lease`], but fails at once with [`Error::Exhausted`] instead of waiting.
    ///
    /// # Errors
    /// Those of [`Pool::lease`].
    ///
    /// # Blocking
    /// Never waits for another lease. May open a connection, for as long as that takes. If another agent's file must be
    /// closed first and has a long log, waits for that for at most 40 ms.
    #[track_caller]
    pub fn try_lease(&self, agent: impl Display) -> Result<Lease<B>, Error> {
        let agent = AgentName::of(agent)?;
        self.lease_within(agent.as_str(), None, CallSite::here())
    }

    /// Like [`Pool::lease`], for async code, on any executor. The caller awaits its turn in the same queue as callers
    /// that block. If a connection must be opened, another thread opens it.
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
    /// The future and the lease are `Send`. `&Lease` is not, because one thread at a time may use a SQLite connection:
    /// do not hold a reference to the lease across an `.await`.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind: no place in the queue, no permit, no connection. The wait is timed
    /// from the first poll.
    ///
    /// # Errors
    /// Those of [`Pool::lease`].
    ///
    /// # Blocking
    /// Polling never waits for other leases or for a disk. The SQL that you run on the lease does block its thread:
    /// run what may take long with `Pool::run` or [`Pool::read_async`].
    #[track_caller]
    pub fn lease_async(
        &self,
        agent: impl Display,
    ) -> impl Future<Output = Result<Lease<B>, Error>> + Send {
        let (agent, place) = (AgentName::of(agent), CallSite::here());
        async move {
            let wait = self.lease_timeout();
            self.lease_async_within(agent?.as_str(), wait, place).await
        }
    }

    /// A handle for one agent: what the pool does for an agent, with a deadline of your own if you like, and what
    /// concerns the agent's own file.
    ///
    /// ```
    /// use std::time::Duration;
    /// # use leasepool::{Database, Pool};
    /// # fn main() -> Result<(), leasepool::Error> {
    /// # let pool = Pool::builder(Database::memory()).build()?;
    /// let lease = pool.agent("alice").within(Duration::from_millis(200)).lease()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// It never fails: if the id is invalid, each call of the handle returns [`Error::InvalidAgent`].
    #[track_caller]
    pub fn agent(&self, id: impl Display) -> Agent<B> {
        Agent::named(self, id, CallSite::here())
    }

    /// The handle of borrowers that belong to no agent: [`Pool::get`], with all that an [`Agent`] can do.
    ///
    /// ```
    /// # use leasepool::{Database, Pool};
    /// # fn main() -> Result<(), leasepool::Error> {
    /// # let pool = Pool::builder(Database::memory()).build()?;
    /// let app = pool.anonymous();
    /// app.write(|tx| tx.execute_batch("CREATE TABLE job (what)"))?;
    /// app.execute("INSERT INTO job VALUES (?1)", ["sweep"])?;
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn anonymous(&self) -> Agent<B> {
        Agent::anonymous(self, CallSite::here())
    }

    /// Evicts an agent: gives the connections that are parked for it back for others to use, and those lent to it as
    /// soon as they are returned. Returns whether a connection was parked.
    ///
    /// Call it when a session ends. It is never necessary: a parked connection keeps no other agent waiting.
    pub fn evict(&self, agent: impl Display) -> bool {
        match AgentName::of(agent) {
            Ok(agent) => self.shared.core.evict(agent.as_str()),
            Err(_) => false,
        }
    }

    #[inline]
    pub(super) fn lease_within(
        &self,
        agent: &str,
        wait: Option<Duration>,
        place: CallSite,
    ) -> Result<Lease<B>, Error> {
        self.shared.lease(&Request::of_borrower(agent, wait, place))
    }

    pub(crate) async fn lease_async_within(
        &self,
        agent: &str,
        wait: Duration,
        place: CallSite,
    ) -> Result<Lease<B>, Error> {
        let request = Request::of_borrower(agent, Some(wait), place).awaiting();
        self.shared.lease_async(request).await
    }
}
