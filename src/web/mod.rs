//! Web frameworks: whose request this is, and what an error means in HTTP. The frameworks' own modules
//! translate, and hold no logic.
//!
//! # Leases in web frameworks
//!
//! A layer (tower, axum: `LeaseLayer`) or application data (actix-web: `LeaseData`) says how to find the
//! agent of a request: an [`AgentSource`]. Handlers then ask for one of two things:
//!
//! - [`Lease`](crate::Lease): a connection, leased before the handler runs and returned when the
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
pub use crate::pool::agent::Agent;

const MISSING: &str = "the request names none";
const TWICE: &str = "the request names it twice";
const NOT_UTF8: &str = "it is not UTF-8";

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

    /// The same agent for every request: for applications that have no agents, or one.
    pub fn constant(id: impl std::fmt::Display) -> Self {
        let id = id.to_string();
        AgentSource(Arc::new(move |_| Ok(id.clone())))
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
        match (self.source.0)(request) {
            Ok(id) => Agent::named(&self.pool, id, self.place),
            Err(reason) => Agent::unnamed(&self.pool, reason, self.place),
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
