//! Web frameworks: the agent of a request, and the HTTP status of an error.
//! The frameworks' own modules translate, and hold no logic.
//!
//! # Leases in web frameworks
//!
//! A layer (tower, axum: `LeaseLayer`) or application data (actix-web: `LeaseData`) says how to find the
//! agent of a request: an [`AgentSource`]. Handlers then ask for one of two things:
//!
//! - [`Lease`](crate::Lease): a connection, leased before the handler runs and returned when the handler
//!   drops it. For handlers that do little but SQL.
//! - [`Agent`]: a handle that leases and writes. For handlers that write, that do SQL in some places only, or
//!   that may answer without SQL. A handler that holds a connection while it waits for something else keeps
//!   other requests waiting.
//!
//! A lease that is moved into a streaming body lives until the body ends or the server drops it. hyper drops
//! it as soon as it sees that the client has gone; actix-web drops it at its next write. So a stream that may
//! be silent for long should not hold a lease.
//!
//! An error becomes a response with the status that [`Error::http_status`] gives: 503 with `Retry-After` if
//! the same request may succeed a moment later ([`Error::is_retryable`]: no connection came free, the turn to
//! write did not come, another process holds a lock), 503 if the pool, or its writer, is closed, 400 if the
//! request names no agent or an invalid one, 421 with the header `x-leasepool-node` if another node serves the
//! agent ([`Error::NotHere`]), 404 if the agent has no database and none is made, 500 for every other error. The
//! body is a fixed text. The error itself goes to the log, as an event of the feature `tracing`, if its status
//! is 500 or more.

#[cfg(feature = "actix")]
mod actix;
#[cfg(feature = "axum")]
mod axum;
#[cfg(feature = "tower")]
mod tower;

#[cfg(any(feature = "axum", feature = "actix"))]
use std::collections::BTreeMap;
use std::sync::Arc;

#[cfg(any(feature = "axum", feature = "actix"))]
use parking_lot::RwLock;
use percent_encoding::percent_decode_str;

#[cfg(feature = "actix")]
pub use self::actix::LeaseData;
#[cfg(feature = "tower")]
pub use self::tower::{LeaseLayer, LeaseService};

#[cfg(any(feature = "axum", feature = "actix"))]
use crate::error::Error;
use crate::observe::call_site::CallSite;
#[cfg(any(feature = "axum", feature = "actix"))]
use crate::observe::call_site::RequestName;
#[cfg(any(feature = "axum", feature = "actix"))]
use crate::observe::events;
use crate::pool::Pool;
pub use crate::pool::agent::Agent;
use crate::pool::pooled::Backend;

const MISSING: &str = "the request names none";
const TWICE: &str = "the request names it twice";
const NOT_UTF8: &str = "it is not UTF-8";

/// How to find the agent of a request `R`: `http::request::Parts` for tower and axum,
/// `actix_web::HttpRequest` for actix-web.
pub struct AgentSource<R>(Arc<Find<R>>);

type Find<R> = dyn Fn(&R) -> Result<String, &'static str> + Send + Sync;

/// The parts of a request that an [`AgentSource`] can read, in any framework.
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
    /// The value of a header, which must occur exactly once. Clients control headers: use this behind
    /// something that has checked the client's identity.
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

    /// A segment of the path, percent-decoded; the first is 0. In a nested router, this is a segment of the
    /// path that the nested router sees.
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

    /// An extension of the request that an earlier layer added, such as the user who has logged in.
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

    /// Any other way to find the agent. `None`: the request names no agent.
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

/// At most so many different requests are told apart.
#[cfg(any(feature = "axum", feature = "actix"))]
const REQUESTS: usize = 1024;

/// Method and route, as [`Holder::request`](crate::Holder::request) shows them. A program has a fixed number of routes, and
/// so each name is made once and kept. `None` if there are too many.
#[cfg(any(feature = "axum", feature = "actix"))]
fn request_name(method: impl AsRef<str>, route: &str) -> Option<RequestName> {
    static NAMES: RwLock<BTreeMap<&str, RequestName>> = RwLock::new(BTreeMap::new());
    // Clients may send any method, and routers may take any.
    const METHODS: [&str; 8] = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH",
    ];
    let method = method.as_ref();
    let known = METHODS.into_iter().find(|known| *known == method);
    let name = format!("{} {route}", known.unwrap_or("*"));
    if let Some(name) = NAMES.read().get(name.as_str()) {
        return Some(name);
    }
    let mut names = NAMES.write();
    if names.len() < REQUESTS && !names.contains_key(name.as_str()) {
        let name: RequestName = Box::leak(Box::new(name.clone()));
        names.insert(name, name);
    }
    names.get(name.as_str()).copied()
}

/// A pool, and how to find the agent of a request.
struct Agents<R, B: Backend> {
    pool: Pool<B>,
    source: AgentSource<R>,
    place: CallSite,
}

impl<R, B: Backend> Agents<R, B> {
    #[track_caller]
    fn new(pool: Pool<B>, source: AgentSource<R>) -> Self {
        Agents {
            pool,
            source,
            place: CallSite::here(),
        }
    }

    /// The agent of a request. If the request names none, the [`Agent`] fails only when it is used: some
    /// requests need no connection.
    fn of(&self, request: &R) -> Agent<B> {
        match (self.source.0)(request) {
            Ok(id) => Agent::named(&self.pool, id, self.place),
            Err(reason) => Agent::unnamed(&self.pool, reason, self.place),
        }
    }
}

impl<R, B: Backend> Clone for Agents<R, B> {
    fn clone(&self) -> Self {
        Agents {
            pool: self.pool.clone(),
            source: self.source.clone(),
            place: self.place,
        }
    }
}

impl<R, B: Backend> std::fmt::Debug for Agents<R, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agents").finish_non_exhaustive()
    }
}

/// Extracts what `T` does ([`Agent`] or [`Lease`](crate::Lease)), for an agent that has a database already. For
/// other agents the response is a 404 ([`Error::NoDatabase`]), and no database is made. For pools of
/// [`Database::per_agent`](crate::Database::per_agent), where a request for any id would make a file otherwise.
///
/// ```
/// use leasepool::web::{Agent, Existing};
/// use leasepool::Error;
///
/// // A handler for axum or actix-web.
/// async fn notes(Existing(agent): Existing<Agent>) -> Result<String, Error> {
///     let notes: i64 = agent
///         .read_async(|tx| tx.query_row("SELECT count(*) FROM note", [], |row| row.get(0)))
///         .await?;
///     Ok(notes.to_string())
/// }
/// ```
///
/// It looks when it is extracted. If the agent is removed between that and a call of the handler, the call makes a new
/// database. A thread of the pool looks at the file system, unless the agent's connection is parked.
/// [`on_missing`](crate::Database::on_missing) is not called: with it, use [`Database::create`](crate::Database::create)`(false)`.
///
/// Where agents share a file, the extractor fails with [`Error::Unsupported`] (500).
#[cfg(any(feature = "axum", feature = "actix"))]
#[derive(Debug, Clone, Copy)]
pub struct Existing<T>(pub T);

/// The header of a response with the status 421: the node that serves the agent, by the name that
/// [`Database::owner`](crate::Database::owner) gave it. A proxy, or the client, repeats the request there. It is left
/// out if the name cannot be the value of a header.
pub const NODE_HEADER: &str = "x-leasepool-node";

/// What a client learns of an error.
#[cfg(any(feature = "axum", feature = "actix"))]
struct Answer<'a> {
    status: u16,
    body: &'static str,
    /// In seconds.
    retry_after: Option<u64>,
    /// Which node serves the agent.
    node: Option<&'a str>,
}

#[cfg(any(feature = "axum", feature = "actix"))]
impl<'a> Answer<'a> {
    fn of(error: &'a Error) -> Self {
        let body = match error {
            Error::Closed | Error::WritesClosed => "the server is shutting down",
            Error::InvalidAgent { reason } if *reason == MISSING => "the request names no agent",
            Error::InvalidAgent { .. } => "the request names an invalid agent",
            Error::NotHere { .. } => "another node serves the agent",
            Error::NoDatabase { .. } => "the agent has no database",
            error if error.is_retryable() => "the database is busy, try again",
            _ => "internal error",
        };
        Answer {
            status: error.http_status(),
            body,
            retry_after: error.retry_after().map(|wait| wait.as_secs()),
            node: match error {
                Error::NotHere { node, .. } => Some(node),
                _ => None,
            },
        }
    }

    /// The answer, and an event for the log: the client learns no more than it needs.
    fn to(error: &'a Error) -> Self {
        let answer = Answer::of(error);
        if answer.status >= 500 {
            events::answered(answer.status, error);
        }
        answer
    }
}
