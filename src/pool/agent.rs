//! Agent: one agent of a pool, as a handle: what is done for an agent, in the time that its caller has.
//! Reads, writes, runs and files are in the modules of these names.

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::lease::Lease;
use super::pooled::Backend;
use super::{Pool, at_most};
use crate::core::agent_name::AgentName;
use crate::error::Error;
use crate::observe::call_site::CallSite;
#[cfg(any(feature = "axum", feature = "actix"))]
use crate::observe::call_site::RequestName;
use crate::observe::reserved::ANONYMOUS;
use crate::sqlite::Sqlite;

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
pub struct Agent<B: Backend = Sqlite> {
    pool: Pool<B>,
    id: Id,
    /// For how long its calls wait, if that is not as long as the pool's options say.
    within: Option<Duration>,
    /// Where the handle was made, or the source of agents was given; and the request that it serves.
    place: CallSite,
}

#[derive(Debug, Clone)]
enum Id {
    Named(Arc<str>),
    /// Why the id that was given is none.
    Invalid(&'static str),
    /// The handle of borrowers that belong to no agent.
    Anonymous,
}

impl<B: Backend> Agent<B> {
    pub(crate) fn named(pool: &Pool<B>, id: impl Display, place: CallSite) -> Self {
        let id = match AgentName::parse(id) {
            Ok(id) => Id::Named(id.as_str().into()),
            Err(reason) => Id::Invalid(reason),
        };
        Agent::of(pool, id, place)
    }

    /// Of a request that names none.
    #[cfg(any(feature = "tower", feature = "actix"))]
    pub(crate) fn unnamed(pool: &Pool<B>, reason: &'static str, place: CallSite) -> Self {
        Agent::of(pool, Id::Invalid(reason), place)
    }

    pub(crate) fn anonymous(pool: &Pool<B>, place: CallSite) -> Self {
        Agent::of(pool, Id::Anonymous, place)
    }

    fn of(pool: &Pool<B>, id: Id, place: CallSite) -> Self {
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
    pub fn pool(&self) -> &Pool<B> {
        &self.pool
    }

    /// A handle whose calls wait for at most `timeout`, instead of the pool's `lease_timeout`. More than 24 hours count as
    /// 24 hours.
    ///
    /// For a lease, that is the time until it is lent. For reads and writes, the work begins within that time or not at
    /// all, and may then take longer. For `run`, work included: it is interrupted when the time has passed.
    #[must_use = "it changes nothing of this handle"]
    pub fn within(&self, timeout: Duration) -> Self {
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
    pub fn lease(&self) -> Result<Lease<B>, Error> {
        let wait = Some(self.wait());
        self.pool.lease_within(self.borrower()?, wait, self.here())
    }

    /// Lends the agent a connection without waiting: [`Pool::try_lease`].
    ///
    /// # Errors
    /// Those of [`Pool::lease`].
    ///
    /// # Blocking
    /// Like [`Pool::try_lease`].
    #[track_caller]
    pub fn try_lease(&self) -> Result<Lease<B>, Error> {
        self.pool.lease_within(self.borrower()?, None, self.here())
    }

    /// Lends the agent a connection, for async code: [`Pool::lease_async`].
    ///
    /// # Errors
    /// Those of [`Pool::lease`].
    #[track_caller]
    pub fn lease_async(&self) -> impl Future<Output = Result<Lease<B>, Error>> + Send {
        self.lease_async_at(self.here())
    }

    async fn lease_async_at(&self, place: CallSite) -> Result<Lease<B>, Error> {
        let (agent, wait) = (self.borrower()?, self.wait());
        self.pool.lease_async_within(agent, wait, place).await
    }

    /// The line that calls, and the request that the handle serves.
    #[track_caller]
    pub(super) fn here(&self) -> CallSite {
        CallSite::here().serving(self.place.request)
    }

    /// Where the handle was made.
    #[cfg(any(feature = "axum", feature = "actix"))]
    pub(super) fn place(&self) -> CallSite {
        self.place
    }

    /// A handle that serves this request.
    #[cfg(any(feature = "axum", feature = "actix"))]
    pub(crate) fn serving(mut self, request: Option<RequestName>) -> Self {
        self.place = self.place.serving(request);
        self
    }

    /// The same; the place that it shows is where the source of agents was given.
    #[cfg(any(feature = "axum", feature = "actix"))]
    pub(crate) async fn lease_extracted(&self) -> Result<Lease<B>, Error> {
        self.lease_async_at(self.place()).await
    }

    /// Evicts the agent: [`Pool::evict`]. Of the handle of [`Pool::anonymous`], it gives back what is parked now.
    pub fn evict(&self) -> bool {
        match self.id() {
            Ok(agent) => self.pool.shared.core.evict(agent),
            Err(_) => false,
        }
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
    pub(super) fn asked_within(&self) -> Option<Duration> {
        self.within
    }
}

impl<B: Backend> Clone for Agent<B> {
    fn clone(&self) -> Self {
        Agent {
            pool: self.pool.clone(),
            id: self.id.clone(),
            within: self.within,
            place: self.place,
        }
    }
}

impl<B: Backend> std::fmt::Debug for Agent<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent")
            .field("id", &self.id)
            .field("within", &self.within)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

impl<B: Backend> Pool<B> {
    /// As whom a borrower borrows that belongs to no agent.
    pub(super) fn no_agent(&self) -> Result<&'static str, Error> {
        self.shared.core.backend.check_anonymous()?;
        Ok(ANONYMOUS)
    }
}
