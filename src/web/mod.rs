//! Web frameworks: whose request this is, and what an error means in HTTP. The frameworks' own modules
//! translate, and hold no logic.
//!
//! # Leases in web frameworks
//!
//! A layer (tower, axum: `LeaseLayer`) or application data (actix-web: `LeaseData`) says how to find the
//! agent of a request: an [`AgentSource`]. Handlers then ask for one of two things:
//!
//! - [`Lease`]: a connection, leased before the handler runs and returned when the
//!   handler drops it. For handlers that do little but SQL.
//! - [`Agent`]: the handle for leasing and for writing. For handlers that write, that do SQL in some
//!   places only, or that may answer without. A connection that is held while a handler waits for
//!   something else is one that others wait for.
//!
//! A lease that is moved into a streaming body lives until the body ends or the server drops it. hyper
//! drops it as soon as it sees that the client has gone; actix-web when it next writes. So a stream
//! that may be silent for long should not hold a lease.
//!
//! An error becomes a response, of the status that [`Error::http_status`] says: 503 with `Retry-After` if the same may
//! well succeed a moment later ([`Error::is_retryable`]: no connection came free, no turn to write came, another process
//! holds a lock), 503 if the pool, or its writer, is closed, 400 if the request names no agent or one that cannot be, 500 for
//! everything else. Bodies are fixed texts: what went wrong is for the log, where the event goes with
//! the feature `tracing`.

#[cfg(feature = "actix")]
mod actix;
#[cfg(feature = "axum")]
mod axum;
#[cfg(feature = "tower")]
mod tower;

use std::future::Future;
use std::panic::Location;
use std::sync::Arc;

use percent_encoding::percent_decode_str;

#[cfg(feature = "actix")]
pub use self::actix::LeaseData;
#[cfg(feature = "tower")]
pub use self::tower::{LeaseLayer, LeaseService};

use crate::error::Error;
#[cfg(any(feature = "axum", feature = "actix"))]
use crate::observe::events;
use crate::pool::Pool;
use crate::pool::lease::Lease;

const MISSING: &str = "the request names none";
const TWICE: &str = "the request names it twice";
const NOT_UTF8: &str = "it is not UTF-8";

/// The agent of a request: the handle for leasing and for writing. Cloning it is cheap.
///
/// ```
/// use leasepool::web::Agent;
///
/// async fn unread(agent: Agent) -> Result<i64, leasepool::Error> {
///     let lease = agent.lease().await?;
///     Ok(lease.query_row("SELECT count(*) FROM message WHERE read = 0", [], |row| row.get(0))?)
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Agent {
    pool: Pool,
    id: Result<Arc<str>, &'static str>,
    /// Where the source of agents was given: what a lease that an extractor takes shows as its place.
    #[cfg_attr(not(any(feature = "axum", feature = "actix")), allow(dead_code))]
    place: &'static Location<'static>,
}

impl Agent {
    /// The id.
    ///
    /// # Errors
    /// [`Error::InvalidAgent`] if the request names none.
    pub fn id(&self) -> Result<&str, Error> {
        match &self.id {
            Ok(id) => Ok(id),
            Err(reason) => Err(Error::InvalidAgent { reason }),
        }
    }

    /// The pool that it leases from.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Lends the agent a connection: [`Pool::lease_async`].
    ///
    /// # Errors
    /// Those of [`Pool::lease`].
    #[track_caller]
    pub fn lease(&self) -> impl Future<Output = Result<Lease, Error>> {
        self.lease_at(Location::caller())
    }

    async fn lease_at(&self, place: &'static Location<'static>) -> Result<Lease, Error> {
        let wait = self.pool.shared().core.options.lease_timeout;
        self.pool.lease_async_within(self.id()?, wait, place).await
    }

    /// Runs `work` on a connection of the agent's, off the async threads: [`Pool::run`].
    ///
    /// # Errors
    /// Those of [`Pool::run`].
    #[cfg(feature = "tokio")]
    #[track_caller]
    pub fn run<F, R>(&self, work: F) -> impl Future<Output = Result<R, Error>>
    where
        F: FnOnce(&mut rusqlite::Connection) -> R + Send + 'static,
        R: Send + 'static,
    {
        let place = Location::caller();
        async move { self.pool.run_at(self.id()?, None, place, work).await }
    }

    /// Runs `work` in one read transaction, on a thread of the pool's: [`Pool::read_async`].
    ///
    /// # Errors
    /// Those of [`Pool::read_async`], as `work`'s error type.
    #[track_caller]
    pub fn read<T, E, F>(&self, work: F) -> impl Future<Output = Result<T, E>>
    where
        F: FnOnce(&rusqlite::Transaction<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let place = Location::caller();
        async move {
            let wait = self.pool.shared().core.options.lease_timeout;
            let id = self.id()?;
            self.pool.read_async_within(id, wait, place, work).await?
        }
    }

    /// Copies the agent's database to the file `to`: [`Pool::backup_agent`], or [`Pool::backup`] where all agents share
    /// one database.
    ///
    /// # Errors
    /// Those of [`Pool::backup`].
    ///
    /// # Blocking
    /// For as long as the copy takes: call it off the async threads.
    #[track_caller]
    pub fn backup(&self, to: impl AsRef<std::path::Path>) -> Result<(), Error> {
        self.pool.backup_database_of(self.id()?, to.as_ref())
    }

    /// Runs `work` in a transaction that writes, in one queue with all who write: [`Pool::write_async`].
    ///
    /// ```
    /// use leasepool::Error;
    /// use leasepool::web::Agent;
    ///
    /// async fn read_all(agent: Agent) -> Result<(), Error> {
    ///     let id = agent.id()?.to_owned();
    ///     agent
    ///         .write(move |tx| {
    ///             tx.execute("UPDATE message SET read = 1 WHERE agent = ?1", [id])?;
    ///             Ok(())
    ///         })
    ///         .await
    /// }
    /// ```
    ///
    /// # Errors
    /// Those of [`Pool::write`], as `work`'s error type.
    #[track_caller]
    pub fn write<T, E, F>(&self, work: F) -> impl Future<Output = Result<T, E>>
    where
        F: FnOnce(&mut rusqlite::Savepoint<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let place = Location::caller();
        async move {
            let wait = self.pool.shared().core.options.lease_timeout;
            let id = self.id()?;
            self.pool.write_async_within(id, wait, place, work).await
        }
    }
}

/// How to find the agent of a request `R`: `http::request::Parts` for tower and axum,
/// `actix_web::HttpRequest` for actix-web.
pub struct AgentSource<R>(Arc<Find<R>>);

type Find<R> = dyn Fn(&R) -> Result<String, &'static str> + Send + Sync;

/// What a request is made of, in any framework.
pub trait RequestParts: sealed::Sealed {
    /// The values of a header, in order.
    #[doc(hidden)]
    fn header(&self, name: &str) -> impl Iterator<Item = &[u8]>;
    #[doc(hidden)]
    fn path(&self) -> &str;
    #[doc(hidden)]
    fn with_extension<T: Send + Sync + 'static, U>(&self, f: impl FnOnce(&T) -> U) -> Option<U>;
}

mod sealed {
    pub trait Sealed {}
}

impl<R: RequestParts + 'static> AgentSource<R> {
    /// The value of a header, which must be there exactly once. A header says what the client says: use
    /// it behind something that has checked who the client is.
    pub fn header(name: impl Into<String>) -> Self {
        let name = name.into();
        AgentSource(Arc::new(move |request| {
            let mut values = request.header(&name);
            let value = values.next().ok_or(MISSING)?.to_vec();
            match values.next() {
                Some(_) => Err(TWICE),
                None => String::from_utf8(value).map_err(|_| NOT_UTF8),
            }
        }))
    }

    /// A segment of the path, percent-decoded; the first is 0. Of a router that is nested in another,
    /// it sees the path that this router sees.
    pub fn segment(index: usize) -> Self {
        AgentSource(Arc::new(move |request| {
            let path = request.path();
            let mut segments = path.strip_prefix('/').unwrap_or(path).split('/');
            let segment = segments
                .nth(index)
                .filter(|s| !s.is_empty())
                .ok_or(MISSING)?;
            let decoded = percent_decode_str(segment).decode_utf8();
            decoded.map(|id| id.into_owned()).map_err(|_| NOT_UTF8)
        }))
    }

    /// An extension of the request that an earlier layer put there: who has logged in.
    pub fn extension<T: Send + Sync + 'static>(
        id: impl Fn(&T) -> String + Send + Sync + 'static,
    ) -> Self {
        AgentSource(Arc::new(move |request| {
            request.with_extension(&id).ok_or(MISSING)
        }))
    }

    /// Anything else. `None`: the request names no agent.
    pub fn from_fn(find: impl Fn(&R) -> Option<String> + Send + Sync + 'static) -> Self {
        AgentSource(Arc::new(move |request| find(request).ok_or(MISSING)))
    }
}

impl<R> Clone for AgentSource<R> {
    fn clone(&self) -> Self {
        AgentSource(Arc::clone(&self.0))
    }
}

impl<R> std::fmt::Debug for AgentSource<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentSource").finish_non_exhaustive()
    }
}

/// A pool with how to find whose a request is.
struct Agents<R> {
    pool: Pool,
    source: AgentSource<R>,
    place: &'static Location<'static>,
}

impl<R> Agents<R> {
    #[track_caller]
    fn new(pool: Pool, source: AgentSource<R>) -> Self {
        Agents {
            pool,
            source,
            place: Location::caller(),
        }
    }

    /// Whose request this is. That it names none is known to the [`Agent`], and to whoever wants to
    /// lease: some requests need no connection.
    fn of(&self, request: &R) -> Agent {
        Agent {
            pool: self.pool.clone(),
            id: (self.source.0)(request).map(Arc::from),
            place: self.place,
        }
    }
}

impl<R> Clone for Agents<R> {
    fn clone(&self) -> Self {
        Agents {
            pool: self.pool.clone(),
            source: self.source.clone(),
            place: self.place,
        }
    }
}

impl<R> std::fmt::Debug for Agents<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agents").finish_non_exhaustive()
    }
}

/// What a client is told of an error.
#[cfg(any(feature = "axum", feature = "actix"))]
struct Answer {
    status: u16,
    body: &'static str,
    /// In seconds.
    retry_after: Option<u64>,
}

#[cfg(any(feature = "axum", feature = "actix"))]
impl Answer {
    fn of(error: &Error) -> Answer {
        let body = match error {
            Error::Closed | Error::WritesClosed => "the server is shutting down",
            Error::InvalidAgent { reason } if *reason == MISSING => "the request names no agent",
            Error::InvalidAgent { .. } => "the request names an invalid agent",
            error if error.is_retryable() => "the database is busy, try again",
            _ => "internal error",
        };
        Answer {
            status: error.http_status(),
            body,
            retry_after: error.retry_after().map(|wait| wait.as_secs()),
        }
    }

    /// The same, told to the log: the client is told no more than it needs.
    fn to(error: &Error) -> Answer {
        let answer = Answer::of(error);
        if answer.status != 400 {
            events::answered(answer.status, error);
        }
        answer
    }
}

/// The request did not come by where agents are found.
#[cfg(any(feature = "axum", feature = "actix"))]
fn not_set_up(option: &'static str) -> Error {
    Error::Config {
        option,
        value: "nothing".to_owned(),
        expected: "to be given to the application, around this handler".to_owned(),
    }
}
